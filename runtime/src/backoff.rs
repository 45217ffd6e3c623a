//! How long to wait before trying again: longer each time up to a bound, and never all at the same moment.

use std::time::Duration;

/// Exponential delays with jitter. Once built it cannot be wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    jitter: f64,
}

impl Backoff {
    /// From `least`, doubling up to `most`. `jitter` is the share of each delay that is random: at 0 all wait exactly the same,
    /// at 1 anything from nothing to the whole delay ("full jitter").
    ///
    /// # Panics
    ///
    /// When that makes no sense. Made as a constant, the compiler says so.
    pub const fn new(least: Duration, most: Duration, jitter: f64) -> Self {
        assert!(!least.is_zero(), "the least delay is zero");
        assert!(
            least.as_nanos() <= most.as_nanos(),
            "the least delay is longer than the most"
        );
        assert!(
            jitter >= 0.0 && jitter <= 1.0,
            "the jitter is not between 0 and 1"
        );
        Self {
            least,
            most,
            jitter,
        }
    }

    /// The same where nothing may wait longer than this, whatever its bounds are.
    pub fn no_longer_than(self, most: Duration) -> Self {
        Self {
            least: self.least.min(most),
            most: self.most.min(most),
            ..self
        }
    }

    /// The delay after so many failures in a row, the last one included. `random` is from 0 to 1.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1);
        // 2^31 times anything sensible is more than any bound; `checked_mul` sees the overflow.
        let whole = match self.least.checked_mul(1 << doublings.min(31)) {
            Some(delay) if doublings <= 31 => delay.min(self.most),
            _ => self.most,
        };
        // Whatever the dice say, even NaN, the delay stays within its bounds.
        let random = if random.is_nan() {
            0.0
        } else {
            random.clamp(0.0, 1.0)
        };
        // The usual multiplication panics when rounding leaves the range of `Duration`.
        Duration::try_from_secs_f64(whole.as_secs_f64() * (1.0 - self.jitter * random))
            .map_or(whole, |delay| delay.min(whole))
    }
}

/// A random number as one from 0 to 1, with the 53 bits that a float can tell apart.
pub fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn delays_double_up_to_the_bound() {
        let backoff = Backoff::new(seconds(1), seconds(10), 0.5);
        let check = |failures, random, millis| {
            assert_eq!(
                backoff.delay(failures, random),
                Duration::from_millis(millis),
                "{failures} {random}"
            );
        };
        check(1, 0.0, 1_000);
        check(2, 0.0, 2_000);
        check(3, 0.0, 4_000);
        check(4, 0.0, 8_000);
        check(5, 0.0, 10_000);
        check(32, 0.0, 10_000);
        check(33, 0.0, 10_000);
        check(u32::MAX, 0.0, 10_000);
        // Before any there is nothing to wait for; who asks all the same waits as after the first.
        check(0, 0.0, 1_000);
        // Jitter only shortens.
        check(1, 1.0, 500);
        check(3, 0.5, 3_000);
        check(10, 1.0, 5_000);
        // Nonsense stays within the bounds.
        check(1, 7.0, 500);
        check(1, -7.0, 1_000);
        check(1, f64::NAN, 1_000);
    }

    #[test]
    fn a_bound_for_once_holds_from_the_first_delay_on() {
        let check = |bound, failures, expected| {
            let backoff = Backoff::new(seconds(2), seconds(10), 0.0).no_longer_than(bound);
            assert_eq!(backoff.delay(failures, 0.0), expected, "{bound:?}");
        };
        check(seconds(60), 9, seconds(10));
        check(seconds(7), 2, seconds(4));
        check(seconds(7), 3, seconds(7));
        check(seconds(1), 1, seconds(1));
        check(Duration::ZERO, 1, Duration::ZERO);
    }

    #[test]
    fn huge_bounds_do_not_overflow() {
        let backoff = Backoff::new(seconds(u64::MAX / 4), Duration::MAX, 0.0);
        assert_eq!(backoff.delay(31, 0.0), Duration::MAX);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |least, most, jitter, why| {
            let panic = std::panic::catch_unwind(|| Backoff::new(least, most, jitter))
                .expect_err("it is refused");
            assert_eq!(panic.downcast_ref::<&str>(), Some(&why));
        };
        check(seconds(0), seconds(1), 0.0, "the least delay is zero");
        check(
            seconds(2),
            seconds(1),
            0.0,
            "the least delay is longer than the most",
        );
        for jitter in [1.1, -0.1, f64::NAN] {
            check(
                seconds(1),
                seconds(1),
                jitter,
                "the jitter is not between 0 and 1",
            );
        }
    }
}
