//! What DNS says is used soon, and what DNS does not say hurts nobody.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::alone::{Host, Way};
use crate::faults::{Traffic, unfelt};
use crate::harness::told::at_most;
use crate::harness::{Load, Mesh, Mood, Origin, Service, eventually, within};

/// `orders` with this many replicas, and a load on it.
async fn under_load(replicas: u8) -> (Mesh, Load) {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(replicas))
        .route("/orders/*", "orders")
        .start()
        .await;
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        4,
        Duration::from_millis(10),
    );
    load.more(20).await;
    (mesh, load)
}

/// The same with GETs and POSTs that are told apart, twice.
async fn under_traffic() -> (Mesh, Traffic) {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .route("/orders/*", "orders")
        .start()
        .await;
    let traffic = Traffic::start(&mesh, 4);
    traffic.more(20).await;
    (mesh, traffic)
}

/// Every exchange went well, none waited, and no POST came twice.
async fn felt_nothing(mesh: &Mesh, traffic: Traffic) {
    traffic.more(50).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(unfelt());
    outcome.assert_nothing_twice(mesh, "orders");
}

/// Waits until the resolvers have asked so many times more.
async fn asked(mesh: &Mesh, times: usize) {
    let wanted = mesh.dns.asked() + times;
    eventually("the resolvers ask", async || {
        (mesh.dns.asked() >= wanted).then_some(())
    })
    .await;
}

/// No exchange may fail, and none takes longer: what was known last stays in use.
#[tokio::test(flavor = "multi_thread")]
async fn a_dns_server_that_fails_for_half_a_minute_fails_nothing() {
    let (mesh, traffic) = under_traffic().await;
    mesh.dns.mood(Mood::ServFail);
    let begun = Instant::now();
    within(
        Duration::from_secs(90),
        "30 s of failed questions",
        async || {
            (begun.elapsed() >= Duration::from_secs(30) && mesh.dns.asked() >= 30).then_some(())
        },
    )
    .await;
    traffic.more(50).await;
    mesh.dns.mood(Mood::Answer);
    asked(&mesh, 4).await;
    felt_nothing(&mesh, traffic).await;
}

/// The same with no answer at all: only what has changed meanwhile may be found later.
#[tokio::test(flavor = "multi_thread")]
async fn a_dns_server_that_says_nothing_fails_nothing() {
    let (mesh, traffic) = under_traffic().await;
    mesh.dns.mood(Mood::Silent);
    asked(&mesh, 12).await;
    felt_nothing(&mesh, traffic).await;
}

/// No exchange may fail: that a name is gone is believed only when it was said again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_vanishes_for_a_moment_fails_nothing() {
    let (mesh, traffic) = under_traffic().await;
    for mood in [Mood::NxDomain, Mood::Empty, Mood::NxDomain] {
        mesh.dns.mood(mood);
        asked(&mesh, 4).await;
        mesh.dns.mood(Mood::Answer);
        asked(&mesh, 12).await;
    }
    felt_nothing(&mesh, traffic).await;
}

/// Exchanges may fail once it is believed, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_gone_for_good_is_believed_in_the_end() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
    mesh.dns.mood(Mood::NxDomain);
    let gone = Instant::now();
    eventually("there are no endpoints", async || {
        (mesh.get("/orders/1").await.reason() == Some("no_endpoints")).then_some(())
    })
    .await;
    assert!(
        gone.elapsed() >= Duration::from_secs(9),
        "believed too early"
    );
    mesh.dns.mood(Mood::Answer);
    eventually("it is back", async || {
        (mesh.get("/orders/1").await.code() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_is_used_soon_and_a_removed_one_left_whatever_the_ttl() {
    let (mut mesh, load) = under_load(1).await;
    mesh.dns.ttl(600);
    // Every resolver has an answer that it may keep for ten minutes.
    asked(&mesh, 12).await;
    let number = mesh.add_replica("orders").await;
    let host = mesh.replica("orders", number).host;
    mesh.dns.add("orders", host);
    let soon = at_most(Duration::from_secs(5), Duration::from_secs(10));
    within(soon, "the new replica is used", async || {
        (mesh.origin("orders", number).total() > 0).then_some(())
    })
    .await;

    let old = mesh.replica("orders", 0).host;
    mesh.dns.remove("orders", old);
    within(soon, "the old replica is left", async || {
        let page = mesh.page(mesh.ingress_host(), "/endpoints").await.text();
        (!page.contains(&format!("{old}:"))).then_some(())
    })
    .await;
    // What was on its way to it by then ends with the load.
    load.stop().await.assert_all_answered();
    mesh.origin("orders", 0).forget();
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        4,
        Duration::from_millis(10),
    );
    load.more(100).await;
    load.stop().await.assert_all_answered();
    assert_eq!(mesh.origin("orders", 0).total(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_says_it_is_ready_knows_where_to_go() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    for _ in 0..10 {
        mesh.restart_ingress().await;
        let reply = mesh.get("/orders/1").await;
        assert_eq!(reply.code(), 200, "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn srv_records_list_instances_and_their_shares() {
    let mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(2)
                .with("srv: _http._tcp.orders"),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    mesh.dns.ttl(600);
    let app = mesh.ports.app();
    for (number, name) in [(0, "one.orders"), (1, "two.orders")] {
        mesh.dns.add(name, mesh.replica("orders", number).host);
    }
    let reaches = async |name: &str| {
        within(Duration::from_secs(10), name, async || {
            (mesh.get("/orders/1").await.text() == name).then_some(())
        })
        .await;
    };
    // The records have the app's port; that the sidecar is reached on the mesh's is our own matter.
    mesh.dns
        .instances("_http._tcp.orders", &[(0, 1, app, "one.orders.")]);
    reaches("orders-0").await;
    mesh.dns
        .instances("_http._tcp.orders", &[(0, 1, app, "two.orders.")]);
    reaches("orders-1").await;
    let page = mesh.page(mesh.ingress_host(), "/endpoints").await.json();
    assert_eq!(page["sources"][0]["endpoints"], 1, "{page}");
    assert_eq!(page["sources"][0]["known"], true, "{page}");
    // Three to one.
    let instances = [(0, 3, app, "one.orders."), (0, 1, app, "two.orders.")];
    mesh.dns.instances("_http._tcp.orders", &instances);
    reaches("orders-0").await;
    reaches("orders-1").await;
    // Both have warmed up when they have had their shares once.
    eventually("they have their shares", async || {
        let mut first = 0;
        for _ in 0..400 {
            first += usize::from(mesh.get("/orders/1").await.text() == "orders-0");
        }
        (270..=330).contains(&first).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_names_are_one_service() {
    let mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(2)
                .with("dns: [orders-a, orders-b.internal]"),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    mesh.dns.add("orders-a", mesh.replica("orders", 0).host);
    mesh.dns
        .add("orders-b.internal", mesh.replica("orders", 1).host);
    for name in ["orders-0", "orders-1"] {
        eventually(name, async || {
            (mesh.get("/orders/1").await.text() == name).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_endpoints_is_followed_and_a_broken_one_changes_nothing() {
    let mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(2)
                .with("endpoints_file: orders.yaml"),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    let host = mesh.ingress_host();
    let file = mesh.directory("ingress").join("orders.yaml");
    let write = |text: &str| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &file).unwrap();
    };
    // It is not there yet, and whoever asks is told so.
    let reply = mesh.get("/orders/1").await;
    assert_eq!(reply.reason(), Some("no_endpoints"));
    assert!(reply.text().contains("orders.yaml"), "{}", reply.text());
    write(&format!("- {}\n", mesh.inbound("orders", 0)));
    eventually("the first is used", async || {
        (mesh.get("/orders/1").await.text() == "orders-0").then_some(())
    })
    .await;

    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 2, Duration::ZERO);
    write("- 10.0.0.7\n");
    mesh.metric_reaches(host, "weft_discovery_failing", &["service=\"orders\""], 1.0)
        .await;
    let said = mesh
        .ingress()
        .says(&["list of endpoints", "orders.yaml:1:3"])
        .await;
    assert!(said.contains("ERROR"), "{said}");
    let page = mesh.page(host, "/endpoints").await.text();
    assert!(page.contains("is not an address with a port"), "{page}");
    load.more(20).await;
    // As JSON, with more about it.
    write(&format!(
        r#"[{{ "address": "{}", "weight": 2, "zone": "a" }}]"#,
        mesh.inbound("orders", 1)
    ));
    eventually("the second is used", async || {
        (mesh.get("/orders/1").await.text() == "orders-1").then_some(())
    })
    .await;
    let failing = mesh.metric(host, "weft_discovery_failing", &[]).await;
    assert!(failing < 0.5, "{failing}");
    load.stop().await.assert_all_answered();
}

#[tokio::test]
async fn endpoints_of_both_families_take_part_and_one_that_is_gone_fails_nothing() {
    let host = Host::new();
    let v4 = host.app();
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, v4.port()));
    let (one, other) = (Origin::start("4", v4).await, Origin::start("6", v6).await);
    host.configure(&format!(
        "services:\n  plain: {{ mesh: false, endpoints: [ \"{v4}\", \"{v6}\" ] }}\n\
         ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n  routes: [ {{ to: plain }} ]\n",
        host.public(),
    ));
    let mut ingress = host.ingress().await;
    let ask = async || {
        let way = Way::Plain(host.public());
        let reply = way
            .ask("POST /", &[("host", "api.example")], "an order")
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    for _ in 0..60 {
        ask().await;
    }
    for (family, origin) in [("IPv4", &one), ("IPv6", &other)] {
        let share = origin.total();
        assert!((10..=50).contains(&share), "{share} of 60 by {family}");
    }
    let before = one.total();
    other.stop().await;
    for _ in 0..60 {
        ask().await;
    }
    assert_eq!(one.total(), before + 60);
    ingress.assert_alive().await;
}
