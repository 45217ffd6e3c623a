//! The file may change under a running mesh: a good change is taken without dropping anything, a bad one changes nothing.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::harness::told::is_strict;
use crate::harness::{Behaviour, Client, Load, Mesh, Service, Wire, eventually, soon};

async fn generation(mesh: &Mesh, host: std::net::IpAddr) -> f64 {
    mesh.metric(host, "weft_config_generation", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_route_is_taken_under_load_and_open_streams_go_on() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("ticks"))
        .route("/orders/*", "orders")
        .route("/ticks", "ticks")
        .start()
        .await;
    mesh.origin("ticks", 0)
        .does(Behaviour::script(async |mut wire| {
            wire.head().await;
            wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            while wire.try_write("1\r\n.\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
    let mut stream = Wire::connect(mesh.public()).await;
    stream
        .write("GET /ticks HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    assert_eq!(soon("a head", stream.head()).await.unwrap().status(), 200);
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        4,
        Duration::from_millis(5),
    );
    load.more(20).await;
    let connections = mesh.origin("orders", 0).connections();

    for round in 0..3 {
        let path = format!("/new/{round}");
        assert_eq!(mesh.get(&path).await.reason(), Some("no_route"));
        let route = format!("{{ match: {{ path: {path} }}, to: orders }}");
        mesh.change(|spec| spec.routes.push(route));
        eventually("the route is there", async || {
            (mesh.get(&path).await.code() == 200).then_some(())
        })
        .await;
    }
    load.more(20).await;
    load.stop().await.assert_all_answered();
    // What was not changed was not touched: the same connections to the app.
    assert!(mesh.origin("orders", 0).connections() <= connections + 8);
    for _ in 0..20 {
        assert_eq!(
            soon("a tick", stream.chunk()).await,
            Some(Some(b".".to_vec()))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_allow_rule_is_taken_by_the_sidecar() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders").allow("{ from: [ingress], methods: [GET] }"))
        .route("/orders/*", "orders")
        .start()
        .await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
    assert_eq!(mesh.post("/orders/1", "").await.reason(), Some("denied"));
    mesh.change(|spec| {
        spec.services =
            vec![Service::new("orders").allow("{ from: [ingress], methods: [GET, POST] }")];
    });
    eventually("POST is allowed", async || {
        (mesh.post("/orders/1", "").await.code() == 200).then_some(())
    })
    .await;
    mesh.change(|spec| {
        spec.services = vec![Service::new("orders").allow("{ from: [ingress], methods: [POST] }")];
    });
    eventually("GET is not any more", async || {
        (mesh.get("/orders/1").await.reason() == Some("denied")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing_and_everybody_says_so_until_it_is_mended() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let good = mesh.yaml();
    let hosts = [mesh.ingress_host(), mesh.replica("orders", 0).host];
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        2,
        Duration::from_millis(10),
    );
    mesh.write_all(&good.replace("routes:", "rout:"));
    for (host, process) in hosts
        .iter()
        .zip([mesh.ingress(), mesh.sidecar("orders", 0)])
    {
        mesh.metric_reaches(*host, "weft_config_refused", &[], 1.0)
            .await;
        process.says(&["ERROR", "rout", "last good one"]).await;
        let page = mesh.page(*host, "/config").await.text();
        assert!(
            page.contains("# refused:") && page.contains("routes"),
            "{page}"
        );
        assert!(
            mesh.metric(*host, "weft_config_reloads_total", &["refused"])
                .await
                >= 1.0
        );
        assert!((generation(&mesh, *host).await - 1.0).abs() < f64::EPSILON);
    }
    load.more(20).await;
    mesh.write_all(&good);
    for host in hosts {
        eventually("it is well again", async || {
            (mesh.metric(host, "weft_config_refused", &[]).await < 0.5).then_some(())
        })
        .await;
        let page = mesh.page(host, "/config").await.text();
        assert!(page.contains("never since then"), "{page}");
    }
    load.more(20).await;
    load.stop().await.assert_all_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_makes_it_look_at_once() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let host = mesh.ingress_host();
    mesh.ingress().signal(Signal::HUP);
    eventually("it has looked", async || {
        (generation(&mesh, host).await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(mesh.get("/orders/1").await.code(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_moves_to_another_name_loses_nothing() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let host = mesh.replica("orders", 0).host;
    mesh.dns.add("orders-v2", host);
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 4, Duration::ZERO);
    for (generation, name) in [(2.0, "orders-v2"), (3.0, "orders"), (4.0, "orders-v2")] {
        mesh.change(|spec| {
            spec.services = vec![Service::new("orders").with(&format!("dns: {name}"))];
        });
        mesh.metric_reaches(
            mesh.ingress_host(),
            "weft_config_generation",
            &[],
            generation,
        )
        .await;
        load.more(50).await;
    }
    load.stop().await.assert_all_answered();
}

/// What callers saw while the file changed.
#[derive(Debug, Default)]
struct Seen {
    /// Whether the file is being changed.
    busy: AtomicBool,
    /// How often that has begun and ended.
    phase: AtomicU64,
    /// The time each exchange took while the file rested, and while it changed; of those that saw a phase end neither is said.
    took: [Mutex<Vec<Duration>>; 2],
    wrong: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Seen {
    fn begin(&self, busy: bool) {
        self.busy.store(busy, Relaxed);
        self.phase.fetch_add(1, Relaxed);
    }

    /// The time that 99 of 100 exchanges took at most.
    fn p99(&self, busy: bool) -> Duration {
        let mut took = self.took[usize::from(busy)].lock().unwrap().clone();
        took.sort_unstable();
        assert!(took.len() >= 100, "only {} exchanges", took.len());
        took[took.len() * 99 / 100]
    }
}

/// Asks for the same over and over. The plans have each their own service and their own limit for it: an answer of the
/// one under the limit of the other would be of two plans.
async fn ask(client: Client, url: String, seen: Arc<Seen>) {
    while !seen.stop.load(Relaxed) {
        let (phase, busy) = (seen.phase.load(Relaxed), seen.busy.load(Relaxed));
        let begun = Instant::now();
        let request = http::Request::get(&url).body(crate::harness::client::whole(""));
        let reply = client.try_send(request.unwrap()).await;
        let took = begun.elapsed();
        if seen.phase.load(Relaxed) == phase {
            seen.took[usize::from(busy)].lock().unwrap().push(took);
        }
        let good = reply.as_ref().is_ok_and(|reply| {
            let policy = reply.header("ratelimit-policy").unwrap_or_default();
            match (reply.code(), reply.text().as_str()) {
                (200, "orders-0") => policy.contains("\"of_orders\""),
                (200, "stock-0") => policy.contains("\"of_stock\""),
                _ => false,
            }
        });
        if !good {
            seen.wrong.lock().unwrap().push(format!("{reply:?}"));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// How often the file changes.
const RELOADS: u64 = 500;
/// How many of them follow one another before there is a rest of the same length.
const PHASE: u64 = 25;

/// Where it is strict, the file also rests for as long as it changes, in turns, and the times of the ones are held against
/// those of the others. Elsewhere others' tests run beside, and the very same tenth of a second may be theirs or ours.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_reloads_are_felt_by_nobody() {
    let timed = is_strict();
    let echo = Behaviour::script(async |mut wire| {
        let Some(head) = wire.head().await else {
            return;
        };
        wire.write(crate::websocket::agreed(&head)).await;
        while wire.more().await.unwrap_or(false) {
            let piece = std::mem::take(&mut wire.read);
            wire.write(&piece).await;
        }
    });
    let ticks = Behaviour::script(async |mut wire| {
        wire.head().await;
        wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        while wire.try_write("1\r\n.\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("stock"))
        .service(Service::new("talk"))
        .service(Service::new("ticks"))
        .route("/ticks", "ticks")
        .route("/talk", "talk")
        .route_yaml("{ match: { path: /shop }, limits: [of_orders], to: orders }")
        .ingress_with("limits: { of_orders: { key: route, rate: 900000/s }, of_stock: { key: route, rate: 900000/s } }")
        .start()
        .await;
    mesh.origin("talk", 0).does(echo);
    mesh.origin("ticks", 0).does(ticks);
    let door = mesh.public();
    let mut talks = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut talk = Wire::connect(door).await;
        talk.write(
            "GET /talk HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
        assert_eq!(soon("a head", talk.head()).await.unwrap().status(), 101);
        talks.push(talk);
        let mut stream = Wire::connect(door).await;
        stream
            .write("GET /ticks HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await;
        assert_eq!(soon("a head", stream.head()).await.unwrap().status(), 200);
        streams.push(stream);
    }
    let (seen, mut callers) = (Arc::<Seen>::default(), JoinSet::new());
    for _ in 0..4 {
        callers.spawn(ask(
            mesh.client.clone(),
            mesh.url("/shop"),
            Arc::clone(&seen),
        ));
        callers.spawn(ask(
            Client::h2c(door).await,
            mesh.url("/shop"),
            Arc::clone(&seen),
        ));
    }

    let (mut changing, mut last) = (Duration::ZERO, Duration::ZERO);
    for round in 1..=RELOADS {
        if round % PHASE == 1 {
            if timed {
                // Everything is done that is done below, but the change.
                seen.begin(false);
                for _ in 0..PHASE {
                    let until = Instant::now() + last;
                    std::hint::black_box(mesh.yaml());
                    while Instant::now() < until {
                        mesh.get("/shop").await;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            seen.begin(true);
        }
        let begun = Instant::now();
        let to = if round % 2 == 0 { "orders" } else { "stock" };
        mesh.change(|spec| {
            spec.routes[2] = format!("{{ match: {{ path: /shop }}, limits: [of_{to}], to: {to} }}");
            // A service that changes with each of them is made anew, its endpoints and their connections included.
            spec.services[1] = Service::new("stock").with(&format!("timeout: {}s", 10 + round % 5));
        });
        mesh.ingress().signal(Signal::HUP);
        // Told at once to look; what it has seen is in force a moment later.
        let now = format!("{to}-0");
        eventually("the change is in force", async || {
            (mesh.get("/shop").await.text() == now).then_some(())
        })
        .await;
        let place = usize::try_from(round).unwrap() % talks.len();
        talks[place].write(round.to_be_bytes()).await;
        let back = soon("the echo", talks[place].exactly(8)).await;
        assert_eq!(back.unwrap(), round.to_be_bytes());
        last = begun.elapsed();
        changing += last;
    }
    seen.begin(true);
    for stream in &mut streams {
        for _ in 0..20 {
            let tick = soon("a tick", stream.chunk()).await;
            assert_eq!(tick, Some(Some(b".".to_vec())));
        }
    }
    seen.stop.store(true, Relaxed);
    callers.join_all().await;
    let wrong = std::mem::take(&mut *seen.wrong.lock().unwrap());
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The mesh has made as many plans as there were changes, and none was passed over.
    let made = generation(&mesh, mesh.ingress_host()).await;
    assert!(made > RELOADS as f64, "{made}");
    if timed {
        let (busy, quiet) = (seen.p99(true), seen.p99(false));
        let ratio = busy.as_secs_f64() / quiet.as_secs_f64();
        println!(
            "{RELOADS} reloads in {changing:.1?}: p99 {busy:?}, {quiet:?} when quiet, ratio {ratio:.2}"
        );
        assert!(changing <= Duration::from_secs(60), "{changing:?}");
        assert!(ratio <= 1.5, "{busy:?} and {quiet:?}");
    }
}
