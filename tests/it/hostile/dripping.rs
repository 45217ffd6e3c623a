//! Who sends a byte now and then, to hold a place for ever: nobody can.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Scene;
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, block, frame, opening,
    read_frame, request,
};
use crate::alone::{PATIENCE, Way, fine};
use crate::harness::told::at_most;

/// Drips of each kind at each door.
const DRIPS: usize = 10;

/// A head of HTTP/2 that has begun and does not end.
fn open_head(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM, stream, &block(&request()))
}

/// An upload over HTTP/2.
fn upload(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(&request()))
}

/// Ways to hold a connection of HTTP/2 by a head that does not end, beside what is open there: how it begins, what goes on
/// dripping, and whether that alone is tolerated until the time is over.
fn endless_heads(beside: &[u8]) -> [(Vec<u8>, Vec<u8>, bool); 3] {
    let whole = [opening(), beside.to_vec(), open_head(3)].concat();
    let mut begun = [opening(), beside.to_vec(), open_head(3)].concat();
    // The same frame, which says that it is longer: what is missing comes byte by byte.
    let length = begun.len() - open_head(3).len() + 1;
    begun[length] = 0x3f;
    let more = frame(CONTINUATION, 0, 3, &block(&[(b"x", b"y")]));
    [
        (whole.clone(), Vec::new(), true),
        (begun, b"y".to_vec(), true),
        // So many frames of one head are too many before that.
        (whole, more, false),
    ]
}

/// Sends `start`, then `drop` every half second until the other side has enough. How long that took, and what it said.
async fn drip(way: Way, start: Vec<u8>, drop: &[u8]) -> (Duration, Vec<u8>) {
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
    (begun.elapsed(), said)
}

/// The reason that a server of HTTP/2 has given for the end of the connection.
fn goodbye(mut said: &[u8]) -> Option<u32> {
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = said {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, next) = rest.split_at_checked(length)?;
        if *kind == GOAWAY {
            let reason = payload.get(4..8)?;
            return reason.try_into().ok().map(u32::from_be_bytes);
        }
        said = next;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_that_drip_are_given_up() {
    let mut scene = Scene::set(|_| fine()).await;
    let doors = scene.doors(&["http/1.1"]);
    let attack = async {
        let mut drips = JoinSet::new();
        for (door, way) in &doors {
            for _ in 0..DRIPS {
                let (door, way) = (*door, way.clone());
                drips.spawn(async move {
                    let head = b"GET / HTTP/1.1\r\nhost: plain\r\nx: ".to_vec();
                    let (took, said) = drip(way, head, b"y").await;
                    let said = String::from_utf8_lossy(&said);
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
                    let said = String::from_utf8_lossy(&said);
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
    scene.under_attack("drips", &doors, attack).await;
    let posts = scene
        .origin
        .requests()
        .into_iter()
        .filter(|seen| seen.head.starts_with("POST"));
    assert_eq!(posts.count(), 0, "none became a whole request");
}

/// Nothing else can come on a connection of HTTP/2 between the frames of a head, so it ends with the head's time, also where
/// streams are open that are well. What drips on one stream of it is that stream's affair.
#[tokio::test(flavor = "multi_thread")]
async fn heads_that_drip_over_http2_end_the_connection_and_bodies_the_stream() {
    let mut scene = Scene::set(|_| fine()).await;
    let doors = scene.doors(&["h2"]);
    let good = scene.doors(&["http/1.1"]);
    let attack = async {
        let mut drips = JoinSet::new();
        for (door, way) in &doors {
            // Beside nothing, and beside an upload that waits for more.
            for beside in [Vec::new(), upload(1)] {
                for (start, drop, is_tolerated) in endless_heads(&beside) {
                    let (door, way) = (*door, way.clone());
                    drips.spawn(async move {
                        let (took, said) = drip(way, start, &drop).await;
                        let calm = u32::from(h2::Reason::ENHANCE_YOUR_CALM);
                        assert_eq!(goodbye(&said), Some(calm), "{door}: {said:?}");
                        // 10 seconds, on a machine that has other things to do.
                        assert!(took < Duration::from_secs(20), "{door}: {took:?}");
                        assert!(!is_tolerated || took.as_secs() >= 9, "{door}: {took:?}");
                    });
                }
            }
        }
        // Members of the mesh may upload as slowly as they like; strangers may not.
        for (door, way) in doors
            .iter()
            .filter(|(door, _)| ["public", "secure"].contains(door))
        {
            let (door, way) = (*door, way.clone());
            drips.spawn(async move {
                let start = [opening(), upload(1)].concat();
                let drop = frame(DATA, 0, 1, b"y");
                let took = until_answered(&way, &start, &drop).await;
                assert!(took < Duration::from_secs(40), "{door}: {took:?}");
            });
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

/// Sends `start`, then `drop` every half second until a stream is answered with a refusal. How long that took.
async fn until_answered(way: &Way, start: &[u8], drop: &[u8]) -> Duration {
    let begun = Instant::now();
    let (mut read, mut write) = tokio::io::split(way.connect().await.unwrap());
    write.write_all(start).await.unwrap();
    let mut dripping = Box::pin(async {
        loop {
            sleep(Duration::from_millis(500)).await;
            if write.write_all(drop).await.is_err() || write.flush().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    });
    let mut answered = Box::pin(async {
        loop {
            let (kind, payload) = read_frame(&mut read).await.expect("an answer");
            if kind == HEADERS {
                // A status that is no success: it is not the one of the static table.
                assert_ne!(
                    payload.iter().find(|byte| **byte & 0xe0 != 0x20),
                    Some(&0x88)
                );
                return;
            }
        }
    });
    let answer = async {
        tokio::select! {
            () = &mut answered => {}
            never = &mut dripping => never,
        }
    };
    timeout(PATIENCE, answer)
        .await
        .expect("it may go on for ever");
    begun.elapsed()
}
