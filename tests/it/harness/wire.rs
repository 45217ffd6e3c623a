//! One end of a connection, byte by byte: what the raw client and the scripted apps read and write with.
//!
//! Deliberately not the product's codec and not hyper's: it believes what it is told and hides nothing.

use std::fmt::Debug;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Debug {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Debug> Stream for S {}

/// A connection and what was read from it and not used yet.
#[derive(Debug)]
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    pub(crate) read: Vec<u8>,
}

/// A message's head as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// The whole head, with its end.
    pub(crate) text: String,
}

impl Head {
    /// The first line.
    pub(crate) fn line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// One word of the first line.
    pub(crate) fn word(&self, index: usize) -> &str {
        self.line().split(' ').nth(index).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    /// The value of the first field of this name.
    pub(crate) fn field<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.fields(name).next()
    }

    pub(crate) fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().skip(1).filter_map(move |line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// A message's body as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    /// Trailer lines.
    pub(crate) trailers: Vec<String>,
}

impl Wire<TcpStream> {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address))
            .await
            .unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }

    /// Closes the connection so that the other side sees a reset.
    pub(crate) fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

impl<S: Stream> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Writes all of it.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes).await.unwrap();
    }

    pub(crate) async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// Ends our side; the other may go on.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads a piece more; false at the end.
    pub(crate) async fn more(&mut self) -> std::io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.read).await? > 0)
    }

    /// Everything up to the other side's end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        soon("the end of the connection", async {
            while matches!(self.more().await, Ok(true)) {}
        })
        .await;
        std::mem::take(&mut self.read)
    }

    /// This many bytes; `None` when the connection ends before.
    pub(crate) async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            if !self.more().await.ok()? {
                return None;
            }
        }
        let rest = self.read.split_off(length);
        Some(std::mem::replace(&mut self.read, rest))
    }

    /// Everything up to and with `end`; `None` when the connection ends before.
    pub(crate) async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|part| part == end) {
                return self.exactly(at + end.len()).await;
            }
            if !self.more().await.ok()? {
                return None;
            }
        }
    }

    /// The next head; `None` when the connection ends before.
    pub(crate) async fn head(&mut self) -> Option<Head> {
        let bytes = self.until(b"\r\n\r\n").await?;
        Some(Head {
            text: String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    /// The body that follows a head which says how long it is; `None` when it breaks off.
    pub(crate) async fn content(&mut self, head: &Head) -> Option<Content> {
        let chunked = head
            .field("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if !chunked {
            let length = head.field("content-length").unwrap_or("0");
            let bytes = self.exactly(length.parse().unwrap()).await?;
            return Some(Content {
                bytes,
                trailers: Vec::new(),
            });
        }
        let mut content = Content::default();
        while let Some(chunk) = self.chunk().await? {
            content.bytes.extend(chunk);
        }
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(content);
            }
            content.trailers.push(line);
        }
    }

    /// The next chunk; the inner `None` is the last one, behind which trailers follow.
    pub(crate) async fn chunk(&mut self) -> Option<Option<Vec<u8>>> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(size, 16).ok()?;
        if length == 0 {
            return Some(None);
        }
        let mut bytes = self.exactly(length + 2).await?;
        bytes.truncate(length);
        Some(Some(bytes))
    }

    async fn line(&mut self) -> Option<String> {
        let mut bytes = self.until(b"\r\n").await?;
        bytes.truncate(bytes.len() - 2);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a request and reads the answer, which must come.
    pub(crate) async fn exchange(&mut self, request: impl AsRef<[u8]>) -> (Head, Content) {
        self.write(request).await;
        self.answer().await
    }

    /// The next answer, which must come whole.
    pub(crate) async fn answer(&mut self) -> (Head, Content) {
        soon("an answer", async {
            let head = self.head().await.expect("a head");
            let bodiless = matches!(head.status(), 100..=199 | 204 | 304);
            let content = match bodiless {
                true => Content::default(),
                false => self.content(&head).await.expect("a whole body"),
            };
            (head, content)
        })
        .await
    }
}
