//! Where messages end, through both codecs.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::Speaks;
use crate::testing::{answer, asked, collect, request, retries, scene, scene_with, story};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// What the client reads, to the end of the connection, when it sends `request` and the endpoint answers so.
async fn told(request: &str, answered: &str) -> String {
    let (origin, stage) = scene(Speaks::Http1).await;
    let (mut client, mut endpoint) = asked(&stage, &origin, request).await;
    endpoint.send(answered).await;
    drop(endpoint);
    client.finish().await;
    client.rest().await
}

#[test]
fn an_answer_that_ends_by_closing_is_whole_in_chunks() {
    story(async {
        let got = told(GET, "HTTP/1.1 200 OK\r\n\r\nhello").await;
        assert!(got.contains("transfer-encoding: chunked"), "{got}");
        assert!(got.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{got}");
    });
}

#[test]
fn a_cut_answer_stays_cut() {
    story(async {
        let got = told(GET, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello").await;
        assert!(got.contains("content-length: 9"), "{got}");
        assert!(got.ends_with("hello"), "{got}");
        let got = told(
            GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        )
        .await;
        assert!(got.ends_with("5\r\nhello\r\n"), "no last chunk: {got}");
    });
}

#[test]
fn a_cut_answer_stays_cut_for_a_client_that_is_too_old_for_chunks() {
    story(async {
        let old = "GET / HTTP/1.0\r\nhost: orders\r\n\r\n";
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        for (rest, is_cut) in [("0\r\n\r\n", false), ("", true), ("x", true)] {
            let (origin, stage) = scene(Speaks::Http1).await;
            let (mut client, mut endpoint) = asked(&stage, &origin, old).await;
            endpoint.send(format!("{chunked}{rest}")).await;
            drop(endpoint);
            assert!(client.head().await.contains("\r\nconnection: close\r\n"));
            assert_eq!(client.bytes(5).await, b"hello");
            assert_eq!(client.is_reset().await, is_cut, "after {rest:?}");
        }
    });
}

#[test]
fn an_answer_of_which_nothing_more_comes_is_cut_for_a_client_that_is_too_old_for_chunks() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http1, |setting| {
            setting.site.timeouts.stream_idle = Duration::from_millis(200);
        })
        .await;
        let old = "GET / HTTP/1.0\r\nhost: orders\r\n\r\n";
        let (mut client, mut endpoint) = asked(&stage, &origin, old).await;
        endpoint.send("HTTP/1.1 200 OK\r\n\r\nhello").await;
        client.read_to("\r\n\r\nhello").await;
        assert!(client.is_reset().await);
    });
}

#[test]
fn an_answer_whose_connection_is_dropped_is_cut_for_a_client_that_is_too_old_for_chunks() {
    let mut left = None;
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let old = "GET / HTTP/1.0\r\nhost: orders\r\n\r\n";
        let (mut client, mut endpoint) = asked(&stage, &origin, old).await;
        endpoint.send("HTTP/1.1 200 OK\r\n\r\nhello").await;
        client.read_to("\r\n\r\nhello").await;
        left = Some(client.into_std());
    });
    // Its task has gone with the runtime, as it goes when a drain's time or that of a permission is over.
    let error = left.unwrap().read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_cut_answer_stays_cut_over_http2() {
    story(async {
        for cut in [
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let (origin, stage) = scene(Speaks::Http1).await;
            let mut client = stage.h2_client().await;
            let (response, _) = client.send(request("GET", "/"), true).await;
            let mut endpoint = origin.accept().await;
            endpoint.head().await;
            endpoint.send(cut).await;
            drop(endpoint);
            // A reset overtakes what is not sent yet, even the head.
            if let Ok(response) = response.await {
                collect(response.into_body())
                    .await
                    .expect_err("the end is missing");
            }
        }
    });
}

#[test]
fn an_http2_answer_that_is_reset_is_cut_for_an_http1_client() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.client().await;
        client.send(GET).await;
        let mut endpoint = origin.accept_h2().await;
        let (_, mut respond) = endpoint.request().await;
        let mut body = respond.send_response(answer(200), false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let _driver = endpoint.run();
        client.read_to("hello\r\n").await;
        body.send_reset(h2::Reason::INTERNAL_ERROR);
        assert_eq!(client.rest().await, "", "no last chunk");
    });
}

#[test]
fn lengths_of_an_answer_without_a_body_are_checked_over_http2_too() {
    story(async {
        for (lengths, status) in [
            (&["9"][..], 200),
            (&[], 200),
            (&["9", "9"], 502),
            (&["9", "10"], 502),
            (&["+9"], 502),
            (&["9, 9"], 502),
            (&["9223372036854775807"], 200),
            (&["9223372036854775808"], 502),
            (&["18446744073709551615"], 502),
        ] {
            let (origin, stage) = scene_with(Speaks::Http2, |setting| {
                setting.spec.retry = retries(0);
            })
            .await;
            let mut client = stage.client().await;
            client.send("HEAD / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
            let mut endpoint = origin.accept_h2().await;
            let (_, mut respond) = endpoint.request().await;
            let mut head = answer(200);
            for length in lengths {
                head.headers_mut()
                    .append("content-length", length.parse().unwrap());
            }
            respond.send_response(head, true).unwrap();
            let _driver = endpoint.run();
            let got = client.head().await;
            assert!(
                got.starts_with(&format!("HTTP/1.1 {status} ")),
                "{lengths:?} got {got}"
            );
        }
    });
}
