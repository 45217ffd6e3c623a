//! An identity from files: taken when it is good, kept when what follows is not.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::sync::watch;
use weft_runtime::config::{self, Problems};

use crate::identity::files::{Config, Files};
use crate::identity::testing::{Ca, DOMAIN, Leaf, id, svid};
use crate::identity::{Identity, Source};
use crate::testing::until;

const CLIENT: &str = "spiffe://shop.internal/ns/default/sa/client";

struct Folder(TempDir);

impl Folder {
    fn new(ca: &Ca, leaf: &Leaf) -> Self {
        let folder = Self(TempDir::new().unwrap());
        folder.write("cert.pem", &pem(&leaf.chain));
        folder.write("key.pem", &leaf.key.serialize_pem());
        folder.write("bundle.pem", &pem(std::slice::from_ref(&ca.root)));
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    /// What is wrong, each as `path: what`.
    fn build(&self, trust_domain: &str) -> Result<Files, Vec<String>> {
        let config: Config = serde_json::from_str(
            r#"{ "cert": "cert.pem", "key": "key.pem", "bundle": "bundle.pem" }"#,
        )
        .unwrap();
        let mut problems = Problems::new();
        let at = config::Path::root().key("identity");
        let domain = trust_domain.parse().unwrap();
        config
            .build(self.0.path(), &domain, &at, &mut problems)
            .ok_or_else(|| {
                problems
                    .iter()
                    .map(|problem| format!("{}: {}", problem.path, problem.what))
                    .collect()
            })
    }
}

fn pem(certificates: &[CertificateDer<'static>]) -> String {
    certificates
        .iter()
        .map(|certificate| {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(certificate);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        })
        .collect()
}

#[tokio::test]
async fn good_changes_are_taken_and_bad_ones_are_not() {
    let ca = Ca::new();
    let (first, second) = (ca.leaf(&svid(CLIENT)), ca.leaf(&svid(CLIENT)));
    let folder = Folder::new(&ca, &first);
    let source = Source::Files(folder.build(DOMAIN).unwrap());
    let (stop, shutdown) = watch::channel(false);
    let identity = source
        .obtain(shutdown.clone(), |problem| panic!("{problem}"))
        .await
        .unwrap();
    assert_eq!(*identity.spiffe_id(), id(CLIENT));
    let keeping = source.keep(Arc::clone(&identity), shutdown);
    let story = async {
        // Half of a change is no change.
        folder.write("cert.pem", &pem(&second.chain));
        until("the half change is noticed", || {
            identity.status().last_error.is_some()
        })
        .await;
        let error = identity.status().last_error.unwrap();
        assert!(error.contains("key.pem"), "{error}");
        assert_eq!(identity.generation(), 1);

        folder.write("key.pem", &second.key.serialize_pem());
        until("the change is taken", || identity.generation() == 2).await;
        assert_eq!(identity.current().chain(), second.chain);
        assert_eq!(identity.status().last_error, None);

        std::fs::remove_file(folder.0.path().join("bundle.pem")).unwrap();
        until("the loss is noticed", || {
            identity.status().last_error.is_some()
        })
        .await;
        assert_eq!(identity.generation(), 2);
        folder.write("bundle.pem", &pem(&[Ca::new().root, ca.root.clone()]));
        until("the new bundle is taken", || identity.generation() == 3).await;
        assert_eq!(identity.current().bundle().roots().len(), 2);
        stop.send(true).unwrap();
    };
    tokio::join!(keeping, story);
}

#[tokio::test]
async fn the_files_are_waited_for() {
    let ca = Ca::new();
    let leaf = ca.leaf(&svid(CLIENT));
    let folder = Folder::new(&ca, &leaf);
    let files = folder.build(DOMAIN).unwrap();
    folder.write("key.pem", "");
    let (_stop, shutdown) = watch::channel(false);
    let source = Source::Files(files);
    let identity: Arc<Identity> = source
        .obtain(shutdown, |problem| {
            assert!(problem.contains("key.pem"), "{problem}");
            folder.write("key.pem", &leaf.key.serialize_pem());
        })
        .await
        .unwrap();
    assert!(identity.is_valid(SystemTime::now()));
}

#[tokio::test]
async fn waiting_ends_with_the_process() {
    let ca = Ca::new();
    let folder = Folder::new(&ca, &ca.leaf(&svid(CLIENT)));
    let files = folder.build(DOMAIN).unwrap();
    folder.write("cert.pem", "");
    let (stop, shutdown) = watch::channel(false);
    let obtained = Source::Files(files)
        .obtain(shutdown, |_| stop.send(true).unwrap())
        .await;
    assert!(obtained.is_none());
}

#[test]
fn what_is_wrong_is_said_where_the_file_is_named() {
    type Spoil = fn(&Folder, &Ca);
    let cases: &[(&str, Spoil, &[&str])] = &[
        ("good", |_, _| {}, &[]),
        (
            "all gone",
            |folder, _| {
                for name in ["cert.pem", "key.pem", "bundle.pem"] {
                    std::fs::remove_file(folder.0.path().join(name)).unwrap();
                }
            },
            &["identity.cert: ", "identity.key: ", "identity.bundle: "],
        ),
        (
            "empty",
            |folder, _| folder.write("cert.pem", ""),
            &["identity.cert: "],
        ),
        (
            "no PEM",
            |folder, _| folder.write("key.pem", "secret"),
            &["identity.key: "],
        ),
        (
            "broken PEM",
            |folder, _| {
                folder.write(
                    "bundle.pem",
                    "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
                );
            },
            &["identity.bundle: "],
        ),
        (
            "another's key",
            |folder, ca| {
                let key = ca.leaf(&svid(CLIENT)).key;
                folder.write("key.pem", &key.serialize_pem());
            },
            &["identity.key: "],
        ),
        (
            "another's bundle",
            |folder, _| folder.write("bundle.pem", &pem(&[Ca::new().root])),
            &["identity.bundle: "],
        ),
        (
            "a leaf for a bundle",
            |folder, ca| folder.write("bundle.pem", &pem(&ca.leaf(&svid(CLIENT)).chain)),
            &["identity.bundle: "],
        ),
        (
            "too large",
            |folder, _| folder.write("cert.pem", &"x".repeat((1 << 20) + 1)),
            &["identity.cert: "],
        ),
        (
            "too long a chain",
            |folder, ca| folder.write("cert.pem", &pem(std::slice::from_ref(&ca.root)).repeat(17)),
            &["identity.cert: "],
        ),
    ];
    for (name, spoil, expected) in cases {
        let ca = Ca::new();
        let folder = Folder::new(&ca, &ca.leaf(&svid(CLIENT)));
        spoil(&folder, &ca);
        let problems = folder.build(DOMAIN).err().unwrap_or_default();
        assert_eq!(problems.len(), expected.len(), "{name}: {problems:?}");
        for (problem, path) in problems.iter().zip(*expected) {
            assert!(problem.starts_with(path), "{name}: {problem}");
            assert!(!problem.contains("secret"), "{name}: {problem}");
        }
    }
}

#[test]
fn another_trust_domain_is_a_problem() {
    let ca = Ca::new();
    let folder = Folder::new(&ca, &ca.leaf(&svid(CLIENT)));
    let problems = folder.build("other.internal").unwrap_err();
    assert!(
        problems[0].contains("our `trust_domain` is other.internal"),
        "{problems:?}"
    );
}

#[test]
fn an_unknown_key_is_refused() {
    let text = r#"{ "cert": "a", "key": "b", "bundle": "c", "ca": "d" }"#;
    assert!(serde_json::from_str::<Config>(text).is_err());
    assert_eq!(
        serde_json::from_str::<Config>(r#"{ "cert": "a", "key": "b", "bundle": "c" }"#)
            .unwrap()
            .bundle,
        Path::new("c")
    );
}
