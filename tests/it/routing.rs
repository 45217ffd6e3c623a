//! Which of many routes an exchange takes, through the real gateway: by the precedence of the Gateway API, whatever their
//! order in the file. And all the way over IPv6.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use crate::alone::{Host, IDENTITY, Origin, Then, Way};
use crate::harness::certs::Authority;

/// Routes that overlap, and the services that they lead to.
#[rustfmt::skip] // a row a line
const ROUTES: &[(&str, &str)] = &[
    ("everything", "{}"),
    ("archive", "{ path: /orders/archive/* }"),
    ("exact-anywhere", "{ path: /orders/new }"),
    ("wide", "{ host: \"*.example\", path: /orders/new }"),
    ("narrow", "{ host: \"*.eu.example\" }"),
    ("shop", "{ host: shop.example }"),
    ("below", "{ host: shop.example, path: /orders/* }"),
    ("one", "{ host: shop.example, path: \"/orders/{id}\" }"),
    ("one-beta", "{ host: shop.example, path: \"/orders/{id}\", headers: { x-beta: \"1\" } }"),
    ("one-gold", "{ host: shop.example, path: \"/orders/{id}\", headers: { x-beta: \"1\", x-tier: gold } }"),
    ("one-gone", "{ host: shop.example, path: \"/orders/{id}\", methods: [DELETE, PATCH] }"),
    ("new", "{ host: shop.example, path: /orders/new }"),
];

const BETA: (&str, &str) = ("x-beta", "1");
const GOLD: (&str, &str) = ("x-tier", "gold");

type Fields = &'static [(&'static str, &'static str)];

/// What is asked, of whom, with which fields, and where it has to go.
#[rustfmt::skip] // a row a line
const ASKED: &[(&str, &str, Fields, &str)] = &[
    // A host spelled out comes before a wildcard, whatever the paths say; a longer wildcard before a shorter one.
    ("GET /", "shop.example", &[], "shop"),
    ("GET /", "SHOP.example:8080", &[], "shop"),
    ("GET /orders/new", "shop.example", &[], "new"),
    ("GET /orders/new", "other.example", &[], "wide"),
    ("GET /orders/new", "shop.eu.example", &[], "narrow"),
    ("GET /orders/new", "a.b.eu.example", &[], "narrow"),
    ("GET /orders/new", "example", &[], "exact-anywhere"),
    ("GET /orders/new", "notexample", &[], "exact-anywhere"),
    ("GET /orders/archive/1", "shop.example", &[], "below"),
    // A path spelled out comes before a parameter, a parameter before what is below.
    ("GET /orders/17", "shop.example", &[], "one"),
    ("GET /orders/17/lines", "shop.example", &[], "below"),
    ("GET /orders", "shop.example", &[], "below"),
    ("GET /orders/new?id=17", "shop.example", &[], "new"),
    ("GET /orders/%6eew", "shop.example", &[], "new"),
    ("GET /ordersnew", "shop.example", &[], "shop"),
    // Then a list of methods, then more headers.
    ("DELETE /orders/17", "shop.example", &[], "one-gone"),
    ("DELETE /orders/17", "shop.example", &[BETA, GOLD], "one-gone"),
    ("DELETE /orders/new", "shop.example", &[BETA, GOLD], "new"),
    ("GET /orders/17", "shop.example", &[BETA], "one-beta"),
    ("GET /orders/17", "shop.example", &[GOLD], "one"),
    ("GET /orders/17", "shop.example", &[BETA, GOLD], "one-gold"),
    ("GET /orders/17", "shop.example", &[("x-beta", "2"), GOLD], "one"),
    // Where no host fits, the path decides.
    ("GET /orders/archive/1", "elsewhere", &[], "archive"),
    ("GET /orders/archive", "elsewhere", &[], "archive"),
    ("GET /orders/17", "elsewhere", &[BETA, GOLD], "everything"),
    ("GET /", "other.example", &[], "everything"),
];

/// An app that answers with its name.
async fn app(host: &Host, number: u16, name: &'static str) -> Origin {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}",
        name.len()
    );
    Origin::start(host.at(21_600 + number), move |_| {
        Then::Keep(answer.clone().into_bytes())
    })
    .await
}

#[tokio::test]
async fn routes_that_overlap_are_taken_by_precedence_and_not_by_their_order() {
    let host = Host::new();
    let (mut apps, mut services) = (Vec::new(), String::new());
    for (number, (name, _)) in (0..).zip(ROUTES) {
        apps.push(app(&host, number, name).await);
        let at = host.at(21_600 + number);
        services += &format!("  {name}: {{ mesh: false, endpoints: [\"{at}\"] }}\n");
    }
    let half = ROUTES.len() / 2;
    let orders = [
        ROUTES.to_vec(),
        ROUTES.iter().rev().copied().collect(),
        [&ROUTES[half..], &ROUTES[..half]].concat(),
    ];
    let public = Way::Plain(host.public());
    for order in &orders {
        let routes: String = order
            .iter()
            .map(|(name, on)| format!("    - {{ match: {on}, to: {name} }}\n"))
            .collect();
        host.configure(&format!(
            "services:\n{services}ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n  routes:\n{routes}",
            host.public()
        ));
        let ingress = host.ingress().await;
        for (line, name, more, expected) in ASKED {
            let fields: Vec<(&str, &str)> =
                [("host", *name)].iter().chain(*more).copied().collect();
            let reply = public.ask(line, &fields, "").await;
            assert_eq!(
                (reply.status, reply.text().as_str()),
                (200, *expected),
                "{line} of {name} with {more:?}, the first route being {}",
                order[0].0
            );
        }
        ingress.kill().await;
    }
}

/// From a client to the gateway, from there to a sidecar with mutual TLS, from there to its app; and out by the sidecar.
#[tokio::test]
async fn ipv6_is_spoken_all_the_way() {
    let Some(host) = Host::v6().await else {
        return;
    };
    let origin = Origin::fine(host.app()).await;
    let mesh = Authority::new();
    host.identify(&mesh, "orders");
    let text = format!(
        "{IDENTITY}services:
  orders: {{ port: {port}, endpoints: [\"{sidecar}\"] }}
  outside: {{ mesh: false, endpoints: [\"{app}\"] }}
ingress:
  listeners: [ {{ name: public, address: \"{public}\" }} ]
  routes:
    - {{ match: {{ host: \"[::1]\" }}, to: orders }}
    - {{ match: {{ host: outside }}, to: outside }}
",
        port = host.app().port(),
        sidecar = host.mesh(),
        app = host.app(),
        public = host.public(),
    );
    host.configure(&text);
    let mut sidecar = host.sidecar("orders").await;
    let edge = host.beside();
    edge.configure(&text);
    edge.identify(&mesh, "gateway");
    let mut ingress = edge.ingress().await;
    let (public, outbound) = (Way::Plain(host.public()), Way::Plain(host.outbound()));
    let literal = host.public().to_string();
    for (way, name) in [
        (&public, literal.as_str()),
        (&public, "[::1]"),
        (&public, "outside"),
        (&outbound, "orders"),
        (&outbound, "outside"),
    ] {
        let reply = way.ask("GET /x", &[("host", name)], "").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "ok"), "{name}");
    }
    let seen = origin.requests();
    assert_eq!(seen.len(), 5);
    // By the gateway and a sidecar, and by the gateway alone.
    assert_eq!(seen[0].fields("x-forwarded-for")[0], "::1");
    assert!(seen[0].fields("x-forwarded-client-cert")[0].contains("gateway"));
    assert_eq!(seen[2].fields("x-forwarded-for"), ["::1"]);
    sidecar.assert_alive().await;
    ingress.assert_alive().await;
}
