//! The wire under an HTTP/1.1 connection: what was received and not yet understood, what is to be sent and not yet taken.
//!
//! An idle connection holds no buffer. Heads are read into a scratch area of the thread and copied once into one `Bytes`,
//! of which header values are slices; bodies are read into a space that the connection keeps for as long
//! as the body runs and that is reused once the previous piece was sent. Output is staged in a buffer of the thread's
//! free list, so that a head and what has come of its body leave in one send, and goes back there when it was sent.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::connection::Peer;
use crate::accept::Io;
use crate::cluster::limits::Held;

/// The best size measured for copying bodies: larger ones fall out of the cache.
const READ_SIZE: usize = 32 * 1024;
/// Output is sent when this much is staged.
const STAGE_SIZE: usize = 32 * 1024;
/// A piece of a body of at least this size is sent from where it lies; a smaller one is copied behind the head.
const COPY_BELOW: usize = 4 * 1024;
/// Free output buffers kept per thread.
const FREE_BUFFERS: usize = 64;

/// Small messages are kept in blocks of this size, several in one: one allocation for all of them and their slices. A
/// message that is held for long holds its block, so it is no larger. Those of clients and those of endpoints have blocks
/// of their own: a request is held until its exchange is over, an answer nearly always only until it was passed on, and
/// when all of a block were, it is used again.
const BLOCK: usize = 8 * 1024;
/// A message up to this size goes into a block.
const SMALL: usize = BLOCK / 4;

thread_local! {
    static FROM_CLIENTS: RefCell<BytesMut> = RefCell::new(BytesMut::new());
    static FROM_ENDPOINTS: RefCell<BytesMut> = RefCell::new(BytesMut::new());
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_SIZE].into_boxed_slice());
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A copy of what was received, in memory that it shares with other small messages.
fn keep(received: &[u8], from: Peer) -> Bytes {
    if received.len() > SMALL {
        return Bytes::copy_from_slice(received);
    }
    let block = match from {
        Peer::Client => &FROM_CLIENTS,
        Peer::Endpoint => &FROM_ENDPOINTS,
    };
    block.with_borrow_mut(|block| {
        if block.capacity() < received.len() {
            // The same one, when nobody holds a message in it any more.
            block.reserve(BLOCK);
        }
        block.extend_from_slice(received);
        block.split().freeze()
    })
}

/// A connection's bytes, both ways, buffered and bounded.
#[derive(Debug)]
pub(crate) struct Wire {
    io: Io,
    /// Who is at the other end.
    from: Peer,
    /// Received and not consumed.
    pub(crate) input: Bytes,
    /// Where bodies are received; empty but for its capacity between reads.
    space: BytesMut,
    /// Staged for sending, from `sent` on.
    staged: Vec<u8>,
    sent: usize,
    /// A large piece that goes out after what is staged.
    tail: Bytes,
    /// What follows the large piece: the end of its chunk.
    suffix: &'static [u8],
    /// How many bytes the transport has taken in all.
    pub(crate) delivered: u64,
    /// The TLS layer may hold bytes that the socket did not take.
    unflushed: bool,
    /// The peer sends no more.
    pub(crate) ended: bool,
}

impl Wire {
    pub(crate) fn new(io: Io, from: Peer) -> Self {
        Self {
            io,
            from,
            input: Bytes::new(),
            space: BytesMut::new(),
            staged: Vec::new(),
            sent: 0,
            tail: Bytes::new(),
            suffix: b"",
            delivered: 0,
            unflushed: false,
            ended: false,
        }
    }

    /// Receives more of a head, behind what is there. 0 at the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            let received = buf.filled();
            if received.is_empty() {
                self.ended = true;
            } else if self.input.is_empty() {
                self.input = keep(received, self.from);
            } else {
                // Grows by doubling while this is the only handle, so a head that drips in costs no quadratic copying.
                let mut input = match std::mem::take(&mut self.input).try_into_mut() {
                    Ok(input) => input,
                    Err(shared) => BytesMut::from(&shared[..]),
                };
                input.extend_from_slice(received);
                self.input = input.freeze();
            }
            Poll::Ready(Ok(received.len()))
        })
    }

    /// Receives more of a body, when all that was there is consumed. 0 at the end of the stream.
    pub(crate) fn poll_fill_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        debug_assert!(self.input.is_empty() || self.input.len() < READ_SIZE);
        if !self.input.is_empty() {
            // Half a chunk size is there: it must stay in one piece.
            return self.poll_fill(cx);
        }
        // An empty rest holds the whole space, which could not be reused then.
        self.input = Bytes::new();
        self.space.reserve(READ_SIZE);
        let length = ready!(pin!(self.io.read_buf(&mut self.space)).poll(cx))?;
        if length == 0 {
            self.ended = true;
        }
        if length < COPY_BELOW {
            // Whoever keeps this piece must not keep the whole space for it.
            self.input = keep(&self.space, self.from);
            self.space.clear();
        } else {
            self.input = self.space.split().freeze();
        }
        Poll::Ready(Ok(length))
    }

    /// How many exchanges wait for this connection's place among those that there may be.
    pub(crate) fn wanted(&self) -> usize {
        self.io.held().map_or(0, Held::wanted)
    }

    /// Whether the connection has failed, as far as the kernel knows.
    pub(crate) fn has_failed(&self) -> bool {
        self.io.has_failed()
    }

    /// Gives up the space for bodies; called between messages.
    pub(crate) fn release_space(&mut self) {
        // Also where it has no room left: what was split off it may be all of it.
        self.space = BytesMut::new();
        // What is left when all was consumed still holds the buffer.
        if self.input.is_empty() {
            self.input = Bytes::new();
        }
    }

    /// Whether the peer has sent something, or has gone, while we expected nothing: then the connection is of no more use,
    /// and what it sent may be lost. Costs no system call when the reactor has seen nothing. Who is told that it has not
    /// is not always woken when it does.
    pub(crate) fn poll_disturbed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.is_empty() || self.ended {
            return Poll::Ready(());
        }
        match self.io.is_silent() {
            Some(true) => Poll::Pending,
            Some(false) => Poll::Ready(()),
            None => self.poll_fill(cx).map(|_| ()),
        }
    }

    /// The connection itself, which has become a tunnel. What is buffered here comes before it, both ways.
    pub(crate) fn io(&mut self) -> &mut Io {
        &mut self.io
    }

    /// Where the next bytes to send are written.
    pub(crate) fn stage(&mut self) -> &mut Vec<u8> {
        debug_assert!(
            self.tail.is_empty() && self.suffix.is_empty(),
            "nothing is staged behind a large piece"
        );
        if self.staged.capacity() == 0 {
            self.staged = FREE
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| Vec::with_capacity(2 * 1024));
        }
        &mut self.staged
    }

    /// Stages a piece of a body and what follows it; large ones are not copied.
    pub(crate) fn stage_piece(&mut self, piece: Bytes, suffix: &'static [u8]) {
        if piece.len() < COPY_BELOW {
            let staged = self.stage();
            staged.extend_from_slice(&piece);
            staged.extend_from_slice(suffix);
        } else {
            debug_assert!(self.tail.is_empty());
            self.tail = piece;
            self.suffix = suffix;
        }
    }

    /// Whether what is staged must be sent before more is staged.
    pub(crate) fn is_full(&self) -> bool {
        !self.tail.is_empty()
            || !self.suffix.is_empty()
            || self.staged.len() - self.sent >= STAGE_SIZE
    }

    /// Whether everything staged was sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.sent == self.staged.len()
            && self.tail.is_empty()
            && self.suffix.is_empty()
            && !self.unflushed
    }

    /// Sends what is staged; ready when all of it was taken.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let staged = &self.staged[self.sent..];
            let io = Pin::new(&mut self.io);
            let length = ready!(match (staged.is_empty(), self.tail.is_empty()) {
                (true, true) if self.suffix.is_empty() => break,
                (true, true) => io.poll_write(cx, self.suffix),
                (false, true) => io.poll_write(cx, staged),
                _ => io.poll_write_vectored(
                    cx,
                    &[
                        IoSlice::new(staged),
                        IoSlice::new(&self.tail),
                        IoSlice::new(self.suffix)
                    ],
                ),
            })?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = self.io.is_tls();
            self.delivered += length as u64;
            let of_staged = length.min(staged.len());
            let of_tail = (length - of_staged).min(self.tail.len());
            self.sent += of_staged;
            self.tail.advance(of_tail);
            self.suffix = &self.suffix[length - of_staged - of_tail..];
        }
        self.tail = Bytes::new();
        self.sent = 0;
        if self.staged.capacity() > 0 {
            let mut free = std::mem::take(&mut self.staged);
            free.clear();
            FREE.with_borrow_mut(|list| {
                if list.len() < FREE_BUFFERS && free.capacity() <= 2 * STAGE_SIZE {
                    list.push(free);
                }
            });
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that nothing more comes (FIN, or close_notify and FIN).
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        (Wire::new(Io::plain(ours), Peer::Client), theirs)
    }

    #[tokio::test]
    async fn small_pieces_of_a_body_do_not_hold_the_space_they_were_received_in() {
        let (mut wire, mut theirs) = pair().await;
        let mut kept = Vec::new();
        let mut space = None;
        for _ in 0..20 {
            theirs.write_all(b"x").await.unwrap();
            poll_fn(|cx| wire.poll_fill_body(cx)).await.unwrap();
            let at = wire.space.as_ptr();
            assert_eq!(*space.get_or_insert(at), at, "one space for all");
            kept.push(std::mem::take(&mut wire.input));
        }
        assert!(kept.iter().all(|piece| piece == "x"));
    }

    #[tokio::test]
    async fn the_space_is_given_up_also_when_a_piece_filled_it() {
        let (mut wire, mut theirs) = pair().await;
        let body = async move { while theirs.write_all(&[b'x'; READ_SIZE]).await.is_ok() {} };
        let reader = async move {
            while poll_fn(|cx| wire.poll_fill_body(cx)).await.unwrap() < READ_SIZE {
                wire.input = Bytes::new();
            }
            let piece = std::mem::take(&mut wire.input);
            assert!(!piece.is_unique(), "the connection holds what it lies in");
            wire.release_space();
            assert!(piece.is_unique());
        };
        tokio::join!(body, reader);
    }

    #[test]
    fn a_block_is_used_again_when_nobody_holds_a_message_in_it() {
        let message = [b'x'; SMALL];
        let whole = BLOCK / SMALL;
        let filled =
            || -> Vec<Bytes> { (0..whole).map(|_| keep(&message, Peer::Endpoint)).collect() };
        let first = filled();
        let at = first[0].as_ptr();
        drop(first);
        let second = filled();
        assert_eq!(second[0].as_ptr(), at, "the same block");
        let held = filled();
        assert_ne!(held[0].as_ptr(), at, "another one, while it is held");
        assert!(second.iter().chain(&held).all(|kept| kept[..] == message));
        let client = keep(&message, Peer::Client);
        drop(held);
        assert_eq!(client[..], message);
    }

    #[tokio::test]
    async fn between_messages_nothing_is_held() {
        let (mut wire, mut theirs) = pair().await;
        theirs.write_all(b"\r\n").await.unwrap();
        poll_fn(|cx| wire.poll_fill_body(cx)).await.unwrap();
        wire.input.advance(2);
        wire.release_space();
        assert_eq!(wire.space.capacity(), 0);
        assert!(
            wire.input.as_ptr() == Bytes::new().as_ptr(),
            "not the rest of a buffer"
        );
    }
}
