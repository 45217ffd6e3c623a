//! Exchanges: from a request's head and body to an answer, whatever HTTP version either side speaks.
//!
//! `exchange` is the spine: it decides whether and where, in that order. `forward` makes the attempts, `relay` moves
//! the bodies, and `answer` is the one place where an error becomes a response.

pub(crate) mod answer;
mod entry;
pub(crate) mod exchange;
pub mod forward;
pub(crate) mod headers;
pub(crate) mod hop;
pub(crate) mod interim;
pub(crate) mod relay;
mod replay;
pub(crate) mod upgrade;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;

pub use hop::Settled;
pub use replay::Replayed;

use crate::core::Core;
use crate::identity::SpiffeId;
use crate::observe::ConnectionCells;
use crate::plan::{Plan, Site};

/// Who is on the other end of a downstream connection, and what the plan says about the listener it came in by.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) core: Rc<Core>,
    /// The client's address.
    pub(crate) address: SocketAddr,
    /// The client's identity, when it proved one.
    pub(crate) identity: Option<Arc<SpiffeId>>,
    /// The client's address as endpoints are told it, spelled once for all exchanges.
    pub(crate) forwarded_for: Option<HeaderValue>,
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
    /// Where its listener counts connections.
    pub(crate) connections: Arc<ConnectionCells>,
    current: RefCell<(Arc<Plan>, Arc<Site>)>,
}

impl Caller {
    pub(crate) fn new(
        core: Rc<Core>,
        plan: Arc<Plan>,
        site: Arc<Site>,
        address: SocketAddr,
        identity: Option<Arc<SpiffeId>>,
        tls: bool,
        connections: Arc<ConnectionCells>,
    ) -> Rc<Self> {
        let forwarded_for = HeaderValue::from_str(&address.ip().to_canonical().to_string()).ok();
        Rc::new(Self {
            core,
            forwarded_for,
            address,
            identity,
            tls,
            connections,
            current: RefCell::new((plan, site)),
        })
    }

    /// The listener as the plan of this moment has it. An exchange asks once, at its head, and keeps the answer: it
    /// never sees two plans. A listener that a new plan no longer has stays as it was for its last connections.
    pub(crate) fn site(&self) -> Arc<Site> {
        let plan = self.core.plan();
        let mut current = self.current.borrow_mut();
        if !Arc::ptr_eq(&current.0, &plan) {
            if let Some(site) = plan.site(&current.1.name) {
                current.1 = Arc::clone(site);
            }
            current.0 = plan;
        }
        Arc::clone(&current.1)
    }
}

#[cfg(test)]
mod tests;
