//! Certificates are renewed while they are used, with and without a CA that is there all the time.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::faults::{Traffic, unfelt};
use crate::harness::certs::nobody;
use crate::harness::{Behaviour, Client, Mesh, Service, Wire, eventually, soon, within};

/// A number of the certificate in use.
async fn certificate(mesh: &Mesh, host: IpAddr, key: &str) -> u64 {
    let page = mesh.page(host, "/certs").await.json();
    page["certificate"][key].as_u64().unwrap()
}

async fn all(mesh: &Mesh, what: &str, key: &str, least: u64) {
    let mut hosts: Vec<IpAddr> = mesh.replicas.iter().map(|replica| replica.host).collect();
    hosts.push(mesh.ingress_host());
    for host in hosts {
        within(
            Duration::from_secs(120),
            &format!("{host}: {what}"),
            async || (certificate(mesh, host, key).await >= least).then_some(()),
        )
        .await;
    }
}

/// Only renewals may fail: no exchange does, and none is felt to be slower.
#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_away_for_half_a_certificates_life_fails_nothing() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .ca("leaf_lifetime: 40s")
        .start()
        .await;
    let traffic = Traffic::start(&mesh, 4);
    traffic.more(10).await;
    let killed = Instant::now();
    mesh.ca.as_mut().unwrap().kill();
    all(&mesh, "a renewal fails", "renewal_failures", 1).await;
    eventually("half of a life has passed", async || {
        (killed.elapsed() > Duration::from_secs(20)).then_some(())
    })
    .await;
    mesh.start_ca().await;
    all(&mesh, "is renewed", "renewals", 1).await;
    traffic.more(10).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(unfelt());
    outcome.assert_nothing_twice(&mesh, "orders");
}

/// Nothing may fail, neither an exchange nor what stays open for longer than a certificate is good.
#[tokio::test(flavor = "multi_thread")]
async fn renewal_under_load_fails_nothing_and_open_streams_live_on() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("ticks"))
        .route("/orders/*", "orders")
        .route("/ticks", "ticks")
        .ca("leaf_lifetime: 15s")
        .start()
        .await;
    // An answer that goes on as long as its reader does.
    mesh.origin("ticks", 0)
        .does(Behaviour::script(async |mut wire| {
            wire.head().await;
            wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            while wire.try_write("1\r\n.\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
    let mut stream = Wire::connect(mesh.public()).await;
    stream
        .write("GET /ticks HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    assert_eq!(soon("a head", stream.head()).await.unwrap().status(), 200);
    let traffic = Traffic::start(&mesh, 4);
    let read = async {
        loop {
            assert_eq!(
                stream.chunk().await,
                Some(Some(b".".to_vec())),
                "the stream broke"
            );
        }
    };
    tokio::select! {
        () = all(&mesh, "is renewed twice", "renewals", 2) => {}
        () = read => {}
    }
    traffic.more(10).await;
    let outcome = traffic.stop().await;
    outcome.assert_all_within(unfelt());
    outcome.assert_nothing_twice(&mesh, "orders");
}

/// The serial number of the certificate that a new connection to this door is shown.
async fn shown_at(door: SocketAddr) -> String {
    // Who shows none itself sees the other's before it is sent away.
    let config = nobody(rustls::ALL_VERSIONS, &["h2"]);
    let connection = Client::handshake(door, config, "orders").await.unwrap();
    let chain = connection.get_ref().1.peer_certificates().unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let bytes = leaf.raw_serial();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same, once the process says that it is this one which is in use.
async fn in_use(mesh: &Mesh) -> String {
    let host = mesh.replica("orders", 0).host;
    eventually("new connections are shown what is in use", async || {
        let page = mesh.page(host, "/certs").await.json();
        let said = page["certificate"]["serial"].as_str().unwrap().to_owned();
        (shown_at(mesh.inbound("orders", 0)).await == said).then_some(said)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_use_the_renewed_certificate_at_both_ends() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .ca("leaf_lifetime: 15s")
        .start()
        .await;
    let gateway = mesh.ingress_host();
    let end = UNIX_EPOCH + Duration::from_secs(certificate(&mesh, gateway, "not_after_unix").await);
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
    let before = in_use(&mesh).await;
    // It may have been renewed already: what counts is the next time.
    let host = mesh.replica("orders", 0).host;
    let renewals = certificate(&mesh, host, "renewals").await;
    all(&mesh, "is renewed", "renewals", renewals + 1).await;
    assert_ne!(in_use(&mesh).await, before);

    // The caller's: with the one that the gateway had at first, nobody would let it in any more.
    eventually("that one is out of date", async || {
        (SystemTime::now() > end).then_some(())
    })
    .await;
    mesh.restart_sidecar("orders", 0).await;
    assert_eq!(mesh.get("/orders/2").await.code(), 200);
}

/// Only renewals fail, and both sides say why.
#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_not_the_one_they_knew_is_told_that_they_refuse_it() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .without_ingress()
        .ca("leaf_lifetime: 20s")
        .start()
        .await;
    let host = mesh.replica("orders", 0).host;
    mesh.ca.as_mut().unwrap().kill();
    std::fs::remove_dir_all(mesh.directory("ca-state")).unwrap();
    mesh.start_ca().await;
    eventually("a renewal fails", async || {
        let failures = certificate(&mesh, host, "renewal_failures").await;
        (failures >= 1).then_some(())
    })
    .await;
    mesh.ca
        .as_ref()
        .unwrap()
        .says(&[
            "a client refuses our certificate",
            "does not trust our root",
        ])
        .await;
    let ca = mesh.ca_host();
    let labels = ["reason=\"refused_us\""];
    mesh.metric_reaches(ca, "weft_ca_connections_turned_away_total", &labels, 1.0)
        .await;
}
