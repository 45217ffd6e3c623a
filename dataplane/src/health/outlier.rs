//! Outlier ejection: an endpoint that keeps failing is left alone for a while, and returns by one probe.
//!
//! The rules are here, without clock, dice, locks or endpoints; [`crate::cluster::members`] applies them to a membership:
//!
//! * It trips on failures in a row, or on the share of failures in the last ten seconds. Local failures (not reached,
//!   broken off, too late) and remote ones (5xx) make separate rows: a bad network and a bad app are different stories,
//!   and mixing them would let each hide the other's end. The share counts both.
//! * Ejection lasts longer each time, and that is forgotten step by step while the endpoint does well.
//! * At most half of the endpoints are out, but one always may be where there are two, and never the last.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::backoff::fraction;
use weft_runtime::config::units::{Percent, Period};
use weft_runtime::config::{Path, Problems};

use crate::endpoint::{Outcome, Recent};

/// `outlier:` of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Outlier")]
pub struct Config {
    /// Whether endpoints are judged at all.
    pub enabled: bool,
    /// Failures in a row that eject, local and remote ones counted apart.
    pub consecutive: u32,
    /// Share of failures in the last ten seconds that ejects.
    pub ratio: Percent,
    /// Exchanges that must have ended in these ten seconds for the share to count.
    pub ratio_requests: u32,
    /// How long the first ejection lasts. The next ones last twice as long each.
    pub ejection: Period,
    /// How long an ejection lasts at most.
    pub max_ejection: Period,
    /// How much an ejection's length is varied at random, so that endpoints do not return together.
    pub jitter: Percent,
    /// After so long without an ejection, one doubling is forgotten.
    pub forget_after: Period,
    /// Share of the endpoints that may be ejected, rounded down; one always may be where there are two, never the last.
    pub max_ejected: Percent,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive: 5,
            ratio: Percent::new(50),
            ratio_requests: 20,
            ejection: Period::seconds(5),
            max_ejection: Period::seconds(60),
            jitter: Percent::new(50),
            forget_after: Period::seconds(60),
            max_ejected: Percent::new(50),
        }
    }
}

impl Config {
    /// Checks the values. `path` is where they stand in the file.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Rules> {
        let before = problems.len();
        if self.consecutive == 0 {
            problems.at(
                &path.key("consecutive"),
                "`0` failures in a row would eject every endpoint",
                "write 1 or more, or `enabled: false` to judge no endpoint",
            );
        }
        if self.ratio == Percent::new(0) {
            problems.at(
                &path.key("ratio"),
                "a share of `0%` would eject every endpoint",
                "write `1%` or more, or `enabled: false` to judge no endpoint",
            );
        }
        for (key, value) in [
            ("ejection", self.ejection),
            ("forget_after", self.forget_after),
        ] {
            if value.as_duration().is_zero() {
                problems.at(
                    &path.key(key),
                    format!("`{key}` is zero"),
                    "write a time longer than zero, such as `5s`",
                );
            }
        }
        if self.max_ejection < self.ejection {
            problems.at(
                &path.key("max_ejection"),
                format!(
                    "the longest ejection ({}) is shorter than the first ({})",
                    self.max_ejection, self.ejection
                ),
                "make `max_ejection` at least as long as `ejection`",
            );
        }
        (problems.len() == before).then(|| Rules(self.clone()))
    }
}

/// Checked rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Config);

/// What an endpoint was ejected for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trip {
    /// So many local failures in a row.
    LocalInARow(u32),
    /// So many remote failures in a row.
    RemoteInARow(u32),
    /// So many failures among so many exchanges in ten seconds.
    Ratio {
        /// Failures.
        failures: u32,
        /// Exchanges.
        of: u32,
    },
    /// The probe after an ejection failed.
    Probe,
}

impl std::fmt::Display for Trip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LocalInARow(count) => write!(f, "{count} connection failures in a row"),
            Self::RemoteInARow(count) => write!(f, "{count} failed answers in a row"),
            Self::Ratio { failures, of } => write!(f, "{failures} failures of {of} in 10 s"),
            Self::Probe => f.write_str("the probe failed"),
        }
    }
}

/// The ejections of one endpoint so far, as far as they are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    /// How many doublings the next ejection has.
    doublings: u32,
    /// When the last ejection ended, or the last doubling was forgotten.
    clean_since: Option<Instant>,
}

impl Rules {
    /// Whether endpoints are judged at all.
    pub fn enabled(&self) -> bool {
        self.0.enabled
    }

    /// Whether an endpoint with this recent past is to be ejected. To be asked when an exchange has failed: nothing is
    /// ejected because of a success.
    pub fn trips(&self, recent: &Recent) -> Option<Trip> {
        if !self.0.enabled {
            return None;
        }
        if recent.local_in_a_row >= self.0.consecutive {
            return Some(Trip::LocalInARow(recent.local_in_a_row));
        }
        if recent.remote_in_a_row >= self.0.consecutive {
            return Some(Trip::RemoteInARow(recent.remote_in_a_row));
        }
        let (of, failures) = (recent.window.total, recent.window.marked);
        let limit = f64::from(of) * self.0.ratio.as_fraction();
        // The tolerance keeps `50%` of 20 at 10, however a fraction is rounded.
        (of >= self.0.ratio_requests && f64::from(failures) >= limit - 1e-9)
            .then_some(Trip::Ratio { failures, of })
    }

    /// How many of so many endpoints may be ejected at the same time.
    pub fn allowed(&self, endpoints: usize) -> usize {
        if endpoints < 2 {
            return 0;
        }
        let share = (endpoints as f64 * self.0.max_ejected.as_fraction() + 1e-9) as usize;
        share.clamp(1, endpoints - 1)
    }

    /// How long an ejection that begins now lasts.
    pub fn eject(&self, record: &mut Record, now: Instant, random: u64) -> Duration {
        if let Some(since) = record.clean_since {
            let clean = now.saturating_duration_since(since).as_millis();
            let steps = clean / self.0.forget_after.as_duration().as_millis().max(1);
            record.doublings = record
                .doublings
                .saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX));
        }
        let (first, most) = (
            self.0.ejection.as_duration(),
            self.0.max_ejection.as_duration(),
        );
        let plain = first
            .saturating_mul(1_u32.checked_shl(record.doublings).unwrap_or(u32::MAX))
            .min(most);
        // Beyond this the cap holds anyway, and decay must not take hours.
        if plain < most {
            record.doublings += 1;
        }
        record.clean_since = None;
        let swing = 2.0 * fraction(random) - 1.0;
        plain
            .mul_f64(1.0 + swing * self.0.jitter.as_fraction())
            .min(most)
    }

    /// The endpoint is back: from now on its time is clean.
    pub fn recovered(&self, record: &mut Record, now: Instant) {
        record.clean_since = Some(now);
    }
}

/// How an answer with this status is judged. `retry_after` is whether it has that field.
///
/// 501 says that the app cannot do such a thing and 503 with `Retry-After` that it is shedding load on purpose; neither
/// makes it a bad endpoint.
pub fn judge_status(status: http::StatusCode, retry_after: bool) -> Outcome {
    match status.as_u16() {
        429 | 501 => Outcome::Pushback,
        503 if retry_after => Outcome::Pushback,
        500..=599 => Outcome::RemoteFailure,
        _ => Outcome::Success,
    }
}

/// How a gRPC call that ended with this status is judged: what HTTP says with 5xx, gRPC says with these.
pub fn judge_grpc(status: u8) -> Outcome {
    match status {
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        2 | 4 | 13 | 14 | 15 => Outcome::RemoteFailure,
        // RESOURCE_EXHAUSTED, UNIMPLEMENTED.
        8 | 12 => Outcome::Pushback,
        _ => Outcome::Success,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::endpoint::window::Sums;

    const LEAST: u64 = 0;
    const MIDDLE: u64 = 1 << 63;
    const MOST: u64 = u64::MAX;

    fn recent(local: u32, remote: u32, total: u32, marked: u32) -> Recent {
        Recent {
            local_in_a_row: local,
            remote_in_a_row: remote,
            window: Sums { total, marked },
        }
    }

    #[test]
    fn trips_on_five_in_a_row_or_half_of_twenty() {
        let rules = Rules::default();
        let check = |recent: Recent, expected: Option<Trip>| {
            assert_eq!(rules.trips(&recent), expected, "{recent:?}");
        };
        check(recent(0, 0, 0, 0), None);
        check(recent(4, 4, 8, 8), None);
        check(recent(5, 0, 5, 5), Some(Trip::LocalInARow(5)));
        check(recent(0, 5, 5, 5), Some(Trip::RemoteInARow(5)));
        check(recent(1, 0, 19, 19), None);
        check(recent(1, 0, 20, 9), None);
        let ratio = |failures, of| Some(Trip::Ratio { failures, of });
        check(recent(1, 0, 20, 10), ratio(10, 20));
        check(recent(0, 1, 21, 10), None);
        check(recent(0, 1, 1000, 500), ratio(500, 1000));
    }

    #[test]
    fn judges_nothing_when_disabled() {
        let rules = Rules(Config {
            enabled: false,
            ..Config::default()
        });
        assert_eq!(rules.trips(&recent(100, 100, 100, 100)), None);
    }

    #[test]
    fn at_most_half_but_one_of_two_and_never_the_last() {
        let allowed = |percent, endpoints| {
            Rules(Config {
                max_ejected: Percent::new(percent),
                ..Config::default()
            })
            .allowed(endpoints)
        };
        for (endpoints, expected) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 1),
            (4, 2),
            (5, 2),
            (9, 4),
            (10, 5),
        ] {
            assert_eq!(allowed(50, endpoints), expected, "50% of {endpoints}");
        }
        for endpoints in 2..=20 {
            assert_eq!(allowed(100, endpoints), endpoints - 1);
            assert_eq!(allowed(0, endpoints), 1);
        }
        // 29% of 100 is 28.999… in floats.
        assert_eq!(allowed(29, 100), 29);
    }

    #[test]
    fn ejections_double_up_to_the_cap() {
        let rules = Rules::default();
        let (mut record, now) = (Record::default(), Instant::now());
        for seconds in [5, 10, 20, 40, 60, 60, 60] {
            let time = rules.eject(&mut record, now, MIDDLE);
            assert_eq!(time, Duration::from_secs(seconds));
        }
    }

    #[test]
    fn jitter_is_half_either_way_and_never_beyond_the_cap() {
        let rules = Rules::default();
        let now = Instant::now();
        let check = |doublings, random, millis: u64| {
            let mut record = Record {
                doublings,
                clean_since: None,
            };
            let time = rules.eject(&mut record, now, random);
            let difference = time.abs_diff(Duration::from_millis(millis));
            assert!(
                difference < Duration::from_millis(1),
                "{time:?} for {millis} ms"
            );
        };
        check(0, LEAST, 2_500);
        check(0, MOST, 7_500);
        check(3, LEAST, 20_000);
        check(3, MOST, 60_000);
        check(9, LEAST, 30_000);
        check(9, MOST, 60_000);
        check(u32::MAX, MIDDLE, 60_000);
    }

    #[test]
    fn one_doubling_is_forgotten_per_clean_minute() {
        let rules = Rules::default();
        let start = Instant::now();
        let check = |clean: u64, expected: u64| {
            let mut record = Record::default();
            for _ in 0..3 {
                rules.eject(&mut record, start, MIDDLE);
            }
            rules.recovered(&mut record, start);
            let now = start + Duration::from_secs(clean);
            let time = rules.eject(&mut record, now, MIDDLE);
            assert_eq!(time.as_secs(), expected, "after {clean} s");
        };
        check(0, 40);
        check(59, 40);
        check(60, 20);
        check(119, 20);
        check(120, 10);
        check(180, 5);
        check(100_000, 5);
    }

    #[test]
    fn the_cap_is_not_remembered_as_more_than_it_is() {
        let rules = Rules::default();
        let (mut record, start) = (Record::default(), Instant::now());
        for _ in 0..100 {
            rules.eject(&mut record, start, MIDDLE);
        }
        rules.recovered(&mut record, start);
        let time = rules.eject(&mut record, start + Duration::from_secs(240), MIDDLE);
        assert_eq!(time, Duration::from_secs(5));
    }

    #[test]
    fn statuses_are_judged_by_who_is_to_blame() {
        use Outcome::{Pushback, RemoteFailure, Success};
        let check = |status: u16, retry_after, expected| {
            let status = http::StatusCode::from_u16(status).unwrap();
            assert_eq!(judge_status(status, retry_after), expected, "{status}");
        };
        for status in [200, 204, 304, 400, 404, 499] {
            check(status, false, Success);
            check(status, true, Success);
        }
        for status in [500, 502, 503, 504, 505, 599] {
            check(status, false, RemoteFailure);
        }
        check(500, true, RemoteFailure);
        check(503, true, Pushback);
        check(501, false, Pushback);
        check(429, false, Pushback);
        // What lies beyond 599 is no server error by RFC 9110 §15.
        check(600, false, Success);
        for (status, expected) in [
            (0, Success),
            (5, Success),
            (7, Success),
            (8, Pushback),
            (12, Pushback),
            (13, RemoteFailure),
            (14, RemoteFailure),
            (16, Success),
        ] {
            assert_eq!(judge_grpc(status), expected, "grpc-status {status}");
        }
    }

    #[test]
    fn nothing_written_is_the_defaults_and_valid() {
        let mut problems = Problems::new();
        let config: Config = serde_json::from_str("{}").unwrap();
        assert_eq!(config, Config::default());
        let rules = config.build(&Path::root().key("outlier"), &mut problems);
        assert_eq!(rules, Some(Rules::default()));
        assert!(problems.is_empty());
    }

    #[test]
    fn wrong_values_are_all_reported_with_their_place() {
        let config: Config = serde_json::from_str(
            r#"{"consecutive": 0, "ratio": "0%", "ejection": "90s", "forget_after": "0s"}"#,
        )
        .unwrap();
        let mut problems = Problems::new();
        let path = Path::root().key("defaults").key("outlier");
        assert_eq!(config.build(&path, &mut problems), None);
        let places: Vec<_> = problems.iter().map(|p| p.path.to_string()).collect();
        assert_eq!(
            places,
            [
                "defaults.outlier.consecutive",
                "defaults.outlier.ratio",
                "defaults.outlier.forget_after",
                "defaults.outlier.max_ejection"
            ]
        );
        assert!(serde_json::from_str::<Config>(r#"{"consecutve": 5}"#).is_err());
    }
}
