//! A place for a signing certificate that can be replaced while it is in use.
//!
//! *Prepare* makes the new one in memory, beside the one that signs. *Activate* puts it on disk and then in place: if
//! the disk says no, the old one goes on signing. *Retire* is the drop of the last handle; the old key is gone from
//! the disk by then. Nobody has to be told first, because every leaf carries the intermediate that signed it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::Error;
use crate::profile::Validity;
use crate::store::Directory;

/// A certificate of the authority with its key. Its `Debug` does not show the key.
#[derive(Debug)]
pub struct Signer {
    certificate: CertificateDer<'static>,
    validity: Validity,
    /// The URI SAN, which names the trust domain.
    uri: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// From a certificate and the key that it certifies.
    pub(crate) fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| "its certificate is damaged".to_owned())?;
        if !rest.is_empty() {
            return Err("its certificate is damaged".into());
        }
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err("its key belongs to another certificate".into());
        }
        if !parsed.is_ca() {
            return Err("its certificate may not sign others".into());
        }
        let validity = Validity {
            not_before: parsed.validity().not_before.to_datetime().into(),
            not_after: parsed.validity().not_after.to_datetime().into(),
        };
        let uri = only_uri(&parsed).ok_or("its certificate names no trust domain")?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| error.to_string())?;
        Ok(Self {
            validity,
            uri,
            issuer,
            certificate,
        })
    }

    /// From the text of a file as [`Signer::to_pem`] makes it.
    pub(crate) fn from_pem(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not PEM".to_owned())?;
        let certificate = CertificateDer::from_pem_slice(bytes)
            .map_err(|_| "it holds no whole certificate".to_owned())?;
        let key = text
            .find("-----BEGIN PRIVATE KEY-----")
            .and_then(|start| KeyPair::from_pem(&text[start..]).ok())
            .ok_or("it holds no whole private key")?;
        Self::new(certificate, key)
    }

    /// Certificate and key.
    pub(crate) fn to_pem(&self) -> String {
        format!(
            "{}{}",
            pem(&self.certificate),
            self.issuer.key().serialize_pem()
        )
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When the certificate is valid.
    pub fn validity(&self) -> &Validity {
        &self.validity
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Whether `self` signed the certificate of `other`.
    pub(crate) fn signed(&self, other: &Self) -> bool {
        let parse = |der| {
            X509Certificate::from_der(der)
                .ok()
                .map(|(_, parsed)| parsed)
        };
        let (Some(ours), Some(theirs)) = (parse(&self.certificate), parse(&other.certificate))
        else {
            return false;
        };
        theirs.issuer() == ours.subject()
            && theirs.verify_signature(Some(ours.public_key())).is_ok()
    }
}

/// The URI SAN when there is exactly one.
pub(crate) fn only_uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Some(uri.to_owned()),
        _ => None,
    }
}

/// A certificate in PEM.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The signer in use, and the file that it stands in.
#[derive(Debug)]
pub(crate) struct Slot {
    name: &'static str,
    active: ArcSwap<Signer>,
}

impl Slot {
    pub(crate) fn new(name: &'static str, active: Signer) -> Self {
        Self {
            name,
            active: ArcSwap::from_pointee(active),
        }
    }

    /// The one that signs now.
    pub(crate) fn active(&self) -> Arc<Signer> {
        self.active.load_full()
    }

    /// Puts the prepared one on disk, then in place.
    pub(crate) fn activate(&self, prepared: Signer, directory: &Directory) -> Result<(), Error> {
        directory.write(self.name, prepared.to_pem().as_bytes())?;
        self.active.store(Arc::new(prepared));
        Ok(())
    }
}
