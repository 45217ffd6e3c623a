//! A body from one side to the other: as fast as the slower side, holding one piece and one output buffer at most.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

use crate::body::{Body, Frame};
use crate::error::Error;
use crate::http::Caller;
use crate::http::unread::{self, Late, Standing, Watch};
use crate::http1::{Framing, Handle, encode};
use crate::timer::Timer;

/// The first piece of a body goes to h2 without asking for the window when it is no larger than this: asking costs as much
/// as sending. What the window does not take is held by h2, beside the next piece that is held here, so it is little.
const FIRST_BYTES: usize = 1024;

/// Where a body goes.
#[derive(Debug)]
pub(crate) enum Sink {
    /// An HTTP/1.1 connection, framed like this; the head is staged already.
    Http1 {
        connection: Handle,
        framing: Framing,
    },
    /// A stream of an HTTP/2 connection.
    Http2 { stream: SendStream<Bytes> },
}

/// Which side failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The body could not be had.
    Source(Error),
    /// The body could not be passed on.
    Sink(String),
}

/// Why an answer did not get to its end.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// One of its sides failed.
    Failed(Failed),
    /// One of them took too long.
    Late(Late),
}

/// Moves a body; polled by the task that owns the exchange.
#[derive(Debug)]
pub(crate) struct Relay {
    source: Body,
    sink: Sink,
    /// Taken from the source, waiting for the sink's window.
    waiting: Bytes,
    /// Boxed: few bodies have any, and every exchange has room for this.
    trailers: Option<Box<HeaderMap>>,
    ended: bool,
    finished: bool,
    /// Body bytes that the sink has accepted.
    moved: u64,
}

impl Relay {
    pub(crate) fn new(source: Body, sink: Sink) -> Self {
        Self {
            source,
            sink,
            waiting: Bytes::new(),
            trailers: None,
            ended: false,
            finished: false,
            moved: 0,
        }
    }

    /// A number that changes when a byte of a body moves, of the request behind an early answer too.
    pub(crate) fn progress(&self) -> u64 {
        self.moved + self.source.behind()
    }

    /// Whether the end of the connection is the only thing that says where the body ends.
    pub(crate) fn ends_by_closing(&self) -> bool {
        let framing = match &self.sink {
            Sink::Http1 { framing, .. } => *framing,
            Sink::Http2 { .. } => Framing::None,
        };
        framing == Framing::UntilClose
    }

    /// Sends an answer to its end, or until one of its sides takes too long. `timer` is for that alone meanwhile.
    pub(crate) async fn send(&mut self, timer: &mut Timer, caller: &Caller) -> Result<(), Unsent> {
        let mut watch = Watch::default();
        poll_fn(|cx| match self.poll(cx) {
            Poll::Pending => watch
                .poll(cx, timer, self.standing(), caller)
                .map(|late| Err(Unsent::Late(late))),
            sent => sent.map_err(Unsent::Failed),
        })
        .await
        .inspect_err(|unsent| {
            if matches!(unsent, Unsent::Late(Late::Unread)) {
                unread::given_up(caller);
            }
        })
    }

    /// How far it has come, after it did not come to its end at once.
    fn standing(&self) -> Standing {
        let unread = match &self.sink {
            Sink::Http1 { connection, .. } => {
                let wire = &connection.borrow().wire;
                (!wire.is_flushed()).then_some(wire.delivered)
            }
            Sink::Http2 { .. } => (!self.waiting.is_empty()).then_some(self.moved),
        };
        Standing {
            progress: self.progress(),
            unread,
        }
    }

    /// Ready when the last byte has been handed to the sink's transport.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if matches!(self.sink, Sink::Http1 { .. }) {
            self.poll_http1(cx)
        } else {
            self.poll_http2(cx)
        }
    }

    fn poll_http1(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let Sink::Http1 {
            connection,
            framing,
        } = &self.sink
        else {
            unreachable!("poll() chose by the sink");
        };
        let broken = |error: std::io::Error| Failed::Sink(error.to_string());
        while !self.ended {
            if connection.borrow().wire.is_full() {
                ready!(connection.borrow_mut().wire.poll_flush(cx)).map_err(broken)?;
            }
            match self.source.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    self.moved += data.len() as u64;
                    // Nearly always that was all, and there is no need to ask.
                    self.ended = self.source.is_end();
                    let wire = &mut connection.borrow_mut().wire;
                    if *framing == Framing::Chunked {
                        encode::chunk_start(wire.stage(), data.len());
                        wire.stage_piece(data, encode::CHUNK_END);
                    } else {
                        wire.stage_piece(data, b"");
                    }
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    self.trailers = Some(Box::new(trailers));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Failed::Source(error))),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => {
                    return match connection.borrow_mut().wire.poll_flush(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(broken(error))),
                        _ => Poll::Pending,
                    };
                }
            }
        }
        let wire = &mut connection.borrow_mut().wire;
        if !self.finished {
            if wire.is_full() {
                ready!(wire.poll_flush(cx)).map_err(broken)?;
            }
            self.finished = true;
            if *framing == Framing::Chunked {
                match self.trailers.take() {
                    Some(trailers) => encode::last_chunk(wire.stage(), &trailers),
                    None => wire.stage().extend_from_slice(encode::LAST_CHUNK),
                }
            }
        }
        wire.poll_flush(cx).map_err(broken)
    }

    fn poll_http2(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let Sink::Http2 { stream } = &mut self.sink else {
            unreachable!("poll() chose by the sink");
        };
        let broken = |error: h2::Error| Failed::Sink(error.to_string());
        while !self.finished {
            if !self.waiting.is_empty() {
                if self.moved == 0 && (self.waiting.len() <= FIRST_BYTES || self.source.is_end()) {
                    // What is all of it is held either way, by h2 or by us.
                    self.moved = self.waiting.len() as u64;
                    self.finished = self.source.is_end();
                    let piece = std::mem::take(&mut self.waiting);
                    stream.send_data(piece, self.finished).map_err(broken)?;
                    continue;
                }
                if stream.capacity() < self.waiting.len() {
                    stream.reserve_capacity(self.waiting.len());
                }
                while stream.capacity() == 0 {
                    match ready!(stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                        None => {
                            return Poll::Ready(Err(Failed::Sink("the stream was closed".into())));
                        }
                    }
                }
                let length = stream.capacity().min(self.waiting.len());
                let piece = self.waiting.split_to(length);
                self.moved += length as u64;
                self.finished = self.waiting.is_empty() && self.source.is_end();
                stream.send_data(piece, self.finished).map_err(broken)?;
                continue;
            }
            match self.source.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => self.waiting = data,
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    self.finished = true;
                    stream.send_trailers(trailers).map_err(broken)?;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Failed::Source(error))),
                Poll::Ready(None) => {
                    self.finished = true;
                    stream.send_data(Bytes::new(), true).map_err(broken)?;
                }
                Poll::Pending => {
                    // The peer may reset the stream while there is nothing to send.
                    if let Poll::Ready(reset) = stream.poll_reset(cx) {
                        return Poll::Ready(Err(match reset {
                            Ok(reason) => Failed::Sink(format!("the stream was reset: {reason}")),
                            Err(error) => broken(error),
                        }));
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
