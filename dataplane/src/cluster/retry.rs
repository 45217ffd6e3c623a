//! How often a failed attempt may be repeated, and when.
//!
//! Retries help one exchange and hurt the service: when everything fails, each of them is one more failure, and a chain of
//! hops multiplies them. So beside the limit per exchange there is one [`Budget`] for the whole proxy, always on: retries
//! may be a share of the requests of the last ten seconds, plus a few per second so that a quiet service has some at all.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::units::Percent;
use weft_runtime::config::{Path, Problems};

use crate::endpoint::window::{SPAN, Window};

/// The longest wait before the first retry; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(25);

/// The longest wait before any retry.
const MOST_BACKOFF: Duration = Duration::from_millis(250);

/// More attempts than this are never a cure.
const MOST_ATTEMPTS: u32 = 10;

/// `retry:` of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Retry")]
pub struct Config {
    /// How often one exchange is tried again, each time at another endpoint while there is one. `0` turns retries off.
    pub attempts: u32,
    /// Retries of the whole proxy as a share of its requests in the last ten seconds.
    pub budget: Percent,
    /// Retries per second that are allowed on top of that share.
    pub min_per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attempts: 1,
            budget: Percent::new(20),
            min_per_second: 3,
        }
    }
}

impl Config {
    /// Checks the values. `path` is where they stand in the file.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Policy> {
        if self.attempts > MOST_ATTEMPTS {
            problems.at(
                &path.key("attempts"),
                format!("`{}` retries of one exchange only add load", self.attempts),
                format!("write a number from 0 to {MOST_ATTEMPTS}; 1 is the default"),
            );
            return None;
        }
        Some(Policy {
            attempts: self.attempts,
            limits: Limits {
                share: self.budget.as_fraction(),
                per_second: self.min_per_second,
            },
        })
    }
}

/// Checked values of `retry:`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// How often one exchange may be tried again.
    pub attempts: u32,
    /// What the budget may give.
    pub limits: Limits,
}

/// What a [`Budget`] may give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    share: f64,
    per_second: u32,
}

/// The requests and retries of the last ten seconds, of all cores.
#[derive(Debug, Default)]
pub struct Budget {
    requests: Window,
    /// The retries. The lock makes looking and taking one step, so that cores do not overdraw together; it is held for
    /// some ten loads, and only by exchanges that have failed already.
    retries: Mutex<Window>,
}

impl Budget {
    /// Nothing requested, nothing spent.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a request, once, however often it is tried.
    pub fn request(&self, now: Instant) {
        self.requests.add(now, false);
    }

    /// Takes one retry, if there is one left. It is spent when granted, before any backoff, so retries that still wait
    /// count.
    pub fn take(&self, limits: &Limits, now: Instant) -> bool {
        let requests = self.requests.sums(now).total;
        let allowed =
            f64::from(requests) * limits.share + f64::from(limits.per_second) * SPAN.as_secs_f64();
        let retries = self
            .retries
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // The tolerance keeps 20% of 10 at 2, however a fraction is rounded.
        let granted = f64::from(retries.sums(now).total) + 1.0 <= allowed + 1e-9;
        if granted {
            retries.add(now, false);
        }
        granted
    }
}

/// How long to wait before retry number `retry` (from 1): anything up to 25 ms, 50 ms, … 250 ms. Full jitter, because
/// those who failed together must not come back together.
pub fn backoff(retry: u32, random: u64) -> Duration {
    let most = FIRST_BACKOFF
        .saturating_mul(
            1_u32
                .checked_shl(retry.saturating_sub(1))
                .unwrap_or(u32::MAX),
        )
        .min(MOST_BACKOFF);
    most.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn limits() -> Limits {
        let mut problems = Problems::new();
        Config::default()
            .build(&Path::root(), &mut problems)
            .unwrap()
            .limits
    }

    fn take_all(budget: &Budget, now: Instant) -> usize {
        (0..100_000)
            .take_while(|_| budget.take(&limits(), now))
            .count()
    }

    #[test]
    fn a_quiet_proxy_has_three_a_second() {
        let now = Instant::now();
        assert_eq!(take_all(&Budget::new(), now), 30);
    }

    #[test]
    fn a_fifth_of_the_requests_on_top() {
        for (requests, expected) in [(1, 30), (4, 30), (5, 31), (10, 32), (1000, 230)] {
            let (budget, now) = (Budget::new(), Instant::now());
            (0..requests).for_each(|_| budget.request(now));
            assert_eq!(take_all(&budget, now), expected, "{requests} requests");
        }
    }

    #[test]
    fn what_was_spent_comes_back_after_ten_seconds() {
        let (budget, now) = (Budget::new(), Instant::now());
        assert_eq!(take_all(&budget, now), 30);
        assert_eq!(take_all(&budget, now + Duration::from_secs(9)), 0);
        assert_eq!(take_all(&budget, now + Duration::from_secs(10)), 30);
    }

    #[test]
    fn requests_of_long_ago_grant_nothing() {
        let (budget, now) = (Budget::new(), Instant::now());
        (0..1000).for_each(|_| budget.request(now));
        assert_eq!(take_all(&budget, now + SPAN), 30);
    }

    #[test]
    fn cores_do_not_overdraw_together() {
        let (budget, now) = (Budget::new(), Instant::now());
        let granted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| take_all(&budget, now)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(granted, 30);
    }

    #[test]
    fn everything_failing_adds_at_most_a_fifth() {
        let (budget, start) = (Budget::new(), Instant::now());
        let mut retries = 0;
        for millis in 0..60_000 {
            let now = start + Duration::from_millis(millis);
            budget.request(now);
            retries += usize::from(budget.take(&limits(), now));
        }
        // 60 s of 1000/s, all failing, with 3/s on top.
        let most = 60_000 / 5 + 60 * 3 + 30;
        assert!(
            (11_000..=most).contains(&retries),
            "{retries} retries of 60,000 requests"
        );
    }

    #[test]
    fn backoff_is_full_jitter_up_to_a_quarter_second() {
        for (retry, most) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (99, 250)] {
            let most = Duration::from_millis(most);
            assert_eq!(backoff(retry, 0), Duration::ZERO);
            assert!(backoff(retry, u64::MAX) <= most);
            let half = backoff(retry, 1 << 63);
            assert!(
                half.abs_diff(most / 2) < Duration::from_micros(1),
                "retry {retry}: {half:?}"
            );
        }
    }

    #[test]
    fn the_share_may_be_nothing() {
        let config: Config =
            serde_json::from_str(r#"{"budget": "0%", "min_per_second": 0}"#).unwrap();
        let mut problems = Problems::new();
        let policy = config.build(&Path::root(), &mut problems).unwrap();
        let (budget, now) = (Budget::new(), Instant::now());
        budget.request(now);
        assert!(!budget.take(&policy.limits, now));
    }

    #[test]
    fn too_many_attempts_are_a_located_problem() {
        let config: Config = serde_json::from_str(r#"{"attempts": 11}"#).unwrap();
        let mut problems = Problems::new();
        assert_eq!(
            config.build(&Path::root().key("retry"), &mut problems),
            None
        );
        let places: Vec<_> = problems.iter().map(|p| p.path.to_string()).collect();
        assert_eq!(places, ["retry.attempts"]);
    }
}
