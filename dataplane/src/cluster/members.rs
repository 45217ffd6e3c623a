//! The endpoints of a service: who they are now, what is known about each, and who is left alone.
//!
//! Discovery says which addresses there are ([`Members::apply`]), exchanges say how they fared ([`Members::record`]), and
//! so do probes ([`Members::probed`]); out comes an [`EndpointSet`] to pick from, swapped whole. What is known about an address outlives the membership: it
//! survives changes of DNS and of the configuration, and for ten minutes even the address's own absence, so that a record
//! that flaps does not whitewash a bad endpoint.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::Notify;

use crate::balance::sticky::{self, Tally};
use crate::balance::{self, EndpointSet};
use crate::endpoint::place::Place;
use crate::endpoint::{Endpoint, InFlight, Outcome, SLOW_START, State};
use crate::health::outlier::{Record, Rules, Trip};
use crate::health::streak::Verdict;
use crate::health::{Checks, Streak};

/// More endpoints than this are not used: a membership this large is a mistake, or somebody's attack through DNS.
pub const MOST_ENDPOINTS: usize = 10_000;

/// How many addresses that are gone are remembered.
pub const MOST_GONE: usize = 1_024;

/// How long an address that is gone is remembered.
pub const REMEMBER_GONE: Duration = Duration::from_secs(600);

/// The endpoints of one service.
#[derive(Debug)]
pub struct Members {
    service: Arc<str>,
    set: ArcSwap<EndpointSet>,
    /// Beside the lock, because every failure reads them.
    rules: ArcSwap<Rules>,
    generation: AtomicU64,
    /// Woken with each new set.
    renewed: Notify,
    ejections: AtomicU64,
    probes_passed: AtomicU64,
    probes_failed: AtomicU64,
    sessions: Tally,
    /// What is known of each address. Whoever changes a membership or ejects or takes back an endpoint holds this lock,
    /// so that no two do it at once and "never the last one" holds. Exchanges that go well never take it, and others do on
    /// the cores that carry connections: nothing is done under it that takes long.
    known: Mutex<Known>,
    /// Held by whoever makes the next set, so that no two do. It guards nothing else; where both are taken it comes before
    /// `known`, and no exchange takes it: a set may have tables that take tenths of a second.
    building: Mutex<()>,
}

#[derive(Debug)]
struct Known {
    balance: balance::Policy,
    present: HashMap<SocketAddr, Member>,
    gone: HashMap<SocketAddr, Gone>,
    panicking: bool,
    /// Times that it came to that.
    panics: u64,
    /// Picks in panic from sets that are gone.
    panic_picks: u64,
}

#[derive(Debug)]
struct Member {
    endpoint: Arc<Endpoint>,
    record: Record,
    streak: Streak,
    /// How the last probe failed, until one succeeds.
    failure: Option<Arc<str>>,
}

#[derive(Debug)]
struct Gone {
    member: Member,
    since: Instant,
}

/// How a service's endpoints are, all in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many there are.
    pub endpoints: usize,
    /// How many carry the service: neither ejected nor unhealthy nor draining.
    pub available: usize,
    /// Whether these are too few, so that all are used.
    pub panicking: bool,
    /// How often it came to that.
    pub panics: u64,
    /// Exchanges that were given to any endpoint for that reason.
    pub panic_picks: u64,
    /// Probes that found an endpoint well.
    pub probes_passed: u64,
    /// Probes that did not.
    pub probes_failed: u64,
    /// What became of sessions, in the order of [`Outcome::ALL`](sticky::Outcome::ALL).
    pub sessions: [u64; sticky::Outcome::ALL.len()],
}

/// One endpoint, and what probes say of it.
#[derive(Debug, Clone)]
pub struct View {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// What its probes say, all in all.
    pub verdict: Verdict,
    /// How the last probe failed, if it did.
    pub failure: Option<Arc<str>>,
}

impl Members {
    /// A service without endpoints yet. The name is for the log.
    pub fn new(service: impl Into<Arc<str>>, balance: balance::Policy, rules: Rules) -> Self {
        Self {
            service: service.into(),
            set: ArcSwap::from_pointee(EndpointSet::new(&balance, Vec::new(), 0)),
            rules: ArcSwap::from_pointee(rules),
            generation: AtomicU64::new(0),
            renewed: Notify::new(),
            ejections: AtomicU64::new(0),
            probes_passed: AtomicU64::new(0),
            probes_failed: AtomicU64::new(0),
            sessions: Tally::default(),
            known: Mutex::new(Known {
                balance,
                present: HashMap::new(),
                gone: HashMap::new(),
                panicking: false,
                panics: 0,
                panic_picks: 0,
            }),
            building: Mutex::new(()),
        }
    }

    /// The set to pick from now.
    pub fn load(&self) -> Guard<Arc<EndpointSet>> {
        self.set.load()
    }

    /// For an [`arc_swap::Cache`], which makes [`Members::load`] cheaper still.
    pub fn shared(&self) -> &ArcSwap<EndpointSet> {
        &self.set
    }

    /// Grows with each new set.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Waits for a set that is newer than this generation.
    pub async fn newer_than(&self, generation: u64) {
        loop {
            let renewed = self.renewed.notified();
            if self.generation() != generation {
                return;
            }
            renewed.await;
        }
    }

    /// How they are, all in all.
    pub fn summary(&self) -> Summary {
        let known = lock(&self.known);
        let set = self.set.load();
        Summary {
            endpoints: set.endpoints().len(),
            available: set.available(),
            panicking: known.panicking,
            panics: known.panics,
            panic_picks: known.panic_picks + set.panic_picks(),
            probes_passed: self.probes_passed.load(Relaxed),
            probes_failed: self.probes_failed.load(Relaxed),
            sessions: self.sessions.counts(),
        }
    }

    /// What becomes of sessions, where they are kept.
    pub fn sessions(&self) -> &Tally {
        &self.sessions
    }

    /// Whether this endpoint is one of them.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        lock(&self.known).of(endpoint).is_some()
    }

    /// Each endpoint, in the order of their addresses.
    pub fn view(&self) -> Vec<View> {
        let known = lock(&self.known);
        let set = self.set.load();
        let view = |endpoint: &Arc<Endpoint>| {
            let member = known.present.get(&endpoint.address);
            View {
                endpoint: Arc::clone(endpoint),
                verdict: member.map_or(Verdict::Unknown, |member| member.streak.verdict()),
                failure: member.and_then(|member| member.failure.clone()),
            }
        };
        set.endpoints().iter().map(view).collect()
    }

    /// How many ejections there were, of all endpoints, the ones that are gone included.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// Takes over what a new configuration says; endpoints and what is known of them stay. May take long, like
    /// [`Members::apply`].
    pub fn configure(&self, balance: balance::Policy, rules: Rules, now: Instant) {
        let building = lock(&self.building);
        let changed = {
            let mut known = lock(&self.known);
            self.rules.store(Arc::new(rules));
            let is_other = known.balance != balance;
            known.balance = balance;
            is_other.then(|| known.balance.clone())
        };
        let set = changed.map(|balance| {
            let endpoints = self.set.load().endpoints().to_vec();
            self.build(&building, &balance, endpoints)
        });
        let mut known = lock(&self.known);
        if let Some(set) = set {
            self.publish(&mut known, set);
        }
        // Rules that became stricter about how many may be out, or that eject nothing any more, hold at once.
        self.readmit(&mut known, now);
    }

    /// Makes these the places of the service. Order and repetition do not matter; of an address that is named more than
    /// once the lowest tier counts. What is known of an address stays when its tier, weight or zone changes. Returns
    /// whether anything changed. May take long, and keeps no exchange from ending meanwhile: not to be called on a core
    /// that carries connections.
    pub fn apply<P: Into<Place>>(&self, places: Vec<P>, now: Instant) -> bool {
        let mut places: Vec<Place> = places.into_iter().map(Into::into).collect();
        places.sort_unstable();
        places.dedup_by_key(|place| place.address);
        if places.len() > MOST_ENDPOINTS {
            tracing::warn!(
                service = %self.service,
                found = places.len(),
                used = MOST_ENDPOINTS,
                "service has more endpoints than can be used"
            );
            places.truncate(MOST_ENDPOINTS);
        }
        let building = lock(&self.building);
        let unchanged = {
            let current = self.set.load();
            let current = current.endpoints();
            current.len() == places.len()
                && current
                    .iter()
                    .zip(&places)
                    .all(|(e, place)| *e.place() == *place)
        };
        if unchanged {
            return false;
        }

        // From here until the set is there, what is known is ahead of it. That is as if exchanges that end meanwhile had
        // ended before: what they have led to is seen to again when the set is swapped.
        let mut known = lock(&self.known);
        let mut before = std::mem::take(&mut known.present);
        let mut endpoints = Vec::with_capacity(places.len());
        let mut added = 0_usize;
        for place in places {
            let address = place.address;
            let member = match before.remove(&address) {
                Some(member) => {
                    if *member.endpoint.place() != place {
                        member.endpoint.set_place(place);
                    }
                    member
                }
                None => {
                    added += 1;
                    known.arrive(place, now)
                }
            };
            endpoints.push(Arc::clone(&member.endpoint));
            known.present.insert(address, member);
        }
        let removed = before.len();
        known.leave(before, now);
        let balance = known.balance.clone();
        drop(known);

        tracing::info!(
            service = %self.service,
            endpoints = endpoints.len(),
            added,
            removed,
            "endpoints changed"
        );
        let set = self.build(&building, &balance, endpoints);
        let mut known = lock(&self.known);
        self.publish(&mut known, set);
        // The others may have been the ones that were well.
        self.readmit(&mut known, now);
        true
    }

    /// Says how an exchange ended, and draws the consequences. `random` jitters an ejection.
    ///
    /// To be called once, as soon as it is known: for an answer that is a stream, when its head is judged, since an
    /// ejected endpoint waits for its probe. An exchange that is dropped without a report counts neither way.
    pub fn record(&self, exchange: &mut InFlight, outcome: Outcome, now: Instant, random: u64) {
        let probe = exchange.take_probe();
        let endpoint = exchange.endpoint();
        endpoint.count(outcome, now);
        if probe {
            return self.conclude(endpoint, outcome, now, random);
        }
        if !outcome.is_failure() || endpoint.is_ejected() {
            return;
        }
        if let Some(trip) = self.rules.load().trips(&endpoint.recent(now)) {
            let mut known = lock(&self.known);
            // While we waited for the lock, somebody else's failure may have done it.
            if !endpoint.is_ejected() {
                self.eject(&mut known, endpoint, trip, now, random);
            }
        }
    }

    /// Says how a probe of an endpoint's health ended, and draws the consequences: one that failed too often in a row is
    /// passed over until it has succeeded often enough in a row.
    pub fn probed(
        &self,
        endpoint: &Arc<Endpoint>,
        outcome: Result<(), String>,
        checks: &Checks,
        now: Instant,
    ) {
        let count = match &outcome {
            Ok(()) => &self.probes_passed,
            Err(_) => &self.probes_failed,
        };
        count.fetch_add(1, Relaxed);
        let mut known = lock(&self.known);
        // Gone from the membership while it was asked: what is remembered of it waits for its return.
        let Some(member) = known.of(endpoint) else {
            return;
        };
        let (passed, before) = (outcome.is_ok(), member.streak.verdict());
        member.failure = outcome.err().map(Arc::from);
        if !member.streak.note(passed, checks) {
            return;
        }
        if passed {
            endpoint.set_unhealthy(false);
            if before == Verdict::Failing {
                endpoint.warm(now);
                tracing::info!(service = %self.service, endpoint = %endpoint.address, "endpoint is healthy again");
            }
        } else {
            endpoint.set_unhealthy(true);
            tracing::warn!(
                service = %self.service,
                endpoint = %endpoint.address,
                problem = member.failure.as_deref().unwrap_or_default(),
                probes = checks.fall,
                "endpoint fails its health probes"
            );
        }
        self.changed(&mut known);
    }

    /// Nobody probes any more: what probes have said counts no longer.
    pub fn forget_probes(&self) {
        let mut known = lock(&self.known);
        let known = &mut *known;
        let gone = known.gone.values_mut().map(|gone| &mut gone.member);
        for member in known.present.values_mut().chain(gone) {
            member.streak = Streak::default();
            member.failure = None;
            member.endpoint.set_unhealthy(false);
        }
        self.changed(known);
    }

    /// Marks an endpoint as about to stop, or not so any more: it gets nothing new while others are left. Returns whether
    /// that is news.
    pub fn set_draining(&self, address: SocketAddr, draining: bool) -> bool {
        let mut known = lock(&self.known);
        let Some(member) = known.present.get(&address) else {
            return false;
        };
        if member.endpoint.is_draining() == draining {
            return false;
        }
        member.endpoint.set_draining(draining);
        self.changed(&mut known);
        true
    }

    /// The probe is back.
    fn conclude(&self, endpoint: &Arc<Endpoint>, outcome: Outcome, now: Instant, random: u64) {
        let mut known = lock(&self.known);
        if !endpoint.is_ejected() {
            // Taken back meanwhile because others went; then this was an exchange like any other.
            return;
        }
        if outcome == Outcome::Success {
            self.take_back(&mut known, endpoint, now);
            self.changed(&mut known);
        } else {
            self.eject(&mut known, endpoint, Trip::Probe, now, random);
        }
    }

    fn eject(
        &self,
        known: &mut Known,
        endpoint: &Arc<Endpoint>,
        trip: Trip,
        now: Instant,
        random: u64,
    ) {
        let rules = self.rules.load();
        let set = self.set.load();
        let others = || {
            set.endpoints()
                .iter()
                .filter(|other| other.id != endpoint.id)
        };
        let others_out = others().filter(|other| other.is_ejected()).count();
        // The others may be out for other reasons: unhealthy, draining. The last one that is left is not ejected then either.
        let is_last = others().all(|other| other.is_out());
        let allowed = rules.allowed(set.endpoints().len());
        if known.of(endpoint).is_none() {
            // Gone from the membership. There it can do no harm, and must not count; but an ejection that was being
            // probed goes on, so that it does not come back as if well.
            if trip == Trip::Probe
                && let Some(gone) = known.gone_of(endpoint)
            {
                endpoint.eject(now + rules.eject(&mut gone.record, now, random));
            }
            return;
        }
        if others_out >= allowed || is_last {
            if trip == Trip::Probe {
                // It may not stay out, so it must not stay behind a probe that nobody will send.
                self.take_back(known, endpoint, now);
                return self.changed(known);
            }
            tracing::debug!(
                service = %self.service,
                endpoint = %endpoint.address,
                %trip,
                ejected = others_out,
                "endpoint fails but may not be ejected"
            );
            return;
        }
        let Some(member) = known.of(endpoint) else {
            return;
        };
        let time = rules.eject(&mut member.record, now, random);
        endpoint.eject(now + time);
        self.ejections.fetch_add(1, Relaxed);
        tracing::info!(
            service = %self.service,
            endpoint = %endpoint.address,
            %trip,
            seconds = time.as_secs_f64(),
            ejected = others_out + 1,
            of = set.endpoints().len(),
            "endpoint ejected"
        );
        self.changed(known);
    }

    fn take_back(&self, known: &mut Known, endpoint: &Arc<Endpoint>, now: Instant) {
        endpoint.recover(now);
        let rules = self.rules.load();
        if let Some(member) = known.of(endpoint) {
            rules.recovered(&mut member.record, now);
        } else if let Some(gone) = known.gone_of(endpoint) {
            rules.recovered(&mut gone.record, now);
        }
        tracing::info!(
            service = %self.service,
            endpoint = %endpoint.address,
            "endpoint returned"
        );
    }

    /// Takes back as many endpoints as are out beyond what is allowed, those first whose time is over first.
    fn readmit(&self, known: &mut Known, now: Instant) {
        let rules = self.rules.load();
        let set = self.set.load();
        let allowed = if rules.enabled() {
            rules.allowed(set.endpoints().len())
        } else {
            0
        };
        let mut out: Vec<_> = set.endpoints().iter().filter(|e| e.is_ejected()).collect();
        if out.len() > allowed {
            out.sort_by_key(|endpoint| match endpoint.state() {
                State::Ejected { until } => Some(until),
                _ => None,
            });
            let excess = out.len() - allowed;
            for endpoint in &out[..excess] {
                self.take_back(known, endpoint, now);
            }
        }
        self.changed(known);
    }

    /// The set of these endpoints that comes after the one that is there. Only one may be under way, and never under the
    /// lock of what is known.
    fn build(
        &self,
        _building: &MutexGuard<'_, ()>,
        balance: &balance::Policy,
        endpoints: Vec<Arc<Endpoint>>,
    ) -> EndpointSet {
        self.set.load().next(balance, endpoints, fastrand::u64(..))
    }

    fn publish(&self, known: &mut Known, set: EndpointSet) {
        // While it was built, endpoints may have been ejected or have begun to drain.
        set.recount();
        let before = self.set.swap(Arc::new(set));
        known.panic_picks += before.panic_picks();
        self.generation.fetch_add(1, Relaxed);
        self.renewed.notify_waiters();
    }

    /// An endpoint's state changed: counts again, and says so when it has come to the worst.
    fn changed(&self, known: &mut Known) {
        let set = self.set.load();
        set.recount();
        let panicking = set.is_panicking();
        if panicking != known.panicking {
            known.panicking = panicking;
            let (available, of) = (set.available(), set.endpoints().len());
            if panicking {
                known.panics += 1;
                tracing::warn!(service = %self.service, available, of, "too few endpoints are well, all are used");
            } else {
                tracing::info!(service = %self.service, available, of, "enough endpoints are well again");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is whole between any two statements; a panic elsewhere is no reason to stop steering.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// The record of an endpoint that is present.
    fn of(&mut self, endpoint: &Endpoint) -> Option<&mut Member> {
        self.present
            .get_mut(&endpoint.address)
            .filter(|member| member.endpoint.id == endpoint.id)
    }

    /// The record of an endpoint that is gone.
    fn gone_of(&mut self, endpoint: &Endpoint) -> Option<&mut Member> {
        self.gone
            .get_mut(&endpoint.address)
            .map(|gone| &mut gone.member)
            .filter(|member| member.endpoint.id == endpoint.id)
    }

    /// An address that was not there before; maybe an old acquaintance.
    fn arrive(&mut self, place: Place, now: Instant) -> Member {
        match self.gone.remove(&place.address) {
            Some(gone) if now.saturating_duration_since(gone.since) < REMEMBER_GONE => {
                // A record that was away for a moment is not a process that was started anew.
                if now.saturating_duration_since(gone.since) >= SLOW_START {
                    gone.member.endpoint.warm(now);
                }
                gone.member.endpoint.set_draining(false);
                gone.member.endpoint.set_place(place);
                gone.member
            }
            _ => {
                let endpoint = Endpoint::at(place);
                endpoint.warm(now);
                Member {
                    endpoint,
                    record: Record::default(),
                    streak: Streak::default(),
                    failure: None,
                }
            }
        }
    }

    /// Remembers those that left, within bounds.
    fn leave(&mut self, left: HashMap<SocketAddr, Member>, now: Instant) {
        let remembered = |gone: &Gone| now.saturating_duration_since(gone.since) < REMEMBER_GONE;
        self.gone.retain(|_, gone| remembered(gone));
        for (address, member) in left {
            self.gone.insert(address, Gone { member, since: now });
        }
        if self.gone.len() > MOST_GONE {
            // Those that were ejected are the reason to remember at all: they go last.
            let mut order: Vec<_> = self
                .gone
                .iter()
                .map(|(address, gone)| (gone.member.endpoint.is_ejected(), gone.since, *address))
                .collect();
            order.sort_unstable();
            let excess = order.len() - MOST_GONE;
            for (_, _, address) in &order[..excess] {
                self.gone.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
