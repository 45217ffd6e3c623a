//! What the access log says of one exchange: gathered on the way, written when the exchange ends, and only where there
//! is an access log.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::uri::{Authority, PathAndQuery};
use http::{Method, Version};

use super::Caller;
use crate::balance::sticky::Outcome;
use crate::core::Core;
use crate::head::Head;
use crate::observe::Record;
use crate::plan::{Rule, Site};
use crate::principal::Principal;
use crate::reason::Reason;

/// One line to be.
#[derive(Debug)]
pub(crate) struct Entry {
    core: Rc<Core>,
    time: SystemTime,
    listener: Arc<str>,
    protocol: &'static str,
    method: Method,
    authority: Authority,
    path: PathAndQuery,
    route: Option<Arc<str>>,
    service: Option<Arc<str>>,
    source: Option<String>,
    peer: SocketAddr,
    /// Who the client is, where that is not the peer.
    client: Option<IpAddr>,
    tls: bool,
    /// Where the last attempt went.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) attempts: u32,
    /// What became of the session, where sessions are kept.
    pub(crate) session: Option<Outcome>,
    began: Instant,
    written: bool,
}

impl Entry {
    /// Begins a line, if there is a log to write it to.
    pub(crate) fn begin(caller: &Caller, site: &Site, head: &Head) -> Option<Box<Self>> {
        caller.core.lines.as_ref()?;
        let protocol = match head.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let target = (head.authority.clone(), head.path.clone());
        let mut entry = Self::new(caller, site, protocol, head.method.clone(), target);
        let peer = caller.address.ip();
        let client = site.trusted.client(peer, &head.headers);
        entry.client = (client != peer.to_canonical()).then_some(client);
        Some(entry)
    }

    /// Begins the line of a connection that is not HTTP.
    pub(crate) fn of_connection(caller: &Caller, site: &Site, rule: &Rule) -> Option<Box<Self>> {
        caller.core.lines.as_ref()?;
        let authority = rule.target.spec.authority.clone();
        let authority = authority.unwrap_or_else(|| Authority::from_static("unknown"));
        let target = (authority, PathAndQuery::from_static("/"));
        let mut entry = Self::new(caller, site, "TCP", Method::CONNECT, target);
        entry.matched(rule);
        Some(entry)
    }

    fn new(
        caller: &Caller,
        site: &Site,
        protocol: &'static str,
        method: Method,
        (authority, path): (Authority, PathAndQuery),
    ) -> Box<Self> {
        Box::new(Self {
            core: Rc::clone(&caller.core),
            time: SystemTime::now(),
            listener: Arc::clone(&site.name),
            protocol,
            method,
            authority,
            path,
            route: None,
            service: None,
            source: caller
                .identity
                .as_ref()
                .map(|identity| identity.as_str().to_owned()),
            peer: caller.address,
            client: None,
            tls: caller.tls,
            endpoint: None,
            attempts: 0,
            session: None,
            began: Instant::now(),
            written: false,
        })
    }

    /// The rule that was found.
    pub(crate) fn matched(&mut self, rule: &Rule) {
        self.route = Some(Arc::clone(&rule.name));
        self.service = Some(Arc::clone(&rule.target.name));
    }

    /// Who calls, where that is known better than by the connection.
    pub(crate) fn called_by(&mut self, principal: &Principal) {
        if let Principal::Bearer(claims) = principal {
            self.source = Some(claims.subject.clone());
        }
    }

    /// The exchange has ended.
    pub(crate) fn write(
        &mut self,
        status: Option<u16>,
        reason: Option<Reason>,
        duration: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        self.written = true;
        let Some(lines) = &self.core.lines else {
            return;
        };
        lines.record(&Record {
            time: self.time,
            listener: &self.listener,
            protocol: self.protocol,
            method: self.method.as_str(),
            authority: self.authority.as_str(),
            path: self.path.as_str(),
            route: self.route.as_deref(),
            service: self.service.as_deref(),
            endpoint: self.endpoint,
            status,
            reason,
            duration,
            attempts: self.attempts,
            session: self.session.map(Outcome::as_str),
            request_bytes,
            response_bytes,
            source: self.source.as_deref(),
            peer: Some(SocketAddr::new(
                self.peer.ip().to_canonical(),
                self.peer.port(),
            )),
            client: self.client,
            tls: self.tls.then_some("TLS"),
        });
    }
}

impl Drop for Entry {
    /// An exchange whose client went away before there was an answer has a line too, without a status.
    fn drop(&mut self) {
        if !self.written {
            let duration = self.began.elapsed();
            self.write(None, None, duration, 0, 0);
        }
    }
}
