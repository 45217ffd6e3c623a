//! `kill -9`, without a goodbye to anybody. (What the death of the CA costs over the life of a certificate is told of in
//! `renewal`, what is left of reports in `collector`.)

use std::time::Duration;

use http::Method;

use super::Traffic;
use crate::harness::{Behaviour, Mesh, Service, eventually};

async fn orders() -> Mesh {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(3))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .collector()
        .ca("")
        .start()
        .await;
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Slow(Duration::from_millis(20)));
    }
    mesh
}

/// May fail: the POSTs that it had in its hands. GETs are answered by another, no POST comes twice, and when it is back it takes
/// part again.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_killed_takes_nothing_with_it_but_posts_in_its_hands() {
    let mut mesh = orders().await;
    let traffic = Traffic::start(&mesh, 8);
    for number in [0, 1] {
        eventually("it serves", async || {
            (mesh.origin("orders", number).total() >= 20).then_some(())
        })
        .await;
        mesh.replica_mut("orders", number).sidecar.kill();
        mesh.origin("orders", number).stop().await;
        traffic.more(200).await;
        mesh.origin("orders", number).resume().await;
        mesh.restart_sidecar("orders", number).await;
        let before = mesh.origin("orders", number).total();
        eventually("it is back", async || {
            (mesh.origin("orders", number).total() >= before + 10).then_some(())
        })
        .await;
    }
    let outcome = traffic.stop().await;
    let reads = outcome.failed(&Method::GET);
    assert!(reads.is_empty(), "{reads:#?}");
    outcome.assert_none_longer(Duration::from_secs(5));
    outcome.assert_nothing_twice(&mesh, "orders");
    let orders = outcome.failed(&Method::POST);
    // Those that were under way, each time.
    assert!(orders.len() <= 16, "{orders:#?}");
    for failure in &orders {
        assert!(failure.contains("upstream_"), "{failure}");
    }
}

/// May fail: nothing but the start of new instances, reports, and what comes in by the gateway, which is gone with its collector.
#[tokio::test(flavor = "multi_thread")]
async fn without_ca_gateway_and_collector_services_call_each_other_as_before() {
    let mut mesh = orders().await;
    let door = mesh.outbound("storefront", 0);
    let traffic = Traffic::through(&mesh, door, "orders", 8);
    traffic.more(50).await;
    mesh.ca.as_mut().unwrap().kill();
    mesh.ingress.as_mut().unwrap().kill();
    let host = mesh.replica("storefront", 0).host;
    mesh.metric_reaches(host, "weft_reports_total", &["result=\"failed\""], 3.0)
        .await;
    traffic.more(500).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(Duration::from_secs(2));
    outcome.assert_nothing_twice(&mesh, "orders");
}
