//! Reads the leaf of an X.509-SVID by the letter of the standard (X509-SVID §§2–5) and a little beyond it:
//! an extended key usage is demanded, because ours have one and "for anything" is nobody's intention.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::id::SpiffeId;
use super::problem::PeerProblem;

/// The smallest RSA key that we take, in bits.
const MIN_RSA_BITS: usize = 2048;

/// What a certificate is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its holder connects.
    Client,
    /// Its holder is connected to.
    Server,
}

/// What the leaf of an X.509-SVID says. That somebody trusted said it is not checked here but in `verify`.
#[derive(Debug, Clone)]
pub struct Svid {
    /// The one URI SAN.
    pub id: Arc<SpiffeId>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// The serial number in lower-case hexadecimal digits.
    pub serial: String,
}

impl Svid {
    /// Reads a leaf that is to be used for all of `purposes`.
    pub fn from_der(der: &[u8], purposes: &[Purpose]) -> Result<Self, PeerProblem> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| bad(format!("cannot be read ({error})")))?;
        if !rest.is_empty() {
            return Err(bad("bytes follow it"));
        }
        check_is_leaf(&certificate)?;
        check_purposes(&certificate, purposes)?;
        check_key(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            id: Arc::new(identity(&certificate)?),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
            serial: hex(certificate.raw_serial()),
        })
    }
}

/// When a certificate ends, whoever it is for.
pub fn ends(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(time(certificate.validity().not_after.timestamp()))
}

/// One that may sign others could make itself into anybody.
fn check_is_leaf(certificate: &X509Certificate<'_>) -> Result<(), PeerProblem> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|error| bad(format!("basic constraints: {error}")))?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(bad("it is a CA's, not a workload's"));
    }
    let usage = certificate
        .key_usage()
        .map_err(|error| bad(format!("key usage: {error}")))?
        .ok_or_else(|| bad("it has no key usage"))?;
    if !usage.critical {
        return Err(bad("its key usage is not marked critical"));
    }
    if usage.value.key_cert_sign() {
        return Err(bad("its key usage has keyCertSign"));
    }
    if usage.value.crl_sign() {
        return Err(bad("its key usage has cRLSign"));
    }
    if !usage.value.digital_signature() {
        return Err(bad("its key usage lacks digitalSignature"));
    }
    Ok(())
}

fn check_purposes(
    certificate: &X509Certificate<'_>,
    purposes: &[Purpose],
) -> Result<(), PeerProblem> {
    let usage = certificate
        .extended_key_usage()
        .map_err(|error| bad(format!("extended key usage: {error}")))?;
    for purpose in purposes {
        let (allowed, name) = match purpose {
            Purpose::Client => (
                usage.as_ref().map(|usage| usage.value.client_auth),
                "clientAuth",
            ),
            Purpose::Server => (
                usage.as_ref().map(|usage| usage.value.server_auth),
                "serverAuth",
            ),
        };
        match allowed {
            Some(true) => {}
            Some(false) => return Err(bad(format!("its extended key usage lacks {name}"))),
            None => {
                return Err(bad(format!(
                    "it has no extended key usage; {name} is needed"
                )));
            }
        }
    }
    Ok(())
}

fn check_key(certificate: &X509Certificate<'_>) -> Result<(), PeerProblem> {
    let key = certificate
        .public_key()
        .parsed()
        .map_err(|error| bad(format!("public key: {error}")))?;
    match key {
        PublicKey::RSA(rsa) if rsa.key_size() < MIN_RSA_BITS => Err(bad(format!(
            "its RSA key has {} bits, at least {MIN_RSA_BITS} are needed",
            rsa.key_size()
        ))),
        _ => Ok(()),
    }
}

fn identity(certificate: &X509Certificate<'_>) -> Result<SpiffeId, PeerProblem> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| bad(format!("subject alternative name: {error}")))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names[..]);
    let mut uri = None;
    for name in names {
        match name {
            GeneralName::URI(text) if uri.is_none() => uri = Some(*text),
            GeneralName::URI(_) => return Err(bad("it has more than one URI name")),
            // What cannot be read may be a second identity.
            GeneralName::Invalid(..) => return Err(bad("it has a name that cannot be read")),
            _ => {}
        }
    }
    let uri = uri.ok_or_else(|| bad("it has no URI name"))?;
    uri.parse().map_err(|error| {
        let shown: String = uri.chars().take(200).flat_map(char::escape_debug).collect();
        bad(format!("its URI name `{shown}` is no SPIFFE ID: {error}"))
    })
}

fn bad(what: impl Into<String>) -> PeerProblem {
    PeerProblem::BadSvid(what.into())
}

fn time(timestamp: i64) -> SystemTime {
    // Certificates reach back to 1950; nothing that we do tells those from 1970.
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
