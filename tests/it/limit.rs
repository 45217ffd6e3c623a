//! Rate limits: who is over one is told so and when to come back, and nobody else is.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use serde_json::json;

use crate::alone::{Host, Origin, Reply, Running, Way};
use crate::forge::{ec_key, from_now};

const ISSUER: &str = "https://id.example";

fn configure(host: &Host, per_client: &str, more: &str) {
    host.write(
        "keys.json",
        &json!({ "keys": [ec_key().jwk("ec")] }).to_string(),
    );
    let keys = host.directory().join("keys.json");
    host.configure(&format!(
        "services:\n  plain: {{ mesh: false, endpoints: [\"{}\"] }}\n\
         ingress:
  listeners: [ {{ name: public, address: \"{}\" }} ]
  authn: {{ users: {{ jwt: {{ issuer: \"{ISSUER}\", jwks: {{ file: \"{}\" }} }} }} }}
  limits:
    per_client: {{ key: client_address, rate: {per_client} }}
    per_principal: {{ key: principal, rate: 2/h }}
    per_tenant: {{ key: claims.tenant, rate: 2/h }}
    per_key: {{ key: header.x-api-key, rate: 2/h }}
    per_route: {{ key: route, rate: 2/h }}
    wide: {{ key: route, rate: 100/m, burst: 200 }}
  routes:
    - {{ name: client, match: {{ path: /client/* }}, limits: [per_client], to: plain }}
    - {{ name: principal, match: {{ path: /principal/* }}, authn: users, limits: [per_principal], to: plain }}
    - {{ name: tenant, match: {{ path: /tenant/* }}, authn: users, limits: [per_tenant], to: plain }}
    - {{ name: key, match: {{ path: /key/* }}, limits: [per_key], to: plain }}
    - {{ name: one, match: {{ path: /one/* }}, limits: [per_route], to: plain }}
    - {{ name: other, match: {{ path: /other/* }}, limits: [per_route], to: plain }}
    - {{ name: both, match: {{ path: /both/* }}, limits: [wide, per_client], to: plain }}
{more}",
        host.app(),
        host.public(),
        keys.display(),
    ));
}

async fn gateway(host: &Host) -> (Running, Origin) {
    let app = Origin::fine(host.app()).await;
    configure(host, "2/h", "");
    (host.ingress().await, app)
}

/// From one of the many addresses of the loopback.
async fn ask(host: &Host, from: u8, path: &str, fields: &[(&str, &str)]) -> Reply {
    let fields = [&[("host", "api.example")], fields].concat();
    Way::From(SocketAddr::from(([127, 0, 0, from], 0)), host.public())
        .ask(&format!("GET {path}"), &fields, "")
        .await
}

fn bearer(subject: &str, tenant: &str) -> String {
    let claims = json!({ "iss": ISSUER, "sub": subject, "tenant": tenant, "exp": from_now(600) });
    format!(
        "Bearer {}",
        ec_key().token(&json!({ "alg": "ES256", "kid": "ec" }), &claims)
    )
}

#[tokio::test]
async fn who_is_over_a_limit_gets_a_429_that_says_which_limit_and_how_long() {
    let host = Host::new();
    let (mut ingress, app) = gateway(&host).await;
    for left in [1, 0] {
        let reply = ask(&host, 2, "/client/x", &[]).await;
        assert_eq!(reply.status, 200);
        let limit = reply.field("ratelimit").unwrap();
        assert!(
            limit.starts_with(&format!("\"per_client\";r={left};t=")),
            "{limit}"
        );
        assert_eq!(
            reply.field("ratelimit-policy"),
            Some("\"per_client\";q=2;w=3600")
        );
        assert_eq!(reply.field("retry-after"), None);
    }
    let reply = ask(&host, 2, "/client/x", &[]).await;
    let detail = reply.refused(429, "rate_limited");
    assert!(detail.contains("`per_client` of 2 in 3600 s"), "{detail}");
    assert!(
        reply
            .field("ratelimit")
            .unwrap()
            .starts_with("\"per_client\";r=0;t=")
    );
    let wait: u64 = reply.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=1800).contains(&wait), "{wait}");
    assert_eq!(app.requests().len(), 2, "what is refused is not forwarded");

    // Two limits are told one after the other, and a request that one refuses is refused.
    let reply = ask(&host, 3, "/both/x", &[]).await;
    let told: Vec<&str> = reply
        .fields
        .iter()
        .filter(|(name, _)| name == "ratelimit-policy")
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(
        told,
        [
            "\"wide\";q=100;w=60;weft-burst=200",
            "\"per_client\";q=2;w=3600"
        ]
    );
    ask(&host, 2, "/both/x", &[])
        .await
        .refused(429, "rate_limited");
    assert_eq!(
        ingress
            .metric("weft_answers_total", &[("reason", "rate_limited")])
            .await,
        2.0
    );
    ingress.assert_alive().await;
}

#[tokio::test]
async fn each_key_has_its_own_bucket() {
    let host = Host::new();
    let (mut ingress, _app) = gateway(&host).await;
    let exhaust = async |from: u8, path: &str, fields: &[(&str, &str)]| {
        for turn in 0..2 {
            let reply = ask(&host, from, path, fields).await;
            assert_eq!(reply.status, 200, "{path} {turn} {fields:?}");
        }
        ask(&host, from, path, fields)
            .await
            .refused(429, "rate_limited");
    };
    // By address: what a client says of its address changes nothing.
    exhaust(2, "/client/x", &[]).await;
    let forged = [
        ("x-forwarded-for", "127.0.0.9"),
        ("forwarded", "for=127.0.0.9"),
        ("x-real-ip", "127.0.0.9"),
    ];
    ask(&host, 2, "/client/y", &forged)
        .await
        .refused(429, "rate_limited");
    exhaust(3, "/client/x", &[]).await;

    // By who the token says it is, from wherever; by another claim of it.
    let (ada, bob, eve) = (
        bearer("ada", "north"),
        bearer("bob", "north"),
        bearer("eve", "south"),
    );
    exhaust(2, "/principal/x", &[("authorization", &ada)]).await;
    ask(
        &host,
        9,
        "/principal/x",
        &[("authorization", &bearer("ada", "other"))],
    )
    .await
    .refused(429, "rate_limited");
    exhaust(2, "/principal/x", &[("authorization", &bob)]).await;
    exhaust(2, "/tenant/x", &[("authorization", &ada)]).await;
    ask(&host, 2, "/tenant/x", &[("authorization", &bob)])
        .await
        .refused(429, "rate_limited");
    exhaust(2, "/tenant/x", &[("authorization", &eve)]).await;
    // A request that is refused for its token takes nobody's.
    ask(&host, 2, "/principal/x", &[])
        .await
        .refused(401, "token_missing");

    // By a field; whoever leaves it out is counted by address.
    exhaust(2, "/key/x", &[("x-api-key", "k1")]).await;
    exhaust(2, "/key/x", &[("x-api-key", "k2")]).await;
    exhaust(4, "/key/x", &[]).await;
    exhaust(5, "/key/x", &[]).await;

    // By route: everybody together, each route for itself.
    exhaust(2, "/one/x", &[]).await;
    ask(&host, 7, "/one/y", &[])
        .await
        .refused(429, "rate_limited");
    exhaust(2, "/other/x", &[]).await;
    ingress.assert_alive().await;
}

#[tokio::test]
async fn a_reload_gives_nobody_new_tokens_unless_the_limit_itself_changed() {
    let host = Host::new();
    let (ingress, _app) = gateway(&host).await;
    for _ in 0..2 {
        assert_eq!(ask(&host, 2, "/client/x", &[]).await.status, 200);
    }
    ask(&host, 2, "/client/x", &[])
        .await
        .refused(429, "rate_limited");
    configure(
        &host,
        "2/h",
        "    - { name: new, match: { path: /new }, to: plain }\n",
    );
    ingress.reloaded(1).await;
    assert_eq!(
        ask(&host, 2, "/new", &[]).await.status,
        200,
        "the change is in force"
    );
    ask(&host, 2, "/client/x", &[])
        .await
        .refused(429, "rate_limited");

    configure(&host, "3/h", "");
    ingress.reloaded(2).await;
    let reply = ask(&host, 2, "/client/x", &[]).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.field("ratelimit-policy"),
        Some("\"per_client\";q=3;w=3600")
    );
}
