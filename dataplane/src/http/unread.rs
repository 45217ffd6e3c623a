//! The least pace of a reader: one that takes a byte now and then holds what waits for it, and an endpoint's exchange,
//! for as long as it likes.
//!
//! What counts is what it takes while something waits for it. Whoever has taken everything is waiting for us and may do
//! so in peace, so a stream of events that says little is no slow reader. Looked at only when a write had to
//! wait, so that an exchange whose reader keeps up pays nothing.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::Caller;
use crate::plan::Timeouts;
use crate::timer::Timer;

/// Bytes a second, on average over the time that a reader is given. A window that is opened by a byte a minute is none.
const LEAST: u64 = 64;

/// What a reader had taken at some time, while something waited for it.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// When it must have taken enough.
    until: Instant,
    taken: u64,
}

/// Whether one reader keeps up.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    mark: Option<Mark>,
}

impl Reader {
    /// Something waits for it that it has not taken; `taken` is what it took in all. Until when it has time from then on,
    /// or nothing when its time is over.
    pub(crate) fn lags(&mut self, taken: u64, patience: Duration, now: Instant) -> Option<Instant> {
        let mark = self.mark.get_or_insert(Mark {
            until: now + patience,
            taken,
        });
        if mark.until <= now {
            // Less than a second's worth is asked of whoever is given less than a second.
            let least = (LEAST * patience.as_secs()).max(1);
            if taken.saturating_sub(mark.taken) < least {
                return None;
            }
            *mark = Mark {
                until: now + patience,
                taken,
            };
        }
        Some(mark.until)
    }

    /// Nothing waits for it any more, or it is not its fault: it has all its time again.
    pub(crate) fn keeps_up(&mut self) {
        self.mark = None;
    }

    /// Whether something was waiting for it when it was last looked at.
    pub(crate) fn is_lagging(&self) -> bool {
        self.mark.is_some()
    }
}

/// Why a body is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// No byte of it moved.
    Idle,
    /// Its reader did not take it.
    Unread,
}

impl Late {
    /// For logs.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Idle => "idle for too long",
            Self::Unread => "its reader did not take it",
        }
    }
}

/// How far a body has come, when it does not move on at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    /// A number that changes when a byte of it moves.
    pub(crate) progress: u64,
    /// What its reader has taken, where something waits for it.
    pub(crate) unread: Option<u64>,
}

/// Watches over one answer on its way to its reader.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    reader: Reader,
    progress: u64,
    /// Until when a byte must have moved, once something had to wait.
    idle: Option<Instant>,
    bounds: Option<(Duration, Duration)>,
}

impl Watch {
    /// Asked when the answer does not move on at once. Ready when it is to be given up; wakes the task for that.
    ///
    /// Over HTTP/2 a stream also waits while the connection is full of others' bytes. That is its connection's affair
    /// (`Caller::clogged`), and no stream is given up for it.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        timer: &mut Timer,
        standing: Standing,
        caller: &Caller,
    ) -> Poll<Late> {
        let (idle, unread) = *self.bounds.get_or_insert_with(|| {
            let Timeouts {
                stream_idle,
                unread,
                ..
            } = caller.site().timeouts;
            (stream_idle, unread)
        });
        let moved = self.idle.is_none() || standing.progress != self.progress;
        let turned = standing.unread.is_some() != self.reader.is_lagging();
        if moved || turned {
            self.progress = standing.progress;
            // A time that is over is found to be so below.
            let now = Instant::now();
            let _: bool = self.set(timer, standing, now, moved.then_some(idle), unread);
        }
        loop {
            ready!(timer.poll_expired(cx));
            let now = Instant::now();
            if caller.clogged.get() {
                self.reader.keeps_up();
            }
            if !self.set(timer, standing, now, None, unread) {
                return Poll::Ready(Late::Unread);
            }
            if self.idle.is_some_and(|until| until <= now) {
                return Poll::Ready(Late::Idle);
            }
        }
    }

    /// Sets the timer for what is next. False when the reader's time is over.
    fn set(
        &mut self,
        timer: &mut Timer,
        standing: Standing,
        now: Instant,
        idle: Option<Duration>,
        unread: Duration,
    ) -> bool {
        if let Some(idle) = idle {
            self.idle = Some(now + idle);
        }
        let lags = match standing.unread {
            Some(taken) => match self.reader.lags(taken, unread, now) {
                None => return false,
                until => until,
            },
            None => {
                self.reader.keeps_up();
                None
            }
        };
        if let Some(until) = lags.into_iter().chain(self.idle).min() {
            timer.set(until);
        }
        true
    }
}

/// Counts a reader that was given up, and says so.
pub(crate) fn given_up(caller: &Caller) {
    caller.connections.unread();
    tracing::info!(listener = %caller.site().name, client = %caller.address,
        "gave up a reader that does not take what waits for it");
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// After how many seconds a reader is given up that takes so many bytes every so many seconds, while much waits.
    fn given_up_after(bytes: u64, every: u64) -> Option<u64> {
        let start = Instant::now();
        let mut reader = Reader::default();
        (0..3600).find(|second| {
            let now = start + Duration::from_secs(*second);
            reader.lags(second / every * bytes, PATIENCE, now).is_none()
        })
    }

    #[test]
    fn a_reader_that_takes_next_to_nothing_is_given_up() {
        assert_eq!(given_up_after(0, 1), Some(60));
        assert_eq!(given_up_after(1, 1), Some(60));
        assert_eq!(given_up_after(63, 1), Some(60));
        assert_eq!(given_up_after(64, 1), None);
        assert_eq!(given_up_after(1, 59), Some(60), "a byte a minute");
        assert_eq!(given_up_after(16 * 1024, 50), None, "in leaps");
    }

    #[test]
    fn one_for_whom_nothing_waits_has_time() {
        let start = Instant::now();
        let mut reader = Reader::default();
        for minute in 0..100 {
            let now = start + PATIENCE * minute;
            assert!(reader.lags(0, PATIENCE, now).is_some(), "minute {minute}");
            reader.keeps_up();
        }
    }

    #[test]
    fn what_is_taken_must_go_on_being_taken() {
        let start = Instant::now();
        let mut reader = Reader::default();
        assert!(reader.lags(0, PATIENCE, start).is_some());
        assert!(reader.lags(1 << 20, PATIENCE, start + PATIENCE).is_some());
        let end = start + PATIENCE * 2;
        assert!(reader.lags(1 << 20, PATIENCE, end).is_none());
    }
}
