//! Round robin: each in turn, as often as its weight says.
//!
//! Which one comes when is laid down once for a membership ([`super::smooth`]); a pick only moves on. The place is shared
//! by all cores, so that the service sees one round and not one for each core, and begins anywhere, so that a hundred
//! proxies that were started at once do not march in step. One that may not be used now is passed over, and the turn
//! passes to the next: its successor does not take two. IPv4 and IPv6 alternate as long as there are both (RFC 8305 §4), so
//! that where there is no way for one of them no two exchanges in a row find that out; another attempt takes no turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Among, Ask, Dice, Group, Picker, smooth};
use crate::endpoint::Endpoint;

/// Turns that a pick passes over before it looks for anybody that is fit. With half of them fit that is as good as never.
const TURNS: usize = 64;

/// The policy over one group.
#[derive(Debug)]
pub(super) struct RoundRobin {
    group: Group,
    /// Whose turn comes when, when weights differ.
    order: Option<Box<[u16]>>,
    turn: AtomicUsize,
}

impl RoundRobin {
    /// `seed` says where the round begins.
    pub(super) fn new(group: Group, seed: u64) -> Self {
        let group = group.in_turns();
        let order = group.is_weighted().then(|| {
            let weights: Vec<_> = (0..group.len()).map(|index| group.weight(index)).collect();
            smooth::order(&weights)
        });
        let mut robin = Self {
            group,
            order,
            turn: AtomicUsize::new(0),
        };
        if let length @ 1.. = robin.round() {
            *robin.turn.get_mut() = Dice::new(seed).below(length);
        }
        robin
    }

    /// How many turns make a round.
    fn round(&self) -> usize {
        match &self.order {
            None => self.group.len(),
            Some(order) => order.len(),
        }
    }

    /// Whose turn it is. An exchange that has had a turn is anybody's, and leaves the turns to the others: else it would be the
    /// same one of two endpoints that each exchange comes to first, or the same that gets all that another has failed.
    fn next(&self, ask: &Ask<'_>, dice: &mut Dice) -> usize {
        let turn = match ask.tried.is_empty() {
            true => self.turn.fetch_add(1, Relaxed),
            false => dice.below(self.round()),
        };
        match &self.order {
            None => turn % self.group.len(),
            Some(order) => order[turn % order.len()].into(),
        }
    }
}

impl Picker for RoundRobin {
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        let endpoints = &self.group.endpoints;
        if endpoints.is_empty() {
            return None;
        }
        let mut dice = Dice::new(ask.random);
        for _ in 0..TURNS.min(4 * endpoints.len()) {
            let endpoint = &endpoints[self.next(ask, &mut dice)];
            if among.fits(endpoint, ask) && self.group.takes_part(endpoint, ask, among, &mut dice) {
                return Some(endpoint);
            }
        }
        let index = self.group.one(ask, among, &mut dice)?;
        Some(&endpoints[index])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::*;
    use super::super::{Ask, EndpointSet};
    use crate::endpoint::place::Place;
    use crate::endpoint::{Endpoint, Family};

    /// The positions of successive picks.
    fn picks(set: &EndpointSet, times: usize) -> Vec<usize> {
        let now = now();
        (0..times)
            .map(|n| position(set, &ask(now, n as u64)))
            .collect()
    }

    #[test]
    fn any_window_of_rounds_has_each_as_often_as_any_other() {
        for size in [1, 2, 3, 7, 100] {
            let set = weighted("round_robin", &vec![1; size]);
            let picks = picks(&set, 5 * size);
            for start in 0..size {
                for rounds in 1..=3 {
                    let window = &picks[start..start + rounds * size];
                    let counts = (0..size).map(|n| window.iter().filter(|&&p| p == n).count());
                    assert!(counts.into_iter().all(|count| count == rounds), "{picks:?}");
                }
            }
        }
    }

    #[test]
    fn families_take_turns_as_long_as_there_are_both() {
        let check = |weights: &[(&str, u16)], wanted: &str| {
            let endpoints = weights.iter().map(|(address, weight)| {
                Endpoint::at(Place {
                    weight: *weight,
                    ..Place::new(address.parse().unwrap())
                })
            });
            let set = EndpointSet::new(&policy("round_robin"), endpoints.collect(), 1);
            let now = now();
            let rounds: String = (0..2 * wanted.len())
                .map(|n| match set.pick(&ask(now, n as u64)).unwrap().family() {
                    Family::V4 => '4',
                    Family::V6 => '6',
                })
                .collect();
            // A round begins anywhere.
            assert!(rounds.contains(wanted), "{weights:?}: {rounds}");
        };
        let [a, b, c] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
        let [x, y] = ["[fd00::1]:80", "[fd00::2]:80"];
        check(&[(a, 1), (b, 1), (x, 1), (y, 1)], "6464");
        check(&[(a, 1), (b, 1), (c, 1), (x, 1)], "6444");
        check(&[(a, 1), (b, 1), (c, 1), (x, 1), (y, 1)], "64644");
        check(&[(a, 1), (b, 1)], "44");
        // Weights come first: each has its turns spread as evenly as can be.
        check(&[(a, 3), (x, 1)], "4464");
    }

    #[test]
    fn another_attempt_takes_nobodys_turn() {
        let set = weighted("round_robin", &[1; 4]);
        let now = now();
        let first: Vec<_> = (0..8)
            .map(|n| {
                let first = position(&set, &ask(now, n));
                let tried = [set.endpoints()[first].id];
                let again = Ask {
                    tried: &tried,
                    ..ask(now, n)
                };
                assert_ne!(position(&set, &again), first);
                first
            })
            .collect();
        for round in first.chunks(4) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn what_one_has_failed_is_spread_over_the_others() {
        for (weights, wanted) in [
            ([1, 1, 1, 1], [1000, 1000, 1000]),
            ([4, 3, 2, 1], [1500, 1000, 500]),
        ] {
            let set = weighted("round_robin", &weights);
            let now = now();
            let tried = [set.endpoints()[0].id];
            let mut counts = [0_i32; 4];
            for random in 0..3000 {
                let again = Ask {
                    tried: &tried,
                    ..ask(now, random)
                };
                counts[position(&set, &again)] += 1;
            }
            assert_eq!(counts[0], 0);
            let near = |(count, wanted): (&i32, &i32)| (count - wanted).abs() <= 100;
            assert!(counts[1..].iter().zip(&wanted).all(near), "{counts:?}");
        }
    }

    #[test]
    fn rounds_begin_anywhere() {
        let mut first: Vec<_> = (0..200)
            .map(|seed| {
                let set = seeded("round_robin", &[1; 10], seed);
                position(&set, &ask(now(), 0))
            })
            .collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 10);
    }

    #[test]
    fn weights_are_met_exactly_and_without_runs() {
        let set = weighted("round_robin", &[5, 1, 1]);
        let picks = picks(&set, 70);
        let count = |n| picks.iter().filter(|&&p| p == n).count();
        assert_eq!([count(0), count(1), count(2)], [50, 10, 10]);
        let run = picks.windows(4).any(|w| w.iter().all(|&p| p == 0));
        assert!(!run, "{picks:?}");
    }

    #[test]
    fn the_turn_of_one_that_is_out_does_not_go_to_its_neighbour() {
        let set = weighted("round_robin", &[1; 5]);
        let now = now();
        set.endpoints()[2].eject(now + Duration::from_secs(60));
        set.recount();
        assert_eq!(
            tally(&set, 4_000, &[], now),
            [1_000, 1_000, 0, 1_000, 1_000]
        );
    }
}
