//! What an endpoint gets of a request.

use crate::cluster::Speaks;
use crate::testing::{request, scene, story};

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
