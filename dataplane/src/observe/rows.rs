//! What is true now rather than counted: endpoints and our certificate. Whoever knows them hands rows to the registry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// One endpoint of a service, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// The service that it belongs to.
    pub service: Arc<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it is picked.
    pub state: EndpointState,
    /// What the probes of its health say: `unknown`, `passing` or `failing`. Nothing where nobody probes.
    pub health: Option<&'static str>,
    /// How the last probe failed, if it did.
    pub failure: Option<Arc<str>>,
    /// How often it was ejected.
    pub ejections: u64,
    /// Exchanges in flight there, ours only.
    pub in_flight: u64,
}

/// Whether an endpoint is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointState {
    /// It takes traffic.
    Healthy,
    /// It failed too often and takes none for a while.
    Ejected,
    /// One exchange tries whether it is well again.
    Probing,
    /// It is about to stop and takes nothing new.
    Draining,
    /// It fails the probes of its health.
    Unhealthy,
}

impl EndpointState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Healthy,
        Self::Ejected,
        Self::Probing,
        Self::Draining,
        Self::Unhealthy,
    ];

    /// The label, and the word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Ejected => "ejected",
            Self::Probing => "probing",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// The endpoints of one service, all in all, as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// Which.
    pub service: Arc<str>,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// How many of them carry it: neither ejected nor unhealthy nor draining.
    pub available: usize,
    /// Whether these are under half, so that all are used.
    pub panicking: bool,
    /// How often it came to that.
    pub panics: u64,
    /// Exchanges that were given to any endpoint for that reason.
    pub panic_picks: u64,
    /// Whether endpoints are probed.
    pub is_probed: bool,
    /// Probes that found an endpoint well.
    pub probes_passed: u64,
    /// Probes that did not.
    pub probes_failed: u64,
    /// What became of sessions and how often, where they are kept.
    pub sessions: Option<[(&'static str, u64); 4]>,
    /// Exchanges in flight.
    pub in_flight: u64,
    /// Exchanges that wait because there are as many in flight as there may be.
    pub waiting: u64,
    /// The state of its breaker and how often that has opened, where there is one.
    pub breaker: Option<(&'static str, u64)>,
}

/// How the source of a service's endpoints is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    /// The service.
    pub service: Arc<str>,
    /// Whether its endpoints, or that there are none, are known at all.
    pub known: bool,
    /// How many it names.
    pub endpoints: usize,
    /// Whether what is in use could not be confirmed when it was due.
    pub stale: bool,
    /// When it answered last.
    pub last_success: Option<Instant>,
    /// What went wrong last, until the next good answer.
    pub error: Option<String>,
}

/// The keys of a token issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySetRow {
    /// The `authn` that goes by them.
    pub authn: Arc<str>,
    /// How many there are.
    pub keys: usize,
    /// Attempts to have them that failed since the last one that did not.
    pub failures: u32,
    /// How long ago they were had or confirmed last, if ever.
    pub age: Option<Duration>,
}

/// A rate limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitRow {
    /// Its name.
    pub limit: Arc<str>,
    /// How many keys it remembers.
    pub keys: usize,
    /// How many it has forgotten because there were too many.
    pub forgotten: u64,
}

/// The certificate that a public listener shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerCertificateRow {
    /// The listener.
    pub listener: Arc<str>,
    /// When it ends; unknown where the certificate could not be read so far.
    pub not_after: Option<SystemTime>,
    /// What is wrong with the files as they are now, while an older certificate is shown.
    pub problem: Option<Arc<str>>,
}

/// A port of the app on which plaintext is let in for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PermitRow {
    /// The port.
    pub port: u16,
    /// When that ends.
    pub until: SystemTime,
}

/// Our certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRow {
    /// Who it says we are.
    pub spiffe_id: Arc<str>,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Its serial number in hexadecimal.
    pub serial: Arc<str>,
    /// Renewals since the process started.
    pub renewals: u64,
    /// Renewals that failed since the process started.
    pub renewal_failures: u64,
}
