//! The endpoints that a policy chooses among, with their weights, and the draws that policies have in common.

use std::sync::Arc;
use std::time::Duration;

use super::{Among, Ask, Dice};
use crate::endpoint::{Endpoint, FULL_WEIGHT, Family};

/// Draws for one that is fit before all are looked at. With half of them fit it fails once in some ten thousand picks.
const DRAWS: usize = 16;

/// Endpoints of one tier (and zone) of a membership. The weights are those of the moment when it was made: whoever changes
/// them makes a new set.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) endpoints: Arc<[Arc<Endpoint>]>,
    /// The sums of the weights up to each, itself included; none when all weigh the same, which is cheaper.
    sums: Option<Box<[u64]>>,
    /// How long a new or returned endpoint takes to reach its full share.
    slow_start: Duration,
}

impl Group {
    /// Of these endpoints, with the weights that discovery gave them. One without weight counts as the lightest possible:
    /// whether it belongs here at all is decided above.
    pub(super) fn new(endpoints: Arc<[Arc<Endpoint>]>, slow_start: Duration) -> Self {
        let weights: Vec<u64> = endpoints
            .iter()
            .map(|endpoint| u64::from(endpoint.place().weight.max(1)))
            .collect();
        let alike = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let sums = (!alike).then(|| {
            let mut sum = 0;
            weights
                .iter()
                .map(|weight| {
                    sum += weight;
                    sum
                })
                .collect()
        });
        Self {
            endpoints,
            sums,
            slow_start,
        }
    }

    /// Puts them into a random order. They must all weigh the same.
    pub(super) fn shuffle(&mut self, dice: &mut Dice) {
        debug_assert!(!self.is_weighted(), "weights stay where they are");
        let mut endpoints = self.endpoints.to_vec();
        for last in (1..endpoints.len()).rev() {
            endpoints.swap(last, dice.below(last + 1));
        }
        self.endpoints = endpoints.into();
    }

    /// The same with the families of their addresses taking turns.
    pub(super) fn in_turns(self) -> Self {
        let endpoints = self.endpoints.iter().cloned();
        let endpoints = Family::in_turns(endpoints, |endpoint| endpoint.address.ip());
        Self::new(endpoints.into(), self.slow_start)
    }

    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether some weigh more than others.
    pub(super) fn is_weighted(&self) -> bool {
        self.sums.is_some()
    }

    /// The weight of one; 1 when all weigh the same.
    pub(super) fn weight(&self, index: usize) -> u64 {
        match (&self.sums, index) {
            (None, _) => 1,
            (Some(sums), 0) => sums[0],
            (Some(sums), _) => sums[index] - sums[index - 1],
        }
    }

    /// The weight of one in relation to the mean.
    pub(super) fn part(&self, index: usize) -> f64 {
        match &self.sums {
            None => 1.0,
            Some(_) => self.weight(index) as f64 * self.len() as f64 / self.total() as f64,
        }
    }

    /// The weight of all.
    pub(super) fn total(&self) -> u64 {
        match &self.sums {
            None => self.len() as u64,
            Some(sums) => sums.last().copied().unwrap_or(0),
        }
    }

    /// How far one has warmed up, out of [`FULL_WEIGHT`].
    pub(super) fn warmth(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> u32 {
        endpoint.warmth(ask.now, self.slow_start)
    }

    /// How far the warmest has warmed up that is fit: what the others are held against, so that a group of new endpoints
    /// is balanced as usual.
    pub(super) fn fullest(&self, ask: &Ask<'_>, among: Among) -> u32 {
        let mut fullest = 1;
        for endpoint in self.endpoints.iter().filter(|e| among.fits(e, ask)) {
            fullest = fullest.max(self.warmth(endpoint, ask));
            if fullest == FULL_WEIGHT {
                break;
            }
        }
        fullest
    }

    /// Whether an endpoint takes part in this draw: always when it is warm, else as often as it has warmed up.
    pub(super) fn takes_part(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        among: Among,
        dice: &mut Dice,
    ) -> bool {
        let warmth = self.warmth(endpoint, ask);
        warmth == FULL_WEIGHT || {
            let fullest = self.fullest(ask, among);
            warmth >= fullest || dice.chance(warmth, fullest)
        }
    }

    /// Any of them, by weight, fit or not. There must be one.
    pub(super) fn draw(&self, dice: &mut Dice) -> usize {
        match &self.sums {
            None => dice.below(self.len()),
            Some(sums) => {
                let point = dice.below(self.total() as usize) as u64;
                sums.partition_point(|&sum| sum <= point)
            }
        }
    }

    /// One that is fit, by weight and warmth.
    pub(super) fn one(&self, ask: &Ask<'_>, among: Among, dice: &mut Dice) -> Option<usize> {
        if self.endpoints.is_empty() {
            return None;
        }
        for _ in 0..DRAWS {
            let drawn = self.draw(dice);
            let endpoint = &self.endpoints[drawn];
            if among.fits(endpoint, ask) && self.takes_part(endpoint, ask, among, dice) {
                return Some(drawn);
            }
        }
        self.searched(ask, among, None, dice)
    }

    /// Two different ones that are fit, by weight; fewer when they are not there.
    pub(super) fn two(
        &self,
        ask: &Ask<'_>,
        among: Among,
        dice: &mut Dice,
    ) -> (Option<usize>, Option<usize>) {
        if self.endpoints.is_empty() {
            return (None, None);
        }
        let mut first = None;
        for _ in 0..DRAWS {
            let drawn = self.draw(dice);
            if first == Some(drawn) || !among.fits(&self.endpoints[drawn], ask) {
                continue;
            }
            match first {
                None => first = Some(drawn),
                Some(_) => return (first, Some(drawn)),
            }
        }
        first = first.or_else(|| self.searched(ask, among, None, dice));
        let second = first.and_then(|_| self.searched(ask, among, first, dice));
        (first, second)
    }

    /// One of those that are fit, by weight and warmth, all looked at but for one.
    fn searched(
        &self,
        ask: &Ask<'_>,
        among: Among,
        except: Option<usize>,
        dice: &mut Dice,
    ) -> Option<usize> {
        let mut found = None;
        let mut sum = 0;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if except == Some(index) || !among.fits(endpoint, ask) {
                continue;
            }
            // The k-th replaces the one held with its share of what was seen so far: each ends up with its own.
            let weight = self.weight(index) * u64::from(self.warmth(endpoint, ask));
            sum += weight;
            if ((u128::from(dice.next()) * u128::from(sum)) >> 64) < u128::from(weight) {
                found = Some(index);
            }
        }
        found
    }

    /// Of two, the one that stands aside for the other because it is still warming up; none when both take part.
    pub(super) fn aside(
        &self,
        a: &Endpoint,
        b: &Endpoint,
        ask: &Ask<'_>,
        dice: &mut Dice,
    ) -> Option<Aside> {
        let (warmth_a, warmth_b) = (self.warmth(a, ask), self.warmth(b, ask));
        if warmth_a < warmth_b && !dice.chance(warmth_a, warmth_b) {
            Some(Aside::First)
        } else if warmth_b < warmth_a && !dice.chance(warmth_b, warmth_a) {
            Some(Aside::Second)
        } else {
            None
        }
    }
}

/// Which of two stands aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aside {
    First,
    Second,
}
