//! How long an endpoint takes to answer, as an average that forgets: what least response time goes by.
//!
//! * It rises at once to a sample that is above it ("peak") and falls slowly, with a time constant of ten seconds: an
//!   endpoint that has become slow is noticed with its first slow answer.
//! * While nothing comes it falls towards zero, so that an endpoint that was slow once is tried again one day.
//! * A failure never lowers it. It doubles it, up to five seconds: an error that comes fast says that the endpoint is
//!   broken, not that it is quick. One error in a thousand costs a healthy endpoint little and for a moment; an endpoint
//!   that only fails is at five seconds after eight of them.
//!
//! An answer is the head of one, and of a service that is not HTTP the connection to its app (through its sidecar, so that
//! the way there counts too): who speaks first afterwards, and when, is the protocol's business.
//!
//! Kept only for services that ask for it, because it needs the clock at each answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::window::stamp;
use super::{Endpoint, Outcome};

/// After so long without samples a third of it is left (1/e).
const DECAY: Duration = Duration::from_secs(10);

/// What is assumed of an endpoint that has not answered yet.
const DEFAULT: Duration = Duration::from_millis(30);

/// What failures raise it to at most.
const WORST: Duration = Duration::from_secs(5);

/// The estimate of one endpoint. Zero until there is a sample; else the low half is microseconds and the high half when
/// that was so, in milliseconds, which wrap around after 49 days.
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

impl Latency {
    /// How long an answer is likely to take.
    pub fn estimate(&self, now: Instant) -> Duration {
        match self.0.load(Relaxed) {
            0 => DEFAULT,
            state => Duration::from_micros(decayed(state, millis(now)) as u64 + 1),
        }
    }

    /// An answer came (or a failure) after so long.
    pub fn answered(&self, after: Duration, outcome: Outcome, now: Instant) {
        let sample = micros(after);
        self.update(now, |before| match before {
            _ if outcome != Outcome::Success => {
                let value = before.map_or(micros(DEFAULT), |before| before.value);
                sample.max(value).max((2.0 * value).min(micros(WORST)))
            }
            // What time has left of the estimate, and the sample in the place of what is gone.
            Some(before) if sample < before.value => before.value + sample * before.gone,
            _ => sample,
        });
    }

    /// No answer came within so long, and nobody waits for it any more.
    pub fn silent(&self, after: Duration, now: Instant) {
        self.update(now, |before| {
            let value = before.map_or(micros(DEFAULT), |before| before.value);
            value.max(micros(after))
        });
    }

    fn update(&self, now: Instant, next: impl Fn(Option<Before>) -> f64) {
        let at = millis(now);
        let _: Result<_, _> = self.0.fetch_update(Relaxed, Relaxed, |state| {
            let before = (state != 0).then(|| Before {
                value: decayed(state, at),
                gone: 1.0 - left(state, at),
            });
            let estimate = next(before).clamp(1.0, f64::from(u32::MAX)) as u64;
            Some(u64::from(at) << 32 | estimate)
        });
    }
}

/// Times one attempt at an endpoint. One that nobody waits for any more is told too, when this is dropped: an endpoint that
/// hangs would otherwise keep the latency of its better days.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    endpoint: Arc<Endpoint>,
    began: Instant,
    is_running: bool,
}

impl Stopwatch {
    /// An attempt begins.
    pub(crate) fn start(endpoint: &Arc<Endpoint>, now: Instant) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            began: now,
            is_running: true,
        }
    }

    /// What came before was not the endpoint's time.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.began = now;
    }

    /// It ended so; none when that says nothing of the endpoint.
    pub(crate) fn stop(mut self, outcome: Option<Outcome>, now: Instant) {
        self.is_running = false;
        if let Some(outcome) = outcome {
            let passed = now.saturating_duration_since(self.began);
            self.endpoint.latency.answered(passed, outcome, now);
        }
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        if self.is_running {
            let now = Instant::now();
            let passed = now.saturating_duration_since(self.began);
            self.endpoint.latency.silent(passed, now);
        }
    }
}

/// An estimate as a sample finds it.
struct Before {
    /// In microseconds, decayed.
    value: f64,
    /// The share that has decayed.
    gone: f64,
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn millis(now: Instant) -> u32 {
    // Wraps by design.
    (stamp(now) & u64::from(u32::MAX)) as u32
}

/// The share of an estimate that time has left.
fn left(state: u64, now: u32) -> f64 {
    let passed = now.wrapping_sub((state >> 32) as u32);
    // Cores do not see the same moment: a sample may seem to be from just ahead.
    if passed > u32::MAX / 2 {
        return 1.0;
    }
    (-f64::from(passed) / DECAY.as_millis() as f64).exp()
}

fn decayed(state: u64, now: u32) -> f64 {
    (state & u64::from(u32::MAX)) as f64 * left(state, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn near(latency: &Latency, now: Instant, expected: Duration) {
        let estimate = latency.estimate(now).as_secs_f64();
        let expected = expected.as_secs_f64();
        assert!(
            (estimate - expected).abs() <= expected * 0.01 + 2e-6,
            "{estimate} s, not {expected} s"
        );
    }

    #[test]
    fn it_begins_with_a_guess_and_takes_the_first_sample_as_it_is() {
        let (latency, now) = (Latency::default(), Instant::now());
        assert_eq!(latency.estimate(now), ms(30));
        latency.answered(ms(4), Outcome::Success, now);
        near(&latency, now, ms(4));
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let (latency, now) = (Latency::default(), Instant::now());
        latency.answered(ms(10), Outcome::Success, now);
        latency.answered(ms(400), Outcome::Success, now);
        near(&latency, now, ms(400));
        latency.answered(ms(10), Outcome::Success, now);
        near(&latency, now, ms(400));
        // After ten seconds a third is left, and the samples have taken the rest's place.
        for step in 1..=1_000 {
            latency.answered(ms(10), Outcome::Success, now + ms(10 * step));
        }
        near(&latency, now + ms(10_000), ms(153));
        // Nobody asks for a minute: it may be tried again.
        assert!(latency.estimate(now + ms(70_000)) < ms(1));
    }

    #[test]
    fn failures_double_it_up_to_five_seconds_however_fast_they_come() {
        let (latency, now) = (Latency::default(), Instant::now());
        let fail = || latency.answered(Duration::from_micros(50), Outcome::RemoteFailure, now);
        for expected in [60, 120, 240, 480, 960, 1_920, 3_840, 5_000, 5_000] {
            fail();
            near(&latency, now, ms(expected));
        }
        // One that took longer than that counts as long as it took.
        latency.answered(ms(9_000), Outcome::LocalFailure, now);
        near(&latency, now, ms(9_000));
        fail();
        near(&latency, now, ms(9_000));
        latency.answered(ms(1), Outcome::Pushback, now);
        near(&latency, now, ms(9_000));
    }

    #[test]
    fn silence_only_raises_it() {
        let (latency, now) = (Latency::default(), Instant::now());
        latency.silent(ms(5), now);
        near(&latency, now, ms(30));
        latency.silent(ms(700), now);
        near(&latency, now, ms(700));
    }

    #[test]
    fn a_sample_from_a_clock_just_behind_does_no_harm() {
        let (latency, now) = (Latency::default(), Instant::now());
        latency.answered(ms(20), Outcome::Success, now + ms(3));
        near(&latency, now, ms(20));
        latency.answered(ms(10), Outcome::Success, now);
        near(&latency, now, ms(20));
    }
}
