//! The file may change under a running mesh: a good change is taken without dropping anything, a bad one changes nothing.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Behaviour, Load, Mesh, Service, Wire, eventually, soon};

async fn generation(mesh: &Mesh, host: std::net::IpAddr) -> f64 {
    mesh.metric(host, "weft_config_generation", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_route_is_taken_under_load_and_open_streams_go_on() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("ticks"))
        .route("/orders/*", "orders")
        .route("/ticks", "ticks")
        .start()
        .await;
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
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        4,
        Duration::from_millis(5),
    );
    load.more(20).await;
    let connections = mesh.origin("orders", 0).connections();

    for round in 0..3 {
        let path = format!("/new/{round}");
        assert_eq!(mesh.get(&path).await.reason(), Some("no_route"));
        let route = format!("{{ match: {{ path: {path} }}, to: orders }}");
        mesh.change(|spec| spec.routes.push(route));
        eventually("the route is there", async || {
            (mesh.get(&path).await.code() == 200).then_some(())
        })
        .await;
    }
    load.more(20).await;
    load.stop().await.assert_all_answered();
    // What was not changed was not touched: the same connections to the app.
    assert!(mesh.origin("orders", 0).connections() <= connections + 8);
    for _ in 0..20 {
        assert_eq!(
            soon("a tick", stream.chunk()).await,
            Some(Some(b".".to_vec()))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_allow_rule_is_taken_by_the_sidecar() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders").allow("{ from: [ingress], methods: [GET] }"))
        .route("/orders/*", "orders")
        .start()
        .await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
    assert_eq!(mesh.post("/orders/1", "").await.reason(), Some("denied"));
    mesh.change(|spec| {
        spec.services =
            vec![Service::new("orders").allow("{ from: [ingress], methods: [GET, POST] }")];
    });
    eventually("POST is allowed", async || {
        (mesh.post("/orders/1", "").await.code() == 200).then_some(())
    })
    .await;
    mesh.change(|spec| {
        spec.services = vec![Service::new("orders").allow("{ from: [ingress], methods: [POST] }")];
    });
    eventually("GET is not any more", async || {
        (mesh.get("/orders/1").await.reason() == Some("denied")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing_and_everybody_says_so_until_it_is_mended() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let good = mesh.yaml();
    let hosts = [mesh.ingress_host(), mesh.replica("orders", 0).host];
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        2,
        Duration::from_millis(10),
    );
    mesh.write_all(&good.replace("routes:", "rout:"));
    for (host, process) in hosts
        .iter()
        .zip([mesh.ingress(), mesh.sidecar("orders", 0)])
    {
        mesh.metric_reaches(*host, "weft_config_refused", &[], 1.0)
            .await;
        process.says(&["ERROR", "rout", "last good one"]).await;
        let page = mesh.page(*host, "/config").await.text();
        assert!(
            page.contains("# refused:") && page.contains("routes"),
            "{page}"
        );
        assert!(
            mesh.metric(*host, "weft_config_reloads_total", &["refused"])
                .await
                >= 1.0
        );
        assert!((generation(&mesh, *host).await - 1.0).abs() < f64::EPSILON);
    }
    load.more(20).await;
    mesh.write_all(&good);
    for host in hosts {
        eventually("it is well again", async || {
            (mesh.metric(host, "weft_config_refused", &[]).await < 0.5).then_some(())
        })
        .await;
        let page = mesh.page(host, "/config").await.text();
        assert!(page.contains("never since then"), "{page}");
    }
    load.more(20).await;
    load.stop().await.assert_all_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_makes_it_look_at_once() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let host = mesh.ingress_host();
    mesh.ingress().signal(Signal::HUP);
    eventually("it has looked", async || {
        (generation(&mesh, host).await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_moves_to_another_name_loses_nothing() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let host = mesh.replica("orders", 0).host;
    mesh.dns.add("orders-v2", host);
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 4, Duration::ZERO);
    for (generation, name) in [(2.0, "orders-v2"), (3.0, "orders"), (4.0, "orders-v2")] {
        mesh.change(|spec| {
            spec.services = vec![Service::new("orders").with(&format!("dns: {name}"))];
        });
        mesh.metric_reaches(
            mesh.ingress_host(),
            "weft_config_generation",
            &[],
            generation,
        )
        .await;
        load.more(50).await;
    }
    load.stop().await.assert_all_answered();
}
