//! A core that is about to stop.

use std::rc::Rc;

use crate::cluster::Speaks;
use crate::testing::{Origin, Raw, Stage, request, scene, scene_with, story, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";
const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[test]
fn drain_ends_what_is_idle() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        // One that has said nothing yet, and one between two exchanges.
        let mut silent = stage.client().await;
        let mut idle = stage.client().await;
        idle.send(GET).await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send(NO_CONTENT).await;
        idle.head().await;
        let mut h2 = stage.h2_client().await;
        let (response, _) = h2.send(request("GET", "/"), true).await;
        endpoint.head().await;
        endpoint.send(NO_CONTENT).await;
        response.await.unwrap();
        stage.core.drain();
        assert_eq!(silent.rest().await, "");
        assert_eq!(idle.rest().await, "");
        h2.ended().await;
        until("all seats are free", || stage.seats() == 0).await;
    });
}

#[test]
fn drain_answers_what_is_under_way_and_what_is_on_its_way() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        let mut late = stage.client().await;
        for client in [&mut client, &mut late] {
            client.send(GET).await;
            let mut endpoint = origin.accept().await;
            endpoint.head().await;
            endpoint.send(NO_CONTENT).await;
            client.head().await;
            drop(endpoint);
        }
        client.send(GET).await;
        let mut one = origin.accept().await;
        one.head().await;
        // In the socket, but nobody has looked yet.
        late.send(GET).await;
        stage.core.drain();
        let mut two = origin.accept().await;
        for (client, endpoint) in [(&mut client, &mut one), (&mut late, &mut two)] {
            endpoint.send(NO_CONTENT).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
            assert!(head.contains("connection: close"), "{head}");
            client.finish().await;
            assert_eq!(client.rest().await, "");
        }
    });
}

#[test]
fn drain_lets_running_bodies_finish() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut h1 = stage.client().await;
        h1.send(GET).await;
        let mut one = origin.accept().await;
        one.head().await;
        one.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
            .await;
        h1.read_to("ab").await;
        let mut h2 = stage.h2_client().await;
        let (response, _) = h2.send(request("GET", "/"), true).await;
        let mut two = origin.accept().await;
        two.head().await;
        two.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
            .await;
        let response = response.await.unwrap();
        stage.core.drain();
        one.send("cd").await;
        two.send("cd").await;
        h1.read_to("cd").await;
        assert_eq!(h1.rest().await, "", "closed after its exchange");
        let body = crate::testing::collect(response.into_body()).await;
        assert_eq!(body.unwrap(), b"abcd");
        h2.ended().await;
        until("all seats are free", || stage.seats() == 0).await;
    });
}

#[test]
fn the_apps_way_out_stays_until_the_second_part_of_the_drain() {
    story(async {
        let origin = Origin::new().await;
        let speaks = Speaks::Http1;
        let way_in = Stage::new(speaks, &[origin.address]).await;
        let way_out = Stage::with(speaks, &[origin.address], |setting| {
            setting.site.outlasts = true;
        })
        .await;
        let mut came_in = way_in.client().await;
        let mut kept = way_out.client().await;
        way_in.core.drain_first();
        way_out.core.drain_first();
        assert_eq!(came_in.rest().await, "");
        // Connections that are there and new ones, and both are kept.
        let mut fresh = way_out.client().await;
        for client in [&mut kept, &mut fresh] {
            client.send(GET).await;
            let mut endpoint = origin.accept().await;
            endpoint.head().await;
            endpoint.send(NO_CONTENT).await;
            let head = client.head().await;
            assert!(!head.contains("connection: close"), "{head}");
        }
        way_out.core.drain();
        assert_eq!(kept.rest().await, "");
        assert_eq!(fresh.rest().await, "");
        until("all seats are free", || way_out.seats() == 0).await;
    });
}

#[test]
fn whom_the_kernel_has_let_in_is_answered_though_the_listener_closes() {
    story(async {
        let mut stage = Stage::new(Speaks::Http1, &[]).await;
        // All of this without giving the listener a chance to look: it has all of them in its queue.
        let clients: Vec<_> = (0..50)
            .map(|_| {
                let mut client = std::net::TcpStream::connect(stage.address).unwrap();
                std::io::Write::write_all(&mut client, GET.as_bytes()).unwrap();
                client.set_nonblocking(true).unwrap();
                client
            })
            .collect();
        stage.close().await;
        stage.core.drain();
        for client in clients {
            let mut client = Raw::new(tokio::net::TcpStream::from_std(client).unwrap());
            assert!(client.head().await.contains("weft-reason: no_endpoints"));
        }
        let refused = tokio::net::TcpStream::connect(stage.address).await;
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    });
}

#[test]
fn who_comes_while_the_listener_closes_is_not_let_in_to_be_reset() {
    story(async {
        let mut stage = Stage::new(Speaks::Http1, &[]).await;
        let address = stage.address;
        let core = Rc::clone(&stage.core);
        // Some before, some during, some after: each is answered or refused.
        let client = async move {
            tokio::task::yield_now().await;
            let (mut answered, mut refused) = (0, 0);
            while refused == 0 {
                match tokio::net::TcpStream::connect(address).await {
                    Ok(stream) => {
                        let mut client = Raw::new(stream);
                        client.send(GET).await;
                        assert!(client.head().await.contains("no_endpoints"));
                        answered += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            answered
        };
        let close = async {
            until("somebody was answered", || {
                stage.answers(crate::reason::Reason::NoEndpoints) > 5
            })
            .await;
            stage.close().await;
            core.drain();
        };
        let (answered, ()) = tokio::join!(client, close);
        assert!(answered > 5, "{answered}");
    });
}

#[test]
fn there_are_only_so_many_seats() {
    story(async {
        let (origin, stage) = scene_with(Speaks::Http1, |setting| {
            setting.connections = 1;
        })
        .await;
        let mut first = stage.client().await;
        first.send(GET).await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        assert_eq!(stage.client().await.rest().await, "", "refused");
        endpoint.send(NO_CONTENT).await;
        first.head().await;
        drop(first);
        until("the seat is free", || stage.seats() == 0).await;
        let mut second = stage.client().await;
        second.send(GET).await;
        endpoint.head().await;
    });
}
