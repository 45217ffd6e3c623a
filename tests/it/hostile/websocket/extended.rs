//! WebSockets by extended CONNECT (RFC 8441): handshakes that open nothing, successes that are none, and tunnels that end or
//! that nobody reads.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::frames::{
    self, END_HEADERS, HEADERS, Verdict, WHOLE_HEAD, answered, opened, verdict,
};
use super::super::{SLOWEST, Scene};
use super::{
    FLOOD, PING, PONG, Version, doors, handshake, pongs_are_short_under, read_to, stage, switched,
    tunnel,
};
use crate::alone::{Host, Origin, PATIENCE, Reply, Way, until};
use crate::harness::app::{App, Asked, send_all};
use crate::websocket::H2;

/// A handshake of HTTP/2: another value of a field, or without it, and more fields.
fn extended(
    other: Option<(&[u8], Option<&'static [u8]>)>,
    more: &[(&'static [u8], &'static [u8])],
) -> frames::Fields {
    let good: frames::Fields = vec![
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"http"),
        (b":authority", b"plain"),
        (b":path", b"/echo"),
        (b"sec-websocket-version", b"13"),
    ];
    let changed = good.into_iter().filter_map(|(name, value)| match other {
        Some((changed, value)) if changed == name => Some((name, value?)),
        _ => Some((name, value)),
    });
    changed.chain(more.iter().copied()).collect()
}

/// Handshakes of HTTP/2 that open no tunnel, whatever the app says: flags, fields, what becomes of them.
#[rustfmt::skip] // a row a line
fn bad_extended() -> Vec<(&'static str, u8, frames::Fields, Verdict)> {
    let open = END_HEADERS;
    let reset = || Verdict::Reset(Reason::PROTOCOL_ERROR);
    let refused_upgrade = || answered(400, "upgrade_refused");
    let unsupported = || answered(501, "method_unsupported");
    vec![
        ("its end", WHOLE_HEAD, extended(None, &[]), refused_upgrade()),
        ("a length of 0", open, extended(None, &[(b"content-length", b"0")]), refused_upgrade()),
        ("a length of 5", open, extended(None, &[(b"content-length", b"5")]), refused_upgrade()),
        ("a length that is no number", open, extended(None, &[(b"content-length", b"x")]), reset()),
        ("the upgrade of HTTP/1.1", open, extended(None, &[(b"connection", b"upgrade"), (b"upgrade", b"websocket")]), reset()),
        ("chunks", open, extended(None, &[(b"transfer-encoding", b"chunked")]), reset()),
        ("GET", open, extended(Some((b":method", Some(b"GET"))), &[]), reset()),
        ("no scheme", open, extended(Some((b":scheme", None)), &[]), reset()),
        ("no path", open, extended(Some((b":path", None)), &[]), reset()),
        ("no authority", open, extended(Some((b":authority", None)), &[]), answered(400, "malformed_request")),
        ("a user in the authority", open, extended(Some((b":authority", Some(b"me@plain"))), &[]), answered(400, "malformed_request")),
        ("a host that differs", open, extended(None, &[(b"host", b"evil")]), answered(400, "malformed_request")),
        ("a path above the root", open, extended(Some((b":path", Some(b"/../x"))), &[]), answered(400, "malformed_request")),
        ("a protocol in capitals", open, extended(Some((b":protocol", Some(b"WebSocket"))), &[]), unsupported()),
        ("a protocol without a name", open, extended(Some((b":protocol", Some(b""))), &[]), unsupported()),
        ("another protocol", open, extended(Some((b":protocol", Some(b"webtransport"))), &[]), unsupported()),
        ("no protocol, and a path", open, extended(Some((b":protocol", None)), &[]), reset()),
        ("a protocol behind the fields", open, extended(Some((b":protocol", None)), &[(b":protocol", b"websocket")]), reset()),
        ("two protocols", open, [&[(&b":protocol"[..], &b"websocket"[..])], &extended(None, &[])[..]].concat(), reset()),
    ]
}

#[tokio::test]
async fn handshakes_of_http2_that_are_none_open_no_tunnel_at_any_door() {
    let (mut scene, _app, ledger) = stage().await;
    let ask = |flags, fields: &[(&[u8], &[u8])]| {
        let head = frames::frame(HEADERS, flags, 1, &frames::block(fields));
        opened(&[head])
    };
    let mut wrong = Vec::new();
    for (door, way) in scene.doors(&["h2"]) {
        for (what, flags, fields, wanted) in bad_extended() {
            let got = verdict(&way, &ask(flags, &fields)).await;
            if got != wanted {
                wrong.push(format!("{door}: {what}: {got:?} and not {wanted:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        !ledger.asked.load(Ordering::Relaxed),
        "the app was asked to switch"
    );
    // The app's own to refuse, and what it takes.
    for (door, way) in scene.doors(&["h2"]) {
        for (version, status) in [(None, 426), (Some(&b"12"[..]), 426), (Some(b"13"), 200)] {
            let fields = extended(Some((b"sec-websocket-version", version)), &[]);
            let got = verdict(&way, &ask(END_HEADERS, &fields)).await;
            assert_eq!(got, answered(status, ""), "{door}: {version:?}");
        }
        // A key is HTTP/1.1's, and says nothing here.
        let fields = extended(None, &[(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")]);
        let got = verdict(&way, &ask(END_HEADERS, &fields)).await;
        assert_eq!(got, answered(200, ""), "{door}");
    }
    scene.assert_alive().await;
}

/// A tunnel that is reset, and a connection that goes with all of its tunnels.
#[tokio::test]
async fn a_tunnel_that_is_reset_ends_at_the_app_at_once() {
    const TUNNELS: usize = 5;
    let (mut scene, _app, ledger) = stage().await;
    let open = || ledger.open.load(Ordering::Relaxed);
    for (door, way) in scene.doors(&["h2"]) {
        let before = open();
        let mut client = H2::over(way.connect().await.unwrap()).await;
        let mut tunnels = Vec::new();
        for _ in 0..TUNNELS {
            let mut stream = tunnel(&mut client, "/echo", b"").await;
            read_to(&mut stream, b"hello").await;
            tunnels.push(stream);
        }
        assert_eq!(open(), before + TUNNELS, "{door}");
        let begun = Instant::now();
        drop(tunnels.pop());
        until("the app sees the reset", async || {
            (open() < before + TUNNELS).then_some(())
        })
        .await;
        assert!(
            begun.elapsed() < 3 * *SLOWEST,
            "{door}: {:?}",
            begun.elapsed()
        );
        // The others go on.
        for stream in &mut tunnels {
            stream.write_all(PING).await.unwrap();
            read_to(stream, PONG).await;
        }
        assert_eq!(open(), before + TUNNELS - 1, "{door}");
        let begun = Instant::now();
        drop((tunnels, client));
        until("the app sees them all go", async || {
            (open() == before).then_some(())
        })
        .await;
        assert!(
            begun.elapsed() < 3 * *SLOWEST,
            "{door}: {:?}",
            begun.elapsed()
        );
    }
    scene.assert_alive().await;
}

/// The status of a handshake that switches nothing.
async fn not_switched(way: &Way, version: Version, target: &str) -> u16 {
    let mut stream = way.connect().await.unwrap();
    if version == Version::Http2 {
        let uri = format!("http://plain{target}");
        let mut client = H2::over(stream).await;
        let (status, ..) = client.open_at(&uri, "websocket", b"").await;
        return status.as_u16();
    }
    stream.write_all(&handshake(target, b"")).await.unwrap();
    stream.flush().await.unwrap();
    let head = read_to(&mut stream, b"\r\n\r\n").await;
    Reply::parse(&head).status
}

/// Answers of an app of HTTP/2 to a handshake: status, a field, whether that is all. Every success opens a tunnel, but for
/// the last ones, which say how long it is.
#[rustfmt::skip] // a row a line
const SUCCESSES: &[(u16, (&str, &str), bool)] = &[
    (200, ("x", "y"), false),
    (201, ("x", "y"), false),
    (204, ("x", "y"), false),
    (206, ("content-range", "bytes 0-1/2"), false),
    (299, ("x", "y"), false),
    (200, ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), false),
    (200, ("sec-websocket-accept", "made up"), false),
    (200, ("weft-not-upgraded", "true"), false),
    (200, ("x", "y"), true),
    (204, ("x", "y"), true),
    (200, ("content-length", "3"), false),
    (200, ("content-length", "0"), false),
    (200, ("content-length", "0"), true),
];

/// An app of HTTP/2 that answers a handshake by the row that its path names, and then says everything back.
async fn odd_success(mut asked: Asked) {
    let path = asked.path();
    let number = path.strip_prefix("/success/").map(str::parse::<usize>);
    let Some(Ok(number)) = number else {
        return asked.answer(200, b"ok");
    };
    let protocol = asked.request.extensions().get::<Protocol>();
    assert_eq!(protocol.map(Protocol::as_str), Some("websocket"));
    let (status, (name, value), ends) = SUCCESSES[number];
    let answer = http::Response::builder().status(status).header(name, value);
    let answer = answer.body(()).unwrap();
    let Ok(mut send) = asked.respond.send_response(answer, ends) else {
        return;
    };
    let body = asked.request.body_mut();
    while let Some(Ok(data)) = body.data().await {
        let _: Result<(), h2::Error> = body.flow_control().release_capacity(data.len());
        if ends || !send_all(&mut send, data, false).await {
            return;
        }
    }
    let _: Result<(), h2::Error> = send.send_data(Bytes::new(), true);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_success_of_an_app_of_http2_is_a_tunnel_unless_it_has_a_length() {
    let host = Host::new();
    let _app = App::start(host.app(), usize::MAX, odd_success).await;
    let mut scene = Scene::of_calls(host, Origin::nobody()).await;
    for (door, way, version) in doors(&scene) {
        for (number, (status, field, ends)) in SUCCESSES.iter().enumerate() {
            let what = format!("{door}: {status} {field:?}");
            let target = format!("/success/{number}");
            if field.0 == "content-length" {
                let status = not_switched(&way, version, &target).await;
                assert_eq!(status, 502, "{what}");
                continue;
            }
            let mut stream = switched(&way, version, &target, b"").await;
            if !ends {
                stream.write_all(PING).await.unwrap();
                stream.flush().await.unwrap();
                assert_eq!(read_to(&mut stream, PING).await, PING, "{what}");
                stream.shutdown().await.unwrap();
            }
            let mut rest = Vec::new();
            let reading = stream.read_to_end(&mut rest);
            let ended: io::Result<usize> = timeout(PATIENCE, reading).await.unwrap();
            assert!(ended.is_ok(), "{what}: {ended:?}");
            assert_eq!(rest, b"", "{what}");
        }
    }
    scene.assert_alive().await;
}

/// Tunnels of one connection that nobody reads at one end or the other, and handshakes that nobody answers.
#[tokio::test(flavor = "multi_thread")]
async fn tunnels_on_one_connection_that_nobody_reads_hold_little_and_stop_no_ping() {
    const FLOODS: usize = 60;
    const DEAF: usize = 30;
    const HANGING: usize = 9;
    let (mut scene, _app, ledger) = stage().await;
    for (door, way) in scene.doors(&["h2"]) {
        let attack = async {
            // It promises to read what it never will.
            let mut builder = h2::client::Builder::new();
            builder
                .initial_window_size(FLOOD as u32)
                .initial_connection_window_size(1 << 24);
            let mut client = H2::with(&builder, way.connect().await.unwrap()).await;
            let (mut held, mut pouring) = (Vec::new(), JoinSet::new());
            for _ in 0..FLOODS {
                held.push(tunnel(&mut client, "/flood", b"").await);
            }
            for _ in 0..DEAF {
                let mut deaf = tunnel(&mut client, "/deaf", b"").await;
                pouring.spawn(async move {
                    let pour = vec![b'x'; FLOOD];
                    let _ = timeout(Duration::from_secs(2), deaf.write_all(&pour)).await;
                    deaf
                });
            }
            let mut asked = Vec::new();
            for _ in 0..HANGING {
                let mut request = http::Request::connect("http://plain/hang");
                request = request.header("sec-websocket-version", "13");
                let mut request = request.extension(Protocol::from_static("websocket"));
                request = request.version(http::Version::HTTP_2);
                let request = request.body(()).unwrap();
                asked.push(client.sender.send_request(request, false).unwrap());
            }
            while let Some(deaf) = pouring.join_next().await {
                held.push(deaf.unwrap());
            }
        };
        pongs_are_short_under(&mut scene, door, &way, Version::Http2, attack).await;
    }
    until("the app to be left alone", async || {
        // Those that the app itself keeps for a minute are its own affair.
        (ledger.open.load(Ordering::Relaxed) <= 4 * (DEAF + HANGING) + 20).then_some(())
    })
    .await;
}
