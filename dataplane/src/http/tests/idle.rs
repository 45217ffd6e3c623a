//! Silence: between exchanges, in the middle of bodies, and in an answer's head. Whoever keeps it for too long is given up,
//! and whoever speaks now and then is not.

use std::time::{Duration, Instant};

use crate::cluster::Speaks;
use crate::reason::Reason;
use crate::testing::{Origin, Stage, asked, collect, request, scene_with, story, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";
const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const TEN_BYTES: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
/// How long silence may last here.
const SILENCE: Duration = Duration::from_secs(1);
/// How much earlier than that nobody is given up: clocks are read now and then.
const EARLIEST: Duration = Duration::from_millis(900);

/// Between two exchanges.
async fn between() -> (Origin, Stage) {
    scene_with(Speaks::Http1, |setting| {
        setting.site.timeouts.idle = SILENCE;
    })
    .await
}

/// Within a body.
async fn within(silence: Duration) -> (Origin, Stage) {
    scene_with(Speaks::Http1, |setting| {
        setting.site.timeouts.stream_idle = silence;
    })
    .await
}

#[test]
fn a_client_that_says_nothing_more_is_let_go() {
    story(async {
        let (origin, stage) = between().await;
        let (mut idle, mut endpoint) = asked(&stage, &origin, GET).await;
        let mut silent = stage.client().await;
        let mut h2 = stage.h2_client().await;
        let (response, _) = h2.send(request("GET", "/"), true).await;
        let mut other = origin.accept().await;
        other.head().await;
        let since = Instant::now();
        for endpoint in [&mut endpoint, &mut other] {
            endpoint.send(NO_CONTENT).await;
        }
        idle.head().await;
        assert_eq!(response.await.unwrap().status(), 204);
        assert_eq!(stage.seats(), 3);
        assert_eq!(idle.rest().await, "");
        assert!(since.elapsed() >= EARLIEST, "{:?}", since.elapsed());
        h2.ended().await;
        assert!(since.elapsed() >= EARLIEST, "{:?}", since.elapsed());
        // It has not said a thing since it came.
        assert_eq!(silent.rest().await, "");
        until("all seats are free", || stage.seats() == 0).await;
    });
}

#[test]
fn a_client_that_waits_for_its_answer_is_not_idle() {
    story(async {
        let (origin, stage) = between().await;
        let (mut client, mut endpoint) = asked(&stage, &origin, GET).await;
        let mut h2 = stage.h2_client().await;
        let (response, _) = h2.send(request("GET", "/"), true).await;
        let mut other = origin.accept().await;
        other.head().await;
        // What is shown is that nothing happens in this time.
        tokio::time::sleep(3 * SILENCE).await;
        for endpoint in [&mut endpoint, &mut other] {
            endpoint.send(NO_CONTENT).await;
        }
        assert!(client.head().await.starts_with("HTTP/1.1 204 "));
        assert_eq!(response.await.unwrap().status(), 204);
    });
}

#[test]
fn a_body_that_does_not_go_on_is_broken_off() {
    story(async {
        let (origin, stage) = within(SILENCE).await;
        let (mut client, mut endpoint) = asked(&stage, &origin, GET).await;
        let mut h2 = stage.h2_client().await;
        let (response, _) = h2.send(request("GET", "/"), true).await;
        let mut other = origin.accept().await;
        other.head().await;
        let since = Instant::now();
        for endpoint in [&mut endpoint, &mut other] {
            endpoint.send(TEN_BYTES).await;
            endpoint.send("half ").await;
        }
        client.head().await;
        assert_eq!(client.bytes(5).await, b"half ");
        let body = response.await.unwrap().into_body();
        assert!(collect(body).await.is_err(), "a stream that is not whole");
        // Never made whole, and the connection with it.
        assert_eq!(client.rest().await, "");
        assert!(since.elapsed() >= EARLIEST, "{:?}", since.elapsed());
        for endpoint in [&mut endpoint, &mut other] {
            assert_eq!(endpoint.rest().await, "", "the endpoint is let go");
        }
        until("nothing is in flight", || stage.in_flight() == 0).await;
    });
}

#[test]
fn a_body_that_goes_on_now_and_then_may_take_its_time() {
    story(async {
        // So long that a machine that halts for a moment is not taken for it.
        let silence = 3 * SILENCE;
        let (origin, stage) = within(silence).await;
        let (mut client, mut endpoint) = asked(&stage, &origin, GET).await;
        endpoint.send(TEN_BYTES).await;
        for _ in 0..5 {
            tokio::time::sleep(silence / 3).await;
            endpoint.send("xx").await;
        }
        client.head().await;
        assert_eq!(client.bytes(10).await, b"xxxxxxxxxx");
    });
}

#[test]
fn an_endpoint_that_drips_its_head_has_no_more_time_than_one_that_says_nothing() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http1, |setting| {
            setting.spec.timeout = SILENCE;
        })
        .await;
        let (mut client, mut endpoint) = asked(&stage, &origin, GET).await;
        let since = Instant::now();
        let dripping = async {
            endpoint.send("HTTP/1.1 200 OK\r\nx: ").await;
            loop {
                tokio::time::sleep(SILENCE / 10).await;
                endpoint.send("y").await;
            }
        };
        let head = tokio::select! {
            head = client.head() => head,
            () = dripping => unreachable!("it drips for ever"),
        };
        assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
        assert!(since.elapsed() >= EARLIEST, "{:?}", since.elapsed());
        assert_eq!(stage.answers(Reason::UpstreamTimeout), 1);
        // Nobody else gets the rest of it.
        let mut next = stage.client().await;
        next.send(GET).await;
        let mut other = origin.accept().await;
        other.head().await;
        other.send(NO_CONTENT).await;
        assert!(next.head().await.starts_with("HTTP/1.1 204 "));
    });
}
