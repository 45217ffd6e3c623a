//! What an answer says of the endpoint that gave it.
//!
//! HTTP says so in the head. gRPC's status comes with the trailers, so a call is judged by the first thing that tells: a
//! status in the head (an answer of trailers alone), the first message (it works), the trailers, or a body that breaks off.
//! Not later, since a stream may run for days.

use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::body::Frame;
use crate::endpoint::Outcome;
use crate::error::Error;
use crate::health::outlier::{judge_grpc, judge_status};

/// What a call has ended with, in the trailers or in a head that nothing follows.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `UNKNOWN`: what a call without a status has ended with.
const UNKNOWN: u8 = 2;

/// By the head alone; nothing when it does not tell yet. `grpc` is whether the request was a gRPC call, `whole` whether
/// no body follows.
pub(crate) fn of_head(
    grpc: bool,
    status: StatusCode,
    headers: &HeaderMap,
    whole: bool,
) -> Option<Outcome> {
    if !grpc || status != StatusCode::OK {
        let is_error = status.is_client_error() || status.is_server_error();
        let sheds = is_error && headers.contains_key(header::RETRY_AFTER);
        return Some(judge_status(status, sheds));
    }
    match grpc_status(headers) {
        Some(status) => Some(judge_grpc(status)),
        None if whole => Some(judge_grpc(UNKNOWN)),
        None => None,
    }
}

/// What a head or trailers say that a call has ended with.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    let text = headers.get(GRPC_STATUS)?.to_str().ok()?;
    // What is no number is no status that we could know.
    Some(text.parse().unwrap_or(UNKNOWN))
}

/// By what came after the head, or nothing when it does not tell. `pending` is whether the head did not.
///
/// A body that breaks off counts whatever the head said: an endpoint that answers well and then dies is no better than one
/// that does not answer.
pub(crate) fn of_frame(frame: Option<&Result<Frame, Error>>, pending: bool) -> Option<Outcome> {
    match frame {
        // Anything else is the client's fault, or ours. By the reason alone: whether it may be tried again is of no matter to an
        // answer that has begun, and a goodbye (`Retry::Departed`) in the middle of one is a broken answer like any other.
        Some(Err(error)) => error
            .reason
            .is_of_endpoint()
            .then_some(Outcome::LocalFailure),
        _ if !pending => None,
        Some(Ok(Frame::Data(_))) => Some(Outcome::Success),
        Some(Ok(Frame::Trailers(trailers))) => {
            Some(judge_grpc(grpc_status(trailers).unwrap_or(UNKNOWN)))
        }
        None => Some(judge_grpc(UNKNOWN)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::reason::Reason;

    #[test]
    fn a_head_tells_of_http_and_of_calls_that_end_with_it() {
        use Outcome::{Pushback, RemoteFailure, Success};
        let check = |grpc, status: u16, fields: &[(&'static str, &str)], whole, expected| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, value.parse().unwrap());
            }
            let status = StatusCode::from_u16(status).unwrap();
            let outcome = of_head(grpc, status, &headers, whole);
            assert_eq!(outcome, expected, "{grpc} {status} {fields:?} {whole}");
        };
        check(false, 200, &[], false, Some(Success));
        check(false, 200, &[("grpc-status", "14")], true, Some(Success));
        check(false, 503, &[], false, Some(RemoteFailure));
        check(false, 503, &[("retry-after", "1")], false, Some(Pushback));
        check(true, 503, &[], false, Some(RemoteFailure));
        check(true, 200, &[], false, None);
        check(true, 200, &[], true, Some(RemoteFailure));
        check(true, 200, &[("grpc-status", "0")], true, Some(Success));
        check(true, 200, &[("grpc-status", "5")], true, Some(Success));
        check(true, 200, &[("grpc-status", "8")], true, Some(Pushback));
        check(
            true,
            200,
            &[("grpc-status", "14")],
            false,
            Some(RemoteFailure),
        );
        check(
            true,
            200,
            &[("grpc-status", "what")],
            true,
            Some(RemoteFailure),
        );
    }

    #[test]
    fn an_answer_that_breaks_off_counts_whatever_its_endpoint_says_with_it() {
        let check = |error: Error, expected| {
            assert_eq!(of_frame(Some(&Err(error)), false), expected);
        };
        let failed = Some(Outcome::LocalFailure);
        check(Error::maybe_processed(Reason::UpstreamReset, ""), failed);
        check(Error::departed(Reason::UpstreamReset, ""), failed);
        check(Error::new(Reason::BodyTimeout, ""), None);
        check(Error::new(Reason::MalformedRequest, ""), None);
    }
}
