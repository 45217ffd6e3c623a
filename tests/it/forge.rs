//! Authorities, certificates, keys and tokens, good ones and every kind of bad one, for tests of who gets in.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use serde_json::{Value, json};

/// The trust domain of the tests.
pub(crate) const DOMAIN: &str = "shop.internal";

/// The identity of a service of the tests.
pub(crate) fn service(name: &str) -> String {
    format!("spiffe://{DOMAIN}/service/{name}")
}

/// A root and an intermediate, which signs the leaves, as a mesh's own.
pub(crate) struct Authority {
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = authority("root");
        let root_certificate = root.self_signed(&root_key).unwrap();
        let root = Issuer::new(root, root_key);
        let key = KeyPair::generate().unwrap();
        let intermediate = authority("intermediate");
        let certificate = intermediate.signed_by(&key, &root).unwrap();
        Self {
            root: root_certificate.der().clone(),
            intermediate: certificate.der().clone(),
            issuer: Issuer::new(intermediate, key),
        }
    }

    /// A good leaf.
    pub(crate) fn leaf(&self, id: &str) -> Leaf {
        self.leaf_with(id, |_| ())
    }

    /// A leaf that is good but for what `spoil` does to it.
    pub(crate) fn leaf_with(&self, id: &str, spoil: impl FnOnce(&mut CertificateParams)) -> Leaf {
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
        spoil(&mut parameters);
        let key = KeyPair::generate().unwrap();
        let leaf = parameters.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            chain: vec![leaf.der().clone(), self.intermediate.clone()],
            key,
        }
    }

    /// A leaf for a public name, as browsers trust it.
    pub(crate) fn public_leaf(&self, name: &str) -> Leaf {
        self.leaf_with("spiffe://unused/unused", |parameters| {
            parameters.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        })
    }

    /// The root in PEM.
    pub(crate) fn bundle(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }
}

/// Valid from and until so many seconds from now.
pub(crate) fn lasting(parameters: &mut CertificateParams, from: i64, until: i64) {
    let now = time::OffsetDateTime::now_utc();
    parameters.not_before = now + time::Duration::seconds(from);
    parameters.not_after = now + time::Duration::seconds(until);
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
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

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut lines = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        lines.push_str(std::str::from_utf8(line).unwrap());
        lines.push('\n');
    }
    lines + &format!("-----END {label}-----\n")
}

/// A certificate with its key.
pub(crate) struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Leaf {
    /// Writes `NAME.pem` and `NAME.key`, the certificate last: who follows the files takes both or neither.
    pub(crate) fn write(&self, directory: &Path, name: &str) {
        std::fs::write(
            directory.join(format!("{name}.key")),
            self.key.serialize_pem(),
        )
        .unwrap();
        let chain: String = self
            .chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect();
        std::fs::write(directory.join(format!("{name}.pem")), chain).unwrap();
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    /// A client that shows this and believes every server.
    pub(crate) fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut config = believing(rustls::ALL_VERSIONS)
            .with_client_auth_cert(self.chain.clone(), self.key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A server that shows this and asks clients for nothing.
    pub(crate) fn server(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A client that shows no certificate, speaks these versions of TLS and believes every server.
pub(crate) fn nobody(
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> Arc<ClientConfig> {
    let mut config = believing(versions).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn believing(
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
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
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A key of an issuer of tokens.
pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

macro_rules! signers {
    ($($name:ident = $make:expr;)+) => {
        $(pub(crate) fn $name() -> &'static Signer {
            static KEY: LazyLock<Signer> = LazyLock::new(|| $make);
            &KEY
        })+
    };
}

signers! {
    rsa_key = Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    ec_key = Signer::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    other_ec_key = Signer::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    ed_key = Signer::Ed(Ed25519KeyPair::generate().unwrap());
}

impl Signer {
    /// The public half.
    pub(crate) fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Rsa(key) => json!({
                "kty": "RSA", "kid": id, "alg": "RS256", "use": "sig",
                "n": base64url(key.public_key().modulus().big_endian_without_leading_zero()),
                "e": base64url(key.public_key().exponent().big_endian_without_leading_zero()),
            }),
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({
                    "kty": "EC", "crv": "P-256", "kid": id, "alg": "ES256",
                    "x": base64url(&point[1..33]), "y": base64url(&point[33..]),
                })
            }
            Self::Ed(key) => json!({
                "kty": "OKP", "crv": "Ed25519", "kid": id, "alg": "EdDSA",
                "x": base64url(key.public_key().as_ref()),
            }),
        }
    }

    /// A token with this header and these claims.
    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        self.token_of_texts(&header.to_string(), &claims.to_string())
    }

    /// The same of texts that need not be JSON.
    pub(crate) fn token_of_texts(&self, header: &str, claims: &str) -> String {
        let signed = format!(
            "{}.{}",
            base64url(header.as_bytes()),
            base64url(claims.as_bytes())
        );
        let random = SystemRandom::new();
        let message = signed.as_bytes();
        let signature = match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .unwrap();
                signature
            }
            Self::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        };
        format!("{signed}.{}", base64url(&signature))
    }

    /// Header and claims, signed with the public key as the secret of an HMAC: what HS/RS confusion falls for.
    pub(crate) fn confused_token(&self, header: &Value, claims: &Value) -> String {
        let Self::Rsa(key) = self else {
            panic!("only an RSA key has a PEM that servers were fooled with");
        };
        let secret = aws_lc_rs::hmac::Key::new(
            aws_lc_rs::hmac::HMAC_SHA256,
            pem("PUBLIC KEY", key.public_key().as_ref()).as_bytes(),
        );
        let signed = unsigned(header, claims);
        let tag = aws_lc_rs::hmac::sign(&secret, signed.as_bytes());
        format!("{signed}.{}", base64url(tag.as_ref()))
    }
}

/// Header and claims without a signature.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        base64url(header.to_string().as_bytes()),
        base64url(claims.to_string().as_bytes())
    )
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A time so many seconds from now, as tokens say it.
pub(crate) fn from_now(seconds: i64) -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(now.as_secs()).unwrap() + seconds
}
