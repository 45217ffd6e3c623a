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

use std::sync::Arc;

use super::{Among, Ask, Dice, Picker};
use crate::endpoint::{Endpoint, FULL_WEIGHT};

/// Up to so many endpoints all are looked at. More would cost more than the second choice misses.
const SCAN: usize = 8;

/// Draws for two that are fit before all are looked at. With half of them fit it fails once in some thousand picks.
const DRAWS: usize = 16;

/// The policy over one membership.
#[derive(Debug)]
pub struct LeastRequest {
    endpoints: Arc<[Arc<Endpoint>]>,
}

impl LeastRequest {
    /// The policy over these endpoints.
    pub fn new(endpoints: Arc<[Arc<Endpoint>]>) -> Self {
        Self { endpoints }
    }

    /// The less loaded of two different random endpoints that are fit; `None` when two were not found quickly.
    fn of_two(
        &self,
        ask: &Ask<'_>,
        dice: &mut Dice,
        fit: impl Fn(&Endpoint) -> bool,
    ) -> Option<&Arc<Endpoint>> {
        let mut first: Option<&Arc<Endpoint>> = None;
        for _ in 0..DRAWS {
            let drawn = &self.endpoints[dice.below(self.endpoints.len())];
            match first {
                Some(first) if Arc::ptr_eq(first, drawn) => {}
                _ if !fit(drawn) => {}
                None => first = Some(drawn),
                Some(first) => return Some(better(first, drawn, ask, dice)),
            }
        }
        None
    }

    /// The least loaded of all that are fit, ties at random.
    fn of_all(
        &self,
        ask: &Ask<'_>,
        dice: &mut Dice,
        fit: impl Fn(&Endpoint) -> bool,
    ) -> Option<&Arc<Endpoint>> {
        let full = self
            .endpoints
            .iter()
            .filter(|endpoint| fit(endpoint))
            .map(|endpoint| endpoint.weight(ask.now))
            .max()?;
        let mut best: Option<(u32, &Arc<Endpoint>)> = None;
        // Other cores change weights while we look; should everything be passed over for that, anything fit will do.
        let mut spare = None;
        let mut ties = 1;
        for endpoint in self.endpoints.iter().filter(|endpoint| fit(endpoint)) {
            let weight = endpoint.weight(ask.now);
            if weight < full && !dice.chance(weight, full) {
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
}

impl Picker for LeastRequest {
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        let mut dice = Dice::new(ask.random);
        let usable = |e: &Endpoint| among == Among::All || e.is_available(ask.now);
        let untried = |e: &Endpoint| usable(e) && !ask.tried.contains(&e.id);
        if self.endpoints.len() > SCAN
            && let Some(endpoint) = self.of_two(ask, &mut dice, untried)
        {
            return Some(endpoint);
        }
        self.of_all(ask, &mut dice, untried)
            .or_else(|| self.of_all(ask, &mut dice, usable))
    }
}

/// The one to take of two.
fn better<'a>(
    a: &'a Arc<Endpoint>,
    b: &'a Arc<Endpoint>,
    ask: &Ask<'_>,
    dice: &mut Dice,
) -> &'a Arc<Endpoint> {
    let (weight_a, weight_b) = (a.weight(ask.now), b.weight(ask.now));
    debug_assert!(weight_a.max(weight_b) <= FULL_WEIGHT);
    if weight_a < weight_b && !dice.chance(weight_a, weight_b) {
        return b;
    }
    if weight_b < weight_a && !dice.chance(weight_b, weight_a) {
        return a;
    }
    match a.in_flight().cmp(&b.in_flight()) {
        std::cmp::Ordering::Less => a,
        std::cmp::Ordering::Greater => b,
        // Drawn in random order, but the first came from a longer search where few are fit: toss.
        std::cmp::Ordering::Equal if dice.chance(1, 2) => a,
        std::cmp::Ordering::Equal => b,
    }
}
