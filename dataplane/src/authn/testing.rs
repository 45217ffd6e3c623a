//! An issuer for the tests: keys of every kind, and tokens that say anything.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub(super) enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

macro_rules! signers {
    ($($name:ident = $make:expr;)+) => {
        $(pub(super) fn $name() -> &'static Signer {
            static KEY: LazyLock<Signer> = LazyLock::new(|| $make);
            &KEY
        })+
    };
}

signers! {
    rsa_key = Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    other_rsa_key = Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    ec_key = Signer::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    ed_key = Signer::Ed(Ed25519KeyPair::generate().unwrap());
}

impl Signer {
    pub(super) fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Rsa(key) => json!({
                "kty": "RSA", "kid": id, "alg": "RS256", "use": "sig",
                "n": encode(key.public_key().modulus().big_endian_without_leading_zero()),
                "e": encode(key.public_key().exponent().big_endian_without_leading_zero()),
            }),
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({
                    "kty": "EC", "crv": "P-256", "kid": id, "key_ops": ["verify"],
                    "x": encode(&point[1..33]), "y": encode(&point[33..]),
                })
            }
            Self::Ed(key) => json!({
                "kty": "OKP", "crv": "Ed25519", "kid": id, "alg": "EdDSA",
                "x": encode(key.public_key().as_ref()),
            }),
        }
    }

    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .unwrap();
                signature
            }
            Self::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with exactly these texts as header and claims.
    pub(super) fn token(&self, header: &str, claims: &str) -> String {
        let signed = format!(
            "{}.{}",
            encode(header.as_bytes()),
            encode(claims.as_bytes())
        );
        let signature = encode(&self.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
