//! What becomes of an exchange before its answer: interim answers (1xx), which are passed on to the client when they come, and
//! attempts that had none.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode, Version};

use super::parting::Parted;
use crate::error::Error;
use crate::http1::{Framing, Handle, encode};
use crate::reason::Reason;

/// That one exchange may bring.
const MOST: usize = 16;

/// How many an endpoint has sent in an exchange.
#[derive(Debug, Default)]
pub(crate) struct Interims(usize);

impl Interims {
    /// Counts one more; an error when it is one too many.
    pub(crate) fn count(&mut self) -> Result<(), Error> {
        self.0 += 1;
        if self.0 > MOST {
            return Err(Error::maybe_processed(
                Reason::UpstreamMalformed,
                format!("the endpoint sent more than {MOST} interim answers"),
            ));
        }
        Ok(())
    }
}

/// A stream of an HTTP/2 client while its exchange runs.
pub(crate) struct Stream {
    pub(crate) respond: RefCell<SendResponse<Bytes>>,
    /// What endpoints may still work on though the client is answered. Seldom anything.
    late: Cell<Option<Box<Parted>>>,
}

impl Stream {
    pub(crate) fn new(respond: SendResponse<Bytes>) -> Self {
        Self {
            respond: RefCell::new(respond),
            late: Cell::new(None),
        }
    }

    /// What endpoints may still work on, besides what is in hand now.
    pub(crate) fn take_late(&self) -> Option<Parted> {
        self.late.take().map(|parted| *parted)
    }
}

/// Where interim answers go, and what is left behind.
pub(crate) enum Interim<'a> {
    /// To a client that speaks HTTP/1.1.
    Http1(&'a Handle),
    /// To a stream of an HTTP/2 client.
    Http2(&'a Stream),
    /// Nowhere: HTTP/1.0 has none (RFC 9110 §15.2).
    Nowhere,
}

impl Interim<'_> {
    /// Passes one on. A client that is gone is noticed when the final answer is sent.
    pub(crate) fn send(&self, cx: &mut Context<'_>, status: StatusCode, headers: &HeaderMap) {
        match self {
            Self::Nowhere => {}
            Self::Http1(connection) => {
                let wire = &mut connection.borrow_mut().wire;
                if wire.is_full() {
                    return;
                }
                encode::response_head(
                    wire.stage(),
                    status,
                    headers,
                    Framing::None,
                    Version::HTTP_11,
                    true,
                    b"",
                );
                let _: Poll<_> = wire.poll_flush(cx);
            }
            Self::Http2(stream) => {
                let mut response = Response::new(());
                *response.status_mut() = status;
                *response.headers_mut() = headers.clone();
                *response.version_mut() = Version::HTTP_2;
                let _: Result<_, _> = stream.respond.borrow_mut().send_informational(response);
            }
        }
    }

    /// Keeps what an attempt left behind that has no answer: only HTTP/2 has places for it.
    pub(crate) fn keep(&self, left: Parted) {
        if let Self::Http2(stream) = self
            && !left.is_empty()
        {
            let before = stream.take_late().unwrap_or_default();
            stream.late.set(Some(Box::new(before.and(left))));
        }
    }
}
