//! A named set of endpoints that an exchange can be sent to, and what holds for every exchange with it.

pub mod breaker;
pub mod config;
pub(crate) mod connect;
pub mod limits;
pub mod members;
mod pool;
pub mod retry;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) use pool::Pool;

use crate::balance;
use crate::discovery::{Source, Status};
use crate::error::Error;
use crate::gate::{Gate, NO_LIMIT};
use crate::health::outlier;
use crate::identity::SpiffeId;
use crate::observe::EdgeCells;
use crate::reason::Reason;
use breaker::{Breaker, Pass};
use limits::Limits;
use members::Members;
use retry::{Budget, Policy};

/// The version of HTTP that an endpoint is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: by ALPN within the mesh, by prior knowledge without.
    Http2,
}

/// A cluster's configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// What it is called in the file.
    pub name: Arc<str>,
    /// Where its endpoints stand.
    pub source: Source,
    /// Its identity, when it is reached through its sidecars.
    pub mesh: Option<SpiffeId>,
    /// What its endpoints speak.
    pub speaks: Speaks,
    /// How an endpoint is chosen.
    pub balance: balance::Config,
    /// When an endpoint is left alone.
    pub outlier: outlier::Rules,
    /// How often an exchange is tried again.
    pub retry: Policy,
    /// From a request to the head of its answer, attempts and pauses included; anew with each piece of a body that had
    /// to be waited for.
    pub timeout: Duration,
    /// For a connection, its TLS handshake included.
    pub connect_timeout: Duration,
    /// How much may be under way.
    pub limits: Limits,
    /// When nothing is sent any more, where that may be.
    pub breaker: Option<breaker::Rules>,
}

/// A cluster at work. Shared by all cores; it outlives reloads that do not change it.
#[derive(Debug)]
pub struct Cluster {
    /// Unique in the process.
    pub id: u64,
    /// What it is called in the file.
    pub name: Arc<str>,
    /// It is the app beside us: no edge of the mesh leads there.
    pub is_local: bool,
    /// Its configuration.
    pub spec: Spec,
    /// Its endpoints.
    pub members: Members,
    /// What may be tried again, over all exchanges.
    pub budget: Arc<Budget>,
    /// How its discovery fares.
    pub discovery: Arc<Status>,
    /// What opens when nearly everything fails.
    pub breaker: Option<Arc<Breaker>>,
    /// Exchanges in flight.
    pub(crate) places: Arc<Gate>,
    /// Connections to all endpoints.
    pub(crate) connections: Arc<Gate>,
}

impl Cluster {
    /// With no endpoints yet.
    pub fn new(spec: Spec, is_local: bool) -> Arc<Self> {
        Self::succeeding(spec, is_local, None)
    }

    /// The same in place of one with another configuration: what is under way there counts here too, and what was spent
    /// there is spent.
    pub fn succeeding(spec: Spec, is_local: bool, old: Option<&Self>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let gate = |of: fn(&Self) -> &Arc<Gate>, most| match old.map(of) {
            Some(gate) => {
                gate.limit(most, spec.limits.waiting);
                Arc::clone(gate)
            }
            None => Gate::new(most, spec.limits.waiting),
        };
        let breaker = spec.breaker.map(|rules| {
            let same = old.and_then(|old| old.breaker.as_ref());
            match same.filter(|breaker| *breaker.rules() == rules) {
                Some(breaker) => Arc::clone(breaker),
                None => Breaker::new(Arc::clone(&spec.name), rules),
            }
        });
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: Arc::clone(&spec.name),
            is_local,
            members: Members::new(Arc::clone(&spec.name), spec.balance, spec.outlier.clone()),
            budget: old.map_or_else(Arc::default, |old| Arc::clone(&old.budget)),
            discovery: Arc::new(Status::new()),
            breaker,
            places: gate(|old| &old.places, spec.limits.in_flight),
            connections: gate(
                |old| &old.connections,
                spec.limits.connections.unwrap_or(NO_LIMIT),
            ),
            spec,
        })
    }

    /// Whether it is reached by mutual TLS.
    pub fn is_mesh(&self) -> bool {
        self.spec.mesh.is_some()
    }

    /// Exchanges in flight now.
    pub fn in_flight(&self) -> usize {
        self.places.inside()
    }

    /// Exchanges that wait for one in flight to end.
    pub fn waiting(&self) -> usize {
        self.places.waiting()
    }

    /// Past the breaker, where there is one.
    pub(crate) fn pass(&self, now: Instant) -> Result<Option<Pass>, Error> {
        let Some(breaker) = &self.breaker else {
            return Ok(None);
        };
        breaker.admit(now).map(Some).map_err(|wait| {
            let detail = format!(
                "nearly everything sent to {} has failed; it is tried again in {wait:?}",
                self.name
            );
            Error::new(Reason::CircuitOpen, detail).retry_after(wait)
        })
    }

    /// Why there is no endpoint, for people.
    pub(crate) fn why_empty(&self) -> String {
        let report = self.discovery.report();
        match report.last_error {
            Some(error) => format!("{} has no endpoints: {error}", self.name),
            None => format!("{} has no endpoints", self.name),
        }
    }
}

/// What one core keeps for a cluster.
#[derive(Debug)]
pub(crate) struct Wired {
    /// The counters of the edge that leads there; none for the app beside us.
    pub(crate) cells: Option<Arc<EdgeCells>>,
}

impl Wired {
    pub(crate) fn new(cells: Option<Arc<EdgeCells>>) -> Self {
        Self { cells }
    }
}
