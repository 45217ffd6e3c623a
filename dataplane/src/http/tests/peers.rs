//! Connections to HTTP/2 peers: shared, and as many as needed.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use weft_runtime::config::{Path, Problems};

use crate::balance;
use crate::cluster::limits::Patience;
use crate::cluster::{Speaks, breaker};
use crate::testing::{
    Origin, Raw, Stage, answer, collect, nowhere, request, retries, scene, scene_with, send_all,
    story, until,
};

/// What begins a connection, with windows that take what these stories send: SETTINGS, WINDOW_UPDATE.
const SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\x10\0\0\
    \0\0\x04\x08\0\0\0\0\0\0\x10\0\0";

/// A frame without flags.
fn frame(kind: u8, stream: u32, payload: &[u32]) -> Vec<u8> {
    let payload: Vec<u8> = payload.iter().flat_map(|word| word.to_be_bytes()).collect();
    let mut frame = vec![0, 0, payload.len() as u8, kind, 0];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Says that the connection ends, and which stream is the last that may have been acted on.
fn goaway(last: u32, reason: h2::Reason) -> Vec<u8> {
    frame(7, 0, &[last, reason.into()])
}

/// Begins an HTTP/2 connection whose frames the story writes by itself.
async fn begin(endpoint: &mut Raw) {
    endpoint.read_to("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    endpoint.send(SETTINGS).await;
}

/// Reads a request to its end; which stream it came on.
async fn whole_request(endpoint: &mut Raw) -> u32 {
    loop {
        let head = endpoint.bytes(9).await;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        endpoint.bytes(length as usize).await;
        let (is_data, is_head, is_last) = (head[3] == 0, head[3] == 1, head[4] & 1 != 0);
        if is_last && (is_data || is_head) {
            return u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        }
    }
}

#[test]
fn exchanges_share_one_connection() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.h2_client().await;
        let (first, _) = client.send(request("GET", "/1"), true).await;
        let (second, _) = client.send(request("GET", "/2"), true).await;
        let _driver = origin.accept_h2().await.run();
        assert_eq!(first.await.unwrap().status(), 204);
        assert_eq!(second.await.unwrap().status(), 204);
    });
}

#[test]
fn a_peer_at_its_limit_of_streams_gets_a_second_connection() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.h2_client().await;
        let (first, _) = client.send(request("GET", "/1"), true).await;
        let mut one = origin.accept_h2_narrow().await;
        let (_, mut held) = one.request().await;
        let _one = one.run();
        let (second, _) = client.send(request("GET", "/2"), true).await;
        let mut two = origin.accept_h2().await;
        let (asked, mut respond) = two.request().await;
        assert_eq!(asked.uri().path(), "/2");
        respond.send_response(answer(200), true).unwrap();
        let _two = two.run();
        assert_eq!(second.await.unwrap().status(), 200);
        held.send_response(answer(200), true).unwrap();
        assert_eq!(first.await.unwrap().status(), 200);
    });
}

#[test]
fn beyond_all_connections_exchanges_wait_for_a_stream() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.limits.wait = Duration::from_secs(30);
        })
        .await;
        let mut client = stage.h2_client().await;
        let mut held = Vec::new();
        let mut drivers = Vec::new();
        let mut responses = Vec::new();
        for _ in 0..4 {
            let (response, _) = client.send(request("GET", "/held"), true).await;
            responses.push(response);
            let mut connection = origin.accept_h2_narrow().await;
            held.push(connection.request().await.1);
            drivers.push(connection.run());
        }
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let (response, _) = client.send(request("GET", "/waits"), true).await;
            waiting.push(response);
        }
        until("they wait", || stage.in_flight() == 7).await;
        for mut respond in held {
            respond.send_response(answer(200), true).unwrap();
        }
        for response in responses {
            assert_eq!(response.await.unwrap().status(), 200);
        }
        for response in waiting {
            assert_eq!(response.await.unwrap().status(), 204);
        }
    });
}

#[test]
fn whoever_waits_for_a_stream_does_not_hold_up_the_upload_that_has_it() {
    const UPLOADS: usize = 24;
    const PIECE: usize = 10_000;
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.limits.wait = Duration::from_secs(30);
        })
        .await;
        let mut client = stage.h2_client().await;
        let (first, _) = client.send(request("GET", "/"), true).await;
        // One connection, which takes one stream at a time: all others wait at the moment when one is opened.
        let mut one = origin.accept_h2_narrow().await;
        one.request()
            .await
            .1
            .send_response(answer(204), true)
            .unwrap();
        drop(origin);
        let mut connection = one.0;
        tokio::task::spawn_local(async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    let body = collect(request.into_body()).await.unwrap();
                    assert_eq!(body.len(), 2 * PIECE);
                    respond.send_response(answer(204), true).unwrap();
                });
            }
        });
        assert_eq!(first.await.unwrap().status(), 204);
        let mut sent = Vec::new();
        for _ in 0..UPLOADS {
            sent.push(client.send(request("POST", "/upload"), false).await);
        }
        let uploads = sent.into_iter().map(async |(response, mut stream)| {
            // In two pieces, neither of which is all of it.
            for is_last in [false, true] {
                let piece = Bytes::from(vec![b'x'; PIECE]);
                send_all(&mut stream, piece, is_last).await;
            }
            response.await.unwrap().status()
        });
        for status in futures_util::future::join_all(uploads).await {
            assert_eq!(status, 204);
        }
    });
}

#[test]
fn a_failure_to_connect_wakes_all_who_wait() {
    story(async {
        let stage = Stage::with(Speaks::Http2, &[nowhere().await], |setting| {
            setting.spec.retry = retries(0);
        })
        .await;
        let mut client = stage.h2_client().await;
        let mut responses = Vec::new();
        for _ in 0..5 {
            responses.push(client.send(request("GET", "/"), true).await.0);
        }
        for response in responses {
            let response = response.await.unwrap();
            assert_eq!(response.headers()["weft-reason"], "connect_failed");
        }
    });
}

#[test]
fn a_peer_that_goes_away_is_connected_to_anew() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.h2_client().await;
        let (first, _) = client.send(request("POST", "/1"), true).await;
        let mut old = origin.accept_h2().await;
        let (_, mut respond) = old.request().await;
        old.0.graceful_shutdown();
        let old = old.run();
        // What it had accepted it finishes.
        respond.send_response(answer(200), true).unwrap();
        assert_eq!(first.await.unwrap().status(), 200);
        old.await.unwrap();
        let (second, _) = client.send(request("POST", "/2"), true).await;
        let _new = origin.accept_h2().await.run();
        assert_eq!(second.await.unwrap().status(), 204);
    });
}

#[test]
fn a_stream_beyond_goaway_is_sent_again_whatever_its_method() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.h2_client().await;
        let (response, _) = client.send(request("POST", "/"), true).await;
        let mut old = origin.accept_h2().await;
        let (_, respond) = old.request().await;
        // The story refuses by hand what a server beyond its GOAWAY refuses.
        let mut respond = respond;
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        let _old = old.run();
        // `run` answers whatever comes next, on the same connection.
        assert_eq!(response.await.unwrap().status(), 204);
        assert_eq!(stage.edge().retries, 1);
    });
}

#[test]
fn the_time_before_a_goodbye_is_not_charged_to_who_answers_after_it() {
    story(async {
        let wait = Duration::from_millis(500);
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            let config: balance::Config = serde_json::from_str(r#""least_response_time""#).unwrap();
            let policy = config.build(&Path::root(), &mut Problems::new());
            setting.spec.balance = policy.unwrap();
        })
        .await;
        let mut client = stage.h2_client().await;
        let (response, _) = client.send(request("POST", "/"), true).await;
        let mut old = origin.accept().await;
        begin(&mut old).await;
        whole_request(&mut old).await;
        tokio::time::sleep(wait).await;
        old.send(goaway(0, h2::Reason::NO_ERROR)).await;
        let _new = origin.accept_h2().await.run();
        assert_eq!(response.await.unwrap().status(), 204);
        assert_eq!(stage.edge().retries, 0, "a goodbye is none");
        let members = stage.cluster.members.load();
        let latency = members.endpoints()[0].latency.estimate(Instant::now());
        assert!(latency < wait, "{latency:?}");
    });
}

#[test]
fn a_goodbye_to_an_upload_that_cannot_be_sent_again_is_nobodys_failure() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            let config = r#"{"enabled": true, "requests": 1, "ratio": "1%"}"#;
            let config: breaker::Config = serde_json::from_str(config).unwrap();
            let rules = config.build(&Path::root(), &mut Problems::new());
            setting.spec.breaker = rules.unwrap();
        })
        .await;
        let mut client = stage.client().await;
        let body = "x".repeat(100_000);
        client
            .send(format!(
                "POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 100000\r\n\r\n{body}"
            ))
            .await;
        let mut endpoint = origin.accept().await;
        begin(&mut endpoint).await;
        whole_request(&mut endpoint).await;
        endpoint.send(goaway(0, h2::Reason::NO_ERROR)).await;
        let head = client.head().await;
        assert!(head.contains("weft-reason: upstream_reset"), "{head}");
        let members = stage.cluster.members.load();
        assert_eq!(members.endpoints()[0].totals().local_failures, 0);
        let breaker = stage.cluster.breaker.as_ref().unwrap();
        assert_eq!(breaker.state(), breaker::State::Closed);
    });
}

/// How often a request gets to an endpoint that reads all of it and then fails so, and how that is answered.
async fn deliveries(method: &str, failure: impl Fn(u32) -> Vec<u8> + 'static) -> (u32, String) {
    let (origin, stage) = scene(Speaks::Http2).await;
    let delivered = Rc::new(Cell::new(0));
    let count = Rc::clone(&delivered);
    let failing = tokio::task::spawn_local(async move {
        loop {
            let mut endpoint = origin.accept().await;
            begin(&mut endpoint).await;
            let stream = whole_request(&mut endpoint).await;
            count.set(count.get() + 1);
            endpoint.send(failure(stream)).await;
            endpoint.finish().await;
            endpoint.drain().await;
        }
    });
    let mut client = stage.client().await;
    client
        .send(format!(
            "{method} / HTTP/1.1\r\nhost: orders\r\ncontent-length: 4\r\n\r\nabcd"
        ))
        .await;
    let head = client.head().await;
    failing.abort();
    (delivered.get(), head)
}

#[test]
fn what_an_endpoint_has_read_is_never_delivered_twice_unless_that_is_harmless() {
    const RST_STREAM: u8 = 3;
    story(async {
        for reason in [
            h2::Reason::INTERNAL_ERROR,
            h2::Reason::CANCEL,
            h2::Reason::NO_ERROR,
        ] {
            let reset = move |stream| frame(RST_STREAM, stream, &[reason.into()]);
            let ended = move |stream| goaway(stream, reason);
            let died = |_| Vec::new();
            for (count, head) in [
                deliveries("POST", reset).await,
                deliveries("POST", ended).await,
                deliveries("POST", died).await,
            ] {
                assert!(head.starts_with("HTTP/1.1 502 "), "{reason}: {head}");
                assert_eq!(count, 1, "{reason}: {head}");
            }
            // And so it would have been noticed.
            let (count, _) = deliveries("PUT", reset).await;
            assert!(count > 1, "{reason}");
        }
    });
}

#[test]
fn a_burst_on_a_new_connection_is_no_more_than_a_stranger_must_take() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.retry = retries(0);
        })
        .await;
        let mut answers = Vec::new();
        let mut clients = [stage.h2_client().await, stage.h2_client().await];
        for client in &mut clients {
            for _ in 0..75 {
                answers.push(client.send(request("GET", "/"), true).await.0);
            }
        }
        // It has not said yet how many it takes, and refuses what is too much.
        let first = origin.accept_h2_with(|builder| {
            builder.max_concurrent_streams(100);
        });
        let _first = first.await.run();
        let _second = origin.accept_h2().await.run();
        for answer in answers {
            assert_eq!(answer.await.unwrap().status(), 204);
        }
    });
}

#[test]
fn a_peer_that_has_gone_without_a_word_is_given_up_within_seconds() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.retry = retries(1);
        })
        .await;
        let mut client = stage.h2_client().await;
        let (get, _) = client.send(request("GET", "/"), true).await;
        let (post, _) = client.send(request("POST", "/"), true).await;
        // Its kernel acknowledges what we send; it does not.
        let mut gone = origin.accept_h2().await;
        let start = Instant::now();
        let _asked = (gone.request().await, gone.request().await);
        // What can be repeated is, on another connection.
        let mut next = origin.accept_h2().await;
        let (asked, mut respond) = next.request().await;
        assert_eq!(asked.method(), "GET");
        respond.send_response(answer(200), true).unwrap();
        let _driver = next.run();
        assert_eq!(get.await.unwrap().status(), 200);
        assert_eq!(post.await.unwrap().status(), 502);
        assert!(
            start.elapsed() >= Duration::from_secs(4),
            "not before it was asked"
        );
    });
}

#[test]
fn a_peer_that_answers_pings_may_take_its_time() {
    story(async {
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = stage.h2_client().await;
        let (slow, _) = client.send(request("POST", "/slow"), true).await;
        let mut endpoint = origin.accept_h2().await;
        let (_, mut respond) = endpoint.request().await;
        let _driver = endpoint.run();
        tokio::time::sleep(Duration::from_secs(7)).await;
        respond.send_response(answer(200), true).unwrap();
        assert_eq!(slow.await.unwrap().status(), 200);
    });
}

#[test]
fn a_connection_more_that_cannot_be_had_fails_nobody_who_can_wait_for_a_stream() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.retry = retries(0);
            setting.spec.limits.wait = Duration::from_secs(30);
        })
        .await;
        let mut client = stage.h2_client().await;
        let (first, _) = client.send(request("GET", "/1"), true).await;
        let mut one = origin.accept_h2_narrow().await;
        let (_, mut held) = one.request().await;
        let _one = one.run();
        // From here on nobody gets in any more.
        let address = origin.address;
        drop(origin);
        let (second, _) = client.send(request("GET", "/2"), true).await;
        until("it waits", || stage.in_flight() == 2).await;
        let refused = tokio::net::TcpStream::connect(address).await;
        assert!(refused.is_err(), "nobody listens");
        tokio::time::sleep(Duration::from_millis(50)).await;
        held.send_response(answer(200), true).unwrap();
        assert_eq!(first.await.unwrap().status(), 200);
        assert_eq!(second.await.unwrap().status(), 204);
        assert_eq!(
            stage.cluster.members.load().endpoints()[0]
                .totals()
                .local_failures,
            0
        );
    });
}

/// Calls `look` at each turn of the runtime until it says so, ahead of whoever was woken in the same turn.
async fn at_once(mut look: impl FnMut(&mut Context<'_>) -> bool) {
    poll_fn(|cx| {
        if look(cx) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[test]
fn a_connection_whose_place_is_wanted_serves_who_it_was_opened_for_first() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.limits.connections = Some(1);
        })
        .await;
        let mut client = stage.h2_client().await;
        let (response, _) = client.send(request("GET", "/"), true).await;
        let endpoint = stage.cluster.members.load().endpoints()[0].id;
        let (core, places) = (
            Rc::clone(&stage.core),
            Arc::clone(&stage.cluster.connections),
        );
        tokio::task::spawn_local(async move {
            at_once(|_| places.inside() == 1).await;
            let _wants_it = places.wait().unwrap();
            at_once(|cx| core.peers.is_open(endpoint, cx)).await;
            core.relieve();
        })
        .await
        .unwrap();
        let mut first = origin.accept_h2().await;
        let (_, mut respond) = first.request().await;
        respond.send_response(answer(200), true).unwrap();
        let _driver = first.run();
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn a_connection_that_nobody_takes_any_more_gives_its_place_to_who_waits() {
    story(async {
        let (_origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.limits.connections = Some(1);
        })
        .await;
        let (core, cluster) = (Rc::clone(&stage.core), Arc::clone(&stage.cluster));
        tokio::task::spawn_local(async move {
            let endpoint = Arc::clone(&cluster.members.load().endpoints()[0]);
            let now = Instant::now();
            let mut patience = Patience::new(now + Duration::from_secs(30));
            let mut gone =
                Box::pin(
                    core.peers
                        .room(&core, &cluster, &endpoint, now, &mut patience),
                );
            let places = &cluster.connections;
            at_once(|cx| {
                assert!(gone.as_mut().poll(cx).is_pending());
                places.inside() == 1
            })
            .await;
            // Whoever it is opened for has gone before it is there, and somebody else has come.
            drop(gone);
            let _place = places.wait().unwrap().await;
        })
        .await
        .unwrap();
    });
}

#[test]
fn two_endpoints_that_share_one_connection_take_turns_and_nobody_is_sent_away() {
    const ROUNDS: usize = 20;
    story(async {
        let origins = [Origin::new().await, Origin::new().await];
        let addresses = [origins[0].address, origins[1].address];
        let stage = Stage::with(Speaks::Http2, &addresses, |setting| {
            setting.spec.retry = retries(0);
            setting.spec.limits.connections = Some(1);
            setting.spec.limits.wait = Duration::from_secs(30);
        })
        .await;
        let unused = Rc::new(Cell::new(0));
        for origin in origins {
            let unused = Rc::clone(&unused);
            tokio::task::spawn_local(async move {
                loop {
                    let mut connection = origin.accept_h2().await;
                    let unused = Rc::clone(&unused);
                    tokio::task::spawn_local(async move {
                        let mut served = 0;
                        while let Some(Ok((_, mut respond))) = connection.0.accept().await {
                            respond.send_response(answer(204), true).unwrap();
                            served += 1;
                        }
                        unused.set(unused.get() + u32::from(served == 0));
                    });
                }
            });
        }
        let mut clients = Vec::new();
        for _ in 0..16 {
            clients.push(stage.h2_client().await);
        }
        let clients = clients.into_iter().map(|mut client| {
            tokio::task::spawn_local(async move {
                for _ in 0..ROUNDS {
                    let (one, _) = client.send(request("POST", "/"), true).await;
                    let (two, _) = client.send(request("POST", "/"), true).await;
                    assert_eq!(one.await.unwrap().status(), 204);
                    assert_eq!(two.await.unwrap().status(), 204);
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        assert_eq!(unused.get(), 0, "connections that nothing was sent on");
        for endpoint in stage.cluster.members.load().endpoints() {
            assert_eq!(endpoint.totals().local_failures, 0);
        }
    });
}

#[test]
fn nobody_waits_for_a_stream_longer_than_the_limit_says() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http2, |setting| {
            setting.spec.retry = retries(0);
            setting.spec.limits.endpoint.connections = Some(1);
            setting.spec.limits.endpoint.waiting = 8;
            setting.spec.limits.wait = Duration::from_millis(100);
        })
        .await;
        let mut client = stage.h2_client().await;
        let (_first, _) = client.send(request("GET", "/1"), true).await;
        let mut one = origin.accept_h2_narrow().await;
        let (_, _held) = one.request().await;
        let _one = one.run();
        let (second, _) = client.send(request("GET", "/2"), true).await;
        let second = second.await.unwrap();
        assert_eq!(second.status(), 503);
        assert_eq!(second.headers()["weft-reason"], "overloaded");
    });
}
