//! The file may change under a running mesh: a good change is taken without dropping anything, a bad one changes nothing.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::grpc;
use crate::harness::told::is_strict;
use crate::harness::{Behaviour, Client, Load, Mesh, Service, Wire, eventually, soon};
use crate::harness::{process, wire};
use crate::websocket;

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
        .ca("")
        .start()
        .await;
    let good = mesh.yaml();
    let hosts = [
        mesh.ingress_host(),
        mesh.replica("orders", 0).host,
        mesh.ca_host(),
    ];
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        2,
        Duration::from_millis(10),
    );
    let broken = good.replace("routes:", "rout:");
    let line = broken.lines().position(|line| line == "  rout:").unwrap() + 1;
    let place = format!("weft.yaml:{line}:3: ");
    mesh.write_all(&broken);
    let processes = [
        mesh.ingress(),
        mesh.sidecar("orders", 0),
        mesh.ca.as_ref().unwrap(),
    ];
    for (host, process) in hosts.iter().zip(processes) {
        mesh.metric_reaches(*host, "weft_config_refused", &[], 1.0)
            .await;
        process
            .says(&["ERROR", &place, "rout", "last good one"])
            .await;
        let page = mesh.page(*host, "/config").await.text();
        let (_, refused) = page.split_once("# refused:").expect(&page);
        assert!(
            refused.contains(&place) && refused.contains("did you mean `routes`"),
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

/// The old place is served until the new one can be had, and everybody can see what is the matter.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_new_port_is_taken_serves_at_the_old_one_until_it_is_free() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let host = mesh.ingress_host();
    let (old, new) = (
        mesh.public(),
        std::net::SocketAddr::new(host, mesh.ports.spare()),
    );
    let holder = std::net::TcpListener::bind(new).unwrap();
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        2,
        Duration::from_millis(10),
    );
    let text = mesh
        .yaml()
        .replace(&format!(":{}\"", old.port()), &format!(":{}\"", new.port()));
    mesh.write_all(&text);
    mesh.metric_reaches(host, "weft_config_refused", &[], 1.0)
        .await;
    assert!((generation(&mesh, host).await - 2.0).abs() < f64::EPSILON);
    mesh.ingress()
        .says(&["ERROR", "could not be opened", "Address already in use"])
        .await;
    let page = mesh.page(host, "/config").await.text();
    let words = format!("#   listener `public` on {new}: Address already in use");
    assert!(page.contains(&words), "{page}");
    load.more(20).await;
    load.stop().await.assert_all_answered();

    drop(holder);
    eventually("it listens there", async || {
        let at = format!("http://{new}/orders/1");
        let request = http::Request::get(at).body(crate::harness::client::whole(""));
        let reply = mesh.client.try_send(request.unwrap()).await.ok()?;
        (reply.code() == 200).then_some(())
    })
    .await;
    eventually("all is well again", async || {
        (mesh.metric(host, "weft_config_refused", &[]).await < 0.5).then_some(())
    })
    .await;
    let page = mesh.page(host, "/config").await.text();
    assert!(!page.contains("not open"), "{page}");
    assert!(tokio::net::TcpStream::connect(old).await.is_err());
}

/// What is read at the start only is not in force, and nobody says that it is.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_wait_for_a_restart_are_named_and_the_rest_is_taken() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let hosts = [mesh.ingress_host(), mesh.replica("orders", 0).host];
    let needed = "weft_config_restart_needed";
    mesh.change(|spec| {
        spec.top.push("log: { level: debug }".to_owned());
        spec.top.push("access_log: stdout".to_owned());
        spec.top.push("drain: { delay: 0s }".to_owned());
        spec.routes
            .push("{ match: { path: /new }, to: orders }".to_owned());
    });
    eventually("the route is there", async || {
        (mesh.get("/new").await.code() == 200).then_some(())
    })
    .await;
    for (host, process) in hosts
        .iter()
        .zip([mesh.ingress(), mesh.sidecar("orders", 0)])
    {
        for key in ["log", "access_log"] {
            mesh.metric_reaches(*host, needed, &[&format!("key=\"{key}\"")], 1.0)
                .await;
        }
        process
            .says(&["WARN", "read at the start only", "access_log, log"])
            .await;
        let page = mesh.page(*host, "/config").await.text();
        let words =
            "# waiting for a restart, because they are read at the start only: access_log, log\n";
        assert!(page.contains(words), "{page}");
        assert!(page.contains("# refused: never"), "{page}");
    }
    mesh.change(|spec| {
        spec.top.remove(0);
        spec.top.remove(0);
    });
    for host in hosts {
        eventually("nothing waits", async || {
            (mesh.metric(host, needed, &[]).await < 0.5).then_some(())
        })
        .await;
    }
    // Not the five seconds that it began with.
    mesh.ingress().terminate();
    mesh.ingress().says(&["draining", "delay", "0ns"]).await;
}

/// In another trust domain it would know nobody: the file is refused as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn another_trust_domain_is_not_taken_by_half() {
    let mesh = Mesh::new()
        .ca("")
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let hosts = [
        mesh.ingress_host(),
        mesh.replica("orders", 0).host,
        mesh.ca_host(),
    ];
    let good = mesh.yaml();
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        2,
        Duration::from_millis(10),
    );
    mesh.write_all(&good.replace("shop.internal", "bank.internal"));
    for host in hosts {
        mesh.metric_reaches(host, "weft_config_refused", &[], 1.0)
            .await;
        let page = mesh.page(host, "/config").await.text();
        let words = "this process is of the trust domain `shop.internal` as long as it runs";
        assert!(page.contains(words), "{page}");
        assert!((generation(&mesh, host).await - 1.0).abs() < f64::EPSILON);
    }
    load.more(20).await;
    load.stop().await.assert_all_answered();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_gets_an_identity_when_a_route_first_leads_into_the_mesh() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("outside").replicas(0).with("mesh: false"))
        .route("/outside", "outside")
        .start()
        .await;
    let host = mesh.ingress_host();
    let certificate =
        async |mesh: &Mesh| mesh.page(host, "/certs").await.json()["certificate"].clone();
    assert!(certificate(&mesh).await.is_null(), "it needs none yet");
    mesh.change(|spec| {
        spec.routes
            .push("{ match: { path: /orders/* }, to: orders }".to_owned());
    });
    eventually("the route is there", async || {
        let reply = mesh.get("/orders/1").await;
        assert_ne!(reply.reason(), Some("identity_missing"));
        (reply.code() == 200).then_some(())
    })
    .await;
    assert!(certificate(&mesh).await.is_object());
    assert_eq!(mesh.page(host, "/ready").await.code(), 200);
}

/// By the time that a route leads into the mesh, a token that was handed over at the start is good no longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_handed_a_token_uses_it_while_it_is_good() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("outside").replicas(0).with("mesh: false"))
        .route("/outside", "outside")
        .ca("")
        .start()
        .await;
    let host = mesh.ingress_host();
    eventually("it has an identity that nothing needs yet", async || {
        let page = mesh.page(host, "/certs").await.json();
        page["certificate"].is_object().then_some(())
    })
    .await;
}

/// What `/config` shows is a file again, and the same one.
#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_page_is_a_good_file() {
    let mesh = Mesh::new()
        .service(Service::new("orders").allow("{ from: [ingress], methods: [GET] }"))
        .route("/orders/*", "orders")
        .ingress_with("limits: { few: { key: header.x-user, rate: 100/s } } # s3cret")
        .tls()
        .start()
        .await;
    for (host, name) in [
        (mesh.ingress_host(), "ingress"),
        (mesh.replica("orders", 0).host, "orders-0"),
    ] {
        let page = mesh.page(host, "/config").await.text();
        let begun = generation(&mesh, host).await;
        assert!(page.contains(&format!("# generation: {begun}\n")), "{page}");
        assert!(!page.contains("s3cret"), "comments are nobody's: {page}");
        let file = mesh.directory(name).join("shown.yaml");
        std::fs::write(&file, &page).unwrap();
        let (status, output, errors) = process::run(&["check", file.to_str().unwrap()]).await;
        assert!(status.success(), "{output}{errors}{page}");
        assert!(output.contains("good (1 service, 1 route)"), "{output}");
        // With it, it shows the same again.
        std::fs::write(mesh.directory(name).join("weft.yaml"), &page).unwrap();
        eventually("it is taken", async || {
            (generation(&mesh, host).await > begun).then_some(())
        })
        .await;
        let below = |page: &str| page.split_once("\n\n").unwrap().1.to_owned();
        let again = mesh.page(host, "/config").await.text();
        assert_eq!(below(&again), below(&page));
    }
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

/// What stays open all the while, and says back what it is told.
enum Kept {
    /// A WebSocket of either version, or opaque TCP.
    Socket(Wire<Box<dyn wire::Stream>>),
    /// A call that goes on both ways, and whose connection it is on.
    Call {
        call: Box<grpc::Call>,
        _client: Client,
    },
}

impl Kept {
    /// One of each at this door, which leads to `talk` and `greeter` by these names.
    async fn open(door: SocketAddr, talk: &str) -> Vec<Self> {
        let stream = Wire::connect(door).await.stream;
        let mut old = Wire::new(Box::new(stream) as Box<dyn wire::Stream>);
        websocket::upgrade(&mut old, talk, "/talk").await;
        let mut client = websocket::H2::connect(door).await;
        let uri = format!("http://{talk}/talk");
        let (status, _, new) = client.open_at(&uri, "websocket", b"").await;
        assert_eq!(status, 200);
        let new = Wire::new(Box::new(new.stream) as Box<dyn wire::Stream>);
        let client = Client::h2c(door).await;
        let mut call = grpc::call(&client, "Both", "first").await;
        assert_eq!(call.hears().await.as_deref(), Some("heard first"));
        vec![
            Self::Socket(old),
            Self::Socket(new),
            Self::Call {
                call: Box::new(call),
                _client: client,
            },
        ]
    }

    async fn says_back(&mut self, round: u64) {
        match self {
            Self::Socket(wire) => {
                wire.write(round.to_be_bytes()).await;
                let back = soon("the echo", wire.exactly(8)).await;
                assert_eq!(back.unwrap(), round.to_be_bytes());
            }
            Self::Call { call, .. } => {
                call.says(&round.to_string()).await;
                assert_eq!(call.hears().await, Some(format!("heard {round}")));
            }
        }
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
    let bytes = Behaviour::script(async |mut wire| {
        while wire.more().await.unwrap_or(false) {
            let piece = std::mem::take(&mut wire.read);
            wire.write(&piece).await;
        }
    });
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("stock"))
        .service(Service::new("talk"))
        .service(Service::new("ticks"))
        .service(Service::new("greeter").with("protocol: grpc").without_apps())
        .service(Service::new("db").tcp())
        .service(Service::new("storefront"))
        .route("/ticks", "ticks")
        .route("/talk", "talk")
        .route_yaml("{ match: { path: /shop }, limits: [of_orders], to: orders }")
        .route("/test.Greeter/*", "greeter")
        .ingress_with("limits: { of_orders: { key: route, rate: 900000/s }, of_stock: { key: route, rate: 900000/s } }")
        .start()
        .await;
    mesh.origin("talk", 0).does(echo);
    mesh.origin("ticks", 0).does(ticks);
    mesh.origin("db", 0).does(bytes);
    let greeter = SocketAddr::new(mesh.replica("greeter", 0).host, mesh.ports.app());
    let _greeter = grpc::app(greeter, &grpc::Heard::default()).await;
    let (door, outbound) = (mesh.public(), mesh.outbound("storefront", 0));
    // The gateway, a caller's sidecar, and that of whom it calls, which changes every time.
    let hosts = [
        mesh.ingress_host(),
        outbound.ip(),
        mesh.replica("stock", 0).host,
    ];
    let mut kept = Vec::new();
    kept.extend(Kept::open(door, "shop").await);
    kept.extend(Kept::open(outbound, "talk").await);
    let opaque = Wire::connect(mesh.listen("storefront", 0)).await.stream;
    kept.push(Kept::Socket(Wire::new(Box::new(opaque))));
    let mut streams = Vec::new();
    for (door, host) in [(door, "shop"), (outbound, "ticks")] {
        let mut stream = Wire::connect(door).await;
        stream
            .write(format!("GET /ticks HTTP/1.1\r\nHost: {host}\r\n\r\n"))
            .await;
        assert_eq!(soon("a head", stream.head()).await.unwrap().status(), 200);
        streams.push(stream);
    }
    // What a sidecar's app asks for, of a service that stays and of one that is made anew.
    let calls = ["orders", "stock"].map(|host| {
        let request = move || {
            let request = http::Request::get(format!("http://{outbound}/shop"));
            let request = request.header("host", host);
            request.body(crate::harness::client::whole("")).unwrap()
        };
        Load::of(&mesh.client, request, 2, Duration::from_millis(2))
    });
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
                        for host in &hosts[1..] {
                            generation(&mesh, *host).await;
                        }
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
        let sidecars = [mesh.sidecar("storefront", 0), mesh.sidecar("stock", 0)];
        for process in sidecars.into_iter().chain([mesh.ingress()]) {
            process.signal(Signal::HUP);
        }
        // Told at once to look; what they have seen is in force a moment later.
        let now = format!("{to}-0");
        eventually("the change is in force", async || {
            (mesh.get("/shop").await.text() == now).then_some(())
        })
        .await;
        for host in &hosts[1..] {
            eventually("the change is in force at the sidecars", async || {
                (generation(&mesh, *host).await > round as f64).then_some(())
            })
            .await;
        }
        let place = usize::try_from(round).unwrap() % kept.len();
        kept[place].says_back(round).await;
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
    for kept in &mut kept {
        kept.says_back(0).await;
    }
    for calls in calls {
        calls.stop().await.assert_all_answered();
    }
    seen.stop.store(true, Relaxed);
    callers.join_all().await;
    let wrong = std::mem::take(&mut *seen.wrong.lock().unwrap());
    assert!(wrong.is_empty(), "{wrong:#?}");
    // They have made as many plans as there were changes, and none was passed over.
    for host in hosts {
        let made = generation(&mesh, host).await;
        assert!(made > RELOADS as f64, "{host}: {made}");
    }
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

/// How often the file of the sidecar changes.
const CHANGES: usize = 60;

/// The plans of a sidecar have each their own endpoint for a service and their own identity that is expected there: an exchange
/// with the endpoint of the one and the identity of the other would be of two plans, and refused for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_through_a_sidecar_sees_one_plan_only() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("stock"))
        .service(Service::new("storefront"))
        .service(Service::new("shop").replicas(0).with("dns: orders"))
        .without_ingress()
        .start()
        .await;
    let addresses = ["orders", "stock"].map(|name| mesh.inbound(name, 0));
    let (door, host) = (
        mesh.outbound("storefront", 0),
        mesh.replica("storefront", 0).host,
    );
    let shop = |round: usize| {
        let (name, address) = [("orders", addresses[0]), ("stock", addresses[1])][round % 2];
        Service::new("shop")
            .replicas(0)
            .with(&format!("endpoints: [\"{address}\"]"))
            .with(&format!(
                "identity: \"spiffe://shop.internal/service/{name}\""
            ))
    };
    let pooled = mesh.client.clone();
    let mut loads = generation(&mesh, host).await;
    let mut change = async |round: usize| {
        mesh.change(|spec| spec.services[3] = shop(round));
        mesh.sidecar("storefront", 0).signal(Signal::HUP);
        eventually("the change is in force", async || {
            let now = generation(&mesh, host).await;
            (now > loads).then(|| loads = now)
        })
        .await;
    };
    change(0).await;
    let (stop, asked) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
    let mut callers = JoinSet::new();
    for caller in 0..4 {
        let client = match caller % 2 {
            0 => pooled.clone(),
            _ => Client::h2c(door).await,
        };
        let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
        callers.spawn(async move {
            let mut wrong = Vec::new();
            while !stop.load(Relaxed) {
                let url = match caller % 2 {
                    0 => format!("http://{door}/"),
                    _ => "http://shop/".to_owned(),
                };
                let mut request = http::Request::get(url);
                if caller % 2 == 0 {
                    request = request.header("host", "shop");
                }
                let request = request.body(crate::harness::client::whole("")).unwrap();
                let reply = client.try_send(request).await;
                let is_one = reply.as_ref().is_ok_and(|reply| {
                    reply.code() == 200 && ["orders-0", "stock-0"].contains(&&*reply.text())
                });
                if !is_one {
                    wrong.push(format!("{reply:?}"));
                }
                asked.fetch_add(1, Relaxed);
            }
            wrong
        });
    }
    for round in 1..=CHANGES {
        let before = asked.load(Relaxed);
        change(round).await;
        eventually("some more are asked", async || {
            (asked.load(Relaxed) > before + 8).then_some(())
        })
        .await;
    }
    stop.store(true, Relaxed);
    let wrong = callers.join_all().await.concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for name in ["orders", "stock"] {
        let seen = mesh.origin(name, 0).total();
        assert!(seen > CHANGES, "{name}: {seen}");
        let foreign = ["direction=\"outbound\""];
        let named = mesh.metric(host, "weft_foreign_peers_total", &foreign);
        assert_eq!(named.await, 0.0, "somebody was taken for the other");
    }
}
