//! A listener of one core in front of scripted origins, for tests that tell a story over real sockets in one thread.
//!
//! A story runs in [`story`], which fails it when it hangs. It makes an [`Origin`] that it answers for by hand, a
//! [`Stage`] whose one cluster leads there, and clients that say byte for byte what they want.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use weft_runtime::config::{Path, Problems};

use crate::accept;
use crate::authz::Rules;
use crate::balance;
use crate::cluster::{Cluster, Speaks, Spec, limits, retry};
use crate::core::{Core, Open, Shared};
use crate::discovery::Source;
use crate::endpoint::place::Place;
use crate::health::outlier;
use crate::http1::Limits;
use crate::identity::{Identity, Ours};
use crate::observe::{AccessLog, AccessLogConfig, Registry, Totals};
use crate::plan::{Door, Http2, Opaque, Plan, Purpose, Rule, Site, Timeouts};
use crate::reason::Reason;
use crate::route::{Match, Table};
use crate::trusted::Trusted;

/// After this, a story hangs. Long, because machines that run tests are busy.
const HANGS: Duration = Duration::from_secs(60);

/// Runs a story on a runtime like a core's.
pub(crate) fn story(tale: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(HANGS, tale).await })
        .expect("the story does not hang");
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < HANGS / 2, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// One core with one listener and one cluster.
pub(crate) struct Stage {
    pub(crate) core: Rc<Core>,
    pub(crate) cluster: Arc<Cluster>,
    /// Where the listener is.
    pub(crate) address: SocketAddr,
    registry: Arc<Registry>,
    open: Arc<Open>,
    plan: Arc<ArcSwap<Plan>>,
    listening: Option<accept::Listening>,
}

/// A stage before it stands: what a story wants otherwise than usual.
pub(crate) struct Setting {
    pub(crate) spec: Spec,
    pub(crate) site: Site,
    pub(crate) is_local: bool,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) connections: usize,
}

impl Stage {
    /// In front of these origins.
    pub(crate) async fn new(speaks: Speaks, origins: &[SocketAddr]) -> Self {
        Self::with(speaks, origins, |_| ()).await
    }

    /// The same, with changes.
    pub(crate) async fn with(
        speaks: Speaks,
        origins: &[SocketAddr],
        change: impl FnOnce(&mut Setting),
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut setting = Setting {
            spec: spec(speaks, origins),
            site: site("stage", address),
            is_local: false,
            identity: None,
            connections: 1000,
        };
        change(&mut setting);
        let cluster = Cluster::new(setting.spec, setting.is_local);
        cluster.members.apply(origins.to_vec(), Instant::now());
        let plan = Arc::new(ArcSwap::from_pointee(plan(setting.site, &cluster)));
        let registry = Registry::new();
        let shared = Shared {
            plan: Arc::clone(&plan),
            identity: setting.identity.map(Ours::from).unwrap_or_default(),
            registry: Arc::clone(&registry),
            open: Arc::new(Open::default()),
            access_log: Arc::new(
                AccessLog::start(&AccessLogConfig::Off, registry.access_log_dropped()).unwrap(),
            ),
            max_connections: setting.connections,
            dials: Arc::default(),
            settled: Arc::default(),
            pressure: Arc::default(),
        };
        let core = Core::new(&shared);
        let listening = accept::listen(Rc::clone(&core), "stage".into(), listener).unwrap();
        Self {
            core,
            cluster,
            address,
            registry,
            open: shared.open,
            plan,
            listening: Some(listening),
        }
    }

    /// A client that speaks bytes.
    pub(crate) async fn client(&self) -> Raw {
        Raw::connect(self.address).await
    }

    /// A client that speaks HTTP/2.
    pub(crate) async fn h2_client(&self) -> H2Client {
        H2Client::connect(self.address, |_| ()).await
    }

    /// Makes this the plan that holds from now on.
    pub(crate) fn put_in_force(&self, plan: Plan) {
        self.plan.store(Arc::new(plan));
    }

    /// Closes the listener as a core does.
    pub(crate) async fn close(&mut self) {
        self.listening.take().unwrap().close().await;
    }

    /// What was counted between us and the cluster.
    pub(crate) fn edge(&self) -> Totals {
        let mut totals = self.registry.totals();
        assert!(totals.len() <= 1, "one edge only");
        totals.pop().map(|edge| edge.totals).unwrap_or_default()
    }

    /// What was counted by the one route.
    pub(crate) fn route(&self) -> Totals {
        let mut totals = self.registry.route_totals();
        assert!(totals.len() <= 1, "one route only");
        totals.pop().map(|route| route.totals).unwrap_or_default()
    }

    /// How many answers of ours gave this reason.
    pub(crate) fn answers(&self, reason: Reason) -> u64 {
        self.registry.answer_totals()[reason as usize]
    }

    /// How many readers were given up.
    pub(crate) fn given_up(&self) -> u64 {
        let totals = self.registry.connection_totals();
        totals.iter().map(|(_, totals)| totals.unread).sum()
    }

    /// How many client connections are open.
    pub(crate) fn seats(&self) -> usize {
        self.open.count()
    }

    /// How many exchanges are at the endpoints.
    pub(crate) fn in_flight(&self) -> u32 {
        let members = self.cluster.members.load();
        members.endpoints().iter().map(|e| e.in_flight()).sum()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

/// One origin, and a stage in front of it.
pub(crate) async fn scene(speaks: Speaks) -> (Origin, Stage) {
    scene_with(speaks, |_| ()).await
}

/// The same, with changes.
pub(crate) async fn scene_with(
    speaks: Speaks,
    change: impl FnOnce(&mut Setting),
) -> (Origin, Stage) {
    let origin = Origin::new().await;
    let stage = Stage::with(speaks, &[origin.address], change).await;
    (origin, stage)
}

/// A client that has sent this, and the connection of the endpoint, which has read a head of it.
pub(crate) async fn asked(stage: &Stage, origin: &Origin, request: impl AsRef<[u8]>) -> (Raw, Raw) {
    let mut client = stage.client().await;
    client.send(request).await;
    let mut endpoint = origin.accept().await;
    endpoint.head().await;
    (client, endpoint)
}

pub(crate) fn spec(speaks: Speaks, origins: &[SocketAddr]) -> Spec {
    let (path, mut problems) = (Path::root(), Problems::new());
    Spec {
        name: "orders".into(),
        source: Source::Fixed(origins.iter().copied().map(Place::new).collect()),
        mesh: None,
        authority: None,
        app: speaks,
        balance: balance::Policy::default(),
        sticky: None,
        outlier: outlier::Config::default()
            .build(&path, &mut problems)
            .unwrap(),
        health: None,
        retry: retry::Config::default()
            .build(&path, &mut problems)
            .unwrap(),
        timeout: HANGS,
        connect_timeout: HANGS,
        limits: limits::Config::default()
            .build(&path, &mut problems)
            .unwrap(),
        breaker: None,
    }
}

/// How often an exchange may be tried again.
pub(crate) fn retries(attempts: u32) -> retry::Policy {
    let config = retry::Config {
        attempts,
        ..retry::Config::default()
    };
    config.build(&Path::root(), &mut Problems::new()).unwrap()
}

/// A listener of this name, without routes.
pub(crate) fn site(name: &str, address: SocketAddr) -> Site {
    Site {
        name: name.into(),
        address,
        door: Door::Plain,
        routes: Table::build(Vec::new(), &mut Problems::new()).unwrap(),
        opaque: Opaque::Refused,
        capture: None,
        unmatched: Reason::NoRoute,
        service: "storefront".into(),
        identity: "".into(),
        tells_identity: false,
        callers: Arc::default(),
        is_edge: true,
        paces_uploads: true,
        trusted: Trusted::default(),
        timeouts: Timeouts::default(),
        http1: Limits::default(),
        http2: Http2::EDGE,
        outlasts: false,
    }
}

/// A plan in which everything that comes to `site` goes to `cluster`.
pub(crate) fn plan(mut site: Site, cluster: &Arc<Cluster>) -> Plan {
    let (path, mut problems) = (Path::root(), Problems::new());
    let matches = Match::default();
    site.routes = Table::build(vec![(&path, &matches, rule(cluster))], &mut problems).unwrap();
    Plan::new(1, vec![Arc::new(site)])
}

/// Lets everybody go to `cluster`.
pub(crate) fn rule(cluster: &Arc<Cluster>) -> Arc<Rule> {
    let (path, mut problems) = (Path::root(), Problems::new());
    let anybody = Rules::build("orders", &path, &[], &Default::default(), &mut problems);
    Arc::new(Rule {
        id: Rule::next_id(),
        name: "everything".into(),
        authn: None,
        authz: Arc::new(anybody.unwrap()),
        limits: Vec::new(),
        target: Arc::clone(cluster),
        purpose: Purpose::Traffic,
    })
}

/// Where nobody listens.
pub(crate) async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// An origin that the story answers for.
pub(crate) struct Origin {
    listener: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Origin {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Raw {
        Raw::new(self.listener.accept().await.unwrap().0)
    }

    /// The next connection, as HTTP/2.
    pub(crate) async fn accept_h2(&self) -> H2Server {
        self.accept_h2_with(|_| ()).await
    }

    /// The same, for one stream at a time.
    pub(crate) async fn accept_h2_narrow(&self) -> H2Server {
        self.accept_h2_with(|builder| {
            builder.max_concurrent_streams(1);
        })
        .await
    }

    pub(crate) async fn accept_h2_with(
        &self,
        change: impl FnOnce(&mut h2::server::Builder),
    ) -> H2Server {
        let stream = self.listener.accept().await.unwrap().0;
        stream.set_nodelay(true).unwrap();
        let mut builder = h2::server::Builder::new();
        change(&mut builder);
        H2Server(builder.handshake(stream).await.unwrap())
    }
}

/// A connection whose bytes the story reads and writes itself.
pub(crate) struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    /// With so small a receive buffer that the kernel holds little of what is not read.
    pub(crate) async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        Self::new(socket.connect(address).await.unwrap())
    }

    /// Has the kernel hold little of what we send.
    pub(crate) fn narrow(&self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_send_buffer_size(32 * 1024).unwrap();
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// As much as the other side takes, up to so many bytes; how many that were.
    pub(crate) async fn send_until_stuck(&mut self, most: usize) -> usize {
        static PIECE: [u8; 16 * 1024] = [b'x'; 16 * 1024];
        let mut sent = 0;
        while sent < most {
            let quiet = Duration::from_millis(700);
            match tokio::time::timeout(quiet, self.stream.write(&PIECE)).await {
                Ok(written) => sent += written.unwrap(),
                Err(_) => break,
            }
        }
        sent
    }

    /// The same again and again, as much as the other side takes until it breaks off; how many bytes that were.
    pub(crate) async fn pour(&mut self, most: usize) -> usize {
        static PIECE: [u8; 16 * 1024] = [b'x'; 16 * 1024];
        let mut sent = 0;
        while sent < most {
            match self.stream.write(&PIECE).await {
                Ok(written) => sent += written,
                Err(_) => break,
            }
        }
        sent
    }

    /// The same with whole texts, as they fit.
    pub(crate) async fn pour_text(&mut self, text: &str, most: usize) {
        let piece = text.repeat(100);
        let mut sent = 0;
        while sent < most && self.stream.write_all(piece.as_bytes()).await.is_ok() {
            sent += piece.len();
        }
    }

    /// Whether the connection was broken off, after whatever still came.
    pub(crate) async fn is_reset(&mut self) -> bool {
        let mut space = vec![0; 16 * 1024];
        loop {
            match self.stream.read(&mut space).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Up to and with these bytes.
    pub(crate) async fn read_to(&mut self, end: &str) -> String {
        loop {
            let found = self
                .read
                .windows(end.len())
                .position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let rest = self.read.split_off(at + end.len());
                let read = std::mem::replace(&mut self.read, rest);
                return String::from_utf8(read).unwrap();
            }
            let length = self.stream.read_buf(&mut self.read).await.unwrap();
            let so_far = String::from_utf8_lossy(&self.read);
            assert!(length > 0, "ended before `{end:?}`, after `{so_far}`");
        }
    }

    /// A head.
    pub(crate) async fn head(&mut self) -> String {
        self.read_to("\r\n\r\n").await
    }

    /// So many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            let length = self.stream.read_buf(&mut self.read).await.unwrap();
            assert!(length > 0, "ended after {} of {count}", self.read.len());
        }
        let rest = self.read.split_off(count);
        std::mem::replace(&mut self.read, rest)
    }

    /// What comes until the other side ends, or breaks off.
    pub(crate) async fn rest(&mut self) -> String {
        while let Ok(1..) = self.stream.read_buf(&mut self.read).await {}
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    /// Reads on until the other side ends, or breaks off.
    pub(crate) async fn drain(&mut self) {
        while let Ok(1..) = self.stream.read_buf(&mut self.read).await {
            self.read.clear();
        }
    }

    /// To go on with when the runtime has gone.
    pub(crate) fn into_std(self) -> std::net::TcpStream {
        let stream = self.stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
    }

    /// Ends our side only.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Breaks the connection off, as a process that dies does.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

/// The origin's side of an HTTP/2 connection.
pub(crate) struct H2Server(pub(crate) h2::server::Connection<TcpStream, Bytes>);

pub(crate) type Responder = h2::server::SendResponse<Bytes>;

impl H2Server {
    /// The next request. The connection makes no progress otherwise: see [`H2Server::run`].
    pub(crate) async fn request(&mut self) -> (Request<RecvStream>, Responder) {
        self.0.accept().await.expect("a request").unwrap()
    }

    /// Drives the connection from here on; requests that still come are answered with 204.
    pub(crate) fn run(mut self) -> JoinHandle<()> {
        tokio::task::spawn_local(async move {
            while let Some(Ok((_, mut respond))) = self.0.accept().await {
                let _: Result<_, _> = respond.send_response(answer(204), true);
            }
        })
    }
}

/// The client's side of an HTTP/2 connection.
pub(crate) struct H2Client {
    sender: h2::client::SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
    frozen: Rc<Cell<bool>>,
}

impl Drop for H2Client {
    fn drop(&mut self) {
        if self.frozen.get() {
            self.driver.abort();
        }
    }
}

impl H2Client {
    pub(crate) async fn connect(
        address: SocketAddr,
        change: impl FnOnce(&mut h2::client::Builder),
    ) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut builder = h2::client::Builder::new();
        change(&mut builder);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        let frozen = Rc::new(Cell::new(false));
        let stop = Rc::clone(&frozen);
        let driver = tokio::task::spawn_local(async move {
            let mut connection = pin!(connection);
            poll_fn(|cx| {
                if stop.get() {
                    return Poll::Pending;
                }
                connection.as_mut().poll(cx)
            })
            .await
        });
        Self {
            sender,
            driver,
            frozen,
        }
    }

    /// Sends a head; the body follows by the stream unless it is `whole`.
    pub(crate) async fn send(
        &mut self,
        request: Request<()>,
        whole: bool,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        poll_fn(|cx| self.sender.poll_ready(cx)).await.unwrap();
        self.sender.send_request(request, whole).unwrap()
    }

    /// Waits until the connection has ended.
    pub(crate) async fn ended(&mut self) {
        let _: Result<_, _> = (&mut self.driver).await;
    }

    /// From here on the connection's bytes are neither read nor written.
    pub(crate) fn freeze(&self) {
        self.frozen.set(true);
    }
}

/// A request to the service.
pub(crate) fn request(method: &str, path: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri(format!("http://orders{path}"))
        .version(Version::HTTP_2)
        .body(())
        .unwrap()
}

/// An answer without fields.
pub(crate) fn answer(status: u16) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A body to its end.
pub(crate) async fn collect(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

/// Sends a body as far as the windows let it.
pub(crate) async fn send_all(stream: &mut SendStream<Bytes>, mut body: Bytes, end: bool) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let capacity = poll_fn(|cx| stream.poll_capacity(cx))
            .await
            .expect("the stream is open")
            .unwrap();
        let piece = body.split_to(capacity.min(body.len()));
        stream.send_data(piece, end && body.is_empty()).unwrap();
    }
}
