//! The demo's token issuer: a key made at the start, its public half as a key set in a file, and tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde::Serialize;

/// The `iss` of every token.
pub(super) const ISSUER: &str = "https://id.shop.internal";
/// The `aud` of every token.
pub(super) const AUDIENCE: &str = "shop";

const KEY_ID: &str = "demo-1";

/// Signs tokens with a key that exists as long as the demo.
pub(super) struct Issuer {
    key: EncodingKey,
}

/// The key could not be made or used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("make a key for the token issuer: {0}")]
    Generate(#[from] rcgen::Error),
    #[error("sign a token: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    #[error("write the key set: {0}")]
    Write(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: u64,
    exp: u64,
}

impl Issuer {
    /// With a new P-256 key.
    pub(super) fn new() -> Result<Self, Error> {
        let pair = KeyPair::generate()?;
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
        Ok(Self { key })
    }

    /// The public key as a JWK set, the text of a file.
    pub(super) fn key_set(&self) -> Result<String, Error> {
        let mut key = Jwk::from_encoding_key(&self.key, Algorithm::ES256)?;
        key.common.key_id = Some(KEY_ID.to_owned());
        Ok(serde_json::to_string_pretty(&JwkSet { keys: vec![key] })?)
    }

    /// A token for `subject`, valid from `now` for `life`.
    pub(super) fn token(
        &self,
        subject: &str,
        now: SystemTime,
        life: Duration,
    ) -> Result<String, Error> {
        let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = Claims {
            iss: ISSUER,
            aud: AUDIENCE,
            sub: subject,
            iat: issued.as_secs(),
            exp: (issued + life).as_secs(),
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(KEY_ID.to_owned());
        Ok(jsonwebtoken::encode(&header, &claims, &self.key)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    fn verify(token: &str, key_set: &str) -> Result<serde_json::Value, String> {
        let keys: JwkSet = serde_json::from_str(key_set).unwrap();
        let id = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
        let key = DecodingKey::from_jwk(keys.find(&id).unwrap()).unwrap();
        let mut wanted = Validation::new(Algorithm::ES256);
        wanted.set_issuer(&[ISSUER]);
        wanted.set_audience(&[AUDIENCE]);
        jsonwebtoken::decode::<serde_json::Value>(token, &key, &wanted)
            .map(|token| token.claims)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_verifies_with_the_key_set_and_with_no_other() {
        let issuer = Issuer::new().unwrap();
        let stranger = Issuer::new().unwrap();
        let token = issuer
            .token("ada", SystemTime::now(), Duration::from_secs(60))
            .unwrap();
        let claims = verify(&token, &issuer.key_set().unwrap()).unwrap();
        assert_eq!(claims["sub"], "ada");
        // The same key id, another key: this is what the demo sends as a bad token.
        let refusal = verify(&token, &stranger.key_set().unwrap()).unwrap_err();
        assert!(refusal.contains("InvalidSignature"), "{refusal}");
    }

    #[test]
    fn the_key_set_has_no_private_part() {
        let set = Issuer::new().unwrap().key_set().unwrap();
        let value: serde_json::Value = serde_json::from_str(&set).unwrap();
        let key = value["keys"][0].as_object().unwrap();
        assert!(!key.contains_key("d"), "{set}");
        assert_eq!(key["kid"], KEY_ID);
    }
}
