//! TLS of public listeners: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, from PEM files.
//!
//! The files are looked at every second, because whoever renews certificates writes them and nothing else. What changed is
//! taken when the two go together ([`Together`]). New connections see what was taken, under the plan in force.

use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::Semaphore;
use weft_dataplane::identity::ends;
use weft_dataplane::observe::ListenerCertificateRow;
use weft_runtime::config::{Fingerprint, Look, Path, Problems, Together, Watched, file};

use crate::config::Tls;
use crate::design::Design;

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// What a listener shows, and the files that it is from.
#[derive(Debug)]
pub(crate) struct Shown {
    listener: Arc<str>,
    cert: PathBuf,
    key: PathBuf,
    config: Arc<ArcSwap<ServerConfig>>,
    /// Guards what the looks at the files found. Held to copy it, and while files that have changed are parsed; who asks for
    /// the rows then waits for that, and no connection does.
    seen: Mutex<Seen>,
    /// One look at a time.
    looks: Arc<Semaphore>,
}

#[derive(Debug)]
struct Seen {
    files: Together,
    not_after: Option<SystemTime>,
    problem: Option<Arc<str>>,
}

/// What is wrong with one of the files.
struct Wrong {
    key: &'static str,
    what: String,
    cure: &'static str,
}

const READABLE_CHAIN: &str =
    "give a PEM file with the chain, leaf first, that this process may read";
const CHAIN: &str = "give a PEM file with the chain, leaf first";
const READABLE_KEY: &str = "give a PEM file with a private key that this process may read";

impl Shown {
    /// Reads the files. `base` is what relative paths are relative to, `place` where they stand in the file.
    pub(crate) fn build(
        listener: &str,
        tls: &Tls,
        base: &FilePath,
        place: &Path,
        problems: &mut Problems,
    ) -> Option<Self> {
        let (cert, key) = (base.join(&tls.cert), base.join(&tls.key));
        let read = read(&cert, &key);
        let built = assemble(&cert, &key, &read);
        match (built, fingerprint(&read)) {
            (Ok((config, not_after)), Some(taken)) => Some(Self {
                listener: Arc::from(listener),
                cert,
                key,
                config: Arc::new(ArcSwap::from_pointee(config)),
                seen: Mutex::new(Seen {
                    files: Together::taken(taken),
                    not_after,
                    problem: None,
                }),
                looks: Arc::new(Semaphore::new(1)),
            }),
            (built, _) => {
                for wrong in built.err().into_iter().flatten() {
                    problems.at(&place.key(wrong.key), wrong.what, wrong.cure);
                }
                None
            }
        }
    }

    /// What connections are to be taken with, now and when the files have changed.
    pub(crate) fn config(&self) -> Arc<ArcSwap<ServerConfig>> {
        Arc::clone(&self.config)
    }

    pub(crate) fn row(&self) -> ListenerCertificateRow {
        let seen = self.seen();
        ListenerCertificateRow {
            listener: Arc::clone(&self.listener),
            not_after: seen.not_after,
            problem: seen.problem.clone(),
        }
    }

    /// Looks at the files, and takes what they hold if it is new and good. Blocks.
    fn look(&self) {
        let read = read(&self.cert, &self.key);
        let print = fingerprint(&read);
        let mut seen = self.seen();
        let took = seen
            .files
            .look(print, || assemble(&self.cert, &self.key, &read));
        match took {
            Look::Same { mended: true } => {
                seen.problem = None;
                tracing::info!(listener = %self.listener, "the certificate's files are good again");
            }
            Look::Same { mended: false } | Look::Unfit => {}
            Look::Taken((config, not_after)) => {
                self.config.store(Arc::new(config));
                (seen.not_after, seen.problem) = (not_after, None);
                tracing::info!(listener = %self.listener, "the listener shows another certificate");
            }
            Look::Problem(wrongs) => {
                let words: Vec<_> = wrongs.into_iter().map(|wrong| wrong.what).collect();
                let problem = words.join("; ");
                tracing::warn!(listener = %self.listener, %problem, "the certificate's files cannot be used as they are; what they held last is shown on");
                seen.problem = Some(Arc::from(problem));
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // It is whole at every moment: a panic elsewhere cannot have broken it.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the files of whichever design is in force. Never ends; dropping it stops it, but for looks under way.
pub(crate) async fn follow(in_force: Watched<Arc<Design>>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        look_at_all(in_force.get().shown());
    }
}

/// Has the files of each listener looked at, side by side: one of them may be on a disk that hangs.
fn look_at_all<'a>(all: impl Iterator<Item = &'a Arc<Shown>>) {
    for shown in all {
        let Ok(look) = Arc::clone(&shown.looks).try_acquire_owned() else {
            continue;
        };
        let shown = Arc::clone(shown);
        tokio::task::spawn_blocking(move || {
            shown.look();
            drop(look);
        });
    }
}

/// The certificate's file and the key's.
type Read = (io::Result<Vec<u8>>, io::Result<Vec<u8>>);

fn read(cert: &FilePath, key: &FilePath) -> Read {
    (file::read_bytes(cert), file::read_bytes(key))
}

fn fingerprint((cert, key): &Read) -> Option<Fingerprint> {
    let (cert, key) = (cert.as_ref().ok()?, key.as_ref().ok()?);
    Some(Fingerprint::of([cert.as_slice(), key.as_slice()]))
}

/// Makes of what was read what connections are taken with, and says until when the certificate is good.
fn assemble(
    cert: &FilePath,
    key: &FilePath,
    (chain, secret): &Read,
) -> Result<(ServerConfig, Option<SystemTime>), Vec<Wrong>> {
    let mut wrongs = Vec::new();
    let mut wrong = |key, what, cure| wrongs.push(Wrong { key, what, cure });
    let chain = match chain {
        Ok(text) => CertificateDer::pem_slice_iter(text)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| words(cert, &error)),
        Err(error) => Err(unreadable(cert, error)),
    };
    let chain = match chain {
        Ok(chain) if chain.is_empty() => {
            let what = format!("{} has no certificate in it", cert.display());
            wrong("cert", what, CHAIN);
            None
        }
        Ok(chain) => Some(chain),
        Err(what) => {
            wrong("cert", what, READABLE_CHAIN);
            None
        }
    };
    let secret = match secret {
        Ok(text) => PrivateKeyDer::from_pem_slice(text).map_err(|error| words(key, &error)),
        Err(error) => Err(unreadable(key, error)),
    };
    let secret = secret.map_err(|what| wrong("key", what, READABLE_KEY));
    let (Some(chain), Ok(secret)) = (chain, secret) else {
        return Err(wrongs);
    };
    let not_after = chain.first().and_then(|leaf| ends(leaf));
    let config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, secret)
        });
    match config {
        Ok(mut config) => {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok((config, not_after))
        }
        Err(rustls::Error::InvalidCertificate(error)) => Err(vec![Wrong {
            key: "cert",
            what: format!("{} begins with no certificate: {error}", cert.display()),
            cure: CHAIN,
        }]),
        Err(error) => Err(vec![Wrong {
            key: "key",
            what: format!(
                "{} and {} do not go together: {error}",
                cert.display(),
                key.display()
            ),
            cure: "give the private key that belongs to the certificate",
        }]),
    }
}

fn unreadable(file: &FilePath, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", file.display())
}

/// What is wrong with a file that could be read.
fn words(file: &FilePath, error: &pem::Error) -> String {
    let file = file.display();
    match error {
        pem::Error::NoItemsFound => format!("{file} has no private key in it"),
        _ => format!("{file} is not PEM: {error}"),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn write(directory: &FilePath, name: &str) {
        let made = rcgen::generate_simple_self_signed([format!("{name}.example")]).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), made.cert.pem()).unwrap();
        let key = made.signing_key.serialize_pem();
        std::fs::write(directory.join(format!("{name}.key")), key).unwrap();
    }

    #[tokio::test]
    async fn a_look_that_hangs_holds_up_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let shown = |name: &str| {
            write(directory.path(), name);
            let tls = Tls {
                cert: format!("{name}.pem").into(),
                key: format!("{name}.key").into(),
            };
            let mut problems = Problems::new();
            let place = Path::root();
            let built = Shown::build(name, &tls, directory.path(), &place, &mut problems);
            Arc::new(built.unwrap())
        };
        let all = [shown("hangs"), shown("works")];
        let before = all[1].config.load_full();
        let hangs = all[0].seen();
        write(directory.path(), "hangs");
        write(directory.path(), "works");
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while Arc::ptr_eq(&before, &all[1].config.load_full()) {
            assert!(std::time::Instant::now() < end, "it waits for the other");
            look_at_all(all.iter());
            std::thread::yield_now();
        }
        drop(hangs);
    }
}
