//! The spine: what happens to a request between its head and its answer, in order. Cheap refusals come first, and
//! nothing is forwarded before everything was decided.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::HeaderMap;

use super::answer::{self, Answer};
use super::entry::Entry;
use super::forward::forward;
use super::interim::Interim;
use super::knock::knock;
use super::{Caller, headers};
use crate::body::{Body, Length};
use crate::error::Error;
use crate::head::Head;
use crate::plan::{Purpose, Rule, Site};
use crate::principal::Principal;
use crate::timer;

/// A request as either codec hands it over.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Body,
    /// It asks to become a tunnel, in the one way that we tunnel.
    pub(crate) upgrade: bool,
}

/// Runs one exchange up to the head of its answer. There always is one: a failure is answered with its reason. `site` is
/// the listener as the plan had it when the head was there.
///
/// The request is borrowed, here and below, because a future that takes a large argument holds it twice.
pub(crate) async fn exchange(
    caller: &Caller,
    site: Arc<Site>,
    request: &mut Request,
    interim: &Interim<'_>,
) -> Answer {
    let started = timer::now();
    let site = &*site;
    let mut extra = HeaderMap::new();
    let mut rule = None;
    let mut entry = Entry::begin(caller, site, &request.head);
    let admitted = admit(
        site,
        caller,
        &mut request.head,
        started,
        &mut rule,
        &mut extra,
        &mut entry,
    );
    let outcome = match admitted {
        // Boxed: rare, and each exchange would carry the room for it.
        Ok(rule) if rule.purpose == Purpose::Knock => Box::pin(knock(&caller.core, rule)).await,
        // And away.
        Ok(rule) => forward(caller, site, rule, request, interim, started, &mut entry).await,
        Err(error) => Err(error),
    };
    let mut answer = outcome.unwrap_or_else(|error| {
        let grpc = request.head.is_grpc();
        let answer = answer::made(site, caller, rule, &error, grpc, started);
        if let Some(mut entry) = entry {
            let bytes = match answer.body.length() {
                Length::Exact(bytes) => bytes,
                _ => 0,
            };
            entry.write(
                Some(answer.status.as_u16()),
                Some(error.reason),
                started.elapsed(),
                0,
                bytes,
            );
        }
        answer
    });
    for (name, value) in &extra {
        answer.headers.append(name, value.clone());
    }
    caller.tell_leaving(site, &mut answer.headers);
    answer
}

/// Decides whether and where, and readies the head for it.
fn admit<'a>(
    site: &'a Site,
    caller: &Caller,
    head: &mut Head,
    started: Instant,
    found: &mut Option<&'a Rule>,
    extra: &mut HeaderMap,
    entry: &mut Option<Box<Entry>>,
) -> Result<&'a Rule, Error> {
    headers::normalize(head)?;
    // Where.
    let rule = match site.routes.find(head) {
        Some(rule) => rule,
        None => site.otherwise(caller.original, head)?,
    };
    *found = Some(rule);
    if let Some(entry) = entry {
        entry.matched(rule);
    }
    // Who.
    let principal = match (&rule.authn, &caller.identity) {
        (Some(authn), _) => Principal::Bearer(authn.identify(&head.headers, SystemTime::now())?),
        (None, Some(identity)) => Principal::Workload(Arc::clone(identity)),
        (None, None) => Principal::Anonymous,
    };
    if let Some(entry) = entry {
        entry.called_by(&principal);
    }
    // Whether.
    rule.authz
        .permit(caller.identity.as_deref(), &head.method, head.path.path())?;
    // How much.
    if !rule.limits.is_empty() {
        let client = site.trusted.client(caller.address.ip(), &head.headers);
        for limit in &rule.limits {
            limit.admit(&principal, client, &head.headers, started, extra)?;
        }
    }
    headers::prepare(head, site, caller);
    Ok(rule)
}
