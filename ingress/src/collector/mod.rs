//! Where sidecars report to: one place that knows the whole mesh's golden signals.
//!
//! [`accept`] lets in who proves to be of the mesh, this file takes their reports one after another, [`ledger`] adds
//! them up, `series` shows them to Prometheus and [`page`] to people. Nothing depends on any of it: a
//! collector that is away costs no exchange anything, and when it is back the next reports make up for all.

pub mod accept;
pub mod foreign;
pub mod ledger;
pub mod page;
mod series;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::unfold;
use metrics::counter;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use weft_dataplane::foreign::Foreigners;
use weft_dataplane::identity::SpiffeId;
use weft_dataplane::observe::metrics as names;
use weft_dataplane::observe::{EdgeTotals, Registry};
use weft_proto::report::collector_server::{Collector as Service, CollectorServer};
use weft_proto::report::{ReportRequest, ReportResponse};

pub use accept::{Tls, Whose};
pub use ledger::Peer;
pub use page::MeshPage;

use accept::{Door, HANDSHAKE, MAX_CONNECTIONS, incoming};
use ledger::{Ledger, Missing, Outcome, Refusal, SILENT};

/// Bytes in one report.
pub const MAX_REPORT: usize = 1024 * 1024;
/// Streams on one connection: a sidecar needs one, and one more while it changes over.
const MAX_STREAMS: u32 = 2;
/// Least time between two reports of a stream. Who sends faster waits, by the protocol's own flow control.
const PACE: Duration = Duration::from_millis(50);
/// A connection that does not answer a ping is over.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Connections are ended after this time, so that each certificate is seen again.
const CONNECTION_AGE: (Duration, Duration) =
    (Duration::from_secs(2 * 3_600), Duration::from_secs(10));
/// How long streams may take to end when the process wants to.
const FAREWELL: Duration = Duration::from_secs(1);

/// The collector's state; the server, the metrics page and the admin page share it.
pub struct Collector {
    // Guards the ledger; held while a report is added (microseconds) or a page is read, never across an await.
    ledger: Mutex<Ledger>,
    local: Mutex<Vec<Local>>,
    /// Places for connections that are not taken.
    places: Arc<Semaphore>,
    bounds: Bounds,
}

/// What tests make small.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    connections: usize,
    handshake: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            handshake: HANDSHAKE,
        }
    }
}

/// This process's own counts, which need no report.
struct Local {
    service: Arc<str>,
    instance: Arc<str>,
    registry: Arc<Registry>,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl Collector {
    /// One that has heard nothing yet.
    pub fn new() -> Arc<Self> {
        Self::within(Bounds::default())
    }

    fn within(bounds: Bounds) -> Arc<Self> {
        Self::begin();
        Arc::new(Self {
            ledger: Mutex::default(),
            local: Mutex::default(),
            places: Arc::new(Semaphore::new(bounds.connections)),
            bounds,
        })
    }

    /// Shows this process's own edges, endpoints and certificate among those that are reported.
    pub fn include(&self, service: &str, instance: &str, registry: Arc<Registry>) {
        lock(&self.local).push(Local {
            service: Arc::from(service),
            instance: Arc::from(instance),
            registry,
        });
    }

    /// Every edge of the mesh with its totals, sorted by key.
    pub fn snapshot(&self) -> Vec<EdgeTotals> {
        series::snapshot(&lock(&self.ledger), &lock(&self.local))
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.bounds
            .connections
            .saturating_sub(self.places.available_permits())
    }

    /// Takes one report of a peer whose identity is proven.
    pub fn take(
        &self,
        peer: &Peer,
        request: ReportRequest,
        now: Instant,
    ) -> Result<Outcome, Refusal> {
        let outcome = lock(&self.ledger).take(peer, request, now);
        let result = match &outcome {
            Ok(Outcome::Taken(_)) => "taken",
            Ok(Outcome::Stale) => "stale",
            Err(_) => "refused",
        };
        counter!(names::COLLECTOR_REPORTS, "result" => result).increment(1);
        if let Ok(Outcome::Taken(missing)) = outcome {
            counter!(names::COLLECTOR_REFUSED_COUNTS).increment(missing.refused);
            counter!(names::COLLECTOR_EDGES_LEFT_OUT).increment(missing.edges_left_out);
            counter!(names::COLLECTOR_ENDPOINTS_LEFT_OUT).increment(missing.endpoints_left_out);
            counter!(names::COLLECTOR_FOREIGN_LEFT_OUT).increment(missing.foreign_left_out);
        }
        outcome
    }
}

/// Takes reports on this listener until `stop` is done; then ends all streams, for a second at most. Whoever is not of
/// the mesh is noted among `foreigners`.
pub async fn serve(
    collector: Arc<Collector>,
    listener: TcpListener,
    tls: Tls,
    whose: Whose,
    foreigners: Arc<Foreigners>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let connections = incoming(Door {
        listener,
        tls,
        whose: Arc::clone(&whose),
        places: Arc::clone(&collector.places),
        handshake: collector.bounds.handshake,
        foreigners,
    });
    // Nothing is ever sent: streams end when the sender is gone.
    let (ended, ending) = watch::channel(());
    let mut farewell = ending.clone();
    let service = CollectorServer::new(Reports {
        collector,
        whose,
        ending,
    });
    let served = server()
        .add_service(service.max_decoding_message_size(MAX_REPORT))
        .serve_with_incoming_shutdown(connections, async {
            stop.await;
            drop(ended);
        });
    tokio::select! {
        result = served => result,
        () = async {
            over(&mut farewell).await;
            sleep(FAREWELL).await;
        } => Ok(()),
    }
}

fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .max_connection_age(CONNECTION_AGE.0)
        .max_connection_age_grace(CONNECTION_AGE.1)
}

async fn over(ending: &mut watch::Receiver<()>) {
    while ending.changed().await.is_ok() {}
}

/// The gRPC side: streams of reports in, what was taken out.
struct Reports {
    collector: Arc<Collector>,
    whose: Whose,
    ending: watch::Receiver<()>,
}

type Responses = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Reports {
    type ReportStream = Responses;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let identity = request.extensions().get::<Arc<SpiffeId>>().cloned();
        let session = Session {
            collector: Arc::clone(&self.collector),
            whose: Arc::clone(&self.whose),
            ending: self.ending.clone(),
            identity: identity
                .ok_or_else(|| Status::unauthenticated("nobody is known on this connection"))?,
            reports: request.into_inner(),
            not_before: tokio::time::Instant::now(),
            told: Told::default(),
        };
        let responses = unfold(Some(session), |session| async {
            let mut session = session?;
            match session.next().await? {
                Ok(response) => Some((Ok(response), Some(session))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// One stream of one sidecar.
struct Session {
    collector: Arc<Collector>,
    whose: Whose,
    ending: watch::Receiver<()>,
    identity: Arc<SpiffeId>,
    reports: Streaming<ReportRequest>,
    not_before: tokio::time::Instant,
    told: Told,
}

/// What of a stream is in the log already: what is so in one report is so in each.
#[derive(Default)]
struct Told {
    refused: bool,
    no_room: bool,
}

impl Session {
    /// The answer to the next report; none when the stream is over, from either side or by its silence.
    async fn next(&mut self) -> Option<Result<ReportResponse, Status>> {
        let request = tokio::select! {
            request = next_report(&mut self.reports, self.not_before) => match request? {
                Ok(request) => request,
                Err(status) => return Some(Err(status)),
            },
            () = over(&mut self.ending) => return None,
        };
        self.not_before = tokio::time::Instant::now() + PACE;
        let sequence = request.sequence;
        // By the plan in force: a reload may have given the identity to others.
        let peer = Peer {
            identity: Arc::from(self.identity.as_str()),
            services: (self.whose)(&self.identity).into(),
        };
        let taken = self.collector.take(&peer, request, Instant::now());
        Some(match taken {
            Ok(outcome) => {
                if let Outcome::Taken(missing) = outcome {
                    self.warn(&missing);
                }
                Ok(ReportResponse { sequence })
            }
            Err(refusal @ Refusal::Malformed(_)) => {
                Err(Status::invalid_argument(refusal.to_string()))
            }
            Err(refusal @ Refusal::Foreign) => Err(Status::permission_denied(refusal.to_string())),
            Err(refusal @ Refusal::Full) => Err(Status::resource_exhausted(refusal.to_string())),
        })
    }

    fn warn(&mut self, missing: &Missing) {
        let identity = self.identity.as_str();
        if missing.refused > 0 && !std::mem::replace(&mut self.told.refused, true) {
            let counts = missing.refused;
            tracing::warn!(identity, counts, "a sidecar reports what it may not report");
        }
        if missing.has_no_room() && !std::mem::replace(&mut self.told.no_room, true) {
            tracing::warn!(
                identity,
                edges = missing.edges_left_out,
                endpoints = missing.endpoints_left_out,
                foreign = missing.foreign_left_out,
                "there is no room for all that a sidecar reports"
            );
        }
    }
}

async fn next_report(
    reports: &mut Streaming<ReportRequest>,
    not_before: tokio::time::Instant,
) -> Option<Result<ReportRequest, Status>> {
    sleep_until(not_before).await;
    let report = timeout(SILENT, reports.message()).await.ok()?;
    report.transpose()
}

/// A poisoned lock is taken as it is: the ledger's sums are never half made where something can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
