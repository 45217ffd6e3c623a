//! Authorities and certificates with SPIFFE IDs: good ones, and with any flaw.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The trust domain of every test.
pub(crate) const DOMAIN: &str = "test.internal";

/// `spiffe://DOMAIN/service/NAME`.
pub(crate) fn spiffe(name: &str) -> String {
    format!("spiffe://{DOMAIN}/service/{name}")
}

/// A root that signs leaves.
pub(crate) struct Authority {
    root: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: Vec<u8>,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        // All have the same name, so that only the key tells them apart.
        parameters
            .distinguished_name
            .push(DnType::CommonName, "root");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = parameters.self_signed(&key).unwrap();
        Self {
            root,
            issuer: Issuer::new(parameters, key),
        }
    }

    /// The root, in PEM.
    pub(crate) fn bundle_pem(&self) -> String {
        self.root.pem()
    }

    /// A good certificate for a service, valid for an hour.
    pub(crate) fn service(&self, name: &str) -> Leaf {
        self.leaf(&spiffe(name), |_| ())
    }

    /// A certificate for this ID, after `spoil` has done what it wants to it.
    pub(crate) fn leaf(&self, id: &str, spoil: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        lasting(&mut parameters, -60, 3600);
        spoil(&mut parameters);
        self.sign(&parameters)
    }

    /// A certificate for a public listener.
    pub(crate) fn website(&self, names: &[&str]) -> Leaf {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        lasting(&mut parameters, -60, 3600);
        self.sign(&parameters)
    }

    fn sign(&self, parameters: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// Writes `cert.pem`, `key.pem` and `bundle.pem`, the key readable by its owner only.
    pub(crate) fn write(&self, leaf: &Leaf, directory: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let key = directory.join("key.pem");
        std::fs::write(&key, &leaf.key_pem).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(directory.join("cert.pem"), &leaf.certificate_pem).unwrap();
        std::fs::write(directory.join("bundle.pem"), self.bundle_pem()).unwrap();
    }

    /// A TLS client that trusts this authority as any browser would: by the names in the certificate.
    pub(crate) fn client(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

/// A TLS client that shows `leaf` (or nothing) and believes whatever the server shows: for tests of what servers refuse.
pub(crate) fn stranger(leaf: Option<&Leaf>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider())));
    let mut config = match leaf {
        Some(leaf) => builder
            .with_client_auth_cert(vec![leaf.certificate.clone()], leaf.private_key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

impl Leaf {
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// Valid from and until so many seconds from now.
pub(crate) fn lasting(parameters: &mut CertificateParams, from: i64, until: i64) {
    let now = SystemTime::now();
    let at = |seconds: i64| {
        let distance = Duration::from_secs(seconds.unsigned_abs());
        let time = if seconds < 0 {
            now - distance
        } else {
            now + distance
        };
        time::OffsetDateTime::from(time)
    };
    parameters.not_before = at(from);
    parameters.not_after = at(until);
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Debug)]
struct Gullible(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
