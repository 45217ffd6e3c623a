//! The table, whole and in parts.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::http1::corpus::{self, RequestCase, ResponseCase, Want};

fn check<T>(
    bytes: &Bytes,
    want: Want,
    parse: impl Fn(&Bytes) -> Result<Option<T>, Malformed>,
    tell: impl Fn(&T) -> String,
) -> Option<String> {
    let verdict = parse(bytes);
    let line = match &verdict {
        Ok(Some(message)) => format!("is {}", tell(message)),
        Ok(None) => "incomplete".to_owned(),
        Err(malformed) => format!("refused: {malformed}"),
    };
    let right = match (want, &verdict) {
        (Want::Is(text), Ok(Some(message))) => tell(message) == text,
        (Want::Fine, Ok(Some(_))) | (Want::Bad, Err(_)) => true,
        (Want::Not(rule), Err(malformed)) => malformed.rule == rule,
        _ => false,
    };
    (!right).then(|| {
        format!(
            "{}\n    wanted {want:?}\n    {line}\n",
            bytes.escape_ascii()
        )
    })
}

fn assert_none(faults: &[String]) {
    assert!(
        faults.is_empty(),
        "{} wrong:\n{}",
        faults.len(),
        faults.concat()
    );
}

#[test]
fn every_request_of_the_table_gets_its_verdict() {
    let limits = Limits::default();
    let cases = corpus::requests();
    assert!(cases.len() > 2000);
    let faults: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            check(
                &case.bytes,
                case.want,
                |bytes| request(bytes, &limits),
                corpus::tell_request,
            )
        })
        .collect();
    assert_none(&faults);
}

#[test]
fn every_response_of_the_table_gets_its_verdict() {
    let limits = Limits::default();
    let faults: Vec<_> = corpus::responses()
        .iter()
        .filter_map(|case| {
            let parse = |bytes: &Bytes| response(bytes, &case.method, case.asked_upgrade, &limits);
            check(&case.bytes, case.want, parse, corpus::tell_response)
        })
        .collect();
    assert_none(&faults);
}

/// What is accepted is accepted with its last byte and not before; what is refused is refused at the latest then, and
/// once refused for good.
fn check_prefixes<T>(
    bytes: &Bytes,
    parse: impl Fn(&Bytes) -> Result<Option<T>, Malformed>,
    consumed: impl Fn(&T) -> usize,
) {
    let whole = parse(bytes);
    let mut refused = false;
    for end in 0..bytes.len() {
        let prefix = bytes.slice(..end);
        let shown = prefix.escape_ascii();
        match (parse(&prefix), &whole) {
            (Ok(None), Ok(Some(whole))) => assert!(end < consumed(whole), "{shown}"),
            (Ok(Some(part)), Ok(Some(whole))) => {
                assert_eq!(consumed(&part), consumed(whole), "{shown}");
                assert!(end >= consumed(whole), "{shown}");
            }
            (Ok(None), Err(_)) => assert!(!refused, "{shown}"),
            (Err(_), Err(_)) => refused = true,
            (part, _) => panic!("{shown}: {:?}", part.map(|part| part.is_some())),
        }
    }
}

#[test]
fn requests_may_come_in_any_parts() {
    let limits = Limits::default();
    for RequestCase { bytes, .. } in corpus::requests() {
        check_prefixes(
            &bytes,
            |bytes| request(bytes, &limits),
            |request| request.consumed,
        );
    }
}

#[test]
fn responses_may_come_in_any_parts() {
    let limits = Limits::default();
    for ResponseCase {
        method,
        asked_upgrade,
        bytes,
        ..
    } in corpus::responses()
    {
        check_prefixes(
            &bytes,
            |bytes| response(bytes, &method, asked_upgrade, &limits),
            |response| response.consumed,
        );
    }
}

#[test]
fn a_broken_line_is_refused_before_the_head_is_complete() {
    let limits = Limits::default();
    let refused =
        |text: &'static str| request(&Bytes::from_static(text.as_bytes()), &limits).is_err();
    assert!(refused("\x16\x03\x01"));
    assert!(refused("GET / HTTP/1.1\n"));
    assert!(refused("GET / HTTP/2.0\r\n"));
    assert!(refused("GET / HTTP/1.1\r\nhost: a\n"));
    assert!(refused("GET / HTTP/1.1\r\nhost: a\r\nx : "));
    assert!(refused("GET / HTTP/1.1\r\nhost: a\r\n x"));
    assert!(refused("GET / HTTP/1.1\r\nx: \0"));
    assert!(!refused("GET / HTTP/1.1\r\nhost: a\r"));
}

fn head_of(bytes: usize) -> Bytes {
    let before = "GET / HTTP/1.1\r\nhost: a\r\nx: ";
    let after = "\r\n\r\n";
    let value = "v".repeat(bytes - before.len() - after.len());
    Bytes::from(format!("{before}{value}{after}"))
}

#[test]
fn a_head_is_bounded_by_bytes() {
    let limits = Limits::default();
    let most = head_of(limits.head_bytes);
    assert!(request(&most, &limits).unwrap().is_some());
    for end in [limits.head_bytes - 1, 1000, 1] {
        assert!(request(&most.slice(..end), &limits).unwrap().is_none());
    }
    let more = head_of(limits.head_bytes + 1);
    let malformed = request(&more, &limits).unwrap_err();
    assert_eq!(malformed.reason, Reason::HeadTooLarge);
    // As soon as it is certain, and however much came at once.
    let malformed = request(&more.slice(..limits.head_bytes), &limits).unwrap_err();
    assert_eq!(malformed.reason, Reason::HeadTooLarge);
    let flood = Bytes::from(vec![b'A'; 1024 * 1024]);
    assert_eq!(
        request(&flood, &limits).unwrap_err().reason,
        Reason::HeadTooLarge
    );
    // A body behind it counts for nothing.
    let with_body = Bytes::from([&most[..], &[b'x'; 100_000]].concat());
    assert!(request(&with_body, &limits).unwrap().is_some());
}

#[test]
fn a_response_head_is_bounded_and_its_faults_are_the_endpoints() {
    let limits = Limits {
        head_bytes: 64,
        fields: 2,
        ..Limits::default()
    };
    let parse = |text: &str| {
        response(
            &Bytes::copy_from_slice(text.as_bytes()),
            &Method::GET,
            false,
            &limits,
        )
    };
    assert!(
        parse("HTTP/1.1 200 OK\r\na: b\r\nc: d\r\n\r\n")
            .unwrap()
            .is_some()
    );
    let malformed = parse("HTTP/1.1 200 OK\r\na: b\r\nc: d\r\ne: f\r\n\r\n").unwrap_err();
    assert_eq!(malformed, Malformed::new("too many fields").upstream());
    let malformed = parse(&format!("HTTP/1.1 200 {}", "K".repeat(60))).unwrap_err();
    assert_eq!(malformed, Malformed::new("head too large").upstream());
}

#[test]
fn a_head_is_bounded_by_fields() {
    let limits = Limits::default();
    let with = |fields: usize| {
        let fields = "x: y\r\n".repeat(fields - 1);
        Bytes::from(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"))
    };
    assert!(request(&with(limits.fields), &limits).unwrap().is_some());
    let more = with(limits.fields + 1);
    let malformed = request(&more, &limits).unwrap_err();
    assert_eq!(
        malformed,
        Malformed::because("too many fields", Reason::HeadTooLarge)
    );
    assert!(request(&more.slice(..more.len() - 2), &limits).is_err());
    let unbounded = Limits {
        fields: usize::MAX,
        ..limits
    };
    assert!(request(&with(MOST_FIELDS), &unbounded).unwrap().is_some());
    assert!(request(&with(MOST_FIELDS + 1), &unbounded).is_err());
}

#[test]
fn a_target_is_bounded() {
    let limits = Limits::default();
    let with = |target: usize| {
        let path = "p".repeat(target - 1);
        Bytes::from(format!("GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n"))
    };
    assert!(
        request(&with(limits.target_bytes), &limits)
            .unwrap()
            .is_some()
    );
    let more = with(limits.target_bytes + 1);
    for part in [more.len(), more.len() - 1, more.len() - 13] {
        let malformed = request(&more.slice(..part), &limits).unwrap_err();
        assert_eq!(malformed.reason, Reason::TargetTooLong, "{part}");
    }
    let flood = with(1024 * 1024);
    assert_eq!(
        request(&flood, &limits).unwrap_err().reason,
        Reason::TargetTooLong
    );
}

#[test]
fn reasons_are_the_ones_clients_can_act_on() {
    let limits = Limits::default();
    let check = |text: &'static str, reason| {
        let malformed = request(&Bytes::from_static(text.as_bytes()), &limits).unwrap_err();
        assert_eq!(malformed.reason, reason, "{text}");
    };
    check("GET / HTTP/1.1\r\n\r\n", Reason::MalformedRequest);
    check("GET / HTTP/2.0\r\n", Reason::VersionUnsupported);
    check(
        "CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
        Reason::MethodUnsupported,
    );
    check(
        "GET / HTTP/1.1\r\nhost: a\r\nexpect: x\r\n\r\n",
        Reason::ExpectationUnknown,
    );
    check(
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        Reason::UpgradeRefused,
    );
}

#[test]
fn values_are_slices_of_what_came_in() {
    let bytes =
        Bytes::from_static(b"GET /path HTTP/1.1\r\nhost: a.example\r\nx-name: value\r\n\r\n");
    let inside = bytes.as_ptr_range();
    let request = request(&bytes, &Limits::default()).unwrap().unwrap();
    for slice in [
        request.head.path.as_str().as_bytes(),
        request.head.authority.as_str().as_bytes(),
        request.head.headers["x-name"].as_bytes(),
    ] {
        assert!(inside.contains(&slice.as_ptr()));
    }
}

#[test]
fn a_head_fed_byte_by_byte_is_parsed_once_a_line() {
    let limits = Limits::default();
    let lines = format!("x: {}\r\n", "v".repeat(500)).repeat(limits.fields - 1);
    let bytes = Bytes::from(format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}\r\n"));
    let mut parses = 0;
    for end in 1..=bytes.len() {
        if may_complete(&bytes[end - 1..end]) {
            parses += 1;
            let parsed = request(&bytes.slice(..end), &limits).unwrap();
            assert_eq!(parsed.is_some(), end == bytes.len());
        }
    }
    assert_eq!(parses, limits.fields + 2);
}

#[test]
fn a_fault_becomes_an_error_that_names_the_rule() {
    let error = crate::error::Error::from(Malformed::new("no host field"));
    assert_eq!(error.to_string(), "malformed_request: no host field");
}
