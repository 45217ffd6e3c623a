//! Tiers and zones: how much of a service's load goes to which part of its endpoints, before a policy chooses within it.
//!
//! **Tiers** are endpoints of the same priority (SRV); a lower number comes first. A tier is good for the part of it that
//! is well, times `overprovisioning` (1.4): it takes all load until less than five sevenths of it are well, and then
//! gives the next tier what it cannot take, a little at a time. It gives at once and takes back late: only when it has
//! been better for `hold` (30 s), and then over the time of a slow start. A tier that flaps so moves nothing back and
//! forth. What is held back is not held back when nobody else can take it.
//!
//! **Zones** divide a tier into our own zone and the rest. Every zone is assumed to have as many callers as any other, so
//! ours may use 1/Z of the tier's capacity. Has the zone that much, it takes everything; has it less (fewer endpoints, or
//! some of them out or still warming up), it takes that part and the others the rest, as smoothly as capacity goes. Load
//! that stays at home can so never crush a zone that is too small for it.
//!
//! **Probes**: an ejected endpoint returns by one exchange that goes well, and a part that has no share gets none. While
//! somebody is ejected, each look finds one whose time is over and sends it the next exchange, whatever its part's share.
//!
//! All that is computed when an endpoint's state changes, and while one is ejected or warms up or a tier is held back ten
//! times a second, by the pick that comes first; every other pick compares one number.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::dice::mix;
use super::{Among, Ask, Group, Picker, Policy, picker};
use crate::endpoint::window::stamp;
use crate::endpoint::{Endpoint, FULL_WEIGHT};

/// All of a service's load.
const WHOLE: u32 = 1 << 16;

/// Between two looks while something changes with time.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// When load moves between tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// In thousandths.
    pub overprovisioning: u32,
    /// How long a tier must have been better before it gets more.
    pub hold: Duration,
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            overprovisioning: 1_400,
            hold: Duration::from_secs(30),
        }
    }
}

/// The parts of a membership.
#[derive(Debug)]
pub(super) struct Tiers {
    /// In order of preference: by priority, our own zone before the others.
    layers: Vec<Layer>,
    /// How many tiers there are, and what they are called.
    priorities: Vec<u16>,
    failover: Failover,
    slow_start: Duration,
    /// Whether no tier has half of its endpoints.
    panicking: AtomicBool,
    /// The stamp from which on shares are to be computed anew: 0 for now.
    due: AtomicU64,
    /// The place among all endpoints, from 1, of one that waits for its probe; 0 when there is none.
    probe: AtomicUsize,
    /// What each tier is granted. Locked by the one pick that computes shares; another that finds it locked goes on with the
    /// shares as they were.
    grants: Mutex<Vec<Grant>>,
}

/// One part: a tier, or our own zone in a tier, or the rest of it.
#[derive(Debug)]
struct Layer {
    tier: usize,
    is_local: bool,
    picker: Box<dyn Picker>,
    endpoints: Vec<Arc<Endpoint>>,
    weights: Vec<u64>,
    /// The end of its part of the load, out of [`WHOLE`]. It begins where the part before it ends.
    until: AtomicU32,
}

/// What a tier is given, at most, out of [`WHOLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    share: u32,
    /// Since when it could take more.
    better: Option<Instant>,
    /// When that was computed.
    at: Option<Instant>,
}

impl Grant {
    /// What the only tier of a membership has.
    pub(super) const ALL: Self = Self::of(WHOLE);

    const fn of(share: u32) -> Self {
        Self {
            share,
            better: None,
            at: None,
        }
    }
}

impl Tiers {
    /// Divides endpoints by priority and zone. None when that makes one part only.
    pub(super) fn new(
        policy: &Policy,
        endpoints: &[Arc<Endpoint>],
        seed: u64,
        before: &[(u16, Grant)],
    ) -> Option<Self> {
        let mut parts: BTreeMap<(u16, bool), Vec<Arc<Endpoint>>> = BTreeMap::new();
        for endpoint in endpoints {
            let place = endpoint.place();
            let is_foreign = policy.zone.is_none() || place.zone != policy.zone;
            let part = parts.entry((place.priority, is_foreign)).or_default();
            part.push(Arc::clone(endpoint));
        }
        if parts.len() < 2 {
            return None;
        }
        let mut priorities: Vec<u16> = parts.keys().map(|part| part.0).collect();
        priorities.dedup();
        let layers = parts
            .into_iter()
            .map(|((priority, is_foreign), endpoints)| {
                let group = Group::new(endpoints.clone().into(), policy.slow_start);
                Layer {
                    tier: priorities.partition_point(|&other| other < priority),
                    is_local: !is_foreign,
                    weights: endpoints
                        .iter()
                        .map(|endpoint| u64::from(endpoint.place().weight.max(1)))
                        .collect(),
                    endpoints,
                    picker: picker(policy.choice, group, mix(seed ^ u64::from(priority))),
                    until: AtomicU32::new(0),
                }
            });
        Some(Self {
            layers: layers.collect(),
            failover: policy.failover,
            slow_start: policy.slow_start,
            panicking: AtomicBool::new(false),
            due: AtomicU64::new(0),
            probe: AtomicUsize::new(0),
            grants: Mutex::new(carried(&priorities, before)),
            priorities,
        })
    }

    /// What the next membership begins with.
    pub(super) fn grants(&self) -> Vec<(u16, Grant)> {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let priorities = self.priorities.iter().copied();
        priorities.zip(grants.iter().copied()).collect()
    }

    /// Keeps the next membership from being made, for as long as this is held. Picks go on.
    #[cfg(test)]
    pub(super) fn hold(&self) -> std::sync::MutexGuard<'_, impl Sized> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An endpoint's state changed.
    pub(super) fn recount(&self) {
        let panicking = (0..self.priorities.len()).all(|tier| {
            let endpoints = || self.of(tier).flat_map(|layer| &layer.endpoints);
            2 * endpoints().filter(|e| !e.is_out()).count() < endpoints().count()
        });
        self.panicking.store(panicking, Relaxed);
        self.due.store(0, Relaxed);
    }

    pub(super) fn is_panicking(&self) -> bool {
        self.panicking.load(Relaxed)
    }

    /// The endpoint for an exchange: in the part that the draw says, in the others when there is none.
    pub(super) fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        if stamp(ask.now) >= self.due.load(Relaxed) {
            self.look(ask.now);
        }
        if self.probe.load(Relaxed) != 0
            && let Some(place) = self.probe.swap(0, Relaxed).checked_sub(1)
            && let Some(endpoint) = self.all().nth(place).filter(|e| among.fits(e, ask))
        {
            return Some(endpoint);
        }
        // A key is always drawn alike, so that it changes parts only when shares do.
        let draw = mix(ask.key.unwrap_or(ask.random) ^ 0xa076_1d64_78bd_642f) >> 48;
        let drawn = self
            .layers
            .iter()
            .position(|layer| draw < u64::from(layer.until.load(Relaxed)));
        let drawn = drawn.map(|index| &self.layers[index]);
        drawn
            .into_iter()
            .chain(&self.layers)
            .find_map(|layer| layer.picker.pick(ask, among))
    }

    /// Computes the shares anew.
    fn look(&self, now: Instant) {
        let mut grants = match self.grants.try_lock() {
            Ok(grants) => grants,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // From here on a change of state asks for another look, which must not be lost.
        self.due.store(u64::MAX, Relaxed);
        let targets: Vec<u32> = (0..self.priorities.len())
            .map(|tier| self.target(tier))
            .collect();
        let mut is_settled = grant(
            &mut grants,
            &targets,
            self.failover.hold,
            self.slow_start,
            now,
        );
        let mut begin = 0;
        for (tier, load) in loads(&grants).into_iter().enumerate() {
            for layer in self.of(tier) {
                layer.until.store(begin + load, Relaxed);
            }
            if let Some(local) = self.of(tier).find(|layer| layer.is_local)
                && self.of(tier).count() > 1
            {
                let (share, is_warm) = self.local_share(tier, now);
                is_settled &= is_warm;
                let part = u64::from(load) * u64::from(share) / u64::from(WHOLE);
                local.until.store(begin + part as u32, Relaxed);
            }
            begin += load;
        }
        let waits = |e: &Arc<Endpoint>| e.is_ejected() && e.is_available(now);
        let place = self.all().position(waits).map_or(0, |place| place + 1);
        self.probe.store(place, Relaxed);
        is_settled &= !self.all().any(|endpoint| endpoint.is_ejected());
        if !is_settled {
            self.due.fetch_min(stamp(now + LOOK_AGAIN), Relaxed);
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.layers.iter().flat_map(|layer| &layer.endpoints)
    }

    fn of(&self, tier: usize) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |layer| layer.tier == tier)
    }

    /// What a tier is good for.
    fn target(&self, tier: usize) -> u32 {
        let (mut well, mut all) = (0, 0);
        for layer in self.of(tier) {
            for (endpoint, weight) in layer.endpoints.iter().zip(&layer.weights) {
                all += weight;
                well += if endpoint.is_out() { 0 } else { *weight };
            }
        }
        let target =
            u128::from(WHOLE) * u128::from(well) * u128::from(self.failover.overprovisioning)
                / (u128::from(all.max(1)) * 1_000);
        target.min(u128::from(WHOLE)) as u32
    }

    /// Which part of a tier's load our own zone takes, and whether that stays so while no endpoint changes its state.
    fn local_share(&self, tier: usize, now: Instant) -> (u32, bool) {
        let (mut local, mut all, mut is_warm) = (0, 0, true);
        let mut zones = Vec::new();
        for layer in self.of(tier) {
            for (endpoint, weight) in layer.endpoints.iter().zip(&layer.weights) {
                zones.push(endpoint.place().zone.clone());
                if endpoint.is_out() {
                    continue;
                }
                let warmth = endpoint.warmth(now, self.slow_start);
                is_warm &= warmth == FULL_WEIGHT;
                let capacity = u128::from(weight * u64::from(warmth));
                all += capacity;
                local += if layer.is_local { capacity } else { 0 };
            }
        }
        zones.sort_unstable();
        zones.dedup();
        let share = u128::from(WHOLE) * local * zones.len() as u128 / all.max(1);
        (share.min(u128::from(WHOLE)) as u32, is_warm)
    }
}

/// The grants of tiers as the membership before left them. A tier that was not there waits like one that was down; where
/// nothing was before, everybody begins with what he is good for.
fn carried(priorities: &[u16], before: &[(u16, Grant)]) -> Vec<Grant> {
    if before.is_empty() {
        return Vec::new();
    }
    let of = |priority: u16| before.iter().find(|(other, _)| *other == priority);
    let grants = priorities.iter().map(|&priority| match of(priority) {
        Some((_, grant)) => *grant,
        None => Grant::of(0),
    });
    grants.collect()
}

/// Moves grants towards what each tier is good for: down at once, up late and slowly. Says whether all are there.
fn grant(
    grants: &mut Vec<Grant>,
    targets: &[u32],
    hold: Duration,
    rise: Duration,
    now: Instant,
) -> bool {
    if grants.len() != targets.len() {
        *grants = targets.iter().map(|&share| Grant::of(share)).collect();
    }
    for (grant, &target) in grants.iter_mut().zip(targets) {
        let last = grant.at.replace(now).unwrap_or(now);
        if target <= grant.share {
            grant.share = target;
            grant.better = None;
            continue;
        }
        let better = now.saturating_duration_since(*grant.better.get_or_insert(now));
        if let Some(rising) = better.checked_sub(hold) {
            let passed = rising.min(now.saturating_duration_since(last));
            let part = passed.as_secs_f64() / rise.as_secs_f64().max(f64::MIN_POSITIVE);
            let step = (f64::from(WHOLE) * part).min(f64::from(WHOLE)) as u32;
            grant.share = (grant.share + step).min(target);
        }
    }
    // Nobody waits while the others cannot take everything.
    let granted: u32 = grants.iter().map(|grant| grant.share).sum();
    let mut missing = WHOLE.saturating_sub(granted);
    for (grant, &target) in grants.iter_mut().zip(targets) {
        let lift = missing.min(target - grant.share);
        grant.share += lift;
        missing -= lift;
    }
    grants
        .iter()
        .zip(targets)
        .all(|(grant, &target)| grant.share == target)
}

/// What each tier takes: the first all it may, the next ones what is left. All together take everything.
fn loads(grants: &[Grant]) -> Vec<u32> {
    let mut left = WHOLE;
    let mut loads: Vec<u32> = grants
        .iter()
        .map(|grant| {
            let load = grant.share.min(left);
            left -= load;
            load
        })
        .collect();
    let taken = WHOLE - left;
    if left == 0 {
        return loads;
    }
    if taken == 0 {
        // Nobody is well: the first tier is as good as any.
        loads[0] = WHOLE;
        return loads;
    }
    for load in &mut loads {
        *load = (u64::from(*load) * u64::from(WHOLE) / u64::from(taken)) as u32;
    }
    // What rounding has lost goes to the last that takes any.
    let lost = WHOLE - loads.iter().sum::<u32>();
    if let Some(last) = loads.iter_mut().rev().find(|load| **load > 0) {
        *last += lost;
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::super::EndpointSet;
    use super::super::testing::*;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The share of each tier of a set, in per cent.
    fn shares(set: &EndpointSet, now: Instant) -> Vec<f64> {
        let counts = tally(set, 20_000, &[], now);
        let mut shares = vec![0.0; 3];
        for (endpoint, count) in set.endpoints().iter().zip(counts) {
            shares[usize::from(endpoint.place().priority)] += count as f64 / 200.0;
        }
        shares
    }

    fn assert_shares(set: &EndpointSet, now: Instant, expected: [f64; 3], what: &str) {
        let found = shares(set, now);
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1.5,
                "{what}: {found} %, not {expected} %"
            );
        }
    }

    fn down(set: &EndpointSet, count: usize, now: Instant) {
        for endpoint in &set.endpoints()[..count] {
            endpoint.eject(now + 1_000 * SECOND);
        }
        set.recount();
    }

    fn up(set: &EndpointSet, count: usize, now: Instant) {
        for endpoint in &set.endpoints()[..count] {
            endpoint.recover(now);
        }
        set.recount();
    }

    #[test]
    fn a_tier_takes_all_until_less_than_five_sevenths_of_it_are_well() {
        for policy in [
            "least_request",
            "round_robin",
            "random",
            "least_response_time",
        ] {
            let now = now();
            for (out, expected) in [
                (0, 100.0),
                (1, 100.0),
                (2, 100.0),
                (3, 98.0),
                (4, 84.0),
                (7, 42.0),
                (10, 0.0),
            ] {
                let set = tiers(policy, &[10, 4]);
                down(&set, out, now);
                let what = format!("{policy}, {out} of 10 out");
                assert_shares(&set, now, [expected, 100.0 - expected, 0.0], &what);
            }
        }
    }

    #[test]
    fn a_key_changes_its_tier_only_when_it_must() {
        let set = tiers("maglev", &[10, 5]);
        let now = now();
        let keys = keys(5_000);
        let tier = |key| {
            set.endpoints()[position(&set, &keyed(now, key, 0))]
                .place()
                .priority
        };
        assert!(keys.iter().all(|&key| tier(key) == 0));
        let mut moved = vec![false; keys.len()];
        for out in 1..=10 {
            down(&set, out, now);
            for (moved, &key) in moved.iter_mut().zip(&keys) {
                let is_moved = tier(key) == 1;
                assert!(is_moved || !*moved, "none goes back while it gets worse");
                *moved = is_moved;
            }
        }
        assert!(moved.iter().all(|&moved| moved));
    }

    #[test]
    fn load_returns_after_thirty_seconds_and_then_slowly() {
        let set = tiers("least_request", &[4, 4]);
        let start = now();
        down(&set, 4, start);
        assert_shares(&set, start, [0.0, 100.0, 0.0], "down");
        up(&set, 4, start);
        for (second, expected) in [
            (0, 0.0),
            (10, 0.0),
            (29, 0.0),
            (30, 0.0),
            (35, 50.0),
            (38, 80.0),
            (40, 100.0),
            (99, 100.0),
        ] {
            let now = start + second * SECOND;
            assert_shares(
                &set,
                now,
                [expected, 100.0 - expected, 0.0],
                &format!("{second} s"),
            );
        }
    }

    #[test]
    fn a_tier_that_flaps_moves_nothing_back_and_forth() {
        let set = tiers("least_request", &[2, 2]);
        let start = now();
        for flap in 0..10 {
            let now = start + 20 * flap * SECOND;
            down(&set, 2, now);
            assert_shares(&set, now, [0.0, 100.0, 0.0], "down");
            up(&set, 2, now + 5 * SECOND);
            assert_shares(
                &set,
                now + 15 * SECOND,
                [0.0, 100.0, 0.0],
                "up, but not for long",
            );
        }
    }

    #[test]
    fn nobody_waits_when_the_others_cannot_take_it() {
        let set = tiers("least_request", &[2, 2]);
        let now = now();
        down(&set, 2, now);
        assert_shares(&set, now, [0.0, 100.0, 0.0], "the first is down");
        up(&set, 2, now);
        set.endpoints()[2..]
            .iter()
            .for_each(|e| e.eject(now + 60 * SECOND));
        set.recount();
        assert_shares(&set, now + SECOND, [100.0, 0.0, 0.0], "now the second");
    }

    #[test]
    fn when_all_tiers_are_weak_they_share_in_proportion() {
        let set = tiers("least_request", &[10, 10]);
        let now = now();
        // 3 of 10 and 2 of 10: 42 and 28 per cent.
        set.endpoints()[..7]
            .iter()
            .for_each(|e| e.eject(now + 60 * SECOND));
        set.endpoints()[10..18]
            .iter()
            .for_each(|e| e.eject(now + 60 * SECOND));
        set.recount();
        assert_shares(&set, now, [60.0, 40.0, 0.0], "weak");
        assert!(set.is_panicking());
        set.endpoints()
            .iter()
            .for_each(|e| e.eject(now + 60 * SECOND));
        set.recount();
        assert_shares(&set, now, [100.0, 0.0, 0.0], "all are out");
    }

    #[test]
    fn a_dead_first_tier_is_no_reason_to_panic() {
        let set = tiers("least_request", &[8, 2]);
        let now = now();
        down(&set, 8, now);
        assert!(!set.is_panicking());
        let counts = tally(&set, 1_000, &[], now);
        assert_eq!(counts[..8], [0; 8]);
        assert_eq!(set.panic_picks(), 0);
    }

    #[test]
    fn who_is_ejected_gets_its_one_probe_although_its_tier_has_no_share() {
        let set = tiers("round_robin", &[2, 2]);
        let start = now();
        for endpoint in &set.endpoints()[..2] {
            endpoint.eject(start + 5 * SECOND);
        }
        set.recount();
        let begin = |now| -> Vec<_> {
            let flights = (0..100).map(|n| set.begin(&ask(now, n)).unwrap());
            flights
                .filter(crate::endpoint::InFlight::is_probe)
                .collect()
        };
        assert!(begin(start + 4 * SECOND).is_empty(), "its time is not over");
        let first = begin(start + 6 * SECOND);
        let second = begin(start + 7 * SECOND);
        assert_eq!((first.len(), second.len()), (1, 1), "one for each look");
        assert_ne!(first[0].endpoint().id, second[0].endpoint().id);
        assert!(
            begin(start + 8 * SECOND).is_empty(),
            "both are on their way"
        );
    }

    #[test]
    fn a_retry_prefers_what_was_not_tried_in_a_lower_tier() {
        let set = tiers("least_request", &[2, 1]);
        let tried: Vec<_> = set.endpoints()[..2].iter().map(|e| e.id).collect();
        assert_eq!(tally(&set, 100, &tried, now()), [0, 0, 100]);
        let tried: Vec<_> = set.endpoints().iter().map(|e| e.id).collect();
        assert_eq!(tally(&set, 100, &tried, now())[2], 0, "all were tried");
    }

    #[test]
    fn the_next_membership_goes_on_where_this_one_was() {
        let set = tiers("least_request", &[2, 2]);
        let start = now();
        down(&set, 2, start);
        assert_shares(&set, start, [0.0, 100.0, 0.0], "down");
        up(&set, 2, start);
        assert_shares(&set, start, [0.0, 100.0, 0.0], "held");
        let next = set.next(&policy("least_request"), set.endpoints().to_vec(), 3);
        assert_shares(&next, start + 5 * SECOND, [0.0, 100.0, 0.0], "still held");
        assert_shares(&next, start + 35 * SECOND, [50.0, 50.0, 0.0], "rising");
        // A tier that appears waits like one that was down.
        let lower = set.next(&policy("least_request"), set.endpoints()[2..].to_vec(), 3);
        assert_shares(&lower, start, [0.0, 100.0, 0.0], "without the first");
        let both = lower.next(&policy("least_request"), set.endpoints().to_vec(), 3);
        assert_shares(
            &both,
            start + 40 * SECOND,
            [0.0, 100.0, 0.0],
            "it came just now",
        );
        assert_shares(&both, start + 90 * SECOND, [100.0, 0.0, 0.0], "and stayed");
    }

    #[test]
    fn a_zone_takes_what_its_capacity_is_good_for() {
        // Ours, and two others.
        for (sizes, expected) in [
            ([3, 3, 3], 100.0),
            ([5, 3, 1], 100.0),
            ([1, 1, 1], 100.0),
            ([2, 3, 4], 66.7),
            ([1, 9, 8], 16.7),
        ] {
            let set = zones("least_request", &sizes, Some("0"));
            let counts = tally(&set, 30_000, &[], now());
            let local = counts[..sizes[0]].iter().sum::<usize>() as f64 / 300.0;
            assert!((local - expected).abs() < 1.5, "{sizes:?}: {local} %");
            super::super::testing::assert_shares(
                &counts[sizes[0]..],
                &vec![1; sizes[1] + sizes[2]],
            );
        }
    }

    #[test]
    fn two_endpoints_are_enough_for_zones() {
        let set = zones("round_robin", &[1, 1], Some("0"));
        assert_eq!(tally(&set, 1_000, &[], now()), [1_000, 0]);
        set.endpoints()[0].eject(now() + 60 * SECOND);
        set.recount();
        assert_eq!(tally(&set, 1_000, &[], now()), [0, 1_000]);
    }

    #[test]
    fn as_a_zone_weakens_it_spills_smoothly_and_takes_back_as_it_warms_up() {
        let set = zones("least_request", &[4, 4], Some("0"));
        let start = now();
        let local = |now| tally(&set, 20_000, &[], now)[..4].iter().sum::<usize>() as f64 / 200.0;
        // n of n + 4, twice.
        for (out, expected) in [(0, 100.0), (1, 85.7), (2, 66.7), (3, 40.0), (4, 0.0)] {
            down(&set, out, start);
            assert!(
                (local(start) - expected).abs() < 1.5,
                "{out} out: {}",
                local(start)
            );
        }
        up(&set, 4, start);
        // All four at a tenth: 0.4 of 4.4, twice.
        assert!((local(start) - 18.0).abs() < 1.5, "{}", local(start));
        assert!((local(start + 5 * SECOND) - 66.7).abs() < 1.5);
        assert!((local(start + 10 * SECOND) - 100.0).abs() < 0.1);
    }

    #[test]
    fn without_a_zone_of_our_own_all_are_alike() {
        for zone in [None, Some("elsewhere")] {
            let set = zones("least_request", &[2, 3], zone);
            super::super::testing::assert_shares(&tally(&set, 20_000, &[], now()), &[1; 5]);
        }
    }
}
