//! Who calls, by a token: JSON Web Tokens as bearer tokens (RFC 7519, RFC 6750), by the letter of RFC 8725.
//!
//! `jwt` reads and checks a token, `jwks` reads the issuer's keys, `keyset` keeps them fresh off the path of any
//! request (with `fetch`), and `cache` remembers which tokens were good, because checking a signature costs as much
//! as all the rest of an exchange.

mod cache;
mod fetch;
mod json;
mod jwks;
mod jwt;
mod keyset;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

use crate::error::Error;
use crate::principal::Claims;
use crate::reason::Reason;
pub use jwks::Algorithm;
pub use keyset::{KeySet, Source as KeySource};
#[cfg(test)]
pub(crate) use keyset::{PATIENCE, REFRESH};

/// One of `authn:`, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Authn")]
pub struct Config {
    /// Demands a JSON Web Token.
    pub jwt: Jwt,
}

/// What a token must be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// `iss`, exactly.
    pub issuer: String,
    /// `aud` must name one of these; when left out, tokens for any audience are taken.
    #[serde(default)]
    pub audience: Option<Vec<String>>,
    /// The issuer's keys.
    pub jwks: KeySource,
    /// How far the issuer's clock and ours may be apart.
    #[serde(default = "default_clock_skew")]
    pub clock_skew: Period,
    /// The algorithms that are taken: any of `RS256`, `ES256` and `EdDSA`, all three when left out. Which of them a token must
    /// have, its key says.
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<Algorithm>,
}

impl Config {
    /// Checks what stands at `place` as far as no file has to be read: for those on whose host the files are not.
    pub fn check(&self, place: &Path, problems: &mut Problems) {
        self.check_words(place, problems);
        let jwks = place.key("jwt").key("jwks");
        let _: Option<_> = self.jwt.jwks.check(&jwks, problems);
    }

    fn check_words(&self, place: &Path, problems: &mut Problems) {
        let place = place.key("jwt");
        let jwt = &self.jwt;
        if jwt.issuer.is_empty() {
            problems.at(
                &place.key("issuer"),
                "the issuer is empty, so no token can be from it",
                "write the `iss` of the issuer's tokens, such as `https://id.example`",
            );
        }
        if let Some(audience) = &jwt.audience {
            check_audience(audience, &place.key("audience"), problems);
        }
        if jwt.algorithms.is_empty() {
            problems.at(
                &place.key("algorithms"),
                "the list of algorithms is empty, so no token can match",
                "list `RS256`, `ES256` or `EdDSA`, or leave `algorithms` out for all three",
            );
        }
        if jwt.clock_skew > MOST_SKEW {
            problems.at(
                &place.key("clock_skew"),
                "a clock skew of more than 10 minutes makes tokens live on long after they expired",
                "write `10m` or less; 60 s is plenty for clocks that are kept by NTP",
            );
        }
    }

    /// Makes its relative paths relative to `base`.
    pub fn relative_to(&mut self, base: &std::path::Path) {
        let jwks = &mut self.jwt.jwks;
        for path in [&mut jwks.file, &mut jwks.ca].into_iter().flatten() {
            *path = base.join(&*path);
        }
    }
}

fn default_clock_skew() -> Period {
    Period::seconds(60)
}

fn default_algorithms() -> Vec<Algorithm> {
    Algorithm::ALL.to_vec()
}

/// More than this is no skew of clocks, but tokens that do not expire.
const MOST_SKEW: Period = Period::seconds(600);

/// Tokens longer than this are not looked at.
const LONGEST_TOKEN: usize = 8 * 1024;

/// Checks tokens of one issuer.
#[derive(Debug)]
pub struct Authenticator {
    config: Config,
    demands: jwt::Demands,
    keys: Arc<KeySet>,
    /// Tells authenticators apart in the cache of verified tokens.
    id: u64,
}

impl Authenticator {
    /// Builds the `authn` that stands at `place`. A key set in a file is read at once, one behind a URL by
    /// [`KeySet::keep`], which somebody must run for either kind: see [`Authenticator::keys`].
    pub fn build(place: &Path, config: &Config, problems: &mut Problems) -> Option<Self> {
        let keys = KeySet::build(&place.key("jwt").key("jwks"), &config.jwt.jwks, problems);
        // What is wrong with the rest is said all the same.
        let before = problems.len();
        config.check_words(place, problems);
        let keys = keys.filter(|_| problems.len() == before)?;
        Self::with_keys(place, config, Arc::new(keys), problems)
    }

    /// The same with keys that are there already.
    pub fn with_keys(
        place: &Path,
        config: &Config,
        keys: Arc<KeySet>,
        problems: &mut Problems,
    ) -> Option<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let before = problems.len();
        let jwt = &config.jwt;
        config.check_words(place, problems);
        (problems.len() == before).then(|| Self {
            config: config.clone(),
            demands: jwt::Demands {
                issuer: jwt.issuer.clone(),
                audience: jwt.audience.clone(),
                algorithms: jwt.algorithms.clone(),
                skew: jwt.clock_skew.as_duration(),
            },
            keys,
            id: IDS.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// What this was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The issuer's keys, for somebody to [`KeySet::keep`] them.
    pub fn keys(&self) -> &Arc<KeySet> {
        &self.keys
    }

    /// Who sent a request with these `headers`: what their bearer token says, if it is good in every respect.
    pub fn identify(&self, headers: &HeaderMap, now: SystemTime) -> Result<Arc<Claims>, Error> {
        let token = bearer_token(headers)?;
        let keys = self.keys.current();
        let Some(keys) = keys.as_ref() else {
            return Err(Error::new(
                Reason::KeySetUnavailable,
                format!("the keys of `{}` could not be had yet", self.demands.issuer),
            )
            .retry_after(Duration::from_secs(1)));
        };
        let version = (self.id, keys.generation());
        if let Some(claims) = cache::find(token, version, now) {
            return Ok(claims);
        }
        match jwt::verify(token, keys, &self.demands, now) {
            Ok(verified) => {
                let claims = Arc::clone(&verified.claims);
                cache::insert(token, version, verified);
                Ok(claims)
            }
            Err(refused) => {
                if refused.keys_may_be_old {
                    self.keys.ask_again();
                }
                Err(refused.error)
            }
        }
    }
}

fn check_audience(audience: &[String], place: &Path, problems: &mut Problems) {
    if audience.is_empty() {
        problems.at(
            place,
            "the list of audiences is empty, so no token can match",
            "list the `aud` of tokens for you, or leave `audience` out to take tokens for any",
        );
    }
    for (index, one) in audience.iter().enumerate() {
        let what = match one.as_str() {
            "" => "an audience is empty".to_owned(),
            _ if audience[..index].contains(one) => format!("the audience `{one}` is listed twice"),
            _ => continue,
        };
        problems.at(&place.index(index), what, "remove it");
    }
}

/// The token in the one `Authorization` field; nowhere else is looked (RFC 6750 §2.2 and §2.3 are ways to leak it).
fn bearer_token(headers: &HeaderMap) -> Result<&str, Error> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let missing = |detail: &'static str| Error::new(Reason::TokenMissing, detail);
    let malformed = |detail: &'static str| Error::new(Reason::TokenMalformed, detail);
    let Some(value) = fields.next() else {
        return Err(missing("the request has no Authorization field"));
    };
    if fields.next().is_some() {
        return Err(malformed("the request has two Authorization fields"));
    }
    let value = value.as_bytes();
    let end = value.iter().position(|byte| *byte == b' ');
    let (scheme, rest) = value.split_at(end.unwrap_or(value.len()));
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(missing(
            "the Authorization field has another scheme than Bearer",
        ));
    }
    let token = rest.trim_ascii();
    if token.is_empty() {
        return Err(malformed(
            "the Authorization field has no token after Bearer",
        ));
    }
    if token.len() > LONGEST_TOKEN {
        return Err(malformed("the token is longer than 8 KiB"));
    }
    std::str::from_utf8(token).map_err(|_| malformed("the token is not of ASCII characters"))
}

/// The `WWW-Authenticate` that goes with a `reason` that is about tokens (RFC 6750 §3); `None` for the others.
pub fn challenge(reason: Reason) -> Option<HeaderValue> {
    /// One constant string for each description.
    macro_rules! invalid {
        ($why:literal) => {
            concat!(
                r#"Bearer realm="weft", error="invalid_token", error_description=""#,
                $why,
                r#"""#
            )
        };
    }
    let value = match reason {
        // Without a token, no error: the client may not have known (RFC 6750 §3.1).
        Reason::TokenMissing => r#"Bearer realm="weft""#,
        Reason::TokenMalformed => invalid!("the token is malformed"),
        Reason::TokenAlgorithm => invalid!("the algorithm of the token is not allowed"),
        Reason::TokenKeyUnknown => invalid!("the key of the token is unknown"),
        Reason::TokenSignature => invalid!("the signature of the token is wrong"),
        Reason::TokenExpired => invalid!("the token has expired"),
        Reason::TokenNotYetValid => invalid!("the token is not valid yet"),
        Reason::TokenIssuer => invalid!("the token is from another issuer"),
        Reason::TokenAudience => invalid!("the token is for another audience"),
        _ => return None,
    };
    Some(HeaderValue::from_static(value))
}
