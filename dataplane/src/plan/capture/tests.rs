//! Who is meant by an address, and what is let out and in.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use weft_runtime::config::{Path, Problems};

use super::*;
use crate::authz::Rules;
use crate::cluster::{Cluster, Speaks};
use crate::plan::Purpose;
use crate::route::Match;
use crate::testing::spec;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn rule(name: &str, endpoints: &[&str]) -> Arc<Rule> {
    let mut spec = spec(Speaks::Http1, &[]);
    spec.name = name.into();
    let cluster = Cluster::new(spec, false);
    let places = endpoints.iter().map(|text| at(text)).collect();
    cluster.members.apply(places, Instant::now());
    let mut problems = Problems::new();
    let none = Default::default();
    Arc::new(Rule {
        id: Rule::next_id(),
        name: name.into(),
        authn: None,
        authz: Arc::new(Rules::build(name, &Path::root(), &[], &none, &mut problems).unwrap()),
        limits: Vec::new(),
        target: cluster,
        purpose: Purpose::Traffic,
    })
}

fn outbound(egress: Egress) -> Outbound {
    let service = |name, endpoints: &[&str], app_port| Service {
        rule: rule(name, endpoints),
        app_port,
        is_opaque: false,
    };
    Outbound {
        opaque_ports: Arc::default(),
        services: vec![
            service("orders", &["10.0.0.1:15008", "[fd00::1]:15008"], Some(8080)),
            service("admin", &["10.0.0.1:15008"], Some(9000)),
            service("legacy", &["10.0.0.5:80", "10.0.0.6:81"], None),
        ],
        egress: Arc::new(egress),
    }
}

#[test]
fn an_address_is_that_of_the_service_that_listens_there() {
    let outbound = outbound(Egress::Passthrough);
    for (address, expected) in [
        ("10.0.0.1:8080", Some("orders")),
        ("[fd00::1]:8080", Some("orders")),
        ("[::ffff:10.0.0.1]:8080", Some("orders")),
        ("10.0.0.1:9000", Some("admin")),
        ("10.0.0.5:80", Some("legacy")),
        ("10.0.0.6:81", Some("legacy")),
        // Nobody's: another port, another host, and the sidecars' own, where apps have no business.
        ("10.0.0.1:80", None),
        ("10.0.0.2:8080", None),
        ("10.0.0.5:81", None),
        ("10.0.0.1:15008", None),
    ] {
        let found = outbound.service(at(address)).map(|rule| &*rule.name);
        assert_eq!(found, expected, "{address}");
    }
}

fn list(hosts: &[&str], networks: &[&str]) -> Egress {
    let root = Path::root();
    let matches: Vec<Match> = hosts
        .iter()
        .map(|host| Match {
            host: Some((*host).to_owned()),
            ..Match::default()
        })
        .collect();
    let mut problems = Problems::new();
    let table = Table::build(
        matches.iter().map(|host| (&root, host, ())).collect(),
        &mut problems,
    );
    Egress::AllowList {
        hosts: table.filter(|_| !hosts.is_empty()).map(Box::new),
        networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

#[test]
fn what_is_on_the_list_is_let_out_by_name_or_by_address() {
    let egress = list(&["api.example", "*.good.example"], &["10.0.0.0/8"]);
    let allows = |ip: &str, name| egress.allows(ip.parse().unwrap(), name);
    assert!(allows("10.1.1.1", None));
    assert!(allows("::ffff:10.1.1.1", Some("other.example")));
    assert!(allows("8.8.8.8", Some("API.example")));
    assert!(allows("8.8.8.8", Some("a.b.good.example")));
    assert!(!allows("8.8.8.8", Some("good.example")));
    assert!(!allows("8.8.8.8", Some("api.example.evil")));
    assert!(!allows("8.8.8.8", None));
    assert!(egress.asks_names());
    assert!(!list(&[], &["10.0.0.0/8"]).asks_names());
    assert!(!list(&[], &[]).allows("10.0.0.1".parse().unwrap(), Some("a")));
    assert!(Egress::Passthrough.allows("8.8.8.8".parse().unwrap(), None));
}

#[test]
fn an_exchange_without_a_route_goes_by_the_address_or_is_told_why_not() {
    let now = SystemTime::UNIX_EPOCH;
    let capture = Capture::Outbound(outbound(list(&["api.example"], &[])));
    let rule = |address, host| capture.rule(at(address), host, now);
    assert_eq!(&*rule("10.0.0.1:8080", "anything").unwrap().name, "orders");
    let reason = |address, host| rule(address, host).unwrap_err().reason;
    assert_eq!(reason("8.8.8.8:80", "bad.example"), Reason::EgressDenied);
    assert_eq!(reason("8.8.8.8:80", "api.example"), Reason::NoService);
}

#[test]
fn plaintext_is_let_in_on_its_ports_until_its_time_is_over() {
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let capture = Capture::Inbound(Inbound {
        service: "orders".into(),
        ports: HashMap::from([(
            8080,
            Permit {
                until: end,
                to: Permitted::Exchanges(rule("app", &["127.0.0.1:8080"])),
            },
        )]),
    });
    let before = end - Duration::from_millis(1);
    let to = |port, now| capture.rule(SocketAddr::new([10, 0, 0, 1].into(), port), "orders", now);
    assert_eq!(&*to(8080, before).unwrap().name, "app");
    let refused = |port, now, words: &str| {
        let error = to(port, now).unwrap_err();
        assert_eq!(error.reason, Reason::PlaintextRefused);
        assert!(error.detail.contains(words), "{}", error.detail);
    };
    refused(8080, end, "the time is over");
    refused(8081, before, "for mutual TLS");
    assert!(
        capture
            .connection_rule(at("10.0.0.1:8080"), before)
            .is_some()
    );
    assert!(capture.connection_rule(at("10.0.0.1:8080"), end).is_none());
}
