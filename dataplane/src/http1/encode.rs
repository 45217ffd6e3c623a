//! HTTP/1.1 messages written from their parsed form: every framing field here is ours.
//!
//! All functions append to a buffer that the caller reuses, so that a head and the first of its body leave in one send.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Method, StatusCode, Version, header};

use super::parse::{Framing, Kind, kind, may_trail};
use crate::head::Head;

/// The interim response that lets a client send its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What follows the data of each chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The end of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What a request says of the connection it goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Nothing: HTTP/1.1 connections persist.
    KeepAlive,
    /// This is the last message.
    Close,
    /// Switch to WebSocket.
    Websocket,
}

/// Writes the head of a request, and after its own fields those that `extra` writes.
///
/// Chunks cannot be spoken to an HTTP/1.0 server, but we only learn of one by its answer; RFC 9112 §6.1 allows it.
pub fn request_head(
    out: &mut Vec<u8>,
    head: &Head,
    framing: Framing,
    connection: Connection,
    extra: impl FnOnce(&mut Vec<u8>),
) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.path.as_str().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(head.authority.as_str().as_bytes());
    out.extend_from_slice(b"\r\n");
    let mut te = false;
    for (name, value) in &head.headers {
        match kind(name.as_str().as_bytes()) {
            Kind::Ordinary | Kind::Expect => field(out, name.as_str(), value.as_bytes()),
            Kind::Te => te |= value == "trailers",
            _ => {}
        }
    }
    extra(out);
    // RFC 9110 §10.1.4: whoever sends `TE` lists it in `Connection`.
    out.extend_from_slice(match (te, connection) {
        (false, Connection::KeepAlive) => b"",
        (true, Connection::KeepAlive) => b"te: trailers\r\nconnection: te\r\n",
        (false, Connection::Close) => b"connection: close\r\n",
        (true, Connection::Close) => b"te: trailers\r\nconnection: te, close\r\n",
        (_, Connection::Websocket) => b"connection: upgrade\r\nupgrade: websocket\r\n",
    });
    match framing {
        Framing::Length(length) => content_length(out, length),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // RFC 9110 §8.6: methods that mean something by a body say that there is none.
        _ if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            content_length(out, 0);
        }
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of a response to a client that speaks `version`, and says how its body has to be framed.
///
/// That is another framing than asked for where the client is too old for chunks, or where an end by closing can be
/// made explicit; [`Framing::UntilClose`] then means to close after it, whatever `keep_alive` says.
///
/// [`Framing::None`] is for answers that can have no body: to HEAD (where a `content-length` in `headers` is written
/// as it is), 1xx, 204, 304. An empty body is `Length(0)`; with `None` the client would wait for one.
/// A 101 switches to WebSocket. `date` is written where `headers` have none; see [`date`].
pub fn response_head(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    version: Version,
    keep_alive: bool,
    date: &[u8],
) -> Framing {
    let framing = response_framing(status, framing, version);
    status_line(out, status);
    let mut dated = status.is_informational();
    for (name, value) in headers {
        match kind(name.as_str().as_bytes()) {
            Kind::Ordinary | Kind::Host | Kind::Expect => {
                dated |= *name == header::DATE;
                field(out, name.as_str(), value.as_bytes());
            }
            Kind::ContentLength if framing == Framing::None && may_tell_length(status) => {
                field(out, name.as_str(), value.as_bytes());
            }
            _ => {}
        }
    }
    if !dated {
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
    }
    match framing {
        Framing::Length(length) => content_length(out, length),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    } else if status.is_informational() {
        // The final response says what becomes of the connection.
    } else if !keep_alive || framing == Framing::UntilClose {
        out.extend_from_slice(b"connection: close\r\n");
    } else if version == Version::HTTP_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// The framing in which a body reaches a client that speaks `version`.
fn response_framing(status: StatusCode, framing: Framing, version: Version) -> Framing {
    let bodiless = status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    match framing {
        _ if bodiless => Framing::None,
        Framing::Chunked if version == Version::HTTP_10 => Framing::UntilClose,
        // So that the client can tell the end from a cut.
        Framing::UntilClose if version != Version::HTTP_10 => Framing::Chunked,
        framing => framing,
    }
}

/// RFC 9110 §8.6: never in 1xx and 204.
fn may_tell_length(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    // The space is not optional even where no reason follows.
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes one field; both halves of it are known to be what they have to be.
pub(crate) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    // Once, and not for each of the four pieces.
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = length;
    loop {
        at -= 1;
        digits[at] = b"0123456789"[(left % 10) as usize];
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Writes the line before a chunk of so many bytes, at least one: zero would end the body. [`CHUNK_END`] comes after
/// the bytes.
pub fn chunk_start(out: &mut Vec<u8>, size: usize) {
    debug_assert!(size > 0, "an empty chunk ends the body");
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = size;
    while left > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left % 16];
        left /= 16;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a chunked body with these trailers, those left out that may not be there.
pub fn last_chunk(out: &mut Vec<u8>, trailers: &HeaderMap) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if may_trail(name.as_str().as_bytes()) {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// A moment as `Date` has it, formatted once a second on each thread.
pub fn date(now: SystemTime) -> [u8; 29] {
    thread_local! {
        static LAST: Cell<Option<(u64, [u8; 29])>> = const { Cell::new(None) };
    }
    let second = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    if let Some((last, text)) = LAST.get()
        && last == second
    {
        return text;
    }
    let text = format_date(second);
    LAST.set(Some((second, text)));
    text
}

fn format_date(second: u64) -> [u8; 29] {
    // Beyond this, the year has five digits and the format has none for them.
    const LAST_SECOND: u64 = 253_402_300_799;
    let moment = UNIX_EPOCH + std::time::Duration::from_secs(second.min(LAST_SECOND));
    let mut text = [b' '; 29];
    let formatted = httpdate::fmt_http_date(moment);
    let size = formatted.len().min(text.len());
    text[..size].copy_from_slice(&formatted.as_bytes()[..size]);
    text
}

#[cfg(test)]
mod tests;
