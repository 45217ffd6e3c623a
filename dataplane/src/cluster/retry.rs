//! How often a failed attempt may be repeated, and when.
//!
//! Retries help one exchange and hurt the service: when everything fails, each of them is one more failure, and a chain of
//! hops multiplies them. So beside the limit per exchange there is one [`Budget`] for each service in the whole proxy,
//! always on: retries may be a share of the requests of the last ten seconds, or a few per second so that a quiet service
//! has some at all. The same holds for the whole time since retries began, so that an outage of any length adds no more.
//!
//! What is tried again: what failed on the way, by itself ([`crate::error::Retry`] says when that is harmless), and an
//! endpoint's own answer where the configuration lists its status. An endpoint that says when to come back is believed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, StatusCode, header};

use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::backoff::{Backoff, fraction};
use weft_runtime::config::units::Percent;
use weft_runtime::config::{Path, Problems};

use crate::endpoint::window::{SPAN, Window};
use crate::endpoint::{Endpoint, Family};
use crate::error::{Error, Retry};
use crate::http::verdict::grpc_status;

/// Waits before retries. Full jitter, because those who failed together must not come back together.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(25), Duration::from_millis(250), 1.0);

/// More attempts than this are never a cure.
const MOST_ATTEMPTS: u32 = 10;

/// Endpoints that are remembered to have failed. Beyond them any may be picked again.
const MOST_TRIED: usize = 8;

/// So many connections may end in good order under one exchange before that takes a retry.
const MOST_GOODBYES: u32 = 3;

/// However long an endpoint asks us to wait, we take it for no longer than this.
const MOST_PUSHBACK: Duration = Duration::from_secs(30);

/// When a gRPC server wants to see a call again: milliseconds, or anything else for never (gRPC A6).
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The names of `grpc-status`, by their number.
const GRPC_NAMES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];
const RESOURCE_EXHAUSTED: u8 = 8;

/// Those that another attempt can change.
const GRPC_WORTH: [&str; 7] = [
    "cancelled",
    "unknown",
    "resource_exhausted",
    "aborted",
    "internal",
    "unavailable",
    "data_loss",
];

/// `retry:` of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Retry")]
pub struct Config {
    /// How often one exchange is tried again, each time at another endpoint while there is one. `0` turns retries off.
    pub attempts: u32,
    /// Retries of the whole proxy as a share of its requests to the service, in the last ten seconds and since retries began.
    pub budget: Percent,
    /// Retries per second that are allowed where that share is less.
    pub min_per_second: u32,
    /// Statuses of the service's own answers after which a request is tried again, when its method is idempotent or it has an
    /// `Idempotency-Key`: 408, 425, 429 and 5xx. None unless listed. 429 is tried again only when it says `Retry-After`.
    #[schemars(with = "Vec<u32>")]
    pub statuses: Vec<u16>,
    /// The same for gRPC calls that are answered with nothing but a status, such as `unavailable`. List only what the
    /// service says before it has done anything. `resource_exhausted` is tried again only when it says
    /// `grpc-retry-pushback-ms`.
    pub grpc_statuses: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attempts: 1,
            budget: Percent::new(20),
            min_per_second: 3,
            statuses: Vec::new(),
            grpc_statuses: Vec::new(),
        }
    }
}

impl Config {
    /// Checks the values. `path` is where they stand in the file.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Policy> {
        let before = problems.len();
        let mut answers = Answers::default();
        for (index, status) in self.statuses.iter().enumerate() {
            let at = path.key("statuses").index(index);
            if !matches!(status, 408 | 425 | 429 | 500..=599) {
                problems.at(
                    &at,
                    format!("`{status}` would be the same at the next attempt"),
                    "list 408, 425, 429 or a status from 500 to 599",
                );
            } else if !answers.add_status(*status) {
                problems.at(&at, format!("`{status}` is listed twice"), "list it once");
            }
        }
        for (index, name) in self.grpc_statuses.iter().enumerate() {
            let at = path.key("grpc_statuses").index(index);
            let number = GRPC_NAMES.iter().position(|known| known == name);
            match number.filter(|_| GRPC_WORTH.contains(&name.as_str())) {
                None => problems.at(
                    &at,
                    format!("`{name}` is no gRPC status that another attempt could change"),
                    format!("list some of `{}`", GRPC_WORTH.join("`, `")),
                ),
                Some(number) if answers.grpc & 1 << number != 0 => {
                    problems.at(&at, format!("`{name}` is listed twice"), "list it once");
                }
                Some(number) => answers.grpc |= 1 << number,
            }
        }
        if self.attempts > MOST_ATTEMPTS {
            problems.at(
                &path.key("attempts"),
                format!("`{}` retries of one exchange only add load", self.attempts),
                format!("write a number from 0 to {MOST_ATTEMPTS}; 1 is the default"),
            );
        }
        (problems.len() == before).then(|| Policy {
            attempts: self.attempts,
            limits: Limits {
                share: self.budget.as_fraction(),
                per_second: self.min_per_second,
            },
            answers,
        })
    }
}

/// Checked values of `retry:`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// How often one exchange may be tried again.
    pub attempts: u32,
    /// What the budget may give.
    pub limits: Limits,
    /// Which of the service's own answers are tried again.
    pub answers: Answers,
}

/// A set of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers {
    /// From 400 to 599, a bit each.
    http: [u64; 4],
    /// A bit for each number.
    grpc: u32,
}

impl Answers {
    fn add_status(&mut self, status: u16) -> bool {
        let index = usize::from(status - 400);
        let (word, bit) = (&mut self.http[index / 64], 1 << (index % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Whether it has any gRPC status.
    pub fn has_grpc(&self) -> bool {
        self.grpc != 0
    }

    fn has_status(&self, status: StatusCode) -> bool {
        let index = usize::from(status.as_u16().saturating_sub(400));
        status.as_u16() >= 400
            && self
                .http
                .get(index / 64)
                .is_some_and(|word| word & 1 << (index % 64) != 0)
    }

    /// Whether an answer with this head asks for another attempt. `is_whole` is whether nothing follows the head.
    pub fn ask(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        is_whole: bool,
        wall: SystemTime,
    ) -> Again {
        if is_whole
            && self.grpc != 0
            && let Some(grpc) = grpc_status(headers)
        {
            if grpc > 16 || self.grpc & 1 << grpc == 0 {
                return Again::No;
            }
            return match pushback(headers, wall) {
                Pushback::Never => Again::No,
                // Who has too much to do and does not say until when is left alone.
                Pushback::Unsaid if grpc == RESOURCE_EXHAUSTED => Again::No,
                _ => Again::Call,
            };
        }
        if !self.has_status(status) {
            return Again::No;
        }
        match pushback(headers, wall) {
            Pushback::Never => Again::No,
            Pushback::Unsaid if status == StatusCode::TOO_MANY_REQUESTS => Again::No,
            _ => Again::IfIdempotent,
        }
    }
}

/// Whether an endpoint's own answer is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It is not.
    No,
    /// When the request may be repeated.
    IfIdempotent,
    /// A gRPC call, whose configuration says that it may be repeated.
    Call,
}

/// When an endpoint wants to see a request again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// It does not say.
    Unsaid,
    /// Not before this time has passed.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    /// How long to wait at least.
    pub fn wait(self) -> Duration {
        match self {
            Self::After(wait) => wait,
            Self::Unsaid | Self::Never => Duration::ZERO,
        }
    }
}

/// What an answer's head says of when to come back, for half a minute at most.
pub fn pushback(headers: &HeaderMap, wall: SystemTime) -> Pushback {
    if let Some(value) = headers.get(GRPC_PUSHBACK) {
        let millis = value.to_str().ok().and_then(|text| text.parse().ok());
        return millis.map_or(Pushback::Never, |millis| {
            Pushback::After(Duration::from_millis(millis).min(MOST_PUSHBACK))
        });
    }
    let Some(text) = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
    else {
        return Pushback::Unsaid;
    };
    let wait = match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text.trim())
            .ok()
            .map(|date| date.duration_since(wall).unwrap_or_default()),
    };
    wait.map_or(Pushback::Unsaid, |wait| {
        Pushback::After(wait.min(MOST_PUSHBACK))
    })
}

/// The attempts of one exchange, or of one connection, that have failed.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// The endpoints, the first of them.
    endpoints: [u64; MOST_TRIED],
    count: u32,
    /// Of which family the last was that did not answer at all.
    silent: Option<Family>,
    /// Connections that ended in good order before they had begun with it.
    goodbyes: u32,
}

impl Tried {
    /// Where that was, as far as it is remembered.
    pub(crate) fn endpoints(&self) -> &[u64] {
        &self.endpoints[..(self.count as usize).min(MOST_TRIED)]
    }

    /// Addresses that are likely to be as silent as the last one was: there is no way to any of a family where a host has none, or
    /// where one is cut. It would not help to try them all, one retry after the other.
    pub(crate) fn shuns(&self) -> Option<Family> {
        self.silent
    }

    /// How many they are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Whether the next attempt is the first in every sense: nothing has failed, and nobody has said goodbye either, so that
    /// no time has passed.
    pub(crate) fn is_untouched(&self) -> bool {
        self.count == 0 && self.goodbyes == 0
    }

    /// Whether the attempt that ended so goes on over another connection, because all that happened is that its own ended in
    /// good order. That is no failure, so it takes no retry and none of the budget (gRPC A6, transparent retries). One
    /// goodbye too many is a failure like any other, and speaks against the endpoint.
    pub(crate) fn goes_on_after(&mut self, error: &mut Error) -> bool {
        if error.retry != Retry::Departed {
            return false;
        }
        let goes_on = self.goodbyes < MOST_GOODBYES;
        if goes_on {
            self.goodbyes += 1;
        } else {
            error.retry = Retry::NotProcessed;
        }
        goes_on
    }

    /// One more, at this endpoint.
    pub(crate) fn add(&mut self, endpoint: &Endpoint, error: &Error) {
        if let Some(free) = self.endpoints.get_mut(self.count as usize) {
            *free = endpoint.id;
        }
        self.count += 1;
        if error.retry == Retry::NoWay {
            self.silent = Some(endpoint.family());
        }
    }
}

/// What a [`Budget`] may give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    share: f64,
    per_second: u32,
}

impl Limits {
    /// How many retries this many requests in this time allow.
    fn allowance(&self, requests: u64, time: Duration) -> f64 {
        (requests as f64 * self.share).max(f64::from(self.per_second) * time.as_secs_f64())
    }
}

/// The requests and retries of all cores: those of the last ten seconds, and what is left of the time before.
#[derive(Debug, Default)]
pub struct Budget {
    requests: Window,
    /// All requests there ever were.
    total: AtomicU64,
    /// The lock makes looking and taking one step, so that cores do not overdraw together; it is held for some ten loads, and
    /// only by exchanges that have failed already.
    retries: Mutex<Retries>,
}

/// What was granted.
#[derive(Debug, Default)]
struct Retries {
    recent: Window,
    trouble: Option<Trouble>,
}

/// A time in which retries were asked for, never more than ten seconds apart. What a window lets go in its first moment it
/// would let go again each time that moment leaves it; so the limits hold for the whole of this time, too. It is taken ten
/// seconds at a time, or what it takes until somebody asks again: what they leave over is handed on, as much as ten seconds
/// may have.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    /// When the present ten seconds began.
    began: Instant,
    /// When a retry was asked for last.
    last: Instant,
    /// All requests that are not among those of the present ten seconds.
    before: u64,
    /// What was granted in them.
    granted: u64,
    /// How long they are taken to be at least: the first are given in advance.
    least: Duration,
    /// What was left over by those before.
    left: f64,
}

impl Trouble {
    /// One that begins, after this many requests.
    fn new(now: Instant, before: u64) -> Self {
        Self {
            began: now,
            last: now,
            before,
            granted: 0,
            least: SPAN,
            left: 0.0,
        }
    }

    /// What it still may have, after `total` requests. Ten seconds may have `most` in any case.
    fn rest(&mut self, limits: &Limits, total: u64, most: f64, now: Instant) -> f64 {
        let lasts = now.saturating_duration_since(self.began);
        let requests = total.saturating_sub(self.before);
        let allowed = self.left + limits.allowance(requests, lasts.max(self.least));
        let rest = allowed - self.granted as f64;
        if lasts < SPAN {
            return rest;
        }
        let left = rest.min(most).max(0.0);
        *self = Self {
            least: Duration::ZERO,
            left,
            ..Self::new(now, total)
        };
        left
    }
}

impl Budget {
    /// Nothing requested, nothing spent.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a request, once, however often it is tried.
    pub fn request(&self, now: Instant) {
        self.requests.add(now, false);
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one retry, if there is one left. It is spent when granted, before any backoff, so retries that still wait
    /// count.
    pub fn take(&self, limits: &Limits, now: Instant) -> bool {
        let recent = u64::from(self.requests.sums(now).total);
        let most = limits.allowance(recent, SPAN);
        let total = self.total.load(Ordering::Relaxed);
        let mut retries = self
            .retries
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut trouble = retries
            .trouble
            .filter(|trouble| now.saturating_duration_since(trouble.last) <= SPAN)
            .unwrap_or_else(|| Trouble::new(now, total.saturating_sub(recent)));
        let spent = f64::from(retries.recent.sums(now).total);
        let rest = trouble.rest(limits, total, most, now).min(most - spent);
        // 20% of 10 are 2, however a fraction is rounded.
        let granted = rest + 1e-9 >= 1.0;
        trouble.last = now.max(trouble.last);
        if granted {
            retries.recent.add(now, false);
            trouble.granted += 1;
        }
        retries.trouble = Some(trouble);
        granted
    }
}

/// How long to wait before retry number `retry` (from 1): anything up to 25 ms, 50 ms, … 250 ms.
pub fn backoff(retry: u32, random: u64) -> Duration {
    BACKOFF.delay(retry, fraction(random))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::reason::Reason;

    fn limits() -> Limits {
        let mut problems = Problems::new();
        Config::default()
            .build(&Path::root(), &mut problems)
            .unwrap()
            .limits
    }

    #[test]
    fn endpoints_that_failed_are_remembered_up_to_a_bound_and_counted_beyond() {
        let error = Error::not_processed(Reason::ConnectFailed, "");
        let endpoints: Vec<_> = (1..=12)
            .map(|port| at(&format!("10.0.0.1:{port}")))
            .collect();
        let ids: Vec<u64> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        let mut tried = Tried::default();
        assert_eq!((tried.endpoints(), tried.count()), ([].as_slice(), 0));
        endpoints[..2].iter().for_each(|one| tried.add(one, &error));
        assert_eq!((tried.endpoints(), tried.count()), (&ids[..2], 2));
        endpoints[2..].iter().for_each(|one| tried.add(one, &error));
        assert_eq!((tried.endpoints(), tried.count()), (&ids[..8], 12));
    }

    fn at(address: &str) -> std::sync::Arc<Endpoint> {
        Endpoint::new(address.parse().unwrap())
    }

    #[test]
    fn a_family_is_shunned_when_nothing_answered_and_not_when_somebody_refused() {
        let mut tried = Tried::default();
        let refused = Error::not_processed(Reason::ConnectFailed, "");
        let silent = Error::no_way(Reason::ConnectTimeout, "");
        tried.add(&at("[2001:db8::1]:80"), &refused);
        assert_eq!(tried.shuns(), None);
        tried.add(&at("[2001:db8::1]:80"), &silent);
        assert_eq!(tried.shuns(), Some(Family::V6));
        // The other is no better: what is left of the first is as good.
        tried.add(&at("[::ffff:192.0.2.1]:80"), &silent);
        assert_eq!(tried.shuns(), Some(Family::V4));
    }

    #[test]
    fn goodbyes_take_no_retry_until_there_are_too_many() {
        let mut tried = Tried::default();
        assert!(tried.is_untouched());
        let mut goodbye = Error::departed(Reason::UpstreamReset, "GOAWAY");
        let mut refused = Error::not_processed(Reason::UpstreamReset, "REFUSED_STREAM");
        assert!(!tried.goes_on_after(&mut refused));
        for _ in 0..MOST_GOODBYES {
            assert!(tried.goes_on_after(&mut goodbye));
            assert!(!goodbye.is_of_endpoint() && !tried.is_untouched());
        }
        assert!(!tried.goes_on_after(&mut goodbye));
        assert!(goodbye.is_of_endpoint() && goodbye.is_not_processed());
        assert_eq!(tried.count(), 0);
    }

    fn take_all(budget: &Budget, now: Instant) -> usize {
        (0..100_000)
            .take_while(|_| budget.take(&limits(), now))
            .count()
    }

    #[test]
    fn a_quiet_proxy_has_three_a_second() {
        let now = Instant::now();
        assert_eq!(take_all(&Budget::new(), now), 30);
    }

    #[test]
    fn a_fifth_of_the_requests_where_that_is_more() {
        for (requests, expected) in [(1, 30), (150, 30), (154, 30), (155, 31), (1000, 200)] {
            let (budget, now) = (Budget::new(), Instant::now());
            (0..requests).for_each(|_| budget.request(now));
            assert_eq!(take_all(&budget, now), expected, "{requests} requests");
        }
    }

    #[test]
    fn what_was_spent_comes_back_after_ten_seconds() {
        let (budget, now) = (Budget::new(), Instant::now());
        assert_eq!(take_all(&budget, now), 30);
        assert_eq!(take_all(&budget, now + Duration::from_secs(9)), 0);
        // Where it is asked for all the time it comes back bit by bit, else as it was.
        assert_eq!(take_all(&budget, now + Duration::from_secs(11)), 3);
        assert_eq!(take_all(&budget, now + Duration::from_secs(22)), 30);
    }

    #[test]
    fn requests_of_long_ago_grant_nothing() {
        let (budget, now) = (Budget::new(), Instant::now());
        (0..1000).for_each(|_| budget.request(now));
        assert_eq!(take_all(&budget, now + SPAN), 30);
    }

    #[test]
    fn cores_do_not_overdraw_together() {
        let (budget, now) = (Budget::new(), Instant::now());
        let granted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| take_all(&budget, now)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(granted, 30);
    }

    #[test]
    fn everything_failing_adds_at_most_a_fifth() {
        let (budget, start) = (Budget::new(), Instant::now());
        let mut retries = 0;
        for millis in 0..60_000 {
            let now = start + Duration::from_millis(millis);
            budget.request(now);
            retries += usize::from(budget.take(&limits(), now));
        }
        // 60 s of 1000/s, all failing.
        assert!(
            (11_900..=60_000 / 5).contains(&retries),
            "{retries} retries of 60,000 requests"
        );
    }

    /// At 27 a second the first thirty retries are gone after a second, and leave the window ten seconds later.
    #[test]
    fn the_first_burst_of_an_outage_does_not_come_again() {
        let (budget, start) = (Budget::new(), Instant::now());
        let (mut requests, mut retries) = (0_u64, 0_u64);
        for number in 0..27 * 120 {
            let now = start + Duration::from_secs(number) / 27;
            requests += 1;
            budget.request(now);
            retries += u64::from(budget.take(&limits(), now));
            assert!(
                retries * 5 <= requests.max(150),
                "{retries} of {requests} after {:?}",
                now - start
            );
        }
        assert!(retries * 5 > requests - 10, "{retries} of {requests}");
    }

    #[test]
    fn a_quiet_service_keeps_three_a_second_however_long_an_outage_lasts() {
        let (budget, start) = (Budget::new(), Instant::now());
        let retries: usize = (0..60)
            .map(|second| start + Duration::from_secs(second))
            .map(|now| {
                budget.request(now);
                take_all(&budget, now)
            })
            .sum();
        assert_eq!(retries, 3 * 59);
    }

    #[test]
    fn what_came_before_an_outage_counts_for_ten_seconds_and_a_new_one_starts_afresh() {
        let (budget, start) = (Budget::new(), Instant::now());
        let mut now = start;
        for _ in 0..2 {
            for second in 0..60 {
                now += Duration::from_secs(1);
                (0..100).for_each(|_| budget.request(now));
                // An exchange that fails now and then hoards nothing.
                assert!(second % 20 != 0 || budget.take(&limits(), now));
            }
            // Of ten seconds, at once, when a replica dies.
            assert!((195..=200).contains(&take_all(&budget, now)));
            now += 2 * SPAN;
        }
    }

    /// So many seconds of requests of which every `nth` fails and asks for a retry, as often as it may. Gives what was granted.
    fn seconds(
        budget: &Budget,
        now: &mut Instant,
        limits: &Limits,
        (seconds, per_second, nth): (u32, u32, u32),
    ) -> u32 {
        let mut granted = 0;
        for number in 0..seconds * per_second {
            *now += Duration::from_secs(1) / per_second;
            budget.request(*now);
            granted += u32::from(number % nth == 0 && budget.take(limits, *now));
        }
        granted
    }

    #[test]
    fn a_budget_that_a_reload_made_smaller_holds_at_once_and_is_there_at_once() {
        let (budget, mut now) = (Budget::new(), Instant::now());
        let generous = Limits {
            share: 1.0,
            per_second: 100,
        };
        assert_eq!(seconds(&budget, &mut now, &generous, (3600, 10, 2)), 18_000);
        // More was granted in the last ten seconds than may be now.
        assert!(seconds(&budget, &mut now, &limits(), (10, 10, 2)) <= 30);
        let then = seconds(&budget, &mut now, &limits(), (60, 10, 2));
        assert!((170..=210).contains(&then), "{then}");
    }

    #[test]
    fn a_long_night_of_trouble_takes_nothing_from_the_morning() {
        let (budget, mut now) = (Budget::new(), Instant::now());
        // Three a second would have been allowed.
        assert_eq!(
            seconds(&budget, &mut now, &limits(), (36_000, 1, 1)),
            36_000
        );
        let morning = seconds(&budget, &mut now, &limits(), (60, 100, 2));
        assert!((1150..=1230).contains(&morning), "{morning}");
    }

    #[test]
    fn backoff_is_full_jitter_up_to_a_quarter_second() {
        for (retry, most) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (99, 250)] {
            let most = Duration::from_millis(most);
            assert_eq!(backoff(retry, 0), most);
            assert!(backoff(retry, u64::MAX) < Duration::from_micros(1));
            let half = backoff(retry, 1 << 63);
            assert!(
                half.abs_diff(most / 2) < Duration::from_micros(1),
                "retry {retry}: {half:?}"
            );
        }
    }

    #[test]
    fn the_share_may_be_nothing() {
        let config: Config =
            serde_json::from_str(r#"{"budget": "0%", "min_per_second": 0}"#).unwrap();
        let mut problems = Problems::new();
        let policy = config.build(&Path::root(), &mut problems).unwrap();
        let (budget, now) = (Budget::new(), Instant::now());
        budget.request(now);
        assert!(!budget.take(&policy.limits, now));
    }

    #[test]
    fn what_is_no_use_is_a_located_problem() {
        for (json, place) in [
            (r#"{"attempts": 11}"#, "retry.attempts"),
            (r#"{"statuses": [503, 404]}"#, "retry.statuses[1]"),
            (r#"{"statuses": [700]}"#, "retry.statuses[0]"),
            (r#"{"statuses": [503, 503]}"#, "retry.statuses[1]"),
            (r#"{"grpc_statuses": ["ok"]}"#, "retry.grpc_statuses[0]"),
            (
                r#"{"grpc_statuses": ["UNAVAILABLE"]}"#,
                "retry.grpc_statuses[0]",
            ),
            (
                r#"{"grpc_statuses": ["aborted", "aborted"]}"#,
                "retry.grpc_statuses[1]",
            ),
        ] {
            let config: Config = serde_json::from_str(json).unwrap();
            let mut problems = Problems::new();
            let built = config.build(&Path::root().key("retry"), &mut problems);
            assert_eq!(built, None, "{json}");
            let places: Vec<_> = problems.iter().map(|p| p.path.to_string()).collect();
            assert_eq!(places, [place]);
        }
    }

    fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn an_endpoint_says_when_to_come_back() {
        use Pushback::{After, Never, Unsaid};
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let seconds = |seconds| After(Duration::from_secs(seconds));
        for (name, value, expected) in [
            ("retry-after", "2", seconds(2)),
            ("retry-after", "0", seconds(0)),
            ("retry-after", "31", seconds(30)),
            ("retry-after", "86400", seconds(30)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", seconds(7)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT", seconds(0)),
            ("retry-after", "Sat, 06 Nov 2094 08:49:37 GMT", seconds(30)),
            ("retry-after", "soon", Unsaid),
            ("retry-after", "-1", Unsaid),
            (
                "grpc-retry-pushback-ms",
                "250",
                After(Duration::from_millis(250)),
            ),
            ("grpc-retry-pushback-ms", "600000", seconds(30)),
            ("grpc-retry-pushback-ms", "-1", Never),
            ("grpc-retry-pushback-ms", "x", Never),
            ("server", "x", Unsaid),
        ] {
            assert_eq!(
                pushback(&head(&[(name, value)]), now),
                expected,
                "{name}: {value}"
            );
        }
    }

    #[test]
    fn only_listed_answers_are_tried_again_and_429_never_blindly() {
        let config: Config = serde_json::from_str(
            r#"{"statuses": [429, 502, 599], "grpc_statuses": ["unavailable", "resource_exhausted"]}"#,
        )
        .unwrap();
        let answers = config
            .build(&Path::root(), &mut Problems::new())
            .unwrap()
            .answers;
        let after = ("retry-after", "1");
        let pushed = ("grpc-retry-pushback-ms", "5");
        for (status, fields, is_whole, expected) in [
            (502, &[][..], false, Again::IfIdempotent),
            (502, &[after][..], false, Again::IfIdempotent),
            (599, &[], true, Again::IfIdempotent),
            (503, &[], false, Again::No),
            (200, &[], true, Again::No),
            (404, &[], true, Again::No),
            (100, &[], true, Again::No),
            (999, &[], true, Again::No),
            (429, &[], false, Again::No),
            (429, &[after], false, Again::IfIdempotent),
            (502, &[("grpc-retry-pushback-ms", "-1")], false, Again::No),
            (200, &[("grpc-status", "14")], true, Again::Call),
            (200, &[("grpc-status", "14")], false, Again::No),
            (
                200,
                &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")],
                true,
                Again::No,
            ),
            (200, &[("grpc-status", "8")], true, Again::No),
            (200, &[("grpc-status", "8"), pushed], true, Again::Call),
            (200, &[("grpc-status", "13")], true, Again::No),
            (200, &[("grpc-status", "0")], true, Again::No),
            (200, &[("grpc-status", "77")], true, Again::No),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let asked = answers.ask(status, &head(fields), is_whole, SystemTime::UNIX_EPOCH);
            assert_eq!(asked, expected, "{status} {fields:?}");
        }
    }
}
