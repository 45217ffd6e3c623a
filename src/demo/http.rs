//! The small HTTP client that the demo's parts share: keep-alive, a deadline, and a bound on what it reads.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The most that an answer may hold; ours are a few hundred bytes, `/mesh` some ten thousand.
const BODY_LIMIT: usize = 4 << 20;

/// Connections are kept and used again.
pub(super) type Client = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// There was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("connect: {0}")]
    Connect(String),
    #[error("exchange: {0}")]
    Exchange(String),
    #[error("read the answer: {0}")]
    Body(String),
}

impl Error {
    /// One word, for counting.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Error::Timeout(_) => "client timeout",
            Error::Connect(_) => "connection refused",
            Error::Exchange(_) => "connection broken before the answer",
            Error::Body(_) => "connection broken inside the answer",
        }
    }
}

/// A client with its own connections.
pub(super) fn client() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(2)));
    hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .build(connector)
}

/// One exchange, all of it within `deadline`.
pub(super) async fn exchange(
    client: &Client,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<Answer, Error> {
    let whole = async {
        let response = client.request(request).await.map_err(|error| {
            if error.is_connect() {
                Error::Connect(with_causes(&error))
            } else {
                Error::Exchange(with_causes(&error))
            }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| Error::Body(error.to_string()))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    };
    tokio::time::timeout(deadline, whole)
        .await
        .unwrap_or(Err(Error::Timeout(deadline)))
}

/// A GET without anything special.
pub(super) async fn get(client: &Client, url: &str, deadline: Duration) -> Result<Answer, Error> {
    let request = Request::get(url)
        .body(Full::default())
        .map_err(|error| Error::Exchange(error.to_string()))?;
    exchange(client, request, deadline).await
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
