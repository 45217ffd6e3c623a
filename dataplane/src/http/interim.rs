//! Interim answers (1xx), passed on to the client when they come.

use std::cell::RefCell;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode, Version};

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

/// Where interim answers go.
pub(crate) enum Interim<'a> {
    /// To a client that speaks HTTP/1.1.
    Http1(&'a Handle),
    /// To a stream of an HTTP/2 client.
    Http2(&'a RefCell<SendResponse<Bytes>>),
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
                let _: Result<_, _> = stream.borrow_mut().send_informational(response);
            }
        }
    }
}
