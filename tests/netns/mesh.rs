//! Between two hosts that intercept, nothing goes in plaintext, and neither app knows.

use std::io::Write;
use std::net::Shutdown;

use super::app::{App, Does, breaks, connect, connect_as, get, get_on, rest, take};
use super::ground::{self, APP};
use super::{
    ORDERS, ORDERS_FROM_OUTSIDE, ORDERS_V6, OUTSIDE, World, count_packets, counted, under_either,
    until, weft_says,
};

const CALLER: &str = "URI=spiffe://shop.internal/service/storefront";

/// The exchange that every test of this file is about.
fn speaks(world: &World, to: &str, name: &str) {
    let answer = get(&world.storefront, to, name).unwrap();
    assert_eq!(answer.status, 200, "{name} at {to}: {answer:?}");
    assert!(
        answer.body.starts_with("orders called by By="),
        "{answer:?}"
    );
    assert!(answer.body.ends_with(CALLER), "{answer:?}");
}

#[test]
fn apps_speak_through_both_sidecars_and_nothing_is_in_plaintext() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("", "");
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    count_packets(&world.orders);
    // By name, by address, and by a name that is nobody's at a service's address.
    speaks(&world, &format!("{ORDERS}:8080"), "orders:8080");
    speaks(&world, &format!("{ORDERS}:8080"), &format!("{ORDERS}:8080"));
    speaks(&world, &format!("{ORDERS}:8080"), "orders.example");
    speaks(&world, &format!("{ORDERS_V6}:8080"), "orders");
    speaks(
        &world,
        &format!("{ORDERS_V6}:8080"),
        &format!("{ORDERS_V6}:8080"),
    );
    // A service's name counts more than the address: DNS may say something that we do not know.
    speaks(&world, &format!("{OUTSIDE}:80"), "orders");
    assert_eq!(counted(&world.orders, "app"), 0);
    assert!(counted(&world.orders, "mesh") > 0);
    let local = app.callers();
    assert!(
        local.iter().all(|caller| caller.ip().is_loopback()),
        "{local:?}"
    );
    let through = ["listener=\"outbound\"", "outcome=\"service\""];
    let name = "weft_redirected_connections_total";
    assert_eq!(world.metric(&world.storefront, name, &through), 4.0);
    let through = ["listener=\"outbound6\"", "outcome=\"service\""];
    assert_eq!(world.metric(&world.storefront, name, &through), 2.0);
    // What the test would see if there were no interception.
    for host in [&world.storefront, &world.orders] {
        weft_says(host, "intercept remove");
    }
    App::start(&world.orders, &format!("{ORDERS}:8080"), Does::Http("bare"));
    let answer = get(&world.storefront, &format!("{ORDERS}:8080"), "orders").unwrap();
    assert_eq!(answer.body, "bare called by nobody");
    assert!(counted(&world.orders, "app") > 0);
}

#[test]
fn rules_of_iptables_do_the_same() {
    if !ground::is_possible() {
        return;
    }
    let world = World::without_rules("", "");
    for host in [&world.storefront, &world.orders] {
        weft_says(host, "intercept install --backend iptables --user 0");
    }
    let _app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    count_packets(&world.orders);
    speaks(&world, &format!("{ORDERS}:8080"), "orders");
    speaks(&world, &format!("{ORDERS_V6}:8080"), "orders");
    assert_eq!(counted(&world.orders, "app"), 0);
}

#[test]
fn a_service_that_is_not_http_is_reached_at_its_address_and_may_speak_first() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("    protocol: tcp\n", "");
    let app = App::start(&world.orders, "127.0.0.1:8080", Does::Greet("ready\r\n"));
    count_packets(&world.orders);
    for ip in [ORDERS, ORDERS_V6] {
        let mut stream = connect(&world.storefront, &format!("{ip}:8080")).unwrap();
        assert_eq!(take(&mut stream, 7).unwrap(), "ready\r\n");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n\x00").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut stream).unwrap(), "GET / HTTP/1.1\r\n\r\n\x00");
    }
    assert_eq!(app.callers().len(), 2);
    assert_eq!(counted(&world.orders, "app"), 0);
    assert!(counted(&world.orders, "mesh") > 0);
}

#[test]
fn a_connection_to_a_service_may_be_silent_at_first() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("", "");
    let _app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let mut kept = connect(&world.storefront, &format!("{ORDERS}:8080")).unwrap();
    // One to somebody else that says nothing either is passed on when its silence has lasted long enough.
    let echo = App::start(&world.outside, &format!("{OUTSIDE}:7000"), Does::Greet(""));
    let _silent = connect(&world.storefront, &format!("{OUTSIDE}:7000")).unwrap();
    until("the silent one is passed on", || echo.callers().len() == 1);
    let answer = get_on(&mut kept, "orders", "/").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn who_speaks_with_the_sidecar_itself_is_not_taken_for_redirected() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("", "");
    let _app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let mut proxy = connect(&world.storefront, "127.0.0.1:15001").unwrap();
    let answer = get_on(&mut proxy, "orders", "/").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = get_on(&mut proxy, "elsewhere.example", "/").unwrap();
    assert_eq!(answer.reason(), Some("no_service"), "{answer:?}");
    let name = "weft_redirected_connections_total";
    assert_eq!(world.metric(&world.storefront, name, &[]), 0.0);
}

#[test]
fn dns_and_the_host_itself_are_spared() {
    under_either("", "", |world| {
        let dns = App::start(&world.outside, &format!("{OUTSIDE}:53"), Does::Greet("dns"));
        let stream = connect(&world.storefront, &format!("{OUTSIDE}:53")).unwrap();
        until("the name server is called", || !dns.callers().is_empty());
        assert_eq!(
            dns.callers(),
            [stream.local_addr().unwrap()],
            "nobody is between"
        );
        let beside = App::start(&world.storefront, "10.77.1.1:9000", Does::Greet("beside"));
        let stream = connect(&world.storefront, "10.77.1.1:9000").unwrap();
        until("the neighbour is called", || !beside.callers().is_empty());
        assert_eq!(beside.callers(), [stream.local_addr().unwrap()]);
    });
}

#[test]
fn a_sidecar_whose_user_is_not_spared_says_so_and_does_not_call_itself_for_ever() {
    if !ground::is_possible() {
        return;
    }
    let world = World::without_rules("", "");
    let _app = App::start(&world.orders, "127.0.0.1:8080", Does::Http("orders"));
    let echo = App::start(
        &world.outside,
        &format!("{OUTSIDE}:7000"),
        Does::Greet("hello"),
    );
    // Everybody's, the sidecar's own connections too.
    weft_says(&world.storefront, "intercept install --user 4242");
    assert!(breaks(&world.storefront, &format!("{OUTSIDE}:7000"), b""));
    let answer = get(&world.storefront, &format!("{ORDERS}:8080"), "orders").unwrap();
    assert!(answer.status >= 500, "{answer:?}");
    let looped = || {
        let name = "weft_redirected_connections_total";
        world.metric(&world.storefront, name, &["outcome=\"looped\""])
    };
    until("loops are counted", || looped() >= 2.0);
    let log = world.storefront_sidecar.log();
    assert!(log.contains("intercept install --user"), "{log}");
    assert!(looped() < 20.0, "{}", looped());
    assert!(echo.callers().is_empty());
    // Put right, it works without a restart.
    weft_says(&world.storefront, "intercept install --user 0");
    speaks(&world, &format!("{ORDERS}:8080"), "orders");
}

#[test]
fn the_user_who_runs_the_sidecar_is_not_redirected() {
    under_either("", "", |world| {
        let echo = App::start(
            &world.outside,
            &format!("{OUTSIDE}:7000"),
            Does::Greet("hello"),
        );
        let address = format!("{OUTSIDE}:7000");
        let spared = connect_as(&world.storefront, 0, &address).unwrap();
        until("it arrives", || echo.callers().len() == 1);
        assert_eq!(echo.callers()[0], spared.local_addr().unwrap());
        let redirected = connect_as(&world.storefront, APP, &address).unwrap();
        until("it arrives", || echo.callers().len() == 2);
        assert_ne!(echo.callers()[1], redirected.local_addr().unwrap());
    });
}

#[test]
fn where_the_sidecar_is_away_nothing_gets_around_it() {
    if !ground::is_possible() {
        return;
    }
    let mut world = World::new("", "");
    let app = App::start(&world.orders, "0.0.0.0:8080", Does::Http("orders"));
    let _web = App::start(&world.outside, &format!("{OUTSIDE}:80"), Does::Http("web"));
    let refused = |host, to: &str| {
        let error = connect(host, to).expect_err(to);
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
    };
    // Of an app's own, neither to a service nor to anybody else.
    world.storefront_sidecar.kill();
    for to in [
        format!("{ORDERS}:8080"),
        format!("{ORDERS_V6}:8080"),
        format!("{OUTSIDE}:80"),
    ] {
        refused(&world.storefront, &to);
    }
    // And what others want of it.
    world.orders_sidecar.kill();
    refused(&world.outside, &format!("{ORDERS_FROM_OUTSIDE}:8080"));
    assert!(app.callers().is_empty(), "{:?}", app.callers());
}

/// A GET of `http://orders/` by prior knowledge, with its fields as the static table has them.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x0b\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x06orders";

#[test]
fn http2_to_an_address_that_nobody_knows_is_refused_by_the_service() {
    if !ground::is_possible() {
        return;
    }
    let world = World::new("", "");
    let app = App::start(&world.orders, "0.0.0.0:8080", Does::Http("orders"));
    world.orders.system("ip addr add 10.77.1.9/24 dev net1");
    let mut stream = connect(&world.storefront, "10.77.1.9:8080").unwrap();
    stream.write_all(HTTP2).unwrap();
    let name = "weft_redirected_connections_total";
    until("the service's sidecar refuses it", || {
        let refused = ["outcome=\"plaintext_refused\""];
        world.metric(&world.orders, name, &refused) == 1.0
    });
    let passed = ["outcome=\"passthrough\""];
    assert_eq!(world.metric(&world.storefront, name, &passed), 1.0);
    assert!(app.callers().is_empty(), "{:?}", app.callers());
}
