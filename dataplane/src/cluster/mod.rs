//! A named set of endpoints that an exchange can be sent to, and what holds for every exchange with it.

pub mod breaker;
pub mod config;
pub(crate) mod connect;
pub(crate) mod departure;
pub mod dials;
pub mod limits;
pub mod members;
pub mod mtls;
mod pool;
pub(crate) mod probing;
pub mod retry;
pub(crate) mod vanished;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::uri::Authority;

pub(crate) use pool::Pool;

use crate::balance::{self, sticky::Sticky};
use crate::discovery::{Source, Status};
use crate::error::Error;
use crate::gate::{Gate, NO_LIMIT};
use crate::health::{Checks, outlier};
use crate::identity::SpiffeId;
use crate::observe::EdgeCells;
use crate::reason::Reason;
use breaker::{Breaker, Pass};
use limits::Limits;
use members::Members;
use retry::{Budget, Policy};

/// What an endpoint is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: by ALPN within the mesh, by prior knowledge without.
    Http2,
    /// Anything: its bytes are not looked at.
    Tcp,
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
    /// What CONNECT tunnels to it ask for: host and port, of a service that is not HTTP.
    pub authority: Option<Authority>,
    /// What its apps speak: its endpoints themselves, or what is behind them when they are sidecars.
    pub app: Speaks,
    /// How an endpoint is chosen.
    pub balance: balance::Policy,
    /// How sessions are kept at an endpoint, where they are.
    pub sticky: Option<Arc<Sticky>>,
    /// When an endpoint is left alone.
    pub outlier: outlier::Rules,
    /// How endpoints are probed, where they are.
    pub health: Option<Checks>,
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

impl Spec {
    /// What its endpoints speak. Sidecars speak HTTP/2 to each other, whatever the app speaks.
    pub fn speaks(&self) -> Speaks {
        match self.mesh {
            Some(_) => Speaks::Http2,
            None => self.app,
        }
    }
}

/// A cluster at work. Shared by all cores; it outlives reloads that do not change it. What a reload that does change it
/// must not lose stands behind pointers, and goes on in its successor.
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
    pub members: Arc<Members>,
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
        let most = spec.limits.connections.unwrap_or(NO_LIMIT);
        Arc::new(Self {
            id: next_id(),
            name: Arc::clone(&spec.name),
            is_local,
            members: Arc::new(members(&spec)),
            budget: Arc::new(Budget::new()),
            discovery: Arc::new(Status::new()),
            breaker: breaker(&spec),
            places: Gate::new(spec.limits.in_flight, spec.limits.waiting),
            connections: Gate::new(most, spec.limits.waiting),
            spec,
        })
    }

    /// The same service under another configuration. What is under way goes on counting, what may be tried again is not
    /// granted anew, and what is known of its endpoints stays known, their open connections included: those are kept by
    /// endpoint. Only where endpoints are now somebody else, or spoken to otherwise, there are new ones at the same
    /// places, until discovery says more.
    ///
    /// What the new configuration says of balancing and ejecting has to be told to the members once it is in force.
    pub fn succeed(&self, spec: Spec, now: Instant) -> Arc<Self> {
        let stays = self.spec.mesh == spec.mesh && self.spec.speaks() == spec.speaks();
        let members = if stays {
            Arc::clone(&self.members)
        } else {
            let members = members(&spec);
            if self.spec.mesh == spec.mesh {
                let before = self.members.load();
                let places: Vec<_> = before
                    .endpoints()
                    .iter()
                    .map(|endpoint| endpoint.place().as_ref().clone())
                    .collect();
                members.apply(places, now);
            }
            Arc::new(members)
        };
        let discovery = if self.spec.source == spec.source {
            Arc::clone(&self.discovery)
        } else {
            Arc::new(Status::new())
        };
        Arc::new(Self {
            id: if stays { self.id } else { next_id() },
            name: Arc::clone(&spec.name),
            is_local: self.is_local,
            members,
            budget: Arc::clone(&self.budget),
            discovery,
            breaker: match &self.breaker {
                Some(breaker) if spec.breaker == Some(*breaker.rules()) => {
                    Some(Arc::clone(breaker))
                }
                _ => breaker(&spec),
            },
            places: Arc::clone(&self.places),
            connections: Arc::clone(&self.connections),
            spec,
        })
    }

    /// The limits of this configuration hold from now on, for what is under way too. To be called once it is in force. A limit
    /// per endpoint, or on connections, where there was none counts what begins from now on.
    pub(crate) fn set_limits(&self) {
        let limits = &self.spec.limits;
        self.places.limit(limits.in_flight, limits.waiting);
        self.connections
            .limit(limits.connections.unwrap_or(NO_LIMIT), limits.waiting);
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

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn members(spec: &Spec) -> Members {
    Members::new(
        Arc::clone(&spec.name),
        spec.balance.clone(),
        spec.outlier.clone(),
    )
}

fn breaker(spec: &Spec) -> Option<Arc<Breaker>> {
    spec.breaker
        .map(|rules| Breaker::new(Arc::clone(&spec.name), rules))
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
