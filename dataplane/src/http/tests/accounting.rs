//! Each exchange is counted once, however it ends.

use crate::cluster::Speaks;
use crate::reason::Reason;
use crate::testing::{Stage, nowhere, scene, story, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// Exchanges by class of status: 2xx, 5xx, none.
fn classes(totals: &crate::observe::Totals) -> [u64; 3] {
    [totals.by_class[1], totals.by_class[4], totals.by_class[5]]
}

#[test]
fn an_exchange_over_the_limit_is_counted_once() {
    story(async {
        let stage = Stage::with(Speaks::Http1, &[nowhere().await], |setting| {
            setting.spec.limits.in_flight = 0;
            setting.spec.limits.waiting = 0;
        })
        .await;
        let mut client = stage.client().await;
        client.send(GET).await;
        let head = client.head().await;
        assert!(head.contains("weft-reason: overloaded"), "{head}");
        assert_eq!(stage.answers(Reason::Overloaded), 1);
        assert_eq!(classes(&stage.edge()), [0, 1, 0]);
        assert_eq!(classes(&stage.route()), [0, 1, 0]);
    });
}

#[test]
fn a_refused_connection_is_counted_once() {
    story(async {
        let stage = Stage::with(Speaks::Http1, &[nowhere().await], |setting| {
            setting.spec.retry = crate::testing::retries(0);
        })
        .await;
        let mut client = stage.client().await;
        client.send(GET).await;
        let head = client.head().await;
        assert!(head.contains("weft-reason: connect_failed"), "{head}");
        assert_eq!(stage.answers(Reason::ConnectFailed), 1);
        assert_eq!(classes(&stage.edge()), [0, 1, 0]);
        assert_eq!(classes(&stage.route()), [0, 1, 0]);
        assert_eq!(stage.edge().answers(Reason::ConnectFailed), 1);
        assert_eq!(stage.route().answers(Reason::ConnectFailed), 1);
        assert_eq!(stage.in_flight(), 0);
    });
}

#[test]
fn bodies_are_counted_both_ways() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client
            .send("POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 4\r\n\r\nabcd")
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.read_to("abcd").await;
        endpoint
            .send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nxyz")
            .await;
        client.read_to("xyz").await;
        until("it is counted", || stage.edge().requests() == 1).await;
        let (edge, route) = (stage.edge(), stage.route());
        assert_eq!((edge.request_bytes, edge.response_bytes), (4, 3));
        assert_eq!((route.request_bytes, route.response_bytes), (4, 3));
        assert_eq!(classes(&edge), [1, 0, 0]);
        assert_eq!(stage.in_flight(), 0);
    });
}

#[test]
fn a_client_that_leaves_is_counted_as_unanswered_and_releases_the_endpoint() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client
            .send("POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 9\r\n\r\nabcd")
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.read_to("abcd").await;
        assert_eq!(stage.in_flight(), 1);
        client.reset();
        assert_eq!(endpoint.rest().await, "", "the request is broken off");
        until("nothing is in flight", || stage.in_flight() == 0).await;
        assert_eq!(stage.cluster.in_flight(), 0);
        let endpoints = stage.cluster.members.load();
        let totals = endpoints.endpoints()[0].totals();
        assert_eq!(
            totals.local_failures + totals.remote_failures,
            0,
            "no fault of the endpoint"
        );
        assert_eq!(stage.edge().requests(), 1);
    });
}
