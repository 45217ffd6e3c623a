//! Is this peer who it says, and is it whom we meant?
//!
//! The chain must lead to a root of our bundle, now; the leaf must be an X.509-SVID; its trust domain must be ours; and
//! when we connect, it must be the one service that we meant. Nothing here looks at DNS names.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme};

use super::bundle::{self, Bundle};
use super::claim;
use super::id::{SpiffeId, TrustDomain};
use super::problem::PeerProblem;
use super::svid::{Purpose, Svid};

/// The cryptography of the mesh: TLS 1.3 suites, AES-128-GCM first (AES-256 costs 5 % and ChaCha twice as much on bulk).
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            ..default_provider()
        })
    }))
}

/// Who is at the other end of an established connection.
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Result<Arc<SpiffeId>, PeerProblem> {
    let leaf = certificates.first().ok_or(PeerProblem::NoCertificate)?;
    Svid::from_der(leaf, &[]).map(|svid| svid.id)
}

/// Checks the chain, the time and the leaf's form; returns what the leaf says.
pub(super) fn check_chain(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    purpose: Purpose,
    now: UnixTime,
) -> Result<Svid, PeerProblem> {
    let certificate = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| PeerProblem::BadSvid(format!("cannot be read ({error})")))?;
    let usage = match purpose {
        Purpose::Client => webpki::KeyUsage::client_auth(),
        Purpose::Server => webpki::KeyUsage::server_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    certificate
        .verify_for_usage(algorithms, anchors, others, now, usage, None, None)
        .map_err(|error| chain_problem(&error))?;
    // Only after somebody whom we trust has signed it is it worth a second, more talkative parser.
    Svid::from_der(leaf, &[purpose])
}

fn chain_problem(error: &webpki::Error) -> PeerProblem {
    let seconds = |late: &UnixTime, early: &UnixTime| {
        Duration::from_secs(late.as_secs().saturating_sub(early.as_secs()))
    };
    match error {
        webpki::Error::CertExpired { time, not_after } => PeerProblem::Expired {
            ago: seconds(time, not_after),
        },
        webpki::Error::CertNotValidYet { time, not_before } => PeerProblem::NotYetValid {
            ahead: seconds(not_before, time),
        },
        // A root with the name of ours and another key is a foreign one.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            PeerProblem::ForeignRoot
        }
        webpki::Error::CaUsedAsEndEntity => {
            PeerProblem::BadSvid("it is a CA's, not a workload's".to_owned())
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            PeerProblem::BadSvid("its extended key usage does not allow this use".to_owned())
        }
        other => PeerProblem::BadSvid(other.to_string()),
    }
}

/// Lets in every member of the trust domain; what each may do is decided later, with the request in hand.
#[derive(Debug)]
pub(super) struct MembersOnly {
    pub(super) bundle: Bundle,
    pub(super) trust_domain: TrustDomain,
}

impl ClientCertVerifier for MembersOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Members have one certificate and need no help to choose it.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        check_chain(leaf, others, self.bundle.anchors(), Purpose::Client, now)
            .and_then(|svid| expect_member(&svid.id, &self.trust_domain))
            .map(|()| ClientCertVerified::assertion())
            .inspect_err(|_| claim::refused(leaf))
            .map_err(|problem| problem.into_tls(now))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Whom a client trusts to vouch for the server.
pub(super) enum Trust {
    /// The roots of the bundle that we hold.
    Bundle(Bundle),
    /// Nobody yet but the root with this SHA-256, which the server has to send along.
    PinnedRoot([u8; 32]),
}

/// Accepts one service and no other.
pub(super) struct ExactService {
    pub(super) trust: Trust,
    pub(super) expected: SpiffeId,
}

impl ExactService {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerProblem> {
        let svid = match &self.trust {
            Trust::Bundle(bundle) => {
                check_chain(leaf, others, bundle.anchors(), Purpose::Server, now)?
            }
            Trust::PinnedRoot(pin) => {
                let root = others
                    .iter()
                    .find(|certificate| sha256(certificate) == *pin)
                    .ok_or(PeerProblem::ForeignRoot)?;
                let anchor = bundle::anchor(root).map_err(PeerProblem::BadSvid)?;
                check_chain(leaf, others, &[anchor], Purpose::Server, now)?
            }
        };
        expect_service(&svid.id, &self.expected)
    }
}

impl std::fmt::Debug for ExactService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExactService({})", self.expected)
    }
}

impl ServerCertVerifier for ExactService {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, others, now)
            .map(|()| ServerCertVerified::assertion())
            .inspect_err(|_| claim::refused(leaf))
            .map_err(|problem| problem.into_tls(now))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

fn expect_member(got: &SpiffeId, want: &TrustDomain) -> Result<(), PeerProblem> {
    if got.is_member_of(want) {
        return Ok(());
    }
    Err(PeerProblem::foreign_domain(got, want))
}

fn expect_service(got: &SpiffeId, want: &SpiffeId) -> Result<(), PeerProblem> {
    if got == want {
        return Ok(());
    }
    if got.trust_domain() != want.trust_domain() {
        return Err(PeerProblem::TrustDomain {
            got: got.to_string(),
            want: want.trust_domain().to_owned(),
        });
    }
    Err(PeerProblem::WrongService {
        got: got.clone(),
        want: want.clone(),
    })
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

fn check_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider().signature_verification_algorithms;
    verify_tls13_signature(message, leaf, signature, algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider()
        .signature_verification_algorithms
        .supported_schemes()
}

/// Cannot be reached, because only TLS 1.3 is ever enabled; and if it were, this refuses.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)
}
