//! WebSockets: handshakes that are none, sockets that nobody reads, and ends that are told at once. What only HTTP/2 has
//! (RFC 8441) is in `extended`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod extended;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{QUESTIONS, Scene, are_short, good};
use crate::alone::{Host, Origin, PATIENCE, Stream, Way, until};
use crate::harness::{Wire, listening};
use crate::websocket::{H2, agreed};

/// A ping with four bytes, masked by nothing.
const PING: &[u8] = b"\x89\x84\0\0\0\0ping";
/// What answers it.
const PONG: &[u8] = b"\x8a\x04ping";
/// The end of a conversation, 1000.
const CLOSE: &[u8] = b"\x88\x02\x03\xe8";
/// What `/flood` sends.
const FLOOD: usize = 2 << 20;

/// What an app knows.
#[derive(Default)]
struct Ledger {
    /// Connections open now.
    open: AtomicUsize,
    /// Whether anybody asked to switch.
    asked: AtomicBool,
}

/// An app that does what the target says with those who want to switch, and answers everybody else.
async fn app(address: SocketAddr) -> (JoinSet<()>, Arc<Ledger>) {
    let listener = listening(address);
    let (ledger, mut tasks) = (Arc::new(Ledger::default()), JoinSet::new());
    let noted = Arc::clone(&ledger);
    tasks.spawn(async move {
        let mut conversations = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            conversations.spawn(async move {
                noted.open.fetch_add(1, Ordering::Relaxed);
                let _: Option<()> = converse(stream, &noted).await;
                noted.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (tasks, ledger)
}

async fn converse(stream: TcpStream, ledger: &Ledger) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    // So that what is sent was taken, and does not lie in this host's own buffers.
    SockRef::from(&stream)
        .set_send_buffer_size(16 * 1024)
        .ok()?;
    let mut wire = Wire::new(stream);
    loop {
        let head = wire.head().await?;
        if head.field("upgrade").is_none() {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            wire.try_write(answer).await.ok()?;
            continue;
        }
        ledger.asked.store(true, Ordering::Relaxed);
        if head.field("sec-websocket-version") != Some("13") {
            let answer = "HTTP/1.1 426 Upgrade Required\r\nsec-websocket-version: 13\r\ncontent-length: 0\r\n\r\n";
            wire.try_write(answer).await.ok()?;
            continue;
        }
        let keys: Vec<&str> = head.fields("sec-websocket-key").collect();
        if !matches!(keys[..], [key] if key.len() == 24) {
            wire.try_write("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                .await
                .ok()?;
            continue;
        }
        match head.word(1) {
            "/hang" => sleep(PATIENCE).await,
            "/flood" => {
                wire.try_write(agreed(&head)).await.ok()?;
                wire.try_write(vec![b'x'; FLOOD]).await.ok()?;
                wire.more().await.ok()?;
            }
            "/deaf" => {
                wire.try_write(agreed(&head)).await.ok()?;
                sleep(PATIENCE).await;
            }
            "/bye" => {
                let last = [agreed(&head).as_bytes(), CLOSE].concat();
                wire.try_write(last).await.ok()?;
            }
            // Echo, with what it greets with in the segment of its head.
            _ => {
                let first = [agreed(&head).as_bytes(), b"\x81\x05hello"].concat();
                wire.try_write(first).await.ok()?;
                loop {
                    let said = std::mem::take(&mut wire.read);
                    let answer = match said.starts_with(PING) {
                        true => PONG.to_vec(),
                        false => said,
                    };
                    wire.try_write(answer).await.ok()?;
                    if !wire.more().await.ok()? {
                        return None;
                    }
                }
            }
        }
        return None;
    }
}

async fn stage() -> (Scene, JoinSet<()>, Arc<Ledger>) {
    let host = Host::new();
    let (tasks, ledger) = app(host.app()).await;
    let scene = Scene::of(host, Origin::nobody()).await;
    (scene, tasks, ledger)
}

/// A handshake for this target, and what comes right behind it.
fn handshake(target: &str, behind: &[u8]) -> Vec<u8> {
    let head = format!(
        "GET {target} HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    [head.as_bytes(), behind].concat()
}

/// Reads up to and with these bytes; what came before them.
async fn read_to(stream: &mut Stream, end: &[u8]) -> Vec<u8> {
    let work = async {
        let mut read = Vec::new();
        while !read.ends_with(end) {
            let byte = stream.read_u8().await;
            read.push(byte.unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&read))
            }));
        }
        read
    };
    timeout(PATIENCE, work).await.expect("what is waited for")
}

/// The versions that a door speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// Every door in both versions.
fn doors(scene: &Scene) -> Vec<(String, Way, Version)> {
    let versions = [(Version::Http1, "http/1.1"), (Version::Http2, "h2")];
    let all = versions.into_iter().flat_map(|(version, alpn)| {
        let doors = scene.doors(&[alpn]).into_iter();
        doors.map(move |(door, way)| (format!("{door}, {alpn}"), way, version))
    });
    all.collect()
}

/// Switches, with the handshake and what is behind it in one segment.
async fn switched(way: &Way, version: Version, target: &str, behind: &[u8]) -> Stream {
    let mut stream = way.connect().await.unwrap();
    if version == Version::Http2 {
        return tunnel(&mut H2::over(stream).await, target, behind).await;
    }
    stream.write_all(&handshake(target, behind)).await.unwrap();
    stream.flush().await.unwrap();
    let head = read_to(&mut stream, b"\r\n\r\n").await;
    assert!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    stream
}

/// A WebSocket on a connection of HTTP/2 that is there.
async fn tunnel(client: &mut H2, target: &str, behind: &[u8]) -> Stream {
    let uri = format!("http://plain{target}");
    let (status, _, tunnel) = client.open_at(&uri, "websocket", behind).await;
    assert_eq!(status, 200, "{target}");
    Box::new(tunnel.stream)
}

/// Handshakes that switch nothing, whatever the app says: a request, and the status of its answer.
#[rustfmt::skip] // a row a line
const BAD: &[(&str, u16)] = &[
    ("POST / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\ncontent-length: 0\r\n\r\n", 400),
    ("HEAD / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 400),
    ("GET / HTTP/1.0\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\ncontent-length: 4\r\n\r\nbody", 400),
    ("GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    // Half of what it takes, or something else: an ordinary request.
    ("GET / HTTP/1.1\r\nhost: plain\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 200),
    ("GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 200),
    ("GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n", 200),
    ("GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: TLS/1.3\r\n\r\n", 200),
    ("GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websockets\r\n\r\n", 200),
    ("GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket/13\r\n\r\n", 200),
];

#[tokio::test]
async fn handshakes_that_are_none_switch_nothing_at_any_door() {
    let (mut scene, _app, ledger) = stage().await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        for (request, status) in BAD {
            let mut stream = way.connect().await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let head = read_to(&mut stream, b"\r\n\r\n").await;
            let wanted = format!("HTTP/1.1 {status} ");
            let head = String::from_utf8_lossy(&head).into_owned();
            assert!(head.starts_with(&wanted), "{door}: {request}: {head}");
        }
    }
    assert!(
        !ledger.asked.load(Ordering::Relaxed),
        "the app was asked to switch"
    );
    // What an app itself would not agree to is its own to refuse.
    for (door, way) in scene.doors(&["http/1.1"]) {
        for version in ["", "sec-websocket-version: 12\r\n"] {
            let request = format!(
                "GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\n{version}sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            let mut stream = way.connect().await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let head = read_to(&mut stream, b"\r\n\r\n").await;
            let head = String::from_utf8_lossy(&head).into_owned();
            let right = head.starts_with("HTTP/1.1 426 ");
            assert!(
                right && head.contains("sec-websocket-version: 13\r\n"),
                "{door}: {head}"
            );
        }
        for key in [
            "sec-websocket-key: short\r\n",
            "",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ] {
            let request = format!(
                "GET / HTTP/1.1\r\nhost: plain\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n{key}\r\n"
            );
            let mut stream = way.connect().await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let head = read_to(&mut stream, b"\r\n\r\n").await;
            assert!(head.starts_with(b"HTTP/1.1 400 "), "{door}: {key}");
        }
        good(&way).await;
    }
    scene.assert_alive().await;
}

#[tokio::test]
async fn frames_in_the_segment_of_a_handshake_are_kept_both_ways() {
    let (mut scene, _app, _) = stage().await;
    for (door, way, version) in doors(&scene) {
        for behind in [b"\x81\x82\0\0\0\0hi".to_vec(), vec![b'z'; 50_000]] {
            let mut stream = switched(&way, version, "/echo", &behind).await;
            let back = [b"\x81\x05hello", &behind[..]].concat();
            let mut read = vec![0; back.len()];
            let reading = stream.read_exact(&mut read);
            timeout(PATIENCE, reading).await.unwrap().unwrap();
            assert!(read == back, "{door}");
        }
    }
    scene.assert_alive().await;
}

#[tokio::test]
async fn a_socket_ends_with_the_apps_and_not_a_second_later() {
    /// At each door.
    const EACH: usize = 30;
    let (mut scene, _app, _) = stage().await;
    let mut times = Vec::new();
    for (door, way, version) in doors(&scene) {
        // Once before, so that what is measured is no handshake of TLS between proxies.
        for _ in 0..EACH {
            let begun = Instant::now();
            let mut stream = switched(&way, version, "/bye", b"").await;
            let mut rest = Vec::new();
            let reading = stream.read_to_end(&mut rest);
            let _: std::io::Result<usize> = timeout(PATIENCE, reading).await.unwrap();
            assert_eq!(rest, CLOSE, "{door}: its last words");
            times.push(begun.elapsed());
        }
    }
    are_short("an end", times);
    scene.assert_alive().await;
}

/// Sends pings while `attack` runs, each on the same socket; how long the pongs took.
async fn pinged(way: &Way, version: Version, attack: impl Future<Output = ()>) -> Vec<Duration> {
    let mut stream = switched(way, version, "/echo", b"").await;
    read_to(&mut stream, b"hello").await;
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let pinging = tokio::spawn(async move {
        let mut times = Vec::new();
        while !told.load(Ordering::Relaxed) || times.len() < *QUESTIONS {
            let begun = Instant::now();
            stream.write_all(PING).await.unwrap();
            stream.flush().await.unwrap();
            read_to(&mut stream, PONG).await;
            times.push(begun.elapsed());
            sleep(Duration::from_millis(10)).await;
        }
        times
    });
    attack.await;
    over.store(true, Ordering::Relaxed);
    pinging.await.unwrap()
}

/// Runs an attack that no pong may wait for.
async fn pongs_are_short_under(
    scene: &mut Scene,
    door: &str,
    way: &Way,
    version: Version,
    attack: impl Future<Output = ()>,
) {
    let good = scene.good_ways(&[door]);
    let mut times = Vec::new();
    let pinged = Box::pin(async {
        times = pinged(way, version, attack).await;
    });
    scene.under_attack(door, &good, pinged).await;
    are_short(&format!("{door}: a pong"), times);
}

/// Sockets that nobody reads at one end or the other, and handshakes that nobody answers.
#[tokio::test(flavor = "multi_thread")]
async fn hoarded_sockets_hold_little_and_stop_no_ping() {
    const SOCKETS: usize = 150;
    let (mut scene, _app, ledger) = stage().await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        let attack = async {
            let mut held = Vec::new();
            let mut pouring = JoinSet::new();
            for _ in 0..SOCKETS {
                held.push(switched(&way, Version::Http1, "/flood", b"").await);
                let mut deaf = switched(&way, Version::Http1, "/deaf", b"").await;
                pouring.spawn(async move {
                    let _ =
                        timeout(Duration::from_secs(2), deaf.write_all(&vec![b'x'; 1 << 20])).await;
                    deaf
                });
                let mut half = way.connect().await.unwrap();
                half.write_all(&handshake("/hang", b"")).await.unwrap();
                half.flush().await.unwrap();
                held.push(half);
            }
            while let Some(deaf) = pouring.join_next().await {
                held.push(deaf.unwrap());
            }
        };
        pongs_are_short_under(&mut scene, door, &way, Version::Http1, attack).await;
    }
    until("the app to be left alone", async || {
        // Those that the app itself keeps for a minute are its own affair.
        (ledger.open.load(Ordering::Relaxed) <= 2 * 4 * SOCKETS + 50).then_some(())
    })
    .await;
}
