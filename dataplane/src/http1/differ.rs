//! The same bytes to us and to hyper. Whatever hyper refuses we refuse too, what both accept we read alike, and where
//! we are stricter there is a reason.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::corpus::{self, ResponseCase};
use super::frame::{Decoder, Piece};
use super::parse::{self, Framing, Kind, Limits};

/// Rules that hyper does not have or does not hold to, and why we do.
const STRICTER: &[(&str, &str)] = &[
    (
        "line feed without carriage return",
        "hyper ends lines at either; RFC 9112 §2.2 allows that, but peers that do not would see another message",
    ),
    (
        "more than one empty line before the request",
        "hyper skips any number; RFC 9112 §2.2 asks for at least one",
    ),
    (
        "empty line before the status line",
        "hyper skips any number; surplus bytes of the response before are no part of this one",
    ),
    (
        "more than one content-length field",
        "hyper takes identical ones; an honest sender has one",
    ),
    (
        "content-length is not a number",
        "hyper's client splits lists of identical numbers, and ignores an empty one",
    ),
    (
        "content-length is too large",
        "hyper counts up to 2^64 - 3; signed implementations behind us would not",
    ),
    (
        "content-length with transfer-encoding",
        "hyper lets transfer-encoding win as RFC 9112 §6.3 allows, and forgets to close; only an attack has both",
    ),
    (
        "transfer-encoding other than chunked",
        "hyper takes any coding list that ends in chunked; we neither decode nor forward codings",
    ),
    (
        "more than one transfer-encoding field",
        "hyper looks at the last; which one counts differs between implementations",
    ),
    ("no host field", "hyper leaves `Host` to its user"),
    (
        "more than one host field",
        "hyper leaves `Host` to its user",
    ),
    ("empty host", "hyper leaves `Host` to its user"),
    ("malformed host", "hyper leaves `Host` to its user"),
    (
        "malformed port in the host",
        "hyper leaves `Host` to its user",
    ),
    (
        "malformed address in the host",
        "hyper leaves `Host` to its user",
    ),
    (
        "request target is neither a path nor an http URI",
        "hyper takes authorities, `*` for any method and foreign schemes",
    ),
    (
        "fragment in the request target",
        "hyper cuts it off; RFC 9112 §3.2 has none, and to drop it would change what the client asked",
    ),
    (
        "malformed percent-encoding in the path",
        "hyper leaves paths alone; rules match on decoded paths, and this has no one decoding",
    ),
    (
        "byte in the path that must be encoded",
        "hyper takes some; a backslash is a slash to some endpoints, and quotes end strings",
    ),
    (
        "connect is not forwarded",
        "hyper leaves methods to its user",
    ),
    ("method too long", "hyper takes any length"),
    (
        "unknown expectation",
        "hyper ignores what it does not know; RFC 9110 §10.1.1 has 417 for it",
    ),
    ("more than one expect field", "hyper looks at one"),
    (
        "too many connection options",
        "hyper leaves them to its user",
    ),
    (
        "upgrade by another method than GET",
        "hyper leaves upgrades to its user",
    ),
    ("upgrade with a body", "hyper leaves upgrades to its user"),
    ("upgrade in HTTP/1.0", "hyper leaves upgrades to its user"),
    (
        "101 that nobody asked for",
        "hyper leaves upgrades to its user",
    ),
    (
        "status code outside 100 to 599",
        "hyper takes three digits; RFC 9110 §15 calls these invalid",
    ),
    (
        "malformed chunk extension",
        "hyper skips to the line end; extensions that are read in two ways smuggle requests",
    ),
    (
        "chunk extensions too large",
        "hyper has only the bound of 16 KiB a message",
    ),
    (
        "too many fields",
        "hyper allows as many trailers as fields in the head",
    ),
    ("chunk size is too large", "hyper takes more leading zeros"),
];

/// What an implementation read: the head in one line, the fields that pass, the body and its trailers.
#[derive(Debug, PartialEq)]
struct Reading {
    line: String,
    fields: HeaderMap,
    body: Option<(Bytes, HeaderMap)>,
}

/// Runs on a thread that has nothing else to do; hyper needs a runtime but no sockets.
fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers")
        .block_on(future)
}

/// The fields that outlive a hop, of all that hyper shows.
fn passing(headers: &HeaderMap, keep: &[Kind]) -> HeaderMap {
    let listed: Vec<String> = headers
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_lowercase())
        .collect();
    headers
        .iter()
        .filter(|(name, _)| {
            let kind = parse::kind(name.as_str().as_bytes());
            kind == Kind::Ordinary && !listed.iter().any(|other| other == name.as_str())
                || keep.contains(&kind)
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

async fn read_incoming(body: Incoming) -> Option<(Bytes, HeaderMap)> {
    let collected = body.collect().await.ok()?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let allowed = trailers
        .iter()
        .filter(|(name, _)| parse::may_trail(name.as_str().as_bytes()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Some((collected.to_bytes(), allowed))
}

/// hyper's reading of the first request of a connection.
async fn hyper_request(bytes: &Bytes) -> Option<Reading> {
    hyper_requests(bytes, false).await.into_iter().next()
}

/// hyper's reading of what comes on a connection: of the first request, or of all as long as it keeps the connection.
async fn hyper_requests(bytes: &Bytes, keep_alive: bool) -> Vec<Reading> {
    let seen = RefCell::new(Vec::new());
    let (ours, theirs) = duplex(1024 * 1024);
    let service = hyper::service::service_fn(|request: http::Request<Incoming>| async {
        let (parts, body) = request.into_parts();
        let body = read_incoming(body).await;
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        let path = match (&parts.method, parts.uri.authority(), path) {
            // hyper does not write these as the next hop has to see them (RFC 9112 §3.2.4), nor tells `/` from nothing.
            (&Method::OPTIONS, Some(_), "/") if !bytes.windows(3).any(|end| end == b"b/ ") => {
                "*".to_owned()
            }
            (_, Some(_), path) if path.starts_with('?') => format!("/{path}"),
            _ => path.to_owned(),
        };
        seen.borrow_mut().push(Reading {
            line: format!("{} {path}", parts.method),
            fields: passing(&parts.headers, &[]),
            body,
        });
        Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new()))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_headers(Limits::default().fields)
        .keep_alive(keep_alive)
        .serve_connection(TokioIo::new(theirs), service);
    let (_, ()) = tokio::join!(connection, talk(ours, bytes));
    seen.into_inner()
}

/// Says these bytes and hears the other side out.
async fn talk(mut stream: DuplexStream, bytes: &Bytes) {
    // Either fails where the other side has heard enough.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// hyper's reading of a response.
async fn hyper_response(case: &ResponseCase) -> Option<Reading> {
    let (mut ours, theirs) = duplex(1024 * 1024);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(theirs))
        .await
        .ok()?;
    let mut request = http::Request::builder()
        .method(case.method.clone())
        .uri("/");
    if case.asked_upgrade {
        request = request
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
    }
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    let answer = async {
        let mut head = [0; 1024];
        let _ = ours.read(&mut head).await;
        talk(ours, &case.bytes).await;
    };
    let read = async {
        let response = sender.send_request(request).await;
        drop(sender);
        let (parts, body) = response.ok()?.into_parts();
        let body = if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            Some(Default::default())
        } else {
            read_incoming(body).await
        };
        Some(Reading {
            line: parts.status.as_str().to_owned(),
            fields: passing(&parts.headers, &[Kind::Host, Kind::Expect]),
            body,
        })
    };
    let (_, (), reading) = tokio::join!(connection, answer, read);
    reading
}

/// Our body, or the rule it breaks. What is left of the input comes behind it.
fn read_body(framing: Framing, input: &mut Bytes) -> Result<(Bytes, HeaderMap), &'static str> {
    let mut decoder = Decoder::new(framing, &Limits::default());
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    loop {
        match decoder.decode(input).map_err(|fault| fault.rule)? {
            Piece::Data(piece) => data.extend_from_slice(&piece),
            Piece::Trailers(fields) => trailers = fields,
            Piece::NeedMore => decoder.on_eof().map_err(|fault| fault.rule)?,
            Piece::End => return Ok((data.into(), trailers)),
        }
    }
}

fn our_request(bytes: &Bytes) -> Result<Reading, &'static str> {
    Ok(next_request(&mut bytes.clone())?.0)
}

/// Our reading of the next request, and whether another may follow it.
fn next_request(input: &mut Bytes) -> Result<(Reading, bool), &'static str> {
    let parsed = parse::request(input, &Limits::default()).map_err(|fault| fault.rule)?;
    let request = parsed.ok_or("incomplete")?;
    input.advance(request.consumed);
    let mut fields = request.head.headers;
    // Ours alone, and left out where the client is too old for it.
    fields.remove("te");
    fields.remove("expect");
    let reading = Reading {
        line: format!("{} {}", request.head.method, request.head.path),
        fields,
        body: Some(read_body(request.framing, input)?),
    };
    Ok((reading, request.keep_alive))
}

fn our_response(case: &ResponseCase) -> Result<Reading, &'static str> {
    let mut bytes = case.bytes.clone();
    loop {
        let limits = Limits::default();
        let parsed = parse::response(&bytes, &case.method, case.asked_upgrade, &limits);
        let response = parsed.map_err(|fault| fault.rule)?.ok_or("incomplete")?;
        bytes = bytes.slice(response.consumed..);
        if response.status.is_informational() && !response.upgrade {
            continue;
        }
        let mut fields = response.headers;
        fields.remove("content-length");
        let body = if response.upgrade {
            Default::default()
        } else {
            read_body(response.framing, &mut bytes)?
        };
        return Ok(Reading {
            line: response.status.as_str().to_owned(),
            fields,
            body: Some(body),
        });
    }
}

/// Compares; says by which rule we are stricter, if we are.
fn compare(
    bytes: &Bytes,
    ours: Result<Reading, &'static str>,
    theirs: Option<Reading>,
) -> Option<&'static str> {
    let shown = bytes.escape_ascii();
    let theirs_is_whole = theirs
        .as_ref()
        .is_some_and(|reading| reading.body.is_some());
    match (ours, theirs) {
        (Ok(ours), Some(theirs)) => {
            assert_eq!(ours, theirs, "{shown}");
            None
        }
        (Ok(ours), None) => panic!("hyper refuses {shown}\nwe read {ours:?}"),
        (Err(rule), Some(_)) if theirs_is_whole => Some(rule),
        (Err(_), _) => None,
    }
}

/// Compares what becomes of a connection: the same requests in the same order, as far as we serve it. Where one ends
/// nobody knows who reads it in another way than we do, so nobody may find more requests than we, or others.
fn compare_all(bytes: &Bytes, theirs: &[Reading]) {
    let shown = bytes.escape_ascii();
    let whole = theirs.iter().filter(|reading| reading.body.is_some());
    let mut theirs = whole.map(|reading| reading.line.as_str());
    let (mut input, mut keeps) = (bytes.clone(), true);
    while keeps && !input.is_empty() {
        let line = match next_request(&mut input) {
            Ok((reading, keep_alive)) => {
                keeps = keep_alive;
                reading.line
            }
            // Refused, and the connection with it: nothing that follows is served.
            Err(_) => return,
        };
        assert_eq!(theirs.next(), Some(&*line), "{shown}");
    }
    assert_eq!(theirs.next(), None, "hyper reads one more of {shown}");
}

/// Every rule by which we are stricter has its reason.
fn check_reasons(stricter: &BTreeMap<&'static str, Bytes>) {
    for (rule, example) in stricter {
        assert!(
            STRICTER.iter().any(|(other, _)| other == rule),
            "no reason for {rule:?}: {}",
            example.escape_ascii()
        );
    }
}

async fn stricter_requests<'a>(
    messages: impl Iterator<Item = &'a Bytes>,
) -> BTreeMap<&'static str, Bytes> {
    let mut stricter = BTreeMap::new();
    for bytes in messages {
        let theirs = hyper_request(bytes).await;
        if let Some(rule) = compare(bytes, our_request(bytes), theirs) {
            stricter.entry(rule).or_insert_with(|| bytes.clone());
        }
    }
    stricter
}

async fn stricter_responses<'a>(
    cases: impl Iterator<Item = &'a ResponseCase>,
) -> BTreeMap<&'static str, Bytes> {
    let mut stricter = BTreeMap::new();
    for case in cases {
        let theirs = hyper_response(case).await;
        if let Some(rule) = compare(&case.bytes, our_response(case), theirs) {
            stricter.entry(rule).or_insert_with(|| case.bytes.clone());
        }
    }
    stricter
}

fn bodies() -> impl Iterator<Item = String> {
    let long = [
        format!("5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(300)),
        format!("0\r\n{}\r\n", "x: y\r\n".repeat(33)),
    ];
    [
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\r\nhost: b\r\n\r\n",
        "5;a=b\r\nhello\r\n0;c=\"d\"\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhell",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n",
        "5\r\nhello\r\n0\r\nx : y\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
        "00000000000000000005\r\nhello\r\n0\r\n\r\n",
        "8000000000000000\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n",
        "\r\n0\r\n\r\n",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(long)
}

fn all_requests() -> Vec<Bytes> {
    let bodies = bodies().map(|body| {
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        Bytes::from([head, &body].concat())
    });
    let table = corpus::requests().into_iter().flat_map(|case| {
        // Heads alone end in an incomplete body, which hides what hyper makes of the head.
        let with_body = Bytes::from([&case.bytes[..], b"0\r\n\r\n"].concat());
        [case.bytes, with_body]
    });
    table.chain(bodies).collect()
}

fn all_responses() -> Vec<ResponseCase> {
    let bodies = bodies().map(|body| {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        ResponseCase {
            method: Method::GET,
            asked_upgrade: false,
            bytes: Bytes::from([head, &body].concat()),
            want: corpus::Want::Fine,
        }
    });
    let table = corpus::responses().into_iter().flat_map(|case| {
        let with_body = Bytes::from([&case.bytes[..], b"0\r\n\r\n"].concat());
        let other = ResponseCase {
            bytes: with_body,
            ..case.clone()
        };
        [case, other]
    });
    table.chain(bodies).collect()
}

/// One change at a random place.
fn mutate(random: &mut fastrand::Rng, bytes: &Bytes) -> Bytes {
    const BYTES: &[u8] = b"\r\n\t :;,=\"0123459afxGHT/\0\x7f\x80\xff";
    let mut bytes = bytes.to_vec();
    let at = random.usize(..bytes.len());
    let byte = BYTES[random.usize(..BYTES.len())];
    match random.u8(..4) {
        0 => bytes[at] = byte,
        1 => bytes.insert(at, byte),
        2 => {
            bytes.remove(at);
        }
        _ => bytes.truncate(at),
    }
    bytes.into()
}

const MUTATIONS: usize = 10_000;

#[test]
fn requests_that_hyper_refuses_are_refused() {
    let mut random = fastrand::Rng::with_seed(9112);
    let seeds = all_requests();
    let mutants: Vec<_> = (0..MUTATIONS)
        .map(|_| {
            let seed = random.usize(..seeds.len());
            mutate(&mut random, &seeds[seed])
        })
        .collect();
    check_reasons(&run(stricter_requests(seeds.iter().chain(&mutants))));
}

#[test]
fn requests_end_where_hyper_says_that_they_end() {
    const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut random = fastrand::Rng::with_seed(9112);
    let seeds = all_requests();
    let mutants = (0..MUTATIONS).map(|_| {
        let seed = random.usize(..seeds.len());
        mutate(&mut random, &seeds[seed])
    });
    let mutants: Vec<_> = mutants.collect();
    run(async {
        let mut followed = 0;
        for message in seeds.iter().chain(&mutants) {
            let bytes = Bytes::from([message, NEXT].concat());
            let theirs = hyper_requests(&bytes, true).await;
            compare_all(&bytes, &theirs);
            followed += usize::from(theirs.len() > 1);
        }
        // Or nothing was compared.
        assert!(followed > seeds.len() / 4, "{followed} of {}", seeds.len());
    });
}

#[test]
fn responses_that_hyper_refuses_are_refused() {
    let mut random = fastrand::Rng::with_seed(9112);
    let seeds = all_responses();
    let mutants: Vec<_> = (0..MUTATIONS)
        .map(|_| {
            let case = &seeds[random.usize(..seeds.len())];
            ResponseCase {
                bytes: mutate(&mut random, &case.bytes),
                ..case.clone()
            }
        })
        .collect();
    check_reasons(&run(stricter_responses(seeds.iter().chain(&mutants))));
}

#[test]
fn every_reason_is_still_needed() {
    let (requests, responses) = (all_requests(), all_responses());
    let mut stricter = run(stricter_requests(requests.iter()));
    stricter.extend(run(stricter_responses(responses.iter())));
    let stale: Vec<_> = STRICTER
        .iter()
        .filter(|(rule, _)| !stricter.contains_key(rule))
        .collect();
    assert!(stale.is_empty(), "{stale:#?}");
}
