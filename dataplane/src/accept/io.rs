//! One byte stream, plain or under TLS, with what detection has already read put back in front.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::cluster::dials::Dial;
use crate::cluster::limits::Held;

/// A connection's bytes. An enum and not a trait object: every read and write of the data path passes here.
#[derive(Debug)]
pub struct Io {
    /// Read before the protocol was known; handed out first.
    prefix: Bytes,
    stream: Stream,
    /// After the stream, so that it goes when the socket has gone.
    _dial: Option<Box<Dial>>,
    /// Its place among the connections that there may be, where there is a limit on them.
    held: Option<Box<Held>>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    /// Without TLS.
    pub fn plain(stream: TcpStream) -> Self {
        Self {
            prefix: Bytes::new(),
            stream: Stream::Plain(stream),
            _dial: None,
            held: None,
        }
    }

    /// Under TLS, the handshake done.
    pub fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self {
            prefix: Bytes::new(),
            stream: Stream::Tls(Box::new(stream)),
            _dial: None,
            held: None,
        }
    }

    /// The same, noted as a connection of ours for as long as it lasts.
    pub(crate) fn with_dial(self, dial: Option<Box<Dial>>) -> Self {
        Self {
            _dial: dial,
            ..self
        }
    }

    /// Takes out what was put back.
    pub(crate) fn take_unread(&mut self) -> Bytes {
        std::mem::take(&mut self.prefix)
    }

    /// Keeps this place for as long as it is open.
    pub(crate) fn holding(self, held: Option<Box<Held>>) -> Self {
        Self { held, ..self }
    }

    /// Its place among the connections that there may be.
    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.as_deref()
    }

    /// Whether the connection has failed, as far as the kernel knows: reset by the peer, say.
    pub(crate) fn has_failed(&self) -> bool {
        !matches!(self.socket().take_error(), Ok(None))
    }

    /// Whether the peer has sent nothing and has not gone, as far as the reactor knows; not known under TLS, where what
    /// comes may be no data. What there is of a peer that is not silent is lost.
    pub(crate) fn is_silent(&self) -> Option<bool> {
        match &self.stream {
            Stream::Plain(stream) => {
                let read = stream.try_read(&mut [0]);
                Some(read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock))
            }
            Stream::Tls(_) => None,
        }
    }

    /// Puts back bytes that were read too early.
    pub fn unread(&mut self, bytes: Bytes) {
        debug_assert!(
            self.prefix.is_empty(),
            "only what was read from here is put back"
        );
        self.prefix = bytes;
    }

    /// Has the connection broken off when it is dropped, not ended: the peer sees a reset and cannot take what it got for
    /// everything.
    pub fn reset(&self) {
        // Where that cannot be had, the end of a TLS stream is missing and a plain one ends early.
        let _: Result<(), _> = self.socket().set_zero_linger();
    }

    /// Takes [`Io::reset`] back: when it is dropped, the connection ends in good order.
    pub fn may_end(&self) {
        let _: Result<(), _> = SockRef::from(self.socket()).set_linger(None);
    }

    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether the bytes are encrypted on the wire.
    pub fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let length = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..length]);
            self.prefix.advance(length);
            if self.prefix.is_empty() {
                // An empty rest holds the whole buffer.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            // What is not initialised yet would have to be, for this.
            Stream::Plain(stream) if buf.initialized().len() == buf.capacity() => {
                let space = buf.initialize_unfilled();
                let length = space.len();
                let received = ready!(poll_direct(
                    stream,
                    cx,
                    Interest::READABLE,
                    length,
                    |stream| {
                        recv(stream, &mut *space, RecvFlags::empty()).map(|(_, length)| length)
                    }
                ))?;
                buf.advance(received);
                Poll::Ready(Ok(()))
            }
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => {
                poll_direct(stream, cx, Interest::WRITABLE, buf.len(), |stream| {
                    send(stream, buf, SendFlags::NOSIGNAL)
                })
            }
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

/// One system call on a socket that is ready for it, without the C library in between: in a process of several threads its
/// calls are points of cancellation, which costs as much again as entering the kernel.
///
/// `call` moves `most` bytes, or fewer when the socket has or takes no more; then it is not ready any more, which is known
/// without asking it once more.
fn poll_direct(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    interest: Interest,
    most: usize,
    mut call: impl FnMut(&TcpStream) -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        if interest.is_readable() {
            ready!(stream.poll_read_ready(cx))?;
        } else {
            ready!(stream.poll_write_ready(cx))?;
        }
        let mut moved = None;
        let called = stream.try_io(interest, || {
            let length = loop {
                match call(stream) {
                    Err(Errno::INTR) => {}
                    called => break called?,
                }
            };
            moved = Some(length);
            // The end of the stream stays ready.
            match length > 0 && length < most {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(()),
            }
        });
        match (moved, called) {
            (Some(length), _) => return Poll::Ready(Ok(length)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, called) => return Poll::Ready(called.map(|()| 0)),
        }
    }
}
