//! Bytes both ways until both sides have ended: what is common to opaque TCP and to upgraded exchanges.
//!
//! Each direction ends by itself (half-close): the end of one side is passed on, and the other may go on. A side that breaks
//! off has the other broken off too, so that nobody takes a part for the whole. One piece of each direction is held at
//! most, and none while nothing moves; the slower side sets the pace.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::end::End;
use crate::http::unread::{Late, Reader};
use crate::timer::Timer;

/// For how long nothing may move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience<'a> {
    /// While both sides may send.
    pub(crate) idle: Duration,
    /// When one has ended.
    pub(crate) half_closed: Duration,
    /// For the client to take enough of what waits for it.
    pub(crate) unread: Duration,
    /// Whether a stream's connection takes nothing at the moment: it is not the stream's fault then.
    pub(crate) clogged: Option<&'a Cell<bool>>,
}

impl Patience<'_> {
    /// The same in all cases.
    pub(crate) fn of(idle: Duration) -> Self {
        Self {
            idle,
            half_closed: idle,
            unread: idle,
            clogged: None,
        }
    }
}

/// How a tunnel ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// Both sides had said all they had to say.
    Complete,
    /// Nothing moved for too long.
    Idle,
    /// The client did not take what waited for it.
    Unread,
    /// The client's side broke.
    Client(io::Error),
    /// The endpoint's side broke.
    Endpoint(io::Error),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Idle => f.write_str(Late::Idle.words()),
            Self::Unread => f.write_str(Late::Unread.words()),
            Self::Client(error) => write!(f, "the client's side broke: {error}"),
            Self::Endpoint(error) => write!(f, "the endpoint's side broke: {error}"),
        }
    }
}

/// Copies to the end. `moved` is told what went up and down since it was last told.
pub(crate) async fn copy(
    client: &mut End,
    endpoint: &mut End,
    patience: Patience<'_>,
    mut moved: impl FnMut(u64, u64),
) -> Ending {
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut timer = Timer::pooled();
    let mut idle = Instant::now() + patience.idle;
    timer.set(idle);
    let (mut reader, mut taken) = (Reader::default(), 0);
    let ending = poll_fn(|cx| {
        let outcome = match up.poll(client, endpoint, down.was_reset(), cx) {
            Ok(()) => down
                .poll(endpoint, client, up.was_reset(), cx)
                .map_err(Ending::Endpoint),
            Err(error) => Err(Ending::Client(error)),
        };
        let (sent, received) = (up.take_moved(), down.take_moved());
        if sent + received > 0 {
            moved(sent, received);
        }
        if let Err(ending) = outcome {
            return Poll::Ready(ending);
        }
        let changed = up.has_ended_now() | down.has_ended_now();
        if up.is_over() && down.is_over() {
            return Poll::Ready(match (up.broken.take(), down.broken.take()) {
                (Some(error), _) => Ending::Endpoint(error),
                (None, Some(error)) => Ending::Client(error),
                (None, None) => Ending::Complete,
            });
        }
        if let Poll::Ready(error) = client.poll_broken(cx) {
            return Poll::Ready(Ending::Client(error));
        }
        if let Poll::Ready(error) = endpoint.poll_broken(cx) {
            return Poll::Ready(Ending::Endpoint(error));
        }
        taken += received;
        let stirred = sent + received > 0 || changed;
        if !stirred
            && down.is_waiting() == reader.is_lagging()
            && timer.poll_expired(cx).is_pending()
        {
            return Poll::Pending;
        }
        loop {
            let now = Instant::now();
            if stirred {
                let limit = match up.is_over() || down.is_over() {
                    true => patience.half_closed,
                    false => patience.idle,
                };
                idle = now + limit;
            }
            if patience.clogged.is_some_and(Cell::get) {
                reader.keeps_up();
            }
            let mut next = idle;
            if down.is_waiting() {
                match reader.lags(taken, patience.unread, now) {
                    Some(until) => next = next.min(until),
                    None => return Poll::Ready(Ending::Unread),
                }
            } else {
                reader.keeps_up();
            }
            if idle <= now {
                return Poll::Ready(Ending::Idle);
            }
            timer.set(next);
            ready!(timer.poll_expired(cx));
        }
    })
    .await;
    match ending {
        Ending::Complete => {}
        Ending::Client(_) => endpoint.reset(),
        Ending::Endpoint(_) => client.reset(),
        Ending::Idle | Ending::Unread => {
            client.reset();
            endpoint.reset();
        }
    }
    ending
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The source has ended, the sink must be told.
    Ending,
    /// It was told, and `copy` does not know yet.
    Ended,
    Over,
}

#[derive(Debug, Default)]
struct Direction {
    /// Taken from the source, waiting for the sink.
    piece: Bytes,
    space: BytesMut,
    state: State,
    moved: u64,
    /// Why the sink takes no more.
    broken: Option<io::Error>,
}

impl Direction {
    /// Moves what can be moved now. An error is the source's. A sink that takes no more ends this direction only: what it
    /// had said before it broke still arrives. `reset` says that the source was found broken when it was written to; its
    /// end is none then.
    fn poll(
        &mut self,
        from: &mut End,
        to: &mut End,
        reset: bool,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        loop {
            let sunk = match self.poll_sink(to, cx) {
                Poll::Ready(sunk) => sunk,
                Poll::Pending => return Ok(()),
            };
            if let Err(error) = sunk {
                self.piece = Bytes::new();
                self.broken = Some(error);
                self.state = State::Ended;
            }
            if self.state != State::Open {
                return Ok(());
            }
            let copies = to.keeps_what_it_is_given();
            match from.poll_piece(cx, &mut self.space, copies) {
                Poll::Ready(Ok(piece)) if piece.is_empty() && reset => {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Poll::Ready(Ok(piece)) if piece.is_empty() => self.state = State::Ending,
                Poll::Ready(Ok(piece)) => self.piece = piece,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => match to.poll_flush(cx) {
                    Poll::Ready(Err(error)) => {
                        self.broken = Some(error);
                        self.state = State::Ended;
                    }
                    _ => return Ok(()),
                },
            }
        }
    }

    /// Ready when the sink has what there is.
    fn poll_sink(&mut self, to: &mut End, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.piece.is_empty() {
            let before = self.piece.len();
            ready!(to.poll_take(cx, &mut self.piece))?;
            self.moved += (before - self.piece.len()) as u64;
        }
        if self.state == State::Ending {
            match ready!(to.poll_finish(cx)) {
                // Whoever has gone already need not be told.
                Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                    return Poll::Ready(Err(error));
                }
                _ => self.state = State::Ended,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the sink has not taken all that there is for it.
    fn is_waiting(&self) -> bool {
        !self.piece.is_empty()
    }

    fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Once, when it has.
    fn has_ended_now(&mut self) -> bool {
        let now = self.state == State::Ended;
        if now {
            self.state = State::Over;
        }
        now
    }

    /// Whether the sink was found to be reset. A system call that says so says it once, and the next one that the
    /// connection has ended.
    fn was_reset(&self) -> bool {
        let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        self.broken.as_ref().is_some_and(reset)
    }

    fn is_over(&self) -> bool {
        self.state == State::Over
    }
}

#[cfg(test)]
mod tests;
