//! What the certificates of this authority say, and when they begin and end.
//!
//! A leaf is an X.509-SVID by the letter: exactly one URI SAN, not a CA, digital signatures only, for both ends of TLS.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};

use crate::{Error, Lifetimes, ServiceName, TrustDomain};

/// From when until when, in whole seconds, as certificates have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: SystemTime,
    /// The last second.
    pub not_after: SystemTime,
}

impl Validity {
    /// `lifetime` from `now` on, beginning `backdate` earlier, and never outside of the issuer's.
    pub fn new(
        now: SystemTime,
        lifetime: Duration,
        backdate: Duration,
        issuer: Option<&Self>,
    ) -> Self {
        let (mut not_before, mut not_after) = (seconds(now - backdate), seconds(now + lifetime));
        if let Some(issuer) = issuer {
            not_before = not_before.max(issuer.not_before);
            not_after = not_after.min(issuer.not_after);
        }
        Self {
            not_before,
            not_after,
        }
    }

    /// Whether `now` is inside.
    pub fn covers(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// Rounded down.
fn seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// What a leaf says about its holder and how long; the key comes from the holder, the rest from the issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The SPIFFE ID, the one URI SAN.
    pub uri: String,
    /// The service, as DNS SAN.
    pub service: ServiceName,
    /// How long.
    pub lifetime: Duration,
    /// How far it begins in the past.
    pub backdate: Duration,
}

impl Profile {
    /// For a service of the trust domain.
    pub fn leaf(domain: &TrustDomain, service: &ServiceName, lifetimes: &Lifetimes) -> Self {
        Self {
            uri: domain.service_uri(service),
            service: service.clone(),
            lifetime: lifetimes.leaf,
            backdate: lifetimes.backdate,
        }
    }

    pub(crate) fn params(
        &self,
        validity: &Validity,
        serial: Serial,
    ) -> Result<CertificateParams, Error> {
        let mut params = base(validity, serial);
        params
            .distinguished_name
            .push(DnType::CommonName, self.service.as_str());
        params.subject_alt_names = vec![
            SanType::URI(ia5(&self.uri)?),
            SanType::DnsName(ia5(self.service.as_str())?),
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// Which of the authority's own two certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Root,
    Intermediate,
}

impl Tier {
    pub(crate) fn params(
        self,
        domain: &TrustDomain,
        validity: &Validity,
        serial: Serial,
    ) -> Result<CertificateParams, Error> {
        let mut params = base(validity, serial);
        // The serial in the name keeps each authority certificate's subject distinct, from one another and from every
        // leaf's: path building by name never finds two keys.
        let short = crate::token::hex(&serial.0[..6]);
        let (title, below) = match self {
            Self::Root => ("root", 1),
            Self::Intermediate => ("intermediate", 0),
        };
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Weft {title} {short}"));
        // 64 is X.520's bound for this attribute; the whole name stands in the SAN.
        if domain.as_str().len() <= 64 {
            params
                .distinguished_name
                .push(DnType::OrganizationName, domain.as_str());
        }
        params.subject_alt_names = vec![SanType::URI(ia5(&domain.uri())?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = self == Self::Intermediate;
        Ok(params)
    }
}

/// A serial number: 16 bytes, positive, and never shorter in its encoding; 126 of its bits are random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial([u8; 16]);

impl Serial {
    /// From random bytes.
    pub fn new(mut random: [u8; 16]) -> Self {
        random[0] = random[0] & 0x3f | 0x40;
        Self(random)
    }

    /// In lower-case hex.
    pub fn hex(&self) -> String {
        crate::token::hex(&self.0)
    }
}

fn base(validity: &Validity, serial: Serial) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    params.distinguished_name = DistinguishedName::new();
    params
}

fn ia5(text: &str) -> Result<Ia5String, Error> {
    Ia5String::try_from(text).map_err(Error::sign("write the name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_stays_inside_its_issuers_time() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let span = |from, to| Validity {
            not_before: at(from),
            not_after: at(to),
        };
        let check = |now, lifetime, backdate, issuer: Option<Validity>, expected| {
            let (lifetime, backdate) =
                (Duration::from_secs(lifetime), Duration::from_secs(backdate));
            assert_eq!(
                Validity::new(now, lifetime, backdate, issuer.as_ref()),
                expected
            );
        };
        check(at(1000), 100, 60, None, span(940, 1100));
        check(
            at(1000) + Duration::from_millis(999),
            100,
            60,
            None,
            span(940, 1100),
        );
        check(at(1000), 100, 60, Some(span(0, 5000)), span(940, 1100));
        check(at(1000), 100, 60, Some(span(950, 5000)), span(950, 1100));
        check(at(1000), 100, 60, Some(span(0, 1050)), span(940, 1050));
        check(at(1000), 100, 60, Some(span(0, 1100)), span(940, 1100));
    }

    #[test]
    fn a_serial_is_positive_and_has_one_length() {
        for first in [0x00, 0x3f, 0x40, 0x7f, 0x80, 0xff] {
            let mut random = [0; 16];
            random[0] = first;
            let Serial(bytes) = Serial::new(random);
            assert!(
                (0x40..0x80).contains(&bytes[0]),
                "{first:02x} became {:02x}",
                bytes[0]
            );
        }
    }
}
