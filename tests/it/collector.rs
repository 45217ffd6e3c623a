//! Reports are for people: exchanges do not depend on them, and what they add up to never goes back.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::faults::{Traffic, unfelt};
use crate::harness::told::is_strict;
use crate::harness::{Mesh, Service, eventually};

/// `storefront` beside `orders`, reporting to the ingress.
async fn reporting() -> Mesh {
    Mesh::new()
        .service(Service::new("storefront"))
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .collector()
        .start()
        .await
}

/// What the collector says of the edge from `storefront` to `orders`, as its caller counts it.
async fn edge(mesh: &Mesh) -> Option<u64> {
    let page = mesh.try_page(mesh.ingress_host(), "/mesh").await?.json();
    let edges = page["edges"].as_array()?.clone();
    let edge = edges.iter().find(|edge| {
        edge["source"] == "storefront"
            && edge["destination"] == "orders"
            && edge["direction"] == "outbound"
    })?;
    assert_eq!(edge["mtls"], true, "{edge}");
    edge["requests"].as_u64()
}

/// Traffic from the app beside `storefront` to `orders`.
fn traffic(mesh: &Mesh) -> Traffic {
    Traffic::through(mesh, mesh.outbound("storefront", 0), "orders", 4)
}

/// Every exchange went well, none waited, and no POST came twice.
async fn felt_nothing(mesh: &Mesh, traffic: Traffic) {
    let outcome = traffic.stop().await;
    outcome.assert_all_within(unfelt());
    outcome.assert_nothing_twice(mesh, "orders");
}

/// How long exchanges take one after the other while this goes on, and until there are enough of them to say: the median, and
/// the 99th of a hundred.
async fn times(mesh: &Mesh, meanwhile: impl Future<Output = ()>) -> [Duration; 2] {
    let over = Cell::new(false);
    let asking = async {
        let mut times = Vec::new();
        while !over.get() || times.len() < 300 {
            let begun = Instant::now();
            let reply = mesh.get_from("storefront", 0, "http://orders/orders/1");
            assert_eq!(reply.await.code(), 200);
            times.push(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.sort_unstable();
        [times[times.len() / 2], times[times.len() * 99 / 100]]
    };
    let meanwhile = async {
        meanwhile.await;
        over.set(true);
    };
    tokio::join!(asking, meanwhile).0
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_counts_every_exchange_once() {
    let mesh = reporting().await;
    for _ in 0..50 {
        assert_eq!(
            mesh.get_from("storefront", 0, "http://orders/orders/1")
                .await
                .code(),
            200
        );
    }
    eventually("all are reported", async || {
        (edge(&mesh).await? >= 50).then_some(())
    })
    .await;
    // Some reports later it is still the same.
    let caller = mesh.replica("storefront", 0).host;
    let (taken, of) = ("weft_reports_total", ["result=\"taken\""]);
    let before = mesh.metric(caller, taken, &of).await;
    mesh.metric_reaches(caller, taken, &of, before + 3.0).await;
    assert_eq!(edge(&mesh).await, Some(50));
}

/// Only reports may fail: no exchange does, and what was counted is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_collector_exchanges_go_on_and_totals_never_go_back() {
    let mut mesh = reporting().await;
    let traffic = traffic(&mesh);
    traffic.more(50).await;
    let counted = eventually("the collector counts", async || {
        edge(&mesh).await.filter(|count| *count >= 50)
    })
    .await;
    mesh.ingress.as_mut().unwrap().kill();
    traffic.more(100).await;
    mesh.restart_ingress().await;
    // It remembers nothing, but a report says everything since its sidecar's start.
    let mut before = counted + 100;
    for _ in 0..20 {
        let now = eventually("the collector counts again", async || edge(&mesh).await).await;
        assert!(now >= before, "{now} after {before}");
        before = now;
        traffic.more(5).await;
    }
    felt_nothing(&mesh, traffic).await;
}

/// It takes connections and reports, and says nothing: reports are late, and nothing else is.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_slows_no_exchange_and_fails_none() {
    let mesh = reporting().await;
    let traffic = traffic(&mesh);
    traffic.more(50).await;
    let caller = mesh.replica("storefront", 0).host;
    let (failed, of) = ("weft_reports_total", ["result=\"failed\""]);
    let before = times(&mesh, async {}).await;
    mesh.ingress().signal(Signal::STOP);
    let during = times(&mesh, async {
        // Long enough for reports to be given up, one after the other.
        mesh.metric_reaches(caller, failed, &of, 2.0).await;
    })
    .await;
    mesh.ingress().signal(Signal::CONT);
    // Elsewhere other tests may come between the two.
    let (times, more) = match is_strict() {
        true => (2, [5, 20]),
        false => (4, [100, 400]),
    };
    for ((before, during), more) in before.iter().zip(&during).zip(more) {
        let most = *before * times + Duration::from_millis(more);
        assert!(*during <= most, "{during:?} after {before:?}");
    }
    eventually("the collector counts again", async || edge(&mesh).await).await;
    // Whoever waited for a report would have waited for seconds.
    felt_nothing(&mesh, traffic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_go_on_when_a_sidecar_is_restarted() {
    let mut mesh = reporting().await;
    for _ in 0..20 {
        mesh.get_from("storefront", 0, "http://orders/orders/1")
            .await;
    }
    eventually("all are reported", async || {
        (edge(&mesh).await? >= 20).then_some(())
    })
    .await;
    mesh.restart_sidecar("storefront", 0).await;
    for _ in 0..20 {
        assert_eq!(
            mesh.get_from("storefront", 0, "http://orders/orders/1")
                .await
                .code(),
            200
        );
    }
    eventually("both lives are counted", async || {
        (edge(&mesh).await? >= 40).then_some(())
    })
    .await;
    assert_eq!(edge(&mesh).await, Some(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_an_identity_of_its_own_goes_by_its_name_at_both_ends() {
    let mesh = Mesh::new()
        .service(
            Service::new("storefront").with("identity: spiffe://shop.internal/ns/shop/sa/window"),
        )
        .service(Service::new("orders").allow("{ from: [storefront] }"))
        .route("/orders/*", "orders")
        .collector()
        .start()
        .await;
    for _ in 0..10 {
        let answer = mesh.get_from("storefront", 0, "http://orders/orders/1");
        assert_eq!(answer.await.code(), 200);
    }
    let host = mesh.ingress_host();
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        let of_edge = ["source=\"storefront\"", "destination=\"orders\"", direction];
        mesh.metric_reaches(host, "weft_mesh_requests_total", &of_edge, 10.0)
            .await;
    }
    let reporter = ["service=\"storefront\""];
    mesh.metric_reaches(host, "weft_mesh_reporters", &reporter, 1.0)
        .await;
    let refused = "weft_collector_refused_counts_total";
    assert!(mesh.metric(host, refused, &[]).await < 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_the_gateway_and_the_traffic_between_services() {
    let mesh = reporting().await;
    for _ in 0..10 {
        assert_eq!(mesh.get("/orders/1").await.code(), 200);
        mesh.get_from("storefront", 0, "http://orders/orders/1")
            .await;
    }
    assert_eq!(mesh.get("/nowhere").await.code(), 404);
    let (host, orders) = (mesh.ingress_host(), ["service=\"orders\""]);
    mesh.metric_reaches(host, "weft_gateway_requests_total", &orders, 10.0)
        .await;
    let between = ["source=\"storefront\"", "destination=\"orders\""];
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        let of_edge = [between[0], between[1], direction];
        mesh.metric_reaches(host, "weft_mesh_requests_total", &of_edge, 10.0)
            .await;
    }
    mesh.metric_reaches(host, "weft_answers_total", &["no_route"], 1.0)
        .await;
    // And each process shows its own side.
    let caller = mesh.replica("storefront", 0).host;
    mesh.metric_reaches(caller, "weft_requests_total", &between, 10.0)
        .await;
    let called = mesh.replica("orders", 0).host;
    mesh.metric_reaches(called, "weft_requests_total", &between, 10.0)
        .await;
    // Buckets of latency add up to the count.
    let page = mesh.page(host, "/metrics").await.text();
    let of_edge = |name: &str, more: &str| {
        crate::harness::mesh::sample(&page, name, &[between[0], between[1], "outbound", more])
    };
    let count = of_edge("weft_mesh_request_duration_seconds_count", "");
    let infinite = of_edge("weft_mesh_request_duration_seconds_bucket", "le=\"+Inf\"");
    assert!(
        count >= 10.0 && (count - infinite).abs() < f64::EPSILON,
        "{count} {infinite}"
    );
}
