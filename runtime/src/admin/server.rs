//! The sockets of the admin pages, and what bounds them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::answer::text;
use super::{Admin, Settings};
use crate::drain;

/// How many connections are served at once. More wait in the kernel's queue; a monitoring system has one or two.
const CONNECTION_LIMIT: usize = 64;
/// How long a request's head may take, which is also how long a connection may be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may live at all, so that slow readers cannot hold all of them.
const LIFE_LIMIT: Duration = Duration::from_secs(60);
/// How long to wait when the system has no descriptor for another connection: trying at once would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a head, and fields in it.
const HEAD_BYTES: usize = 16 << 10;
const HEAD_FIELDS: usize = 64;

/// The admin pages with their socket: requests wait until [`serve`](Bound::serve).
#[derive(Debug)]
pub struct Bound {
    admin: Arc<Admin>,
    listener: TcpListener,
    local: bool,
}

impl Admin {
    /// Takes the address.
    pub async fn bind(self, settings: &Settings) -> io::Result<Bound> {
        Ok(Bound {
            admin: Arc::new(self),
            listener: TcpListener::bind(settings.address()).await?,
            local: !settings.allow_remote(),
        })
    }
}

impl Bound {
    /// Where the pages are; tells the port that the system chose when port 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the drain has *ended*: while it runs, somebody wants to see how it goes. Dropping it closes everything.
    pub async fn serve(self, watch: drain::Watch) -> Result<(), Infallible> {
        let seats = Arc::new(Semaphore::new(CONNECTION_LIMIT));
        // Dropped, and all connections with it, when this function ends.
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = watch.ended() => return Ok(()),
                // Never waits long: `LIFE_LIMIT`.
                accepted = accept(&self.listener, &seats) => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, seat)) => {
                    let (admin, local) = (self.admin.clone(), self.local);
                    connections.spawn(async move {
                        let _ = tokio::time::timeout(LIFE_LIMIT, connection(admin, local, stream))
                            .await;
                        drop(seat);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the admin pages");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let seat = seats
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, seat))
}

async fn connection(admin: Arc<Admin>, local: bool, stream: TcpStream) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&admin, local, request);
        async move { Ok::<_, Infallible>(answer.map(|text| Full::new(Bytes::from(text)))) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_FIELDS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection to the admin pages");
    }
}

fn answer(admin: &Admin, local: bool, request: Request<Incoming>) -> Response<String> {
    let (head, body) = request.into_parts();
    if !body.is_end_stream() {
        let mut answer = text(StatusCode::PAYLOAD_TOO_LARGE, "no page takes a body\n");
        answer
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
        return answer;
    }
    admin.answer(&head, local)
}
