//! Hash ring: every endpoint stands at many points of a circle, and a key belongs to the first point after it (Karger et
//! al., 1997).
//!
//! When one leaves, its keys move and no other, and the same when one comes. The price is evenness: with 512 points each,
//! shares differ by some 5 per cent from each other, where [`super::maglev`] has none.

use super::Group;
use super::dice::{hash, mix};
use super::hashed::Table;

/// Points of an endpoint of average weight.
const POINTS: u64 = 512;

/// Points of all together, 4 MiB; more than a thousand endpoints have fewer each.
const MOST_POINTS: u64 = 1 << 19;

/// The ring of one group.
#[derive(Debug)]
pub(super) struct Ring {
    /// Where on the circle, and who.
    points: Box<[(u32, u16)]>,
}

impl Ring {
    pub(super) fn new(group: &Group) -> Self {
        let count = group.len() as u64;
        let all = (count * POINTS).min(MOST_POINTS);
        let mut points = Vec::with_capacity(all as usize);
        for (index, endpoint) in group.endpoints.iter().enumerate() {
            let share = (all * group.weight(index) + group.total() / 2) / group.total();
            let seed = hash(endpoint.address.to_string().as_bytes());
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            for point in 1..=share.max(1) {
                let at = mix(seed.wrapping_add(point.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                points.push(((at >> 32) as u32, index));
            }
        }
        points.sort_unstable();
        Self {
            points: points.into(),
        }
    }
}

impl Table for Ring {
    fn at(&self, hash: u64) -> usize {
        let place = (hash >> 32) as u32;
        let next = self.points.partition_point(|point| point.0 < place);
        // After the last comes the first.
        self.points[next % self.points.len()].1.into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn shares_are_even_to_within_a_fifth() {
        for size in [2, 3, 10, 100] {
            let counts = tally_keys(&weighted("ring", &vec![1; size]), 1_000 * size);
            for count in &counts {
                assert!((780..1_220).contains(count), "{size}: {counts:?}");
            }
        }
    }

    #[test]
    fn weights_are_met_to_within_a_fifth() {
        let counts = tally_keys(&weighted("ring", &[6, 3, 1]), 100_000);
        for (count, expected) in counts.iter().zip([60_000, 30_000, 10_000]) {
            assert!(count.abs_diff(expected) < expected / 5, "{counts:?}");
        }
    }

    #[test]
    fn when_one_of_n_leaves_its_keys_move_and_no_other() {
        for size in [2, 3, 10, 50, 100, 200] {
            assert_few_move(&policy("ring"), size);
        }
    }

    #[test]
    fn a_ring_is_bounded() {
        let group = group(&vec![1; 5_000]);
        assert!(Ring::new(&group).points.len() as u64 <= MOST_POINTS + 5_000);
    }
}
