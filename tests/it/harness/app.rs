//! An app of HTTP/2 by prior knowledge that does whatever a test wants with each of its streams.
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::ServerConfig;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::listening;
use crate::alone::Stream;

/// What an app does with a stream.
type Act = dyn Fn(Asked) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// A stream that was opened.
pub(crate) struct Asked {
    pub(crate) request: Request<RecvStream>,
    pub(crate) respond: SendResponse<Bytes>,
}

impl Asked {
    pub(crate) fn path(&self) -> String {
        self.request.uri().path().to_owned()
    }

    /// Begins an answer with these fields.
    pub(crate) fn begin(&mut self, fields: &[(&str, &[u8])]) -> SendStream<Bytes> {
        self.head(fields, false)
    }

    /// Answers with these fields, and nothing after them.
    pub(crate) fn begin_whole(&mut self, fields: &[(&str, &[u8])]) {
        self.head(fields, true);
    }

    fn head(&mut self, fields: &[(&str, &[u8])], is_whole: bool) -> SendStream<Bytes> {
        let mut answer = Response::builder();
        for (name, value) in fields {
            answer = answer.header(*name, *value);
        }
        self.respond
            .send_response(answer.body(()).unwrap(), is_whole)
            .unwrap()
    }

    /// Answers with this and no more.
    pub(crate) fn answer(&mut self, status: u16, text: &'static [u8]) {
        let answer = Response::builder().status(status).body(()).unwrap();
        if let Ok(mut send) = self.respond.send_response(answer, false) {
            let _: Result<(), h2::Error> = send.send_data(Bytes::from_static(text), true);
        }
    }

    /// Waits until whoever asked takes it back.
    pub(crate) async fn taken_back(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Reads the body to its end; how long it was.
    pub(crate) async fn count(&mut self) -> usize {
        let body = self.request.body_mut();
        let mut length = 0;
        while let Some(Ok(data)) = body.data().await {
            length += data.len();
            let _: Result<(), h2::Error> = body.flow_control().release_capacity(data.len());
        }
        length
    }
}

/// The fields of trailers.
pub(crate) fn fields(list: &[(&str, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        let name: http::HeaderName = name.parse().unwrap();
        map.append(name, http::HeaderValue::from_bytes(value).unwrap());
    }
    map
}

/// Sends all of it, as far as the windows let it; whether it got there.
pub(crate) async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> bool {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else {
            return false;
        };
        let piece = data.split_to(room.min(data.len()));
        if send.send_data(piece, end && data.is_empty()).is_err() {
            return false;
        }
    }
    true
}

/// The app, as long as this is kept.
pub(crate) struct App {
    /// Streams open now.
    pub(crate) open: Arc<AtomicUsize>,
    /// The most streams that were open at a time.
    pub(crate) most: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl App {
    /// Listens here. Each connection says goodbye after so many streams.
    pub(crate) async fn start<F>(
        address: SocketAddr,
        streams: usize,
        act: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::listen(address, None, streams, act).await
    }

    /// In place of an app with its sidecar: listens here with this certificate.
    pub(crate) async fn sidecar<F>(
        address: SocketAddr,
        config: Arc<ServerConfig>,
        act: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::listen(address, Some(config.into()), usize::MAX, act).await
    }

    async fn listen<F>(
        address: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        streams: usize,
        act: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = listening(address);
        let act: Arc<Act> = Arc::new(move |asked| -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(act(asked))
        });
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (opened, record) = (Arc::clone(&open), Arc::clone(&most));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (act, opened, record) =
                    (Arc::clone(&act), Arc::clone(&opened), Arc::clone(&record));
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let stream: Stream = match acceptor {
                        None => Box::new(stream),
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    let mut builder = h2::server::Builder::new();
                    builder.max_concurrent_streams(1000);
                    builder.enable_connect_protocol();
                    // It is not the app that is attacked.
                    builder.max_pending_accept_reset_streams(100_000);
                    builder.initial_window_size(1 << 20);
                    builder.initial_connection_window_size(1 << 24);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                        return;
                    };
                    let (mut streams, mut left) = (JoinSet::new(), streams);
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let now = opened.fetch_add(1, Ordering::Relaxed) + 1;
                        record.fetch_max(now, Ordering::Relaxed);
                        let guard = Open(Arc::clone(&opened));
                        let work = act(Asked { request, respond });
                        streams.spawn(async move {
                            let _guard = guard;
                            work.await;
                        });
                        left = left.saturating_sub(1);
                        if left == 0 {
                            connection.graceful_shutdown();
                        }
                    }
                    while streams.join_next().await.is_some() {}
                });
            }
        });
        Self {
            open,
            most,
            _tasks: tasks,
        }
    }
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
