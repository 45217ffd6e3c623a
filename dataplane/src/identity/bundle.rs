//! The trust bundle: whose signatures count.

use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// More roots than any rotation needs; a bundle with more is not taken.
pub const MAX_ROOTS: usize = 64;

/// The roots that vouch for the members of a trust domain; at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Bundle {
    /// From certificates, each of which must be a CA's.
    pub fn from_der(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, String> {
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        let mut anchors = Vec::new();
        for certificate in certificates {
            if roots.contains(&certificate) {
                continue;
            }
            if roots.len() == MAX_ROOTS {
                return Err(format!("the bundle has more than {MAX_ROOTS} roots"));
            }
            let number = roots.len() + 1;
            anchors.push(anchor(&certificate).map_err(|what| {
                format!("certificate {number} of the bundle cannot be a root: {what}")
            })?);
            roots.push(certificate);
        }
        if roots.is_empty() {
            return Err("the bundle has no root".to_owned());
        }
        Ok(Self { roots, anchors })
    }

    /// The roots' certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bundle({} roots)", self.roots.len())
    }
}

/// A workload's certificate as a root would vouch for that workload only by accident of the library: refused here.
pub(super) fn anchor(certificate: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    if !parsed.is_ca() {
        return Err("it is not a CA's".to_owned());
    }
    webpki::anchor_from_trusted_cert(certificate)
        .map(|anchor| anchor.to_owned())
        .map_err(|error| error.to_string())
}
