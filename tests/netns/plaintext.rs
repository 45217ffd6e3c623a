//! Who comes in plaintext from outside of the mesh.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::app::{App, Does, breaks, connect, get, get_on, get_on_admin, take};
use super::ground::{self, Host};
use super::{
    ORDERS, ORDERS_FROM_OUTSIDE, ORDERS_FROM_OUTSIDE_V6, World, under_either, until, weft_says,
};
use crate::faults::clock::faked;
use crate::harness::told::at_most;
use crate::hostile::frames::{
    DATA, END_HEADERS, HEADERS, block, frame, opening, request as request_fields,
};
use crate::hostile::requests::{CHUNKS, SMUGGLED, bad_heads};

const NAME: &str = "weft_redirected_connections_total";

#[test]
fn plaintext_is_refused_and_both_ends_say_why() {
    under_either("", "", |world| {
        let app = App::start(&world.orders, "0.0.0.0:8080", Does::Http("orders"));
        for ip in [ORDERS_FROM_OUTSIDE, ORDERS_FROM_OUTSIDE_V6] {
            let answer = get(&world.outside, &format!("{ip}:8080"), "orders").unwrap();
            assert_eq!(
                (answer.status, answer.reason()),
                (403, Some("plaintext_refused"))
            );
            assert!(answer.body.contains("port 8080 of `orders`"), "{answer:?}");
            // What is not HTTP cannot be told, and neither can who speaks to a port of the sidecar's.
            for port in [8080, 9090, 15_006] {
                let address = format!("{ip}:{port}");
                assert!(breaks(&world.outside, &address, b"\x00\x01\x02"), "{port}");
            }
        }
        assert!(app.callers().is_empty());
        let refused = |listener| {
            let labels = [listener, "outcome=\"plaintext_refused\""];
            world.metric(&world.orders, NAME, &labels)
        };
        assert_eq!(refused("listener=\"plaintext\""), 4.0);
        assert_eq!(refused("listener=\"plaintext6\""), 4.0);
        let log = world.orders_sidecar.log();
        assert!(log.contains("plaintext_refused"), "{log}");
        // The host's own checks of the app come by loopback.
        let answer = get(&world.orders, "127.0.0.1:8080", "localhost").unwrap();
        assert_eq!(answer.body, "orders called by nobody");
    });
}

#[test]
fn plaintext_is_let_in_where_and_while_it_is_permitted() {
    under_either(
        "    mtls: { permissive: { until: 2999-12-31, ports: [8080, 9090] } }\n",
        "",
        |world| {
            let _app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
            let _other = App::start(&world.orders, "127.0.0.1:9090", Does::Greet("metrics"));
            for ip in [ORDERS_FROM_OUTSIDE, ORDERS_FROM_OUTSIDE_V6] {
                let answer = get(&world.outside, &format!("{ip}:8080"), "orders").unwrap();
                assert_eq!(answer.body, "orders called by nobody");
                let mut stream = connect(&world.outside, &format!("{ip}:9090")).unwrap();
                assert_eq!(take(&mut stream, 7).unwrap(), "metrics");
                assert!(breaks(&world.outside, &format!("{ip}:9091"), b"\x00"));
            }
            // The mesh goes on as ever.
            let answer = get(
                &world.storefront,
                &format!("{}:8080", super::ORDERS),
                "orders",
            )
            .unwrap();
            assert!(answer.body.contains("/service/storefront"), "{answer:?}");
            let permitted = ["outcome=\"plaintext_permitted\""];
            assert_eq!(world.metric(&world.orders, NAME, &permitted), 4.0);
            let inbound = ["source=\"unknown\"", "mtls=\"false\"", "class=\"2xx\""];
            assert_eq!(
                world.metric(&world.orders, "weft_requests_total", &inbound),
                2.0
            );
            let left = world.metric(
                &world.orders,
                "weft_plaintext_permitted_seconds",
                &["port=\"9090\""],
            );
            assert!(left > 900.0 * 365.0 * 24.0 * 3600.0, "{left}");
            let log = world.orders_sidecar.log();
            assert!(
                log.contains("plaintext is let in beside mutual TLS"),
                "{log}"
            );
        },
    );
}

#[test]
fn who_is_let_in_in_plaintext_is_nobody_to_the_rules() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new(
        "    mtls: { permissive: { until: 2999-12-31 } }\n    allow: [ { from: [storefront] } ]\n",
        "",
    );
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let address = format!("{ORDERS_FROM_OUTSIDE}:8080");
    let answer = get(&world.outside, &address, "orders").unwrap();
    assert_eq!((answer.status, answer.reason()), (403, Some("denied")));
    let mut stream = connect(&world.outside, &address).unwrap();
    stream.write_all(b"\x00\x01\x02\r\n\r\n").unwrap();
    assert!(take(&mut stream, 12).unwrap().ends_with(" 400"));
    assert!(app.callers().is_empty());
}

#[test]
fn after_the_last_day_it_is_refused_again() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("    mtls: { permissive: { until: 2020-01-31 } }\n", "");
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let answer = get(
        &world.outside,
        &format!("{ORDERS_FROM_OUTSIDE}:8080"),
        "orders",
    )
    .unwrap();
    assert_eq!(answer.reason(), Some("plaintext_refused"), "{answer:?}");
    assert!(answer.body.contains("the time is over"), "{answer:?}");
    assert!(app.callers().is_empty());
    let left = world.metric(
        &world.orders,
        "weft_plaintext_permitted_seconds",
        &["port=\"8080\""],
    );
    assert!(left < 0.0, "{left}");
    let log = world.orders_sidecar.log();
    assert!(log.contains("is over: it is refused"), "{log}");
}

/// What was let in is let go of when its time is over, without a restart and without a reload: bytes at that moment, HTTP
/// with its next request, and what goes on in HTTP after as long as a drain takes.
#[test]
fn what_is_open_when_the_time_is_over_ends_with_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "+0").unwrap();
    let Some(clock) = faked(file.path()).filter(|_| ground::is_possible()) else {
        return;
    };
    let today = time::OffsetDateTime::now_utc();
    let permissive = format!(
        "    mtls: {{ permissive: {{ until: {}, ports: [8080, 9090] }} }}\n",
        today.date()
    );
    let world = World::with_environment(&permissive, "", &clock);
    weft_says(&world.orders, "intercept install --user 0");
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let raw = App::start(&world.orders, "127.0.0.1:9090", Does::Greet("metrics"));
    let address = format!("{ORDERS_FROM_OUTSIDE}:8080");
    let mut kept = connect(&world.outside, &address).unwrap();
    assert_eq!(get_on(&mut kept, "orders", "/").unwrap().status, 200);
    let mut bytes = connect(&world.outside, &format!("{ORDERS_FROM_OUTSIDE}:9090")).unwrap();
    assert_eq!(take(&mut bytes, 7).unwrap(), "metrics");
    // Three seconds before midnight.
    let midnight = today.date().next_day().unwrap().midnight().assume_utc();
    let offset = (midnight - time::OffsetDateTime::now_utc()).whole_seconds() - 3;
    std::fs::write(file.path(), format!("+{offset}")).unwrap();
    let error = bytes.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    until("the app is told", || raw.ended() == 1);
    let asked = app.requests().len();
    let answer = get_on(&mut kept, "orders", "/").unwrap();
    assert_eq!(answer.reason(), Some("plaintext_refused"), "{answer:?}");
    assert!(answer.body.contains("the time is over"), "{answer:?}");
    assert_eq!(app.requests().len(), asked);
    assert!(breaks(
        &world.outside,
        &format!("{ORDERS_FROM_OUTSIDE}:9090"),
        b"\x00"
    ));
    // It may ask again, or be in the middle of something, and not for ever.
    kept.set_read_timeout(Some(Duration::from_secs(50)))
        .unwrap();
    assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    let log = world.orders_sidecar.log();
    assert!(
        log.contains("ended a connection: the time in which plaintext was let in is over"),
        "{log}"
    );
}

/// A row of a page about foreign peers: what happened, on which port, who it was, and from when on it will be refused.
fn row<'a>(rows: &'a Value, kind: &str, port: u16, peer: &str) -> Option<&'a Value> {
    rows.as_array().unwrap().iter().find(|row| {
        row["kind"] == kind
            && row["port"] == port
            && row["peer"] == peer
            && row["service"] == "orders"
    })
}

fn page(host: &super::ground::Host, path: &str) -> Value {
    serde_json::from_str(&get_on_admin(host, path).unwrap().body).unwrap()
}

#[test]
fn who_will_be_refused_when_the_permission_ends_is_named_here_and_at_the_ingress() {
    if !ground::is_possible() {
        return;
    }
    let collector = "collector: { address: \"10.77.3.1:15010\", interval: 100ms }\n";
    let world = World::new(
        "    mtls: { permissive: { until: 2999-12-31, ports: [8080, 9090] } }\n",
        collector,
    );
    let _ingress = world.ingress(collector);
    let _app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let _other = App::start(&world.orders, "127.0.0.1:9090", Does::Greet("metrics"));
    for _ in 0..3 {
        get(
            &world.outside,
            &format!("{ORDERS_FROM_OUTSIDE}:8080"),
            "orders",
        )
        .unwrap();
    }
    let address = format!("{ORDERS_FROM_OUTSIDE_V6}:9090");
    let mut stream = connect(&world.outside, &address).unwrap();
    assert_eq!(take(&mut stream, 7).unwrap(), "metrics");
    let address = format!("{ORDERS_FROM_OUTSIDE}:9091");
    assert!(breaks(&world.outside, &address, b"\x00"));
    // TLS, but not to where the mesh speaks it.
    assert!(breaks(
        &world.outside,
        &address,
        b"\x16\x03\x01\x00\x80\x01\x00"
    ));

    // 3000-01-01 in UTC.
    let end = 32_503_680_000_i64;
    let seen = [
        (
            "plaintext_permitted",
            8080,
            "10.77.3.1",
            "10.77.3.1",
            3,
            Some(end),
        ),
        (
            "plaintext_permitted",
            9090,
            "fd77:3::/64",
            "fd77:3::1",
            1,
            Some(end),
        ),
        ("plaintext_refused", 9091, "10.77.3.1", "10.77.3.1", 1, None),
        ("unexpected_tls", 9091, "10.77.3.1", "10.77.3.1", 1, None),
    ];
    let here = page(&world.orders, "/peers");
    assert_eq!(here["plaintext"][0]["refused_from_unix"], end, "{here}");
    for (kind, port, peer, address, count, until) in seen {
        let check = |row: &Value| {
            assert_eq!(row["direction"], "inbound", "{row}");
            assert_eq!(row["address"], address, "{row}");
            assert_eq!(row["count"], count, "{row}");
            assert_eq!(row["refused_from_unix"].as_i64(), until, "{row}");
        };
        check(row(&here["peers"], kind, port, peer).unwrap_or_else(|| panic!("{here}")));
        super::until("the ingress knows it", || {
            let mesh = page(&world.outside, "/mesh");
            row(&mesh["foreign"], kind, port, peer).map(check).is_some()
        });
    }
    for (kind, count) in [
        ("plaintext_permitted", 4.0),
        ("plaintext_refused", 1.0),
        ("unexpected_tls", 1.0),
    ] {
        let kind = format!("kind=\"{kind}\"");
        let own = ["service=\"orders\"", "direction=\"inbound\"", &kind];
        let name = "weft_foreign_peers_total";
        assert_eq!(world.metric(&world.orders, name, &own), count);
        let meshwide = ["source=\"unknown\"", "destination=\"orders\"", &kind];
        let name = "weft_mesh_foreign_peers_total";
        assert_eq!(world.metric(&world.outside, name, &meshwide), count);
    }
}

/// What somebody on this host is told at this port until the connection ends.
fn says(host: &Host, address: &str, bytes: &[u8]) -> String {
    let mut stream = connect(host, address).unwrap();
    // It may answer and end before it has read everything, and what it said has come all the same.
    let _: std::io::Result<()> = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _: std::io::Result<usize> = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A port that is open to strangers for a while is a door like any other, and so is the way out of an app that knows of none.
#[test]
fn hostile_requests_are_refused_wherever_connections_are_redirected() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("    mtls: { permissive: { until: 2999-12-31 } }\n", "");
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    for (host, ip) in [
        (&world.outside, ORDERS_FROM_OUTSIDE),
        (&world.storefront, ORDERS),
    ] {
        let address = format!("{ip}:8080");
        assert_eq!(get(host, &address, "orders").unwrap().status, 200);
        let before = (app.callers().len(), app.requests().len());
        for (bytes, status) in bad_heads() {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            let text = says(host, &address, &[&bytes, SMUGGLED].concat());
            let refused = text.starts_with(&format!("HTTP/1.1 {status} "))
                && text.contains("\r\nconnection: close\r\n")
                && text.matches("\r\nweft-reason: ").count() == 1
                && !text.contains("HTTP/1.1 200");
            assert!(refused, "{address}: {shown:?} got {text:?}");
            let after = (app.callers().len(), app.requests().len());
            assert_eq!(after, before, "{address}: {shown:?} was forwarded");
        }
        assert_eq!(get(host, &address, "orders").unwrap().status, 200);
    }
}

/// Sends `start`, then `drop` every half second until `is_enough` of what was said. How long that took.
fn drip(
    world: &World,
    start: &[u8],
    drop: &[u8],
    is_enough: impl Fn(&[u8]) -> bool,
) -> (Duration, Vec<u8>) {
    let address = format!("{ORDERS_FROM_OUTSIDE}:8080");
    let mut stream = connect(&world.outside, &address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let begun = Instant::now();
    stream.write_all(start).unwrap();
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    while !is_enough(&said) {
        assert!(
            begun.elapsed() < crate::harness::PATIENCE,
            "it may go on for ever"
        );
        match stream.read(&mut piece) {
            Ok(length @ 1..) => said.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // The next read says so if it has ended meanwhile.
                let _: std::io::Result<()> = stream.write_all(drop);
            }
            Ok(0) | Err(_) => break,
        }
    }
    (begun.elapsed(), said)
}

/// The first field block of an answer of HTTP/2.
fn answered_head(mut said: &[u8]) -> Option<&[u8]> {
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = said {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, next) = rest.split_at_checked(length)?;
        if *kind == HEADERS {
            return Some(payload);
        }
        said = next;
    }
    None
}

/// Who is let in without showing who it is has no more time than a stranger at the gateway.
#[test]
fn bodies_that_are_none_and_what_drips_are_given_up_where_plaintext_is_permitted() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("    mtls: { permissive: { until: 2999-12-31 } }\n", "");
    // An app that answers at once would have done so before the end of what drips.
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Listen);
    for chunks in CHUNKS {
        let shown = String::from_utf8_lossy(chunks);
        let head = b"POST /body HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n";
        let address = format!("{ORDERS_FROM_OUTSIDE}:8080");
        let text = says(
            &world.outside,
            &address,
            &[head, *chunks, SMUGGLED].concat(),
        );
        let refused = text.starts_with("HTTP/1.1 400 ") && text.matches("HTTP/1.1 ").count() == 1;
        assert!(refused, "{shown:?} got {text:?}");
    }
    let head_time = at_most(Duration::from_secs(12), Duration::from_secs(20));
    let upload_time = at_most(Duration::from_secs(32), Duration::from_secs(40));
    let cases: [(&[u8], &str, Duration); 3] = [
        (
            b"GET / HTTP/1.1\r\nhost: orders\r\nx: ",
            "head_timeout",
            head_time,
        ),
        (
            b"POST /drip HTTP/1.1\r\nhost: orders\r\ncontent-length: 100000\r\n\r\n",
            "body_timeout",
            upload_time,
        ),
        (
            b"POST /drip HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n186a0\r\n",
            "body_timeout",
            upload_time,
        ),
    ];
    std::thread::scope(|scope| {
        for (start, reason, most) in cases {
            let world = &world;
            scope.spawn(move || {
                let (took, said) = drip(world, start, b"y", |_| false);
                let said = String::from_utf8_lossy(&said);
                assert!(said.starts_with("HTTP/1.1 408 "), "{reason}: {said}");
                assert!(said.contains(reason), "{reason}: {said}");
                assert!(took < most, "{reason}: {took:?}");
            });
        }
        scope.spawn(|| {
            let head = frame(HEADERS, END_HEADERS, 1, &block(&request_fields()));
            let start = [opening(), head].concat();
            let byte = frame(DATA, 0, 1, b"y");
            let (took, said) = drip(&world, &start, &byte, |said| answered_head(said).is_some());
            let answer = answered_head(&said).expect("an answer");
            // Behind what it may say of the size of its table: not the status 200 of the static one.
            let status = answer.iter().find(|byte| **byte & 0xe0 != 0x20);
            assert_ne!(status, Some(&0x88), "{said:?}");
            assert!(took < upload_time, "{took:?}");
        });
    });
    // It was told that nothing more comes, by an end of each connection.
    until("the app is left alone", || {
        app.ended() == app.callers().len()
    });
}
