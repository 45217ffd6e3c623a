//! `balance:` of a service: the short form, `least_request`, and the long one, `{ policy: maglev, key: { header: x } }`.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

use super::key::{self, Key};
use super::maglev;
use super::sticky;
use super::tiers::Failover;
use crate::endpoint::SLOW_START;
use crate::head::Head;

/// `balance:` as written: the name of a policy, or more.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Balance")]
pub enum Config {
    /// A policy with everything else as usual.
    Short(Name),
    /// A policy and what it goes by.
    Long(Box<Settings>),
}

/// The policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "BalancePolicy")]
pub enum Name {
    /// The less loaded of two random endpoints; the least loaded of all where there are few; where there are more than 128 of
    /// the same weight, one that is idle and was used lately, if there is one.
    #[default]
    LeastRequest,
    /// Each in turn, as often as its weight says.
    RoundRobin,
    /// Any, as often as its weight says.
    Random,
    /// Of two random endpoints the one that is likely to answer first: by how long its answers took lately, and how many
    /// it owes.
    LeastResponseTime,
    /// The same client, the same endpoint: by its address, of IPv6 its /64.
    IpHash,
    /// The same key, the same endpoint; the most even way.
    Maglev,
    /// The same key, the same endpoint; the way in which the fewest keys move when endpoints come and go.
    Ring,
}

/// `balance:` in its long form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "BalanceSettings")]
pub struct Settings {
    /// How an endpoint is chosen.
    pub policy: Name,
    /// What `maglev` and `ring` keep together.
    pub key: Option<key::Config>,
    /// With `maglev`, `ring` and `ip_hash`: what an endpoint may have in flight, in relation to the mean, before keys go
    /// elsewhere. `1.5` is usual. Unlimited when left out.
    pub max_load: Option<f64>,
    /// Entries of `maglev`'s table, a prime number from 65537 to 5000011; 1048583 when left out. When one of N endpoints leaves, at most
    /// 1.2/N of the keys move up to 30 endpoints with 65537 (128 KiB), up to 150 with the default (2 MiB), up to 200 with 2097169 and up to
    /// 300 with 5000011 (10 MiB); of more, take `ring`. When this changes, all keys move.
    pub table_size: Option<u32>,
    /// How long a new or returned endpoint takes to reach its full share; `0s` for at once.
    pub slow_start: Period,
    /// Whether endpoints in our own `zone` come first, where zones are known.
    pub zones: Zones,
    /// When endpoints of lower priority are used.
    pub failover: FailoverConfig,
    /// Keeps a client's session at one endpoint by a cookie. Only at the ingress, so a route must lead to the service: what services
    /// send one another is balanced as if this were not there, because apps keep no cookies.
    pub sticky: Option<sticky::Config>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Name::default(),
            key: None,
            max_load: None,
            table_size: None,
            slow_start: Period::seconds(SLOW_START.as_secs()),
            zones: Zones::default(),
            failover: FailoverConfig::default(),
            sticky: None,
        }
    }
}

/// `balance.zones`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Zones {
    /// Our own zone takes what its capacity is good for; the rest goes to the others.
    #[default]
    PreferLocal,
    /// All zones are alike.
    Ignore,
}

/// `balance.failover`, for services whose endpoints have priorities (SRV).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Failover")]
pub struct FailoverConfig {
    /// How much more than its share an endpoint can take: a tier gives some of its load to the next one only when the part
    /// of it that is well, times this, is less than all.
    pub overprovisioning: f64,
    /// How long a tier must have been better before it is given more load again.
    pub hold: Period,
}

impl Default for FailoverConfig {
    fn default() -> Self {
        Self {
            overprovisioning: 1.4,
            hold: Period::seconds(30),
        }
    }
}

/// How a service's endpoints are chosen: what a set of them is made with.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(super) choice: Choice,
    /// What exchanges are kept together by.
    key: Option<Key>,
    pub(super) slow_start: Duration,
    pub(super) failover: Failover,
    zones: Zones,
    /// Our own, where that is known and counts.
    pub(super) zone: Option<Arc<str>>,
}

/// A policy with what it needs. Loads are in thousandths of the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    LeastRequest,
    RoundRobin,
    Random,
    LeastResponseTime,
    IpHash { max_load: Option<u32> },
    Maglev { max_load: Option<u32>, size: u32 },
    Ring { max_load: Option<u32> },
}

impl Default for Config {
    fn default() -> Self {
        Self::Short(Name::default())
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            choice: Choice::LeastRequest,
            key: None,
            slow_start: SLOW_START,
            failover: Failover::default(),
            zones: Zones::default(),
            zone: None,
        }
    }
}

impl Config {
    /// The long form of either.
    pub fn settings(&self) -> Cow<'_, Settings> {
        match self {
            Self::Short(policy) => Cow::Owned(Settings {
                policy: *policy,
                ..Settings::default()
            }),
            Self::Long(settings) => Cow::Borrowed(settings),
        }
    }

    /// How sessions are kept, where they are.
    pub fn sticky(&self) -> Option<&sticky::Config> {
        match self {
            Self::Short(_) => None,
            Self::Long(settings) => settings.sticky.as_ref(),
        }
    }

    /// Checks it, except for what stands elsewhere (the key of [`Settings::sticky`]).
    pub fn build(&self, place: &Path, problems: &mut Problems) -> Option<Policy> {
        self.settings().build(place, problems)
    }
}

impl Settings {
    fn build(&self, place: &Path, problems: &mut Problems) -> Option<Policy> {
        let before = problems.len();
        let key = self.key(place, problems);
        let choice = self.choice(place, problems);
        let at = place.key("failover").key("overprovisioning");
        let overprovisioning = thousandths(
            self.failover.overprovisioning,
            (1.0, 100.0),
            "1.4",
            &at,
            problems,
        );
        if self.slow_start > LONGEST {
            problems.at(
                &place.key("slow_start"),
                "an endpoint would take more than an hour to reach its share",
                "write `10s`, which is the default, or what the service needs to warm up",
            );
        }
        if self.failover.hold > LONGEST {
            problems.at(
                &place.key("failover").key("hold"),
                "a tier would have to be well for more than an hour before it is used again",
                "write `30s`, which is the default",
            );
        }
        if let Some(sticky) = &self.sticky {
            sticky.check(&place.key("sticky"), problems);
        }
        (problems.len() == before).then(|| Policy {
            choice,
            key,
            slow_start: self.slow_start.as_duration(),
            failover: Failover {
                overprovisioning: overprovisioning.unwrap_or(1_000),
                hold: self.failover.hold.as_duration(),
            },
            zones: self.zones,
            zone: None,
        })
    }

    /// Whether it goes by something of a request that a connection does not have.
    pub fn is_by_request(&self) -> bool {
        self.wants_key() && !matches!(self.key, None | Some(key::Config::Source))
    }

    fn wants_key(&self) -> bool {
        matches!(self.policy, Name::Maglev | Name::Ring)
    }

    fn hashes(&self) -> bool {
        self.wants_key() || self.policy == Name::IpHash
    }

    fn key(&self, place: &Path, problems: &mut Problems) -> Option<Key> {
        match &self.key {
            Some(key) if self.wants_key() => key.build(&place.key("key"), problems),
            Some(_) => {
                let what = if self.hashes() {
                    "`ip_hash` goes by the client's address and no other key"
                } else {
                    "this policy goes by no key"
                };
                let cure = "write `policy: maglev` or `policy: ring`, or remove `key`";
                problems.at(&place.key("key"), what, cure);
                None
            }
            None if self.wants_key() => {
                problems.at(
                    &place.key("policy"),
                    "this policy keeps together what has the same key, and there is no `key`",
                    "add one, such as `key: { header: x-user-id }` or `key: source`",
                );
                None
            }
            None => self.hashes().then_some(Key::Source),
        }
    }

    fn choice(&self, place: &Path, problems: &mut Problems) -> Choice {
        let max_load = self.max_load.and_then(|max_load| {
            if !self.hashes() {
                problems.at(
                    &place.key("max_load"),
                    "this policy gives no endpoint more than its share anyway",
                    "remove `max_load`; it is for `maglev`, `ring` and `ip_hash`",
                );
            }
            let range = (1.05, 100.0);
            thousandths(max_load, range, "1.5", &place.key("max_load"), problems)
        });
        if let Some(size) = self.table_size {
            let at = place.key("table_size");
            if self.policy != Name::Maglev {
                problems.at(&at, "this policy has no table", "remove `table_size`");
            } else if !maglev::is_size(size) {
                problems.at(
                    &at,
                    format!("a table of {size} entries cannot be filled evenly"),
                    "write a prime number from 65537 to 5000011, such as 2097169",
                );
            }
        }
        match self.policy {
            Name::LeastRequest => Choice::LeastRequest,
            Name::RoundRobin => Choice::RoundRobin,
            Name::Random => Choice::Random,
            Name::LeastResponseTime => Choice::LeastResponseTime,
            Name::IpHash => Choice::IpHash { max_load },
            Name::Maglev => Choice::Maglev {
                max_load,
                size: self.table_size.unwrap_or(maglev::USUAL),
            },
            Name::Ring => Choice::Ring { max_load },
        }
    }
}

/// More than this is a mistake.
const LONGEST: Period = Period::seconds(3_600);

/// A factor, in thousandths.
fn thousandths(
    factor: f64,
    (least, most): (f64, f64),
    usual: &str,
    place: &Path,
    problems: &mut Problems,
) -> Option<u32> {
    if (least..=most).contains(&factor) {
        return Some((factor * 1_000.0).round() as u32);
    }
    problems.at(
        place,
        format!("`{factor}` is out of range"),
        format!("write a number from {least} to {most}; {usual} is usual"),
    );
    None
}

impl Policy {
    /// The same for a process that runs in this zone.
    #[must_use]
    pub fn in_zone(mut self, zone: Option<&Arc<str>>) -> Self {
        self.zone = zone.filter(|_| self.zones == Zones::PreferLocal).cloned();
        self
    }

    /// Whether it needs the key of an exchange.
    pub fn wants_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whether that is the client's address, which takes some finding out.
    pub fn wants_client(&self) -> bool {
        self.key == Some(Key::Source)
    }

    /// The hash of an exchange's key, if it has it.
    pub fn key(&self, head: &Head, client: IpAddr) -> Option<u64> {
        self.key.as_ref()?.of(head, client)
    }

    /// The same of a connection that nobody looks into.
    pub fn client_key(&self, client: IpAddr) -> Option<u64> {
        self.key.as_ref()?.of_connection(client)
    }

    /// Whether it wants to know how long answers take ([`crate::endpoint::latency`]).
    pub fn is_timed(&self) -> bool {
        self.choice == Choice::LeastResponseTime
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Config;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a policy such as `least_request`, or `{ policy: maglev, … }`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Config, E> {
                Name::deserialize(StrDeserializer::new(text)).map(Config::Short)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Config, A::Error> {
                let settings = Settings::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Config::Long(Box::new(settings)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> Result<Policy, Vec<String>> {
        let config: Config = serde_json::from_str(text).unwrap();
        let mut problems = Problems::new();
        config
            .build(&Path::root(), &mut problems)
            .ok_or_else(|| problems.iter().map(|p| p.path.to_string()).collect())
    }

    #[test]
    fn a_policy_is_a_word_or_more() {
        assert_eq!(build(r#""least_request""#), Ok(Policy::default()));
        assert_eq!(build("{}"), Ok(Policy::default()));
        assert_eq!(
            build(r#"{"policy": "least_request"}"#),
            Ok(Policy::default())
        );
        let long = build(
            r#"{"policy": "maglev", "key": {"header": "x"}, "max_load": 1.5, "slow_start": "1m",
                "failover": {"hold": "5s"}}"#,
        )
        .unwrap();
        assert_eq!(
            long.choice,
            Choice::Maglev {
                max_load: Some(1_500),
                size: maglev::USUAL
            }
        );
        assert!(long.wants_key());
        assert_eq!(long.slow_start, Duration::from_secs(60));
        assert_eq!(long.failover.overprovisioning, 1_400);
        assert_eq!(long.failover.hold, Duration::from_secs(5));
        assert!(build(r#""ip_hash""#).unwrap().wants_key());
        assert!(build(r#""least_response_time""#).unwrap().is_timed());
    }

    #[test]
    fn words_that_are_none_and_unknown_keys_are_errors() {
        for text in [r#""least_requests""#, r#"{"polici": "ring"}"#, "7", "[]"] {
            assert!(serde_json::from_str::<Config>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_said_where_it_stands() {
        let check = |text, places: &[&str]| {
            assert_eq!(build(text).unwrap_err(), places, "{text}");
        };
        check(r#""maglev""#, &["policy"]);
        check(r#"{"policy": "ring"}"#, &["policy"]);
        check(r#"{"policy": "random", "key": "source"}"#, &["key"]);
        check(r#"{"policy": "ip_hash", "key": "source"}"#, &["key"]);
        check(
            r#"{"policy": "ring", "key": "source", "table_size": 65537}"#,
            &["table_size"],
        );
        check(
            r#"{"policy": "maglev", "key": "source", "table_size": 65536}"#,
            &["table_size"],
        );
        check(
            r#"{"policy": "round_robin", "max_load": 1.5}"#,
            &["max_load"],
        );
        check(
            r#"{"policy": "ring", "key": {"query": ""}, "max_load": 0.9}"#,
            &["key", "max_load"],
        );
        check(
            r#"{"failover": {"overprovisioning": 0.5, "hold": "2h"}, "slow_start": "2h"}"#,
            &["failover.overprovisioning", "slow_start", "failover.hold"],
        );
    }

    #[test]
    fn our_zone_counts_unless_zones_are_to_be_ignored() {
        let zone = Some(Arc::from("a"));
        let prefers = build("{}").unwrap().in_zone(zone.as_ref());
        assert_eq!(prefers.zone, zone);
        let ignores = build(r#"{"zones": "ignore"}"#)
            .unwrap()
            .in_zone(zone.as_ref());
        assert_eq!(ignores.zone, None);
    }
}
