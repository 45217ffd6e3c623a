//! The story: what the demo makes happen, in which order, and how it knows that it happened.
//!
//! Every step waits for conditions, each with a deadline, and ends in an entry of the ledger: the evidence, or what was
//! seen instead. A step that fails does not stop the story; the next one is told all the same.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::app::Stats;
use super::config::{BURST, RATE_PER_SECOND};
use super::http::{self as client, Answer};
use super::issuer::Issuer;
use super::ledger::{Ledger, Promise};
use super::load::{self, Load};
use super::mesh::Mesh;
use super::services::{self, SERVICES};
use super::stage::Stage;
use super::view::View;

/// The service that things happen to.
const ORDERS: &str = "orders";
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long one question to an app or to the gateway may take.
const ASK: Duration = Duration::from_secs(5);
/// How long the traffic may take to show on every edge.
const FLOWS: Duration = Duration::from_secs(20);
/// How many requests make a share of traffic worth saying.
const SAMPLE: u64 = 150;
/// The share that an ejected replica may still get: the probes that ask whether it is well again.
const EJECTED_SHARE: f64 = 0.02;
/// The share from which on a replica counts as being back.
const BACK_SHARE: f64 = 0.05;
/// The callers that keep requests in flight while a replica is killed.
const BURST_CALLERS: usize = 12;
/// How slow orders is meanwhile, so that there is always something in flight.
const SLOW_MILLIS: u64 = 200;
/// How many of the victim's requests must be in flight when it is killed.
const IN_FLIGHT: u64 = 3;
/// How soon a new replica must take traffic.
const NEW_REPLICA: Duration = Duration::from_secs(5);
/// How often it is checked that all processes still run, once the story is told.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Tokens outlive any demo.
const TOKEN_LIFE: Duration = Duration::from_secs(30 * 86_400);

/// What a step found: the evidence, or what was wrong.
type Seen = Result<String, String>;

/// Everything that the story acts on and looks at.
pub(super) struct Story<'a> {
    pub(super) mesh: &'a mut Mesh,
    pub(super) issuer: &'a Issuer,
    pub(super) stage: &'a Stage,
    pub(super) load: &'a Load,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) ledger: &'a mut Ledger,
    /// How long a certificate lives in this demo.
    pub(super) leaf_lifetime: Duration,
}

impl Story<'_> {
    /// Tells it from the first step to the last.
    pub(super) async fn tell(&mut self) {
        let steady = self.traffic_flows().await;
        match &steady {
            Ok(_) => self.say_outcome("", &steady),
            // A mesh that carries nothing has not come up.
            Err(_) => self.enter(Promise::ComesUp, steady),
        }
        self.a_replica_fails().await;
        self.a_replica_is_killed().await;
        self.a_replica_is_added().await;
        self.a_certificate_is_renewed().await;
        self.the_gateway_refuses().await;
        self.every_edge_is_encrypted().await;
        self.stage.say("That was the story.");
    }

    /// After the story: watches that every process stays. Ends when one does not.
    pub(super) async fn stand_by(&mut self) {
        loop {
            if let Err(error) = self.mesh.check() {
                self.enter(Promise::ComesUp, Err(error.to_string()));
                return;
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    async fn traffic_flows(&self) -> Seen {
        let start = self.load.tally();
        let flowing = until(FLOWS, async || {
            let window = self.load.tally().since(&start);
            let all_edges = services::edges().all(|(source, destination)| {
                let row = self.view().edge(source, destination).cloned();
                row.is_some_and(|row| row.per_second > 0.0)
            });
            (window.answered >= SAMPLE && all_edges).then_some(window)
        });
        match flowing.await {
            Some(window) => Ok(format!(
                "traffic flows: {} requests answered",
                window.answered
            )),
            None => {
                let window = self.load.tally().since(&start);
                let (answered, reasons) = (window.answered, window.reasons());
                Err(format!(
                    "little traffic: {answered} answered, failures: {reasons}"
                ))
            }
        }
    }

    // A replica fails, is ejected, recovers, comes back.

    async fn a_replica_fails(&mut self) {
        let Some(victim) = self.orders().first().copied() else {
            return;
        };
        self.stage.say(&format!(
            "The replica of orders at {victim} starts to fail: 500 to everything."
        ));
        let ejected = self.eject(victim).await;
        self.enter(Promise::EjectsTheFailing, ejected);
        self.stage.say(&format!(
            "{victim} recovers. After its ejection, one request tries it."
        ));
        let back = self.take_back(victim).await;
        self.enter(Promise::TakesBackTheRecovered, back);
    }

    async fn eject(&self, victim: IpAddr) -> Seen {
        let before = self.load.tally();
        let started = Instant::now();
        self.control(victim, "/fail?mode=500").await?;
        let ejected = until(Duration::from_secs(10), async || {
            (self.state(victim).as_deref() == Some("ejected")).then_some(())
        });
        ejected.await.ok_or_else(|| {
            let state = self.state(victim).unwrap_or_else(|| "unknown".to_owned());
            format!("it was not ejected within 10 s; its state is {state}")
        })?;
        let failed = self.load.tally().since(&before).failed();
        let after = started.elapsed().as_secs_f64();
        self.stage.say(&format!(
            "It is ejected, seen after {after:.1} s; {failed} requests failed until then."
        ));
        let (reached, of) = self.sample(victim).await?;
        let share = ratio(reached, of);
        let evidence = format!(
            "{reached} of {of} requests ({}) reached it afterwards",
            percent(share)
        );
        if share < EJECTED_SHARE {
            Ok(evidence)
        } else {
            Err(evidence)
        }
    }

    async fn take_back(&self, victim: IpAddr) -> Seen {
        self.control(victim, "/fail?mode=ok").await?;
        let started = Instant::now();
        let healthy = until(Duration::from_secs(15), async || {
            (self.state(victim).as_deref() == Some("healthy")).then_some(())
        });
        healthy.await.ok_or_else(|| {
            let state = self.state(victim).unwrap_or_else(|| "unknown".to_owned());
            format!("it was not taken back within 15 s; its state is {state}")
        })?;
        let after = started.elapsed().as_secs_f64();
        // It may get its traffic back step by step: the first sample that shows it counts.
        let mut last = String::new();
        for _ in 0..5 {
            let (reached, of) = self.sample(victim).await?;
            let share = ratio(reached, of);
            last = format!(
                "healthy again after {after:.1} s, then {reached} of {of} requests ({})",
                percent(share)
            );
            if share >= BACK_SHARE {
                return Ok(last);
            }
        }
        Err(last)
    }

    /// How many of the next requests to orders this replica gets.
    async fn sample(&self, replica: IpAddr) -> Result<(u64, u64), String> {
        let before = self.seen(replica).await?;
        let enough = until(Duration::from_secs(10), async || {
            let now = self.seen(replica).await.ok()?;
            let of = now.1.saturating_sub(before.1);
            (of >= SAMPLE).then(|| (now.0.saturating_sub(before.0), of))
        });
        enough
            .await
            .ok_or_else(|| format!("orders saw fewer than {SAMPLE} requests in 10 s"))
    }

    /// Requests that arrived at this replica, and at all replicas of orders.
    async fn seen(&self, replica: IpAddr) -> Result<(u64, u64), String> {
        let (mut here, mut all) = (0, 0);
        for host in self.orders() {
            let seen = self.stats(host).await?.seen;
            all += seen;
            if host == replica {
                here = seen;
            }
        }
        Ok((here, all))
    }

    // A replica is killed with requests in flight.

    async fn a_replica_is_killed(&mut self) {
        let Some(victim) = self.orders().last().copied() else {
            return;
        };
        let seen = self.kill(victim).await;
        self.mesh.zone.remove(ORDERS, victim);
        for host in self.orders() {
            // A replica that stays slow shows in the table, and is no failure.
            let _ = self.control(host, "/slow?ms=0").await;
        }
        self.enter(Promise::LosesNothingWithAKilledReplica, seen);
        self.stage
            .say(&format!("DNS does not name {victim} any more."));
    }

    async fn kill(&mut self, victim: IpAddr) -> Seen {
        for host in self.orders() {
            self.control(host, &format!("/slow?ms={SLOW_MILLIS}"))
                .await?;
        }
        let tokens = tokens(self.issuer, "burst", BURST_CALLERS)?;
        let steady_before = self.load.tally();
        let mut burst = Load::start(&self.entry(), tokens, Duration::from_millis(1));
        let in_flight = until(Duration::from_secs(8), async || {
            let stats = self.stats(victim).await.ok()?;
            (stats.in_flight >= IN_FLIGHT).then_some(stats.in_flight)
        });
        let in_flight = in_flight
            .await
            .ok_or("it never had enough requests in flight")?;
        let at_death = burst.tally().ended();
        self.mesh.kill(victim).await;
        self.stage.say(&format!(
            "{victim}, with {in_flight} requests in flight, is killed: app and sidecar, without warning."
        ));
        // Each caller had at most one request under way at that time, so all of those are over by then.
        let callers = u64::try_from(BURST_CALLERS).unwrap_or(u64::MAX);
        let over = until(Duration::from_secs(10), async || {
            (burst.tally().ended() >= at_death + 3 * callers).then_some(())
        });
        let over = over.await;
        // Waits for the last answer: whatever was in flight is in this tally.
        burst.finish().await;
        let mut all = burst.tally();
        all.add(&self.load.tally().since(&steady_before));
        over.ok_or("traffic stopped after it was killed")?;
        if all.failed() == 0 {
            Ok(format!(
                "{in_flight} in flight when it was killed; all {} requests around it were answered",
                all.answered
            ))
        } else {
            Err(format!(
                "{} of {} requests failed: {}",
                all.failed(),
                all.ended(),
                all.reasons()
            ))
        }
    }

    // A replica is added.

    async fn a_replica_is_added(&mut self) {
        let seen = self.add().await;
        self.enter(Promise::UsesANewReplica, seen);
    }

    async fn add(&mut self) -> Seen {
        let service = services::service(ORDERS).ok_or("there is no orders")?;
        let added = self.mesh.add(service).await;
        let host = added.map_err(|error| error.to_string())?;
        self.mesh.zone.add(ORDERS, host);
        let named = Instant::now();
        self.stage.say(&format!(
            "A new replica of orders is ready at {host}, and DNS names it."
        ));
        let first = until(2 * NEW_REPLICA, async || {
            let stats = self.stats(host).await.ok()?;
            (stats.seen > 0).then(|| named.elapsed())
        });
        let first = first.await;
        let took = first.ok_or_else(|| format!("no request within {:?}", 2 * NEW_REPLICA))?;
        let evidence = format!(
            "its first request came {:.1} s after DNS named it",
            took.as_secs_f64()
        );
        if took <= NEW_REPLICA {
            Ok(evidence)
        } else {
            Err(evidence)
        }
    }

    // A certificate is renewed under load.

    async fn a_certificate_is_renewed(&mut self) {
        let life = self.leaf_lifetime.as_secs();
        self.stage.say(&format!(
            "Certificates live {life} s in this demo, and are renewed at half of that. The next renewal comes by itself."
        ));
        let seen = self.renewal().await;
        self.enter(Promise::RenewsUnderLoad, seen);
    }

    async fn renewal(&self) -> Seen {
        let tally = self.load.tally();
        let before = self.view();
        // Renewed at 60 % of its life at the latest; the rest is for a busy machine.
        let deadline = self.leaf_lifetime;
        let renewed = until(deadline, async || renewed_since(&before, &self.view()));
        let renewed = renewed
            .await
            .ok_or_else(|| format!("none was renewed within {deadline:?}"))?;
        // New connections with the new certificate are part of it.
        let more = until(Duration::from_secs(10), async || {
            let window = self.load.tally().since(&tally);
            (window.ended() >= SAMPLE).then_some(window)
        });
        let window = more.await.ok_or("traffic stopped at the renewal")?;
        if window.failed() == 0 {
            Ok(format!(
                "{renewed}; {} requests meanwhile, none failed",
                window.answered
            ))
        } else {
            Err(format!(
                "{renewed}; {} requests failed: {}",
                window.failed(),
                window.reasons()
            ))
        }
    }

    // The gateway refuses what it should.

    async fn the_gateway_refuses(&mut self) {
        self.stage.say(
            "Three requests that the gateway must refuse: no token, a bad token, one too many.",
        );
        let missing = self
            .refused(None, StatusCode::UNAUTHORIZED, "token_missing")
            .await;
        self.enter(Promise::AsksForAToken, missing);
        let bad = self.bad_token().await;
        self.enter(Promise::RefusesABadToken, bad);
        let greedy = self.too_many().await;
        self.enter(Promise::LimitsTheGreedy, greedy);
    }

    /// Signed by somebody else, under the name of the issuer's key.
    async fn bad_token(&self) -> Seen {
        let stranger = Issuer::new().map_err(|error| error.to_string())?;
        let token = token(&stranger, "mallory")?;
        self.refused(Some(&token), StatusCode::UNAUTHORIZED, "token_signature")
            .await
    }

    async fn refused(&self, token: Option<&str>, status: StatusCode, reason: &str) -> Seen {
        let answer = self.ask(token)?.await?;
        refusal(&answer, status, reason)
    }

    async fn too_many(&self) -> Seen {
        let token = token(self.issuer, "greedy")?;
        // All at once, because on a slow machine answers one after another come slower than the bucket refills.
        let most = 8 * BURST;
        let started = Instant::now();
        let mut asking = JoinSet::new();
        for _ in 0..most {
            asking.spawn(self.ask(Some(&token))?);
        }
        let mut wrong = None;
        // Those that are still under way after the first refusal are given up.
        while let Some(answer) = asking.join_next().await {
            match answer.map_err(|error| error.to_string()).flatten() {
                Ok(answer) if answer.status.is_success() => {}
                Ok(answer) => {
                    let refusal = refusal(&answer, StatusCode::TOO_MANY_REQUESTS, "rate_limited")?;
                    let seconds = started.elapsed().as_secs_f64();
                    return Ok(format!(
                        "{refusal} after {seconds:.1} s, {most} requests being sent at once (limit: {RATE_PER_SECOND}/s, {BURST} at once)"
                    ));
                }
                Err(error) => wrong = Some(error),
            }
        }
        Err(wrong.unwrap_or_else(|| format!("all {most} requests at once were let through")))
    }

    /// One request, to be awaited wherever it fits.
    fn ask(
        &self,
        token: Option<&str>,
    ) -> Result<impl Future<Output = Result<Answer, String>> + Send + use<>, String> {
        let value = token.map(|token| format!("Bearer {token}"));
        let request = load::request(&format!("{}/42", self.entry()), value.as_deref())?;
        let client = self.mesh.client.clone();
        Ok(async move {
            let answer = client::exchange(&client, request, ASK).await;
            answer.map_err(|error| error.to_string())
        })
    }

    // Mutual TLS, on every edge.

    async fn every_edge_is_encrypted(&mut self) {
        let seen = match self.mutual_tls() {
            Ok(evidence) => self
                .plaintext_is_refused()
                .await
                .map(|more| format!("{evidence}; {more}")),
            Err(wrong) => Err(wrong),
        };
        self.enter(Promise::EncryptsEveryEdge, seen);
    }

    fn mutual_tls(&self) -> Seen {
        let view = self.view();
        for (source, destination) in services::edges() {
            match view.edge(source, destination) {
                Some(edge) if edge.mtls => {}
                Some(_) => return Err(format!("{source} → {destination} is in plaintext")),
                None => return Err(format!("nobody reports {source} → {destination}")),
            }
        }
        Ok(format!("all {} edges say so", services::edges().count()))
    }

    async fn plaintext_is_refused(&self) -> Seen {
        let host = *self.orders().first().ok_or("orders has no replica")?;
        let address = (host, self.mesh.ports.inbound);
        refuses_plaintext(address.into()).await
    }

    // What the steps are made of.

    fn enter(&mut self, promise: Promise, seen: Seen) {
        // A process that ended by itself explains more than what followed from it.
        let seen = seen.map_err(|wrong| match self.mesh.check() {
            Ok(()) => wrong,
            Err(error) => format!("{wrong}; {error}"),
        });
        self.say_outcome("  ", &seen);
        self.ledger.enter(promise, seen);
    }

    fn say_outcome(&self, indent: &str, seen: &Seen) {
        match seen {
            Ok(evidence) => self.stage.say(&format!("{indent}✓ {evidence}")),
            Err(wrong) => self.stage.say(&format!("{indent}✗ {wrong}")),
        }
    }

    fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    fn state(&self, host: IpAddr) -> Option<String> {
        let view = self.view();
        view.state_of(ORDERS, &host.to_string()).map(str::to_owned)
    }

    fn orders(&self) -> Vec<IpAddr> {
        self.mesh
            .replicas(ORDERS)
            .map(|replica| replica.host)
            .collect()
    }

    /// What the gateway shows.
    fn entry(&self) -> String {
        format!("{}{}", self.mesh.public_url(), SERVICES[0].path)
    }

    async fn stats(&self, host: IpAddr) -> Result<Stats, String> {
        let url = format!("{}/stats", self.mesh.control_url(host));
        let answer = client::get(&self.mesh.client, &url, ASK).await;
        let answer = answer.map_err(|error| format!("{host}: {error}"))?;
        serde_json::from_slice(&answer.body).map_err(|error| format!("{host}: {error}"))
    }

    async fn control(&self, host: IpAddr, what: &str) -> Result<(), String> {
        let request = Request::post(format!("{}{what}", self.mesh.control_url(host)))
            .body(Full::<Bytes>::default())
            .map_err(|error| error.to_string())?;
        match client::exchange(&self.mesh.client, request, ASK).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => Err(format!("the app at {host} answered {}", answer.status)),
            Err(error) => Err(format!("the app at {host}: {error}")),
        }
    }
}

/// Looks until there is something to see, or the time is over.
async fn until<T>(deadline: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(deadline, looking).await.ok()
}

/// That whoever listens there takes a connection, and then nothing in plaintext that comes over it. Where nobody listens,
/// nothing is refused.
async fn refuses_plaintext(address: SocketAddr) -> Seen {
    let host = address.ip();
    let connected = tokio::time::timeout(ASK, TcpStream::connect(address)).await;
    let mut stream = connected
        .map_err(std::io::Error::from)
        .flatten()
        .map_err(|error| format!("{host} cannot be asked in plaintext: {error}"))?;
    let talk = async {
        stream
            .write_all(b"GET /orders/42 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.take(4_096).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(ASK, talk).await {
        Ok(Ok(answer)) if answer.starts_with(b"HTTP/") => {
            Err(format!("{host} answered a plaintext request"))
        }
        // Closed, reset, or the alert of TLS: refused.
        Ok(_) => Ok(format!("{host} refuses plaintext")),
        Err(_) => Err(format!("{host} leaves a plaintext request hanging")),
    }
}

/// A token for each of so many callers.
pub(super) fn tokens(issuer: &Issuer, name: &str, count: usize) -> Result<Vec<String>, String> {
    (1..=count)
        .map(|number| token(issuer, &format!("{name}-{number}")))
        .collect()
}

/// A token that outlives the demo.
pub(super) fn token(issuer: &Issuer, subject: &str) -> Result<String, String> {
    let token = issuer.token(subject, SystemTime::now(), TOKEN_LIFE);
    token.map_err(|error| error.to_string())
}

/// `401 token_missing`, if the answer is that.
fn refusal(answer: &Answer, status: StatusCode, reason: &str) -> Seen {
    let given = load::reason(answer).unwrap_or_else(|| "no reason".to_owned());
    let kind = answer.headers.get(header::CONTENT_TYPE);
    let problem = kind.is_some_and(|kind| kind == "application/problem+json");
    let seen = format!("{} {given}", answer.status.as_u16());
    match (answer.status == status && given == reason, problem) {
        (true, true) => Ok(seen),
        (true, false) => Err(format!("{seen}, but not as application/problem+json")),
        (false, _) => Err(format!(
            "{seen}, where {} {reason} was due",
            status.as_u16()
        )),
    }
}

/// The first process whose certificate is another one than it was.
fn renewed_since(before: &View, after: &View) -> Option<String> {
    after.certificates.iter().find_map(|now| {
        let same = |c: &&super::view::Certificate| {
            c.instance == now.instance && c.spiffe_id == now.spiffe_id
        };
        let then = before.certificates.iter().find(same)?;
        (then.serial != now.serial).then(|| {
            let (id, old, new) = (&now.spiffe_id, serial(&then.serial), serial(&now.serial));
            format!("{id} at {} has a new one, {old} → {new}", now.instance)
        })
    })
}

/// Enough of a serial number to tell two apart.
fn serial(whole: &str) -> &str {
    whole.get(..8).unwrap_or(whole)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::super::view::Certificate;
    use super::*;
    use http::HeaderMap;

    fn answer(status: u16, kind: &'static str, body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        Answer {
            status: StatusCode::from_u16(status).unwrap_or_default(),
            headers,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn a_refusal_needs_status_reason_and_form() {
        let problem = "application/problem+json";
        let body = r#"{"reason":"token_missing"}"#;
        for (given, expected) in [
            (answer(401, problem, body), Ok("401 token_missing")),
            (
                answer(401, "application/json", body),
                Err("401 token_missing, but not as application/problem+json"),
            ),
            (
                answer(403, problem, body),
                Err("403 token_missing, where 401 token_missing was due"),
            ),
            (
                answer(401, problem, "{}"),
                Err("401 no reason, where 401 token_missing was due"),
            ),
            (
                answer(200, "text/plain", "hello"),
                Err("200 no reason, where 401 token_missing was due"),
            ),
        ] {
            let seen = refusal(&given, StatusCode::UNAUTHORIZED, "token_missing");
            assert_eq!(seen.as_deref().map_err(String::as_str), expected);
        }
    }

    /// What [`refuses_plaintext`] says of a listener that takes one connection and says this, if it takes any.
    async fn asked_in_plaintext(answer: Option<&'static [u8]>) -> Seen {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let Some(answer) = answer else {
            drop(listener);
            return refuses_plaintext(address).await;
        };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1_024]).await;
            let _ = stream.write_all(answer).await;
        };
        tokio::join!(serve, refuses_plaintext(address)).1
    }

    #[tokio::test]
    async fn plaintext_is_refused_only_by_who_takes_a_connection_and_answers_nothing() {
        assert!(asked_in_plaintext(Some(b"")).await.is_ok());
        assert!(
            asked_in_plaintext(Some(b"\x15\x03\x03\0\x02\x02\x28"))
                .await
                .is_ok()
        );
        for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n\r\n"] {
            let wrong = asked_in_plaintext(Some(answer.as_bytes()))
                .await
                .unwrap_err();
            assert!(wrong.contains("answered a plaintext request"), "{wrong}");
        }
        let wrong = asked_in_plaintext(None).await.unwrap_err();
        assert!(wrong.contains("cannot be asked"), "{wrong}");
    }

    fn view(certificates: &[(&str, &str)]) -> View {
        let certificate = |(instance, serial): &(&str, &str)| Certificate {
            instance: (*instance).to_owned(),
            spiffe_id: "spiffe://shop.internal/service/orders".to_owned(),
            serial: (*serial).to_owned(),
            renewals: 0,
        };
        View {
            certificates: certificates.iter().map(certificate).collect(),
            ..View::default()
        }
    }

    #[test]
    fn a_renewal_is_another_serial_of_the_same_process() {
        let before = view(&[("a", "11"), ("b", "22")]);
        assert_eq!(renewed_since(&before, &before), None);
        // Somebody new is not renewed, and somebody who left is not either.
        assert_eq!(
            renewed_since(&before, &view(&[("a", "11"), ("c", "33")])),
            None
        );
        let after = view(&[("a", "11"), ("b", "0123456789")]);
        let seen = renewed_since(&before, &after);
        let expected = "spiffe://shop.internal/service/orders at b has a new one, 22 → 01234567";
        assert_eq!(seen.as_deref(), Some(expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_condition_is_looked_at_until_it_holds_or_the_time_is_over() {
        let mut looks = 0;
        let second = Duration::from_secs(1);
        let found = until(second, async || {
            looks += 1;
            (looks == 3).then_some("seen")
        });
        assert_eq!(found.await, Some("seen"));
        assert_eq!(until(second, async || None::<()>).await, None);
    }
}
