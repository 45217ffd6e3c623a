//! What balancing wants to know of an exchange beyond the usual, and is told: its key, its session, how long its answer
//! took. Only services that ask for it pay for it, which is why all of it is behind a pointer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::SET_COOKIE;

use super::Caller;
use super::entry::Entry;
use crate::balance::Ask;
use crate::balance::sticky::{self, Session, Sticky};
use crate::cluster::Spec;
use crate::endpoint::{Endpoint, Outcome};
use crate::head::Head;

/// What an exchange says of where it belongs.
#[derive(Debug)]
pub(super) struct Steer {
    key: Option<u64>,
    session: Session,
    /// The connection is encrypted.
    tls: bool,
}

impl Steer {
    /// Of an exchange with a service; none when the service does not ask.
    pub(super) fn of(spec: &Spec, head: &Head, caller: &Caller) -> Option<Box<Self>> {
        if !spec.balance.wants_key() && spec.sticky.is_none() {
            return None;
        }
        Some(Box::new(Self {
            key: spec.balance.key(head, caller.address.ip()),
            session: match &spec.sticky {
                Some(sticky) => sticky.session(&head.headers, SystemTime::now()),
                None => Session::None,
            },
            tls: caller.tls,
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

    /// The exchange was answered by this endpoint: its session is there now.
    pub(super) fn settle(
        &self,
        sticky: &Sticky,
        endpoint: SocketAddr,
        answer: &mut HeaderMap,
        entry: Option<&mut Entry>,
    ) {
        let outcome = self.session.outcome(endpoint);
        if let Some(entry) = entry {
            entry.session = Some(outcome);
        }
        if outcome == sticky::Outcome::Kept {
            return;
        }
        if let Session::At(before) = self.session {
            tracing::debug!(%before, %endpoint, "a session moved");
        }
        if let Some(cookie) = sticky.cookie(endpoint, self.tls, SystemTime::now()) {
            answer.append(SET_COOKIE, cookie);
        }
    }
}

/// Times an attempt, for the policy that goes by that. An attempt that nobody waits for any more is told too: an endpoint
/// that hangs would otherwise keep the latency of its better days.
#[derive(Debug)]
pub(super) struct Stopwatch {
    endpoint: Arc<Endpoint>,
    began: Instant,
    stopped: bool,
}

impl Stopwatch {
    /// Starts, if the service's policy wants to know.
    pub(super) fn start(spec: &Spec, endpoint: &Arc<Endpoint>, now: Instant) -> Option<Box<Self>> {
        spec.balance.is_timed().then(|| {
            Box::new(Self {
                endpoint: Arc::clone(endpoint),
                began: now,
                stopped: false,
            })
        })
    }

    /// The attempt ended so.
    pub(super) fn stop(watch: &mut Option<Box<Self>>, outcome: Outcome) {
        if let Some(mut watch) = watch.take() {
            watch.stopped = true;
            let (passed, now) = watch.passed();
            watch.endpoint.latency.answered(passed, outcome, now);
        }
    }

    /// A piece of the request had to be waited for: what the client takes is not the endpoint's time.
    pub(super) fn restart(watch: &mut Option<Box<Self>>) {
        if let Some(watch) = watch {
            watch.began = Instant::now();
        }
    }

    /// The attempt failed for a reason that says nothing of the endpoint.
    pub(super) fn discard(watch: &mut Option<Box<Self>>) {
        if let Some(watch) = watch {
            watch.stopped = true;
        }
    }

    fn passed(&self) -> (Duration, Instant) {
        let now = Instant::now();
        (now.saturating_duration_since(self.began), now)
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        if !self.stopped {
            let (passed, now) = self.passed();
            self.endpoint.latency.silent(passed, now);
        }
    }
}
