//! Heads that have begun and do not come to their end.
//!
//! Between the frames of a head nothing else may come (RFC 9113 §6.10), so a peer that sends one forever holds all that is
//! open on the connection, and each frame of it is a sign of life. It has the time that a head may take in HTTP/1.1. Of
//! the frames themselves [`super::frames`] only says which head it is; the clock is asked when a wake-up has left one
//! open, which is rare: nearly all come whole.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::timer::Timer;

/// Watches the heads of one connection.
#[derive(Debug, Default)]
pub(super) struct Stall {
    head: Option<u64>,
    timer: Timer,
}

impl Stall {
    /// Ready when the peer has had its time for the head that it is in the middle of, if it is: `open` tells it from others.
    pub(super) fn poll_stalled(
        &mut self,
        cx: &mut Context<'_>,
        open: Option<u64>,
        patience: Duration,
    ) -> Poll<()> {
        if self.head != open {
            self.head = open;
            match open {
                Some(_) => self.timer.set(Instant::now() + patience),
                None => self.timer.clear(),
            }
        }
        self.timer.poll_expired(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// After how many seconds a peer is given up that is in the middle of this head at each second.
    async fn stalled_after(open: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let start = Instant::now();
        let mut stall = Stall::default();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let given_up = poll_fn(|cx| {
            while tick.poll_tick(cx).is_ready() {}
            stall.poll_stalled(cx, open(start.elapsed().as_secs()), PATIENCE)
        });
        tokio::time::timeout(Duration::from_secs(3600), given_up)
            .await
            .ok()
            .map(|()| start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_and_no_more() {
        assert_eq!(stalled_after(|_| Some(7)).await, Some(10));
        assert_eq!(stalled_after(|now| (now >= 5).then_some(7)).await, Some(15));
        // One after the other, each within its time.
        assert_eq!(stalled_after(|now| Some(now / 9)).await, None);
        assert_eq!(stalled_after(|now| (now % 9 > 0).then_some(7)).await, None);
        assert_eq!(stalled_after(|_| None).await, None);
    }
}
