#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::health::Config;
use weft_runtime::config::{Path, Problems};

fn question(json: &str) -> Question {
    let config: Config = serde_json::from_str(json).unwrap();
    let checks = config.build(&Path::root(), &mut Problems::new());
    checks.unwrap().question
}

/// What a probe over HTTP/1.1 says of an app that answers with these bytes, and what the app was asked.
async fn over_http1(json: &str, answer: &[u8]) -> (Result<(), String>, String) {
    let (near, mut far) = tokio::io::duplex(256 * 1024);
    let answer = answer.to_vec();
    let question = question(json);
    let app = async move {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            assert!(far.read_buf(&mut asked).await.unwrap() > 0);
        }
        // The prober may have seen enough before it has read all.
        let _ = far.write_all(&answer).await;
        (String::from_utf8(asked).unwrap(), far)
    };
    let (outcome, (asked, _)) = tokio::join!(ask(&question, "orders", Wire::Http1, near), app);
    (outcome, asked)
}

#[tokio::test]
async fn http_wants_a_good_status() {
    let check = async |json: &str, status: u16, good: bool| {
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
        let (outcome, asked) = over_http1(json, answer.as_bytes()).await;
        assert_eq!(outcome.is_ok(), good, "{json}, {status}: {outcome:?}");
        assert!(asked.starts_with("GET /healthz HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("host: orders\r\n"), "{asked}");
    };
    let plain = r#"{"http": "/healthz"}"#;
    for (status, good) in [
        (200, true),
        (204, true),
        (302, false),
        (404, false),
        (503, false),
    ] {
        check(plain, status, good).await;
    }
    let listed = r#"{"http": "/healthz", "status": [418, 302]}"#;
    for (status, good) in [(200, false), (302, true), (418, true)] {
        check(listed, status, good).await;
    }
}

#[tokio::test]
async fn http_may_want_a_text_in_the_answer() {
    let json = r#"{"http": "/healthz", "body": "all well"}"#;
    let check = async |answer: &[u8], problem: Option<&str>| {
        let (outcome, _) = over_http1(json, answer).await;
        assert_eq!(outcome.err().as_deref(), problem);
    };
    let missing = Some("the answer does not contain `all well`");
    check(
        b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n[all well]\r\n\r",
        None,
    )
    .await;
    check(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell", missing).await;
    check(b"HTTP/1.1 204 No Content\r\n\r\n", missing).await;
    // Split over two chunks, and past what is looked at.
    check(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nall \r\n4\r\nwell\r\n0\r\n\r\n",
        None,
    )
    .await;
    let mut far = b"HTTP/1.1 200 OK\r\ncontent-length: 100008\r\n\r\n".to_vec();
    far.extend(std::iter::repeat_n(b'x', 100_000));
    far.extend(b"all well");
    check(&far, missing).await;
}

#[tokio::test]
async fn what_is_no_http_is_not_well() {
    for answer in [
        &b"SSH-2.0-OpenSSH_9.7\r\n"[..],
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    ] {
        let (near, mut far) = tokio::io::duplex(1024);
        let question = question(r#"{"http": "/healthz", "body": "x"}"#);
        let app = async move {
            let _ = far.write_all(answer).await;
            drop(far);
        };
        let (outcome, ()) = tokio::join!(ask(&question, "orders", Wire::Http1, near), app);
        assert!(outcome.is_err(), "{answer:?}");
    }
}

/// An HTTP/2 app that answers one request.
async fn serve(
    stream: DuplexStream,
    head: http::response::Builder,
    body: Option<Bytes>,
    trailers: Option<HeaderMap>,
) -> (Request<()>, Bytes) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (request, mut respond) = connection.accept().await.unwrap().unwrap();
    let (head_of_request, mut content) = request.into_parts();
    let mut asked = BytesMut::new();
    let answering = async {
        while let Some(data) = content.data().await {
            asked.extend_from_slice(&data.unwrap());
        }
        let whole = body.is_none() && trailers.is_none();
        let mut stream = respond
            .send_response(head.body(()).unwrap(), whole)
            .unwrap();
        if let Some(body) = body {
            stream.send_data(body, trailers.is_none()).unwrap();
        }
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers).unwrap();
        }
    };
    let driving = async { while connection.accept().await.is_some() {} };
    tokio::join!(answering, driving);
    (Request::from_parts(head_of_request, ()), asked.freeze())
}

fn status(code: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", code.parse().unwrap());
    headers
}

fn ok() -> http::response::Builder {
    http::Response::builder().header("content-type", "application/grpc")
}

#[tokio::test]
async fn grpc_wants_serving() {
    let question = question(r#"{"grpc": "shop.v1.Orders"}"#);
    let check =
        async |body: Option<&'static [u8]>, trailers: Option<&str>, problem: Option<&str>| {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let wire = Wire::Http2 { secure: true };
            let served = serve(
                far,
                ok(),
                body.map(Bytes::from_static),
                trailers.map(status),
            );
            let (outcome, (request, asked)) =
                tokio::join!(ask(&question, "orders", wire, near), served);
            assert_eq!(outcome.err().as_deref(), problem, "{body:?} {trailers:?}");
            assert_eq!(
                request.uri().to_string(),
                "https://orders/grpc.health.v1.Health/Check"
            );
            assert_eq!(request.headers()["te"], "trailers");
            assert_eq!(&asked[..], b"\0\0\0\0\x10\x0a\x0eshop.v1.Orders");
        };
    check(Some(b"\0\0\0\0\x02\x08\x01"), Some("0"), None).await;
    check(
        Some(b"\0\0\0\0\x02\x08\x02"),
        Some("0"),
        Some("NOT_SERVING"),
    )
    .await;
    check(Some(b"\0\0\0\0\x00"), Some("0"), Some("UNKNOWN")).await;
    check(
        Some(b"\0\0\0\0\x02\x08\x03"),
        Some("0"),
        Some("SERVICE_UNKNOWN"),
    )
    .await;
    let garbled = Some("the answer is no HealthCheckResponse");
    check(Some(b"\0\0\0\0\x05\x08\x01"), Some("0"), garbled).await;
    check(Some(b"\x01\0\0\0\x02\x08\x01"), Some("0"), garbled).await;
    check(Some(b"\0\0"), Some("0"), garbled).await;
    check(None, Some("0"), garbled).await;
    let (unknown, unimplemented) = (
        "it does not know this service (NOT_FOUND)",
        "it does not speak grpc.health.v1 (UNIMPLEMENTED)",
    );
    check(None, Some("5"), Some(unknown)).await;
    check(None, Some("12"), Some(unimplemented)).await;
    check(None, Some("14"), Some("answered gRPC status 14")).await;
    let none = Some("the answer has no gRPC status");
    check(Some(b"\0\0\0\0\x02\x08\x01"), None, none).await;
}

#[tokio::test]
async fn an_answer_of_the_peers_sidecar_is_told_as_such() {
    let wire = Wire::Http2 { secure: true };
    let head = || http::Response::builder().header("weft-reason", "connect_failed");
    let check = async |json: &str, head: http::response::Builder, problem: Option<&str>| {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let question = question(json);
        let served = serve(far, head, None, None);
        let (outcome, (request, _)) = tokio::join!(ask(&question, "orders", wire, near), served);
        assert_eq!(outcome.err().as_deref(), problem);
        request.uri().path().to_owned()
    };
    let answered = Some("its sidecar answered 502: connect_failed");
    let path = check(r#"{"http": "/up"}"#, head().status(502), answered).await;
    assert_eq!(path, "/up");
    let path = check(r#"{"tcp": true}"#, head().status(502), answered).await;
    assert_eq!(path, KNOCK);
    check(
        r#"{"tcp": true}"#,
        http::Response::builder().status(204),
        None,
    )
    .await;
    let grpc = head().header("content-type", "application/grpc");
    let answered = Some("its sidecar answered: connect_failed");
    check(r#"{"grpc": ""}"#, grpc, answered).await;
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let question = question(r#"{"http": "/healthz", "body": "never"}"#);
    let app = async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut stream = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        stream
            .send_data(vec![b'x'; 10 << 20].into(), false)
            .unwrap();
        while connection.accept().await.is_some() {}
    };
    let wire = Wire::Http2 { secure: false };
    let asking = ask(&question, "orders", wire, near);
    tokio::select! {
        outcome = asking => {
            assert_eq!(outcome.unwrap_err(), "the answer does not contain `never`");
        }
        () = app => panic!("the app went first"),
    }
}
