//! A caller that vanishes without a word, with something open that was silent: a WebSocket, a stream, a tunnel. Nothing
//! else would ever tell the app, and the place of each would be taken for ever.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::app::{App, Does, GRPC, connect, read_frame, read_head, take};
use super::ground::{self, Host};
use super::{ORDERS_FROM_OUTSIDE, OUTSIDE, World, is_ready, start_sidecar, until};
use crate::harness::{Authority, Process};
use crate::hostile::frames::{END_HEADERS, HEADERS, block, frame, opening};

/// Half a minute, on a machine that has more to do; and not much sooner, since a network may be away for a moment.
const GIVEN_UP: std::ops::Range<Duration> = Duration::from_secs(20)..Duration::from_secs(50);
/// More than what all buffers on the way hold.
const LARGE: usize = 64 << 20;

/// A caller, and at cables of their own a service of WebSockets, one of calls, one of TCP, and a gateway with its app.
struct Town {
    // Before the hosts: what runs on them ends first.
    _processes: Vec<Process>,
    caller: Host,
    hosts: [Host; 4],
    _files: TempDir,
}

const GATEWAY: &str = "10.77.4.2:18080";

impl Town {
    fn new() -> Self {
        let caller = Host::new();
        let hosts: [Host; 4] = std::array::from_fn(|_| Host::new());
        for (host, net) in hosts.iter().zip(1..) {
            caller.cable(host, net);
        }
        let files = tempfile::tempdir().unwrap();
        let yaml = format!(
            "trust_domain: {domain}\n\
             identity: {{ cert: cert.pem, key: key.pem, bundle: bundle.pem }}\n\
             sidecar: {{ inbound: {{ address: \"0.0.0.0:15008\" }} }}\n\
             services:\n  storefront: {{ endpoints: [ \"10.77.1.1:15008\" ], port: 8080 }}\n  \
             chat: {{ endpoints: [ \"10.77.1.2:15008\" ], port: 8080 }}\n  \
             calls: {{ endpoints: [ \"10.77.2.2:15008\" ], port: 8080, protocol: grpc }}\n  \
             db: {{ endpoints: [ \"10.77.3.2:15008\" ], port: 8080, protocol: tcp, listen: \"127.0.0.1:5432\" }}\n  \
             open: {{ mesh: false, endpoints: [ \"127.0.0.1:8080\" ] }}\n  \
             large: {{ mesh: false, endpoints: [ \"127.0.0.1:8081\" ] }}\n\
             ingress:\n  listeners: [ {{ name: public, address: \"{GATEWAY}\" }} ]\n  \
             routes: [ {{ match: {{ host: large }}, to: large }}, {{ to: open }} ]\n",
            domain = crate::harness::certs::DOMAIN,
        );
        let authority = Authority::new();
        let start = |service: &str, host: &Host| {
            let who = (service, service, 2);
            start_sidecar(&files, &authority, &yaml, who, host, &[])
        };
        let mut processes = vec![
            start("storefront", &caller),
            start("chat", &hosts[0]),
            start("calls", &hosts[1]),
            start("db", &hosts[2]),
        ];
        let directory = files.path().join("ingress");
        std::fs::create_dir_all(&directory).unwrap();
        authority.write(&authority.service("ingress"), &directory);
        let file = directory.join("weft.yaml");
        std::fs::write(&file, &yaml).unwrap();
        let arguments = ["ingress", "--config", file.to_str().unwrap()].map(str::to_owned);
        processes.push(hosts[3].run(|| Process::start(files.path(), "ingress", &arguments, &[])));
        is_ready(&caller);
        hosts.iter().for_each(is_ready);
        Self {
            _processes: processes,
            caller,
            hosts,
            _files: files,
        }
    }
}

/// A WebSocket of this host's that was agreed to.
pub(super) fn chat(host: &Host, to: &str, name: &str) -> TcpStream {
    let mut stream = connect(host, to).unwrap();
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: {name}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: chat\r\n\r\n"
    )
    .unwrap();
    let head = read_head(&mut BufReader::new(&stream)).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

/// A call whose answer has begun.
fn call(host: &Host, to: &str, name: &'static str) -> TcpStream {
    let mut stream = connect(host, to).unwrap();
    let head = block(&[
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", name.as_bytes()),
        (b":path", b"/shop.Calls/Stream"),
        GRPC,
        (b"te", b"trailers"),
    ]);
    let bytes = [opening(), frame(HEADERS, END_HEADERS, 1, &head)].concat();
    stream.write_all(&bytes).unwrap();
    while read_frame(&mut stream).unwrap().kind != HEADERS {}
    stream
}

/// May fail: what the vanished caller had open. Each of its apps is told within half a minute, and who only reads slowly,
/// or not at all for longer than that, gets everything.
#[test]
fn what_a_vanished_caller_had_open_is_given_up_and_the_app_is_told() {
    if !ground::is_possible() {
        return;
    }
    let town = Town::new();
    let [chats, calls, db, open] = [Does::Chat, Does::Call, Does::Greet("hello"), Does::Chat];
    let apps: Vec<App> = town
        .hosts
        .iter()
        .zip([chats, calls, db, open])
        .map(|(host, does)| App::start(host, "127.0.0.1:8080", does))
        .collect();
    let sidecar = "127.0.0.1:15001";
    let _open = [
        chat(&town.caller, sidecar, "chat"),
        call(&town.caller, sidecar, "calls"),
        connect(&town.caller, "127.0.0.1:5432").unwrap(),
        chat(&town.caller, GATEWAY, "open"),
    ];
    until("all are open", || {
        apps.iter().all(|app| app.callers().len() == 1)
    });
    // On the gateway's own host, so that its cable is whole.
    let _large = App::start(&town.hosts[3], "127.0.0.1:8081", Does::Large(LARGE));
    let mut slow = connect(&town.hosts[3], GATEWAY).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: large\r\nconnection: close\r\n\r\n")
        .unwrap();
    take(&mut slow, 1).unwrap();

    town.caller.cut(&[1, 2, 3, 4]);
    let cut = Instant::now();
    let mut told: Vec<Option<Duration>> = vec![None; apps.len()];
    until("all apps are told", || {
        for (told, app) in told.iter_mut().zip(&apps) {
            if app.ended() == 1 {
                told.get_or_insert(cut.elapsed());
            }
        }
        told.iter().all(Option::is_some)
    });
    for took in told.iter().flatten() {
        assert!(GIVEN_UP.contains(took), "{told:?}");
    }
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    let body = rest.iter().rev().take_while(|byte| **byte == b'x').count();
    assert_eq!(body, LARGE);
}

/// The same of connections that only pass through a sidecar, in and out.
#[test]
fn connections_that_are_passed_on_are_given_up_as_well() {
    if !ground::is_possible() {
        return;
    }
    let permissive = "    mtls: { permissive: { until: 2999-12-31, ports: [9090] } }\n";
    let world = World::new(permissive, "");
    let inside = App::start(&world.orders, "127.0.0.1:9090", Does::Greet("metrics"));
    let _outside = App::start(
        &world.outside,
        &format!("{OUTSIDE}:7000"),
        Does::Greet("hello"),
    );
    let mut come = connect(&world.outside, &format!("{ORDERS_FROM_OUTSIDE}:9090")).unwrap();
    assert_eq!(take(&mut come, 7).unwrap(), "metrics");
    let mut gone = connect(&world.storefront, &format!("{OUTSIDE}:7000")).unwrap();
    assert_eq!(take(&mut gone, 5).unwrap(), "hello");

    world.outside.cut(&[2, 3]);
    let cut = Instant::now();
    gone.set_read_timeout(Some(GIVEN_UP.end)).unwrap();
    let error = gone.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let told = cut.elapsed();
    assert!(GIVEN_UP.contains(&told), "{told:?}");
    until("the app is told", || inside.ended() == 1);
    let told = cut.elapsed();
    assert!(GIVEN_UP.contains(&told), "{told:?}");
}
