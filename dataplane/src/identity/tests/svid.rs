//! Leaves that only a careful reader refuses.

use rcgen::{CertificateParams, CustomExtension};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::identity::testing::{Ca, service, svid};
use crate::identity::{PeerProblem, Purpose, Svid};

const BOTH: [Purpose; 2] = [Purpose::Client, Purpose::Server];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const NAMES: &[u64] = &[2, 5, 29, 17];

fn read(parameters: &CertificateParams) -> Result<Svid, PeerProblem> {
    Svid::from_der(&Ca::new().leaf(parameters).chain[0], &BOTH)
}

fn refusal(result: Result<Svid, PeerProblem>) -> String {
    match result {
        Err(PeerProblem::BadSvid(what)) => what,
        other => panic!("{other:?}"),
    }
}

/// `SEQUENCE { [6] bytes … }`
fn uris(names: &[&[u8]]) -> Vec<u8> {
    let mut inner = Vec::new();
    for name in names {
        inner.extend([0x86, u8::try_from(name.len()).unwrap()]);
        inner.extend(*name);
    }
    let mut out = vec![0x30, u8::try_from(inner.len()).unwrap()];
    out.extend(inner);
    out
}

#[test]
fn a_good_leaf_is_read_whole() {
    let svid = read(&svid(service("orders").as_str())).unwrap();
    assert_eq!(*svid.id, service("orders"));
    assert!(svid.not_before < svid.not_after);
    assert!(svid.serial.len() >= 16 && svid.serial.bytes().all(|b| b.is_ascii_hexdigit()));
}

#[test]
fn extensions_are_read_strictly() {
    let good = || svid(service("orders").as_str());
    let with =
        |oid: &[u64], content: Vec<u8>, critical: bool, strip: fn(&mut CertificateParams)| {
            let mut parameters = good();
            strip(&mut parameters);
            let mut extension = CustomExtension::from_oid_content(oid, content);
            extension.set_criticality(critical);
            parameters.custom_extensions.push(extension);
            parameters
        };
    let no_usage: fn(&mut CertificateParams) = |p| p.key_usages.clear();
    let no_names: fn(&mut CertificateParams) = |p| p.subject_alt_names.clear();
    let nothing: fn(&mut CertificateParams) = |_| {};
    let id = b"spiffe://shop.internal/service/orders";
    let cases = [
        // Our own encoding of what rcgen writes is good, so the others are refused for what they say.
        (with(NAMES, uris(&[id]), false, no_names), None),
        (with(KEY_USAGE, vec![3, 2, 7, 0x80], true, no_usage), None),
        (
            with(KEY_USAGE, vec![3, 2, 7, 0x80], false, no_usage),
            Some("not marked critical"),
        ),
        (
            with(KEY_USAGE, vec![3, 2, 7, 0x80], true, nothing),
            Some("key usage"),
        ),
        (
            with(NAMES, uris(&[id]), false, nothing),
            Some("subject alternative name"),
        ),
        (
            with(NAMES, uris(&[id, id]), false, no_names),
            Some("more than one"),
        ),
        (
            with(NAMES, uris(&[id, b"https://x"]), false, no_names),
            Some("more than one"),
        ),
        (
            with(NAMES, uris(&[id, b"\xff\xfe"]), false, no_names),
            Some("cannot be read"),
        ),
        (
            with(
                NAMES,
                uris(&[b"spiffe://shop.internal/a\0b"]),
                false,
                no_names,
            ),
            Some("no SPIFFE ID"),
        ),
        (
            with(NAMES, uris(&[b""]), false, no_names),
            Some("no SPIFFE ID"),
        ),
        (with(NAMES, uris(&[]), false, no_names), Some("")),
        (
            with(NAMES, vec![0x30, 0x7f, 0x86], false, no_names),
            Some(""),
        ),
    ];
    for (number, (parameters, expected)) in cases.into_iter().enumerate() {
        match expected {
            None => assert!(read(&parameters).is_ok(), "case {number}"),
            Some(part) => {
                let what = refusal(read(&parameters));
                assert!(what.contains(part), "case {number}: {what}");
            }
        }
    }
}

#[test]
fn nothing_follows_a_leaf() {
    let mut der = Ca::new().leaf(&svid(service("orders").as_str())).chain[0].to_vec();
    assert!(Svid::from_der(&der, &BOTH).is_ok());
    der.push(0);
    assert_eq!(refusal(Svid::from_der(&der, &BOTH)), "bytes follow it");
}

#[test]
fn a_leaf_cut_or_changed_anywhere_never_panics() {
    let der = Ca::new().leaf(&svid(service("orders").as_str())).chain[0].to_vec();
    for length in 0..der.len() {
        assert!(Svid::from_der(&der[..length], &BOTH).is_err(), "{length}");
    }
    for position in 0..der.len() {
        for bit in 0..8 {
            let mut changed = der.clone();
            changed[position] ^= 1 << bit;
            // Most changes are in the key or the signature, which this does not look at.
            let _ = Svid::from_der(&changed, &BOTH);
        }
    }
}

#[test]
fn a_small_rsa_key_is_refused() {
    let certificate = CertificateDer::from_pem_slice(SMALL_RSA.as_bytes()).unwrap();
    assert_eq!(
        refusal(Svid::from_der(&certificate, &BOTH)),
        "its RSA key has 1024 bits, at least 2048 are needed"
    );
}

/// Good but for its key of 1024 bits, which no library of ours makes any more; by `openssl req -x509`.
const SMALL_RSA: &str = "\
-----BEGIN CERTIFICATE-----
MIICXjCCAcegAwIBAgIUB28/zBMNfKqKue4CwwJXIxkk2IcwDQYJKoZIhvcNAQEL
BQAwEDEOMAwGA1UEAwwFc21hbGwwIBcNMjYxMTIyMDEyODUzWhgPMjEyNjEwMjkw
MTI4NTNaMBAxDjAMBgNVBAMMBXNtYWxsMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCB
iQKBgQDMkUBPRohuDiPw+DtaDjk2RA/Z3EfkOyN2Om14+LCE+U+gZ+VcD5OzVXy2
sxyyIPrYuWKynXKKlk2mdPKgi8FIACyDGmr/u8EnEgQj7FxRmLb0ikNGJsQ0QMxx
9eoUrUzrqXyXgRCc0Ne0oL/P85Pr+a2KrnjLDho04eJAS5r62wIDAQABo4GyMIGv
MB0GA1UdDgQWBBSZ6qgvXJUe+pTInjllQskEA3GkajAfBgNVHSMEGDAWgBSZ6qgv
XJUe+pTInjllQskEA3GkajAwBgNVHREEKTAnhiVzcGlmZmU6Ly9zaG9wLmludGVy
bmFsL3NlcnZpY2Uvb3JkZXJzMAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeA
MB0GA1UdJQQWMBQGCCsGAQUFBwMBBggrBgEFBQcDAjANBgkqhkiG9w0BAQsFAAOB
gQCwrJWP3QVFcA99vjjVasOHng+/wMVZmHiyy3T/iQh3g+EBPO1IgjMpBT/Lhr+x
6ki8RXGAIOBK2T4IUcKhFfP12RH7BXsrkqhXD+1MKRABkixurvFg7+gSd/dOSyf/
DFl6DlQ7zTlp35BNDU2epWBxinQR9/wivU3BlbGaahrX0w==
-----END CERTIFICATE-----";
