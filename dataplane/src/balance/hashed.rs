//! What all policies have in common that keep what belongs together at one endpoint: the way from a key to an endpoint that
//! can take it.
//!
//! A [`Table`] says where a hash belongs, over all endpoints of the group, well or not. When that one cannot take it (it is
//! ejected, has failed this exchange already, or has more than `max_load` allows), the hash is hashed again and the table
//! asked again: a *random jump*. The keys of an endpoint that is away are so spread over all the others; walking on to
//! the next neighbour instead would give them all to one, which then is the next to fall. The jumps of a key are always
//! the same ones, so it has one second home and not many. Nothing else moves, and everything returns when the endpoint does.
//!
//! Slow start: an endpoint that is warming up takes a growing part of its keys, each of them for good.
//!
//! An exchange without the key (no such header, no such cookie) has nothing to be kept together with and goes anywhere.

use std::sync::Arc;

use super::dice::mix;
use super::{Among, Ask, Dice, Group, Picker};
use crate::endpoint::{Endpoint, FULL_WEIGHT};

/// Jumps until anybody will do. With half of the endpoints fit, one in 4 billion keys needs more.
const JUMPS: u64 = 32;

/// Endpoints that are looked at to learn the mean load. Of more, so many are looked at.
const LOOKS: usize = 256;

/// Says where a hash belongs.
pub(super) trait Table: Send + Sync + std::fmt::Debug {
    /// The index of an endpoint.
    fn at(&self, hash: u64) -> usize;
}

/// A policy of this kind over one group.
#[derive(Debug)]
pub(super) struct Hashed<T> {
    group: Group,
    table: T,
    /// What an endpoint may have of the mean load, in thousandths.
    max_load: Option<u32>,
}

impl<T: Table> Hashed<T> {
    pub(super) fn new(group: Group, table: T, max_load: Option<u32>) -> Self {
        Self {
            group,
            table,
            max_load,
        }
    }

    /// Whether a key has come to an endpoint that is warming up. More do each moment, and they stay.
    fn has_moved_in(&self, key: u64, endpoint: &Endpoint, ask: &Ask<'_>, among: Among) -> bool {
        let warmth = self.group.warmth(endpoint, ask);
        if warmth == FULL_WEIGHT {
            return true;
        }
        let order = mix(key ^ endpoint.id.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 32;
        let full = u64::from(self.group.fullest(ask, among));
        ((order * full) >> 32) < u64::from(warmth)
    }

    /// The load of those that are fit, for each unit of their weight.
    fn load(&self, ask: &Ask<'_>, among: Among) -> Load {
        let (endpoints, mut load) = (&self.group.endpoints, Load::default());
        let looks = endpoints.len().min(LOOKS);
        let start = Dice::new(ask.random).below(endpoints.len());
        for look in 0..looks {
            let index = (start + look * endpoints.len() / looks) % endpoints.len();
            if among.fits(&endpoints[index], ask) {
                load.exchanges += u64::from(endpoints[index].in_flight());
                load.weight += self.group.weight(index);
            }
        }
        load
    }

    /// The least loaded that is fit.
    fn least(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        let fit = self.group.endpoints.iter().filter(|e| among.fits(e, ask));
        fit.min_by_key(|endpoint| endpoint.in_flight())
    }
}

impl<T: Table> Picker for Hashed<T> {
    fn pick(&self, ask: &Ask<'_>, among: Among) -> Option<&Arc<Endpoint>> {
        let endpoints = &self.group.endpoints;
        if endpoints.is_empty() {
            return None;
        }
        let key = ask.key.unwrap_or(ask.random);
        let bound = self
            .max_load
            .map(|max_load| (max_load, self.load(ask, among)));
        let mut hash = key;
        for jump in 1..=JUMPS {
            let index = self.table.at(hash);
            let endpoint = &endpoints[index];
            let has_room = |(max_load, load): (u32, Load)| {
                endpoint.in_flight() < load.most(max_load, self.group.weight(index))
            };
            if among.fits(endpoint, ask)
                && self.has_moved_in(key, endpoint, ask, among)
                && bound.is_none_or(has_room)
            {
                return Some(endpoint);
            }
            hash = mix(key.wrapping_add(jump.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
        self.least(ask, among)
    }
}

/// How much is under way, at endpoints of this weight together.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    exchanges: u64,
    weight: u64,
}

impl Load {
    /// What an endpoint of this weight may have, the exchange to come included: ⌈`max_load` × its share of all⌉. All
    /// together may have more than there is, so there always is one with room.
    fn most(self, max_load: u32, weight: u64) -> u32 {
        let all = u128::from(self.exchanges + 1) * u128::from(weight) * u128::from(max_load);
        let most = all.div_ceil(u128::from(self.weight.max(1)) * 1_000);
        u32::try_from(most).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::*;
    use super::*;
    use crate::endpoint::SLOW_START;

    const POLICIES: [&str; 3] = ["maglev", "ring", "ip_hash"];

    #[test]
    fn a_key_always_goes_to_the_same_endpoint() {
        for policy in POLICIES {
            let set = weighted(policy, &[1; 12]);
            for key in keys(500) {
                let home = position(&set, &keyed(now(), key, 0));
                assert!((1..20).all(|n| position(&set, &keyed(now(), key, n)) == home));
            }
        }
    }

    #[test]
    fn whoever_builds_the_same_membership_agrees_on_every_key() {
        for policy in POLICIES {
            let (one, other) = (seeded(policy, &[1; 9], 1), seeded(policy, &[1; 9], 2));
            for key in keys(2_000) {
                let ask = keyed(now(), key, 0);
                assert_eq!(position(&one, &ask), position(&other, &ask));
            }
        }
    }

    #[test]
    fn no_key_means_anywhere() {
        let set = weighted("maglev", &[1; 5]);
        assert_shares(&tally(&set, 50_000, &[], now()), &[1; 5]);
    }

    #[test]
    fn when_one_is_out_its_keys_are_spread_over_all_others_and_no_other_moves() {
        for policy in POLICIES {
            let set = weighted(policy, &[1; 10]);
            let now = now();
            let keys = keys(50_000);
            let home = |key| position(&set, &keyed(now, key, 0));
            let before: Vec<_> = keys.iter().map(|&key| home(key)).collect();
            set.endpoints()[3].eject(now + Duration::from_secs(60));
            set.recount();
            let mut refuge = vec![0; 10];
            for (&key, &before) in keys.iter().zip(&before) {
                let after = home(key);
                assert!(before == 3 || after == before, "{policy}");
                if before == 3 {
                    refuge[after] += 1;
                }
            }
            // A tenth of the keys, over nine.
            let mean = refuge.iter().sum::<usize>() as f64 / 9.0;
            for (index, &count) in refuge.iter().enumerate() {
                let off = (count as f64 - mean).abs() / mean;
                assert!(index == 3 || off < 0.35, "{policy}: {refuge:?}");
            }
            assert_eq!(refuge[3], 0);
            set.endpoints()[3].recover(now);
            let later = now + SLOW_START;
            set.recount();
            for (&key, &before) in keys.iter().zip(&before) {
                assert_eq!(
                    position(&set, &keyed(later, key, 0)),
                    before,
                    "all come home"
                );
            }
        }
    }

    #[test]
    fn a_returned_one_takes_more_of_its_keys_each_moment_and_each_for_good() {
        let set = weighted("maglev", &[1; 4]);
        let start = now();
        let keys = keys(20_000);
        let homes: Vec<_> = keys
            .iter()
            .filter(|&&key| position(&set, &keyed(start, key, 0)) == 1)
            .collect();
        set.endpoints()[1].recover(start);
        let mut here = vec![false; homes.len()];
        for (second, share) in [(0, 0.1), (3, 0.3), (6, 0.6), (10, 1.0)] {
            let now = start + Duration::from_secs(second);
            let mut count = 0;
            for (here, &&key) in here.iter_mut().zip(&homes) {
                let is_here = position(&set, &keyed(now, key, 0)) == 1;
                assert!(is_here || !*here, "what has come stays");
                *here = is_here;
                count += usize::from(is_here);
            }
            let found = count as f64 / homes.len() as f64;
            assert!((found - share).abs() < 0.03, "{found} after {second} s");
        }
    }

    #[test]
    fn a_hot_key_fills_its_home_and_then_jumps() {
        let set = bounded("maglev", &[1; 10], 1.5);
        let now = now();
        let hot = keys(1)[0];
        let mut running = Vec::new();
        for n in 0..200 {
            running.push(set.begin(&keyed(now, hot, n)).unwrap());
            let most = set.endpoints().iter().map(|e| e.in_flight()).max().unwrap();
            let mean = running.len() as f64 / 10.0;
            assert!(
                f64::from(most) <= (1.5 * mean).ceil(),
                "{most} of a mean of {mean}"
            );
        }
        let home = position(&weighted("maglev", &[1; 10]), &keyed(now, hot, 0));
        assert_eq!(
            set.endpoints()[home].in_flight(),
            30,
            "as much as it may have"
        );
    }

    #[test]
    fn below_the_bound_nothing_jumps() {
        let (bounded, plain) = (bounded("ring", &[1; 8], 1.5), weighted("ring", &[1; 8]));
        for key in keys(2_000) {
            let ask = keyed(now(), key, 1);
            assert_eq!(position(&bounded, &ask), position(&plain, &ask));
        }
    }

    #[test]
    fn a_bound_goes_by_weight_and_by_those_that_are_there() {
        let load = Load {
            exchanges: 99,
            weight: 10,
        };
        assert_eq!(load.most(1_500, 1), 15);
        assert_eq!(load.most(1_500, 4), 60);
        assert_eq!(load.most(1_250, 1), 13);
        assert_eq!(Load::default().most(1_000, 1), 1);
    }

    #[test]
    fn a_large_group_is_bounded_by_what_a_part_of_it_says() {
        let set = bounded("maglev", &[1; 1_000], 2.0);
        let now = now();
        let keys = keys(4_000);
        let running: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(n, &key)| set.begin(&keyed(now, key, n as u64)).unwrap())
            .collect();
        let most = set.endpoints().iter().map(|e| e.in_flight()).max().unwrap();
        // Four each on average; by chance alone the fullest of a thousand would have more than a dozen.
        assert!(most <= 10, "{most}");
        drop(running);
    }
}
