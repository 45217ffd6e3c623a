//! Notices a peer that has gone without a word: its machine, or the way there.
//!
//! TCP waits for minutes before it gives up, and everything that is sent meanwhile waits with it. So a connection that
//! owes an answer and has brought no frame at all for some seconds is asked by a PING; if nothing comes then either, it
//! is dead. An idle connection is not asked: the first exchange on it will be told.

use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::timer::Timer;

/// How often we look.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in silence until we ask, and until we give up.
const ASK: u32 = 2;
const GIVE_UP: u32 = 5;

/// Watches one connection.
#[derive(Debug)]
pub(crate) struct Watch {
    ping: Option<PingPong>,
    timer: Timer,
    looking: bool,
    frames: u64,
    silent: u32,
}

impl Watch {
    pub(crate) fn new(ping: Option<PingPong>) -> Self {
        Self {
            ping,
            timer: Timer::new(),
            looking: false,
            frames: 0,
            silent: 0,
        }
    }

    /// Ready when the peer is dead. `owes`: answers are outstanding. `frames`: how many have come so far.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>, owes: bool, frames: u64) -> Poll<()> {
        if !self.looking {
            if !owes {
                return Poll::Pending;
            }
            // From here on once per look, and not once per exchange.
            self.looking = true;
            self.look(frames);
        }
        while self.timer.poll_expired(cx).is_ready() {
            if !owes {
                self.looking = false;
                self.silent = 0;
                self.timer.clear();
                return Poll::Pending;
            }
            if frames == self.frames {
                self.silent += 1;
            } else {
                self.silent = 0;
            }
            self.look(frames);
            match self.silent {
                ASK => self.ask(cx),
                GIVE_UP.. => return Poll::Ready(()),
                _ => {}
            }
        }
        Poll::Pending
    }

    fn look(&mut self, frames: u64) {
        self.frames = frames;
        self.timer.set(Instant::now() + LOOK);
    }

    fn ask(&mut self, cx: &mut Context<'_>) {
        if let Some(ping) = &mut self.ping {
            // The answer to the last one counts as a frame; here it only makes room for the next.
            let _: Poll<Result<_, _>> = ping.poll_pong(cx);
            // Fails when one is under way, which does as well.
            let _: Result<(), _> = ping.send_ping(Ping::opaque());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// How long until a peer counts as dead that sends a frame at each of these seconds.
    async fn dead_after(frames_at: &[u64], until: u64) -> Option<u64> {
        let start = Instant::now();
        let mut watch = Watch::new(None);
        let dead = poll_fn(|cx| {
            let elapsed = start.elapsed().as_secs_f64();
            let frames = frames_at
                .iter()
                .filter(|at| (**at as f64) < elapsed)
                .count();
            watch.poll_dead(cx, true, frames as u64)
        });
        tokio::time::timeout(Duration::from_secs(until), dead)
            .await
            .ok()
            .map(|()| start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_death_after_some_seconds() {
        assert_eq!(dead_after(&[], 60).await, Some(5));
        assert_eq!(dead_after(&[1, 2, 3, 4], 60).await, Some(10));
        let alive: Vec<u64> = (0..60).step_by(4).collect();
        assert_eq!(dead_after(&alive, 60).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_owes_nothing_may_be_silent() {
        let mut watch = Watch::new(None);
        let mut polls = 0;
        let idle = poll_fn(|cx| {
            polls += 1;
            watch.poll_dead(cx, polls == 1, 0)
        });
        let waited = tokio::time::timeout(Duration::from_secs(3600), idle).await;
        assert!(waited.is_err(), "nobody is dead");
        assert!(polls < 5, "{polls}: nothing ticks while nothing is owed");
    }
}
