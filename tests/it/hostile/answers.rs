//! What an origin may not do to its clients.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use super::{Scene, good};
use crate::alone::{Then, fine};

/// What a server of TLS says to plaintext.
const TLS_ALERT: &[u8] = b"\x15\x03\x03\x00\x02\x02\x16\r\n\r\n";

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
    TLS_ALERT,
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
        targets.extend(ANSWERS.iter().enumerate().map(|(n, answer)| {
            let reason = match answer.starts_with(TLS_ALERT) {
                true => "tls_failed",
                false => "upstream_malformed",
            };
            (format!("/kept/{n}"), reason)
        }));
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
