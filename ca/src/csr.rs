//! A certificate signing request, of which two things count: its public key, and that the sender has the private one.
//!
//! The names and extensions that a request asks for are not even looked at.

use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

/// The largest request; one with an RSA key of 8192 bits has 3 KiB.
pub(crate) const LARGEST: usize = 16 * 1024;

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Too long.
    #[error("it is longer than 16 KiB")]
    Large,
    /// Not a request at all.
    #[error("it is not a PKCS#10 request in DER, and nothing after it")]
    Malformed,
    /// A kind of key or signature that we do not sign.
    #[error(
        "its key is not one of: ECDSA on P-256 or P-384, Ed25519, RSA of 2048 to 8192 bits with SHA-2"
    )]
    Key,
    /// The sender does not have the private key.
    #[error("its signature does not fit its key")]
    Signature,
}

/// The public key of a request whose sender has the private one.
pub(crate) fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, Fault> {
    if der.len() > LARGEST {
        return Err(Fault::Large);
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Fault::Malformed)?;
    if !rest.is_empty() {
        return Err(Fault::Malformed);
    }
    let key = &request.certification_request_info.subject_pki;
    if !allowed_key(key) || !allowed_signature(&request.signature_algorithm.algorithm) {
        return Err(Fault::Key);
    }
    request.verify_signature().map_err(|_| Fault::Signature)?;
    let key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| Fault::Key)?;
    // What will stand in the certificate must be what the signature was checked with.
    if key.der_bytes()
        != request
            .certification_request_info
            .subject_pki
            .subject_public_key
            .data
            .as_ref()
    {
        return Err(Fault::Key);
    }
    Ok(key)
}

fn allowed_key(key: &ParsedKey<'_>) -> bool {
    let algorithm = &key.algorithm.algorithm;
    let bytes = key.subject_public_key.data.as_ref();
    // Points in the uncompressed form only: one key has one spelling.
    let point = |length| bytes.len() == length && bytes.first() == Some(&4);
    if *algorithm == oid::OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key
            .algorithm
            .parameters
            .as_ref()
            .and_then(|any| any.as_oid().ok());
        match curve {
            Some(curve) if curve == oid::OID_EC_P256 => point(65),
            Some(curve) if curve == oid::OID_NIST_EC_P384 => point(97),
            _ => false,
        }
    } else if *algorithm == oid::OID_SIG_ED25519 {
        bytes.len() == 32
    } else if *algorithm == oid::OID_PKCS1_RSAENCRYPTION {
        matches!(key.parsed(), Ok(PublicKey::RSA(rsa)) if (2048..=8192).contains(&bits(rsa.modulus)))
    } else {
        false
    }
}

/// The length of a number; x509-parser counts whole bytes, leading zeros included.
fn bits(number: &[u8]) -> usize {
    let significant = number
        .iter()
        .position(|&byte| byte != 0)
        .map_or(&[][..], |start| &number[start..]);
    match significant.first() {
        Some(first) => significant.len() * 8 - first.leading_zeros() as usize,
        None => 0,
    }
}

fn allowed_signature(algorithm: &oid::Oid<'_>) -> bool {
    [
        oid::OID_SIG_ECDSA_WITH_SHA256,
        oid::OID_SIG_ECDSA_WITH_SHA384,
        oid::OID_SIG_ED25519,
        oid::OID_PKCS1_SHA256WITHRSA,
        oid::OID_PKCS1_SHA384WITHRSA,
        oid::OID_PKCS1_SHA512WITHRSA,
        oid::OID_PKCS1_RSASSAPSS,
    ]
    .contains(algorithm)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{CertificateParams, KeyPair, RsaKeySize, SignatureAlgorithm};

    use super::*;

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default()
            .serialize_request(key)
            .unwrap()
            .der()
            .to_vec()
    }

    #[test]
    fn the_good_kinds_of_keys_are_taken_as_they_are() {
        let check = |algorithm: &'static SignatureAlgorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let taken = public_key(&request(&key)).unwrap();
            assert_eq!(
                taken.subject_public_key_info(),
                key.subject_public_key_info()
            );
        };
        check(&rcgen::PKCS_ECDSA_P256_SHA256);
        check(&rcgen::PKCS_ECDSA_P384_SHA384);
        check(&rcgen::PKCS_ED25519);
        check(&rcgen::PKCS_RSA_SHA256);
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert_eq!(public_key(&request(&p521)).unwrap_err(), Fault::Key);
    }

    #[test]
    fn rsa_is_taken_from_2048_bits_on() {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA512, RsaKeySize::_3072).unwrap();
        public_key(&request(&key)).unwrap();
        assert_eq!(bits(&[0, 0x80, 0]), 16);
        assert_eq!(bits(&[0x7f; 256]), 2047);
        assert_eq!(bits(&[0, 0]), 0);
    }

    #[test]
    fn a_request_is_bounded_and_ends_where_it_ends() {
        let mut der = request(&KeyPair::generate().unwrap());
        assert_eq!(public_key(&[]).unwrap_err(), Fault::Malformed);
        for end in 0..der.len() {
            assert_eq!(
                public_key(&der[..end]).unwrap_err(),
                Fault::Malformed,
                "cut at {end}"
            );
        }
        der.push(0);
        assert_eq!(public_key(&der).unwrap_err(), Fault::Malformed);
        assert_eq!(
            public_key(&vec![0x30; LARGEST + 1]).unwrap_err(),
            Fault::Large
        );
        assert_eq!(
            public_key(&vec![0x30; LARGEST]).unwrap_err(),
            Fault::Malformed
        );
    }

    #[test]
    fn no_flipped_bit_of_what_is_signed_goes_unnoticed() {
        let key = KeyPair::generate().unwrap();
        let der = request(&key);
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        let info = parsed.certification_request_info.raw;
        let start = der
            .windows(info.len())
            .position(|window| window == info)
            .unwrap();
        let signed = start..start + info.len();
        for position in 0..der.len() {
            for bit in 0..8 {
                let mut forged = der.clone();
                forged[position] ^= 1 << bit;
                // The parser is lax about some tags of the frame around it, which bring in nothing.
                if let Ok(found) = public_key(&forged) {
                    assert!(!signed.contains(&position), "byte {position}, bit {bit}");
                    assert_eq!(found.der_bytes(), key.der_bytes());
                }
            }
        }
    }

    #[test]
    fn a_request_for_somebody_elses_key_is_refused() {
        let mine = KeyPair::generate().unwrap();
        let theirs = KeyPair::generate().unwrap();
        let mut der = request(&mine);
        let point = mine.der_bytes();
        let at = der
            .windows(point.len())
            .position(|window| window == point)
            .unwrap();
        der[at..at + point.len()].copy_from_slice(theirs.der_bytes());
        assert_eq!(public_key(&der).unwrap_err(), Fault::Signature);
    }
}
