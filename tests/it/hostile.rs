//! What a proxy must withstand: bytes that mean harm, at every door and from every origin, and a good client beside them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io;
use std::time::Duration;

use rustls::ALL_VERSIONS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::alone::{
    Host, IDENTITY, Origin, PATIENCE, Running, Stream, Then, Way, fine, read_to_end, until,
};
use crate::forge::{Authority, nobody, service};

/// Follows each hostile request on its connection: whoever takes a message for shorter than it is serves this.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nhost: plain\r\n\r\n";

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
const CHUNKS: &[&[u8]] = &[
    b"x\r\n", b"\r\n\r\n", b"-1\r\n\r\n", b"+1\r\na\r\n0\r\n\r\n", b"0x1\r\na\r\n0\r\n\r\n", b" 1\r\na\r\n0\r\n\r\n", b"1 \r\na\r\n0\r\n\r\n",
    b"1\na\n0\n\n", b"1\r\na\n0\r\n\r\n", b"1\r\na0\r\n\r\n", b"1\r\nab\r\n0\r\n\r\n", b"1\r\na\r\r\n0\r\n\r\n", b"1\ra\r\n0\r\n\r\n",
    b"g\r\n", b"1g\r\na\r\n0\r\n\r\n", b"10000000000000000\r\n", b"ffffffffffffffff\r\na", b"8000000000000000\r\na", b"00000000000000001\r\na\r\n0\r\n\r\n",
    b"1;x\na\r\n0\r\n\r\n", b"1;x=\x00\r\na\r\n0\r\n\r\n", b"1;x=\x7f\r\na\r\n0\r\n\r\n", b"0\n\n", b"0\r\n\n", b"0\r\nx\r\n\r\n", b"0\r\nx : y\r\n\r\n", b"0\r\nx: y\n\r\n",
    b"0\r\n x: y\r\n\r\n", b"0\r\nx: \x00\r\n\r\n", b"0\r\nx: y\r\n z\r\n\r\n",
];

/// One origin behind a sidecar and a gateway, and the doors that lead to it.
struct Scene {
    origin: Origin,
    sidecar: Running,
    ingress: Running,
    mesh: Authority,
    host: Host,
    _edge: Host,
}

impl Scene {
    async fn set(act: impl Fn(&crate::alone::Seen) -> Then + Send + Sync + 'static) -> Self {
        let mesh = Authority::new();
        let host = Host::new();
        host.identify(&mesh, "orders");
        mesh.public_leaf("gateway.example")
            .write(host.directory(), "public");
        host.configure(&format!(
            "{IDENTITY}services:
  orders: {{ port: {port} }}
  plain: {{ mesh: false, endpoints: [\"{app}\"], retry: {{ attempts: 0 }}, outlier: {{ enabled: false }} }}
ingress:
  listeners:
    - {{ name: public, address: \"{public}\" }}
    - {{ name: secure, address: \"{secure}\", tls: {{ cert: public.pem, key: public.key }} }}
  routes: [ {{ to: plain }} ]
",
            port = host.app().port(),
            app = host.app(),
            public = host.public(),
            secure = host.secure(),
        ));
        let text = std::fs::read_to_string(host.directory().join("weft.yaml")).unwrap();
        let edge = host.beside();
        edge.write(
            "weft.yaml",
            &text.replace(&host.admin().to_string(), &edge.admin().to_string()),
        );
        let origin = Origin::start(host.app(), act).await;
        let (sidecar, ingress) = tokio::join!(host.sidecar("orders"), edge.ingress());
        Self {
            origin,
            sidecar,
            ingress,
            mesh,
            host,
            _edge: edge,
        }
    }

    fn doors(&self, alpn: &[&str]) -> [(&'static str, Way); 4] {
        let member = self.mesh.leaf(&service("storefront")).client(alpn);
        [
            ("public", Way::Plain(self.host.public())),
            (
                "secure",
                Way::Tls(self.host.secure(), nobody(ALL_VERSIONS, alpn)),
            ),
            ("outbound", Way::Plain(self.host.outbound())),
            ("mesh", Way::Tls(self.host.mesh(), member)),
        ]
    }

    async fn assert_alive(&mut self) {
        self.sidecar.assert_alive().await;
        self.ingress.assert_alive().await;
    }
}

async fn good(way: &Way) {
    let reply = way.ask("GET /good", &[("host", "plain")], "").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
}

/// Every request that is refused by its head.
fn bad_heads() -> Vec<(Vec<u8>, u16)> {
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
            let answer = way
                .send(&[head, *chunks, SMUGGLED].concat())
                .await
                .unwrap_or_default();
            let text = String::from_utf8_lossy(&answer);
            assert!(
                answer.is_empty() || text.starts_with("HTTP/1.1 400 "),
                "{door}: {shown:?} got {text:?}"
            );
            assert!(
                text.matches("HTTP/1.1 ").count() <= 1,
                "{door}: {shown:?} got {text:?}"
            );
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
        for chunks in [&extension, &extensions, &trailers, &trailer] {
            let before = scene.origin.requests().len();
            let head = b"POST /body HTTP/1.1\r\nhost: plain\r\ntransfer-encoding: chunked\r\n\r\n";
            let answer = way
                .send(&[head, &chunks[..], SMUGGLED].concat())
                .await
                .unwrap_or_default();
            assert!(
                !answer.starts_with(b"HTTP/1.1 200"),
                "{door}: {}",
                String::from_utf8_lossy(&answer)
            );
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

/// Answers of an origin that stays connected: each is a 502 that names the rule.
#[rustfmt::skip] // a row a line
const ANSWERS: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0x2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2x\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551618\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
    b"HTTP/1.1 304 X\r\ncontent-length: x\r\n\r\n",
    b"HTTP/1.1 204 X\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding:\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx : y\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\n x: y\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\n: y\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx(: y\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: \x00\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: \x01\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: y\rset-cookie: evil\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: y\nset-cookie: evil\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok\r\n\r\n",
    b"HTTP/1.1 200 OK\r\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 O\x00K\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1  200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1\t200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 \r\n\r\n",
    b"HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 20x OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 -20 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 000 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 600 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 999 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/0.9 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/2 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"http/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"ICY 200 OK\r\n\r\n",
    b" HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"<html>hello</html>\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"\x15\x03\x03\x00\x02\x02\x16\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
];

/// Answers whose head is good and whose body is not: the client must be able to tell.
#[rustfmt::skip] // a row a line
const BROKEN_BODIES: &[(&[u8], bool)] = &[
    // The connection stays open: only the bytes are wrong.
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\nok\r\n0\r\n\r\n", false),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n", false),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", false),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\nok\n0\n\n", false),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokk\r\n0\r\n\r\n", false),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nok", false),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n", false),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx : y\r\n\r\n", false),
    // The connection ends too early.
    (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok", true),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", true),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", true),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok", true),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", true),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", true),
];

/// Heads that end before they do.
const CUT_HEADS: &[&[u8]] = &[
    b"",
    b"HTTP/1.1 200",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
];

fn number(target: &str) -> Option<usize> {
    target.rsplit('/').next()?.parse().ok()
}

#[tokio::test]
async fn hostile_answers_become_a_502_and_their_connection_is_not_used_again() {
    let mut scene = Scene::set(|seen| match (seen.target(), number(seen.target())) {
        (target, Some(number)) if target.starts_with("/kept/") => {
            Then::Keep(ANSWERS[number].to_vec())
        }
        (target, Some(number)) if target.starts_with("/cut/") => {
            Then::Close(CUT_HEADS[number].to_vec())
        }
        ("/interim", _) => Then::Keep(
            [
                b"HTTP/1.1 103 X\r\n\r\n".repeat(20),
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(),
            ]
            .concat(),
        ),
        ("/fields", _) => Then::Keep(
            [
                b"HTTP/1.1 200 OK\r\n".to_vec(),
                b"a: b\r\n".repeat(200),
                b"\r\n".to_vec(),
            ]
            .concat(),
        ),
        ("/large", _) => Then::Keep(
            [
                b"HTTP/1.1 200 OK\r\nx: ".to_vec(),
                vec![b'x'; 70_000],
                b"\r\n\r\n".to_vec(),
            ]
            .concat(),
        ),
        _ => fine(),
    })
    .await;
    assert!(ANSWERS.len() + CUT_HEADS.len() + 3 >= 60);
    for (door, way) in scene.doors(&["http/1.1"]) {
        let mut targets: Vec<(String, &str)> = Vec::new();
        targets.extend((0..ANSWERS.len()).map(|n| (format!("/kept/{n}"), "upstream_malformed")));
        targets.extend(
            ["/interim", "/fields", "/large"]
                .map(|target| (target.to_owned(), "upstream_malformed")),
        );
        targets.extend((0..CUT_HEADS.len()).map(|n| (format!("/cut/{n}"), "upstream_reset")));
        for (target, reason) in targets {
            let reply = way
                .ask(&format!("GET {target}"), &[("host", "plain")], "")
                .await;
            assert_eq!(reply.status, 502, "{door} {target}: {reply:?}");
            let detail = reply.refused(502, reason);
            assert!(!detail.is_empty());
        }
        good(&way).await;
    }
    // Every connection on which something bad came has served nothing after it.
    let requests = scene.origin.requests();
    for (place, seen) in requests.iter().enumerate() {
        if seen.target() == "/good" {
            continue;
        }
        let after = requests[place + 1..]
            .iter()
            .find(|later| later.connection == seen.connection);
        assert!(
            after.is_none(),
            "after {} came {:?}",
            seen.target(),
            after.unwrap().target()
        );
    }
    scene.assert_alive().await;
}

#[tokio::test]
async fn a_broken_body_never_becomes_a_whole_one() {
    let mut scene = Scene::set(|seen| match number(seen.target()) {
        Some(number) if seen.target().starts_with("/broken/") => match BROKEN_BODIES[number] {
            (bytes, false) => Then::Keep(bytes.to_vec()),
            (bytes, true) => Then::Close(bytes.to_vec()),
        },
        _ => fine(),
    })
    .await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        for number in 0..BROKEN_BODIES.len() {
            let request = format!("GET /broken/{number} HTTP/1.1\r\nhost: plain\r\n\r\n");
            // The connection was to be kept; that it ends is how the client can tell.
            let answer = way.send(request.as_bytes()).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&answer);
            assert!(
                !text.ends_with("\r\n0\r\n\r\n"),
                "{door} {number}: {text:?}"
            );
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && let Some(length) = head.split("content-length: ").nth(1)
                && head.starts_with("HTTP/1.1 200")
            {
                let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                assert!(body.len() < length, "{door} {number}: {text:?}");
            }
        }
        good(&way).await;
    }
    scene.assert_alive().await;
}

/// An origin that sends more than it said is answered from for the last time.
#[tokio::test]
async fn surplus_bytes_of_an_answer_reach_nobody() {
    let mut scene = Scene::set(|seen| {
        if seen.target() != "/surplus" {
            return fine();
        }
        Then::Keep(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nset-cookie: poisoned\r\ncontent-length: 8\r\n\r\npoisoned"
                .to_vec(),
        )
    })
    .await;
    for (door, way) in scene.doors(&["http/1.1"]) {
        for _ in 0..5 {
            let reply = way.ask("GET /surplus", &[("host", "plain")], "").await;
            assert_eq!((reply.status, reply.text().as_str()), (200, "ok"), "{door}");
            good(&way).await;
        }
    }
    let requests = scene.origin.requests();
    for (place, seen) in requests.iter().enumerate() {
        let again = requests[place + 1..]
            .iter()
            .any(|later| later.connection == seen.connection);
        assert!(
            seen.target() != "/surplus" || !again,
            "a connection with surplus bytes was used again"
        );
    }
    scene.assert_alive().await;
}

// HTTP/2, by hand: the h2 crate's client would not send these.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const WHOLE_HEAD: u8 = END_STREAM | END_HEADERS;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Fields as literals without indexing and without Huffman: nothing is normalised on the way.
fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

type Fields = Vec<(&'static [u8], &'static [u8])>;

fn request() -> Fields {
    vec![
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"plain"),
        (b":path", b"/two"),
    ]
}

/// The good request with more fields.
fn with(more: &[(&'static [u8], &'static [u8])]) -> Fields {
    [&request(), more].concat()
}

/// The good request with another value of one pseudo-header, or without it.
fn other(name: &[u8], value: Option<&'static [u8]>) -> Fields {
    request()
        .into_iter()
        .filter_map(|(have, good)| match (have == name, value) {
            (true, value) => Some((have, value?)),
            (false, _) => Some((have, good)),
        })
        .collect()
}

/// Heads that RFC 9113 §8 calls malformed, or that could not be said in HTTP/1.1.
#[rustfmt::skip] // a row a line
fn bad_requests() -> Vec<(&'static str, Fields)> {
    vec![
        ("upper case in a name", with(&[(b"X-Upper", b"y")])),
        ("a space in a name", with(&[(b"x y", b"z")])),
        ("a colon in a name", with(&[(b"x:y", b"z")])),
        ("a line end in a name", with(&[(b"x\r\ny", b"z")])),
        ("an empty name", with(&[(b"", b"z")])),
        ("a line end in a value", with(&[(b"x", b"y\r\nhost: evil")])),
        ("a line feed in a value", with(&[(b"x", b"y\nz")])),
        ("a null in a value", with(&[(b"x", b"y\0z")])),
        ("connection", with(&[(b"connection", b"close")])),
        ("keep-alive", with(&[(b"keep-alive", b"timeout=5")])),
        ("proxy-connection", with(&[(b"proxy-connection", b"close")])),
        ("transfer-encoding", with(&[(b"transfer-encoding", b"chunked")])),
        ("upgrade", with(&[(b"upgrade", b"h2c")])),
        ("te other than trailers", with(&[(b"te", b"gzip")])),
        ("no method", other(b":method", None)),
        ("no scheme", other(b":scheme", None)),
        ("no path", other(b":path", None)),
        ("no authority and no host", other(b":authority", None)),
        ("an empty path", other(b":path", Some(b""))),
        ("a path without a slash", other(b":path", Some(b"two"))),
        ("a whole URI for a path", other(b":path", Some(b"http://plain/two"))),
        ("an asterisk for another method than OPTIONS", other(b":path", Some(b"*"))),
        ("a space in the path", other(b":path", Some(b"/a b"))),
        ("a line end in the path", other(b":path", Some(b"/a HTTP/1.1\r\nhost: evil\r\n\r\n"))),
        ("a null in the path", other(b":path", Some(b"/a\0"))),
        ("above the root", other(b":path", Some(b"/../a"))),
        ("an encoded slash", other(b":path", Some(b"/a%2fb"))),
        ("a backslash", other(b":path", Some(b"/a\\b"))),
        ("a bad escape", other(b":path", Some(b"/%zz"))),
        ("a user in the authority", other(b":authority", Some(b"user@plain"))),
        ("a path in the authority", other(b":authority", Some(b"plain/x"))),
        ("a space in the authority", other(b":authority", Some(b"plain evil"))),
        ("a line end in the authority", other(b":authority", Some(b"plain\r\nx: y"))),
        ("a bad port", other(b":authority", Some(b"plain:x"))),
        ("an empty authority", other(b":authority", Some(b""))),
        ("a method that is no token", other(b":method", Some(b"PO ST"))),
        ("a line end in the method", other(b":method", Some(b"GET / HTTP/1.1\r\nx:"))),
        ("an empty method", other(b":method", Some(b""))),
        ("CONNECT", vec![(b":method", b"CONNECT"), (b":authority", b"plain:443")]),
        ("CONNECT with a path", other(b":method", Some(b"CONNECT"))),
        ("extended CONNECT for a protocol that is not tunnelled", [&other(b":method", Some(b"CONNECT"))[..], &[(b":protocol", b"connect-udp")]].concat()),
        ("extended CONNECT without a path", [&[(&b":protocol"[..], &b"websocket"[..])], &other(b":path", None)[1..], &[(b":method", b"CONNECT")]].concat()),
        ("a protocol without CONNECT", [&[(&b":protocol"[..], &b"websocket"[..])], &request()[..]].concat()),
        ("two methods", [&[(&b":method"[..], &b"GET"[..])], &request()[..]].concat()),
        ("two paths", [&[(&b":path"[..], &b"/evil"[..])], &request()[..]].concat()),
        ("two authorities", [&[(&b":authority"[..], &b"evil"[..])], &request()[..]].concat()),
        ("a pseudo-header behind a field", [&[(&b"x"[..], &b"y"[..])], &request()[..]].concat()),
        ("a pseudo-header that nobody knows", [&[(&b":evil"[..], &b"y"[..])], &request()[..]].concat()),
        ("a status in a request", [&[(&b":status"[..], &b"200"[..])], &request()[..]].concat()),
        ("a host that differs", with(&[(b"host", b"evil")])),
        ("two hosts", with(&[(b"host", b"plain"), (b"host", b"plain")])),
        ("a host of another port", with(&[(b"host", b"plain:81")])),
        ("a length and no body", with(&[(b"content-length", b"5")])),
        ("a length that is no number", with(&[(b"content-length", b"x")])),
        ("a signed length", with(&[(b"content-length", b"+0")])),
        ("a length of 2^64", with(&[(b"content-length", b"18446744073709551616")])),
        ("two lengths", with(&[(b"content-length", b"0"), (b"content-length", b"5")])),
    ]
}

/// What the other side did, as far as it matters.
#[derive(Debug, Default)]
struct Heard {
    reset: bool,
    goaway: bool,
    /// The first byte of each answer's head: 0x88 is `:status 200`.
    answers: Vec<u8>,
    ended: bool,
}

/// Sends and listens until the stream is answered or reset, or the connection ends.
async fn converse(way: &Way, bytes: &[u8]) -> Heard {
    let work = async {
        let mut heard = Heard::default();
        let Ok(mut stream) = way.connect().await else {
            heard.ended = true;
            return heard;
        };
        let _: io::Result<()> = stream.write_all(bytes).await;
        let _: io::Result<()> = stream.flush().await;
        while !heard.goaway && !heard.reset && heard.answers.is_empty() {
            let Ok((kind, payload)) = read_frame(&mut stream).await else {
                heard.ended = true;
                break;
            };
            match kind {
                HEADERS => heard.answers.push(
                    payload
                        .iter()
                        .copied()
                        .find(|byte| byte & 0xe0 != 0x20)
                        .unwrap_or(0),
                ),
                RST_STREAM => heard.reset = true,
                GOAWAY => heard.goaway = true,
                _ => {}
            }
        }
        heard
    };
    timeout(PATIENCE, work)
        .await
        .expect("an answer, a reset or an end")
}

async fn read_frame(stream: &mut Stream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    if length > 1 << 20 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], payload))
}

fn opening() -> Vec<u8> {
    [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

fn opened(frames: &[Vec<u8>]) -> Vec<u8> {
    [opening(), frames.concat()].concat()
}

#[tokio::test]
async fn malformed_http2_requests_are_refused_at_every_door_and_never_forwarded() {
    let mut scene = Scene::set(|_| fine()).await;
    for (door, way) in scene.doors(&["h2"]) {
        let head = frame(HEADERS, WHOLE_HEAD, 1, &block(&request()));
        let heard = converse(&way, &opened(&[head])).await;
        assert_eq!(heard.answers, [0x88], "{door}: the good one: {heard:?}");
        let trailers = frame(
            HEADERS,
            WHOLE_HEAD,
            1,
            &block(&with(&[(b"te", b"trailers")])),
        );
        assert_eq!(
            converse(&way, &opened(&[trailers])).await.answers,
            [0x88],
            "{door}"
        );

        let before = scene.origin.bytes();
        for (what, fields) in bad_requests() {
            let head = frame(HEADERS, WHOLE_HEAD, 1, &block(&fields));
            let heard = converse(&way, &opened(&[head])).await;
            assert!(
                !heard.answers.contains(&0x88),
                "{door}: {what} was served: {heard:?}"
            );
            assert_eq!(scene.origin.bytes(), before, "{door}: {what} was forwarded");
        }
        // A length that the data does not keep: the head may be on its way, a whole request never.
        let whole = scene.origin.requests().len();
        for (length, data) in [(&b"5"[..], &b"abc"[..]), (b"3", b"abcde"), (b"0", b"a")] {
            let length: &'static [u8] = length;
            let head = frame(
                HEADERS,
                END_HEADERS,
                1,
                &block(&with(&[(b"content-length", length)])),
            );
            let body = frame(DATA, END_STREAM, 1, data);
            let heard = converse(&way, &opened(&[head, body])).await;
            assert!(
                !heard.answers.contains(&0x88),
                "{door}: {length:?} was served: {heard:?}"
            );
            assert_eq!(scene.origin.requests().len(), whole, "{door}: {length:?}");
        }
    }
    scene.assert_alive().await;
}

/// What HTTP/2 says otherwise than HTTP/1.1 is said in HTTP/1.1's way to an origin that speaks it.
#[tokio::test]
async fn what_came_by_http2_leaves_as_good_http1() {
    let mut scene = Scene::set(|_| fine()).await;
    for (door, way) in scene.doors(&["h2"]) {
        let fields = [
            &other(b":path", Some(b"/a#b"))[..],
            &[
                (b"cookie", b"a=1"),
                (b"x", b"y"),
                (b"cookie", b"b=2"),
                (b"te", b"trailers"),
            ],
        ]
        .concat();
        let head = frame(HEADERS, WHOLE_HEAD, 1, &block(&fields));
        assert_eq!(
            converse(&way, &opened(&[head])).await.answers,
            [0x88],
            "{door}"
        );
        let seen = scene.origin.last();
        // RFC 9113 §8.2.3: cookies are one field where they are not compressed.
        assert_eq!(seen.fields("cookie"), ["a=1; b=2"], "{door}: {seen:?}");
        assert_eq!(seen.fields("host"), ["plain"], "{door}: {seen:?}");
        assert_eq!(
            seen.target(),
            "/a",
            "{door}: a fragment is no part of a target"
        );
        assert_eq!(seen.fields("content-length"), ["0"], "{door}: {seen:?}");
    }
    scene.assert_alive().await;
}

/// Breaches of the connection's own rules: each ends the connection, or the stream that it is about.
#[rustfmt::skip] // a row a line
fn breaches() -> Vec<(&'static str, Vec<u8>)> {
    let open = || frame(HEADERS, END_HEADERS, 1, &block(&request()));
    let setting = |id: u16, value: u32| frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    vec![
        ("settings of 5 bytes", opened(&[frame(SETTINGS, 0, 0, &[0; 5])])),
        ("settings of a stream", opened(&[frame(SETTINGS, 0, 1, &[])])),
        ("an acknowledgement with content", opened(&[frame(SETTINGS, 1, 0, &[0; 6])])),
        ("a window of 2^31", opened(&[setting(4, 1 << 31)])),
        ("frames of 1 byte", opened(&[setting(5, 1)])),
        ("push of 2", opened(&[setting(2, 2)])),
        ("a head of stream 0", opened(&[frame(HEADERS, WHOLE_HEAD, 0, &block(&request()))])),
        ("a head of an even stream", opened(&[frame(HEADERS, WHOLE_HEAD, 2, &block(&request()))])),
        ("data of stream 0", opened(&[frame(DATA, 0, 0, b"x")])),
        ("data of a stream that is not open", opened(&[frame(DATA, 0, 1, b"x")])),
        ("a reset of a stream that is not open", opened(&[frame(RST_STREAM, 0, 1, &[0; 4])])),
        ("a reset of stream 0", opened(&[frame(RST_STREAM, 0, 0, &[0; 4])])),
        ("a reset of 3 bytes", opened(&[open(), frame(RST_STREAM, 0, 1, &[0; 3])])),
        ("a priority of 4 bytes", opened(&[frame(PRIORITY, 0, 1, &[0; 4]), frame(DATA, 0, 0, b"x")])),
        ("a ping of 7 bytes", opened(&[frame(PING, 0, 0, &[0; 7])])),
        ("a ping of a stream", opened(&[frame(PING, 0, 1, &[0; 8])])),
        ("a goodbye of a stream", opened(&[frame(GOAWAY, 0, 1, &[0; 8])])),
        ("a promise from a client", opened(&[frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])])),
        ("a window update of nothing", opened(&[frame(WINDOW_UPDATE, 0, 0, &[0; 4])])),
        ("a window update of 3 bytes", opened(&[frame(WINDOW_UPDATE, 0, 0, &[0; 3])])),
        ("a window beyond 2^31", opened(&[frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])])),
        ("a continuation of nothing", opened(&[frame(CONTINUATION, END_HEADERS, 1, &[])])),
        ("data in the middle of a head", opened(&[frame(HEADERS, 0, 1, &block(&request())), frame(DATA, 0, 1, b"x")])),
        ("another stream in the middle of a head", opened(&[frame(HEADERS, 0, 1, &block(&request())), frame(HEADERS, WHOLE_HEAD, 3, &block(&request()))])),
        ("padding beyond the frame", opened(&[frame(HEADERS, WHOLE_HEAD | 8, 1, &[200, 0])])),
        ("a frame of 16 MiB", [opening(), vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]].concat()),
        ("an index of 0", opened(&[frame(HEADERS, WHOLE_HEAD, 1, &[0x80])])),
        ("an index beyond the table", opened(&[frame(HEADERS, WHOLE_HEAD, 1, &[0xbf, 0x7f])])),
        ("a number without end", opened(&[frame(HEADERS, WHOLE_HEAD, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])])),
        ("a text beyond the block", opened(&[frame(HEADERS, WHOLE_HEAD, 1, &[0, 5, b'x'])])),
        ("Huffman padding that is none", opened(&[frame(HEADERS, WHOLE_HEAD, 1, &[0, 0x81, 0, 0x81, 0])])),
        ("a table size beyond the setting", opened(&[frame(HEADERS, WHOLE_HEAD, 1, &[0x3f, 0xff, 0xff, 0x7f])])),
    ]
}

#[tokio::test]
async fn breaches_of_http2_end_the_connection_and_nothing_else() {
    let mut scene = Scene::set(|_| fine()).await;
    for ((door, way), (_, h1)) in scene
        .doors(&["h2"])
        .into_iter()
        .zip(scene.doors(&["http/1.1"]))
    {
        let before = scene.origin.requests().len();
        for (what, bytes) in breaches() {
            let heard = converse(&way, &bytes).await;
            assert!(
                heard.goaway || heard.reset || heard.ended,
                "{door}: {what}: {heard:?}"
            );
            assert!(heard.answers.is_empty(), "{door}: {what}: {heard:?}");
        }
        assert_eq!(scene.origin.requests().len(), before, "{door}");
        good(&h1).await;
    }
    // In plaintext a preface that is not carried through is answered as what it began as.
    for (door, way) in scene
        .doors(&[])
        .into_iter()
        .filter(|(door, _)| ["public", "outbound"].contains(door))
    {
        for bytes in [
            &b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..],
            b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n",
            b"PRI * HTTP/2.0\r\nhost: plain\r\n\r\n",
        ] {
            let mut stream = way.connect().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let answer = timeout(PATIENCE, read_to_end(&mut stream))
                .await
                .unwrap()
                .unwrap_or_default();
            // An empty SETTINGS frame, and GOAWAY.
            assert_eq!(answer.len(), 26, "{door}: {answer:?}");
            assert_eq!((answer[3], answer[12]), (4, 7), "{door}: {answer:?}");
        }
    }
    // With TLS it was agreed to speak HTTP/2: no preface, no connection, and no HTTP/1.1 either.
    for (door, way) in scene
        .doors(&["h2"])
        .into_iter()
        .filter(|(door, _)| ["secure", "mesh"].contains(door))
    {
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: plain\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            &[0; 64],
        ] {
            let mut stream = way.connect().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let answer = timeout(PATIENCE, read_to_end(&mut stream))
                .await
                .unwrap()
                .unwrap_or_default();
            assert!(
                !answer.windows(5).any(|window| window == b"HTTP/"),
                "{door}: {answer:?}"
            );
        }
    }
    scene.assert_alive().await;
}

/// Sends as much as the other side takes, and says whether it ended the connection.
async fn flood(way: &Way, bytes: &[u8]) -> Heard {
    let work = async {
        let mut heard = Heard::default();
        let (mut read, mut write) = tokio::io::split(way.connect().await.unwrap());
        let bytes = bytes.to_vec();
        let writing = tokio::spawn(async move {
            let _: io::Result<()> = write.write_all(&bytes).await;
            let _: io::Result<()> = write.flush().await;
            write
        });
        let mut head = [0; 9];
        while !heard.goaway {
            if read.read_exact(&mut head).await.is_err() {
                heard.ended = true;
                break;
            }
            let length = u64::from(u32::from_be_bytes([0, head[0], head[1], head[2]]));
            heard.goaway = head[3] == GOAWAY;
            let skipped =
                tokio::io::copy(&mut (&mut read).take(length), &mut tokio::io::sink()).await;
            if skipped.is_err() {
                heard.ended = true;
                break;
            }
        }
        writing.abort();
        heard
    };
    timeout(PATIENCE, work)
        .await
        .expect("the connection to be ended")
}

#[tokio::test]
async fn floods_of_http2_are_cut_while_others_are_served() {
    let mut scene = Scene::set(|_| fine()).await;
    // A head that goes on for ever, in pieces with content and in empty ones.
    let begun = frame(HEADERS, 0, 1, &block(&request()));
    let piece = frame(CONTINUATION, 0, 1, &block(&[(b"x-flood", &[b'y'; 100])]));
    let continued = opened(&[begun.clone(), piece.repeat(20_000)]);
    let empty = opened(&[begun, frame(CONTINUATION, 0, 1, &[]).repeat(100_000)]);
    // Small on the wire, large when decoded: one entry of the table, a thousand times.
    let mut bomb = block(&request());
    bomb.extend([0x40, 1, b'x', 0x7f, 0x81, 0x1e]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let bomb = opened(&[frame(HEADERS, WHOLE_HEAD, 1, &bomb)]);
    // Opened and taken back, CVE-2023-44487.
    let mut resets = Vec::new();
    for number in 0..5_000 {
        let stream = 2 * number + 1;
        resets.push(frame(HEADERS, WHOLE_HEAD, stream, &block(&request())));
        resets.push(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    let resets = opened(&resets);
    // Made to be reset by us, CVE-2025-8671: a window update of nothing is an error of its stream.
    let mut provoked = Vec::new();
    for number in 0..5_000 {
        let stream = 2 * number + 1;
        provoked.push(frame(HEADERS, END_HEADERS, stream, &block(&request())));
        provoked.push(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
    }
    let provoked = opened(&provoked);

    for ((door, way), (_, h1)) in scene
        .doors(&["h2"])
        .into_iter()
        .zip(scene.doors(&["http/1.1"]))
    {
        let served = async {
            for _ in 0..20 {
                good(&h1).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let attacks = async {
            for (what, bytes) in [
                ("a head without end", &continued),
                ("an empty head without end", &empty),
                ("rapid resets", &resets),
                ("provoked resets", &provoked),
            ] {
                let heard = flood(&way, bytes).await;
                assert!(heard.goaway || heard.ended, "{door}: {what}: {heard:?}");
            }
            let heard = converse(&way, &bomb).await;
            assert!(
                !heard.answers.contains(&0x88),
                "{door}: a bomb of fields: {heard:?}"
            );
        };
        tokio::join!(served, attacks);
        let seen = scene.origin.requests();
        let forwarded = seen.iter().filter(|seen| seen.target() == "/two").count();
        assert!(
            forwarded < 2_000,
            "{door}: {forwarded} of the requests that were taken back were forwarded"
        );
        good(&h1).await;
    }
    until("the origin to be left alone", async || {
        (scene.origin.open() < 50).then_some(())
    })
    .await;
    scene.assert_alive().await;
}
