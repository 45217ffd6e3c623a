//! How much: a token bucket for each route, client, caller, claim or header value.
//!
//! Counted in this process, exactly, across its threads. The answer carries what is left, in the fields of
//! `draft-ietf-httpapi-ratelimit-headers`, also while it is allowed, so that clients can slow down before they are
//! refused.

mod bucket;
mod key;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use http::HeaderValue;
use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::units::Rate;
use weft_runtime::config::{Path, Problems};

use crate::error::Error;
use crate::reason::Reason;
use bucket::{Buckets, Measure, keyed_hash};
pub use key::{By, Subject};

/// One of `limits:`, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimit")]
pub struct Config {
    /// What requests are counted by: `route`, `client_address`, `principal`, `claims.NAME` or `header.NAME`.
    pub key: By,
    /// How many requests, in the long run.
    pub rate: Rate,
    /// How many at once, after a rest; the count of `rate` when left out.
    #[serde(default)]
    pub burst: Option<u32>,
    /// How many keys are remembered (about 40 bytes each). Beyond, those that have most left are forgotten.
    #[serde(default = "default_max_keys")]
    pub max_keys: usize,
}

fn default_max_keys() -> usize {
    100_000
}

/// The most that `max_keys` may say: some 400 MiB.
const MOST_KEYS: usize = 10_000_000;

/// A limit at work. It has its buckets as long as it lives: after a reload, keep the one whose [`Limiter::config`] is
/// still what the file says.
#[derive(Debug)]
pub struct Limiter {
    config: Config,
    name: Box<str>,
    burst: u32,
    buckets: Buckets,
    /// Keys are hashed under a secret of this limiter, so that nobody can make two keys share a bucket.
    hash: RandomState,
    policy: HeaderValue,
}

/// Whose bucket: made by [`Limiter::key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64);

/// What became of one request at one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may go on.
    pub allowed: bool,
    /// How many a full bucket holds.
    pub limit: u32,
    /// How many are left now.
    pub remaining: u32,
    /// Until the bucket is full.
    pub reset_after: Duration,
    /// Until the next request may come; zero when this one was allowed.
    pub retry_after: Duration,
}

impl Limiter {
    /// Builds the limit `name`, which stands at `place`. `now` is when its buckets begin.
    pub fn build(
        name: &str,
        place: &Path,
        config: &Config,
        now: Instant,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.len();
        let burst = config.burst.unwrap_or(config.rate.count);
        if burst == 0 {
            problems.at(
                &place.key("burst"),
                "a burst of 0 allows nothing",
                "write 1 or more, or leave `burst` out for the count of `rate`",
            );
        }
        if !(1..=MOST_KEYS).contains(&config.max_keys) {
            problems.at(
                &place.key("max_keys"),
                format!("`max_keys: {}` is out of range", config.max_keys),
                format!("write a number from 1 to {MOST_KEYS}"),
            );
        }
        // The name becomes a string of a structured field, and a label of metrics.
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if name.is_empty() || !name.bytes().all(word) {
            problems.at(
                place,
                format!(
                    "`{name}` cannot be the name of a limit, because clients see it in a header"
                ),
                "name it with letters, digits, `_`, `-` and `.`",
            );
        }
        if problems.len() > before {
            return None;
        }
        let mut policy = format!(
            "\"{name}\";q={};w={}",
            config.rate.count,
            config.rate.per.as_secs()
        );
        if burst != config.rate.count {
            // The draft has no word for a burst, and asks for a prefix before words of one's own.
            let _ = write!(policy, ";weft-burst={burst}");
        }
        Some(Self {
            config: config.clone(),
            name: name.into(),
            burst,
            buckets: Buckets::new(Measure::new(config.rate, burst), config.max_keys, now),
            hash: RandomState::default(),
            policy: HeaderValue::try_from(policy).ok()?,
        })
    }

    /// What this was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What it is called in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose bucket `subject` takes from.
    pub fn key(&self, subject: &Subject<'_>) -> Key {
        let key = &self.config.key;
        Key(key.parts(subject, |parts| keyed_hash(&self.hash, parts)))
    }

    /// Takes a token of `key`'s bucket, if there is one.
    pub fn check(&self, key: Key, now: Instant) -> Decision {
        let taken = self.buckets.take(key.0, now);
        Decision {
            allowed: taken.allowed,
            limit: self.burst,
            remaining: taken.remaining,
            reset_after: taken.full_in,
            retry_after: taken.retry_after,
        }
    }

    /// The error for a request that `decision` does not allow.
    pub fn refusal(&self, decision: &Decision) -> Error {
        Error::new(
            Reason::RateLimited,
            format!(
                "over the limit `{}` of {} in {} s",
                self.name,
                self.config.rate.count,
                self.config.rate.per.as_secs()
            ),
        )
        .retry_after(decision.retry_after)
    }

    /// The values of `RateLimit` and `RateLimit-Policy` for an answer: what is left, with the seconds until all is there again
    /// (rounded up), and the limit itself. Both fields are lists: where several limits apply, append each.
    pub fn headers(&self, decision: &Decision) -> (HeaderValue, HeaderValue) {
        let seconds = seconds_up(decision.reset_after);
        let value = format!("\"{}\";r={};t={seconds}", self.name, decision.remaining);
        let value = HeaderValue::try_from(value).unwrap_or_else(|_| self.policy.clone());
        (value, self.policy.clone())
    }

    /// How many keys are remembered now.
    pub fn keys(&self) -> usize {
        self.buckets.keys()
    }

    /// How many keys were forgotten because there were more than `max_keys`: a counter.
    pub fn forgotten(&self) -> u64 {
        self.buckets.forgotten()
    }
}

/// Whole seconds, so that who waits them has waited long enough.
fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderMap;

    use super::*;
    use crate::principal::Principal;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    fn build(name: &str, config: &Config, now: Instant) -> Result<Limiter, Vec<String>> {
        let mut problems = Problems::new();
        let place = Path::root().key("limits").key(name);
        let limiter = Limiter::build(name, &place, config, now, &mut problems);
        assert_eq!(limiter.is_none(), !problems.is_empty());
        limiter.ok_or_else(|| {
            problems
                .iter()
                .map(|problem| format!("{}: {} | {}", problem.path, problem.what, problem.cure))
                .collect()
        })
    }

    fn of(limiter: &Limiter, route: &str, client: &str) -> Key {
        limiter.key(&Subject {
            route,
            client: client.parse().unwrap(),
            principal: &Principal::Anonymous,
            headers: &HeaderMap::new(),
        })
    }

    #[test]
    fn a_client_over_its_limit_is_told_how_long_to_wait_and_others_are_not_affected() {
        let now = Instant::now();
        let limiter = build(
            "per_client",
            &config(r#"{"key": "client_address", "rate": "2/m"}"#),
            now,
        )
        .unwrap();
        let (one, other) = (
            of(&limiter, "r", "192.0.2.1"),
            of(&limiter, "r", "192.0.2.2"),
        );
        assert_eq!(one, of(&limiter, "s", "192.0.2.1"));
        assert!(limiter.check(one, now).allowed);
        assert!(limiter.check(one, now).allowed);
        let refused = limiter.check(one, now);
        assert_eq!(
            refused,
            Decision {
                allowed: false,
                limit: 2,
                remaining: 0,
                reset_after: Duration::from_secs(60),
                retry_after: Duration::from_secs(30),
            }
        );
        let error = limiter.refusal(&refused);
        assert_eq!(error.reason, Reason::RateLimited);
        assert_eq!(error.retry_after, Some(Duration::from_secs(30)));
        assert!(
            error.detail.contains("`per_client` of 2 in 60 s"),
            "{error}"
        );
        assert!(limiter.check(other, now).allowed);
        assert_eq!(limiter.keys(), 2);
    }

    #[test]
    fn the_fields_say_what_is_left_and_what_the_limit_is() {
        let check = |json: &str, wait: u64, left: &str, policy: &str| {
            let now = Instant::now();
            let limiter = build("per_user", &config(json), now).unwrap();
            let key = of(&limiter, "r", "::1");
            limiter.check(key, now);
            let decision = limiter.check(key, now + Duration::from_millis(wait));
            let (first, second) = limiter.headers(&decision);
            assert_eq!(first, left);
            assert_eq!(second, policy);
        };
        check(
            r#"{"key": "route", "rate": "100/s"}"#,
            0,
            r#""per_user";r=98;t=1"#,
            r#""per_user";q=100;w=1"#,
        );
        check(
            r#"{"key": "route", "rate": "10/m", "burst": 30}"#,
            0,
            r#""per_user";r=28;t=12"#,
            r#""per_user";q=10;w=60;weft-burst=30"#,
        );
        check(
            r#"{"key": "route", "rate": "1/h", "burst": 1}"#,
            500,
            r#""per_user";r=0;t=3600"#,
            r#""per_user";q=1;w=3600"#,
        );
    }

    #[test]
    fn what_allows_nothing_is_reported() {
        let now = Instant::now();
        let check = |name: &str, json: &str, expected: &str| {
            let problems = build(name, &config(json), now).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(expected), "{problems:?}");
        };
        check(
            "a",
            r#"{"key": "route", "rate": "1/s", "burst": 0}"#,
            "limits.a.burst: ",
        );
        check(
            "a",
            r#"{"key": "route", "rate": "1/s", "max_keys": 0}"#,
            "limits.a.max_keys: ",
        );
        check(
            "a",
            r#"{"key": "route", "rate": "1/s", "max_keys": 10000001}"#,
            "limits.a.max_keys: ",
        );
        check(
            "a\"b",
            r#"{"key": "route", "rate": "1/s"}"#,
            "cannot be the name",
        );
        let refused = |json: &str, word: &str| {
            let error = serde_json::from_str::<Config>(json)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(r#"{"key": "route"}"#, "missing field `rate`");
        refused(r#"{"key": "route", "rate": "0/s"}"#, "allows nothing");
        refused(r#"{"key": "ip", "rate": "1/s"}"#, "`client_address`");
        refused(
            r#"{"key": "route", "rate": "1/s", "brust": 1}"#,
            "unknown field `brust`",
        );
        assert_eq!(
            config(r#"{"key": "route", "rate": "1/s"}"#).max_keys,
            100_000
        );
    }

    #[test]
    fn a_limiter_remembers_what_it_was_built_from() {
        let one = config(r#"{"key": "claims.sub", "rate": "1/s"}"#);
        let limiter = build("a", &one, Instant::now()).unwrap();
        assert_eq!(*limiter.config(), one);
        assert_ne!(
            *limiter.config(),
            config(r#"{"key": "claims.sub", "rate": "2/s"}"#)
        );
    }
}
