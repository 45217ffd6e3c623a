//! Authorities and certificates with SPIFFE IDs, good ones and with any flaw, and TLS that shows them and believes
//! everybody: for tests of what the other side believes.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ALL_VERSIONS, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
};

/// The trust domain of every test.
pub(crate) const DOMAIN: &str = "shop.internal";

/// The identity of a service.
pub(crate) fn service(name: &str) -> String {
    format!("spiffe://{DOMAIN}/service/{name}")
}

/// A root and an intermediate, which signs the leaves, as a mesh's own.
pub(crate) struct Authority {
    root: Certificate,
    intermediate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let parameters = authority("root");
        let root = parameters.self_signed(&root_key).unwrap();
        let issuer = Issuer::new(parameters, root_key);
        let key = KeyPair::generate().unwrap();
        let parameters = authority("intermediate");
        let intermediate = parameters.signed_by(&key, &issuer).unwrap();
        Self {
            root,
            intermediate,
            issuer: Issuer::new(parameters, key),
        }
    }

    /// The root, in PEM.
    pub(crate) fn bundle(&self) -> String {
        self.root.pem()
    }

    /// A good certificate for a service, valid for an hour.
    pub(crate) fn service(&self, name: &str) -> Leaf {
        self.leaf(&service(name))
    }

    /// The same for any ID.
    pub(crate) fn leaf(&self, id: &str) -> Leaf {
        self.leaf_with(id, |_| ())
    }

    /// A certificate that is good but for what `spoil` does to it.
    pub(crate) fn leaf_with(&self, id: &str, spoil: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut parameters = good(id);
        spoil(&mut parameters);
        let key = KeyPair::generate().unwrap();
        let leaf = parameters.signed_by(&key, &self.issuer).unwrap();
        self.leaf_of(leaf, key)
    }

    /// A certificate for a service with an RSA key of so many bits, which whoever shows it cannot prove to have.
    pub(crate) fn leaf_with_rsa(&self, name: &str, bits: usize) -> Leaf {
        let leaf = good(&service(name)).signed_by(&RsaKey::new(bits), &self.issuer);
        self.leaf_of(leaf.unwrap(), KeyPair::generate().unwrap())
    }

    fn leaf_of(&self, leaf: Certificate, key: KeyPair) -> Leaf {
        let chain = vec![leaf, self.intermediate.clone()];
        Leaf { chain, key }
    }

    /// A certificate for a public name, as browsers trust it.
    pub(crate) fn website(&self, name: &str) -> Leaf {
        self.leaf_with("spiffe://unused/unused", |parameters| {
            parameters.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        })
    }

    /// Writes `cert.pem`, `key.pem` and `bundle.pem`, the key readable by its owner only.
    pub(crate) fn write(&self, leaf: &Leaf, directory: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let key = directory.join("key.pem");
        std::fs::write(&key, leaf.key_pem()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(directory.join("cert.pem"), leaf.chain_pem()).unwrap();
        std::fs::write(directory.join("bundle.pem"), self.bundle()).unwrap();
    }

    /// A TLS client that trusts this authority as any browser would: by the names in the certificate.
    pub(crate) fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }
}

/// What a good certificate for an ID says.
fn good(id: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.subject_alt_names = vec![uri(id)];
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    lasting(&mut parameters, -60, 3600);
    parameters
}

fn authority(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    // All authorities have the same names, so that only keys tell them apart.
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Valid from and until so many seconds from now.
pub(crate) fn lasting(parameters: &mut CertificateParams, from: i64, until: i64) {
    let now = time::OffsetDateTime::now_utc();
    parameters.not_before = now + time::Duration::seconds(from);
    parameters.not_after = now + time::Duration::seconds(until);
}

/// The public half of an RSA key that has no other.
struct RsaKey(Vec<u8>);

impl RsaKey {
    fn new(bits: usize) -> Self {
        assert!((1024..=2040).contains(&bits), "lengths are of two bytes");
        let mut number = vec![0; bits / 8 + 1];
        fastrand::fill(&mut number[1..]);
        number[1] |= 0x80;
        *number.last_mut().unwrap() |= 1;
        let tagged = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            [&[tag, 0x81, length][..], content].concat()
        };
        // RFC 8017 A.1.1: the modulus, and 65,537.
        let content = [tagged(2, &number), vec![2, 3, 1, 0, 1]].concat();
        Self(tagged(0x30, &content))
    }
}

impl PublicKeyData for RsaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

/// A certificate, who signed it, and its key.
pub(crate) struct Leaf {
    chain: Vec<Certificate>,
    key: KeyPair,
}

impl Leaf {
    pub(crate) fn chain_pem(&self) -> String {
        self.chain.iter().map(Certificate::pem).collect()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Writes `NAME.pem` and `NAME.key`, the certificate last: who follows the files takes both or neither.
    pub(crate) fn write(&self, directory: &Path, name: &str) {
        std::fs::write(directory.join(format!("{name}.key")), self.key_pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), self.chain_pem()).unwrap();
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().map(|one| one.der().clone()).collect()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    /// The same with the certificate of who signed it so many times more.
    pub(crate) fn behind(mut self, more: usize) -> Self {
        let signer = self.chain[1].clone();
        self.chain.extend(std::iter::repeat_n(signer, more));
        self
    }

    /// A client that shows this, whether or not the key is that of the certificate, and believes every server.
    pub(crate) fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let key = provider()
            .key_provider
            .load_private_key(self.key())
            .unwrap();
        let shown = SingleCertAndKey::from(CertifiedKey::new(self.chain(), key));
        let mut config = believing(ALL_VERSIONS).with_client_cert_resolver(Arc::new(shown));
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }

    /// A server that shows this and asks clients for nothing.
    pub(crate) fn server(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain(), self.key())
            .unwrap();
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }
}

/// A client that shows no certificate, speaks these versions of TLS and believes every server.
pub(crate) fn nobody(
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> Arc<ClientConfig> {
    let mut config = believing(versions).with_no_client_auth();
    config.alpn_protocols = protocols(alpn);
    Arc::new(config)
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn believing(
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer))
}

/// Believes every server: these tests are about what servers believe.
#[derive(Debug)]
struct Believer;

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
