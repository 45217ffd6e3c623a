//! The access log has one line for each exchange, whatever became of it.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

use crate::harness::client::whole;
use crate::harness::{Behaviour, Client, Mesh, Service, eventually, soon};

async fn logging() -> Mesh {
    Mesh::new()
        .with("access_log: { file: access.log }")
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await
}

/// The gateway's line about this path, once it is there.
async fn line(mesh: &Mesh, path: &str) -> Value {
    let file = mesh.directory("ingress").join("access.log");
    eventually("the exchange is in the access log", async || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["path"] == path)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_exchange_is_told_without_its_query() {
    let mesh = logging().await;
    assert_eq!(mesh.get("/orders/1?token=secret").await.code(), 200);
    let line = line(&mesh, "/orders/1").await;
    assert_eq!(
        (&line["method"], &line["status"]),
        (&"GET".into(), &200.into()),
        "{line}"
    );
    assert_eq!(
        (&line["service"], &line["attempts"]),
        (&"orders".into(), &1.into()),
        "{line}"
    );
    assert!(!line.to_string().contains("secret"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_exchange_is_told_with_its_reason() {
    let mesh = logging().await;
    assert_eq!(mesh.get("/nowhere").await.code(), 404);
    let line = line(&mesh, "/nowhere").await;
    assert_eq!(
        (&line["status"], &line["reason"]),
        (&404.into(), &"no_route".into()),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_whose_client_goes_away_is_told_too() {
    let mesh = logging().await;
    mesh.origin("orders", 0).does(Behaviour::Hang);
    let client = Client::h2c(mesh.public()).await;
    let request = http::Request::get(mesh.url("/orders/2"))
        .body(whole(""))
        .unwrap();
    #[allow(clippy::disallowed_methods, reason = "the test awaits it")]
    let asked = tokio::spawn(async move { client.try_send(request).await });
    eventually("the app has been asked", async || {
        (mesh.origin("orders", 0).count("GET") > 0).then_some(())
    })
    .await;
    asked.abort();
    assert!(soon("the client is gone", asked).await.is_err());
    let line = line(&mesh, "/orders/2").await;
    assert!(
        line["status"].is_null() && line["reason"].is_null(),
        "{line}"
    );
}
