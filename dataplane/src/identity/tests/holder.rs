//! One identity through its changes: who gets which configuration, and what cannot become an identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};

use crate::identity::testing::{Ca, id, lasting, service, svid};
use crate::identity::{Alpn, Bundle, Identity, MAX_CLIENT_CONFIGS, MAX_ROOTS, Material, Part};

#[test]
fn a_renewal_gives_new_configurations_and_leaves_the_old_alone() {
    let ca = Ca::new();
    let identity = ca.identity("orders");
    let peer = service("inventory");
    let (before, server) = (identity.current(), identity.server_config());
    let client = identity.client_config(&peer, Alpn::H2);
    assert!(Arc::ptr_eq(
        &client,
        &identity.client_config(&peer, Alpn::H2)
    ));
    assert!(!Arc::ptr_eq(
        &client,
        &identity.client_config(&peer, Alpn::Http1)
    ));
    assert!(!Arc::ptr_eq(
        &client,
        &identity.client_config(&service("orders"), Alpn::H2)
    ));
    assert!(Arc::ptr_eq(&server, &identity.server_config()));
    assert_eq!(identity.generation(), 1);

    identity.renew(ca.material(&service("orders"))).unwrap();
    assert_eq!(identity.generation(), 2);
    assert_ne!(identity.current().serial(), before.serial());
    assert!(!Arc::ptr_eq(&server, &identity.server_config()));
    assert!(!Arc::ptr_eq(
        &client,
        &identity.client_config(&peer, Alpn::H2)
    ));
    assert_eq!(identity.status().renewals, 1);
    assert_eq!(before.generation(), 1);
}

#[test]
fn a_new_bundle_counts_as_a_change_and_the_same_one_does_not() {
    let (ca, other) = (Ca::new(), Ca::new());
    let identity = ca.identity("orders");
    assert!(!identity.trust(ca.bundle()));
    assert_eq!(identity.generation(), 1);
    let both = Bundle::from_der([ca.root.clone(), other.root.clone()]).unwrap();
    assert!(identity.trust(both));
    assert_eq!(identity.generation(), 2);
    assert!(identity.current().is_vouched_for(SystemTime::now()));
    assert!(identity.trust(other.bundle()));
    assert!(!identity.current().is_vouched_for(SystemTime::now()));
    assert_eq!(identity.status().renewals, 0);
}

#[test]
fn a_process_does_not_become_another_one() {
    let ca = Ca::new();
    let identity = ca.identity("orders");
    let problem = identity
        .renew(ca.material(&service("inventory")))
        .unwrap_err();
    assert_eq!(problem.part, Part::Certificate);
    assert_eq!(*identity.spiffe_id(), service("orders"));
    assert_eq!(identity.generation(), 1);
}

#[test]
fn the_table_of_client_configurations_is_bounded() {
    let identity = Ca::new().identity("orders");
    let first = service("s0");
    let config = identity.client_config(&first, Alpn::H2);
    for number in 1..MAX_CLIENT_CONFIGS {
        identity.client_config(&service(&format!("s{number}")), Alpn::H2);
    }
    assert!(Arc::ptr_eq(
        &config,
        &identity.client_config(&first, Alpn::H2)
    ));
    assert_eq!(identity.known_services(), MAX_CLIENT_CONFIGS);
    identity.client_config(&service("one-more"), Alpn::H2);
    assert_eq!(identity.known_services(), 1);
}

#[test]
fn the_key_is_never_shown() {
    let ca = Ca::new();
    let leaf = ca.leaf(&svid(service("orders").as_str()));
    let identity = Identity::new(leaf.material(ca.bundle()));
    let shown = format!(
        "{identity:?} {:?} {:?}",
        identity.current(),
        identity.status()
    );
    assert!(shown.contains("redacted") && shown.contains("service/orders"));
    let key = crate::identity::Key::fresh().unwrap();
    assert_eq!(format!("{key:?}"), "Key(redacted)");
}

#[test]
fn validity_and_the_words_for_readiness() {
    let ca = Ca::new();
    let mut parameters = svid(service("orders").as_str());
    lasting(&mut parameters, -60, 100);
    let identity = Identity::new(ca.leaf(&parameters).material(ca.bundle()));
    let material = identity.current();
    let second = Duration::from_secs(1);
    for (now, valid) in [
        (material.not_before() - second, false),
        (material.not_before(), true),
        (material.not_after(), true),
        (material.not_after() + second, false),
    ] {
        assert_eq!(identity.is_valid(now), valid);
        assert_eq!(identity.problem(now).is_none(), valid);
    }
    let late = material.not_after() + Duration::from_secs(7);
    assert_eq!(
        identity.problem(late).unwrap(),
        "our certificate expired 7 s ago"
    );
    identity.note_failure("the CA is away".to_owned());
    assert_eq!(
        identity.problem(late).unwrap(),
        "our certificate expired 7 s ago, and it could not be renewed: the CA is away"
    );
    let early = material.not_before() - second;
    assert!(identity.problem(early).unwrap().contains("not valid yet"));
    assert_eq!(identity.status().renewal_failures, 1);
}

#[test]
fn only_what_fits_together_is_an_identity() {
    let (ca, other) = (Ca::new(), Ca::new());
    let good = service("orders");
    let spoilt = |spoil: fn(&mut CertificateParams)| {
        let mut parameters = svid(good.as_str());
        spoil(&mut parameters);
        ca.leaf(&parameters)
    };
    let mut stolen = spoilt(|_| {});
    stolen.key = rcgen::KeyPair::generate().unwrap();
    let mut empty = spoilt(|_| {});
    empty.chain.clear();
    let mut orphan = spoilt(|_| {});
    orphan.chain.truncate(1);
    let cases = [
        ("good", spoilt(|_| {}), ca.bundle(), None),
        ("empty", empty, ca.bundle(), Some(Part::Certificate)),
        ("stolen", stolen, ca.bundle(), Some(Part::Key)),
        ("orphan", orphan, ca.bundle(), Some(Part::Bundle)),
        (
            "foreign",
            spoilt(|_| {}),
            other.bundle(),
            Some(Part::Bundle),
        ),
        (
            "expired",
            spoilt(|p| lasting(p, -60, -30)),
            ca.bundle(),
            Some(Part::Certificate),
        ),
        (
            "early",
            spoilt(|p| lasting(p, 30, 60)),
            ca.bundle(),
            Some(Part::Certificate),
        ),
        (
            "nameless",
            spoilt(|p| p.subject_alt_names.clear()),
            ca.bundle(),
            Some(Part::Certificate),
        ),
        (
            "one end only",
            spoilt(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            ca.bundle(),
            Some(Part::Certificate),
        ),
    ];
    for (name, leaf, bundle, expected) in cases {
        let key = Arc::clone(&leaf.certified().key);
        let got = Material::assemble(leaf.chain, key, bundle, SystemTime::now());
        let part = got.as_ref().err().map(|problem| problem.part);
        assert_eq!(part, expected, "{name}: {got:?}");
    }
}

#[test]
fn a_bundle_holds_roots_only_and_not_too_many() {
    let ca = Ca::new();
    let leaf = ca.leaf(&svid(id("spiffe://a/b").as_str()));
    assert!(Bundle::from_der([]).unwrap_err().contains("no root"));
    let error = Bundle::from_der([ca.root.clone(), leaf.chain[0].clone()]).unwrap_err();
    assert!(
        error.contains("certificate 2") && error.contains("not a CA's"),
        "{error}"
    );
    assert!(Bundle::from_der([b"junk".to_vec().into()]).is_err());
    let same = Bundle::from_der([ca.root.clone(), ca.root.clone()]).unwrap();
    assert_eq!(same.roots().len(), 1);
    let mut roots: Vec<_> = (0..MAX_ROOTS).map(|_| Ca::new().root).collect();
    assert_eq!(
        Bundle::from_der(roots.clone()).unwrap().roots().len(),
        MAX_ROOTS
    );
    roots.push(ca.root.clone());
    assert!(Bundle::from_der(roots).unwrap_err().contains("more than"));
}
