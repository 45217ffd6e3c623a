//! A replica that is there and says nothing: its port takes connections, and that is all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::Method;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Traffic;
use crate::harness::{Mesh, Service, eventually};

/// `orders` twice. The sidecar of the first is killed.
async fn half_a_mesh() -> (Mesh, SocketAddr) {
    let mut mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .route("/orders/*", "orders")
        .start()
        .await;
    let address = mesh.inbound("orders", 0);
    mesh.replica_mut("orders", 0).sidecar.kill();
    (mesh, address)
}

/// Takes connections, shakes hands if it has what it takes, and reads what comes without a word. Counts connections that
/// got so far.
async fn silent(address: SocketAddr, tls: Option<TlsAcceptor>) -> (JoinSet<()>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let (mut task, counted) = (JoinSet::new(), Arc::clone(&count));
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let (tls, counted) = (tls.clone(), Arc::clone(&counted));
            connections.spawn(async move {
                let mut bytes = [0; 4096];
                if let Some(tls) = tls {
                    let Ok(mut stream) = tls.accept(stream).await else {
                        return;
                    };
                    counted.fetch_add(1, Relaxed);
                    while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
                } else {
                    counted.fetch_add(1, Relaxed);
                    while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
                }
            });
        }
    });
    (task, count)
}

/// Waits until the peer has had so many connections and gets no more.
async fn left_alone(mesh: &Mesh, address: SocketAddr, count: &AtomicUsize, connections: usize) {
    eventually("it is tried", async || {
        (count.load(Relaxed) >= connections).then_some(())
    })
    .await;
    mesh.metric_reaches(
        mesh.ingress_host(),
        "weft_endpoint_ejections_total",
        &[&address.to_string()],
        1.0,
    )
    .await;
}

/// May fail: nothing. Who is sent there first waits for as long as a connection may take (a second), and is answered
/// elsewhere; POSTs too, because the request was never sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_accepts_and_never_shakes_hands_costs_a_second_and_no_exchange() {
    let (mesh, address) = half_a_mesh().await;
    let (_peer, count) = silent(address, None).await;
    let traffic = Traffic::start(&mesh, 4);
    left_alone(&mesh, address, &count, 2).await;
    traffic.more(100).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(Duration::from_secs(5));
    outcome.assert_nothing_twice(&mesh, "orders");
}

/// May fail: a POST that was sent there, because nobody knows whether it was begun. GETs are answered elsewhere within
/// seconds, and the peer is left alone then.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_shakes_hands_and_never_answers_is_given_up_within_seconds() {
    let (mesh, address) = half_a_mesh().await;
    let leaf = mesh.authority.service("orders");
    let (_peer, count) = silent(address, Some(TlsAcceptor::from(leaf.server(&["h2"])))).await;
    let traffic = Traffic::start(&mesh, 8);
    left_alone(&mesh, address, &count, 1).await;
    traffic.more(200).await;
    let outcome = traffic.stop().await;
    let reads = outcome.failed(&Method::GET);
    assert!(reads.is_empty(), "{reads:#?}");
    // Silence is noticed in five seconds; the rest is for a machine that has more to do.
    outcome.assert_none_longer(Duration::from_secs(12));
    outcome.assert_nothing_twice(&mesh, "orders");
    for failure in outcome.failed(&Method::POST) {
        assert!(failure.contains("upstream_"), "{failure}");
    }
}
