//! Connections of sidecars: mutual TLS first, and only then anything else.
//!
//! Handshakes run side by side inside one stream, each with a time limit, so that a peer that says nothing holds up
//! nobody; connections are bounded, and one that is over the bound is closed at once instead of left to wait.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt, unfold};
use metrics::counter;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use weft_dataplane::foreign::{Foreign, Foreigners, Sighting};
use weft_dataplane::identity::{PeerProblem, SpiffeId, noting, peer_identity};
use weft_dataplane::observe::metrics::COLLECTOR_CONNECTIONS_REFUSED;
use weft_dataplane::plan::services::INGRESS;

/// Connections at a time, those in their handshake included.
pub const MAX_CONNECTIONS: usize = 4_096;
/// What a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Rest after a failed accept: out of descriptors, that is better than to spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How often that is said.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// The TLS configuration for the next connection: a client certificate is demanded, and its chain checked.
pub type Tls = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// The services whose identity this is, by the plan in force: those that its owner may report for.
pub type Whose = Arc<dyn Fn(&SpiffeId) -> Vec<Arc<str>> + Send + Sync>;

/// What connections are taken with.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) tls: Tls,
    pub(super) whose: Whose,
    pub(super) places: Arc<Semaphore>,
    pub(super) handshake: Duration,
    /// Where those are noted who are not of the mesh.
    pub(super) foreigners: Arc<Foreigners>,
}

/// Connections whose peer is known. Never ends; everything under way ends when it is dropped.
pub(super) fn incoming(door: Door) -> impl Stream<Item = Result<Secured, Infallible>> {
    unfold(Receiving::new(door), |mut receiving| async {
        let secured = receiving.next().await;
        Some((Ok(secured), receiving))
    })
}

/// A door and what is under way behind it.
struct Receiving {
    door: Door,
    handshakes: FuturesUnordered<BoxFuture<'static, Option<Secured>>>,
    /// Until when it does not try to accept, because it could not.
    rest: Option<Instant>,
    /// When that was said last.
    told: Option<Instant>,
}

impl Receiving {
    fn new(door: Door) -> Self {
        Self {
            door,
            handshakes: FuturesUnordered::new(),
            rest: None,
            told: None,
        }
    }

    async fn next(&mut self) -> Secured {
        loop {
            let rest = self.rest;
            tokio::select! {
                accepted = self.door.listener.accept(), if rest.is_none() => match accepted {
                    Ok((tcp, address)) => self.handshakes.extend(self.door.begin(tcp, address)),
                    // The client was faster than us; that is not our trouble.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => self.cannot_accept(&error),
                },
                // Handshakes go on meanwhile: when they end, there may be descriptors again.
                () = async { sleep_until(rest.unwrap_or_else(Instant::now)).await }, if rest.is_some() => self.rest = None,
                Some(secured) = self.handshakes.next() => if let Some(secured) = secured {
                    return secured;
                },
            }
        }
    }

    fn cannot_accept(&mut self, error: &io::Error) {
        let now = Instant::now();
        self.rest = Some(now + ACCEPT_REST);
        if self.told.is_none_or(|told| now - told >= TELL_AGAIN) {
            self.told = Some(now);
            tracing::warn!(%error, "the collector cannot accept a connection");
        }
    }
}

impl Door {
    fn begin(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> Option<BoxFuture<'static, Option<Secured>>> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            refused(Cause::TooManyConnections);
            return None;
        };
        let config = (self.tls)();
        let (whose, limit) = (Arc::clone(&self.whose), self.handshake);
        let foreigners = Arc::clone(&self.foreigners);
        let port = tcp.local_addr().ok().map(|local| local.port());
        Some(Box::pin(async move {
            let securing = noting(secure(tcp, config, &whose, place));
            match timeout(limit, securing).await {
                Ok((Ok(secured), _)) => return Some(secured),
                Ok((Err(Refused::Handshake(error)), claim)) => {
                    let problem = PeerProblem::from_io_error(&error);
                    let kind = PeerProblem::kind_of(problem.as_ref(), &error);
                    let words =
                        problem.map_or_else(|| error.to_string(), |known| known.to_string());
                    stranger(&foreigners, address, port, kind, &words, claim.as_deref());
                    refused(Cause::Handshake);
                }
                Ok((Err(Refused::Peer(kind, words)), claim)) => {
                    stranger(&foreigners, address, port, kind, &words, claim.as_deref());
                    refused(Cause::Identity);
                }
                Err(_) => refused(Cause::Timeout),
            }
            None
        }))
    }
}

/// Names somebody who was shown out: a sidecar that cannot prove who it is can report nothing of it. The log does so once
/// in a while only, because anybody may come as often as they like.
fn stranger(
    foreigners: &Foreigners,
    address: SocketAddr,
    port: Option<u16>,
    kind: Foreign,
    problem: &str,
    claim: Option<&str>,
) {
    let service = Arc::from(INGRESS);
    let sighting = Sighting::came(kind, &service, address.ip(), port, claim);
    if foreigners.saw(&sighting, SystemTime::now()) {
        tracing::warn!(listener = "collector", peer = %address, cause = kind.as_str(), claim, problem, "refused a peer");
    }
}

/// Why a connection was not taken: a closed list, since it becomes a label.
#[derive(Debug, Clone, Copy)]
enum Cause {
    TooManyConnections,
    Handshake,
    Identity,
    Timeout,
}

impl Cause {
    const ALL: [Self; 4] = [
        Self::TooManyConnections,
        Self::Handshake,
        Self::Identity,
        Self::Timeout,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::TooManyConnections => "too_many_connections",
            Self::Handshake => "handshake",
            Self::Identity => "identity",
            Self::Timeout => "timeout",
        }
    }
}

/// Has all causes be there from the start.
pub(super) fn begin() {
    for cause in Cause::ALL {
        counter!(COLLECTOR_CONNECTIONS_REFUSED, "cause" => cause.as_str()).increment(0);
    }
}

fn refused(cause: Cause) {
    counter!(COLLECTOR_CONNECTIONS_REFUSED, "cause" => cause.as_str()).increment(1);
}

enum Refused {
    Handshake(io::Error),
    /// Its handshake went well, and it may not report.
    Peer(Foreign, String),
}

async fn secure(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    whose: &Whose,
    place: OwnedSemaphorePermit,
) -> Result<Secured, Refused> {
    tcp.set_nodelay(true).map_err(Refused::Handshake)?;
    let tls = TlsAcceptor::from(config).accept(tcp).await;
    let tls = tls.map_err(Refused::Handshake)?;
    // A configuration that does not demand a certificate must not open the door: no certificate, no peer.
    let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let identity = peer_identity(certificates)
        .map_err(|problem| Refused::Peer(problem.kind(), problem.to_string()))?;
    if whose(&identity).is_empty() {
        let words = format!("{identity} is the identity of no service");
        return Err(Refused::Peer(Foreign::WrongService, words));
    }
    Ok(Secured {
        tls,
        identity,
        _place: place,
    })
}

/// A connection whose peer is known.
pub(super) struct Secured {
    tls: TlsStream<TcpStream>,
    identity: Arc<SpiffeId>,
    /// Held as long as the connection lives.
    _place: OwnedSemaphorePermit,
}

impl Connected for Secured {
    type ConnectInfo = Arc<SpiffeId>;

    fn connect_info(&self) -> Arc<SpiffeId> {
        Arc::clone(&self.identity)
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::collector::tests::nobody;

    #[tokio::test(start_paused = true)]
    async fn a_door_that_cannot_accept_holds_up_no_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut receiving = Receiving::new(Door {
            listener,
            tls: nobody(),
            whose: Arc::new(|_| vec![]),
            places: Arc::new(Semaphore::new(1)),
            handshake: HANDSHAKE,
            foreigners: Arc::default(),
        });
        let begun = Instant::now();
        receiving.cannot_accept(&io::ErrorKind::OutOfMemory.into());
        let ended = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ended);
        receiving.handshakes.push(Box::pin(async move {
            ends.store(true, Ordering::Relaxed);
            None
        }));
        let wait = timeout(ACCEPT_REST / 2, receiving.next());
        assert!(wait.await.is_err(), "nobody was let in");
        assert!(ended.load(Ordering::Relaxed));
        assert!(receiving.rest.is_some(), "it rests on");
        let wait = timeout(ACCEPT_REST, receiving.next());
        assert!(wait.await.is_err(), "nobody was let in");
        assert_eq!(receiving.rest, None);
        // Of many failures in a second one is told.
        for _ in 0..5 {
            receiving.cannot_accept(&io::ErrorKind::OutOfMemory.into());
        }
        assert_eq!(receiving.told, Some(begun));
    }
}
