//! What an endpoint gets of a request.

use weft_runtime::config::{Path, Problems};

use crate::balance;
use crate::cluster::Speaks;
use crate::testing::{Origin, Raw, Stage, request, scene, story};

#[test]
fn a_target_without_a_path_gets_one() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client
            .send("GET http://orders?x=1 HTTP/1.1\r\nhost: orders\r\n\r\n")
            .await;
        let head = origin.accept().await.head().await;
        assert!(head.starts_with("GET /?x=1 HTTP/1.1\r\n"), "{head}");
    });
}

#[test]
fn crumbs_of_cookies_are_one_field_again() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.h2_client().await;
        let mut asked = request("GET", "/");
        // More than the limit of fields, as a browser sends them: one field in HTTP/1.1.
        for crumb in 0..200 {
            let value = format!("c{crumb}={crumb}").parse().unwrap();
            asked.headers_mut().append("cookie", value);
        }
        let _response = client.send(asked, true).await;
        let head = origin.accept().await.head().await;
        assert_eq!(head.matches("cookie:").count(), 1, "{head}");
        assert!(head.contains("cookie: c0=0; c1=1; c2=2; "), "{head}");
        assert!(head.contains("; c199=199\r\n"), "{head}");
    });
}

#[test]
fn too_many_fields_are_refused_over_http2_too() {
    story(async {
        let (_origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.h2_client().await;
        let mut asked = request("GET", "/");
        for field in 0..129 {
            let name = http::HeaderName::try_from(format!("x-{field}")).unwrap();
            asked.headers_mut().append(name, "1".parse().unwrap());
        }
        let response = client.send(asked, true).await.0.await.unwrap();
        assert_eq!(response.status(), 431);
    });
}

#[test]
fn a_length_that_not_everybody_can_hold_is_refused_over_http2_too() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.h2_client().await;
        // One more than the largest, and one that is as long and much larger.
        for length in ["9223372036854775808", "9300000000000000000"] {
            let mut asked = request("POST", "/");
            let value = length.parse().unwrap();
            asked.headers_mut().insert("content-length", value);
            let (response, _body) = client.send(asked, false).await;
            let response = response.await.unwrap();
            assert_eq!(response.status(), 400);
            assert_eq!(response.headers()["weft-reason"], "malformed_request");
        }
        let mut asked = request("POST", "/");
        let value = "9223372036854775807".parse().unwrap();
        asked.headers_mut().insert("content-length", value);
        let _asked = client.send(asked, false).await;
        let head = origin.accept().await.head().await;
        assert!(head.contains("content-length: 9223372036854775807"));
    });
}

/// What a client may claim, and is not believed.
const CLAIMS: &str = "forwarded: for=10.0.0.1\r\nx-forwarded-for: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\n\
    X-Forwarded-Proto: https\r\nx-forwarded-host: admin\r\nx-forwarded-client-cert: URI=spiffe://admin\r\n\
    weft-attempt: 2\r\nx-forwarded-port: 80\r\n";

#[test]
fn endpoints_are_told_of_a_client_by_us_alone() {
    story(async {
        let origin = Origin::new().await;
        let stage = Stage::new(Speaks::Http1, &[origin.address]).await;
        let mut client = stage.client().await;
        let ours = "x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: orders:80\r\n";
        let ask = |fields: &str| format!("GET / HTTP/1.1\r\nhost: orders:80\r\n{fields}\r\n");
        let expect =
            |fields: &str| format!("GET / HTTP/1.1\r\nhost: orders:80\r\n{fields}{ours}\r\n");
        client.send(ask(CLAIMS)).await;
        let mut app = origin.accept().await;
        assert_eq!(app.head().await, expect("x-forwarded-port: 80\r\n"));
        app.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        client.head().await;
        client.send(ask("accept: a\r\n")).await;
        assert_eq!(app.head().await, expect("accept: a\r\n"));
    });
}

#[test]
fn endpoints_are_told_of_a_client_in_http2_too() {
    story(async {
        let origin = Origin::new().await;
        let stage = Stage::new(Speaks::Http2, &[origin.address]).await;
        let mut client = stage.client().await;
        client
            .send(format!("GET / HTTP/1.1\r\nhost: orders\r\n{CLAIMS}\r\n"))
            .await;
        let mut app = origin.accept_h2().await;
        let (asked, _respond) = app.request().await;
        let mut said: Vec<_> = asked
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        said.sort();
        assert_eq!(
            said,
            [
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-host: orders",
                "x-forwarded-port: 80",
                "x-forwarded-proto: http",
            ]
        );
    });
}

#[test]
fn a_key_may_be_what_endpoints_are_told_of_a_client() {
    story(async {
        let origins = [Origin::new().await, Origin::new().await];
        let addresses = [origins[0].address, origins[1].address];
        let stage = Stage::with(Speaks::Http1, &addresses, |setting| {
            let config = r#"{"policy": "maglev", "key": {"header": "x-forwarded-for"}}"#;
            let config: balance::Config = serde_json::from_str(config).unwrap();
            let policy = config.build(&Path::root(), &mut Problems::new());
            setting.spec.balance = policy.unwrap();
        })
        .await;
        let mut client = stage.client().await;
        let mut app: Option<Raw> = None;
        for claim in 0..16 {
            let ask = format!(
                "GET / HTTP/1.1\r\nhost: orders\r\nx-forwarded-for: 10.0.0.{claim}\r\n\r\n"
            );
            client.send(ask).await;
            let another = async {
                tokio::select! {
                    app = origins[0].accept() => app,
                    app = origins[1].accept() => app,
                }
            };
            let app = match &mut app {
                Some(app) => app,
                None => app.insert(another.await),
            };
            let head = app.head().await;
            let told = head.match_indices("x-forwarded-for: ").count();
            assert!(told == 1 && head.contains("x-forwarded-for: 127.0.0.1\r\n"));
            app.send("HTTP/1.1 204 No Content\r\n\r\n").await;
            client.head().await;
        }
    });
}
