//! gRPC through the mesh: all kinds of calls, with their trailers, and our own errors as a `grpc-status`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::harness::client::{Body, piped, whole};
use crate::harness::{Client, Mesh, Service, soon};

/// A message with gRPC's prefix.
fn message(text: &str) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(text.len()).unwrap());
    bytes.put_slice(text.as_bytes());
    bytes.freeze()
}

fn status(code: &'static str, words: &'static str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", HeaderValue::from_static(code));
    fields.insert("grpc-message", HeaderValue::from_static(words));
    fields
}

/// Reads messages, however they are cut into frames.
struct Messages {
    body: Incoming,
    read: BytesMut,
    trailers: Option<HeaderMap>,
}

impl Messages {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            read: BytesMut::new(),
            trailers: None,
        }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if self.read.len() >= 5 {
                let length = u32::from_be_bytes(self.read[1..5].try_into().unwrap()) as usize;
                if self.read.len() >= 5 + length {
                    let message = self.read.split_to(5 + length);
                    return Some(String::from_utf8_lossy(&message[5..]).into_owned());
                }
            }
            let frame = soon("a frame", self.body.frame()).await?.ok()?;
            match frame.into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }
}

/// How often each text was said to a unary method.
pub(crate) type Heard = Arc<Mutex<BTreeMap<String, usize>>>;

/// An app that speaks gRPC over HTTP/2 by prior knowledge; it lives as long as the set.
pub(crate) async fn app(address: SocketAddr, heard: &Heard) -> JoinSet<()> {
    let heard = Arc::clone(heard);
    let listener = TcpListener::bind(address).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let heard = Arc::clone(&heard);
            connections.spawn(async move {
                let answer = |request| answer(request, Arc::clone(&heard));
                let service = hyper::service::service_fn(answer);
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    tasks
}

async fn answer(request: Request<Incoming>, heard: Heard) -> Result<Response<Body>, Infallible> {
    assert_eq!(request.headers().get("te").unwrap(), "trailers");
    let kind = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let mut answer = Response::builder().header("content-type", "application/grpc");
    let told = request.headers().get("grpc-timeout");
    let told = told.map_or("", |told| told.to_str().unwrap()).to_owned();
    // Trailers only: all there is to say is in the head.
    let only = match &*kind {
        "Missing" => Some(status("12", "no%20such%20method")),
        // Whoever comes first is to come again in a second.
        "Deadline" if !request.headers().contains_key("weft-attempt") => {
            let mut fields = status("14", "later");
            let second = HeaderValue::from_static("1000");
            fields.insert("grpc-retry-pushback-ms", second);
            Some(fields)
        }
        _ => None,
    };
    if let Some(fields) = only {
        for (name, value) in &fields {
            answer = answer.header(name, value);
        }
        return Ok(answer.body(whole("")).unwrap());
    }
    let (pieces, body) = piped();
    hyper::rt::Executor::execute(
        &TokioExecutor::new(),
        talk(
            kind,
            told,
            Messages::new(request.into_body()),
            pieces,
            heard,
        ),
    );
    Ok(answer.body(body).unwrap())
}

/// What `grpc-timeout` says, which we say in microseconds.
fn micros(told: &str) -> u64 {
    let number = told.strip_suffix('u').expect("microseconds");
    number.parse().unwrap()
}

async fn talk(
    kind: String,
    told: String,
    mut messages: Messages,
    pieces: mpsc::Sender<Frame<Bytes>>,
    heard: Heard,
) {
    let say = async |text: String| {
        let _ = pieces.send(Frame::data(message(&text))).await;
    };
    match &*kind {
        "Deadline" => say(told).await,
        "Unary" | "Fails" => {
            let text = messages.next().await.unwrap();
            *heard.lock().unwrap().entry(text.clone()).or_default() += 1;
            say(text).await;
        }
        "Server" => {
            let text = messages.next().await.unwrap();
            for number in 0..3 {
                say(format!("{text} {number}")).await;
            }
        }
        "Client" => {
            let mut count = 0;
            while messages.next().await.is_some() {
                count += 1;
            }
            say(format!("{count} messages")).await;
        }
        _ => {
            while let Some(text) = messages.next().await {
                say(format!("heard {text}")).await;
            }
        }
    }
    let trailers = match &*kind {
        "Fails" => status("9", "not%20now"),
        _ => status("0", ""),
    };
    let _ = pieces.send(Frame::trailers(trailers)).await;
}

/// `greeter` beside its app, behind the ingress.
async fn greeter() -> (Mesh, JoinSet<()>) {
    greeter_with("timeout: 2s").await
}

async fn greeter_with(line: &str) -> (Mesh, JoinSet<()>) {
    let mesh = Mesh::new()
        .service(
            Service::new("greeter")
                .with("protocol: grpc")
                .with(line)
                .without_apps(),
        )
        .service(Service::new("storefront"))
        .route("/test.Greeter/*", "greeter")
        .start()
        .await;
    let host = mesh.replica("greeter", 0).host;
    let app = app(SocketAddr::new(host, mesh.ports.app()), &Heard::default()).await;
    (mesh, app)
}

pub(crate) struct Call {
    pieces: Option<mpsc::Sender<Frame<Bytes>>>,
    head: http::response::Parts,
    answer: Messages,
}

/// Calls a method with a first message, which stays open.
pub(crate) async fn call(client: &Client, method: &str, first: &str) -> Call {
    call_with(client, method, first, &[]).await
}

/// The same with these fields.
async fn call_with(client: &Client, method: &str, first: &str, fields: &[(&str, &str)]) -> Call {
    let (pieces, body) = piped();
    let mut request = Request::post(format!("http://greeter/test.Greeter/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(body).unwrap();
    pieces.send(Frame::data(message(first))).await.unwrap();
    let (head, body) = client.begin(request).await.unwrap().into_parts();
    Call {
        pieces: Some(pieces),
        head,
        answer: Messages::new(body),
    }
}

impl Call {
    fn ends(&mut self) {
        self.pieces = None;
    }

    pub(crate) async fn says(&mut self, text: &str) {
        let pieces = self.pieces.as_ref().unwrap();
        pieces.send(Frame::data(message(text))).await.unwrap();
    }

    pub(crate) async fn hears(&mut self) -> Option<String> {
        self.answer.next().await
    }

    /// What is left of the answer, and its status.
    pub(crate) async fn finishes(mut self) -> (Vec<String>, String, String) {
        self.ends();
        let mut messages = Vec::new();
        while let Some(text) = self.answer.next().await {
            messages.push(text);
        }
        let fields = self.answer.trailers.unwrap_or(self.head.headers);
        let field = |name: &str| {
            let value = fields.get(name).map(|value| value.to_str().unwrap());
            value.unwrap_or_default().to_owned()
        };
        (messages, field("grpc-status"), field("grpc-message"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_of_calls_work_with_their_trailers() {
    let (mesh, _app) = greeter().await;
    for door in [mesh.public(), mesh.outbound("storefront", 0)] {
        let client = Client::h2c(door).await;
        let unary = call(&client, "Unary", "hello").await;
        assert_eq!(unary.head.headers["content-type"], "application/grpc");
        assert_eq!(
            unary.finishes().await,
            (vec!["hello".into()], "0".into(), String::new())
        );

        let server = call(&client, "Server", "n").await.finishes().await;
        assert_eq!(
            (server.0.join(","), &*server.1),
            ("n 0,n 1,n 2".into(), "0")
        );

        let mut streaming = call(&client, "Client", "one").await;
        streaming.says("two").await;
        streaming.says("three").await;
        let (messages, status, _) = streaming.finishes().await;
        assert_eq!((&*messages[0], &*status), ("3 messages", "0"));

        let mut both = call(&client, "Both", "first").await;
        assert_eq!(both.hears().await.as_deref(), Some("heard first"));
        for number in 0..10 {
            // In lock-step: nobody may wait for more before passing on.
            both.says(&number.to_string()).await;
            assert_eq!(both.hears().await, Some(format!("heard {number}")));
        }
        assert_eq!(both.finishes().await, (vec![], "0".into(), String::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apps_errors_are_passed_on_with_and_without_a_message_before_them() {
    let (mesh, _app) = greeter().await;
    let client = Client::h2c(mesh.public()).await;
    let failed = call(&client, "Fails", "hello").await.finishes().await;
    assert_eq!(
        failed,
        (vec!["hello".into()], "9".into(), "not%20now".into())
    );
    let missing = call(&client, "Missing", "hello").await.finishes().await;
    assert_eq!(missing, (vec![], "12".into(), "no%20such%20method".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_errors_are_grpc_errors() {
    let (mesh, mut app) = greeter().await;
    let client = Client::h2c(mesh.public()).await;
    app.shutdown().await;
    let refused = call(&client, "Unary", "hello").await;
    assert_eq!(
        (
            refused.head.status.as_u16(),
            &refused.head.headers["weft-reason"]
        ),
        (200, &HeaderValue::from_static("connect_failed"))
    );
    let (messages, status, words) = refused.finishes().await;
    assert_eq!((messages.len(), &*status), (0, "14"), "{words}");
    assert!(words.starts_with("connect_failed"), "{words}");

    let request = Request::post("http://greeter/elsewhere")
        .header("content-type", "application/grpc")
        .body(whole(""))
        .unwrap();
    let reply = client.send(request).await;
    assert_eq!(
        (reply.code(), reply.header("grpc-status")),
        (200, Some("12"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_that_was_spent_on_waiting_is_taken_off_the_deadline() {
    let retry = "retry: { attempts: 1, grpc_statuses: [unavailable] }";
    let (mesh, _app) = greeter_with(retry).await;
    for door in [mesh.public(), mesh.outbound("storefront", 0)] {
        let client = Client::h2c(door).await;
        let limit = [("grpc-timeout", "12S")];
        let called = call_with(&client, "Deadline", "tea", &limit).await;
        let (messages, status, words) = called.finishes().await;
        assert_eq!((&*status, &*words), ("0", ""), "{messages:?}");
        let left = micros(&messages[0]);
        assert!((1_000_000..=11_100_000).contains(&left), "{left} µs");
    }
}
