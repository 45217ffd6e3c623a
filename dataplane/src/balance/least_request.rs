//! Least request: the endpoint with the fewest exchanges in flight.
//!
//! Up to [`SCAN`] endpoints are all looked at, which is exact. Beyond that the less loaded of two random ones is taken
//! ("the power of two choices"): nearly as even, at a cost that does not grow, and without the herd that runs to the one
//! best endpoint when many proxies see the same numbers. The two are always different ones: drawn with replacement, one
//! pick in N would be blind, a quarter of them with two endpoints.
//!
//! Slow start: an endpoint that is warming up takes part in a draw only as often as its weight says. Scaling its load
//! instead would starve it where the load is low, since an idle old endpoint would always look better than an idle new
//! one. Weights count in relation to each other, so a service whose endpoints are all new is balanced as usual.

use std::cmp::Ordering;
use std::sync::Arc;

use super::group::Aside;
use super::{Among, Ask, Dice, Group, Picker};
use crate::endpoint::Endpoint;

/// Up to so many endpoints all are looked at. More would cost more than the second choice misses.
pub(crate) const SCAN: usize = 8;

/// Draws for two that are fit before all are looked at. With half of them fit it fails once in some thousand picks.
const DRAWS: usize = 16;

/// The policy over one group.
#[derive(Debug)]
pub(super) struct LeastRequest {
    group: Group,
}

impl LeastRequest {
    pub(super) fn new(group: Group) -> Self {
        Self { group }
    }

    /// The less loaded of two different random endpoints that are fit; `None` when two were not found quickly.
    fn of_two(&self, ask: &Ask<'_>, among: Among, dice: &mut Dice) -> Option<&Arc<Endpoint>> {
        let endpoints = &self.group.endpoints;
        let mut first: Option<&Arc<Endpoint>> = None;
        for _ in 0..DRAWS {
            let drawn = &endpoints[dice.below(endpoints.len())];
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
        if self.group.len() > SCAN
            && let Some(endpoint) = self.of_two(ask, among, &mut dice)
        {
            return Some(endpoint);
        }
        self.of_all(ask, among, &mut dice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

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
        super::super::dice::mix(n as u64 + 1)
    }
}
