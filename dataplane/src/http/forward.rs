//! From a decided request to an endpoint's answer: attempts, their deadline, and what their outcome says of the endpoint.

use std::future::{Future, poll_fn};
use std::ops::DerefMut;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};

use super::Caller;
use super::answer::REASON;
use super::entry::Entry;
use super::exchange::{Answer, Request};
use super::interim::Interim;
use super::relay::{Failed, Relay};
use super::replay::Replay;
use super::steer::Steer;
use super::upgrade;
use super::verdict::{self, Pending};
use crate::balance::Ask;
use crate::body::{Body, Frame, Length};
use crate::cluster::{Cluster, Speaks, Ticket, Wired, connect, departure, retry};
use crate::core::Core;
use crate::endpoint::{Endpoint, InFlight, Outcome};
use crate::error::{Error, Retry};
use crate::head::Head;
use crate::http1::{self, Connection, Framing, Handle, Incoming, Peer, Wire};
use crate::http2;
use crate::identity::Alpn;
use crate::observe::{ExchangeCells, OpenExchange};
use crate::plan::{Rule, Site};
use crate::reason::Reason;
use crate::tcp::end::End;
use crate::timer::{self, Timer};

/// Endpoints that one exchange remembers to have failed at.
const TRIED: usize = 8;

/// Sends the request to an endpoint of the rule's service, again if that may and can help, and returns the head of the
/// answer with a body that carries on what is left of both.
pub(crate) async fn forward(
    caller: &Caller,
    site: &Site,
    rule: &Rule,
    request: &mut Request,
    interim: &Interim<'_>,
    started: Instant,
    entry: &mut Option<Box<Entry>>,
) -> Result<Answer, Error> {
    let core = &caller.core;
    let cluster = &rule.target;
    let wired = core.wired(cluster, site);
    let upload = match std::mem::take(&mut request.body) {
        Body::Empty => None,
        body => Some(Replay::new(body, cluster.spec.retry.attempts > 0)),
    };
    let mut answer = Box::new(UpstreamBody {
        body: Body::Empty,
        length: Length::None,
        request: None,
        broken: None,
        lease: None,
        core: Rc::clone(core),
        flight: None,
        ticket: None,
        pending: None,
        account: Account::new(caller, site, rule, &wired, started, upload),
    });
    let attempted = match cluster.admit() {
        Ok(ticket) => {
            answer.ticket = Some(ticket);
            let answer = &mut answer;
            let steer = Steer::of(&cluster.spec, &request.head, caller);
            attempts(
                core, cluster, &wired, request, steer, interim, started, entry, answer,
            )
            .await
        }
        Err(error) => Err(error),
    };
    match attempted {
        Ok(beginning) => {
            answer.account.status = Some(beginning.status);
            if let Some(upload) = &answer.account.upload {
                upload.forget();
            }
            answer.account.entry = entry.take();
            Ok(beginning.answer(cluster, answer))
        }
        Err(error) => {
            // Counted by route and by caller where the answer is made; here only for the edge to the service.
            answer.account.refuse(&error);
            Err(error)
        }
    }
}

#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one exchange, handed down once"
)]
async fn attempts(
    core: &Rc<Core>,
    cluster: &Arc<Cluster>,
    wired: &Wired,
    request: &Request,
    mut steer: Option<Box<Steer>>,
    interim: &Interim<'_>,
    started: Instant,
    entry: &mut Option<Box<Entry>>,
    carried: &mut UpstreamBody,
) -> Result<Beginning, Error> {
    let spec = &cluster.spec;
    let (head, upgrade) = (&request.head, request.upgrade);
    let mut timer = Timer::pooled();
    timer.set((started + spec.timeout).into());
    cluster.budget.request(started);
    let mut tried = [0; TRIED];
    let mut retries = 0;
    loop {
        let now = if retries == 0 {
            started
        } else {
            Instant::now()
        };
        let mut ask = Ask {
            tried: &tried[..(retries as usize).min(TRIED)],
            now,
            random: fastrand::u64(..),
            key: None,
            session: None,
        };
        if let Some(steer) = &steer {
            steer.ask(&mut ask);
        }
        let Some(mut flight) = cluster.members.load().begin(&ask) else {
            return Err(Error::not_processed(
                Reason::NoEndpoints,
                cluster.why_empty(),
            ));
        };
        let endpoint = Arc::clone(flight.endpoint());
        if let Some(steer) = &mut steer {
            steer.begin(spec, &endpoint, now);
        }
        if let Some(entry) = entry {
            entry.endpoint = Some(endpoint.address);
            entry.attempts = retries + 1;
        }
        let upload = carried.account.upload.as_ref();
        let body = match upload {
            Some(upload) => upload
                .body()
                .ok_or_else(|| Error::new(Reason::Internal, "the body cannot be sent again"))?,
            None => Body::Empty,
        };
        let mut outcome = {
            let attempt = pin!(attempt(
                core, cluster, &endpoint, head, body, upgrade, interim, now
            ));
            within(
                &mut timer,
                spec.timeout,
                upload,
                &mut steer,
                attempt,
                || {
                    if upload.is_some_and(Replay::is_starving) {
                        return Error::new(
                            Reason::BodyTimeout,
                            format!("nothing came of the body for {:?}", spec.timeout),
                        );
                    }
                    Error::maybe_processed(
                        Reason::UpstreamTimeout,
                        format!(
                            "{} gave no answer within {:?}",
                            endpoint.address, spec.timeout
                        ),
                    )
                },
            )
            .await
        };
        if let Some(steer) = &mut steer {
            steer.end(told(&outcome, head));
        }
        let random = fastrand::u64(..);
        match &mut outcome {
            Ok(answered) => answered.hear(core, cluster, &endpoint),
            Err(error) => explain(error, core, cluster),
        }
        let judged = judge(
            outcome,
            cluster,
            head,
            upload,
            &mut flight,
            retries,
            random,
            (started, now),
        );
        let error = match judged {
            Judged::Answer(mut answered, judged) => {
                if let Some(steer) = &steer {
                    let entry = entry.as_deref_mut();
                    steer.settle(spec, endpoint.address, &mut answered.headers, entry);
                }
                carried.pending = (!judged).then(|| Pending::new(cluster));
                carried.flight = Some(flight);
                return Ok(answered.into_beginning(carried));
            }
            Judged::Fail(error) => return Err(error),
            Judged::Again(error) => error,
        };
        drop(flight);
        if let Some(slot) = tried.get_mut(retries as usize) {
            *slot = endpoint.id;
        }
        retries += 1;
        if let Some(cells) = &wired.cells {
            cells.retried();
        }
        tracing::debug!(service = %cluster.name, endpoint = %endpoint.address, %error, retries, "trying again");
        let pause = retry::backoff(retries, random);
        // Boxed: few exchanges get here.
        let sleep = Box::pin(async {
            let _: () = tokio::time::sleep(pause).await;
            Ok(())
        });
        within(&mut timer, spec.timeout, None, &mut None, sleep, || {
            error.clone()
        })
        .await?;
    }
}

/// What an attempt says of its endpoint.
fn told(attempt: &Result<Answered, Error>, head: &Head) -> Option<Outcome> {
    match attempt {
        // A call that goes on has been answered.
        Ok(answered) => Some(answered.outcome(head).unwrap_or(Outcome::Success)),
        Err(error) => error
            .reason
            .is_of_endpoint()
            .then_some(Outcome::LocalFailure),
    }
}

/// What becomes of an exchange after an attempt.
enum Judged {
    /// The client gets this answer; whether its head has said how the endpoint fared.
    Answer(Answered, bool),
    /// Another attempt is made; this one failed so.
    Again(Error),
    /// The client is told of this failure.
    Fail(Error),
}

/// Says how the endpoint fared, and whether there is another attempt. Apart from the attempt, so that the room of an
/// answer is not kept through the pause before the next.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one attempt, handed down once"
)]
fn judge(
    outcome: Result<Answered, Error>,
    cluster: &Cluster,
    head: &Head,
    upload: Option<&Replay>,
    flight: &mut InFlight,
    retries: u32,
    random: u64,
    (started, now): (Instant, Instant),
) -> Judged {
    match outcome {
        Ok(answered) => match answered.passed_on_failure(cluster) {
            // A sidecar that answered in place of its app: judged like a failure of ours, tried again if possible.
            Some(error) if may_retry(cluster, head, upload, retries, &error, started) => {
                let outcome = match error.reason {
                    // Who stops in good order is not to blame.
                    Reason::Draining => Outcome::Pushback,
                    _ => Outcome::RemoteFailure,
                };
                cluster
                    .members
                    .record(flight, outcome, Instant::now(), random);
                Judged::Again(error)
            }
            _ => {
                // An ejected endpoint waits for its probe: that is judged now, whatever may follow.
                let outcome = answered.outcome(head);
                let outcome = outcome.or_else(|| flight.is_probe().then_some(Outcome::Success));
                if let Some(outcome) = outcome {
                    cluster.members.record(flight, outcome, now, random);
                }
                Judged::Answer(answered, outcome.is_some())
            }
        },
        Err(error) => {
            if error.reason.is_of_endpoint() {
                let (outcome, now) = (Outcome::LocalFailure, Instant::now());
                cluster.members.record(flight, outcome, now, random);
            }
            if error.reason == Reason::UpstreamTimeout
                || !may_retry(cluster, head, upload, retries, &error, started)
            {
                Judged::Fail(error)
            } else {
                Judged::Again(error)
            }
        }
    }
}

/// An app that was told to stop as we were, and was faster: another instance can take this.
fn explain(error: &mut Error, core: &Core, cluster: &Cluster) {
    if cluster.is_local && core.is_leaving() && error.reason == Reason::ConnectFailed {
        let detail = format!("the app has ended already: {}", error.detail);
        *error = Error::not_processed(Reason::Draining, detail);
    }
}

/// Whether another attempt is allowed: it can do no harm, it is possible, and the budget has one left.
fn may_retry(
    cluster: &Cluster,
    head: &Head,
    upload: Option<&Replay>,
    retries: u32,
    error: &Error,
    now: Instant,
) -> bool {
    let harmless = match error.retry {
        Retry::Never => false,
        Retry::NotProcessed => true,
        Retry::IfIdempotent => head.is_idempotent(),
    };
    harmless
        && retries < cluster.spec.retry.attempts
        && upload.is_none_or(Replay::is_repeatable)
        && cluster.budget.take(&cluster.spec.retry.limits, now)
}

/// Runs a future to its end or to the timer's deadline. A body that comes in moves the deadline: nobody can answer before
/// it was sent, however long that takes.
async fn within<T>(
    timer: &mut Timer,
    timeout: Duration,
    upload: Option<&Replay>,
    steer: &mut Option<Box<Steer>>,
    mut future: Pin<impl DerefMut<Target = impl Future<Output = Result<T, Error>>>>,
    late: impl Fn() -> Error,
) -> Result<T, Error> {
    let mut received = upload.map_or(0, Replay::received);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(result),
        Poll::Pending => {
            let now = upload.map_or(0, Replay::received);
            if now != received {
                received = now;
                timer.set(tokio::time::Instant::now() + timeout);
                if let Some(steer) = steer {
                    steer.waited();
                }
            }
            timer.poll_expired(cx).map(|()| Err(late()))
        }
    })
    .await
}

/// One try at one endpoint.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one exchange, handed down once"
)]
async fn attempt(
    core: &Rc<Core>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    head: &Head,
    body: Body,
    upgrade: bool,
    interim: &Interim<'_>,
    now: Instant,
) -> Result<Answered, Error> {
    if upgrade {
        // Boxed: rare, and each exchange would carry the room for it.
        let attempt = upgrade::attempt(core, cluster, endpoint, head, interim, now);
        return Box::pin(attempt).await;
    }
    if cluster.spec.speaks == Speaks::Http2 {
        let room = core.peers.room(core, cluster, endpoint, now).await?;
        let mut asked = http2::client::ask(room, head, body, cluster.is_mesh())?;
        let answered = poll_fn(|cx| asked.poll_answer(cx, interim)).await?;
        return Ok(Answered {
            status: answered.status,
            headers: answered.headers,
            body: Body::Http2(answered.body),
            request: answered.request,
            lease: None,
            upgraded: None,
        });
    }
    let limits = http1::Limits::default();
    let idle = poll_fn(|cx| Poll::Ready(core.pool.take(endpoint.id, cx))).await;
    let connection: Handle = match idle {
        Some(connection) => connection,
        None => {
            // Boxed: a handshake is large and rare, and each exchange would carry the room for it.
            let io = Box::pin(connect::open(core, cluster, endpoint.address, Alpn::Http1)).await?;
            Rc::new(std::cell::RefCell::new(Connection::new(
                Wire::new(io),
                Peer::Endpoint,
            )))
        }
    };
    let answered =
        http1::client::exchange(&connection, head, body, false, &limits, interim).await?;
    let body = match answered.framing {
        Framing::None | Framing::Length(0) => Body::Empty,
        framing => Body::Http1(Incoming::new(Rc::clone(&connection), framing)),
    };
    Ok(Answered {
        status: answered.status,
        headers: answered.headers,
        body,
        request: answered.request,
        lease: answered.keep_alive.then_some(connection),
        upgraded: None,
    })
}

/// An endpoint's answer before it is anybody's.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    pub(super) request: Option<Box<Relay>>,
    /// The HTTP/1.1 connection, to go back to the pool after the body.
    pub(super) lease: Option<Handle>,
    /// The tunnel's other end.
    pub(super) upgraded: Option<Box<End>>,
}

impl Answered {
    /// Takes note of what only Weft says to Weft, and keeps it from everybody else.
    fn hear(&mut self, core: &Rc<Core>, cluster: &Cluster, endpoint: &Endpoint) {
        // An app that says so is not believed: there is no sidecar that would have taken it out.
        if self.headers.remove(departure::DRAINING).is_some() && cluster.is_mesh() {
            departure::noticed(core, cluster, endpoint);
        }
    }

    /// The failure behind an answer that the peer's own sidecar made.
    fn passed_on_failure(&self, cluster: &Cluster) -> Option<Error> {
        if !cluster.is_mesh() || !self.status.is_server_error() {
            return None;
        }
        let code = self.headers.get(REASON)?.as_bytes();
        let reason = *Reason::ALL
            .iter()
            .find(|reason| reason.code().as_bytes() == code)?;
        let detail = "the peer's sidecar could not reach its app";
        match reason {
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::Draining => {
                Some(Error::not_processed(reason, detail))
            }
            Reason::UpstreamReset | Reason::UpstreamMalformed => {
                Some(Error::maybe_processed(reason, detail))
            }
            _ => None,
        }
    }

    /// Puts what goes on after the head where it is carried on, and returns the head.
    /// What it says of the endpoint, if its head tells that.
    fn outcome(&self, head: &Head) -> Option<Outcome> {
        let is_whole = self.body.is_end();
        verdict::of_head(head.is_grpc(), self.status, &self.headers, is_whole)
    }

    fn into_beginning(self, carried: &mut UpstreamBody) -> Beginning {
        carried.length = self.body.length();
        carried.body = self.body;
        carried.request = self.request;
        carried.lease = self.lease;
        if carried.body.is_end() {
            carried.settle();
        }
        Beginning {
            status: self.status,
            headers: self.headers,
            upgraded: self.upgraded,
        }
    }
}

/// The beginning of an endpoint's answer.
struct Beginning {
    status: StatusCode,
    headers: HeaderMap,
    upgraded: Option<Box<End>>,
}

impl Beginning {
    fn answer(mut self, cluster: &Cluster, body: Box<UpstreamBody>) -> Answer {
        if !cluster.is_mesh() {
            // Only Weft gives reasons; an app that says so is not believed.
            self.headers.remove(REASON);
        }
        Answer {
            status: self.status,
            headers: self.headers,
            body: Body::Upstream(body),
            ours: false,
            upgraded: self.upgraded,
        }
    }
}

/// An endpoint's answer on its way, and all that ends with it: the rest of the request, the connection's lease, the
/// endpoint's load, the counters.
#[derive(Debug)]
pub struct UpstreamBody {
    body: Body,
    length: Length,
    request: Option<Box<Relay>>,
    /// Why the rest of the request cannot be had.
    broken: Option<Error>,
    lease: Option<Handle>,
    core: Rc<Core>,
    /// What of the cluster's and the endpoint's load this exchange is, once it has begun.
    flight: Option<InFlight>,
    ticket: Option<Ticket>,
    /// What it says of the endpoint, when its head did not tell.
    pending: Option<Pending>,
    account: Account,
}

impl UpstreamBody {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Error>>> {
        if let Some(relay) = &mut self.request
            && let Poll::Ready(sent) = relay.poll(cx)
        {
            self.request = None;
            if let Err(failed) = sent {
                // The endpoint may answer all the same, but the connection is in the middle of a request.
                self.lease = None;
                if let Failed::Source(error) = failed {
                    self.broken = Some(error);
                }
            }
        }
        let frame = match self.body.poll_frame(cx) {
            Poll::Ready(frame) => frame,
            // The endpoint waits for the rest of the request, and it will not come.
            Poll::Pending => match self.broken.take() {
                Some(error) => Some(Err(error)),
                None => return Poll::Pending,
            },
        };
        if let Some(pending) = self.pending.take()
            && let Some(flight) = &mut self.flight
        {
            pending.conclude(flight, frame.as_ref());
        }
        match &frame {
            Some(Ok(Frame::Data(data))) => self.account.response_bytes += data.len() as u64,
            Some(Ok(Frame::Trailers(_))) | None => {}
            Some(Err(_)) => {
                self.lease = None;
                self.account.cut = true;
            }
        }
        if self.body.is_end() {
            self.settle();
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end(&self) -> bool {
        self.body.is_end()
    }

    pub(crate) fn length(&self) -> Length {
        self.length
    }

    /// So many bytes went up and down the tunnel that this exchange has become.
    pub(crate) fn tunnelled(&mut self, up: u64, down: u64) {
        self.account.tunnelled += up;
        self.account.response_bytes += down;
    }

    /// How much of the request has come so far.
    pub(crate) fn received(&self) -> u64 {
        self.account.upload.as_ref().map_or(0, Replay::received)
    }

    /// The answer is complete. The connection can serve the next exchange at once, if the request was sent whole.
    fn settle(&mut self) {
        self.body = Body::Empty;
        if let Some(connection) = self.lease.take()
            && self.request.is_none()
            && connection.borrow().wire.is_flushed()
            && connection.borrow().wire.input.is_empty()
            && let Some(flight) = &self.flight
        {
            self.core.pool.put(flight.endpoint().id, connection);
        }
    }
}

/// What an exchange adds to the counters when it ends, however it ends.
#[derive(Debug)]
struct Account {
    /// The edge to the service, the edge from the caller, and the route: those that there are.
    cells: [Option<OpenExchange>; 3],
    started: Instant,
    status: Option<StatusCode>,
    /// The answer broke off.
    cut: bool,
    upload: Option<Replay>,
    /// What the client sent after the exchange had become a tunnel.
    tunnelled: u64,
    response_bytes: u64,
    /// The line of the access log, where there is one.
    entry: Option<Box<Entry>>,
}

impl Account {
    fn new(
        caller: &Caller,
        site: &Site,
        rule: &Rule,
        wired: &Wired,
        started: Instant,
        upload: Option<Replay>,
    ) -> Self {
        let core = &caller.core;
        Self {
            cells: [
                wired.cells.clone(),
                core.inbound(caller, site, rule),
                core.route(site, rule),
            ]
            .map(|cells| cells.map(ExchangeCells::begin)),
            started,
            status: None,
            cut: false,
            upload,
            tunnelled: 0,
            response_bytes: 0,
            entry: None,
        }
    }

    fn refuse(&mut self, error: &Error) {
        let edge = self.cells[0].take();
        self.cells = [edge, None, None];
        self.status = Some(error.reason.status());
        if let Some(cells) = &self.cells[0] {
            cells.answered(error.reason);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let status = self
            .status
            .filter(|_| !self.cut)
            .map(|status| status.as_u16());
        let latency = timer::now().saturating_duration_since(self.started);
        let upload = self.upload.as_ref();
        let request_bytes = upload.map_or(self.tunnelled, Replay::received);
        for cells in self.cells.iter().flatten() {
            cells.record(status, latency);
            cells.add_bytes(request_bytes, self.response_bytes);
        }
        if let Some(entry) = &mut self.entry {
            entry.write(status, None, latency, request_bytes, self.response_bytes);
        }
    }
}
