//! Bodies, and what has to become of each, whole and in all parts.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use super::*;

/// The data, then the trailers as `; name: value`, then what is left of the input after ` | `.
fn read(framing: Framing, parts: &[Bytes], limits: &Limits) -> Result<String, &'static str> {
    let mut decoder = Decoder::new(framing, limits);
    let mut told = String::new();
    let mut left = Bytes::new();
    for part in parts {
        let mut part = part.clone();
        loop {
            match decoder
                .decode(&mut part)
                .map_err(|malformed| malformed.rule)?
            {
                Piece::Data(data) => {
                    assert!(!data.is_empty());
                    told.push_str(std::str::from_utf8(&data).unwrap());
                }
                Piece::Trailers(fields) => {
                    for (name, value) in &fields {
                        write!(told, "; {name}: {}", value.to_str().unwrap()).unwrap();
                    }
                }
                Piece::NeedMore => break,
                Piece::End => {
                    assert!(decoder.is_end());
                    left = [left, std::mem::take(&mut part)].concat().into();
                    break;
                }
            }
        }
        assert!(part.is_empty());
    }
    decoder.on_eof().map_err(|malformed| malformed.rule)?;
    Ok(format!("{told} | {}", std::str::from_utf8(&left).unwrap()))
}

/// Whole, in any two parts, and byte by byte.
fn check(framing: Framing, body: &'static str, want: Result<&str, &str>) {
    let limits = Limits::default();
    let bytes = Bytes::from_static(body.as_bytes());
    let singles: Vec<_> = (0..bytes.len()).map(|at| bytes.slice(at..=at)).collect();
    let mut cuts = vec![vec![bytes.clone()], singles];
    cuts.extend((0..bytes.len()).map(|at| vec![bytes.slice(..at), bytes.slice(at..)]));
    for parts in cuts {
        let got = read(framing, &parts, &limits);
        assert_eq!(
            got.as_deref().map_err(|rule| *rule),
            want,
            "{body:?} as {parts:?}"
        );
    }
}

#[test]
fn lengths() {
    check(Framing::None, "", Ok(" | "));
    check(Framing::None, "next", Ok(" | next"));
    check(Framing::Length(0), "next", Ok(" | next"));
    check(Framing::Length(4), "bodynext", Ok("body | next"));
    check(Framing::Length(4), "body", Ok("body | "));
    check(Framing::Length(4), "bod", Err("body cut short"));
    check(Framing::Length(4), "", Err("body cut short"));
    check(Framing::Length(u64::MAX), "x", Err("body cut short"));
    check(
        Framing::UntilClose,
        "anything\r\n0\r\n\r\n",
        Ok("anything\r\n0\r\n\r\n | "),
    );
    check(Framing::UntilClose, "", Ok(" | "));
}

#[test]
fn chunks() {
    let is = |body, want| check(Framing::Chunked, body, Ok(want));
    is("0\r\n\r\n", " | ");
    is("0\r\n\r\nnext", " | next");
    is("5\r\nhello\r\n0\r\n\r\n", "hello | ");
    is("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\nGET", "hello! | GET");
    is("a\r\n0123456789\r\n0\r\n\r\n", "0123456789 | ");
    is("A\r\n0123456789\r\n0\r\n\r\n", "0123456789 | ");
    is("0000000000000005\r\nhello\r\n0\r\n\r\n", "hello | ");
    is("5\r\nhe\r\no\r\n0000\r\n\r\n", "he\r\no | ");
    is("5;a\r\nhello\r\n0;b\r\n\r\n", "hello | ");
    is("5;a=b\r\nhello\r\n0\r\n\r\n", "hello | ");
    is("5;a=b;c;d=e\r\nhello\r\n0\r\n\r\n", "hello | ");
    is("5;a=\"b;\\\" \tc\"\r\nhello\r\n0\r\n\r\n", "hello | ");
    is("5;a=\"\u{e9}\";b\r\nhello\r\n0\r\n\r\n", "hello | ");
    is(
        "5 ; a = b\t; c = \"d\" ;e\r\nhello\r\n0\r\n\r\n",
        "hello | ",
    );
}

#[test]
fn malformed_chunks() {
    let not = |body, rule| check(Framing::Chunked, body, Err(rule));
    let number = "chunk size is not a number";
    for body in [
        "\r\n",
        "x\r\n",
        " 5\r\nhello\r\n",
        "+5\r\n",
        "-5\r\n",
        "0x5\r\nhello\r\n",
        "5x\r\n",
        "5_0\r\n",
        ";a\r\n",
        "\n",
        "5,5\r\n",
        "5.0\r\n",
        "\t5\r\n",
        "5\0\r\n",
        "\u{661}\r\n",
        "\"5\"\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        not(body, number);
    }
    not("5\nhello\r\n0\r\n\r\n", number);
    not("5\r\nhello\r\n0\n\r\n", number);
    not("10000000000000000\r\n", "chunk size is too large");
    not("00000000000000005\r\nhello\r\n", "chunk size is too large");
    not("8000000000000000\r\n", "chunk size is too large");
    not("ffffffffffffffff\r\n", "chunk size is too large");
    not("FFFFFFFFFFFFFFFFF\r\n", "chunk size is too large");
    not("5\r hello\r\n", "carriage return without line feed");
    not("5\r\r\nhello\r\n", "carriage return without line feed");
    not("5;a\rb\r\nhello\r\n", "carriage return without line feed");
    not("5\r\nhello0\r\n\r\n", "chunk longer than its size");
    not("5\r\nhello!\r\n0\r\n\r\n", "chunk longer than its size");
    not("5\r\nhello\n0\r\n\r\n", "chunk longer than its size");
    not("5\r\nhello\r0\r\n\r\n", "chunk longer than its size");
    not("5\r\nhello\r\r\n0\r\n\r\n", "chunk longer than its size");
    not("5\r\nhello\n\r0\r\n\r\n", "chunk longer than its size");
    not("5\r\nhello\r\n\r\n0\r\n\r\n", number);
    let extension = "malformed chunk extension";
    for body in [
        "5 \r\nhello\r\n",
        "5\t\r\n",
        "5;\r\n",
        "5; \r\n",
        "5;;a\r\n",
        "5;=b\r\n",
        "5;a=\r\n",
        "5;a= \r\n",
        "5;a \r\n",
        "5;a=b \r\n",
        "5;a=b=c\r\n",
        "5;a=\"b\r\n",
        "5;a=\"b\"c\r\n",
        "5;a=\"b\0\"\r\n",
        "5;a\n",
        "5;a=b\n",
        "5;a=\"b\n\"\r\n",
        "5 5\r\n",
        "5 a\r\n",
        "5;a b\r\n",
        "5;a=b c\r\n",
        "5;a(b\r\n",
        "5;\u{e9}\r\n",
        "5;a=\u{e9}\r\n",
        "5;a\0\r\n",
        "5;a=\"\\\r\"\r\n",
        "5;a=\"\x7f\"\r\n",
        "5;a=\"b\" \r\n",
    ] {
        not(body, extension);
    }
}

#[test]
fn a_cut_body_is_never_whole() {
    let body = "5;a=\"b\"\r\nhello\r\n0\r\nx: y\r\n\r\n";
    for end in 0..body.len() {
        check(Framing::Chunked, &body[..end], Err("body cut short"));
    }
    check(Framing::Chunked, body, Ok("hello; x: y | "));
}

#[test]
fn trailers() {
    let is = |body, want| check(Framing::Chunked, body, Ok(want));
    is("0\r\nx: y\r\n\r\nnext", "; x: y | next");
    is(
        "1\r\na\r\n0\r\nX-Sum: 1\r\ngrpc-status: 0\r\nx-sum: 2\r\n\r\n",
        "a; x-sum: 1; x-sum: 2; grpc-status: 0 | ",
    );
    is("0\r\nx:\r\ny: \t\r\n\r\n", "; x: ; y:  | ");
    for dropped in [
        "content-length: 5",
        "Transfer-Encoding: chunked",
        "host: b",
        "connection: x",
        "keep-alive: 1",
        "te: trailers",
        "upgrade: h2c",
        "trailer: x",
        "authorization: Bearer x",
        "Cookie: a=b",
        "set-cookie: a=b",
        "content-type: x/y",
        "content-encoding: gzip",
        "cache-control: no-store",
        "expect: 100-continue",
        "x-forwarded-for: 1.2.3.4",
        "X-Forwarded-Client-Cert: x",
        "forwarded: for=x",
        "x-real-ip: 1.2.3.4",
        "proxy-authorization: x",
        "range: bytes=0-1",
        "location: /x",
        "www-authenticate: x",
        "if-match: x",
    ] {
        let body = format!("0\r\nx: y\r\n{dropped}\r\n\r\n");
        check(Framing::Chunked, body.leak(), Ok("; x: y | "));
        let body = format!("0\r\n{dropped}\r\n\r\n");
        check(Framing::Chunked, body.leak(), Ok(" | "));
    }
}

#[test]
fn malformed_trailers() {
    let not = |body, rule| check(Framing::Chunked, body, Err(rule));
    not("0\r\nx: y\n\r\n", "line feed without carriage return");
    not("0\r\n\n", "line feed without carriage return");
    not("0\r\nx: y\r\n\n", "line feed without carriage return");
    not("0\r\nx : y\r\n\r\n", "space before the colon");
    not("0\r\n x: y\r\n\r\n", "space before the first field");
    not("0\r\nx: y\r\n z\r\n\r\n", "folded field line");
    not("0\r\nx\r\n\r\n", "field without a colon");
    not("0\r\n: y\r\n\r\n", "empty field name");
    not("0\r\nx(: y\r\n\r\n", "field name is not a token");
    not("0\r\nx: \0\r\n\r\n", "null byte");
    not("0\r\nx: y\rz\r\n\r\n", "carriage return without line feed");
    not("0\r\n\rx: y\r\n\r\n", "carriage return without line feed");
    not("0\r\nGET / HTTP/1.1\r\n\r\n", "field without a colon");
}

fn chunked(body: String, limits: &Limits) -> Result<String, &'static str> {
    read(Framing::Chunked, &[Bytes::from(body)], limits)
}

#[test]
fn extensions_are_bounded() {
    let limits = Limits::default();
    let one = |size: usize| format!("1;{}\r\nx\r\n", "e".repeat(size - 1));
    let end = "0\r\n\r\n";
    let most = limits.chunk_extension_bytes;
    assert!(chunked(one(most) + end, &limits).is_ok());
    assert_eq!(
        chunked(one(most + 1) + end, &limits),
        Err("chunk extensions too large")
    );
    let chunks = limits.message_extension_bytes / most;
    assert!(chunked(one(most).repeat(chunks) + end, &limits).is_ok());
    let more = one(most).repeat(chunks) + &one(2) + end;
    assert_eq!(chunked(more, &limits), Err("chunk extensions too large"));
}

#[test]
fn trailers_are_bounded() {
    let limits = Limits::default();
    let sized = |size: usize| format!("0\r\nx: {}\r\n\r\n", "v".repeat(size - 7));
    assert!(chunked(sized(limits.trailer_bytes), &limits).is_ok());
    assert_eq!(
        chunked(sized(limits.trailer_bytes + 1), &limits),
        Err("trailers too large")
    );
    let flood = format!("0\r\n{}", "v".repeat(1024 * 1024));
    assert_eq!(chunked(flood, &limits), Err("trailers too large"));
    let fields = |count| format!("0\r\n{}\r\n", "x: y\r\n".repeat(count));
    assert!(chunked(fields(limits.trailer_fields), &limits).is_ok());
    assert_eq!(
        chunked(fields(limits.trailer_fields + 1), &limits),
        Err("too many fields")
    );
}

#[test]
fn a_malformed_body_stays_malformed() {
    let mut decoder = Decoder::new(Framing::Chunked, &Limits::default());
    assert!(decoder.decode(&mut Bytes::from_static(b"x")).is_err());
    assert!(
        decoder
            .decode(&mut Bytes::from_static(b"0\r\n\r\n"))
            .is_err()
    );
    assert!(decoder.on_eof().is_err());
    assert!(!decoder.is_end());
}

#[test]
fn what_remains_is_known_where_it_can_be() {
    let mut decoder = Decoder::new(Framing::Length(10), &Limits::default());
    assert_eq!(decoder.remaining(), Some(10));
    decoder.decode(&mut Bytes::from_static(b"abc")).unwrap();
    assert_eq!(decoder.remaining(), Some(7));
    assert_eq!(
        Decoder::new(Framing::Chunked, &Limits::default()).remaining(),
        None
    );
    assert_eq!(
        Decoder::new(Framing::None, &Limits::default()).remaining(),
        Some(0)
    );
}

#[test]
fn data_are_slices_of_what_came_in() {
    let bytes = Bytes::from_static(b"5\r\nhello\r\n0\r\n\r\n");
    let mut input = bytes.clone();
    let mut decoder = Decoder::new(Framing::Chunked, &Limits::default());
    let Ok(Piece::Data(data)) = decoder.decode(&mut input) else {
        panic!("no data");
    };
    assert!(std::ptr::eq(data.as_ptr(), bytes[3..].as_ptr()));
}
