//! Clients: hyper over HTTP/1.1, HTTP/2 and TLS, with connections kept or one held in the hand.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::{PATIENCE, soon};

/// A request's body, of any kind.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// A whole body.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A body that is sent piece by piece as somebody hands them in; it ends when the sender is dropped.
pub(crate) fn piped() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, pieces) = mpsc::channel(1);
    (sender, Piped(pieces).boxed())
}

struct Piped(mpsc::Receiver<Frame<Bytes>>);

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) version: http::Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Reply {
    pub(crate) fn code(&self) -> u16 {
        self.status.as_u16()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Why Weft answered itself.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.header("weft-reason")
    }

    async fn read(answer: http::Response<Incoming>) -> Result<Self, String> {
        let (head, body) = answer.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| format!("{} cut: {error:?}", head.status))?;
        let trailers = body.trailers().cloned();
        Ok(Self {
            status: head.status,
            version: head.version,
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        })
    }
}

type Pool =
    hyper_util::client::legacy::Client<hyper_util::client::legacy::connect::HttpConnector, Body>;

/// A client.
#[derive(Debug, Clone)]
pub(crate) struct Client(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// Connections are opened when needed and used again.
    Pooled(Box<Pool>),
    /// One connection.
    Http1(
        Arc<tokio::sync::Mutex<http1::SendRequest<Body>>>,
        Arc<JoinSet<()>>,
    ),
    Http2(http2::SendRequest<Body>, Arc<JoinSet<()>>),
}

impl Client {
    /// HTTP/1.1 with as many connections as there are requests.
    pub(crate) fn pooled() -> Self {
        let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
        connector.set_nodelay(true);
        let mut client = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
        // A failure is the test's business, not to be hidden by trying again.
        client.retry_canceled_requests(false);
        Self(Kind::Pooled(Box::new(client.build(connector))))
    }

    /// One HTTP/1.1 connection.
    pub(crate) async fn http1(address: SocketAddr) -> Self {
        Self::over_http1(tcp(address).await).await
    }

    /// One HTTP/2 connection, by prior knowledge.
    pub(crate) async fn h2c(address: SocketAddr) -> Self {
        Self::over_http2(tcp(address).await).await
    }

    /// One TLS connection that speaks what was agreed on.
    pub(crate) async fn tls(address: SocketAddr, config: Arc<ClientConfig>, name: &str) -> Self {
        let stream = Self::handshake(address, config, name).await.unwrap();
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Self::over_http2(stream).await,
            _ => Self::over_http1(stream).await,
        }
    }

    /// A TLS handshake and nothing more.
    pub(crate) async fn handshake(
        address: SocketAddr,
        config: Arc<ClientConfig>,
        name: &str,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        soon(
            "a TLS handshake",
            TlsConnector::from(config).connect(name, tcp(address).await),
        )
        .await
    }

    pub(crate) async fn over_http1(stream: impl super::wire::Stream + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            // Its failure is seen by the exchange that it fails.
            let _ = connection.with_upgrades().await;
        });
        Self(Kind::Http1(
            Arc::new(tokio::sync::Mutex::new(sender)),
            Arc::new(task),
        ))
    }

    pub(crate) async fn over_http2(stream: impl super::wire::Stream + 'static) -> Self {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _ = connection.await;
        });
        Self(Kind::Http2(sender, Arc::new(task)))
    }

    /// An exchange up to the head of the answer.
    pub(crate) async fn begin(
        &self,
        request: Request<Body>,
    ) -> Result<http::Response<Incoming>, String> {
        let answer = async {
            match &self.0 {
                Kind::Pooled(client) => client.request(request).await.map_err(|e| format!("{e:?}")),
                Kind::Http1(sender, _) => {
                    let mut sender = sender.lock().await;
                    sender.ready().await.map_err(|error| format!("{error:?}"))?;
                    let answer = sender.send_request(request);
                    answer.await.map_err(|error| format!("{error:?}"))
                }
                Kind::Http2(sender, _) => {
                    let answer = sender.clone().send_request(request);
                    answer.await.map_err(|error| format!("{error:?}"))
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }

    /// Whether an exchange that failed like this was never begun, so that anybody may ask again elsewhere: the connection
    /// had ended before, or its other side said so (GOAWAY, REFUSED_STREAM).
    pub(crate) fn was_never_begun(error: &str) -> bool {
        let signs = ["Canceled", "ChannelClosed", "REFUSED_STREAM"];
        signs.iter().any(|sign| error.contains(sign))
            || error.contains("GoAway") && error.contains("NO_ERROR")
    }

    /// A whole exchange.
    pub(crate) async fn try_send(&self, request: Request<Body>) -> Result<Reply, String> {
        let answer = self.begin(request).await?;
        tokio::time::timeout(PATIENCE, Reply::read(answer))
            .await
            .unwrap_or_else(|_| Err(format!("the answer did not end within {PATIENCE:?}")))
    }

    /// A whole exchange, which must succeed.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        self.try_send(request).await.unwrap()
    }

    pub(crate) async fn get(&self, url: &str) -> Reply {
        self.send(Request::get(url).body(whole("")).unwrap()).await
    }

    pub(crate) async fn post(&self, url: &str, body: impl Into<Bytes>) -> Reply {
        self.send(Request::post(url).body(whole(body)).unwrap())
            .await
    }
}

async fn tcp(address: SocketAddr) -> TcpStream {
    let stream = soon("a connection", TcpStream::connect(address))
        .await
        .unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
    stream.set_nodelay(true).unwrap();
    stream
}
