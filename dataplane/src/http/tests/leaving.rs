//! A client that leaves while it waits takes its attempt with it; one that has only ended its side is answered.

use crate::cluster::Speaks;
use crate::testing::{answer, asked, scene, story, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

#[test]
fn a_client_that_breaks_off_ends_the_attempt_at_once() {
    story(async {
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let (origin, stage) = scene(speaks).await;
            let mut client = stage.client().await;
            client.send(GET).await;
            if speaks == Speaks::Http1 {
                let mut endpoint = origin.accept().await;
                endpoint.head().await;
                client.reset();
                assert_eq!(endpoint.rest().await, "", "the connection ends");
            } else {
                let mut endpoint = origin.accept_h2().await;
                let (_, mut respond) = endpoint.request().await;
                client.reset();
                let _driver = endpoint.run();
                let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                assert_eq!(reset.unwrap(), h2::Reason::CANCEL);
            }
            until("nothing is in flight", || stage.in_flight() == 0).await;
            assert_eq!(stage.cluster.in_flight(), 0);
            until("the connection's place is free", || stage.seats() == 0).await;
        }
    });
}

#[test]
fn a_client_that_closes_its_connection_ends_the_attempt_too() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let (client, mut endpoint) = asked(&stage, &origin, GET).await;
        // Its kernel says the same as for one that only ends its side.
        drop(client);
        assert_eq!(endpoint.rest().await, "", "the connection ends");
        until("nothing is in flight", || stage.in_flight() == 0).await;
    });
}

#[test]
fn a_client_that_ends_its_side_is_asked_and_answered() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let (mut client, mut endpoint) = asked(&stage, &origin, GET).await;
        client.finish().await;
        let asked = client.head().await;
        assert!(asked.starts_with("HTTP/1.1 100 "), "{asked}");
        endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
        assert_eq!(client.rest().await, "", "asked once");
    });
}

#[test]
fn a_client_of_http10_that_ends_its_side_is_answered_and_not_asked() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.client().await;
        client.send("GET / HTTP/1.0\r\nhost: orders\r\n\r\n").await;
        client.finish().await;
        let mut endpoint = origin.accept_h2().await;
        let (_, mut respond) = endpoint.request().await;
        let _driver = endpoint.run();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        respond.send_response(answer(204), true).unwrap();
        let all = client.rest().await;
        assert!(all.starts_with("HTTP/1.1 204 "), "{all}");
    });
}

#[test]
fn what_a_client_sends_ahead_is_kept_for_its_turn() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let (mut client, mut endpoint) = asked(&stage, &origin, GET).await;
        client
            .send("GET /second HTTP/1.1\r\nhost: orders\r\n\r\nGET /thi")
            .await;
        endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        client.head().await;
        let head = endpoint.head().await;
        assert!(head.starts_with("GET /second "), "{head}");
        client.send("rd HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        client.head().await;
        let head = endpoint.head().await;
        assert!(head.starts_with("GET /third "), "{head}");
    });
}
