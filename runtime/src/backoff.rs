//! How long to wait before trying again: longer each time up to a bound, and never all at the same moment.

use std::time::Duration;

/// Exponential delays with jitter. Once built it cannot be wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    jitter: f64,
}

/// Why a backoff cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Nothing would be waited for.
    #[error("the least delay is zero")]
    Zero,
    /// The bounds are the wrong way round.
    #[error("the least delay is longer than the most")]
    Reversed,
    /// A share is from 0 to 1.
    #[error("the jitter is not between 0 and 1")]
    Jitter,
}

impl Backoff {
    /// From `least`, doubling up to `most`. `jitter` is the share of each delay that is random: at 0 all wait exactly the same,
    /// at 1 anything from nothing to the whole delay ("full jitter").
    pub fn new(least: Duration, most: Duration, jitter: f64) -> Result<Self, Invalid> {
        if least.is_zero() {
            return Err(Invalid::Zero);
        }
        if least > most {
            return Err(Invalid::Reversed);
        }
        if !(0.0..=1.0).contains(&jitter) {
            return Err(Invalid::Jitter);
        }
        Ok(Self {
            least,
            most,
            jitter,
        })
    }

    /// The delay before attempt `attempt`, where 0 is the first that has to wait. `random` is from 0 to 1.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        // 2^63 times anything is more than any bound; `checked_mul` sees the overflow.
        let factor = 1_u32.checked_shl(attempt.min(31)).unwrap_or(u32::MAX);
        let whole = match self.least.checked_mul(factor) {
            Some(delay) if attempt <= 31 => delay.min(self.most),
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

    /// Counts the attempts of one thing that is tried again and again.
    pub fn attempts(self) -> Attempts {
        Attempts {
            backoff: self,
            count: 0,
        }
    }
}

/// A backoff and how often it was used.
#[derive(Debug, Clone)]
pub struct Attempts {
    backoff: Backoff,
    count: u32,
}

impl Attempts {
    /// How long to wait now, and longer the next time. `random` is from 0 to 1.
    pub fn failed(&mut self, random: f64) -> Duration {
        let delay = self.backoff.delay(self.count, random);
        self.count = self.count.saturating_add(1);
        delay
    }

    /// It worked: begin with the least delay again.
    pub fn succeeded(&mut self) {
        self.count = 0;
    }

    /// How often it failed since it last worked.
    pub fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn delays_double_up_to_the_bound() {
        let backoff = Backoff::new(seconds(1), seconds(10), 0.5).unwrap();
        let check = |attempt, random, millis| {
            assert_eq!(
                backoff.delay(attempt, random),
                Duration::from_millis(millis),
                "{attempt} {random}"
            );
        };
        check(0, 0.0, 1_000);
        check(1, 0.0, 2_000);
        check(2, 0.0, 4_000);
        check(3, 0.0, 8_000);
        check(4, 0.0, 10_000);
        check(31, 0.0, 10_000);
        check(32, 0.0, 10_000);
        check(u32::MAX, 0.0, 10_000);
        // Jitter only shortens.
        check(0, 1.0, 500);
        check(2, 0.5, 3_000);
        check(9, 1.0, 5_000);
        // Nonsense stays within the bounds.
        check(0, 7.0, 500);
        check(0, -7.0, 1_000);
        check(0, f64::NAN, 1_000);
    }

    #[test]
    fn huge_bounds_do_not_overflow() {
        let backoff = Backoff::new(seconds(u64::MAX / 4), Duration::MAX, 0.0).unwrap();
        assert_eq!(backoff.delay(30, 0.0), Duration::MAX);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |least, most, jitter, error| {
            assert_eq!(Backoff::new(least, most, jitter), Err(error));
        };
        check(seconds(0), seconds(1), 0.0, Invalid::Zero);
        check(seconds(2), seconds(1), 0.0, Invalid::Reversed);
        check(seconds(1), seconds(1), 1.1, Invalid::Jitter);
        check(seconds(1), seconds(1), -0.1, Invalid::Jitter);
        check(seconds(1), seconds(1), f64::NAN, Invalid::Jitter);
    }

    #[test]
    fn success_begins_anew() {
        let mut attempts = Backoff::new(seconds(1), seconds(60), 0.0)
            .unwrap()
            .attempts();
        assert_eq!(attempts.failed(0.3), seconds(1));
        assert_eq!(attempts.failed(0.3), seconds(2));
        assert_eq!(attempts.count(), 2);
        attempts.succeeded();
        assert_eq!(attempts.failed(0.3), seconds(1));
    }
}
