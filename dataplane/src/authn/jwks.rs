//! The keys of an issuer: a JSON Web Key Set (RFC 7517), of which the public keys for signatures are taken.
//!
//! A key has exactly one algorithm, which follows from what the key is. That is what decides how a signature is
//! checked; a token's `alg` can only agree. So a token cannot have an RSA key taken for the secret of an HMAC, nor ask for
//! no signature at all.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json;

/// How a signature is made. There are no others: nothing symmetric, nothing that may be forged if done carelessly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, keys of 2,048 to 8,192 bits.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA with P-256 and SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// As it stands in `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// From `alg`, in exactly this spelling.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }
}

/// One public key.
pub(super) struct Key {
    pub(super) id: Option<Box<str>>,
    pub(super) algorithm: Algorithm,
    public: ParsedPublicKey,
}

impl Key {
    /// Whether `signature` over `message` was made with this key's other half.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.public.verify_sig(message, signature).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {:?})", self.id, self.algorithm)
    }
}

/// The usable keys of one document; at least one.
#[derive(Debug)]
pub(super) struct Keys {
    list: Vec<Key>,
    generation: u64,
    /// What it was read from, to notice that nothing changed.
    document: Box<[u8]>,
    /// Why keys of the document were left out, one by one.
    left_out: Vec<String>,
}

/// A document with more keys than this is not an issuer's.
const MOST_KEYS: usize = 256;

impl Keys {
    /// Reads a document. Keys that are for something else are left out, as RFC 7517 §5 asks; a document without any
    /// usable key is refused, so that it can never take the place of one that has some.
    pub(super) fn parse(document: &[u8]) -> Result<Self, String> {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        let set = json::object(document).map_err(|error| format!("not a key set: {error}"))?;
        let Some(Value::Array(keys)) = set.get("keys") else {
            return Err("not a key set: it has no list `keys`".to_owned());
        };
        if keys.len() > MOST_KEYS {
            return Err(format!("{} keys are more than {MOST_KEYS}", keys.len()));
        }
        let mut list: Vec<Key> = Vec::new();
        let mut left_out = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            match key
                .as_object()
                .ok_or_else(|| "not an object".to_owned())
                .and_then(read_key)
            {
                Ok(key) => list.push(key),
                Err(why) => left_out.push(format!("key {}: {why}", index + 1)),
            }
        }
        if list.is_empty() {
            return Err(format!(
                "no usable key among {} ({})",
                keys.len(),
                left_out.join("; ")
            ));
        }
        Ok(Self {
            list,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            document: document.into(),
            left_out,
        })
    }

    /// Another number for every document read in this process.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn document(&self) -> &[u8] {
        &self.document
    }

    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The keys that a token with this `kid`, or without one, may be signed with.
    pub(super) fn named<'a>(&'a self, id: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.list
            .iter()
            .filter(move |key| id.is_none() || key.id.as_deref() == id)
    }
}

fn read_key(key: &Map<String, Value>) -> Result<Key, String> {
    let id = match key.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.as_str().into()),
        Some(_) => return Err("`kid` is not a string".to_owned()),
    };
    if key.get("use").is_some_and(|usage| usage != "sig") {
        return Err("`use` is not `sig`".to_owned());
    }
    if let Some(operations) = key.get("key_ops") {
        let operations = operations.as_array().map_or(&[][..], Vec::as_slice);
        if !operations.iter().any(|operation| operation == "verify") {
            return Err("`key_ops` has no `verify`".to_owned());
        }
    }
    // Who publishes the private half has published everybody's signature.
    if key.contains_key("d") {
        return Err(
            "it is a private key; publish the public one only, after making a new pair".to_owned(),
        );
    }
    let text = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or("");
    let (algorithm, public) = match (text("kty"), text("crv")) {
        ("RSA", _) => (Algorithm::Rs256, rsa(key)?),
        ("EC", "P-256") => (Algorithm::Es256, p256(key)?),
        ("OKP", "Ed25519") => (Algorithm::EdDsa, ed25519(key)?),
        (kind, "") => return Err(format!("keys of kind `{kind}` are not supported")),
        (kind, curve) => return Err(format!("keys of kind `{kind}` {curve} are not supported")),
    };
    if key
        .get("alg")
        .is_some_and(|given| given != algorithm.name())
    {
        return Err(format!("`alg` is not `{}`", algorithm.name()));
    }
    Ok(Key {
        id,
        algorithm,
        public,
    })
}

fn rsa(key: &Map<String, Value>) -> Result<ParsedPublicKey, String> {
    let (modulus, exponent) = (bytes(key, "n")?, bytes(key, "e")?);
    // Some libraries write a sign byte; the numbers are unsigned.
    let modulus = without_zeros(&modulus);
    let exponent = without_zeros(&exponent);
    let bits = modulus.len() * 8
        - modulus
            .first()
            .map_or(0, |byte| byte.leading_zeros() as usize);
    if !(2_048..=8_192).contains(&bits) {
        return Err(format!(
            "an RSA key of {bits} bits is not between 2,048 and 8,192"
        ));
    }
    // 1 would make every message its own signature; even ones are no exponents.
    if exponent == [1] || exponent.last().is_none_or(|byte| byte % 2 == 0) || exponent.len() > 8 {
        return Err("`e` is not an RSA exponent".to_owned());
    }
    RsaPublicKeyComponents {
        n: modulus,
        e: exponent,
    }
    .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
    .map_err(|error| format!("not an RSA key: {error}"))
}

fn p256(key: &Map<String, Value>) -> Result<ParsedPublicKey, String> {
    let (x, y) = (bytes(key, "x")?, bytes(key, "y")?);
    if x.len() != 32 || y.len() != 32 {
        return Err("`x` and `y` are not of 32 bytes each".to_owned());
    }
    let point = [&[4], &x[..], &y[..]].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .parse()
        .map_err(|error| format!("not a point of P-256: {error}"))
}

fn ed25519(key: &Map<String, Value>) -> Result<ParsedPublicKey, String> {
    let x = bytes(key, "x")?;
    if x.len() != 32 {
        return Err("`x` is not of 32 bytes".to_owned());
    }
    UnparsedPublicKey::new(&ED25519, x)
        .parse()
        .map_err(|error| format!("not an Ed25519 key: {error}"))
}

fn bytes(key: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    key.get(name)
        .and_then(Value::as_str)
        .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .ok_or_else(|| format!("`{name}` is not base64url without padding"))
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::super::testing::{ec_key, ed_key, other_rsa_key, rsa_key};
    use super::*;

    fn parse(keys: &Value) -> Result<Keys, String> {
        Keys::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    fn with(mut key: Value, name: &str, value: Value) -> Value {
        key[name] = value;
        key
    }

    #[test]
    fn public_signing_keys_are_taken_and_others_left_out() {
        let keys = parse(&json!([
            rsa_key().jwk("r"),
            ec_key().jwk("e"),
            ed_key().jwk("d"),
            {"kty": "oct", "kid": "h", "k": "c2VjcmV0"},
            with(rsa_key().jwk("enc"), "use", json!("enc")),
            "nonsense",
        ]))
        .unwrap();
        assert_eq!(keys.len(), 3);
        assert_eq!(keys.left_out().len(), 3, "{:?}", keys.left_out());
        let algorithms: Vec<_> = keys.named(None).map(|key| key.algorithm).collect();
        assert_eq!(algorithms, Algorithm::ALL);
        assert_eq!(keys.named(Some("e")).count(), 1);
        assert_eq!(keys.named(Some("x")).count(), 0);
    }

    #[test]
    fn a_key_that_is_not_what_it_says_is_left_out() {
        let check = |key: Value, why: &str| {
            let error = parse(&json!([key])).unwrap_err();
            assert!(
                error.contains("no usable key among 1") && error.contains(why),
                "{error}"
            );
        };
        let small = "w".repeat(171);
        check(
            with(rsa_key().jwk("a"), "alg", json!("RS512")),
            "`alg` is not `RS256`",
        );
        check(
            with(rsa_key().jwk("a"), "alg", json!("HS256")),
            "`alg` is not `RS256`",
        );
        check(with(rsa_key().jwk("a"), "alg", json!(7)), "`alg`");
        check(with(rsa_key().jwk("a"), "n", json!(small)), "bits");
        check(with(rsa_key().jwk("a"), "n", json!("")), "0 bits");
        check(
            with(rsa_key().jwk("a"), "n", json!("AQAB=")),
            "`n` is not base64url",
        );
        check(with(rsa_key().jwk("a"), "e", json!("AQ")), "exponent");
        check(with(rsa_key().jwk("a"), "e", json!("Ag")), "exponent");
        check(with(rsa_key().jwk("a"), "e", json!("")), "exponent");
        check(with(rsa_key().jwk("a"), "d", json!("AQAB")), "private");
        check(with(rsa_key().jwk("a"), "kid", json!(1)), "`kid`");
        check(with(rsa_key().jwk("a"), "use", json!(null)), "`use`");
        check(
            with(rsa_key().jwk("a"), "key_ops", json!(["sign"])),
            "`key_ops`",
        );
        check(
            with(rsa_key().jwk("a"), "key_ops", json!("verify")),
            "`key_ops`",
        );
        check(with(ec_key().jwk("a"), "crv", json!("P-384")), "P-384");
        check(
            with(ec_key().jwk("a"), "crv", json!("secp256k1")),
            "secp256k1",
        );
        check(with(ec_key().jwk("a"), "y", json!("AA")), "32 bytes");
        check(
            with(ec_key().jwk("a"), "y", json!("A".repeat(43))),
            "not a point",
        );
        check(
            with(ec_key().jwk("a"), "alg", json!("ES384")),
            "`alg` is not `ES256`",
        );
        check(with(ed_key().jwk("a"), "x", json!("AA")), "32 bytes");
        check(with(ed_key().jwk("a"), "crv", json!("X25519")), "X25519");
        check(json!({"kty": "oct", "k": "AAAA"}), "oct");
        check(json!({}), "not supported");
    }

    #[test]
    fn leading_zeros_of_rsa_numbers_do_not_matter() {
        let key = rsa_key().jwk("a");
        let modulus = URL_SAFE_NO_PAD.decode(key["n"].as_str().unwrap()).unwrap();
        let padded = URL_SAFE_NO_PAD.encode([&[0], &modulus[..]].concat());
        assert_eq!(
            parse(&json!([with(key, "n", json!(padded))]))
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn what_is_no_key_set_is_refused() {
        for document in [
            "",
            "[]",
            "{}",
            r#"{"keys": {}}"#,
            r#"{"keys": []}"#,
            r#"{"keys": [], "keys": []}"#,
            "<html>",
        ] {
            assert!(Keys::parse(document.as_bytes()).is_err(), "{document}");
        }
        let many: Vec<_> = (0..257).map(|_| ed_key().jwk("a")).collect();
        assert!(parse(&json!(many)).unwrap_err().contains("more than 256"));
    }

    #[test]
    fn every_document_has_its_own_generation() {
        let one = parse(&json!([rsa_key().jwk("a")])).unwrap();
        let other = parse(&json!([other_rsa_key().jwk("a")])).unwrap();
        assert_ne!(one.generation(), other.generation());
    }
}
