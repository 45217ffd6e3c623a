//! What balancing wants to know of an exchange beyond the usual, and is told: its key, its session, how long its answer
//! took. Only services that ask for it pay for it, which is why all of it is behind a pointer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::HeaderMap;
use http::header::SET_COOKIE;

use super::Caller;
use super::entry::Entry;
use crate::balance::Ask;
use crate::balance::sticky::{self, Session};
use crate::cluster::{Cluster, Spec};
use crate::endpoint::latency::Stopwatch;
use crate::endpoint::{Endpoint, Outcome};
use crate::head::Head;
use crate::plan::Site;

/// What an exchange says of where it belongs.
#[derive(Debug)]
pub(super) struct Steer {
    key: Option<u64>,
    session: Session,
    /// The connection is encrypted.
    tls: bool,
    /// Times the attempt, where the policy goes by that.
    watch: Option<Stopwatch>,
}

impl Steer {
    /// Of an exchange with a service; none when the service does not ask.
    pub(super) fn of(spec: &Spec, head: &Head, caller: &Caller, site: &Site) -> Option<Box<Self>> {
        let balance = &spec.balance;
        if !balance.wants_key() && !balance.is_timed() && spec.sticky.is_none() {
            return None;
        }
        let mut client = caller.address.ip();
        if balance.wants_client() {
            client = site.trusted.client(client, &head.headers);
        }
        Some(Box::new(Self {
            key: balance.key(head, client),
            session: match &spec.sticky {
                Some(sticky) => sticky.session(&head.headers, SystemTime::now()),
                None => Session::None,
            },
            tls: caller.tls,
            watch: None,
        }))
    }

    /// Adds it to a question.
    pub(super) fn ask<'a>(&'a self, ask: &mut Ask<'a>) {
        ask.key = self.key;
        ask.session = match &self.session {
            Session::At(address) => Some(address),
            Session::None | Session::Unreadable => None,
        };
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self, spec: &Spec, endpoint: &Arc<Endpoint>, now: Instant) {
        let is_timed = spec.balance.is_timed();
        self.watch = is_timed.then(|| Stopwatch::start(endpoint, now));
    }

    /// A piece of the request had to be waited for: what the client takes is not the endpoint's time.
    pub(super) fn waited(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.restart(Instant::now());
        }
    }

    /// An attempt ended so; none when that says nothing of the endpoint.
    pub(super) fn end(&mut self, outcome: Option<Outcome>) {
        if let Some(watch) = self.watch.take() {
            watch.stop(outcome, Instant::now());
        }
    }

    /// The exchange was answered by this endpoint: its session is there now.
    pub(super) fn settle(
        &self,
        cluster: &Cluster,
        endpoint: SocketAddr,
        answer: &mut HeaderMap,
        entry: Option<&mut Entry>,
    ) {
        let Some(sticky) = &cluster.spec.sticky else {
            return;
        };
        let outcome = self.session.outcome(endpoint);
        cluster.members.sessions().count(outcome);
        if let Some(entry) = entry {
            entry.session = Some(outcome);
        }
        if outcome == sticky::Outcome::Kept {
            return;
        }
        if let Session::At(before) = self.session {
            tracing::debug!(service = %cluster.name, %before, %endpoint, "a session moved");
        }
        if let Some(cookie) = sticky.cookie(endpoint, self.tls, SystemTime::now()) {
            answer.append(SET_COOKIE, cookie);
        }
    }
}
