#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::tests::{DAY, State, at, domain, lifetimes};

fn parse(der: &CertificateDer<'static>) -> X509Certificate<'static> {
    let der: &'static [u8] = Box::leak(der.to_vec().into_boxed_slice());
    X509Certificate::from_der(der).unwrap().1
}

fn reopen(state: &State, now: SystemTime) -> Result<Authority, Error> {
    Authority::open(
        &state.directory,
        &domain("shop.internal"),
        &lifetimes(),
        now,
    )
}

#[test]
fn root_and_intermediate_are_what_they_should_be() {
    let state = State::new();
    let root = parse(state.root().certificate());
    let signer = state.authority.signer();
    let intermediate = parse(signer.certificate());
    for (certificate, below, days, backdated) in [(&root, 1, 3650, 60), (&intermediate, 0, 30, 60)]
    {
        let basic = certificate.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && basic.value.ca);
        assert_eq!(basic.value.path_len_constraint, Some(below));
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
        assert_eq!(only_uri(certificate).unwrap(), "spiffe://shop.internal");
        assert_eq!(certificate.raw_serial().len(), 16);
        let key = certificate
            .public_key()
            .algorithm
            .parameters
            .as_ref()
            .unwrap()
            .as_oid()
            .unwrap();
        assert_eq!(key, x509_parser::oid_registry::OID_EC_P256);
        let validity = certificate.validity();
        assert_eq!(
            SystemTime::from(validity.not_before.to_datetime()),
            at(0) - Duration::from_secs(backdated)
        );
        assert_eq!(
            SystemTime::from(validity.not_after.to_datetime()),
            at(days * DAY)
        );
    }
    assert_eq!(root.subject(), root.issuer());
    assert_eq!(intermediate.issuer(), root.subject());
    assert_ne!(intermediate.subject(), root.subject());
    intermediate
        .verify_signature(Some(root.public_key()))
        .unwrap();
    assert_eq!(authority_key(&intermediate), subject_key(&root));
    assert_ne!(subject_key(&intermediate), subject_key(&root));
}

fn subject_key(certificate: &X509Certificate<'_>) -> Vec<u8> {
    certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => {
                Some(id.0.to_vec())
            }
            _ => None,
        })
        .unwrap()
}

fn authority_key(certificate: &X509Certificate<'_>) -> Vec<u8> {
    certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                Some(id.key_identifier.as_ref().unwrap().0.to_vec())
            }
            _ => None,
        })
        .unwrap()
}

#[test]
fn a_long_trust_domain_fits_into_the_certificates() {
    let long = "a".repeat(255);
    let state = State::of(&long);
    assert_eq!(
        only_uri(&parse(state.root().certificate())).unwrap(),
        format!("spiffe://{long}")
    );
}

#[test]
fn the_state_survives_a_restart() {
    let state = State::new();
    let again = reopen(&state, at(DAY)).unwrap();
    assert_eq!(again.root().certificate(), state.root().certificate());
    assert_eq!(
        again.signer().certificate(),
        state.authority.signer().certificate()
    );
    for name in [store::ROOT, store::INTERMEDIATE] {
        let mode = fs::metadata(state.directory.path_of(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
}

#[test]
fn the_intermediate_is_renewed_at_half_its_life_and_not_before() {
    let state = State::new();
    let first = state.authority.signer();
    assert_eq!(state.authority.wait(at(0)), Duration::from_secs(15 * DAY));
    assert!(!state.authority.keep(at(15 * DAY - 1)).unwrap());
    assert!(state.authority.keep(at(15 * DAY)).unwrap());
    let second = state.authority.signer();
    assert_ne!(second.certificate(), first.certificate());
    assert_ne!(
        parse(second.certificate()).subject(),
        parse(first.certificate()).subject()
    );
    assert_eq!(second.validity().not_after, at(45 * DAY));
    assert!(state.root().signer.signed(&second));
    assert!(
        !state.authority.keep(at(15 * DAY)).unwrap(),
        "once is enough"
    );
    // The old key is gone from the disk, and the new one is what a restart finds.
    assert_eq!(
        reopen(&state, at(16 * DAY)).unwrap().signer().certificate(),
        second.certificate()
    );
    // A restart after a long absence renews at once.
    let third = reopen(&state, at(400 * DAY)).unwrap().signer();
    assert_eq!(third.validity().not_after, at(430 * DAY));
}

#[test]
fn the_intermediate_never_outlives_the_root_and_renewing_ends() {
    let state = State::new();
    let late = at(3640 * DAY);
    assert!(state.authority.keep(late).unwrap());
    assert_eq!(
        state.authority.signer().validity().not_after,
        at(3650 * DAY)
    );
    assert!(!state.authority.keep(at(3649 * DAY)).unwrap());
}

#[test]
fn a_disk_that_says_no_leaves_the_old_intermediate_signing() {
    let state = State::new();
    let before = state.authority.signer();
    // A directory in its place cannot be replaced by a file, for root neither.
    let path = state.directory.path_of(store::INTERMEDIATE);
    let kept = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("inside"), b"").unwrap();
    state.authority.keep(at(20 * DAY)).unwrap_err();
    assert_eq!(state.authority.signer().certificate(), before.certificate());
    fs::remove_dir_all(&path).unwrap();
    state.directory.write(store::INTERMEDIATE, &kept).unwrap();
    assert!(
        state.authority.keep(at(20 * DAY)).unwrap(),
        "the next try does it"
    );
}

#[test]
fn damaged_files_are_refused_with_the_way_out_and_left_alone() {
    let state = State::new();
    let other = State::new();
    let check = |name: &str, bytes: &[u8], cure: &str| {
        let path = state.directory.path_of(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let error = reopen(&state, at(1)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(cure), "{error}");
        assert_eq!(
            fs::read(&path).unwrap(),
            bytes,
            "what is damaged is never overwritten"
        );
        fs::write(&path, good).unwrap();
        reopen(&state, at(1)).unwrap();
    };
    let root = fs::read(state.directory.path_of(store::ROOT)).unwrap();
    let intermediate = fs::read(state.directory.path_of(store::INTERMEDIATE)).unwrap();
    let backup = "backup";
    for end in [0, 1, root.len() / 3, root.len() / 2, root.len() - 30] {
        check(store::ROOT, &root[..end], backup);
    }
    check(store::ROOT, b"\xff\xfe", backup);
    check(store::ROOT, &intermediate, "begin anew");
    let of_other = fs::read(other.directory.path_of(store::ROOT)).unwrap();
    let (certificate, _) = split(&root);
    let (_, key) = split(&of_other);
    check(store::ROOT, &[certificate, key].concat(), backup);
    check(
        store::INTERMEDIATE,
        &intermediate[..intermediate.len() / 2],
        "remove this one file",
    );
    let foreign = fs::read(other.directory.path_of(store::INTERMEDIATE)).unwrap();
    check(store::INTERMEDIATE, &foreign, "remove this one file");
}

fn split(pem: &[u8]) -> (&[u8], &[u8]) {
    let text = std::str::from_utf8(pem).unwrap();
    pem.split_at(text.find("-----BEGIN PRIVATE").unwrap())
}

#[test]
fn open_files_are_refused() {
    let state = State::new();
    for name in [store::ROOT, store::INTERMEDIATE] {
        let path = state.directory.path_of(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = reopen(&state, at(1)).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("chmod 600"),
            "{error}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn a_missing_intermediate_is_made_anew_and_a_missing_root_is_not() {
    let state = State::new();
    let before = state.authority.signer();
    fs::remove_file(state.directory.path_of(store::INTERMEDIATE)).unwrap();
    let again = reopen(&state, at(1)).unwrap();
    assert_eq!(again.root().certificate(), state.root().certificate());
    assert_ne!(again.signer().certificate(), before.certificate());
    fs::remove_file(state.directory.path_of(store::ROOT)).unwrap();
    let error = reopen(&state, at(1)).unwrap_err().to_string();
    assert!(error.contains("the root is missing"), "{error}");
    assert!(!state.directory.path_of(store::ROOT).exists());
}

#[test]
fn a_state_has_one_trust_domain_and_one_life() {
    let state = State::new();
    let open = |name, now| Authority::open(&state.directory, &domain(name), &lifetimes(), now);
    let error = open("other.internal", at(1)).unwrap_err();
    assert!(matches!(error, Error::TrustDomain { .. }), "{error}");
    open("shop.internal", at(3650 * DAY)).unwrap();
    let error = open("shop.internal", at(3650 * DAY + 1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("expired at 2035-06-1"), "{error}");
}

#[test]
fn keys_are_not_shown() {
    let state = State::new();
    let pem = state.authority.signer().to_pem();
    let key = pem
        .lines()
        .skip_while(|line| !line.contains("PRIVATE"))
        .nth(1)
        .unwrap();
    let shown = format!("{:?}", state.authority);
    assert!(!shown.contains(key) && shown.contains("elided"), "{shown}");
}
