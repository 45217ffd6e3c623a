//! What a plaintext connection speaks: its first bytes say so, or that there are none.
//!
//! A port for HTTP only has to know which version ([`version`]). A port that takes anything ([`protocol`]) must not keep a
//! connection waiting whose server speaks first: after a short silence it is opaque.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::Io;
use crate::core::{LEAVE, Seat};
use crate::observe::Detected;
use crate::timer::Timer;

/// How a record of TLS's handshake begins, and nothing of HTTP.
const HANDSHAKE: u8 = 0x16;
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// So much of the preface is no request line of anything else: what differs behind it is a broken preface.
const UNMISTAKABLE: usize = b"PRI * HTTP/2".len();
/// What is read before it must be clear: a request line this long is none that we would take.
const MOST: usize = 2048;
/// A method's length; none that anybody uses is longer.
const LONGEST_METHOD: usize = 24;

/// Ports of protocols in which the server speaks first, or that look like nothing we know: mail, MySQL, Galera,
/// PostgreSQL, Redis, Elasticsearch's transport and memcached. Nothing is gained by waiting for first bytes there.
pub const OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
    /// It begins as HTTP/2 and goes on as nothing.
    Broken,
    /// A handshake of TLS: no request, and what refuses it is the codec of HTTP/1.1.
    Tls,
    /// Bytes that are none of ours to understand.
    Opaque,
}

/// Reads until it is clear, and puts back what it read. `None` when the connection ends, says nothing for `idle`, or
/// begins to say something and does not go on within `head`.
///
/// A method that HTTP/1.1 knows differs from the preface in one of the first bytes, so HTTP/1.1 is not kept waiting.
pub(crate) async fn version(
    io: &mut Io,
    (idle, head): (Duration, Duration),
    seat: &Seat,
    draining: impl Fn() -> bool,
) -> Option<Version> {
    let mut timer = Timer::new();
    timer.set(Instant::now() + idle);
    // As long as the longest head that fits in one segment: mostly one read is all, and HTTP/1.1 parses from it.
    let mut read = Vec::new();
    let mut leaving = false;
    poll_fn(|cx| {
        loop {
            if let Some(version) = of_http(&read) {
                io.unread(Bytes::from(std::mem::take(&mut read)));
                return Poll::Ready(Some(version));
            }
            seat.wake_at_drain(cx);
            let mut space = [0; 2048];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => {
                    if read.is_empty() && !leaving && draining() {
                        // Not at once: a request that is on its way is answered, and not reset.
                        leaving = true;
                        timer.set(Instant::now() + LEAVE);
                    }
                    return timer.poll_expired(cx).map(|()| None);
                }
            }
            if read.is_empty() {
                timer.set(Instant::now() + head);
            }
            read.extend_from_slice(buf.filled());
        }
    })
    .await
}

/// The version of HTTP in which these bytes begin, as soon as that is clear.
fn of_http(read: &[u8]) -> Option<Version> {
    let matching = read
        .iter()
        .zip(PREFACE)
        .take_while(|(got, want)| *got == *want)
        .count();
    match matching {
        _ if matching == PREFACE.len() => Some(Version::Http2),
        _ if matching == read.len() => None,
        UNMISTAKABLE.. => Some(Version::Broken),
        _ if read[0] == HANDSHAKE => Some(Version::Tls),
        _ => Some(Version::Http1),
    }
}

/// What a connection to a port that takes anything speaks, at the latest after `patience`; puts back what it read. `None`
/// when the connection breaks.
pub(crate) async fn protocol(io: &mut Io, patience: Duration) -> Option<Detected> {
    let mut timer = Timer::new();
    timer.set(Instant::now() + patience);
    let mut read = Vec::new();
    let detected = poll_fn(|cx| {
        loop {
            if let Some(detected) = judge(&read) {
                return Poll::Ready(Some(detected));
            }
            let mut space = [0; MOST];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    read.extend_from_slice(buf.filled());
                }
                // Half closed: whoever is on the other side may still have something to say to that.
                Poll::Ready(Ok(())) => return Poll::Ready(Some(Detected::Opaque)),
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => {
                    return timer.poll_expired(cx).map(|()| Some(after_patience(&read)));
                }
            }
        }
    })
    .await;
    io.unread(Bytes::from(read));
    detected
}

/// What begins with these bytes; `None` while that is open.
fn judge(read: &[u8]) -> Option<Detected> {
    match of_http(read) {
        Some(Version::Http2) => return Some(Detected::Http2),
        Some(Version::Broken) => return Some(Detected::BrokenHttp2),
        None => return None,
        _ => {}
    }
    if read[0] == HANDSHAKE {
        return client_hello(read);
    }
    request_line(read)
}

/// TLS, by a record of the handshake that holds a ClientHello.
fn client_hello(read: &[u8]) -> Option<Detected> {
    let matches = |at: usize, is: fn(u8) -> bool| read.get(at).is_none_or(|byte| is(*byte));
    // Record version 3.0 to 3.4 (RFC 8446 §5.1), and then the type of the message.
    if !matches(1, |byte| byte == 3)
        || !matches(2, |byte| byte <= 4)
        || !matches(5, |byte| byte == 1)
    {
        return Some(Detected::Opaque);
    }
    (read.len() > 5).then_some(Detected::Tls)
}

/// HTTP/1, by a whole request line: many a protocol of text begins with a word and a space.
fn request_line(read: &[u8]) -> Option<Detected> {
    // RFC 9112 §2.2: an empty line in front of it is put up with.
    let line = read.strip_prefix(b"\r\n").unwrap_or(read);
    if b"\r\n".starts_with(read) {
        return None;
    }
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = line.iter().take_while(|byte| is_token(byte)).count();
    if method == 0 || method > LONGEST_METHOD {
        return Some(Detected::Opaque);
    }
    let rest = line.get(method..).filter(|rest| !rest.is_empty())?;
    if rest[0] != b' ' {
        return Some(Detected::Opaque);
    }
    let Some(end) = rest.iter().position(u8::is_ascii_control) else {
        // Too long a line for the codec too; it says so in the protocol's own words.
        return (rest.len() > MOST).then_some(Detected::Http1);
    };
    let is_request = match &rest[end..] {
        [b'\n', ..] | [b'\r', b'\n', ..] => {
            let (_, version) = rest[..end].split_at(end.saturating_sub(b" HTTP/1.1".len()));
            version.starts_with(b" HTTP/") && version.len() == b" HTTP/1.1".len()
        }
        [b'\r'] => return None,
        _ => false,
    };
    Some(if is_request {
        Detected::Http1
    } else {
        Detected::Opaque
    })
}

/// The best guess when nothing more has come: a request line that drips in is HTTP/1's to be patient with.
fn after_patience(read: &[u8]) -> Detected {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"PATCH ",
        b"DELETE ",
        b"OPTIONS ",
        b"TRACE ",
        b"CONNECT ",
    ];
    let begins = |method: &&[u8]| {
        let rest = read.strip_prefix(*method);
        rest.is_some_and(|rest| rest.starts_with(b"/") || rest.starts_with(b"http"))
    };
    if METHODS.iter().any(begins) {
        Detected::Http1
    } else {
        Detected::Timeout
    }
}

#[cfg(test)]
mod tests;
