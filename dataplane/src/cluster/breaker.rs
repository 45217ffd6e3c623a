//! The circuit breaker of a service, the last resort: when nearly everything fails, it stops asking for a while and then
//! asks once.
//!
//! Endpoints that fail are left alone one by one ([`crate::health::outlier`]), but never the last ones, because a bad
//! answer may be better than none. Who has something better to do than to wait for a service that is down turns this on:
//! exchanges are then refused at once, until one that is let through ends well.
//!
//! Closed, it counts; open, it refuses; half-open, one exchange is under way that decides. The decisions are handed the
//! time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::units::{Percent, Period};
use weft_runtime::config::{Path, Problems};

use crate::endpoint::Outcome;
use crate::endpoint::window::{Window, instant, stamp};
use crate::error::Error;
use crate::reason::Reason;

/// In [`Breaker::state`]: the one exchange that decides is under way.
const PROBING: u64 = 1 << 63;

/// What is told to those who come while the one that decides is under way.
const SOON: Duration = Duration::from_secs(1);

/// `breaker:` of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Breaker")]
pub struct Config {
    /// Whether there is one. It is off unless this says otherwise: endpoints are judged one by one all the same.
    pub enabled: bool,
    /// Share of exchanges that failed in the last ten seconds, retries included, that opens it.
    pub ratio: Percent,
    /// Exchanges that must have ended in these ten seconds for the share to count.
    pub requests: u32,
    /// How long it refuses everything before one exchange is let through. Each time that one fails, twice as long.
    pub open: Period,
    /// How long it refuses everything at most.
    pub max_open: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            ratio: Percent::new(80),
            requests: 20,
            open: Period::seconds(5),
            max_open: Period::seconds(60),
        }
    }
}

impl Config {
    /// Checks the values. `path` is where they stand in the file. The inner value is `None` when it is off.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Option<Rules>> {
        let before = problems.len();
        if self.ratio == Percent::new(0) {
            problems.at(
                &path.key("ratio"),
                "a share of `0%` would refuse everything",
                "write `1%` or more, or `enabled: false` for no breaker",
            );
        }
        if self.requests == 0 {
            problems.at(
                &path.key("requests"),
                "a share of `0` exchanges says nothing",
                "write 1 or more; 20 is the default",
            );
        }
        if self.open.as_duration().is_zero() {
            problems.at(
                &path.key("open"),
                "`open` is zero, so it would never refuse anything",
                "write a time longer than zero, such as `5s`, or `enabled: false` for no breaker",
            );
        }
        if self.max_open < self.open {
            problems.at(
                &path.key("max_open"),
                format!(
                    "the longest time ({}) is shorter than the first ({})",
                    self.max_open, self.open
                ),
                "make `max_open` at least as long as `open`",
            );
        }
        (problems.len() == before).then(|| {
            self.enabled.then(|| Rules {
                ratio: self.ratio.as_fraction(),
                requests: self.requests,
                open: self.open.as_duration(),
                max_open: self.max_open.as_duration(),
            })
        })
    }
}

/// Checked values of `breaker:`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    ratio: f64,
    requests: u32,
    open: Duration,
    max_open: Duration,
}

/// What a breaker does with exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// They pass.
    Closed,
    /// They are refused.
    Open,
    /// One has passed and decides.
    HalfOpen,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A service's breaker, shared by all cores.
#[derive(Debug)]
pub struct Breaker {
    service: Arc<str>,
    rules: Rules,
    /// Zero when closed, else the stamp until when everything is refused, and [`PROBING`].
    state: AtomicU64,
    /// Exchanges that ended, and failures among them.
    recent: Window,
    openings: AtomicU64,
    /// How often it has opened without closing in between. Whoever opens or closes it holds this, so that a failure that
    /// comes late does not undo what a success has done.
    doublings: Mutex<u32>,
}

impl Breaker {
    /// Closed.
    pub fn new(service: Arc<str>, rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            service,
            rules,
            state: AtomicU64::new(0),
            recent: Window::default(),
            openings: AtomicU64::new(0),
            doublings: Mutex::new(0),
        })
    }

    /// When it opens, and for how long.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What it does with exchanges now.
    pub fn state(&self) -> State {
        match self.state.load(Relaxed) {
            0 => State::Closed,
            state if state & PROBING != 0 => State::HalfOpen,
            _ => State::Open,
        }
    }

    /// How often it has opened.
    pub fn openings(&self) -> u64 {
        self.openings.load(Relaxed)
    }

    /// Whether an exchange may pass, or after what time to ask again.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Pass, Duration> {
        let pass = |opening| Pass {
            breaker: Arc::clone(self),
            opening,
            is_alone: opening != 0,
        };
        let state = self.state.load(Relaxed);
        if state == 0 {
            return Ok(pass(0));
        }
        if state & PROBING != 0 {
            return Err(SOON);
        }
        if state > stamp(now) {
            return Err(instant(state).saturating_duration_since(now));
        }
        // Whoever sets the mark is the one that decides.
        match self
            .state
            .compare_exchange(state, state | PROBING, Relaxed, Relaxed)
        {
            Ok(_) => Ok(pass(state)),
            Err(_) => Err(SOON),
        }
    }

    /// One that was let through while it was open decides, unless somebody else has done so meanwhile.
    fn conclude(&self, opening: u64, outcome: Outcome, now: Instant) {
        let mut doublings = self.lock();
        if self.state.load(Relaxed) & !PROBING != opening {
            drop(doublings);
            self.count(outcome, now);
        } else if outcome == Outcome::Success {
            *doublings = 0;
            self.recent.clear();
            self.state.store(0, Relaxed);
            tracing::info!(service = %self.service, "the breaker has closed: the service answers again");
        } else {
            self.open(&mut doublings, now);
        }
    }

    fn count(&self, outcome: Outcome, now: Instant) {
        if self.state.load(Relaxed) != 0 {
            // Begun before it opened: known already.
            return;
        }
        self.recent.add(now, outcome.is_failure());
        if !outcome.is_failure() {
            return;
        }
        let recent = self.recent.sums(now);
        let limit = f64::from(recent.total) * self.rules.ratio;
        // The tolerance keeps `80%` of 20 at 16, however a fraction is rounded.
        if recent.total < self.rules.requests || f64::from(recent.marked) < limit - 1e-9 {
            return;
        }
        let mut doublings = self.lock();
        // While we waited for the lock, somebody else's failure may have done it.
        if self.state.load(Relaxed) == 0 {
            tracing::warn!(
                service = %self.service,
                failures = recent.marked,
                of = recent.total,
                "the breaker has opened: nearly everything has failed in 10 s"
            );
            self.open(&mut doublings, now);
        }
    }

    fn open(&self, doublings: &mut u32, now: Instant) {
        let factor = 1_u32.checked_shl(*doublings).unwrap_or(u32::MAX);
        let time = self
            .rules
            .open
            .saturating_mul(factor)
            .min(self.rules.max_open);
        if time < self.rules.max_open {
            *doublings += 1;
        }
        self.openings.fetch_add(1, Relaxed);
        self.recent.clear();
        self.state.store(stamp(now + time), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.doublings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exchange that a breaker has let through; to be told how it ended. One that is dropped untold counts neither way.
#[derive(Debug)]
pub struct Pass {
    breaker: Arc<Breaker>,
    /// The state in which it was let through to decide; zero when the breaker was closed.
    opening: u64,
    /// Nobody else is let through meanwhile.
    is_alone: bool,
}

impl Pass {
    /// It is answered, and how it ends may not be known for long: the next one is let through without waiting for that. It decides
    /// all the same if it is the first to know.
    pub fn step_aside(&mut self) {
        if std::mem::take(&mut self.is_alone) {
            // Unless somebody has decided already.
            let (now, then) = (self.opening | PROBING, self.opening);
            let _: Result<_, _> = self
                .breaker
                .state
                .compare_exchange(now, then, Relaxed, Relaxed);
        }
    }

    /// The exchange has failed after all of its attempts. That counts where it is the service's doing.
    pub fn fail(self, error: &Error, now: Instant) {
        if error.is_of_endpoint() || error.reason == Reason::NoEndpoints {
            self.judge(Outcome::LocalFailure, now);
        }
    }

    /// How the exchange ended, after all of its attempts.
    pub fn judge(mut self, outcome: Outcome, now: Instant) {
        match self.opening {
            0 => self.breaker.count(outcome, now),
            opening => self.breaker.conclude(opening, outcome, now),
        }
        self.is_alone = false;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // Nobody learnt anything (the client went away, say): the next one decides.
        self.step_aside();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker(config: Config) -> Arc<Breaker> {
        let mut problems = Problems::new();
        let rules = Config {
            enabled: true,
            ..config
        }
        .build(&Path::root(), &mut problems)
        .unwrap()
        .unwrap();
        Breaker::new("orders".into(), rules)
    }

    fn run(breaker: &Arc<Breaker>, outcome: Outcome, count: u32, now: Instant) -> u32 {
        (0..count)
            .filter(|_| match breaker.admit(now) {
                Ok(pass) => {
                    pass.judge(outcome, now);
                    true
                }
                Err(_) => false,
            })
            .count() as u32
    }

    #[test]
    fn it_opens_when_most_of_enough_exchanges_fail() {
        use Outcome::{LocalFailure, Pushback, RemoteFailure, Success};
        for (good, bad, of, opens) in [
            (0, 19, RemoteFailure, false),
            (0, 20, RemoteFailure, true),
            (0, 20, LocalFailure, true),
            (0, 100, Pushback, false),
            (0, 100, Success, false),
            (4, 15, RemoteFailure, false),
            (4, 16, RemoteFailure, true),
            (5, 16, RemoteFailure, false),
            (1000, 3999, RemoteFailure, false),
            (1000, 4000, RemoteFailure, true),
        ] {
            let (breaker, now) = (breaker(Config::default()), Instant::now());
            assert_eq!(run(&breaker, Success, good, now), good);
            run(&breaker, of, bad, now);
            let is_open = breaker.state() == State::Open;
            assert_eq!(is_open, opens, "{good} good, {bad} {of:?}");
        }
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let (breaker, now) = (breaker(Config::default()), Instant::now());
        run(&breaker, Outcome::RemoteFailure, 19, now);
        run(&breaker, Outcome::RemoteFailure, 19, now + SECOND * 11);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn open_it_refuses_and_says_for_how_long_then_one_decides() {
        let (breaker, now) = (breaker(Config::default()), Instant::now());
        run(&breaker, Outcome::RemoteFailure, 20, now);
        let wait = breaker.admit(now + SECOND).unwrap_err();
        assert!(wait > SECOND * 3 && wait <= SECOND * 4, "{wait:?}");
        let later = now + SECOND * 5 + Duration::from_millis(2);
        let probe = breaker.admit(later).unwrap();
        assert_eq!(breaker.state(), State::HalfOpen);
        assert_eq!(breaker.admit(later).unwrap_err(), SOON, "only one");
        probe.judge(Outcome::Success, later);
        assert_eq!(breaker.state(), State::Closed);
        assert_eq!(run(&breaker, Outcome::RemoteFailure, 19, later), 19);
        assert_eq!(breaker.state(), State::Closed, "it counts anew");
        assert_eq!(breaker.openings(), 1);
    }

    #[test]
    fn each_probe_that_fails_doubles_the_time_up_to_the_most() {
        let (breaker, mut now) = (breaker(Config::default()), Instant::now());
        run(&breaker, Outcome::LocalFailure, 20, now);
        for seconds in [5, 10, 20, 40, 60, 60] {
            let time = breaker.admit(now).unwrap_err();
            let off = time.abs_diff(SECOND * seconds);
            assert!(off < Duration::from_millis(5), "{time:?}, not {seconds} s");
            now += time + Duration::from_millis(2);
            // A pushback is no sign of recovery.
            breaker.admit(now).unwrap().judge(Outcome::Pushback, now);
        }
    }

    #[test]
    fn a_probe_that_nobody_judged_leaves_it_to_the_next() {
        let (breaker, now) = (breaker(Config::default()), Instant::now());
        run(&breaker, Outcome::LocalFailure, 20, now);
        let later = now + SECOND * 6;
        drop(breaker.admit(later).unwrap());
        assert_eq!(breaker.state(), State::Open);
        breaker.admit(later).unwrap().judge(Outcome::Success, later);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn one_whose_end_is_far_off_lets_the_next_through_and_may_still_decide() {
        let opened = || {
            let (breaker, now) = (breaker(Config::default()), Instant::now());
            run(&breaker, Outcome::LocalFailure, 20, now);
            (breaker, now + SECOND * 6)
        };
        let (breaker, later) = opened();
        let mut streams = breaker.admit(later).unwrap();
        streams.step_aside();
        assert_eq!(breaker.state(), State::Open);
        let next = breaker.admit(later).unwrap();
        assert_eq!(breaker.admit(later).unwrap_err(), SOON);
        // The one that streams ends well, and nobody has known better before.
        streams.judge(Outcome::Success, later);
        assert_eq!(breaker.state(), State::Closed);
        next.judge(Outcome::LocalFailure, later);
        assert_eq!(breaker.state(), State::Closed, "one of many, by now");

        let (breaker, later) = opened();
        let mut streams = breaker.admit(later).unwrap();
        streams.step_aside();
        let next = breaker.admit(later).unwrap();
        next.judge(Outcome::LocalFailure, later);
        let until = breaker.admit(later).unwrap_err();
        assert!(until > SECOND * 9, "twice as long: {until:?}");
        streams.judge(Outcome::Success, later);
        assert_eq!(breaker.admit(later).unwrap_err(), until, "of long ago");

        let (breaker, later) = opened();
        let mut streams = breaker.admit(later).unwrap();
        streams.step_aside();
        streams.judge(Outcome::RemoteFailure, later);
        assert!(breaker.admit(later).unwrap_err() > SECOND * 9);
    }

    #[test]
    fn exchanges_from_before_it_opened_neither_close_nor_prolong_it() {
        let (breaker, now) = (breaker(Config::default()), Instant::now());
        let late = breaker.admit(now).unwrap();
        run(&breaker, Outcome::LocalFailure, 20, now);
        let until = breaker.admit(now).unwrap_err();
        late.judge(Outcome::Success, now);
        assert_eq!(breaker.admit(now).unwrap_err(), until);
    }

    #[test]
    fn what_would_refuse_everything_is_a_located_problem() {
        for (json, place) in [
            (r#"{"ratio": "0%"}"#, "breaker.ratio"),
            (r#"{"requests": 0}"#, "breaker.requests"),
            (r#"{"open": "0s"}"#, "breaker.open"),
            (r#"{"open": "2m"}"#, "breaker.max_open"),
        ] {
            let config: Config = serde_json::from_str(json).unwrap();
            let mut problems = Problems::new();
            assert!(
                config
                    .build(&Path::root().key("breaker"), &mut problems)
                    .is_none()
            );
            let places: Vec<_> = problems.iter().map(|p| p.path.to_string()).collect();
            assert_eq!(places, [place]);
        }
    }
}
