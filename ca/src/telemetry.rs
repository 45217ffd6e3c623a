//! The authority's metrics: every name and label in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::admit::{Kind, Refusal};
use crate::profile::Validity;

const REQUESTS: &str = "weft_ca_requests_total";
const ROOT_ENDS: &str = "weft_ca_root_not_after_seconds";
const INTERMEDIATE_ENDS: &str = "weft_ca_intermediate_not_after_seconds";
const CONNECTIONS: &str = "weft_ca_connections";
const TURNED_AWAY: &str = "weft_ca_connections_turned_away_total";

/// What the numbers mean, for who reads `/metrics`.
pub(crate) fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests for a certificate, by outcome: issued by a token or a renewal, or why not"
    );
    describe_gauge!(
        ROOT_ENDS,
        "When the root certificate ends, in seconds since 1970"
    );
    describe_gauge!(
        INTERMEDIATE_ENDS,
        "When the intermediate certificate ends, in seconds since 1970"
    );
    describe_gauge!(CONNECTIONS, "Open connections");
    describe_counter!(
        TURNED_AWAY,
        "Connections closed before their first request, by reason; `refused_us` is for clients that refuse the authority's certificate"
    );
}

/// A certificate left the house.
pub(crate) fn issued(kind: Kind) {
    let outcome = match kind {
        Kind::Token => "issued_token",
        Kind::Renewal => "issued_renewal",
    };
    counter!(REQUESTS, "outcome" => outcome).increment(1);
}

/// A request was not granted.
pub(crate) fn refused(refusal: &Refusal) {
    let outcome = match refusal {
        Refusal::NoProof => "no_proof",
        Refusal::TokenMalformed(_) => "token_malformed",
        Refusal::TokenForeign => "token_foreign",
        Refusal::TokenUnknown => "token_unknown",
        Refusal::TokenUsed => "token_used",
        Refusal::TokenExpired => "token_expired",
        Refusal::Certificate(_) => "certificate",
        Refusal::Reserved => "reserved",
        Refusal::Request(_) => "request",
        Refusal::Busy => "busy",
        Refusal::Closing => "closing",
        Refusal::Internal(_) => "internal",
    };
    counter!(REQUESTS, "outcome" => outcome).increment(1);
}

/// When our own two certificates end.
pub(crate) fn ends(root: &Validity, intermediate: &Validity) {
    let seconds = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64()
    };
    gauge!(ROOT_ENDS).set(seconds(root.not_after));
    gauge!(INTERMEDIATE_ENDS).set(seconds(intermediate.not_after));
}

/// A connection came.
pub(crate) fn opened() {
    gauge!(CONNECTIONS).increment(1.0);
}

/// A connection went.
pub(crate) fn closed() {
    gauge!(CONNECTIONS).decrement(1.0);
}

/// A connection was closed before it asked for anything.
pub(crate) fn turned_away(reason: &'static str) {
    counter!(TURNED_AWAY, "reason" => reason).increment(1);
}
