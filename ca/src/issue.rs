//! Signs a leaf. A pure function of issuer, public key, profile, now and the serial number's random bytes.

use std::time::SystemTime;

use rcgen::PublicKeyData;
use rustls_pki_types::CertificateDer;

use crate::Error;
use crate::authority::Signer;
use crate::profile::{Profile, Serial, Validity};

/// A signed leaf with what its holder shows beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf first, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's serial number.
    pub serial: Serial,
    /// The leaf's SPIFFE ID.
    pub uri: String,
    /// The leaf's time.
    pub validity: Validity,
}

/// Signs.
pub fn issue(
    issuer: &Signer,
    key: &impl PublicKeyData,
    profile: &Profile,
    now: SystemTime,
    serial: Serial,
) -> Result<Issued, Error> {
    let validity = Validity::new(
        now,
        profile.lifetime,
        profile.backdate,
        Some(issuer.validity()),
    );
    if !issuer.validity().covers(now) {
        return Err(Error::IssuerOver);
    }
    let params = profile.params(&validity, serial)?;
    let leaf = params
        .signed_by(key, issuer.issuer())
        .map_err(Error::sign("sign the certificate"))?;
    Ok(Issued {
        chain: vec![leaf.der().clone(), issuer.certificate().clone()],
        serial,
        uri: profile.uri.clone(),
        validity,
    })
}
