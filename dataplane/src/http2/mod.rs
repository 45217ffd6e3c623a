//! HTTP/2 by the h2 crate, driven directly: no second task or channel per stream, and one send per wake-up.

pub mod client;
mod coalesce;
pub mod server;

use std::task::{Context, Poll, ready};

use h2::RecvStream;

pub(crate) use coalesce::{Coalesce, Flusher};

use crate::body::{Frame, Length};
use crate::error::Error;
use crate::http1::Peer;
use crate::identity::PeerProblem;
use crate::reason::Reason;

/// A body on its way over HTTP/2.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    peer: Peer,
    length: Length,
    state: State,
    /// Of the upstream connection's streams, until the answer has ended.
    _place: Option<client::Place>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    Ended,
}

impl Received {
    /// The body of a message whose head says `content_length`.
    pub(crate) fn new(stream: RecvStream, peer: Peer, content_length: Option<u64>) -> Self {
        let length = match content_length {
            _ if stream.is_end_stream() => Length::None,
            Some(length) => Length::Exact(length),
            None => Length::Unknown,
        };
        Self {
            stream,
            peer,
            length,
            state: State::Data,
            _place: None,
        }
    }

    /// Holds this place for as long as the body runs.
    pub(crate) fn at(self, place: Option<client::Place>) -> Self {
        Self {
            _place: place,
            ..self
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Error>>> {
        while self.state == State::Data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    // What we pass on is taken from us before more is asked for, so the window opens again at once.
                    if let Err(error) = self.stream.flow_control().release_capacity(data.len()) {
                        return Poll::Ready(Some(Err(failure(&error, self.peer))));
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(failure(&error, self.peer)))),
                None => self.state = State::Trailers,
            }
        }
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.state = State::Ended;
        match trailers {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(failure(&error, self.peer)))),
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        self.state == State::Ended || self.stream.is_end_stream()
    }

    pub(crate) fn length(&self) -> Length {
        self.length
    }
}

/// What an error of h2 means to an exchange.
pub(crate) fn failure(error: &h2::Error, peer: Peer) -> Error {
    if peer == Peer::Client {
        return Error::new(
            Reason::MalformedRequest,
            format!("the client's stream: {error}"),
        );
    }
    // In TLS 1.3 our handshake is over before the peer has looked at our certificate: its verdict comes as the first
    // thing that we read.
    if let Some(PeerProblem::Refused(refusal)) = PeerProblem::from_error(error) {
        let detail = format!("the endpoint refused us: {refusal}");
        return if refusal.is_of_certificate() {
            Error::not_processed(Reason::TlsFailed, detail)
        } else {
            Error::maybe_processed(Reason::TlsFailed, detail)
        };
    }
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) {
        // RFC 9113 §8.7: a refused stream, and one beyond GOAWAY's last stream, was not processed.
        Error::not_processed(
            Reason::UpstreamReset,
            format!("the endpoint refused the stream: {error}"),
        )
    } else if error.is_library() {
        Error::maybe_processed(
            Reason::UpstreamMalformed,
            format!("the endpoint's answer breaks HTTP/2: {error}"),
        )
    } else {
        Error::maybe_processed(
            Reason::UpstreamReset,
            format!("the endpoint's stream: {error}"),
        )
    }
}
