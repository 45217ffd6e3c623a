//! What is written, byte for byte, and that it says what was parsed.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::*;
use crate::http1::corpus;
use crate::http1::parse::{self, Limits, Request, Response, Upgrade};

const DATE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";

fn parse(text: &str) -> Request {
    parse::request(&Bytes::copy_from_slice(text.as_bytes()), &Limits::default())
        .unwrap()
        .unwrap()
}

fn encode(request: &Request, connection: Connection) -> String {
    let mut out = Vec::new();
    request_head(&mut out, &request.head, request.framing, connection, |_| {});
    String::from_utf8(out).unwrap()
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

fn respond(
    status: u16,
    headers: &HeaderMap,
    framing: Framing,
    version: Version,
    keep_alive: bool,
) -> (String, Framing) {
    let mut out = Vec::new();
    let status = StatusCode::from_u16(status).unwrap();
    let framing = response_head(
        &mut out, status, headers, framing, version, keep_alive, DATE,
    );
    (String::from_utf8(out).unwrap(), framing)
}

#[test]
fn a_request_is_written_anew() {
    let text = "\r\nPOST http://B:81/x?y HTTP/1.1\r\nx-a: 1\r\nHost: a\r\nConnection: close, x-b\r\nTE: trailers\r\n\
                Content-Length: 007\r\nExpect: 100-continue\r\nX-C:  3 \r\nKeep-Alive: 1\r\nX-B: 2\r\n\r\n";
    let want = "POST /x?y HTTP/1.1\r\nhost: B:81\r\nx-a: 1\r\nexpect: 100-continue\r\nx-c: 3\r\n\
                te: trailers\r\nconnection: te\r\ncontent-length: 7\r\n\r\n";
    assert_eq!(encode(&parse(text), Connection::KeepAlive), want);
}

#[test]
fn a_request_says_how_it_ends() {
    let check = |line: &str, framing, want: &str| {
        let mut request = parse(&format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n"));
        request.framing = framing;
        assert_eq!(
            encode(&request, Connection::KeepAlive),
            format!("{line} HTTP/1.1\r\nhost: a\r\n{want}\r\n")
        );
    };
    check("GET /", Framing::None, "");
    check("HEAD /", Framing::None, "");
    check("DELETE /", Framing::None, "");
    check("OPTIONS *", Framing::None, "");
    check("POST /", Framing::None, "content-length: 0\r\n");
    check("PUT /", Framing::None, "content-length: 0\r\n");
    check("PATCH /", Framing::None, "content-length: 0\r\n");
    check("GET /", Framing::Length(0), "content-length: 0\r\n");
    check(
        "GET /",
        Framing::Length(9_223_372_036_854_775_807),
        "content-length: 9223372036854775807\r\n",
    );
    check("GET /", Framing::Chunked, "transfer-encoding: chunked\r\n");
}

#[test]
fn a_request_says_what_it_wants_of_the_connection() {
    let check = |fields: &str, connection, want: &str| {
        let request = parse(&format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
        assert_eq!(
            encode(&request, connection),
            format!("GET / HTTP/1.1\r\nhost: a\r\n{want}\r\n")
        );
    };
    check("connection: close\r\n", Connection::KeepAlive, "");
    check("", Connection::Close, "connection: close\r\n");
    check(
        "te: trailers\r\n",
        Connection::Close,
        "te: trailers\r\nconnection: te, close\r\n",
    );
    check(
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n",
        Connection::Websocket,
        "sec-websocket-key: k\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
    );
}

#[test]
fn extra_fields_come_after_the_clients() {
    let request = parse("GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n");
    let mut out = Vec::new();
    let extra = |out: &mut Vec<u8>| field(out, "traceparent", b"00");
    request_head(
        &mut out,
        &request.head,
        Framing::None,
        Connection::KeepAlive,
        extra,
    );
    assert_eq!(
        out,
        b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\ntraceparent: 00\r\n\r\n"
    );
}

#[test]
fn framing_fields_never_pass_through() {
    let smuggled = fields(&[
        ("content-length", "99"),
        ("transfer-encoding", "gzip"),
        ("connection", "x"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("upgrade", "h2c"),
        ("http2-settings", "x"),
        ("te", "gzip"),
        ("x", "y"),
    ]);
    let (text, _) = respond(200, &smuggled, Framing::Length(3), Version::HTTP_11, true);
    let date = std::str::from_utf8(DATE).unwrap();
    assert_eq!(
        text,
        format!("HTTP/1.1 200 OK\r\nx: y\r\ndate: {date}\r\ncontent-length: 3\r\n\r\n")
    );

    let mut request = parse("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    request.head.headers = smuggled;
    request
        .head
        .headers
        .insert(header::HOST, HeaderValue::from_static("b"));
    assert_eq!(
        encode(&request, Connection::KeepAlive),
        "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n"
    );
}

#[test]
fn a_response_is_framed_for_who_reads_it() {
    let check = |status, framing, version, keep_alive, want: &str, told| {
        let (text, framing) = respond(
            status,
            &fields(&[("date", "D")]),
            framing,
            version,
            keep_alive,
        );
        let text = text.split_once("date: D\r\n").unwrap().1;
        assert_eq!((text, framing), (want, told), "{status} {version:?}");
    };
    let (old, new) = (Version::HTTP_10, Version::HTTP_11);
    check(
        200,
        Framing::Length(5),
        new,
        true,
        "content-length: 5\r\n\r\n",
        Framing::Length(5),
    );
    check(
        200,
        Framing::Length(5),
        new,
        false,
        "content-length: 5\r\nconnection: close\r\n\r\n",
        Framing::Length(5),
    );
    check(
        200,
        Framing::Length(0),
        new,
        true,
        "content-length: 0\r\n\r\n",
        Framing::Length(0),
    );
    check(
        200,
        Framing::Chunked,
        new,
        true,
        "transfer-encoding: chunked\r\n\r\n",
        Framing::Chunked,
    );
    check(
        200,
        Framing::UntilClose,
        new,
        true,
        "transfer-encoding: chunked\r\n\r\n",
        Framing::Chunked,
    );
    check(
        200,
        Framing::Length(5),
        old,
        true,
        "content-length: 5\r\nconnection: keep-alive\r\n\r\n",
        Framing::Length(5),
    );
    check(
        200,
        Framing::Length(5),
        old,
        false,
        "content-length: 5\r\nconnection: close\r\n\r\n",
        Framing::Length(5),
    );
    check(
        200,
        Framing::Chunked,
        old,
        true,
        "connection: close\r\n\r\n",
        Framing::UntilClose,
    );
    check(
        200,
        Framing::UntilClose,
        old,
        true,
        "connection: close\r\n\r\n",
        Framing::UntilClose,
    );
    // Whatever the caller says: these have no body and 204 no length.
    check(204, Framing::Length(5), new, true, "\r\n", Framing::None);
    check(204, Framing::Chunked, new, true, "\r\n", Framing::None);
    check(304, Framing::Chunked, new, true, "\r\n", Framing::None);
    check(
        304,
        Framing::None,
        new,
        false,
        "connection: close\r\n\r\n",
        Framing::None,
    );
}

#[test]
fn interim_responses_have_neither_length_nor_date() {
    let link = fields(&[("link", "</a>"), ("content-length", "3")]);
    let (text, _) = respond(103, &link, Framing::None, Version::HTTP_11, false);
    assert_eq!(text, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    let (text, _) = respond(101, &fields(&[]), Framing::None, Version::HTTP_11, true);
    assert_eq!(
        text,
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
}

#[test]
fn an_answer_without_its_body_keeps_its_length() {
    let length = fields(&[("content-length", "12"), ("date", "D")]);
    let (text, framing) = respond(200, &length, Framing::None, Version::HTTP_11, true);
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\ncontent-length: 12\r\ndate: D\r\n\r\n"
    );
    assert_eq!(framing, Framing::None);
    let (text, _) = respond(204, &length, Framing::None, Version::HTTP_11, true);
    assert_eq!(text, "HTTP/1.1 204 No Content\r\ndate: D\r\n\r\n");
}

#[test]
fn a_status_without_a_reason_keeps_its_space() {
    let (text, _) = respond(
        599,
        &fields(&[("date", "D")]),
        Framing::Length(0),
        Version::HTTP_11,
        true,
    );
    assert!(text.starts_with("HTTP/1.1 599 \r\n"), "{text}");
}

#[test]
fn chunks_are_framed_in_hex() {
    let check = |size, want: &str| {
        let mut out = Vec::new();
        chunk_start(&mut out, size);
        assert_eq!(out, want.as_bytes());
    };
    check(1, "1\r\n");
    check(15, "f\r\n");
    check(16, "10\r\n");
    check(0xdead_beef, "deadbeef\r\n");
    check(usize::MAX, "ffffffffffffffff\r\n");
}

#[test]
fn trailers_are_written_if_they_may_be() {
    let mut out = Vec::new();
    last_chunk(
        &mut out,
        &fields(&[("grpc-status", "0"), ("content-length", "5"), ("x", "y")]),
    );
    assert_eq!(out, b"0\r\ngrpc-status: 0\r\nx: y\r\n\r\n");
    out.clear();
    last_chunk(&mut out, &HeaderMap::new());
    assert_eq!(out, LAST_CHUNK);
}

#[test]
fn dates_are_what_http_has() {
    let at = |second| UNIX_EPOCH + Duration::from_secs(second);
    assert_eq!(date(at(784_111_777)), DATE);
    assert_eq!(date(at(784_111_777) + Duration::from_millis(999)), DATE);
    assert_eq!(&date(at(784_111_778)), b"Sun, 06 Nov 1994 08:49:38 GMT");
    assert_eq!(date(at(784_111_777)), DATE);
    assert_eq!(
        &date(UNIX_EPOCH - Duration::from_secs(1)),
        b"Thu, 01 Jan 1970 00:00:00 GMT"
    );
    assert_eq!(&date(at(1 << 40)), b"Fri, 31 Dec 9999 23:59:59 GMT");
}

#[test]
fn every_request_survives_being_written() {
    let limits = Limits::default();
    let mut seen = 0;
    for case in corpus::requests() {
        let Ok(Some(request)) = parse::request(&case.bytes, &limits) else {
            continue;
        };
        seen += 1;
        let connection = match request.upgrade {
            Some(Upgrade::Websocket) => Connection::Websocket,
            None if request.keep_alive => Connection::KeepAlive,
            None => Connection::Close,
        };
        let mut out = Vec::new();
        request_head(&mut out, &request.head, request.framing, connection, |_| {});
        let again = parse::request(&Bytes::from(out), &limits).unwrap().unwrap();
        // An old client's request is forwarded in our version, and a body that is missing is said to be.
        let mut expected = request;
        expected.head.version = Version::HTTP_11;
        if expected.framing == Framing::None && again.framing == Framing::Length(0) {
            expected.framing = Framing::Length(0);
        }
        assert_eq!(
            corpus::tell_request(&again),
            corpus::tell_request(&expected)
        );
    }
    assert!(seen > 600, "{seen}");
}

#[test]
fn every_response_survives_being_written() {
    let limits = Limits::default();
    for case in corpus::responses() {
        let parse =
            |bytes: &Bytes| parse::response(bytes, &case.method, case.asked_upgrade, &limits);
        let Ok(Some(response)) = parse(&case.bytes) else {
            continue;
        };
        let mut out = Vec::new();
        let Response {
            status,
            headers,
            framing,
            keep_alive,
            ..
        } = &response;
        let framing = response_head(
            &mut out,
            *status,
            headers,
            *framing,
            Version::HTTP_11,
            *keep_alive,
            DATE,
        );
        let mut again = parse(&Bytes::from(out)).unwrap().unwrap();
        let mut expected = response;
        expected.framing = framing;
        if again.status.is_informational() {
            // What becomes of the connection is for the final response to say.
            expected.keep_alive = true;
        } else {
            assert!(again.headers.remove("date").is_some());
        }
        // Order between different names means nothing.
        assert_eq!(again.headers, expected.headers);
        again.headers.clear();
        expected.headers.clear();
        assert_eq!(
            corpus::tell_response(&again),
            corpus::tell_response(&expected)
        );
    }
}
