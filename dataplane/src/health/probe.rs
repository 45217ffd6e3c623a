//! Asks one endpoint how it is, over a connection that somebody else has opened.
//!
//! A new connection each time, because what is to be found out is whether the endpoint takes one. Everything happens in
//! the caller's task, and dropping the future closes the connection: whoever probes sets the time limit. What an endpoint
//! answers is bounded, whatever it sends.

use std::pin::pin;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::check::{GRPC_CHECK, KNOCK, Question};

/// So much of an answer is looked at.
const MOST_BYTES: usize = 64 * 1024;
/// Who asks, for the app's log.
const USER_AGENT: &str = "weft-health";
/// Why a sidecar answered in place of its app.
const REASON: &str = "weft-reason";

/// How a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2 {
        /// Under TLS.
        secure: bool,
    },
}

/// Asks `question` over `stream`. `authority` is the name under which the service is called. An error says in words for
/// people why the endpoint is not well.
pub async fn ask<S>(
    question: &Question,
    authority: &str,
    wire: Wire,
    stream: S,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match (question, wire) {
        (Question::Grpc { service }, _) => {
            let secure = wire == Wire::Http2 { secure: true };
            let body = framed(&CheckRequest {
                service: service.clone(),
            });
            let request = request("POST", authority, GRPC_CHECK, secure)?
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
                .body(())
                .map_err(|error| error.to_string())?;
            let answer = over_http2(stream, request, Some(body), true).await?;
            judge_grpc(&answer)
        }
        (Question::Http { .. } | Question::Tcp, Wire::Http2 { secure }) => {
            let target = target(question);
            let request = request("GET", authority, target, secure)?
                .body(())
                .map_err(|error| error.to_string())?;
            let answer = over_http2(stream, request, None, wants_body(question)).await?;
            judge_http(question, &answer)
        }
        (Question::Http { .. }, Wire::Http1) => {
            let answer = over_http1(stream, authority, question).await?;
            judge_http(question, &answer)
        }
        // It took the connection.
        (Question::Tcp, Wire::Http1) => Ok(()),
    }
}

fn target(question: &Question) -> &str {
    match question {
        Question::Http { target, .. } => target.as_str(),
        Question::Grpc { .. } => GRPC_CHECK,
        Question::Tcp => KNOCK,
    }
}

fn wants_body(question: &Question) -> bool {
    matches!(question, Question::Http { body: Some(_), .. })
}

fn request(
    method: &str,
    authority: &str,
    target: &str,
    secure: bool,
) -> Result<http::request::Builder, String> {
    let uri = Uri::builder()
        .scheme(if secure { "https" } else { "http" })
        .authority(authority)
        .path_and_query(target)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Request::builder()
        .method(method)
        .uri(uri)
        .header(header::USER_AGENT, USER_AGENT))
}

/// What came back, as far as it was wanted.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: BytesMut,
    trailers: Option<HeaderMap>,
}

async fn over_http1<S>(stream: S, authority: &str, question: &Question) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("HTTP/1.1: {error}");
    let request = Request::get(target(question))
        .header(header::HOST, authority)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MOST_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let (head, mut content) = answer.into_parts();
        let mut body = BytesMut::new();
        while wants_body(question) && body.len() < MOST_BYTES {
            let Some(frame) = content.frame().await else {
                break;
            };
            if let Some(data) = frame.map_err(failed)?.data_ref() {
                body.extend_from_slice(&data[..data.len().min(MOST_BYTES - body.len())]);
            }
        }
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
            trailers: None,
        })
    };
    // Both in this task: a connection makes no progress unless it is polled, and may end before the exchange is done
    // with what came over it.
    match select(pin!(exchange), pin!(connection)).await {
        Either::Left((done, _)) => done,
        Either::Right((_, exchange)) => exchange.await,
    }
}

async fn over_http2<S>(
    stream: S,
    request: Request<()>,
    body: Option<Bytes>,
    read_body: bool,
) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: h2::Error| format!("HTTP/2: {error}");
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        // What is not given back bounds what the other side can send: no more than this.
        .initial_window_size(MOST_BYTES as u32)
        .initial_connection_window_size(MOST_BYTES as u32)
        .max_header_list_size(MOST_BYTES as u32)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(failed)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(failed)?;
        let (answer, mut sending) = sender
            .send_request(request, body.is_none())
            .map_err(failed)?;
        if let Some(body) = body {
            sending.send_data(body, true).map_err(failed)?;
        }
        let (head, mut content) = answer.await.map_err(failed)?.into_parts();
        let mut body = BytesMut::new();
        let mut trailers = None;
        if read_body {
            while let Some(data) = content.data().await {
                let data = data.map_err(failed)?;
                body.extend_from_slice(&data[..data.len().min(MOST_BYTES - body.len())]);
                if body.len() == MOST_BYTES {
                    break;
                }
            }
            if body.len() < MOST_BYTES {
                trailers = content.trailers().await.map_err(failed)?;
            }
        }
        // Held to here, since the connection ends with it.
        drop(sender);
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
            trailers,
        })
    };
    match select(pin!(exchange), pin!(connection)).await {
        Either::Left((done, _)) => done,
        Either::Right((_, exchange)) => exchange.await,
    }
}

fn judge_http(question: &Question, answer: &Answer) -> Result<(), String> {
    let (good, wanted) = match question {
        Question::Http { status, body, .. } if !status.is_empty() => {
            (status.contains(&answer.status.as_u16()), body.as_deref())
        }
        Question::Http { body, .. } => (answer.status.is_success(), body.as_deref()),
        _ => (answer.status.is_success(), None),
    };
    if !good {
        return Err(match reason(&answer.headers) {
            Some(reason) => format!("its sidecar answered {}: {reason}", answer.status.as_u16()),
            None => format!("answered {}", answer.status.as_u16()),
        });
    }
    match wanted {
        Some(text) if !contains(&answer.body, text.as_bytes()) => {
            Err(format!("the answer does not contain `{text}`"))
        }
        _ => Ok(()),
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    body.windows(text.len()).any(|window| window == text)
}

/// The reason of a sidecar's own answer; only a short word is believed to be one.
fn reason(headers: &HeaderMap) -> Option<&str> {
    let reason = headers.get(REASON)?.to_str().ok()?;
    (reason.len() <= 64).then_some(reason)
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING`.
const SERVING: i32 = 1;

fn framed(message: &CheckRequest) -> Bytes {
    let body = message.encode_to_vec();
    let mut framed = Vec::with_capacity(5 + body.len());
    framed.push(0);
    framed.extend_from_slice(&(body.len() as u32).to_be_bytes());
    framed.extend_from_slice(&body);
    framed.into()
}

fn judge_grpc(answer: &Answer) -> Result<(), String> {
    if let Some(reason) = reason(&answer.headers) {
        return Err(format!("its sidecar answered: {reason}"));
    }
    if answer.status != StatusCode::OK {
        return Err(format!("answered {}, not gRPC", answer.status.as_u16()));
    }
    let status = |headers: &HeaderMap| -> Option<u16> {
        headers.get("grpc-status")?.to_str().ok()?.parse().ok()
    };
    let ended = answer
        .trailers
        .as_ref()
        .and_then(status)
        .or_else(|| status(&answer.headers));
    match ended {
        Some(0) => {}
        Some(5) => return Err("it does not know this service (NOT_FOUND)".to_owned()),
        Some(12) => {
            return Err("it does not speak grpc.health.v1 (UNIMPLEMENTED)".to_owned());
        }
        Some(code) => return Err(format!("answered gRPC status {code}")),
        None => return Err("the answer has no gRPC status".to_owned()),
    }
    let mut body = &answer.body[..];
    let garbled = || "the answer is no HealthCheckResponse".to_owned();
    if body.len() < 5 || body.get_u8() != 0 {
        return Err(garbled());
    }
    let length = body.get_u32() as usize;
    let message = body.get(..length).ok_or_else(garbled)?;
    match CheckResponse::decode(message)
        .map_err(|_| garbled())?
        .status
    {
        SERVING => Ok(()),
        0 => Err("UNKNOWN".to_owned()),
        2 => Err("NOT_SERVING".to_owned()),
        3 => Err("SERVICE_UNKNOWN".to_owned()),
        other => Err(format!("the serving status {other}, which is none")),
    }
}

#[cfg(test)]
mod tests;
