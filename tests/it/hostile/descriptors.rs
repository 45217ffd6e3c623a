//! No descriptor left: that is said, costs no processor time, and is over when it is over.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::process::Command;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

use super::{Scene, good};
use crate::alone::{PATIENCE, Way, fine, until};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_descriptors_is_said_sheds_and_is_got_over() {
    let mut scene = Scene::set(|_| fine()).await;
    let public = Way::Plain(scene.host.public());
    good(&public).await;
    let id = scene.ingress.id();
    limit(id, open(id) + 10);
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(public.connect().await.unwrap());
    }
    scene
        .ingress
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
    let before = scene.ingress.processor();
    sleep(Duration::from_secs(2)).await;
    let cost = scene.ingress.processor() - before;
    assert!(cost < Duration::from_millis(400), "{cost:?} of two seconds");
    // Those who are in are served, and it is not the endpoint's fault when it cannot be reached.
    drop(clients);
    until("a client to be served again", async || {
        let request = b"GET /good HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n";
        let answer = public.send(request).await.ok()?;
        answer.starts_with(b"HTTP/1.1 200 ").then_some(())
    })
    .await;
    scene
        .ingress
        .logged(&[("message", "accepting connections again")])
        .await;
    for _ in 0..10 {
        good(&public).await;
    }
    let refused = scene
        .ingress
        .metric("weft_connections_refused_total", &[("listener", "public")])
        .await;
    assert!(refused >= 20.0, "{refused}");
    scene.assert_alive().await;
}
