//! TLS for the authority's own socket: version 1.3 only, a leaf that it issues to itself, and client certificates that
//! are asked for, never demanded.
//!
//! Two things differ from an ordinary server:
//!
//! - It sends its root as the last certificate of the chain. A client that holds only a join token has the root's
//!   fingerprint and nothing else; it compares the last certificate with that and has a trust anchor.
//! - The handshake checks of a client certificate only that the client has its key. Whether the certificate is worth
//!   anything is decided when a request is made with it ([`renewal`](crate::admit)): with the time of that moment and
//!   not of the handshake, with an answer that says what is wrong instead of a TLS alert, and so that a service whose
//!   certificate has expired can still come in with a new token.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    AlertDescription, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::Error;
use crate::authority::{due, wait};
use crate::desk::Desk;
use crate::profile::Validity;

/// The certificate that the authority serves with, renewed at half its life.
#[derive(Debug)]
pub(crate) struct Own {
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    validity: Validity,
}

impl Own {
    /// Issues the first one.
    pub(crate) fn new(desk: &Desk, now: SystemTime) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = ArcSwap::from_pointee(make(desk, &provider, now)?);
        Ok(Self { provider, current })
    }

    /// Replaces it when it is due.
    pub(crate) fn keep(&self, desk: &Desk, now: SystemTime) -> Result<(), Error> {
        let current = self.current.load();
        if due(
            now,
            &current.validity,
            desk.lifetimes.leaf,
            desk.authority.signer().validity(),
        ) {
            self.current
                .store(Arc::new(make(desk, &self.provider, now)?));
            tracing::info!("renewed the authority's own certificate");
        }
        Ok(())
    }

    /// How long until [`Own::keep`] has something to do.
    pub(crate) fn wait(&self, desk: &Desk, now: SystemTime) -> Duration {
        wait(now, &self.current.load().validity, desk.lifetimes.leaf)
    }

    /// What the listener needs.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Error> {
        let anybody = Arc::new(AnybodyWithTheKey {
            provider: Arc::clone(&self.provider),
        });
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(anybody)
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Clients come twice a day; a resumed session would save them nothing and keep an old certificate alive.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}

fn make(desk: &Desk, provider: &CryptoProvider, now: SystemTime) -> Result<Current, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::sign("make a key"))?;
    let issued = desk.issue_own(&key, now)?;
    let mut chain = issued.chain;
    chain.push(desk.authority.root().certificate().clone());
    let private = PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|error| rustls::Error::General(error.into()))?;
    let key = CertifiedKey::from_der(chain, private, provider)?;
    Ok(Current {
        key: Arc::new(key),
        validity: issued.validity,
    })
}

/// Takes any client certificate whose key the client has.
#[derive(Debug)]
struct AnybodyWithTheKey {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnybodyWithTheKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Not a proof of anything yet; see above.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What a client has against the authority's certificate, when that is why the handshake failed: its alert says so. The
/// client's own log says more, but who looks for the reason of a mesh that renews nothing looks here first.
pub(crate) fn objection(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::AlertReceived(alert) = error else {
        return None;
    };
    match alert {
        AlertDescription::UnknownCA => Some(
            "it does not trust our root: it has joined another CA, or our state is not the one it knew",
        ),
        AlertDescription::CertificateExpired => Some(
            "by its clock our certificate has expired or is not valid yet; check the clocks of both hosts",
        ),
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => {
            Some("our certificate is not the one of a CA of its trust domain")
        }
        AlertDescription::DecryptError => Some("our signature did not check out"),
        _ => None,
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: rustls::Error) -> Option<&'static str> {
        objection(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn what_a_client_has_against_us_is_told_by_its_alert() {
        let check = |alert, expected: &str| {
            let said = said(rustls::Error::AlertReceived(alert));
            assert!(said.is_some_and(|said| said.contains(expected)), "{said:?}");
        };
        check(AlertDescription::UnknownCA, "does not trust our root");
        check(AlertDescription::CertificateExpired, "check the clocks");
        check(AlertDescription::BadCertificate, "of its trust domain");
        check(AlertDescription::CertificateUnknown, "of its trust domain");
        check(AlertDescription::DecryptError, "signature");
    }

    #[test]
    fn other_failures_are_no_objection_to_our_certificate() {
        assert_eq!(said(rustls::Error::NoCertificatesPresented), None);
        let parameters = AlertDescription::ProtocolVersion;
        assert_eq!(said(rustls::Error::AlertReceived(parameters)), None);
        let gone = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(objection(&gone), None);
    }
}
