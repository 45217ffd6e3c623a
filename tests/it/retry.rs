//! Trying again helps and never harms: what may have been processed is not sent twice.

#![allow(clippy::unwrap_used)]

use crate::harness::{Behaviour, Mesh, Service};

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_never_seen_twice_by_an_app_that_resets_after_reading_it() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .route("/orders/*", "orders")
        .start()
        .await;
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Reset);
    }
    for number in 0..20 {
        let reply = mesh.post(&format!("/orders/{number}"), "an order").await;
        assert_eq!(reply.reason(), Some("upstream_reset"), "{}", reply.text());
    }
    let mut seen = std::collections::BTreeMap::new();
    for origin in mesh.origins("orders") {
        for (target, count) in origin.by_target("POST") {
            *seen.entry(target).or_insert(0) += count;
        }
    }
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
}
