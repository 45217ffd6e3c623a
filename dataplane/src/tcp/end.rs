//! One end of a tunnel, whatever carries it: a socket, an HTTP/1.1 connection that was upgraded, or a stream of an HTTP/2
//! connection.
//!
//! An end that waits holds no buffer. What a socket gives is read into a space of the thread's free list, which goes back
//! there as soon as the bytes have gone on.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::accept::Io;
use crate::body::Frame;
use crate::http1::Handle;
use crate::http2::Received;

/// What is read in one go, and so what is held of one direction beyond HTTP/2's windows.
pub(crate) const PIECE: usize = 32 * 1024;
/// Less than this is copied out of the space before it is given to a stream, which may keep it for as long as its window
/// is shut.
const COPY_BELOW: usize = 4 * 1024;
/// Free spaces kept per thread.
const FREE_SPACES: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// One end.
#[derive(Debug)]
pub(crate) struct End {
    carrier: Carrier,
    /// The TLS layer may hold bytes that the socket did not take.
    unflushed: bool,
}

#[derive(Debug)]
enum Carrier {
    Socket(Box<Io>),
    /// What it has read of the tunnel already, and staged for sending, comes first.
    Http1(Handle),
    Stream(Box<Stream>),
}

#[derive(Debug)]
struct Stream {
    send: SendStream<Bytes>,
    receive: Received,
    finished: bool,
}

impl End {
    /// A connection, plain or under TLS.
    pub(crate) fn socket(io: Io) -> Self {
        Self::new(Carrier::Socket(Box::new(io)))
    }

    /// An HTTP/1.1 connection that has become a tunnel.
    pub(crate) fn upgraded(connection: Handle) -> Self {
        Self::new(Carrier::Http1(connection))
    }

    /// A stream that CONNECT opened.
    pub(crate) fn stream(send: SendStream<Bytes>, receive: Received) -> Self {
        Self::new(Carrier::Stream(Box::new(Stream {
            send,
            receive,
            finished: false,
        })))
    }

    fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            unflushed: false,
        }
    }

    /// Whether what it is given may wait in memory for a window to open.
    pub(super) fn keeps_what_it_is_given(&self) -> bool {
        matches!(self.carrier, Carrier::Stream(_))
    }

    /// What comes next; nothing at the end. `space` is empty again when the last piece was dropped.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut BytesMut,
        small_is_copied: bool,
    ) -> Poll<io::Result<Bytes>> {
        match &mut self.carrier {
            Carrier::Socket(io) => poll_read(io, cx, space, small_is_copied),
            Carrier::Http1(connection) => {
                let wire = &mut connection.borrow_mut().wire;
                if !wire.input.is_empty() {
                    return Poll::Ready(Ok(std::mem::take(&mut wire.input)));
                }
                poll_read(wire.io(), cx, space, small_is_copied)
            }
            Carrier::Stream(stream) => match ready!(stream.receive.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => Poll::Ready(Ok(data)),
                // Trailers say nothing in a tunnel but that it ends.
                Some(Ok(Frame::Trailers(_))) | None => Poll::Ready(Ok(Bytes::new())),
                Some(Err(error)) => Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    error.detail,
                ))),
            },
        }
    }

    /// Takes what it can of the piece; ready when something was taken.
    pub(super) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        piece: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        let unflushed = &mut self.unflushed;
        match &mut self.carrier {
            Carrier::Socket(io) => poll_write(io, cx, piece, unflushed),
            Carrier::Http1(connection) => {
                let wire = &mut connection.borrow_mut().wire;
                ready!(wire.poll_flush(cx))?;
                poll_write(wire.io(), cx, piece, unflushed)
            }
            Carrier::Stream(stream) => {
                let send = &mut stream.send;
                if send.capacity() < piece.len() {
                    send.reserve_capacity(piece.len());
                }
                while send.capacity() == 0 {
                    match ready!(send.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
                        None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                    }
                }
                let length = send.capacity().min(piece.len());
                send.send_data(piece.split_to(length), false)
                    .map_err(|error| broken(&error))?;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Sends what it took. A stream's connection does that by itself.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Socket(io) if self.unflushed => {
                ready!(Pin::new(io.as_mut()).poll_flush(cx))?;
            }
            Carrier::Http1(connection) => {
                let wire = &mut connection.borrow_mut().wire;
                ready!(wire.poll_flush(cx))?;
                if self.unflushed {
                    ready!(Pin::new(wire.io()).poll_flush(cx))?;
                }
            }
            _ => {}
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that nothing more comes; it may go on sending.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        match &mut self.carrier {
            Carrier::Socket(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
            Carrier::Http1(connection) => connection.borrow_mut().wire.poll_shutdown(cx),
            Carrier::Stream(stream) => {
                stream.finished = true;
                let sent = stream.send.send_data(Bytes::new(), true);
                Poll::Ready(sent.map_err(|error| broken(&error)))
            }
        }
    }

    /// Ready when the peer has broken off while there was nothing to read from it or to send to it. Of a socket that
    /// only shows when it is written to.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.carrier {
            Carrier::Stream(stream) if !stream.finished => {
                stream.send.poll_reset(cx).map(|reset| match reset {
                    Ok(reason) => io::Error::new(
                        io::ErrorKind::ConnectionReset,
                        format!("the stream was reset: {reason}"),
                    ),
                    Err(error) => broken(&error),
                })
            }
            _ => Poll::Pending,
        }
    }

    /// Breaks off: the peer must not take what it got for everything (RFC 9113 §8.5).
    pub(crate) fn reset(&mut self) {
        match &mut self.carrier {
            Carrier::Socket(io) => io.reset(),
            Carrier::Http1(connection) => connection.borrow_mut().wire.io().reset(),
            Carrier::Stream(stream) => stream.send.send_reset(Reason::CONNECT_ERROR),
        }
    }
}

fn broken(error: &h2::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("the stream: {error}"),
    )
}

fn poll_write(
    io: &mut Io,
    cx: &mut Context<'_>,
    piece: &mut Bytes,
    unflushed: &mut bool,
) -> Poll<io::Result<()>> {
    let length = ready!(Pin::new(&mut *io).poll_write(cx, piece))?;
    if length == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    *unflushed = io.is_tls();
    bytes::Buf::advance(piece, length);
    if piece.is_empty() {
        // An empty rest holds the whole space.
        *piece = Bytes::new();
    }
    Poll::Ready(Ok(()))
}

fn poll_read(
    io: &mut Io,
    cx: &mut Context<'_>,
    space: &mut BytesMut,
    small_is_copied: bool,
) -> Poll<io::Result<Bytes>> {
    if !space.try_reclaim(PIECE) {
        // None yet, or a stream still holds the last piece.
        *space = FREE
            .with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| BytesMut::with_capacity(PIECE));
    }
    match pin!(io.read_buf(space)).poll(cx) {
        Poll::Ready(Ok(0)) => {
            give_back(space);
            Poll::Ready(Ok(Bytes::new()))
        }
        Poll::Ready(Ok(length)) if small_is_copied && length < COPY_BELOW => {
            let piece = Bytes::copy_from_slice(space);
            space.clear();
            Poll::Ready(Ok(piece))
        }
        Poll::Ready(Ok(_)) => Poll::Ready(Ok(space.split().freeze())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => {
            give_back(space);
            Poll::Pending
        }
    }
}

/// Whoever waits holds no space.
fn give_back(space: &mut BytesMut) {
    let free = std::mem::take(space);
    FREE.with_borrow_mut(|list| {
        if list.len() < FREE_SPACES {
            list.push(free);
        }
    });
}

#[cfg(test)]
pub(super) fn free_spaces() -> usize {
    FREE.with_borrow(Vec::len)
}
