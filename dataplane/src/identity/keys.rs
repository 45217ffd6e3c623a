//! Our private key: made here, used here, never written anywhere.
//!
//! Each certificate gets a key of its own, so a key that leaked is worth no more than the rest of one certificate's life.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;

use super::verify::provider;

/// A fresh ECDSA P-256 key that has no certificate yet.
pub struct Key(KeyPair);

impl Key {
    /// Makes one.
    pub fn fresh() -> Result<Self, String> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|error| format!("no key could be made: {error}"))
    }

    /// Proves possession of the key to a CA: PKCS#10, DER. It asks for nothing; the CA decides what the certificate says.
    pub fn request(&self) -> Result<Vec<u8>, String> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters
            .serialize_request(&self.0)
            .map(|request| request.der().to_vec())
            .map_err(|error| format!("the certificate request could not be made: {error}"))
    }

    /// The key as rustls signs with it.
    pub fn into_signing_key(self) -> Result<Arc<dyn SigningKey>, String> {
        let der = PrivatePkcs8KeyDer::from(self.0.serialize_der());
        signing_key(PrivateKeyDer::Pkcs8(der))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Reads a private key in any form that rustls knows.
pub(super) fn signing_key(der: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, String> {
    provider()
        .key_provider
        .load_private_key(der)
        .map_err(|error| format!("the private key cannot be used: {error}"))
}
