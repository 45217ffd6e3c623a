//! One certificate with its key and the bundle that goes with it, checked to fit together before anybody uses them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::{CertifiedKey, SigningKey};

use super::bundle::Bundle;
use super::id::{SpiffeId, TrustDomain};
use super::problem::PeerProblem;
use super::svid::{Purpose, Svid};
use super::verify::check_chain;

/// Which of the three does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The certificate chain.
    Certificate,
    /// The private key.
    Key,
    /// The trust bundle.
    Bundle,
}

/// Why certificate, key and bundle are no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct MaterialProblem {
    /// The one to blame.
    pub part: Part,
    /// What is wrong with it.
    pub what: String,
}

impl MaterialProblem {
    pub(super) fn new(part: Part, what: impl Into<String>) -> Self {
        Self {
            part,
            what: what.into(),
        }
    }
}

/// An identity as it is at one moment. Immutable; a renewal makes another.
#[derive(Clone)]
pub struct Material {
    svid: Svid,
    trust_domain: TrustDomain,
    certified: Arc<CertifiedKey>,
    bundle: Bundle,
    obtained: SystemTime,
    generation: u64,
}

impl Material {
    /// Puts the three together. The chain must be good for both ends of a connection and lead to the bundle, now.
    pub fn assemble(
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
        bundle: Bundle,
        now: SystemTime,
    ) -> Result<Self, MaterialProblem> {
        let certificate = |what: String| MaterialProblem::new(Part::Certificate, what);
        let Some((leaf, others)) = chain.split_first() else {
            return Err(certificate("there is no certificate".to_owned()));
        };
        let svid = Svid::from_der(leaf, &[Purpose::Client, Purpose::Server])
            .map_err(|problem| certificate(own(&problem)))?;
        check_chain(
            leaf,
            others,
            bundle.anchors(),
            Purpose::Client,
            unix_time(now),
        )
        .map_err(|problem| match problem {
            PeerProblem::ForeignRoot => MaterialProblem::new(
                Part::Bundle,
                "the certificate does not lead to a root of the bundle",
            ),
            problem => certificate(own(&problem)),
        })?;
        let trust_domain = svid
            .id
            .trust_domain()
            .parse()
            .map_err(|error| certificate(format!("its trust domain: {error}")))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| {
            MaterialProblem::new(
                Part::Key,
                "the private key is not the one that the certificate was issued for",
            )
        })?;
        Ok(Self {
            svid,
            trust_domain,
            certified: Arc::new(certified),
            bundle,
            obtained: now,
            generation: 0,
        })
    }

    /// The same certificate with other roots to check peers against.
    pub fn with_bundle(&self, bundle: Bundle) -> Self {
        Self {
            bundle,
            ..self.clone()
        }
    }

    pub(super) fn numbered(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// Who we are.
    pub fn spiffe_id(&self) -> &Arc<SpiffeId> {
        &self.svid.id
    }

    /// Where we belong.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Our certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whom we trust.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// From when the certificate is valid.
    pub fn not_before(&self) -> SystemTime {
        self.svid.not_before
    }

    /// Until when the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.svid.not_after
    }

    /// When we got it.
    pub fn obtained(&self) -> SystemTime {
        self.obtained
    }

    /// The certificate's serial number in lower-case hexadecimal digits.
    pub fn serial(&self) -> &str {
        &self.svid.serial
    }

    /// Counts the changes of certificate or bundle in this process, from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the certificate is valid at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before() <= now && now <= self.not_after()
    }

    /// Whether the certificate leads to a root of the bundle, which a change of the bundle may end.
    pub fn is_vouched_for(&self, now: SystemTime) -> bool {
        let chain = &self.certified.cert;
        chain.split_first().is_some_and(|(leaf, others)| {
            check_chain(
                leaf,
                others,
                self.bundle.anchors(),
                Purpose::Client,
                unix_time(now),
            )
            .is_ok()
        })
    }

    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("spiffe_id", &self.svid.id)
            .field("serial", &self.svid.serial)
            .field("generation", &self.generation)
            .field("key", &"redacted")
            .finish_non_exhaustive()
    }
}

/// A problem with our own certificate in the words for it, which otherwise speak of the peer's.
fn own(problem: &PeerProblem) -> String {
    match problem {
        PeerProblem::BadSvid(what) => format!("the certificate is not an X.509-SVID: {what}"),
        PeerProblem::Expired { ago } => format!("the certificate expired {ago:?} ago"),
        PeerProblem::NotYetValid { ahead } => {
            format!("the certificate is not valid for another {ahead:?}; check this host's clock")
        }
        other => other.to_string(),
    }
}

pub(super) fn unix_time(now: SystemTime) -> UnixTime {
    // A clock before 1970 is wrong in any case, and every certificate is "not yet valid" by it.
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}
