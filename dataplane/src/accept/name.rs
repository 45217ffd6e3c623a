//! Whom a connection says that it wants to speak with, read ahead and put back: by the head of its first request, or by its
//! TLS ClientHello. What it says is its own claim.

use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::Io;
use crate::head::Head;
use crate::http1::{Limits, parse};
use crate::timer::Timer;

/// The longest ClientHello that is waited for: one TLS record, which is as much as one may be.
const HELLO: usize = 16 * 1024 + 5;

/// The head of the first request, as strict as we read requests; `None` when there is none that we would take.
pub(super) async fn head(io: &mut Io, limits: &Limits, patience: Duration) -> Option<Head> {
    ahead(
        io,
        limits.head_bytes,
        patience,
        |read, _| match parse::request(read, limits) {
            Ok(Some(request)) => Poll::Ready(Some(request.head)),
            Ok(None) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        },
    )
    .await
}

/// The server's name in a ClientHello.
pub(super) async fn server(io: &mut Io, patience: Duration) -> Option<String> {
    let mut acceptor = Acceptor::default();
    ahead(io, HELLO, patience, |_, fresh| {
        let mut fresh = Bytes::slice(fresh, ..).to_vec();
        let mut rest = fresh.as_mut_slice() as &[u8];
        while !rest.is_empty() {
            // It takes what it has room for, and makes room by looking.
            let taken = acceptor.read_tls(&mut rest.by_ref());
            match (taken, acceptor.accept()) {
                (Ok(0) | Err(_), _) | (_, Err(_)) => return Poll::Ready(None),
                (_, Ok(Some(accepted))) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    return Poll::Ready(name);
                }
                (_, Ok(None)) => {}
            }
        }
        Poll::Pending
    })
    .await
}

/// Reads until `judge`, who is given all that was read and what is new of it, has made up its mind; then puts all of it
/// back. No more than `most` bytes and no longer than `patience`.
async fn ahead<T>(
    io: &mut Io,
    most: usize,
    patience: Duration,
    mut judge: impl FnMut(&Bytes, &Bytes) -> Poll<Option<T>>,
) -> Option<T> {
    let mut timer = Timer::new();
    timer.set(Instant::now() + patience);
    let mut read = BytesMut::from(&*io.take_unread());
    let mut judged = 0;
    let found = poll_fn(|cx| {
        loop {
            if read.len() > judged {
                // A copy: it is done once or twice for a connection.
                let all = Bytes::copy_from_slice(&read);
                let found = judge(&all, &all.slice(judged..));
                judged = read.len();
                if found.is_ready() {
                    return found;
                }
            }
            if read.len() >= most {
                return Poll::Ready(None);
            }
            let mut space = [0; 2048];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    read.extend_from_slice(buf.filled());
                }
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => return timer.poll_expired(cx).map(|()| None),
            }
        }
    })
    .await;
    io.unread(read.freeze());
    found
}

#[cfg(test)]
mod tests;
