//! A message's body as a stream of pieces. Counted and bounded on its way, never looked at.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;

use crate::error::Error;
use crate::http::Replayed;
use crate::http::forward::UpstreamBody;
use crate::http1::Incoming;
use crate::http2::Received;

/// A part of a body.
#[derive(Debug)]
pub enum Frame {
    /// Some bytes, never empty.
    Data(Bytes),
    /// The trailers; nothing follows.
    Trailers(HeaderMap),
}

/// What is known of a body's length before it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// There is no body.
    None,
    /// Exactly so many bytes.
    Exact(u64),
    /// It ends when it ends.
    Unknown,
}

/// A body. An enum and not a trait object: every byte of the data path passes here.
#[derive(Debug, Default)]
pub enum Body {
    /// No body.
    #[default]
    Empty,
    /// All of it, in hand.
    Full(Bytes),
    /// On its way over HTTP/1.1.
    Http1(Incoming),
    /// On its way over HTTP/2.
    Http2(Received),
    /// A request's, which may be sent again.
    Replayed(Replayed),
    /// An endpoint's answer, which also carries on what is left to send of the request.
    Upstream(Box<UpstreamBody>),
}

impl Body {
    /// The next part; `None` at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                if bytes.is_empty() {
                    Poll::Ready(None)
                } else {
                    Poll::Ready(Some(Ok(Frame::Data(bytes))))
                }
            }
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
            Self::Replayed(body) => body.poll_frame(cx),
            Self::Upstream(body) => body.poll_frame(cx),
        }
    }

    /// Whether it is known that nothing more comes, without waiting.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http1(body) => body.is_end(),
            Self::Http2(body) => body.is_end(),
            Self::Replayed(body) => body.is_end(),
            Self::Upstream(body) => body.is_end(),
        }
    }

    /// How much of the request behind this answer has come so far: while an early answer waits, that may move.
    pub(crate) fn behind(&self) -> u64 {
        match self {
            Self::Upstream(body) => body.received(),
            _ => 0,
        }
    }

    /// What is known of its length.
    pub fn length(&self) -> Length {
        match self {
            Self::Empty => Length::None,
            Self::Full(bytes) => Length::Exact(bytes.len() as u64),
            Self::Http1(body) => body.length(),
            Self::Http2(body) => body.length(),
            Self::Replayed(body) => body.length(),
            Self::Upstream(body) => body.length(),
        }
    }
}
