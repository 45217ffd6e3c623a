//! Replicas that are alike get alike.

use std::time::Duration;

use crate::harness::{Behaviour, Load, Mesh, Service};

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_under_steady_load_stay_within_a_tenth_of_each_other() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(3))
        .route("/orders/*", "orders")
        .start()
        .await;
    for origin in mesh.origins("orders") {
        // Long beside what a busy machine adds here and there: least request gives less to who is slower.
        origin.does(Behaviour::Slow(Duration::from_millis(50)));
    }
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 12, Duration::ZERO);
    // A new endpoint warms up: what is promised is promised of the time after.
    load.more(300).await;
    for origin in mesh.origins("orders") {
        origin.forget();
    }
    load.more(1500).await;
    load.stop().await.assert_all_answered();
    let counts: Vec<usize> = mesh.origins("orders").iter().map(|o| o.total()).collect();
    let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
    let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
    assert!(least * 110 >= most * 100, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_slower_gets_less() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .route("/orders/*", "orders")
        .start()
        .await;
    mesh.origin("orders", 0)
        .does(Behaviour::Slow(Duration::from_millis(500)));
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        8,
        Duration::from_millis(5),
    );
    load.more(500).await;
    load.stop().await.assert_all_answered();
    let (slow, fast) = (
        mesh.origin("orders", 0).total(),
        mesh.origin("orders", 1).total(),
    );
    assert!(slow * 3 < fast, "slow {slow}, fast {fast}");
}
