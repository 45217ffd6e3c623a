//! The head of a request in one form for both HTTP versions: what routes, policies and filters see.
//!
//! Both codecs turn what they received into this form and back; neither codec's own types leave its room.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Version};

/// Request line and headers, checked by the codec that made it.
#[derive(Debug, Clone)]
pub struct Head {
    /// The method as received.
    pub method: Method,
    /// What the client spoke to us. What we speak to an endpoint is the endpoint's matter.
    pub version: Version,
    /// The one host (and port) that routing, policy and the endpoint see: `:authority`, the absolute form's or `Host`.
    /// There is no `host` field in [`Head::headers`].
    pub authority: Authority,
    /// The path and query, normalised once by [`crate::route::path`] before anything matches on it.
    pub path: PathAndQuery,
    /// The fields, framing and hop-by-hop ones removed by the codec; `te: trailers` is kept.
    pub headers: HeaderMap,
}

impl Head {
    /// The host without its port, as the client spelled it.
    pub fn host(&self) -> &str {
        // Checked when it was read: no user, and brackets around an address that has colons.
        let text = self.authority.as_str();
        let end = if text.starts_with('[') {
            text.find(']').map(|at| at + 1)
        } else {
            text.bytes().position(|byte| byte == b':')
        };
        &text[..end.unwrap_or(text.len())]
    }

    /// Whether sending this request twice has the effect of sending it once (RFC 9110 §9.2.2), by its method alone.
    pub fn is_idempotent(&self) -> bool {
        matches!(
            self.method,
            Method::GET
                | Method::HEAD
                | Method::OPTIONS
                | Method::TRACE
                | Method::PUT
                | Method::DELETE
        )
    }

    /// Whether this is a gRPC call, which wants its errors as `grpc-status`.
    pub fn is_grpc(&self) -> bool {
        self.headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
    }
}
