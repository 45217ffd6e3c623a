//! Where an endpoint is, and what discovery was told about it.

use std::net::SocketAddr;
use std::sync::Arc;

/// One address of a service as a source of endpoints names it. What is known *about* it is on the
/// [`Endpoint`](super::Endpoint).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its tier: a lower one is used first (RFC 2782, priority). 0 unless the source says otherwise.
    pub priority: u16,
    /// Its share within its tier (RFC 2782, weight); 0 takes no new exchanges while others do. 1 unless the source says
    /// otherwise.
    pub weight: u16,
    /// The zone it runs in, where the source knows.
    pub zone: Option<Arc<str>>,
}

impl Place {
    /// An address of which nothing else is known.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            priority: 0,
            weight: 1,
            zone: None,
        }
    }
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}
