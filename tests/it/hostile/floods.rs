//! Frames that cost their sender little and us much: each flood is cut, and costs us next to nothing.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::frames::*;
use super::{Scene, good};
use crate::alone::{PATIENCE, Processor, Way, fine, until};

/// Frames of a flood.
const MANY: usize = 20_000;
/// What one flood may cost both processes together, in requests with connections of their own: those are what everybody
/// may have of us, and by them the bound fits any machine and any build. A flood that is not cut
/// costs many times that.
const WORTH: u32 = 100;
/// The same as time, good request behind it included: a tenth of a core for a second. Unhurried code needs a third of that.
const TENTH: Duration = Duration::from_millis(100);
/// A pace that is tolerated for ever: below what a second gives back.
const TOLERATED: u32 = 180;

/// An exchange of stream `number`, with these fields more, and what follows it.
fn exchange(
    number: u32,
    flags: u8,
    more: &[(&'static [u8], &'static [u8])],
    then: &[u8],
) -> Vec<u8> {
    let head = frame(HEADERS, flags, 2 * number + 1, &block(&with(more)));
    [head, then.to_vec()].concat()
}

/// Each of `MANY / 4` streams, followed by a frame of its own.
fn streams(
    flags: u8,
    more: &[(&'static [u8], &'static [u8])],
    kind: u8,
    payload: impl Fn(u32) -> Vec<u8>,
) -> Vec<u8> {
    let all: Vec<Vec<u8>> = (0..MANY as u32 / 4)
        .map(|number| {
            let id = 2 * number + 1;
            exchange(number, flags, more, &frame(kind, 0, id, &payload(id)))
        })
        .collect();
    opened(&all)
}

/// What is sent without a pause, and cut.
#[rustfmt::skip] // a row a line
fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let begun = frame(HEADERS, 0, 1, &block(&request()));
    let open = frame(HEADERS, END_HEADERS, 1, &block(&request()));
    let whole = frame(HEADERS, WHOLE_HEAD, 1, &block(&request()));
    let again = |kind, flags, stream, payload: &[u8]| frame(kind, flags, stream, payload).repeat(MANY);
    vec![
        ("a head without end", opened(&[begun.clone(), frame(CONTINUATION, 0, 1, &block(&[(b"x-flood", &[b'y'; 100])])).repeat(MANY)])),
        ("an empty head without end", opened(&[begun, again(CONTINUATION, 0, 1, &[])])),
        ("settings", opened(&[again(SETTINGS, 0, 0, &[])])),
        ("settings with content", opened(&[again(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])])),
        ("pings", opened(&[again(PING, 0, 0, &[7; 8])])),
        ("answers to pings that nobody sent", opened(&[again(PING, 1, 0, &[7; 8])])),
        ("empty data", opened(&[open.clone(), again(DATA, 0, 1, &[])])),
        ("padding and nothing else", opened(&[open.clone(), again(DATA, 8, 1, &[0])])),
        ("priorities", opened(&[again(PRIORITY, 0, 3, &[0, 0, 0, 1, 7])])),
        ("windows of the connection", opened(&[again(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])])),
        ("windows of a stream", opened(&[open.clone(), again(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])])),
        ("resets of one stream", opened(&[open, again(RST_STREAM, 0, 1, &[0, 0, 0, 8])])),
        ("windows of a stream that has ended", opened(&[whole, again(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])])),
        ("frames that nobody knows", opened(&[again(0xbe, 0, 0, &[1; 16])])),
        // Opened and taken back, CVE-2023-44487.
        ("rapid resets", streams(WHOLE_HEAD, &[], RST_STREAM, |_| vec![0, 0, 0, 8])),
        // Made to be reset by us, CVE-2025-8671.
        ("window updates of nothing", streams(END_HEADERS, &[], WINDOW_UPDATE, |_| vec![0; 4])),
        ("windows beyond 2^31", streams(END_HEADERS, &[], WINDOW_UPDATE, |_| vec![0x7f, 0xff, 0xff, 0xff])),
        ("priorities on themselves", streams(END_HEADERS, &[], PRIORITY, |id| [&id.to_be_bytes()[..], &[7]].concat())),
        ("data beyond the length", streams(END_HEADERS, &[(b"content-length", b"1")], DATA, |_| vec![b'x'; 5])),
        ("heads in the middle of bodies", streams(END_HEADERS, &[], HEADERS, |_| block(&request()))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_cut_and_cost_little_while_others_are_served() {
    let mut scene = Scene::set(|_| fine()).await;
    let floods = floods();
    for (door, way) in scene.doors(&["h2"]) {
        let attack = async {
            for (what, bytes) in &floods {
                let heard = flood(&way, bytes).await;
                assert!(heard.goaway || heard.ended, "{door}: {what}: {heard:?}");
            }
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
        let seen = scene.origin.requests();
        let forwarded = seen.iter().filter(|seen| seen.target() == "/two").count();
        assert!(
            forwarded < 5_000,
            "{door}: {forwarded} of what was taken back was forwarded"
        );
    }
    until("the origin to be left alone", async || {
        (scene.origin.open() < 50).then_some(())
    })
    .await;
}

/// The processor time of both processes.
fn processor(scene: &Scene) -> [Processor; 2] {
    [scene.sidecar.processor(), scene.ingress.processor()]
}

/// What both have used since.
fn used(scene: &Scene, before: &[Processor; 2]) -> Duration {
    let now = processor(scene);
    now.iter()
        .zip(before)
        .map(|(now, before)| now.since(before))
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_costs_no_more_than_a_tenth_of_a_core_and_a_hundred_requests() {
    let mut scene = Scene::set(|_| fine()).await;
    let floods = floods();
    let secure = scene.doors(&["http/1.1"])[1].1.clone();
    let before = processor(&scene);
    for _ in 0..WORTH {
        good(&secure).await;
    }
    let worth = used(&scene, &before);
    let mut costs = Vec::new();
    for (door, way) in scene.doors(&["h2"]) {
        for (what, bytes) in &floods {
            let before = processor(&scene);
            let start = Instant::now();
            let heard = flood(&way, bytes).await;
            assert!(heard.goaway || heard.ended, "{door}: {what}: {heard:?}");
            // What it has set in motion has come to rest when others are served again.
            good(&secure).await;
            let cost = used(&scene, &before);
            costs.push((cost, door, *what, start.elapsed()));
        }
    }
    for (cost, door, what, lasted) in costs {
        assert!(
            cost < worth,
            "{door}: {what}: {cost:?}, and {WORTH} requests {worth:?}"
        );
        // Longer only where it takes longer to cut it, by its sender's own fault.
        let tenth = TENTH.max(lasted / 10);
        assert!(cost < tenth, "{door}: {what}: {cost:?} of {tenth:?}");
    }
    scene.assert_alive().await;
}

/// Who stays below the pace at which a connection is cut goes on for ever, and has to be cheap.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_tolerated_cost_less_than_a_tenth_of_a_core() {
    let mut scene = Scene::set(|_| fine()).await;
    let open = frame(HEADERS, END_HEADERS, 1, &block(&request()));
    let kinds = [
        frame(SETTINGS, 0, 0, &[]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        frame(PING, 0, 0, &[7; 8]),
        frame(PING, 1, 0, &[7; 8]),
        frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 7]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        frame(0xbe, 0, 0, &[1; 16]),
    ];
    for (door, way) in scene.doors(&["h2"]) {
        let mut senders = JoinSet::new();
        let (before, start) = (processor(&scene), Instant::now());
        for (number, kind) in kinds.iter().enumerate() {
            let (way, first, kind) = (
                way.clone(),
                opened(std::slice::from_ref(&open)),
                kind.clone(),
            );
            senders.spawn(async move {
                let (mut read, mut write) = tokio::io::split(way.connect().await.unwrap());
                let listening = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
                });
                write.write_all(&first).await.unwrap();
                let start = Instant::now();
                let mut sent = 0;
                while start.elapsed() < Duration::from_secs(4) {
                    sleep(Duration::from_millis(50)).await;
                    // As many as the time that went by is good for, however long this slept.
                    let due = start.elapsed().as_millis() as u32 * TOLERATED / 1000;
                    let bytes = kind.repeat((due - sent) as usize);
                    let written = async {
                        write.write_all(&bytes).await?;
                        write.flush().await
                    };
                    let written = written.await;
                    written
                        .unwrap_or_else(|error| panic!("{number} was cut after {sent}: {error}"));
                    sent = due;
                }
                assert!(!listening.is_finished(), "{number} was cut after {sent}");
                listening.abort();
            });
        }
        while let Some(sender) = senders.join_next().await {
            sender.unwrap_or_else(|error| panic!("{door}: {error}"));
        }
        let (cost, lasted) = (used(&scene, &before), start.elapsed());
        // All of them together.
        assert!(cost < lasted / 10, "{door}: {cost:?} of {lasted:?}");
    }
    scene.assert_alive().await;
}

/// Small on the wire, large when decoded: one entry of the table, a thousand times.
#[tokio::test]
async fn a_bomb_of_fields_is_refused() {
    let mut scene = Scene::set(|_| fine()).await;
    let mut bomb = block(&request());
    bomb.extend([0x40, 1, b'x', 0x7f, 0x81, 0x1e]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let bomb = opened(&[frame(HEADERS, WHOLE_HEAD, 1, &bomb)]);
    for (door, way) in scene.doors(&["h2"]) {
        let heard = converse(&way, &bomb).await;
        assert!(!heard.answers.contains(&0x88), "{door}: {heard:?}");
    }
    scene.assert_alive().await;
}

/// A connection's allowance is for its life: who goes slowly gets no further.
#[tokio::test(flavor = "multi_thread")]
async fn resets_are_cut_however_slowly_they_come() {
    let mut scene = Scene::set(|seen| match seen.target() {
        "/two" => crate::alone::Then::Hang,
        _ => fine(),
    })
    .await;
    // Two for each stream that is granted, and time gives some back.
    for ((door, way), most) in scene
        .doors(&["h2"])
        .into_iter()
        .zip([900, 900, 2_900, 2_900])
    {
        let attack = async {
            let sent = slow_resets(&way).await;
            assert!(
                (100..most).contains(&sent),
                "{door}: {sent} resets were taken"
            );
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
        // Never more than the connection's streams at the same time, with the last ones on their way out.
        assert!(
            scene.origin.most_open() < 400,
            "{door}: {} at once",
            scene.origin.most_open()
        );
    }
    good(&scene.doors(&["http/1.1"])[0].1).await;
}

/// Opens ten streams, resets them a moment later, and so on; how many until the connection ends.
async fn slow_resets(way: &Way) -> usize {
    let (mut read, mut write) = tokio::io::split(way.connect().await.unwrap());
    let listening = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
    });
    write.write_all(&opening()).await.unwrap();
    let start = Instant::now();
    let mut sent = 0;
    while !listening.is_finished() {
        assert!(start.elapsed() < PATIENCE, "{sent} resets, and not cut");
        let ids: Vec<u32> = (sent..sent + 10)
            .map(|number| 2 * number as u32 + 1)
            .collect();
        for (kind, flags) in [(HEADERS, WHOLE_HEAD), (RST_STREAM, 0)] {
            let mut bytes = Vec::new();
            for id in &ids {
                let payload = match kind {
                    HEADERS => block(&request()),
                    _ => vec![0, 0, 0, 8],
                };
                bytes.extend(frame(kind, flags, *id, &payload));
            }
            let written = timeout(PATIENCE, async {
                write.write_all(&bytes).await?;
                write.flush().await
            });
            if written.await.unwrap().is_err() {
                return sent;
            }
            sleep(Duration::from_millis(20)).await;
        }
        sent += 10;
    }
    sent
}

#[tokio::test]
async fn a_connection_that_does_not_begin_with_settings_is_ended() {
    let mut scene = Scene::set(|_| fine()).await;
    for (door, way) in scene.doors(&["h2"]) {
        let before = scene.origin.bytes();
        for first in [
            frame(HEADERS, WHOLE_HEAD, 1, &block(&request())),
            frame(SETTINGS, 1, 0, &[]),
            frame(PING, 0, 0, &[0; 8]),
            frame(0xbe, 0, 0, &[]),
        ] {
            let head = frame(HEADERS, WHOLE_HEAD, 3, &block(&request()));
            let bytes = [PREFACE, &first, &frame(SETTINGS, 0, 0, &[]), &head].concat();
            let heard = converse(&way, &bytes).await;
            assert!(heard.goaway || heard.ended, "{door}: {heard:?}");
            assert!(heard.answers.is_empty(), "{door}: {heard:?}");
        }
        assert_eq!(scene.origin.bytes(), before, "{door}");
    }
    scene.assert_alive().await;
}
