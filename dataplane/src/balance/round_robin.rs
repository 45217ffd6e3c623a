//! Round robin: each in turn, as often as its weight says.
//!
//! Which one comes when is laid down once for a membership ([`super::smooth`]); a pick only moves on. The place is shared
//! by all cores, so that the service sees one round and not one for each core, and begins anywhere, so that a hundred
//! proxies that were started at once do not march in step. One that may not be used now is passed over, and the turn
//! passes to the next: its successor does not take two.

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
        let order = group.is_weighted().then(|| {
            let weights: Vec<_> = (0..group.len()).map(|index| group.weight(index)).collect();
            smooth::order(&weights)
        });
        let length = order.as_ref().map_or(group.len(), |order| order.len());
        let turn = match length {
            0 => 0,
            length => Dice::new(seed).below(length),
        };
        Self {
            group,
            order,
            turn: AtomicUsize::new(turn),
        }
    }

    fn next(&self) -> usize {
        let turn = self.turn.fetch_add(1, Relaxed);
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
            let endpoint = &endpoints[self.next()];
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

    /// The positions of successive picks.
    fn picks(set: &super::super::EndpointSet, times: usize) -> Vec<usize> {
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
