//! Places of a connection's streams: as many exchanges are in hand at the app as it was granted, and no more, also when
//! some of them were taken back. At every door.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Scene;
use super::frames::*;
use crate::alone::{Host, Origin, PATIENCE, until};
use crate::harness::{listening, settled};

/// How many of them are taken back, and asked again: fewer than would be cut for it.
const BACK: usize = 100;

/// What an app has in hand, and the most that it ever had.
#[derive(Default)]
struct Work {
    begun: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

/// An app that works on each request until it is told to answer, and does not look whether anybody waits.
async fn app(address: SocketAddr, answer: watch::Receiver<usize>) -> (JoinSet<()>, Arc<Work>) {
    let listener = listening(address);
    let (work, mut tasks) = (Arc::<Work>::default(), JoinSet::new());
    let noted = Arc::clone(&work);
    tasks.spawn(async move {
        let mut conversations = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (noted, answer) = (Arc::clone(&noted), answer.clone());
            conversations.spawn(async move {
                let _: Option<()> = converse(stream, &noted, answer).await;
            });
        }
    });
    (tasks, work)
}

async fn converse(
    mut stream: TcpStream,
    work: &Work,
    mut answer: watch::Receiver<usize>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let turn = *answer.borrow();
    let now = work.now.fetch_add(1, Ordering::SeqCst) + 1;
    work.most.fetch_max(now, Ordering::SeqCst);
    work.begun.fetch_add(1, Ordering::SeqCst);
    answer.wait_for(|told| *told > turn).await.ok()?;
    // Before the other side can know.
    work.now.fetch_sub(1, Ordering::SeqCst);
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    stream.write_all(answer).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_door_has_more_in_hand_than_it_granted_when_some_was_taken_back() {
    let host = Host::new();
    let (answer, told) = watch::channel(0);
    let (_tasks, work) = app(host.app(), told).await;
    let mut scene = Scene::of(host, Origin::nobody()).await;
    // What the edge grants a connection, and what the mesh does.
    let places = [100, 100, 1000, 1000];
    for ((door, way), places) in scene.doors(&["h2"]).into_iter().zip(places) {
        work.begun.store(0, Ordering::SeqCst);
        work.most.store(0, Ordering::SeqCst);
        let heads = |from: usize, count: usize| {
            (from..from + count).map(|number| {
                let id = 2 * u32::try_from(number).unwrap() + 1;
                frame(HEADERS, WHOLE_HEAD, id, &block(&request()))
            })
        };
        let mut stream = way.connect().await.unwrap();
        let first: Vec<_> = heads(0, places).collect();
        stream.write_all(&opened(&first)).await.unwrap();
        stream.flush().await.unwrap();
        until(&format!("{door}: all to be worked on"), async || {
            (work.begun.load(Ordering::SeqCst) == places).then_some(())
        })
        .await;
        let back = (0..BACK).map(|number| {
            let id = 2 * u32::try_from(number).unwrap() + 1;
            frame(RST_STREAM, 0, id, &[0, 0, 0, 8])
        });
        let again: Vec<_> = back
            .chain(heads(places, BACK))
            .chain([frame(PING, 0, 0, b"all read")])
            .collect();
        stream.write_all(&again.concat()).await.unwrap();
        stream.flush().await.unwrap();
        // Everything in front of it was read when this is answered.
        loop {
            let read = timeout(PATIENCE, read_frame(&mut stream)).await.unwrap();
            let (kind, payload) = read.unwrap();
            assert_ne!(kind, GOAWAY, "{door}: {payload:?}");
            if kind == PING && payload == b"all read" {
                break;
            }
        }
        settled(&work.begun).await;
        let most = work.most.load(Ordering::SeqCst);
        assert_eq!(most, places, "{door}: in hand at the same time");
        // Once the app has ended them, those that waited for a place have it.
        answer.send_modify(|turn| *turn += 1);
        until(&format!("{door}: the others to be worked on"), async || {
            (work.begun.load(Ordering::SeqCst) == places + BACK).then_some(())
        })
        .await;
        answer.send_modify(|turn| *turn += 1);
        let mut answers = 0;
        while answers < places {
            let read = timeout(PATIENCE, read_frame(&mut stream)).await.unwrap();
            let (kind, payload) = read.unwrap();
            assert_ne!(kind, GOAWAY, "{door}: {payload:?}");
            answers += usize::from(kind == HEADERS);
        }
        let most = work.most.load(Ordering::SeqCst);
        assert!(most <= places, "{door}: {most} at the same time");
    }
    scene.assert_alive().await;
}
