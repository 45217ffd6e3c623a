//! Why Weft answered itself: the closed list. An answer of ours cannot be made without one of these, so an
//! unexplained answer does not compile. `docs/reasons.md` is generated from this file.

use http::StatusCode;

macro_rules! reasons {
    ($($(#[doc = $meaning:literal])+ $variant:ident = $code:literal, $status:ident, $grpc:literal, $cure:literal;)+) => {
        /// Why Weft answered itself instead of an endpoint.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of this file; `reason as usize` is its index.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// The machine-readable name, stable between releases.
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$variant => $code,)+ }
            }

            /// The HTTP status of the answer.
            pub const fn status(self) -> StatusCode {
                match self { $(Reason::$variant => StatusCode::$status,)+ }
            }

            /// The `grpc-status` of the answer to a gRPC call.
            pub const fn grpc_status(self) -> u8 {
                match self { $(Reason::$variant => $grpc,)+ }
            }

            /// What the reader can do about it.
            pub const fn cure(self) -> &'static str {
                match self { $(Reason::$variant => $cure,)+ }
            }

            /// What it means, one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Reason::$variant => concat!($($meaning,)+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// The request is not valid HTTP, or ambiguous about where it ends.
    MalformedRequest = "malformed_request", BAD_REQUEST, 3, "Send HTTP by RFC 9112 or RFC 9113; the detail names the rule.";
    /// The request head is larger than the limit, or has too many fields.
    HeadTooLarge = "head_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, 3, "Send fewer or smaller header fields.";
    /// The request target is longer than the limit.
    TargetTooLong = "target_too_long", URI_TOO_LONG, 3, "Shorten the path and query; large values belong in the body.";
    /// The request head did not arrive in time.
    HeadTimeout = "head_timeout", REQUEST_TIMEOUT, 4, "Send the whole head within the time limit.";
    /// The request body stalled for longer than the limit.
    BodyTimeout = "body_timeout", REQUEST_TIMEOUT, 4, "Keep sending the body; the connection was idle in the middle of it.";
    /// The expectation in `Expect` is not one that we know.
    ExpectationUnknown = "expectation_unknown", EXPECTATION_FAILED, 3, "Only 100-continue can be expected.";
    /// The HTTP version is not one that we speak.
    VersionUnsupported = "version_unsupported", HTTP_VERSION_NOT_SUPPORTED, 12, "Speak HTTP/1.1 or HTTP/2.";
    /// The method cannot be forwarded.
    MethodUnsupported = "method_unsupported", NOT_IMPLEMENTED, 12, "CONNECT is for services with `protocol: tcp`, extended CONNECT for WebSocket.";
    /// The upgrade asked for is not one that can be tunnelled here.
    UpgradeRefused = "upgrade_refused", BAD_REQUEST, 3, "Upgrade to websocket: with GET and a key over HTTP/1.1, by extended CONNECT over HTTP/2.";
    /// No route matches the request.
    NoRoute = "no_route", NOT_FOUND, 12, "Check host, path, method and headers against `ingress.routes`.";
    /// The host is not a service of this mesh.
    NoService = "no_service", NOT_FOUND, 12, "Use a name listed under `services`, or add the service there.";
    /// The request has no token and the route demands one.
    TokenMissing = "token_missing", UNAUTHORIZED, 16, "Send `Authorization: Bearer TOKEN`.";
    /// The token is not a well-formed JWT.
    TokenMalformed = "token_malformed", UNAUTHORIZED, 16, "Send one compact JWS of an issuer that the route trusts.";
    /// The token's algorithm is not allowed for the key it names.
    TokenAlgorithm = "token_algorithm", UNAUTHORIZED, 16, "Sign with RS256, ES256 or EdDSA, as the key set says.";
    /// No key of the issuer's key set has the token's key id.
    TokenKeyUnknown = "token_key_unknown", UNAUTHORIZED, 16, "Get a fresh token; if the issuer just changed keys, try again in some seconds.";
    /// The token's signature is wrong.
    TokenSignature = "token_signature", UNAUTHORIZED, 16, "Get a fresh token from the issuer; do not alter it.";
    /// The token has expired.
    TokenExpired = "token_expired", UNAUTHORIZED, 16, "Get a fresh token.";
    /// The token is not valid yet.
    TokenNotYetValid = "token_not_yet_valid", UNAUTHORIZED, 16, "Wait, or check the clocks of issuer and gateway.";
    /// The token is from another issuer.
    TokenIssuer = "token_issuer", UNAUTHORIZED, 16, "Get the token from the issuer that the route names.";
    /// The token is for another audience.
    TokenAudience = "token_audience", UNAUTHORIZED, 16, "Ask the issuer for a token for this audience.";
    /// The issuer's keys could not be had yet.
    KeySetUnavailable = "key_set_unavailable", SERVICE_UNAVAILABLE, 14, "Check that the gateway reaches the issuer's JWKS.";
    /// The destination is outside the mesh, and the sidecar lets nothing out to there.
    EgressDenied = "egress_denied", FORBIDDEN, 7, "Add the host or the network to `sidecar.egress.allow_list`, or make it a service.";
    /// The request came in plaintext to a port that takes mutual TLS only.
    PlaintextRefused = "plaintext_refused", FORBIDDEN, 7, "Run a sidecar beside the caller, or permit plaintext for a time: `mtls: { permissive: { until: DATE } }` at the service.";
    /// The caller's identity may not do this.
    Denied = "denied", FORBIDDEN, 7, "Add an `allow` rule for this identity, method and path to the service.";
    /// The caller is over a rate limit.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, 8, "Slow down; `Retry-After` says how long.";
    /// The service has too many exchanges in flight.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, 8, "Try again later, add replicas, or raise the service's limit.";
    /// Nearly everything that was sent to the service has failed, so nothing more is sent for a while.
    CircuitOpen = "circuit_open", SERVICE_UNAVAILABLE, 14, "Find out why the service fails; `Retry-After` says when one exchange will try it again.";
    /// The service has no endpoints.
    NoEndpoints = "no_endpoints", SERVICE_UNAVAILABLE, 14, "Check the service's DNS name and that replicas run.";
    /// The endpoint refused the connection or could not be reached.
    ConnectFailed = "connect_failed", BAD_GATEWAY, 14, "Check that the endpoint runs, listens on this port and is not firewalled.";
    /// The endpoint did not accept the connection, or end its TLS handshake, in time.
    ConnectTimeout = "connect_timeout", GATEWAY_TIMEOUT, 14, "Check the network between the hosts and the endpoint's load.";
    /// The TLS handshake with the peer failed.
    TlsFailed = "tls_failed", BAD_GATEWAY, 14, "Check that the peer runs a sidecar and trusts the same CA.";
    /// The peer proved another identity than the service that was meant.
    PeerIdentity = "peer_identity", BAD_GATEWAY, 14, "Check that the service's name resolves to its own instances only.";
    /// We have no valid certificate of our own.
    IdentityMissing = "identity_missing", SERVICE_UNAVAILABLE, 14, "Check the log and `/ready` for why the CA gives none.";
    /// The endpoint closed or reset the exchange before it answered.
    UpstreamReset = "upstream_reset", BAD_GATEWAY, 14, "Check the endpoint's log; the request may have been processed.";
    /// The endpoint's answer is not valid HTTP.
    UpstreamMalformed = "upstream_malformed", BAD_GATEWAY, 13, "Check what the endpoint speaks on this port; the detail names the rule.";
    /// The exchange took longer than the route's timeout.
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT, 4, "Raise the service's timeout or find out why the endpoint is slow.";
    /// The time that the caller gave the exchange is over.
    DeadlineExceeded = "deadline_exceeded", GATEWAY_TIMEOUT, 4, "Give the exchange more time, or find out which hop spends it.";
    /// The process is about to stop, and the app beside it has ended already.
    Draining = "draining", SERVICE_UNAVAILABLE, 14, "Try again: another instance takes over. Let the app end after its sidecar has drained, not before.";
    /// A limit on connections is reached, to the service, to an endpoint or of this process.
    TooManyConnections = "too_many_connections", SERVICE_UNAVAILABLE, 8, "Try again later, or raise the limit that the detail names.";
    /// A fault of Weft's own.
    Internal = "internal", INTERNAL_SERVER_ERROR, 13, "Please report it, with the log line of this exchange.";
}

impl Reason {
    /// The reason of this name, as somebody else has said it; nothing for one that we do not know.
    pub fn from_code(code: &[u8]) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|reason| reason.code().as_bytes() == code)
    }

    /// Whether somebody had too much to do or too little time, rather than failed.
    pub const fn is_of_load(self) -> bool {
        matches!(
            self,
            Self::Overloaded
                | Self::TooManyConnections
                | Self::CircuitOpen
                | Self::DeadlineExceeded
                | Self::RateLimited
        )
    }

    /// Whether it speaks against the endpoint that was tried, and not against the client or us.
    pub const fn is_of_endpoint(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::TlsFailed
                | Self::PeerIdentity
                | Self::UpstreamReset
                | Self::UpstreamMalformed
                | Self::UpstreamTimeout
        )
    }
}

/// The page `docs/reasons.md`.
pub fn reference() -> String {
    let mut page = String::from(
        "# Reasons\n\nEvery answer that Weft makes itself carries one of these in the `reason` member of its \
         problem+json body (RFC 9457), or as `grpc-message` for gRPC, and counts it in `weft_answers_total`. \
         Generated from `dataplane/src/reason.rs`.\n\n\
         | reason | status | gRPC | what it means | what to do |\n|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        page.push_str(&format!(
            "| `{}` | {} | {} | {} | {} |\n",
            reason.code(),
            reason.status().as_u16(),
            reason.grpc_status(),
            reason.meaning(),
            reason.cure()
        ));
    }
    page
}
