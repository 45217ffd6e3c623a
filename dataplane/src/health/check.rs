//! `health:` of a service: what its endpoints are asked, how often, and how many answers count.

use std::time::Duration;

use http::uri::PathAndQuery;
use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::backoff::fraction;
use weft_runtime::config::units::{Interval, Percent};
use weft_runtime::config::{Path, Problems};

use crate::path::{Pattern, normalize};

/// What a sidecar answers itself when it is asked whether its app takes connections.
pub const KNOCK: &str = "/.well-known/weft/knock";

/// The gRPC method that tells the health of a server, by the protocol `grpc.health.v1`.
pub const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";

/// Longer texts are not looked for in an answer.
const MOST_TEXT: usize = 1024;

/// `health:` of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Health")]
pub struct Config {
    /// Whether endpoints are probed. `false` at a service turns off what `defaults` has.
    pub enabled: bool,
    /// Ask by a GET for this path, such as `/healthz`. Any member of the mesh may do this at the service, whatever its
    /// `allow` rules say.
    pub http: Option<String>,
    /// Ask by `grpc.health.v1.Health/Check` for this service; the empty text asks for the whole server.
    pub grpc: Option<String>,
    /// Ask only whether the app takes connections.
    pub tcp: bool,
    /// The statuses that are good, with `http`. From 200 to 299 when left out.
    pub status: Vec<u32>,
    /// A text that the first 64 KiB of a good answer contain, with `http`.
    pub body: Option<String>,
    /// Time from one probe of an endpoint to the next.
    pub interval: Interval,
    /// After this time a probe has failed.
    pub timeout: Interval,
    /// Failed probes in a row that take an endpoint out.
    pub fall: u32,
    /// Good probes in a row that bring it back. One is enough for an endpoint that was never well before.
    pub rise: u32,
    /// How much the interval is varied at random, so that proxies do not probe together.
    pub jitter: Percent,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            http: None,
            grpc: None,
            tcp: false,
            status: Vec::new(),
            body: None,
            interval: Interval::seconds(3),
            timeout: Interval::seconds(1),
            fall: 3,
            rise: 2,
            jitter: Percent::new(10),
        }
    }
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A GET for this target.
    Http {
        /// Path and query.
        target: PathAndQuery,
        /// The good statuses; empty for all from 200 to 299.
        status: Vec<u16>,
        /// What the answer must contain.
        body: Option<String>,
    },
    /// `grpc.health.v1.Health/Check` for this service.
    Grpc {
        /// Its name; empty for the server.
        service: String,
    },
    /// Whether it takes connections.
    Tcp,
}

impl Question {
    /// Method and path of the request by which this is asked through a sidecar.
    pub fn request(&self) -> (&'static str, &str) {
        match self {
            Self::Http { target, .. } => ("GET", target.path()),
            Self::Grpc { .. } => ("POST", GRPC_CHECK),
            Self::Tcp => ("GET", KNOCK),
        }
    }
}

/// Checked values of `health:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    /// What is asked.
    pub question: Question,
    /// From one probe to the next.
    pub interval: Duration,
    /// For one probe.
    pub timeout: Duration,
    /// Failures in a row that take out.
    pub fall: u32,
    /// Successes in a row that bring back.
    pub rise: u32,
    /// How much the interval is varied.
    pub jitter: Percent,
}

impl Default for Checks {
    /// By TCP, as often as is usual.
    fn default() -> Self {
        let config = Config::default();
        Self {
            question: Question::Tcp,
            interval: config.interval.as_duration(),
            timeout: config.timeout.as_duration(),
            fall: config.fall,
            rise: config.rise,
            jitter: config.jitter,
        }
    }
}

impl Checks {
    /// How long to wait for the first probe of an endpoint: up to a tenth of the interval, so that not all are asked at
    /// the same moment when a process starts.
    pub fn first(&self, random: u64) -> Duration {
        self.interval.mul_f64(0.1 * fraction(random))
    }

    /// How long to wait for the next one.
    pub fn next(&self, random: u64) -> Duration {
        let swing = 2.0 * fraction(random) - 1.0;
        self.interval
            .mul_f64(1.0 + swing * self.jitter.as_fraction())
    }
}

impl Config {
    /// Checks the values, which stand at `path`. Nothing when there is nothing to probe, or something is wrong.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Checks> {
        let before = problems.len();
        let kinds: Vec<&str> = [
            ("http", self.http.is_some()),
            ("grpc", self.grpc.is_some()),
            ("tcp", self.tcp),
        ]
        .into_iter()
        .filter_map(|(key, given)| given.then_some(key))
        .collect();
        match kinds.as_slice() {
            [] if self.enabled => problems.at(
                path,
                "it is not said what endpoints are to be asked",
                "add `http: /healthz`, `grpc: \"\"` or `tcp: true`, or write `enabled: false`",
            ),
            [first, second, ..] => problems.at(
                &path.key(*second),
                format!("`{first}` already says what endpoints are to be asked"),
                "keep one of them",
            ),
            _ => {}
        }
        for (key, count) in [("fall", self.fall), ("rise", self.rise)] {
            if count == 0 {
                problems.at(
                    &path.key(key),
                    "`0` probes in a row decide nothing",
                    "write 1 or more",
                );
            }
        }
        self.check_answer(path, problems);
        let question = self.question(path, problems);
        if problems.len() > before || !self.enabled {
            return None;
        }
        Some(Checks {
            question: question?,
            interval: self.interval.as_duration(),
            timeout: self.timeout.as_duration(),
            fall: self.fall,
            rise: self.rise,
            jitter: self.jitter,
        })
    }

    fn question(&self, path: &Path, problems: &mut Problems) -> Option<Question> {
        if let Some(text) = &self.http {
            return Some(Question::Http {
                target: check_target(text, &path.key("http"), problems)?,
                status: self
                    .status
                    .iter()
                    .filter_map(|status| u16::try_from(*status).ok())
                    .collect(),
                body: self.body.clone(),
            });
        }
        if let Some(service) = &self.grpc {
            if service.len() > MOST_TEXT {
                problems.at(
                    &path.key("grpc"),
                    "no gRPC service has so long a name",
                    "write its full name, such as `shop.v1.Orders`",
                );
                return None;
            }
            return Some(Question::Grpc {
                service: service.clone(),
            });
        }
        self.tcp.then_some(Question::Tcp)
    }

    fn check_answer(&self, path: &Path, problems: &mut Problems) {
        for (key, given) in [
            ("status", !self.status.is_empty()),
            ("body", self.body.is_some()),
        ] {
            if given && self.http.is_none() && (self.grpc.is_some() || self.tcp) {
                problems.at(
                    &path.key(key),
                    format!("`{key}` has a meaning with `http` only"),
                    "remove it, or ask by `http`",
                );
            }
        }
        for (index, status) in self.status.iter().enumerate() {
            if !(200..=599).contains(status) {
                problems.at(
                    &path.key("status").index(index),
                    format!("`{status}` is not the status of an answer"),
                    "write a number from 200 to 599",
                );
            }
        }
        if let Some(text) = &self.body
            && (text.is_empty() || text.len() > MOST_TEXT)
        {
            problems.at(
                &path.key("body"),
                format!("the text has {} bytes", text.len()),
                format!("write one of 1 to {MOST_TEXT} bytes, or leave it out to take any body"),
            );
        }
    }
}

/// A target that arrives as it is written here: what is not in its normal form, or stands for many, does not.
fn check_target(text: &str, place: &Path, problems: &mut Problems) -> Option<PathAndQuery> {
    const CURE: &str = "write the path that the app answers, such as `/healthz`";
    let path = text.split_once('?').map_or(text, |(path, _)| path);
    let plain = !path.contains(['{', '}', '*']) && !text.contains('#');
    let plain = plain && Pattern::parse(path).is_ok();
    if !plain {
        problems.at(place, format!("`{text}` is not a path"), CURE);
        return None;
    }
    match normalize(path) {
        Ok(normal) if normal == path => {}
        Ok(normal) => {
            problems.at(
                place,
                format!("`{path}` is another way to write `{normal}`"),
                format!("write `{normal}`"),
            );
            return None;
        }
        Err(_) => {
            problems.at(place, format!("`{text}` is not a path"), CURE);
            return None;
        }
    }
    match PathAndQuery::try_from(text) {
        Ok(target) => Some(target),
        Err(error) => {
            problems.at(place, format!("`{text}` is not a path: {error}"), CURE);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn build(json: &str) -> Result<Option<Checks>, Vec<String>> {
        let config: Config = serde_json::from_str(json).unwrap();
        let mut problems = Problems::new();
        let checks = config.build(&Path::root().key("health"), &mut problems);
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| format!("{}: {}", problem.path, problem.what))
            .collect();
        if problems.is_empty() {
            Ok(checks)
        } else {
            assert_eq!(checks, None);
            Err(problems)
        }
    }

    #[test]
    fn defaults_are_the_defaults_sheet() {
        let checks = build(r#"{"http": "/healthz"}"#).unwrap().unwrap();
        assert_eq!(
            (checks.interval, checks.timeout, checks.fall, checks.rise),
            (Duration::from_secs(3), Duration::from_secs(1), 3, 2)
        );
        assert_eq!(checks.question.request(), ("GET", "/healthz"));
        let tcp = build(r#"{"tcp": true}"#).unwrap();
        assert_eq!(tcp, Some(Checks::default()));
        let grpc = build(r#"{"grpc": ""}"#).unwrap().unwrap();
        assert_eq!(grpc.question.request(), ("POST", GRPC_CHECK));
        assert_eq!(build(r#"{"enabled": false}"#), Ok(None));
        assert_eq!(build(r#"{"enabled": false, "http": "/x"}"#), Ok(None));
    }

    #[test]
    fn a_target_may_have_a_query() {
        let checks = build(r#"{"http": "/health?deep=1"}"#).unwrap().unwrap();
        assert_eq!(checks.question.request(), ("GET", "/health"));
    }

    #[test]
    fn probes_are_spread_by_a_tenth() {
        let checks = Checks::default();
        for (random, millis) in [(0, 2_700), (1 << 63, 3_000), (u64::MAX, 3_300)] {
            let next = checks.next(random).as_secs_f64() * 1e3;
            assert!((next - f64::from(millis)).abs() < 1.0, "{next}");
            assert!(checks.first(random) <= Duration::from_millis(301));
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_located_problem() {
        let check = |json: &str, expected: &[&str]| {
            let problems = build(json).expect_err(json);
            assert_eq!(problems.len(), expected.len(), "{problems:#?}");
            for (problem, expected) in problems.iter().zip(expected) {
                assert!(problem.starts_with(expected), "{problem} for {expected}");
            }
        };
        check("{}", &["health: it is not said"]);
        check(r#"{"interval": "1s"}"#, &["health: it is not said"]);
        check(
            r#"{"http": "/x", "tcp": true}"#,
            &["health.tcp: `http` already"],
        );
        check(
            r#"{"grpc": "", "http": "/x"}"#,
            &["health.grpc: `http` already"],
        );
        check(
            r#"{"tcp": true, "fall": 0, "rise": 0}"#,
            &["health.fall: ", "health.rise: "],
        );
        check(
            r#"{"tcp": true, "status": [200], "body": "ok"}"#,
            &["health.status: ", "health.body: "],
        );
        check(
            r#"{"http": "/x", "status": [99, 200, 600], "body": ""}"#,
            &["health.status[0]: ", "health.status[2]: ", "health.body: "],
        );
        for path in ["healthz", "/x/*", "/{x}", "", "/a#b", "/a b", "http://x/"] {
            check(&format!(r#"{{"http": "{path}"}}"#), &["health.http: "]);
        }
        check(r#"{"http": "/a/../b"}"#, &["health.http: "]);
    }
}
