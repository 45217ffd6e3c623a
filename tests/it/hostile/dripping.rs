//! Who sends a byte now and then, to hold a place for ever: nobody can.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Scene;
use crate::alone::{PATIENCE, Way, fine};
use crate::harness::told::at_most;

/// Drips of each kind at each door.
const DRIPS: usize = 10;

/// Sends `start`, then `drop` every half second until the other side has enough. How long that took, and what it said.
async fn drip(way: Way, start: Vec<u8>, drop: &'static [u8]) -> (Duration, String) {
    let mut stream = way.connect().await.unwrap();
    let begun = Instant::now();
    stream.write_all(&start).await.unwrap();
    let mut said = Vec::new();
    loop {
        assert!(begun.elapsed() < PATIENCE, "it may go on for ever");
        match timeout(Duration::from_millis(500), stream.read_buf(&mut said)).await {
            Ok(Ok(1..)) => continue,
            Ok(_) => break,
            Err(_) => {}
        }
        if stream.write_all(drop).await.is_err() || stream.flush().await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    }
    (begun.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_that_drip_are_given_up() {
    let mut scene = Scene::set(|_| fine()).await;
    let doors = scene.doors(&["http/1.1"]);
    let good = doors[0].1.clone();
    let attack = async {
        let mut drips = JoinSet::new();
        for (door, way) in &doors {
            for _ in 0..DRIPS {
                let (door, way) = (*door, way.clone());
                drips.spawn(async move {
                    let head = b"GET / HTTP/1.1\r\nhost: plain\r\nx: ".to_vec();
                    let (took, said) = drip(way, head, b"y").await;
                    assert!(said.starts_with("HTTP/1.1 408 "), "{door}: {said}");
                    // Ten seconds, and what the next drop takes to find out.
                    let most = at_most(Duration::from_secs(12), Duration::from_secs(20));
                    assert!(took < most, "{door}: {took:?}");
                });
            }
        }
        // Members of the mesh may upload as slowly as they like; strangers may not.
        for (door, way) in doors
            .iter()
            .filter(|(door, _)| ["public", "secure"].contains(door))
        {
            for start in [
                &b"POST / HTTP/1.1\r\nhost: plain\r\ncontent-length: 100000\r\n\r\n"[..],
                b"POST / HTTP/1.1\r\nhost: plain\r\ntransfer-encoding: chunked\r\n\r\n186a0\r\n",
            ] {
                let (door, way) = (*door, way.clone());
                drips.spawn(async move {
                    let (took, said) = drip(way, start.to_vec(), b"y").await;
                    assert!(said.starts_with("HTTP/1.1 408 "), "{door}: {said}");
                    assert!(said.contains("body_timeout"), "{door}: {said}");
                    let most = at_most(Duration::from_secs(32), Duration::from_secs(40));
                    assert!(took < most, "{door}: {took:?}");
                });
            }
        }
        while let Some(ended) = drips.join_next().await {
            ended.unwrap();
        }
    };
    scene.under_attack("drips", &good, attack).await;
    let posts = scene
        .origin
        .requests()
        .into_iter()
        .filter(|seen| seen.head.starts_with("POST"));
    assert_eq!(posts.count(), 0, "none became a whole request");
}
