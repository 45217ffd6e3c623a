//! What is sent again, and what is not.

use std::time::Duration;

use crate::cluster::Speaks;
use crate::endpoint::Totals;
use crate::testing::{Origin, Stage, nowhere, retries, scene, scene_with, story};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 4\r\n\r\nabcd";

fn totals(stage: &Stage) -> Vec<Totals> {
    let members = stage.cluster.members.load();
    members.endpoints().iter().map(|e| e.totals()).collect()
}

#[test]
fn what_was_not_connected_is_sent_elsewhere() {
    story(async {
        let origin = Origin::new().await;
        let stage = Stage::new(Speaks::Http1, &[nowhere().await, origin.address]).await;
        let served = tokio::task::spawn_local(async move {
            let mut endpoint = origin.accept().await;
            for _ in 0..10 {
                endpoint.read_to("abcd").await;
                endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        });
        let mut client = stage.client().await;
        for _ in 0..10 {
            client.send(POST).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
        }
        served.await.unwrap();
        let failures: u64 = totals(&stage).iter().map(|t| t.local_failures).sum();
        assert_eq!(stage.edge().retries, failures, "each failure is one retry");
    });
}

#[test]
fn a_post_that_was_read_is_never_sent_again() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client.send(POST).await;
        let mut endpoint = origin.accept().await;
        endpoint.read_to("abcd").await;
        endpoint.reset();
        let head = client.head().await;
        assert!(head.contains("weft-reason: upstream_reset"), "{head}");
        assert_eq!(stage.edge().retries, 0);
        assert_eq!(totals(&stage)[0].local_failures, 1);
    });
}

#[test]
fn when_our_own_certificate_has_ended_no_endpoint_is_blamed() {
    story(async {
        let (identity, orders) = crate::identity::testing::ended();
        let (_origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.mesh = Some(orders);
            setting.identity = Some(identity);
        })
        .await;
        let mut client = stage.client().await;
        client.send(GET).await;
        let head = client.head().await;
        assert!(head.contains("weft-reason: identity_missing"), "{head}");
        assert_eq!(totals(&stage)[0].local_failures, 0);
    });
}

#[test]
fn a_put_that_was_cut_off_is_sent_again_with_all_of_its_body() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client
            .send("PUT / HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.read_to("2\r\nab\r\n").await;
        endpoint.reset();
        let mut endpoint = origin.accept().await;
        endpoint.read_to("2\r\nab\r\n").await;
        client.send("2\r\ncd\r\n0\r\nx-sum: 4\r\n\r\n").await;
        let rest = endpoint.read_to("x-sum: 4\r\n\r\n").await;
        assert_eq!(rest, "2\r\ncd\r\n0\r\nx-sum: 4\r\n\r\n");
        endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    });
}

#[test]
fn a_body_larger_than_what_is_kept_is_not_sent_again() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        let body = "x".repeat(100_000);
        client
            .send(format!(
                "PUT / HTTP/1.1\r\nhost: orders\r\ncontent-length: 100000\r\n\r\n{body}"
            ))
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.bytes(100_000).await;
        endpoint.reset();
        let head = client.head().await;
        assert!(head.contains("weft-reason: upstream_reset"), "{head}");
        assert_eq!(stage.edge().retries, 0);
    });
}

#[test]
fn a_client_that_stalls_its_upload_is_told_so_and_the_endpoint_is_not_blamed() {
    story(async {
        for attempts in [0, 1] {
            let (_origin, stage) = scene_with(Speaks::Http1, |setting| {
                setting.spec.timeout = Duration::from_millis(300);
                setting.spec.retry = retries(attempts);
            })
            .await;
            let mut client = stage.client().await;
            client
                .send("PUT / HTTP/1.1\r\nhost: orders\r\ncontent-length: 4\r\n\r\nab")
                .await;
            let head = client.head().await;
            assert!(head.contains("weft-reason: body_timeout"), "{head}");
            assert_eq!(totals(&stage)[0].local_failures, 0);
        }
    });
}

#[test]
fn an_upload_that_moves_may_take_longer_than_the_timeout() {
    story(async {
        let timeout = Duration::from_millis(1500);
        let (origin, stage) = scene_with(Speaks::Http1, |setting| {
            setting.spec.timeout = timeout;
        })
        .await;
        let mut client = stage.client().await;
        client
            .send("PUT / HTTP/1.1\r\nhost: orders\r\ncontent-length: 8\r\n\r\n")
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        for _ in 0..8 {
            client.send("x").await;
            endpoint.bytes(1).await;
            tokio::time::sleep(timeout / 6).await;
        }
        endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    });
}

#[test]
fn an_endpoint_that_does_not_answer_is_blamed() {
    story(async {
        let (_origin, stage) = scene_with(Speaks::Http1, |setting| {
            setting.spec.timeout = Duration::from_millis(200);
        })
        .await;
        let mut client = stage.client().await;
        client.send(GET).await;
        let head = client.head().await;
        assert!(head.contains("weft-reason: upstream_timeout"), "{head}");
        assert_eq!(totals(&stage)[0].local_failures, 1);
    });
}
