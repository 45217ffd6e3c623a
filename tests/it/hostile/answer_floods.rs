//! Answers of HTTP/1.1 without end: an app has been taken over, and floods whoever asks it. What cannot become an answer is
//! refused for its reason, what cannot become a whole one is cut, and a good client of the same proxy feels nothing.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Scene, good};
use crate::alone::{Host, Origin, PATIENCE, Reply, Way, until};
use crate::harness::listening;

/// Who asks for the same flood at the same time.
const CALLERS: usize = 2;

/// What becomes of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Nothing of it was passed on: a 502 that says that the answer is none.
    Refused,
    /// Some of it was, and then the client sees that it is not whole.
    Cut,
    /// It is an answer, however long. It goes on for as long as its client takes it.
    WithItsClient,
}

/// How it begins, and what follows over and over.
struct Flood(&'static str, &'static [u8], &'static [u8], Ends);

#[rustfmt::skip] // a row a line
const FLOODS: &[Flood] = &[
    Flood("interim answers", b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", Ends::Refused),
    Flood("permissions to go on", b"", b"HTTP/1.1 100 Continue\r\n\r\n", Ends::Refused),
    Flood("empty lines", b"", b"\r\n", Ends::Refused),
    Flood("a status line", b"HTTP/1.1 200 ", b"OK", Ends::Refused),
    Flood("a head of small fields", b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", Ends::Refused),
    Flood("a name", b"HTTP/1.1 200 OK\r\n", b"x", Ends::Refused),
    Flood("a value", b"HTTP/1.1 200 OK\r\nx: ", b"y", Ends::Refused),
    Flood("spaces before a value", b"HTTP/1.1 200 OK\r\nx:", b" ", Ends::Refused),
    Flood("a chunk's size", CHUNKED, b"0", Ends::Cut),
    Flood("an extension of a chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n2;x=", b"y", Ends::Cut),
    Flood("small extensions of all chunks", CHUNKED, b"1;x=yyyyyyyy\r\nx\r\n", Ends::Cut),
    Flood("a trailer section of small fields", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", b"a: b\r\n", Ends::Cut),
    Flood("a trailer", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: ", b"y", Ends::Cut),
    Flood("chunks of one byte", CHUNKED, b"1\r\nx\r\n", Ends::WithItsClient),
    Flood("a body until the connection ends", b"HTTP/1.1 200 OK\r\n\r\n", b"x", Ends::WithItsClient),
];
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";

/// An app that answers `/good` well and `/flood/n` with that flood. Counts those that were ended by the other side.
async fn app(address: SocketAddr) -> (JoinSet<()>, Arc<AtomicUsize>) {
    let listener = listening(address);
    let (cut, mut tasks) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    let cuts = Arc::clone(&cut);
    tasks.spawn(async move {
        let mut conversations = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let cuts = Arc::clone(&cuts);
            conversations.spawn(async move {
                let _: Option<()> = converse(stream, &cuts).await;
            });
        }
    });
    (tasks, cut)
}

async fn converse(mut stream: TcpStream, cuts: &AtomicUsize) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let target = text.split(' ').nth(1)?;
        let Some(number) = target.strip_prefix("/flood/") else {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.ok()?;
            continue;
        };
        let Flood(_, first, again, _) = &FLOODS[number.parse::<usize>().ok()?];
        stream.write_all(first).await.ok()?;
        let again = again.repeat(16_384 / again.len());
        // Read beside it: whoever closes with bytes unread sees its end as soon as it can.
        let (mut read, mut write) = stream.split();
        let mut nowhere = tokio::io::sink();
        tokio::select! {
            () = async { while write.write_all(&again).await.is_ok() {} } => {}
            _ = tokio::io::copy(&mut read, &mut nowhere) => {}
        }
        cuts.fetch_add(1, Ordering::Relaxed);
        return None;
    }
}

/// Asks for a flood, reads a moment later than it could, and at most so much; what came, and whether the answer's end.
async fn asked(way: &Way, number: usize, most: usize) -> (Vec<u8>, bool) {
    let mut client = way.connect().await.unwrap();
    let request =
        format!("GET /flood/{number} HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    // What comes until then is held or is not.
    sleep(Duration::from_millis(200)).await;
    let mut all = Vec::new();
    let mut piece = vec![0; 1 << 16];
    while all.len() < most {
        match timeout(PATIENCE, client.read(&mut piece)).await.unwrap() {
            Ok(length @ 1..) => all.extend_from_slice(&piece[..length]),
            _ => return (all, true),
        }
    }
    (all, false)
}

/// What one caller sees of a flood.
async fn is_ended_well(door: &str, way: Way, number: usize) {
    let Flood(what, .., ends) = &FLOODS[number];
    let most = match ends {
        // More than anything may be passed on of what is cut: some of its data were there before it went wrong.
        Ends::Refused | Ends::Cut => 1 << 20,
        // Enough to see that it goes on.
        Ends::WithItsClient => 1 << 16,
    };
    let (bytes, ended) = asked(&way, number, most).await;
    let text = String::from_utf8_lossy(&bytes);
    let beginning: String = text.chars().take(300).collect();
    match ends {
        Ends::Refused => {
            assert!(ended, "{door}: {what}: {beginning}");
            let detail = Reply::parse(&bytes).refused(502, "upstream_malformed");
            assert!(!detail.is_empty(), "{door}: {what}");
        }
        Ends::Cut => {
            assert!(ended, "{door}: {what}: {beginning}");
            // Where nothing had been sent yet, it is still refused.
            let is_cut = text.starts_with("HTTP/1.1 200 ") && !text.ends_with("\r\n0\r\n\r\n");
            assert!(
                is_cut || text.starts_with("HTTP/1.1 502 "),
                "{door}: {what}: {beginning}"
            );
        }
        Ends::WithItsClient => {
            assert!(
                !ended && text.starts_with("HTTP/1.1 200 "),
                "{door}: {what}: {beginning}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_http1_answers_are_cut_and_hurt_nobody() {
    let host = Host::new();
    let (_tasks, cut) = app(host.app()).await;
    let mut scene = Scene::of(host, Origin::nobody()).await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        let attack = async {
            for (number, Flood(what, ..)) in FLOODS.iter().enumerate() {
                let before = cut.load(Ordering::Relaxed);
                let mut callers = JoinSet::new();
                for _ in 0..CALLERS {
                    let way = way.clone();
                    callers.spawn(async move { is_ended_well(door, way, number).await });
                }
                while let Some(ended) = callers.join_next().await {
                    ended.unwrap();
                }
                // The app is told, or it would send for ever.
                until(&format!("{door}: {what} to be cut"), async || {
                    (cut.load(Ordering::Relaxed) >= before + CALLERS).then_some(())
                })
                .await;
            }
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
    }
    for (_, way) in scene.doors(&["http/1.1"]) {
        good(&way).await;
    }
    scene.assert_alive().await;
}
