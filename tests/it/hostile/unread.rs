//! Frames that we answer, by a client that does not read the answers; and what a flood is told that does read.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

use super::frames::*;
use super::{Scene, good};
use crate::alone::{PATIENCE, Way, fine};

/// Connections that flood at the same time.
const CROWD: usize = 16;
/// Frames of each: what they would be answered with fits in the kernel's buffers, so that it is never a full pipe that ends
/// them.
const MANY: usize = 20_000;
/// What a connection is told in all before it is cut: a thousand answers to frames that carry nothing, and some more by time.
const TOLD: usize = 128 * 1024;

/// A request of stream `number`.
fn head(number: usize, flags: u8) -> Vec<u8> {
    let id = 2 * u32::try_from(number).unwrap() + 1;
    frame(HEADERS, flags, id, &block(&request()))
}

/// So many streams, each followed by this frame of its own.
fn streams(count: usize, flags: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
    let each = (0..count).map(|number| {
        let id = 2 * u32::try_from(number).unwrap() + 1;
        [head(number, flags), frame(kind, 0, id, payload)].concat()
    });
    opened(&each.collect::<Vec<_>>())
}

/// Floods of so many frames, each of which wants something of us.
#[rustfmt::skip] // a row a line
fn floods(count: usize) -> Vec<(&'static str, Vec<u8>)> {
    let again = |kind, stream, payload: &[u8]| opened(&[frame(kind, 0, stream, payload).repeat(count)]);
    vec![
        ("settings", again(SETTINGS, 0, &[])),
        ("settings with content", again(SETTINGS, 0, &[0, 4, 0, 1, 0, 0])),
        ("pings", again(PING, 0, &[7; 8])),
        ("opened and taken back", streams(count, WHOLE_HEAD, RST_STREAM, &[0, 0, 0, 8])),
        ("reset by us: windows of nothing", streams(count, END_HEADERS, WINDOW_UPDATE, &[0; 4])),
        ("reset by us: windows beyond 2^31", streams(count, END_HEADERS, WINDOW_UPDATE, &[0x7f, 0xff, 0xff, 0xff])),
        ("refused by us: more streams than there are places", opened(&(0..count).map(|number| head(number, END_HEADERS)).collect::<Vec<_>>())),
    ]
}

/// Sends all that is taken, reads nothing meanwhile, and then what is there. How much that was, up to the end.
async fn told(way: &Way, bytes: &[u8]) -> usize {
    let (mut read, mut write) = tokio::io::split(way.connect().await.unwrap());
    // Whether it is taken, cut, or left lying: only then is it looked what came.
    let _: Result<_, _> = timeout(Duration::from_secs(5), async {
        write.write_all(bytes).await?;
        write.flush().await
    })
    .await;
    let (mut told, mut piece) = (0, vec![0; 1 << 16]);
    let reading = async {
        while let Ok(length @ 1..) = read.read(&mut piece).await {
            told += length;
        }
    };
    timeout(PATIENCE, reading).await.expect("its end");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_by_who_reads_nothing_are_cut_and_hold_little() {
    let mut scene = Scene::set(|_| fine()).await;
    let floods = floods(MANY);
    for (door, way) in scene.doors(&["h2"]) {
        let attack = async {
            for (what, bytes) in &floods {
                let mut crowd = JoinSet::new();
                for _ in 0..CROWD {
                    let (way, bytes) = (way.clone(), bytes.clone());
                    crowd.spawn(async move { told(&way, &bytes).await });
                }
                while let Some(told) = crowd.join_next().await {
                    let told = told.unwrap();
                    assert!(told < TOLD, "{door}: {what}: told {told} bytes");
                }
            }
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
    }
    for (_, way) in scene.doors(&["http/1.1"]) {
        good(&way).await;
    }
}

/// What GOAWAY says, to a client that reads.
async fn goodbye(way: &Way, bytes: &[u8]) -> h2::Reason {
    let work = async {
        let (mut read, mut write) = tokio::io::split(way.connect().await.unwrap());
        let bytes = bytes.to_vec();
        let writing = tokio::spawn(async move {
            let _: std::io::Result<()> = write.write_all(&bytes).await;
            let _: std::io::Result<()> = write.flush().await;
            // Kept: the other side is to end it.
            write
        });
        loop {
            let (kind, payload) = read_frame(&mut read).await.expect("a word before the end");
            if kind == GOAWAY {
                let code: [u8; 4] = payload[4..8].try_into().unwrap();
                writing.abort();
                return h2::Reason::from(u32::from_be_bytes(code));
            }
        }
    };
    timeout(PATIENCE, work).await.expect("a goodbye")
}

/// Somewhat more than is tolerated: far beyond that, whoever still sends may see the reset before the words.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_floods_is_told_to_calm_down() {
    let mut scene = Scene::set(|_| fine()).await;
    let open = head(0, END_HEADERS);
    let more = |kind, flags, stream, payload: &[u8]| {
        opened(&[
            open.clone(),
            frame(kind, flags, stream, payload).repeat(2_500),
        ])
    };
    let cases = [
        ("settings", more(SETTINGS, 0, 0, &[])),
        ("pings", more(PING, 0, 0, &[7; 8])),
        ("answers to pings", more(PING, 1, 0, &[7; 8])),
        ("empty data", more(DATA, 0, 1, &[])),
        ("priorities", more(PRIORITY, 0, 3, &[0, 0, 0, 1, 7])),
        ("windows", more(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("frames that nobody knows", more(0xbe, 0, 0, &[1; 4])),
    ];
    let resets = |count| {
        let which = ["opened and taken back", "reset by us: windows beyond 2^31"];
        let mut resets = floods(count);
        resets.retain(|(what, _)| which.contains(what));
        assert_eq!(resets.len(), which.len());
        resets
    };
    let mut wrong = Vec::new();
    // Two for each stream are tolerated, of which the edge grants a hundred and the mesh a thousand.
    for ((door, way), count) in scene
        .doors(&["h2"])
        .into_iter()
        .zip([600, 600, 2_600, 2_600])
    {
        for (what, bytes) in cases.iter().chain(&resets(count)) {
            let reason = goodbye(&way, bytes).await;
            if reason != h2::Reason::ENHANCE_YOUR_CALM {
                wrong.push(format!("{door}: {what}: {reason:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    scene.assert_alive().await;
}
