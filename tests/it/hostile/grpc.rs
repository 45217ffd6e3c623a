//! gRPC: whatever an app says, in whatever frames, is what its client hears; calls that are given up are given up everywhere.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::hoarding::connected;
use super::{Scene, good};
use crate::alone::{Host, Origin, PATIENCE, until};
use crate::harness::app::{App, Asked, fields, send_all};

type Fields = &'static [(&'static str, &'static [u8])];

/// Answers that a decent app does not give: fields of the head, what follows it, fields of the trailers. None is ours to judge.
#[rustfmt::skip] // a row a line
const ODD: &[(Fields, &[u8], Option<Fields>)] = &[
    (&[], &[0, 0, 0, 0, 2, b'h', b'i'], Some(&[("grpc-status", b"0")])),
    // A message of 4 GiB of which nothing comes, one that is cut, one with an unknown flag, half a prefix, an empty one.
    (&[], &[0, 255, 255, 255, 255], Some(&[("grpc-status", b"0")])),
    (&[], &[0, 0, 0, 0, 9, b'x'], Some(&[("grpc-status", b"0")])),
    (&[], &[7, 0, 0, 0, 1, b'x'], Some(&[("grpc-status", b"0")])),
    (&[], &[0, 0, 0], Some(&[("grpc-status", b"0")])),
    (&[], &[0, 0, 0, 0, 0], Some(&[("grpc-status", b"0")])),
    (&[], b"this is no message at all", Some(&[("grpc-status", b"0")])),
    // Statuses that are none.
    (&[], b"", Some(&[("grpc-status", b"")])),
    (&[], b"", Some(&[("grpc-status", b"abc")])),
    (&[], b"", Some(&[("grpc-status", b"-1")])),
    (&[], b"", Some(&[("grpc-status", b"17")])),
    (&[], b"", Some(&[("grpc-status", b"99999999999999999999")])),
    (&[], b"x", Some(&[("grpc-status", b"0"), ("grpc-status", b"13")])),
    (&[], b"x", Some(&[("grpc-message", b"no status")])),
    (&[], b"x", Some(&[("grpc-status", b"13"), ("grpc-message", b"%ff%zz%")])),
    (&[], b"x", Some(&[("grpc-status", b"13"), ("grpc-message", &[b'y'; 8000])])),
    (&[], b"x", Some(&[("grpc-status", b"13"), ("grpc-status-details-bin", b"not base64!")])),
    // No status anywhere, one too early, one twice, trailers only.
    (&[], b"hi", None),
    (&[("grpc-status", b"0")], b"and yet there is more", Some(&[("grpc-status", b"2")])),
    (&[("grpc-status", b"0")], b"and yet there is more", None),
    (&[("grpc-status", b"5"), ("grpc-message", b"early")], b"", None),
    (&[("grpc-status", b"abc")], b"", None),
    // White space around what is said, which HTTP/1.1 has not: the words go on without it, and the call goes on.
    (&[("grpc-status", b"5"), ("grpc-message", b"no such user: ")], b"", None),
    (&[], b"hi", Some(&[("grpc-status", b"5"), ("grpc-message", b"\tno such user: ")])),
    // Ours to say, and not the app's.
    (&[("grpc-encoding", b"no-such-thing")], &[1, 0, 0, 0, 1, b'x'], Some(&[("grpc-status", b"0")])),
];

/// The app of these tests.
async fn act(mut asked: Asked) {
    let path = asked.path();
    let number = path
        .rsplit('/')
        .next()
        .and_then(|text| text.parse::<usize>().ok());
    match (path.split('/').nth(1), number) {
        (Some("good"), _) => asked.answer(200, b"ok"),
        (Some("odd"), Some(number)) => odd(asked, number).await,
        (Some("cut"), Some(after)) => {
            let mut send = asked.begin(&[("content-type", b"application/grpc")]);
            if send_all(&mut send, Bytes::from(vec![b'x'; after]), false).await {
                send.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
        (Some("hang"), _) => asked.taken_back().await,
        (Some("count"), _) => {
            let length = asked.count().await.to_string();
            let mut send = asked.begin(&[("content-type", b"application/grpc")]);
            if send_all(&mut send, length.into(), false).await {
                let _: Result<(), h2::Error> = send.send_trailers(fields(&[("grpc-status", b"0")]));
            }
        }
        _ => asked.answer(404, b"?"),
    }
}

async fn odd(mut asked: Asked, number: usize) {
    let (head, data, trailers) = ODD[number];
    let mut all: Vec<(&str, &[u8])> = vec![("content-type", b"application/grpc")];
    all.extend_from_slice(head);
    let ends = data.is_empty() && trailers.is_none();
    if ends {
        asked.begin_whole(&all);
        return;
    }
    let mut send = asked.begin(&all);
    if send_all(&mut send, data.into(), trailers.is_none()).await
        && let Some(trailers) = trailers
    {
        let _: Result<(), h2::Error> = send.send_trailers(fields(trailers));
    }
}

async fn stage() -> (Scene, App) {
    let host = Host::new();
    let app = App::start(host.app(), usize::MAX, act).await;
    let scene = Scene::of_calls(host, Origin::nobody()).await;
    (scene, app)
}

fn asks(path: &str, more: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://plain{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// What a client heard.
#[derive(Debug, Default)]
struct Heard {
    status: u16,
    head: HeaderMap,
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    broken: Option<h2::Error>,
}

impl Heard {
    /// Every value of a field, of the head and of the trailers.
    fn all(&self, name: &str) -> Vec<&[u8]> {
        let trailers = self.trailers.iter().flat_map(|map| map.get_all(name));
        let head = self.head.get_all(name).iter();
        head.chain(trailers)
            .map(http::HeaderValue::as_bytes)
            .collect()
    }
}

/// One call to its end.
async fn call(sender: &SendRequest<Bytes>, request: Request<()>, body: Bytes) -> Heard {
    let work = async {
        let mut heard = Heard::default();
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, mut send) = sender.send_request(request, false).unwrap();
        let upload = async {
            if body.is_empty() {
                let _: Result<(), h2::Error> = send.send_data(Bytes::new(), true);
            } else {
                send_all(&mut send, body, true).await;
            }
        };
        let answer = async {
            let (head, mut body) = match response.await {
                Ok(response) => response.into_parts(),
                Err(error) => {
                    heard.broken = Some(error);
                    return;
                }
            };
            (heard.status, heard.head) = (head.status.as_u16(), head.headers);
            while let Some(data) = body.data().await {
                match data {
                    Ok(data) => {
                        heard.data.extend_from_slice(&data);
                        let _: Result<(), h2::Error> =
                            body.flow_control().release_capacity(data.len());
                    }
                    Err(error) => {
                        heard.broken = Some(error);
                        return;
                    }
                }
            }
            match body.trailers().await {
                Ok(trailers) => heard.trailers = trailers,
                Err(error) => heard.broken = Some(error),
            }
        };
        tokio::join!(upload, answer);
        heard
    };
    timeout(PATIENCE, work).await.expect("the call's end")
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_frames_and_statuses_arrive_as_the_app_sent_them() {
    let (mut scene, _app) = stage().await;
    let mut tasks = JoinSet::new();
    for (door, way) in scene.doors(&["h2"]) {
        let sender = connected(&way, 1 << 20, 1 << 24, &mut tasks).await;
        for (number, (head, data, trailers)) in ODD.iter().enumerate() {
            let path = format!("/odd/{number}");
            let heard = call(&sender, asks(&path, &[]), Bytes::new()).await;
            let what = format!("{door} {number}: {heard:?}");
            assert!(heard.broken.is_none() && heard.status == 200, "{what}");
            assert_eq!(heard.data, *data, "{what}");
            for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
                let sent = head.iter().chain(trailers.unwrap_or_default());
                let sent: Vec<&[u8]> = sent
                    .filter(|(have, _)| *have == name)
                    .map(|(_, value)| value.trim_ascii())
                    .collect();
                assert_eq!(heard.all(name), sent, "{what}");
            }
        }
    }
    for (_, way) in scene.doors(&["http/1.1"]) {
        good(&way).await;
    }
    scene.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cut_never_ends_well() {
    let (mut scene, _app) = stage().await;
    let mut tasks = JoinSet::new();
    for (door, way) in scene.doors(&["h2"]) {
        let sender = connected(&way, 1 << 20, 1 << 24, &mut tasks).await;
        for after in [1, 3, 5, 6, 16_384, 100_000] {
            let path = format!("/cut/{after}");
            let heard = call(&sender, asks(&path, &[]), Bytes::new()).await;
            // Reset, or said in so many words where nothing had been said yet.
            let told = heard
                .all("grpc-status")
                .iter()
                .any(|status| *status != b"0");
            assert!(heard.broken.is_some() || told, "{door} {after}: {heard:?}");
            assert!(
                !heard.all("grpc-status").contains(&&b"0"[..]),
                "{door} {after}"
            );
        }
    }
    scene.assert_alive().await;
}

/// What an app has read it may have acted on, however it ends the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_the_app_has_read_and_reset_is_delivered_once() {
    let host = Host::new();
    let delivered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&delivered);
    let _app = App::start(host.app(), usize::MAX, move |mut asked| {
        let count = Arc::clone(&count);
        async move {
            let reason = match asked.path().as_str() {
                "/internal" => h2::Reason::INTERNAL_ERROR,
                "/cancel" => h2::Reason::CANCEL,
                _ => return asked.answer(200, b"ok"),
            };
            asked.count().await;
            count.fetch_add(1, Ordering::Relaxed);
            asked.respond.send_reset(reason);
        }
    })
    .await;
    let mut scene = Scene::of_calls(host, Origin::nobody()).await;
    let mut tasks = JoinSet::new();
    for (door, way) in scene.doors(&["h2"]) {
        let sender = connected(&way, 1 << 20, 1 << 24, &mut tasks).await;
        for path in ["/internal", "/cancel"] {
            delivered.store(0, Ordering::Relaxed);
            let heard = call(&sender, asks(path, &[]), Bytes::from_static(&[0; 5])).await;
            assert!(
                heard.all("grpc-status") == [b"14"],
                "{door} {path}: {heard:?}"
            );
            assert_eq!(delivered.load(Ordering::Relaxed), 1, "{door} {path}");
        }
    }
    scene.assert_alive().await;
}

/// Deadlines that are over before anything can happen, and such as are none.
#[tokio::test(flavor = "multi_thread")]
async fn games_with_deadlines_cost_nothing_and_end_calls_everywhere() {
    let (mut scene, app) = stage().await;
    for (door, way) in scene.doors(&["h2"]) {
        let attack = async {
            let mut tasks = JoinSet::new();
            for _ in 0..5 {
                let sender = connected(&way, 1 << 20, 1 << 24, &mut tasks).await;
                let mut calls = JoinSet::new();
                for number in 0..50 {
                    let limit = ["0n", "1n", "1u", "1m", "50m", "00000001m"][number % 6];
                    let sender = sender.clone();
                    calls.spawn(async move {
                        let request = asks("/hang", &[("grpc-timeout", limit)]);
                        (limit, call(&sender, request, Bytes::new()).await)
                    });
                }
                while let Some(ended) = calls.join_next().await {
                    let (limit, heard) = ended.unwrap();
                    // Said in so many words: the app has not begun an answer that would have to be broken off.
                    let over = heard.all("grpc-status") == [b"4"] && heard.broken.is_none();
                    assert!(over, "{door} {limit}: {heard:?}");
                }
                for none in [
                    "",
                    "1",
                    "S",
                    "-1S",
                    "1X",
                    "999999999S",
                    "1.5S",
                    "1 S",
                    "+1S",
                    "99999999H",
                ] {
                    let request = asks("/count", &[("grpc-timeout", none)]);
                    let heard = call(&sender, request, Bytes::from_static(b"x")).await;
                    assert_eq!(heard.all("grpc-status"), [b"0"], "{door} {none}: {heard:?}");
                }
            }
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
        until("the app to be left alone", async || {
            (app.open.load(Ordering::Relaxed) == 0).then_some(())
        })
        .await;
    }
}

/// Calls begun and given up, again and again, by whoever is allowed to call.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_that_are_cancelled_is_cut_and_reaches_the_app_as_cancels() {
    let (mut scene, app) = stage().await;
    for (door, way) in scene.doors(&["h2"]) {
        let attack = async {
            let (mut tasks, mut cut) = (JoinSet::new(), 0);
            for _ in 0..4 {
                let mut sender = connected(&way, 1 << 16, 1 << 20, &mut tasks).await;
                let mut calls = 0;
                'connection: while calls < 5000 {
                    let mut begun = Vec::new();
                    for _ in 0..20 {
                        let Ok(Ok(ready)) = timeout(PATIENCE, sender.clone().ready()).await else {
                            break 'connection;
                        };
                        sender = ready;
                        let Ok((response, mut send)) =
                            sender.send_request(asks("/hang", &[]), false)
                        else {
                            break 'connection;
                        };
                        let _: Result<(), h2::Error> =
                            send.send_data(Bytes::from_static(&[0; 5]), false);
                        begun.push((response, send));
                    }
                    calls += begun.len();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    for (_, send) in &mut begun {
                        send.send_reset(h2::Reason::CANCEL);
                    }
                }
                cut += usize::from(calls < 5000);
            }
            assert_eq!(cut, 4, "{door}: connections that were cut");
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
        until("the app to be left alone", async || {
            (app.open.load(Ordering::Relaxed) == 0).then_some(())
        })
        .await;
    }
    let most = app.most.load(Ordering::Relaxed);
    assert!(most < 1000, "{most} calls at the app at once");
}

/// An app that says goodbye on its connections all the time.
#[tokio::test(flavor = "multi_thread")]
async fn goodbyes_of_an_app_lose_no_call() {
    let host = Host::new();
    let _app = App::start(host.app(), 7, act).await;
    let mut scene = Scene::of_calls(host, Origin::nobody()).await;
    let mut tasks = JoinSet::new();
    for (door, way) in scene.doors(&["h2"]) {
        let sender = connected(&way, 1 << 20, 1 << 24, &mut tasks).await;
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            let sender = sender.clone();
            callers.spawn(async move {
                for number in 0..60 {
                    let body = Bytes::from(vec![b'x'; number * 10]);
                    let heard = call(&sender, asks("/count", &[]), body).await;
                    assert_eq!(
                        heard.all("grpc-status"),
                        [b"0"],
                        "{door} {number}: {heard:?}"
                    );
                    assert_eq!(heard.data, (number * 10).to_string().as_bytes(), "{door}");
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
    }
    scene.assert_alive().await;
}

/// A stream of messages may be as long as it likes, and holds nothing on its way: while the app reads nothing of it, as
/// much was sent as windows and buffers take, and that is a small part of what there is.
#[tokio::test(flavor = "multi_thread")]
async fn calls_have_no_limit_of_size_and_are_not_held() {
    const PIECE: usize = 64 << 10;
    const SIZE: usize = 128 << 20;
    /// How long nothing must move until nothing will.
    const STILL: Duration = Duration::from_secs(1);
    let host = Host::new();
    let gate = Arc::new(Semaphore::new(0));
    let reads = Arc::clone(&gate);
    let app = App::start(host.app(), usize::MAX, move |asked| {
        let reads = Arc::clone(&reads);
        async move {
            if asked.path() == "/count" {
                let _read = reads.acquire().await.unwrap();
                return act(asked).await;
            }
            act(asked).await;
        }
    });
    let _app = app.await;
    let mut scene = Scene::of_calls(host, Origin::nobody()).await;
    let (_, way) = scene.doors(&["h2"]).into_iter().next().unwrap();
    let attack = async {
        let mut tasks = JoinSet::new();
        let sender = connected(&way, 1 << 20, 1 << 24, &mut tasks).await;
        let mut request = asks("/count", &[]);
        *request.uri_mut() = "http://orders/count".parse().unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, mut send) = sender.send_request(request, false).unwrap();
        let sent = AtomicUsize::new(0);
        let upload = async {
            let piece = Bytes::from(vec![0; PIECE]);
            for number in 1..=SIZE / PIECE {
                assert!(send_all(&mut send, piece.clone(), number * PIECE == SIZE).await);
                sent.fetch_add(PIECE, Ordering::Relaxed);
            }
        };
        let stall = async {
            let (mut seen, mut since) = (0, Instant::now());
            while since.elapsed() < STILL || seen == 0 {
                let now = sent.load(Ordering::Relaxed);
                if now != seen {
                    (seen, since) = (now, Instant::now());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            gate.add_permits(1);
            seen
        };
        let answer = async {
            let mut body = response.await.unwrap().into_body();
            let mut text = Vec::new();
            while let Some(data) = body.data().await {
                text.extend(data.unwrap());
            }
            text
        };
        let work = async { tokio::join!(upload, stall, answer) };
        let ((), held, answer) = timeout(PATIENCE, work).await.expect("the call's end");
        assert!(
            held < SIZE / 8,
            "{held} bytes were taken that nobody had read"
        );
        assert_eq!(answer, SIZE.to_string().as_bytes());
    };
    let good = scene.doors(&["http/1.1"]);
    scene.under_attack("a long call", &good, attack).await;
}
