//! How often a client may take back what it asked for.
//!
//! An exchange that is begun and reset costs its client two frames, and us and the service all the work of its beginning.
//! It does not matter who sends the reset: a client that breaks a rule on purpose has us send it (CVE-2023-44487 and
//! CVE-2025-8671). So both count against one allowance, which answers that were taken to their end give back.

use std::time::Instant;

/// Exchanges that may come to nothing, beyond those that others make up for: so many for each stream that is granted. At the
/// edge that is 200; a connection of the mesh has more streams, because it speaks for many clients.
const FOR_EACH: u32 = 2;
/// What time gives back in a second: people close pages, and calls run out of time.
const RATE: u128 = 20;

/// The account of one connection.
#[derive(Debug)]
pub(crate) struct Resets {
    most: u32,
    left: u32,
    refilled: Instant,
}

impl Resets {
    /// Of a connection that is granted so many streams.
    pub(crate) fn new(streams: u32, now: Instant) -> Self {
        let most = FOR_EACH.saturating_mul(streams);
        Self {
            most,
            left: most,
            refilled: now,
        }
    }

    /// An exchange went to its end.
    pub(crate) fn completed(&mut self) {
        self.left = (self.left + 1).min(self.most);
    }

    /// An exchange was taken back. Says whether that is tolerable; the clock is asked only when it hardly is.
    pub(crate) fn taken_back(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.left == 0 {
            let now = now();
            let earned = now.duration_since(self.refilled).as_millis() * RATE / 1000;
            if earned > 0 {
                self.left = u32::try_from(earned).map_or(self.most, |earned| earned.min(self.most));
                self.refilled = now;
            }
        }
        let tolerable = self.left > 0;
        self.left = self.left.saturating_sub(1);
        tolerable
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many exchanges a client begins and resets, at so many a second, before it is told to calm down.
    fn endures(per_second: u32, seconds: u32, completed_between: u32) -> Option<u32> {
        let start = Instant::now();
        let mut resets = Resets::new(100, start);
        (1..=per_second * seconds).find(|number| {
            (0..completed_between).for_each(|_| resets.completed());
            !resets.taken_back(|| start + Duration::from_secs(1) * *number / per_second)
        })
    }

    #[test]
    fn some_hundreds_are_too_many_however_slowly_they_come() {
        assert_eq!(endures(100_000, 1, 0), Some(201));
        let slowly = endures(50, 60, 0);
        assert!(
            slowly.is_some_and(|number| number < 600),
            "{slowly:?} at 50 a second"
        );
    }

    #[test]
    fn who_mostly_waits_for_answers_may_change_their_mind_as_often_as_they_like() {
        assert_eq!(endures(10_000, 60, 1), None);
        assert_eq!(
            endures(15, 600, 0),
            None,
            "a few a second are nobody's harm"
        );
    }
}
