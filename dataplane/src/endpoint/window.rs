//! Two counts over the last ten seconds, shared by all cores, without a lock.
//!
//! Ten slots of one second each. A slot packs its second and both counts into one word, so that adding is one atomic
//! operation and a slot that has gone stale is replaced whole. A count has 24 bits: one second would have to bring sixteen
//! million to overflow it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How far back the counts reach.
pub const SPAN: Duration = Duration::from_secs(SLOTS as u64);

const SLOTS: usize = 10;
const BITS: u32 = 24;
const MASK: u64 = (1 << BITS) - 1;

/// Where this process's clock starts, for instants that must fit into an atomic. Some time before it is first looked at,
/// because an instant taken earlier in the same decision must not be cut off.
static START: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(60)).unwrap_or(now)
});

/// Milliseconds of this process's clock, from 1: zero is free to mean "never".
pub(crate) fn stamp(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*START).as_millis();
    u64::try_from(since).map_or(u64::MAX >> 2, |millis| (millis + 1).min(u64::MAX >> 2))
}

/// The instant of a [`stamp`].
pub(crate) fn instant(stamp: u64) -> Instant {
    *START + Duration::from_millis(stamp.saturating_sub(1))
}

/// How many there were in the last ten seconds, and how many of them were marked.
#[derive(Debug, Default)]
pub struct Window {
    slots: [AtomicU64; SLOTS],
}

/// What a [`Window`] holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// All that were added.
    pub total: u32,
    /// Those that were added as marked.
    pub marked: u32,
}

impl Window {
    /// Adds one, `marked` or not.
    pub fn add(&self, now: Instant, marked: bool) {
        let (slot, era) = place(now);
        let one = (u64::from(marked) << BITS) | 1;
        let slot = &self.slots[slot];
        let mut seen = slot.load(Relaxed);
        loop {
            if seen >> (2 * BITS) == era {
                // The slot may turn stale between the look and the sum; then one count lands a second late.
                slot.fetch_add(one, Relaxed);
                return;
            }
            let fresh = (era << (2 * BITS)) | one;
            match slot.compare_exchange_weak(seen, fresh, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// What was added in the ten seconds up to `now`.
    pub fn sums(&self, now: Instant) -> Sums {
        let (current, era) = place(now);
        let mut sums = Sums::default();
        for (index, slot) in self.slots.iter().enumerate() {
            let word = slot.load(Relaxed);
            // Slots behind the current one were filled in this round of ten seconds, those ahead in the one before.
            let wanted = if index <= current {
                era
            } else {
                era.wrapping_sub(1) & 0xffff
            };
            if word >> (2 * BITS) == wanted {
                sums.total += (word & MASK) as u32;
                sums.marked += (word >> BITS & MASK) as u32;
            }
        }
        sums
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for slot in &self.slots {
            slot.store(0, Relaxed);
        }
    }
}

/// The slot of `now`, and which round of ten seconds it is (16 bits, from 1 for the first: zero is an empty slot).
fn place(now: Instant) -> (usize, u64) {
    let second = stamp(now) / 1000 + SLOTS as u64;
    (
        (second % SLOTS as u64) as usize,
        (second / SLOTS as u64) & 0xffff,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_last_ten_seconds_and_no_longer() {
        let window = Window::default();
        let start = Instant::now() + Duration::from_secs(100);
        for second in 0..30 {
            let now = start + Duration::from_secs(second);
            for n in 0..7 {
                window.add(now, n < 3);
            }
            let seconds = (second as u32 + 1).min(10);
            assert_eq!(
                window.sums(now),
                Sums {
                    total: 7 * seconds,
                    marked: 3 * seconds
                },
                "after second {second}"
            );
        }
        let later = start + Duration::from_secs(29) + SPAN;
        assert_eq!(window.sums(later), Sums::default());
    }

    #[test]
    fn an_old_round_is_never_taken_for_this_one() {
        let window = Window::default();
        let start = Instant::now();
        window.add(start, true);
        for tens in 1..20 {
            let now = start + Duration::from_secs(10 * tens);
            assert_eq!(window.sums(now), Sums::default(), "{tens} rounds later");
        }
    }

    #[test]
    fn threads_lose_no_count_within_a_second() {
        let window = Window::default();
        let now = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|n| window.add(now, n % 2 == 0)));
            }
        });
        assert_eq!(
            window.sums(now),
            Sums {
                total: 40_000,
                marked: 20_000
            }
        );
    }
}
