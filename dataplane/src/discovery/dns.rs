//! Follows a name in DNS: A and AAAA, each asked when its answer is due, merged into one list of addresses.
//!
//! The families are watched side by side, so that a server that never answers for one of them delays nothing of the
//! other. What an answer is worth is [`super::belief`]'s matter; here is when to ask again, what is published and what is
//! said about it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::Name;
use weft_runtime::config::{Path, Problems};

use super::belief::{Answer, Belief};
use super::resolver::{Family, Pacing, Resolver};
use super::status::Status;
use crate::endpoint::place::Place;

/// How soon to ask again at first while nothing is known; processes of a fleet start in any order.
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// How often to ask while nothing is known.
const MOST_RETRY: Duration = Duration::from_secs(1);

/// A name in DNS, and the port that belongs to its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    name: Name,
    port: u16,
}

impl Target {
    /// Checks a name. `path` is where it stands in the file. It is taken as absolute, with or without the dot at the end.
    pub fn build(name: &str, port: u16, path: &Path, problems: &mut Problems) -> Option<Self> {
        if name.parse::<IpAddr>().is_ok() || name.parse::<SocketAddr>().is_ok() {
            problems.at(
                path,
                format!("`{name}` is an address, not a name"),
                "write addresses as `endpoints: [\"IP:PORT\"]`",
            );
            return None;
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let parsed = Some(name)
            .filter(|name| name.chars().all(allowed))
            .and_then(|name| Name::from_ascii(name).ok())
            .filter(|name| name.num_labels() > 0);
        let Some(mut parsed) = parsed else {
            problems.at(
                path,
                format!("`{name}` is not a DNS name"),
                "write a name such as `orders` or `orders.internal`, of letters, digits, `-`, `_` and dots, \
                 each part 1 to 63 characters long",
            );
            return None;
        };
        parsed.set_fqdn(true);
        Some(Self {
            name: parsed.to_lowercase(),
            port,
        })
    }
}

/// Both families' beliefs and what was made of them.
struct State {
    families: [Watched; 2],
    published: Option<Vec<Place>>,
    stale: bool,
    /// When it was last said that the addresses are expired.
    expired_said: Option<Instant>,
    /// Whether it was said that nothing is known yet.
    unknown_said: bool,
}

struct Watched {
    belief: Belief,
    error: Option<String>,
    /// Answers in a row that were none.
    misses: u32,
}

/// See [`super::follow`]; never returns.
pub(super) async fn follow(
    target: &Target,
    resolver: &Resolver,
    status: &Status,
    publish: &(impl Fn(Vec<Place>) + Sync),
) {
    // Both families are watched by this one task, so nobody ever waits for this lock.
    let state = Mutex::new(State {
        families: [(); 2].map(|()| Watched {
            belief: Belief::new(resolver.pacing().absent_for),
            error: None,
            misses: 0,
        }),
        published: None,
        stale: false,
        expired_said: None,
        unknown_said: false,
    });
    let watch = async |family: Family| {
        loop {
            let found = resolver.lookup(&target.name, family).await;
            let now = Instant::now();
            let pause = {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let (answer, ttl) = match found {
                    Ok(found) if found.addresses.is_empty() => (Answer::Nothing, found.ttl),
                    Ok(found) => (Answer::Addresses(found.addresses), found.ttl),
                    Err(error) => {
                        state.failed(target, family, error.to_string());
                        (Answer::Failure, None)
                    }
                };
                let heard = Heard::of(&answer, ttl);
                state.hear(family, answer, now);
                state.publish(target, publish);
                state.report(target, resolver.pacing(), status, now);
                let misses = state.families[family as usize].misses;
                heard.pause(
                    state.knows_something(),
                    misses,
                    resolver.pacing(),
                    fastrand::u64(..),
                )
            };
            tokio::time::sleep(pause).await;
        }
    };
    let ((), ()) = tokio::join!(watch(Family::V4), watch(Family::V6));
}

impl State {
    fn failed(&mut self, target: &Target, family: Family, error: String) {
        tracing::debug!(name = %target.name, ?family, %error, "name not resolved");
        self.families[family as usize].error = Some(error);
    }

    fn hear(&mut self, family: Family, answer: Answer, now: Instant) {
        let family = &mut self.families[family as usize];
        if answer != Answer::Failure {
            family.error = None;
        }
        family.misses = match answer {
            Answer::Addresses(_) => 0,
            Answer::Nothing | Answer::Failure => family.misses.saturating_add(1),
        };
        family.belief.hear(answer, now);
    }

    /// The addresses of both families, sorted.
    fn places(&self, port: u16) -> Vec<Place> {
        let known = self.families.iter().filter_map(|f| f.belief.known());
        let mut all: Vec<_> = known
            .flatten()
            .map(|&ip| Place::new(SocketAddr::new(ip, port)))
            .collect();
        all.sort_unstable();
        all
    }

    /// Whether there is anything to go by: some addresses, or that there are none.
    fn knows_something(&self) -> bool {
        let mut known = self.families.iter().map(|family| family.belief.known());
        known.clone().all(|known| known.is_some())
            || known.any(|known| known.is_some_and(|known| !known.is_empty()))
    }

    fn publish(&mut self, target: &Target, publish: &impl Fn(Vec<Place>)) {
        let places = self.places(target.port);
        let changed = match &self.published {
            Some(published) => *published != places,
            // One family that has nothing is not yet a service that has nothing.
            None => self.knows_something(),
        };
        if changed {
            publish(places.clone());
            self.published = Some(places);
        }
    }

    /// Says how it stands: in the status always, in the log when it changes.
    fn report(&mut self, target: &Target, pacing: Pacing, status: &Status, now: Instant) {
        let stale = self.families.iter().any(|family| family.belief.is_stale());
        let confirmed = self.families.iter().filter_map(|f| f.belief.confirmed());
        let oldest = self
            .families
            .iter()
            .filter(|family| family.belief.is_stale())
            .filter_map(|family| family.belief.confirmed())
            .min();
        let age = oldest.map(|at| now.saturating_duration_since(at));
        let expired = age.is_some_and(|age| age >= pacing.stale);
        let error = self.families.iter().find_map(|f| f.error.clone());
        let name = &target.name;
        let shown = error.as_deref().unwrap_or("the name has no addresses now");

        match (self.stale, stale) {
            (false, true) => {
                tracing::warn!(%name, error = shown, "name cannot be confirmed, its last known addresses stay in use");
            }
            (true, false) => tracing::info!(%name, "name resolves again"),
            _ => {}
        }
        self.stale = stale;
        if !stale {
            self.expired_said = None;
        }
        let said = self
            .expired_said
            .is_some_and(|at| now.saturating_duration_since(at) < pacing.stale);
        if expired && !said {
            self.expired_said = Some(now);
            tracing::error!(
                %name,
                error = shown,
                minutes = age.unwrap_or_default().as_secs() / 60,
                "addresses were not confirmed for long and stay in use: look after the DNS servers"
            );
        }
        let asked = self.families.iter().all(|family| family.misses > 0);
        if asked && !self.knows_something() && !self.unknown_said {
            self.unknown_said = true;
            tracing::warn!(%name, error = shown, "name does not resolve yet");
        }

        status.update(|report| {
            report.known = self.published.is_some();
            report.addresses = self.published.as_ref().map_or(0, Vec::len);
            report.last_success = confirmed.max();
            report.last_error = error;
            report.stale = stale;
            report.expired = expired;
        });
    }
}

/// What an answer means for when to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Good for so long.
    Good(Option<Duration>),
    /// Nobody knows.
    Failure,
}

impl Heard {
    fn of(answer: &Answer, ttl: Option<Duration>) -> Self {
        match answer {
            Answer::Failure => Self::Failure,
            _ => Self::Good(ttl),
        }
    }

    /// How long to wait before asking again. `misses` is how many answers in a row had no addresses, this one included.
    ///
    /// Up to a tenth is taken off at random, so that a fleet does not ask in step; never added, because the longest time
    /// is a promise.
    fn pause(self, something_known: bool, misses: u32, pacing: Pacing, random: u64) -> Duration {
        let doubled = |first: Duration, most: Duration| {
            let factor = 1_u32.checked_shl(misses.saturating_sub(1));
            first.saturating_mul(factor.unwrap_or(u32::MAX)).min(most)
        };
        let pause = match self {
            _ if !something_known => doubled(FIRST_RETRY, MOST_RETRY),
            Self::Good(ttl) => ttl
                .unwrap_or(pacing.max_ttl)
                .clamp(pacing.min_ttl, pacing.max_ttl),
            Self::Failure => doubled(pacing.min_ttl, pacing.max_ttl),
        };
        pause.mul_f64(1.0 - 0.1 * ((random >> 11) as f64 / (1_u64 << 53) as f64))
    }
}

#[cfg(test)]
mod pure_tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn build(name: &str) -> Result<Target, String> {
        let mut problems = Problems::new();
        let path = Path::root().key("services").key("orders").key("dns");
        let target = Target::build(name, 80, &path, &mut problems);
        target.ok_or_else(|| {
            let problem = problems.iter().next().unwrap();
            assert_eq!(problem.path, path);
            problem.what.clone()
        })
    }

    #[test]
    fn names_are_absolute_and_checked() {
        for (name, asked) in [
            ("orders", "orders."),
            ("Orders.Internal", "orders.internal."),
            (
                "orders.ns.svc.cluster.local.",
                "orders.ns.svc.cluster.local.",
            ),
            ("my_app", "my_app."),
            ("compose_orders_1", "compose_orders_1."),
            ("_x.y_", "_x.y_."),
            ("1.orders", "1.orders."),
        ] {
            assert_eq!(build(name).unwrap().name.to_string(), asked);
        }
        let long = "a".repeat(64);
        for name in [
            "",
            ".",
            "..",
            "a..b",
            "a b",
            "a:80",
            "ä.example",
            "a/b",
            "a\\.b",
            "*.a",
            &long,
        ] {
            assert!(
                build(name).unwrap_err().contains("not a DNS name"),
                "{name}"
            );
        }
        for address in ["10.0.0.1", "::1", "10.0.0.1:80", "[::1]:80"] {
            assert!(build(address).unwrap_err().contains("is an address"));
        }
    }

    #[test]
    fn answers_are_good_for_one_to_five_seconds() {
        let pacing = Pacing {
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(5),
            stale: Duration::from_secs(3600),
            absent_for: Duration::from_secs(10),
        };
        let check = |heard: Heard, known, misses, millis: u64| {
            let longest = heard.pause(known, misses, pacing, 0);
            assert_eq!(longest, Duration::from_millis(millis), "{heard:?}");
            let shortest = heard.pause(known, misses, pacing, u64::MAX);
            let difference = shortest.abs_diff(longest.mul_f64(0.9));
            assert!(difference < Duration::from_micros(1), "{heard:?}");
        };
        let good = |seconds| Heard::Good(Some(Duration::from_secs(seconds)));
        check(good(0), true, 0, 1_000);
        check(good(1), true, 0, 1_000);
        check(good(3), true, 0, 3_000);
        check(good(5), true, 0, 5_000);
        check(good(600), true, 0, 5_000);
        check(good(u64::from(u32::MAX)), true, 7, 5_000);
        check(Heard::Good(None), true, 1, 5_000);
        for (misses, millis) in [(1, 1_000), (2, 2_000), (3, 4_000), (4, 5_000), (99, 5_000)] {
            check(Heard::Failure, true, misses, millis);
        }
        // While nothing is known, soon.
        for (misses, millis) in [(1, 200), (2, 400), (3, 800), (4, 1_000), (99, 1_000)] {
            check(Heard::Failure, false, misses, millis);
            check(good(600), false, misses, millis);
        }
    }
}
