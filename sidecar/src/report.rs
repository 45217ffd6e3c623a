//! Tells the collector what was counted, again and again, and never gets in anybody's way.
//!
//! A report holds totals since the process started, so a lost one loses nothing and a repeated one doubles nothing: the
//! next that arrives makes up for all before it. That is why nothing is queued here. There is one report at a time; it
//! has five seconds, and when it fails the connection is given up and made anew after a jittered wait. The data path
//! knows nothing of this: it writes its cells, and this reads them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use metrics::counter;
use prost::Message;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use weft_dataplane::foreign::{Count, End, Foreign as Kind, Foreigners, Row, Sighting, Snapshot};
use weft_dataplane::identity::{PeerProblem, noting};
use weft_dataplane::observe::{
    self, BOUNDS_US, CertificateRow, EdgeTotals, EndpointRow, EndpointState, Registry,
    metrics as names,
};
use weft_dataplane::plan::services;
use weft_dataplane::reason::Reason;
use weft_proto::report::collector_client::CollectorClient;
use weft_proto::report::{
    Certificate, Direction, Edge, Foreign, ForeignCount, ForeignPeer, ReportRequest, ReportResponse,
};
use weft_runtime::backoff::Backoff;

/// What one step may take: connecting with its handshakes, or a report with its answer.
const STEP: Duration = Duration::from_secs(5);
/// What the last report may take, when the process wants to end.
const LAST: Duration = Duration::from_secs(1);
/// Waits before a collector that was away is tried again.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10), 0.5);
/// A connection is made anew after this time, so that the collector sees a certificate that is in force.
const CONNECTION_AGE: Duration = Duration::from_secs(3_600);
/// Endpoints in one report; the sick ones come first.
const MAX_ENDPOINTS: usize = 2_048;
/// Foreign peers in one report; the latest.
const MAX_FOREIGN: usize = 64;
/// What the collector takes: bytes in a report, and in a name.
const MAX_REPORT: usize = 1024 * 1024;
const MAX_NAME: usize = 256;

/// What became of a report, as the metric has it.
const TAKEN: &str = "taken";
const FAILED: &str = "failed";

/// Where and how often to report.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the collector is, for people: connections come from the [`Dial`].
    pub address: String,
    /// Time between two reports, give or take a tenth.
    pub interval: Duration,
    /// The service that we stand beside, by its name in the configuration.
    pub service: String,
    /// Where we are, for people: our admin address.
    pub instance: String,
    /// Names this run of this process; see [`draw_run`].
    pub run: u64,
}

/// A name for this run of this process, that no other run has.
pub fn draw_run() -> u64 {
    fastrand::u64(..)
}

/// Connects to the collector: resolves its name and opens a TCP connection. Called anew for each connection.
pub type Dial =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

/// The TLS configuration for the next connection, with our certificate as it is then and `h2` as the protocol; none
/// while we have no certificate.
pub type Tls = Arc<dyn Fn() -> Option<Arc<ClientConfig>> + Send + Sync>;

/// Reports until `stop` is done, then once more if that is possible within a second. Dropping it just ends it. A collector
/// that is not of the mesh, or does not take us for one of it, is noted among `foreigners`.
pub async fn run(
    settings: Settings,
    registry: Arc<Registry>,
    foreigners: Arc<Foreigners>,
    dial: Dial,
    tls: Tls,
    stop: impl Future<Output = ()>,
) {
    registry.begin_reporting();
    // Both are there from the start, so that the first failure already is an increase.
    for result in [TAKEN, FAILED] {
        counter!(names::REPORTS, "result" => result).increment(0);
    }
    let mut reporter = Reporter {
        settings,
        registry,
        foreigners,
        dial,
        tls,
        sequence: 0,
        failures: 0,
        collector: None,
        stream: None,
    };
    tokio::select! {
        never = reporter.forever() => match never {},
        () = stop => {}
    }
    let last = timeout(LAST, reporter.report()).await;
    if let Ok(Err(error)) = last {
        tracing::debug!(%error, "the last report was not taken");
    }
}

struct Reporter {
    settings: Settings,
    registry: Arc<Registry>,
    foreigners: Arc<Foreigners>,
    dial: Dial,
    tls: Tls,
    sequence: u64,
    failures: u32,
    /// Where the collector was that was dialled last.
    collector: Option<SocketAddr>,
    stream: Option<Stream>,
}

impl Reporter {
    async fn forever(&mut self) -> std::convert::Infallible {
        loop {
            let wait = match self.report().await {
                Ok(()) => {
                    self.taken();
                    jitter(self.settings.interval, fastrand::f64())
                }
                Err(error) => {
                    self.failed(&error);
                    BACKOFF.delay(self.failures, fastrand::f64())
                }
            };
            sleep(wait).await;
        }
    }

    fn taken(&mut self) {
        counter!(names::REPORTS, "result" => TAKEN).increment(1);
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!(collector = self.settings.address, "reports are taken again");
        }
    }

    fn failed(&mut self, error: &Error) {
        counter!(names::REPORTS, "result" => FAILED).increment(1);
        self.stream = None;
        let cause = error.kind();
        if let (Some(kind), Some(address)) = (cause, self.collector) {
            self.foreigners
                .saw(&stranger(kind, address, error), SystemTime::now());
        }
        // Said once, not every few seconds: nothing is lost, and nothing else depends on it.
        if self.failures == 0 {
            let collector = &self.settings.address;
            let cause = cause.map(Kind::as_str);
            tracing::warn!(collector, cause, %error, "the collector takes no reports; trying on");
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// One report: over the connection that there is, or a new one. When this is dropped in the middle, the next
    /// report may use the same stream.
    async fn report(&mut self) -> Result<(), Error> {
        if self.stream.as_ref().is_some_and(Stream::is_old) {
            self.stream = None;
        }
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let opening = Stream::open(&self.dial, &self.tls, &mut self.collector);
                let fresh = timeout(STEP, opening).await;
                none.insert(fresh.map_err(|_| Error::Timeout("connecting"))??)
            }
        };
        self.sequence += 1;
        let as_of = Instant::now();
        let request = compose(&self.registry, &self.settings, self.sequence);
        timeout(STEP, stream.send(request))
            .await
            .map_err(|_| Error::Timeout("reporting"))??;
        self.registry.reported(as_of);
        Ok(())
    }
}

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("we have no certificate yet")]
    NoIdentity,
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("TLS handshake failed: {0}")]
    Handshake(io::Error, Option<String>),
    #[error("connection failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("refused: {}", .0.message())]
    Refused(Box<Status>),
    #[error("the collector ended the stream")]
    Ended,
    #[error("no answer in time while {0}")]
    Timeout(&'static str),
}

impl Error {
    /// What is wrong with the collector, or with us in its eyes, where that is the reason.
    fn kind(&self) -> Option<Kind> {
        let Self::Handshake(error, _) = self else {
            return None;
        };
        let problem = PeerProblem::from_io_error(error);
        Some(PeerProblem::kind_of(problem.as_ref(), error))
    }
}

/// The collector, as a peer with whom something is wrong.
fn stranger<'a>(kind: Kind, address: SocketAddr, error: &'a Error) -> Sighting<'a> {
    static INGRESS: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(services::INGRESS));
    let claim = match error {
        Error::Handshake(_, claim) => claim.as_deref(),
        _ => None,
    };
    Sighting::met(kind, &INGRESS, address, claim)
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// A stream of reports on a connection of its own.
struct Stream {
    // One report at a time is under way, so one place is enough.
    requests: mpsc::Sender<ReportRequest>,
    responses: Streaming<ReportResponse>,
    opened: Instant,
}

impl Stream {
    async fn open(dial: &Dial, tls: &Tls, at: &mut Option<SocketAddr>) -> Result<Self, Error> {
        let config = tls().ok_or(Error::NoIdentity)?;
        let tcp = dial().await.map_err(Error::Connect)?;
        *at = tcp.peer_addr().ok();
        tcp.set_nodelay(true).map_err(Error::Connect)?;
        // Who the collector is, is decided by its SPIFFE ID; the name only has to be one.
        let name = ServerName::try_from("collector").expect("a valid DNS name");
        let (tls, claim) = noting(TlsConnector::from(config).connect(name, tcp)).await;
        let mut tls = tls.map_err(|error| Error::Handshake(error, claim))?;
        // In TLS 1.3 our handshake is over before the collector has looked at our certificate, and what reads next would
        // not tell us its verdict. The collector speaks first, so there is something to read in any case.
        let first = tls.fill_buf().await;
        if first
            .map_err(|error| Error::Handshake(error, None))?
            .is_empty()
        {
            return Err(Error::Ended);
        }
        let channel = channel(tls).await?;
        let (requests, queue) = mpsc::channel(1);
        let mut client = CollectorClient::new(channel);
        let responses = client
            .report(ReceiverStream::new(queue))
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
            opened: Instant::now(),
        })
    }

    fn is_old(&self) -> bool {
        self.opened.elapsed() > CONNECTION_AGE
    }

    /// Done when the collector says that it has taken it.
    async fn send(&mut self, request: ReportRequest) -> Result<(), Error> {
        let sequence = request.sequence;
        let sent = self.requests.send(request).await;
        // When sending failed, the stream has ended: the answer says why.
        while let Some(response) = self.responses.message().await? {
            if sent.is_ok() && response.sequence >= sequence {
                return Ok(());
            }
        }
        Err(Error::Ended)
    }
}

/// A gRPC channel over one connection, which is not made anew when it ends.
pub async fn channel(connection: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_static("http://collector");
    let connector = Connected(Some(connection));
    endpoint.connect_with_connector(connector).await
}

/// A connection that is already there, as the connector that tonic wants. It can be had once: after that the stream is
/// over, and a new one begins with a new connection and a certificate that is in force then.
struct Connected(Option<TlsStream<TcpStream>>);

impl tower_service::Service<Uri> for Connected {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().map(TokioIo::new);
        std::future::ready(stream.ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// The interval give or take a tenth, so that a fleet that started together does not report together.
fn jitter(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random)
}

/// What is reported now.
fn compose(registry: &Registry, settings: &Settings, sequence: u64) -> ReportRequest {
    let mut endpoints = registry.endpoints();
    // Stable: within a state the order is the provider's.
    endpoints.sort_by_key(|row| row.state == EndpointState::Healthy);
    endpoints.truncate(MAX_ENDPOINTS);
    let request = ReportRequest {
        instance: short(&settings.instance),
        run: settings.run,
        sequence,
        edges: registry.lives().iter().map(edge).collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        certificate: registry.certificate().as_ref().map(certificate),
        foreign: Some(foreign(&registry.foreign())),
        service: short(&settings.service),
    };
    slim(request)
}

/// A report that the collector takes, whatever it costs in detail: refused ones would be refused for ever.
fn slim(mut request: ReportRequest) -> ReportRequest {
    if request.encoded_len() > MAX_REPORT {
        request.endpoints.clear();
    }
    if request.encoded_len() > MAX_REPORT
        && let Some(foreign) = &mut request.foreign
    {
        foreign.left_out += foreign.peers.len() as u64;
        foreign.peers.clear();
    }
    if request.encoded_len() > MAX_REPORT {
        request
            .edges
            .iter_mut()
            .for_each(|edge| edge.reasons.clear());
    }
    request
}

/// A name as long as the collector takes names.
fn short(name: &str) -> String {
    name[..name.floor_char_boundary(MAX_NAME)].to_owned()
}

fn edge((EdgeTotals { key, totals }, life): &(EdgeTotals, u64)) -> Edge {
    let direction = match key.direction {
        observe::Direction::Outbound => Direction::Outbound,
        observe::Direction::Inbound => Direction::Inbound,
    };
    let reasons = Reason::ALL.iter().zip(totals.reasons);
    Edge {
        source: short(&key.source),
        destination: short(&key.destination),
        direction: direction.into(),
        mtls: key.mtls,
        by_class: totals.by_class.to_vec(),
        latency_counts: totals.latency.to_vec(),
        latency_bounds_us: BOUNDS_US.to_vec(),
        latency_sum_us: totals.latency_sum_us,
        retries: totals.retries,
        request_bytes: totals.request_bytes,
        response_bytes: totals.response_bytes,
        reasons: reasons
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.code().to_owned(), count))
            .collect(),
        life: *life,
    }
}

fn endpoint(row: &EndpointRow) -> weft_proto::report::Endpoint {
    weft_proto::report::Endpoint {
        service: short(&row.service),
        address: row.address.to_string(),
        state: row.state.as_str().to_owned(),
        ejections: row.ejections,
        in_flight: row.in_flight,
    }
}

fn foreign(snapshot: &Snapshot) -> Foreign {
    let listed = snapshot.rows.len().min(MAX_FOREIGN);
    let unlisted = snapshot.rows.len() - listed;
    Foreign {
        counts: snapshot.counts.iter().map(foreign_count).collect(),
        peers: snapshot.rows[..listed].iter().map(foreign_peer).collect(),
        left_out: snapshot.left_out + unlisted as u64,
    }
}

fn foreign_count(count: &Count) -> ForeignCount {
    ForeignCount {
        direction: direction(count.end).into(),
        kind: count.kind.as_str().to_owned(),
        service: short(&count.service),
        count: count.count,
    }
}

fn foreign_peer(row: &Row) -> ForeignPeer {
    ForeignPeer {
        direction: direction(row.end).into(),
        kind: row.kind.as_str().to_owned(),
        service: short(&row.service),
        peer: row.peer.to_string(),
        address: row.address.map(|ip| ip.to_string()).unwrap_or_default(),
        port: row.port.unwrap_or_default().into(),
        identity: row.identity.as_deref().map(short).unwrap_or_default(),
        count: row.count,
        first_seen_unix: unix(row.first),
        last_seen_unix: unix(row.last),
        until_unix: row.until.map(unix).unwrap_or_default(),
    }
}

fn direction(end: End) -> Direction {
    match end {
        End::Inbound => Direction::Inbound,
        End::Outbound => Direction::Outbound,
    }
}

fn certificate(row: &CertificateRow) -> Certificate {
    Certificate {
        spiffe_id: row.spiffe_id.to_string(),
        not_before_unix: unix(row.not_before),
        not_after_unix: unix(row.not_after),
        serial: row.serial.to_string(),
        renewals: row.renewals,
        renewal_failures: row.renewal_failures,
    }
}

fn unix(time: SystemTime) -> i64 {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::oneshot;
    use weft_dataplane::observe::EdgeKey;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn settings() -> Settings {
        Settings {
            address: "127.0.0.1:15010".into(),
            interval: INTERVAL,
            service: "storefront".into(),
            instance: "127.0.1.1:15000".into(),
            run: 7,
        }
    }

    fn edge_key() -> EdgeKey {
        EdgeKey {
            source: Arc::from("storefront"),
            destination: Arc::from("orders"),
            direction: observe::Direction::Outbound,
            mtls: true,
        }
    }

    fn some_tls() -> Tls {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let config = Arc::new(config);
        Arc::new(move || Some(Arc::clone(&config)))
    }

    /// Counts how often it was asked and does with it as it is told.
    fn counting<F>(answer: impl Fn() -> F + Send + Sync + 'static) -> (Dial, Arc<AtomicU32>)
    where
        F: Future<Output = io::Result<TcpStream>> + Send + 'static,
    {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let dial: Dial = Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Box::pin(answer())
        });
        (dial, asked)
    }

    /// Runs the reporter for so long, then stops it; how long stopping took.
    async fn run_for(dial: Dial, tls: Tls, time: Duration) -> Duration {
        let (stop, stopped) = oneshot::channel::<()>();
        let reporter = run(
            settings(),
            Registry::new(),
            Arc::default(),
            dial,
            tls,
            async {
                let _ = stopped.await;
            },
        );
        let end = async {
            sleep(time).await;
            stop.send(()).unwrap();
            tokio::time::Instant::now()
        };
        let ((), stopped_at) = tokio::join!(reporter, end);
        stopped_at.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_refuses_is_tried_on_and_on_and_not_too_often() {
        let (dial, asked) = counting(|| async { Err(io::ErrorKind::ConnectionRefused.into()) });
        run_for(dial, some_tls(), Duration::from_secs(600)).await;
        let asked = asked.load(Ordering::Relaxed);
        // Waits of at most 10 s, and on average of three quarters of that.
        assert!((60..300).contains(&asked), "{asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_swallows_everything_costs_a_second_at_the_end() {
        let (dial, asked) = counting(std::future::pending);
        let took = run_for(dial, some_tls(), Duration::from_secs(120)).await;
        let asked = asked.load(Ordering::Relaxed);
        // Five seconds for each try, and the wait after it.
        assert!((8..25).contains(&asked), "{asked}");
        assert!(took <= LAST + Duration::from_millis(10), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_certificate_nothing_is_dialled() {
        let (dial, asked) = counting(std::future::pending);
        run_for(dial, Arc::new(|| None), Duration::from_secs(60)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn reports_are_spread_over_their_interval() {
        assert_eq!(jitter(INTERVAL, 0.0), Duration::from_millis(4_500));
        assert_eq!(jitter(INTERVAL, 1.0), Duration::from_millis(5_500));
    }

    #[test]
    fn a_report_says_what_was_counted() {
        let registry = Registry::new();
        let cells = registry.edge(edge_key());
        cells.record(Some(200), Duration::from_millis(3));
        cells.record(None, Duration::from_secs(60));
        cells.answered(Reason::UpstreamTimeout);
        cells.add_bytes(5, 6);
        cells.retried();
        registry.certificate_from(Box::new(|| {
            Some(CertificateRow {
                spiffe_id: Arc::from("spiffe://shop.internal/service/storefront"),
                not_before: UNIX_EPOCH + Duration::from_secs(10),
                not_after: UNIX_EPOCH + Duration::from_secs(20),
                serial: Arc::from("0a"),
                renewals: 1,
                renewal_failures: 2,
            })
        }));
        let report = compose(&registry, &settings(), 3);
        assert_eq!((report.run, report.sequence), (7, 3));
        assert_eq!(report.instance, "127.0.1.1:15000");
        assert_eq!(report.service, "storefront");
        let edge = &report.edges[0];
        assert_eq!(
            (edge.source.as_str(), edge.destination.as_str()),
            ("storefront", "orders")
        );
        assert_eq!(edge.direction(), Direction::Outbound);
        assert!(edge.mtls);
        assert_eq!(edge.by_class, [0, 1, 0, 0, 0, 1]);
        assert_eq!(edge.latency_counts.len(), edge.latency_bounds_us.len() + 1);
        assert_eq!(edge.latency_counts[5], 1);
        assert_eq!(edge.latency_counts[16], 1);
        assert_eq!(edge.latency_sum_us, 60_003_000);
        assert_eq!(
            (edge.request_bytes, edge.response_bytes, edge.retries),
            (5, 6, 1)
        );
        assert_eq!(edge.reasons.len(), 1);
        assert_eq!(edge.reasons["upstream_timeout"], 1);
        let certificate = report.certificate.unwrap();
        assert_eq!(
            (certificate.not_before_unix, certificate.not_after_unix),
            (10, 20)
        );
    }

    #[test]
    fn a_report_tells_an_edge_that_came_back_from_what_it_was_before_it_was_forgotten() {
        let registry = Registry::new();
        let told = |so_often: u64| {
            for _ in 0..so_often {
                registry.edge(edge_key()).record(Some(200), Duration::ZERO);
            }
            let edge = compose(&registry, &settings(), 1).edges.pop().unwrap();
            (edge.by_class[1], edge.life)
        };
        let (_, first) = told(5);
        let start = Instant::now();
        registry.forget_idle(start, |_| false);
        registry.forget_idle(start + Duration::from_secs(600), |_| false);
        let (count, second) = told(3);
        assert_eq!(count, 3);
        assert_ne!(first, second);
    }

    #[test]
    fn of_too_many_endpoints_the_sick_ones_are_reported() {
        let registry = Registry::new();
        registry.endpoints_from(Box::new(|| {
            let row = |n: u16| EndpointRow {
                service: Arc::from("orders"),
                address: ([127, 0, 0, 1], n).into(),
                state: if n == 4_999 {
                    EndpointState::Ejected
                } else {
                    EndpointState::Healthy
                },
                health: None,
                failure: None,
                ejections: 0,
                in_flight: 0,
            };
            (0..5_000).map(row).collect()
        }));
        let report = compose(&registry, &settings(), 1);
        assert_eq!(report.endpoints.len(), MAX_ENDPOINTS);
        assert_eq!(report.endpoints[0].address, "127.0.0.1:4999");
    }

    fn strangers(registry: &Registry, service: &str, count: usize) {
        let foreigners = Foreigners::default();
        let service = Arc::from(service);
        for n in 0..count {
            let address = IpAddr::from(Ipv4Addr::from_bits(n as u32));
            let (kind, name) = (Kind::PlaintextPermitted, "spiffe://other.internal/x\n");
            let sighting = Sighting {
                until: Some(UNIX_EPOCH + Duration::from_secs(30)),
                ..Sighting::came(kind, &service, address, Some(8080), Some(name))
            };
            foreigners.saw(&sighting, UNIX_EPOCH + Duration::from_secs(n as u64));
        }
        registry.foreign_from(Box::new(move || foreigners.snapshot()));
    }

    #[test]
    fn a_report_names_the_foreign_peers_that_were_seen_last() {
        let registry = Registry::new();
        let count = weft_dataplane::foreign::MAX_PEERS + 5;
        strangers(&registry, "orders", count);
        let foreign = compose(&registry, &settings(), 1).foreign.unwrap();
        assert_eq!(foreign.peers.len(), MAX_FOREIGN);
        assert_eq!(foreign.left_out as usize, count - MAX_FOREIGN);
        let [counted] = &foreign.counts[..] else {
            panic!("{:?}", foreign.counts)
        };
        assert_eq!(
            (counted.kind.as_str(), counted.count as usize),
            ("plaintext_permitted", count)
        );
        assert_eq!(counted.direction(), Direction::Inbound);
        let last = &foreign.peers[0];
        assert_eq!(
            last.address,
            Ipv4Addr::from_bits(count as u32 - 1).to_string()
        );
        assert_eq!(last.identity, "spiffe://other.internal/x?");
        assert_eq!((last.port, last.count, last.until_unix), (8080, 1, 30));
        assert_eq!(last.last_seen_unix, count as i64 - 1);
    }

    /// As many edges as a registry keeps apart, with names of this length.
    fn full(length: usize) -> Arc<Registry> {
        let registry = Registry::new();
        strangers(&registry, &"s".repeat(length), 5_000);
        let name = |side: &str, n: usize| format!("{side}-{n:04}-{:x<length$}", "");
        for n in 0..2_000 {
            let cells = registry.edge(EdgeKey {
                source: Arc::from(name("source", n)),
                destination: Arc::from(name("destination", n)),
                ..edge_key()
            });
            cells.record(Some(200), Duration::from_secs(3_600));
            cells.add_bytes(1 << 50, 1 << 50);
            for reason in Reason::ALL {
                cells.answered(*reason);
            }
        }
        registry.endpoints_from(Box::new(|| {
            let row = |n: u16| EndpointRow {
                service: Arc::from("orders"),
                address: ([127, 0, 0, 1], n).into(),
                state: EndpointState::Healthy,
                health: None,
                failure: None,
                ejections: 0,
                in_flight: 0,
            };
            (0..5_000).map(row).collect()
        }));
        registry
    }

    #[test]
    fn the_largest_report_is_one_that_the_collector_takes() {
        for length in [10, 50, 200, 2_000] {
            let report = compose(&full(length), &settings(), 1);
            assert!(report.edges.len() > 1_000, "{}", report.edges.len());
            let bytes = report.encoded_len();
            assert!(bytes <= MAX_REPORT, "{length}: {bytes}");
            let longest = report.edges.iter().map(|edge| edge.destination.len()).max();
            assert!(longest.unwrap() <= MAX_NAME);
        }
    }

    #[test]
    fn a_report_of_usual_size_keeps_its_detail() {
        let registry = Registry::new();
        registry.edge(edge_key()).answered(Reason::NoRoute);
        let report = compose(&registry, &settings(), 1);
        assert_eq!(report.edges[0].reasons["no_route"], 1);
    }
}
