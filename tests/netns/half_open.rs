//! A host that vanishes without a word: no packet comes from it any more, and nobody says that its connections have ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::app::{Answer, App, Does, ask_on, connect, get_on, get_on_admin};
use super::ground::{self, Host};
use super::{ORDERS, ORDERS_V6, World, is_ready, start_sidecar, until};
use crate::harness::{Authority, Process};

/// A caller, and two replicas of `orders` at cables of their own.
struct Fleet {
    // Before the hosts: what runs on them ends first.
    _sidecars: Vec<Process>,
    apps: [App; 2],
    caller: Host,
    replicas: [Host; 2],
    _files: TempDir,
}

impl Fleet {
    fn new() -> Self {
        let [caller, one, two] = std::array::from_fn(|_| Host::new());
        caller.cable(&one, 1);
        caller.cable(&two, 2);
        let files = tempfile::tempdir().unwrap();
        let yaml = format!(
            "trust_domain: {domain}\n\
             identity: {{ cert: cert.pem, key: key.pem, bundle: bundle.pem }}\n\
             sidecar: {{ inbound: {{ address: \"0.0.0.0:15008\" }} }}\n\
             services:\n  orders:\n    endpoints: [ \"10.77.1.2:15008\", \"10.77.2.2:15008\" ]\n    port: 8080\n  \
             storefront: {{ endpoints: [ \"10.77.1.1:15008\" ], port: 8080 }}\n",
            domain = crate::harness::certs::DOMAIN,
        );
        let authority = Authority::new();
        let start = |name: &str, service: &str, host: &Host| {
            start_sidecar(&files, &authority, &yaml, (name, service, 1), host, &[])
        };
        let sidecars = vec![
            start("storefront", "storefront", &caller),
            start("one", "orders", &one),
            start("two", "orders", &two),
        ];
        [&caller, &one, &two].into_iter().for_each(is_ready);
        let apps =
            [&one, &two].map(|host| App::start(host, "127.0.0.1:8080", Does::Http("orders")));
        Self {
            _sidecars: sidecars,
            apps,
            caller,
            replicas: [one, two],
            _files: files,
        }
    }

    fn count(&self, replica: usize) -> usize {
        self.apps[replica].requests().len()
    }
}

/// What was asked, what became of it, and how long it took.
struct Exchange {
    what: String,
    answer: std::io::Result<Answer>,
    took: Duration,
}

impl Exchange {
    fn is_good(&self) -> bool {
        self.answer
            .as_ref()
            .is_ok_and(|answer| answer.status == 200)
    }
}

/// One caller among several: GETs and POSTs in turn, each for something of its own, until told to stop.
fn call(host: &Host, caller: usize, stop: &AtomicBool, done: &AtomicUsize) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    let mut stream = connect(host, "127.0.0.1:15001").unwrap();
    while !stop.load(Relaxed) {
        let number = exchanges.len();
        let what = format!("{} /{caller}-{number}", ["GET", "POST"][number % 2]);
        let start = Instant::now();
        let answer = ask_on(&mut stream, &what, "orders");
        let took = start.elapsed();
        if !answer.as_ref().is_ok_and(|answer| answer.status == 200) {
            // A failure may have ended it.
            stream = connect(host, "127.0.0.1:15001").unwrap();
        }
        exchanges.push(Exchange { what, answer, took });
        done.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    exchanges
}

/// May fail: POSTs that were on their way to the host when it vanished, and in the seconds until that is noticed. GETs are
/// answered by the other replica, no POST comes twice, and when the host is back it takes part again.
#[test]
fn a_host_that_vanishes_without_a_word_is_given_up_within_seconds() {
    if !ground::is_possible() {
        return;
    }
    let fleet = Fleet::new();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let exchanges: Vec<Exchange> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..6)
            .map(|caller| {
                let (host, stop, done) = (&fleet.caller, &stop, &done);
                scope.spawn(move || call(host, caller, stop, done))
            })
            .collect();
        // Also when an assertion fails: or the callers would go on for ever.
        let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("both serve", || {
                (0..2).all(|replica| fleet.count(replica) >= 50)
            });
            fleet.replicas[0].cut(&[1]);
            let (vanished, other) = (fleet.count(0), fleet.count(1));
            let ejected = || {
                let page = get_on_admin(&fleet.caller, "/endpoints").unwrap().body;
                let page: serde_json::Value = serde_json::from_str(&page).unwrap();
                let rows = page["endpoints"].as_array().cloned().unwrap_or_default();
                rows.iter()
                    .any(|row| row["address"] == "10.77.1.2:15008" && row["state"] == "ejected")
            };
            until("it is left alone", ejected);
            until("the other serves all", || fleet.count(1) >= other + 500);
            // What was on its way when the rules came may have been taken.
            assert!(fleet.count(0) <= vanished + 6);
            let vanished = fleet.count(0);
            fleet.replicas[0].mend();
            until("it is back", || fleet.count(0) >= vanished + 50);
        }));
        stop.store(true, Relaxed);
        let exchanges = callers
            .into_iter()
            .flat_map(|caller| caller.join().unwrap());
        let exchanges = exchanges.collect();
        story.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        exchanges
    });

    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    for what in fleet.apps.iter().flat_map(App::requests) {
        *arrived.entry(what).or_default() += 1;
    }
    let mut failed = 0;
    for exchange in &exchanges {
        let Exchange { what, answer, took } = exchange;
        // Silence is noticed in five seconds; the rest is for a machine that has more to do.
        assert!(
            *took < Duration::from_secs(12),
            "{what} took {took:?}: {answer:?}"
        );
        if what.starts_with("GET") {
            assert!(exchange.is_good(), "{what} after {took:?}: {answer:?}");
            continue;
        }
        let times = arrived.get(what).copied().unwrap_or_default();
        let least = usize::from(exchange.is_good());
        assert!(
            (least..=1).contains(&times),
            "{what} came {times} times: {answer:?}"
        );
        if !exchange.is_good() {
            failed += 1;
            let reason = answer.as_ref().ok().and_then(Answer::reason);
            assert!(
                reason.is_some_and(|reason| reason.starts_with("upstream_")),
                "{what}: {answer:?}"
            );
        }
    }
    // A caller that was answered in the meantime may have met it once more before it was given up.
    assert!(failed <= 12, "{failed} POSTs failed");
}

/// A service with two addresses of each family, and nothing comes through by IPv6 any more. Both of those that do not answer, one after
/// the other, would be a failure. POSTs are as good as GETs there, since nobody has seen them.
#[test]
fn a_family_that_does_not_come_through_fails_nothing() {
    if !ground::is_possible() {
        return;
    }
    let all = [ORDERS, "10.77.1.12", ORDERS_V6, "[fd77:1::12]"];
    let all = all.map(|ip| format!("\"{ip}:15008\""));
    let lines = format!(
        "    endpoints: [ {} ]\n    outlier: {{ max_ejection: 5s }}\n    connect_timeout: 3s\n",
        all.join(", ")
    );
    let world = World::new(&lines, "");
    world.orders.system("ip addr add 10.77.1.12/24 dev net1");
    world
        .orders
        .system("ip addr add fd77:1::12/64 dev net1 nodad");
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let rules = "table inet cut {\n\
        chain in { type filter hook input priority 0; meta nfproto ipv6 tcp dport 15008 drop; }\n}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    let cut = format!("nft -f {}", file.path().display());
    world.orders.system(&cut);
    let mut stream = connect(&world.storefront, "127.0.0.1:15001").unwrap();
    let mut times = Vec::new();
    for number in 0..500 {
        let begun = Instant::now();
        let what = format!("{} /{number}", ["GET", "POST"][number % 2]);
        let answer = ask_on(&mut stream, &what, "orders").unwrap();
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        times.push(begun.elapsed());
    }
    // Whatever an exchange is, it is tried again; what has arrived is not, so no POST comes twice.
    let mut arrived = app.requests();
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!((arrived.len(), app.requests().len()), (500, 500));
    times.sort_unstable();
    // One connection in vain is all that an exchange waits for (3 s), and a few of them until the addresses are left alone.
    let slow = times
        .iter()
        .filter(|took| **took >= Duration::from_millis(2_900));
    assert!(slow.count() <= 20, "{times:?}");
    assert!(times[475] < Duration::from_millis(500), "{times:?}");
    assert!(times[499] < Duration::from_millis(5_700), "{times:?}");
    // Without it all take part again.
    world.orders.system("nft delete table inet cut");
    let healthy = ["service=\"orders\"", "state=\"healthy\""];
    until("all addresses are back", || {
        get_on(&mut stream, "orders", "/").unwrap();
        world.metric(&world.storefront, "weft_endpoint_state", &healthy) == 4.0
    });
}
