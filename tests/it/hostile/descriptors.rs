//! No descriptor left: that is said, costs no processor time, and is over when it is over.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::{Scene, good};
use crate::alone::{Host, Origin, PATIENCE, Running, Stream, Then, Way, fine, until};

/// How many descriptors a process has.
fn open(id: u32) -> usize {
    std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count()
}

/// What prlimit of util-linux does to a process that runs.
fn limit(id: u32, descriptors: usize) {
    let limit = format!("--nofile={descriptors}:");
    let done = Command::new("prlimit")
        .args(["--pid", &id.to_string(), &limit])
        .status();
    assert!(done.unwrap().success(), "prlimit --pid {id} {limit}");
}

/// What a process may use of a core while it has none: a listener looks again twenty times a second.
const COST: f64 = 0.05;
const REQUEST: &str = "GET /good HTTP/1.1\r\nhost: plain\r\n\r\n";

/// Those who come while there is none may fail: they are turned away at once. Who is in is served as ever, and so is everybody
/// as soon as there are descriptors again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_descriptors_is_said_sheds_and_is_got_over() {
    let mut scene = Scene::set(|_| fine()).await;
    let [(_, public), _, (_, outbound), (_, mesh)] = scene.doors(&["http/1.1"]);
    starves(&scene.ingress, "public", &public).await;
    starves(&scene.sidecar, "outbound", &outbound).await;
    starves(&scene.sidecar, "inbound", &mesh).await;
    scene.assert_alive().await;
}

/// The same where what is carried is no HTTP to us, and each connection has another one behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_descriptors_at_a_port_of_bytes_is_said_sheds_and_is_got_over() {
    let host = Host::new();
    let listen = host.at(21_533);
    let origin = Origin::start(host.app(), |seen| match seen.fields("connection")[..] {
        ["close"] => Then::Close(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()),
        _ => fine(),
    })
    .await;
    let mut scene = Scene::of_bytes(host, origin, listen).await;
    starves(&scene.sidecar, "outbound-bytes", &Way::Plain(listen)).await;
    scene.assert_alive().await;
}

/// A client, handshake included where there is one. `None`: it was turned away in the middle of it.
async fn connected(way: &Way) -> Option<Stream> {
    let connecting = timeout(PATIENCE, way.connect()).await;
    connecting.expect("an end of the handshake").ok()
}

/// One exchange on a connection that is kept.
async fn is_served(kept: &mut Stream) {
    kept.write_all(REQUEST.as_bytes()).await.unwrap();
    kept.flush().await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let read = timeout(PATIENCE, kept.read_buf(&mut answer)).await;
        assert!(matches!(read, Ok(Ok(1..))), "{read:?} after {answer:?}");
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
}

/// Whether a client that says nothing was turned away, and had not to wait for a timeout to learn it.
async fn is_turned_away(client: &mut Option<Stream>) -> bool {
    let Some(client) = client else {
        return true;
    };
    let read = timeout(PATIENCE, client.read(&mut [0])).await.unwrap();
    !matches!(read, Ok(1..))
}

/// Takes all descriptors of a process away, by clients of this listener of its.
async fn starves(process: &Running, listener: &str, way: &Way) {
    // Who is in, and what is open for it behind.
    let mut kept = way.connect().await.unwrap();
    is_served(&mut kept).await;
    let id = process.id();
    limit(id, open(id) + 10);
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(connected(way).await);
    }
    process
        .logged(&[
            ("message", "cannot accept connections"),
            ("listener", listener),
        ])
        .await;
    // Who came too late is told so, and need not wait for a timeout.
    let mut turned_away = 0;
    for client in &mut clients[20..] {
        turned_away += usize::from(is_turned_away(client).await);
    }
    assert_eq!(turned_away, 20);
    let (start, before) = (Instant::now(), process.processor());
    sleep(Duration::from_secs(2)).await;
    let share = process.processor().since(&before).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(share < COST, "{listener}: {share} of a core");
    for _ in 0..20 {
        is_served(&mut kept).await;
    }
    // Still in the middle of it: nobody new gets in.
    let mut late = connected(way).await;
    assert!(is_turned_away(&mut late).await, "{listener}");
    drop(clients);
    until("a client to be served again", async || {
        let request = b"GET /good HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n";
        let answer = way.send(request).await.ok()?;
        answer.starts_with(b"HTTP/1.1 200 ").then_some(())
    })
    .await;
    process
        .logged(&[
            ("message", "accepting connections again"),
            ("listener", listener),
        ])
        .await;
    for _ in 0..10 {
        good(way).await;
    }
    let refused = process
        .metric("weft_connections_refused_total", &[("listener", listener)])
        .await;
    assert!(refused >= 20.0, "{refused}");
}
