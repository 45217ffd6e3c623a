//! From a decided request to an endpoint's answer: attempts, their deadline, and what their outcome says of the endpoint.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, StatusCode};

use super::Caller;
use super::answer::{Answer, REASON};
use super::entry::Entry;
use super::exchange::Request;
use super::headers::Forwarded;
use super::hop::{self, Deadline, Next, Said, Told};
use super::interim::Interim;
use super::parting;
use super::relay::{Failed, Relay};
use super::replay::Replay;
use super::steer::Steer;
use super::upgrade;
use super::verdict;
use crate::balance::Ask;
use crate::body::{Body, Frame, Length};
use crate::cluster::breaker::Pass;
use crate::cluster::limits::Patience;
use crate::cluster::retry::{self, Again, Tried};
use crate::cluster::{Cluster, Speaks, Wired, connect, departure};
use crate::core::Core;
use crate::endpoint::{Endpoint, InFlight, Outcome};
use crate::error::{Error, Retry};
use crate::gate::Slot;
use crate::head::Head;
use crate::http1::{self, Framing, Handle, Incoming};
use crate::http2;
use crate::observe::{ExchangeCells, OpenExchange};
use crate::plan::{Rule, Site};
use crate::reason::Reason;
use crate::tcp::end::End;
use crate::timer::{self, Timer};

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
        body => {
            // HTTP/2 says which requests it has not begun when a connection ends: that takes no attempt.
            let keep = cluster.spec.retry.attempts > 0 || cluster.spec.speaks() == Speaks::Http2;
            Some(Replay::new(body, keep))
        }
    };
    let said = Said::take(&mut request.head, site.is_edge, SystemTime::now);
    let goes_by_key = cluster.spec.balance.wants_key();
    if site.is_edge && goes_by_key {
        let Head {
            authority, headers, ..
        } = &mut request.head;
        // One of these fields may be the key.
        Forwarded::new(caller, site, authority, headers).write(headers);
    }
    let Head {
        authority, headers, ..
    } = &request.head;
    let forwarded =
        (site.is_edge && !goes_by_key).then(|| Forwarded::new(caller, site, authority, headers));
    let deadline = Deadline::new(&said, cluster.spec.timeout, started);
    let terms = Terms {
        is_retry: said.is_retry,
        patience: Patience::new(deadline.first()),
        deadline,
        // Of what this process handed to the app before; it says nothing where the endpoint is another.
        settled: cluster.is_local.then(|| core.settled.count()),
    };
    let mut answer = Box::new(UpstreamBody {
        body: Body::Empty,
        length: Length::None,
        request: None,
        broken: None,
        lease: None,
        core: Rc::clone(core),
        flight: None,
        slot: None,
        pass: None,
        terms,
        cluster: Arc::clone(cluster),
        is_pending: false,
        account: Account::new(caller, site, rule, &wired, started, upload),
    });
    let admitted = match cluster.pass(started) {
        Ok(pass) => match cluster.admit() {
            Some(slot) => Ok((pass, slot)),
            None => Box::pin(cluster.wait_for_place(&mut answer.terms.patience))
                .await
                .map(|slot| (pass, slot)),
        },
        Err(error) => Err(error),
    };
    let attempted = match admitted {
        Ok((pass, slot)) => {
            answer.slot = Some(slot);
            answer.pass = pass;
            let answer = &mut answer;
            let steer = Steer::of(&cluster.spec, &request.head, caller, site);
            let attempted = attempts(
                core, cluster, &wired, request, forwarded, steer, interim, started, entry, answer,
            )
            .await;
            answer.judge(&attempted);
            attempted
        }
        Err(error) => Err(error),
    };
    match attempted {
        Ok(mut beginning) => {
            beginning.settle(site, core, answer.terms.settled);
            answer.account.status = Some(beginning.status);
            if let Some(upload) = &answer.account.upload {
                upload.forget();
            }
            answer.account.entry = entry.take();
            Ok(beginning.answer(answer))
        }
        Err(mut error) => {
            match answer.terms.settled {
                Some(before) if core.settled.count() != before => error.retry = Retry::Settled,
                None if error.retry == Retry::Settled => core.settled.add(),
                _ => {}
            }
            // Counted by route and by caller where the answer is made; here only for the edge to the service.
            answer.account.refuse(&error);
            Err(error)
        }
    }
}

/// What holds for all attempts of an exchange.
#[derive(Debug)]
struct Terms {
    /// Somebody in front of us has tried it before.
    is_retry: bool,
    deadline: Deadline,
    patience: Patience,
    settled: Option<u64>,
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
    forwarded: Option<Forwarded<'_>>,
    mut steer: Option<Box<Steer>>,
    interim: &Interim<'_>,
    started: Instant,
    entry: &mut Option<Box<Entry>>,
    carried: &mut UpstreamBody,
) -> Result<Beginning, Error> {
    let spec = &cluster.spec;
    let (head, upgrade) = (&request.head, request.upgrade);
    let deadline = carried.terms.deadline;
    let mut until = deadline.first();
    let mut timer = Timer::pooled();
    timer.set(until.into());
    cluster.budget.request(started);
    let mut tried = Tried::default();
    loop {
        let retries = tried.count();
        let is_untouched = tried.is_untouched();
        let is_fresh = is_untouched && !carried.terms.patience.was_tried() && !deadline.is_told();
        let mut ask = Ask {
            tried: tried.endpoints(),
            shuns: tried.shuns(),
            now: if is_fresh { started } else { Instant::now() },
            random: fastrand::u64(..),
            key: None,
            session: None,
        };
        if let Some(steer) = &steer {
            steer.ask(&mut ask);
        }
        let mut flight = cluster.begin(&mut ask, &mut carried.terms.patience).await?;
        let now = ask.now;
        if until <= now {
            return Err(deadline.expired());
        }
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
        let is_open = upload.is_some_and(|upload| !upload.is_complete());
        if is_open && !is_untouched {
            until = deadline.from(now);
        }
        let told = Told::new(
            Next::of(cluster),
            &deadline,
            until,
            now,
            is_open,
            carried.terms.is_retry || retries > 0,
            |at| core.wall(at),
        )
        .with(forwarded);
        let mut outcome = {
            let patience = &mut carried.terms.patience;
            let attempt = attempt(
                core, cluster, &endpoint, head, body, upgrade, interim, now, &told, patience,
            );
            let mut attempt = pin!(Some(attempt));
            let late = || late(upload, &deadline, spec.timeout, &endpoint);
            let attempt = attempt.as_mut();
            within(
                &mut timer, &deadline, upload, &mut steer, interim, attempt, late,
            )
            .await
        };
        if let Some(steer) = &mut steer {
            steer.end(fared(&outcome, head));
        }
        match &mut outcome {
            Ok(answered) => answered.hear(core, cluster, &endpoint),
            Err(error) => {
                explain(error, core, cluster);
                connect::failed(core, cluster, &endpoint, error);
            }
        }
        until = timer
            .deadline()
            .map_or(until, tokio::time::Instant::into_std);
        if let Err(error) = &mut outcome
            && upload.is_none_or(Replay::is_repeatable)
            && tried.goes_on_after(error)
        {
            continue;
        }
        let chance = Chance {
            retries,
            is_retry: carried.terms.is_retry,
            until,
            random: fastrand::u64(..),
        };
        let judged = judge(
            outcome,
            cluster,
            head,
            upload,
            &mut flight,
            &deadline,
            &chance,
            now,
        );
        let (error, pause) = match judged {
            Judged::Answer(mut answered, outcome) => {
                if let Some(steer) = &steer {
                    let entry = entry.as_deref_mut();
                    steer.settle(cluster, endpoint.address, &mut answered.headers, entry);
                }
                carried.is_pending = outcome.is_none();
                carried.flight = Some(flight);
                return Ok(answered.into_beginning(carried, outcome));
            }
            Judged::Fail(error) => return Err(error),
            Judged::Again(error, pause) => (error, pause),
        };
        drop(flight);
        tried.add(&endpoint, &error);
        if let Some(cells) = &wired.cells {
            cells.retried();
        }
        tracing::debug!(service = %cluster.name, endpoint = %endpoint.address, %error, retries = tried.count(), "trying again");
        // Boxed: few exchanges get here. It ends before the deadline does, or it would not have begun.
        Box::pin(tokio::time::sleep(pause)).await;
    }
}

/// Why an attempt has no answer when its time is over.
fn late(
    upload: Option<&Replay>,
    deadline: &Deadline,
    timeout: Duration,
    endpoint: &Endpoint,
) -> Error {
    let address = endpoint.address;
    if upload.is_some_and(Replay::is_starving) {
        let detail = format!("nothing came of the body for {timeout:?}");
        return Error::new(Reason::BodyTimeout, detail);
    }
    if deadline.is_of_caller(Instant::now()) {
        let detail = format!("{address} gave no answer in the time that the caller had left");
        return Error::new(Reason::DeadlineExceeded, detail);
    }
    let detail = format!("{address} gave no answer within {timeout:?}");
    Error::maybe_processed(Reason::UpstreamTimeout, detail)
}

/// What an attempt says of its endpoint.
fn fared(attempt: &Result<Answered, Error>, head: &Head) -> Option<Outcome> {
    match attempt {
        // A call that goes on has been answered.
        Ok(answered) => Some(answered.outcome(head).unwrap_or(Outcome::Success)),
        Err(error) => error.is_of_endpoint().then_some(Outcome::LocalFailure),
    }
}

/// What becomes of an exchange after an attempt.
enum Judged {
    /// The client gets this answer, and what its head has said of how the endpoint fared.
    Answer(Answered, Option<Outcome>),
    /// Another attempt is made after a pause; this one failed so.
    Again(Error, Duration),
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
    deadline: &Deadline,
    chance: &Chance,
    began: Instant,
) -> Judged {
    let random = chance.random;
    let now = Instant::now();
    let took = now.saturating_duration_since(began);
    match outcome {
        Ok(mut answered) => {
            let had_its_time = || deadline.blames(took);
            let Some(failure) = answered.failure(cluster, head, had_its_time) else {
                // An ejected endpoint waits for its probe: that is judged now, whatever may follow.
                let outcome = answered.outcome(head);
                let outcome = outcome.or_else(|| flight.is_probe().then_some(Outcome::Success));
                if let Some(outcome) = outcome {
                    cluster.members.record(flight, outcome, now, random);
                }
                return Judged::Answer(answered, outcome);
            };
            cluster.members.record(flight, failure.outcome, now, random);
            let outcome = Some(failure.outcome);
            match decide(cluster, head, upload, &failure, chance, now) {
                Verdict::Again(pause) => Judged::Again(failure.error, pause),
                Verdict::Settled => {
                    answered.headers.insert(hop::RETRY, hop::NO);
                    Judged::Answer(answered, outcome)
                }
                Verdict::Over => Judged::Answer(answered, outcome),
            }
        }
        Err(error) => {
            let is_to_blame = error.is_of_endpoint()
                || (error.reason == Reason::DeadlineExceeded && deadline.blames(took));
            if is_to_blame {
                let outcome = Outcome::LocalFailure;
                cluster.members.record(flight, outcome, now, random);
            }
            if error.reason == Reason::UpstreamTimeout {
                return Judged::Fail(error);
            }
            let mut failure = Failure {
                error,
                outcome: Outcome::LocalFailure,
                wait: Duration::ZERO,
            };
            match decide(cluster, head, upload, &failure, chance, now) {
                Verdict::Again(pause) => Judged::Again(failure.error, pause),
                // A goodbye to what cannot be sent again. It takes no retry, so that there was none left is not why, and it stays
                // what it is: nothing that speaks against the endpoint, or the service.
                Verdict::Settled if failure.error.retry == Retry::Departed => {
                    Judged::Fail(failure.error)
                }
                Verdict::Settled => {
                    failure.error.retry = Retry::Settled;
                    Judged::Fail(failure.error)
                }
                Verdict::Over => Judged::Fail(failure.error),
            }
        }
    }
}

/// An app that was told to stop as we were, and was faster: another instance can take this.
pub(crate) fn explain(error: &mut Error, core: &Core, cluster: &Cluster) {
    if cluster.is_local && core.is_leaving() && error.reason == Reason::ConnectFailed {
        let detail = format!("the app has ended already: {}", error.detail);
        *error = Error::not_processed(Reason::Draining, detail);
    }
}

/// A failed attempt, as far as trying again goes.
struct Failure {
    error: Error,
    /// What it says of the endpoint.
    outcome: Outcome,
    /// How long the endpoint wants to be left alone.
    wait: Duration,
}

/// What becomes of an exchange whose attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Another attempt, after this pause.
    Again(Duration),
    /// No more, and nobody in front of us is to try: what keeps us from it is no matter of this hop alone.
    Settled,
    /// No more here. Somebody in front of us may know better.
    Over,
}

/// What is left to an exchange.
struct Chance {
    retries: u32,
    /// Somebody in front of us has tried it before.
    is_retry: bool,
    /// Its deadline.
    until: Instant,
    random: u64,
}

/// Whether there is another attempt: it can do no harm, it is possible, and the budget has one left.
fn decide(
    cluster: &Cluster,
    head: &Head,
    upload: Option<&Replay>,
    failure: &Failure,
    chance: &Chance,
    now: Instant,
) -> Verdict {
    let policy = &cluster.spec.retry;
    let harmless = match failure.error.retry {
        Retry::Settled => return Verdict::Settled,
        Retry::Never => false,
        Retry::NotProcessed | Retry::NoWay | Retry::Departed => true,
        Retry::IfIdempotent => head.is_idempotent() || head.headers.contains_key("idempotency-key"),
    };
    if !harmless || policy.attempts == 0 {
        return Verdict::Over;
    }
    let pause = retry::backoff(chance.retries + 1, chance.random).max(failure.wait);
    let again = !chance.is_retry
        && chance.retries < policy.attempts
        && now + pause < chance.until
        && upload.is_none_or(Replay::is_repeatable)
        // Last, because it is spent with the question.
        && cluster.budget.take(&policy.limits, now);
    if again {
        Verdict::Again(pause)
    } else {
        Verdict::Settled
    }
}

/// Runs an attempt to its end or to the timer's deadline. A body that comes in moves the deadline: nobody can answer before
/// it was sent, however long that takes. What the endpoint may still work on when the time is over is kept.
async fn within(
    timer: &mut Timer,
    deadline: &Deadline,
    upload: Option<&Replay>,
    steer: &mut Option<Box<Steer>>,
    interim: &Interim<'_>,
    mut attempt: Pin<&mut Option<impl Future<Output = Result<Answered, Error>>>>,
    late: impl Fn() -> Error,
) -> Result<Answered, Error> {
    let mut received = upload.map_or(0, Replay::received);
    poll_fn(|cx| {
        if let Some(running) = attempt.as_mut().as_pin_mut()
            && let Poll::Ready(result) = running.poll(cx)
        {
            return Poll::Ready(result);
        }
        let now = upload.map_or(0, Replay::received);
        if now != received {
            received = now;
            timer.set(deadline.from(Instant::now()).into());
            if let Some(steer) = steer {
                steer.waited();
            }
        }
        ready!(timer.poll_expired(cx));
        let ((), left) = parting::collect(|| attempt.set(None));
        interim.keep(left);
        Poll::Ready(Err(late()))
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
    told: &Told<'_>,
    patience: &mut Patience,
) -> Result<Answered, Error> {
    if upgrade {
        // Boxed: rare, and each exchange would carry the room for it.
        let attempt = upgrade::attempt(core, cluster, endpoint, head, interim, now, told, patience);
        return Box::pin(attempt).await;
    }
    if cluster.spec.speaks() == Speaks::Http2 {
        let room = core
            .peers
            .room(core, cluster, endpoint, now, patience)
            .await?;
        let mut asked = http2::client::ask(room, head, body, cluster.is_mesh(), told)?;
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
    let connection = connect::take_or_open(core, cluster, endpoint, patience).await?;
    let answered =
        http1::client::exchange(&connection, head, body, false, &limits, interim, told).await?;
    Ok(Answered::over_http1(answered, connection))
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
    /// One that comes over this HTTP/1.1 connection and leaves it what it is.
    pub(super) fn over_http1(answered: http1::client::Answered, connection: Handle) -> Self {
        let body = match answered.framing {
            Framing::None | Framing::Length(0) => Body::Empty,
            framing => Body::Http1(Incoming::new(Rc::clone(&connection), framing)),
        };
        Self {
            status: answered.status,
            headers: answered.headers,
            body,
            request: answered.request,
            lease: answered.keep_alive.then_some(connection),
            upgraded: None,
        }
    }

    /// Takes note of what only Weft says to Weft, and keeps it from everybody else.
    fn hear(&mut self, core: &Rc<Core>, cluster: &Cluster, endpoint: &Endpoint) {
        if !hop::has_ours(&self.headers) {
            return;
        }
        if !cluster.is_mesh() {
            // Only Weft gives reasons; an app that says so is not believed.
            self.headers.remove(REASON);
        }
        // An app that says so is not believed: there is no sidecar that would have taken it out.
        if self.headers.remove(departure::DRAINING).is_some() && cluster.is_mesh() {
            departure::noticed(core, cluster, endpoint);
        }
    }

    /// The failure behind an answer: one that the peer's own sidecar made in place of its app, or one that the
    /// configuration says to try again after. `had_its_time` is whether the endpoint was waited for long enough to be blamed.
    fn failure(
        &self,
        cluster: &Cluster,
        head: &Head,
        had_its_time: impl FnOnce() -> bool,
    ) -> Option<Failure> {
        let is_whole = self.body.is_end();
        let is_error = self.status.is_client_error() || self.status.is_server_error();
        if !is_error && !is_whole {
            return None;
        }
        let detail = "the peer's sidecar could not reach its app";
        let judged = |error: Error, outcome| {
            let mut failure = Failure {
                wait: retry::pushback(&self.headers, SystemTime::now()).wait(),
                outcome,
                error,
            };
            if self.headers.contains_key(hop::RETRY) {
                failure.error.retry = Retry::Settled;
            }
            Some(failure)
        };
        let reason = self.reason(cluster);
        // Its clock was faster than ours, which would have said the same in a moment: one story, and one row of failures.
        let is_late = matches!(
            reason,
            Some(Reason::UpstreamTimeout | Reason::DeadlineExceeded)
        ) && had_its_time();
        match reason {
            _ if is_late => {}
            // Who stops in good order is not to blame.
            Some(reason @ Reason::Draining) => {
                return judged(Error::not_processed(reason, detail), Outcome::Pushback);
            }
            Some(reason @ (Reason::ConnectFailed | Reason::ConnectTimeout)) => {
                return judged(Error::not_processed(reason, detail), Outcome::RemoteFailure);
            }
            Some(reason @ (Reason::UpstreamReset | Reason::UpstreamMalformed)) => {
                return judged(
                    Error::maybe_processed(reason, detail),
                    Outcome::RemoteFailure,
                );
            }
            // It had enough to do, or no time left: that is no failure of its app.
            Some(reason) if reason.is_of_load() => {
                return judged(Error::new(reason, detail), Outcome::Pushback);
            }
            _ => {}
        }
        let answers = &cluster.spec.retry.answers;
        if !is_error && !is_late && !answers.has_grpc() {
            return None;
        }
        let wall = SystemTime::now();
        let again = answers.ask(self.status, &self.headers, is_whole, wall);
        let outcome = match is_late {
            true => Outcome::LocalFailure,
            false => self.outcome(head).unwrap_or(Outcome::Success),
        };
        let error = match again {
            Again::No if !is_late && !self.headers.contains_key(hop::RETRY) => return None,
            Again::No => Error::new(Reason::UpstreamReset, "the endpoint's own failure"),
            Again::Call => Error::not_processed(Reason::UpstreamReset, "the endpoint says so"),
            Again::IfIdempotent => {
                Error::maybe_processed(Reason::UpstreamReset, "the endpoint says so")
            }
        };
        judged(error, outcome)
    }

    /// Why the peer's sidecar answered in place of its app, if it did.
    fn reason(&self, cluster: &Cluster) -> Option<Reason> {
        if !cluster.is_mesh() {
            return None;
        }
        Reason::from_code(self.headers.get(REASON)?.as_bytes())
    }

    /// What it says of the endpoint, if its head tells that.
    fn outcome(&self, head: &Head) -> Option<Outcome> {
        let is_whole = self.body.is_end();
        verdict::of_head(head.is_grpc(), self.status, &self.headers, is_whole)
    }

    /// Puts what goes on after the head where it is carried on, and returns the head.
    fn into_beginning(self, carried: &mut UpstreamBody, outcome: Option<Outcome>) -> Beginning {
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
            outcome,
            is_whole: carried.body.is_end(),
        }
    }
}

/// The beginning of an endpoint's answer.
struct Beginning {
    status: StatusCode,
    headers: HeaderMap,
    upgraded: Option<Box<End>>,
    /// What it says of the endpoint, when that is known.
    outcome: Option<Outcome>,
    /// Nothing follows the head.
    is_whole: bool,
}

impl Beginning {
    /// Marks a failure that nobody in front of us is to try again, in both directions. `before` is how many of those this
    /// process had handed to the app when this exchange began, where the endpoint is the app.
    fn settle(&mut self, site: &Site, core: &Core, before: Option<u64>) {
        let is_error = self.status.is_server_error() || self.status.is_client_error();
        if !is_error && !self.is_whole {
            return;
        }
        let is_marked = self.headers.contains_key(hop::RETRY);
        match before {
            Some(before) if self.is_failure() && core.settled.count() != before => {
                self.headers.insert(hop::RETRY, hop::NO);
            }
            Some(_) => {}
            None if site.is_edge => {
                self.headers.remove(hop::RETRY);
            }
            None if is_marked => core.settled.add(),
            None => {}
        }
    }

    /// Whether it says that something went wrong.
    fn is_failure(&self) -> bool {
        self.status.is_server_error()
            || self.status == StatusCode::TOO_MANY_REQUESTS
            || verdict::grpc_status(&self.headers).is_some_and(|status| status != 0)
    }

    fn answer(self, body: Box<UpstreamBody>) -> Answer {
        Answer::of_endpoint(self.status, self.headers, body, self.upgraded)
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
    slot: Option<Slot>,
    /// Until it is known how the exchange ended, as far as the service's breaker goes.
    pass: Option<Pass>,
    terms: Terms,
    /// The head did not tell what it says of the endpoint.
    is_pending: bool,
    cluster: Arc<Cluster>,
    account: Account,
}

impl UpstreamBody {
    /// Tells the breaker how the exchange has ended, when all attempts are over. Where the head does not tell, that is left to
    /// what follows it, and nobody waits for that.
    fn judge(&mut self, attempted: &Result<Beginning, Error>) {
        let Some(mut pass) = self.pass.take() else {
            return;
        };
        let now = Instant::now();
        match attempted {
            Err(error) => pass.fail(error, now),
            Ok(beginning) => match beginning.outcome {
                Some(outcome) => pass.judge(outcome, now),
                None => {
                    pass.step_aside();
                    self.pass = Some(pass);
                }
            },
        }
    }

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
        let is_pending = std::mem::take(&mut self.is_pending);
        if let Some(outcome) = verdict::of_frame(frame.as_ref(), is_pending) {
            let now = timer::now();
            if let Some(pass) = self.pass.take() {
                pass.judge(outcome, now);
            }
            if let Some(flight) = &mut self.flight {
                let members = &self.cluster.members;
                members.record(flight, outcome, now, fastrand::u64(..));
            }
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
