//! Who the client is behind proxies: whom a trusted one names, and nobody that anybody else names.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use serde_json::Value;

use crate::alone::{Host, Origin, Reply, Running, Way, until};

/// A proxy of ours, by the last number of its address.
const OURS: u8 = 7;
/// Somebody else.
const THEIRS: u8 = 8;

fn configure(host: &Host, trusted: &str) {
    host.configure(&format!(
        "access_log: {{ file: access.log }}\n\
         services:\n  plain: {{ mesh: false, endpoints: [ \"{}\" ] }}\n\
         ingress:\n  listeners: [ {{ name: public, address: \"{}\", trusted_proxies: [ {trusted} ] }} ]\n  \
         limits: {{ per_client: {{ key: client_address, rate: 2/h }} }}\n  \
         routes: [ {{ match: {{ path: /limited/* }}, limits: [ per_client ], to: plain }}, {{ to: plain }} ]\n",
        host.app(),
        host.public(),
    ));
}

async fn gateway(host: &Host) -> (Running, Origin) {
    let app = Origin::fine(host.app()).await;
    configure(host, "127.0.0.7, 10.0.0.0/8, \"fd00::/8\"");
    (host.ingress().await, app)
}

async fn ask(host: &Host, from: u8, path: &str, fields: &[(&str, &str)]) -> Reply {
    let fields = [&[("host", "api.example")], fields].concat();
    Way::From(SocketAddr::from(([127, 0, 0, from], 0)), host.public())
        .ask(&format!("GET {path}"), &fields, "")
        .await
}

/// One that is limited, as the proxy at this address sends it on for somebody.
async fn limited(host: &Host, from: u8, told: &str) -> Reply {
    ask(host, from, "/limited/x", &[("x-forwarded-for", told)]).await
}

#[tokio::test]
async fn clients_of_a_trusted_proxy_are_limited_apart_and_nobody_else_names_a_client() {
    let host = Host::new();
    let (mut ingress, _app) = gateway(&host).await;
    let refused = async |from: u8, told: &str| {
        limited(&host, from, told)
            .await
            .refused(429, "rate_limited");
    };
    for _ in 0..2 {
        // What stands in front of the client's address is the client's own invention.
        let told = format!("198.51.100.{}, 192.0.2.1, 10.1.1.1", fastrand::u8(..));
        assert_eq!(limited(&host, OURS, &told).await.status, 200);
    }
    refused(OURS, "192.0.2.1").await;
    for _ in 0..2 {
        assert_eq!(limited(&host, OURS, "192.0.2.2").await.status, 200);
    }
    refused(OURS, "192.0.2.2:4711").await;

    // Whoever is no proxy of ours is one client, whomever it names; so is a proxy that names nobody.
    assert_eq!(limited(&host, THEIRS, "192.0.2.3").await.status, 200);
    assert_eq!(limited(&host, THEIRS, "192.0.2.4").await.status, 200);
    refused(THEIRS, "192.0.2.5").await;
    assert_eq!(limited(&host, OURS, "unknown").await.status, 200);
    assert_eq!(limited(&host, OURS, "192.0.2.6, ?").await.status, 200);
    refused(OURS, "").await;

    // A change of the file is taken in place.
    configure(&host, "127.0.0.8");
    ingress.reloaded(1).await;
    assert_eq!(limited(&host, THEIRS, "192.0.2.7").await.status, 200);
    refused(OURS, "192.0.2.8").await;
    ingress.assert_alive().await;
}

#[tokio::test]
async fn endpoints_are_told_the_whole_way_by_those_that_are_trusted() {
    let host = Host::new();
    let (_ingress, app) = gateway(&host).await;
    let check = async |from: u8, sent: &[(&str, &str)], told: &[(&str, &[&str])]| {
        assert_eq!(ask(&host, from, "/", sent).await.status, 200);
        let seen = app.last();
        for (name, values) in told {
            assert_eq!(seen.fields(name), *values, "{name} after {sent:?}");
        }
    };
    let all = [
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-for", "192.0.2.1, 10.1.1.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example"),
        ("forwarded", "for=198.51.100.1"),
        ("x-forwarded-client-cert", "By=a;URI=b"),
        // As servers read them that cannot tell these names from those.
        ("x_forwarded_for", "203.0.113.66"),
        ("X_Forwarded-Client_Cert", "By=a;URI=c"),
        ("x_forwarded_other", "kept"),
    ];
    let told: [(&str, &[&str]); 8] = [
        ("x_forwarded_for", &[]),
        ("x_forwarded-client_cert", &[]),
        ("x_forwarded_other", &["kept"]),
        (
            "x-forwarded-for",
            &["203.0.113.9, 192.0.2.1, 10.1.1.1, 127.0.0.7"],
        ),
        ("x-forwarded-proto", &["https"]),
        ("x-forwarded-host", &["shop.example"]),
        ("forwarded", &[]),
        ("x-forwarded-client-cert", &[]),
    ];
    check(OURS, &all, &told).await;
    let told: [(&str, &[&str]); 7] = [
        ("x_forwarded_for", &[]),
        ("x_forwarded-client_cert", &[]),
        ("x-forwarded-for", &["127.0.0.8"]),
        ("x-forwarded-proto", &["http"]),
        ("x-forwarded-host", &["api.example"]),
        ("forwarded", &[]),
        ("x-forwarded-client-cert", &[]),
    ];
    check(THEIRS, &all, &told).await;
    // A proxy that says little, and one that says it in the standard's words.
    let told: [(&str, &[&str]); 4] = [
        ("x-forwarded-for", &["127.0.0.7"]),
        ("x-forwarded-proto", &["http"]),
        ("x-forwarded-host", &["api.example"]),
        ("forwarded", &[]),
    ];
    check(OURS, &[], &told).await;
    let told: [(&str, &[&str]); 2] = [
        ("x-forwarded-for", &["2001:db8::7, 127.0.0.7"]),
        (
            "forwarded",
            &["for=\"[2001:db8::7]:80\";proto=https, for=127.0.0.7"],
        ),
    ];
    let sent = [("forwarded", "for=\"[2001:db8::7]:80\";proto=https")];
    check(OURS, &sent, &told).await;
}

#[tokio::test]
async fn the_access_log_has_the_client_beside_the_peer() {
    let host = Host::new();
    let (_ingress, _app) = gateway(&host).await;
    let told = [("x-forwarded-for", "203.0.113.9, 192.0.2.1, fd00::1")];
    ask(&host, OURS, "/ours", &told).await;
    ask(&host, THEIRS, "/theirs", &told).await;
    let line = async |path: &str| {
        until("the exchange is in the access log", async || {
            let text = std::fs::read_to_string(host.directory().join("access.log")).ok()?;
            let mut lines = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["path"] == path)
        })
        .await
    };
    let (ours, theirs) = (line("/ours").await, line("/theirs").await);
    assert_eq!(ours["client"], "192.0.2.1", "{ours}");
    assert!(
        ours["peer"].as_str().unwrap().starts_with("127.0.0.7:"),
        "{ours}"
    );
    assert_eq!(theirs.get("client"), None, "{theirs}");
}
