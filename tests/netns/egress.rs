//! What an app sends to others than the mesh's services.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::app::{App, Does, breaks, connect, get, get_on, rest, take};
use super::ground;
use super::{OUTSIDE, OUTSIDE_V6, World, under_either, until};
use crate::harness::told::at_most;

#[test]
fn unknown_destinations_get_every_byte_and_nothing_else() {
    under_either("", "", |world| {
        for ip in [OUTSIDE, OUTSIDE_V6] {
            // Whoever speaks first, whatever is said: bytes that are no protocol, a request that no proxy would take.
            let server_first = format!("{ip}:7000");
            let echo = App::start(&world.outside, &server_first, Does::Greet("220 hello\r\n"));
            let mut stream = connect(&world.storefront, &server_first).unwrap();
            assert_eq!(take(&mut stream, 11).unwrap(), "220 hello\r\n");
            stream.write_all(b"\x00\x01 any\r\n").unwrap();
            assert_eq!(take(&mut stream, 8).unwrap(), "\x00\x01 any\r\n");
            // Half closed: the rest still comes.
            stream.write_all(b"last").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&mut stream).unwrap(), "last");
            assert_ne!(echo.callers(), [stream.local_addr().unwrap()]);

            let mut stream = connect(&world.storefront, &server_first).unwrap();
            let odd = "GET  /  HTTP/1.1\r\nHost : a\r\n b\r\n\r\nGET / HTTP/1.1\r\nhost: one\r\nhost: two\r\n\r\n";
            stream.write_all(odd.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&mut stream).unwrap(), format!("220 hello\r\n{odd}"));

            let http = format!("{ip}:80");
            let _web = App::start(&world.outside, &http, Does::Http("web"));
            let answer = get(&world.storefront, &http, "web.example").unwrap();
            assert_eq!(answer.body, "web called by nobody");
            // A port of which it is known that its servers speak first.
            let mail = format!("{ip}:25");
            let _mail = App::start(&world.outside, &mail, Does::Greet("220 mail\r\n"));
            let mut stream = connect(&world.storefront, &mail).unwrap();
            assert_eq!(take(&mut stream, 10).unwrap(), "220 mail\r\n");
        }
        let name = "weft_redirected_connections_total";
        let passed = ["outcome=\"passthrough\""];
        assert_eq!(world.metric(&world.storefront, name, &passed), 8.0);
        assert_eq!(
            world.metric(&world.storefront, "weft_answers_total", &[]),
            0.0
        );
    });
}

#[test]
fn a_destination_that_is_not_there_is_a_broken_connection() {
    under_either("", "", |world| {
        assert!(breaks(&world.storefront, &format!("{OUTSIDE}:7999"), b""));
        let name = "weft_redirected_connections_total";
        let unreachable = ["outcome=\"unreachable\""];
        assert_eq!(world.metric(&world.storefront, name, &unreachable), 1.0);
    });
}

/// The first bytes of a TLS connection for a server of this name.
fn client_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn what_is_not_on_the_list_is_refused_with_the_reason() {
    under_either(
        "",
        "  egress:\n    allow_list: { hosts: [ web.example, \"*.good.example\" ], networks: [ \"10.77.2.128/25\" ] }\n",
        |world| {
            world.outside.system("ip addr add 10.77.2.200/24 dev net2");
            let web = App::start(&world.outside, &format!("{OUTSIDE}:80"), Does::Http("web"));
            let address = format!("{OUTSIDE}:80");
            assert_eq!(
                get(&world.storefront, &address, "web.example")
                    .unwrap()
                    .status,
                200
            );
            assert_eq!(
                get(&world.storefront, &address, "a.good.example")
                    .unwrap()
                    .status,
                200
            );
            assert_eq!(web.callers().len(), 2);
            // Every request on such a connection is told why.
            let mut stream = connect(&world.storefront, &address).unwrap();
            for _ in 0..2 {
                let answer = get_on(&mut stream, "bad.example", "/").unwrap();
                assert_eq!(
                    (answer.status, answer.reason()),
                    (403, Some("egress_denied"))
                );
                assert!(answer.body.contains("bad.example"), "{answer:?}");
            }
            assert_eq!(web.callers().len(), 2);

            let echo = App::start(&world.outside, &format!("{OUTSIDE}:443"), Does::Greet(""));
            let secure = |name: &str| {
                let mut stream = connect(&world.storefront, &format!("{OUTSIDE}:443")).unwrap();
                let hello = client_hello(name);
                // In two parts: the name may come late.
                let (first, second) = hello.split_at(20);
                stream.write_all(first).unwrap();
                stream.write_all(second).unwrap();
                let mut back = vec![0; hello.len()];
                std::io::Read::read_exact(&mut stream, &mut back).map(|()| back == hello)
            };
            assert!(secure("web.example").unwrap());
            assert!(secure("a.good.example").unwrap());
            assert!(secure("bad.example").is_err());
            assert_eq!(echo.callers().len(), 2);

            let near = App::start(&world.outside, "10.77.2.200:7000", Does::Greet("near"));
            let far = App::start(
                &world.outside,
                &format!("{OUTSIDE}:7000"),
                Does::Greet("far"),
            );
            let mut stream = connect(&world.storefront, "10.77.2.200:7000").unwrap();
            assert_eq!(take(&mut stream, 4).unwrap(), "near");
            assert!(breaks(
                &world.storefront,
                &format!("{OUTSIDE}:7000"),
                b"\x00"
            ));
            assert_eq!((near.callers().len(), far.callers().len()), (1, 0));
            let name = "weft_redirected_connections_total";
            let denied = ["outcome=\"egress_denied\""];
            assert_eq!(world.metric(&world.storefront, name, &denied), 3.0);
            let log = world.storefront_sidecar.log();
            assert!(
                log.contains("egress_denied") && log.contains("bad.example"),
                "{log}"
            );
        },
    );
}

#[test]
fn silence_is_waited_for_but_not_on_ports_where_servers_speak_first() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("", "  intercept: { opaque_ports: [ 7001 ] }\n");
    let greeting = "220 hello\r\n";
    let apps = [25, 7000, 7001].map(|port| {
        let address = format!("{OUTSIDE}:{port}");
        App::start(&world.outside, &address, Does::Greet(greeting))
    });
    // The quickest of some, because the machine may have something else to do.
    let greeted_in = |port: u16| {
        let times = (0..5).map(|_| {
            let begun = Instant::now();
            let mut stream = connect(&world.storefront, &format!("{OUTSIDE}:{port}")).unwrap();
            assert_eq!(take(&mut stream, greeting.len()).unwrap(), greeting);
            begun.elapsed()
        });
        times.min().unwrap()
    };
    let (at_once, patience) = (Duration::from_millis(100), Duration::from_millis(200));
    for port in [25, 7001] {
        let took = greeted_in(port);
        assert!(took < at_once, "port {port}: {took:?}");
    }
    let took = greeted_in(7000);
    assert!(took >= patience, "{took:?}");
    let soon = at_most(Duration::from_millis(700), Duration::from_secs(3));
    assert!(took < soon, "{took:?}");
    // A change of the file is taken in place.
    world.change("7001", "7000");
    until("the declared port is passed on at once", || {
        greeted_in(7000) < at_once
    });
    assert!(greeted_in(7001) >= patience);
    assert!(greeted_in(25) < at_once);
    drop(apps);
}
