//! Authorities and certificates for the tests: good ones, and every kind of bad one.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::keys::signing_key;
use super::{Bundle, Identity, Material, SpiffeId};

pub(super) const DOMAIN: &str = "shop.internal";

pub(super) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(super) fn service(name: &str) -> SpiffeId {
    SpiffeId::for_service(&DOMAIN.parse().unwrap(), name).unwrap()
}

/// A root with an intermediate, which signs the leaves.
pub(super) struct Ca {
    pub(super) root: CertificateDer<'static>,
    pub(super) intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(super) fn new() -> Self {
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

    pub(super) fn bundle(&self) -> Bundle {
        Bundle::from_der([self.root.clone()]).unwrap()
    }

    /// Signs whatever it is given.
    pub(super) fn sign(
        &self,
        parameters: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Vec<CertificateDer<'static>> {
        let leaf = parameters.signed_by(key, &self.issuer).unwrap();
        vec![leaf.der().clone(), self.intermediate.clone()]
    }

    pub(super) fn leaf(&self, parameters: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        Leaf {
            chain: self.sign(parameters, &key),
            key,
        }
    }

    pub(super) fn material(&self, id: &SpiffeId) -> Material {
        self.leaf(&svid(id.as_str())).material(self.bundle())
    }

    pub(super) fn identity(&self, name: &str) -> Arc<Identity> {
        Identity::new(self.material(&service(name)))
    }
}

/// Ours, of which the certificate has ended, and that of the service that we call.
pub(crate) fn ended() -> (Arc<Identity>, SpiffeId) {
    let ca = Ca::new();
    let mut parameters = svid(service("storefront").as_str());
    lasting(&mut parameters, -3600, -60);
    let leaf = ca.leaf(&parameters);
    let key = Arc::clone(&leaf.certified().key);
    let then = SystemTime::now() - Duration::from_secs(1800);
    let material = Material::assemble(leaf.chain, key, ca.bundle(), then).unwrap();
    (Identity::new(material), service("orders"))
}

/// Ours, and that of the service that we call.
pub(crate) fn good() -> (Arc<Identity>, SpiffeId) {
    (Ca::new().identity("storefront"), service("orders"))
}

/// A certificate with its key, good or bad.
pub(super) struct Leaf {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

impl Leaf {
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let key = signing_key(PrivateKeyDer::Pkcs8(key)).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }

    pub(super) fn material(&self, bundle: Bundle) -> Material {
        let key = Arc::clone(&self.certified().key);
        Material::assemble(self.chain.clone(), key, bundle, SystemTime::now()).unwrap()
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    // All test CAs have the same names, so that only keys tell them apart.
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

/// What a good certificate for `id` says; tests spoil one thing in it.
pub(super) fn svid(id: &str) -> CertificateParams {
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

pub(super) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Valid from and until so many seconds from now.
pub(super) fn lasting(parameters: &mut CertificateParams, from: i64, until: i64) {
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
