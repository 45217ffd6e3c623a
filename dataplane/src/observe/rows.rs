//! What is true now rather than counted: endpoints and our certificate. Whoever knows them hands rows to the registry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// One endpoint of a service, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// The service that it belongs to.
    pub service: Arc<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it is picked.
    pub state: EndpointState,
    /// How often it was ejected.
    pub ejections: u64,
    /// Exchanges in flight there, ours only.
    pub in_flight: u64,
}

/// What is under way with one service, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// Which.
    pub service: Arc<str>,
    /// Exchanges in flight.
    pub in_flight: u64,
    /// Exchanges that wait because there are as many in flight as there may be.
    pub waiting: u64,
    /// The state of its breaker and how often that has opened, where there is one.
    pub breaker: Option<(&'static str, u64)>,
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
}

impl EndpointState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Ejected, Self::Probing, Self::Draining];

    /// The label, and the word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Ejected => "ejected",
            Self::Probing => "probing",
            Self::Draining => "draining",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
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
