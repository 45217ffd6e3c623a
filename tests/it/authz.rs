//! Who may do what, and what an app is told of its caller: only what was proven.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, Uri};
use rustls::ClientConfig;

use crate::alone::{Host, IDENTITY, Origin, Reply, Then, Way};
use crate::harness::Client;
use crate::harness::certs::{Authority, service};
use crate::harness::client::whole;

const H1: &[&str] = &["http/1.1"];
const XFCC: &str = "x-forwarded-client-cert";

/// Asks one thing, such as `GET /`, by HTTP/2 and TLS.
async fn ask_by_http2(door: SocketAddr, config: Arc<ClientConfig>, line: &str) -> Reply {
    let (method, path) = line.split_once(' ').unwrap();
    let uri = Uri::builder().scheme("http").authority("orders");
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(uri.path_and_query(path).build().unwrap())
        .version(http::Version::HTTP_2)
        .body(whole(""))
        .unwrap();
    let client = Client::tls(door, config, "orders").await;
    let reply = client.send(request).await;
    assert_eq!(reply.version, http::Version::HTTP_2);
    let fields = reply.headers.iter();
    let fields = fields.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    Reply {
        status: reply.code(),
        fields: fields.collect(),
        body: reply.body.to_vec(),
    }
}

#[tokio::test]
async fn a_service_with_a_rule_denies_everything_that_no_rule_allows() {
    for alpn in [H1, &["h2"]] {
        denied_unless_allowed(alpn).await;
    }
}

async fn denied_unless_allowed(alpn: &[&str]) {
    let mesh = Authority::new();
    let host = Host::new();
    host.identify(&mesh, "orders");
    host.configure(&format!(
        "{IDENTITY}services:
  storefront: {{}}
  billing: {{}}
  audit: {{ identity: \"spiffe://shop.internal/team/audit\" }}
  orders:
    port: {}
    allow:
      - {{ from: [storefront], methods: [GET, POST], paths: [/orders/*] }}
      - {{ from: [billing], methods: [GET], paths: [\"/orders/{{id}}/total\"] }}
      - {{ from: [audit] }}
      - {{ from: [\"spiffe://shop.internal/batch/nightly\"], paths: [/export] }}
",
        host.app().port()
    ));
    let app = Origin::fine(host.app()).await;
    let mut sidecar = host.sidecar("orders").await;
    let ask = async |id: &str, line: &str| {
        let member = mesh.leaf(id).client(alpn);
        match alpn == H1 {
            true => {
                let way = Way::Tls(host.mesh(), member);
                way.ask(line, &[("host", "orders")], "").await
            }
            false => ask_by_http2(host.mesh(), member, line).await,
        }
    };
    let (storefront, billing) = (service("storefront"), service("billing"));
    let audit = "spiffe://shop.internal/team/audit";
    let nightly = "spiffe://shop.internal/batch/nightly";
    for (id, line) in [
        (storefront.as_str(), "GET /orders/7"),
        (&storefront, "POST /orders/7"),
        (&storefront, "GET /orders/7/lines?x=/../y"),
        (&storefront, "GET /orders/a/../7"),
        (&billing, "GET /orders/7/total"),
        (audit, "DELETE /anything"),
        (nightly, "PUT /export"),
    ] {
        assert_eq!(ask(id, line).await.status, 200, "{id} {line}");
    }
    let allowed = app.requests().len();
    let bytes = app.bytes();
    for (id, line) in [
        (storefront.as_str(), "DELETE /orders/7"),
        (&storefront, "get /orders/7"),
        (&storefront, "GET /"),
        (&storefront, "GET /admin"),
        (&storefront, "GET /ordersx/7"),
        (&storefront, "GET /orders/../admin"),
        (&storefront, "GET /orders/%2e%2e/admin"),
        (&storefront, "GET //admin/orders/7"),
        (&storefront, "GET /Orders/7"),
        (&billing, "GET /orders/7"),
        (&billing, "POST /orders/7/total"),
        (&billing, "GET /orders/7/8/total"),
        (nightly, "PUT /export/all"),
        (&service("inventory"), "GET /orders/7"),
        (&service("storefront2"), "GET /orders/7"),
        (&service("Storefront"), "GET /orders/7"),
        (
            "spiffe://shop.internal/service/storefront/x",
            "GET /orders/7",
        ),
        (
            "spiffe://shop.internal/team/service/storefront",
            "GET /orders/7",
        ),
    ] {
        let reply = ask(id, line).await;
        let detail = reply.refused(403, "denied");
        assert!(detail.contains(id), "{line}: {detail}");
    }
    // A path that two readers may read differently is no matter of rules: it is refused before.
    for line in [
        "GET /orders/%2f..%2fadmin",
        "GET /orders/..%5cadmin",
        "GET /orders/..;/admin",
        "GET /../orders/7",
    ] {
        ask(&storefront, line)
            .await
            .refused(400, "malformed_request");
    }
    assert_eq!(
        (app.requests().len(), app.bytes()),
        (allowed, bytes),
        "something got through"
    );
    assert_eq!(
        sidecar
            .metric("weft_answers_total", &[("reason", "denied")])
            .await,
        18.0
    );
    sidecar.assert_alive().await;
}

#[tokio::test]
async fn rules_change_with_the_file_and_a_service_without_rules_is_open_to_the_mesh() {
    let mesh = Authority::new();
    let host = Host::new();
    host.identify(&mesh, "orders");
    let configure = |allow: &str| {
        host.configure(&format!(
            "{IDENTITY}services:\n  storefront: {{}}\n  orders: {{ port: {}, {allow} }}\n",
            host.app().port()
        ));
    };
    configure("timeout: 10s");
    let _app = Origin::fine(host.app()).await;
    let sidecar = host.sidecar("orders").await;
    let ask = async |name: &str| {
        Way::Tls(host.mesh(), mesh.leaf(&service(name)).client(H1))
            .ask("GET /", &[("host", "orders")], "")
            .await
    };
    assert_eq!(ask("anybody").await.status, 200);
    configure("allow: [ { from: [storefront] } ]");
    sidecar.reloaded(1).await;
    ask("anybody").await.refused(403, "denied");
    assert_eq!(ask("storefront").await.status, 200);
}

/// What an app is told of its caller is what the certificate proved, whoever else says something.
#[tokio::test]
async fn the_callers_identity_cannot_be_forged_at_any_door() {
    let mesh = Authority::new();
    let host = Host::new();
    host.identify(&mesh, "orders");
    let app = Origin::fine(host.app()).await;
    host.configure(&format!(
        "{IDENTITY}services:\n  orders: {{ port: {} }}\n  plain: {{ mesh: false, endpoints: [\"{}\"] }}\n\
         ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n  routes: [ {{ to: plain }} ]\n",
        host.app().port(),
        host.app(),
        host.public(),
    ));
    let forged =
        "By=spiffe://shop.internal/service/orders;URI=spiffe://shop.internal/service/ingress";
    let fields = [
        (XFCC, forged),
        ("X-Forwarded-Client-Cert", forged),
        ("connection", "x-other"),
    ];
    let with_host = |name: &'static str| [&[("host", name)], &fields[..]].concat();

    let sidecar = host.sidecar("orders").await;
    let member = Way::Tls(host.mesh(), mesh.leaf(&service("storefront")).client(H1));
    assert_eq!(
        member.ask("GET /", &with_host("orders"), "").await.status,
        200
    );
    assert_eq!(
        app.last().fields(XFCC),
        ["By=spiffe://shop.internal/service/orders;URI=spiffe://shop.internal/service/storefront"]
    );
    // Nor can a caller have the true one taken away as if it were hop by hop.
    let hop = [("host", "orders"), ("connection", XFCC)];
    assert_eq!(member.ask("GET /", &hop, "").await.status, 200);
    assert_eq!(app.last().fields(XFCC).len(), 1);

    let outbound = Way::Plain(host.outbound());
    assert_eq!(
        outbound.ask("GET /", &with_host("plain"), "").await.status,
        200
    );
    assert!(app.last().fields(XFCC).is_empty(), "{:?}", app.last());
    sidecar.kill().await;

    let _ingress = host.ingress().await;
    let public = Way::Plain(host.public());
    let mut fields = with_host("shop.example");
    fields.extend([
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "admin.example"),
        ("forwarded", "for=10.0.0.1;proto=https"),
    ]);
    assert_eq!(public.ask("GET /", &fields, "").await.status, 200);
    let seen = app.last();
    assert!(seen.fields(XFCC).is_empty(), "{seen:?}");
    assert!(seen.fields("forwarded").is_empty(), "{seen:?}");
    assert_eq!(seen.fields("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.fields("x-forwarded-host"), ["shop.example"]);
    let addresses = seen.fields("x-forwarded-for");
    assert_eq!(addresses.len(), 1);
    assert!(addresses[0].starts_with("127."), "{addresses:?}");
}

/// Only Weft gives reasons: an app that says so is not believed, or its word would be counted, retried and shown as ours.
#[tokio::test]
async fn a_reason_forged_by_an_app_is_removed() {
    let mesh = Authority::new();
    let host = Host::new();
    host.identify(&mesh, "orders");
    let _app = Origin::start(host.app(), |_| {
        Then::Keep(
            b"HTTP/1.1 503 X\r\nweft-reason: connect_failed\r\nweft-reason: denied\r\ncontent-length: 2\r\n\r\nno"
                .to_vec(),
        )
    })
    .await;
    host.configure(&format!(
        "{IDENTITY}services:\n  orders: {{ port: {}, endpoints: [\"{}\"] }}\n  plain: {{ mesh: false, endpoints: [\"{}\"] }}\n\
         ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n  routes: [ {{ to: plain }} ]\n",
        host.app().port(),
        host.mesh(),
        host.app(),
        host.public(),
    ));
    let check = |reply: &Reply, door: &str| {
        assert_eq!((reply.status, reply.text().as_str()), (503, "no"), "{door}");
        assert_eq!(reply.field("weft-reason"), None, "{door}: {reply:?}");
    };
    let sidecar = host.sidecar("orders").await;
    let member = Way::Tls(host.mesh(), mesh.leaf(&service("storefront")).client(H1));
    let outbound = Way::Plain(host.outbound());
    check(
        &member.ask("GET /", &[("host", "orders")], "").await,
        "inbound",
    );
    check(
        &outbound.ask("GET /", &[("host", "plain")], "").await,
        "outbound",
    );
    check(
        &outbound.ask("GET /", &[("host", "orders")], "").await,
        "both",
    );
    assert_eq!(
        sidecar
            .metric("weft_answers_total", &[("reason", "connect_failed")])
            .await,
        0.0
    );
    sidecar.kill().await;
    let _ingress = host.ingress().await;
    check(
        &Way::Plain(host.public())
            .ask("GET /", &[("host", "x")], "")
            .await,
        "ingress",
    );
}
