//! HTTP/2 by the h2 crate, driven directly: no second task or channel per stream, and one send per wake-up.

pub mod client;
mod coalesce;
mod frames;
mod lanes;
mod pressure;
pub(crate) mod resets;
pub mod server;
mod stall;
mod streams;
mod watch;

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use h2::RecvStream;
use http::{HeaderMap, HeaderValue};

pub(crate) use coalesce::{Coalesce, Flusher};
pub(crate) use pressure::Pressure;

use crate::body::{Frame, Length};
use crate::error::Error;
use crate::http::pace::Pace;
use crate::http1::{Peer, parse};
use crate::identity::PeerProblem;
use crate::reason::Reason;

/// A body on its way over HTTP/2.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    peer: Peer,
    length: Length,
    state: State,
    /// Whether h2 had all of it when it was asked last: it takes a lock for that.
    whole: bool,
    /// Handed out, and given back to the stream's window when more is asked for: then it has been passed on.
    taken: usize,
    pressure: Rc<Pressure>,
    /// Where it must keep one.
    pace: Option<Pace>,
    /// Of the upstream connection's streams, until the answer has ended.
    place: Option<client::Place>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    Ended,
}

impl Received {
    /// The body of a message whose head says `content_length`.
    pub(crate) fn new(
        stream: RecvStream,
        peer: Peer,
        content_length: Option<u64>,
        pressure: Rc<Pressure>,
    ) -> Self {
        pressure.reads();
        let whole = stream.is_end_stream();
        let length = match content_length {
            _ if whole => Length::None,
            Some(length) => Length::Exact(length),
            None => Length::Unknown,
        };
        Self {
            stream,
            peer,
            length,
            state: State::Data,
            whole,
            taken: 0,
            pressure,
            pace: None,
            place: None,
        }
    }

    /// With a least pace.
    pub(crate) fn paced(mut self) -> Self {
        self.pace = Some(Pace::default());
        self
    }

    /// Holds this place for as long as the body runs.
    pub(crate) fn at(mut self, place: Option<client::Place>) -> Self {
        self.place = place;
        self
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Error>>> {
        if self.taken > 0 {
            let taken = std::mem::take(&mut self.taken);
            self.pressure.passed_on(taken);
            if let Err(error) = self.stream.flow_control().release_capacity(taken) {
                return Poll::Ready(Some(Err(failure(&error, self.peer))));
            }
        }
        while self.state == State::Data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.taken = data.len();
                    self.whole = self.stream.is_end_stream();
                    if let Some(pace) = &mut self.pace
                        && !pace.keeps(data.len(), Instant::now())
                    {
                        let error = Error::new(Reason::BodyTimeout, Pace::words());
                        return Poll::Ready(Some(Err(error)));
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.failed(&error)))),
                None => self.state = State::Trailers,
            }
        }
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.state = State::Ended;
        match trailers {
            Ok(Some(trailers)) => Poll::Ready(Some(self.bounded(trailers))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(self.failed(&error)))),
        }
    }

    /// With the length that its head gives it.
    fn of_length(mut self, length: Option<u64>) -> Self {
        if let Some(length) = length {
            self.length = Length::Exact(length);
        }
        self
    }

    /// It is broken off.
    fn failed(&mut self, error: &h2::Error) -> Error {
        broken_off(error, self.peer, &mut self.place)
    }

    /// No more of them than of a head's fields. Their size is bounded by h2, as a head's is.
    fn bounded(&self, mut trailers: HeaderMap) -> Result<Frame, Error> {
        let most = parse::Limits::default().fields;
        if trailers.len() <= most {
            trim(&mut trailers);
            return Ok(Frame::Trailers(trailers));
        }
        let rule = format!("more than {most} trailers");
        Err(match self.peer {
            Peer::Client => Error::new(Reason::HeadTooLarge, rule),
            Peer::Endpoint => client::broken(&rule),
        })
    }

    /// Whether it is known that nothing more comes.
    pub(crate) fn is_end(&self) -> bool {
        self.state == State::Ended || self.whole
    }

    pub(crate) fn length(&self) -> Length {
        self.length
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let whole = self.is_end() || self.stream.is_end_stream();
        if let Some(place) = &self.place {
            place.answer_ends(whole);
        }
        if whole {
            self.pressure.passed_on(self.taken);
            self.pressure.ended();
        } else {
            let unread = self.stream.flow_control().used_capacity();
            self.pressure.left(self.stream.stream_id().as_u32(), unread);
        }
    }
}

/// Lengths whose spelling a thread remembers: most bodies are as long as some other was.
const SPELLED: usize = 64;

thread_local! {
    static LENGTHS: RefCell<[Option<(u64, HeaderValue)>; SPELLED]> =
        const { RefCell::new([const { None }; SPELLED]) };
}

/// A `content-length`. HTTP/2 takes a value and not bytes, and each new one would be allocated twice.
fn length_value(length: u64) -> HeaderValue {
    LENGTHS.with_borrow_mut(|lengths| match &mut lengths[length as usize % SPELLED] {
        Some((spelled, value)) if *spelled == length => value.clone(),
        slot => slot.insert((length, HeaderValue::from(length))).1.clone(),
    })
}

/// Whether a value begins or ends with white space.
fn is_padded(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    is_blank(bytes.first()) || is_blank(bytes.last())
}

/// Takes white space from around values, as HTTP/1.1 does: whoever reads a field behind us sees the value that we have matched,
/// counted and hashed. RFC 9113 §8.2.1 has none there, but servers do say `grpc-message: not found: ` in all innocence, and
/// what is refused for that is a call whose status nobody learns.
fn trim(headers: &mut HeaderMap) {
    for value in headers.values_mut().filter(|value| is_padded(value)) {
        let is_sensitive = value.is_sensitive();
        if let Ok(mut trimmed) = HeaderValue::from_bytes(value.as_bytes().trim_ascii()) {
            trimmed.set_sensitive(is_sensitive);
            *value = trimmed;
        }
    }
}

/// What an error of h2 means to an exchange in this place. If it is the peer's doing, that has given the place back.
fn broken_off(error: &h2::Error, peer: Peer, place: &mut Option<client::Place>) -> Error {
    if error.is_remote() {
        *place = None;
    }
    failure(error, peer)
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
        return refusal.failure();
    }
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) {
        Error::departed(
            Reason::UpstreamReset,
            format!("the endpoint ended the connection: {error}"),
        )
    } else if error.is_remote() && (refused || error.is_go_away()) {
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
