//! What DNS says is used soon, and what DNS does not say hurts nobody.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use crate::harness::{Load, Mesh, Mood, Service, eventually, within};

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

/// Waits until the resolvers have asked so many times more.
async fn asked(mesh: &Mesh, times: usize) {
    let wanted = mesh.dns.asked() + times;
    eventually("the resolvers ask", async || {
        (mesh.dns.asked() >= wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dns_server_that_fails_for_half_a_minute_fails_nothing() {
    let (mesh, load) = under_load(2).await;
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
    load.more(50).await;
    mesh.dns.mood(Mood::Answer);
    asked(&mesh, 4).await;
    load.stop().await.assert_all_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dns_server_that_says_nothing_fails_nothing() {
    let (mesh, load) = under_load(2).await;
    mesh.dns.mood(Mood::Silent);
    asked(&mesh, 12).await;
    load.more(50).await;
    load.stop().await.assert_all_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_vanishes_for_a_moment_fails_nothing() {
    let (mesh, load) = under_load(2).await;
    for mood in [Mood::NxDomain, Mood::Empty, Mood::NxDomain] {
        mesh.dns.mood(mood);
        asked(&mesh, 4).await;
        mesh.dns.mood(Mood::Answer);
        asked(&mesh, 12).await;
    }
    load.more(50).await;
    load.stop().await.assert_all_answered();
}

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
    // Five seconds are promised; the rest is for a machine that is busy with other things.
    within(
        Duration::from_secs(10),
        "the new replica is used",
        async || (mesh.origin("orders", number).total() > 0).then_some(()),
    )
    .await;

    let old = mesh.replica("orders", 0).host;
    mesh.dns.remove("orders", old);
    within(
        Duration::from_secs(10),
        "the old replica is left",
        async || {
            let page = mesh.page(mesh.ingress_host(), "/endpoints").await.text();
            (!page.contains(&format!("{old}:"))).then_some(())
        },
    )
    .await;
    load.more(8).await;
    mesh.origin("orders", 0).forget();
    load.more(100).await;
    assert_eq!(mesh.origin("orders", 0).total(), 0);
    load.stop().await.assert_all_answered();
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
