//! Trying again helps and never harms: what may have been processed is not sent twice.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::Request;

use crate::harness::client::whole;
use crate::harness::{Behaviour, Mesh, Service, eventually};

/// Two replicas of `orders`.
async fn two() -> Mesh {
    Mesh::new()
        .service(Service::new("orders").replicas(2))
        .route("/orders/*", "orders")
        .start()
        .await
}

/// How often the apps have seen each target.
fn seen(mesh: &Mesh, method: &str) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for origin in mesh.origins("orders") {
        for (target, count) in origin.by_target(method) {
            *seen.entry(target).or_insert(0) += count;
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_never_seen_twice_by_apps_that_reset_after_reading_it() {
    let mesh = two().await;
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Reset);
    }
    for number in 0..20 {
        let reply = mesh.post(&format!("/orders/{number}"), "an order").await;
        assert_eq!(reply.reason(), Some("upstream_reset"), "{}", reply.text());
    }
    let seen = seen(&mesh, "POST");
    assert_eq!(seen.len(), 20);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_never_seen_twice_by_apps_that_close_after_reading_it_on_a_used_connection() {
    let mesh = two().await;
    // Connections that were good once: where "closed while idle" is easily mistaken for "closed while processing".
    for number in 0..20 {
        assert_eq!(
            mesh.post(&format!("/orders/{number}"), "").await.code(),
            200
        );
    }
    for origin in mesh.origins("orders") {
        origin.forget();
        origin.does(Behaviour::Close);
    }
    for number in 0..20 {
        let reply = mesh.post(&format!("/orders/{number}"), "an order").await;
        assert_eq!(reply.reason(), Some("upstream_reset"), "{}", reply.text());
    }
    let seen = seen(&mesh, "POST");
    assert_eq!(seen.len(), 20);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_is_reset_is_answered_by_another_replica() {
    let mesh = two().await;
    let bad = mesh.origin("orders", 0);
    bad.does(Behaviour::Reset);
    eventually("the bad replica is asked", async || {
        let reply = mesh.get("/orders/1").await;
        assert_eq!((reply.code(), &*reply.text()), (200, "orders-1"));
        (bad.total() > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_an_app_that_is_not_there_is_answered_by_another_replica() {
    let mesh = two().await;
    mesh.origin("orders", 0).stop().await;
    let retried = ("weft_retries_total", ["destination=\"orders\""]);
    eventually("a POST is tried again", async || {
        let reply = mesh.post("/orders/1", "an order").await;
        assert_eq!((reply.code(), &*reply.text()), (200, "orders-1"));
        (mesh
            .metric(mesh.ingress_host(), retried.0, &retried.1)
            .await
            > 0.0)
            .then_some(())
    })
    .await;
    let bodies = mesh.origin("orders", 1).seen();
    assert!(!bodies.is_empty());
    assert!(
        bodies
            .iter()
            .all(|seen| seen.body.as_deref() == Some(b"an order"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_a_host_that_is_dead_is_answered_by_another_replica() {
    let mut mesh = two().await;
    mesh.replica_mut("orders", 0).sidecar.kill();
    for number in 0..30 {
        let reply = mesh.post(&format!("/orders/{number}"), "an order").await;
        assert_eq!((reply.code(), &*reply.text()), (200, "orders-1"));
    }
    let seen = seen(&mesh, "POST");
    assert_eq!(seen.len(), 30);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_ends_retries() {
    let orders = Service::new("orders")
        .with("retry: { attempts: 1, budget: 0%, min_per_second: 1 }")
        .with("outlier: { enabled: false }");
    let mesh = Mesh::new()
        .service(orders)
        .route("/orders/*", "orders")
        .start()
        .await;
    mesh.origin("orders", 0).does(Behaviour::Close);
    let begun = Instant::now();
    for number in 0..200 {
        let reply = mesh.get(&format!("/orders/{number}")).await;
        assert_eq!(reply.reason(), Some("upstream_reset"), "{}", reply.text());
    }
    // One a second over a window of ten: ten at once, and then as the window moves.
    let most = 10 + 10 * (1 + begun.elapsed().as_secs() / 10);
    let retries = mesh.origin("orders", 0).total() - 200;
    assert!(
        (10..=usize::try_from(most).unwrap()).contains(&retries),
        "{retries} retries, at most {most}"
    );
    // And a quiet while later there are some again.
    eventually("the budget fills", async || {
        let before = mesh.origin("orders", 0).total();
        mesh.get("/orders/late").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        (mesh.origin("orders", 0).total() == before + 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_is_sent_again_with_its_whole_body() {
    let mesh = two().await;
    let (bad, good) = (mesh.origin("orders", 0), mesh.origin("orders", 1));
    bad.does(Behaviour::Close);
    let body: Vec<u8> = (0..60_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    eventually("the bad replica is asked", async || {
        let put = Request::put(mesh.url("/orders/1"));
        let reply = mesh
            .client
            .send(put.body(whole(body.clone())).unwrap())
            .await;
        assert_eq!((reply.code(), &*reply.text()), (200, "orders-1"));
        (bad.total() > 0).then_some(())
    })
    .await;
    for seen in good.seen() {
        assert!(seen.body.as_ref() == Some(&body), "another body arrived");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_is_too_large_to_be_kept_is_not_sent_again() {
    let mesh = two().await;
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Close);
    }
    for number in 0..10 {
        let put = Request::put(mesh.url(&format!("/orders/{number}")));
        let reply = mesh
            .client
            .send(put.body(whole(vec![b'x'; 70_000])).unwrap())
            .await;
        assert_eq!(reply.reason(), Some("upstream_reset"), "{}", reply.text());
    }
    let seen = seen(&mesh, "PUT");
    assert_eq!(seen.len(), 10);
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}
