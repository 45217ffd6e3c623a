//! Rolling restarts: every part of a mesh is replaced, one after another, under a steady load of GET and POST, while DNS
//! says that its answers are good for ten minutes. No exchange fails, and no order is placed twice.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::Request;

use crate::amplification::{App, relay};
use crate::grpc;
use crate::harness::client::{Body, whole};
use crate::harness::load::{Caller, good};
use crate::harness::{Behaviour, Client, Load, Mesh, Service, Wire, eventually};

const REPLICAS: u8 = 6;
/// Between two exchanges of a caller.
const PAUSE: Duration = Duration::from_millis(10);

/// Orders, each one of a kind, so that one that is placed twice is seen. `to` is where a client connects, or its host when
/// it has a connection; `kind` tells them from those of others.
fn order(
    to: &str,
    host: Option<&'static str>,
    kind: &str,
) -> impl Fn() -> Request<Body> + Clone + use<> {
    let url = format!("http://{to}/orders/{kind}-");
    let number = Arc::new(AtomicUsize::new(0));
    move || {
        let url = format!("{url}{}", number.fetch_add(1, Relaxed));
        let request = host.into_iter().fold(Request::post(url), |request, host| {
            request.header("host", host)
        });
        request.body(whole("an order")).unwrap()
    }
}

/// A mesh, and what is asked of it all the time.
struct Shop {
    mesh: Mesh,
    reads: Load,
    /// Through the gateway over HTTP/1.1 and HTTP/2, and through the sidecar of a caller.
    orders: Vec<Load>,
}

impl Shop {
    /// Six replicas of `orders`, called by the gateway and by `storefront`.
    async fn open() -> Self {
        let mesh = Mesh::new()
            .service(Service::new("storefront"))
            .service(Service::new("orders").replicas(REPLICAS))
            .route("/orders/*", "orders")
            .with("drain: { delay: 1s }")
            .start()
            .await;
        mesh.dns.ttl(600);
        for origin in mesh.origins("orders") {
            origin.does(Behaviour::Slow(Duration::from_millis(5)));
        }
        let public = mesh.public().to_string();
        let outbound = mesh.outbound("storefront", 0).to_string();
        let h2 = Client::h2c(mesh.public()).await;
        let called = order(&outbound, Some("orders"), "called");
        let reads = Load::start(&mesh.client, &mesh.url("/orders/1"), 4, PAUSE);
        let orders = vec![
            Load::of(&mesh.client, order(&public, None, "new"), 4, PAUSE),
            Load::of(&mesh.client, called, 4, PAUSE),
            Load::of(&h2, order("shop", None, "h2"), 4, PAUSE),
        ];
        let shop = Self {
            mesh,
            reads,
            orders,
        };
        shop.more(50).await;
        shop
    }

    /// Waits until so many more orders of each kind were answered.
    async fn more(&self, orders: usize) {
        for load in &self.orders {
            load.more(orders).await;
        }
    }

    /// Waits until an instance takes part.
    async fn is_used(&self, number: usize) {
        let before = self.mesh.origin("orders", number).total();
        eventually("the new instance is used", async || {
            (self.mesh.origin("orders", number).total() > before).then_some(())
        })
        .await;
    }

    /// Nothing failed, and each order that was answered arrived once.
    async fn close(self) {
        self.more(100).await;
        self.reads.stop().await.assert_all_answered();
        placed_once(&self.mesh, self.orders).await;
    }
}

/// Ends the loads: nothing failed, and each order that was answered arrived at `orders` once.
async fn placed_once(mesh: &Mesh, loads: Vec<Load>) {
    let mut answered = 0;
    for load in loads {
        let orders = load.stop().await;
        orders.assert_all_answered();
        answered += orders.answered();
    }
    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    for origin in mesh.origins("orders") {
        for (target, times) in origin.by_target("POST") {
            *arrived.entry(target).or_default() += times;
        }
    }
    once(&arrived, answered);
}

/// All that was answered has arrived, and nothing twice.
fn once(arrived: &BTreeMap<String, usize>, answered: usize) {
    let twice: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "more than once: {twice:?}");
    assert_eq!(arrived.len(), answered);
}

/// Asks a sidecar to end, and waits for it.
async fn ends(mesh: &mut Mesh, service: &str, number: usize) {
    mesh.sidecar(service, number).terminate();
    let ended = mesh.replica_mut(service, number).sidecar.end().await;
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn six_replicas_restart_where_they_are() {
    let mut shop = Shop::open().await;
    for number in 0..usize::from(REPLICAS) {
        ends(&mut shop.mesh, "orders", number).await;
        shop.mesh.origin("orders", number).stop().await;
        shop.mesh.origin("orders", number).resume().await;
        shop.mesh.restart_sidecar("orders", number).await;
        shop.is_used(number).await;
    }
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_replicas_are_replaced_by_others_elsewhere() {
    let mut shop = Shop::open().await;
    for number in 0..usize::from(REPLICAS) {
        let new = shop.mesh.add_replica("orders").await;
        shop.mesh
            .dns
            .add("orders", shop.mesh.replica("orders", new).host);
        shop.is_used(new).await;
        // DNS hears of it when it is over, as orchestrators have it.
        ends(&mut shop.mesh, "orders", number).await;
        shop.mesh.origin("orders", number).stop().await;
        shop.mesh
            .dns
            .remove("orders", shop.mesh.replica("orders", number).host);
    }
    shop.close().await;
}

/// Calls a unary method, each time with a text of its own.
#[derive(Debug, Clone)]
struct Calls {
    client: Client,
    door: &'static str,
    number: Arc<AtomicUsize>,
}

impl Caller for Calls {
    async fn ask(&mut self) -> Result<String, String> {
        let text = format!("{} {}", self.door, self.number.fetch_add(1, Relaxed));
        let called = grpc::call(&self.client, "Unary", &text).await;
        match called.finishes().await {
            (messages, status, _) if status == "0" && messages == [text] => Ok(status),
            wrong => Err(format!("{wrong:?}")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_grpc_service_restart_and_no_call_is_lost_or_made_twice() {
    const REPLICAS: u8 = 3;
    let greeter = Service::new("greeter").replicas(REPLICAS).without_apps();
    let mut mesh = Mesh::new()
        .service(greeter.with("protocol: grpc"))
        .service(Service::new("storefront"))
        .route("/test.Greeter/*", "greeter")
        .with("drain: { delay: 1s }")
        .start()
        .await;
    mesh.dns.ttl(600);
    let heard = grpc::Heard::default();
    let at = |mesh: &Mesh, number| {
        let host: IpAddr = mesh.replica("greeter", number).host;
        SocketAddr::new(host, mesh.ports.app())
    };
    let mut apps = Vec::new();
    for number in 0..usize::from(REPLICAS) {
        apps.push(grpc::app(at(&mesh, number), &heard).await);
    }
    let mut loads = Vec::new();
    for (door, address) in [
        ("gateway", mesh.public()),
        ("sidecar", mesh.outbound("storefront", 0)),
    ] {
        let client = Client::h2c(address).await;
        let number = Arc::default();
        let calls = Calls {
            client,
            door,
            number,
        };
        loads.push(Load::by(vec![calls; 4], PAUSE));
    }
    for (number, app) in apps.iter_mut().enumerate() {
        ends(&mut mesh, "greeter", number).await;
        app.shutdown().await;
        *app = grpc::app(at(&mesh, number), &heard).await;
        mesh.restart_sidecar("greeter", number).await;
        for load in &loads {
            load.more(50).await;
        }
    }
    let mut answered = 0;
    for load in loads {
        let calls = load.stop().await;
        calls.assert_all_answered();
        answered += calls.answered();
    }
    once(&heard.lock().unwrap(), answered);
}

/// Those in the middle are called by the gateway, and call `orders` for each of these calls.
#[tokio::test(flavor = "multi_thread")]
async fn the_middle_of_a_chain_restarts_with_calls_through_both_its_sides() {
    const REPLICAS: u8 = 3;
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront").replicas(REPLICAS))
        .route("/orders/*", "storefront")
        .with("drain: { delay: 1s }")
        .start()
        .await;
    mesh.dns.ttl(600);
    mesh.origin("orders", 0)
        .does(Behaviour::Slow(Duration::from_millis(5)));
    for number in 0..usize::from(REPLICAS) {
        let outbound = mesh.outbound("storefront", number);
        let app = Behaviour::script(move |wire| relay(wire, outbound, "orders", App::KnowsNothing));
        mesh.origin("storefront", number).does(app);
    }
    let h2 = Client::h2c(mesh.public()).await;
    let public = mesh.public().to_string();
    let loads = vec![
        Load::of(&mesh.client, order(&public, None, "new"), 4, PAUSE),
        Load::of(&h2, order("shop", None, "h2"), 4, PAUSE),
    ];
    for number in 0..usize::from(REPLICAS) {
        let connections = mesh.origin("storefront", number).connections();
        ends(&mut mesh, "storefront", number).await;
        mesh.restart_sidecar("storefront", number).await;
        eventually("it is used again", async || {
            (mesh.origin("storefront", number).connections() > connections).then_some(())
        })
        .await;
        for load in &loads {
            load.more(50).await;
        }
    }
    placed_once(&mesh, loads).await;
}

/// A client of two gateways as there are many: it keeps its connection until it is told that this ends (`Connection: close`,
/// GOAWAY), and opens the next one to the gateway that is said to be ready.
#[derive(Debug, Clone)]
struct Follower {
    doors: [SocketAddr; 2],
    ready: Arc<AtomicUsize>,
    number: Arc<AtomicUsize>,
    http2: bool,
    client: Option<Client>,
}

impl Follower {
    async fn client(&mut self) -> Client {
        if let Some(client) = &self.client {
            return client.clone();
        }
        let stream = Wire::connect(self.doors[self.ready.load(Relaxed)])
            .await
            .stream;
        let client = match self.http2 {
            true => Client::over_http2(stream).await,
            false => Client::over_http1(stream).await,
        };
        self.client.insert(client).clone()
    }
}

impl Caller for Follower {
    async fn ask(&mut self) -> Result<String, String> {
        let kind = if self.http2 { "h2" } else { "new" };
        let number = self.number.fetch_add(1, Relaxed);
        loop {
            let request = Request::post(format!("http://shop/orders/{kind}-{number}"));
            let request = request.header("host", "shop");
            let request = request.body(whole("an order")).unwrap();
            let client = self.client().await;
            match client.try_send(request).await {
                // It was told before it had begun.
                Err(error) if Client::was_never_begun(&error) => self.client = None,
                Err(error) => return Err(error),
                Ok(reply) => {
                    if reply.header("connection") == Some("close") {
                        self.client = None;
                    }
                    return good(&reply);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_restart_one_after_the_other() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .route("/orders/*", "orders")
        .with("drain: { delay: 1s }")
        .start()
        .await;
    mesh.origin("orders", 0)
        .does(Behaviour::Slow(Duration::from_millis(5)));
    let (mut second, door) = mesh.second_ingress().await;
    let ready = Arc::new(AtomicUsize::new(0));
    let followers = |http2| {
        let follower = Follower {
            doors: [mesh.public(), door],
            ready: Arc::clone(&ready),
            number: Arc::default(),
            http2,
            client: None,
        };
        Load::by(vec![follower; 4], PAUSE)
    };
    let loads = vec![followers(false), followers(true)];
    for load in &loads {
        load.more(50).await;
    }
    for _ in 0..2 {
        // As a load balancer has it: who is about to go gets no more connections, and keeps those that it has.
        ready.store(1, Relaxed);
        mesh.ingress().terminate();
        assert!(mesh.ingress.as_mut().unwrap().end().await.success());
        for load in &loads {
            load.more(50).await;
        }
        mesh.restart_ingress().await;
        ready.store(0, Relaxed);
        second.terminate();
        assert!(second.end().await.success());
        for load in &loads {
            load.more(50).await;
        }
        (second, _) = mesh.second_ingress().await;
    }
    placed_once(&mesh, loads).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_and_the_collector_restart_and_no_service_notices() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .ca("leaf_lifetime: 20s")
        .collector()
        .with("drain: { delay: 0s }")
        .start()
        .await;
    let outbound = mesh.outbound("storefront", 0);
    let called = order(&outbound.to_string(), Some("orders"), "called");
    let loads = vec![Load::of(&mesh.client, called, 4, PAUSE)];
    let renewals = async |mesh: &Mesh| {
        let page = mesh.page(outbound.ip(), "/certs").await.json();
        page["certificate"]["renewals"].as_u64().unwrap()
    };
    for _ in 0..2 {
        mesh.ca.as_ref().unwrap().terminate();
        assert!(mesh.ca.as_mut().unwrap().end().await.success());
        loads[0].more(50).await;
        mesh.start_ca().await;
        // It is asked again.
        let before = renewals(&mesh).await;
        eventually("a certificate is renewed", async || {
            (renewals(&mesh).await > before).then_some(())
        })
        .await;
        mesh.ingress().terminate();
        assert!(mesh.ingress.as_mut().unwrap().end().await.success());
        loads[0].more(50).await;
        mesh.restart_ingress().await;
        // And is told of traffic again.
        let edge = ["source=\"storefront\"", "destination=\"orders\""];
        let name = "weft_mesh_requests_total";
        mesh.metric_reaches(mesh.ingress_host(), name, &edge, 50.0)
            .await;
    }
    placed_once(&mesh, loads).await;
}
