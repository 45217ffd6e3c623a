//! A tunnel of HTTP/2 (CONNECT, RFC 8441) as what it carries: bytes both ways, like any connection. Dropped before both
//! sides have ended, it is reset.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;

pub(crate) struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Taken from the stream and not yet read.
    read: Bytes,
    /// Who moves the connection's frames, as long as one of its tunnels is there.
    _driver: Arc<JoinSet<()>>,
}

impl Tunnel {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        receive: RecvStream,
        driver: Arc<JoinSet<()>>,
    ) -> Self {
        Self {
            send,
            receive,
            read: Bytes::new(),
            _driver: driver,
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(piece) => self.read = piece.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = buffer.remaining().min(self.read.len());
        buffer.put_slice(&self.read.split_to(length));
        // Only what somebody has read makes room for more.
        let released = self.receive.flow_control().release_capacity(length);
        Poll::Ready(released.map_err(broken))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(bytes.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(room) => room.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let length = self.send.capacity().min(bytes.len());
        let piece = Bytes::copy_from_slice(&bytes[..length]);
        let sent = self.send.send_data(piece, false);
        Poll::Ready(sent.map(|()| length).map_err(broken))
    }

    /// The driver does.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(broken))
    }
}
