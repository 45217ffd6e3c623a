//! What becomes of a connection under each wish that `weft intercept install` takes, by either backend: it comes by the
//! sidecar, or as it is. And what becomes of those that are open while the rules come and go.

use std::io::Write;
use std::net::TcpStream;

use super::app::{App, Does, connect, connect_from, get_on, take};
use super::ground::{self, Host};
use super::{
    BACKENDS, ORDERS_FROM_OUTSIDE, ORDERS_FROM_OUTSIDE_V6, OUTSIDE, OUTSIDE_V6, World, until,
    weft_says,
};

/// A second address of the host outside, of each family.
const OTHER: &str = "10.77.2.200";
const OTHER_V6: &str = "[fd77:2::200]";

fn install(host: &Host, backend: &str, wish: &str) {
    let words = format!("intercept install --user 0 --backend {backend} {wish}");
    weft_says(host, &words);
}

/// Wishes about what the app sends: the flags, and whether a connection is redirected to each port (7000 and 7001) of each
/// address (the host outside, and its second address).
#[rustfmt::skip] // a row a line
const OUTBOUND: &[(&str, [[bool; 2]; 2])] = &[
    ("", [[true, true], [true, true]]),
    ("--exclude-port 7001", [[true, false], [true, false]]),
    ("--exclude-port 7001,7000", [[false, false], [false, false]]),
    ("--exclude-network 10.77.2.128/25,fd77:2::200/128", [[true, true], [false, false]]),
    ("--exclude-port 7001 --exclude-network 10.77.2.128/25,fd77:2::200/128", [[true, false], [false, false]]),
    ("--include-port 7001", [[false, true], [false, true]]),
    ("--include-network 10.77.2.128/25,fd77:2::200/128", [[false, false], [true, true]]),
    ("--include-port 7001 --include-network 10.77.2.128/25,fd77:2::200/128", [[false, false], [false, true]]),
    ("--include-port 7000,7001 --exclude-port 7001", [[true, false], [true, false]]),
    ("--include-network 10.77.2.0/24,fd77:2::/64 --exclude-network 10.77.2.128/25,fd77:2::200/128", [[true, true], [false, false]]),
    ("--no-outbound", [[false, false], [false, false]]),
];

#[test]
fn what_an_app_sends_is_redirected_where_it_was_wished_and_nowhere_else() {
    if !ground::is_possible() {
        return;
    }
    let world = World::without_rules("", "");
    world.outside.system("ip addr add 10.77.2.200/24 dev net2");
    world
        .outside
        .system("ip addr add fd77:2::200/64 dev net2 nodad");
    let ports = [7000, 7001];
    // At any address.
    let apps = ports.map(|port| {
        let address = format!("[::]:{port}");
        App::start(&world.outside, &address, Does::Greet("hello"))
    });
    for backend in BACKENDS {
        for (wish, wanted) in OUTBOUND {
            install(&world.storefront, backend, wish);
            let families = [[OUTSIDE, OTHER], [OUTSIDE_V6, OTHER_V6]];
            for addresses in families {
                for (address, wanted) in addresses.iter().zip(wanted) {
                    for ((port, app), wanted) in ports.iter().zip(&apps).zip(wanted) {
                        let to = format!("{address}:{port}");
                        let redirected = is_redirected(&world.storefront, app, &to);
                        assert_eq!(redirected, *wanted, "{backend} {wish:?}: {to}");
                    }
                }
            }
            weft_says(&world.storefront, "intercept remove");
        }
    }
}

/// Whether a connection of an app on this host comes to another app by the sidecar, and so from a port of its own.
fn is_redirected(host: &Host, app: &App, to: &str) -> bool {
    let before = app.callers().len();
    let mut stream = connect(host, to).unwrap();
    assert_eq!(take(&mut stream, 5).unwrap(), "hello");
    let own = stream.local_addr().unwrap().port();
    let callers = app.callers();
    assert_eq!(callers.len(), before + 1, "{to}");
    callers[before].port() != own
}

/// The host outside as it calls orders, and a second address of it there: orders has a way back to these and to no others.
const CALLER: &str = "10.77.3.1";
const CALLER_V6: &str = "[fd77:3::1]";
const OTHER_CALLER: &str = "10.77.3.200";
const OTHER_CALLER_V6: &str = "[fd77:3::200]";

/// Wishes about what the app is sent: the flags, and whether a connection is redirected to each port (8080 and 8081) from
/// each address (of the host outside, and its second one).
#[rustfmt::skip] // a row a line
const INBOUND: &[(&str, [[bool; 2]; 2])] = &[
    ("", [[true, true], [true, true]]),
    ("--exclude-inbound-port 8081", [[true, false], [true, false]]),
    ("--exclude-inbound-port 8080,8081", [[false, false], [false, false]]),
    ("--exclude-inbound-network 10.77.3.128/25,fd77:3::200/128", [[true, true], [false, false]]),
    ("--exclude-inbound-port 8081 --exclude-inbound-network 10.77.3.128/25,fd77:3::200/128", [[true, false], [false, false]]),
    ("--include-inbound-port 8080", [[true, false], [true, false]]),
    ("--include-inbound-network 10.77.3.128/25,fd77:3::200/128", [[false, false], [true, true]]),
    ("--include-inbound-port 8080 --include-inbound-network 10.77.3.128/25,fd77:3::200/128", [[false, false], [true, false]]),
    ("--include-inbound-port 8080,8081 --exclude-inbound-port 8080", [[false, true], [false, true]]),
    ("--include-inbound-network 10.77.3.0/24,fd77:3::/64 --exclude-inbound-network 10.77.3.128/25,fd77:3::200/128", [[true, true], [false, false]]),
    // Orders' own addresses, from which nothing comes.
    ("--exclude-inbound-network 10.77.3.2,fd77:3::2", [[true, true], [true, true]]),
    // Of what is sent, which says nothing of what comes.
    ("--exclude-network 10.77.3.0/24,fd77:3::/64", [[true, true], [true, true]]),
    ("--no-inbound", [[false, false], [false, false]]),
];

#[test]
fn what_an_app_is_sent_is_redirected_where_it_was_wished_and_nowhere_else() {
    if !ground::is_possible() {
        return;
    }
    let world = World::without_rules("", "");
    world.outside.system("ip addr add 10.77.3.200/24 dev net3");
    world
        .outside
        .system("ip addr add fd77:3::200/64 dev net3 nodad");
    let ports = [8080, 8081];
    let _apps = ports.map(|port| {
        let address = format!("[::]:{port}");
        App::start(&world.orders, &address, Does::Http("orders"))
    });
    for backend in BACKENDS {
        for (wish, wanted) in INBOUND {
            install(&world.orders, backend, wish);
            let families = [
                (ORDERS_FROM_OUTSIDE, [CALLER, OTHER_CALLER]),
                (ORDERS_FROM_OUTSIDE_V6, [CALLER_V6, OTHER_CALLER_V6]),
            ];
            for (address, callers) in families {
                for (from, wanted) in callers.iter().zip(wanted) {
                    for (port, wanted) in ports.iter().zip(wanted) {
                        let to = format!("{address}:{port}");
                        let refused = is_refused(&world.outside, from, &to);
                        assert_eq!(refused, *wanted, "{backend} {wish:?}: {from} to {to}");
                    }
                }
            }
            weft_says(&world.orders, "intercept remove");
        }
    }
}

/// Whether a request from this address of a host comes to the sidecar, which takes nothing in plaintext, and not to the
/// app, which takes everything.
fn is_refused(host: &Host, from: &str, to: &str) -> bool {
    let mut stream = connect_from(host, from, to).unwrap();
    let answer = get_on(&mut stream, "orders", "/").unwrap();
    let refused = answer.reason() == Some("plaintext_refused");
    let by_itself = answer.body == "orders called by nobody";
    assert!(refused != by_itself, "{from} to {to}: {answer:?}");
    refused
}

/// All rules of a host, in every table of either backend, without what has been counted.
fn all_rules(host: &Host) -> String {
    let saved = ["iptables-save", "ip6tables-save"].map(|tool| {
        let text = host.system(tool);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let uncounted = lines.map(|line| line.split(" [").next().unwrap());
        uncounted.collect::<Vec<_>>().join("\n")
    });
    // As iptables writes them down in nftables, which it does on most systems, they are seen twice.
    let tables = host.system("nft list tables");
    format!("{}\n{tables}", saved.join("\n"))
}

#[test]
fn removal_leaves_nothing_in_any_table() {
    if !ground::is_possible() {
        return;
    }
    for backend in BACKENDS {
        let host = Host::new();
        // iptables itself makes its empty tables when it is asked for them.
        install(&host, "iptables", "");
        weft_says(&host, "intercept remove");
        let before = all_rules(&host);
        assert!(!before.to_lowercase().contains("weft"), "{before}");
        for (wish, _) in OUTBOUND.iter().chain(INBOUND) {
            install(&host, backend, wish);
            assert_ne!(all_rules(&host), before, "{backend} {wish:?}");
            weft_says(&host, "intercept remove");
            assert_eq!(all_rules(&host), before, "{backend} {wish:?}");
        }
        // Of a wish that takes the place of another, too.
        install(&host, backend, OUTBOUND[1].0);
        install(&host, backend, OUTBOUND[6].0);
        weft_says(&host, "intercept remove");
        assert_eq!(all_rules(&host), before, "{backend}");
    }
}

/// Says a word on an open connection and hears it back.
fn says_back(stream: &mut TcpStream, when: &str) {
    let said = stream.write_all(b"word").and_then(|()| take(stream, 4));
    let said = said.unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(said, "word", "{when}");
}

#[test]
fn what_an_app_has_open_lives_on_while_rules_come_change_and_go() {
    if !ground::is_possible() {
        return;
    }
    for backend in BACKENDS {
        let world = World::without_rules("", "");
        let host = &world.storefront;
        let to = format!("{OUTSIDE}:7000");
        let echo = App::start(&world.outside, &to, Does::Greet(""));
        let mut before = connect(host, &to).unwrap();
        let mut idle = connect(host, &to).unwrap();
        says_back(&mut before, backend);
        install(host, backend, "");
        says_back(&mut before, &format!("{backend}: with rules"));
        // One that comes by the sidecar, which lives on as long as there are rules.
        let mut redirected = connect(host, &to).unwrap();
        until("it is passed on", || echo.callers().len() == 3);
        let own = redirected.local_addr().unwrap().port();
        assert_ne!(echo.callers()[2].port(), own, "{backend}");
        says_back(&mut redirected, backend);
        install(host, backend, "--exclude-port 7000");
        for stream in [&mut before, &mut redirected] {
            says_back(stream, &format!("{backend}: with other rules"));
        }
        weft_says(host, "intercept remove");
        for stream in [&mut before, &mut idle] {
            says_back(stream, &format!("{backend}: without rules"));
        }
    }
}

#[test]
fn what_others_have_open_to_an_app_does_not_get_around_the_rules() {
    if !ground::is_possible() {
        return;
    }
    for backend in BACKENDS {
        let world = World::without_rules("", "");
        let _app = App::start(&world.orders, "0.0.0.0:8080", Does::Greet(""));
        let to = format!("{ORDERS_FROM_OUTSIDE}:8080");
        let mut before = connect(&world.outside, &to).unwrap();
        says_back(&mut before, backend);
        install(&world.orders, backend, "");
        // Its next packet is as good as the first of a new connection, and comes to the sidecar, which knows nothing of it.
        let said = before
            .write_all(b"word")
            .and_then(|()| take(&mut before, 4));
        let error = said.expect_err("the app was reached");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "{backend}"
        );
    }
}
