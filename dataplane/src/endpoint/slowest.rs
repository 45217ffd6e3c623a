//! How long the slowest answers of an endpoint took lately, and whether it has answered since some moment.
//!
//! For what HTTP/2 does not tell: whether an endpoint still works on what was taken back. It has stopped for all that can be
//! known when it has answered something that was asked later, and has had more time than its slowest answers took.
//!
//! "Lately" is in the last two spans of ten seconds in which anything was asked that was answered. An endpoint that has been
//! idle since is what it was.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::window::stamp;

/// In milliseconds.
const SPAN: u64 = 10_000;

/// Of how many bits a time is, in milliseconds: what took eight seconds or more is as slow as can be.
const BITS: u32 = 13;
const MASK: u64 = (1 << BITS) - 1;

/// One word: when the latest that was answered had been asked (a stamp), and how long the slowest took, in milliseconds, in
/// the span before and in this one. Zero until there is an answer.
#[derive(Debug, Default)]
pub(crate) struct Slowest(AtomicU64);

impl Slowest {
    /// The answer to what was asked at `asked` has begun. `took` is what the endpoint took for it, where that is known.
    pub(crate) fn answered(&self, asked: Instant, took: Option<Duration>) {
        // Rounded up. Of the stamp eight years fit.
        let millis = |took: Duration| {
            u64::try_from(took.as_millis())
                .unwrap_or(MASK)
                .saturating_add(1)
        };
        let took = took.map_or(0, |took| millis(took).min(MASK));
        let asked = stamp(asked);
        // Nothing is written where nothing changes, and most answers change only when they were asked.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let (latest, before, slowest) = parts(word);
            let (latest, before, slowest) = match asked / SPAN > latest / SPAN {
                true => (asked, slowest, took),
                false => (latest.max(asked), before, slowest.max(took)),
            };
            let next = latest << (2 * BITS) | before << BITS | slowest;
            (next != word).then_some(next)
        });
    }

    /// How long the slowest took lately; `None` where that is not known.
    pub(crate) fn lately(&self) -> Option<Duration> {
        let (_, before, slowest) = parts(self.0.load(Relaxed));
        let slowest = before.max(slowest);
        (slowest > 0).then(|| Duration::from_millis(slowest))
    }

    /// Whether anything was answered that was asked after this.
    pub(crate) fn has_answered_since(&self, moment: Instant) -> bool {
        parts(self.0.load(Relaxed)).0 > stamp(moment)
    }
}

/// When the latest was asked, the slowest of the span before, and that of this span.
const fn parts(word: u64) -> (u64, u64, u64) {
    (word >> (2 * BITS), (word >> BITS) & MASK, word & MASK)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_slowest_is_remembered_for_a_span_and_the_next_and_not_lost_by_rest() {
        let (slowest, start) = (Slowest::default(), Instant::now());
        assert_eq!(slowest.lately(), None);
        // A moment at which a span begins.
        let start = start + millis(SPAN - stamp(start) % SPAN);
        let answer = |at: u64, took: u64| {
            let asked = start + millis(at);
            slowest.answered(asked, Some(millis(took)));
            slowest.lately().unwrap()
        };
        assert_eq!(answer(0, 300), millis(301));
        assert_eq!(answer(5_000, 2), millis(301));
        // The next span, and the one after it, in which it is forgotten.
        assert_eq!(answer(10_000, 3), millis(301));
        assert_eq!(answer(19_999, 50), millis(301));
        assert_eq!(answer(20_000, 1), millis(51));
        // However long nothing comes.
        assert_eq!(answer(3_600_000, 1), millis(2));
        assert_eq!(answer(3_600_001, 7), millis(8));
        // One that was asked in the span before and answered now is slow now.
        assert_eq!(answer(3_599_000, 7_000), millis(7_001));
        assert_eq!(answer(3_610_000, 1), millis(7_001));
        assert_eq!(answer(3_620_000, 1), millis(2));
    }

    #[test]
    fn what_is_slower_than_can_be_told_is_as_slow_as_can_be_told() {
        let (slowest, start) = (Slowest::default(), Instant::now());
        slowest.answered(start, None);
        assert_eq!(
            slowest.lately(),
            None,
            "it was answered, nobody knows how fast"
        );
        assert!(slowest.has_answered_since(start - millis(2)));
        slowest.answered(start, Some(Duration::MAX));
        assert_eq!(slowest.lately(), Some(millis(MASK)));
    }

    #[test]
    fn only_what_was_asked_later_is_an_answer_since() {
        let (slowest, start) = (Slowest::default(), Instant::now());
        assert!(!slowest.has_answered_since(start));
        slowest.answered(start, Some(millis(900)));
        assert!(!slowest.has_answered_since(start), "asked at that moment");
        slowest.answered(start + millis(2), Some(millis(1)));
        assert!(slowest.has_answered_since(start));
        // One that was asked early and answered late takes nothing back.
        slowest.answered(start - millis(500), Some(millis(504)));
        assert!(slowest.has_answered_since(start));
        assert!(!slowest.has_answered_since(start + millis(2)));
    }
}
