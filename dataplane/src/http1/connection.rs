//! What the two directions of an HTTP/1.1 connection share: the wire, and how far the body being received has come.
//!
//! The task of the downstream connection drives everything, so the halves share by `Rc<RefCell<_>>`; nothing is
//! borrowed across an await.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::buffer::Wire;
use super::frame::{Decoder, Piece};
use super::parse::Framing;
use super::parse::Limits;
use crate::accept::Io;
use crate::body::{Frame, Length};
use crate::error::{Error, Retry};
use crate::http::pace::Pace;
use crate::http::parting;
use crate::reason::Reason;

/// A connection, as its server or client loop, its body and its relay hold it.
pub(crate) type Handle = Rc<RefCell<Connection>>;

/// Which end of the connection the peer is, which decides whose fault its mistakes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The peer sends requests.
    Client,
    /// The peer sends answers.
    Endpoint,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) wire: Wire,
    pub(crate) peer: Peer,
    /// How long the endpoint says that it keeps the connection open between two exchanges.
    pub(crate) keeps: Option<Duration>,
    receiving: Receiving,
}

/// The body that the peer is sending.
#[derive(Debug)]
enum Receiving {
    /// None: the last message is complete.
    Nothing,
    /// This one.
    Body(Decoder),
    /// It went wrong; the connection is of no more use.
    Broken,
}

impl Connection {
    pub(crate) fn new(io: Io, peer: Peer) -> Self {
        Self {
            wire: Wire::new(io, peer),
            peer,
            keeps: None,
            receiving: Receiving::Nothing,
        }
    }

    /// A head was received; its body, if any, comes next.
    pub(crate) fn begin_body(&mut self, framing: Framing, limits: &Limits) {
        self.receiving = match framing {
            Framing::None | Framing::Length(0) => Receiving::Nothing,
            framing => Receiving::Body(Decoder::new(framing, limits)),
        };
    }

    /// Whether the last message was received to its end.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.receiving, Receiving::Nothing)
    }

    /// The next part of the body being received.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Error>>> {
        let decoder = match &mut self.receiving {
            Receiving::Nothing => return Poll::Ready(None),
            Receiving::Broken => {
                return Poll::Ready(Some(Err(self.cut("the connection failed before"))));
            }
            Receiving::Body(decoder) => decoder,
        };
        let failed = loop {
            match decoder.decode(&mut self.wire.input) {
                Ok(Piece::Data(data)) => {
                    if decoder.is_end() {
                        self.receiving = Receiving::Nothing;
                        self.wire.release_space();
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Ok(Piece::Trailers(trailers)) => {
                    self.receiving = Receiving::Nothing;
                    self.wire.release_space();
                    return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
                }
                Ok(Piece::End) => {
                    self.receiving = Receiving::Nothing;
                    self.wire.release_space();
                    return Poll::Ready(None);
                }
                Ok(Piece::NeedMore) => match ready!(self.wire.poll_fill_body(cx)) {
                    Ok(0) => match decoder.on_eof() {
                        Ok(()) => {
                            self.receiving = Receiving::Nothing;
                            return Poll::Ready(None);
                        }
                        Err(_) => break self.cut("closed in the middle of the body"),
                    },
                    Ok(_) => {}
                    Err(error) => break self.cut(&error.to_string()),
                },
                Err(malformed) => break self.malformed(&malformed),
            }
        };
        self.receiving = Receiving::Broken;
        Poll::Ready(Some(Err(failed)))
    }

    /// The peer broke a rule of HTTP.
    pub(crate) fn malformed(&self, malformed: &super::Malformed) -> Error {
        match self.peer {
            Peer::Client => Error::new(malformed.reason, malformed.rule),
            Peer::Endpoint => Error {
                retry: Retry::IfIdempotent,
                ..Error::new(
                    Reason::UpstreamMalformed,
                    format!("the endpoint's answer breaks HTTP: {}", malformed.rule),
                )
            },
        }
    }

    /// The connection ended where it must not.
    pub(crate) fn cut(&self, how: &str) -> Error {
        match self.peer {
            Peer::Client => Error::new(
                Reason::MalformedRequest,
                format!("the client's connection: {how}"),
            ),
            Peer::Endpoint => Error::maybe_processed(
                Reason::UpstreamReset,
                format!("the endpoint's connection: {how}"),
            ),
        }
    }
}

/// A body on its way over an HTTP/1.1 connection.
#[derive(Debug)]
pub struct Incoming {
    connection: Handle,
    length: Length,
    /// Where it must keep one.
    pace: Option<Pace>,
}

impl Incoming {
    pub(crate) fn new(connection: Handle, framing: Framing) -> Self {
        let length = match framing {
            Framing::None => Length::None,
            Framing::Length(length) => Length::Exact(length),
            Framing::Chunked | Framing::UntilClose => Length::Unknown,
        };
        Self {
            connection,
            length,
            pace: None,
        }
    }

    /// With a least pace.
    pub(crate) fn paced(mut self) -> Self {
        self.pace = Some(Pace::default());
        self
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Error>>> {
        let frame = ready!(self.connection.borrow_mut().poll_frame(cx));
        if let (Some(pace), Some(Ok(Frame::Data(data)))) = (&mut self.pace, &frame)
            && !pace.keeps(data.len(), Instant::now())
        {
            return Poll::Ready(Some(Err(Error::new(Reason::BodyTimeout, Pace::words()))));
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end(&self) -> bool {
        self.connection.borrow().is_complete()
    }

    pub(crate) fn length(&self) -> Length {
        self.length
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let in_its_middle = self.connection.try_borrow().is_ok_and(|connection| {
            connection.peer == Peer::Endpoint && matches!(connection.receiving, Receiving::Body(_))
        });
        if in_its_middle {
            parting::note(&self.connection);
        }
    }
}
