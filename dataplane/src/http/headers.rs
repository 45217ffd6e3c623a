//! What a forwarded request says about where it came from, and what it may not say by itself.

use http::header::{FORWARDED, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method};

use super::Caller;
use crate::error::Error;
use crate::head::Head;
use crate::http1::encode;
use crate::path;
use crate::plan::Site;
use crate::trusted::FORWARDED_FOR;

/// The verified identity of the caller, in the form Envoy gave it.
pub(crate) const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Brings the path to its one form before anything matches on it; the endpoint gets the same.
pub(crate) fn normalize(head: &mut Head) -> Result<(), Error> {
    if head.path.path() == "*" {
        // The HTTP/1.1 codec has refused the others already; HTTP/2's lets them through (RFC 9113 §8.3.1).
        return if head.method == Method::OPTIONS && head.path.query().is_none() {
            Ok(())
        } else {
            Err(Error::new(
                crate::reason::Reason::MalformedRequest,
                "the path is `*`, which only OPTIONS can ask for",
            ))
        };
    }
    let target = std::mem::replace(&mut head.path, PathAndQuery::from_static("/"));
    head.path = path::normalize_target(target)?;
    Ok(())
}

/// Removes what only we may say, and says who calls where that was proved. What is said of everybody at the edge is said
/// with each attempt: [`Forwarded`].
pub(crate) fn prepare(head: &mut Head, site: &Site, caller: &Caller) {
    let peer = caller.address.ip();
    // One look at all names costs less than one search, and hardly any request has one of these.
    if head.headers.keys().any(is_of_caller) {
        head.headers.remove(CLIENT_CERT);
        if site.is_edge && !site.trusted.trusts(peer) {
            // Nobody in front of us is trusted to have told the truth about these.
            for name in [FORWARDED, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST] {
                head.headers.remove(name);
            }
        }
    }
    if site.is_edge && site.trusted.trusts(peer) {
        site.trusted.append(peer, &mut head.headers);
    }
    if site.tells_identity
        && let Some(value) = caller.client_cert(site)
    {
        head.headers.insert(CLIENT_CERT, value);
    }
}

/// Whether a field of this name says where a request came from.
fn is_of_caller(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-") || *name == FORWARDED
}

/// What endpoints are told of a request that came in at the edge. Written with the head, because a place in the map of its
/// fields costs more than the line does. What a trusted proxy has said is in the head already, and stays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forwarded<'a> {
    client: Option<&'a HeaderValue>,
    proto: Option<&'static str>,
    host: Option<&'a Authority>,
}

impl<'a> Forwarded<'a> {
    /// Of a caller that asked for this host with these fields, which have been prepared.
    pub(crate) fn new(
        caller: &'a Caller,
        site: &Site,
        host: &'a Authority,
        headers: &HeaderMap,
    ) -> Self {
        let is_told = site.trusted.trusts(caller.address.ip());
        let is_silent_of = |name| !is_told || !headers.contains_key(name);
        let proto = if caller.tls { "https" } else { "http" };
        Self {
            client: caller.forwarded_for.as_ref().filter(|_| !is_told),
            proto: is_silent_of(FORWARDED_PROTO).then_some(proto),
            host: is_silent_of(FORWARDED_HOST).then_some(host),
        }
    }

    /// Among other fields.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        if let Some(client) = self.client {
            headers.insert(FORWARDED_FOR, client.clone());
        }
        if let Some(proto) = self.proto {
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
        }
        if let Some(host) = self.host
            && let Ok(host) = HeaderValue::from_str(host.as_str())
        {
            headers.insert(FORWARDED_HOST, host);
        }
    }

    /// As lines of a head.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(client) = self.client {
            encode::field(out, FORWARDED_FOR.as_str(), client.as_bytes());
        }
        if let Some(proto) = self.proto {
            encode::field(out, FORWARDED_PROTO.as_str(), proto.as_bytes());
        }
        if let Some(host) = self.host {
            encode::field(out, FORWARDED_HOST.as_str(), host.as_str().as_bytes());
        }
    }
}
