//! The one place where an error becomes a response: problem+json (RFC 9457) with the reason, or a `grpc-status`.

use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};

use super::Caller;
use super::exchange::Answer;
use super::hop;
use super::verdict::GRPC_STATUS;
use crate::authn;
use crate::body::Body;
use crate::error::{Error, Retry};
use crate::plan::{Rule, Site};

/// The reason's code, also where there is no body to look into (HEAD, gRPC).
pub(crate) const REASON: HeaderName = HeaderName::from_static("weft-reason");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The answer to an exchange that failed, counted.
pub(crate) fn made(
    site: &Site,
    caller: &Caller,
    rule: Option<&Rule>,
    error: &Error,
    grpc: bool,
    started: Instant,
) -> Answer {
    caller
        .core
        .account_refusal(site, rule, caller, error, started);
    tracing::debug!(
        reason = error.reason.code(),
        detail = %error.detail,
        site = %site.name,
        route = rule.map_or("", |rule| &rule.name),
        client = %caller.address,
        "answered an exchange ourselves"
    );
    build(error, grpc, site.is_edge)
}

/// The answer that says that an app takes connections: the one of ours that is no failure and has no reason.
pub(crate) fn open() -> Answer {
    Answer {
        status: StatusCode::NO_CONTENT,
        headers: HeaderMap::new(),
        body: Body::Empty,
        ours: true,
        upgraded: None,
    }
}

/// The answer to bytes that are no request.
pub(crate) fn refused(caller: &Caller, error: &Error) -> Answer {
    made(&caller.site(), caller, None, error, false, Instant::now())
}

fn build(error: &Error, grpc: bool, is_edge: bool) -> Answer {
    let mut headers = HeaderMap::new();
    let reason = error.reason;
    headers.insert(REASON, HeaderValue::from_static(reason.code()));
    if error.retry == Retry::Settled && !is_edge {
        headers.insert(hop::RETRY, hop::NO);
    }
    if let Some(after) = error.retry_after {
        // Rounded up: a client that comes back a moment too early is refused once more.
        headers.insert(
            RETRY_AFTER,
            HeaderValue::from(after.as_secs() + u64::from(after.subsec_nanos() > 0)),
        );
    }
    if grpc {
        if let Some(after) = error.retry_after {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            headers.insert(GRPC_PUSHBACK, HeaderValue::from(millis.max(1)));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(
            GRPC_STATUS,
            HeaderValue::from(u16::from(reason.grpc_status())),
        );
        let message = percent_encoding::utf8_percent_encode(
            &error.detail,
            percent_encoding::NON_ALPHANUMERIC,
        );
        if let Ok(value) = HeaderValue::from_str(&format!("{}: {message}", reason.code())) {
            headers.insert(GRPC_MESSAGE, value);
        }
        return Answer {
            status: StatusCode::OK,
            headers,
            body: Body::Empty,
            ours: true,
            upgraded: None,
        };
    }
    let status = reason.status();
    if let Some(challenge) = authn::challenge(reason) {
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "reason": reason.code(),
        "detail": error.detail,
        "cure": reason.cure(),
    });
    Answer {
        status,
        headers,
        body: Body::Full(Bytes::from(problem.to_string())),
        ours: true,
        upgraded: None,
    }
}
