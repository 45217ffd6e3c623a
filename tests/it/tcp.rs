//! Connections whose bytes nobody looks at: a service with `protocol: tcp` through two sidecars, or straight.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::harness::mesh::Builder;
use super::harness::told::at_most;
use super::harness::{Behaviour, Client, Mesh, Origin, Service, Wire, eventually, soon};

/// A database, and a shop that uses it.
fn shop(database: Service) -> Builder {
    Mesh::new()
        .service(database.tcp())
        .service(Service::new("shop"))
        .without_ingress()
}

/// Sends everything back, and its end.
fn echo() -> Behaviour {
    Behaviour::script(async |mut wire| {
        let (mut read, mut write) = wire.stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
}

async fn said_back(client: &mut Wire, text: &str) {
    client.write(text).await;
    let back = soon("the echo", client.exactly(text.len())).await;
    assert_eq!(back.as_deref(), Some(text.as_bytes()));
}

/// Waits until nothing is in flight from the shop to the database, so that all of it was counted.
async fn settled(mesh: &Mesh) {
    let host = mesh.replica("shop", 0).host;
    eventually("nothing is in flight", async || {
        let parts = ["destination=\"db\""];
        let now = mesh.metric(host, "weft_requests_in_flight", &parts).await;
        (now == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_carried_and_counted_at_both_ends() {
    let mesh = shop(Service::new("db")).start().await;
    mesh.origin("db", 0).does(echo());
    let door = mesh.listen("shop", 0);
    // Bytes that would be taken for HTTP, for HTTP/2 and for TLS elsewhere.
    for text in [
        "GET / HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ] {
        let mut client = Wire::connect(door).await;
        said_back(&mut client, text).await;
        client.finish().await;
        assert_eq!(client.rest().await, b"");
    }
    settled(&mesh).await;
    let edge = ["source=\"shop\"", "destination=\"db\"", "mtls=\"true\""];
    for (service, direction) in [
        ("shop", "direction=\"outbound\""),
        ("db", "direction=\"inbound\""),
    ] {
        let host = mesh.replica(service, 0).host;
        let parts = [&edge[..], &[direction]].concat();
        let count = async |name: &str, more: &[&str]| {
            mesh.metric(host, name, &[&parts[..], more].concat()).await
        };
        // The other end may write the last one down a moment later.
        let all = [&parts[..], &["class=\"2xx\""]].concat();
        let counted = mesh.metric_reaches(host, "weft_requests_total", &all, 3.0);
        assert_eq!(counted.await, 3.0);
        assert_eq!(count("weft_request_bytes_total", &[]).await, 45.0);
        assert_eq!(count("weft_response_bytes_total", &[]).await, 45.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_may_end_first() {
    let mesh = shop(Service::new("db")).start().await;
    let door = mesh.listen("shop", 0);
    // The client's end is heard, and answered.
    mesh.origin("db", 0)
        .does(Behaviour::script(async |mut wire| {
            let question = wire.rest().await;
            wire.write(format!("you said {}", question.len())).await;
        }));
    let mut client = Wire::connect(door).await;
    client.write(vec![b'x'; 300_000]).await;
    client.finish().await;
    assert_eq!(client.rest().await, b"you said 300000");
    // The server's end is heard, and the client may go on.
    let (heard, hears) = tokio::sync::oneshot::channel();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Some(heard)));
    mesh.origin("db", 0)
        .does(Behaviour::script(move |mut wire| {
            let heard = heard.lock().unwrap().take();
            async move {
                wire.write("bye").await;
                wire.finish().await;
                if let Some(heard) = heard {
                    let _ = heard.send(wire.rest().await);
                }
            }
        }));
    let mut client = Wire::connect(door).await;
    assert_eq!(client.rest().await, b"bye");
    client.write("one more thing").await;
    client.finish().await;
    assert_eq!(soon("the rest", hears).await.unwrap(), b"one more thing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_within_a_second() {
    let mesh = shop(Service::new("db")).start().await;
    mesh.origin("db", 0)
        .does(Behaviour::script(async |mut wire| {
            wire.write("220 ready\r\n").await;
            let _ = wire.rest().await;
        }));
    for _ in 0..3 {
        let start = Instant::now();
        let mut client = Wire::connect(mesh.listen("shop", 0)).await;
        let banner = soon("the banner", client.exactly(11)).await;
        assert_eq!(banner.unwrap(), b"220 ready\r\n");
        let took = start.elapsed();
        let second = at_most(Duration::from_secs(1), Duration::from_secs(10));
        assert!(took < second, "after {took:?}");
    }
}

const LARGE: usize = 48 << 20;
/// What a process may grow by for a transfer that nobody takes: windows, buffers, and allocators' habits.
const GROWTH: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_sets_the_pace() {
    let mesh = shop(Service::new("db")).start().await;
    mesh.origin("db", 0)
        .does(Behaviour::script(async |mut wire| {
            let mut piece = vec![0; 64 << 10];
            for at in 0..LARGE / piece.len() {
                piece.fill(at as u8);
                if wire.try_write(&piece).await.is_err() {
                    return;
                }
            }
        }));
    let resident = || ["shop", "db"].map(|name| mesh.sidecar(name, 0).resident());
    let before = resident();
    let mut client = Wire::connect(mesh.listen("shop", 0)).await;
    let host = mesh.replica("shop", 0).host;
    // Until the tunnel has come to rest: nobody reads.
    let mut last = -1.0;
    eventually("nothing moves", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = mesh
            .metric(host, "weft_response_bytes_total", &["destination=\"db\""])
            .await;
        let still = now == last && now > 0.0;
        last = now;
        still.then_some(())
    })
    .await;
    assert!(
        (last as usize) < LARGE,
        "all of it was taken in by somebody"
    );
    for (before, now) in before.into_iter().zip(resident()) {
        assert!(now < before + GROWTH, "from {before} to {now} bytes");
    }
    let mut count = 0;
    let mut piece = vec![0; 64 << 10];
    while let length @ 1.. = soon("more", client.stream.read(&mut piece)).await.unwrap() {
        for (at, byte) in piece[..length].iter().enumerate() {
            assert_eq!(*byte, ((count + at) / (64 << 10)) as u8);
        }
        count += length;
    }
    assert_eq!(count, LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_a_reset_at_the_other_end() {
    let mesh = shop(Service::new("db")).start().await;
    let door = mesh.listen("shop", 0);
    mesh.origin("db", 0)
        .does(Behaviour::script(async |mut wire| {
            wire.exactly(2).await;
            wire.reset();
        }));
    let mut client = Wire::connect(door).await;
    client.write("hi").await;
    let error = soon("the reset", client.more()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let (told, tells) = tokio::sync::oneshot::channel();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Some(told)));
    mesh.origin("db", 0)
        .does(Behaviour::script(move |mut wire| {
            let told = told.lock().unwrap().take();
            async move {
                wire.write("hi").await;
                if let Some(told) = told {
                    let _ = told.send(wire.more().await.map_err(|error| error.kind()));
                }
            }
        }));
    let mut client = Wire::connect(door).await;
    assert_eq!(soon("hi", client.exactly(2)).await.unwrap(), b"hi");
    client.reset();
    let told = soon("the app is told", tells).await.unwrap();
    assert_eq!(told, Err(std::io::ErrorKind::ConnectionReset));
}

/// What comes first on a connection; a refusal may be faster than the one who is to be told.
async fn first_bytes(door: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = soon("a connection", TcpStream::connect(door)).await?;
    stream.write_all(b"hello").await?;
    let mut read = [0; 5];
    let length = soon("an answer", stream.read(&mut read)).await?;
    Ok(read[..length].to_vec())
}

/// Asserts that a connection comes to nothing, with a reset and not with an end.
async fn refused(door: SocketAddr) {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    let outcome = first_bytes(door).await.map_err(|error| error.kind());
    assert!(
        matches!(outcome, Err(ConnectionReset | BrokenPipe)),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whom_a_rule_names_may_connect() {
    let mesh = shop(Service::new("db").allow("{ from: [shop] }"))
        .service(Service::new("thief"))
        .start()
        .await;
    mesh.origin("db", 0).does(echo());
    let mut client = Wire::connect(mesh.listen("shop", 0)).await;
    said_back(&mut client, "let me in").await;
    refused(mesh.listen("thief", 0)).await;
    assert_eq!(mesh.origin("db", 0).connections(), 1, "the app saw one");
    // Said at both ends.
    for (service, direction) in [("thief", "outbound"), ("db", "inbound")] {
        let host = mesh.replica(service, 0).host;
        let direction = format!("direction=\"{direction}\"");
        let parts = [&*direction, "source=\"thief\"", "reason=\"denied\""];
        mesh.metric_reaches(host, "weft_edge_answers_total", &parts, 1.0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_http_takes_no_connections_past_its_rules_and_the_other_way_round() {
    let mesh = shop(Service::new("db"))
        .service(Service::new("orders"))
        .start()
        .await;
    // A request to what is no HTTP is answered, not carried.
    let reply = mesh.get_from("shop", 0, "http://db/").await;
    assert_eq!(reply.code(), 404);
    // And a member of the mesh that asks for a tunnel into an app of HTTP is refused, as for one to somewhere else.
    let leaf = mesh.authority.service("shop");
    let config = leaf.client(&["h2"]);
    for (service, authority, status) in [
        ("orders", format!("orders:{}", mesh.ports.app()), 501),
        ("db", "elsewhere:1".to_owned(), 404),
        ("db", format!("db:{}", mesh.ports.app()), 200),
    ] {
        let door = mesh.inbound(service, 0);
        let stream = Client::handshake(door, config.clone(), "mesh.test")
            .await
            .unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(async move {
            let _ = connection.await;
        });
        let request = http::Request::connect(authority.as_str()).body(()).unwrap();
        let (response, _send): (_, h2::SendStream<bytes::Bytes>) =
            sender.send_request(request, false).unwrap();
        let response = soon("an answer", response).await.unwrap();
        assert_eq!(response.status(), status, "{service} {authority}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_what_one_cannot() {
    let mut mesh = shop(
        Service::new("db")
            .replicas(3)
            .with("retry: { attempts: 2 }"),
    )
    .start()
    .await;
    for number in 0..3 {
        mesh.origin("db", number).does(echo());
    }
    // The sidecar of one is there and its app is not; of another nothing is.
    mesh.origin("db", 0).stop().await;
    mesh.replica_mut("db", 1).sidecar.kill();
    for round in 0..20 {
        let mut client = Wire::connect(mesh.listen("shop", 0)).await;
        said_back(&mut client, &format!("round {round}")).await;
    }
    assert_eq!(mesh.origin("db", 2).connections(), 20);
    // With nobody left a client is told so.
    mesh.origin("db", 2).stop().await;
    refused(mesh.listen("shop", 0)).await;
}

/// Ejection is off: what keeps connections away from the one that cannot be reached is how long connecting took.
#[tokio::test(flavor = "multi_thread")]
async fn least_response_time_knows_how_long_connecting_takes() {
    let database = Service::new("db")
        .replicas(2)
        .with("balance: { policy: least_response_time, slow_start: 0s }")
        .with("outlier: { enabled: false }");
    let mesh = shop(database).start().await;
    for number in 0..2 {
        mesh.origin("db", number).does(echo());
    }
    mesh.origin("db", 0).stop().await;
    let host = mesh.replica("shop", 0).host;
    let both = ["service=\"db\""];
    mesh.metric_reaches(host, "weft_service_endpoints_available", &both, 2.0)
        .await;
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    for round in 0..40 {
        let asked = Instant::now();
        let mut client = Wire::connect(mesh.listen("shop", 0)).await;
        said_back(&mut client, &format!("round {round}")).await;
        slowest = asked.elapsed().max(slowest);
    }
    let took = begun.elapsed();
    let retries = mesh.metric(host, "weft_retries_total", &["destination=\"db\""]);
    let retries = retries.await;
    // By chance it would be tried first every other time. What is assumed of it (30 ms) doubles with each look, until it is more
    // than the good one was seen to need: four looks tell enough where that never took 240 ms, and each doubling of what a
    // machine that halts made of it takes one more. Half of what is known fades in seven seconds.
    let halts = (slowest.as_secs_f64() / 0.240).log2().ceil().max(0.0);
    let looks = 4.0 + halts + (took.as_secs_f64() / 7.0).floor();
    assert!(
        retries <= looks,
        "{retries} of 40 went to the wrong one first, in {took:?}, and the slowest took {slowest:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_sidecars_is_reached_straight() {
    let mesh = shop(Service::new("db").with("mesh: false").replicas(0))
        .start()
        .await;
    let address = SocketAddr::new(mesh.host(200), mesh.ports.app());
    let app = Origin::start("db", address).await;
    app.does(echo());
    mesh.dns.add("db", address.ip());
    let answer = eventually("the name is known", async || {
        first_bytes(mesh.listen("shop", 0)).await.ok()
    })
    .await;
    assert_eq!(answer, b"hello");
    settled(&mesh).await;
    let host = mesh.replica("shop", 0).host;
    let parts = ["destination=\"db\"", "mtls=\"false\"", "class=\"2xx\""];
    assert_eq!(mesh.metric(host, "weft_requests_total", &parts).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_a_line_in_the_access_log() {
    let mesh = shop(Service::new("db"))
        .with("access_log: { file: access.log }")
        .start()
        .await;
    mesh.origin("db", 0).does(echo());
    let mut client = Wire::connect(mesh.listen("shop", 0)).await;
    said_back(&mut client, "hello").await;
    client.finish().await;
    client.rest().await;
    let authority = format!("\"db:{}\"", mesh.ports.app());
    for (name, listener) in [("shop-0", "outbound-db"), ("db-0", "inbound")] {
        let file = mesh.directory(name).join("access.log");
        let line = eventually("a line", async || {
            let text = tokio::fs::read_to_string(&file).await.ok()?;
            text.lines().next().map(str::to_owned)
        })
        .await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["protocol"], "TCP", "{line}");
        assert_eq!(line["listener"], listener);
        assert_eq!(line["authority"].to_string(), authority);
        assert_eq!(line["status"], 200);
        assert_eq!(
            (&line["request_bytes"], &line["response_bytes"]),
            (&5.into(), &5.into())
        );
    }
}
