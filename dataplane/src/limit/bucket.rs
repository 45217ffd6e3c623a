//! Token buckets for many keys: exact across threads, bounded in memory.
//!
//! The arithmetic is GCRA: a bucket is one moment, at which it will be full again if nobody takes more. A request
//! moves that moment by the time in which one token grows; it is refused when the moment would be further away than a
//! whole bucket takes to fill. Nothing is refilled by timers, and an untouched key costs nothing.
//!
//! The keys are spread over shards, each behind its own lock, which is held for one look-up. A shard at its bound first
//! forgets the keys whose buckets are full again, who lose nothing by that, but looks for them only as often as pays;
//! in between, of a few keys in turn, it forgets the one with the most tokens, who is let off by what it had used. So
//! a flood of new keys costs neither memory nor time, and mostly forgets other keys of the flood.

use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use indexmap::IndexMap;
use indexmap::map::Entry;
use weft_runtime::config::units::Rate;

/// Enough that threads seldom meet at a lock.
const SHARDS: usize = 32;

/// How many keys a full shard looks at to forget one.
const SAMPLE: usize = 8;

/// With fewer new keys than this a shard does not bother to look for full buckets.
const SMALL: usize = 64;

/// How fast tokens grow, and how many a bucket holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measure {
    /// This many tokens grow …
    count: u32,
    /// … in this many nanoseconds.
    per: u64,
    burst: u32,
}

/// A moment, exact to a fraction of a nanosecond, as one token of `n/s` takes: nanoseconds since the buckets were made,
/// and `part` of `count` parts of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Moment {
    nanos: u64,
    part: u32,
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) allowed: bool,
    /// Whole tokens that are left.
    pub(super) remaining: u32,
    /// Until the bucket is full.
    pub(super) full_in: Duration,
    /// Until there is a token again; zero when allowed.
    pub(super) retry_after: Duration,
}

impl Measure {
    pub(super) fn new(rate: Rate, burst: u32) -> Self {
        Self {
            count: rate.count,
            per: u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX),
            burst,
        }
    }

    /// The moment `tokens` after `from`.
    fn after(&self, from: Moment, tokens: u32) -> Moment {
        let parts = u128::from(tokens) * u128::from(self.per) + u128::from(from.part);
        let count = u128::from(self.count);
        let whole = u64::try_from(parts / count).unwrap_or(u64::MAX);
        Moment {
            nanos: from.nanos.saturating_add(whole),
            part: (parts % count) as u32,
        }
    }

    /// Takes one token of the bucket that is full at `full`.
    fn take(&self, full: &mut Moment, now: u64) -> Taken {
        let now = Moment {
            nanos: now,
            part: 0,
        };
        let next = self.after((*full).max(now), 1);
        let furthest = self.after(now, self.burst);
        let allowed = next <= furthest;
        if allowed {
            *full = next;
        }
        let full = (*full).max(now);
        Taken {
            allowed,
            remaining: self.tokens_between(full, furthest),
            full_in: between(now, full),
            retry_after: if allowed {
                Duration::ZERO
            } else {
                between(furthest, next)
            },
        }
    }

    /// How many whole tokens grow from `from` to `to`.
    fn tokens_between(&self, from: Moment, to: Moment) -> u32 {
        let parts = |moment: Moment| {
            u128::from(moment.nanos) * u128::from(self.count) + u128::from(moment.part)
        };
        let tokens = parts(to).saturating_sub(parts(from)) / u128::from(self.per);
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

/// From one moment to a later one, rounded up, so that who waits so long has waited long enough.
fn between(from: Moment, to: Moment) -> Duration {
    let nanos = to.nanos.saturating_sub(from.nanos);
    Duration::from_nanos(nanos.saturating_add(u64::from(to.part > from.part)))
}

/// A bucket for each key.
#[derive(Debug)]
pub(super) struct Buckets {
    measure: Measure,
    start: Instant,
    /// The most keys of one shard.
    bound: usize,
    /// Each lock guards the buckets of the keys that fall into its shard.
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug)]
struct Shard {
    full_at: IndexMap<u64, Moment, FixedState>,
    /// Where the next search for a key to forget begins.
    cursor: usize,
    /// New keys since full buckets were looked for.
    unswept: usize,
    forgotten: u64,
}

impl Buckets {
    /// For at most about `max_keys` keys: the bound is held in each shard, so a little before if keys fall unevenly.
    pub(super) fn new(measure: Measure, max_keys: usize, start: Instant) -> Self {
        let shards = SHARDS.min(max_keys.max(1));
        Self {
            measure,
            start,
            bound: (max_keys / shards).max(1),
            shards: (0..shards)
                .map(|_| {
                    Mutex::new(Shard {
                        // The keys are keyed hashes already.
                        full_at: IndexMap::with_hasher(FixedState::default()),
                        cursor: 0,
                        unswept: 0,
                        forgotten: 0,
                    })
                })
                .collect(),
        }
    }

    pub(super) fn take(&self, key: u64, now: Instant) -> Taken {
        let now = now.saturating_duration_since(self.start).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        // The high bits choose the shard, because the table inside uses a hash of all.
        let shard = &self.shards[(key >> 32) as usize % self.shards.len()];
        // A panic while the lock was held cannot leave a bucket half written, so a poisoned lock is as good as any.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        self.measure.take(shard.bucket(key, now, self.bound), now)
    }

    pub(super) fn keys(&self) -> usize {
        self.sum(|shard| shard.full_at.len())
    }

    /// How many keys were forgotten to make room.
    pub(super) fn forgotten(&self) -> u64 {
        self.sum(|shard| shard.forgotten)
    }

    fn sum<N: std::iter::Sum>(&self, of: impl Fn(&Shard) -> N) -> N {
        let shards = self.shards.iter();
        shards
            .map(|shard| of(&shard.lock().unwrap_or_else(PoisonError::into_inner)))
            .sum()
    }
}

impl Shard {
    /// The bucket of `key`; a new one is full.
    fn bucket(&mut self, key: u64, now: u64, bound: usize) -> &mut Moment {
        if self.full_at.len() == self.full_at.capacity().min(bound)
            && !self.full_at.contains_key(&key)
        {
            self.make_room(now, bound);
        }
        match self.full_at.entry(key) {
            Entry::Occupied(bucket) => bucket.into_mut(),
            Entry::Vacant(place) => {
                self.unswept += 1;
                place.insert(Moment::default())
            }
        }
    }

    /// Before a shard grows, or forgets a key that is in use, it forgets full buckets, so that it holds what is in use
    /// and not what once was. That looks at every key, so it waits for new ones in proportion to pay for it.
    fn make_room(&mut self, now: u64, bound: usize) {
        let now = Moment {
            nanos: now,
            part: 0,
        };
        if self.unswept >= SMALL.max(self.full_at.len() / 4) {
            self.unswept = 0;
            self.full_at.retain(|_, full| *full > now);
        }
        let length = self.full_at.len();
        if length >= bound {
            let sample = (0..SAMPLE.min(length)).map(|step| (self.cursor + step) % length);
            let fullest = sample.min_by_key(|&index| self.full_at[index]);
            self.cursor = (self.cursor + SAMPLE) % length;
            if let Some(fullest) = fullest {
                self.full_at.swap_remove_index(fullest);
                self.forgotten += 1;
            }
        } else if length > self.full_at.capacity() / 2 {
            // Doubled only when that freed less than half.
            self.full_at
                .reserve_exact(length.max(4).min(bound - length));
        }
    }
}

/// A hash under a key of the process, so that nobody outside can choose keys that fall together.
pub(super) fn keyed_hash(state: &impl BuildHasher, parts: &[&[u8]]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = state.build_hasher();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn measure(rate: &str, burst: u32) -> Measure {
        Measure::new(rate.parse().unwrap(), burst)
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// What is expected of one request: at which millisecond, allowed, remaining, full in, retry after.
    type Step = (u64, bool, u32, u64, u64);

    #[test]
    fn tokens_are_taken_and_grow_again() {
        let check = |rate: &str, burst: u32, steps: &[Step]| {
            let start = Instant::now();
            let buckets = Buckets::new(measure(rate, burst), 10, start);
            for &(at, allowed, remaining, full_in, retry_after) in steps {
                let expected = Taken {
                    allowed,
                    remaining,
                    full_in: millis(full_in),
                    retry_after: millis(retry_after),
                };
                let taken = buckets.take(1, start + millis(at));
                assert_eq!(taken, expected, "{rate} burst {burst} at {at} ms");
            }
        };
        check(
            "10/s",
            3,
            &[
                (0, true, 2, 100, 0),
                (0, true, 1, 200, 0),
                (0, true, 0, 300, 0),
                (0, false, 0, 300, 100),
                (99, false, 0, 201, 1),
                (100, true, 0, 300, 0),
                (100, false, 0, 300, 100),
                (350, true, 1, 150, 0),
                // A long rest fills the bucket and no more.
                (60_000, true, 2, 100, 0),
                // A clock reading from another thread that is a little older takes from the same bucket.
                (59_999, true, 0, 201, 0),
            ],
        );
        check(
            "1/s",
            1,
            &[
                (0, true, 0, 1_000, 0),
                (999, false, 0, 1, 1),
                (1_000, true, 0, 1_000, 0),
            ],
        );
        check(
            "1000/h",
            1,
            &[
                (0, true, 0, 3_600, 0),
                (3_599, false, 0, 1, 1),
                (3_600, true, 0, 3_600, 0),
            ],
        );
        // A burst smaller than the rate spaces the requests out.
        check(
            "100/s",
            1,
            &[
                (0, true, 0, 10, 0),
                (5, false, 0, 5, 5),
                (10, true, 0, 10, 0),
            ],
        );
        check(
            "1/d",
            2,
            &[
                (0, true, 1, 86_400_000, 0),
                (0, true, 0, 172_800_000, 0),
                (0, false, 0, 172_800_000, 86_400_000),
            ],
        );
    }

    #[test]
    fn no_rate_drifts_by_rounding() {
        // A token of these takes no whole number of nanoseconds.
        for (rate, per_second) in [
            ("3/s", 3_u32),
            ("7/s", 7),
            ("999983/s", 999_983),
            ("3000000000/s", 3_000_000_000),
        ] {
            let measure = measure(rate, 1);
            let mut full = Moment::default();
            // As many tokens as grow in ten seconds, each taken at the first nanosecond at which it is there.
            let rounds = (10 * u64::from(per_second)).min(1_000_000);
            for _ in 0..rounds {
                full = measure.after(full, 1);
            }
            let expected = u128::from(rounds) * 1_000_000_000 / u128::from(per_second);
            assert_eq!(u128::from(full.nanos), expected, "{rate}");
            assert_eq!(
                measure.tokens_between(Moment::default(), full),
                rounds as u32,
                "{rate}"
            );
        }
    }

    #[test]
    fn who_waits_as_told_gets_in_and_not_a_nanosecond_earlier() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..2_000 {
            let rate = format!(
                "{}/{}",
                random.u32(1..5_000_000),
                ["s", "m", "h", "d"][random.usize(..4)]
            );
            let burst = random.u32(1..50);
            let measure = measure(&rate, burst);
            let mut full = Moment::default();
            let mut now = random.u64(..1 << 40);
            for _ in 0..burst {
                assert!(measure.take(&mut full, now).allowed);
            }
            let refused = measure.take(&mut full, now);
            assert!(!refused.allowed, "{rate} burst {burst}");
            let wait = u64::try_from(refused.retry_after.as_nanos()).unwrap();
            assert!(wait > 0, "{rate} burst {burst}");
            now += wait - 1;
            assert!(
                !measure.take(&mut full, now).allowed,
                "{rate} burst {burst}: earlier than told"
            );
            assert!(
                measure.take(&mut full, now + 1).allowed,
                "{rate} burst {burst}: later than told"
            );
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        let measure = measure("1/d", u32::MAX);
        let mut full = Moment {
            nanos: u64::MAX,
            part: 0,
        };
        let taken = measure.take(&mut full, u64::MAX);
        assert!(taken.allowed);
        let mut full = Moment::default();
        assert!(measure.take(&mut full, 0).allowed);
        let fast = Measure::new("4294967295/s".parse().unwrap(), u32::MAX);
        let mut full = Moment::default();
        assert_eq!(fast.take(&mut full, 0).remaining, u32::MAX - 1);
    }

    #[test]
    fn four_threads_together_take_exactly_the_burst() {
        let start = Instant::now();
        let buckets = Buckets::new(measure("1/d", 1_000), 100, start);
        let allowed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..5_000)
                            .filter(|_| buckets.take(42, start).allowed)
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(allowed, 1_000);
    }

    /// Keys as the hash makes them: spread over all bits.
    fn spread(index: u64) -> u64 {
        keyed_hash(&FixedState::default(), &[&index.to_le_bytes()])
    }

    #[test]
    fn the_bound_holds_and_the_idle_are_forgotten_first() {
        let start = Instant::now();
        let buckets = Buckets::new(measure("1/m", 1), 3_200, start);
        // Idle after a minute.
        for index in 0..1_600 {
            buckets.take(spread(index), start);
        }
        let later = start + Duration::from_secs(61);
        let in_use: Vec<_> = (10_000..10_800).map(spread).collect();
        for &key in &in_use {
            assert!(buckets.take(key, later).allowed);
        }
        for index in 20_000..20_800 {
            buckets.take(spread(index), later);
        }
        assert!(buckets.keys() <= 3_200, "{} keys", buckets.keys());
        // Idle keys made room: nobody who is over the limit was let off.
        assert_eq!(
            in_use
                .iter()
                .filter(|&&key| buckets.take(key, later).allowed)
                .count(),
            0
        );
        // With all in use, room is made all the same.
        for index in 100_000..200_000 {
            assert!(buckets.take(spread(index), later).allowed);
        }
        assert!(buckets.keys() <= 3_200, "{} keys", buckets.keys());
        assert!(
            buckets.forgotten() > 90_000,
            "{} forgotten",
            buckets.forgotten()
        );
    }

    #[test]
    fn a_flood_of_new_keys_does_not_let_off_who_is_far_over_the_limit() {
        let start = Instant::now();
        let buckets = Buckets::new(measure("10/m", 10), 320, start);
        let heavy = spread(1);
        while buckets.take(heavy, start).allowed {}
        // Each key of the flood has used one token and goes before the one that has used ten.
        for index in 1_000..50_000 {
            buckets.take(spread(index), start);
        }
        assert!(!buckets.take(heavy, start).allowed);
    }

    #[test]
    fn full_buckets_are_forgotten_before_a_shard_grows() {
        let start = Instant::now();
        let buckets = Buckets::new(measure("1000/s", 1), 1_000_000, start);
        // Each key is idle after a millisecond; a thousand new ones a millisecond.
        for index in 0..300_000 {
            buckets.take(spread(index), start + Duration::from_micros(index));
        }
        assert!(
            buckets.keys() < 20_000,
            "{} keys for 1,000 in use",
            buckets.keys()
        );
        assert_eq!(buckets.forgotten(), 0);
    }

    #[test]
    fn tiny_bounds_hold_too() {
        for bound in [1, 2, 3, 5, 31, 33] {
            let start = Instant::now();
            let buckets = Buckets::new(measure("1/s", 1), bound, start);
            for index in 0..1_000 {
                buckets.take(spread(index), start);
            }
            assert!(
                buckets.keys() <= bound,
                "{} keys of {bound}",
                buckets.keys()
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_million_keys_fit_in_96_mib() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages = statm.split(' ').nth(1).unwrap();
            pages.parse::<usize>().unwrap() * 4096
        };
        let start = Instant::now();
        let before = resident();
        let buckets = Buckets::new(measure("1/h", 1), 2_000_000, start);
        for index in 0..1_000_000 {
            buckets.take(spread(index), start);
        }
        let grown = resident().saturating_sub(before);
        assert_eq!(buckets.keys(), 1_000_000);
        assert!(grown < 96 << 20, "{} MiB", grown >> 20);
        assert!(
            grown > 16 << 20,
            "{} MiB cannot hold a million keys: not measured",
            grown >> 20
        );
    }
}
