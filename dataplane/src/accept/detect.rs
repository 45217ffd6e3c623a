//! Which version of HTTP a plaintext connection speaks: its first bytes say so.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::Io;
use crate::core::{LEAVE, Seat};
use crate::timer::Timer;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
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
            let matching = read
                .iter()
                .zip(PREFACE)
                .take_while(|(got, want)| *got == *want)
                .count();
            if matching == PREFACE.len() {
                io.unread(Bytes::from(std::mem::take(&mut read)));
                return Poll::Ready(Some(Version::Http2));
            }
            if matching < read.len() {
                io.unread(Bytes::from(std::mem::take(&mut read)));
                return Poll::Ready(Some(Version::Http1));
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
