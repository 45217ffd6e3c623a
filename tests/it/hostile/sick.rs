//! Origins that fail in every way there is: one of two does, and is left alone within two seconds.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::frames;
use super::hoarding::connected;
use crate::alone::{Host, IDENTITY, Origin, PATIENCE, Running, Stream, Then, Way, until};
use crate::harness::app::{App, Asked, send_all};
use crate::harness::certs::{Authority, service};
use crate::harness::{Behaviour, Mesh, Service};

/// How long an origin may be sick before nearly nothing is sent to it.
const NOTICED: Duration = Duration::from_secs(2);
/// Answers that are looked at after that, and how many of them may be bad: probes of the sick one.
const LOOKED_AT: usize = 200;
const BAD: usize = LOOKED_AT / 50;

/// A clock that runs out before that of a caller who waits for a second, and not so soon that nobody is to blame.
const FAST: Duration = Duration::from_millis(600);

const WELL: u16 = 21_591;
const SICK: u16 = 21_592;

/// A gateway in front of two origins that speak so. They have long enough for the well one on a busy machine: were it left
/// alone first, the sick one would be the last that there is.
async fn gateway(protocol: &str) -> (Host, Running, Way) {
    gateway_with(protocol, "1s").await
}

/// The same, and so long may an exchange take.
async fn gateway_with(protocol: &str, timeout: &str) -> (Host, Running, Way) {
    let host = Host::new();
    host.configure(&format!(
        "services:
  pair:
    mesh: false
    protocol: {protocol}
    endpoints: [\"{}\", \"{}\"]
    timeout: {timeout}
    retry: {{ attempts: 0 }}
ingress:
  listeners: [ {{ name: public, address: \"{}\" }} ]
  routes: [ {{ to: pair }} ]
",
        host.at(WELL),
        host.at(SICK),
        host.public()
    ));
    let ingress = host.ingress().await;
    let way = Way::Plain(host.public());
    (host, ingress, way)
}

/// The same by a sidecar, for its app.
async fn sidecar() -> (Host, Running, Way) {
    let host = Host::new();
    host.identify(&Authority::new(), "caller");
    host.configure(&format!(
        "{IDENTITY}services:
  caller: {{}}
  pair:
    mesh: false
    endpoints: [\"{}\", \"{}\"]
    timeout: 1s
    retry: {{ attempts: 0 }}
",
        host.at(WELL),
        host.at(SICK),
    ));
    let sidecar = host.sidecar("caller").await;
    let way = Way::Plain(host.outbound());
    (host, sidecar, way)
}

/// Whether one answer is whole and good.
async fn is_good(way: &Way) -> bool {
    let request = b"GET / HTTP/1.1\r\nhost: pair\r\nconnection: close\r\n\r\n";
    let answer = timeout(PATIENCE, way.send(request)).await.unwrap();
    // Of an app of HTTP/2 it comes in chunks.
    let length = b"content-length: 2\r\n";
    let is_whole = |bytes: &[u8]| {
        bytes.ends_with(b"\r\n2\r\nok\r\n0\r\n\r\n")
            || bytes.ends_with(b"\r\n\r\nok")
                && bytes.windows(length.len()).any(|have| have == length)
    };
    answer.is_ok_and(|bytes| bytes.starts_with(b"HTTP/1.1 200 ") && is_whole(&bytes))
}

/// Asks steadily for a while, and then counts what is bad.
async fn bad_after_a_while(way: &Way) -> usize {
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let way = way.clone();
        callers.spawn(async move {
            let end = Instant::now() + NOTICED;
            while Instant::now() < end {
                is_good(&way).await;
                sleep(Duration::from_millis(10)).await;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    let mut bad = 0;
    for _ in 0..LOOKED_AT {
        bad += usize::from(!is_good(way).await);
    }
    bad
}

/// What an origin of HTTP/1.1 does that is sick.
#[rustfmt::skip] // a row a line
const SICKNESSES: &[(&str, &[u8], bool)] = &[
    ("garbage", b"this is no HTTP at all\r\n\r\n", true),
    ("bytes of another protocol", b"\x16\x03\x01\0\xa5\x01\0\0", true),
    ("an end without a word", b"", true),
    ("half a head", b"HTTP/1.1 200 OK\r\ncontent-le", true),
    ("a body that is cut", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nok", true),
    ("a chunk that is cut", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n100\r\nok", true),
    ("no last chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", true),
    ("500", b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", false),
    ("503", b"HTTP/1.1 503 Oh\r\ncontent-length: 0\r\n\r\n", false),
];

/// One of two origins has each, before a proxy of its own.
async fn every_sickness(proxy: impl AsyncFn() -> (Host, Running, Way)) {
    for (what, bytes, closes) in SICKNESSES {
        let (host, mut running, way) = proxy().await;
        let _well = Origin::fine(host.at(WELL)).await;
        let _sick = Origin::start(host.at(SICK), |_| match closes {
            true => Then::Close(bytes.to_vec()),
            false => Then::Keep(bytes.to_vec()),
        })
        .await;
        let bad = bad_after_a_while(&way).await;
        assert!(bad <= BAD, "{what}: {bad} of {LOOKED_AT}");
        running.assert_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_origin_of_http1_is_left_alone_within_two_seconds() {
    every_sickness(async || gateway("http").await).await;
    // Nobody there, nobody who answers, nobody who stays.
    let (host, _ingress, way) = gateway("http").await;
    let _well = Origin::fine(host.at(WELL)).await;
    assert!(bad_after_a_while(&way).await <= BAD, "refusal");
    let hanging = Origin::start(host.at(SICK), |_| Then::Hang).await;
    assert!(bad_after_a_while(&way).await <= BAD, "silence");
    drop(hanging);
    let _resetting = resetting(host.at(SICK)).await;
    assert!(bad_after_a_while(&way).await <= BAD, "resets");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_origin_is_left_alone_within_two_seconds_by_a_sidecar_too() {
    every_sickness(sidecar).await;
}

/// Two sidecars with an app each, of which one is sick: what its own sidecar makes of that is enough for those who call.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_a_sick_app_is_left_alone_within_two_seconds_in_the_mesh() {
    for (what, bytes) in [
        ("garbage", &b"this is no HTTP at all\r\n\r\n"[..]),
        ("500", b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"),
        ("silence", b""),
    ] {
        // Long enough for the well one on a busy machine: were it left alone first, the sick one would be the last that there is.
        let pair = Service::new("pair")
            .replicas(2)
            .with("timeout: 1s")
            .with("retry: { attempts: 0 }");
        let mesh = Mesh::new()
            .service(pair)
            .service(Service::new("caller"))
            .without_ingress()
            .start()
            .await;
        let host = mesh.replica("caller", 0).host;
        let both = ["service=\"pair\""];
        mesh.metric_reaches(host, "weft_service_endpoints_available", &both, 2.0)
            .await;
        let (sick, well) = (mesh.origin("pair", 0), mesh.origin("pair", 1));
        well.does(Behaviour::Bytes(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(),
        ));
        sick.does(match bytes {
            b"" => Behaviour::Hang,
            bytes => Behaviour::Bytes(bytes.to_vec()),
        });
        let bad = bad_after_a_while(&Way::Plain(mesh.outbound("caller", 0))).await;
        assert!(bad <= BAD, "{what}: {bad} of {LOOKED_AT}");
        assert!(sick.total() > 0, "{what}: nobody asked");
    }
}

/// Two clocks run out where an app is silent, its own sidecar's and its caller's, and now the one is faster and now the other.
/// A peer's sidecar has the same to say as the caller, so that both make one row.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_app_is_noticed_whichever_sidecar_says_so_first() {
    for reason in ["upstream_timeout", "deadline_exceeded"] {
        let authority = Authority::new();
        let host = Host::new();
        host.identify(&authority, "caller");
        host.configure(&format!(
            "{IDENTITY}services:
  caller: {{}}
  pair: {{ endpoints: [\"{}\", \"{}\"], timeout: 1s, retry: {{ attempts: 0 }} }}
",
            host.at(WELL),
            host.at(SICK),
        ));
        let tls = || authority.leaf(&service("pair")).server(&["h2"]);
        let _well = App::sidecar(host.at(WELL), tls(), async |mut asked| {
            asked.answer(200, b"ok");
        })
        .await;
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let _sick = App::sidecar(host.at(SICK), tls(), move |mut asked| {
            let answers = counted.fetch_add(1, Ordering::Relaxed) % 2 == 1;
            async move {
                if answers && timeout(FAST, asked.taken_back()).await.is_err() {
                    let answer = http::Response::builder()
                        .status(504)
                        .header("weft-reason", reason);
                    let answer = answer.body(()).unwrap();
                    let _: Result<_, h2::Error> = asked.respond.send_response(answer, true);
                }
                asked.taken_back().await;
            }
        })
        .await;
        let mut sidecar = host.sidecar("caller").await;
        let way = Way::Plain(host.outbound());
        // As many in a row as the default of `outlier.consecutive`.
        while count.load(Ordering::Relaxed) < 5 {
            way.ask("GET /", &[("host", "pair")], "").await;
        }
        until("the ejection", async || {
            let both = [("service", "pair")];
            let name = "weft_service_endpoints_available";
            (sidecar.metric(name, &both).await == 1.0).then_some(())
        })
        .await;
        sidecar.assert_alive().await;
    }
}

/// Takes connections and resets them at their first byte.
async fn resetting(address: SocketAddr) -> JoinSet<()> {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _: std::io::Result<u8> = stream.read_u8().await;
            stream.set_zero_linger().unwrap();
        }
    });
    tasks
}

/// A sickness of an origin that speaks HTTP/2.
async fn sick(what: &str, mut asked: Asked) {
    match what {
        "resets" => asked.respond.send_reset(h2::Reason::INTERNAL_ERROR),
        "503" => asked.answer(503, b"oh"),
        "silence" => asked.taken_back().await,
        "a body that is cut" => {
            let mut send = asked.begin(&[("content-length", b"1000")]);
            send_all(&mut send, Bytes::from_static(b"ok"), false).await;
            send.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        "a body that ends early" => {
            let mut send = asked.begin(&[("content-length", b"1000")]);
            send_all(&mut send, Bytes::from_static(b"ok"), true).await;
        }
        // Of an app that says at once that it cannot.
        _ => {
            let answer = http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "14");
            let answer = answer.body(()).unwrap();
            let _: Result<_, h2::Error> = asked.respond.send_response(answer, true);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_origin_of_http2_is_left_alone_within_two_seconds() {
    for what in [
        "resets",
        "503",
        "silence",
        "a body that is cut",
        "a body that ends early",
    ] {
        let (host, mut ingress, way) = gateway("grpc").await;
        let _well = App::start(host.at(WELL), usize::MAX, |mut asked| async move {
            asked.answer(200, b"ok");
        })
        .await;
        let _sick = App::start(host.at(SICK), usize::MAX, move |asked| sick(what, asked)).await;
        let bad = bad_after_a_while(&way).await;
        assert!(bad <= BAD, "{what}: {bad} of {LOOKED_AT}");
        ingress.assert_alive().await;
    }
    // No HTTP/2 at all, and nobody there.
    let (host, _ingress, way) = gateway("grpc").await;
    let _well = App::start(host.at(WELL), usize::MAX, |mut asked| async move {
        asked.answer(200, b"ok");
    })
    .await;
    assert!(bad_after_a_while(&way).await <= BAD, "refusal");
    let _old = garbage(host.at(SICK)).await;
    assert!(bad_after_a_while(&way).await <= BAD, "garbage");
}

/// Answers whatever comes with what is no HTTP/2.
async fn garbage(address: SocketAddr) -> JoinSet<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _: std::io::Result<u8> = stream.read_u8().await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    tasks
}

/// Calls to an app of which one replica says `unavailable` to everything.
#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_replica_of_a_grpc_service_is_left_alone_within_two_seconds() {
    let (host, mut ingress, way) = gateway("grpc").await;
    let well = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&well);
    let _well = App::start(host.at(WELL), usize::MAX, move |mut asked| {
        let counted = Arc::clone(&counted);
        async move {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut send = asked.begin(&[("content-type", b"application/grpc")]);
            let trailers = crate::harness::app::fields(&[("grpc-status", b"0")]);
            let _: Result<(), h2::Error> = send.send_trailers(trailers);
        }
    })
    .await;
    let _sick = App::start(host.at(SICK), usize::MAX, |asked| {
        sick("unavailable", asked)
    })
    .await;
    let mut tasks = JoinSet::new();
    let mut sender = connected(&way, 1 << 16, 1 << 20, &mut tasks).await;
    let end = Instant::now() + NOTICED;
    let mut counted = None;
    for number in 0.. {
        if counted.is_none() && Instant::now() > end && number > 100 {
            counted = Some((number, well.load(Ordering::Relaxed)));
        }
        if counted.is_some_and(|(from, _)| number == from + LOOKED_AT) {
            break;
        }
        let request = Request::post("http://pair/test.Greeter/Hello")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let mut body = timeout(PATIENCE, response)
            .await
            .unwrap()
            .unwrap()
            .into_body();
        while let Some(Ok(_)) = body.data().await {}
    }
    let (_, before) = counted.unwrap();
    let good = well.load(Ordering::Relaxed) - before;
    assert!(good + BAD >= LOOKED_AT, "{good} of {LOOKED_AT}");
    ingress.assert_alive().await;
}

/// An app of HTTP/2 that ends each of its connections in good order, and has begun with nothing on it (GOAWAY, NO_ERROR).
struct Leaving {
    connections: Arc<AtomicUsize>,
    /// Heads of requests that came.
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Leaving {
    /// At once, or when somebody has asked for something.
    async fn start(address: SocketAddr, waits: bool) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (connections, asked) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (opened, heard) = (Arc::clone(&connections), Arc::clone(&asked));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut conversations = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::Relaxed);
                let heard = Arc::clone(&heard);
                conversations.spawn(async move {
                    let _: std::io::Result<()> = leave(Box::new(stream), waits, &heard).await;
                });
            }
        });
        Self {
            connections,
            asked,
            _tasks: tasks,
        }
    }
}

async fn leave(mut stream: Stream, waits: bool, heard: &AtomicUsize) -> std::io::Result<()> {
    let goodbye = frames::frame(frames::GOAWAY, 0, 0, &[0; 8]);
    stream
        .write_all(&frames::frame(frames::SETTINGS, 0, 0, &[]))
        .await?;
    if !waits {
        stream.write_all(&goodbye).await?;
    }
    let mut preface = [0; frames::PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    loop {
        let (kind, _) = frames::read_frame(&mut stream).await?;
        if kind == frames::HEADERS {
            heard.fetch_add(1, Ordering::Relaxed);
            if waits {
                stream.write_all(&goodbye).await?;
            }
        }
    }
}

/// What was not begun goes on elsewhere, but not for ever, and whoever never begins with anything is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_says_goodbye_on_every_connection_is_asked_little_and_left_alone() {
    /// The connection that an exchange begins on, and three more.
    const MOST: usize = 4;
    for waits in [false, true] {
        let (host, ingress, way) = gateway_with("grpc", "5s").await;
        let leaving = Leaving::start(host.at(SICK), waits).await;
        // Alone it is asked as often as a connection may end, and then there is an answer.
        for _ in 0..5 {
            let before = leaving.connections.load(Ordering::Relaxed);
            let reply = way
                .ask("POST /alone", &[("host", "pair")], "an order")
                .await;
            reply.problem();
            assert!((502..=503).contains(&reply.status), "{waits}: {reply:?}");
            let opened = leaving.connections.load(Ordering::Relaxed) - before;
            assert!(
                opened <= MOST,
                "{waits}: {opened} connections for one order"
            );
        }
        drop((ingress, leaving));
        // Beside one that is well, and of which nothing bad is known.
        let (host, mut ingress, way) = gateway_with("grpc", "5s").await;
        let leaving = Leaving::start(host.at(SICK), waits).await;
        let placed = Arc::new(std::sync::Mutex::new(BTreeMap::<String, usize>::new()));
        let noted = Arc::clone(&placed);
        let _well = App::start(host.at(WELL), usize::MAX, move |mut asked| {
            let noted = Arc::clone(&noted);
            async move {
                *noted.lock().unwrap().entry(asked.path()).or_default() += 1;
                asked.answer(200, b"ok");
            }
        })
        .await;
        let before = leaving.connections.load(Ordering::Relaxed);
        let mut answered = 0;
        for number in 0..100 {
            let line = format!("POST /order/{number}");
            let reply = way.ask(&line, &[("host", "pair")], "an order").await;
            match reply.status {
                200 => answered += 1,
                _ => drop(reply.problem()),
            }
        }
        let opened = leaving.connections.load(Ordering::Relaxed) - before;
        assert!(opened <= 100 * MOST, "{waits}: {opened} connections");
        {
            let placed = placed.lock().unwrap();
            assert!(placed.values().all(|times| *times == 1), "{placed:?}");
            assert_eq!(placed.len(), answered, "{waits}");
        }
        let bad = bad_after_a_while(&way).await;
        assert!(bad <= BAD, "{waits}: {bad} of {LOOKED_AT}");
        // And it is not for the other's quick answers that none is bad.
        let before = (
            leaving.connections.load(Ordering::Relaxed),
            leaving.asked.load(Ordering::Relaxed),
        );
        for _ in 0..LOOKED_AT {
            assert!(is_good(&way).await, "{waits}");
        }
        let after = (
            leaving.connections.load(Ordering::Relaxed),
            leaving.asked.load(Ordering::Relaxed),
        );
        assert!(
            after.0 - before.0 <= BAD * MOST && after.1 - before.1 <= BAD * MOST,
            "{waits}: {before:?} and {after:?}"
        );
        ingress.assert_alive().await;
    }
}
