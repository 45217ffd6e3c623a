//! Endpoints are asked how they are, by the way that traffic takes; what is known of them outlives reloads, and when too
//! few are well all are used.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::app::{App, fields, send_all};
use crate::harness::mesh::Builder;
use crate::harness::{Behaviour, Load, Mesh, Service, Wire, eventually};

/// One that is quick to notice.
fn probed(question: &str) -> String {
    format!("health: {{ {question}, interval: 200ms }}")
}

const UNJUDGED: &str = "outlier: { enabled: false }";

/// How the ingress sees an endpoint of a service: its row on the admin page.
pub(crate) async fn row(mesh: &Mesh, service: &str, host: IpAddr) -> serde_json::Value {
    let page = mesh.page(mesh.ingress_host(), "/endpoints").await.json();
    let rows = page["endpoints"].as_array().cloned().unwrap_or_default();
    let is_it = |row: &serde_json::Value| {
        let is_of_host = |address: &str| address.starts_with(&format!("{host}:"));
        row["service"] == service && row["address"].as_str().is_some_and(is_of_host)
    };
    rows.into_iter().find(is_it).unwrap_or_default()
}

/// Waits until the ingress says this of an endpoint; its row then.
async fn until_of(
    mesh: &Mesh,
    service: &str,
    host: IpAddr,
    key: &str,
    value: &str,
) -> serde_json::Value {
    eventually(&format!("{service} at {host} is {value}"), async || {
        let row = row(mesh, service, host).await;
        (row[key] == value).then_some(row)
    })
    .await
}

async fn until(mesh: &Mesh, host: IpAddr, key: &str, value: &str) -> serde_json::Value {
    until_of(mesh, "orders", host, key, value).await
}

/// An app that answers everything, and `/healthz` by what it is told.
fn app(name: &'static str, well: &Arc<AtomicBool>) -> Behaviour {
    let well = Arc::clone(well);
    Behaviour::script(move |mut wire: Wire<TcpStream>| {
        let well = Arc::clone(&well);
        async move {
            while let Some(head) = wire.head().await {
                let asked = head.word(1) == "/healthz";
                let (status, body) = match (asked, well.load(Ordering::Relaxed)) {
                    (true, false) => (503, "not well"),
                    (true, true) => (200, "all well"),
                    (false, _) => (200, name),
                };
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                if wire.try_write(answer).await.is_err() {
                    return;
                }
            }
        }
    })
}

/// Puts such apps beside all replicas of `orders`. On new connections only: the old ones would answer as before.
async fn replace_apps(mesh: &Mesh, well: [&Arc<AtomicBool>; 3]) {
    for (number, (name, well)) in ["a", "b", "c"].into_iter().zip(well).enumerate() {
        mesh.origin("orders", number).does(app(name, well));
        mesh.origin("orders", number).resume().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_probe_takes_a_sick_replica_out_and_back() {
    let mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(3)
                .with(UNJUDGED)
                .with(&probed("http: /healthz, body: all well")),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    let well = [(); 3].map(|()| Arc::new(AtomicBool::new(true)));
    replace_apps(&mesh, well.each_ref()).await;
    let hosts = [0, 1, 2].map(|number| mesh.replica("orders", number).host);
    for host in hosts {
        until(&mesh, host, "health", "passing").await;
    }
    let pause = Duration::from_millis(5);
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 4, pause);
    load.more(50).await;

    well[0].store(false, Ordering::Relaxed);
    let row = until(&mesh, hosts[0], "state", "unhealthy").await;
    assert_eq!(
        (&row["health"], &row["problem"]),
        (&"failing".into(), &"answered 503".into())
    );
    // What was under way at that moment may still end there.
    load.more(10).await;
    load.stop().await.assert_all_answered();
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 4, pause);
    load.more(100).await;
    let outcome = load.stop().await;
    outcome.assert_all_answered();
    assert_eq!(outcome.answers.get("a"), None, "{:?}", outcome.answers);

    well[0].store(true, Ordering::Relaxed);
    until(&mesh, hosts[0], "state", "healthy").await;
    eventually("it gets traffic", async || {
        (mesh.get("/orders/1").await.text() == "a").then_some(())
    })
    .await;
    let host = mesh.ingress_host();
    for (result, least) in [("passed", 4.0), ("failed", 3.0)] {
        let labels = ["orders", result];
        mesh.metric_reaches(host, "weft_health_probes_total", &labels, least)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_needs_no_rule_and_is_no_traffic_and_opens_nothing_else() {
    let mesh = Mesh::new()
        .service(Service::new("storefront"))
        .service(
            Service::new("orders")
                .allow("{ from: [ingress], paths: [/orders/*] }")
                .with(&probed("http: /healthz")),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    let (host, app) = (mesh.replica("orders", 0).host, mesh.origin("orders", 0));
    // Asked by the ingress, by storefront's sidecar and by its own.
    until(&mesh, host, "health", "passing").await;
    let callers = eventually("everybody asks, again and again", async || {
        let callers: std::collections::BTreeSet<String> = app
            .seen()
            .iter()
            .map(|seen| {
                assert_eq!((seen.method(), seen.target()), ("GET", "/healthz"));
                assert_eq!(seen.head.field("user-agent"), Some("weft-health"));
                let caller = seen.head.field("x-forwarded-client-cert").unwrap();
                caller.rsplit('/').next().unwrap().to_owned()
            })
            .collect();
        (app.total() >= 9 && callers.len() >= 3).then_some(callers)
    })
    .await;
    assert_eq!(
        callers,
        ["ingress", "orders", "storefront"]
            .map(str::to_owned)
            .into()
    );
    for side in [host, mesh.ingress_host()] {
        let counted = mesh.metric(side, "weft_requests_total", &["orders"]).await;
        assert!(counted < 0.5, "{counted} exchanges");
    }

    // The one request by the one method, and no other.
    let get = async |path: &str| {
        let url = format!("http://orders{path}");
        let reply = mesh.get_from("storefront", 0, &url).await;
        (reply.code(), reply.reason().unwrap_or("").to_owned())
    };
    assert_eq!(get("/healthz?full=1").await.0, 200);
    let denied = (403, "denied".to_owned());
    assert_eq!(get("/orders/1").await, denied);
    assert_eq!(get("/healthz/more").await, denied);
    assert_eq!(get("/.well-known/weft/knock").await, denied);
    let post = http::Request::post(format!("http://{}/healthz", mesh.outbound("storefront", 0)))
        .header("host", "orders")
        .body(crate::harness::client::whole(""))
        .unwrap();
    assert_eq!(mesh.client.send(post).await.reason(), Some("denied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_probe_reaches_the_app_behind_its_sidecar() {
    let mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(2)
                .with(UNJUDGED)
                .allow("{ from: [ingress], paths: [/orders/*] }")
                .with(&probed("tcp: true")),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    let (app, host) = (mesh.origin("orders", 0), mesh.replica("orders", 0).host);
    until(&mesh, host, "health", "passing").await;
    assert_eq!(app.total(), 0, "connected to, and not a byte");
    assert!(app.connections() > 0);
    app.stop().await;
    let row = until(&mesh, host, "state", "unhealthy").await;
    let problem = "its sidecar answered 502: connect_failed";
    assert_eq!(row["problem"], problem);
    for _ in 0..10 {
        assert_eq!(mesh.get("/orders/1").await.text(), "orders-1");
    }
    app.resume().await;
    until(&mesh, host, "state", "healthy").await;
}

/// A gRPC app whose health is `status`.
async fn grpc_app(address: SocketAddr, status: Arc<AtomicU8>) -> App {
    App::start(address, usize::MAX, move |mut asked| {
        assert_eq!(asked.path(), "/grpc.health.v1.Health/Check");
        let health = status.load(Ordering::Relaxed);
        async move {
            let mut body = asked.begin(&[("content-type", b"application/grpc")]);
            let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, health]);
            send_all(&mut body, message, false).await;
            let _: Result<(), h2::Error> = body.send_trailers(fields(&[("grpc-status", b"0")]));
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_probe_asks_the_app_by_its_health_protocol() {
    let mesh = Mesh::new()
        .service(
            Service::new("greeter")
                .without_apps()
                .with("protocol: grpc")
                .with(&probed("grpc: shop.v1.Greeter")),
        )
        .route("/*", "greeter")
        .start()
        .await;
    let host = mesh.replica("greeter", 0).host;
    let row = until_of(&mesh, "greeter", host, "state", "unhealthy").await;
    assert_eq!(row["problem"], "its sidecar answered: connect_failed");

    let health = Arc::new(AtomicU8::new(1));
    let at = SocketAddr::new(host, mesh.ports.app());
    let _app = grpc_app(at, Arc::clone(&health)).await;
    until_of(&mesh, "greeter", host, "state", "healthy").await;
    health.store(2, Ordering::Relaxed);
    let row = until_of(&mesh, "greeter", host, "state", "unhealthy").await;
    assert_eq!(row["problem"], "NOT_SERVING");
    health.store(1, Ordering::Relaxed);
    until_of(&mesh, "greeter", host, "state", "healthy").await;
}

/// Each kind of probe, with the protocol of the service that is asked so.
const PROBES: [(&str, &str, &str); 3] = [
    ("http", "http", "http: /healthz"),
    ("tcp", "http", "tcp: true"),
    ("grpc", "grpc", "grpc: shop.v1.Greeter"),
];

/// A service of each kind, called `WHO-KIND` and routed to.
fn one_of_each(mut mesh: Builder, who: &str, replicas: u8) -> Builder {
    for (kind, protocol, question) in PROBES {
        let name = format!("{who}-{kind}");
        mesh = mesh.route(&format!("/{name}/*"), &name).service(
            Service::new(&name)
                .replicas(replicas)
                .without_apps()
                .with(&format!("protocol: {protocol}"))
                .with(&probed(question)),
        );
    }
    mesh
}

/// Takes connections, and says nothing on them.
async fn mute(address: SocketAddr) -> JoinSet<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kind_of_probe_takes_a_stranger_or_silence_for_well() {
    let mesh = Mesh::new().service(Service::new("orders").with(&probed("http: /healthz")));
    // Known by name only, and one with a sidecar whose app hangs.
    let mesh = one_of_each(mesh, "other", 0);
    let mesh = one_of_each(mesh, "silent", 0);
    let mesh = one_of_each(mesh, "hanging", 1).start().await;
    // Where they are said to be, `orders` is, and it answers; and somebody who does not even shake hands.
    let (orders, silent) = (mesh.replica("orders", 0).host, mesh.host(200));
    let _silent = mute(SocketAddr::new(silent, mesh.ports.inbound())).await;
    let mut apps = Vec::new();
    for (kind, ..) in PROBES {
        mesh.dns.add(&format!("other-{kind}"), orders);
        mesh.dns.add(&format!("silent-{kind}"), silent);
        let host = mesh.replica(&format!("hanging-{kind}"), 0).host;
        apps.push(mute(SocketAddr::new(host, mesh.ports.app())).await);
    }
    let problem = async |service: &str, host: IpAddr| {
        let row = until_of(&mesh, service, host, "state", "unhealthy").await;
        row["problem"].as_str().unwrap().to_owned()
    };
    for (kind, ..) in PROBES {
        let said = problem(&format!("other-{kind}"), orders).await;
        assert!(said.contains("/service/orders"), "{kind}: {said}");
        let said = problem(&format!("silent-{kind}"), silent).await;
        assert!(said.contains("connect_timeout"), "{kind}: {said}");
        let name = format!("hanging-{kind}");
        let host = mesh.replica(&name, 0).host;
        if kind == "tcp" {
            // It is asked whether it takes connections, and it does.
            until_of(&mesh, &name, host, "health", "passing").await;
            continue;
        }
        let said = problem(&name, host).await;
        assert!(said.contains("no answer"), "{kind}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejection_survives_a_reload() {
    let outlier = "outlier: { ejection: 300s, max_ejection: 300s, jitter: 0% }";
    let service = |more: &str| Service::new("orders").replicas(3).with(outlier).with(more);
    let mut mesh = Mesh::new()
        .service(service("timeout: 20s"))
        .route("/orders/*", "orders")
        .start()
        .await;
    let host = mesh.replica("orders", 0).host;
    mesh.origin("orders", 0).does(Behaviour::Status(500));
    eventually("it is ejected", async || {
        mesh.get("/orders/1").await;
        (row(&mesh, "orders", host).await["state"] == "ejected").then_some(())
    })
    .await;
    let connections: Vec<usize> = mesh
        .origins("orders")
        .iter()
        .map(|o| o.connections())
        .collect();
    for (generation, change) in [
        (2.0, "timeout: 7s"),
        (3.0, "limits: { in_flight: 99 }"),
        (4.0, "retry: { attempts: 2 }"),
    ] {
        mesh.change(|spec| spec.services = vec![service(change)]);
        let name = "weft_config_generation";
        mesh.metric_reaches(mesh.ingress_host(), name, &[], generation)
            .await;
        assert_eq!(
            row(&mesh, "orders", host).await["state"],
            "ejected",
            "{change}"
        );
        mesh.origin("orders", 0).forget();
        for _ in 0..30 {
            assert_eq!(mesh.get("/orders/1").await.code(), 200);
        }
        assert_eq!(mesh.origin("orders", 0).total(), 0, "{change}");
    }
    assert_eq!(row(&mesh, "orders", host).await["ejections"], 1);
    // Nor was a connection given up: each core has its own, and there may be as many as that.
    for (origin, before) in mesh.origins("orders").iter().zip(connections).skip(1) {
        assert!(origin.connections() <= before.max(2), "{}", origin.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejection_survives_that_the_name_does_not_say_the_address_for_a_while() {
    let outlier = "outlier: { ejection: 300s, max_ejection: 300s, jitter: 0% }";
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(3).with(outlier))
        .route("/orders/*", "orders")
        .start()
        .await;
    let (host, app) = (mesh.replica("orders", 0).host, mesh.origin("orders", 0));
    app.does(Behaviour::Status(500));
    eventually("it is ejected", async || {
        mesh.get("/orders/1").await;
        (row(&mesh, "orders", host).await["state"] == "ejected").then_some(())
    })
    .await;
    mesh.dns.remove("orders", host);
    eventually("it is not listed", async || {
        row(&mesh, "orders", host).await.is_null().then_some(())
    })
    .await;
    mesh.dns.add("orders", host);
    let row = eventually("it is listed again", async || {
        let row = row(&mesh, "orders", host).await;
        (!row.is_null()).then_some(row)
    })
    .await;
    assert_eq!(
        (&row["state"], &row["ejections"]),
        (&"ejected".into(), &1.into())
    );
    app.forget();
    for _ in 0..30 {
        assert_eq!(mesh.get("/orders/1").await.code(), 200);
    }
    assert_eq!(app.total(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_fail_their_probes_all_are_used_and_it_is_loud() {
    let mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(3)
                .with(&probed("http: /healthz")),
        )
        .route("/orders/*", "orders")
        .start()
        .await;
    let well = Arc::new(AtomicBool::new(false));
    replace_apps(&mesh, [&well; 3]).await;
    for number in 0..3 {
        until(
            &mesh,
            mesh.replica("orders", number).host,
            "state",
            "unhealthy",
        )
        .await;
    }
    let host = mesh.ingress_host();
    let panic = async || mesh.metric(host, "weft_service_panic", &["orders"]).await;
    assert!(panic().await > 0.5);
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 4, Duration::ZERO);
    load.more(200).await;
    let outcome = load.stop().await;
    outcome.assert_all_answered();
    assert_eq!(outcome.answers.len(), 3, "{:?}", outcome.answers);
    mesh.metric_reaches(host, "weft_service_panic_picks_total", &["orders"], 200.0)
        .await;
    let words = ["WARN", "orders", "too few endpoints are well"];
    mesh.ingress().says(&words).await;
    let page = mesh.page(host, "/endpoints").await.json();
    assert_eq!(page["services"][0]["panic"], true);

    well.store(true, Ordering::Relaxed);
    eventually("it is over", async || (panic().await < 0.5).then_some(())).await;
}
