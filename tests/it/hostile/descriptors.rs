//! No descriptor left: that is said, costs no processor time, and is over when it is over.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};

use super::{Scene, good};
use crate::alone::{PATIENCE, Running, Way, fine, until};
use crate::harness::Wire;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_descriptors_is_said_sheds_and_is_got_over() {
    let mut scene = Scene::set(|_| fine()).await;
    starves(&scene.ingress, "public", scene.host.public()).await;
    starves(&scene.sidecar, "outbound", scene.host.outbound()).await;
    scene.assert_alive().await;
}

/// Takes all descriptors of a process away, by clients of this listener of its.
async fn starves(process: &Running, listener: &str, door: SocketAddr) {
    let way = Way::Plain(door);
    // Who is in, and what is open for it behind.
    let mut kept = Wire::connect(door).await;
    let (head, _) = kept.exchange(REQUEST).await;
    assert_eq!(head.status(), 200);
    let id = process.id();
    limit(id, open(id) + 10);
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(way.connect().await.unwrap());
    }
    process
        .logged(&[("message", "cannot accept connections")])
        .await;
    // Who came too late is told so, and need not wait for a timeout.
    let mut turned_away = 0;
    for client in &mut clients[20..] {
        let mut byte = [0];
        let read = timeout(PATIENCE, client.read(&mut byte)).await.unwrap();
        turned_away += usize::from(!matches!(read, Ok(1..)));
    }
    assert_eq!(turned_away, 20);
    let (start, before) = (Instant::now(), process.processor());
    sleep(Duration::from_secs(2)).await;
    let share = (process.processor() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(share < COST, "{listener}: {share} of a core");
    for _ in 0..20 {
        let (head, content) = kept.exchange(REQUEST).await;
        assert_eq!((head.status(), &*content.bytes), (200, &b"ok"[..]));
    }
    // Still in the middle of it: nobody new gets in.
    let mut late = way.connect().await.unwrap();
    let read = timeout(PATIENCE, late.read(&mut [0])).await.unwrap();
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    drop(clients);
    until("a client to be served again", async || {
        let request = b"GET /good HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n";
        let answer = way.send(request).await.ok()?;
        answer.starts_with(b"HTTP/1.1 200 ").then_some(())
    })
    .await;
    process
        .logged(&[("message", "accepting connections again")])
        .await;
    for _ in 0..10 {
        good(&way).await;
    }
    let refused = process
        .metric("weft_connections_refused_total", &[("listener", listener)])
        .await;
    assert!(refused >= 20.0, "{refused}");
}
