//! Replicas that are alike get alike; what belongs together stays together; load moves between tiers and sessions between
//! replicas only when they must.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::time::Duration;

use http::Request;

use crate::harness::client::{Reply, whole};
use crate::harness::{Behaviour, Load, Mesh, Service, eventually};

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

/// Waits until the gateway knows all replicas of its one service.
async fn all_known(mesh: &Mesh, replicas: u32) {
    let host = mesh.ingress_host();
    let healthy = ["state=\"healthy\""];
    mesh.metric_reaches(host, "weft_endpoint_state", &healthy, replicas.into())
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
    for origin in mesh.origins("orders") {
        origin.forget();
    }
    load.more(600).await;
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
        .route("/orders/*", "orders")
        .with("zone: a")
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
    let loads = mesh.metric(host, "weft_config_generation", &[]).await;
    mesh.change(|spec| {
        let service = spec.services.pop().unwrap();
        spec.services.push(service.with(&line));
    });
    mesh.metric_reaches(host, "weft_config_generation", &[], loads + 1.0)
        .await;
    all_known(&mesh, 6).await;

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
