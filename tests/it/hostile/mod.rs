//! What a proxy must withstand: bytes that mean harm, at every door and from every origin, and a good client beside them.
//!
//! A file for each kind of harm: `requests` and `answers` (HTTP/1.1), `http2`, `letter` and `origins` (HTTP/2), `floods`,
//! `hoarding` and `backpressure` (who does not read), `dripping` (who is slow), `descriptors`, `restarts` and `sick` (what
//! fails by itself); `grpc`, `websocket` and `tcp` for what is not one question and one answer. Certificates are in `mtls`, tokens in `jwt`. Attacks run
//! [`Scene::under_attack`]: beside them good clients are served by the very processes that are attacked, and what attacks cost
//! is bounded.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod answer_floods;
mod answers;
mod backpressure;
mod descriptors;
mod dripping;
mod floods;
pub(crate) mod frames;
mod grpc;
mod handshakes;
mod hoarding;
mod http2;
mod letter;
mod origins;
mod places;
pub(crate) mod requests;
mod restarts;
mod sick;
mod tcp;
mod unread;
mod websocket;

use std::cmp::Reverse;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::ALL_VERSIONS;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::alone::{Host, IDENTITY, Origin, Running, Seen, Then, Way};
use crate::harness::certs::{Authority, nobody, service};
use crate::harness::p99;
use crate::harness::told::{at_most, is_strict};

/// What memory may grow by, in each process, while an attack runs.
const GROWTH: u64 = 96 << 20;
/// How long a good client waits for an answer before it counts as lost.
const LOST: Duration = Duration::from_secs(10);
/// How long 99 % of a good client's answers take at most.
static SLOWEST: LazyLock<Duration> =
    LazyLock::new(|| at_most(Duration::from_secs(1), Duration::from_secs(3)));
/// Questions that a good client has at least while an attack runs, and after it if it was over sooner: so many that one slow
/// answer alone is no percent of them.
static QUESTIONS: LazyLock<usize> = LazyLock::new(|| if is_strict() { 300 } else { CALM });
/// The same where there is no attack yet, and where nobody holds it to the letter.
const CALM: usize = 100;

/// What leads to the service of the sidecar.
const ROUTE: &str = "{ match: { host: orders }, to: orders }, ";

/// One origin behind a sidecar and a gateway, and the doors that lead to it.
pub(super) struct Scene {
    pub(super) origin: Origin,
    pub(super) sidecar: Running,
    pub(super) ingress: Running,
    mesh: Authority,
    pub(super) host: Host,
    edge: Host,
}

impl Scene {
    pub(super) async fn set(act: impl Fn(&Seen) -> Then + Send + Sync + 'static) -> Self {
        let host = Host::new();
        let origin = Origin::start(host.app(), act).await;
        Self::of(host, origin).await
    }

    /// In front of whatever listens at the host's address of the app.
    async fn of(host: Host, origin: Origin) -> Self {
        Self::serving(host, origin, "", ROUTE, "5m").await
    }

    /// The same, with readers who have two seconds and no more.
    async fn impatient(host: Host, origin: Origin) -> Self {
        Self::serving(host, origin, "", ROUTE, "2s").await
    }

    /// The same with an app that speaks gRPC.
    async fn of_calls(host: Host, origin: Origin) -> Self {
        Self::serving(host, origin, "protocol: grpc, ", ROUTE, "5m").await
    }

    /// The same with an app of opaque TCP, which callers find here.
    async fn of_bytes(host: Host, origin: Origin, listen: SocketAddr) -> Self {
        let bytes = format!(
            "  bytes: {{ mesh: false, protocol: tcp, listen: \"{listen}\", endpoints: [\"{}\"] }}\n",
            host.app()
        );
        Self::serving_more(host, origin, "protocol: tcp, ", "", "5m", &bytes).await
    }

    async fn serving(host: Host, origin: Origin, speaks: &str, route: &str, unread: &str) -> Self {
        Self::serving_more(host, origin, speaks, route, unread, "").await
    }

    async fn serving_more(
        host: Host,
        origin: Origin,
        speaks: &str,
        route: &str,
        unread: &str,
        more: &str,
    ) -> Self {
        // What is opaque to the mesh is HTTP all the same for the good client.
        // An app that says goodbye on its connections has its calls tried again; one of HTTP/1.1 is watched without that.
        let plainly = match speaks.contains("grpc") {
            true => speaks,
            false => "retry: { attempts: 0 }, ",
        };
        let mesh = Authority::new();
        host.identify(&mesh, "orders");
        mesh.website("gateway.example")
            .write(host.directory(), "public");
        host.configure(&format!(
            "{IDENTITY}services:
  orders: {{ {speaks}port: {port}, endpoints: [\"{sidecar}\"], limits: {{ in_flight: 4096 }} }}
  plain: {{ {plainly}mesh: false, endpoints: [\"{app}\"], outlier: {{ enabled: false }} }}
  stranger: {{ mesh: false, protocol: grpc, endpoints: [\"{stranger}\"], retry: {{ attempts: 0 }}, outlier: {{ enabled: false }} }}
  peer: {{ endpoints: [\"{peer}\"], retry: {{ attempts: 0 }}, outlier: {{ enabled: false }} }}
  calls: {{ port: {calls}, protocol: grpc, endpoints: [\"{sidecar}\"], retry: {{ attempts: 0 }}, outlier: {{ enabled: false }} }}
{more}ingress:
  listeners:
    - {{ name: public, address: \"{public}\", unread_timeout: {unread} }}
    - {{ name: secure, address: \"{secure}\", unread_timeout: {unread}, tls: {{ cert: public.pem, key: public.key }} }}
  routes: [ {route}{{ match: {{ host: stranger }}, to: stranger }}, {{ match: {{ host: peer }}, to: peer }}, {{ to: plain }} ]
",
            port = host.app().port(),
            sidecar = host.mesh(),
            app = host.app(),
            stranger = host.at(origins::STRANGER),
            peer = host.at(origins::PEER),
            calls = origins::STRANGER,
            public = host.public(),
            secure = host.secure(),
        ));
        let text = std::fs::read_to_string(host.directory().join("weft.yaml")).unwrap();
        let text = text.replace(
            "sidecar: {",
            &format!("sidecar: {{ unread_timeout: {unread},"),
        );
        host.write("weft.yaml", &text);
        let edge = host.beside();
        edge.write(
            "weft.yaml",
            &text.replace(&host.admin().to_string(), &edge.admin().to_string()),
        );
        edge.identify(&mesh, "gateway");
        let (sidecar, ingress) = tokio::join!(host.sidecar("orders"), edge.ingress());
        Self {
            origin,
            sidecar,
            ingress,
            mesh,
            host,
            edge,
        }
    }

    pub(super) fn doors(&self, alpn: &[&str]) -> [(&'static str, Way); 4] {
        let member = self.mesh.leaf(&service("storefront")).client(alpn);
        [
            ("public", Way::Plain(self.host.public())),
            (
                "secure",
                Way::Tls(self.host.secure(), nobody(ALL_VERSIONS, alpn)),
            ),
            ("outbound", Way::Plain(self.host.outbound())),
            ("mesh", Way::Tls(self.host.mesh(), member)),
        ]
    }

    /// How good clients come in at some of the doors.
    pub(super) fn good_ways(&self, doors: &[&str]) -> Vec<(&'static str, Way)> {
        let mut ways = self.doors(&["http/1.1"]).to_vec();
        ways.retain(|(door, _)| doors.contains(door));
        ways
    }

    /// Runs an attack beside a good client at each of `doors`, which are those of what is attacked: 99 % of its answers come, 99 %
    /// of those within [`SLOWEST`] (more only where the machine needed that before, and nobody holds it to the letter), and
    /// neither process grows by more than 96 MiB.
    pub(super) async fn under_attack(
        &mut self,
        what: &str,
        doors: &[(&'static str, Way)],
        attack: impl Future<Output = ()>,
    ) {
        // What the machine needs in peace counts only where nobody holds it to the letter.
        let most = match is_strict() {
            true => vec![*SLOWEST; doors.len()],
            false => {
                let calm = Served::during(doors, CALM, async {}).await;
                calm.iter()
                    .map(|calm| SLOWEST.max(calm.p99() * 4))
                    .collect()
            }
        };
        let before = self.memory();
        let mut grown = [0; 2];
        let watched = async {
            let mut attack = std::pin::pin!(attack);
            loop {
                tokio::select! {
                    () = &mut attack => return,
                    () = sleep(Duration::from_millis(50)) => {
                        for (grown, (now, before)) in grown.iter_mut().zip(self.memory().iter().zip(before)) {
                            *grown = now.saturating_sub(before).max(*grown);
                        }
                    }
                }
            }
        };
        let served = Served::during(doors, *QUESTIONS, watched).await;
        for ((door, _), (served, most)) in doors.iter().zip(served.iter().zip(most)) {
            assert!(
                served.lost() * 100 <= served.0.len(),
                "{what}, at {door}: too many answers were lost: {served}"
            );
            assert!(
                served.p99() < most,
                "{what}, at {door}: p99 was {:?}, and at most {most:?} may be: {served}",
                served.p99()
            );
        }
        assert!(
            grown.iter().all(|grown| *grown < GROWTH),
            "{what}: memory grew by {grown:?} bytes"
        );
        self.assert_alive().await;
    }

    /// What the two processes hold.
    fn memory(&self) -> [u64; 2] {
        [self.sidecar.resident(), self.ingress.resident()]
    }

    pub(super) async fn assert_alive(&mut self) {
        self.sidecar.assert_alive().await;
        self.ingress.assert_alive().await;
    }
}

pub(super) async fn good(way: &Way) {
    let reply = way.ask("GET /good", &[("host", "plain")], "").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
}

/// 99 % of these are within [`SLOWEST`], and none takes three times as long.
fn are_short(what: &str, times: Vec<Duration>) {
    let slowest = times.iter().max().copied().unwrap();
    assert!(slowest < 3 * *SLOWEST, "{what} took {slowest:?}");
    let p99 = p99(times);
    assert!(p99 < *SLOWEST, "{what}: p99 was {p99:?}");
}

/// What a good client got.
#[derive(Debug)]
struct Served(Vec<Answer>);

/// What became of a question.
#[derive(Debug)]
struct Answer {
    took: Duration,
    /// The first line, or why there is none.
    said: String,
}

impl Served {
    /// Asks at each of these doors until `meanwhile` is over, on tasks of their own, and so often at least.
    async fn during(
        doors: &[(&'static str, Way)],
        least: usize,
        meanwhile: impl Future<Output = ()>,
    ) -> Vec<Self> {
        // A hundred a second at one door and two hundred at all four.
        let pace = Duration::from_millis(5) * doors.len().max(2) as u32;
        let over = Arc::new(AtomicBool::new(false));
        let asking: Vec<_> = doors
            .iter()
            .map(|(_, way)| tokio::spawn(Self::by(way.clone(), pace, least, Arc::clone(&over))))
            .collect();
        meanwhile.await;
        over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for asking in asking {
            all.push(asking.await.unwrap());
        }
        all
    }

    /// Asks at a steady pace, however long the answers take, and waits for all of them in the end: whoever is not served for a
    /// while has as many slow answers as it would have had questions. None is waited for longer than [`LOST`], and so never
    /// more than a thousand at a time. Where nobody holds it to the letter it asks one thing after the other: unoptimised
    /// handshakes at that pace would be an attack of their own.
    async fn by(way: Way, pace: Duration, least: usize, over: Arc<AtomicBool>) -> Self {
        let (mut asked, mut pace) = (JoinSet::new(), interval(pace));
        let mut answers = Vec::new();
        // What this process itself was too late for is not made up for at once.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !over.load(Ordering::Relaxed) || answers.len() + asked.len() < least {
            pace.tick().await;
            asked.spawn(Answer::of(way.clone()));
            if !is_strict() {
                answers.extend(asked.join_next().await.map(Result::unwrap));
            }
        }
        answers.extend(asked.join_all().await);
        Self(answers)
    }

    fn lost(&self) -> usize {
        self.0.iter().filter(|answer| !answer.is_good()).count()
    }

    fn p99(&self) -> Duration {
        p99(self.0.iter().map(|answer| answer.took).collect())
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, lost) = (self.0.len(), self.lost());
        write!(f, "{lost} of {all} were lost, and the slowest were")?;
        let mut slowest: Vec<_> = self.0.iter().collect();
        slowest.sort_by_key(|answer| Reverse(answer.took));
        for Answer { took, said } in slowest.iter().take(3) {
            write!(f, " {took:?} ({said})")?;
        }
        Ok(())
    }
}

impl Answer {
    async fn of(way: Way) -> Self {
        let begun = Instant::now();
        let request = b"GET /good HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n";
        let answer = timeout(LOST, way.send(request)).await;
        let took = begun.elapsed();
        let said = match answer {
            Ok(Ok(bytes)) => {
                let line = bytes.split(|byte| *byte == b'\r').next();
                String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        Self { took, said }
    }

    fn is_good(&self) -> bool {
        self.said.starts_with("HTTP/1.1 200 ")
    }
}
