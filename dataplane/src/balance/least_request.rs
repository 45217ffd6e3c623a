//! Least request: the endpoint with the fewest exchanges in flight.
//!
//! Up to [`SCAN`] endpoints are all looked at, which is exact. Beyond that the less loaded of two random ones is taken
//! ("the power of two choices"): nearly as even, at a cost that does not grow, and without the herd that runs to the one
//! best endpoint when many proxies see the same numbers. The two are always different ones: drawn with replacement, one
//! pick in N would be blind, a quarter of them with two endpoints.
//!
//! Where there are many of the same weight, most are idle, and one idle endpoint is as good as another, but not as cheap: a
//! connection that was used a moment ago is in the caches, one of a thousand that are used in turn is in none (on loopback,
//! a fifth of a request). So an idle one is looked for among [`WINDOW`] neighbours first: nobody has fewer exchanges in
//! flight. Only when two pairs of them were busy are two drawn from all. The window goes round once a second, from
//! another place each time, over an order that each membership shuffles anew: over some seconds all are alike, whatever
//! beat the exchanges come in. In panic there is none: who fails at once is always idle, and would be looked for.
//!
//! Slow start: an endpoint that is warming up takes part in a draw only as often as its weight says. Scaling its load
//! instead would starve it where the load is low, since an idle old endpoint would always look better than an idle new
//! one. Weights count in relation to each other, so a service whose endpoints are all new is balanced as usual.

use std::cmp::Ordering;
use std::sync::Arc;

use super::group::Aside;
use super::{Among, Ask, Dice, Group, Picker};
use crate::endpoint::Endpoint;
use crate::endpoint::window::stamp;

/// Up to so many endpoints all are looked at. More would cost more than the second choice misses.
pub(crate) const SCAN: usize = 8;

/// Draws for two that are fit before all are looked at. With half of them fit it fails once in some thousand picks.
const DRAWS: usize = 16;

/// Among how many an idle one is looked for first, where there are more.
const WINDOW: usize = 128;

/// How many pairs of the window are looked at.
const LOOKS: usize = 2;

/// The time in which the window goes round, as a power of two of milliseconds: about a second.
const ROUND_BITS: u32 = 10;

/// The policy over one group.
#[derive(Debug)]
pub(super) struct LeastRequest {
    group: Group,
    seed: u64,
}

impl LeastRequest {
    /// `seed` says in which order the window goes over the group, and from where.
    pub(super) fn new(mut group: Group, seed: u64) -> Self {
        if group.len() > WINDOW && !group.is_weighted() {
            group.shuffle(&mut Dice::new(seed));
        }
        Self { group, seed }
    }

    /// An idle one of those that are used these days; `None` when none was found quickly.
    fn of_window(&self, ask: &Ask<'_>, among: Among, dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        let length = self.group.len();
        let stamp = stamp(ask.now);
        let from = Dice::new(self.seed ^ (stamp >> ROUND_BITS)).below(length);
        let passed = stamp as usize & ((1 << ROUND_BITS) - 1);
        let start = from + ((passed * length) >> ROUND_BITS);
        let window = |dice: &mut Dice| (start + dice.below(WINDOW)) % length;
        (0..LOOKS).find_map(|_| {
            self.of_two(ask, among, dice, window)
                .filter(|endpoint| endpoint.in_flight() == 0)
        })
    }

    /// The less loaded of two different endpoints that `draw` names and that are fit; `None` when two were not found quickly.
    fn of_two(
        &self,
        ask: &Ask<'_>,
        among: Among,
        dice: &mut Dice,
        draw: impl Fn(&mut Dice) -> usize,
    ) -> Option<&Arc<Endpoint>> {
        let endpoints = &self.group.endpoints;
        let mut first: Option<&Arc<Endpoint>> = None;
        for _ in 0..DRAWS {
            let drawn = &endpoints[draw(dice)];
            match first {
                Some(first) if Arc::ptr_eq(first, drawn) => {}
                _ if !among.fits(drawn, ask) => {}
                None => first = Some(drawn),
                Some(first) => return Some(self.better(first, drawn, ask, dice)),
            }
        }
        None
    }

    /// The least loaded of all that are fit, ties at random.
    fn of_all(&self, ask: &Ask<'_>, among: Among, dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        let fit = || self.group.endpoints.iter().filter(|e| among.fits(e, ask));
        let full = fit()
            .map(|endpoint| self.group.warmth(endpoint, ask))
            .max()?;
        let mut best: Option<(u32, &Arc<Endpoint>)> = None;
        // Other cores change weights while we look; should everything be passed over for that, anything fit will do.
        let mut spare = None;
        let mut ties = 1;
        for endpoint in fit() {
            let warmth = self.group.warmth(endpoint, ask);
            if warmth < full && !dice.chance(warmth, full) {
                spare = Some(endpoint);
                continue;
            }
            let load = endpoint.in_flight();
            match best {
                Some((least, _)) if load > least => {}
                Some((least, _)) if load == least => {
                    // The k-th of equals replaces the one held with probability 1/k: each ends up as likely.
                    ties += 1;
                    if dice.below(ties) == 0 {
                        best = Some((load, endpoint));
                    }
                }
                _ => {
                    ties = 1;
                    best = Some((load, endpoint));
                }
            }
        }
        best.map(|(_, endpoint)| endpoint).or(spare)
    }

    /// The one to take of two.
    fn better<'a>(
        &self,
        a: &'a Arc<Endpoint>,
        b: &'a Arc<Endpoint>,
        ask: &Ask<'_>,
        dice: &mut Dice,
    ) -> &'a Arc<Endpoint> {
        match self.group.aside(a, b, ask, dice) {
            Some(Aside::First) => return b,
            Some(Aside::Second) => return a,
            None => {}
        }
        match a.in_flight().cmp(&b.in_flight()) {
            Ordering::Less => a,
            Ordering::Greater => b,
            // Drawn in random order, but the first came from a longer search where few are fit: toss.
            Ordering::Equal if dice.chance(1, 2) => a,
            Ordering::Equal => b,
        }
    }

    /// The same where some weigh more than others: of two that are drawn by weight, or of all, the one with the least
    /// load for its weight. Idle ones tie, however light: then the weight says how likely each is.
    fn weighted(&self, ask: &Ask<'_>, among: Among, dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        let group = &self.group;
        if group.len() > SCAN {
            return match group.two(ask, among, dice) {
                (Some(a), Some(b)) => {
                    let (first, second) = (&group.endpoints[a], &group.endpoints[b]);
                    let is_first_worse = match group.aside(first, second, ask, dice) {
                        Some(aside) => aside == Aside::First,
                        None => self.by_load(b, a) == Ordering::Less,
                    };
                    Some(if is_first_worse { second } else { first })
                }
                (first, _) => first.map(|index| &group.endpoints[index]),
            };
        }
        let mut best: Option<usize> = None;
        let mut ties = 0;
        for (index, endpoint) in group.endpoints.iter().enumerate() {
            if !among.fits(endpoint, ask) || !group.takes_part(endpoint, ask, among, dice) {
                continue;
            }
            let order = best.map_or(Ordering::Less, |best| self.by_load(index, best));
            match order {
                Ordering::Greater => continue,
                Ordering::Less => ties = group.weight(index),
                Ordering::Equal => {
                    ties += group.weight(index);
                    if dice.below(ties as usize) as u64 >= group.weight(index) {
                        continue;
                    }
                }
            }
            best = Some(index);
        }
        let index = best.or_else(|| group.one(ask, among, dice))?;
        Some(&group.endpoints[index])
    }

    /// Compares what two have to do for their weight.
    fn by_load(&self, a: usize, b: usize) -> Ordering {
        let load = |index: usize| u64::from(self.group.endpoints[index].in_flight());
        (load(a) * self.group.weight(b)).cmp(&(load(b) * self.group.weight(a)))
    }
}

impl Picker for LeastRequest {
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        if let [only] = &*self.group.endpoints {
            return among.fits(only, ask).then_some(only);
        }
        let mut dice = Dice::new(ask.random);
        if self.group.is_weighted() {
            return self.weighted(ask, among, &mut dice);
        }
        let length = self.group.len();
        if length > WINDOW
            && among.available
            && let Some(endpoint) = self.of_window(ask, among, &mut dice)
        {
            return Some(endpoint);
        }
        if length > SCAN
            && let Some(endpoint) = self.of_two(ask, among, &mut dice, |dice| dice.below(length))
        {
            return Some(endpoint);
        }
        self.of_all(ask, among, &mut dice)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, Instant};

    use super::super::testing::*;
    use super::super::{EndpointSet, dice::mix};
    use super::{ROUND_BITS, WINDOW, stamp};
    use crate::endpoint::InFlight;

    /// A moment, not long from now, at which a round of the window begins.
    fn round() -> Instant {
        let now = now();
        let whole = 1 << ROUND_BITS;
        now + Duration::from_millis(whole - stamp(now) % whole)
    }

    /// How often each is picked in so many rounds, as often in each of so many milliseconds.
    fn tally_rounds(set: &EndpointSet, rounds: u64, every: u64, times: usize) -> Vec<usize> {
        let mut counts = vec![0; set.endpoints().len()];
        let (begin, end) = (round(), rounds << ROUND_BITS);
        for millis in (0..end).step_by(usize::try_from(every).unwrap()) {
            let picked = tally(set, times, &[], begin + Duration::from_millis(millis));
            for (count, picked) in counts.iter_mut().zip(picked) {
                *count += picked;
            }
        }
        counts
    }

    /// Which are picked at one moment.
    fn picked(set: &EndpointSet, now: Instant) -> HashSet<usize> {
        let counts = tally(set, 20 * WINDOW, &[], now);
        (0..counts.len()).filter(|&n| counts[n] > 0).collect()
    }

    #[test]
    fn over_some_rounds_of_the_window_all_are_alike() {
        for size in [WINDOW + 1, 200, 1_000] {
            let counts = tally_rounds(&weighted("least_request", &vec![1; size]), 2, 1, 50);
            assert_shares(&counts, &vec![1; size]);
        }
        // Of ten thousand, each is in the window for 13 or 14 milliseconds of a round.
        let counts = tally_rounds(&weighted("least_request", &[1; 10_000]), 1, 1, 1_000);
        for count in counts {
            assert!((55..=150).contains(&count), "{count}, not 102");
        }
    }

    #[test]
    fn no_beat_of_exchanges_is_in_step_with_the_window() {
        // Bursts a second apart, once a round and twice a round: each burst meets windows that have nothing to do with those
        // before it, so that of a thousand endpoints each is met by an eighth of the bursts.
        for every in [1_000, 1 << ROUND_BITS, 1 << (ROUND_BITS - 1)] {
            let set = weighted("least_request", &[1; 1_000]);
            let bursts = 3_200;
            let rounds = (bursts * every) >> ROUND_BITS;
            let counts = tally_rounds(&set, rounds, every, WINDOW);
            let mean = counts.iter().sum::<usize>() as f64 / 1_000.0;
            for count in counts {
                let off = (count as f64 - mean).abs() / mean;
                // Six standard deviations, of which the draw within a burst is a half.
                assert!(off < 0.41, "{off}, every {every} ms");
            }
        }
    }

    #[test]
    fn no_more_than_the_window_is_used_at_a_time_while_one_of_it_is_idle() {
        let set = weighted("least_request", &[1; 1_000]);
        let now = round();
        let first = picked(&set, now);
        assert_eq!(first.len(), WINDOW);
        let soon = picked(&set, now + Duration::from_millis(10));
        let stay = first.intersection(&soon).count();
        assert!((110..=WINDOW).contains(&stay), "{stay} after 10 ms");
        // Without more than fit into it there is none.
        let all = weighted("least_request", &[1; WINDOW]);
        assert_eq!(picked(&all, now).len(), WINDOW);
    }

    #[test]
    fn memberships_do_not_go_over_it_in_the_same_order() {
        let sets = [1, 2].map(|seed| seeded("least_request", &[1; 1_000], seed));
        let now = now();
        let both = sets.map(|set| picked(&set, now));
        // 16 are expected where two windows of 128 in 1,000 have nothing to do with each other.
        assert!(both[0].intersection(&both[1]).count() < 40);
    }

    #[test]
    fn who_is_busy_is_not_waited_for_because_of_the_window() {
        let set = weighted("least_request", &[1; 1_000]);
        let mut rng = fastrand::Rng::with_seed(5);
        // All of the window is busy: the others are as likely as without one.
        let now = now();
        let _load: Vec<_> = picked(&set, now)
            .into_iter()
            .map(|index| set.endpoints()[index].begin())
            .collect();
        let busy = (0..10_000)
            .filter(|_| set.pick(&ask(now, rng.u64(..))).unwrap().in_flight() > 0)
            .count();
        // Two random ones are both busy in (128/1000)² of cases: 164, and five standard deviations are 64.
        assert!((100..=228).contains(&busy), "{busy}");
        // As many in flight as the benchmark has, each for as long as 64 others take to come.
        let set = weighted("least_request", &[1; 1_000]);
        let mut running = std::collections::VecDeque::new();
        let mut waited = 0;
        for n in 0..50_000 {
            let now = now + Duration::from_millis(n / 50);
            if running.len() == 64 {
                running.pop_front();
            }
            let exchange = set.begin(&ask(now, rng.u64(..))).unwrap();
            waited += usize::from(exchange.endpoint().in_flight() > 1);
            running.push_back(exchange);
        }
        // Two of all are both busy in (64/1000)² of cases, 0.4 %; here that is only asked where the window had none.
        assert!(waited < 100, "{waited} of 50,000");
    }

    #[test]
    fn what_is_out_or_tried_is_passed_over_in_the_window() {
        let set = weighted("least_request", &[1; 1_000]);
        let now = now();
        let window = picked(&set, now);
        let tried = *window.iter().next().unwrap();
        let counts = tally(&set, 10_000, &[set.endpoints()[tried].id], now);
        assert_eq!(counts[tried], 0);
        for &index in &window {
            set.endpoints()[index].eject(now + Duration::from_secs(60));
        }
        set.recount();
        let others = picked(&set, now);
        assert!(others.is_disjoint(&window), "all of it is out");
    }

    #[test]
    fn whoever_is_left_is_found_however_many_there_are() {
        for size in [WINDOW + 1, 200, 1_000] {
            let set = weighted("least_request", &vec![1; size]);
            let ids: Vec<_> = set.endpoints().iter().map(|e| e.id).collect();
            let now = now();
            let counts = tally(&set, 100, &ids[1..], now);
            assert_eq!(counts[0], 100, "all others were tried");
            let counts = tally(&set, 100, &ids, now);
            assert_eq!(counts.iter().sum::<usize>(), 100, "all were tried");
            let half = size / 2;
            for endpoint in &set.endpoints()[..half] {
                endpoint.eject(now + Duration::from_secs(60));
            }
            set.recount();
            let counts = tally(&set, 1_000, &ids[half + 1..], now);
            assert_eq!(counts[half], 1_000, "the others are out or were tried");
            for endpoint in &set.endpoints()[half..] {
                endpoint.eject(now + Duration::from_secs(60));
            }
            set.recount();
            // In panic all are used, and not those of the window before others.
            assert_shares(&tally(&set, 100 * size, &[], now), &vec![1; size]);
        }
    }

    #[test]
    fn one_that_was_out_is_probed_once() {
        let set = weighted("least_request", &[1; 1_000]);
        let begin = round();
        set.endpoints()[7].eject(begin);
        set.recount();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut probes = Vec::new();
        for millis in 1..1 << ROUND_BITS {
            let now = begin + Duration::from_millis(millis);
            // Ended before the next moment, all but the probe.
            let held: Vec<_> = (0..30)
                .map(|_| set.begin(&ask(now, rng.u64(..))).unwrap())
                .collect();
            probes.extend(held.into_iter().filter(InFlight::is_probe));
        }
        assert_eq!(probes.len(), 1, "in a round of the window");
    }

    #[test]
    fn a_new_one_starts_slowly_in_the_window_too() {
        let policy = long(r#"{"slow_start": "1h"}"#);
        let old = weighted("least_request", &[1; 1_000]);
        let set = old.next(&policy, old.endpoints().to_vec(), 9);
        for endpoint in &set.endpoints()[..10] {
            endpoint.warm(now());
        }
        let counts = tally_rounds(&set, 1, 1, 400);
        let new: usize = counts[..10].iter().sum();
        // Of 409,600 a hundredth would be theirs, of which they get a tenth, and a little where two new ones meet.
        assert!((320..=570).contains(&new), "{new}");
    }

    #[test]
    fn idle_ones_are_as_likely_as_their_weight_says() {
        for weights in [
            vec![5, 1, 1],
            vec![100, 1],
            vec![3, 3, 2, 7, 1, 1, 1, 1, 1, 20],
        ] {
            let set = weighted("least_request", &weights);
            assert_shares(&tally(&set, 100_000, &[], now()), &weights);
        }
    }

    #[test]
    fn a_load_counts_for_its_weight() {
        let set = weighted("least_request", &[4, 1]);
        let mut load: Vec<_> = (0..3).map(|_| set.endpoints()[0].begin()).collect();
        load.push(set.endpoints()[1].begin());
        // 3 of 4 is less than 1 of 1.
        assert_eq!(tally(&set, 1_000, &[], now()), [1_000, 0]);
        load.extend((0..2).map(|_| set.endpoints()[0].begin()));
        assert_eq!(tally(&set, 1_000, &[], now()), [0, 1_000]);
    }

    #[test]
    fn under_load_each_has_its_weights_part_in_flight() {
        for weights in [vec![5, 1, 1], (1..=20).collect::<Vec<u16>>()] {
            let set = weighted("least_request", &weights);
            let whole: usize = weights.iter().map(|&w| usize::from(w)).sum();
            let held: Vec<_> = (0..whole * 20)
                .map(|n| set.begin(&ask(now(), dice(n))).unwrap())
                .collect();
            for (endpoint, &weight) in set.endpoints().iter().zip(&weights) {
                let off = f64::from(endpoint.in_flight()) / (20.0 * f64::from(weight));
                assert!(
                    (0.8..1.2).contains(&off),
                    "{off} of its share at weight {weight}"
                );
            }
            drop(held);
        }
    }

    fn dice(n: usize) -> u64 {
        mix(n as u64 + 1)
    }
}
