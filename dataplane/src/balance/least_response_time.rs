//! Least response time: the endpoint where an exchange that is begun now is likely to be answered first.
//!
//! The cost of an endpoint is how long it took lately times the exchanges that would be there with this one ("peak EWMA",
//! from Finagle); where weights differ, its exchanges count in relation to its weight. Of two random ones the cheaper is taken: with the one cheapest of all, every proxy would run to the same
//! endpoint until its latency shows that they did. How the latency is estimated, and why an endpoint that fails fast does
//! not look fast, is in [`crate::endpoint::latency`].

use std::cmp::Ordering;
use std::sync::Arc;

use super::group::Aside;
use super::{Among, Ask, Dice, Group, Picker};
use crate::endpoint::Endpoint;

/// The policy over one group.
#[derive(Debug)]
pub(super) struct LeastResponseTime {
    group: Group,
}

impl LeastResponseTime {
    pub(super) fn new(group: Group) -> Self {
        Self { group }
    }

    fn cost(&self, index: usize, ask: &Ask<'_>) -> f64 {
        let endpoint = &self.group.endpoints[index];
        let latency = endpoint.latency.estimate(ask.now).as_secs_f64();
        latency * (f64::from(endpoint.in_flight()) / self.group.part(index) + 1.0)
    }
}

impl Picker for LeastResponseTime {
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        let endpoints = &self.group.endpoints;
        let mut dice = Dice::new(ask.random);
        let index = match self.group.two(ask, among, &mut dice) {
            (Some(a), Some(b)) => {
                match self
                    .group
                    .aside(&endpoints[a], &endpoints[b], ask, &mut dice)
                {
                    Some(Aside::First) => b,
                    Some(Aside::Second) => a,
                    None => match self.cost(a, ask).total_cmp(&self.cost(b, ask)) {
                        // Of equals the first, which was drawn by weight.
                        Ordering::Less | Ordering::Equal => a,
                        Ordering::Greater => b,
                    },
                }
            }
            (first, _) => first?,
        };
        Some(&endpoints[index])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::*;
    use crate::endpoint::{Endpoint, Outcome};

    #[test]
    fn what_nobody_has_measured_is_a_tie() {
        for size in [2, 3, 20] {
            let set = weighted("least_response_time", &vec![1; size]);
            assert_shares(&tally(&set, 50_000, &[], now()), &vec![1; size]);
        }
    }

    #[test]
    fn of_two_the_faster_is_taken_until_it_has_as_much_more_to_do() {
        let set = weighted("least_response_time", &[1, 1]);
        let now = now();
        for (endpoint, ms) in set.endpoints().iter().zip([10, 35]) {
            endpoint
                .latency
                .answered(Duration::from_millis(ms), Outcome::Success, now);
        }
        assert_eq!(tally(&set, 1_000, &[], now), [1_000, 0]);
        // 10 ms × 3 < 35 ms × 1 < 10 ms × 4.
        let mut load: Vec<_> = (0..2).map(|_| set.endpoints()[0].begin()).collect();
        assert_eq!(tally(&set, 1_000, &[], now), [1_000, 0]);
        load.push(set.endpoints()[0].begin());
        assert_eq!(tally(&set, 1_000, &[], now), [0, 1_000]);
    }

    #[test]
    fn the_slowest_of_many_is_never_taken() {
        let set = weighted("least_response_time", &[1; 20]);
        let now = now();
        let slow = |e: &std::sync::Arc<Endpoint>| {
            e.latency
                .answered(Duration::from_secs(1), Outcome::Success, now);
        };
        slow(&set.endpoints()[4]);
        let counts = tally(&set, 20_000, &[], now);
        assert_eq!(counts[4], 0);
        assert!(
            counts.iter().enumerate().all(|(n, &c)| n == 4 || c > 800),
            "{counts:?}"
        );
    }

    #[test]
    fn one_that_fails_fast_is_not_fast() {
        let set = weighted("least_response_time", &[1, 1]);
        let start = now();
        for n in 0..40 {
            let now = start + Duration::from_millis(10 * n);
            let [good, bad] = set.endpoints() else {
                panic!("two")
            };
            good.latency
                .answered(Duration::from_millis(20), Outcome::Success, now);
            bad.latency
                .answered(Duration::from_micros(200), Outcome::RemoteFailure, now);
        }
        let now = start + Duration::from_millis(400);
        assert_eq!(tally(&set, 1_000, &[], now), [1_000, 0]);
    }

    #[test]
    fn idle_ones_are_as_likely_as_their_weight_says() {
        let set = weighted("least_response_time", &[100, 1, 1]);
        assert_shares(&tally(&set, 50_000, &[], now()), &[100, 1, 1]);
    }

    #[test]
    fn one_of_three_times_the_weight_may_have_three_times_as_much() {
        let set = weighted("least_response_time", &[3, 1]);
        let now = now();
        for (endpoint, ms) in set.endpoints().iter().zip([10, 11]) {
            endpoint
                .latency
                .answered(Duration::from_millis(ms), Outcome::Success, now);
        }
        let _one = set.endpoints()[1].begin();
        let mut load: Vec<_> = (0..3).map(|_| set.endpoints()[0].begin()).collect();
        assert_eq!(tally(&set, 1_000, &[], now), [1_000, 0]);
        load.push(set.endpoints()[0].begin());
        assert_eq!(tally(&set, 1_000, &[], now), [0, 1_000]);
    }
}
