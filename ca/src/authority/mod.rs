//! The root and the intermediate: made once, kept on disk, the intermediate renewed at half its life.
//!
//! The root signs intermediates only; the intermediate signs leaves. What clients trust is the root.

mod rotate;
mod slot;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use rotate::{due, wait};
pub use slot::Signer;
pub(crate) use slot::{only_uri, pem};

use crate::error::random;
use crate::profile::{Serial, Tier, Validity};
use crate::store::{self, Directory};
use crate::{Error, Lifetimes, TrustDomain};

/// The root alone: enough to make join tokens and to show the bundle.
#[derive(Debug)]
pub struct Root {
    signer: Signer,
    domain: TrustDomain,
    path: PathBuf,
}

impl Root {
    /// Reads the root; `None` when the state has none yet.
    pub fn read(directory: &Directory) -> Result<Option<Self>, Error> {
        let path = directory.path_of(store::ROOT);
        let Some(bytes) = directory.read(store::ROOT)? else {
            // A state that lost its root is not an empty one: a new root would cut off every service at once.
            if directory.read(store::INTERMEDIATE)?.is_some() {
                return Err(Error::State {
                    path,
                    what: "the root is missing, but its intermediate is there".into(),
                    cure: "put back the file of the last backup, or remove the whole directory to begin anew".into(),
                });
            }
            return Ok(None);
        };
        let damaged = |what: String| Error::State {
            path: path.clone(),
            what,
            cure:
                "put back the file of the last backup, or remove the whole directory to begin anew"
                    .into(),
        };
        let signer = Signer::from_pem(&bytes).map_err(damaged)?;
        if !signer.signed(&signer) {
            return Err(damaged("its certificate is not a root".into()));
        }
        let domain = TrustDomain::of_authority(signer.uri())
            .ok_or_else(|| damaged("its certificate names no trust domain".into()))?;
        Ok(Some(Self {
            signer,
            domain,
            path,
        }))
    }

    /// Makes a root and keeps it. Only for who holds the lock for making things.
    pub fn create(
        directory: &Directory,
        domain: &TrustDomain,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let key = new_key()?;
        let validity = Validity::new(now, lifetimes.root, lifetimes.backdate, None);
        let params = Tier::Root.params(domain, &validity, Serial::new(random()?))?;
        let certificate = params
            .self_signed(&key)
            .map_err(Error::sign("sign the root"))?;
        let path = directory.path_of(store::ROOT);
        let signer = checked(certificate.der().clone(), key, &path)?;
        directory.write(store::ROOT, signer.to_pem().as_bytes())?;
        tracing::info!(
            trust_domain = %domain,
            not_after = %rfc3339(validity.not_after),
            fingerprint = crate::token::hex(&crate::token::sha256(signer.certificate())),
            "made a new root"
        );
        Ok(Self {
            signer,
            domain: domain.clone(),
            path,
        })
    }

    /// Refuses a root of another trust domain than `wanted`.
    pub fn check_domain(&self, wanted: &TrustDomain, directory: &Directory) -> Result<(), Error> {
        if self.domain == *wanted {
            return Ok(());
        }
        Err(Error::TrustDomain {
            path: directory.path().to_owned(),
            found: self.domain.as_str().to_owned(),
            wanted: wanted.as_str().to_owned(),
        })
    }

    /// Refuses a root whose time is over.
    pub fn check_time(&self, now: SystemTime) -> Result<(), Error> {
        if now <= self.signer.validity().not_after {
            return Ok(());
        }
        Err(Error::State {
            path: self.path.clone(),
            what: format!(
                "the root expired at {}",
                rfc3339(self.signer.validity().not_after)
            ),
            cure: "remove the whole directory to begin anew, and join every service again".into(),
        })
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.signer.certificate()
    }

    /// When it is valid.
    pub fn validity(&self) -> &Validity {
        self.signer.validity()
    }

    /// Whose root this is.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        crate::token::sha256(self.certificate())
    }

    /// Makes an intermediate.
    fn prepare(
        &self,
        lifetimes: &Lifetimes,
        now: SystemTime,
        path: &std::path::Path,
    ) -> Result<Signer, Error> {
        let key = new_key()?;
        let validity = Validity::new(
            now,
            lifetimes.intermediate,
            lifetimes.backdate,
            Some(self.validity()),
        );
        let params = Tier::Intermediate.params(&self.domain, &validity, Serial::new(random()?))?;
        let certificate = params
            .signed_by(&key, self.signer.issuer())
            .map_err(Error::sign("sign the intermediate"))?;
        checked(certificate.der().clone(), key, path)
    }
}

/// The root with the intermediate that signs.
#[derive(Debug)]
pub struct Authority {
    root: Root,
    intermediate: slot::Slot,
    lifetimes: Lifetimes,
    directory: Directory,
}

impl Authority {
    /// Reads the state, or makes it. Only for who holds the lock for making things.
    pub fn open(
        directory: &Directory,
        domain: &TrustDomain,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let root = match Root::read(directory)? {
            Some(root) => root,
            None => Root::create(directory, domain, lifetimes, now)?,
        };
        root.check_domain(domain, directory)?;
        root.check_time(now)?;
        let path = directory.path_of(store::INTERMEDIATE);
        let damaged = |what: String| Error::State {
            path: path.clone(),
            what,
            cure: "remove this one file; the root signs a new one, and services notice nothing"
                .into(),
        };
        let signer = match directory.read(store::INTERMEDIATE)? {
            Some(bytes) => {
                let signer = Signer::from_pem(&bytes).map_err(damaged)?;
                if !root.signer.signed(&signer) {
                    return Err(damaged("it was not signed by the root beside it".into()));
                }
                signer
            }
            None => {
                let signer = root.prepare(lifetimes, now, &path)?;
                directory.write(store::INTERMEDIATE, signer.to_pem().as_bytes())?;
                signer
            }
        };
        let authority = Self {
            root,
            intermediate: slot::Slot::new(store::INTERMEDIATE, signer),
            lifetimes: *lifetimes,
            directory: directory.clone(),
        };
        authority.keep(now)?;
        Ok(authority)
    }

    /// Replaces the intermediate when it is due. Called by one task, time and again.
    pub fn keep(&self, now: SystemTime) -> Result<bool, Error> {
        let active = self.intermediate.active();
        if !due(
            now,
            active.validity(),
            self.lifetimes.intermediate,
            self.root.validity(),
        ) {
            return Ok(false);
        }
        let path = self.directory.path_of(store::INTERMEDIATE);
        let prepared = self.root.prepare(&self.lifetimes, now, &path)?;
        let not_after = prepared.validity().not_after;
        self.intermediate.activate(prepared, &self.directory)?;
        tracing::info!(not_after = %rfc3339(not_after), "renewed the intermediate");
        Ok(true)
    }

    /// How long until [`Authority::keep`] has something to do.
    pub fn wait(&self, now: SystemTime) -> Duration {
        wait(
            now,
            self.intermediate.active().validity(),
            self.lifetimes.intermediate,
        )
    }

    /// What signs leaves now.
    pub fn signer(&self) -> Arc<Signer> {
        self.intermediate.active()
    }

    /// The root.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::sign("make a key"))
}

/// Reads back what was just made, so that a certificate that we could not load again is never kept.
fn checked(
    certificate: CertificateDer<'static>,
    key: KeyPair,
    path: &std::path::Path,
) -> Result<Signer, Error> {
    Signer::new(certificate, key).map_err(|what| Error::State {
        path: path.to_owned(),
        what: format!("what was made for it is not right: {what}"),
        cure: "this is a fault of Weft; please report it".into(),
    })
}

/// A time as people and journals write it.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "a time beyond the calendar".into())
}

#[cfg(test)]
mod tests;
