//! `kill -9` of a proxy and a start right after it: what that costs, apart from what was in its hands.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Scene;
use crate::alone::{PATIENCE, Way, fine};
use crate::harness::told::at_most;

/// How long nobody is served.
fn gap() -> Duration {
    at_most(Duration::from_millis(200), Duration::from_secs(3))
}

/// The same where the machine had something else to do just then.
fn worst_gap() -> Duration {
    at_most(Duration::from_secs(1), Duration::from_secs(10))
}

/// How long one attempt is waited for: so short that one that hangs does not by itself make the worst gap.
fn attempt() -> Duration {
    at_most(Duration::from_millis(250), Duration::from_secs(1))
}

/// Asks until an answer comes; how long that took.
async fn back(way: &Way) -> Duration {
    let begun = Instant::now();
    let request = b"GET /good HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
    loop {
        let answer = timeout(attempt(), way.send(request)).await;
        if matches!(answer, Ok(Ok(bytes)) if bytes.starts_with(b"HTTP/1.1 200 ")) {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "not back after {:?}",
            begun.elapsed()
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// Kills and starts it anew so many times. The median is what a restart costs, and one of them may be what the machine had to
/// do besides.
async fn is_back_at_once(scene: &mut Scene, which: &str) {
    const TIMES: usize = 5;
    let public = Way::Plain(scene.host.public());
    back(&public).await;
    let mut gaps = Vec::new();
    for _ in 0..TIMES {
        match which {
            "ingress" => {
                scene.ingress.killed().await;
                scene.ingress = scene.edge.start(&["ingress", "--workers", "1"], &[]);
            }
            _ => {
                scene.sidecar.killed().await;
                let arguments = ["sidecar", "--service", "orders", "--workers", "1"];
                scene.sidecar = scene.host.start(&arguments, &[]);
            }
        }
        gaps.push(back(&public).await);
    }
    gaps.sort();
    assert!(gaps[TIMES / 2] < gap(), "{which}: {gaps:?}");
    assert!(gaps[TIMES - 1] < worst_gap(), "{which}: {gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_is_back_at_once() {
    let mut scene = Scene::set(|_| fine()).await;
    is_back_at_once(&mut scene, "ingress").await;
    scene.assert_alive().await;
}

/// Its callers' proxies have a dead connection to it, and may have counted its failures.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_is_back_at_once() {
    let mut scene = Scene::set(|_| fine()).await;
    is_back_at_once(&mut scene, "sidecar").await;
    scene.assert_alive().await;
}
