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
    // One look at all names costs less than one search.
    let (mut plain, mut alias) = (false, false);
    for name in head.headers.keys() {
        match Of::name(name) {
            Of::Caller => plain = true,
            Of::CallerByAlias => alias = true,
            Of::Others => {}
        }
    }
    if plain || alias {
        // Nobody in front of us is trusted to have told the truth about the others.
        let told = [
            CLIENT_CERT,
            FORWARDED,
            FORWARDED_FOR,
            FORWARDED_PROTO,
            FORWARDED_HOST,
        ];
        let is_believed = !site.is_edge || site.trusted.trusts(peer);
        let lies = if is_believed { &told[..1] } else { &told };
        if plain {
            for name in lies {
                head.headers.remove(name);
            }
        }
        if alias {
            // Nobody who is to be believed says it so, but a proxy that is may pass it on.
            remove_aliases(&mut head.headers, &told);
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

/// Of what a field tells, by its name.
enum Of {
    /// Where a request came from.
    Caller,
    /// The same to servers that cannot tell `_` from `-` in names, as CGI has it (RFC 3875 §4.1.18), and WSGI and PHP after it.
    CallerByAlias,
    Others,
}

impl Of {
    fn name(name: &HeaderName) -> Self {
        let text = name.as_str();
        let is_of_caller = text.starts_with('x') && text.get(2..11) == Some("forwarded");
        if !is_of_caller {
            return match *name == FORWARDED {
                true => Self::Caller,
                false => Self::Others,
            };
        }
        match text.contains('_') {
            true => Self::CallerByAlias,
            false => Self::Caller,
        }
    }
}

/// Removes what some servers would take for one of these.
fn remove_aliases(headers: &mut HeaderMap, names: &[HeaderName]) {
    let is_alias = |name: &&HeaderName| {
        let name = name.as_str();
        let plain = name.replace('_', "-");
        name != plain && names.iter().any(|other| other.as_str() == plain)
    };
    let aliases: Vec<_> = headers.keys().filter(is_alias).cloned().collect();
    for name in aliases {
        headers.remove(name);
    }
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
