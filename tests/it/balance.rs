//! Replicas that are alike get alike; what belongs together stays together; load moves between tiers and sessions between
//! replicas only when they must.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::Request;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::harness::client::{Reply, whole};
use crate::harness::{Behaviour, Load, Mesh, Service, Wire, eventually, soon};

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_under_steady_load_stay_within_a_tenth_of_each_other() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(3))
        .route("/orders/*", "orders")
        .start()
        .await;
    for origin in mesh.origins("orders") {
        // Long beside what a busy machine adds here and there: least request gives less to who is slower.
        origin.does(Behaviour::Slow(Duration::from_millis(50)));
    }
    let load = Load::start(&mesh.client, &mesh.url("/orders/1"), 12, Duration::ZERO);
    // A new endpoint warms up: what is promised is promised of the time after.
    load.more(300).await;
    for origin in mesh.origins("orders") {
        origin.forget();
    }
    load.more(1500).await;
    load.stop().await.assert_all_answered();
    let counts: Vec<usize> = mesh.origins("orders").iter().map(|o| o.total()).collect();
    let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
    let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
    assert!(least * 110 >= most * 100, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_slower_gets_less() {
    let mesh = Mesh::new()
        .service(Service::new("orders").replicas(2))
        .route("/orders/*", "orders")
        .start()
        .await;
    mesh.origin("orders", 0)
        .does(Behaviour::Slow(Duration::from_millis(500)));
    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        8,
        Duration::from_millis(5),
    );
    load.more(500).await;
    load.stop().await.assert_all_answered();
    let (slow, fast) = (
        mesh.origin("orders", 0).total(),
        mesh.origin("orders", 1).total(),
    );
    assert!(slow * 3 < fast, "slow {slow}, fast {fast}");
}

/// Of two that have nothing to do, one takes connections and never says a word on them: what waits for it counts, so all
/// that comes meanwhile goes to the other.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_cannot_be_reached_gets_no_more_while_somebody_waits_for_it() {
    let mut service = Service::new("orders").replicas(2);
    for line in [
        "timeout: 300s",
        "connect_timeout: 300s",
        "retry: { attempts: 0 }",
        "outlier: { enabled: false }",
    ] {
        service = service.with(line);
    }
    let mesh = Mesh::new()
        .service(service)
        .route("/orders/*", "orders")
        .start()
        .await;
    all_known(&mesh, 2).await;
    mesh.sidecar("orders", 0).signal(Signal::STOP);
    let mute = mesh.inbound("orders", 0).to_string();
    let waiting = async || {
        let page = mesh.page(mesh.ingress_host(), "/endpoints").await.json();
        let mut rows = page["endpoints"].as_array().unwrap().iter();
        let row = rows.find(|row| row["address"] == mute).unwrap();
        row["in_flight"].as_u64().unwrap()
    };
    let mut asking = JoinSet::new();
    eventually("somebody waits for it", async || {
        let (client, url) = (mesh.client.clone(), mesh.url("/orders/first"));
        asking.spawn(async move { client.get(&url).await });
        // It is answered by the other one, or waits.
        eventually("it is answered or waits", async || {
            match asking.try_join_next() {
                Some(reply) => {
                    assert_eq!(reply.unwrap().code(), 200);
                    Some(())
                }
                None => (waiting().await > 0).then_some(()),
            }
        })
        .await;
        (!asking.is_empty()).then_some(())
    })
    .await;
    for number in 0..40 {
        let reply = mesh.get(&format!("/orders/{number}")).await;
        assert_eq!((reply.code(), reply.text().as_str()), (200, "orders-1"));
    }
    assert_eq!(waiting().await, 1, "only the first waits");
    mesh.sidecar("orders", 0).signal(Signal::CONT);
    let first = soon("the first", asking.join_next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((first.code(), first.text().as_str()), (200, "orders-0"));
}

/// Waits until the gateway knows all replicas of its one service.
async fn all_known(mesh: &Mesh, replicas: u32) {
    known_to(mesh, mesh.ingress_host(), replicas).await;
}

/// Waits until the proxy on this host knows so many endpoints.
async fn known_to(mesh: &Mesh, host: IpAddr, endpoints: u32) {
    let healthy = ["state=\"healthy\""];
    mesh.metric_reaches(host, "weft_endpoint_state", &healthy, endpoints.into())
        .await;
}

/// A GET through the gateway with one more field.
async fn get_with(mesh: &Mesh, path: &str, name: &str, value: &str) -> Reply {
    let request = Request::get(mesh.url(path)).header(name, value);
    mesh.client.send(request.body(whole("")).unwrap()).await
}

/// The cookie that an answer sets, as a client sends it back.
fn cookie(reply: &Reply) -> Option<String> {
    let line = reply.header("set-cookie")?;
    Some(line.split(';').next()?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_at_its_replica_until_that_is_gone_and_the_log_says_so() {
    let secrets = tempfile::tempdir().unwrap();
    let key = secrets.path().join("sticky.key");
    std::fs::write(&key, "kTp3o2X5dbZqHn0mVJ8wYc1sLrE7uAfG").unwrap();
    let sticky = format!("sticky: {{ key: {{ file: \"{}\" }} }}", key.display());
    let balance = format!("balance: {{ policy: round_robin, slow_start: 0s, {sticky} }}");
    let mut mesh = Mesh::new()
        .service(Service::new("orders").replicas(3).with(&balance))
        .route("/orders/*", "orders")
        .with("access_log: { file: access.log }")
        .start()
        .await;
    all_known(&mesh, 3).await;

    // Without a session each request goes to the next replica, and is offered a session of its own.
    let (mut replicas, mut cookies) = (HashSet::new(), HashSet::new());
    for _ in 0..6 {
        let reply = mesh.get("/orders/1").await;
        cookies.insert(cookie(&reply).expect("a session is offered"));
        replicas.insert(reply.text());
    }
    assert_eq!((replicas.len(), cookies.len()), (3, 6));

    let first = mesh.get("/orders/1").await;
    let (home, session) = (first.text(), cookie(&first).unwrap());
    let line = first.header("set-cookie").unwrap();
    assert!(line.starts_with("weft-orders="), "{line}");
    assert!(line.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{line}");
    for replica in &mesh.replicas {
        assert!(!line.contains(&replica.host.to_string()), "{line}");
    }
    for _ in 0..20 {
        let reply = get_with(&mesh, "/orders/1", "cookie", &format!("a=b; {session}")).await;
        assert_eq!((reply.text(), cookie(&reply)), (home.clone(), None));
    }

    // Another process with the same key understands it.
    mesh.restart_ingress().await;
    all_known(&mesh, 3).await;
    let reply = get_with(&mesh, "/orders/1", "cookie", &session).await;
    assert_eq!((reply.text(), cookie(&reply)), (home.clone(), None));

    assert!(cookie(&mesh.get("/orders/1").await).is_some());

    // What is not ours is not followed.
    let reply = get_with(&mesh, "/orders/1", "cookie", "weft-orders=127.0.0.1").await;
    assert_eq!(reply.code(), 200);
    assert!(cookie(&reply).is_some());

    // The replica goes: the session moves once and stays there.
    let number = home.strip_prefix("orders-").unwrap().parse().unwrap();
    mesh.replica_mut("orders", number).sidecar.kill();
    let moved = get_with(&mesh, "/orders/1", "cookie", &session).await;
    assert_eq!(moved.code(), 200);
    assert_ne!(moved.text(), home);
    let session = cookie(&moved).expect("the session is elsewhere now");
    for _ in 0..10 {
        let reply = get_with(&mesh, "/orders/1", "cookie", &session).await;
        assert_eq!(reply.text(), moved.text());
    }

    // Since the gateway was started again.
    let host = mesh.ingress_host();
    for (outcome, count) in [("new", 1), ("kept", 11), ("moved", 1), ("unreadable", 1)] {
        let labels = ["service=\"orders\"", &format!("outcome=\"{outcome}\"")];
        let counted = mesh.metric(host, "weft_sessions_total", &labels).await;
        assert_eq!(counted, f64::from(count), "{outcome}");
    }
    let page = mesh.page(host, "/metrics").await.text();
    assert_eq!(page.matches("\nweft_sessions_total{").count(), 4, "{page}");

    let log = mesh.directory("ingress").join("access.log");
    eventually("the log tells what became of sessions", async || {
        let text = std::fs::read_to_string(&log).ok()?;
        let mut words = ["new", "kept", "moved", "unreadable"].into_iter();
        let all = words.all(|word| text.contains(&format!("\"session\":\"{word}\"")));
        all.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_the_same_key_goes_to_the_same_replica_from_every_gateway() {
    let balance = "balance: { policy: maglev, key: { header: x-user }, slow_start: 0s }";
    let mut mesh = Mesh::new()
        .service(Service::new("orders").replicas(4).with(balance))
        .route("/orders/*", "orders")
        .start()
        .await;
    all_known(&mesh, 4).await;
    let mut homes = Vec::new();
    for user in 0..40 {
        let user = user.to_string();
        let home = get_with(&mesh, "/orders/1", "x-user", &user).await.text();
        for _ in 0..3 {
            let reply = get_with(&mesh, "/orders/2", "x-user", &user).await;
            assert_eq!(reply.text(), home, "user {user}");
        }
        homes.push(home);
    }
    assert_eq!(homes.iter().collect::<HashSet<_>>().len(), 4, "{homes:?}");

    mesh.restart_ingress().await;
    all_known(&mesh, 4).await;
    for (user, home) in homes.iter().enumerate() {
        let reply = get_with(&mesh, "/orders/1", "x-user", &user.to_string()).await;
        assert_eq!(reply.text(), *home, "user {user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_tier_takes_over_when_the_first_is_gone_and_gives_back_late() {
    let balance = "balance: { slow_start: 0s, failover: { hold: 3s } }";
    let service = Service::new("orders")
        .replicas(3)
        .with("srv: _http._tcp.orders")
        .with("outlier: { ejection: 500ms, max_ejected: 100% }")
        // One for each of the first tier, and one for the spare.
        .with("retry: { attempts: 2 }")
        .with(balance);
    let mut mesh = Mesh::new()
        .service(service)
        .route("/orders/*", "orders")
        .start()
        .await;
    let app = mesh.ports.app();
    let names = ["one.orders", "two.orders", "spare.orders"];
    for (number, name) in names.iter().enumerate() {
        mesh.dns.add(name, mesh.replica("orders", number).host);
    }
    let instances = [
        (0, 1, app, "one.orders."),
        (0, 1, app, "two.orders."),
        (1, 1, app, "spare.orders."),
    ];
    mesh.dns.instances("_http._tcp.orders", &instances);
    all_known(&mesh, 3).await;
    let spare = |mesh: &Mesh| mesh.origin("orders", 2).total();

    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        4,
        Duration::from_millis(2),
    );
    load.more(200).await;
    assert_eq!(spare(&mesh), 0, "the first tier takes everything");

    // Both of the first tier go: the spare takes everything.
    for number in [0, 1] {
        mesh.replica_mut("orders", number).sidecar.kill();
    }
    let host = mesh.ingress_host();
    eventually("the first tier is given up", async || {
        let before = spare(&mesh);
        load.more(100).await;
        (spare(&mesh) - before >= 95).then_some(())
    })
    .await;
    let ejected = mesh.metric(host, "weft_endpoint_state", &["state=\"healthy\""]);
    assert!(ejected.await <= 1.0);

    // They come back: held back at first, and then in force again.
    for number in [0, 1] {
        mesh.restart_sidecar("orders", number).await;
    }
    eventually("the first tier takes everything again", async || {
        let before = spare(&mesh);
        load.more(100).await;
        (spare(&mesh) == before).then_some(())
    })
    .await;
    load.stop().await.assert_all_answered();
}

/// How many of the next exchanges, in per cent, go to replicas from this number on.
async fn share_of_the_rest(mesh: &Mesh, load: &Load, first: usize) -> f64 {
    share_of_the_rest_of(mesh, load, first, 600).await
}

/// The same of so many exchanges.
async fn share_of_the_rest_of(mesh: &Mesh, load: &Load, first: usize, exchanges: usize) -> f64 {
    for origin in mesh.origins("orders") {
        origin.forget();
    }
    load.more(exchanges).await;
    let counts: Vec<usize> = mesh.origins("orders").iter().map(|o| o.total()).collect();
    let rest: usize = counts[first..].iter().sum();
    rest as f64 * 100.0 / counts.iter().sum::<usize>() as f64
}

/// Two zones of three replicas each, and the gateway in one of them. The other gets what the gateway's own has no capacity
/// for, which is nothing while all are well, and the more the fewer are left.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_zone_takes_what_it_can_and_the_rest_spills_smoothly() {
    let balance = "balance: { slow_start: 0s }";
    let mut mesh = Mesh::new()
        .service(Service::new("orders").replicas(6).with(balance))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .with("zone: a")
        .environment("storefront-0", &[("WEFT_ZONE".to_owned(), "b".to_owned())])
        .start()
        .await;
    // Only now is it known where they are.
    let endpoints: Vec<String> = (0..6)
        .map(|number| {
            let zone = if number < 3 { "a" } else { "b" };
            let address = mesh.inbound("orders", number);
            format!("{{ address: \"{address}\", zone: {zone} }}")
        })
        .collect();
    let line = format!("endpoints: [ {} ]", endpoints.join(", "));
    let host = mesh.ingress_host();
    let both = [host, mesh.replica("storefront", 0).host];
    let mut loads = Vec::new();
    for proxy in both {
        loads.push(mesh.metric(proxy, "weft_config_generation", &[]).await);
    }
    mesh.change(|spec| {
        let service = spec.services.remove(0);
        spec.services.insert(0, service.with(&line));
    });
    for (proxy, loads) in both.into_iter().zip(loads) {
        mesh.metric_reaches(proxy, "weft_config_generation", &[], loads + 1.0)
            .await;
    }
    all_known(&mesh, 6).await;

    // The same file on a host of the other zone: a sidecar there keeps to its own.
    for _ in 0..60 {
        let home = mesh
            .get_from("storefront", 0, "http://orders/1")
            .await
            .text();
        assert!(
            ["orders-3", "orders-4", "orders-5"].contains(&&*home),
            "{home}"
        );
    }

    let load = Load::start(
        &mesh.client,
        &mesh.url("/orders/1"),
        4,
        Duration::from_millis(1),
    );
    eventually("our own zone takes everything", async || {
        (share_of_the_rest(&mesh, &load, 3).await == 0.0).then_some(())
    })
    .await;

    // With n of six gone ours has (3 - n) of the (6 - n) that are left, and takes twice that, as there are two zones.
    for (gone, expected) in [(1, 20.0), (2, 50.0), (3, 100.0)] {
        mesh.replica_mut("orders", gone - 1).sidecar.kill();
        let out = gone as f64;
        eventually(&format!("{gone} are given up"), async || {
            let healthy = mesh.metric(host, "weft_endpoint_state", &["state=\"healthy\""]);
            (healthy.await <= 6.0 - out).then_some(())
        })
        .await;
        let share = share_of_the_rest(&mesh, &load, 3).await;
        assert!(
            (share - expected).abs() <= 10.0,
            "with {gone} gone the other zone gets {share} %, not {expected} %"
        );
    }

    // They come back, and with them all of the load.
    for number in 0..3 {
        mesh.restart_sidecar("orders", number).await;
    }
    all_known(&mesh, 6).await;
    eventually("our own zone takes everything", async || {
        (share_of_the_rest(&mesh, &load, 3).await == 0.0).then_some(())
    })
    .await;
    load.stop().await.assert_all_answered();
}

/// The services of the table: the same replicas under different names, each balanced in its own way.
struct Ways {
    mesh: Mesh,
}

/// How an exchange is sent: through the gateway, or by an app through its sidecar.
#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    Gateway,
    Sidecar,
}

const BOTH: [From; 2] = [From::Gateway, From::Sidecar];

impl Ways {
    /// Four replicas, and these ways by their names.
    async fn start(ways: &[(&str, &str)]) -> Self {
        let mut mesh = Mesh::new()
            .service(Service::new("orders").replicas(4))
            .service(Service::new("storefront"))
            .listener_with("trusted_proxies: [ 127.0.0.1 ]");
        for (name, lines) in ways {
            let mut service = Service::new(name)
                .replicas(0)
                .with("identity: spiffe://shop.internal/service/orders");
            for line in lines.lines() {
                service = service.with(line.trim());
            }
            if !lines.contains("srv:") {
                service = service.with("dns: orders");
            }
            mesh = mesh
                .service(service)
                .route_yaml(&format!("{{ match: {{ host: {name} }}, to: {name} }}"));
        }
        let mesh = mesh.start().await;
        let app = mesh.ports.app();
        let names = ["zero.orders", "one.orders", "two.orders", "three.orders"];
        for (number, name) in names.iter().enumerate() {
            mesh.dns.add(name, mesh.replica("orders", number).host);
        }
        // Two with three times the weight of the other two.
        let instances = [
            (0, 3, app, "zero.orders."),
            (0, 3, app, "one.orders."),
            (0, 1, app, "two.orders."),
            (0, 1, app, "three.orders."),
        ];
        mesh.dns.instances("_http._tcp.orders", &instances);
        let count = 4 * u32::try_from(ways.len()).unwrap();
        known_to(&mesh, mesh.ingress_host(), count).await;
        // It knows besides where orders itself is, and storefront.
        known_to(&mesh, mesh.replica("storefront", 0).host, count + 5).await;
        Self { mesh }
    }

    /// The replica that answers a GET for this service, path and field.
    async fn home(&self, from: From, service: &str, path: &str, field: (&str, &str)) -> usize {
        let request = match from {
            From::Gateway => Request::get(self.mesh.url(path)).header("host", service),
            From::Sidecar => {
                let url = format!("http://{service}{path}");
                self.mesh.request_from("storefront", 0, &url)
            }
        };
        let request = request.header(field.0, field.1).body(whole("")).unwrap();
        let reply = self.mesh.client.send(request).await;
        let text = reply.text();
        let number = text.strip_prefix("orders-").map(str::parse);
        number
            .unwrap_or_else(|| panic!("{from:?} {service}: {text}"))
            .unwrap()
    }

    /// How many of so many exchanges each replica gets.
    async fn shares(&self, from: From, service: &str, exchanges: usize) -> [usize; 4] {
        let mut counts = [0; 4];
        for _ in 0..exchanges {
            counts[self.home(from, service, "/", ("x-none", "x")).await] += 1;
        }
        counts
    }
}

/// Whether the counts are to each other as these, with a play of so many per cent of each.
fn assert_shares(what: &str, counts: [usize; 4], expected: [usize; 4], play: usize) {
    let (all, whole): (usize, usize) = (counts.iter().sum(), expected.iter().sum());
    for (count, share) in counts.iter().zip(expected) {
        let mean = all * share / whole;
        let off = count.abs_diff(mean);
        assert!(
            off * 100 <= mean * play,
            "{what}: {counts:?}, not {expected:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_without_a_key_give_each_its_share_from_gateway_and_sidecar() {
    let ways = [
        ("alike", "balance: { policy: round_robin, slow_start: 0s }"),
        ("dice", "balance: { policy: random, slow_start: 0s }"),
        (
            "turns",
            "balance: { policy: round_robin, slow_start: 0s }\nsrv: _http._tcp.orders",
        ),
        (
            "loaded",
            "balance: { policy: random, slow_start: 0s }\nsrv: _http._tcp.orders",
        ),
        // Both sites at once, one of them larger than the other.
        (
            "active",
            "balance: { policy: least_request, slow_start: 0s }\nsrv: _http._tcp.orders",
        ),
    ];
    let ways = Ways::start(&ways).await;
    // A fair draw is farther off than this once in some thousands; turns are exact but for each core's own.
    let table = [
        ("alike", [1, 1, 1, 1], 10),
        ("dice", [1, 1, 1, 1], 40),
        ("turns", [3, 3, 1, 1], 10),
        ("loaded", [3, 3, 1, 1], 60),
        ("active", [3, 3, 1, 1], 60),
    ];
    for (service, expected, play) in table {
        for from in BOTH {
            let counts = ways.shares(from, service, 480).await;
            assert_shares(&format!("{service} {from:?}"), counts, expected, play);
        }
    }
}

/// One exchange after the other, so that none is ever under way where the next one goes: whoever counts those finds all
/// replicas alike. An error that comes at once is no quick answer.
#[tokio::test(flavor = "multi_thread")]
async fn least_response_time_leaves_out_who_is_slow_and_who_fails_fast_from_gateway_and_sidecar() {
    const EXCHANGES: usize = 120;
    let lines = "balance: { policy: least_response_time, slow_start: 0s }
                 outlier: { enabled: false }
                 retry: { attempts: 0 }";
    let ways = Ways::start(&[("soonest", lines)]).await;
    let url = ways.mesh.url("/");
    let asked = async |from: From| {
        let mut counts = [0; 4];
        for number in 0..EXCHANGES {
            let request = match from {
                From::Gateway => Request::get(&url).header("host", "soonest"),
                From::Sidecar => ways.mesh.request_from("storefront", 0, "http://soonest/"),
            };
            let reply = ways
                .mesh
                .client
                .send(request.body(whole("")).unwrap())
                .await;
            let text = reply.text();
            let home = text.strip_prefix("orders-").map(str::parse);
            let Some(Ok(home)) = home else {
                panic!("{number}: {} {text}", reply.code());
            };
            let home: usize = home;
            assert!(reply.code() == 200 || home == 1, "{number}: {text}");
            counts[home] += 1;
        }
        counts
    };
    for origin in ways.mesh.origins("orders") {
        origin.does(Behaviour::Slow(Duration::from_millis(10)));
    }
    // Of two the better is taken, so one of four that is bad is never better than the other.
    let cases = [
        ("slow", 0, Behaviour::Slow(Duration::from_millis(500))),
        ("fails fast", 1, Behaviour::Status(500)),
    ];
    for (what, number, bad) in cases {
        ways.mesh.origin("orders", number).does(bad);
        for from in BOTH {
            let counts = asked(from).await;
            // By chance, or by what is under way, it would have thirty. It is tried now and then.
            assert!(
                counts[number] < EXCHANGES / 8,
                "{what}, {from:?}: {counts:?}"
            );
        }
        let good = Behaviour::Slow(Duration::from_millis(10));
        ways.mesh.origin("orders", number).does(good);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_with_a_key_keep_together_what_has_it_from_gateway_and_sidecar() {
    let by = |policy: &str, key: &str| {
        format!("balance: {{ policy: {policy}, key: {key}, slow_start: 0s }}")
    };
    let ip_hash = "balance: { policy: ip_hash, slow_start: 0s }".to_owned();
    let lines = [
        ("header", by("maglev", "{ header: x-user }")),
        ("cookie", by("maglev", "{ cookie: sid }")),
        ("query", by("maglev", "{ query: user }")),
        ("segment", by("maglev", "{ path_segment: 2 }")),
        ("source", by("maglev", "source")),
        ("ring", by("ring", "{ header: x-user }")),
        ("ring-source", by("ring", "source")),
        ("address", ip_hash),
    ];
    let lines: Vec<(&str, &str)> = lines.iter().map(|(name, line)| (*name, &**line)).collect();
    let ways = Ways::start(&lines).await;
    for (service, _) in &lines {
        let mut homes = Vec::new();
        for user in 0..48 {
            let (value, cookie) = (user.to_string(), format!("a=b; sid={user}"));
            let address = format!("192.0.2.{user}");
            let proxied = format!("198.51.100.9, {address}, 127.0.0.1");
            let (path, field) = match *service {
                "header" | "ring" => ("/".to_owned(), ("x-user", &*value)),
                "cookie" => ("/".to_owned(), ("cookie", &*cookie)),
                "query" => (format!("/?a=b&user={user}"), ("x-none", "x")),
                "segment" => (format!("/users/{user}/orders"), ("x-none", "x")),
                _ => ("/".to_owned(), ("x-forwarded-for", &*proxied)),
            };
            let home = ways.home(From::Gateway, service, &path, field).await;
            // Always the same one, and the same one from everywhere.
            for from in [From::Gateway, From::Sidecar, From::Sidecar] {
                let again = ways.home(from, service, &path, field).await;
                assert_eq!(again, home, "{service} {from:?} {user}");
            }
            homes.push(home);
        }
        let counts = [0, 1, 2, 3].map(|home| homes.iter().filter(|found| **found == home).count());
        // Twelve each, on average.
        assert!(
            counts.iter().all(|count| (1..=32).contains(count)),
            "{service}: {counts:?}"
        );
    }
    // Without the key, or without a client that is known, it goes anywhere, or stays where the peer belongs.
    let anywhere = ways.shares(From::Sidecar, "header", 100).await;
    assert!(anywhere.iter().all(|count| *count > 0), "{anywhere:?}");
    for from in BOTH {
        let peer = ways.shares(from, "address", 20).await;
        assert_eq!(peer.iter().max(), Some(&20), "{from:?} {peer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_spills_where_its_endpoint_has_more_than_its_part_from_gateway_and_sidecar() {
    let balance =
        "balance: { policy: maglev, key: { header: x-user }, max_load: 1.5, slow_start: 0s }";
    let ways = Ways::start(&[("hot", balance)]).await;
    let home = ways
        .home(From::Gateway, "hot", "/", ("x-user", "ann"))
        .await;
    for from in BOTH {
        for origin in ways.mesh.origins("orders") {
            origin.forget();
            origin.does(Behaviour::Hang);
        }
        let mut asked = tokio::task::JoinSet::new();
        for number in 1..=16 {
            let (address, host) = match from {
                From::Gateway => (ways.mesh.public(), "hot"),
                From::Sidecar => (ways.mesh.outbound("storefront", 0), "hot"),
            };
            asked.spawn(async move {
                let mut wire = Wire::connect(address).await;
                wire.write(format!(
                    "GET /{number} HTTP/1.1\r\nHost: {host}\r\nx-user: ann\r\n\r\n"
                ))
                .await;
                wire.head().await
            });
            // One after the other, so that it is known what is under way when the next comes.
            eventually("the apps have been asked", async || {
                let counts = ways.mesh.origins("orders");
                let all: usize = counts.iter().map(|origin| origin.total()).sum();
                (all == number).then_some(())
            })
            .await;
        }
        let counts: Vec<usize> = ways
            .mesh
            .origins("orders")
            .iter()
            .map(|o| o.total())
            .collect();
        // Of 16 under way a quarter, half as much again: 6.
        assert_eq!(counts.iter().max(), Some(&6), "{from:?} {counts:?}");
        assert_eq!(counts[home], 6, "{from:?} {counts:?}");
        asked.shutdown().await;
        for origin in ways.mesh.origins("orders") {
            origin.does(Behaviour::default());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_comes_to_its_share_slowly_from_gateway_and_sidecar() {
    const SLOW: Duration = Duration::from_secs(8);
    let mut mesh = Mesh::new()
        .service(
            Service::new("orders")
                .replicas(2)
                .with("balance: { policy: random, slow_start: 8s }"),
        )
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .start()
        .await;
    all_known(&mesh, 2).await;
    let hosts = [mesh.ingress_host(), mesh.replica("storefront", 0).host];
    known_to(&mesh, hosts[1], 3).await;
    let outbound = mesh.request_from("storefront", 0, "http://orders/1");
    let url = outbound.uri_ref().unwrap().to_string();
    let request = move || {
        Request::get(&url)
            .header("host", "orders")
            .body(whole(""))
            .unwrap()
    };
    let loads = [
        Load::start(
            &mesh.client,
            &mesh.url("/orders/1"),
            2,
            Duration::from_millis(2),
        ),
        Load::of(&mesh.client, request, 2, Duration::from_millis(2)),
    ];
    // Those that are there have warmed up: a new one is measured by them.
    let known = Instant::now();
    while known.elapsed() < SLOW {
        loads[0].more(50).await;
    }
    let number = mesh.add_replica("orders").await;
    mesh.dns.add("orders", mesh.replica("orders", number).host);
    for (host, endpoints) in hosts.into_iter().zip([3, 4]) {
        known_to(&mesh, host, endpoints).await;
    }
    // Of both at the same time, since it does not wait for the second; they are told apart by what they ask for.
    let shares = async |exchanges: usize| {
        for origin in mesh.origins("orders") {
            origin.forget();
        }
        tokio::join!(loads[0].more(exchanges), loads[1].more(exchanges));
        let counts = mesh.origins("orders").into_iter();
        let counts: Vec<_> = counts.map(|origin| origin.by_target("GET")).collect();
        ["/orders/1", "/1"].map(|target| {
            let of = |number: usize| counts[number].get(target).copied().unwrap_or(0);
            let all: usize = (0..counts.len()).map(of).sum();
            of(number) as f64 * 100.0 / all as f64
        })
    };
    // A third would be its share.
    let early = shares(200).await;
    assert!(early.iter().all(|share| *share < 22.0), "{early:?} %");
    eventually("it has its share", async || {
        let shares = shares(400).await;
        shares.iter().all(|share| *share > 27.0).then_some(())
    })
    .await;
    for load in loads {
        load.stop().await.assert_all_answered();
    }
}
