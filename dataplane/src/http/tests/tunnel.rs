//! Tunnels: bytes both ways once both sides have agreed.

use crate::cluster::Speaks;
use crate::testing::{Origin, Raw, Stage, asked, scene, story, until};

const ASKED: &str =
    "GET /chat HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const AGREED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

async fn open(stage: &Stage, origin: &Origin) -> (Raw, Raw) {
    let mut client = stage.client().await;
    // What comes right behind either head belongs to the tunnel.
    client.send(format!("{ASKED}early")).await;
    let mut endpoint = origin.accept().await;
    let head = endpoint.head().await;
    assert!(head.contains("upgrade: websocket"), "{head}");
    endpoint.send(format!("{AGREED}hello")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client.read_to("hello").await;
    endpoint.read_to("early").await;
    (client, endpoint)
}

#[test]
fn each_direction_of_a_tunnel_ends_by_itself() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let (mut client, mut endpoint) = open(&stage, &origin).await;
        client.send("last words").await;
        client.finish().await;
        assert_eq!(endpoint.rest().await, "last words");
        endpoint.send("and mine").await;
        client.read_to("and mine").await;
        assert_eq!(stage.in_flight(), 1);
        endpoint.finish().await;
        assert_eq!(client.rest().await, "");
        until("nothing is in flight", || stage.in_flight() == 0).await;
    });
}

#[test]
fn much_crosses_a_tunnel_unchanged_both_ways() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let (mut client, mut endpoint) = open(&stage, &origin).await;
        let piece: Vec<u8> = (0..=255).cycle().take(700_001).collect();
        let (up, down) = (piece.clone(), piece.clone());
        let echo = tokio::task::spawn_local(async move {
            let received = endpoint.bytes(up.len()).await;
            assert!(received == up);
            endpoint.send(received).await;
            endpoint
        });
        client.send(&piece).await;
        assert!(client.bytes(down.len()).await == down);
        drop(echo.await.unwrap());
        assert_eq!(client.rest().await, "");
    });
}

#[test]
fn a_refused_upgrade_is_an_exchange_like_any_other() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let (mut client, mut endpoint) = asked(&stage, &origin, ASKED).await;
        endpoint
            .send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
            .await;
        let got = client.read_to("no").await;
        assert!(got.starts_with("HTTP/1.1 403 "), "{got}");
        client.send(ASKED).await;
        endpoint.head().await;
    });
}
