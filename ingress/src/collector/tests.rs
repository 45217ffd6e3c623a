//! Reporters and the collector on loopback, over real mutual TLS, with certificates made here.
#![allow(clippy::unwrap_used)]

use super::*;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use weft_dataplane::observe::{CertificateRow, Direction, EdgeKey, EndpointRow, EndpointState};
use weft_proto::report;
use weft_sidecar::report as reporter;

/// A CA.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

type Leaf = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    fn leaf(&self, service: &str) -> Leaf {
        let identity = format!("spiffe://shop.internal/service/{service}");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["collector".into()]).unwrap();
        let name = SanType::URI(identity.as_str().try_into().unwrap());
        params.subject_alt_names.push(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (
            vec![leaf],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        roots
    }

    fn server(&self) -> Tls {
        let (chain, key) = self.leaf("ingress");
        let roots = Arc::new(self.roots());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        Arc::new(move || Arc::clone(&config))
    }

    /// For a client that trusts this CA and shows this leaf, whoever issued it.
    fn client(&self, leaf: Option<Leaf>) -> reporter::Tls {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match leaf {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        Arc::new(move || Some(Arc::clone(&config)))
    }
}

/// Every service, but not the gateway itself.
fn whose() -> Whose {
    Arc::new(|identity| {
        let name = identity.service_name().filter(|name| *name != "ingress");
        name.map(Arc::from).into_iter().collect()
    })
}

/// TLS for a door through which nobody comes.
pub(super) fn nobody() -> Tls {
    Authority::new().server()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A collector that serves, and how to end it.
struct Running {
    collector: Arc<Collector>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(tls: Tls, whose: Whose, bounds: Bounds) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, tls, whose, bounds)
    }

    fn on(listener: TcpListener, tls: Tls, whose: Whose, bounds: Bounds) -> Self {
        let address = listener.local_addr().unwrap();
        let collector = Collector::within(bounds);
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&collector);
        let done = spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(served, listener, tls, whose, Arc::default(), stopped)
                .await
                .unwrap();
        });
        Self {
            collector,
            address,
            stop: Some(stop),
            done,
        }
    }

    async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.done.await.unwrap();
    }
}

/// Tests own what they start.
#[allow(clippy::disallowed_methods)]
fn spawn<F: Future<Output: Send> + Send + 'static>(
    future: F,
) -> tokio::task::JoinHandle<F::Output> {
    tokio::spawn(future)
}

fn dial(address: SocketAddr) -> reporter::Dial {
    Arc::new(move || Box::pin(TcpStream::connect(address)))
}

/// A reporter that runs, and how to end it.
struct Reporting {
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

impl Reporting {
    fn start(
        registry: &Arc<Registry>,
        dial: reporter::Dial,
        tls: reporter::Tls,
        interval: Duration,
    ) -> Self {
        let settings = reporter::Settings {
            address: "the collector".into(),
            interval,
            service: "storefront".into(),
            instance: "127.0.1.1:15000".into(),
            run: reporter::draw_run(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let registry = Arc::clone(registry);
        let done = spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            reporter::run(settings, registry, Arc::default(), dial, tls, stopped).await;
        });
        Self { stop, done }
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.done.await.unwrap();
    }
}

const OFTEN: Duration = Duration::from_millis(60);
const NEVER: Duration = Duration::from_secs(3_600);

/// Waits until something is so; fails after ten seconds in which it was not.
async fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn key(source: &str, destination: &str, direction: Direction) -> EdgeKey {
    EdgeKey {
        source: Arc::from(source),
        destination: Arc::from(destination),
        direction,
        mtls: true,
    }
}

fn requests(collector: &Collector, source: &str, destination: &str) -> u64 {
    let edges = collector.snapshot();
    let edge = edges
        .iter()
        .find(|edge| &*edge.key.source == source && &*edge.key.destination == destination);
    edge.map_or(0, |edge| edge.totals.requests())
}

/// A sidecar of storefront that called orders so often.
fn storefront(count: u32) -> Arc<Registry> {
    let registry = Registry::new();
    let cells = registry.edge(key("storefront", "orders", Direction::Outbound));
    for _ in 0..count {
        cells.record(Some(200), Duration::from_millis(3));
    }
    registry.endpoints_from(Box::new(|| {
        vec![EndpointRow {
            service: Arc::from("orders"),
            address: "127.0.2.1:15008".parse().unwrap(),
            state: EndpointState::Ejected,
            health: None,
            failure: None,
            ejections: 2,
            in_flight: 1,
        }]
    }));
    registry.certificate_from(Box::new(|| Some(certificate("storefront", 5_000))));
    registry
}

/// One that ends then, in seconds since 1970.
fn certificate(service: &str, ends: u64) -> CertificateRow {
    CertificateRow {
        spiffe_id: Arc::from(format!("spiffe://shop.internal/service/{service}")),
        not_before: UNIX_EPOCH,
        not_after: UNIX_EPOCH + Duration::from_secs(ends),
        serial: Arc::from("0a"),
        renewals: 1,
        renewal_failures: 0,
    }
}

#[tokio::test]
async fn what_a_sidecar_counts_is_shown_for_the_mesh() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    let running = Running::start(tls, whose(), Bounds::default()).await;
    let gateway = Registry::new();
    gateway
        .edge(key("ingress", "storefront", Direction::Outbound))
        .record(Some(503), Duration::from_millis(1));
    gateway.certificate_from(Box::new(|| Some(certificate("ingress", 3_000))));
    running
        .collector
        .include("ingress", "127.0.0.1:15000", gateway);

    let registry = storefront(5);
    let dial = dial(running.address);
    let reporting = Reporting::start(&registry, dial, authority.client(Some(leaf)), OFTEN);
    let collector = &running.collector;
    until("the first report", || {
        requests(collector, "storefront", "orders") == 5
    })
    .await;
    let cells = registry.edge(key("storefront", "orders", Direction::Outbound));
    cells.record(Some(200), Duration::from_millis(3));
    until("a later report", || {
        requests(collector, "storefront", "orders") == 6
    })
    .await;
    assert_eq!(collector.connections(), 1);

    let page = collector.page(Instant::now());
    let read: MeshPage = serde_json::from_str(&page.json()).unwrap();
    assert_eq!(read.edges.len(), 2);
    let edge = read
        .edges
        .iter()
        .find(|edge| edge.source == "storefront")
        .unwrap();
    assert_eq!((edge.requests, edge.failures), (6, 0));
    assert_eq!((edge.direction.as_str(), edge.mtls), ("outbound", true));
    assert!(edge.p50_ms.unwrap() > 2.5 && edge.p99_ms.unwrap() <= 5.0);
    let reporters: Vec<_> = read
        .reporters
        .iter()
        .map(|reporter| reporter.service.as_str())
        .collect();
    assert_eq!(reporters, ["ingress", "storefront"]);
    let reporter = &read.reporters[1];
    assert_eq!(
        reporter.identity,
        "spiffe://shop.internal/service/storefront"
    );
    assert_eq!(reporter.endpoints[0].state, "ejected");
    assert_eq!(reporter.certificate.as_ref().unwrap().not_after_unix, 5_000);

    let prometheus = prometheus(collector);
    for line in [
        "weft_mesh_requests_total{source=\"storefront\",destination=\"orders\",direction=\"outbound\",mtls=\"true\",class=\"2xx\"} 6",
        "weft_mesh_requests_total{source=\"ingress\",destination=\"storefront\",direction=\"outbound\",mtls=\"true\",class=\"5xx\"} 1",
        "weft_mesh_request_duration_seconds_bucket{source=\"storefront\",destination=\"orders\",direction=\"outbound\",mtls=\"true\",le=\"0.005\"} 6",
        "weft_mesh_request_duration_seconds_sum{source=\"storefront\",destination=\"orders\",direction=\"outbound\",mtls=\"true\"} 0.018",
        "weft_mesh_endpoint_state{service=\"orders\",endpoint=\"127.0.2.1:15008\",state=\"ejected\"} 1",
        "weft_mesh_endpoint_ejections{service=\"orders\",endpoint=\"127.0.2.1:15008\"} 2",
        "weft_mesh_certificate_expiry_seconds{service=\"storefront\",instance=\"127.0.1.1:15000\"} 4000",
        "weft_mesh_certificate_expiry_seconds{service=\"ingress\",instance=\"127.0.0.1:15000\"} 2000",
        "weft_mesh_reporters{service=\"storefront\"} 1",
        "weft_collector_connections 1",
    ] {
        assert!(
            prometheus.lines().any(|have| have == line),
            "no {line} in\n{prometheus}"
        );
    }
    reporting.end().await;
    running.end().await;
}

fn prometheus(collector: &Collector) -> String {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || collector.publish());
    let mut page = recorder.handle().render();
    collector.render(
        &mut page,
        Instant::now(),
        UNIX_EPOCH + Duration::from_secs(1_000),
    );
    page
}

#[tokio::test]
async fn what_was_counted_last_is_reported_when_the_sidecar_ends() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    let running = Running::start(tls, whose(), Bounds::default()).await;
    let registry = storefront(1);
    let dial = dial(running.address);
    let reporting = Reporting::start(&registry, dial, authority.client(Some(leaf)), NEVER);
    let collector = &running.collector;
    until("the first report", || {
        requests(collector, "storefront", "orders") == 1
    })
    .await;
    let cells = registry.edge(key("storefront", "orders", Direction::Outbound));
    cells.record(Some(200), Duration::ZERO);
    reporting.end().await;
    assert_eq!(requests(collector, "storefront", "orders"), 2);
    running.end().await;
}

#[tokio::test]
async fn a_collector_that_was_away_and_came_back_has_everything() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    // A port that is ours and on which nobody listens yet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let away = Arc::new(AtomicU32::new(0));
    let tries = Arc::clone(&away);
    let dial: reporter::Dial = Arc::new(move || {
        let away = tries.fetch_add(1, Ordering::Relaxed) < 2;
        Box::pin(async move {
            if away {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            TcpStream::connect(address).await
        })
    });
    let registry = storefront(3);
    let client = authority.client(Some(leaf));
    let reporting = Reporting::start(&registry, dial, client, OFTEN);
    until("two tries", || away.load(Ordering::Relaxed) >= 2).await;
    let first = Running::on(listener, tls, whose(), Bounds::default());
    let collector = Arc::clone(&first.collector);
    until("the report", || {
        requests(&collector, "storefront", "orders") == 3
    })
    .await;

    // It goes, is missed, and another one comes: that one has it all too.
    first.end().await;
    registry
        .edge(key("storefront", "orders", Direction::Outbound))
        .record(None, Duration::ZERO);
    let tried = away.load(Ordering::Relaxed);
    until("another try", || away.load(Ordering::Relaxed) > tried).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let tls = authority.server();
    let second = Running::on(listener, tls, whose(), Bounds::default());
    let collector = &second.collector;
    until("the report", || {
        requests(collector, "storefront", "orders") == 4
    })
    .await;
    reporting.end().await;
    second.end().await;
}

#[tokio::test]
async fn nobody_gets_in_without_proof_and_the_others_go_on() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    let gateway = authority.leaf("ingress");
    let stranger = Authority::new().leaf("storefront");
    let running = Running::start(tls, whose(), Bounds::default()).await;
    let address = running.address.to_string();
    for (who, leaf) in [
        ("nobody", None),
        ("of another CA", Some(stranger)),
        ("not a sidecar", Some(gateway)),
    ] {
        let tls = authority.client(leaf);
        let refused = talk(&running, &tls, vec![report(1, 100)]).await;
        assert!(refused.is_err(), "{who} was let in: {refused:?}");
    }
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // A TLS alert or a reset: anything but an answer.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.len() < 32, "{answer:?}");
    assert!(running.collector.snapshot().is_empty());

    let taken = talk(&running, &authority.client(Some(leaf)), vec![report(1, 5)]).await;
    assert_eq!(taken.unwrap(), [1]);
    assert_eq!(requests(&running.collector, "storefront", "orders"), 5);
    until("places are free again", || {
        running.collector.connections() == 0
    })
    .await;
    running.end().await;
}

fn report(sequence: u64, count: u64) -> ReportRequest {
    ReportRequest {
        run: 1,
        sequence,
        edges: vec![edge("storefront", "orders", count)],
        ..ReportRequest::default()
    }
}

fn edge(source: &str, destination: &str, count: u64) -> report::Edge {
    report::Edge {
        source: source.into(),
        destination: destination.into(),
        direction: report::Direction::Outbound.into(),
        mtls: true,
        by_class: vec![0, count],
        ..report::Edge::default()
    }
}

/// Sends these reports over one stream and ends it; the sequence numbers that were taken, or why not.
async fn talk(
    running: &Running,
    tls: &reporter::Tls,
    reports: Vec<ReportRequest>,
) -> Result<Vec<u64>, String> {
    let tcp = TcpStream::connect(running.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls().unwrap());
    let name = "collector".try_into().unwrap();
    let tls = connector
        .connect(name, tcp)
        .await
        .map_err(|error| error.to_string())?;
    let channel = reporter::channel(tls)
        .await
        .map_err(|error| error.to_string())?;
    let mut client = report::collector_client::CollectorClient::new(channel)
        .max_encoding_message_size(usize::MAX);
    let stream = tokio_stream::iter(reports);
    let answers = client
        .report(stream)
        .await
        .map_err(|status| status.to_string())?;
    let mut answers = answers.into_inner();
    let mut taken = Vec::new();
    while let Some(answer) = answers
        .message()
        .await
        .map_err(|status| status.to_string())?
    {
        taken.push(answer.sequence);
    }
    Ok(taken)
}

#[tokio::test]
async fn what_comes_over_the_wire_twice_late_or_for_others_is_not_counted() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    let running = Running::start(tls, whose(), Bounds::default()).await;
    let foreign = ReportRequest {
        edges: vec![
            edge("orders", "inventory", 1_000),
            edge("storefront", "orders", 9),
        ],
        ..report(4, 0)
    };
    let reports = vec![
        report(1, 5),
        report(3, 8),
        report(3, 8),
        report(2, 6),
        foreign,
    ];
    let taken = talk(&running, &authority.client(Some(leaf)), reports).await;
    // Each is answered: what is not newer needs no sending again.
    assert_eq!(taken.unwrap(), [1, 3, 3, 2, 4]);
    let collector = &running.collector;
    assert_eq!(requests(collector, "storefront", "orders"), 9);
    assert_eq!(requests(collector, "orders", "inventory"), 0);
    running.end().await;
}

#[tokio::test]
async fn who_may_no_longer_report_is_refused_on_a_stream_that_is_open_too() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    // It asks once when somebody connects, and once for each report.
    let asked = AtomicU32::new(0);
    let whose: Whose = Arc::new(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => vec![Arc::from("storefront")],
        _ => vec![Arc::from("elsewhere")],
    });
    let running = Running::start(tls, whose, Bounds::default()).await;
    let named = |sequence, count| ReportRequest {
        service: "storefront".into(),
        ..report(sequence, count)
    };
    let reports = vec![named(1, 5), named(2, 8)];
    let refused = talk(&running, &authority.client(Some(leaf)), reports).await;
    assert!(refused.unwrap_err().contains("permission"));
    assert_eq!(requests(&running.collector, "storefront", "orders"), 5);
    running.end().await;
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_the_stream_and_nothing_else() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    let running = Running::start(tls, whose(), Bounds::default()).await;
    let client = authority.client(Some(leaf));
    let mut large = report(1, 5);
    large.instance = "x".repeat(MAX_REPORT);
    let refused = talk(&running, &client, vec![large]).await;
    assert!(refused.unwrap_err().contains("too large"));
    let mut malformed = report(1, 5);
    malformed.instance = "x".repeat(ledger::MAX_NAME + 1);
    let refused = talk(&running, &client, vec![malformed]).await;
    assert!(refused.unwrap_err().contains("malformed report"));
    assert_eq!(
        talk(&running, &client, vec![report(1, 5)]).await.unwrap(),
        [1]
    );
    running.end().await;
}

#[tokio::test]
async fn those_who_say_nothing_are_shown_out_and_one_too_many_is_not_let_in() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    let bounds = Bounds {
        connections: 2,
        handshake: Duration::from_secs(2),
    };
    let running = Running::start(tls, whose(), bounds).await;
    let collector = &running.collector;
    let mut silent = Vec::new();
    for count in 1..=2 {
        silent.push(TcpStream::connect(running.address).await.unwrap());
        until("it holds a place", || collector.connections() == count).await;
    }
    let mut third = TcpStream::connect(running.address).await.unwrap();
    assert!(is_closed(&mut third).await, "the third was let in");
    assert_eq!(collector.connections(), 2);
    for silent in &mut silent {
        assert!(is_closed(silent).await, "it stays for ever");
    }
    until("places are free again", || collector.connections() == 0).await;
    let client = authority.client(Some(leaf));
    assert_eq!(
        talk(&running, &client, vec![report(1, 5)]).await.unwrap(),
        [1]
    );
    running.end().await;
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = timeout(Duration::from_secs(30), stream.read(&mut byte)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn open_streams_do_not_hold_up_the_end() {
    let authority = Authority::new();
    let (tls, leaf) = (authority.server(), authority.leaf("storefront"));
    let running = Running::start(tls, whose(), Bounds::default()).await;
    let registry = storefront(1);
    let dial = dial(running.address);
    let reporting = Reporting::start(&registry, dial, authority.client(Some(leaf)), NEVER);
    let collector = Arc::clone(&running.collector);
    until("the report", || {
        requests(&collector, "storefront", "orders") == 1
    })
    .await;
    let begun = Instant::now();
    running.end().await;
    assert!(begun.elapsed() < FAREWELL * 3, "{:?}", begun.elapsed());
    reporting.end().await;
}

/// A report of `orders` that says when its certificate ends, in seconds.
fn take_certificate(collector: &Collector, instance: &str, run: u64, ends: i64) {
    let request = ReportRequest {
        instance: instance.to_owned(),
        run,
        sequence: 1,
        certificate: Some(report::Certificate {
            not_after_unix: ends,
            ..report::Certificate::default()
        }),
        ..ReportRequest::default()
    };
    let peer = Peer {
        identity: Arc::from("spiffe://shop.internal/service/orders"),
        services: Arc::from([Arc::from("orders")]),
    };
    collector.take(&peer, request, Instant::now()).unwrap();
}

#[test]
fn instances_of_one_name_make_one_series() {
    let collector = Collector::new();
    for (run, ends) in [(1, 9_000), (2, 5_000), (3, 7_000)] {
        take_certificate(&collector, "", run, ends);
    }
    let mut page = String::new();
    collector.render(
        &mut page,
        Instant::now(),
        UNIX_EPOCH + Duration::from_secs(1_000),
    );
    let name = "weft_mesh_certificate_expiry_seconds{";
    let lines: Vec<_> = page.lines().filter(|line| line.starts_with(name)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].ends_with(" 4000"), "{lines:?}");
    assert!(page.contains("weft_mesh_reporters{service=\"orders\"} 3"));
}

#[test]
fn certificates_far_away_in_time_do_not_break_the_page() {
    let collector = Collector::new();
    for (run, ends) in [(1, i64::MIN), (2, i64::MAX)] {
        take_certificate(&collector, &format!("instance-{run}"), run, ends);
    }
    let mut page = String::new();
    collector.render(&mut page, Instant::now(), SystemTime::now());
    assert_eq!(
        page.matches("weft_mesh_certificate_expiry_seconds{")
            .count(),
        2
    );
}

#[test]
fn rates_are_differences_of_pages() {
    let collector = Collector::new();
    let registry = Registry::new();
    collector.include("ingress", "here", Arc::clone(&registry));
    let cells = registry.edge(key("ingress", "orders", Direction::Outbound));
    cells.record(Some(500), Duration::from_secs(4));
    let earlier = collector.page(Instant::now());
    for _ in 0..10 {
        cells.record(Some(200), Duration::from_micros(400));
    }
    let later = collector.page(Instant::now());
    assert!(later.edges[0].is_same_edge(&earlier.edges[0]));
    let between = later.edges[0].since(&earlier.edges[0]);
    assert_eq!((between.requests, between.failures), (10, 0));
    assert!(between.quantile(0.99).unwrap() <= Duration::from_micros(500));
    assert!(later.edges[0].quantile(0.99).unwrap() > Duration::from_secs(2));
}
