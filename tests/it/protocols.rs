//! What HTTP can do, it can do through the mesh: byte by byte from the client through gateway and sidecars to the app.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::{mpsc, watch};

use crate::harness::client::{piped, whole};
use crate::harness::{Behaviour, Client, Mesh, Service, Wire, settled, soon};
use crate::websocket::H2;

/// `orders` behind the ingress, and `storefront`, whose app calls it by its sidecar.
async fn mesh() -> Mesh {
    Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .start()
        .await
}

async fn doing(behaviour: Behaviour) -> Mesh {
    let mesh = mesh().await;
    mesh.origin("orders", 0).does(behaviour);
    mesh
}

/// The two ways to `orders`: from outside, and from an app beside a sidecar.
fn doors(mesh: &Mesh) -> [std::net::SocketAddr; 2] {
    [mesh.public(), mesh.outbound("storefront", 0)]
}

const GET: &str = "GET /orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_one_exchange_after_the_other() {
    let mesh = mesh().await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        for _ in 0..5 {
            let (head, content) = client.exchange(GET).await;
            assert_eq!((head.status(), &*content.bytes), (200, &b"orders-0"[..]));
            assert_eq!(head.field("connection"), None, "{}", head.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_their_order() {
    let mesh = doing(Behaviour::Echo).await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        let requests: String = (0..10)
            .map(|n| {
                format!("PUT /orders/{n} HTTP/1.1\r\nHost: orders\r\nContent-Length: 1\r\n\r\n{n}")
            })
            .collect();
        client.write(requests).await;
        for n in 0..10 {
            let (head, content) = client.answer().await;
            assert_eq!(
                (head.status(), content.bytes),
                (200, n.to_string().into_bytes())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_and_trailers_go_both_ways() {
    let mesh = doing(Behaviour::Echo).await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        let request = "POST /orders/1 HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x-sum\r\n\r\n\
                       5\r\nhello\r\n6;note=1\r\n world\r\n0\r\nX-Sum: 42\r\n\r\n";
        let (head, content) = client.exchange(request).await;
        assert_eq!((head.status(), &*content.bytes), (200, &b"hello world"[..]));
        assert_eq!(content.trailers.len(), 1, "{content:?}");
        assert!(
            content.trailers[0].eq_ignore_ascii_case("x-sum: 42"),
            "{content:?}"
        );
        // And the connection is still in step.
        let (head, _) = client.exchange(GET).await;
        assert_eq!(head.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_head_has_a_length_and_no_body() {
    let mesh = mesh().await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        client
            .write("HEAD /orders/1 HTTP/1.1\r\nHost: orders\r\n\r\n")
            .await;
        let head = soon("a head", client.head()).await.unwrap();
        assert_eq!(
            (head.status(), head.field("content-length")),
            (200, Some("8"))
        );
        let (head, content) = client.exchange(GET).await;
        assert_eq!((head.status(), &*content.bytes), (200, &b"orders-0"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_may_it_go_on_hears_the_apps_word() {
    let mesh = doing(Behaviour::Echo).await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        let head = "POST /orders/1 HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
        client.write(head).await;
        let interim = soon("the go-ahead", client.head()).await.unwrap();
        assert_eq!(interim.status(), 100, "{}", interim.text);
        let (head, content) = client.exchange("hello").await;
        assert_eq!((head.status(), &*content.bytes), (200, &b"hello"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_may_it_go_on_can_be_told_no() {
    let mesh = doing(Behaviour::Early(413)).await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        client
            .write("POST /orders/1 HTTP/1.1\r\nHost: orders\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n")
            .await;
        let (head, _) = client.answer().await;
        assert_eq!(head.status(), 413, "{}", head.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_are_passed_on() {
    let mesh = doing(Behaviour::Bytes(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            .to_vec(),
    ))
    .await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        let (hints, _) = client.exchange(GET).await;
        assert_eq!(hints.status(), 103, "{}", hints.text);
        assert_eq!(hints.field("link"), Some("</a.css>; rel=preload"));
        let (head, content) = client.answer().await;
        assert_eq!((head.status(), &*content.bytes), (200, &b"ok"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_arrives_while_the_body_is_still_sent() {
    let mesh = doing(Behaviour::Early(202)).await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        client
            .write("POST /orders/1 HTTP/1.1\r\nHost: orders\r\nContent-Length: 10\r\n\r\nfirst")
            .await;
        let (head, content) = client.answer().await;
        assert_eq!((head.status(), &*content.bytes), (202, &b"orders-0"[..]));
        // Whoever sends on all the same is not reset, which could cost it the answer, and can ask again.
        client.write("-last").await;
        let (head, content) = client
            .exchange("GET /orders/2 HTTP/1.1\r\nHost: orders\r\n\r\n")
            .await;
        assert_eq!((head.status(), &*content.bytes), (202, &b"orders-0"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_goes_on_while_a_long_answer_does() {
    let mesh = doing(Behaviour::script(async |mut wire| {
        let Some(_) = wire.head().await else { return };
        wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        let body = wire.exactly(10).await.unwrap();
        assert_eq!(body, b"first-last");
        wire.write("4\r\ndone\r\n0\r\n\r\n").await;
    }))
    .await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        client
            .write("POST /orders/1 HTTP/1.1\r\nHost: orders\r\nContent-Length: 10\r\n\r\nfirst")
            .await;
        let head = soon("a head", client.head()).await.unwrap();
        client.write("-last").await;
        let content = soon("the answer", client.content(&head)).await.unwrap();
        assert_eq!((head.status(), &*content.bytes), (200, &b"done"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_ended_its_side_is_still_answered() {
    let mesh = doing(Behaviour::Slow(Duration::from_millis(300))).await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        client.write(GET).await;
        client.finish().await;
        let (mut head, mut content) = client.answer().await;
        if head.status() == 100 {
            // Asked whether it is still there, which every client of HTTP/1.1 takes.
            (head, content) = client.answer().await;
        }
        assert_eq!((head.status(), &*content.bytes), (200, &b"orders-0"[..]));
        assert!(client.rest().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_with_the_connection_is_whole() {
    let mesh = doing(Behaviour::script(async |mut wire| {
        wire.head().await;
        wire.write("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
            .await;
    }))
    .await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        let (head, content) = client.exchange(GET).await;
        assert_eq!((head.status(), &*content.bytes), (200, &b"all of it"[..]));
        // An old client gets it the old way.
        let mut client = Wire::connect(door).await;
        client
            .write("GET /orders/1 HTTP/1.0\r\nHost: orders\r\n\r\n")
            .await;
        let head = soon("a head", client.head()).await.unwrap();
        assert_eq!(head.field("transfer-encoding"), None, "{}", head.text);
        assert_eq!(client.rest().await, b"all of it");
    }
}

/// Agrees to become a tunnel, greets in the same segment, and then sends everything back.
fn tunnel() -> Behaviour {
    Behaviour::script(async |mut wire| {
        let Some(head) = wire.head().await else {
            return;
        };
        assert_eq!(head.field("upgrade"), Some("websocket"), "{}", head.text);
        wire.write(super::websocket::agreed(&head)).await;
        wire.write("welcome ").await;
        loop {
            let piece = std::mem::take(&mut wire.read);
            if wire.try_write(&piece).await.is_err() || !wire.more().await.unwrap_or(false) {
                break;
            }
        }
        wire.write("bye").await;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_a_tunnel_from_the_client_to_the_app() {
    let mesh = doing(tunnel()).await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        // With frames behind the handshake, in the same segment.
        client
            .write(
                "GET /orders/socket HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nfirst ",
            )
            .await;
        let head = soon("a head", client.head()).await.unwrap();
        assert_eq!(head.status(), 101, "{}", head.text);
        assert_eq!(
            head.field("sec-websocket-accept"),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
        let greeting = soon("the echo", client.exactly(b"welcome first ".len())).await;
        assert_eq!(greeting.unwrap(), b"welcome first ");
        for round in 0..10_u8 {
            client.write([round; 1000]).await;
            let back = soon("the echo", client.exactly(1000)).await;
            assert_eq!(back.unwrap(), [round; 1000]);
        }
        // One side ends, the other still has a last word.
        client.finish().await;
        assert_eq!(client.rest().await, b"bye");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let mesh = mesh().await;
    for door in doors(&mesh) {
        let mut client = Wire::connect(door).await;
        let (head, content) = client
            .exchange(
                "GET /orders/socket HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await;
        assert_eq!((head.status(), &*content.bytes), (200, &b"orders-0"[..]));
        let (head, _) = client.exchange(GET).await;
        assert_eq!(head.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbound_port_is_an_http_proxy() {
    let mesh = mesh().await;
    let mut app = Wire::connect(mesh.outbound("storefront", 0)).await;
    let (head, content) = app
        .exchange("GET http://orders/orders/1?a=b HTTP/1.1\r\nHost: somebody-else\r\nProxy-Connection: keep-alive\r\n\r\n")
        .await;
    assert_eq!((head.status(), &*content.bytes), (200, &b"orders-0"[..]));
    let seen = mesh.origin("orders", 0).seen();
    let last = seen.last().unwrap();
    assert_eq!(last.target(), "/orders/1?a=b");
    assert_eq!(last.head.field("host"), Some("orders"));
    assert_eq!(last.head.field("proxy-connection"), None);
    let (head, _) = app
        .exchange("GET http://nobody/ HTTP/1.1\r\nHost: nobody\r\n\r\n")
        .await;
    assert_eq!(
        (head.status(), head.field("weft-reason")),
        (404, Some("no_service"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_by_prior_knowledge_and_by_alpn() {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .tls()
        .start()
        .await;
    let h2 = mesh.authority.client(&["h2"]);
    let http1 = mesh.authority.client(&["http/1.1"]);
    let inside = "http://orders/orders/1".to_owned();
    for (client, url, version) in [
        (
            Client::h2c(mesh.public()).await,
            mesh.url("/orders/1"),
            http::Version::HTTP_2,
        ),
        (
            Client::h2c(mesh.outbound("storefront", 0)).await,
            inside,
            http::Version::HTTP_2,
        ),
        (
            Client::tls(mesh.secure(), h2, "edge.test").await,
            "https://edge.test/orders/1".to_owned(),
            http::Version::HTTP_2,
        ),
        (
            Client::tls(mesh.secure(), http1, "edge.test").await,
            "https://edge.test/orders/1".to_owned(),
            http::Version::HTTP_11,
        ),
    ] {
        for _ in 0..3 {
            let mut request = Request::get(&url).body(whole("")).unwrap();
            if version == http::Version::HTTP_11 {
                request
                    .headers_mut()
                    .insert("host", "edge.test".parse().unwrap());
            }
            let reply = client.send(request).await;
            assert_eq!((reply.code(), &*reply.text()), (200, "orders-0"), "{url}");
            assert_eq!(reply.version, version);
        }
        // Many at once on one connection.
        if version == http::Version::HTTP_2 {
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..50 {
                let (client, url) = (client.clone(), url.clone());
                all.spawn(async move { client.get(&url).await.code() });
            }
            assert!(all.join_all().await.iter().all(|code| *code == 200));
        }
    }
    let seen = mesh.origin("orders", 0).seen();
    assert!(
        seen.iter()
            .any(|seen| seen.head.field("x-forwarded-proto") == Some("https"))
    );
}

/// A stream of events that the test feeds.
fn events() -> (mpsc::Sender<String>, Behaviour) {
    let (events, queue) = mpsc::channel::<String>(1);
    let queue = Arc::new(tokio::sync::Mutex::new(queue));
    let behaviour = Behaviour::script(move |mut wire| {
        let queue = Arc::clone(&queue);
        async move {
            wire.head().await;
            wire.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            while let Some(event) = queue.lock().await.recv().await {
                wire.write(format!("{:x}\r\n{event}\r\n", event.len()))
                    .await;
            }
            wire.write("0\r\n\r\n").await;
        }
    });
    (events, behaviour)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_before_the_next_one_is_sent() {
    let mesh = mesh().await;
    for door in doors(&mesh) {
        let (events, behaviour) = events();
        mesh.origin("orders", 0).does(behaviour);
        let mut client = Wire::connect(door).await;
        client.write(GET).await;
        // The head arrives before there is any event at all.
        let head = soon("a head", client.head()).await.unwrap();
        assert_eq!(head.field("content-type"), Some("text/event-stream"));
        for number in 0..20 {
            let event = format!("data: {number}\n\n");
            events.send(event.clone()).await.unwrap();
            let chunk = soon("the event", client.chunk()).await.flatten().unwrap();
            assert_eq!(chunk, event.as_bytes());
        }
        drop(events);
        assert_eq!(soon("the end", client.chunk()).await, Some(None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_at_once_over_http2_too() {
    let mesh = mesh().await;
    for door in doors(&mesh) {
        let (events, behaviour) = events();
        mesh.origin("orders", 0).does(behaviour);
        let client = Client::h2c(door).await;
        let request = Request::get("http://orders/orders/1")
            .body(whole(""))
            .unwrap();
        let mut answer = client.begin(request).await.unwrap().into_body();
        for number in 0..20 {
            let event = format!("data: {number}\n\n");
            events.send(event.clone()).await.unwrap();
            let frame = soon("the event", answer.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event.as_bytes());
        }
        drop(events);
        while let Some(frame) = soon("the end", answer.frame()).await {
            assert!(frame.unwrap().into_data().unwrap().is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_http2_and_http1() {
    let mesh = doing(Behaviour::script(async |mut wire| {
        while let Some(head) = wire.head().await {
            assert_eq!(head.field("cookie"), Some("a=1; b=2"), "{}", head.text);
            if head.field("expect").is_some() {
                wire.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            }
            wire.write("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
                .await;
            let fields = "Set-Cookie: one=1\r\nSet-Cookie: two=2\r\n";
            if head.word(0) == "HEAD" {
                wire.write(format!(
                    "HTTP/1.1 200 OK\r\n{fields}Content-Length: 1234\r\n\r\n"
                ))
                .await;
                continue;
            }
            let content = wire.content(&head).await.unwrap();
            assert_eq!(content.trailers, ["x-up: 1"], "{}", head.text);
            let body = String::from_utf8(content.bytes).unwrap();
            wire.write(format!(
                "HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\nX-Down: 2\r\n\r\n",
                body.len()
            ))
            .await;
        }
    }))
    .await;
    for door in doors(&mesh) {
        let mut client = H2::connect(door).await;
        let request = |method: &str| {
            Request::builder()
                .method(method)
                .uri("http://orders/orders/1")
                .version(http::Version::HTTP_2)
                .header("cookie", "a=1")
                .header("cookie", "b=2")
        };
        let cookies = |head: &http::response::Parts| {
            let all = head.headers.get_all("set-cookie").iter();
            all.map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };

        let head = request("HEAD").body(()).unwrap();
        let (mut answer, _) = client.sender.send_request(head, true).unwrap();
        let hints = soon("the hints", informed(&mut answer)).await;
        assert_eq!(
            (hints.status().as_u16(), &hints.headers()["link"]),
            (103, &"</a.css>".parse().unwrap())
        );
        let (head, body) = soon("an answer", answer).await.unwrap().into_parts();
        assert_eq!(head.headers["content-length"], "1234");
        assert_eq!(cookies(&head), ["one=1", "two=2"]);
        assert!(body.is_end_stream());

        let post = request("POST")
            .header("expect", "100-continue")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (mut answer, mut send) = client.sender.send_request(post, false).unwrap();
        let go_on = soon("the go-ahead", informed(&mut answer)).await;
        assert_eq!(go_on.status(), 100);
        send.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-up", "1".parse().unwrap());
        send.send_trailers(trailers).unwrap();
        let (head, mut body) = soon("an answer", answer).await.unwrap().into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(cookies(&head), ["one=1", "two=2"]);
        let mut read = Vec::new();
        while let Some(piece) = soon("the body", body.data()).await {
            read.extend(piece.unwrap());
        }
        assert_eq!(read, b"hello");
        let trailers = soon("trailers", body.trailers()).await.unwrap().unwrap();
        assert_eq!(trailers["x-down"], "2");
    }
}

/// The next interim answer.
async fn informed(answer: &mut h2::client::ResponseFuture) -> http::Response<()> {
    std::future::poll_fn(|cx| answer.poll_informational(cx))
        .await
        .expect("an interim answer")
        .unwrap()
}

const LARGE: usize = 64 << 20;
/// What a process may grow by while a body passes through that nobody takes: windows, buffers, and allocators' habits.
const GROWTH: u64 = 24 << 20;

/// Asserts that ingress and sidecar have not taken in a body that was to pass through them.
fn assert_small(mesh: &Mesh, before: [u64; 2]) {
    let now = [
        mesh.ingress().resident(),
        mesh.sidecar("orders", 0).resident(),
    ];
    for (before, now) in before.iter().zip(now) {
        assert!(now < before + GROWTH, "from {before} to {now} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_streams_through_as_fast_as_the_app_reads() {
    let (read, reading) = watch::channel(false);
    let mesh = doing(Behaviour::script(move |mut wire| {
        let mut reading = reading.clone();
        async move {
            let Some(head) = wire.head().await else {
                return;
            };
            assert_eq!(head.field("content-length"), Some(&*LARGE.to_string()));
            if reading.wait_for(|read| *read).await.is_err() {
                return;
            }
            let mut count = wire.read.len();
            wire.read.clear();
            while count < LARGE && wire.more().await.unwrap_or(false) {
                count += wire.read.len();
                wire.read.clear();
            }
            let body = count.to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            // Nobody listens any more where the upload broke off.
            let _ = wire.try_write(answer).await;
        }
    }))
    .await;
    let before = [
        mesh.ingress().resident(),
        mesh.sidecar("orders", 0).resident(),
    ];
    let mut client = Wire::connect(mesh.public()).await;
    client
        .write(format!(
            "POST /orders/1 HTTP/1.1\r\nHost: orders\r\nContent-Length: {LARGE}\r\n\r\n"
        ))
        .await;
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    // Until nothing more is taken: the app does not read yet.
    while let Ok(()) = tokio::time::timeout(Duration::from_secs(1), client.write(&piece)).await {
        sent += piece.len();
        assert!(sent < LARGE, "all of it was taken in by somebody");
    }
    assert_small(&mesh, before);
    // The last piece may have been taken in part: another exchange shows that a whole one arrives.
    drop(client);
    read.send_replace(true);
    let reply = mesh.post("/orders/1", vec![b'x'; LARGE]).await;
    assert_eq!(reply.text(), LARGE.to_string());
    assert_small(&mesh, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_download_streams_through_as_fast_as_the_client_reads() {
    let sent = Arc::new(AtomicUsize::new(0));
    let written = Arc::clone(&sent);
    let mesh = doing(Behaviour::script(move |mut wire| {
        let written = Arc::clone(&written);
        async move {
            wire.head().await;
            wire.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"
            ))
            .await;
            let piece = vec![b'x'; 64 << 10];
            for _ in 0..LARGE / piece.len() {
                if wire.try_write(&piece).await.is_err() {
                    return;
                }
                written.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    }))
    .await;
    let before = [
        mesh.ingress().resident(),
        mesh.sidecar("orders", 0).resident(),
    ];
    let mut client = Wire::connect(mesh.public()).await;
    client.write(GET).await;
    assert_eq!(soon("a head", client.head()).await.unwrap().status(), 200);
    // Nobody reads; whoever buffers does it now.
    settled(&sent).await;
    assert!(sent.load(Ordering::Relaxed) < LARGE);
    assert_small(&mesh, before);
    let mut count = client.read.len();
    client.read.clear();
    while count < LARGE && soon("more", client.more()).await.unwrap() {
        count += client.read.len();
        client.read.clear();
    }
    assert_eq!(count, LARGE);
    assert_small(&mesh, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_go_both_ways_at_the_same_time_over_http2() {
    let mesh = doing(Behaviour::script(async |mut wire| {
        let Some(_) = wire.head().await else { return };
        wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        while let Some(Some(chunk)) = wire.chunk().await {
            wire.write(format!("{:x}\r\n", chunk.len())).await;
            wire.write(chunk).await;
            wire.write("\r\n").await;
        }
        wire.write("0\r\n\r\n").await;
    }))
    .await;
    let client = Client::h2c(mesh.public()).await;
    let (pieces, body) = piped();
    let mut answer = client
        .begin(Request::post(mesh.url("/orders/1")).body(body).unwrap())
        .await
        .unwrap()
        .into_body();
    for number in 0..10 {
        let piece = Bytes::from(format!("piece {number}"));
        pieces.send(Frame::data(piece.clone())).await.unwrap();
        let back = soon("the piece", answer.frame()).await.unwrap().unwrap();
        assert_eq!(back.into_data().unwrap(), piece);
    }
    drop(pieces);
    while let Some(frame) = soon("the end", answer.frame()).await {
        assert!(
            frame.unwrap().into_data().unwrap().is_empty(),
            "more than was sent"
        );
    }
}
