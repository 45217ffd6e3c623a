//! What has to hold for any bytes: the entry point of the fuzz target and of the mutation tests.
//!
//! It parses, writes what it parsed, parses that and compares; it cuts the input and compares; it counts what comes
//! out. It panics where something does not hold.

use bytes::Bytes;
use http::{HeaderMap, Method, Version};

use super::encode::{self, Connection};
use super::frame::{Decoder, Piece};
use super::parse::{self, Framing, Limits, Malformed, Request, Response, Upgrade};

/// Checks everything that this module does with these bytes. The first one chooses the role and the second where to
/// cut; the others are the message.
pub fn fuzz(data: &[u8]) {
    let [choice, cut, message @ ..] = data else {
        return;
    };
    let message = Bytes::copy_from_slice(message);
    // Where the byte points in the whole, so that short seeds are cut everywhere.
    let cut = message.len() * usize::from(*cut) / 256;
    match choice % 6 {
        0 | 1 => check_request(&message, cut),
        2 => check_response(&message, cut, &Method::GET, false),
        3 => check_response(&message, cut, &Method::HEAD, false),
        4 => check_response(&message, cut, &Method::GET, true),
        _ => {
            check_body(&message, cut, Framing::Chunked);
        }
    }
}

/// Bounds that short inputs reach.
fn limits() -> Limits {
    Limits {
        head_bytes: 2048,
        fields: 16,
        target_bytes: 256,
        chunk_extension_bytes: 32,
        message_extension_bytes: 64,
        trailer_bytes: 256,
        trailer_fields: 4,
    }
}

fn check_request(message: &Bytes, cut: usize) {
    let limits = limits();
    let parse = |bytes: &Bytes| parse::request(bytes, &limits);
    check_cut(message, cut, parse, |request| request.consumed);
    let Ok(Some(request)) = parse(message) else {
        return;
    };
    assert_ne!(request.framing, Framing::UntilClose, "a request ends");
    assert!(request.head.path.as_str().len() <= limits.target_bytes + 1);
    assert_ordinary(&request.head.headers, "te");
    let rest = message.slice(request.consumed..);
    let body = check_body(&rest, cut, request.framing);

    let connection = match request.upgrade {
        Some(Upgrade::Websocket) => Connection::Websocket,
        None if request.keep_alive => Connection::KeepAlive,
        None => Connection::Close,
    };
    let mut out = Vec::new();
    encode::request_head(&mut out, &request.head, request.framing, connection, |_| {});
    let written = Bytes::from(out);
    // What we write may be a little longer than what we read.
    let again = match parse::request(&written, &Limits::default()) {
        Ok(Some(again)) => again,
        other => panic!("{other:?} from {}", written.escape_ascii()),
    };
    assert_eq!(again.consumed, written.len());
    assert_same_request(&request, &again);
    if let Some(body) = body {
        check_body_again(again.framing, &body);
    }
}

fn assert_same_request(request: &Request, again: &Request) {
    assert_eq!(request.head.method, again.head.method);
    assert_eq!(
        request.head.authority.as_str(),
        again.head.authority.as_str()
    );
    assert_eq!(request.head.path, again.head.path);
    assert_eq!(request.head.headers, again.head.headers);
    assert_eq!(again.head.version, Version::HTTP_11);
    let unsaid = request.framing == Framing::None && again.framing == Framing::Length(0);
    assert!(request.framing == again.framing || unsaid);
    assert_eq!(request.expect_continue, again.expect_continue);
    assert_eq!(request.upgrade, again.upgrade);
    assert!(request.upgrade.is_some() || request.keep_alive == again.keep_alive);
}

fn check_response(message: &Bytes, cut: usize, method: &Method, asked_upgrade: bool) {
    let limits = limits();
    let parse = |bytes: &Bytes| parse::response(bytes, method, asked_upgrade, &limits);
    check_cut(message, cut, parse, |response| response.consumed);
    let Ok(Some(response)) = parse(message) else {
        return;
    };
    assert!((100..=599).contains(&response.status.as_u16()));
    assert!(!response.upgrade || asked_upgrade);
    assert_ordinary(&response.headers, "content-length");
    let rest = message.slice(response.consumed..);
    if response.upgrade {
        return;
    }
    let body = check_body(&rest, cut, response.framing);
    for version in [Version::HTTP_10, Version::HTTP_11] {
        let (again, framing) = write_and_parse(&response, method, version);
        assert_same_response(&response, &again);
        if let Some(body) = &body {
            check_body_again(framing, body);
        }
    }
}

fn write_and_parse(response: &Response, method: &Method, version: Version) -> (Response, Framing) {
    let mut out = Vec::new();
    let Response {
        status,
        headers,
        framing,
        keep_alive,
        ..
    } = response;
    let date = b"Thu, 01 Jan 1970 00:00:00 GMT";
    let framing = encode::response_head(
        &mut out,
        *status,
        headers,
        *framing,
        version,
        *keep_alive,
        date,
    );
    assert!(version == Version::HTTP_11 || framing != Framing::Chunked);
    let written = Bytes::from(out);
    match parse::response(&written, method, false, &Limits::default()) {
        Ok(Some(again)) => {
            assert_eq!(again.consumed, written.len());
            assert_eq!(again.framing, framing);
            (again, framing)
        }
        other => panic!("{other:?} from {}", written.escape_ascii()),
    }
}

fn assert_same_response(response: &Response, again: &Response) {
    assert_eq!(response.status, again.status);
    let mut headers = again.headers.clone();
    if !response.headers.contains_key("date") {
        headers.remove("date");
    }
    assert_eq!(response.headers, headers);
    assert!(response.keep_alive || !again.keep_alive || again.status.is_informational());
}

/// No field of one connection or of the framing is left, but this one.
fn assert_ordinary(headers: &HeaderMap, but: &str) {
    for name in headers.keys() {
        let kind = parse::kind(name.as_str().as_bytes());
        let fine = match kind {
            parse::Kind::Ordinary | parse::Kind::Expect => true,
            // Means nothing in a response, where it passes.
            parse::Kind::Host => but == "content-length",
            _ => name == but,
        };
        assert!(fine, "{name} is left");
    }
}

/// A part of the bytes gives the same as all of them, or says that more is needed, or is refused as all of them are.
fn check_cut<T: std::fmt::Debug>(
    message: &Bytes,
    cut: usize,
    parse: impl Fn(&Bytes) -> Result<Option<T>, Malformed>,
    consumed: impl Fn(&T) -> usize,
) {
    let part = parse(&message.slice(..cut));
    let whole = parse(message);
    match (&part, &whole) {
        (Ok(Some(part)), Ok(Some(whole))) => {
            assert_eq!(consumed(part), consumed(whole));
            assert!(consumed(part) <= cut);
        }
        (Ok(None), Ok(Some(whole))) => {
            assert!(consumed(whole) > cut);
            assert!(consumed(whole) <= message.len());
        }
        (Ok(None), _) | (Err(_), Err(_)) => {}
        (part, whole) => panic!("{part:?} before {whole:?}"),
    }
}

/// A body: its data, its trailers and what followed it.
#[derive(Debug, PartialEq)]
struct Body {
    data: Vec<u8>,
    trailers: HeaderMap,
    rest: Vec<u8>,
}

/// Reads a body whole and in parts, which must come to the same; `None` where it is malformed or cut.
fn check_body(bytes: &Bytes, cut: usize, framing: Framing) -> Option<Body> {
    let cut = cut.min(bytes.len());
    let whole = read_body(std::slice::from_ref(bytes), framing);
    let parts = read_body(&[bytes.slice(..cut), bytes.slice(cut..)], framing);
    assert_eq!(whole, parts);
    let body = whole.ok()?;
    assert!(body.data.len() + body.rest.len() <= bytes.len());
    if let Framing::Length(length) = framing {
        assert_eq!(body.data.len() as u64, length);
    }
    Some(body)
}

fn read_body(parts: &[Bytes], framing: Framing) -> Result<Body, Malformed> {
    let mut decoder = Decoder::new(framing, &limits());
    let mut body = Body {
        data: Vec::new(),
        trailers: HeaderMap::new(),
        rest: Vec::new(),
    };
    for part in parts {
        let mut part = part.clone();
        loop {
            match decoder.decode(&mut part)? {
                Piece::Data(data) => {
                    assert!(!data.is_empty());
                    body.data.extend_from_slice(&data);
                }
                Piece::Trailers(trailers) => {
                    assert!(trailers.len() <= limits().trailer_fields);
                    body.trailers = trailers;
                }
                Piece::NeedMore => {
                    assert!(part.is_empty());
                    break;
                }
                Piece::End => {
                    body.rest.extend_from_slice(&part);
                    break;
                }
            }
        }
    }
    decoder.on_eof().map(|()| body)
}

/// What was read, written and read again, is the same and ends where it was ended.
fn check_body_again(framing: Framing, body: &Body) {
    let mut out = Vec::new();
    match framing {
        Framing::Chunked => {
            for chunk in body.data.chunks(7) {
                encode::chunk_start(&mut out, chunk.len());
                out.extend_from_slice(chunk);
                out.extend_from_slice(encode::CHUNK_END);
            }
            encode::last_chunk(&mut out, &body.trailers);
        }
        _ => out.extend_from_slice(&body.data),
    }
    if framing != Framing::UntilClose {
        out.extend_from_slice(&body.rest);
    }
    let again = match read_body(&[Bytes::from(out)], framing) {
        Ok(again) => again,
        Err(malformed) => panic!("{malformed}"),
    };
    assert_eq!(again.data, body.data);
    if framing == Framing::Chunked {
        assert_eq!(again.trailers, body.trailers);
    }
    if framing != Framing::UntilClose {
        assert_eq!(again.rest, body.rest);
    }
}

#[cfg(test)]
mod tests;
