#![allow(clippy::unwrap_used)]

use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::*;
use crate::journal;
use crate::store::{self, Directory};
use crate::tests::{DAY, State, at, domain, lifetimes, name};

/// A desk on a fresh state.
struct Office {
    desk: Desk,
    journal: Directory,
    _temp: tempfile::TempDir,
}

impl Office {
    fn new() -> Self {
        Self::of(State::new())
    }

    fn of(state: State) -> Self {
        let journal = state.directory.inside(store::JOURNAL).unwrap();
        let desk = Desk {
            authority: state.authority,
            tokens: state.tokens,
            journal: Journal::open(journal.clone()).unwrap(),
            lifetimes: lifetimes(),
        };
        Self {
            desk,
            journal,
            _temp: state._temp,
        }
    }

    fn token(&self, service: &str, now: SystemTime) -> String {
        let root = self.desk.authority.root();
        let token = self
            .desk
            .tokens
            .create(&name(service), Duration::from_secs(600), root, now);
        token.unwrap().to_string()
    }

    /// Joins with a fresh token.
    fn join(&self, service: &str, now: SystemTime) -> Granted {
        self.desk
            .issue(&csr(), by_token(&self.token(service, now)), now)
            .unwrap()
    }

    fn renew(
        &self,
        chain: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<Granted, Refusal> {
        self.desk.issue(&csr(), by_certificate(chain), now)
    }

    /// As a peer in the mesh would check it.
    fn verify(
        &self,
        chain: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<(), webpki::Error> {
        let anchors = [anchor_from_trusted_cert(self.desk.authority.root().certificate()).unwrap()];
        let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
        let leaf = EndEntityCert::try_from(&chain[0]).unwrap();
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            leaf.verify_for_usage(algorithms, &anchors, &chain[1..], time, usage, None, None)?;
        }
        Ok(())
    }
}

fn csr() -> Vec<u8> {
    CertificateParams::default()
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec()
}

fn by_token(token: &str) -> Proof<'_> {
    Proof {
        join_token: token,
        certificates: &[],
    }
}

fn by_certificate<'a>(certificates: &'a [CertificateDer<'static>]) -> Proof<'a> {
    Proof {
        join_token: "",
        certificates,
    }
}

#[test]
fn a_leaf_is_an_svid_by_the_letter() {
    let office = Office::new();
    let now = at(1000);
    let granted = office.join("orders", now);
    let chain = &granted.issued.chain;
    assert_eq!(chain.len(), 2, "leaf and intermediate");
    let (rest, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(rest.is_empty());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [
            GeneralName::URI("spiffe://shop.internal/service/orders"),
            GeneralName::DNSName("orders")
        ]
    );
    let basic = leaf.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && !basic.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature and nothing else");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(
        extended.client_auth && extended.server_auth && !extended.any && extended.other.is_empty()
    );
    assert_eq!(
        SystemTime::from(leaf.validity().not_before.to_datetime()),
        at(940)
    );
    assert_eq!(
        SystemTime::from(leaf.validity().not_after.to_datetime()),
        at(1000 + DAY)
    );
    assert_eq!(leaf.raw_serial().len(), 16);
    assert_eq!(leaf.version().0, 2);
    let oids: Vec<_> = leaf
        .iter_extensions()
        .map(|extension| extension.oid.to_id_string())
        .collect();
    let expected = [
        "2.5.29.35",
        "2.5.29.17",
        "2.5.29.15",
        "2.5.29.37",
        "2.5.29.14",
        "2.5.29.19",
    ];
    assert_eq!(
        oids, expected,
        "authority key, names, usage, extended usage, key, constraints"
    );

    office.verify(chain, now).unwrap();
    office.verify(chain, at(1000 + DAY)).unwrap();
    assert!(matches!(
        office.verify(chain, at(1001 + DAY)),
        Err(webpki::Error::CertExpired { .. })
    ));
    let leaf = EndEntityCert::try_from(&chain[0]).unwrap();
    leaf.verify_is_valid_for_subject_name(&ServerName::try_from("orders").unwrap())
        .unwrap();
    leaf.verify_is_valid_for_subject_name(&ServerName::try_from("inventory").unwrap())
        .unwrap_err();
}

#[test]
fn two_leaves_share_no_serial() {
    let office = Office::new();
    let (one, two) = (office.join("orders", at(1)), office.join("orders", at(1)));
    assert_ne!(one.issued.serial, two.issued.serial);
}

#[test]
fn what_a_request_asks_for_is_ignored_but_its_key() {
    let office = Office::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.subject_alt_names = vec![
        SanType::URI(
            "spiffe://shop.internal/service/payments"
                .try_into()
                .unwrap(),
        ),
        SanType::DnsName("payments".try_into().unwrap()),
        SanType::IpAddress([127, 0, 0, 1].into()),
    ];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::Any,
        ExtendedKeyUsagePurpose::Other(vec![1, 2, 3]),
    ];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    let greedy = params.serialize_request(&key).unwrap();
    let token = office.token("orders", at(0));
    let greedy = office
        .desk
        .issue(greedy.der(), by_token(&token), at(0))
        .unwrap();
    let modest = office.join("orders", at(0));
    let (_, greedy) = X509Certificate::from_der(&greedy.issued.chain[0]).unwrap();
    let (_, modest) = X509Certificate::from_der(&modest.issued.chain[0]).unwrap();
    assert_eq!(greedy.subject(), modest.subject());
    assert_eq!(
        greedy.public_key().raw,
        rcgen::PublicKeyData::subject_public_key_info(&key)
    );
    let comparable = |certificate: &X509Certificate<'_>| -> Vec<_> {
        let extensions = certificate.iter_extensions().filter(|extension| {
            // The identifier of the subject's own key differs, of course.
            extension.oid != x509_parser::oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER
        });
        extensions
            .map(|extension| {
                (
                    extension.oid.to_id_string(),
                    extension.critical,
                    extension.value.to_vec(),
                )
            })
            .collect()
    };
    assert_eq!(comparable(&greedy), comparable(&modest));
}

#[test]
fn a_bad_request_uses_no_token_up() {
    let office = Office::new();
    let token = office.token("orders", at(0));
    let refusal = office
        .desk
        .issue(b"no request", by_token(&token), at(1))
        .unwrap_err();
    assert!(
        matches!(refusal, Refusal::Request(csr::Fault::Malformed)),
        "{refusal}"
    );
    office.desk.issue(&csr(), by_token(&token), at(1)).unwrap();
}

#[test]
fn nothing_shown_nothing_given() {
    let office = Office::new();
    let refusal = office.desk.issue(&csr(), by_token(""), at(1)).unwrap_err();
    assert!(matches!(refusal, Refusal::NoProof), "{refusal}");
}

#[test]
fn a_certificate_renews_itself_again_and_again() {
    let office = Office::new();
    let mut granted = office.join("orders", at(0));
    for half_day in 1..100 {
        let now = at(half_day * DAY / 2);
        office.desk.authority.keep(now).unwrap();
        granted = office.renew(&granted.issued.chain, now).unwrap();
        assert_eq!(granted.admitted.service.as_str(), "orders");
        office
            .verify(&granted.issued.chain, now + Duration::from_secs(DAY - 1))
            .unwrap();
    }
    assert_eq!(granted.issued.validity.not_after, at(99 * DAY / 2 + DAY));
}

#[test]
fn a_leaf_of_the_intermediate_before_renews_too() {
    let office = Office::new();
    let before = at(15 * DAY - 1);
    let granted = office.join("orders", before);
    assert!(office.desk.authority.keep(at(15 * DAY)).unwrap());
    let renewed = office.renew(&granted.issued.chain, at(15 * DAY)).unwrap();
    assert_ne!(renewed.issued.chain[1], granted.issued.chain[1]);
}

#[test]
fn only_a_certificate_that_holds_is_renewed() {
    let office = Office::new();
    let foreign = Office::new();
    let chain = office.join("orders", at(1000)).issued.chain;
    let check = |chain: &[CertificateDer<'static>], now, words: &str| {
        let refusal = office.renew(chain, now).unwrap_err();
        assert!(matches!(refusal, Refusal::Certificate(_)), "{refusal}");
        assert!(refusal.to_string().contains(words), "{refusal}");
    };
    office.renew(&chain, at(1000 + DAY)).unwrap();
    check(&chain, at(1001 + DAY), "expired at");
    check(&chain, at(1001 + DAY), "weft ca token create");
    check(&chain, at(939), "begins at");
    check(&chain[..1], at(1000), "did not issue it");
    // The same names under another root.
    let others = foreign.join("orders", at(1000)).issued.chain;
    check(&others, at(1000), "did not issue it");
    check(
        &[others[0].clone(), chain[1].clone()],
        at(1000),
        "did not issue it",
    );
    // Authority certificates are no proof, whoever has their keys.
    let root = office.desk.authority.root().certificate().clone();
    check(&chain[1..], at(1000), "CaUsedAsEndEntity");
    check(&[root], at(1000), "CaUsedAsEndEntity");
    check(&vec![chain[0].clone(); 6], at(1000), "longer than five");
    for damaged in [&b""[..], b"\x30\x80", &chain[0][..chain[0].len() - 1]] {
        let damaged = CertificateDer::from(damaged.to_vec());
        check(&[damaged, chain[1].clone()], at(1000), "");
    }
    let mut forged = chain[0].to_vec();
    let at_name = forged
        .windows(6)
        .position(|window| window == b"orders")
        .unwrap();
    forged[at_name] = b'b';
    check(
        &[forged.into(), chain[1].clone()],
        at(1000),
        "InvalidSignature",
    );
}

#[test]
fn only_the_names_of_our_services_are_renewed() {
    let office = Office::new();
    let signer = office.desk.authority.signer();
    // Signed by our own intermediate, as by a slip of ours or a stolen key.
    let sign = |change: &dyn Fn(&mut CertificateParams)| {
        let validity =
            crate::profile::Validity::new(at(0), Duration::from_secs(DAY), Duration::ZERO, None);
        let profile = Profile::leaf(&domain("shop.internal"), &name("orders"), &lifetimes());
        let mut params = profile.params(&validity, Serial::new([7; 16])).unwrap();
        change(&mut params);
        let leaf = params
            .signed_by(&KeyPair::generate().unwrap(), signer.issuer())
            .unwrap();
        vec![leaf.der().clone(), signer.certificate().clone()]
    };
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let check = |names: Vec<SanType>| {
        let refusal = office
            .renew(
                &sign(&|params| params.subject_alt_names.clone_from(&names)),
                at(1),
            )
            .unwrap_err();
        assert!(
            matches!(refusal, Refusal::Certificate(_) | Refusal::Reserved),
            "{refusal}"
        );
    };
    office.renew(&sign(&|_| {}), at(1)).unwrap();
    check(vec![]);
    check(vec![SanType::DnsName("orders".try_into().unwrap())]);
    check(vec![
        uri("spiffe://shop.internal/service/orders"),
        uri("spiffe://shop.internal/service/orders"),
    ]);
    check(vec![
        uri("spiffe://shop.internal/service/orders"),
        uri("spiffe://shop.internal/service/payments"),
    ]);
    check(vec![uri("spiffe://other.internal/service/orders")]);
    check(vec![uri("spiffe://shop.internal.evil/service/orders")]);
    check(vec![uri("spiffe://shop.internal/service/orders/x")]);
    check(vec![uri("spiffe://shop.internal/service/ORDERS")]);
    check(vec![uri("spiffe://shop.internal/service/..")]);
    check(vec![uri("spiffe://shop.internal")]);
    check(vec![uri("spiffe://shop.internal/service/ca")]);
    check(vec![uri("https://shop.internal/service/orders")]);
    let signs_others = sign(&|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert!(
        office
            .renew(&signs_others, at(1))
            .unwrap_err()
            .to_string()
            .contains("may sign others")
    );
    let only_server =
        sign(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(matches!(
        office.renew(&only_server, at(1)),
        Err(Refusal::Certificate(_))
    ));
}

#[test]
fn a_token_helps_when_the_certificate_has_expired() {
    let office = Office::new();
    let old = office.join("orders", at(0)).issued.chain;
    let late = at(3 * DAY);
    let token = office.token("orders", late);
    let proof = Proof {
        join_token: &token,
        certificates: &old,
    };
    let granted = office.desk.issue(&csr(), proof, late).unwrap();
    assert_eq!(granted.admitted.kind, admit::Kind::Token);
    // A token that does not hold is not made good by a certificate that does.
    let proof = Proof {
        join_token: &token,
        certificates: &granted.issued.chain,
    };
    assert!(matches!(
        office.desk.issue(&csr(), proof, late),
        Err(Refusal::TokenUsed)
    ));
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let office = Office::new();
    // Nobody renewed the intermediate: its last half day.
    let granted = office.join("orders", at(30 * DAY - DAY / 2));
    assert_eq!(granted.issued.validity.not_after, at(30 * DAY));
    let token = office.token("orders", at(30 * DAY + 1));
    let refusal = office
        .desk
        .issue(&csr(), by_token(&token), at(30 * DAY + 1))
        .unwrap_err();
    assert!(
        matches!(refusal, Refusal::Internal(Error::IssuerOver)),
        "{refusal}"
    );
}

#[test]
fn what_was_issued_is_in_the_journal_and_what_was_refused_is_not() {
    let office = Office::new();
    let token = office.token("orders", at(0));
    let joined = office.desk.issue(&csr(), by_token(&token), at(0)).unwrap();
    let renewed = office.renew(&joined.issued.chain, at(DAY / 2)).unwrap();
    office.renew(&joined.issued.chain, at(2 * DAY)).unwrap_err();
    let mut entries = Vec::new();
    assert_eq!(
        journal::read(&office.journal, |entry| entries.push(entry)).unwrap(),
        0
    );
    let expected = [
        Entry {
            time: "2025-06-15T15:06:40Z".into(),
            serial: joined.issued.serial.hex(),
            id: "spiffe://shop.internal/service/orders".into(),
            not_after: "2025-06-16T15:06:40Z".into(),
            proof: "token".into(),
            evidence: token.split('.').nth(1).unwrap().into(),
        },
        Entry {
            time: "2025-06-16T03:06:40Z".into(),
            serial: renewed.issued.serial.hex(),
            id: "spiffe://shop.internal/service/orders".into(),
            not_after: "2025-06-17T03:06:40Z".into(),
            proof: "renewal".into(),
            evidence: joined.issued.serial.hex(),
        },
    ];
    assert_eq!(entries, expected);
}
