//! Which endpoint takes an exchange.
//!
//! A [`Picker`] is built from one membership and thrown away with it, so it needs no locks and no rebuilding; what must
//! outlive it (load, health) is on the [`Endpoint`]s. The [`EndpointSet`] adds what all policies have in common: the
//! panic threshold and the single probe.
//!
//! To add a policy: a file here, a variant of [`Config`] and an arm in [`EndpointSet::new`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, InFlight};

mod least_request;

pub use least_request::LeastRequest;

/// `balance:` of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Balance")]
pub enum Config {
    /// The less loaded of two random endpoints; the least loaded of all where there are few.
    #[default]
    LeastRequest,
}

/// What a policy may look at besides the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Ids of endpoints where this exchange has failed already; avoided while others are left.
    pub tried: &'a [u64],
    /// The time of the decision.
    pub now: Instant,
    /// The dice.
    pub random: u64,
}

/// Which endpoints are to be considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Those that are available now.
    Available,
    /// All, whatever their state: the panic threshold.
    All,
}

/// A policy, built for one membership.
pub trait Picker: Send + Sync + std::fmt::Debug {
    /// The endpoint for this exchange: one that was not tried while there is one, and none only if there is none at all.
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>>;
}

/// One membership of a service: its endpoints at one time, and the policy over them.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Arc<[Arc<Endpoint>]>,
    picker: Box<dyn Picker>,
    /// How many are neither ejected nor draining. Kept here because a pick must not count them.
    available: AtomicUsize,
    panic_picks: AtomicU64,
}

impl EndpointSet {
    /// The set of these endpoints under this policy.
    pub fn new(config: Config, endpoints: Vec<Arc<Endpoint>>) -> Self {
        let endpoints: Arc<[_]> = endpoints.into();
        let picker: Box<dyn Picker> = match config {
            Config::LeastRequest => Box::new(LeastRequest::new(Arc::clone(&endpoints))),
        };
        let set = Self {
            endpoints,
            picker,
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

    /// How many are neither ejected nor draining.
    pub fn available(&self) -> usize {
        self.available.load(Relaxed)
    }

    /// Whether so few are available (under half) that sparing the others would only crush these: all are used then.
    pub fn is_panicking(&self) -> bool {
        2 * self.available() < self.endpoints.len()
    }

    /// How many picks were made while panicking.
    pub fn panic_picks(&self) -> u64 {
        self.panic_picks.load(Relaxed)
    }

    /// Counts the available ones again; to be called after an endpoint's state changed.
    pub fn recount(&self) {
        let available = self.endpoints.iter().filter(|e| !e.is_out()).count();
        self.available.store(available, Relaxed);
    }

    /// The endpoint for an exchange. [`EndpointSet::begin`] is what the data path wants: it picks and occupies in one go.
    pub fn pick(&self, ask: &Ask<'_>) -> Option<&Arc<Endpoint>> {
        if self.is_panicking() {
            self.panic_picks.fetch_add(1, Relaxed);
            return self.picker.pick(ask, Among::All);
        }
        self.picker
            .pick(ask, Among::Available)
            // Nothing is available right now although half should be (all the rest is being probed, say): a used
            // endpoint is better than none.
            .or_else(|| self.picker.pick(ask, Among::All))
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

/// As many draws as a decision needs from the one random number it is handed (splitmix64).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `bound` − 1, each as likely as the others (to within 2⁻³²). `bound` must not be zero.
    fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// True in `share` of `whole` cases.
    fn chance(&mut self, share: u32, whole: u32) -> bool {
        self.below(whole as usize) < share as usize
    }
}

#[cfg(test)]
mod tests;
