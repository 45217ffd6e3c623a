//! Which endpoint takes an exchange.
//!
//! A [`Picker`] is a policy over one group of endpoints. It is built from one membership and thrown away with it, so it
//! needs no locks and no rebuilding; what must outlive it (load, latency, health) is on the [`Endpoint`]s. The
//! [`EndpointSet`] adds what all policies have in common: the panic threshold, the single probe, sessions that stay where
//! they are, endpoints that are to take nothing new, and, where a membership has tiers or zones, how much each of these
//! gets.
//!
//! To add a policy: a file here, a name in [`config`] and an arm in `picker`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::endpoint::{Endpoint, Family, InFlight};

pub mod config;
mod cookie;
mod dice;
mod group;
mod hashed;
mod ip_hash;
pub mod key;
mod least_request;
mod least_response_time;
mod maglev;
mod random;
mod ring;
mod round_robin;
mod smooth;
pub mod sticky;
pub mod tiers;

use config::Choice;
pub use config::{Config, Policy};
use dice::Dice;
use group::Group;
use hashed::Hashed;
#[cfg(test)]
pub(crate) use least_request::SCAN;
use tiers::{Grant, Tiers};

/// What a policy may look at besides the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Ids of endpoints where this exchange has failed already; avoided while others are left.
    pub tried: &'a [u64],
    /// Addresses of this family have not answered this exchange; avoided while others are left.
    pub shuns: Option<Family>,
    /// The time of the decision.
    pub now: Instant,
    /// The dice.
    pub random: u64,
    /// The hash of what the exchange is kept together by, where the policy asks for that ([`Policy::key`]).
    pub key: Option<u64>,
    /// Where the session is that the exchange belongs to.
    pub session: Option<&'a SocketAddr>,
}

/// Which endpoints are to be considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Among {
    /// Only those that are available now; else all, whatever their state.
    pub available: bool,
    /// Only those that this exchange has not tried.
    pub untried: bool,
    /// Only those that there is likely to be a way to.
    pub reachable: bool,
}

impl Among {
    /// In the order in which they are tried. When nothing is available right now although half should be (all the rest is
    /// being probed, say), a used endpoint is better than none. The first of each is for exchanges that shun a family.
    const USUALLY: [Self; 5] = [
        Self::of(true, true, true),
        Self::of(true, true, false),
        Self::of(true, false, false),
        Self::of(false, true, false),
        Self::of(false, false, false),
    ];
    const IN_PANIC: [Self; 3] = [
        Self::of(false, true, true),
        Self::of(false, true, false),
        Self::of(false, false, false),
    ];

    const fn of(available: bool, untried: bool, reachable: bool) -> Self {
        Self {
            available,
            untried,
            reachable,
        }
    }

    /// Whether an endpoint is to be considered.
    pub fn fits(self, endpoint: &Endpoint, ask: &Ask<'_>) -> bool {
        (!self.available || endpoint.is_available(ask.now))
            && (!self.untried || !ask.tried.contains(&endpoint.id))
            && (!self.reachable || ask.shuns != Some(endpoint.family()))
    }
}

/// A policy over one group of endpoints.
pub trait Picker: Send + Sync + std::fmt::Debug {
    /// The endpoint for this exchange: one that is to be considered, and none only if there is none.
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>>;
}

/// The policy of this name over these endpoints. `seed` is for what is to differ between processes.
fn picker(choice: Choice, group: Group, seed: u64) -> Box<dyn Picker> {
    match choice {
        Choice::LeastRequest => Box::new(least_request::LeastRequest::new(group, seed)),
        Choice::RoundRobin => Box::new(round_robin::RoundRobin::new(group, seed)),
        Choice::Random => Box::new(random::Random::new(group)),
        Choice::LeastResponseTime => Box::new(least_response_time::LeastResponseTime::new(group)),
        Choice::IpHash { max_load } => ip_hash::picker(group, max_load),
        Choice::Maglev { max_load, size } => {
            let table = maglev::Maglev::new(&group, size);
            Box::new(Hashed::new(group, table, max_load))
        }
        Choice::Ring { max_load } => {
            let table = ring::Ring::new(&group);
            Box::new(Hashed::new(group, table, max_load))
        }
    }
}

/// One membership of a service: its endpoints at one time, and the policy over them.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Arc<[Arc<Endpoint>]>,
    shape: Shape,
    /// Over those that are to take nothing new while others do (weight 0).
    reserve: Option<Box<dyn Picker>>,
    /// How many are neither ejected, nor draining, nor unhealthy by their probes. Kept here because a pick must not count them.
    available: AtomicUsize,
    panic_picks: AtomicU64,
}

/// How a membership is divided.
#[derive(Debug)]
enum Shape {
    /// Not at all, as nearly always.
    Whole(Box<dyn Picker>),
    /// By tiers or zones.
    Divided(Box<Tiers>),
}

impl EndpointSet {
    /// The set of these endpoints under this policy. `seed` is for what is to differ between processes.
    pub fn new(policy: &Policy, endpoints: Vec<Arc<Endpoint>>, seed: u64) -> Self {
        Self::after(policy, endpoints, seed, &[])
    }

    /// The set of these endpoints, which takes this one's place: load that was moved between tiers stays moved.
    #[must_use]
    pub fn next(&self, policy: &Policy, endpoints: Vec<Arc<Endpoint>>, seed: u64) -> Self {
        let before = match (&self.shape, self.endpoints.first()) {
            (Shape::Divided(tiers), _) => tiers.grants(),
            (Shape::Whole(_), Some(first)) => vec![(first.place().priority, Grant::ALL)],
            (Shape::Whole(_), None) => Vec::new(),
        };
        Self::after(policy, endpoints, seed, &before)
    }

    fn after(
        policy: &Policy,
        endpoints: Vec<Arc<Endpoint>>,
        seed: u64,
        before: &[(u16, Grant)],
    ) -> Self {
        let endpoints: Arc<[_]> = endpoints.into();
        let (none, some): (Vec<_>, Vec<_>) = endpoints
            .iter()
            .cloned()
            .partition(|endpoint| endpoint.place().weight == 0);
        // When nobody has a weight, nobody is less than the others.
        let (active, reserve): (Arc<[_]>, _) = if none.is_empty() || some.is_empty() {
            (Arc::clone(&endpoints), None)
        } else {
            (some.into(), Some(none))
        };
        let of = |endpoints| {
            picker(
                policy.choice,
                Group::new(endpoints, policy.slow_start),
                seed,
            )
        };
        let shape = match Tiers::new(policy, &active, seed, before) {
            Some(tiers) => Shape::Divided(Box::new(tiers)),
            None => Shape::Whole(of(active)),
        };
        let set = Self {
            endpoints,
            shape,
            reserve: reserve.map(|endpoints| of(endpoints.into())),
            available: AtomicUsize::new(0),
            panic_picks: AtomicU64::new(0),
        };
        set.recount();
        set
    }

    /// All endpoints, available or not, in the order of their addresses.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// How many are neither ejected, nor draining, nor unhealthy by their probes.
    pub fn available(&self) -> usize {
        self.available.load(Relaxed)
    }

    /// Whether so few are available (under half, of every tier) that sparing the others would only crush these: all are
    /// used then.
    pub fn is_panicking(&self) -> bool {
        match &self.shape {
            Shape::Whole(_) => 2 * self.available() < self.endpoints.len(),
            Shape::Divided(tiers) => tiers.is_panicking(),
        }
    }

    /// How many picks were made while panicking.
    pub fn panic_picks(&self) -> u64 {
        self.panic_picks.load(Relaxed)
    }

    /// Counts the available ones again; to be called after an endpoint's state changed.
    pub fn recount(&self) {
        let available = self.endpoints.iter().filter(|e| !e.is_out()).count();
        self.available.store(available, Relaxed);
        if let Shape::Divided(tiers) = &self.shape {
            tiers.recount();
        }
    }

    /// Keeps the next set of a membership with tiers from being made, for as long as this is held.
    #[cfg(test)]
    pub(crate) fn hold_next(&self) -> Option<std::sync::MutexGuard<'_, impl Sized>> {
        match &self.shape {
            Shape::Whole(_) => None,
            Shape::Divided(tiers) => Some(tiers.hold()),
        }
    }

    /// The endpoint for an exchange. [`EndpointSet::begin`] is what the data path wants: it picks and occupies in one go.
    pub fn pick(&self, ask: &Ask<'_>) -> Option<&Arc<Endpoint>> {
        let ways = if self.is_panicking() {
            self.panic_picks.fetch_add(1, Relaxed);
            &Among::IN_PANIC[..]
        } else {
            &Among::USUALLY[..]
        };
        let ways = &ways[usize::from(ask.shuns.is_none())..];
        if let Some(address) = ask.session
            && let Some(endpoint) = self.at(address).filter(|e| ways[0].fits(e, ask))
        {
            return Some(endpoint);
        }
        ways.iter().find_map(|&among| {
            let picked = match &self.shape {
                Shape::Whole(picker) => picker.pick(ask, among),
                Shape::Divided(tiers) => tiers.pick(ask, among),
            };
            picked.or_else(|| self.reserve.as_ref()?.pick(ask, among))
        })
    }

    /// The endpoint at this address.
    fn at(&self, address: &SocketAddr) -> Option<&Arc<Endpoint>> {
        let found = self
            .endpoints
            .binary_search_by(|endpoint| endpoint.address.cmp(address));
        found.ok().map(|index| &self.endpoints[index])
    }

    /// Picks an endpoint and begins an exchange there. `None` only when the set is empty.
    pub fn begin(&self, ask: &Ask<'_>) -> Option<InFlight> {
        let mut ask = *ask;
        let mut dice = Dice::new(ask.random);
        // Another core may take the one probe between the look and the claim; then this endpoint is not available any
        // more and the next look finds another one.
        for _ in 0..3 {
            let endpoint = self.pick(&ask)?;
            if let Some(exchange) = endpoint.admit(ask.now) {
                return Some(exchange);
            }
            if self.is_panicking() {
                return Some(endpoint.begin());
            }
            ask.random = dice.next();
        }
        self.pick(&ask).map(Endpoint::begin)
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
