//! Exchanges: from a request's head and body to an answer, whatever HTTP version either side speaks.
//!
//! `exchange` is the spine: it decides whether and where, in that order. `forward` makes the attempts, `relay` moves
//! the bodies, and `answer` is the one place where an error becomes a response. `parting` is about what endpoints still
//! work on when nobody waits for it, and `knock` is what we answer for an app whose callers ask only whether it takes
//! connections.

pub(crate) mod answer;
pub(crate) mod entry;
pub(crate) mod exchange;
pub mod forward;
pub(crate) mod headers;
pub(crate) mod hop;
pub(crate) mod interim;
mod knock;
pub(crate) mod pace;
pub(crate) mod parting;
pub(crate) mod relay;
mod replay;
mod steer;
pub(crate) mod unread;
pub(crate) mod upgrade;
pub(crate) mod verdict;
pub(crate) mod websocket;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

pub use hop::Settled;
#[cfg(test)]
pub(crate) use replay::KEPT;
pub use replay::Replayed;

use crate::cluster::departure::DRAINING;
use crate::core::Core;
use crate::identity::SpiffeId;
use crate::observe::ConnectionCells;
use crate::plan::Site;
use crate::plan::current::Current;

/// Who is on the other end of a downstream connection, and what the plan says about the listener it came in by.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) core: Rc<Core>,
    /// The client's address.
    pub(crate) address: SocketAddr,
    /// Where the connection was going, when it was redirected to us.
    pub(crate) original: Option<SocketAddr>,
    /// The client's identity, when it proved one.
    pub(crate) identity: Option<Arc<SpiffeId>>,
    /// The client's address as endpoints are told it, spelled once for all exchanges.
    pub(crate) forwarded_for: Option<HeaderValue>,
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
    /// Where its listener counts connections.
    pub(crate) connections: Arc<ConnectionCells>,
    /// Whether the connection takes nothing at the moment of what all its streams have for it.
    pub(crate) clogged: Cell<bool>,
    /// How often places of its streams may be given back early.
    early: parting::Early,
    /// Whether its listener outlasts the others in a drain.
    outlasts: bool,
    current: Rc<Current>,
    /// What endpoints are told of the client's identity, spelled once for all exchanges, and our name in it.
    client_cert: RefCell<Option<(Arc<str>, HeaderValue)>>,
}

impl Caller {
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one connection, put together once"
    )]
    pub(crate) fn new(
        core: Rc<Core>,
        current: Rc<Current>,
        outlasts: bool,
        address: SocketAddr,
        original: Option<SocketAddr>,
        identity: Option<Arc<SpiffeId>>,
        tls: bool,
        connections: Arc<ConnectionCells>,
    ) -> Rc<Self> {
        let forwarded_for = HeaderValue::from_str(&address.ip().to_canonical().to_string()).ok();
        Rc::new(Self {
            core,
            forwarded_for,
            address,
            original,
            identity,
            tls,
            connections,
            clogged: Cell::new(false),
            early: parting::Early::default(),
            outlasts,
            current,
            client_cert: RefCell::new(None),
        })
    }

    /// Whether the connection is to end after its exchange.
    pub(crate) fn is_draining(&self) -> bool {
        self.core.is_draining(self.outlasts)
    }

    /// Says in an answer to a peer that we are about to stop, if we are.
    pub(crate) fn tell_leaving(&self, site: &Site, headers: &mut HeaderMap) {
        if self.core.is_leaving() && site.tells_identity {
            headers.insert(DRAINING, HeaderValue::from_static("?1"));
        }
    }

    /// One of its exchanges went to its end with an endpoint's answer.
    pub(crate) fn answered(&self) {
        self.early.answered();
    }

    /// Whether one of its streams' places may be given back early once more.
    pub(crate) fn gives_back_early(&self) -> bool {
        self.early.once_more(&self.site())
    }

    /// The listener as the plan of this moment has it. An exchange asks once, at its head, and keeps the answer: it
    /// never sees two plans.
    pub(crate) fn site(&self) -> Arc<Site> {
        self.current.site(self.core.plan())
    }
}

impl Caller {
    /// The client's verified identity, in the form that Envoy gave `x-forwarded-client-cert`.
    pub(crate) fn client_cert(&self, site: &Site) -> Option<HeaderValue> {
        let identity = self.identity.as_ref()?;
        let mut spelled = self.client_cert.borrow_mut();
        if let Some((by, value)) = &*spelled
            && *by == site.identity
        {
            return Some(value.clone());
        }
        let value = format!("By={};URI={}", site.identity, identity.as_str());
        let value = HeaderValue::from_str(&value).ok()?;
        *spelled = Some((Arc::clone(&site.identity), value.clone()));
        Some(value)
    }
}

#[cfg(test)]
mod tests;
