//! How much may be under way: limits hold exactly, nobody waits long, and time that is over is not spent on anybody.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::app::{App, fields, send_all};
use crate::harness::client::Reply;
use crate::harness::client::whole;
use crate::harness::told::at_most;
use crate::harness::{Behaviour, Client, Mesh, Service, Wire, eventually, soon};

/// An app that holds every request until it is let go, and counts how many it holds.
#[derive(Clone)]
struct Holding {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

impl Holding {
    fn new() -> Self {
        Self {
            now: Arc::default(),
            most: Arc::default(),
            connections: Arc::default(),
            open: watch::Sender::new(false),
        }
    }

    fn behaviour(&self) -> Behaviour {
        let held = self.clone();
        Behaviour::script(move |mut wire| {
            let held = held.clone();
            async move {
                held.connections.fetch_add(1, SeqCst);
                while wire.head().await.is_some() {
                    let now = held.now.fetch_add(1, SeqCst) + 1;
                    held.most.fetch_max(now, SeqCst);
                    let mut open = held.open.subscribe();
                    let _ = open.wait_for(|open| *open).await;
                    held.now.fetch_sub(1, SeqCst);
                    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    if wire.try_write(answer).await.is_err() {
                        break;
                    }
                }
                held.connections.fetch_sub(1, SeqCst);
            }
        })
    }

    async fn holds(&self, count: usize) {
        eventually(&format!("the app holds {count}"), async || {
            (self.now.load(SeqCst) == count).then_some(())
        })
        .await;
    }

    /// The end of one connection may be read here after the beginning of the next.
    async fn has_at_most(&self, connections: usize) {
        eventually(
            &format!("the app has at most {connections} connections"),
            async || (self.connections.load(SeqCst) <= connections).then_some(()),
        )
        .await;
    }
}

async fn orders(lines: &[&str], replicas: u8) -> Mesh {
    let mut service = Service::new("orders").replicas(replicas);
    for line in lines {
        service = service.with(line);
    }
    Mesh::new()
        .service(service)
        .route("/orders/*", "orders")
        .start()
        .await
}

/// So many GETs at once, each on a connection of its own.
fn ask(mesh: &Mesh, count: usize) -> JoinSet<(Reply, Duration)> {
    let mut asked = JoinSet::new();
    for number in 0..count {
        let (address, url) = (mesh.public(), mesh.url(&format!("/orders/{number}")));
        asked.spawn(async move {
            let client = Client::http1(address).await;
            let begun = Instant::now();
            let request = Request::get(url).header("host", "shop");
            let reply = client.send(request.body(whole("")).unwrap()).await;
            (reply, begun.elapsed())
        });
    }
    asked
}

fn is_refused(reply: &Reply, reason: &str) {
    assert_eq!(
        (reply.code(), reply.reason()),
        (503, Some(reason)),
        "{}",
        reply.text()
    );
    assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
}

/// Half of them waited for no longer than this, and nobody for a second more: that is what the machine may have had to do
/// besides.
fn are_short(mut waits: Vec<Duration>, promised: Duration) {
    waits.sort();
    let longest = *waits.last().unwrap();
    let [median, most] = [promised, promised + Duration::from_secs(1)]
        .map(|promised| at_most(promised, Duration::from_secs(5)));
    assert!(waits[(waits.len() - 1) / 2] < median, "{waits:?}");
    assert!(longest < most, "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_one_limit_for_both_cores() {
    let mesh = orders(&["limits: { in_flight: 5, waiting: 7, wait: 20s }"], 2).await;
    let app = Holding::new();
    for origin in mesh.origins("orders") {
        origin.does(app.behaviour());
    }
    let mut asked = ask(&mesh, 40);
    // Five are with the app and seven wait; everybody else is refused at once.
    for _ in 0..40 - 12 {
        let (reply, _) = soon("a refusal", asked.join_next()).await.unwrap().unwrap();
        is_refused(&reply, "overloaded");
    }
    app.holds(5).await;
    let waiting = mesh
        .metric(
            mesh.ingress_host(),
            "weft_service_waiting",
            &["service=\"orders\""],
        )
        .await;
    assert_eq!(waiting, 7.0);
    app.open.send_replace(true);
    while let Some(answered) = soon("an answer", asked.join_next()).await {
        assert_eq!(answered.unwrap().0.text(), "ok");
    }
    assert_eq!(app.most.load(SeqCst), 5, "never one more");
    // And nothing is left behind.
    for (reply, _) in ask(&mesh, 12).join_all().await {
        assert_eq!(reply.text(), "ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_longer_than_half_a_second() {
    let mesh = orders(&["limits: { in_flight: 1 }"], 1).await;
    let app = Holding::new();
    mesh.origin("orders", 0).does(app.behaviour());
    let mut first = ask(&mesh, 1);
    app.holds(1).await;
    let mut waits = Vec::new();
    for (reply, waited) in ask(&mesh, 8).join_all().await {
        is_refused(&reply, "overloaded");
        assert!(reply.text().contains("500ms"), "{}", reply.text());
        assert!(waited >= Duration::from_millis(490), "{waited:?}");
        waits.push(waited);
    }
    are_short(waits, Duration::from_millis(700));
    app.open.send_replace(true);
    assert_eq!(first.join_next().await.unwrap().unwrap().0.text(), "ok");
    assert_eq!(mesh.get("/orders/again").await.text(), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_has_enough_is_passed_over_until_all_have() {
    let limits = "limits: { wait: 3s, endpoint: { in_flight: 2, waiting: 1 } }";
    let mesh = orders(&[limits], 2).await;
    let apps = [Holding::new(), Holding::new()];
    for (origin, app) in mesh.origins("orders").into_iter().zip(&apps) {
        origin.does(app.behaviour());
    }
    let mut asked = ask(&mesh, 4);
    for app in &apps {
        app.holds(2).await;
    }
    // One more waits at each, for a while, and all others have no place.
    let mut late = 0;
    for (reply, _) in ask(&mesh, 6).join_all().await {
        is_refused(&reply, "overloaded");
        late += usize::from(reply.text().contains("none ended within"));
    }
    assert!((1..=2).contains(&late), "{late} waited");
    for app in &apps {
        assert_eq!(app.most.load(SeqCst), 2);
        app.open.send_replace(true);
    }
    while let Some(answered) = asked.join_next().await {
        assert_eq!(answered.unwrap().0.text(), "ok");
    }
}

/// How long one waits for a connection where it is to be refused.
const SHORT: Duration = Duration::from_millis(300);

/// Has the last service wait for longer than a core of a busy machine may halt: where room is made at once, nobody is refused.
async fn waits_longer(mesh: &mut Mesh, service: impl Fn(Duration) -> Service) {
    let (host, generation) = (mesh.ingress_host(), "weft_config_generation");
    let before = mesh.metric(host, generation, &[]).await;
    let longer = service(Duration::from_secs(20));
    mesh.change(|spec| *spec.services.last_mut().unwrap() = longer);
    mesh.metric_reaches(host, generation, &[], before + 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_over_both_cores_and_idle_ones_make_room() {
    // The same apps, reached without their sidecars: a connection for each exchange.
    let plain = |wait: Duration| {
        Service::new("plain")
            .replicas(0)
            .with("mesh: false")
            .with("dns: orders")
            .with(&format!("limits: {{ connections: 3, wait: {wait:?} }}"))
    };
    let mut mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .service(plain(SHORT))
        .route("/orders/*", "plain")
        .start()
        .await;
    let app = Holding::new();
    for origin in mesh.origins("orders") {
        origin.does(app.behaviour());
    }
    let mut asked = ask(&mesh, 3);
    app.holds(3).await;
    for (reply, _) in ask(&mesh, 4).join_all().await {
        is_refused(&reply, "too_many_connections");
    }
    app.open.send_replace(true);
    while let Some(answered) = asked.join_next().await {
        assert_eq!(answered.unwrap().0.text(), "ok");
    }
    waits_longer(&mut mesh, plain).await;
    // Three idle connections are left, on whatever core and to whatever endpoint; nobody is kept from asking by them.
    let mut waits = Vec::new();
    for round in 0..10 {
        for (reply, waited) in ask(&mesh, 3).join_all().await {
            assert_eq!((reply.code(), reply.reason()), (200, None), "round {round}");
            waits.push(waited);
        }
        app.has_at_most(3).await;
    }
    are_short(waits, SHORT);
    assert_eq!(app.most.load(SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_has_only_so_many_connections() {
    let plain = |wait: Duration| {
        let limits = format!("limits: {{ wait: {wait:?}, endpoint: {{ connections: 2 }} }}");
        Service::new("plain")
            .replicas(0)
            .with("mesh: false")
            .with("dns: orders")
            .with("balance: { slow_start: 0s }")
            .with(&limits)
    };
    let mut mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .service(plain(SHORT))
        .route("/orders/*", "plain")
        .start()
        .await;
    let apps = [Holding::new(), Holding::new()];
    for (origin, app) in mesh.origins("orders").into_iter().zip(&apps) {
        origin.does(app.behaviour());
    }
    // However the dice fall, those that find one full go to the other.
    let mut asked = ask(&mesh, 4);
    for app in &apps {
        app.holds(2).await;
    }
    let mut waits = Vec::new();
    for (reply, waited) in ask(&mesh, 4).join_all().await {
        is_refused(&reply, "too_many_connections");
        waits.push(waited);
    }
    // They may wait for [`SHORT`].
    are_short(waits, Duration::from_millis(500));
    for app in &apps {
        assert_eq!(app.connections.load(SeqCst), 2);
        app.open.send_replace(true);
    }
    while let Some(answered) = asked.join_next().await {
        assert_eq!(answered.unwrap().0.text(), "ok");
    }
    waits_longer(&mut mesh, plain).await;
    // Idle ones count, and make room.
    let mut waits = Vec::new();
    for round in 0..10 {
        for (reply, waited) in ask(&mesh, 4).join_all().await {
            assert_eq!((reply.code(), reply.reason()), (200, None), "round {round}");
            waits.push(waited);
        }
        for app in &apps {
            app.has_at_most(2).await;
        }
    }
    are_short(waits, SHORT);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_not_http_are_in_flight_as_long_as_they_are_open() {
    let db = Service::new("db")
        .tcp()
        .with("limits: { in_flight: 2, waiting: 1, wait: 20s }");
    let mesh = Mesh::new()
        .service(db)
        .service(Service::new("shop"))
        .without_ingress()
        .start()
        .await;
    mesh.origin("db", 0)
        .does(Behaviour::script(async |mut wire| {
            wire.write("ready").await;
            wire.rest().await;
        }));
    let (door, host) = (mesh.listen("shop", 0), mesh.replica("shop", 0).host);
    let db = ["service=\"db\""];
    let greeted = async |client: &mut Wire| {
        let words = soon("the greeting", client.exactly(5)).await;
        assert_eq!(words.as_deref(), Some(&b"ready"[..]));
    };
    let mut clients = [Wire::connect(door).await, Wire::connect(door).await];
    for client in &mut clients {
        greeted(client).await;
    }
    mesh.metric_reaches(host, "weft_service_in_flight", &db, 2.0)
        .await;
    let mut third = Wire::connect(door).await;
    mesh.metric_reaches(host, "weft_service_waiting", &db, 1.0)
        .await;
    // The line is full: whoever comes now is sent away at once.
    let fourth = async {
        let mut stream = tokio::net::TcpStream::connect(door).await?;
        tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 5]).await
    };
    let said = soon("the refusal", fourth).await;
    assert!(!matches!(said, Ok(1..)), "{said:?}");
    let refused = ["reason=\"overloaded\""];
    mesh.metric_reaches(host, "weft_answers_total", &refused, 1.0)
        .await;
    assert_eq!(mesh.origin("db", 0).connections(), 2);
    // One ends, and the one that waits is next.
    drop(clients);
    greeted(&mut third).await;
}

/// Three of fifteen may be tried again: those that wait for it have taken what there is, long before they are under way.
#[tokio::test(flavor = "multi_thread")]
async fn retries_that_wait_count() {
    let lines = [
        "retry: { statuses: [ 503 ], budget: 20%, min_per_second: 0 }",
        "outlier: { enabled: false }",
    ];
    let mesh = orders(&lines, 1).await;
    let (open, held) = (watch::Sender::new(false), Arc::new(AtomicUsize::new(0)));
    let (gate, asked) = (open.clone(), Arc::clone(&held));
    mesh.origin("orders", 0)
        .does(Behaviour::script(move |mut wire| {
            let (gate, asked) = (gate.clone(), Arc::clone(&asked));
            async move {
                while let Some(head) = wire.head().await {
                    asked.fetch_add(1, SeqCst);
                    let _ = gate.subscribe().wait_for(|open| *open).await;
                    let answer = match head.field("weft-attempt") {
                        Some(_) => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                        None => "HTTP/1.1 503 No\r\nRetry-After: 2\r\nContent-Length: 2\r\n\r\nno",
                    };
                    if wire.try_write(answer).await.is_err() {
                        break;
                    }
                }
            }
        }));
    let asked = ask(&mesh, 15);
    eventually("all are with the app", async || {
        (held.load(SeqCst) == 15).then_some(())
    })
    .await;
    let begun = Instant::now();
    open.send_replace(true);
    let mut again = 0;
    let mut asked = asked;
    while let Some(answered) = asked.join_next().await {
        let (reply, took) = (answered.unwrap().0, begun.elapsed());
        match reply.code() {
            200 => {
                again += 1;
                assert!(took >= Duration::from_millis(1_990), "{took:?}");
            }
            code => {
                assert_eq!((code, reply.reason()), (503, None), "{}", reply.text());
                // Nobody waits for a retry that he will not get.
                assert_eq!(again, 0, "{took:?}");
            }
        }
    }
    assert_eq!(again, 3);
    assert_eq!(held.load(SeqCst), 18);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_opens_lets_one_through_and_closes() {
    let lines = [
        "breaker: { enabled: true, requests: 10, open: 5s }",
        "retry: { attempts: 0 }",
        "outlier: { enabled: false }",
    ];
    let mesh = orders(&lines, 1).await;
    let app = mesh.origin("orders", 0);
    let state = async |state: &str| {
        let labels = format!("state=\"{state}\"");
        mesh.metric(mesh.ingress_host(), "weft_breaker_state", &[&labels])
            .await
    };
    assert_eq!(state("closed").await, 1.0);
    app.does(Behaviour::Status(500));
    for number in 0..10 {
        let reply = mesh.get(&format!("/orders/{number}")).await;
        assert_eq!((reply.code(), reply.reason()), (500, None));
    }
    let reply = mesh.get("/orders/refused").await;
    is_refused(&reply, "circuit_open");
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&after), "{after} s");
    assert_eq!(app.total(), 10, "it is left alone");
    assert_eq!(state("open").await, 1.0);
    // Half-open: the one that may is with the app, and decides; the others do not wait for it.
    let held = Holding::new();
    app.does(held.behaviour());
    app.resume().await;
    let mut probe = JoinSet::new();
    eventually("one is let through", async || {
        if held.now.load(SeqCst) == 0 {
            let (client, url) = (mesh.client.clone(), mesh.url("/orders/probe"));
            probe.spawn(async move { client.get(&url).await });
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (held.now.load(SeqCst) == 1).then_some(())
    })
    .await;
    assert_eq!(state("half_open").await, 1.0);
    is_refused(&mesh.get("/orders/meanwhile").await, "circuit_open");
    held.open.send_replace(true);
    let replies = probe.join_all().await;
    assert_eq!(
        replies.iter().filter(|reply| reply.code() == 200).count(),
        1
    );
    assert_eq!(mesh.get("/orders/after").await.text(), "ok");
    assert_eq!(held.most.load(SeqCst), 1, "only one was let through");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_hears_of_calls_that_end_with_trailers() {
    let mesh = Mesh::new()
        .service(
            Service::new("greeter")
                .without_apps()
                .with("protocol: grpc")
                .with("breaker: { enabled: true, requests: 10, open: 1s }")
                .with("retry: { attempts: 0 }")
                .with("outlier: { enabled: false }"),
        )
        .route("/test.Greeter/*", "greeter")
        .start()
        .await;
    let at = SocketAddr::new(mesh.replica("greeter", 0).host, mesh.ports.app());
    let _app = App::start(at, usize::MAX, |mut asked| async move {
        let grpc: &[(&str, &[u8])] = &[("content-type", b"application/grpc")];
        match asked.path().as_str() {
            "/test.Greeter/FailsAtOnce" => {
                asked.begin_whole(&[grpc, &[("grpc-status", b"14")]].concat());
            }
            "/test.Greeter/FailsLate" => {
                let mut body = asked.begin(grpc);
                body.send_trailers(fields(&[("grpc-status", b"14")]))
                    .unwrap();
            }
            _ => {
                let mut body = asked.begin(grpc);
                send_all(&mut body, Bytes::from_static(&[0; 5]), false).await;
                body.send_trailers(fields(&[("grpc-status", b"0")]))
                    .unwrap();
            }
        }
    })
    .await;
    let client = Client::h2c(mesh.public()).await;
    let called = async |method: &str| {
        let call = crate::grpc::call(&client, method, "hello").await;
        let (_, status, words) = call.finishes().await;
        (status, words)
    };
    // Far from all that fails; the others say so in their trailers only.
    for number in 0..30 {
        let (method, status) = match number % 3 {
            0 => ("FailsAtOnce", "14"),
            _ => ("Works", "0"),
        };
        let (told, words) = called(method).await;
        assert_eq!(told, status, "{number}: {words}");
    }
    eventually("the breaker opens", async || {
        let (_, words) = called("FailsLate").await;
        words.contains("circuit_open").then_some(())
    })
    .await;
    eventually("one works, and closes it", async || {
        (called("Works").await.0 == "0").then_some(())
    })
    .await;
    for _ in 0..5 {
        assert_eq!(called("Works").await.0, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_refuses_connections_that_are_no_http_too() {
    let mesh = Mesh::new()
        .service(
            Service::new("db")
                .tcp()
                .with("breaker: { enabled: true, requests: 5, open: 2s }")
                .with("retry: { attempts: 0 }")
                .with("outlier: { enabled: false }"),
        )
        .service(Service::new("shop"))
        .without_ingress()
        .start()
        .await;
    let app = mesh.origin("db", 0);
    app.does(Behaviour::script(|mut wire| async move {
        wire.write("hello").await;
    }));
    let answers = async || {
        // What is refused at once may be reset before it knows that it is connected.
        let Ok(stream) = TcpStream::connect(mesh.listen("shop", 0)).await else {
            return false;
        };
        Wire::new(stream).exactly(5).await.is_some()
    };
    assert!(answers().await);
    app.stop().await;
    let shop = mesh.replica("shop", 0).host;
    let refused = async |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        mesh.metric(shop, "weft_edge_answers_total", &[&reason])
            .await
    };
    eventually("the breaker opens", async || {
        assert!(!answers().await);
        (refused("circuit_open").await > 0.0).then_some(())
    })
    .await;
    app.resume().await;
    eventually("one gets through, and closes it", async || {
        answers().await.then_some(())
    })
    .await;
    let labels = ["service=\"db\"", "state=\"closed\""];
    mesh.metric_reaches(shop, "weft_breaker_state", &labels, 1.0)
        .await;
    assert!(answers().await);
}

/// A GET of `orders` as `storefront` sends it.
async fn call(mesh: &Mesh, fields: &str) -> (crate::harness::wire::Head, Duration) {
    let mut wire = Wire::connect(mesh.outbound("storefront", 0)).await;
    let begun = Instant::now();
    let (head, _) = wire
        .exchange(format!(
            "GET /orders/1 HTTP/1.1\r\nHost: orders\r\n{fields}\r\n"
        ))
        .await;
    (head, begun.elapsed())
}

async fn pair() -> Mesh {
    Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hop_waits_only_as_long_as_the_caller_has_left() {
    let mesh = pair().await;
    let app = mesh.origin("orders", 0);
    app.does(Behaviour::Hang);
    let (head, waited) = call(&mesh, "weft-timeout: 3000\r\n").await;
    assert_eq!(head.status(), 504, "{}", head.text);
    assert_eq!(head.field("weft-reason"), Some("deadline_exceeded"));
    assert!(waited >= Duration::from_millis(2_990), "{waited:?}");
    assert!(
        waited < Duration::from_secs(10),
        "not the service's 15 s: {waited:?}"
    );
    // The app was told what was left, and until when that is.
    let seen = app.seen();
    let told = seen[0].head.field("weft-timeout").unwrap();
    let (left, by) = told.split_once(";by=").unwrap();
    assert!((1..=3000).contains(&left.parse::<u64>().unwrap()), "{told}");
    assert!(by.parse::<u64>().is_ok(), "{told}");
    // Callers in a hurry get nobody ejected.
    app.does(Behaviour::Answer);
    for _ in 0..6 {
        app.does(Behaviour::Hang);
        let (head, _) = call(&mesh, "weft-timeout: 20\r\n").await;
        assert_eq!(head.status(), 504, "{}", head.text);
    }
    app.does(Behaviour::Answer);
    let (head, _) = call(&mesh, "").await;
    assert_eq!(head.status(), 200);
    let ejected = mesh
        .metric(
            mesh.replica("storefront", 0).host,
            "weft_endpoint_ejections_total",
            &[],
        )
        .await;
    assert_eq!(ejected, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_any_more_does_not_reach_the_app() {
    let mesh = pair().await;
    let app = mesh.origin("orders", 0);
    // What the app's sidecar gave it when the call came in, handed on too late.
    for over in ["weft-timeout: 0\r\n", "weft-timeout: 5000;by=1000\r\n"] {
        let (head, _) = call(&mesh, over).await;
        assert_eq!(head.status(), 504, "{}", head.text);
        assert_eq!(head.field("weft-reason"), Some("deadline_exceeded"));
    }
    let grpc = "content-type: application/grpc\r\ngrpc-timeout: 0n\r\n";
    let (head, _) = call(&mesh, grpc).await;
    assert_eq!(
        (head.status(), head.field("grpc-status")),
        (200, Some("4")),
        "{}",
        head.text
    );
    assert_eq!(app.total(), 0);
    // Outsiders do not set our deadlines.
    let request = Request::get(mesh.url("/orders/1")).header("weft-timeout", "0");
    let reply = mesh.client.send(request.body(whole("")).unwrap()).await;
    assert_eq!(reply.code(), 200);
    assert_ne!(app.seen()[0].head.field("weft-timeout"), Some("0"));
    // gRPC's own is lowered by what was spent, if only by a moment; by how much is seen in `grpc`.
    let (head, _) = call(
        &mesh,
        "content-type: application/grpc\r\ngrpc-timeout: 5S\r\n",
    )
    .await;
    assert_eq!(head.status(), 200);
    let seen = app.seen();
    let told = seen[1].head.field("grpc-timeout").unwrap();
    let micros: u64 = told.strip_suffix('u').unwrap().parse().unwrap();
    assert!((1_000_000..5_000_000).contains(&micros), "{told}");
    assert_eq!(seen[1].head.fields("grpc-timeout").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_listed_is_tried_again_when_it_says_and_429_never_blindly() {
    let lines = ["retry: { attempts: 1, statuses: [429, 503] }"];
    let mesh = orders(&lines, 1).await;
    let app = mesh.origin("orders", 0);
    let answer = |status: u16, field: &str| {
        Behaviour::Bytes(
            format!("HTTP/1.1 {status} No\r\n{field}Content-Length: 0\r\n\r\n").into_bytes(),
        )
    };
    for (status, field, tries, least) in [
        (503, "", 2, 0),
        (503, "Retry-After: 1\r\n", 2, 1000),
        (429, "", 1, 0),
        (429, "Retry-After: 1\r\n", 2, 1000),
        // Longer than the exchange has: said to the caller instead of waited for.
        (503, "Retry-After: 3600\r\n", 1, 0),
        (500, "", 1, 0),
    ] {
        app.forget();
        app.does(answer(status, field));
        let begun = Instant::now();
        let reply = mesh.get("/orders/1").await;
        assert_eq!(reply.code(), status);
        assert_eq!(app.total(), tries, "{status} {field}");
        assert!(
            begun.elapsed() >= Duration::from_millis(least),
            "{status} {field}"
        );
        app.forget();
        assert_eq!(mesh.post("/orders/1", "x").await.code(), status);
        assert_eq!(app.total(), 1, "a POST: {status} {field}");
    }
}
