//! TLS of public listeners: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, from PEM files.

use std::path::Path as FilePath;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use weft_runtime::config::{Path, Problems};

use crate::config::Tls;

/// What is wrong with a file.
fn words(file: &FilePath, error: &pem::Error) -> String {
    let file = file.display();
    match error {
        pem::Error::Io(error) => format!("{file} cannot be read: {error}"),
        pem::Error::NoItemsFound => format!("{file} has no private key in it"),
        _ => format!("{file} is not PEM: {error}"),
    }
}

/// Reads the files. `base` is what relative paths are relative to, `place` where they stand in the file.
pub(crate) fn build(
    tls: &Tls,
    base: &FilePath,
    place: &Path,
    problems: &mut Problems,
) -> Option<Arc<ServerConfig>> {
    let before = problems.len();
    let (cert, key) = (base.join(&tls.cert), base.join(&tls.key));
    let chain =
        CertificateDer::pem_file_iter(&cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = match chain {
        Ok(chain) if chain.is_empty() => {
            problems.at(
                &place.key("cert"),
                format!("{} has no certificate in it", cert.display()),
                "give a PEM file with the chain, leaf first",
            );
            None
        }
        Ok(chain) => Some(chain),
        Err(error) => {
            problems.at(
                &place.key("cert"),
                words(&cert, &error),
                "give a PEM file with the chain, leaf first, that this process may read",
            );
            None
        }
    };
    let key_der = PrivateKeyDer::from_pem_file(&key).map_err(|error| {
        problems.at(
            &place.key("key"),
            words(&key, &error),
            "give a PEM file with a private key that this process may read",
        );
    });
    let (chain, key_der) = (chain?, key_der.ok()?);
    let config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, key_der)
        });
    match config {
        Ok(mut config) => {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Some(Arc::new(config)).filter(|_| problems.len() == before)
        }
        Err(rustls::Error::InvalidCertificate(error)) => {
            problems.at(
                &place.key("cert"),
                format!("{} begins with no certificate: {error}", cert.display()),
                "give a PEM file with the chain, leaf first",
            );
            None
        }
        Err(error) => {
            problems.at(
                &place.key("key"),
                format!(
                    "{} and {} do not go together: {error}",
                    cert.display(),
                    key.display()
                ),
                "give the private key that belongs to the certificate",
            );
            None
        }
    }
}

/// The cryptography of the edge: the mesh's suites, in its order, and those of TLS 1.2 that keep past traffic secret when
/// a key is lost. Some clients of the public cannot do better.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    }
}
