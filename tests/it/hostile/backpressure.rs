//! Who does not read stops who writes, on every way through: up and down, by either version, through two proxies.
//! (Answers over HTTP/2 from an app of HTTP/1.1 are in `hoarding`, WebSockets and tunnels in files of their own.)
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::hoarding::{EACH, SIZE, STREAMS, asks, connected, read, stage};
use super::{SLOWEST, Scene};
use crate::alone::{Host, Origin, PATIENCE, Way};
use crate::harness::app::{App, send_all};
use crate::harness::settled;

/// 1,500 uploads of a megabyte, through gateway and sidecar, to an app that reads none of them.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_through_two_proxies_are_not_held_and_stop_no_other() {
    let (mut scene, mut tasks, _) = stage().await;
    let public = Way::Plain(scene.host.public());
    let attack = async {
        let mut uploads = Vec::new();
        for _ in 0..STREAMS / EACH {
            let mut sender = connected(&public, 1 << 20, 1 << 24, &mut tasks).await;
            for _ in 1..EACH {
                sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
                let (response, mut stream) =
                    sender.send_request(asks("POST", "orders"), false).unwrap();
                stream.reserve_capacity(SIZE);
                stream.send_data(vec![b'x'; SIZE].into(), false).unwrap();
                uploads.push((response, stream));
            }
            // An answer on the same connections, all the way.
            sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
            let begun = Instant::now();
            let (response, _) = sender.send_request(asks("GET", "orders"), true).unwrap();
            let response = timeout(PATIENCE, response).await.unwrap().unwrap();
            assert_eq!(response.status(), 200, "{:?}", response.headers());
            assert_eq!(read(response.into_body()).await, SIZE);
            assert!(begun.elapsed() < 2 * *SLOWEST, "{:?}", begun.elapsed());
        }
    };
    let good = scene.doors(&["http/1.1"]);
    scene.under_attack("unread uploads", &good, attack).await;
}

/// 1,500 connections of HTTP/1.1 that ask for a megabyte each and do not take it.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_do_not_read_are_not_held() {
    let (mut scene, _app, app) = stage().await;
    let address = scene.host.public();
    let attack = async {
        let mut held = Vec::new();
        for number in 0..STREAMS {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4 * 1024).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            let request = b"GET /big HTTP/1.1\r\nhost: orders\r\n\r\n";
            stream.write_all(request).await.unwrap();
            if number % EACH == 0 {
                // Not all at once: the app could not take so many connections, and it is not what is attacked.
                timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap();
            }
            held.push(stream);
        }
        settled(&app.sent).await;
    };
    let good = scene.doors(&["http/1.1"]);
    scene
        .under_attack("unread connections", &good, attack)
        .await;
}

/// 1,500 calls whose app speaks HTTP/2 and has a megabyte for each.
#[tokio::test(flavor = "multi_thread")]
async fn answers_of_an_app_of_http2_are_not_held_and_stop_no_other() {
    const PIECE: usize = 16 << 10;
    let host = Host::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let written = Arc::clone(&sent);
    let _app = App::start(host.app(), usize::MAX, move |mut asked| {
        let written = Arc::clone(&written);
        async move {
            if asked.path() == "/good" {
                return asked.answer(200, b"ok");
            }
            let mut send = asked.begin(&[]);
            for piece in 0..SIZE / PIECE {
                let is_last = (piece + 1) * PIECE == SIZE;
                send_all(&mut send, Bytes::from(vec![b'x'; PIECE]), is_last).await;
                written.fetch_add(PIECE, Ordering::Relaxed);
            }
        }
    })
    .await;
    let mut scene = Scene::of_calls(host, Origin::nobody()).await;
    let public = Way::Plain(scene.host.public());
    let attack = async {
        let (mut tasks, mut held) = (JoinSet::new(), Vec::new());
        for _ in 0..STREAMS / EACH {
            let mut sender = connected(&public, 0, 1 << 20, &mut tasks).await;
            for _ in 0..EACH {
                sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
                let response = sender.send_request(asks("GET", "orders"), true).unwrap().0;
                held.push(timeout(PATIENCE, response).await.unwrap().unwrap());
            }
            let begun = Instant::now();
            let other = connected(&public, 1 << 20, 1 << 24, &mut tasks).await;
            let mut other = timeout(PATIENCE, other.ready()).await.unwrap().unwrap();
            let response = other.send_request(asks("GET", "orders"), true).unwrap().0;
            let response = timeout(PATIENCE, response).await.unwrap().unwrap();
            assert_eq!(read(response.into_body()).await, SIZE);
            assert!(begun.elapsed() < 2 * *SLOWEST, "{:?}", begun.elapsed());
        }
        settled(&sent).await;
    };
    let good = scene.doors(&["http/1.1"]);
    scene.under_attack("unread calls", &good, attack).await;
}

/// A reader of a byte now and then is given up in the end, and told from everybody else: by the listener's
/// `unread_timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_drip_are_given_up() {
    const DRIPS: usize = 20;
    let (mut scene, mut tasks, _) = {
        let host = Host::new();
        let (tasks, app) = super::hoarding::app(host.app());
        let scene = Scene::impatient(host, Origin::nobody()).await;
        (scene, tasks, app)
    };
    let doors = scene.doors(&["h2"]);
    let attack = async {
        let mut readers = JoinSet::new();
        for (door, way) in &doors {
            for _ in 0..DRIPS {
                let sender = connected(way, 1, 1 << 20, &mut tasks).await;
                let door = *door;
                readers.spawn(async move {
                    let mut sender = sender.ready().await.unwrap();
                    let response = sender.send_request(asks("GET", "plain"), true).unwrap().0;
                    let mut body = response.await.unwrap().into_body();
                    let begun = Instant::now();
                    let mut read = 0;
                    while let Some(Ok(data)) = timeout(PATIENCE, body.data()).await.unwrap() {
                        assert!(begun.elapsed() < PATIENCE, "{door}: it may go on for ever");
                        read += data.len();
                        sleep(std::time::Duration::from_millis(200)).await;
                        let _: Result<(), h2::Error> =
                            body.flow_control().release_capacity(data.len());
                    }
                    assert!(read < 1000, "{door}: {read} bytes");
                });
            }
        }
        while let Some(ended) = readers.join_next().await {
            ended.unwrap();
        }
    };
    let good = scene.doors(&["http/1.1"]);
    scene.under_attack("drips", &good, attack).await;
    for (running, listeners) in [
        (&scene.ingress, ["public", "secure"]),
        (&scene.sidecar, ["outbound", "inbound"]),
    ] {
        for listener in listeners {
            let labels = [("listener", listener)];
            let given_up = running.metric("weft_readers_given_up_total", &labels).await;
            assert!(given_up >= DRIPS as f64, "{listener}: {given_up}");
        }
        running
            .logged(&[(
                "message",
                "gave up a reader that does not take what waits for it",
            )])
            .await;
    }
}
