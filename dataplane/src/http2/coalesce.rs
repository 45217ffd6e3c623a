//! One send for all frames of a wake-up.
//!
//! The h2 crate writes each DATA frame by its own vectored write and flushes after it: under TLS one record and one
//! system call per answer, however many answers are ready. This layer sits between h2 and the socket, gathers what h2
//! writes and calls a flush done without flushing; the task that drives the connection polls h2 until it has nothing
//! more to do and then flushes once. Measured: a quarter of the CPU of an edge exchange.
//!
//! Nothing is held back for long: 32 KiB go out at once, and so does everything at the end of a wake-up.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;

use super::frames::{Frames, Trouble};
use super::pressure::Pressure;
use crate::accept::Io;
use crate::identity::{PeerProblem, Refusal};

/// What is gathered at most before it is sent.
const GATHER: usize = 32 * 1024;
/// A write of at least this size passes through when nothing is gathered.
const PASS_THROUGH: usize = 16 * 1024;
/// Free buffers kept per thread.
const FREE_BUFFERS: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Inner {
    io: Io,
    frames: Frames,
    trouble: Option<Trouble>,
    gathered: Vec<u8>,
    sent: usize,
    unflushed: bool,
    received: bool,
    /// The last read found nothing, so that it is the peer's turn.
    awaits: bool,
    /// Bytes that the socket has taken, or the TLS layer in front of it.
    delivered: u64,
}

/// What h2 reads from and writes to.
#[derive(Debug)]
pub(crate) struct Coalesce(Rc<RefCell<Inner>>);

/// What the connection's task flushes by.
#[derive(Debug, Clone)]
pub(crate) struct Flusher(Rc<RefCell<Inner>>);

impl Coalesce {
    /// `serving`: the peer is a client.
    pub(crate) fn new(io: Io, serving: bool, pressure: Rc<Pressure>) -> (Self, Flusher) {
        let inner = Rc::new(RefCell::new(Inner {
            io,
            frames: Frames::new(serving, pressure),
            trouble: None,
            gathered: Vec::new(),
            sent: 0,
            unflushed: false,
            received: false,
            awaits: false,
            delivered: 0,
        }));
        (Self(Rc::clone(&inner)), Flusher(inner))
    }
}

impl Flusher {
    /// Sends what was gathered. An error means that the connection has failed.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if inner.gathered.is_empty() && !inner.unflushed {
            return Poll::Ready(Ok(()));
        }
        // Reading much at this wake-up may have used up what the runtime lets a task do, and would again at the next: a
        // peer that sends without a pause would never hear from us, least of all that it should pause.
        pin!(unconstrained(poll_fn(|cx| inner.poll_send(cx)))).poll(cx)
    }

    /// How many bytes have gone out.
    pub(crate) fn sent(&self) -> u64 {
        self.0.borrow().delivered
    }

    /// Has the connection broken off when it is dropped, not ended.
    pub(crate) fn reset(&self) {
        self.0.borrow().io.reset();
    }

    /// How many frames have come in.
    pub(crate) fn frames(&self) -> u64 {
        self.0.borrow().frames.count
    }

    /// The head that the peer is in the middle of, if it is and has the time for it: a number of its own. None while h2 reads
    /// nothing because it cannot write: what the peer must be told first waits for room, and the rest of the head may have
    /// come long ago.
    pub(crate) fn open_head(&self) -> Option<u64> {
        let inner = self.0.borrow();
        inner.awaits.then(|| inner.frames.open_head()).flatten()
    }

    /// Says why the connection ends, which is up to whoever drives it.
    pub(crate) fn end(&self, trouble: Trouble) {
        let mut inner = self.0.borrow_mut();
        inner.gather(&trouble.goodbye());
        inner.trouble = Some(trouble);
    }

    /// Why the connection was ended, if it was for what came on it.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.0.borrow().trouble
    }

    /// Whether the peer has said anything yet.
    pub(crate) fn has_received(&self) -> bool {
        self.0.borrow().received
    }
}

impl Inner {
    fn gather(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.sent >= GATHER {
            // A socket that takes some each time, and never all, must not make this grow with all that was ever sent.
            self.gathered.drain(..self.sent);
            self.sent = 0;
        }
        if self.gathered.capacity() == 0 {
            self.gathered = FREE
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| Vec::with_capacity(4 * 1024));
        }
        self.gathered.extend_from_slice(bytes);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let length =
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.gathered[self.sent..]))?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += length;
            self.delivered += length as u64;
            self.unflushed = self.io.is_tls();
        }
        self.sent = 0;
        if self.gathered.capacity() > 0 {
            let mut free = std::mem::take(&mut self.gathered);
            free.clear();
            FREE.with_borrow_mut(|list| {
                if list.len() < FREE_BUFFERS && free.capacity() <= 2 * GATHER {
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

    /// Makes room for more; pending while the socket takes nothing and enough is gathered.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.len() - self.sent >= GATHER {
            self.poll_send(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl AsyncRead for Coalesce {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut inner.io).poll_read(cx, buf);
        inner.awaits = read.is_pending();
        let read = ready!(read);
        let is_first = !std::mem::replace(&mut inner.received, true);
        read?;
        if is_first
            && !inner.io.is_tls()
            && let Some(refusal) = Refusal::of_plaintext(&buf.filled()[before..])
        {
            let problem = PeerProblem::Refused(refusal);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
        }
        if let Err(trouble) = inner.frames.read(&buf.filled()[before..]) {
            // h2 only hears that the connection has failed, and says nothing more.
            inner.gather(&trouble.goodbye());
            inner.trouble = Some(trouble);
            return Poll::Ready(Err(io::Error::other(trouble.words())));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Coalesce {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_room(cx))?;
        let mut taken = 0;
        if inner.gathered.is_empty() && buf.len() >= PASS_THROUGH {
            taken = ready!(Pin::new(&mut inner.io).poll_write(cx, buf))?;
            inner.delivered += taken as u64;
            inner.unflushed = inner.io.is_tls();
        }
        inner.frames.wrote(buf);
        // All of it in any case: what is gathered always ends where a frame does.
        inner.gather(&buf[taken..]);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_room(cx))?;
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut taken = 0;
        if inner.gathered.is_empty() && total >= PASS_THROUGH {
            taken = ready!(Pin::new(&mut inner.io).poll_write_vectored(cx, bufs))?;
            inner.delivered += taken as u64;
            inner.unflushed = inner.io.is_tls();
        }
        for buf in bufs {
            inner.frames.wrote(buf);
            let skipped = taken.min(buf.len());
            taken -= skipped;
            inner.gather(&buf[skipped..]);
        }
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done at once: the task that drives the connection flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::plan::Http2;

    async fn pair(send_buffer: Option<usize>) -> (Coalesce, Flusher, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        if let Some(size) = send_buffer {
            socket2::SockRef::from(&ours)
                .set_send_buffer_size(size)
                .unwrap();
            socket2::SockRef::from(&theirs)
                .set_recv_buffer_size(size)
                .unwrap();
        }
        let pressure = Rc::new(Pressure::new(Http2::MESH));
        let (io, flusher) = Coalesce::new(Io::plain(ours), true, pressure);
        (io, flusher, theirs)
    }

    async fn write(io: &mut Coalesce, bytes: &[u8]) {
        let length = poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, bytes))
            .await
            .unwrap();
        assert_eq!(length, bytes.len());
    }

    async fn flush(flusher: &Flusher) {
        poll_fn(|cx| flusher.poll_flush(cx)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_written_in_one_wake_up_leaves_together() {
        let (mut io, flusher, mut theirs) = pair(None).await;
        for _ in 0..100 {
            write(&mut io, b"frame").await;
            poll_fn(|cx| Pin::new(&mut io).poll_flush(cx))
                .await
                .unwrap();
        }
        assert_eq!(flusher.0.borrow().gathered.len(), 500, "nothing was sent");
        flush(&flusher).await;
        let mut received = [0; 1000];
        assert_eq!(
            theirs.read(&mut received).await.unwrap(),
            500,
            "in one send"
        );
        assert_eq!(
            flusher.0.borrow().gathered.capacity(),
            0,
            "the buffer went back"
        );
    }

    #[tokio::test]
    async fn much_does_not_wait_for_the_end_of_the_wake_up() {
        let (mut io, flusher, mut theirs) = pair(None).await;
        for _ in 0..5 {
            write(&mut io, &[b'x'; 8 * 1024]).await;
        }
        let mut received = vec![0; GATHER];
        theirs.read_exact(&mut received).await.unwrap();
        assert_eq!(flusher.0.borrow().gathered.len(), 8 * 1024);
    }

    #[tokio::test]
    async fn a_large_write_with_nothing_before_it_is_not_copied() {
        let (mut io, flusher, mut theirs) = pair(None).await;
        write(&mut io, &[b'x'; PASS_THROUGH]).await;
        assert_eq!(flusher.0.borrow().gathered.capacity(), 0);
        let mut received = vec![0; PASS_THROUGH];
        theirs.read_exact(&mut received).await.unwrap();
    }

    #[test]
    fn a_slow_reader_of_much_makes_nothing_grow() {
        crate::testing::story(async {
            const MUCH: usize = 512 * 1024;
            let (mut io, flusher, mut theirs) = pair(Some(4 * 1024)).await;
            let reader = tokio::task::spawn_local(async move {
                let (mut received, mut piece) = (0, [0; 1500]);
                loop {
                    match theirs.read(&mut piece).await.unwrap() {
                        0 => return received,
                        length => received += length,
                    }
                }
            });
            let piece = [b'x'; 9 * 1024];
            let (mut sent, mut most) = (0, 0);
            while sent < MUCH {
                write(&mut io, &piece).await;
                sent += piece.len();
                most = most.max(flusher.0.borrow().gathered.len());
            }
            assert!(most <= 4 * GATHER, "{most} bytes are held");
            poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx))
                .await
                .unwrap();
            assert_eq!(reader.await.unwrap(), sent, "all of it arrived");
        });
    }
}
