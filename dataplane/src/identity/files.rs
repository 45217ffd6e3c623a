//! An identity from three files that somebody else keeps: certificate chain, private key, trust bundle, all PEM.
//!
//! Their contents are looked at every second; what changed is taken when the three fit together ([`Together`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tracing::{info, warn};
use weft_runtime::config::{self, Fingerprint, Look, Together};

use super::Identity;
use super::bundle::Bundle;
use super::id::TrustDomain;
use super::keys::signing_key;
use super::material::{Material, MaterialProblem, Part};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Far above any certificate chain or bundle.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// More than any chain needs; the rest of such a file is something else.
const MAX_CHAIN: usize = 16;

/// `identity:`, instead of the CA.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Identity")]
pub struct Config {
    /// The certificate chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
    /// The roots to trust.
    pub bundle: PathBuf,
}

impl Config {
    /// Reads the files once, so that what is wrong with them is said where they are named.
    ///
    /// Relative paths are relative to `base`. The certificate must belong to `trust_domain`.
    pub fn build(
        &self,
        base: &Path,
        trust_domain: &TrustDomain,
        at: &config::Path,
        problems: &mut config::Problems,
    ) -> Option<Files> {
        let files = Files {
            cert: base.join(&self.cert),
            key: base.join(&self.key),
            bundle: base.join(&self.bundle),
            trust_domain: trust_domain.clone(),
        };
        let read = |path: &Path| {
            let length = std::fs::metadata(path)?.len();
            check_length(length)?;
            std::fs::read(path)
        };
        let mut contents = [Vec::new(), Vec::new(), Vec::new()];
        let mut complete = true;
        for (part, content) in PARTS.iter().zip(&mut contents) {
            match read(files.path(*part)) {
                Ok(bytes) => *content = bytes,
                Err(error) => {
                    complete = false;
                    let path = files.path(*part).display();
                    problems.at(
                        &at.key(key_of(*part)),
                        format!("{path} cannot be read: {error}"),
                        "name a PEM file that this process may read",
                    );
                }
            }
        }
        if !complete {
            return None;
        }
        match files.assemble(&contents, SystemTime::now()) {
            Ok(_) => Some(files),
            Err(problem) => {
                problems.at(
                    &at.key(key_of(problem.part)),
                    problem.what,
                    "give the certificate chain (leaf first), its private key and the roots, of one trust domain",
                );
                None
            }
        }
    }
}

/// Three files that make an identity.
#[derive(Debug, Clone)]
pub struct Files {
    cert: PathBuf,
    key: PathBuf,
    bundle: PathBuf,
    trust_domain: TrustDomain,
}

type Contents = [Vec<u8>; 3];

const PARTS: [Part; 3] = [Part::Certificate, Part::Key, Part::Bundle];

impl Files {
    /// The identity that the files make now.
    pub async fn load(&self, now: SystemTime) -> Result<Material, MaterialProblem> {
        self.assemble(&self.read().await?, now)
    }

    /// Takes every change that fits, until it is dropped.
    pub(super) async fn keep(&self, identity: &Identity) {
        let mut files = Together::default();
        loop {
            let read = self.read().await;
            self.look(identity, read, &mut files, SystemTime::now());
            tokio::time::sleep(EVERY).await;
        }
    }

    fn look(
        &self,
        identity: &Identity,
        read: Result<Contents, MaterialProblem>,
        files: &mut Together,
        now: SystemTime,
    ) {
        let contents = read.as_ref().ok();
        let print = contents.map(|contents| Fingerprint::of(contents.iter().map(Vec::as_slice)));
        let take = || -> Result<Option<String>, MaterialProblem> {
            let material = self.assemble(&read?, now)?;
            if same(&identity.current(), &material) {
                return Ok(None);
            }
            let serial = material.serial().to_owned();
            identity.renew(material)?;
            Ok(Some(serial))
        };
        match files.look(print, take) {
            Look::Same { mended: true } | Look::Taken(None) => identity.note_success(),
            Look::Same { mended: false } | Look::Unfit => {}
            Look::Taken(Some(serial)) => info!(serial, "certificate taken from files"),
            Look::Problem(problem) => {
                warn!(%problem, "the identity's files do not fit together; the last good ones stay in use");
                identity.note_failure(problem.to_string());
            }
        }
    }

    async fn read(&self) -> Result<Contents, MaterialProblem> {
        let mut contents = [Vec::new(), Vec::new(), Vec::new()];
        for (part, content) in PARTS.iter().zip(&mut contents) {
            let path = self.path(*part);
            *content = read_small(path).await.map_err(|error| {
                MaterialProblem::new(*part, format!("{} cannot be read: {error}", path.display()))
            })?;
        }
        Ok(contents)
    }

    fn assemble(
        &self,
        [cert, key, bundle]: &Contents,
        now: SystemTime,
    ) -> Result<Material, MaterialProblem> {
        let chain =
            certificates(cert, MAX_CHAIN).map_err(|what| self.about(Part::Certificate, &what))?;
        let roots = certificates(bundle, super::MAX_ROOTS)
            .map_err(|what| self.about(Part::Bundle, &what))?;
        let bundle = Bundle::from_der(roots).map_err(|what| self.about(Part::Bundle, &what))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            self.about(Part::Key, &format!("no private key in PEM form ({error})"))
        })?;
        let key = signing_key(key).map_err(|what| self.about(Part::Key, &what))?;
        let material = Material::assemble(chain, key, bundle, now)
            .map_err(|problem| self.about(problem.part, &problem.what))?;
        if *material.trust_domain() != self.trust_domain {
            let what = format!(
                "the certificate is for {}, but our `trust_domain` is {}",
                material.spiffe_id(),
                self.trust_domain
            );
            return Err(self.about(Part::Certificate, &what));
        }
        Ok(material)
    }

    fn path(&self, part: Part) -> &Path {
        match part {
            Part::Certificate => &self.cert,
            Part::Key => &self.key,
            Part::Bundle => &self.bundle,
        }
    }

    fn about(&self, part: Part, what: &str) -> MaterialProblem {
        MaterialProblem::new(part, format!("{}: {what}", self.path(part).display()))
    }
}

fn same(a: &Material, b: &Material) -> bool {
    a.chain() == b.chain() && a.bundle() == b.bundle()
}

fn certificates(pem: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(most + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("no certificates in PEM form ({error})"))?;
    match certificates.len() {
        0 => Err("no certificate in PEM form".to_owned()),
        count if count > most => Err(format!("more than {most} certificates")),
        _ => Ok(certificates),
    }
}

fn key_of(part: Part) -> &'static str {
    match part {
        Part::Certificate => "cert",
        Part::Key => "key",
        Part::Bundle => "bundle",
    }
}

fn check_length(length: u64) -> std::io::Result<()> {
    if length > MAX_FILE_BYTES {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("it is larger than {MAX_FILE_BYTES} bytes"),
        ));
    }
    Ok(())
}

/// Reads a file whole, unless it is larger than anything that belongs here.
pub(super) async fn read_small(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .await?;
    check_length(bytes.len() as u64)?;
    Ok(bytes)
}
