//! The upstream side of HTTP/1.1: one exchange on a connection, driven by the task of the downstream side.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, StatusCode};

use super::parse::{self, Framing, Limits};
use super::{Handle, encode};
use crate::body::{Body, Length};
use crate::error::Error;
use crate::head::Head;
use crate::http::hop::Told;
use crate::http::interim::{Interim, Interims};
use crate::http::parting::{self, Engaged};
use crate::http::relay::{Failed, Relay, Sink};
use crate::identity::Refusal;
use crate::reason::Reason;

/// The head of an endpoint's answer, and what is left to send of the request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// The endpoint keeps the connection open after this exchange.
    pub(crate) keep_alive: bool,
    /// The connection is now a tunnel.
    pub(crate) upgraded: bool,
    /// The rest of the request's body, when the answer came early.
    pub(crate) request: Option<Box<Relay>>,
}

/// Sends a request and waits for the head of its answer. Dropping the future leaves the connection in the middle of an
/// exchange: it must be dropped too.
pub(crate) async fn exchange(
    connection: &Handle,
    head: &Head,
    body: Body,
    upgrade: bool,
    limits: &Limits,
    interim: &Interim<'_>,
    told: &Told<'_>,
) -> Result<Answered, Error> {
    let framing = match body.length() {
        Length::None => Framing::None,
        Length::Exact(length) => Framing::Length(length),
        Length::Unknown => Framing::Chunked,
    };
    let before = {
        let wire = &mut connection.borrow_mut().wire;
        let connection = if upgrade {
            encode::Connection::Websocket
        } else {
            encode::Connection::KeepAlive
        };
        let told = |out: &mut Vec<u8>| told.encode(out);
        encode::request_head(wire.stage(), head, framing, connection, told);
        wire.delivered
    };
    let mut sending = match framing {
        Framing::None => Sending::Head,
        framing => Sending::Body(Box::new(Relay::new(
            body,
            Sink::Http1 {
                connection: connection.clone(),
                framing,
            },
        ))),
    };
    let engaged = Engaged::new(connection);
    let mut seen = 0;
    let mut interims = Interims::default();
    let answer = poll_fn(|cx| {
        sending.poll(connection, cx).inspect_err(|_| {
            let ((), left) = parting::collect(|| parting::note(connection));
            interim.keep(left);
        })?;
        loop {
            match ready!(poll_head(connection, head, upgrade, limits, &mut seen, cx)) {
                Ok(answer)
                    if answer.status.is_informational()
                        && answer.status != StatusCode::SWITCHING_PROTOCOLS =>
                {
                    interims.count()?;
                    interim.send(cx, answer.status, &answer.headers);
                }
                Ok(answer) => return Poll::Ready(Ok(answer)),
                Err(mut error) => {
                    if let Sending::Failed(failure) = &sending {
                        error.detail =
                            format!("{}; sending the request: {failure}", error.detail).into();
                    }
                    if connection.borrow().wire.delivered == before {
                        // Not one byte left us: whatever happened, the endpoint has not seen this request.
                        error = Error::not_processed(error.reason, error.detail);
                    }
                    return Poll::Ready(Err(error));
                }
            }
        }
    })
    .await?;
    engaged.answered();
    let request = match sending {
        Sending::Body(relay) => Some(relay),
        _ => None,
    };
    // A request that did not leave whole leaves the connection in its middle.
    let whole = request.is_some() || connection.borrow().wire.is_flushed();
    let keep_alive = answer.keep_alive && whole;
    let mut guard = connection.borrow_mut();
    guard.begin_body(answer.framing, limits);
    guard.keeps = answer.keeps;
    drop(guard);
    Ok(Answered {
        status: answer.status,
        headers: answer.headers,
        framing: answer.framing,
        keep_alive,
        upgraded: answer.upgrade,
        request,
    })
}

enum Sending {
    /// The head, and nothing behind it.
    Head,
    /// Boxed: most exchanges have none, and all would carry the room for it.
    Body(Box<Relay>),
    Done,
    /// The endpoint takes no more; it may have answered all the same.
    Failed(String),
}

impl Sending {
    /// Sends on. Only a failure of the request's own body ends the exchange.
    fn poll(&mut self, connection: &Handle, cx: &mut Context<'_>) -> Result<(), Error> {
        let outcome = match self {
            Self::Head => connection
                .borrow_mut()
                .wire
                .poll_flush(cx)
                .map_err(|error| Failed::Sink(error.to_string())),
            Self::Body(relay) => relay.poll(cx),
            Self::Done | Self::Failed(_) => return Ok(()),
        };
        match outcome {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => *self = Self::Done,
            Poll::Ready(Err(Failed::Source(error))) => return Err(error),
            Poll::Ready(Err(Failed::Sink(failure))) => *self = Self::Failed(failure),
        }
        Ok(())
    }
}

/// One head, interim or final. `seen` is how much of the input is known to hold no whole head.
fn poll_head(
    connection: &Handle,
    head: &Head,
    upgrade: bool,
    limits: &Limits,
    seen: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<parse::Response, Error>> {
    let mut guard = connection.borrow_mut();
    loop {
        let length = guard.wire.input.len();
        // What comes first is looked at as it is: nearly always it is a whole head.
        if *seen == 0
            && let Some(refusal) = Refusal::of_plaintext(&guard.wire.input)
            && !guard.wire.io().is_tls()
        {
            return Poll::Ready(Err(refusal.failure()));
        }
        if length > *seen && (*seen == 0 || parse::may_complete(&guard.wire.input[*seen..])) {
            match parse::response(&guard.wire.input, &head.method, upgrade, limits) {
                Ok(Some(response)) => {
                    bytes::Buf::advance(&mut guard.wire.input, response.consumed);
                    *seen = 0;
                    return Poll::Ready(Ok(response));
                }
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Err(guard.malformed(&malformed))),
            }
        }
        *seen = guard.wire.input.len();
        if *seen > limits.head_bytes {
            return Poll::Ready(Err(Error::maybe_processed(
                Reason::UpstreamMalformed,
                "the endpoint's answer has too large a head",
            )));
        }
        match ready!(guard.wire.poll_fill(cx)) {
            Ok(0) => return Poll::Ready(Err(guard.cut("closed before it answered"))),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Poll::Ready(Err(guard.cut("reset before it answered")));
            }
            Err(error) => return Poll::Ready(Err(guard.cut(&error.to_string()))),
        }
    }
}
