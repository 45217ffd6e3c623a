//! Tokens at the gateway: good ones get in, every bad one is refused by its own reason, and nothing of it is forwarded.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::alone::{Host, Origin, Reply, Running, Then, Way, until};
use crate::forge::{Signer, ec_key, ed_key, from_now, other_ec_key, rsa_key, unsigned};

const ISSUER: &str = "https://id.example";

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "shop", "sub": "ada", "exp": from_now(600) })
}

/// Claims that are good but for these.
fn but(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims
                .as_object_mut()
                .unwrap()
                .insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn header(algorithm: &str, key: &str) -> Value {
    json!({ "alg": algorithm, "typ": "JWT", "kid": key })
}

/// A good token of this key.
fn token(signer: &Signer, id: &str) -> String {
    let algorithm = match signer {
        Signer::Rsa(_) => "RS256",
        Signer::Ec(_) => "ES256",
        Signer::Ed(_) => "EdDSA",
    };
    signer.token(&header(algorithm, id), &claims())
}

fn key_set(keys: &[(&Signer, &str)]) -> String {
    let keys: Vec<Value> = keys.iter().map(|(key, id)| key.jwk(id)).collect();
    json!({ "keys": keys }).to_string()
}

/// A gateway that demands tokens of the issuer whose keys are at `jwks`.
async fn gateway(host: &Host, jwks: &str) -> (Running, Origin) {
    let app = Origin::fine(host.app()).await;
    demand(host, jwks, "shop, till");
    (host.ingress().await, app)
}

/// Writes the file, in which tokens are for one of this audience.
fn demand(host: &Host, jwks: &str, audience: &str) {
    host.configure(&format!(
        "services:\n  plain: {{ mesh: false, endpoints: [\"{}\"] }}\n\
         ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n\
         \x20 authn: {{ users: {{ jwt: {{ issuer: \"{ISSUER}\", audience: [{audience}], jwks: {jwks} }} }} }}\n\
         \x20 routes:\n    - {{ match: {{ path: /open }}, to: plain }}\n    - {{ authn: users, to: plain }}\n",
        host.app(),
        host.public(),
    ));
}

async fn ask(host: &Host, fields: &[(&str, &str)]) -> Reply {
    let fields = [&[("host", "api.example")], fields].concat();
    Way::Plain(host.public())
        .ask("GET /orders/7?access_token=x", &fields, "")
        .await
}

async fn bearing(host: &Host, token: &str) -> Reply {
    ask(host, &[("authorization", &format!("Bearer {token}"))]).await
}

#[tokio::test]
async fn every_bad_token_is_refused_with_its_own_reason() {
    let host = Host::new();
    let keys = key_set(&[(rsa_key(), "rsa"), (ec_key(), "ec"), (ed_key(), "ed")]);
    host.write("keys.json", &keys);
    let file = host.directory().join("keys.json");
    let (mut ingress, app) = gateway(&host, &format!("{{ file: \"{}\" }}", file.display())).await;

    for (signer, id) in [(rsa_key(), "rsa"), (ec_key(), "ec"), (ed_key(), "ed")] {
        assert_eq!(bearing(&host, &token(signer, id)).await.status, 200, "{id}");
    }
    let good = token(ec_key(), "ec");
    for scheme in ["bearer", "BEARER", "bEaReR"] {
        let value = format!("{scheme} {good}");
        assert_eq!(
            ask(&host, &[("authorization", &value)]).await.status,
            200,
            "{scheme}"
        );
    }
    for good in [
        but(&json!({ "aud": ["x", "till"] })),
        but(&json!({ "nbf": from_now(-5), "iat": from_now(-5) })),
        // Within the skew of clocks that is allowed for.
        but(&json!({ "exp": from_now(-20) })),
        but(&json!({ "nbf": from_now(20) })),
    ] {
        let token = ec_key().token(&header("ES256", "ec"), &good);
        assert_eq!(bearing(&host, &token).await.status, 200, "{good}");
    }
    let (passed, bytes) = (app.requests().len(), app.bytes());

    let es256 = |claims: &Value| ec_key().token(&header("ES256", "ec"), claims);
    let headed = |header: Value| ec_key().token(&header, &claims());
    let tampered = {
        let (_, signature) = good.rsplit_once('.').unwrap();
        format!(
            "{}.{signature}",
            unsigned(&header("ES256", "ec"), &but(&json!({ "sub": "root" })))
        )
    };
    let padded = format!("{good}=");
    let bad = [
        // What has no signature of the issuer.
        (
            "none",
            unsigned(&json!({ "alg": "none" }), &claims()) + ".",
            "token_algorithm",
        ),
        (
            "None",
            unsigned(&json!({ "alg": "None" }), &claims()) + ".",
            "token_algorithm",
        ),
        (
            "none with the key's id",
            unsigned(&header("none", "ec"), &claims()) + ".",
            "token_algorithm",
        ),
        (
            "no signature at all",
            unsigned(&header("ES256", "ec"), &claims()),
            "token_malformed",
        ),
        (
            "an empty signature",
            unsigned(&header("ES256", "ec"), &claims()) + ".",
            "token_signature",
        ),
        (
            "HS/RS confusion",
            rsa_key().confused_token(&header("HS256", "rsa"), &claims()),
            "token_algorithm",
        ),
        (
            "HS/RS confusion without a key id",
            rsa_key().confused_token(&json!({ "alg": "HS256" }), &claims()),
            "token_algorithm",
        ),
        (
            "HS under the name of RS",
            rsa_key().confused_token(&header("RS256", "rsa"), &claims()),
            "token_signature",
        ),
        (
            "another's key under the issuer's id",
            token(other_ec_key(), "ec"),
            "token_signature",
        ),
        (
            "another kind of key than the id's",
            token(ed_key(), "ec"),
            "token_algorithm",
        ),
        (
            "an algorithm that is not taken",
            ec_key().token(&header("ES384", "ec"), &claims()),
            "token_algorithm",
        ),
        ("claims that were changed", tampered, "token_signature"),
        (
            "a key that nobody knows",
            token(ec_key(), "next"),
            "token_key_unknown",
        ),
        (
            "a key that the token brings",
            other_ec_key().token(
                &json!({ "alg": "ES256", "kid": "mine", "jwk": other_ec_key().jwk("mine") }),
                &claims(),
            ),
            "token_key_unknown",
        ),
        // Whose time is not now.
        (
            "expired",
            es256(&but(&json!({ "exp": from_now(-120) }))),
            "token_expired",
        ),
        (
            "expired in 1970",
            es256(&but(&json!({ "exp": 1 }))),
            "token_expired",
        ),
        (
            "not yet valid",
            es256(&but(&json!({ "nbf": from_now(300) }))),
            "token_not_yet_valid",
        ),
        // Of or for somebody else.
        (
            "another issuer",
            es256(&but(&json!({ "iss": "https://evil.example" }))),
            "token_issuer",
        ),
        (
            "an issuer with a slash more",
            es256(&but(&json!({ "iss": "https://id.example/" }))),
            "token_issuer",
        ),
        (
            "no issuer",
            es256(&but(&json!({ "iss": null }))),
            "token_issuer",
        ),
        (
            "another audience",
            es256(&but(&json!({ "aud": "bank" }))),
            "token_audience",
        ),
        (
            "other audiences",
            es256(&but(&json!({ "aud": ["bank", "shop2"] }))),
            "token_audience",
        ),
        (
            "no audience",
            es256(&but(&json!({ "aud": null }))),
            "token_audience",
        ),
        // What is no token.
        (
            "no end",
            es256(&but(&json!({ "exp": null }))),
            "token_malformed",
        ),
        (
            "an end of 0",
            es256(&but(&json!({ "exp": 0 }))),
            "token_malformed",
        ),
        (
            "an end in words",
            es256(&but(&json!({ "exp": "tomorrow" }))),
            "token_malformed",
        ),
        (
            "an end as text",
            es256(&but(&json!({ "exp": from_now(600).to_string() }))),
            "token_malformed",
        ),
        (
            "an end beyond all numbers",
            es256(&but(&json!({ "exp": 1e300 }))),
            "token_malformed",
        ),
        (
            "a beginning in words",
            es256(&but(&json!({ "nbf": "now" }))),
            "token_malformed",
        ),
        (
            "an audience that is a number",
            es256(&but(&json!({ "aud": 7 }))),
            "token_malformed",
        ),
        (
            "a list with a number for audience",
            es256(&but(&json!({ "aud": ["shop", 7] }))),
            "token_malformed",
        ),
        (
            "something critical",
            headed(json!({ "alg": "ES256", "kid": "ec", "crit": ["exp"] })),
            "token_malformed",
        ),
        (
            "another type",
            headed(json!({ "alg": "ES256", "kid": "ec", "typ": "logout+jwt" })),
            "token_malformed",
        ),
        (
            "a key id that is a number",
            headed(json!({ "alg": "ES256", "kid": 7 })),
            "token_malformed",
        ),
        (
            "no algorithm",
            headed(json!({ "kid": "ec" })),
            "token_malformed",
        ),
        (
            "a list of algorithms",
            headed(json!({ "alg": ["ES256"], "kid": "ec" })),
            "token_malformed",
        ),
        ("four parts", format!("{good}.x"), "token_malformed"),
        ("padding", padded, "token_malformed"),
        (
            "something behind it",
            format!("{good} x"),
            "token_malformed",
        ),
        ("words", "let me in".to_owned(), "token_malformed"),
        ("dots", "..".to_owned(), "token_malformed"),
        ("9 KiB", "x".repeat(9 * 1024), "token_malformed"),
    ];
    for (what, token, reason) in &bad {
        let reply = bearing(&host, token).await;
        assert_eq!(reply.status, 401, "{what}: {reply:?}");
        reply.refused(401, reason);
        let challenge = reply.field("www-authenticate").unwrap_or_default();
        assert!(
            challenge.starts_with(
                "Bearer realm=\"weft\", error=\"invalid_token\", error_description=\""
            ),
            "{what}: {challenge}"
        );
    }
    let bearer = format!("Bearer {good}");
    let two_claims = {
        let claims = format!("{{\"exp\":1,{}", &claims().to_string()[1..]);
        // Signed as text: a map holds no name twice.
        ec_key().token_of_texts(&header("ES256", "ec").to_string(), &claims)
    };
    for (what, fields, reason) in [
        (
            "two Authorization fields",
            vec![
                ("authorization", bearer.as_str()),
                ("authorization", &bearer),
            ],
            "token_malformed",
        ),
        (
            "two of different schemes",
            vec![("authorization", "Basic YTpi"), ("authorization", &bearer)],
            "token_malformed",
        ),
        (
            "a claim twice",
            vec![("authorization", &format!("Bearer {two_claims}"))],
            "token_malformed",
        ),
        (
            "nothing behind the scheme",
            vec![("authorization", "Bearer")],
            "token_malformed",
        ),
    ] {
        let reply = ask(&host, &fields).await;
        assert_eq!(reply.status, 401, "{what}: {reply:?}");
        reply.refused(401, reason);
    }
    for (what, fields) in [
        ("nothing", vec![]),
        ("another scheme", vec![("authorization", "Basic YTpi")]),
        (
            "the token as its own scheme",
            vec![("authorization", good.as_str())],
        ),
        (
            "the token elsewhere",
            vec![
                ("cookie", &format!("access_token={good}")),
                ("x-authorization", &bearer),
            ],
        ),
    ] {
        let reply = ask(&host, &fields).await;
        reply.refused(401, "token_missing");
        assert_eq!(
            reply.field("www-authenticate"),
            Some("Bearer realm=\"weft\""),
            "{what}"
        );
    }
    let query = format!("GET /orders?access_token={good}&authorization=Bearer%20{good}");
    let reply = Way::Plain(host.public())
        .ask(&query, &[("host", "api.example")], "")
        .await;
    reply.refused(401, "token_missing");
    assert_eq!(
        (app.requests().len(), app.bytes()),
        (passed, bytes),
        "something got through"
    );

    // Where nobody asks for a token, none is needed and a bad one does not matter.
    let open = Way::Plain(host.public())
        .ask(
            "GET /open",
            &[("host", "x"), ("authorization", "Bearer x")],
            "",
        )
        .await;
    assert_eq!(open.status, 200);
    ingress.assert_alive().await;
}

#[tokio::test]
async fn an_issuer_that_is_away_before_its_keys_were_had_is_a_503_and_after_that_nothing() {
    let host = Host::new();
    let issuer_at = host.at(21_599);
    let (mut ingress, _app) =
        gateway(&host, &format!("{{ url: \"http://{issuer_at}/keys\" }}")).await;
    let good = token(ec_key(), "ec");
    let reply = bearing(&host, &good).await;
    reply.refused(503, "key_set_unavailable");
    assert!(reply.field("retry-after").is_some(), "{reply:?}");
    assert_eq!(reply.field("www-authenticate"), None);
    // It is not the token's fault, but who sends none is told so first.
    ask(&host, &[]).await.refused(401, "token_missing");

    let keys = key_set(&[(ec_key(), "ec")]);
    let issuer = Origin::start(issuer_at, move |_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
        Then::Close(format!("{head} {}\r\n\r\n{keys}", keys.len()).into_bytes())
    })
    .await;
    until("the keys to be had", async || {
        (bearing(&host, &good).await.status == 200).then_some(())
    })
    .await;
    let asked = issuer.requests().len();
    assert!(asked > 0);
    drop(issuer);

    // A key that is not there makes the gateway ask again, off the path of any request; nobody answers, and nothing is lost.
    bearing(&host, &token(ec_key(), "next"))
        .await
        .refused(401, "token_key_unknown");
    ingress
        .logged(&[
            ("message", "key set could not be had; the old keys stay"),
            ("level", "WARN"),
        ])
        .await;
    for _ in 0..5 {
        assert_eq!(bearing(&host, &good).await.status, 200);
        sleep(Duration::from_millis(50)).await;
    }
    ingress.assert_alive().await;
}

/// An issuer that answers with these keys.
async fn issuer(host: &Host, keys: String) -> Origin {
    Origin::start(host.at(ISSUER_PORT), move |_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
        Then::Close(format!("{head} {}\r\n\r\n{keys}", keys.len()).into_bytes())
    })
    .await
}

const ISSUER_PORT: u16 = 21_599;

/// What is demanded of tokens may change while nobody can be asked for keys: those that there are stay.
#[tokio::test]
async fn another_audience_takes_no_keys_away_while_the_issuer_is_dead() {
    let host = Host::new();
    let jwks = format!("{{ url: \"http://{}/keys\" }}", host.at(ISSUER_PORT));
    let away = issuer(&host, key_set(&[(ec_key(), "ec")])).await;
    let (mut ingress, _app) = gateway(&host, &jwks).await;
    // Ready means that tokens are taken.
    let good = token(ec_key(), "ec");
    assert_eq!(bearing(&host, &good).await.status, 200);
    let users = [("authn", "users")];
    assert_eq!(ingress.metric("weft_key_set_keys", &users).await, 1.0);
    assert_eq!(ingress.metric("weft_key_set_failures", &users).await, 0.0);
    assert!(ingress.metric("weft_key_set_age_seconds", &users).await < 60.0);
    drop(away);

    demand(&host, &jwks, "bank");
    until("the other audience is demanded", async || {
        let reply = bearing(&host, &good).await;
        let reason = reply.field("weft-reason").map(str::to_owned);
        assert_ne!(reason.as_deref(), Some("key_set_unavailable"));
        (reason.as_deref() == Some("token_audience")).then_some(())
    })
    .await;
    let other = ec_key().token(&header("ES256", "ec"), &but(&json!({ "aud": "bank" })));
    assert_eq!(bearing(&host, &other).await.status, 200);
    ingress.assert_alive().await;
}

/// A gateway in front of a dead issuer is ready all the same, soon.
#[tokio::test]
async fn a_gateway_whose_issuer_is_dead_is_ready_and_says_what_it_lacks() {
    let host = Host::new();
    let jwks = format!("{{ url: \"http://{}/keys\" }}", host.at(ISSUER_PORT));
    let (mut ingress, _app) = gateway(&host, &jwks).await;
    let users = [("authn", "users")];
    assert!(ingress.metric("weft_key_set_failures", &users).await >= 1.0);
    assert_eq!(ingress.metric("weft_key_set_keys", &users).await, 0.0);
    bearing(&host, &token(ec_key(), "ec"))
        .await
        .refused(503, "key_set_unavailable");
    let _back = issuer(&host, key_set(&[(ec_key(), "ec")])).await;
    until("the keys to be had", async || {
        (bearing(&host, &token(ec_key(), "ec")).await.status == 200).then_some(())
    })
    .await;
    ingress.assert_alive().await;
}

#[tokio::test]
async fn keys_that_the_issuer_changes_are_taken_without_a_reload() {
    let host = Host::new();
    host.write("keys.json", &key_set(&[(ec_key(), "old")]));
    let file = host.directory().join("keys.json");
    let (mut ingress, _app) = gateway(&host, &format!("{{ file: \"{}\" }}", file.display())).await;
    let (old, new) = (token(ec_key(), "old"), token(ed_key(), "new"));
    assert_eq!(bearing(&host, &old).await.status, 200);
    bearing(&host, &new).await.refused(401, "token_key_unknown");

    // A broken file takes nothing away.
    host.write("keys.json", "{ \"keys\": [");
    ingress
        .logged(&[
            ("message", "key set could not be had; the old keys stay"),
            ("level", "WARN"),
        ])
        .await;
    assert_eq!(bearing(&host, &old).await.status, 200);

    host.write("keys.json", &key_set(&[(ed_key(), "new")]));
    until("the new key", async || {
        (bearing(&host, &new).await.status == 200).then_some(())
    })
    .await;
    // What was verified by a key that is gone is not remembered as good.
    bearing(&host, &old).await.refused(401, "token_key_unknown");
    ingress.assert_alive().await;
}

/// What a request to a path gets with these fields.
type Case<'a> = (&'a str, u16, &'a [(&'a str, &'a str)]);

/// Another version of HTTP is no way around: the same table's essence over HTTP/2.
#[allow(clippy::disallowed_methods, reason = "the test ends what it starts")]
#[tokio::test]
async fn tokens_count_the_same_over_http2() {
    let host = Host::new();
    host.write("keys.json", &key_set(&[(ec_key(), "ec")]));
    let file = host.directory().join("keys.json");
    let (mut ingress, app) = gateway(&host, &format!("{{ file: \"{}\" }}", file.display())).await;
    let good = token(ec_key(), "ec");
    let bearer = format!("Bearer {good}");
    let changed = format!("Bearer {}", token(other_ec_key(), "ec"));
    let unsigned = format!("Bearer {}.", unsigned(&header("none", "ec"), &claims()));
    let spaced = format!("{bearer} x");
    let io = Way::Plain(host.public()).connect().await.unwrap();
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    let driving = tokio::spawn(connection);
    let cases: [Case<'_>; 8] = [
        ("/orders", 200, &[("authorization", &bearer)]),
        ("/orders", 401, &[]),
        (
            "/orders",
            401,
            &[("authorization", &bearer), ("authorization", &bearer)],
        ),
        (
            "/orders",
            401,
            &[("authorization", "Basic YTpi"), ("authorization", &bearer)],
        ),
        ("/orders", 401, &[("authorization", &changed)]),
        ("/orders", 401, &[("authorization", &unsigned)]),
        ("/orders", 401, &[("authorization", &spaced)]),
        ("/open", 200, &[("authorization", "Bearer x")]),
    ];
    let mut passed = 0;
    for (path, status, fields) in cases {
        let mut request = http::Request::builder().uri(format!("http://api.example{path}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        sender = sender.ready().await.unwrap();
        let (answer, _) = sender
            .send_request(request.body(()).unwrap(), true)
            .unwrap();
        assert_eq!(answer.await.unwrap().status(), status, "{path} {fields:?}");
        passed += usize::from(status == 200);
        assert_eq!(app.requests().len(), passed, "{path} {fields:?}");
    }
    let query = format!("http://api.example/orders?access_token={good}");
    let request = http::Request::builder().uri(query).body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 401);
    driving.abort();
    ingress.assert_alive().await;
}

/// Who makes keys up has the issuer asked now and then, not once for each, and nobody waits for it.
#[tokio::test]
async fn keys_that_are_made_up_do_not_make_us_ask_the_issuer_each_time() {
    let host = Host::new();
    let issuer = issuer(&host, key_set(&[(ec_key(), "ec")])).await;
    let jwks = format!("{{ url: \"http://{}/keys\" }}", host.at(ISSUER_PORT));
    let (mut ingress, _app) = gateway(&host, &jwks).await;
    let good = token(ec_key(), "ec");
    until("the keys to be had", async || {
        (bearing(&host, &good).await.status == 200).then_some(())
    })
    .await;
    let (before, start) = (issuer.requests().len(), tokio::time::Instant::now());
    for number in 0..200 {
        let made_up = token(other_ec_key(), &format!("made-up-{number}"));
        bearing(&host, &made_up)
            .await
            .refused(401, "token_key_unknown");
        if number % 20 == 0 {
            assert_eq!(bearing(&host, &good).await.status, 200);
        }
    }
    let asked = issuer.requests().len() - before;
    // Every few seconds at most, and once more for the edges.
    let most = start.elapsed().as_secs() as usize / 2 + 2;
    assert!(asked <= most, "{asked} times in {:?}", start.elapsed());
    ingress.assert_alive().await;
}

#[tokio::test]
async fn a_route_that_demands_a_token_demands_it_whatever_it_matches_on() {
    let host = Host::new();
    let app = Origin::fine(host.app()).await;
    host.write("keys.json", &key_set(&[(ec_key(), "ec")]));
    let matches = [
        "{ host: x.example }",
        "{ host: \"*.y.example\" }",
        "{ path: /exact }",
        "{ path: /below/* }",
        "{ path: \"/some/{id}\" }",
        "{ methods: [PUT] }",
        "{ headers: { x-beta: \"1\" } }",
        "{ host: z.example, path: /all, methods: [POST], headers: { x-beta: \"2\" } }",
    ];
    let routes: String = matches
        .iter()
        .map(|found| format!("    - {{ match: {found}, authn: users, to: plain }}\n"))
        .collect();
    host.configure(&format!(
        "services:\n  plain: {{ mesh: false, endpoints: [\"{}\"] }}\n\
         ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n\
         \x20 authn: {{ users: {{ jwt: {{ issuer: \"{ISSUER}\", audience: [shop], jwks: {{ file: \"{}\" }} }} }} }}\n\
         \x20 routes:\n{routes}    - {{ to: plain }}\n",
        host.app(),
        host.public(),
        host.directory().join("keys.json").display(),
    ));
    let mut ingress = host.ingress().await;
    let bearer = format!("Bearer {}", token(ec_key(), "ec"));
    let ways = [
        ("GET /", "x.example", "0"),
        ("GET /", "X.EXAMPLE:80", "0"),
        ("GET http://x.example/", "ignored", "0"),
        ("GET /", "a.y.example", "0"),
        ("GET /exact", "any", "0"),
        ("GET /%65xact", "any", "0"),
        ("GET //x/../exact", "any", "0"),
        ("GET /below", "any", "0"),
        ("GET /below/it/all", "any", "0"),
        ("GET /some/thing", "any", "0"),
        ("PUT /", "any", "0"),
        ("GET /", "any", "1"),
        ("POST /all", "z.example", "2"),
    ];
    for (passed, (line, name, beta)) in ways.into_iter().enumerate() {
        let fields = [("host", name), ("x-beta", beta)];
        let reply = Way::Plain(host.public()).ask(line, &fields, "").await;
        reply.refused(401, "token_missing");
        assert_eq!(app.requests().len(), passed, "{line} {name}");
        let fields = [&fields[..], &[("authorization", &bearer)]].concat();
        let reply = Way::Plain(host.public()).ask(line, &fields, "").await;
        assert_eq!(reply.status, 200, "{line} {name}: {reply:?}");
    }
    // And nobody else's.
    let fields = [("host", "any"), ("x-beta", "0")];
    let open = Way::Plain(host.public()).ask("GET /", &fields, "").await;
    assert_eq!(open.status, 200);
    ingress.assert_alive().await;
}
