//! A replica that fails is left alone, comes back when it is well, and is never the last to go.

use std::net::IpAddr;
use std::time::Duration;

use crate::harness::{Behaviour, Load, Mesh, Service, eventually};
use crate::health::row;

/// How the ingress sees an endpoint.
async fn state(mesh: &Mesh, host: IpAddr) -> String {
    let row = row(mesh, "orders", host).await;
    row["state"].as_str().unwrap_or("absent").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_replica_gets_less_than_a_fiftieth_and_comes_back_when_it_recovers() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(3))
        .route("/orders/*", "orders")
        .with("defaults: { outlier: { ejection: 2s, max_ejection: 4s, jitter: 0% } }")
        .start()
        .await;
    let (bad, bad_host) = (mesh.origin("orders", 0), mesh.replica("orders", 0).host);
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        8,
        Duration::from_millis(2),
    );
    bad.does(Behaviour::Status(500));
    eventually("it is ejected", async || {
        (state(&mesh, bad_host).await == "ejected").then_some(())
    })
    .await;

    for origin in mesh.origins("orders") {
        origin.forget();
    }
    load.more(1500).await;
    let total: usize = mesh.origins("orders").iter().map(|o| o.total()).sum();
    assert!(bad.total() * 50 < total, "{} of {total}", bad.total());
    // Each ejection ends with one exchange, which is the probe, and begins anew with its failure.
    let ejections = async || {
        let row = row(&mesh, "orders", bad_host).await;
        usize::try_from(row["ejections"].as_u64().unwrap()).unwrap()
    };
    let next = async |after: usize| {
        eventually("it is ejected again", async || {
            let now = ejections().await;
            (now > after).then_some(now)
        })
        .await
    };
    let first = next(ejections().await).await;
    bad.forget();
    let mut last = first;
    for _ in 0..3 {
        last = next(last).await;
    }
    assert_eq!(bad.total(), last - first, "exchanges of {first} to {last}");

    bad.does(Behaviour::Answer);
    eventually("it is back", async || {
        (state(&mesh, bad_host).await == "healthy").then_some(())
    })
    .await;
    bad.forget();
    eventually("it gets traffic", async || (bad.total() > 50).then_some(())).await;
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_took_long_keeps_its_replica_away_as_long_as_any() {
    let mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(2)
                .with("outlier: { consecutive: 1, ejection: 8s, jitter: 0% }"),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    // Longer than it is ejected for.
    let slow = Behaviour::script(|mut wire| async move {
        while wire.head().await.is_some() {
            tokio::time::sleep(Duration::from_secs(9)).await;
            wire.write("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
    });
    mesh.origin("orders", 0).does(slow);
    eventually("a slow failure", async || {
        (mesh.get("/orders/1").await.code() == 503).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(mesh.get("/orders/1").await.text(), "orders-1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_host_dies_under_load_fails_no_get() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders").replicas(3))
        .route("/orders/*", "orders")
        .start()
        .await;
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Slow(Duration::from_millis(20)));
    }
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 8, Duration::ZERO);
    load.more(100).await;
    // With exchanges in flight.
    mesh.replica_mut("orders", 0).sidecar.kill();
    load.more(300).await;
    load.stop().await.assert_all_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_replica_is_never_given_up() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .route("/orders/*", "orders")
        .start()
        .await;
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Status(500));
    }
    let hosts = [0, 1].map(|number| mesh.replica("orders", number).host);
    for _ in 0..100 {
        // The app's own answer: bad news from the app and not from us.
        let reply = mesh.get("/orders/1").await;
        assert_eq!(
            (reply.code(), reply.reason()),
            (500, None),
            "{}",
            reply.text()
        );
    }
    let states = [state(&mesh, hosts[0]).await, state(&mesh, hosts[1]).await];
    assert!(states.iter().any(|state| state == "ejected"), "{states:?}");
    assert!(states.iter().any(|state| state != "ejected"), "{states:?}");
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Answer);
    }
    // The one that is left serves at once: nobody waits for an ejection to end.
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stall_do_not_get_replicas_ejected() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(2).with("timeout: 3s"))
        .route("/orders/*", "orders")
        .start()
        .await;
    for _ in 0..20 {
        // So that the connections are there, and nothing else can take long.
        assert_eq!(mesh.get("/orders/1").await.code(), 200);
    }
    let mut clients = Vec::new();
    for _ in 0..24 {
        let mut client = crate::harness::Wire::connect(mesh.public()).await;
        client
            .write("POST /orders/1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 100\r\n\r\nhalf of it")
            .await;
        clients.push(client);
    }
    for mut client in clients {
        let (head, _) = client.answer().await;
        assert_eq!(head.status(), 408, "{}", head.text);
        assert_eq!(
            head.field("weft-reason"),
            Some("body_timeout"),
            "{}",
            head.text
        );
    }
    for number in 0..2 {
        let host = mesh.replica("orders", number).host;
        assert_eq!(state(&mesh, host).await, "healthy");
    }
}
