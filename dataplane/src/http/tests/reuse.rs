//! Which connections to endpoints are used again.

use std::time::{Duration, Instant};

use crate::cluster::Speaks;
use crate::testing::{scene, story};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// Whether the connection on which `asked` was answered so takes the next exchange too.
async fn is_reused(asked: &str, answered: &str) -> bool {
    let (origin, stage) = scene(Speaks::Http1).await;
    let mut client = stage.client().await;
    client.send(asked).await;
    let mut first = origin.accept().await;
    first.head().await;
    first.send(answered).await;
    client.head().await;
    let mut other = stage.client().await;
    other.send(GET).await;
    tokio::select! {
        head = first.head() => head.starts_with("GET / "),
        _ = origin.accept() => false,
    }
}

#[test]
fn a_connection_is_reused_only_when_both_messages_were_whole() {
    story(async {
        let check = async |asked: &str, answered: &str, expected: bool| {
            let reused = tokio::time::timeout(Duration::from_secs(20), is_reused(asked, answered));
            assert_eq!(reused.await, Ok(expected), "{answered:?}");
        };
        check(GET, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true).await;
        check(GET, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true).await;
        check(
            GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            true,
        )
        .await;
        check(
            GET,
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
            true,
        )
        .await;
        check(
            "HEAD / HTTP/1.1\r\nhost: orders\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
            true,
        )
        .await;
        let close = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
        let surplus = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokay";
        let second = "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n";
        let old = "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok";
        for answered in [close, surplus, second, old] {
            // The next exchange either dials or would hang on a connection that is of no use.
            let (origin, stage) = scene(Speaks::Http1).await;
            let mut client = stage.client().await;
            client.send(GET).await;
            let mut first = origin.accept().await;
            first.head().await;
            first.send(answered).await;
            client.head().await;
            assert_eq!(first.rest().await, "", "closed after {answered:?}");
            let mut other = stage.client().await;
            other.send(GET).await;
            origin.accept().await.head().await;
        }
    });
}

#[test]
fn a_connection_that_speaks_out_of_turn_is_not_used() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client.send(GET).await;
        let mut first = origin.accept().await;
        first.head().await;
        first.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        client.head().await;
        // What a server says that closes an idle connection, and what an attacker behind it might say.
        first
            .send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.send(GET).await;
        let mut second = origin.accept().await;
        second.head().await;
        second.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
        assert_eq!(first.rest().await, "");
    });
}

#[test]
fn what_was_idle_for_long_is_closed_and_forgotten() {
    story(async {
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let (origin, stage) = scene(speaks).await;
            let mut client = stage.client().await;
            client.send(GET).await;
            let later = Instant::now() + Duration::from_secs(120);
            if speaks == Speaks::Http1 {
                let mut endpoint = origin.accept().await;
                endpoint.head().await;
                endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
                client.head().await;
                stage.core.pool.sweep();
                for _ in 0..55 {
                    stage.core.pool.sweep();
                }
                assert_eq!(endpoint.rest().await, "");
            } else {
                let endpoint = origin.accept_h2().await.run();
                client.head().await;
                stage.core.peers.sweep(Instant::now());
                assert!(!endpoint.is_finished());
                stage.core.peers.sweep(later);
                endpoint.await.unwrap();
            }
            assert!(stage.core.pool.is_empty() && stage.core.peers.is_empty());
        }
    });
}

#[test]
fn a_connection_is_not_used_after_the_time_that_its_endpoint_gave() {
    story(async {
        for (hint, reused) in [
            ("keep-alive: timeout=1\r\n", false),
            ("Keep-Alive: max=9, timeout=0\r\n", false),
            ("keep-alive: timeout=30, max=5\r\n", true),
            ("keep-alive: timeout=soon\r\n", true),
            ("", true),
        ] {
            let (origin, stage) = scene(Speaks::Http1).await;
            let mut client = stage.client().await;
            client.send(GET).await;
            let mut first = origin.accept().await;
            first.head().await;
            first
                .send(format!(
                    "HTTP/1.1 200 OK\r\n{hint}content-length: 0\r\n\r\n"
                ))
                .await;
            client.head().await;
            client.send(GET).await;
            if reused {
                assert!(first.head().await.starts_with("GET / "), "{hint:?}");
            } else {
                origin.accept().await.head().await;
                assert_eq!(first.rest().await, "", "{hint:?}");
            }
        }
    });
}
