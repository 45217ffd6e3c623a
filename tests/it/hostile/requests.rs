//! Requests that two readers might take for two different ones.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use super::{Scene, good};
use crate::alone::{Reply, Then, fine};

/// Follows each hostile request on its connection: whoever takes a message for shorter than it is serves this.
pub(crate) const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nhost: plain\r\n\r\n";

/// Request lines before a good `host`, and the status that each gets.
#[rustfmt::skip] // a row a line
const LINES: &[(&[u8], u16)] = &[
    (b"GET  / HTTP/1.1\r\n", 400),
    (b"GET /  HTTP/1.1\r\n", 400),
    (b"GET / HTTP/1.1 \r\n", 400),
    (b" GET / HTTP/1.1\r\n", 400),
    (b"GET /a b HTTP/1.1\r\n", 400),
    (b"GET\t/ HTTP/1.1\r\n", 400),
    (b"GET /\tHTTP/1.1\r\n", 400),
    (b"GET\x0b/ HTTP/1.1\r\n", 400),
    (b"GET /\x00 HTTP/1.1\r\n", 400),
    (b"GET /\x01 HTTP/1.1\r\n", 400),
    (b"GET /\x7f HTTP/1.1\r\n", 400),
    (b"GET /\xe9 HTTP/1.1\r\n", 400),
    (b"GET /x\ry HTTP/1.1\r\n", 400),
    (b"GET / HTTP/1.1\n", 400),
    (b"GET / HTTP/1.1\r", 400),
    (b"GET / HTTP/1.1\r\r\n", 400),
    (b"\nGET / HTTP/1.1\r\n", 400),
    (b"\rGET / HTTP/1.1\r\n", 400),
    (b"\r\n\r\nGET / HTTP/1.1\r\n", 400),
    (b"GET /\r\n", 400),
    (b"GET\r\n", 400),
    (b"/\r\n", 400),
    (b"GET / HTTP/0.9\r\n", 505),
    (b"GET / HTTP/1.2\r\n", 505),
    (b"GET / HTTP/2.0\r\n", 505),
    (b"GET / HTTP/3.0\r\n", 505),
    (b"GET / HTTP/1\r\n", 400),
    (b"GET / HTTP/1.10\r\n", 400),
    (b"GET / HTTP/01.1\r\n", 400),
    (b"GET / http/1.1\r\n", 400),
    (b"GET / HTTPS/1.1\r\n", 400),
    (b"GET / HTTP /1.1\r\n", 400),
    (b"GET x HTTP/1.1\r\n", 400),
    (b"GET * HTTP/1.1\r\n", 400),
    (b"GET ?q HTTP/1.1\r\n", 400),
    (b"GET plain:80 HTTP/1.1\r\n", 400),
    (b"GET ftp://plain/ HTTP/1.1\r\n", 400),
    (b"GET file:///etc/passwd HTTP/1.1\r\n", 400),
    (b"GET http:/plain/ HTTP/1.1\r\n", 400),
    (b"GET http:///x HTTP/1.1\r\n", 400),
    (b"GET http://u@plain/ HTTP/1.1\r\n", 400),
    (b"GET http://plain:99999/ HTTP/1.1\r\n", 400),
    (b"GET http://plain\\@evil/ HTTP/1.1\r\n", 400),
    (b"GET http://plain/x#f HTTP/1.1\r\n", 400),
    (b"GET /x#f HTTP/1.1\r\n", 400),
    (b"GET /% HTTP/1.1\r\n", 400),
    (b"GET /%zz HTTP/1.1\r\n", 400),
    (b"GET /%u0041 HTTP/1.1\r\n", 400),
    (b"GET /a\\..\\b HTTP/1.1\r\n", 400),
    (b"GET /\"x\" HTTP/1.1\r\n", 400),
    (b"GET /<x> HTTP/1.1\r\n", 400),
    (b"G(T / HTTP/1.1\r\n", 400),
    (b"GET: / HTTP/1.1\r\n", 400),
    (b"G\xc9T / HTTP/1.1\r\n", 400),
    (b"\"GET\" / HTTP/1.1\r\n", 400),
    (b"CONNECT plain:443 HTTP/1.1\r\n", 501),
    (b"CONNECT / HTTP/1.1\r\n", 501),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n", 400),
    (b"SSH-2.0-OpenSSH_9.6\r\n", 400),
    (b"EHLO plain\r\n", 400),
];

/// Paths that two readers may read differently. Where such a request ends is clear, so its connection could go on: these
/// say themselves that it does not.
const PATHS: &[&[u8]] = &[
    b"/../x",
    b"/a/../../x",
    b"/%2e%2e/x",
    b"/a%2fb",
    b"/a%5cb",
    b"/a%00",
    b"/a%0d%0ax:%20y",
    b"/..;/x",
    b"/./..",
    b"/a/..%2f",
    b"/%c0%ae%c0%ae/x%2f",
    b"/a/%2e%2e/%2e%2e/x",
    b"/a%5C..",
    b"/a%7f",
];

/// Values of the one `host`.
#[rustfmt::skip] // many short ones
const HOSTS: &[&[u8]] = &[
    b"", b" ", b":80", b"plain:", b"plain:65536", b"plain:-1", b"plain:+80", b"plain:8o", b"plain:80:80", b"plain: 80",
    b"plain:80/x", b"::1", b"[::1", b"[]", b"[::1%25lo]", b"[::1]x", b"u@plain", b"u:p@plain", b"plain/x", b"plain?x", b"plain#x",
    b"plain\\x", b"http://plain", b"plain evil", b"plain\tevil", b"plain%2eevil", b"plain%00", b"pl\xe9in", b"<plain>", b"pl\"in",
];

/// Fields of a POST with a good `host`, and the status.
#[rustfmt::skip] // a row a line
const FIELDS: &[(&[u8], u16)] = &[
    // Where the body ends: every way in which two readers have disagreed.
    (b"content-length: 5\r\ntransfer-encoding: chunked\r\n", 400),
    (b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", 400),
    (b"transfer-encoding: chunked\r\ncontent-length: 0\r\n", 400),
    (b"transfer-encoding: chunked\r\nx: y\r\nContent-Length: 5\r\n", 400),
    (b"content-length: 5\r\ncontent-length: 6\r\n", 400),
    (b"content-length: 5\r\ncontent-length: 5\r\n", 400),
    (b"content-length: 0\r\nContent-Length: 40\r\n", 400),
    (b"content-length: 0, 40\r\n", 400),
    (b"content-length: 5, 5\r\n", 400),
    (b"content-length:\r\n", 400),
    (b"content-length: +5\r\n", 400),
    (b"content-length: -5\r\n", 400),
    (b"content-length: -0\r\n", 400),
    (b"content-length: 0x5\r\n", 400),
    (b"content-length: 5 5\r\n", 400),
    (b"content-length: 5.0\r\n", 400),
    (b"content-length: 5e0\r\n", 400),
    (b"content-length: 1_0\r\n", 400),
    (b"content-length: \"5\"\r\n", 400),
    (b"content-length: 5;\r\n", 400),
    (b"content-length: \x0b5\r\n", 400),
    (b"content-length: \xa05\r\n", 400),
    (b"content-length: 5\x00\r\n", 400),
    (b"content-length : 5\r\n", 400),
    (b"content-length\t: 5\r\n", 400),
    (b" content-length: 5\r\n", 400),
    (b"content-length: 9223372036854775808\r\n", 400),
    (b"content-length: 18446744073709551615\r\n", 400),
    (b"content-length: 18446744073709551616\r\n", 400),
    (b"content-length: 18446744073709551621\r\n", 400),
    (b"content-length: 340282366920938463463374607431768211456\r\n", 400),
    (b"transfer-encoding: gzip\r\n", 400),
    (b"transfer-encoding: identity\r\n", 400),
    (b"transfer-encoding: gzip, chunked\r\n", 400),
    (b"transfer-encoding: chunked, identity\r\n", 400),
    (b"transfer-encoding: chunked, chunked\r\n", 400),
    (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 400),
    (b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", 400),
    (b"transfer-encoding:\r\n", 400),
    (b"transfer-encoding: xchunked\r\n", 400),
    (b"transfer-encoding: chunkedx\r\n", 400),
    (b"transfer-encoding: \"chunked\"\r\n", 400),
    (b"transfer-encoding: chunked;x=y\r\n", 400),
    (b"transfer-encoding: chunked\x00\r\n", 400),
    (b"transfer-encoding: \x0bchunked\r\n", 400),
    (b"transfer-encoding : chunked\r\n", 400),
    (b" transfer-encoding: chunked\r\n", 400),
    (b"transfer-encoding:\r\n chunked\r\n", 400),
    (b"transfer-encoding: chunked\n", 400),
    (b"x: y\rtransfer-encoding: chunked\r\n", 400),
    (b"x: y\ntransfer-encoding: chunked\r\n", 400),
    (b"\ntransfer-encoding: chunked\r\n", 400),
    (b"\rtransfer-encoding: chunked\r\n", 400),
    // Another host.
    (b"host: plain\r\n", 400),
    (b"host: evil\r\n", 400),
    (b"HOST: evil\r\n", 400),
    (b"host : evil\r\n", 400),
    // Names and values.
    (b": y\r\n", 400),
    (b"x\r\n", 400),
    (b"x y\r\n", 400),
    (b"x y: z\r\n", 400),
    (b"x(y): z\r\n", 400),
    (b"x\"y: z\r\n", 400),
    (b"x/y: z\r\n", 400),
    (b"x\xe9: z\r\n", 400),
    (b"x\x00: z\r\n", 400),
    (b"x\x01: z\r\n", 400),
    (b"x: y\x00\r\n", 400),
    (b"x: \x01\r\n", 400),
    (b"x: \x08\r\n", 400),
    (b"x: \x1b\r\n", 400),
    (b"x: \x7f\r\n", 400),
    (b"x: y\r\r\n", 400),
    (b"x: y\rz: 1\r\n", 400),
    (b"x: y\n", 400),
    (b"x: y\r\n z\r\n", 400),
    (b"x: y\r\n\tz\r\n", 400),
    (b"x: y\r\n \r\n", 400),
    // Upgrades and expectations that nobody can meet.
    (b"upgrade: websocket\r\nconnection: upgrade\r\n", 400),
    (b"expect: 200-ok\r\n", 417),
    (b"expect: 100-continue, x\r\n", 417),
    (b"expect: 100-continue\r\nexpect: 100-continue\r\n", 400),
];

/// Whole requests that fit no other table.
#[rustfmt::skip] // a row a line
const WHOLE: &[(&[u8], u16)] = &[
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n host: plain\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nhost: plain\n\n", 400),
    (b"GET / HTTP/1.1\rhost: plain\r\r", 400),
    (b"GET /\n\n", 400),
    (b"POST / HTTP/1.0\r\nhost: plain\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nhost: plain\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\nhost: plain\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nhost: plain\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 1\r\n\r\nx", 400),
    (b"GET http://evil@plain/ HTTP/1.1\r\nhost: plain\r\n\r\n", 400),
    (b"GET http://plain/ HTTP/1.1\r\nhost: u@plain\r\n\r\n", 400),
    (b"GET http://plain/ HTTP/1.1\r\n\r\n", 400),
    (b"\x00\x00\x00\x00\r\n\r\n", 400),
    (b"{\"json\": true}\r\n\r\n", 400),
];

/// Bodies after `transfer-encoding: chunked` that are none: the head is fine, so the origin may have seen it, but never a
/// whole request.
#[rustfmt::skip] // a row a line
pub(crate) const CHUNKS: &[&[u8]] = &[
    b"x\r\n", b"\r\n\r\n", b"-1\r\n\r\n", b"+1\r\na\r\n0\r\n\r\n", b"0x1\r\na\r\n0\r\n\r\n", b" 1\r\na\r\n0\r\n\r\n", b"1 \r\na\r\n0\r\n\r\n",
    b"1\na\n0\n\n", b"1\r\na\n0\r\n\r\n", b"1\r\na0\r\n\r\n", b"1\r\nab\r\n0\r\n\r\n", b"1\r\na\r\r\n0\r\n\r\n", b"1\ra\r\n0\r\n\r\n",
    b"g\r\n", b"1g\r\na\r\n0\r\n\r\n", b"10000000000000000\r\n", b"ffffffffffffffff\r\na", b"8000000000000000\r\na", b"00000000000000001\r\na\r\n0\r\n\r\n",
    b"1;x\na\r\n0\r\n\r\n", b"1;x=\x00\r\na\r\n0\r\n\r\n", b"1;x=\x7f\r\na\r\n0\r\n\r\n", b"0\n\n", b"0\r\n\n", b"0\r\nx\r\n\r\n", b"0\r\nx : y\r\n\r\n", b"0\r\nx: y\n\r\n",
    b"0\r\n x: y\r\n\r\n", b"0\r\nx: \x00\r\n\r\n", b"0\r\nx: y\r\n z\r\n\r\n",
];

/// Every request that is refused by its head.
pub(crate) fn bad_heads() -> Vec<(Vec<u8>, u16)> {
    let mut all = Vec::new();
    for (line, status) in LINES {
        all.push(([*line, b"host: plain\r\n\r\n"].concat(), *status));
    }
    for path in PATHS {
        let head = b" HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n";
        all.push(([b"GET ", *path, head].concat(), 400));
    }
    for host in HOSTS {
        all.push((
            [b"GET / HTTP/1.1\r\nhost: ", *host, b"\r\n\r\n"].concat(),
            400,
        ));
    }
    for (fields, status) in FIELDS {
        all.push((
            [b"POST / HTTP/1.1\r\nhost: plain\r\n", *fields, b"\r\n"].concat(),
            *status,
        ));
    }
    for (bytes, status) in WHOLE {
        all.push((bytes.to_vec(), *status));
    }
    // At the bounds.
    let long = |size: usize| vec![b'x'; size];
    let head = |rest: &[u8]| [b"GET / HTTP/1.1\r\nhost: plain\r\n", rest, b"\r\n"].concat();
    all.push((
        [
            b"GET /",
            &long(17_000)[..],
            b" HTTP/1.1\r\nhost: plain\r\n\r\n",
        ]
        .concat(),
        414,
    ));
    all.push((
        [&long(100)[..], b" / HTTP/1.1\r\nhost: plain\r\n\r\n"].concat(),
        501,
    ));
    all.push((head(&[b"x: ", &long(66_000)[..], b"\r\n"].concat()), 431));
    all.push((head(&[&long(66_000)[..], b": y\r\n"].concat()), 431));
    all.push((head(&b"a: b\r\n".repeat(129)), 431));
    all.push((head(&b"a: b\r\n".repeat(20_000)), 431));
    all
}

#[tokio::test]
async fn hostile_heads_are_refused_at_every_door_and_never_forwarded() {
    let mut scene = Scene::set(|_| fine()).await;
    let cases = bad_heads();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    for (door, way) in scene.doors(&["http/1.1"]) {
        good(&way).await;
        let before = (scene.origin.bytes(), scene.origin.requests().len());
        for (bytes, status) in &cases {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            let answer = way.send(&[bytes, SMUGGLED].concat()).await;
            let answer = answer.unwrap_or_else(|error| panic!("{door}: {error}: {shown:?}"));
            let text = String::from_utf8_lossy(&answer);
            assert!(
                text.starts_with(&format!("HTTP/1.1 {status} ")),
                "{door}: {shown:?} got {text:?}"
            );
            assert!(
                text.contains("\r\nconnection: close\r\n"),
                "{door}: {shown:?} got {text:?}"
            );
            assert_eq!(
                text.matches("\r\nweft-reason: ").count(),
                1,
                "{door}: {shown:?} got two answers"
            );
            assert!(
                !text.contains("HTTP/1.1 200"),
                "{door}: {shown:?} got {text:?}"
            );
            let after = (scene.origin.bytes(), scene.origin.requests().len());
            assert_eq!(after, before, "{door}: {shown:?} was forwarded");
        }
        good(&way).await;
    }
    scene.assert_alive().await;
}

#[tokio::test]
async fn bodies_that_are_none_never_become_whole_requests() {
    let mut scene = Scene::set(|_| fine()).await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        for chunks in CHUNKS {
            let shown = String::from_utf8_lossy(chunks);
            let before = scene.origin.requests().len();
            let head = b"POST /body HTTP/1.1\r\nhost: plain\r\ntransfer-encoding: chunked\r\n\r\n";
            let answer = way.send(&[head, *chunks, SMUGGLED].concat()).await;
            let text = String::from_utf8_lossy(&answer.unwrap()).into_owned();
            let malformed = text.contains("\r\nweft-reason: malformed_request\r\n");
            let refused = text.starts_with("HTTP/1.1 400 ") && malformed;
            assert!(refused, "{door}: {shown:?} got {text:?}");
            let answers = text.matches("HTTP/1.1 ").count();
            assert_eq!(answers, 1, "{door}: {shown:?} got {text:?}");
            assert_eq!(
                scene.origin.requests().len(),
                before,
                "{door}: {shown:?} was taken for whole"
            );
        }
        good(&way).await;
    }
    // Too much of what is allowed in small amounts.
    let extension = [
        b"1;".to_vec(),
        vec![b'x'; 300],
        b"\r\na\r\n0\r\n\r\n".to_vec(),
    ]
    .concat();
    let extensions = [
        b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n".repeat(1000),
        b"0\r\n\r\n".to_vec(),
    ]
    .concat();
    let trailers = [b"0\r\n".to_vec(), b"x: y\r\n".repeat(40), b"\r\n".to_vec()].concat();
    let trailer = [b"0\r\nx: ".to_vec(), vec![b'y'; 9000], b"\r\n\r\n".to_vec()].concat();
    for (door, way) in scene.doors(&["http/1.1"]) {
        for (chunks, status, reason) in [
            (&extension, 400, "malformed_request"),
            (&extensions, 400, "malformed_request"),
            (&trailers, 431, "head_too_large"),
            (&trailer, 431, "head_too_large"),
        ] {
            let before = scene.origin.requests().len();
            let head = b"POST /body HTTP/1.1\r\nhost: plain\r\ntransfer-encoding: chunked\r\n\r\n";
            let answer = way.send(&[head, &chunks[..], SMUGGLED].concat()).await;
            Reply::parse(&answer.unwrap()).refused(status, reason);
            assert_eq!(scene.origin.requests().len(), before, "{door}");
        }
        good(&way).await;
    }
    assert!(
        scene
            .origin
            .requests()
            .iter()
            .all(|seen| seen.target() != "/smuggled")
    );
    scene.assert_alive().await;
}

/// What is hop by hop ends at the hop, whatever a message calls so.
#[tokio::test]
async fn hop_by_hop_fields_are_not_passed_on() {
    let mut scene = Scene::set(|_| {
        Then::Keep(
            b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=9\r\nproxy-connection: x\r\nupgrade: h2c\r\nconnection: x-secret\r\nx-secret: 1\r\nx-plain: 2\r\ncontent-length: 2\r\n\r\nok"
                .to_vec(),
        )
    })
    .await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        let fields = [
            ("host", "plain"),
            ("connection", "x-drop, upgrade, http2-settings"),
            ("x-drop", "1"),
            ("x-keep", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ];
        let reply = way.ask("GET /", &fields, "").await;
        let seen = scene.origin.last();
        for name in [
            "x-drop",
            "keep-alive",
            "proxy-connection",
            "te",
            "upgrade",
            "http2-settings",
            "connection",
        ] {
            assert!(seen.fields(name).is_empty(), "{door}: {name} in {seen:?}");
        }
        assert_eq!(seen.fields("x-keep"), ["2"], "{door}");
        assert_eq!(reply.status, 200, "{door}");
        for name in ["keep-alive", "proxy-connection", "upgrade", "x-secret"] {
            assert_eq!(reply.field(name), None, "{door}: {name} in {reply:?}");
        }
        assert_eq!(reply.field("x-plain"), Some("2"), "{door}");
    }
    scene.assert_alive().await;
}

/// RFC 9112 §3.2.2: what is asked for by its whole address is asked for there, whatever the field says, and the app is told
/// so. At the doors of the mesh as at those of the edge.
#[tokio::test]
async fn the_absolute_form_wins_over_the_host_at_every_door() {
    let mut scene = Scene::set(|_| fine()).await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        for (line, field, seen) in [
            ("GET /x", "plain", "plain"),
            ("GET http://plain/x", "other.example", "plain"),
            ("GET http://plain/x", "plain", "plain"),
            ("GET http://PLAIN/x", "other.example", "PLAIN"),
        ] {
            let reply = way.ask(line, &[("host", field)], "").await;
            assert_eq!(reply.status, 200, "{door}: {line}, {field}: {reply:?}");
            let last = scene.origin.last();
            assert_eq!(last.fields("host"), [seen], "{door}: {line}, {field}");
            assert_eq!(last.target(), "/x", "{door}: {line}, {field}");
        }
        // It is nothing that the field could make right.
        let before = scene.origin.requests().len();
        let reply = way
            .ask("GET http://other.example/x", &[("host", "plain")], "")
            .await;
        match door {
            // Here the name is that of a service.
            "outbound" => {
                reply.refused(404, "no_service");
                assert_eq!(scene.origin.requests().len(), before);
            }
            _ => {
                assert_eq!(reply.status, 200, "{door}: {reply:?}");
                assert_eq!(
                    scene.origin.last().fields("host"),
                    ["other.example"],
                    "{door}"
                );
            }
        }
    }
    scene.assert_alive().await;
}
