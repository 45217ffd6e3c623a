//! HTTP/2, by hand: the h2 crate's client would not send these.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::alone::{PATIENCE, Way};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(super) const WHOLE_HEAD: u8 = END_STREAM | END_HEADERS;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Fields as literals without indexing and without Huffman: nothing is normalised on the way.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

pub(crate) type Fields = Vec<(&'static [u8], &'static [u8])>;

pub(crate) fn request() -> Fields {
    vec![
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"plain"),
        (b":path", b"/two"),
    ]
}

/// The good request with more fields.
pub(super) fn with(more: &[(&'static [u8], &'static [u8])]) -> Fields {
    [&request(), more].concat()
}

/// The good request with another value of one pseudo-header, or without it.
pub(super) fn other(name: &[u8], value: Option<&'static [u8]>) -> Fields {
    request()
        .into_iter()
        .filter_map(|(have, good)| match (have == name, value) {
            (true, value) => Some((have, value?)),
            (false, _) => Some((have, good)),
        })
        .collect()
}

/// What the other side did, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) reset: bool,
    pub(super) goaway: bool,
    /// The first byte of each answer's head: 0x88 is `:status 200`.
    pub(super) answers: Vec<u8>,
    pub(super) ended: bool,
}

/// Sends and listens until the stream is answered or reset, or the connection ends.
pub(super) async fn converse(way: &Way, bytes: &[u8]) -> Heard {
    let work = async {
        let mut heard = Heard::default();
        let Ok(mut stream) = way.connect().await else {
            heard.ended = true;
            return heard;
        };
        let _: io::Result<()> = stream.write_all(bytes).await;
        let _: io::Result<()> = stream.flush().await;
        while !heard.goaway && !heard.reset && heard.answers.is_empty() {
            let Ok((kind, payload)) = read_frame(&mut stream).await else {
                heard.ended = true;
                break;
            };
            match kind {
                HEADERS => heard.answers.push(
                    payload
                        .iter()
                        .copied()
                        .find(|byte| byte & 0xe0 != 0x20)
                        .unwrap_or(0),
                ),
                RST_STREAM => heard.reset = true,
                GOAWAY => heard.goaway = true,
                _ => {}
            }
        }
        heard
    };
    timeout(PATIENCE, work)
        .await
        .expect("an answer, a reset or an end")
}

/// What became of stream 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This status, and why where the answer is ours.
    Answer(u16, String),
    Reset(h2::Reason),
    Goodbye(h2::Reason),
    /// The connection ended without a word.
    End,
}

/// An answer, with its reason where it is ours.
pub(super) fn answered(status: u16, reason: &str) -> Verdict {
    Verdict::Answer(status, reason.to_owned())
}

/// Sends these bytes in place of what the h2 crate's client says, and lets that read what comes: it believes that it has
/// asked for something good.
pub(super) async fn verdict(way: &Way, bytes: &[u8]) -> Verdict {
    let work = async {
        let Ok(door) = way.connect().await else {
            return Verdict::End;
        };
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut from, mut to) = tokio::io::split(door);
        let (mut said, mut heard) = tokio::io::split(far);
        let (bytes, mut tasks) = (bytes.to_vec(), JoinSet::new());
        tasks.spawn(async move {
            let _: io::Result<u64> = tokio::io::copy(&mut said, &mut tokio::io::sink()).await;
        });
        tasks.spawn(async move {
            let _: io::Result<()> = to.write_all(&bytes).await;
            let _: io::Result<()> = to.flush().await;
            let _: io::Result<u64> = tokio::io::copy(&mut from, &mut heard).await;
            let _: io::Result<()> = heard.shutdown().await;
        });
        let handshake = h2::client::Builder::new().handshake::<_, Bytes>(near);
        let (mut sender, mut driver) = handshake.await.unwrap();
        let good = Request::post("http://plain/two").body(()).unwrap();
        let (response, _send) = sender.send_request(good, false).unwrap();
        let mut response = std::pin::pin!(response);
        let (answer, ended) = tokio::select! {
            biased;
            answer = &mut response => (answer, None),
            ended = &mut driver => (response.await, ended.err()),
        };
        match (answer, ended) {
            (Ok(answer), _) => {
                let reason = answer.headers().get("weft-reason");
                let reason = reason.map_or("", |reason| reason.to_str().unwrap());
                answered(answer.status().as_u16(), reason)
            }
            (_, Some(error)) if error.is_go_away() => Verdict::Goodbye(error.reason().unwrap()),
            (Err(error), _) if error.is_go_away() => Verdict::Goodbye(error.reason().unwrap()),
            (Err(error), _) if error.is_reset() => Verdict::Reset(error.reason().unwrap()),
            _ => Verdict::End,
        }
    };
    timeout(PATIENCE, work)
        .await
        .expect("an answer, a reset or an end")
}

pub(super) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    if length > 1 << 20 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], payload))
}

pub(crate) fn opening() -> Vec<u8> {
    [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

pub(super) fn opened(frames: &[Vec<u8>]) -> Vec<u8> {
    [opening(), frames.concat()].concat()
}

/// Sends as much as the other side takes, and says whether it ended the connection.
pub(super) async fn flood(way: &Way, bytes: &[u8]) -> Heard {
    let work = async {
        let mut heard = Heard::default();
        let (mut read, mut write) = tokio::io::split(way.connect().await.unwrap());
        let bytes = bytes.to_vec();
        let writing = tokio::spawn(async move {
            let _: io::Result<()> = write.write_all(&bytes).await;
            let _: io::Result<()> = write.flush().await;
            write
        });
        let mut head = [0; 9];
        while !heard.goaway {
            if read.read_exact(&mut head).await.is_err() {
                heard.ended = true;
                break;
            }
            let length = u64::from(u32::from_be_bytes([0, head[0], head[1], head[2]]));
            heard.goaway = head[3] == GOAWAY;
            let skipped =
                tokio::io::copy(&mut (&mut read).take(length), &mut tokio::io::sink()).await;
            if skipped.is_err() {
                heard.ended = true;
                break;
            }
        }
        writing.abort();
        heard
    };
    timeout(PATIENCE, work)
        .await
        .expect("the connection to be ended")
}
