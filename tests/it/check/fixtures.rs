//! A directory with `weft.yaml` and the files that the tables name: certificates, keys and key sets, good and bad.

use std::path::PathBuf;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use crate::harness::Authority;

/// The files, by name, made once.
pub(crate) struct Fixtures(Vec<(PathBuf, String)>);

impl Fixtures {
    pub(crate) fn new() -> Self {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let names = vec!["api.shop.example".to_owned()];
        let cert = CertificateParams::new(names)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let (svid, svid_key, bundle) = svid("spiffe://shop.internal/service/ingress");
        let oct = r#"{ "keys": [ { "kty": "oct", "k": "c2VjcmV0", "kid": "1" } ] }"#;
        let files = [
            ("cert.pem", cert.pem()),
            ("key.pem", key.serialize_pem()),
            ("other.key", other.serialize_pem()),
            ("empty.pem", String::new()),
            (
                "garbage.pem",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            ),
            ("svid.pem", svid),
            ("svid.key", svid_key),
            ("bundle.pem", bundle),
            ("keys.json", key_set()),
            ("object.json", "{}".to_owned()),
            ("symmetric.json", oct.to_owned()),
            ("certs/readme", "a directory\n".to_owned()),
        ];
        Self(
            files
                .into_iter()
                .map(|(name, text)| (PathBuf::from(name), text))
                .collect(),
        )
    }

    /// A new directory with all of them and this `weft.yaml`.
    pub(crate) fn with(&self, file: &str) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in &self.0 {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        std::fs::write(directory.path().join("weft.yaml"), file).unwrap();
        directory
    }
}

/// A key set with one good P-256 key: the base point of the curve, which is a point of it for sure.
fn key_set() -> String {
    r#"{ "keys": [ { "kty": "EC", "crv": "P-256", "kid": "1",
        "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
        "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU" } ] }"#
        .to_owned()
}

/// Certificate, key and bundle, in PEM, by an authority made for it.
fn svid(id: &str) -> (String, String, String) {
    let authority = Authority::new();
    let leaf = authority.leaf(id);
    (leaf.chain_pem(), leaf.key_pem(), authority.bundle())
}
