//! Nobody is waited for without end, and only who is late is told so.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::harness::{Behaviour, Mesh, Service, Wire, soon};

async fn with_timeout(timeout: &str) -> Mesh {
    Mesh::new()
        .service(Service::new("orders").with(&format!("timeout: {timeout}")))
        .route("/orders/*", "orders")
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_never_answers_is_given_up_after_the_services_timeout() {
    let mesh = with_timeout("1s").await;
    mesh.origin("orders", 0).does(Behaviour::Hang);
    let begun = Instant::now();
    let reply = mesh.get("/orders/1").await;
    assert_eq!(
        (reply.code(), reply.reason()),
        (504, Some("upstream_timeout"))
    );
    assert!(
        begun.elapsed() >= Duration::from_millis(900),
        "given up early"
    );
    assert!(reply.json()["cure"].is_string(), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_never_reads_is_given_up_too() {
    let mesh = with_timeout("1s").await;
    mesh.origin("orders", 0)
        .does(Behaviour::script(async |_wire| {
            std::future::pending::<()>().await;
        }));
    let reply = mesh.post("/orders/1", vec![0; 32 << 20]).await;
    assert_eq!(
        (reply.code(), reply.reason()),
        (504, Some("upstream_timeout"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upload_may_take_longer_than_the_timeout() {
    let mesh = with_timeout("2s").await;
    mesh.origin("orders", 0).does(Behaviour::Echo);
    let mut client = Wire::connect(mesh.public()).await;
    client
        .write("POST /orders/1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 12\r\n\r\n")
        .await;
    for byte in b"twelve bytes" {
        // In all more than twice the timeout.
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.write([*byte]).await;
    }
    let (head, content) = client.answer().await;
    assert_eq!(head.status(), 200, "{}", head.text);
    assert_eq!(content.bytes, b"twelve bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_go_on_with_its_body_is_told_so() {
    let mesh = with_timeout("3s").await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
    let mut client = Wire::connect(mesh.public()).await;
    client
        .write("POST /orders/1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 12\r\n\r\ntwel")
        .await;
    let (head, _) = client.answer().await;
    assert_eq!(head.status(), 408, "{}", head.text);
    assert_eq!(head.field("weft-reason"), Some("body_timeout"));
    assert_eq!(head.field("connection"), Some("close"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_is_answered_with_408() {
    let mesh = with_timeout("1s").await;
    let mut client = Wire::connect(mesh.public()).await;
    client.write("GET /orders/1 HTTP/1.1\r\nHost: sh").await;
    let (head, _) = client.answer().await;
    assert_eq!(head.status(), 408, "{}", head.text);
    assert_eq!(head.field("weft-reason"), Some("head_timeout"));
    assert!(client.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_byte_by_byte_gets_no_more_time() {
    let mesh = with_timeout("1s").await;
    let mut client = Wire::connect(mesh.public()).await;
    client.write("GET /orders/1 HTTP/1.1\r\nX: ").await;
    let answer = soon("an answer", async {
        loop {
            tokio::select! {
                head = client.head() => return head,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            // It may have been answered in between.
            let _ = client.try_write("x").await;
        }
    })
    .await;
    assert_eq!(answer.map(|head| head.status()), Some(408));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_cannot_be_reached_is_said_so_at_once() {
    let mesh = with_timeout("30s").await;
    mesh.origin("orders", 0).stop().await;
    let reply = mesh.get("/orders/1").await;
    assert_eq!(
        (reply.code(), reply.reason()),
        (502, Some("connect_failed"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_breaks_off_for_the_client_too() {
    let mesh = with_timeout("5s").await;
    let (cut, cuts) = watch::channel(false);
    mesh.origin("orders", 0)
        .does(Behaviour::script(move |mut wire| {
            let mut cuts = cuts.clone();
            async move {
                wire.head().await;
                wire.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")
                    .await;
                let _ = cuts.wait_for(|cut| *cut).await;
            }
        }));
    let mut client = Wire::connect(mesh.public()).await;
    client
        .write("GET /orders/1 HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    let head = soon("a head", client.head()).await.unwrap();
    assert_eq!(
        (head.status(), head.field("content-length")),
        (200, Some("100"))
    );
    let first = soon("what there is", client.exactly(10)).await;
    assert_eq!(first.unwrap(), b"0123456789");
    cut.send_replace(true);
    // Not filled up, not ended as if it were whole.
    assert!(client.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_at_once_is_no_whole_answer_either() {
    let mesh = with_timeout("5s").await;
    mesh.origin("orders", 0).does(Behaviour::Cut);
    for _ in 0..20 {
        let mut client = Wire::connect(mesh.public()).await;
        client
            .write("GET /orders/1 HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await;
        let head = soon("a head", client.head()).await.unwrap();
        // Whether the head got through before the bad news is chance.
        if head.status() == 200 {
            assert_eq!(head.field("content-length"), Some("100"));
            assert!(client.rest().await.len() <= 10);
        } else {
            assert_eq!(
                head.field("weft-reason"),
                Some("upstream_reset"),
                "{}",
                head.text
            );
        }
    }
}
