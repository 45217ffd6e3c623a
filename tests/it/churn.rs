//! Nothing grows: a mesh whose endpoints, connections, certificates and configuration come and go all the time has, when it
//! rests, what it had at rest before.
//!
//! For as long as `WEFT_CHURN` says, in seconds, with a round a second then, so that it may run beside other work; for half
//! a minute and as fast as it goes unless that is set. The long run also draws a line through each process's resident memory.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::harness::certs::nobody;
use crate::harness::client::whole;
use crate::harness::told::told;
use crate::harness::{Behaviour, Client, Mesh, Process, Service, Wire, mesh::sample, soon, within};

/// Without `WEFT_CHURN`.
const SHORT: Duration = Duration::from_secs(25);
/// Longer than a proxy keeps a connection that nobody uses.
const REST: Duration = Duration::from_secs(100);
/// What a process may have more at rest than after warming up, in a short run: an allocator's habits, and what the log of a
/// debug build formats.
const SLACK: u64 = 8 * 1024 * 1024;
/// What a process may grow by in ten minutes.
const GROWTH: f64 = 1024.0 * 1024.0;

/// What a process holds.
#[derive(Debug, Clone, PartialEq)]
struct Holding {
    resident: u64,
    descriptors: usize,
    threads: usize,
    /// Samples on its page of metrics: one for each thing that it counts.
    series: usize,
    /// What it says of its tables.
    tables: BTreeMap<&'static str, f64>,
}

/// Tables that a rest empties, or brings back to what the configuration and DNS say.
const TABLES: [&str; 8] = [
    "weft_discovery_endpoints",
    "weft_endpoint_in_flight",
    "weft_requests_in_flight",
    "weft_gateway_requests_in_flight",
    "weft_service_in_flight",
    "weft_service_waiting",
    "weft_mesh_reporters",
    "weft_collector_connections",
];

impl Holding {
    async fn of(mesh: &Mesh, host: IpAddr, process: &Process) -> Self {
        let page = mesh.page(host, "/metrics").await.text();
        Self {
            resident: process.resident(),
            descriptors: process.descriptors(),
            threads: process.threads(),
            series: page.lines().filter(|line| !line.starts_with('#')).count(),
            tables: TABLES.map(|name| (name, sample(&page, name, &[]))).into(),
        }
    }

    /// Whether there is no more of anything than there was.
    fn is_within(&self, before: &Self) -> bool {
        let no_more = |(now, before): (&f64, &f64)| now <= before;
        self.descriptors <= before.descriptors + SPARE
            && self.threads <= before.threads + SPARE
            && self.series <= before.series + KINDS
            && self
                .tables
                .values()
                .zip(before.tables.values())
                .all(no_more)
    }
}

/// Threads that read a file now and then end by themselves after ten seconds, and somebody may just be asking the CA for a
/// certificate. What is lost by each round of dozens of connections would be far more.
const SPARE: usize = 4;
/// Kinds of failures that may not have happened while warming up: each is a sample of its own on the page. One that was
/// kept for each of the thousands of names, paths and addresses that come and go would show.
const KINDS: usize = 64;

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            resident,
            descriptors,
            threads,
            series,
            tables,
        } = self;
        let kib = resident / 1024;
        write!(
            f,
            "{kib} KiB, {descriptors} descriptors, {threads} threads, {series} series"
        )?;
        let tables = tables.iter().filter(|(_, size)| **size > 0.0);
        tables
            .into_iter()
            .try_for_each(|(name, size)| write!(f, ", {name} {size}"))
    }
}

/// Routes that come and go. What one has counted stays counted when it is gone, for as many routes as `observe::registry`
/// has room for: so it is the same few that come again.
const PASSING: u64 = 8;

/// What every process holds.
async fn holdings(mesh: &Mesh) -> BTreeMap<String, Holding> {
    let mut all = BTreeMap::new();
    for (host, process) in processes(mesh) {
        all.insert(process.name.clone(), Holding::of(mesh, host, process).await);
    }
    all
}

fn processes(mesh: &Mesh) -> Vec<(IpAddr, &Process)> {
    let sidecars = mesh.replicas.iter();
    let mut all: Vec<_> = sidecars
        .map(|replica| (replica.host, &replica.sidecar))
        .collect();
    all.push((mesh.ingress_host(), mesh.ingress()));
    all.push((mesh.ca_host(), mesh.ca.as_ref().unwrap()));
    all
}

/// The shop: two orders and one stock, a service that fails, one that talks and one whose bytes nobody looks at.
async fn shop() -> Mesh {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .service(Service::new("stock"))
        .service(Service::new("sick"))
        .service(Service::new("talk"))
        .service(Service::new("db").tcp())
        .route("/orders/*", "orders")
        .route("/sick", "sick")
        .route("/talk", "talk")
        .route_yaml("{ match: { path: /stock }, limits: [by_address], to: stock }")
        .ingress_with("limits: { by_address: { key: client_address, rate: 1000/s } }")
        .ca("leaf_lifetime: 15s, intermediate_lifetime: 60s")
        .collector()
        .tls()
        .start()
        .await;
    let echo = Behaviour::script(async |mut wire| {
        while wire.more().await.unwrap_or(false) {
            let piece = std::mem::take(&mut wire.read);
            if wire.try_write(&piece).await.is_err() {
                return;
            }
        }
    });
    let talk = Behaviour::script(async |mut wire| {
        let Some(head) = wire.head().await else {
            return;
        };
        wire.write(crate::websocket::agreed(&head)).await;
        while wire.more().await.unwrap_or(false) {
            let piece = std::mem::take(&mut wire.read);
            if wire.try_write(&piece).await.is_err() {
                return;
            }
        }
    });
    mesh.origin("db", 0).does(echo);
    mesh.origin("talk", 0).does(talk);
    mesh
}

/// What a round needs besides the mesh.
struct Hands {
    http1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    good: usize,
}

impl Hands {
    fn count(&mut self, good: bool) {
        self.good += usize::from(good);
    }
}

/// Everything that comes and goes does so once.
async fn round(mesh: &mut Mesh, number: u64, hands: &mut Hands) {
    endpoints(mesh, number);
    reload(mesh, number);
    http(mesh, number, hands).await;
    tunnels(mesh, number, hands).await;
    strangers(mesh, number).await;
}

/// One of the orders leaves or comes back, and an address where nobody is takes its place: another one each time.
fn endpoints(mesh: &Mesh, number: u64) {
    let nobody = |number: u64| mesh.host(150 + u8::try_from(number % 100).unwrap());
    let second = mesh.replica("orders", 1).host;
    match number % 2 {
        0 => mesh.dns.add("orders", second),
        _ => mesh.dns.remove("orders", second),
    }
    for name in ["orders", "sick"] {
        mesh.dns.remove(name, nobody(number));
        mesh.dns.add(name, nobody(number + 1));
    }
    let sick = mesh.origin("sick", 0);
    sick.does(match number % 4 {
        0 => Behaviour::Status(503),
        1 => Behaviour::Reset,
        2 => Behaviour::Cut,
        _ => Behaviour::Answer,
    });
}

/// DNS is again as it was at the start.
fn settle(mesh: &Mesh) {
    for number in 150..250 {
        for name in ["orders", "sick"] {
            mesh.dns.remove(name, mesh.host(number));
        }
    }
    mesh.dns.add("orders", mesh.replica("orders", 1).host);
    mesh.origin("sick", 0).does(Behaviour::Answer);
}

/// A service changes, a route goes and another comes, and so does a limit.
fn reload(mesh: &mut Mesh, number: u64) {
    mesh.change(|spec| {
        spec.services[1] = Service::new("stock").with(&format!("timeout: {}s", 10 + number % 5));
        spec.routes.retain(|route| !route.contains("/passing"));
        let passing = number % PASSING;
        spec.routes.push(format!(
            "{{ match: {{ path: /passing/{passing} }}, to: stock }}"
        ));
        let rate = 1000 + number % 7;
        spec.ingress = vec![format!(
            "limits: {{ by_address: {{ key: client_address, rate: {rate}/s }} }}"
        )];
    });
    for (_, process) in processes(mesh) {
        process.signal(rustix::process::Signal::HUP);
    }
}

/// New connections in each version of HTTP, in plaintext and with TLS, and exchanges good and bad on them.
async fn http(mesh: &Mesh, number: u64, hands: &mut Hands) {
    let clients = [
        Client::http1(mesh.public()).await,
        Client::h2c(mesh.public()).await,
        Client::tls(mesh.secure(), hands.http1.clone(), "edge.test").await,
        Client::tls(mesh.secure(), hands.h2.clone(), "edge.test").await,
    ];
    let paths = [
        format!("/orders/{number}"),
        "/stock".to_owned(),
        "/sick".to_owned(),
        format!("/nowhere/{number}"),
        format!("/passing/{}", number % PASSING),
    ];
    for (place, client) in clients.iter().enumerate() {
        for path in &paths {
            let scheme = if place < 2 { "http" } else { "https" };
            let request = http::Request::get(format!("{scheme}://edge.test{path}"))
                .header("host", "edge.test")
                .header(format!("x-passing-{number}"), "1")
                .body(whole(""));
            let reply = client.try_send(request.unwrap()).await;
            hands.count(reply.is_ok_and(|reply| reply.code() == 200));
        }
    }
    // As apps ask one another, also for a service that there is not.
    let reply = mesh
        .get_from("stock", 0, &format!("http://orders/{number}"))
        .await;
    hands.count(reply.code() == 200);
    let nobody = mesh
        .get_from("stock", 0, &format!("http://nobody-{number}/"))
        .await;
    assert_ne!(nobody.code(), 200);
}

/// A WebSocket and a connection whose bytes nobody looks at.
async fn tunnels(mesh: &Mesh, number: u64, hands: &mut Hands) {
    let mut talk = Wire::connect(mesh.public()).await;
    talk.write(
        "GET /talk HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    let head = soon("a head", talk.head()).await;
    hands.count(head.is_some_and(|head| head.status() == 101));
    let mut database = Wire::connect(mesh.listen("stock", 0)).await;
    for wire in [&mut talk, &mut database] {
        if wire.try_write(number.to_be_bytes()).await.is_ok() {
            let back = soon("the echo", wire.exactly(8)).await;
            hands.count(back.is_some());
        }
    }
    match number % 2 {
        0 => talk.reset(),
        _ => database.reset(),
    }
}

/// Those who do not belong: no certificate on the mesh's port, no HTTP on the public one, half a request and gone.
async fn strangers(mesh: &Mesh, number: u64) {
    let inbound = mesh.inbound("orders", 0);
    let _: Result<_, _> = soon(
        "an end",
        Client::handshake(inbound, nobody(rustls::ALL_VERSIONS, &["h2"]), "mesh.test"),
    )
    .await;
    let mut noise = Wire::connect(mesh.public()).await;
    noise.write(format!("\u{1}{number}\r\n\r\n")).await;
    noise.rest().await;
    let mut half = Wire::connect(mesh.public()).await;
    half.write(format!(
        "POST /orders/{number} HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nhalf"
    ))
    .await;
    half.reset();
}

/// Waits until no process has more of anything than `before`. Apps' connections that nobody uses end at once, since the apps
/// start again; those between proxies after a minute.
async fn rest(mesh: &Mesh, before: &BTreeMap<String, Holding>) -> BTreeMap<String, Holding> {
    settle(mesh);
    for replica in &mesh.replicas {
        replica.app.as_ref().unwrap().resume().await;
    }
    let deadline = Instant::now() + REST;
    loop {
        let over = Instant::now() >= deadline;
        let now = holdings(mesh).await;
        let more: Vec<String> = now
            .iter()
            .filter(|(name, now)| !now.is_within(&before[*name]))
            .map(|(name, now)| format!("{name}: {}\n   now: {now}", before[name]))
            .collect();
        if more.is_empty() {
            return now;
        }
        assert!(!over, "more than before:\n{}", more.join("\n"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The line through these points, by least squares: what it rises by in ten minutes.
fn growth(samples: &[(Duration, u64)]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&(Duration, u64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let x = |sample: &(Duration, u64)| sample.0.as_secs_f64();
    let y = |sample: &(Duration, u64)| sample.1 as f64;
    let (mean_x, mean_y) = (mean(&x), mean(&y));
    let rise = mean(&|sample| (x(sample) - mean_x) * (y(sample) - mean_y));
    let run = mean(&|sample| (x(sample) - mean_x).powi(2));
    600.0 * rise / run
}

#[test]
fn growth_is_the_slope_of_a_line() {
    let samples = |rate: u64| -> Vec<_> {
        (0..100)
            .map(|second| {
                (
                    Duration::from_secs(second),
                    5_000 + rate * second + second % 3,
                )
            })
            .collect()
    };
    assert!(growth(&samples(0)).abs() < 20.0);
    assert!((growth(&samples(100)) - 60_000.0).abs() < 20.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_leaves_nothing_behind() {
    let long = told("WEFT_CHURN").map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let mut mesh = shop().await;
    let mut hands = Hands {
        http1: mesh.authority.client(&["http/1.1"]),
        h2: mesh.authority.client(&["h2"]),
        good: 0,
    };
    // Every core has met every endpoint, everything that is made once was made, and the allocators have seen it all.
    let warming = long.map_or(20, |long| long.as_secs() / 5);
    let mut number = 0;
    while number < warming {
        number += 1;
        let begun = Instant::now();
        round(&mut mesh, number, &mut hands).await;
        pause(begun, long).await;
    }
    settle(&mesh);
    let before = holdings(&mesh).await;

    let (begun, lasting) = (Instant::now(), long.unwrap_or(SHORT));
    let mut samples: BTreeMap<String, Vec<(Duration, u64)>> = BTreeMap::new();
    while begun.elapsed() < lasting {
        number += 1;
        let round_begun = Instant::now();
        round(&mut mesh, number, &mut hands).await;
        for (_, process) in processes(&mesh) {
            let of = samples.entry(process.name.clone()).or_default();
            of.push((begun.elapsed(), process.resident()));
        }
        pause(round_begun, long).await;
    }
    let after = rest(&mesh, &before).await;
    println!(
        "{number} rounds in {:.0?}, {} good answers",
        begun.elapsed(),
        hands.good
    );
    for (name, after) in &after {
        let grown = growth(&samples[name]) / 1024.0;
        println!(
            "{name}\n  warm: {}\n  after: {after}\n  in ten minutes: {grown:+.0} KiB",
            before[name]
        );
    }
    // It was a mesh at work: most of what was asked in good faith was answered, and certificates came and went.
    assert!(hands.good as u64 > number * 10, "{}", hands.good);
    let renewed = within(
        Duration::from_secs(30),
        "certificates are renewed",
        async || {
            let page = mesh.page(mesh.ingress_host(), "/certs").await.json();
            page["certificate"]["renewals"]
                .as_u64()
                .filter(|count| *count >= 1)
        },
    )
    .await;
    assert!(renewed >= lasting.as_secs() / 30, "{renewed} renewals");
    for (name, after) in &after {
        match long {
            Some(_) => assert!(growth(&samples[name]) < GROWTH, "{name} grows"),
            None => assert!(
                after.resident <= before[name].resident + SLACK,
                "{name}: {after}, and {} before",
                before[name]
            ),
        }
    }
}

/// In a long run, a round takes a second.
async fn pause(begun: Instant, long: Option<Duration>) {
    if long.is_some() {
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed())).await;
    }
}
