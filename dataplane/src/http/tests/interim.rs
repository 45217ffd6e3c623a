//! Interim answers on their way to the client.

use bytes::Bytes;
use http::StatusCode;

use crate::cluster::Speaks;
use crate::testing::{answer, collect, request, scene, send_all, story};

const EXPECTING: &str =
    "POST / HTTP/1.1\r\nhost: orders\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";

#[test]
fn an_expectation_crosses_http1() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client.send(EXPECTING).await;
        let mut endpoint = origin.accept().await;
        let head = endpoint.head().await;
        assert!(head.contains("expect: 100-continue"), "{head}");
        endpoint.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send("abcd").await;
        endpoint.read_to("abcd").await;
        endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    });
}

#[test]
fn an_expectation_crosses_http2_to_the_endpoint() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.client().await;
        client.send(EXPECTING).await;
        let mut endpoint = origin.accept_h2().await;
        let (asked, mut respond) = endpoint.request().await;
        assert_eq!(asked.headers()["expect"], "100-continue");
        respond.send_informational(answer(100)).unwrap();
        let _driver = endpoint.run();
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send("abcd").await;
        assert_eq!(collect(asked.into_body()).await.unwrap(), b"abcd");
        respond.send_response(answer(204), true).unwrap();
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    });
}

#[test]
fn an_expectation_crosses_http2_from_the_client() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.h2_client().await;
        let mut asked = request("POST", "/");
        asked
            .headers_mut()
            .insert("expect", "100-continue".parse().unwrap());
        let (mut response, mut body) = client.send(asked, false).await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
        assert_eq!(interim.unwrap().unwrap().status(), StatusCode::CONTINUE);
        send_all(&mut body, Bytes::from_static(b"abcd"), true).await;
        let got = endpoint.read_to("0\r\n\r\n").await;
        assert!(got.contains("4\r\nabcd\r\n"), "{got}");
        endpoint
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let response = response.await.unwrap();
        assert_eq!(collect(response.into_body()).await.unwrap(), b"ok");
    });
}

#[test]
fn a_switch_that_nobody_asked_for_is_no_interim_answer() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.client().await;
        client.send("POST / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let mut endpoint = origin.accept_h2().await;
        let (_, mut respond) = endpoint.request().await;
        respond.send_informational(answer(101)).unwrap();
        let _driver = endpoint.run();
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        assert!(head.contains("weft-reason: upstream_malformed"), "{head}");
    });
}
