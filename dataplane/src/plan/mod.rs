//! The compiled configuration that one exchange runs under: immutable, swapped whole.
//!
//! Programs build a [`Plan`] from their part of the file; the data path only reads it. What a reload takes over from the
//! plan before (clusters with their endpoints, connections and health) is in [`carry`], and how connections follow the plans in [`current`].

pub mod capture;
pub mod carry;
pub mod current;
pub mod services;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use http::header::{HeaderMap, HeaderName};
use http::uri::Authority;
use weft_runtime::config::units::Interval;
use weft_runtime::config::{Path, Problems};

use crate::authn::Authenticator;
use crate::authz::Rules;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::head::Head;
use crate::http1::Limits;
use crate::limit::{Limiter, Subject};
use crate::principal::Principal;
use crate::reason::Reason;
use crate::route::Table;
use crate::trusted::Trusted;
use capture::Capture;

/// What holds now.
#[derive(Debug)]
pub struct Plan {
    /// Grows with each plan.
    pub generation: u64,
    sites: Vec<Arc<Site>>,
    clusters: HashSet<u64, RandomState>,
    rules: HashSet<u64, RandomState>,
}

impl Plan {
    /// Of these listeners.
    pub fn new(generation: u64, sites: Vec<Arc<Site>>) -> Self {
        Self {
            generation,
            clusters: rules(&sites).map(|rule| rule.target.id).collect(),
            rules: rules(&sites).map(|rule| rule.id).collect(),
            sites,
        }
    }

    /// The listeners.
    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// Whether connections are redirected to any of them.
    pub(crate) fn captures(&self) -> bool {
        self.sites.iter().any(|site| site.capture.is_some())
    }

    /// The listener of this name.
    pub fn site(&self, name: &str) -> Option<&Arc<Site>> {
        self.sites.iter().find(|site| &*site.name == name)
    }

    /// The cluster of this name, where a rule leads to it.
    pub(crate) fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        rules(&self.sites)
            .map(|rule| &rule.target)
            .find(|target| &*target.name == name)
    }

    pub(crate) fn has_cluster(&self, id: u64) -> bool {
        self.clusters.contains(&id)
    }

    pub(crate) fn has_rule(&self, id: u64) -> bool {
        self.rules.contains(&id)
    }
}

/// Every rule by which exchanges and connections may go.
fn rules(sites: &[Arc<Site>]) -> impl Iterator<Item = &Arc<Rule>> {
    sites.iter().flat_map(|site| {
        let captured = site.capture.iter().flat_map(Capture::rules);
        site.routes
            .targets()
            .chain(site.opaque.rule())
            .chain(captured)
    })
}

/// How a listener's connections begin.
#[derive(Debug, Clone)]
pub enum Door {
    /// In plaintext; HTTP/2 by prior knowledge.
    Plain,
    /// With TLS, for anybody, as it is at the moment: certificates are renewed under the plan in force.
    Tls(Arc<ArcSwap<rustls::ServerConfig>>),
    /// With mutual TLS by our identity, for members of the mesh.
    Mesh,
}

/// What happens to connections whose bytes are none of ours to understand.
#[derive(Debug, Clone, Default)]
pub enum Opaque {
    /// There are none: this listener takes HTTP.
    #[default]
    Refused,
    /// Every connection is one, and goes to this rule's service.
    All(Arc<Rule>),
    /// They come in CONNECT tunnels that ask for this place, and go to this rule's service.
    Tunnels {
        /// Host and port, as callers know the service.
        to: Authority,
        /// Who may, and where to.
        rule: Arc<Rule>,
    },
}

impl Opaque {
    /// The rule of those that there are.
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        match self {
            Self::Refused => None,
            Self::All(rule) | Self::Tunnels { rule, .. } => Some(rule),
        }
    }
}

/// A listener and what happens to exchanges that come in by it.
#[derive(Debug)]
pub struct Site {
    /// Unique in the plan; connections find their listener in the next plan by it.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// How connections begin.
    pub door: Door,
    /// What happens to which request.
    pub routes: Table<Arc<Rule>>,
    /// What happens to connections that are not HTTP.
    pub opaque: Opaque,
    /// What happens to connections that were redirected here, where that may be.
    pub capture: Option<Capture>,
    /// Why a request that no rule matches is refused.
    pub unmatched: Reason,
    /// The service that this process speaks for.
    pub service: Arc<str>,
    /// Our own identity, as it is told to the app with the caller's.
    pub identity: Arc<str>,
    /// Whether callers are members of the mesh, whose identity the app is told.
    pub tells_identity: bool,
    /// Under which names callers are counted.
    pub callers: Arc<services::Callers>,
    /// Whether clients are outsiders: what they say of where a request comes from is replaced, and routes are counted.
    pub is_edge: bool,
    /// Whether clients are strangers, whose uploads have to keep a pace. The app and members of the mesh may take their time.
    pub paces_uploads: bool,
    /// Whose word for where a request comes from is taken all the same.
    pub trusted: Trusted,
    /// Times.
    pub timeouts: Timeouts,
    /// Bounds on HTTP/1.1 messages.
    pub http1: Limits,
    /// Bounds on HTTP/2 connections.
    pub http2: Http2,
    /// Whether it stays open until the other listeners have drained: it is the app's way out, and an app that finishes
    /// what came in by the others needs it.
    pub outlasts: bool,
}

impl Site {
    /// The rule for an exchange that no route matches, on a connection that was redirected here from `original`.
    pub(crate) fn otherwise(
        &self,
        original: Option<SocketAddr>,
        head: &Head,
    ) -> Result<&Arc<Rule>, Error> {
        match (&self.capture, original) {
            (Some(capture), Some(original)) => {
                capture.rule(original, head.host(), SystemTime::now())
            }
            _ => Err(self.unmatched(head)),
        }
    }

    /// The rule for a connection whose bytes are not looked at.
    pub(crate) fn connection_rule(&self, original: Option<SocketAddr>) -> Option<&Arc<Rule>> {
        match (&self.opaque, &self.capture, original) {
            (Opaque::All(rule), _, _) => Some(rule),
            (_, Some(capture), Some(original)) => {
                capture.connection_rule(original, SystemTime::now())
            }
            _ => None,
        }
    }

    /// Until when plaintext is let in, of a connection that was redirected here from `original`, where it is for a time.
    pub(crate) fn permitted_until(&self, original: SocketAddr) -> Option<SystemTime> {
        match &self.capture {
            Some(Capture::Inbound(inbound)) => {
                let permit = inbound.ports.get(&original.port());
                permit.map(|permit| permit.until)
            }
            _ => None,
        }
    }

    pub(crate) fn unmatched(&self, head: &Head) -> Error {
        let detail = match self.unmatched {
            Reason::NoService => format!("`{}` is not the name of a service", head.host()),
            _ => format!(
                "no route matches {} {}{}",
                head.method,
                head.host(),
                head.path.path()
            ),
        };
        Error::new(self.unmatched, detail)
    }
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the first bytes of a connection that may be anything: whoever says nothing until then waits for the other side
    /// to speak first.
    pub detection: Duration,
    /// For a head, from its first byte.
    pub head: Duration,
    /// Between two exchanges.
    pub idle: Duration,
    /// Without a byte of a body moving.
    pub stream_idle: Duration,
    /// For a reader to take enough of what waits for it (`http/unread.rs`).
    pub unread: Duration,
    /// Without a byte in a tunnel.
    pub tunnel_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            detection: Duration::from_millis(200),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stream_idle: Duration::from_secs(300),
            unread: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(3600),
        }
    }
}

/// The longest time that a reader may be given.
const MOST_UNREAD: Interval = Interval::seconds(3600);

impl Timeouts {
    /// With so long for readers, as the file has it at `place`.
    #[must_use]
    pub fn with_unread(self, unread: Interval, place: &Path, problems: &mut Problems) -> Self {
        if unread > MOST_UNREAD || unread < Interval::seconds(1) {
            problems.at(
                place,
                "a reader is given between a second and an hour",
                "write a duration such as `60s`",
            );
        }
        Self {
            unread: unread.as_duration(),
            ..self
        }
    }
}

/// Bounds of an HTTP/2 connection.
#[derive(Debug, Clone, Copy)]
pub struct Http2 {
    /// Exchanges at a time.
    pub streams: u32,
    /// What the peer may send of one body before we have passed it on, in bytes.
    pub stream_window: u32,
    /// The same once `crowded` bytes are held on the connection for readers that do not come for them.
    pub narrow_window: u32,
    /// See `narrow_window`.
    pub crowded: usize,
    /// What the peer may send of all bodies while readers keep up: more than `crowded`, so that none waits for another's
    /// reader until the next line holds.
    pub connection_window: u32,
    /// The same once `crowded` bytes are held: room for the narrow windows of all streams, besides.
    pub crowded_window: u32,
    /// What is held of one body that the peer does not take, in bytes, whatever its own windows allow.
    pub send_buffer: usize,
}

impl Http2 {
    /// For anybody: little is held for each stream.
    pub const EDGE: Self = Self {
        streams: 100,
        stream_window: 64 * 1024,
        narrow_window: 16 * 1024,
        crowded: 1024 * 1024,
        connection_window: 2 * 1024 * 1024,
        crowded_window: 2 * 1024 * 1024 + 100 * 16 * 1024,
        send_buffer: 32 * 1024,
    };
    /// For members of the mesh, whose one connection carries everything. Wide windows, because a narrow one stops a fast
    /// peer at every round trip.
    pub const MESH: Self = Self {
        streams: 1000,
        stream_window: 1024 * 1024,
        narrow_window: 16 * 1024,
        crowded: 8 * 1024 * 1024,
        connection_window: 64 * 1024 * 1024,
        crowded_window: 64 * 1024 * 1024,
        send_buffer: 16 * 1024,
    };
}

/// What the requests of a rule are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// Traffic.
    #[default]
    Traffic,
    /// Probes of the app's health by its callers' proxies: passed on like traffic, and not counted as such.
    Health,
    /// Probes that only ask whether the app takes connections. It is connected to and nothing more.
    Knock,
}

/// What happens to a request that matched.
#[derive(Debug)]
pub struct Rule {
    /// Unique in the process.
    pub id: u64,
    /// For counters and logs: where in the file it stands, never a raw path.
    pub name: Arc<str>,
    /// How callers prove who they are, where that is asked.
    pub authn: Option<Arc<Authenticator>>,
    /// Which members of the mesh may do this.
    pub authz: Arc<Rules>,
    /// How often.
    pub limits: Vec<Metered>,
    /// Where it goes.
    pub target: Arc<Cluster>,
    /// What it is.
    pub purpose: Purpose,
}

impl Rule {
    /// A number that no other rule of this process has.
    pub fn next_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

/// A rate limit where it applies.
#[derive(Debug)]
pub struct Metered {
    /// The limit; others may share it.
    pub limiter: Arc<Limiter>,
    /// The route, for limits that count by it.
    pub route: Arc<str>,
}

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl Metered {
    /// Takes a token, and says in `extra` what is left.
    pub(crate) fn admit(
        &self,
        principal: &Principal,
        address: std::net::IpAddr,
        headers: &HeaderMap,
        now: Instant,
        extra: &mut HeaderMap,
    ) -> Result<(), Error> {
        let subject = Subject {
            route: &self.route,
            client: address,
            principal,
            headers,
        };
        let decision = self.limiter.check(self.limiter.key(&subject), now);
        let (limit, policy) = self.limiter.headers(&decision);
        extra.append(RATE_LIMIT, limit);
        extra.append(RATE_LIMIT_POLICY, policy);
        if decision.allowed {
            Ok(())
        } else {
            Err(self.limiter.refusal(&decision))
        }
    }
}
