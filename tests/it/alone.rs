//! One process of ours on an address of its own, with a raw origin behind it and raw bytes in front of it.
//!
//! Its identity comes from files, so that no CA is needed to try every kind of bad certificate, byte and token on it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::harness::certs::{Authority, DOMAIN, service};
use crate::harness::listening;
use crate::harness::process::assert_never_panicked;
use crate::harness::told::{WEFT, left_out};

/// How long anything may take that must happen. Long, because a busy machine is slow; nobody waits for it when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The ports of a host: unusual ones, below those that the system gives out.
const CLAIM: u16 = 21_499;
const ADMIN: u16 = 21_510;
const OUTBOUND: u16 = 21_501;
const MESH: u16 = 21_508;
const PUBLIC: u16 = 21_580;
const SECURE: u16 = 21_543;
const APP: u16 = 21_590;

/// Waits until `look` finds something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "waited for {what} in vain");
        sleep(LOOK).await;
    }
}

/// A loopback address that is ours, and a directory.
pub(crate) struct Host {
    ip: IpAddr,
    admin: u16,
    directory: TempDir,
    _claim: TcpListener,
}

impl Host {
    pub(crate) fn new() -> Self {
        let (ip, claim) = std::iter::repeat_with(|| {
            let ip = Ipv4Addr::new(
                127,
                fastrand::u8(1..=254),
                fastrand::u8(..),
                fastrand::u8(1..=254),
            );
            (IpAddr::V4(ip), TcpListener::bind((ip, CLAIM)))
        })
        .take(64)
        .find_map(|(ip, claim)| Some((ip, claim.ok()?)))
        .expect("one of 64 addresses is free");
        Self {
            ip,
            admin: ADMIN,
            directory: tempfile::tempdir().unwrap(),
            _claim: claim,
        }
    }

    /// The one loopback address of IPv6, once it is ours. `None` where there is none: the test is left out.
    pub(crate) async fn v6() -> Option<Self> {
        let ip = IpAddr::V6(Ipv6Addr::LOCALHOST);
        if TcpListener::bind((ip, 0)).is_err() {
            left_out("this machine does not have ::1");
            return None;
        }
        let claim = until("others to leave ::1", async || {
            TcpListener::bind((ip, CLAIM)).ok()
        })
        .await;
        Some(Self {
            ip,
            admin: ADMIN,
            directory: tempfile::tempdir().unwrap(),
            _claim: claim,
        })
    }

    /// The same address with another admin port and directory, for a second process.
    pub(crate) fn beside(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self.directory()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        let admin = self.admin + 1;
        let _claim = TcpListener::bind((self.ip, CLAIM - (admin - ADMIN))).unwrap();
        Self {
            ip: self.ip,
            admin,
            directory,
            _claim,
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// Where its admin pages are.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.at(self.admin)
    }

    /// Where the sidecar takes what the app sends.
    pub(crate) fn outbound(&self) -> SocketAddr {
        self.at(OUTBOUND)
    }

    /// Where the sidecar takes what the mesh sends.
    pub(crate) fn mesh(&self) -> SocketAddr {
        self.at(MESH)
    }

    /// Where the ingress takes HTTP.
    pub(crate) fn public(&self) -> SocketAddr {
        self.at(PUBLIC)
    }

    /// Where the ingress takes HTTPS.
    pub(crate) fn secure(&self) -> SocketAddr {
        self.at(SECURE)
    }

    /// Where the app listens.
    pub(crate) fn app(&self) -> SocketAddr {
        self.at(APP)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory().join(name), text).unwrap();
    }

    /// Writes `weft.yaml`: what all files of these tests have in common, and `rest`.
    pub(crate) fn configure(&self, rest: &str) {
        let admin = self.admin();
        let (outbound, mesh) = (self.outbound(), self.mesh());
        let ip = self.ip;
        self.write(
            "weft.yaml",
            &format!(
                "trust_domain: {DOMAIN}\n\
                 admin: {{ address: \"{admin}\" }}\n\
                 log: {{ format: json }}\n\
                 sidecar: {{ outbound: {{ address: \"{outbound}\" }}, inbound: {{ address: \"{mesh}\" }}, app: {{ host: \"{ip}\" }} }}\n\
                 {rest}"
            ),
        );
    }

    /// Gives its process the identity of `name`, as files that `identity:` of the configuration then names.
    pub(crate) fn identify(&self, authority: &Authority, name: &str) {
        authority
            .leaf(&service(name))
            .write(self.directory(), "own");
        self.write("roots.pem", &authority.bundle());
    }

    /// Starts `weft ARGUMENTS` with the configuration, not yet ready.
    pub(crate) fn start(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Running {
        let name = format!("{}-{}.log", arguments[0], fastrand::u32(..));
        let log = self.directory().join(name);
        let output = File::create(&log).unwrap();
        let log = File::open(&log).unwrap();
        let mut child = Command::new(WEFT.as_str())
            .args(arguments)
            .arg("--config")
            .arg(self.directory().join("weft.yaml"))
            .current_dir(self.directory())
            .env("WEFT_EXIT_ON_STDIN_EOF", "1")
            .env_remove("WEFT_LOG")
            .env_remove("WEFT_JOIN_TOKEN")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Running {
            // Waiting for a child closes its input, and that would end it.
            _input: child.stdin.take(),
            child,
            log,
            admin: self.admin(),
        }
    }

    /// The sidecar of `service`, ready.
    pub(crate) async fn sidecar(&self, service: &str) -> Running {
        let mut running = self.start(&["sidecar", "--service", service, "--workers", "1"], &[]);
        running.ready().await;
        running
    }

    /// The ingress, ready.
    pub(crate) async fn ingress(&self) -> Running {
        let mut running = self.start(&["ingress", "--workers", "1"], &[]);
        running.ready().await;
        running
    }
}

/// `identity:` of a configuration on a host that [`Host::identify`] was called for.
pub(crate) const IDENTITY: &str = "identity: { cert: own.pem, key: own.key, bundle: roots.pem }\n";

/// A process. It ends with this value, and with the test's own process if that is killed.
pub(crate) struct Running {
    child: Child,
    _input: Option<ChildStdin>,
    log: File,
    admin: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        assert_never_panicked("the process", &self.log_text());
    }
}

impl Running {
    /// Waits until `/ready` says so.
    pub(crate) async fn ready(&mut self) {
        let admin = self.admin;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended before it was ready ({status}):\n{}", self.log_text());
            }
            if get(admin, "/ready")
                .await
                .is_ok_and(|reply| reply.status == 200)
            {
                return;
            }
            assert!(
                Instant::now() < end,
                "not ready in time:\n{}",
                self.log_text()
            );
            sleep(LOOK).await;
        }
    }

    /// What `/ready` says now, if the process is there to say it.
    pub(crate) async fn readiness(&self) -> Option<Reply> {
        get(self.admin, "/ready").await.ok()
    }

    /// Waits for the process's own end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap()
    }

    /// Its number in the system.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Its resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kilobytes.unwrap() * 1024
    }

    /// The processor time it has used.
    pub(crate) fn processor(&self) -> Processor {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        let times = tasks.filter_map(|task| {
            let task = task.ok()?;
            // One that has ended since the directory was read has nothing to say any more.
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanos = text.split_whitespace().next()?.parse().ok()?;
            Some((task.file_name(), Duration::from_nanos(nanos)))
        });
        Processor(times.collect())
    }

    /// Asks it to drain and end.
    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.unwrap(), Signal::TERM).unwrap();
    }

    /// Ends it and waits for that.
    pub(crate) async fn kill(mut self) {
        let _: io::Result<()> = self.child.kill().await;
    }

    /// Ends it without a goodbye to anybody, and waits for that.
    pub(crate) async fn killed(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Fails when the process is gone or does not answer.
    pub(crate) async fn assert_alive(&mut self) {
        assert!(
            self.child.try_wait().unwrap().is_none(),
            "the process ended:\n{}",
            self.log_text()
        );
        let live = get(self.admin, "/live").await;
        assert!(live.is_ok_and(|reply| reply.status == 200));
        assert_never_panicked("the process", &self.log_text());
    }

    /// All that it wrote, also when its host and the host's directory have gone before it.
    pub(crate) fn log_text(&self) -> String {
        let log = std::os::fd::AsRawFd::as_raw_fd(&self.log);
        std::fs::read_to_string(format!("/proc/self/fd/{log}")).unwrap()
    }

    /// Waits for a line of the log in which these fields have these values, whole or as part of a longer text.
    pub(crate) async fn logged(&self, fields: &[(&str, &str)]) -> Value {
        until(
            &format!("{fields:?} in the log:\n{}", self.log_text()),
            async || {
                self.log_text()
                    .lines()
                    .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                    .find(|line| {
                        fields.iter().all(|(name, want)| {
                            line[*name]
                                .as_str()
                                .is_some_and(|value| value.contains(want))
                        })
                    })
            },
        )
        .await
    }

    /// The sum of a metric's series that have all these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = get(self.admin, "/metrics").await.unwrap().text();
        page.lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with([' ', '{']))
            })
            .filter(|line| {
                labels
                    .iter()
                    .all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
            })
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until the configuration was taken anew so many times since the start.
    pub(crate) async fn reloaded(&self, times: usize) {
        until("a reload", async || {
            let text = self.log_text();
            (text.matches("the new configuration is in force").count() >= times).then_some(())
        })
        .await;
    }
}

/// The processor time of each thread of a process, to the nanosecond: `stat`, which has all of them in one number, counts
/// ticks of 10 ms.
#[derive(Debug, Clone)]
pub(crate) struct Processor(BTreeMap<OsString, Duration>);

impl Processor {
    /// What was used since, but for threads that have ended: those had nothing to do for ten seconds before they did.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        let used = self.0.iter().map(|(thread, time)| {
            let before = before.0.get(thread).copied().unwrap_or_default();
            time.saturating_sub(before)
        });
        used.sum()
    }
}

/// Anything that carries bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
pub(crate) type Stream = Box<dyn Duplex>;

/// How a client comes in.
#[derive(Clone)]
pub(crate) enum Way {
    Plain(SocketAddr),
    /// From this address of ours to that one.
    From(SocketAddr, SocketAddr),
    Tls(SocketAddr, Arc<ClientConfig>),
    /// The same from this address of ours.
    TlsFrom(SocketAddr, SocketAddr, Arc<ClientConfig>),
}

impl Way {
    pub(crate) async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Plain(address) => Ok(Box::new(TcpStream::connect(address).await?)),
            Self::From(own, address) => Ok(Box::new(connect_from(*own, *address).await?)),
            Self::Tls(address, config) => secure(TcpStream::connect(address).await?, config).await,
            Self::TlsFrom(own, address, config) => {
                secure(connect_from(*own, *address).await?, config).await
            }
        }
    }

    /// Sends bytes and reads until the other side ends the connection.
    pub(crate) async fn send(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let work = async {
            let mut stream = self.connect().await?;
            // It may answer and end before it has read everything.
            let _: io::Result<()> = stream.write_all(bytes).await;
            let _: io::Result<()> = stream.flush().await;
            read_to_end(&mut stream).await
        };
        timeout(PATIENCE, work).await.map_err(io::Error::from)?
    }

    /// Sends one request that ends its connection, and reads the answer.
    pub(crate) async fn ask(&self, line: &str, fields: &[(&str, &str)], body: &str) -> Reply {
        let mut text = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        Reply::parse(&self.send(text.as_bytes()).await.unwrap())
    }
}

async fn connect_from(own: SocketAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(own)?;
    socket.connect(address).await
}

async fn secure(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Stream> {
    let name = ServerName::try_from("gateway.example").unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    Ok(Box::new(connector.connect(name, stream).await?))
}

/// Reads to the end; a peer that resets a connection after its answer has still answered.
pub(crate) async fn read_to_end(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        match stream.read_buf(&mut all).await {
            Ok(0) => return Ok(all),
            Ok(_) => {}
            Err(_) if !all.is_empty() => return Ok(all),
            Err(error) => return Err(error),
        }
    }
}

/// A page of a process.
pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<Reply> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let bytes = Way::Plain(address).send(request.as_bytes()).await?;
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Reply::parse(&bytes))
}

/// An answer as it came.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Reads the last answer in `bytes`: interim ones before it are skipped.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = find(bytes, b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let status: u16 = status.parse().unwrap();
        let rest = &bytes[end + 4..];
        if (100..200).contains(&status) && status != 101 {
            return Self::parse(rest);
        }
        let fields: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let chunked = fields.iter().any(|(name, _)| name == "transfer-encoding");
        let body = if chunked {
            unchunk(rest)
        } else {
            rest.to_vec()
        };
        Self {
            status,
            fields,
            body,
        }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(have, _)| have == name);
        field.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The problem that it tells, checked for its form: what RFC 9457 and our own promise ask of every such answer.
    pub(crate) fn problem(&self) -> Value {
        assert_eq!(
            self.field("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status, "{problem}");
        for member in ["type", "title", "reason", "detail", "cure"] {
            let text = problem[member].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "no {member}: {problem}");
        }
        assert_eq!(self.field("weft-reason"), problem["reason"].as_str());
        problem
    }

    /// Fails unless it is an answer of ours for this reason; returns the detail.
    pub(crate) fn refused(&self, status: u16, reason: &str) -> String {
        let problem = self.problem();
        assert_eq!(
            (self.status, &problem["reason"]),
            (status, &Value::from(reason)),
            "{problem}"
        );
        problem["detail"].as_str().unwrap().to_owned()
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The data of whole chunks; what is cut stays away.
fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(end) = find(bytes, b"\r\n") {
        let size = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
        let rest = &bytes[end + 2..];
        if size == 0 || rest.len() < size + 2 {
            break;
        }
        data.extend_from_slice(&rest[..size]);
        bytes = &rest[size + 2..];
    }
    data
}

/// A request as it reached the origin.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Request line and fields, as they came.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Which connection, counted from 0.
    pub(crate) connection: usize,
}

impl Seen {
    /// The values of all fields of this name.
    pub(crate) fn fields(&self, name: &str) -> Vec<&str> {
        self.head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(have, _)| have.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

/// What the origin does with a request.
pub(crate) enum Then {
    /// Sends this and waits for the next request.
    Keep(Vec<u8>),
    /// Sends this and closes.
    Close(Vec<u8>),
    /// Never answers.
    Hang,
}

/// 200 with a small body.
pub(crate) fn fine() -> Then {
    Then::Keep(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
}

#[derive(Default)]
struct Ledger {
    requests: Vec<Seen>,
    bytes: usize,
    connections: usize,
    open: usize,
    most_open: usize,
}

/// An HTTP/1.1 server that notes every byte it is sent.
pub(crate) struct Origin {
    ledger: Arc<Mutex<Ledger>>,
    accepting: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Origin {
    /// Listens here and does with each whole request what `act` says.
    pub(crate) async fn start(
        address: SocketAddr,
        act: impl Fn(&Seen) -> Then + Send + Sync + 'static,
    ) -> Self {
        let listener = listening(address);
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (noted, act) = (Arc::clone(&ledger), Arc::new(act));
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let number = {
                    let mut ledger = noted.lock().unwrap();
                    ledger.connections += 1;
                    ledger.open += 1;
                    ledger.most_open = ledger.most_open.max(ledger.open);
                    ledger.connections - 1
                };
                let (noted, act) = (Arc::clone(&noted), Arc::clone(&act));
                tokio::spawn(async move {
                    let _: io::Result<()> = converse(stream, number, &noted, &*act).await;
                    noted.lock().unwrap().open -= 1;
                });
            }
        });
        Self { ledger, accepting }
    }

    /// A server that answers everything well.
    pub(crate) async fn fine(address: SocketAddr) -> Self {
        Self::start(address, |_| fine()).await
    }

    /// No server at all: the test has one of its own.
    pub(crate) fn nobody() -> Self {
        Self {
            ledger: Arc::default(),
            accepting: tokio::spawn(async {}),
        }
    }

    /// The most connections that were open at the same time.
    pub(crate) fn most_open(&self) -> usize {
        self.ledger.lock().unwrap().most_open
    }

    /// Every whole request so far.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.ledger.lock().unwrap().requests.clone()
    }

    pub(crate) fn last(&self) -> Seen {
        self.requests().pop().expect("the origin was asked")
    }

    /// Bytes received so far, of whole requests and of others.
    pub(crate) fn bytes(&self) -> usize {
        self.ledger.lock().unwrap().bytes
    }

    /// Connections that are open now.
    pub(crate) fn open(&self) -> usize {
        self.ledger.lock().unwrap().open
    }
}

async fn converse(
    mut stream: TcpStream,
    connection: usize,
    ledger: &Mutex<Ledger>,
    act: &(dyn Fn(&Seen) -> Then + Send + Sync),
) -> io::Result<()> {
    let mut input = Vec::new();
    loop {
        while let Some(seen) = take_request(&mut input, connection) {
            ledger.lock().unwrap().requests.push(seen.clone());
            match act(&seen) {
                Then::Keep(bytes) => stream.write_all(&bytes).await?,
                Then::Close(bytes) => {
                    stream.write_all(&bytes).await?;
                    return stream.shutdown().await;
                }
                Then::Hang => {}
            }
        }
        let before = input.len();
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        ledger.lock().unwrap().bytes += input.len() - before;
    }
}

/// Takes a whole request from the front of `input`, if one is there.
fn take_request(input: &mut Vec<u8>, connection: usize) -> Option<Seen> {
    let end = find(input, b"\r\n\r\n")?;
    let mut seen = Seen {
        head: String::from_utf8_lossy(&input[..end]).into_owned(),
        body: Vec::new(),
        connection,
    };
    let start = end + 4;
    let length = match seen.fields("content-length").first() {
        Some(length) => length.parse().unwrap(),
        None if !seen.fields("transfer-encoding").is_empty() => {
            // No test sends chunks that hold the end of chunks.
            match find(&input[start..], b"0\r\n\r\n") {
                Some(end) => end + 5,
                // Trailers.
                None => {
                    let last = find(&input[start..], b"\r\n0\r\n")? + 5;
                    last + find(&input[start + last..], b"\r\n\r\n")? + 4
                }
            }
        }
        None => 0,
    };
    if input.len() < start + length {
        return None;
    }
    seen.body = input[start..start + length].to_vec();
    input.drain(..start + length);
    Some(seen)
}
