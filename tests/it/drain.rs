//! A process that is told to stop says so, finishes what it has, and ends; nothing is lost that did not have to be.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::harness::certs::service;
use crate::harness::wire::Stream;
use crate::harness::{Behaviour, Client, Load, Mesh, Service, Wire, eventually, soon};
use crate::hostile::frames;

/// `orders` behind an ingress that drains as `drain` says.
async fn draining(drain: &str, replicas: u8) -> Mesh {
    Mesh::new()
        .service(Service::new("orders").replicas(replicas))
        .route("/orders/*", "orders")
        .with(&format!("drain: {{ {drain} }}"))
        .start()
        .await
}

/// An app that answers in two halves, the second one when told to.
fn in_two_halves(go_on: &Arc<Notify>) -> Behaviour {
    let go_on = Arc::clone(go_on);
    Behaviour::script(move |mut wire| {
        let go_on = Arc::clone(&go_on);
        async move {
            while wire.head().await.is_some() {
                wire.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
                    .await;
                go_on.notified().await;
                wire.write("-last").await;
            }
        }
    })
}

/// Waits until no thread takes new connections any more.
async fn door_is_closed(mesh: &Mesh) {
    eventually("the door is closed", async || {
        TcpStream::connect(mesh.public()).await.err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_under_way_ends_and_the_process_with_success() {
    let mut mesh = draining("delay: 0s", 1).await;
    let go_on = Arc::new(Notify::new());
    mesh.origin("orders", 0).does(in_two_halves(&go_on));
    let mut client = Wire::connect(mesh.public()).await;
    client
        .write("GET /orders/1 HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    let head = soon("a head", client.head()).await.unwrap();
    assert_eq!(head.status(), 200);
    mesh.ingress().terminate();
    mesh.ingress().says(&["draining", "SIGTERM"]).await;
    // New connections are not taken any more, the old one goes on.
    door_is_closed(&mesh).await;
    go_on.notify_one();
    assert_eq!(client.rest().await, b"first-last");
    let ended = mesh.ingress.as_mut().unwrap().end().await;
    assert!(ended.success(), "{ended}");
    mesh.ingress().says(&["every connection has ended"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_ready_before_it_stops_taking_connections() {
    let mut mesh = draining("delay: 3s", 1).await;
    mesh.ingress().terminate();
    let host = mesh.ingress_host();
    let page = eventually("it is not ready", async || {
        let page = mesh.try_page(host, "/ready").await?;
        (page.code() == 503).then_some(page)
    })
    .await;
    assert!(page.text().contains("draining"), "{}", page.text());
    // Whoever has not heard of it yet is served as ever.
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
    assert!(mesh.ingress.as_mut().unwrap().end().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_are_closed_with_a_word() {
    let mut mesh = draining("delay: 0s", 1).await;
    let (go_on, waits) = watch::channel(false);
    let (arrived, mut arrivals) = mpsc::channel(1);
    mesh.origin("orders", 0)
        .does(Behaviour::script(move |mut wire| {
            let (mut waits, arrived) = (waits.clone(), arrived.clone());
            async move {
                while let Some(head) = wire.head().await {
                    if head.word(1) == "/orders/busy" {
                        arrived.send(()).await.unwrap();
                        waits.wait_for(|go_on| *go_on).await.unwrap();
                    }
                    wire.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .await;
                }
            }
        }));
    let mut idle = Wire::connect(mesh.public()).await;
    idle.exchange("GET /orders/1 HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    let mut busy = Wire::connect(mesh.public()).await;
    busy.write("GET /orders/busy HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    soon("the busy one is busy", arrivals.recv()).await;
    let h2 = Client::h2c(mesh.public()).await;
    assert_eq!(h2.get(&mesh.url("/orders/3")).await.code(), 200);

    mesh.ingress().terminate();
    // The idle one is closed between two exchanges, without an answer to nothing.
    assert!(idle.rest().await.is_empty());
    // The busy one is told with its answer, once every thread knows.
    door_is_closed(&mesh).await;
    go_on.send_replace(true);
    let (head, content) = busy.answer().await;
    assert_eq!((head.status(), &*content.bytes), (200, &b"ok"[..]));
    assert_eq!(head.field("connection"), Some("close"));
    // HTTP/2 has GOAWAY: hyper does not begin another exchange after it.
    eventually("the HTTP/2 connection ends", async || {
        let request = http::Request::get(mesh.url("/orders/4"));
        let request = request.body(crate::harness::client::whole("")).unwrap();
        h2.begin(request).await.err()
    })
    .await;
    assert!(mesh.ingress.as_mut().unwrap().end().await.success());
}

/// A frame: its kind, flags, stream and payload. `None` at the end of the connection.
async fn next_frame(wire: &mut Wire<impl Stream>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let head = wire.exactly(9).await?;
    let number = |bytes: &[u8]| {
        let joined = bytes
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u32::from(*byte));
        joined & 0x7fff_ffff
    };
    let payload = wire.exactly(number(&head[..3]) as usize).await?;
    Some((head[3], head[4], number(&head[5..]), payload))
}

/// A client of HTTP/2 that has asked one thing, which was answered.
async fn answered_once<S: Stream>(stream: S) -> Wire<S> {
    let mut wire = Wire::new(stream);
    let fields = frames::block(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"orders"),
        (b":path", b"/orders/1"),
    ]);
    let request = frames::frame(
        frames::HEADERS,
        END_STREAM | frames::END_HEADERS,
        1,
        &fields,
    );
    let acknowledged = frames::frame(frames::SETTINGS, ACK, 0, &[]);
    let opening = [frames::opening(), acknowledged, request].concat();
    wire.write(opening).await;
    soon("the whole answer", async {
        loop {
            let (kind, flags, stream, _) = next_frame(&mut wire).await.expect("an answer");
            assert_ne!(kind, GOAWAY, "it is early");
            if stream == 1
                && matches!(kind, frames::HEADERS | frames::DATA)
                && flags & END_STREAM != 0
            {
                return;
            }
        }
    })
    .await;
    wire
}

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const GOAWAY: u8 = 7;

/// Listens to the end: the last stream that the last GOAWAY names, which nothing follows, and its code.
async fn goodbye(mut wire: Wire<impl Stream>) -> (u32, u32) {
    let mut last = None;
    soon("the end of the connection", async {
        while let Some((kind, flags, _, payload)) = next_frame(&mut wire).await {
            last = Some((kind, payload.clone()));
            // What the other side says goodbye with is timed by this.
            if kind == frames::PING && flags & ACK == 0 {
                let back = frames::frame(frames::PING, ACK, 0, &payload);
                let _ = wire.try_write(back).await;
            }
        }
    })
    .await;
    let (kind, payload) = last.expect("a word before the end");
    assert_eq!(kind, GOAWAY, "the last word was another");
    let number = |from: usize| u32::from_be_bytes(payload[from..from + 4].try_into().unwrap());
    (number(0), number(4))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_ends_with_a_goaway_that_names_its_last_exchange() {
    let mut mesh = draining("delay: 0s", 1).await;
    let public = answered_once(TcpStream::connect(mesh.public()).await.unwrap()).await;
    let member = mesh.authority.leaf(&service("storefront")).client(&["h2"]);
    let door = mesh.inbound("orders", 0);
    let inbound = answered_once(Client::handshake(door, member, "orders").await.unwrap()).await;
    // No error, and the one exchange that there was.
    mesh.ingress().terminate();
    assert_eq!(goodbye(public).await, (1, 0), "at the gateway");
    assert!(mesh.ingress.as_mut().unwrap().end().await.success());
    mesh.sidecar("orders", 0).terminate();
    assert_eq!(goodbye(inbound).await, (1, 0), "at the mesh's door");
    assert!(mesh.replica_mut("orders", 0).sidecar.end().await.success());
}

/// A client whose answer has begun and does not go on.
async fn half_answered(mesh: &Mesh) -> Wire {
    mesh.origin("orders", 0)
        .does(in_two_halves(&Arc::new(Notify::new())));
    let mut client = Wire::connect(mesh.public()).await;
    client
        .write("GET /orders/1 HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    assert!(soon("a head", client.head()).await.is_some());
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_at_the_deadline_is_said() {
    let mut mesh = draining("delay: 0s, timeout: 1s", 1).await;
    let mut client = half_answered(&mesh).await;
    mesh.ingress().terminate();
    assert_eq!(client.rest().await, b"first");
    mesh.ingress.as_mut().unwrap().end().await;
    let said = mesh
        .ingress()
        .says(&["cut connections", "\"connections\":1"])
        .await;
    assert!(said.contains("WARN"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let mut mesh = draining("delay: 0s, timeout: 3600s", 1).await;
    let _client = half_answered(&mesh).await;
    mesh.ingress().terminate();
    mesh.ingress().says(&["draining"]).await;
    mesh.ingress().signal(Signal::TERM);
    let ended = mesh.ingress.as_mut().unwrap().end().await;
    assert_eq!(ended.code(), Some(143));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_stopped_under_load_fails_nothing() {
    let mut mesh = draining("delay: 1s", 2).await;
    for origin in mesh.origins("orders") {
        origin.does(Behaviour::Slow(Duration::from_millis(10)));
    }
    let request = {
        let url = mesh.url("/orders/1");
        // Nothing that may be tried again.
        move || {
            http::Request::post(&url)
                .body(crate::harness::client::whole("an order"))
                .unwrap()
        }
    };
    let load = Load::of(&mesh.client, request, 8, Duration::ZERO);
    load.more(100).await;
    mesh.sidecar("orders", 0).terminate();
    let ended = mesh.replica_mut("orders", 0).sidecar.end().await;
    assert!(ended.success(), "{ended}");
    load.more(100).await;
    mesh.restart_sidecar("orders", 0).await;
    load.more(100).await;
    load.stop().await.assert_all_answered();
}

/// Waits until every core of a sidecar of `orders` has heard that it drains, which is a moment after its log says so: whoever
/// connects anew is told, and is taken by one core or another.
async fn every_core_drains(mesh: &Mesh, number: usize) {
    const IN_A_ROW: usize = 8;
    let member = mesh.authority.leaf(&service("storefront")).client(&["h2"]);
    let door = mesh.inbound("orders", number);
    let mut told = 0;
    eventually("every core drains", async || {
        let client = Client::tls(door, Arc::clone(&member), "orders").await;
        let reply = client.get("http://orders/orders/1").await;
        told = match reply.header("weft-draining") {
            Some(_) => told + 1,
            None => 0,
        };
        (told == IN_A_ROW).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_leave_a_draining_replica_within_a_round_trip_and_come_back() {
    let mut mesh = draining("delay: 15s", 2).await;
    mesh.dns.ttl(600);
    let host = mesh.replica("orders", 0).host;
    let state = |page: &str, state: &str| {
        let state = format!("state=\"{state}\"");
        crate::harness::mesh::sample(page, "weft_endpoint_state", &[&host.to_string(), &state])
    };
    for _ in 0..20 {
        assert_eq!(mesh.get("/orders/1").await.code(), 200);
    }
    mesh.sidecar("orders", 0).terminate();
    mesh.sidecar("orders", 0)
        .says(&["draining", "SIGTERM"])
        .await;
    every_core_drains(&mesh, 0).await;
    mesh.origin("orders", 0).forget();
    for number in 0..100 {
        let reply = mesh.post(&format!("/orders/{number}"), "an order").await;
        assert_eq!(reply.code(), 200, "{}", reply.text());
        assert_eq!(reply.header("weft-draining"), None, "this is between us");
    }
    // It was told with the answer to the first exchange.
    let after = mesh.origin("orders", 0).total();
    assert!(after <= 3, "{after} exchanges with a draining replica");
    let page = mesh.page(mesh.ingress_host(), "/metrics").await.text();
    assert!(state(&page, "draining") > 0.5, "{page}");
    // It still works for whoever has not heard of it.
    assert!(mesh.replica_mut("orders", 0).sidecar.ended().is_none());
    assert!(mesh.replica_mut("orders", 0).sidecar.end().await.success());

    mesh.restart_sidecar("orders", 0).await;
    eventually("it is used again", async || {
        mesh.get("/orders/1").await;
        (mesh.origin("orders", 0).total() > after).then_some(())
    })
    .await;
    let page = mesh.page(mesh.ingress_host(), "/metrics").await.text();
    assert!(state(&page, "healthy") > 0.5, "{page}");
}

/// Says its name first, then sends everything back, and its end.
fn named_echo(name: &'static str) -> Behaviour {
    Behaviour::script(move |mut wire| async move {
        wire.write(name).await;
        let (mut read, mut write) = wire.stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
}

/// A connection to a database by its caller's sidecar, and which it got. An error is in words.
async fn dial(door: SocketAddr) -> Result<(Wire, String), String> {
    let connected = soon("a connection", TcpStream::connect(door)).await;
    let mut wire = Wire::new(connected.map_err(|error| error.to_string())?);
    let name = soon("a name", wire.exactly(4)).await.ok_or("no name")?;
    Ok((wire, String::from_utf8_lossy(&name).into_owned()))
}

/// One short connection from beginning to end.
async fn used_once(door: SocketAddr) -> Result<(), String> {
    let (mut wire, name) = dial(door).await?;
    let sent = wire.try_write("hello").await;
    sent.map_err(|error| format!("{name}: {error}"))?;
    wire.finish().await;
    match wire.rest().await {
        back if back == b"hello" => Ok(()),
        back => Err(format!("{name} said back {back:?}")),
    }
}

/// One to that database.
async fn dial_to(door: SocketAddr, wanted: &str) -> Wire {
    eventually("a connection to that one", async || {
        let (wire, name) = dial(door).await.unwrap();
        (name == wanted).then_some(wire)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_no_http_leave_a_draining_replica_within_a_round_trip_too() {
    let mut mesh = Mesh::new()
        .service(
            Service::new("db")
                .tcp()
                .replicas(3)
                .with("balance: { policy: round_robin }"),
        )
        .service(Service::new("shop"))
        .without_ingress()
        .with("drain: { delay: 15s, timeout: 8s }")
        .start()
        .await;
    mesh.dns.ttl(600);
    for (number, name) in ["db-0", "db-1", "db-2"].into_iter().enumerate() {
        mesh.origin("db", number).does(named_echo(name));
    }
    let door = mesh.listen("shop", 0);
    let (mut ended, mut cut) = (dial_to(door, "db-0").await, dial_to(door, "db-0").await);
    let (done, failures) = <(Arc<[AtomicUsize; 4]>, Arc<Mutex<Vec<String>>>)>::default();
    let mut callers = JoinSet::new();
    for caller in 0..done.len() {
        let (done, failures) = (Arc::clone(&done), Arc::clone(&failures));
        callers.spawn(async move {
            loop {
                if let Err(words) = used_once(door).await {
                    failures.lock().unwrap().push(words);
                }
                done[caller].fetch_add(1, Relaxed);
            }
        });
    }
    let by_caller = || done.each_ref().map(|done| done.load(Relaxed));
    let all = || by_caller().iter().sum::<usize>();
    let more = async |connections: usize| {
        let wanted = all() + connections;
        eventually("more connections", async || (all() >= wanted).then_some(())).await;
    };
    more(50).await;
    // A third of them; each core goes around for itself.
    assert!(mesh.origin("db", 0).connections() >= 10);
    mesh.sidecar("db", 0).terminate();
    mesh.sidecar("db", 0).says(&["draining", "SIGTERM"]).await;
    let (at, host) = (
        mesh.replica("db", 0).host.to_string(),
        mesh.replica("shop", 0).host,
    );
    let draining = [at.as_str(), "state=\"draining\""];
    mesh.metric_reaches(host, "weft_endpoint_state", &draining, 1.0)
        .await;
    // What had been on its way by then, of each caller.
    let before = by_caller();
    eventually("every caller has begun anew", async || {
        let mut both = before.iter().zip(by_caller());
        both.all(|(before, now)| now >= before + 2).then_some(())
    })
    .await;
    let told = mesh.origin("db", 0).connections();
    more(200).await;
    assert_eq!(mesh.origin("db", 0).connections(), told, "it got more");
    // It takes them as ever from whoever has not heard of it.
    assert!(mesh.replica_mut("db", 0).sidecar.ended().is_none());
    assert!(TcpStream::connect(mesh.inbound("db", 0)).await.is_ok());
    // Also when nobody can come any more, what is open goes on to its end, or to the deadline.
    eventually("the door is closed", async || {
        TcpStream::connect(mesh.inbound("db", 0)).await.err()
    })
    .await;
    for open in [&mut ended, &mut cut] {
        open.write("still here").await;
        let back = soon("the echo", open.exactly(10)).await;
        assert_eq!(back.as_deref(), Some(&b"still here"[..]));
    }
    ended.finish().await;
    assert_eq!(ended.rest().await, b"");
    mesh.sidecar("db", 0)
        .says(&["cut connections", "\"connections\":1"])
        .await;
    let error = soon("the cut", cut.more()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    more(50).await;
    assert!(mesh.replica_mut("db", 0).sidecar.end().await.success());
    mesh.restart_sidecar("db", 0).await;
    drop(dial_to(door, "db-0").await);
    mesh.metric_reaches(
        host,
        "weft_endpoint_state",
        &[&at, "state=\"healthy\""],
        1.0,
    )
    .await;
    callers.abort_all();
    let failures = failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goaway_alone_is_enough() {
    let mut mesh = Mesh::new()
        // Nothing is tried again, so that each attempt at the one that is gone is seen.
        .service(
            Service::new("orders")
                .replicas(2)
                .with("retry: { attempts: 0 }"),
        )
        .route("/orders/*", "orders")
        .with("drain: { delay: 0s }")
        .start()
        .await;
    mesh.dns.ttl(600);
    for _ in 0..20 {
        assert_eq!(mesh.get("/orders/1").await.code(), 200);
    }
    assert!(mesh.origin("orders", 0).total() > 0);
    // Nobody is answered from here on until it is gone.
    mesh.sidecar("orders", 0).terminate();
    assert!(mesh.replica_mut("orders", 0).sidecar.end().await.success());
    let host = mesh.replica("orders", 0).host.to_string();
    let state = [host.as_str(), "state=\"draining\""];
    mesh.metric_reaches(mesh.ingress_host(), "weft_endpoint_state", &state, 1.0)
        .await;
    for number in 0..50 {
        let reply = mesh.post(&format!("/orders/{number}"), "an order").await;
        assert_eq!(reply.code(), 200, "{}", reply.text());
    }
    mesh.restart_sidecar("orders", 0).await;
    mesh.origin("orders", 0).forget();
    eventually("it is used again", async || {
        mesh.get("/orders/1").await;
        (mesh.origin("orders", 0).total() > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_cannot_say_that_its_sidecar_drains() {
    let mesh = draining("delay: 0s", 1).await;
    mesh.origin("orders", 0).does(Behaviour::Bytes(
        b"HTTP/1.1 200 OK\r\nWeft-Draining: ?1\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    ));
    let reply = mesh.get("/orders/1").await;
    assert_eq!((reply.code(), reply.header("weft-draining")), (200, None));
    let page = mesh.page(mesh.ingress_host(), "/metrics").await.text();
    let state = ["state=\"draining\""];
    assert!(crate::harness::mesh::sample(&page, "weft_endpoint_state", &state) < 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_ends_before_its_sidecar_is_no_failure_of_its_callers() {
    let mut mesh = draining("delay: 15s", 1).await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
    mesh.sidecar("orders", 0).terminate();
    mesh.sidecar("orders", 0)
        .says(&["draining", "SIGTERM"])
        .await;
    every_core_drains(&mesh, 0).await;
    mesh.origin("orders", 0).stop().await;
    // There is no other to turn to, so the reason is seen.
    let reply = mesh.post("/orders/2", "an order").await;
    assert_eq!((reply.code(), reply.reason()), (503, Some("draining")));
    let number = mesh.add_replica("orders").await;
    mesh.dns.add("orders", mesh.replica("orders", number).host);
    eventually("another one takes over", async || {
        (mesh.post("/orders/3", "an order").await.code() == 200).then_some(())
    })
    .await;
    assert!(mesh.replica_mut("orders", 0).sidecar.end().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_and_idle_processes_end_with_success_at_once() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .with("drain: { delay: 0s, timeout: 3600s }")
        .ca("")
        .start()
        .await;
    mesh.get("/orders/1").await;
    mesh.ca.as_ref().unwrap().terminate();
    assert!(mesh.ca.as_mut().unwrap().end().await.success());
    mesh.sidecar("orders", 0).terminate();
    assert!(mesh.replica_mut("orders", 0).sidecar.end().await.success());
    mesh.ingress().terminate();
    assert!(mesh.ingress.as_mut().unwrap().end().await.success());
}
