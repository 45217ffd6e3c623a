//! Answers that come before the request has ended.

use bytes::Bytes;

use crate::cluster::Speaks;
use crate::testing::{answer, collect, request, scene, story, until};

const UPLOAD: &str = "POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 9\r\n\r\nabcd";

#[test]
fn an_early_answer_does_not_stop_the_request() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client.send(UPLOAD).await;
        let mut endpoint = origin.accept().await;
        endpoint.read_to("abcd").await;
        endpoint
            .send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhe")
            .await;
        client.read_to("\r\n\r\nhe").await;
        client.send("efghi").await;
        endpoint.read_to("efghi").await;
        endpoint.send("re").await;
        client.read_to("re").await;
        // Both messages are whole, so both connections go on.
        client.send("GET /2 HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert!(endpoint.head().await.starts_with("GET /2 "));
    });
}

#[test]
fn an_answer_that_ends_early_ends_both_connections() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client.send(UPLOAD).await;
        let mut endpoint = origin.accept().await;
        endpoint.read_to("abcd").await;
        endpoint
            .send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
            .await;
        let got = client.read_to("no").await;
        assert!(got.starts_with("HTTP/1.1 413 "), "{got}");
        assert!(got.contains("\r\nconnection: close\r\n"), "{got}");
        assert_eq!(endpoint.rest().await, "", "not kept in mid-request");
        client.finish().await;
        assert_eq!(client.rest().await, "");
        assert_eq!(stage.in_flight(), 0);
    });
}

#[test]
fn a_client_whose_upload_was_answered_early_can_ask_again() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        let size = 2 << 20;
        client
            .send(&format!(
                "POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: {size}\r\n\r\n"
            ))
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let got = client.read_to("\r\n\r\nok").await;
        assert!(!got.contains("connection: close"), "{got}");
        client.send(&"x".repeat(size)).await;
        client.send("GET /2 HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        assert_eq!(endpoint.rest().await, "", "not kept in mid-request");
        let mut endpoint = origin.accept().await;
        assert!(endpoint.head().await.starts_with("GET /2 "));
    });
}

#[test]
fn an_answer_that_ends_early_is_whole_over_http2() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.h2_client().await;
        let (response, _body) = client.send(request("POST", "/"), false).await;
        let mut endpoint = origin.accept_h2().await;
        let (asked, mut respond) = endpoint.request().await;
        let mut body = respond.send_response(answer(401), false).unwrap();
        body.send_data(Bytes::from_static(b"no"), true).unwrap();
        // Resets the stream with NO_ERROR, as RFC 9113 §8.1 has it.
        drop((asked, respond, body));
        let _driver = endpoint.run();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(collect(response.into_body()).await.unwrap(), b"no");
        until("nothing is in flight", || stage.in_flight() == 0).await;
    });
}

#[test]
fn an_upload_that_breaks_off_after_an_early_answer_breaks_the_exchange_off() {
    story(async {
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let (origin, stage) = scene(speaks).await;
            let mut client = stage.client().await;
            client.send(UPLOAD).await;
            if speaks == Speaks::Http1 {
                let mut endpoint = origin.accept().await;
                endpoint.read_to("abcd").await;
                endpoint
                    .send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhe")
                    .await;
                client.read_to("\r\n\r\nhe").await;
                client.finish().await;
                assert_eq!(endpoint.rest().await, "");
            } else {
                let mut endpoint = origin.accept_h2().await;
                let (asked, mut respond) = endpoint.request().await;
                let mut body = respond.send_response(answer(200), false).unwrap();
                body.send_data(Bytes::from_static(b"he"), false).unwrap();
                let _driver = endpoint.run();
                client.read_to("he\r\n").await;
                client.finish().await;
                collect(asked.into_body())
                    .await
                    .expect_err("the request is broken off");
            }
            assert_eq!(client.rest().await, "", "and so is the answer");
            until("nothing is in flight", || stage.in_flight() == 0).await;
        }
    });
}
