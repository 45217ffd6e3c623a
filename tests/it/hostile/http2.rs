//! What RFC 9113 calls wrong, of a request and of a connection.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use h2::Reason;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::frames::*;
use super::{Scene, good};
use crate::alone::{PATIENCE, fine, read_to_end};

/// Heads that RFC 9113 §8 calls malformed, or that could not be said in HTTP/1.1, and what becomes of each.
#[rustfmt::skip] // a row a line
fn bad_requests() -> Vec<(&'static str, Fields, Verdict)> {
    let reset = || Verdict::Reset(Reason::PROTOCOL_ERROR);
    // Of what cannot be a field, h2 takes the whole block for broken.
    let goodbye = || Verdict::Goodbye(Reason::PROTOCOL_ERROR);
    let malformed = || answered(400, "malformed_request");
    vec![
        ("upper case in a name", with(&[(b"X-Upper", b"y")]), goodbye()),
        ("a space in a name", with(&[(b"x y", b"z")]), goodbye()),
        ("a colon in a name", with(&[(b"x:y", b"z")]), goodbye()),
        ("a line end in a name", with(&[(b"x\r\ny", b"z")]), goodbye()),
        ("an empty name", with(&[(b"", b"z")]), goodbye()),
        ("a line end in a value", with(&[(b"x", b"y\r\nhost: evil")]), goodbye()),
        ("a line feed in a value", with(&[(b"x", b"y\nz")]), goodbye()),
        ("a null in a value", with(&[(b"x", b"y\0z")]), goodbye()),
        ("connection", with(&[(b"connection", b"close")]), reset()),
        ("keep-alive", with(&[(b"keep-alive", b"timeout=5")]), reset()),
        ("proxy-connection", with(&[(b"proxy-connection", b"close")]), reset()),
        ("transfer-encoding", with(&[(b"transfer-encoding", b"chunked")]), reset()),
        ("upgrade", with(&[(b"upgrade", b"h2c")]), reset()),
        ("te other than trailers", with(&[(b"te", b"gzip")]), reset()),
        ("no method", other(b":method", None), reset()),
        ("no scheme", other(b":scheme", None), reset()),
        ("no path", other(b":path", None), reset()),
        ("no authority and no host", other(b":authority", None), malformed()),
        ("an empty path", other(b":path", Some(b"")), reset()),
        ("a path without a slash", other(b":path", Some(b"two")), reset()),
        ("a whole URI for a path", other(b":path", Some(b"http://plain/two")), reset()),
        ("an asterisk for another method than OPTIONS", other(b":path", Some(b"*")), malformed()),
        ("a space in the path", other(b":path", Some(b"/a b")), reset()),
        ("a line end in the path", other(b":path", Some(b"/a HTTP/1.1\r\nhost: evil\r\n\r\n")), reset()),
        ("a null in the path", other(b":path", Some(b"/a\0")), reset()),
        ("above the root", other(b":path", Some(b"/../a")), malformed()),
        ("an encoded slash", other(b":path", Some(b"/a%2fb")), malformed()),
        ("a backslash", other(b":path", Some(b"/a\\b")), malformed()),
        ("a bad escape", other(b":path", Some(b"/%zz")), malformed()),
        ("a user in the authority", other(b":authority", Some(b"user@plain")), malformed()),
        ("a path in the authority", other(b":authority", Some(b"plain/x")), reset()),
        ("a space in the authority", other(b":authority", Some(b"plain evil")), reset()),
        ("a line end in the authority", other(b":authority", Some(b"plain\r\nx: y")), reset()),
        ("a bad port", other(b":authority", Some(b"plain:x")), malformed()),
        ("an empty authority", other(b":authority", Some(b"")), reset()),
        ("a method that is no token", other(b":method", Some(b"PO ST")), goodbye()),
        ("a line end in the method", other(b":method", Some(b"GET / HTTP/1.1\r\nx:")), goodbye()),
        ("an empty method", other(b":method", Some(b"")), goodbye()),
        ("CONNECT", vec![(b":method", b"CONNECT"), (b":authority", b"plain:443")], answered(501, "method_unsupported")),
        ("CONNECT with a path", other(b":method", Some(b"CONNECT")), reset()),
        ("extended CONNECT for a protocol that is not tunnelled", [&other(b":method", Some(b"CONNECT"))[..], &[(b":protocol", b"connect-udp")]].concat(), answered(501, "method_unsupported")),
        ("extended CONNECT without a path", [&[(&b":protocol"[..], &b"websocket"[..])], &other(b":path", None)[1..], &[(b":method", b"CONNECT")]].concat(), reset()),
        ("a protocol without CONNECT", [&[(&b":protocol"[..], &b"websocket"[..])], &request()[..]].concat(), reset()),
        ("two methods", [&[(&b":method"[..], &b"GET"[..])], &request()[..]].concat(), reset()),
        ("two paths", [&[(&b":path"[..], &b"/evil"[..])], &request()[..]].concat(), reset()),
        ("two authorities", [&[(&b":authority"[..], &b"evil"[..])], &request()[..]].concat(), reset()),
        ("a pseudo-header behind a field", [&[(&b"x"[..], &b"y"[..])], &request()[..]].concat(), reset()),
        ("a pseudo-header that nobody knows", [&[(&b":evil"[..], &b"y"[..])], &request()[..]].concat(), goodbye()),
        ("a status in a request", [&[(&b":status"[..], &b"200"[..])], &request()[..]].concat(), reset()),
        ("a host that differs", with(&[(b"host", b"evil")]), malformed()),
        ("two hosts", with(&[(b"host", b"plain"), (b"host", b"plain")]), malformed()),
        ("a host of another port", with(&[(b"host", b"plain:81")]), malformed()),
        ("a length and no body", with(&[(b"content-length", b"5")]), reset()),
        ("a length that is no number", with(&[(b"content-length", b"x")]), reset()),
        ("a signed length", with(&[(b"content-length", b"+0")]), reset()),
        ("a length of 2^64", with(&[(b"content-length", b"18446744073709551616")]), reset()),
        ("two lengths", with(&[(b"content-length", b"0"), (b"content-length", b"5")]), reset()),
    ]
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
        let mut wrong = Vec::new();
        for (what, fields, wanted) in bad_requests() {
            let head = frame(HEADERS, WHOLE_HEAD, 1, &block(&fields));
            let got = verdict(&way, &opened(&[head])).await;
            if got != wanted {
                wrong.push(format!("{door}: {what}: {got:?} and not {wanted:?}"));
            }
            assert_eq!(scene.origin.bytes(), before, "{door}: {what} was forwarded");
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
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
            let got = verdict(&way, &opened(&[head, body])).await;
            let wanted = Verdict::Reset(Reason::PROTOCOL_ERROR);
            assert_eq!(got, wanted, "{door}: {length:?}");
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
                (b"padded", b" \ta b\t "),
                (b"blank", b" "),
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
        // RFC 9112 §5: white space around a value is none of it.
        assert_eq!(seen.fields("padded"), ["a b"], "{door}: {seen:?}");
        assert_eq!(seen.fields("blank"), [""], "{door}: {seen:?}");
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

/// What `:authority` says is what the app is told, once, by whatever version it is spoken to; at every door.
#[tokio::test]
async fn the_authority_is_the_host_that_the_app_sees_at_every_door() {
    let mut scene = Scene::set(|_| fine()).await;
    for (door, way) in scene.doors(&["h2"]) {
        for fields in [request(), with(&[(b"host", b"plain")])] {
            let head = frame(HEADERS, WHOLE_HEAD, 1, &block(&fields));
            let heard = converse(&way, &opened(&[head])).await;
            assert_eq!(heard.answers, [0x88], "{door}: {heard:?}");
            let last = scene.origin.last();
            assert_eq!(
                (last.target(), last.fields("host")),
                ("/two", vec!["plain"]),
                "{door}"
            );
        }
        // Two that differ are none.
        let before = scene.origin.requests().len();
        let head = frame(
            HEADERS,
            WHOLE_HEAD,
            1,
            &block(&with(&[(b"host", b"other.example")])),
        );
        let heard = converse(&way, &opened(&[head])).await;
        assert!(!heard.answers.contains(&0x88), "{door}: {heard:?}");
        assert_eq!(scene.origin.requests().len(), before, "{door}");
    }
    scene.assert_alive().await;
}
