//! Whoever does not read stops whoever writes, and nobody else.

use std::time::Duration;

use bytes::Bytes;

use crate::cluster::Speaks;
use crate::testing::{H2Client, Raw, collect, request, scene, scene_with, story, until};

/// What kernels hold between two sockets at most, with room to spare.
const KERNEL: usize = 32 * 1024 * 1024;
const ENDLESS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";

#[test]
fn a_slow_reader_stops_the_endpoint() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = Raw::connect_narrow(stage.address).await;
        client.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send(ENDLESS).await;
        let sent = endpoint.send_until_stuck(2 * KERNEL).await;
        assert!(sent < KERNEL, "{sent} bytes were taken for nobody");
        // Others are not concerned.
        let mut other = stage.client().await;
        other.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        other.head().await;
    });
}

#[test]
fn a_slow_endpoint_stops_the_upload() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.client().await;
        client
            .send("PUT / HTTP/1.1\r\nhost: orders\r\ncontent-length: 1000000000\r\n\r\n")
            .await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        let sent = client.send_until_stuck(2 * KERNEL).await;
        assert!(sent < KERNEL, "{sent} bytes were taken for nobody");
    });
}

#[test]
fn a_stream_that_is_not_read_holds_little_and_stops_no_other() {
    story(async {
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = stage.h2_client().await;
        let (_unread, _) = client.send(request("GET", "/"), true).await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send(ENDLESS).await;
        let sent = endpoint.send_until_stuck(2 * KERNEL).await;
        assert!(sent < KERNEL, "{sent} bytes were taken for nobody");
        let (response, _) = client.send(request("GET", "/"), true).await;
        let mut other = origin.accept().await;
        other.head().await;
        other
            .send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        // The unread stream has used the connection's window up, which is the client's own choice; heads still come.
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn a_client_that_promises_to_read_and_does_not_is_not_believed() {
    story(async {
        const STREAMS: usize = 20;
        const SIZE: usize = 3 * 1024 * 1024;
        let (origin, stage) = scene(Speaks::Http1).await;
        let mut client = H2Client::connect(stage.address, |builder| {
            builder
                .initial_window_size(1 << 30)
                .initial_connection_window_size(1 << 30);
        })
        .await;
        let mut responses = Vec::new();
        let mut endpoints = Vec::new();
        for _ in 0..STREAMS {
            responses.push(client.send(request("GET", "/"), true).await);
            let mut endpoint = origin.accept().await;
            endpoint.head().await;
            endpoint.narrow();
            endpoints.push(endpoint);
        }
        // From here on nobody reads the client's socket.
        client.freeze();
        let mut writers = Vec::new();
        for mut endpoint in endpoints {
            writers.push(tokio::task::spawn_local(async move {
                endpoint
                    .send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"))
                    .await;
                endpoint.send_until_stuck(SIZE).await;
                endpoint
            }));
        }
        let mut held = Vec::new();
        for writer in writers {
            held.push(writer.await.unwrap());
        }
        drop((client, responses));
        until("all have ended", || {
            stage.edge().requests() == STREAMS as u64
        })
        .await;
        let taken = stage.edge().response_bytes as usize;
        // Of the kernel between us and the client, and ours.
        assert!(
            taken < STREAMS * 512 * 1024,
            "{taken} bytes were taken for nobody"
        );
    });
}

#[test]
fn a_large_body_crosses_all_codecs_unchanged() {
    story(async {
        let body: Bytes = (0..=255)
            .cycle()
            .take(3_000_003)
            .collect::<Vec<u8>>()
            .into();
        // Over HTTP/2 from the client, over either to the endpoint.
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let (origin, stage) = scene(speaks).await;
            let mut client = stage.h2_client().await;
            let (response, mut upload) = client.send(request("POST", "/"), false).await;
            let sent = body.clone();
            tokio::task::spawn_local(async move {
                crate::testing::send_all(&mut upload, sent, true).await;
            });
            if speaks == Speaks::Http2 {
                let mut endpoint = origin.accept_h2().await;
                let (asked, mut respond) = endpoint.request().await;
                let _driver = endpoint.run();
                let received = collect(asked.into_body()).await.unwrap();
                assert!(received == body);
                let mut answer = respond
                    .send_response(crate::testing::answer(200), false)
                    .unwrap();
                let answered = body.clone();
                tokio::task::spawn_local(async move {
                    crate::testing::send_all(&mut answer, answered, true).await;
                });
                assert!(collect(response.await.unwrap().into_body()).await.unwrap() == body);
            } else {
                let mut endpoint = origin.accept().await;
                endpoint.head().await;
                let mut received = Vec::new();
                loop {
                    let line = endpoint.read_to("\r\n").await;
                    let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
                    received.extend(endpoint.bytes(size).await);
                    endpoint.read_to("\r\n").await;
                    if size == 0 {
                        break;
                    }
                }
                assert!(received == body);
                let answered = body.clone();
                let writer = tokio::task::spawn_local(async move {
                    endpoint
                        .send(format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                            answered.len()
                        ))
                        .await;
                    endpoint.send(answered).await;
                });
                assert!(collect(response.await.unwrap().into_body()).await.unwrap() == body);
                writer.await.unwrap();
            }
        }
    });
}

/// One connection to a peer carries everybody's answers: what some do not read must not stop the others, nor be held.
#[test]
fn answers_that_nobody_reads_stop_no_other_on_the_same_connection() {
    story(async {
        const UNREAD: usize = 60;
        const SIZE: usize = 1024 * 1024;
        let (origin, stage) = scene(Speaks::Http2).await;
        let mut client = H2Client::connect(stage.address, |builder| {
            builder
                .initial_window_size(16 * 1024)
                .initial_connection_window_size(1 << 30);
        })
        .await;
        let mut unread = Vec::new();
        for _ in 0..UNREAD {
            unread.push(client.send(request("GET", "/unread"), true).await.0);
        }
        let mut endpoint = origin
            .accept_h2_with(|builder| {
                builder.max_send_buffer_size(16 * 1024);
            })
            .await;
        let body = Bytes::from(vec![b'x'; SIZE]);
        let mut streams = Vec::new();
        for _ in 0..UNREAD {
            let (_, mut respond) = endpoint.request().await;
            streams.push(
                respond
                    .send_response(crate::testing::answer(200), false)
                    .unwrap(),
            );
        }
        let (sent, mut respond) = {
            let (response, _) = client.send(request("GET", "/read"), true).await;
            let (_, respond) = endpoint.request().await;
            (response, respond)
        };
        let _driver = endpoint.run();
        let taken = std::rc::Rc::new(std::cell::Cell::new(0));
        let mut writers = Vec::new();
        for mut stream in streams {
            let (taken, mut left) = (std::rc::Rc::clone(&taken), body.clone());
            writers.push(tokio::task::spawn_local(async move {
                while !left.is_empty() {
                    stream.reserve_capacity(left.len());
                    let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                    let piece = left.split_to(capacity.unwrap().unwrap().min(left.len()));
                    taken.set(taken.get() + piece.len());
                    stream.send_data(piece, left.is_empty()).unwrap();
                }
            }));
        }
        // Taken from the endpoint for those who do not read: far less than all of it.
        let mut before = usize::MAX;
        while before != taken.get() {
            before = taken.get();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
        assert!(
            before < UNREAD * SIZE / 2,
            "{before} bytes were taken for nobody"
        );
        let mut stream = respond
            .send_response(crate::testing::answer(200), false)
            .unwrap();
        let whole = body.clone();
        tokio::task::spawn_local(async move {
            crate::testing::send_all(&mut stream, whole, true).await;
        });
        assert!(collect(sent.await.unwrap().into_body()).await.unwrap() == body);
        // Whoever reads later gets everything.
        for response in unread {
            let body = collect(response.await.unwrap().into_body()).await.unwrap();
            assert_eq!(body.len(), SIZE);
        }
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn a_head_that_we_do_not_read_for_want_of_room_has_not_stalled() {
    // SETTINGS with the widest window, the same for the connection, and a request.
    const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
        \0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\0\0\x04\x08\0\0\0\0\0\x7f\0\0\0\
        \0\0\x0b\x01\x05\0\0\0\x01\x82\x86\x84\x01\x06orders";
    // A PING, which is to be answered before anything else, and another request but for its last byte.
    const MORE: &[u8] =
        b"\0\0\x08\x06\0\0\0\0\0weftweft\0\0\x0b\x01\x05\0\0\0\x03\x82\x86\x84\x01\x06order";
    let patience = Duration::from_secs(1);
    story(async {
        let (origin, stage) = scene_with(Speaks::Http1, |setting| {
            setting.site.timeouts.head = patience;
        })
        .await;
        let mut client = Raw::connect_narrow(stage.address).await;
        client.send(BEGIN).await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        endpoint.send(ENDLESS).await;
        let sent = endpoint.send_until_stuck(2 * KERNEL).await;
        assert!(sent < 2 * KERNEL, "nobody reads it");
        client.send(MORE).await;
        tokio::time::sleep(3 * patience).await;
        assert_eq!(stage.seats(), 1);
        client.send("s").await;
        let reading = tokio::task::spawn_local(async move { client.drain().await });
        let mut other = origin.accept().await;
        assert!(other.head().await.starts_with("GET / "));
        reading.abort();
    });
}
