//! Follows names in DNS: A and AAAA for the addresses of a name, SRV for instances with ports, tiers and shares of their
//! own; all of a service's names merged into one list of places.
//!
//! Each kind of record of each name is a question of its own, asked again when its answer is due, so that a server that
//! never answers for one of them delays nothing of the others. What an answer is worth is [`super::belief`]'s matter; here
//! is when to ask again, what is published and what is said about it.
//!
//! Each address is an endpoint: an A and an AAAA record of one name are two, each judged by what becomes of its own
//! exchanges. There is no race between families (RFC 8305 §5) here, because a service's name stands for its replicas and not
//! for one host; that is for dialling one thing by its name ([`crate::dial`]). Their order (§4) is that of the policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hickory_resolver::proto::rr::Name;
use weft_runtime::backoff::fraction;
use weft_runtime::config::{Path, Problems};

use super::belief::{Answer, Belief};
use super::resolver::{Family, Found, FoundInstances, Instance, LookupError, Pacing, Resolver};
use super::status::Status;
use crate::endpoint::place::Place;

/// How soon to ask again at first while nothing is known; processes of a fleet start in any order.
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// How often to ask while nothing is known.
const MOST_RETRY: Duration = Duration::from_secs(1);

/// Questions that wait for their answers at a time; the others wait for these.
const MOST_ASKED: usize = 64;

/// Hosts of a SRV name whose addresses are followed.
pub const MOST_HOSTS: usize = 1_000;

/// A name in DNS, and what of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    name: Name,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Its addresses (A, AAAA); all listen on this port.
    Addresses(u16),
    /// Its instances (SRV); all listen on this port, or each on its own.
    Instances(Option<u16>),
}

impl Target {
    /// Checks a name whose addresses are wanted. `path` is where it stands in the file. It is taken as absolute, with or
    /// without the dot at the end.
    pub fn build(name: &str, port: u16, path: &Path, problems: &mut Problems) -> Option<Self> {
        let name = absolute(name, path, problems)?;
        Some(Self {
            name,
            wanted: Wanted::Addresses(port),
        })
    }

    /// The same for a name whose SRV records are wanted. Their ports count unless there is one for all.
    pub fn instances(
        name: &str,
        port: Option<u16>,
        path: &Path,
        problems: &mut Problems,
    ) -> Option<Self> {
        let name = absolute(name, path, problems)?;
        Some(Self {
            name,
            wanted: Wanted::Instances(port),
        })
    }
}

fn absolute(name: &str, path: &Path, problems: &mut Problems) -> Option<Name> {
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
    Some(parsed.to_lowercase())
}

/// See [`super::follow`]; never returns.
pub(super) async fn follow(
    targets: &[Target],
    resolver: &Resolver,
    status: &Status,
    publish: &(impl Fn(Vec<Place>) + Sync),
) {
    let mut state = State::new(targets, resolver.pacing(), Instant::now());
    let mut asking = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        while asking.len() < MOST_ASKED
            && let Some(question) = state.due(now)
        {
            asking.push(ask(resolver, question));
        }
        let next = state.next().filter(|_| asking.len() < MOST_ASKED);
        let sleep = tokio::time::sleep_until(next.unwrap_or(now).into());
        let heard = tokio::select! {
            Some(heard) = asking.next() => heard,
            () = sleep, if next.is_some() => continue,
        };
        let now = Instant::now();
        state.hear(heard, now, fastrand::u64(..));
        // Answers that came together change the service once.
        while let Some(Some(heard)) = asking.next().now_or_never() {
            state.hear(heard, now, fastrand::u64(..));
        }
        state.publish(publish);
        state.report(status, now);
    }
}

/// One kind of records of one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    Addresses(Name, KeyFamily),
    Instances(Name),
}

/// [`Family`] with an order, for keys.
type KeyFamily = bool;

const FAMILIES: [KeyFamily; 2] = [false, true];

fn family(key: KeyFamily) -> Family {
    if key { Family::V6 } else { Family::V4 }
}

enum Heard {
    Addresses((Name, KeyFamily), Result<Found, LookupError>),
    Instances(Name, Result<FoundInstances, LookupError>),
}

async fn ask(resolver: &Resolver, question: Question) -> Heard {
    match question {
        Question::Addresses(name, key) => {
            let found = resolver.lookup(&name, family(key)).await;
            Heard::Addresses((name, key), found)
        }
        Question::Instances(name) => {
            let found = resolver.instances(&name).await;
            Heard::Instances(name, found)
        }
    }
}

/// All questions of a service, what is believed of each, and what was made of them.
struct State<'a> {
    targets: &'a [Target],
    pacing: Pacing,
    addresses: BTreeMap<(Name, KeyFamily), Asked<IpAddr>>,
    instances: BTreeMap<Name, Asked<Instance>>,
    /// When which question is due. Entries of questions that are not asked any more, or at another time, mean nothing.
    agenda: BTreeSet<(Instant, Question)>,
    published: Option<Vec<Place>>,
    stale: bool,
    /// When it was last said that the addresses are expired.
    expired_said: Option<Instant>,
    /// Whether it was said that nothing is known yet.
    unknown_said: bool,
    /// Whether it was said that there are more hosts than are followed.
    excess_said: bool,
}

struct Asked<T> {
    belief: Belief<T>,
    error: Option<String>,
    /// Answers in a row that were none.
    misses: u32,
    /// `None` while its answer is waited for.
    due: Option<Instant>,
}

impl<T: Ord> Asked<T> {
    fn new(pacing: Pacing, due: Instant) -> Self {
        Self {
            belief: Belief::new(pacing.absent_for),
            error: None,
            misses: 0,
            due: Some(due),
        }
    }

    fn hear(&mut self, answer: Answer<T>, now: Instant) {
        if !matches!(answer, Answer::Failure) {
            self.error = None;
        }
        self.misses = match answer {
            Answer::Records(_) => 0,
            Answer::Nothing | Answer::Failure => self.misses.saturating_add(1),
        };
        self.belief.hear(answer, now);
    }

    fn standing(&self) -> Standing<'_> {
        Standing {
            is_asked: self.misses > 0,
            stale: self.belief.is_stale(),
            confirmed: self.belief.confirmed(),
            error: self.error.as_deref(),
        }
    }
}

/// What a report needs to know of a question.
struct Standing<'a> {
    is_asked: bool,
    stale: bool,
    confirmed: Option<Instant>,
    error: Option<&'a str>,
}

impl<'a> State<'a> {
    fn new(targets: &'a [Target], pacing: Pacing, now: Instant) -> Self {
        let mut state = Self {
            targets,
            pacing,
            addresses: BTreeMap::new(),
            instances: BTreeMap::new(),
            agenda: BTreeSet::new(),
            published: None,
            stale: false,
            expired_said: None,
            unknown_said: false,
            excess_said: false,
        };
        for target in targets {
            match target.wanted {
                Wanted::Addresses(_) => state.follow_host(&target.name, now),
                Wanted::Instances(_) => {
                    let name = target.name.clone();
                    let asked = Asked::new(pacing, now);
                    state.instances.insert(name.clone(), asked);
                    state.agenda.insert((now, Question::Instances(name)));
                }
            }
        }
        state
    }

    /// Asks for the addresses of a host from now on, unless that is done already.
    fn follow_host(&mut self, host: &Name, now: Instant) {
        for family in FAMILIES {
            let key = (host.clone(), family);
            if !self.addresses.contains_key(&key) {
                self.addresses.insert(key, Asked::new(self.pacing, now));
                let question = Question::Addresses(host.clone(), family);
                self.agenda.insert((now, question));
            }
        }
    }

    /// When the next question is due.
    fn next(&self) -> Option<Instant> {
        self.agenda.first().map(|(due, _)| *due)
    }

    /// A question that is due, which counts as asked from now on.
    fn due(&mut self, now: Instant) -> Option<Question> {
        while self.next()? <= now {
            let (due, question) = self.agenda.pop_first()?;
            let slot = match &question {
                Question::Addresses(name, family) => self
                    .addresses
                    .get_mut(&(name.clone(), *family))
                    .map(|asked| &mut asked.due),
                Question::Instances(name) => {
                    self.instances.get_mut(name).map(|asked| &mut asked.due)
                }
            };
            if let Some(slot) = slot.filter(|slot| **slot == Some(due)) {
                *slot = None;
                return Some(question);
            }
        }
        None
    }

    fn hear(&mut self, heard: Heard, now: Instant, random: u64) {
        match heard {
            Heard::Addresses(key, found) => {
                let found = found.map(|found| (found.addresses, found.ttl));
                let (answer, worth, error) = judge(&key.0, found);
                let Some(asked) = self.addresses.get_mut(&key) else {
                    // Of a host that is none any more.
                    return;
                };
                asked.error = error;
                asked.hear(answer, now);
                let misses = asked.misses;
                let pause = worth.pause(self.knows_something(), misses, self.pacing, random);
                let question = Question::Addresses(key.0.clone(), key.1);
                if let Some(asked) = self.addresses.get_mut(&key) {
                    asked.due = Some(now + pause);
                    self.agenda.insert((now + pause, question));
                }
            }
            Heard::Instances(name, found) => {
                let mut hosts = Vec::new();
                let found = found.map(|found| {
                    hosts = found.hosts;
                    (found.instances, found.ttl)
                });
                let (answer, worth, error) = judge(&name, found);
                let Some(asked) = self.instances.get_mut(&name) else {
                    return;
                };
                asked.error = error;
                asked.hear(answer, now);
                let misses = asked.misses;
                self.follow_hosts(now);
                self.hear_of_hosts(&hosts, now);
                let pause = worth.pause(self.knows_something(), misses, self.pacing, random);
                if let Some(asked) = self.instances.get_mut(&name) {
                    asked.due = Some(now + pause);
                    self.agenda.insert((now + pause, Question::Instances(name)));
                }
            }
        }
    }

    /// Follows the hosts of all instances that are believed in, and no others.
    fn follow_hosts(&mut self, now: Instant) {
        let mut hosts: BTreeSet<Name> = BTreeSet::new();
        let mut excess = 0;
        for instance in self.instances.values().flat_map(known) {
            if hosts.len() < MOST_HOSTS || hosts.contains(&instance.host) {
                hosts.insert(instance.host.clone());
            } else {
                excess += 1;
            }
        }
        if excess > 0 && !self.excess_said {
            self.excess_said = true;
            tracing::warn!(names = %self.names(), excess, used = MOST_HOSTS, "more hosts in SRV records than can be followed");
        }
        for host in &hosts {
            self.follow_host(host, now);
        }
        let named = |name: &Name| {
            let mut targets = self.targets.iter();
            targets.any(|t| t.name == *name && matches!(t.wanted, Wanted::Addresses(_)))
        };
        self.addresses
            .retain(|(name, _), _| hosts.contains(name) || named(name));
    }

    /// Takes addresses that came along with SRV records for answers, and asks for them only when they do not come again:
    /// a service of five hundred pods is one question then, and not a thousand. What a server sends along for a host is
    /// taken for all that there is.
    fn hear_of_hosts(&mut self, hosts: &[(Name, IpAddr)], now: Instant) {
        let mut told: BTreeMap<&Name, [Vec<IpAddr>; 2]> = BTreeMap::new();
        for (name, address) in hosts {
            told.entry(name).or_default()[usize::from(address.is_ipv6())].push(*address);
        }
        let later = now + 2 * self.pacing.max_ttl;
        for (name, families) in told {
            for (key, addresses) in FAMILIES.into_iter().zip(families) {
                let Some(asked) = self.addresses.get_mut(&(name.clone(), key)) else {
                    continue;
                };
                if !addresses.is_empty() {
                    asked.error = None;
                    asked.hear(Answer::Records(addresses), now);
                } else if known(asked).next().is_some() {
                    // It had some, and is asked whether they are gone.
                    continue;
                }
                // One that is being asked for comes back by itself.
                if asked.due.is_some() {
                    asked.due = Some(later);
                    let question = Question::Addresses(name.clone(), key);
                    self.agenda.insert((later, question));
                }
            }
        }
    }

    fn places(&self) -> Vec<Place> {
        let mut all = Vec::new();
        for target in self.targets {
            match target.wanted {
                Wanted::Addresses(port) => {
                    let addresses = self.addresses_of(&target.name);
                    all.extend(addresses.map(|ip| Place::new(SocketAddr::new(ip, port))));
                }
                Wanted::Instances(port) => {
                    for instance in self.instances.get(&target.name).into_iter().flat_map(known) {
                        let port = port.unwrap_or(instance.port);
                        all.extend(self.addresses_of(&instance.host).map(|ip| Place {
                            priority: instance.priority,
                            weight: instance.weight,
                            ..Place::new(SocketAddr::new(ip, port))
                        }));
                    }
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn addresses_of(&self, host: &Name) -> impl Iterator<Item = IpAddr> {
        let both = FAMILIES.map(|family| self.addresses.get(&(host.clone(), family)));
        both.into_iter().flatten().flat_map(known).copied()
    }

    /// Whether there is anything to go by: some addresses, or that there are none.
    fn knows_something(&self) -> bool {
        let all_known = self.addresses.values().all(|a| a.belief.known().is_some())
            && self.instances.values().all(|a| a.belief.known().is_some());
        let some_address = || self.addresses.values().any(|a| known(a).next().is_some());
        all_known || some_address()
    }

    fn publish(&mut self, publish: &impl Fn(Vec<Place>)) {
        let places = self.places();
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

    fn standings(&self) -> impl Iterator<Item = Standing<'_>> {
        let addresses = self.addresses.values().map(Asked::standing);
        addresses.chain(self.instances.values().map(Asked::standing))
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.targets.iter().map(|t| t.name.to_string()).collect();
        names.join(", ")
    }

    /// Says how it stands: in the status always, in the log when it changes.
    fn report(&mut self, status: &Status, now: Instant) {
        let stale = self.standings().any(|standing| standing.stale);
        let confirmed = self.standings().filter_map(|s| s.confirmed).max();
        let oldest = self
            .standings()
            .filter(|standing| standing.stale)
            .filter_map(|standing| standing.confirmed)
            .min();
        let age = oldest.map(|at| now.saturating_duration_since(at));
        let expired = age.is_some_and(|age| age >= self.pacing.stale);
        let error = self.standings().find_map(|s| s.error.map(str::to_owned));
        let asked = self.standings().all(|standing| standing.is_asked);
        let shown = error.as_deref().unwrap_or("the name has no addresses now");

        match (self.stale, stale) {
            (false, true) => {
                tracing::warn!(name = %self.names(), error = shown, "name cannot be confirmed, its last known addresses stay in use");
            }
            (true, false) => tracing::info!(name = %self.names(), "name resolves again"),
            _ => {}
        }
        self.stale = stale;
        if !stale {
            self.expired_said = None;
        }
        let said = self
            .expired_said
            .is_some_and(|at| now.saturating_duration_since(at) < self.pacing.stale);
        if expired && !said {
            self.expired_said = Some(now);
            tracing::error!(
                name = %self.names(),
                error = shown,
                minutes = age.unwrap_or_default().as_secs() / 60,
                "addresses were not confirmed for long and stay in use: look after the DNS servers"
            );
        }
        if asked && !self.knows_something() && !self.unknown_said {
            self.unknown_said = true;
            tracing::warn!(name = %self.names(), error = shown, "name does not resolve yet");
        }

        status.update(|report| {
            report.known = self.published.is_some();
            report.addresses = self.published.as_ref().map_or(0, Vec::len);
            report.last_success = confirmed;
            report.last_error = error;
            report.stale = stale;
            report.expired = expired;
        });
    }
}

fn known<T: Ord>(asked: &Asked<T>) -> impl Iterator<Item = &T> {
    asked.belief.known().into_iter().flatten()
}

/// What an answer says, for how long it is good, and what went wrong.
fn judge<T>(
    name: &Name,
    found: Result<(Vec<T>, Option<Duration>), LookupError>,
) -> (Answer<T>, Worth, Option<String>) {
    match found {
        Ok((records, ttl)) if records.is_empty() => (Answer::Nothing, Worth::Good(ttl), None),
        Ok((records, ttl)) => (Answer::Records(records), Worth::Good(ttl), None),
        Err(error) => {
            let error = error.to_string();
            tracing::debug!(%name, %error, "name not resolved");
            (Answer::Failure, Worth::Failure, Some(error))
        }
    }
}

/// What an answer means for when to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// Good for so long.
    Good(Option<Duration>),
    /// Nobody knows.
    Failure,
}

impl Worth {
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
        pause.mul_f64(1.0 - 0.1 * fraction(random))
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
        let check = |heard: Worth, known, misses, millis: u64| {
            let longest = heard.pause(known, misses, pacing, 0);
            assert_eq!(longest, Duration::from_millis(millis), "{heard:?}");
            let shortest = heard.pause(known, misses, pacing, u64::MAX);
            let difference = shortest.abs_diff(longest.mul_f64(0.9));
            assert!(difference < Duration::from_micros(1), "{heard:?}");
        };
        let good = |seconds| Worth::Good(Some(Duration::from_secs(seconds)));
        check(good(0), true, 0, 1_000);
        check(good(1), true, 0, 1_000);
        check(good(3), true, 0, 3_000);
        check(good(5), true, 0, 5_000);
        check(good(600), true, 0, 5_000);
        check(good(u64::from(u32::MAX)), true, 7, 5_000);
        check(Worth::Good(None), true, 1, 5_000);
        for (misses, millis) in [(1, 1_000), (2, 2_000), (3, 4_000), (4, 5_000), (99, 5_000)] {
            check(Worth::Failure, true, misses, millis);
        }
        // While nothing is known, soon.
        for (misses, millis) in [(1, 200), (2, 400), (3, 800), (4, 1_000), (99, 1_000)] {
            check(Worth::Failure, false, misses, millis);
            check(good(600), false, misses, millis);
        }
    }

    #[test]
    fn no_more_hosts_are_followed_than_there_may_be_and_none_that_is_gone() {
        let pacing = Pacing {
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(5),
            stale: Duration::from_secs(3600),
            absent_for: Duration::from_secs(10),
        };
        let mut problems = Problems::new();
        let target = Target::instances("_x._tcp.a", None, &Path::root(), &mut problems).unwrap();
        let (targets, now) = ([target], Instant::now());
        let mut state = State::new(&targets, pacing, now);
        let host = |n: usize| Name::from_ascii(format!("h{n}.")).unwrap();
        let address = |n: usize| IpAddr::from([10, 1, (n >> 8) as u8, n as u8]);
        let answer = |hosts: std::ops::Range<usize>| {
            let instance = |n| Instance {
                priority: 0,
                weight: 1,
                port: 80,
                host: host(n),
            };
            let found = FoundInstances {
                instances: hosts.clone().map(instance).collect(),
                hosts: hosts.map(|n| (host(n), address(n))).collect(),
                ttl: None,
            };
            Heard::Instances(targets[0].name.clone(), Ok(found))
        };
        state.hear(answer(0..MOST_HOSTS + 50), now, 0);
        assert_eq!(state.places().len(), MOST_HOSTS);
        assert_eq!(state.addresses.len(), 2 * MOST_HOSTS);
        // Again and again: what is remembered of what is due does not grow.
        for second in 1..100 {
            let now = now + Duration::from_secs(second);
            state.hear(answer(0..3), now, 0);
            while state.due(now).is_some() {}
        }
        assert_eq!(state.addresses.len(), 6);
        assert_eq!(state.places().len(), 3);
        assert!(state.agenda.len() < 100, "{}", state.agenda.len());
    }
}
