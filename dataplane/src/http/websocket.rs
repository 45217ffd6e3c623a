//! The handshake of WebSocket in both versions: HTTP/1.1's upgrade (RFC 6455) and HTTP/2's extended CONNECT (RFC 8441).
//!
//! HTTP/1.1 proves by a key and its hash that the other side meant to agree; HTTP/2 does without. So a key that came from
//! a client stays with us where the next hop is HTTP/2, and one is made up where the client has none.

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::{HeaderValue, StatusCode};

use crate::error::Error;
use crate::reason::Reason;

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Decoded.
const KEY_BYTES: usize = 16;

/// What proves that a server has read this key.
fn accept(key: &[u8]) -> HeaderValue {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    let text = BASE64_STANDARD.encode(hash.finish());
    HeaderValue::try_from(text).expect("base64 is a field value")
}

/// Takes the key out of a request that goes on over HTTP/2; with it the client can be answered.
pub(super) fn take_key(headers: &mut HeaderMap) -> Result<Option<HeaderValue>, Error> {
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let Some(key) = keys.next().cloned() else {
        return Ok(None);
    };
    let is_whole = BASE64_STANDARD
        .decode(key.as_bytes())
        .is_ok_and(|decoded| decoded.len() == KEY_BYTES);
    if keys.next().is_some() || !is_whole {
        return Err(Error::new(
            Reason::UpgradeRefused,
            "sec-websocket-key is not one of 16 bytes in base64",
        ));
    }
    headers.remove(SEC_WEBSOCKET_KEY);
    Ok(Some(key))
}

/// Answers the client's key, in a head that came over HTTP/2.
pub(super) fn prove(headers: &mut HeaderMap, key: &HeaderValue) {
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key.as_bytes()));
}

/// Makes up a key for a request that came over HTTP/2.
pub(super) fn make_key(headers: &mut HeaderMap, random: [u64; 2]) -> HeaderValue {
    let mut bytes = [0; KEY_BYTES];
    bytes[..8].copy_from_slice(&random[0].to_le_bytes());
    bytes[8..].copy_from_slice(&random[1].to_le_bytes());
    let key =
        HeaderValue::try_from(BASE64_STANDARD.encode(bytes)).expect("base64 is a field value");
    headers.insert(SEC_WEBSOCKET_KEY, key.clone());
    key
}

/// Checks the answer to a key that was made up, and takes the proof out of it: the client has not asked for one.
pub(super) fn check(headers: &mut HeaderMap, key: &HeaderValue) -> Result<(), Error> {
    if headers.remove(SEC_WEBSOCKET_ACCEPT) == Some(accept(key.as_bytes())) {
        return Ok(());
    }
    Err(Error::new(
        Reason::UpstreamMalformed,
        "the endpoint agreed to WebSocket without the proof that it read the key",
    ))
}

/// Whether the answer to extended CONNECT opens the tunnel.
pub(super) fn agrees(status: StatusCode) -> bool {
    status.is_success()
}

/// Why an answer that opens no tunnel cannot be passed on to a client that asked by extended CONNECT: it would take it for
/// the tunnel.
pub(crate) fn not_a_tunnel(status: StatusCode) -> Option<Error> {
    agrees(status).then(|| {
        Error::new(
            Reason::UpstreamMalformed,
            format!(
                "the endpoint answered {} to a WebSocket handshake, and did not switch",
                status.as_u16()
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (name.parse().unwrap(), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn the_example_of_the_standard() {
        let mut headers = fields(&[("sec-websocket-key", KEY), ("origin", "a")]);
        let key = take_key(&mut headers).unwrap().unwrap();
        assert_eq!(headers, fields(&[("origin", "a")]));
        prove(&mut headers, &key);
        assert_eq!(headers["sec-websocket-accept"], ACCEPT);
    }

    #[test]
    fn a_key_is_one_and_whole() {
        let check = |headers: &[(&'static str, &'static str)], good: bool| {
            let taken = take_key(&mut fields(headers));
            assert_eq!(taken.is_ok(), good, "{headers:?}");
        };
        check(&[], true);
        check(&[("sec-websocket-key", KEY)], true);
        check(
            &[("sec-websocket-key", KEY), ("sec-websocket-key", KEY)],
            false,
        );
        for bad in [
            "",
            "x",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZQ==",
            "dGhlIHNhbXBsZSBub25jZSE=",
            "====",
        ] {
            check(&[("sec-websocket-key", bad)], false);
        }
    }

    #[test]
    fn a_key_of_ours_demands_its_proof() {
        let mut headers = HeaderMap::new();
        let key = make_key(&mut headers, [1, 2]);
        assert_eq!(take_key(&mut headers).unwrap(), Some(key.clone()));
        let mut good = HeaderMap::new();
        prove(&mut good, &key);
        check(&mut good, &key).unwrap();
        assert!(good.is_empty(), "the client has not asked");
        let error = check(&mut fields(&[("sec-websocket-accept", ACCEPT)]), &key).unwrap_err();
        assert_eq!(error.reason, Reason::UpstreamMalformed);
        check(&mut HeaderMap::new(), &key).unwrap_err();
    }

    #[test]
    fn only_a_success_would_be_taken_for_the_tunnel() {
        let check = |status: u16, bad: bool| {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(not_a_tunnel(status).is_some(), bad, "{status}");
        };
        check(200, true);
        check(204, true);
        check(302, false);
        check(403, false);
        check(426, false);
        check(503, false);
    }
}
