//! WebSockets from any client to any app: one stream of the mesh's connections each, told at once when it is over, and
//! weighing nothing while nothing is said.

#![allow(clippy::unwrap_used)]

mod frames;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::ext::Protocol;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::harness::told::at_most;
use super::harness::tunnel::Tunnel;
use super::harness::wire::{self, Head};
use super::harness::{Behaviour, Mesh, Service, Wire, eventually, soon};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What an app of HTTP/1.1 agrees with.
pub(crate) fn agreed(head: &Head) -> String {
    let key = head.field("sec-websocket-key").expect("a key");
    assert_eq!(STANDARD.decode(key).unwrap().len(), 16);
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    );
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
        STANDARD.encode(hash)
    )
}

/// Sends everything back.
fn echo() -> Behaviour {
    Behaviour::script(async |mut wire| {
        let Some(head) = wire.head().await else {
            return;
        };
        assert_eq!(head.word(0), "GET");
        assert_eq!(head.field("upgrade"), Some("websocket"), "{}", head.text);
        assert_eq!(head.field("sec-websocket-version"), Some("13"));
        assert_eq!(head.field("sec-websocket-protocol"), Some("chat"));
        assert_eq!(head.field(":protocol"), None);
        wire.write(agreed(&head)).await;
        loop {
            let piece = std::mem::take(&mut wire.read);
            if wire.try_write(&piece).await.is_err() || !wire.more().await.unwrap_or(false) {
                return;
            }
        }
    })
}

async fn mesh(behaviour: Behaviour) -> Mesh {
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .start()
        .await;
    mesh.origin("orders", 0).does(behaviour);
    mesh
}

/// The ingress, and the sidecar of a caller.
fn doors(mesh: &Mesh) -> [SocketAddr; 2] {
    [mesh.public(), mesh.outbound("storefront", 0)]
}

/// A WebSocket of HTTP/1.1.
async fn upgraded(door: SocketAddr) -> Wire {
    let mut client = Wire::connect(door).await;
    upgrade(&mut client, "orders", "/orders/socket").await;
    client
}

/// Turns a connection of HTTP/1.1 into a WebSocket.
pub(crate) async fn upgrade<S: wire::Stream>(client: &mut Wire<S>, host: &str, target: &str) {
    client
        .write(format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        ))
        .await;
    let head = soon("a head", client.head()).await.unwrap();
    assert_eq!(head.status(), 101, "{}", head.text);
    assert_eq!(head.field("sec-websocket-accept"), Some(ACCEPT));
    assert_eq!(head.field("sec-websocket-protocol"), Some("chat"));
}

/// A client of HTTP/2 that opens streams.
pub(crate) struct H2 {
    pub(crate) sender: h2::client::SendRequest<Bytes>,
    driver: Arc<JoinSet<()>>,
}

impl H2 {
    pub(crate) async fn connect(door: SocketAddr) -> Self {
        Self::over(Wire::connect(door).await.stream).await
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self::with(&h2::client::Builder::new(), stream).await
    }

    pub(crate) async fn with(
        builder: &h2::client::Builder,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let (mut sender, connection) = builder.handshake(stream).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _ = connection.await;
        });
        eventually("the settings are here", async || {
            poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
            sender.is_extended_connect_protocol_enabled().then_some(())
        })
        .await;
        Self {
            sender,
            driver: Arc::new(driver),
        }
    }

    async fn open(&mut self, protocol: &'static str) -> (StatusCode, HeaderMap, Wire<Tunnel>) {
        let uri = "http://orders/orders/socket";
        self.open_at(uri, protocol, b"").await
    }

    /// Asks for a tunnel, with these bytes right behind the question.
    pub(crate) async fn open_at(
        &mut self,
        uri: &str,
        protocol: &'static str,
        behind: &[u8],
    ) -> (StatusCode, HeaderMap, Wire<Tunnel>) {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .version(http::Version::HTTP_2)
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
            .body(())
            .unwrap();
        request
            .extensions_mut()
            .insert(Protocol::from_static(protocol));
        let (response, mut send) = self.sender.send_request(request, false).unwrap();
        if !behind.is_empty() {
            send.send_data(Bytes::copy_from_slice(behind), false)
                .unwrap();
        }
        let (parts, receive) = soon("an answer", response).await.unwrap().into_parts();
        let tunnel = Tunnel::new(send, receive, Arc::clone(&self.driver));
        (parts.status, parts.headers, Wire::new(tunnel))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_to_http1_crosses_the_mesh_on_its_one_connection() {
    let mesh = mesh(echo()).await;
    for door in doors(&mesh) {
        let mut clients = Vec::new();
        for number in 0..20_u8 {
            let mut client = upgraded(door).await;
            client.write([number; 100]).await;
            clients.push(client);
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let back = soon("the echo", client.exactly(100)).await;
            assert_eq!(back.unwrap(), [number as u8; 100]);
        }
    }
    // Sidecars and the gateway have one connection each to the app's sidecar (and core), whatever it carries.
    let host = mesh.replica("orders", 0).host;
    let parts = ["listener=\"inbound\""];
    let accepted = mesh
        .metric(host, "weft_connections_accepted_total", &parts)
        .await;
    assert!(accepted <= 4.0, "{accepted} connections for 40 WebSockets");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_reaches_an_app_of_http1() {
    let mesh = mesh(echo()).await;
    for door in doors(&mesh) {
        let mut client = H2::connect(door).await;
        let mut streams = Vec::new();
        for number in 0..5_u8 {
            let (status, headers, mut stream) = client.open("websocket").await;
            assert_eq!(status, 200);
            // What HTTP/1.1 needed is nobody else's business.
            for name in ["sec-websocket-accept", "upgrade", "connection"] {
                assert!(!headers.contains_key(name), "{headers:?}");
            }
            assert_eq!(headers["sec-websocket-protocol"], "chat");
            stream.write([number; 1000]).await;
            streams.push(stream);
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let back = soon("the echo", stream.exactly(1000)).await;
            assert_eq!(back.unwrap(), [number as u8; 1000]);
            stream.finish().await;
            let more = soon("the app's end", stream.more()).await;
            assert!(!more.unwrap(), "it ends with the app's");
        }
        let (status, _, _) = client.open("connect-udp").await;
        assert_eq!(status, 501, "no other protocol is tunnelled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_switch_is_not_taken_for_one_that_did() {
    let mesh = mesh(Behaviour::Answer).await;
    for door in doors(&mesh) {
        let mut client = H2::connect(door).await;
        let (status, headers, _) = client.open("websocket").await;
        assert_eq!(status, 502);
        assert_eq!(headers["weft-reason"], "upstream_malformed");
        mesh.origin("orders", 0).does(Behaviour::Status(403));
        let (status, headers, mut stream) = client.open("websocket").await;
        assert_eq!(
            (status.as_u16(), &headers["x-origin"]),
            (403, &"orders-0".parse().unwrap())
        );
        assert_eq!(stream.rest().await, b"orders-0");
        mesh.origin("orders", 0).does(Behaviour::Answer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_agrees_without_having_read_the_key_is_refused() {
    let forged = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let mesh = mesh(Behaviour::Bytes(forged.into())).await;
    let mut client = H2::connect(mesh.public()).await;
    let (status, headers, _) = client.open("websocket").await;
    assert_eq!(status, 502);
    assert_eq!(headers["weft-reason"], "upstream_malformed");
}

/// How long it may take until an end is told. Silence is noticed after five seconds: less than that shows that it was told.
fn at_once() -> Duration {
    at_most(Duration::from_secs(1), Duration::from_secs(4))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_app_is_told_at_once() {
    let mesh = mesh(echo()).await;
    for door in doors(&mesh) {
        let mut old = upgraded(door).await;
        let mut client = H2::connect(door).await;
        let (_, _, mut new) = client.open("websocket").await;
        old.write("a").await;
        assert_eq!(soon("the echo", old.exactly(1)).await.unwrap(), b"a");
        let app = mesh.origin("orders", 0);
        let start = Instant::now();
        app.stop().await;
        assert_eq!(old.rest().await, b"");
        // Ended or broken off; what it must not do is stay.
        assert_eq!(new.rest().await, b"");
        let took = start.elapsed();
        assert!(took < at_once(), "only after {took:?}");
        app.resume().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_apps_sidecar_is_told_at_once() {
    let mut mesh = mesh(echo()).await;
    let mut client = upgraded(mesh.public()).await;
    client.write("a").await;
    assert_eq!(soon("the echo", client.exactly(1)).await.unwrap(), b"a");
    let start = Instant::now();
    mesh.replica_mut("orders", 0).sidecar.kill();
    let _ = client.rest().await;
    let took = start.elapsed();
    assert!(took < at_once(), "only after {took:?}");
}

/// What an idle WebSocket may cost a process of the chain: two connections' worth at the ends, a stream in the middle.
const IDLE: u64 = 40 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_websocket_weighs_little() {
    const MANY: usize = 300;
    let mesh = mesh(echo()).await;
    let door = mesh.outbound("storefront", 0);
    let resident = |mesh: &Mesh| {
        [
            mesh.sidecar("storefront", 0).resident(),
            mesh.sidecar("orders", 0).resident(),
        ]
    };
    let mut clients = vec![upgraded(door).await];
    let before = resident(&mesh);
    for _ in 0..MANY {
        let mut client = upgraded(door).await;
        // Something large has been said both ways.
        client.write(vec![b'x'; 100_000]).await;
        soon("the echo", client.exactly(100_000)).await.unwrap();
        clients.push(client);
    }
    for (before, after) in before.into_iter().zip(resident(&mesh)) {
        let each = after.saturating_sub(before) / MANY as u64;
        assert!(each < IDLE, "{each} bytes each");
    }
}
