//! One token, checked: compact JWS (RFC 7515) with the claims of RFC 7519.
//!
//! The order matters: form, header, key, signature, and only then the claims, so that nothing is believed, and nothing
//! told, about a token that the issuer did not sign.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json;
use super::jwks::{Algorithm, Key, Keys};
use crate::error::Error;
use crate::principal::Claims;
use crate::reason::Reason;

/// What a token must say.
#[derive(Debug)]
pub(super) struct Demands {
    pub(super) issuer: String,
    /// One of these, if given.
    pub(super) audience: Option<Vec<String>>,
    pub(super) algorithms: Vec<Algorithm>,
    /// How far the issuer's clock may be from ours.
    pub(super) skew: Duration,
}

/// A token that is good.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) claims: Arc<Claims>,
    /// Skew included: good from then …
    pub(super) from: SystemTime,
    /// … until just before then.
    pub(super) until: SystemTime,
}

/// A token that is not.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: Error,
    /// Whether newer keys might make it good.
    pub(super) keys_may_be_old: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self {
            error,
            keys_may_be_old: false,
        }
    }
}

/// Checks everything about `token`.
pub(super) fn verify(
    token: &str,
    keys: &Keys,
    demands: &Demands,
    now: SystemTime,
) -> Result<Verified, Refused> {
    let parts = split(token)?;
    let header = read_header(&parts.header)?;
    let key = choose_key(&header, keys, demands)?;
    if !key.signed(parts.signed.as_bytes(), &parts.signature) {
        return Err(Refused {
            error: Error::new(
                Reason::TokenSignature,
                format!(
                    "the {} signature of the token is wrong",
                    key.algorithm.name()
                ),
            ),
            // With a `kid` the key was the right one; without, the issuer may have a new one.
            keys_may_be_old: header.key_id.is_none(),
        });
    }
    Ok(check_claims(&parts.payload, demands, now)?)
}

struct Parts<'a> {
    header: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
    /// What the signature is over: header and payload as they came.
    signed: &'a str,
}

fn split(token: &str) -> Result<Parts<'_>, Error> {
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed(
            "the token does not have the three parts of a JWS",
        ));
    };
    // Strict: no padding, no other alphabet, no stray bits at the end, so that a token has one spelling.
    let decode = |part: &str, name: &str| {
        URL_SAFE_NO_PAD
            .decode(part)
            .map_err(|_| malformed(format!("the {name} of the token is not base64url")))
    };
    Ok(Parts {
        header: decode(header, "header")?,
        payload: decode(payload, "payload")?,
        signature: decode(signature, "signature")?,
        signed: &token[..header.len() + 1 + payload.len()],
    })
}

struct Header {
    /// `None` for an algorithm that we do not have.
    algorithm: Option<Algorithm>,
    algorithm_name: String,
    key_id: Option<String>,
}

fn read_header(bytes: &[u8]) -> Result<Header, Error> {
    let header = json::object(bytes)
        .map_err(|error| malformed(format!("the header of the token: {error}")))?;
    // What must be understood is not; keys and addresses of keys in the token itself are never looked at.
    for name in ["crit", "b64", "zip", "enc"] {
        if header.contains_key(name) {
            return Err(malformed(format!(
                "the token has a `{name}` header, which is not taken"
            )));
        }
    }
    if let Some(kind) = header.get("typ") {
        // Other kinds of tokens of the same issuer (logout tokens, proofs of possession) are not for access.
        let kind = kind.as_str().unwrap_or("").to_ascii_lowercase();
        let kind = kind.strip_prefix("application/").unwrap_or(&kind);
        if !matches!(kind, "jwt" | "at+jwt") {
            return Err(malformed("the `typ` of the token is not `JWT` or `at+jwt`"));
        }
    }
    let Some(Value::String(algorithm_name)) = header.get("alg") else {
        return Err(malformed(
            "the header of the token has no `alg` that is a string",
        ));
    };
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(_) => return Err(malformed("the `kid` of the token is not a string")),
    };
    Ok(Header {
        algorithm: Algorithm::from_name(algorithm_name),
        algorithm_name: algorithm_name.clone(),
        key_id,
    })
}

fn choose_key<'a>(
    header: &'a Header,
    keys: &'a Keys,
    demands: &Demands,
) -> Result<&'a Key, Refused> {
    let wrong_algorithm = |why: &str| {
        let name = shown(&header.algorithm_name);
        Error::new(
            Reason::TokenAlgorithm,
            format!("the token's algorithm {name} {why}"),
        )
    };
    let Some(algorithm) = header.algorithm else {
        return Err(wrong_algorithm("is never taken").into());
    };
    if !demands.algorithms.contains(&algorithm) {
        return Err(wrong_algorithm("is not among `algorithms`").into());
    }
    let named = || keys.named(header.key_id.as_deref());
    let mut fitting = named().filter(|key| key.algorithm == algorithm);
    let unknown = |detail: String| Refused {
        error: Error::new(Reason::TokenKeyUnknown, detail),
        keys_may_be_old: true,
    };
    match (fitting.next(), fitting.next(), &header.key_id) {
        (Some(key), None, _) => Ok(key),
        (Some(_), Some(_), Some(id)) => Err(unknown(format!(
            "the key set has more than one {} key {}",
            algorithm.name(),
            shown(id)
        ))),
        (Some(_), Some(_), None) => Err(unknown(format!(
            "the token has no `kid` and the key set more than one {} key",
            algorithm.name()
        ))),
        (None, _, Some(id)) if named().next().is_some() => {
            Err(wrong_algorithm(&format!("is not that of the key {}", shown(id))).into())
        }
        (None, _, Some(id)) => Err(unknown(format!("the key set has no key {}", shown(id)))),
        (None, _, None) => Err(unknown(format!(
            "the key set has no {} key",
            algorithm.name()
        ))),
    }
}

fn check_claims(bytes: &[u8], demands: &Demands, now: SystemTime) -> Result<Verified, Error> {
    let all = json::object(bytes)
        .map_err(|error| malformed(format!("the claims of the token: {error}")))?;
    let expires = date(&all, "exp")?.ok_or_else(|| malformed("the token has no `exp`"))?;
    if expires == SystemTime::UNIX_EPOCH {
        return Err(malformed("the `exp` of the token is 0"));
    }
    let not_before = date(&all, "nbf")?;
    date(&all, "iat")?;
    let subject = text(&all, "sub")?.unwrap_or_default().to_owned();
    text(&all, "jti")?;
    let issuer = text(&all, "iss")?.unwrap_or_default();
    if issuer != demands.issuer {
        let detail = format!(
            "the token is from {}, not from {}",
            shown(issuer),
            shown(&demands.issuer)
        );
        return Err(Error::new(Reason::TokenIssuer, detail));
    }
    let audience = audience(&all)?;
    if let Some(wanted) = &demands.audience
        && !wanted.iter().any(|one| audience.contains(&one.as_str()))
    {
        let detail = match audience.as_slice() {
            [] => "the token names no audience".to_owned(),
            [first, ..] => format!("the token is for {}, not for this gateway", shown(first)),
        };
        return Err(Error::new(Reason::TokenAudience, detail));
    }
    // All dates are before the year 10,000: no sum overflows.
    let from = not_before.map_or(SystemTime::UNIX_EPOCH, |date| {
        date.checked_sub(demands.skew)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    });
    let until = expires + demands.skew;
    if now >= until {
        let ago = now.duration_since(expires).unwrap_or_default().as_secs();
        return Err(Error::new(
            Reason::TokenExpired,
            format!("the token expired {ago} s ago"),
        ));
    }
    if now < from {
        let ahead = from.duration_since(now).unwrap_or_default() + demands.skew;
        return Err(Error::new(
            Reason::TokenNotYetValid,
            format!("the token is valid only in {} s", ahead.as_secs()),
        ));
    }
    let claims = Claims {
        issuer: issuer.to_owned(),
        subject,
        expires,
        all,
    };
    Ok(Verified {
        claims: Arc::new(claims),
        from,
        until,
    })
}

/// A date in seconds since 1970, whole or not; no other type, nothing negative, nothing after the year 9999.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<SystemTime>, Error> {
    const LAST: u64 = 253_402_300_799;
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let since = match (value.as_u64(), value.as_f64()) {
        (Some(seconds), _) => (seconds <= LAST).then(|| Duration::from_secs(seconds)),
        (None, Some(seconds)) if (0.0..=LAST as f64).contains(&seconds) => {
            Duration::try_from_secs_f64(seconds).ok()
        }
        _ => None,
    };
    match since {
        Some(since) => Ok(Some(SystemTime::UNIX_EPOCH + since)),
        None => Err(malformed(format!(
            "the `{name}` of the token is not a date in seconds"
        ))),
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Error> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(malformed(format!(
            "the `{name}` of the token is not a string"
        ))),
    }
}

/// `aud` is one string or a list of strings.
fn audience(claims: &Map<String, Value>) -> Result<Vec<&str>, Error> {
    let wrong = || malformed("the `aud` of the token is not a string or a list of strings");
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|one| one.as_str().ok_or_else(wrong));
            texts.collect()
        }
        Some(_) => Err(wrong()),
    }
}

fn malformed(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::TokenMalformed, detail)
}

/// Somebody else's text in a detail of ours: quoted, escaped and short.
fn shown(text: &str) -> String {
    const LONGEST: usize = 64;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
