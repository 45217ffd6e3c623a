//! The one place where an error becomes a response: problem+json (RFC 9457) with the reason, or a `grpc-status`.

use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};

use super::Caller;
use super::forward::UpstreamBody;
use super::hop;
use super::verdict::GRPC_STATUS;
use crate::authn;
use crate::body::Body;
use crate::error::{Error, Retry};
use crate::plan::{Rule, Site};
use crate::tcp::end::End;

/// The reason's code, also where there is no body to look into (HEAD, gRPC).
pub(crate) const REASON: HeaderName = HeaderName::from_static("weft-reason");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer as either codec takes it: an endpoint's, or one of ours with its reason. Where it is from is for this file
/// to say, so that nobody else can make one of ours, and none without a reason.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// The endpoint agreed to the upgrade: the tunnel's other end.
    pub(crate) upgraded: Option<Box<End>>,
    ours: bool,
}

impl Answer {
    /// What an endpoint answered. Its body is the proof that there is one.
    pub(crate) fn of_endpoint(
        status: StatusCode,
        headers: HeaderMap,
        body: Box<UpstreamBody>,
        upgraded: Option<Box<End>>,
    ) -> Self {
        Self {
            status,
            headers,
            body: Body::Upstream(body),
            upgraded,
            ours: false,
        }
    }

    fn ours(status: StatusCode, headers: HeaderMap, body: Body) -> Self {
        Self {
            status,
            headers,
            body,
            upgraded: None,
            ours: true,
        }
    }

    /// Weft made it, not an endpoint.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours
    }
}

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
    Answer::ours(StatusCode::NO_CONTENT, HeaderMap::new(), Body::Empty)
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
        return Answer::ours(StatusCode::OK, headers, Body::Empty);
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
    let body = Body::Full(Bytes::from(problem.to_string()));
    Answer::ours(status, headers, body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::reason::Reason;

    fn field(answer: &Answer, name: impl http::header::AsHeaderName) -> &str {
        answer.headers.get(name).unwrap().to_str().unwrap()
    }

    /// The faults of our own included, which nothing from outside brings about.
    #[test]
    fn every_reason_is_told_in_both_forms() {
        assert!(Reason::ALL.contains(&Reason::Internal));
        for reason in Reason::ALL.iter().copied() {
            assert_eq!(Reason::from_code(reason.code().as_bytes()), Some(reason));
            let error = Error::new(reason, "Some things ünsaid".to_owned());
            let told = build(&error, false, true);
            assert!(told.is_ours());
            assert_eq!(told.status, reason.status());
            assert_eq!(field(&told, CONTENT_TYPE), "application/problem+json");
            assert_eq!(field(&told, REASON), reason.code());
            let Body::Full(bytes) = &told.body else {
                panic!("{reason:?} has no body")
            };
            let problem: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            assert_eq!(problem["status"], reason.status().as_u16());
            assert_eq!(problem["reason"], reason.code());
            assert_eq!(problem["detail"], "Some things ünsaid");
            assert_eq!(problem["cure"], reason.cure());

            let told = build(&error, true, true);
            assert!(told.is_ours() && matches!(told.body, Body::Empty));
            assert_eq!(told.status, StatusCode::OK);
            assert_eq!(field(&told, CONTENT_TYPE), "application/grpc");
            assert_eq!(field(&told, GRPC_STATUS), reason.grpc_status().to_string());
            let message = format!("{}: Some%20things%20%C3%BCnsaid", reason.code());
            assert_eq!(field(&told, GRPC_MESSAGE), message);
        }
        let told = build(&Error::new(Reason::Internal, String::new()), false, true);
        assert_eq!(told.status, StatusCode::INTERNAL_SERVER_ERROR);
        let told = build(&Error::new(Reason::Internal, String::new()), true, true);
        assert_eq!(field(&told, GRPC_STATUS), "13");
    }
}
