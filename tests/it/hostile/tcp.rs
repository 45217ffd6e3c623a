//! Opaque TCP: tunnels to where none lead, and crowds of connections that do nothing good.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::frames::*;
use super::hoarding::{connected, read};
use super::{Scene, are_short};
use crate::alone::{Host, Origin, PATIENCE, Stream, Then, Way, fine, until};

/// Where callers find the service.
const LISTEN: u16 = 21_533;
/// What an answer of the app holds that nobody reads.
const SIZE: usize = 1 << 20;

async fn stage() -> (Scene, Way) {
    let host = Host::new();
    let listen = host.at(LISTEN);
    let large = [
        format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n").into_bytes(),
        vec![b'x'; SIZE],
    ]
    .concat();
    let origin = Origin::start(host.app(), move |seen| match seen.target() {
        "/large" => Then::Keep(large.clone()),
        "/last" => Then::Close(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlast".to_vec()),
        _ => fine(),
    })
    .await;
    let scene = Scene::of_bytes(host, origin, listen).await;
    (scene, Way::Plain(listen))
}

/// The head of a request to open a tunnel.
fn connect(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let method: &[(&[u8], &[u8])] = &[(b":method", b"CONNECT")];
    let all = [method, fields].concat();
    opened(&[
        frame(HEADERS, END_HEADERS, 1, &block(&all)),
        frame(DATA, 0, 1, b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"),
    ])
}

#[tokio::test]
async fn tunnels_lead_to_the_one_service_and_nowhere_else() {
    let (mut scene, _) = stage().await;
    let port = scene.host.app().port();
    let right = format!("orders:{port}").into_bytes();
    let wrong: Vec<Vec<u8>> = [
        "elsewhere:1".to_owned(),
        format!("plain:{port}"),
        "orders:22".to_owned(),
        "orders".to_owned(),
        format!("orders.:{port}"),
        format!("x@orders:{port}"),
        format!("{}", scene.host.app()),
        format!("{}", scene.host.admin()),
        "127.0.0.1:22".to_owned(),
        "[::1]:22".to_owned(),
        "169.254.169.254:80".to_owned(),
    ]
    .map(String::into_bytes)
    .into();
    for (door, way) in scene.doors(&["h2"]) {
        let mut attempts: Vec<Vec<u8>> = Vec::new();
        for to in &wrong {
            attempts.push(connect(&[(b":authority", to)]));
        }
        // Right, and yet no CONNECT by RFC 9113 §8.5 or RFC 8441.
        attempts.extend([
            connect(&[]),
            connect(&[(b":authority", &right), (b":path", b"/")]),
            connect(&[
                (b":authority", &right),
                (b":scheme", b"http"),
                (b":path", b"/"),
            ]),
            connect(&[
                (b":protocol", b"tcp"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", &right),
            ]),
            connect(&[
                (b":protocol", b"connect-udp"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", &right),
            ]),
        ]);
        if door != "mesh" {
            attempts.push(connect(&[(b":authority", &right)]));
        }
        for (number, bytes) in attempts.iter().enumerate() {
            let heard = converse(&way, bytes).await;
            assert!(!heard.answers.contains(&0x88), "{door} {number}: {heard:?}");
            let told = heard.reset || heard.goaway || heard.ended || !heard.answers.is_empty();
            assert!(told, "{door} {number}: {heard:?}");
        }
    }
    // HTTP/1.1 has no tunnels at all.
    for (door, way) in scene.doors(&["http/1.1"]) {
        for to in [
            format!("orders:{port}"),
            "elsewhere:1".to_owned(),
            "127.0.0.1:22".to_owned(),
        ] {
            for more in [
                "",
                "content-length: 4\r\n",
                "transfer-encoding: chunked\r\n",
            ] {
                let request = format!(
                    "CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n{more}\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
                );
                let answer = way.send(request.as_bytes()).await.unwrap_or_default();
                let text = String::from_utf8_lossy(&answer);
                assert!(!text.contains("HTTP/1.1 2"), "{door} {to} {more}: {text}");
            }
        }
    }
    assert_eq!(scene.origin.bytes(), 0, "{:?}", scene.origin.requests());
    // The one that leads somewhere.
    let (_, way) = scene.doors(&["h2"]).into_iter().next_back().unwrap();
    let heard = converse(&way, &connect(&[(b":authority", &right)])).await;
    assert!(heard.answers.contains(&0x88), "{heard:?}");
    until("the tunnel to lead to the app", async || {
        (scene.origin.bytes() > 0).then_some(())
    })
    .await;
    scene.assert_alive().await;
}

/// One exchange through a connection that is kept; how long it took.
async fn asked(stream: &mut Stream) -> Duration {
    let begun = Instant::now();
    stream
        .write_all(b"GET /small HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 40];
    let reading = stream.read_exact(&mut answer);
    timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK") && answer.ends_with(b"ok"));
    begun.elapsed()
}

/// Connections that say nothing, that never read, that drip, that end their side and stay.
#[tokio::test(flavor = "multi_thread")]
async fn crowds_of_connections_hold_little_and_stop_no_other() {
    const EACH: usize = 100;
    let (mut scene, listen) = stage().await;
    let mut beside = listen.connect().await.unwrap();
    asked(&mut beside).await;
    let mut times = Vec::new();
    let attack = async {
        let (mut held, mut drips) = (Vec::new(), JoinSet::new());
        for number in 0..4 * EACH {
            let mut stream = listen.connect().await.unwrap();
            match number % 4 {
                0 => {}
                1 => stream
                    .write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
                    .await
                    .unwrap(),
                2 => stream.shutdown().await.unwrap(),
                _ => {
                    drips.spawn(async move {
                        for byte in b"GET /drip".iter().cycle().take(20) {
                            let _ = stream.write_all(&[*byte]).await;
                            sleep(Duration::from_millis(100)).await;
                        }
                    });
                    continue;
                }
            }
            held.push(stream);
            times.push(asked(&mut beside).await);
        }
        while let Some(drip) = drips.join_next().await {
            drip.unwrap();
        }
    };
    // The mesh port of such a service takes no HTTP; the process is the same.
    let good = scene.good_ways(&["outbound"]);
    scene
        .under_attack("a crowd of connections", &good, attack)
        .await;
    are_short("an exchange beside the crowd", times);
    // Nothing is left of them once they have gone.
    until("the app to be left alone", async || {
        (scene.origin.open() < 20).then_some(())
    })
    .await;
    // An end is passed on at once.
    let mut times = Vec::new();
    for _ in 0..EACH {
        let begun = Instant::now();
        let request = b"GET /last HTTP/1.1\r\nhost: x\r\n\r\n";
        let answer = listen.send(request).await.unwrap();
        assert!(answer.ends_with(b"last"));
        times.push(begun.elapsed());
    }
    are_short("an end", times);
}

/// Tunnels of a member of the mesh that reads none of them.
#[tokio::test(flavor = "multi_thread")]
async fn tunnels_that_nobody_reads_hold_little_and_stop_no_other() {
    const CONNECTIONS: usize = 4;
    const TUNNELS: usize = 100;
    let (mut scene, _) = stage().await;
    let (_, way) = scene.doors(&["h2"]).into_iter().next_back().unwrap();
    let to = format!("orders:{}", scene.host.app().port());
    let open = async |sender: h2::client::SendRequest<Bytes>, target: &str| {
        let mut sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
        let request = Request::connect(to.as_str()).body(()).unwrap();
        let (response, mut send) = sender.send_request(request, false).unwrap();
        let asked = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        send.send_data(asked.into(), false).unwrap();
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        (response.into_body(), send)
    };
    let attack = async {
        let (mut tasks, mut held) = (JoinSet::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            let sender = connected(&way, 0, 1 << 20, &mut tasks).await;
            for _ in 0..TUNNELS {
                held.push(open(sender.clone(), "/large").await);
            }
            // Of this very connection too.
            let wide = connected(&way, 1 << 20, 1 << 24, &mut tasks).await;
            let (body, _send) = open(wide, "/last").await;
            assert!(timeout(PATIENCE, read(body)).await.unwrap() > 4);
        }
        sleep(Duration::from_secs(1)).await;
    };
    // The mesh port of such a service takes no HTTP; the process is the same.
    let good = scene.good_ways(&["outbound"]);
    scene.under_attack("unread tunnels", &good, attack).await;
    until("the app to be left alone", async || {
        (scene.origin.open() < 20).then_some(())
    })
    .await;
}
