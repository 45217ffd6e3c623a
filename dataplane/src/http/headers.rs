//! What a forwarded request says about where it came from, and what it may not say by itself.

use http::Method;
use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;

use super::Caller;
use crate::error::Error;
use crate::head::Head;
use crate::path;
use crate::plan::Site;

/// The verified identity of the caller, in the form Envoy gave it.
pub(crate) const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

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

/// Removes what only we may say and says it.
pub(crate) fn prepare(head: &mut Head, site: &Site, caller: &Caller) {
    head.headers.remove(CLIENT_CERT);
    if site.tells_identity
        && let Some(value) = caller.client_cert(site)
    {
        head.headers.insert(CLIENT_CERT, value);
    }
    if site.is_edge {
        // Nobody in front of us is trusted to have told the truth about these.
        head.headers.remove(FORWARDED);
        if let Some(value) = &caller.forwarded_for {
            head.headers.insert(FORWARDED_FOR, value.clone());
        }
        let proto = if caller.tls { "https" } else { "http" };
        head.headers
            .insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
        if let Ok(value) = HeaderValue::from_str(head.authority.as_str()) {
            head.headers.insert(FORWARDED_HOST, value);
        }
    }
}
