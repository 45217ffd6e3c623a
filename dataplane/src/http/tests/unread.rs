//! Whoever does not take what waits for it is given up, and nobody else is.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use crate::cluster::Speaks;
use crate::testing::{H2Client, Origin, Raw, Stage, collect, request, story, until};

/// What kernels hold between two sockets at most, with room to spare.
const KERNEL: usize = 32 * 1024 * 1024;
const ENDLESS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
/// How long readers are given.
const PATIENCE: Duration = Duration::from_secs(1);

async fn stage(origin: &Origin) -> Stage {
    Stage::with(Speaks::Http1, &[origin.address], |setting| {
        setting.site.timeouts.unread = PATIENCE;
    })
    .await
}

/// Waits until the stage has given somebody up and nothing is left of the exchange.
async fn given_up(stage: &Stage) {
    until("the reader is given up", || stage.given_up() == 1).await;
    until("its exchange has ended", || stage.in_flight() == 0).await;
}

#[test]
fn an_answer_that_is_not_read_is_given_up() {
    story(async {
        let origin = Origin::new().await;
        let stage = stage(&origin).await;
        let mut client = Raw::connect_narrow(stage.address).await;
        client.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send(ENDLESS).await;
        let writing = tokio::task::spawn_local(async move {
            // Broken off in the end.
            endpoint.pour(2 * KERNEL).await
        });
        given_up(&stage).await;
        assert!(writing.await.unwrap() < KERNEL);
        until("its connection has ended", || stage.seats() == 0).await;
        assert!(client.is_reset().await, "what it got was not everything");
    });
}

#[test]
fn pipelined_answers_that_are_not_read_are_given_up() {
    story(async {
        let origin = Origin::new().await;
        let stage = stage(&origin).await;
        let mut client = Raw::connect_narrow(stage.address).await;
        let answering = async {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 16384\r\n\r\n";
            let answer = [answer.as_bytes(), &[b'x'; 16_384]].concat();
            let mut endpoint = origin.accept().await;
            loop {
                endpoint.head().await;
                endpoint.send(&answer).await;
            }
        };
        let asked = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";
        let asking = tokio::task::spawn_local(async move {
            client.pour_text(asked, KERNEL).await;
            client
        });
        tokio::select! {
            () = answering => unreachable!("it goes on for ever"),
            () = until("the reader is given up", || stage.given_up() == 1) => {}
        }
        until("its connection has ended", || stage.seats() == 0).await;
        drop(asking.await.unwrap());
    });
}

#[test]
fn an_answer_that_says_little_has_no_slow_reader() {
    story(async {
        let origin = Origin::new().await;
        let stage = stage(&origin).await;
        let mut old = stage.client().await;
        old.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let mut first = origin.accept().await;
        first.head().await;
        let mut new = stage.h2_client().await;
        let (response, _) = new.send(request("GET", "/"), true).await;
        let mut second = origin.accept().await;
        second.head().await;
        for endpoint in [&mut first, &mut second] {
            endpoint
                .send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
                .await;
        }
        for _ in 0..10 {
            tokio::time::sleep(PATIENCE / 3).await;
            first.send("x").await;
            second.send("x").await;
        }
        old.head().await;
        assert_eq!(old.bytes(10).await, b"xxxxxxxxxx");
        let body = response.await.unwrap().into_body();
        assert_eq!(collect(body).await.unwrap(), b"xxxxxxxxxx");
        assert_eq!(stage.given_up(), 0);
    });
}

#[test]
fn a_stream_whose_window_is_opened_by_a_byte_now_and_then_is_reset_and_no_other() {
    story(async {
        let origin = Origin::new().await;
        let stage = stage(&origin).await;
        let mut client = H2Client::connect(stage.address, |builder| {
            builder.initial_window_size(1);
        })
        .await;
        let (response, _) = client.send(request("GET", "/"), true).await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send(ENDLESS).await;
        endpoint.send([b'x'; 4096]).await;
        let mut body = response.await.unwrap().into_body();
        let error = loop {
            match body.data().await.unwrap() {
                Ok(data) => {
                    tokio::time::sleep(PATIENCE / 20).await;
                    let _: Result<(), h2::Error> = body.flow_control().release_capacity(data.len());
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
        given_up(&stage).await;
        // The connection is as good as before.
        let (response, _) = client.send(request("GET", "/"), true).await;
        let mut other = origin.accept().await;
        other.head().await;
        other
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let body = response.await.unwrap().into_body();
        assert_eq!(collect(body).await.unwrap(), b"ok");
        assert_eq!(stage.given_up(), 1);
    });
}

#[test]
fn a_connection_that_takes_nothing_is_ended_with_all_its_streams() {
    story(async {
        let origin = Origin::new().await;
        let stage = stage(&origin).await;
        let mut client = H2Client::connect(stage.address, |builder| {
            builder
                .initial_window_size(1 << 30)
                .initial_connection_window_size(1 << 30);
        })
        .await;
        let mut responses = Vec::new();
        let mut writers = Vec::new();
        for _ in 0..3 {
            responses.push(client.send(request("GET", "/"), true).await);
            let mut endpoint = origin.accept().await;
            endpoint.head().await;
            endpoint.send(ENDLESS).await;
            writers.push(tokio::task::spawn_local(async move {
                endpoint.pour(2 * KERNEL).await
            }));
        }
        client.freeze();
        until("the connection has ended", || stage.seats() == 0).await;
        until("nothing is in flight", || stage.in_flight() == 0).await;
        for writer in writers {
            assert!(writer.await.unwrap() < KERNEL);
        }
        assert_eq!(stage.given_up(), 1, "one reader, whatever it had asked for");
    });
}

#[test]
fn a_websocket_that_is_not_read_is_given_up() {
    story(async {
        let origin = Origin::new().await;
        let stage = stage(&origin).await;
        let mut client = Raw::connect_narrow(stage.address).await;
        client
            .send("GET /chat HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint
            .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        client.head().await;
        // One that is quiet for longer than that has nothing waiting for it.
        tokio::time::sleep(2 * PATIENCE).await;
        assert_eq!(stage.given_up(), 0);
        let writing = tokio::task::spawn_local(async move { endpoint.pour(2 * KERNEL).await });
        given_up(&stage).await;
        assert!(writing.await.unwrap() < KERNEL);
        until("its connection has ended", || stage.seats() == 0).await;
    });
}

/// A way to there that lets through so many bytes every 10 ms to whoever comes by it.
async fn slow_way(to: SocketAddr, bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut client = listener.accept().await.unwrap().0;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(128 * 1024).unwrap();
        let mut server = socket.connect(to).await.unwrap();
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let down = async {
            let (mut piece, mut passed) = (vec![0; bytes], 0);
            let start = tokio::time::Instant::now();
            while let Ok(length @ 1..) = from_server.read(&mut piece).await {
                if to_client.write_all(&piece[..length]).await.is_err() {
                    return;
                }
                // So many bytes every 10 ms, in however small pieces they come.
                passed += length;
                let due = Duration::from_millis((10 * passed / bytes) as u64);
                tokio::time::sleep_until(start + due).await;
            }
        };
        let _ = tokio::join!(tokio::io::copy(&mut from_client, &mut to_server), down);
    });
    address
}

/// Streams wait for each other on a connection that is slow. While it moves, that is nobody's fault.
#[test]
fn streams_of_a_slow_connection_are_not_given_up() {
    story(async {
        const STREAMS: usize = 200;
        const SIZE: usize = 64 * 1024;
        // So long that a machine that halts for a moment is not taken for a connection that does not move. A stream waits for
        // longer than that for its next 16 KiB.
        const PATIENCE: Duration = Duration::from_secs(3);
        let origin = Origin::new().await;
        let stage = Stage::with(Speaks::Http1, &[origin.address], |setting| {
            setting.site.timeouts.unread = PATIENCE;
            setting.site.http2.streams = 2 * STREAMS as u32;
            setting.site.http2.send_buffer = 16 * 1024;
        })
        .await;
        let way = slow_way(stage.address, 7 * 1024).await;
        let mut client = H2Client::connect(way, |builder| {
            builder
                .initial_window_size(1 << 30)
                .initial_connection_window_size(1 << 30);
        })
        .await;
        let mut responses = Vec::new();
        for _ in 0..STREAMS {
            responses.push(client.send(request("GET", "/"), true).await.0);
            let mut endpoint = origin.accept().await;
            endpoint.head().await;
            tokio::task::spawn_local(async move {
                // One exchange a connection: what is answered soon would be used again, and is not waited for above.
                let head = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {SIZE}\r\n\r\n"
                );
                endpoint.send(head).await;
                endpoint.send(vec![b'x'; SIZE]).await;
                endpoint.rest().await
            });
        }
        let start = std::time::Instant::now();
        for response in responses {
            let body = response.await.unwrap().into_body();
            assert_eq!(collect(body).await.unwrap().len(), SIZE);
        }
        assert!(start.elapsed() > 3 * PATIENCE, "it was not slow");
        assert_eq!(stage.given_up(), 0);
    });
}
