//! Maglev: a table in which every endpoint has as many entries as its weight says, to within one, and which changes little when the
//! membership does (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", 2016).
//!
//! Each endpoint has its own order of preference over the entries, made from its address. They take turns ([`smooth`] says
//! whose turn it is when weights differ), and each takes the first entry it likes that is still free. A look-up is one
//! read.
//!
//! When one of N leaves, its 1/N of the keys move, and a few more, because the turns of the others shift: a twentieth more at
//! fifty endpoints, a tenth at a hundred, a fifth at a hundred and fifty. A larger table moves fewer. The size is the service's to
//! say and does not follow the number of endpoints, since all keys move when it changes, and gateways that disagree about it would
//! send the same key to different places. [`super::ring`] moves no key more than it must, but is less even.

use super::dice::mix;
use super::hashed::Table;
use super::{Group, dice, smooth};

/// The entries of a table, unless the service says otherwise: 2 MiB, built in a twentieth of a second at each change of the
/// membership.
pub(super) const USUAL: u32 = 1_048_583;

/// The entries of the smallest table, 128 KiB. It is enough for thirty endpoints.
const LEAST: u32 = 65_537;

/// The entries of the largest table: 10 MiB, built in some tenths of a second.
pub(super) const MOST: u32 = 5_000_011;

/// The table of one group.
#[derive(Debug)]
pub(super) struct Maglev {
    entries: Box<[u16]>,
}

impl Maglev {
    /// `size` is prime, so that every step visits every entry.
    pub(super) fn new(group: &Group, size: u32) -> Self {
        const FREE: u16 = u16::MAX;
        if group.len() == 0 {
            return Self {
                entries: Box::default(),
            };
        }
        let size = size as usize;
        let mut wishes: Vec<_> = group
            .endpoints
            .iter()
            .map(|endpoint| Wishes::new(endpoint.address.to_string().as_bytes(), size))
            .collect();
        let weights: Vec<_> = (0..group.len()).map(|index| group.weight(index)).collect();
        let turns = smooth::order(&weights);
        let mut entries = vec![FREE; size].into_boxed_slice();
        for &turn in turns.iter().cycle().take(size) {
            // Each visits all entries in the end, and there is one left for every turn.
            let entry = loop {
                let wish = wishes[usize::from(turn)].next(size);
                if entries[wish] == FREE {
                    break wish;
                }
            };
            entries[entry] = turn;
        }
        Self { entries }
    }
}

impl Table for Maglev {
    fn at(&self, hash: u64) -> usize {
        let entry = (u128::from(hash) * self.entries.len() as u128) >> 64;
        self.entries[entry as usize].into()
    }
}

/// Whether a table may have so many entries.
pub(super) fn is_size(size: u32) -> bool {
    (LEAST..=MOST).contains(&size)
        && (2..)
            .take_while(|n| n * n <= size)
            .all(|n| !size.is_multiple_of(n))
}

/// The entries in the order in which an endpoint would like to have them.
struct Wishes {
    next: usize,
    step: usize,
}

impl Wishes {
    fn new(address: &[u8], size: usize) -> Self {
        let hash = dice::hash(address);
        Self {
            next: (hash % size as u64) as usize,
            step: (mix(hash ^ 0x9e37_79b9_7f4a_7c15) % (size as u64 - 1)) as usize + 1,
        }
    }

    fn next(&mut self, size: usize) -> usize {
        let wish = self.next;
        // A step is shorter than the table. Half of the time that a table takes would be for dividing.
        let next = wish + self.step;
        self.next = if next < size { next } else { next - size };
        wish
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    /// How many entries each has.
    fn entries(weights: &[u16]) -> Vec<usize> {
        let table = Maglev::new(&group(weights), USUAL);
        let mut counts = vec![0; weights.len()];
        for &entry in &table.entries {
            counts[usize::from(entry)] += 1;
        }
        counts
    }

    #[test]
    fn all_have_as_many_entries_to_within_one() {
        for size in [1, 2, 3, 10, 32, 33, 1_000] {
            let counts = entries(&vec![1; size]);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{size}: {least} to {most}");
        }
    }

    #[test]
    fn weights_are_met_to_within_two_entries() {
        for weights in [&[5, 1, 1][..], &[100, 50, 1], &[3, 3, 2, 7]] {
            let whole: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            for (count, &weight) in entries(weights).into_iter().zip(weights) {
                let exact = f64::from(USUAL) * f64::from(weight) / whole as f64;
                assert!((count as f64 - exact).abs() <= 2.0, "{count}, not {exact}");
            }
        }
    }

    #[test]
    fn sizes_are_primes_in_bounds() {
        assert!(is_size(LEAST) && is_size(USUAL) && is_size(2_097_169) && is_size(MOST));
        assert!(!is_size(65_536) && !is_size(65_539 * 3) && !is_size(7) && !is_size(5_000_077));
    }

    #[test]
    fn when_one_of_n_leaves_little_more_than_its_keys_move() {
        for size in [2, 3, 10, 50, 100] {
            assert_few_move(&policy("maglev"), size);
        }
        let large = r#"{"policy": "maglev", "key": "source", "table_size": 2097169}"#;
        assert_few_move(&long(large), 200);
        let small = r#"{"policy": "maglev", "key": "source", "table_size": 65537}"#;
        for size in [3, 10, 30] {
            assert_few_move(&long(small), size);
        }
    }

    #[test]
    fn the_larger_the_table_the_fewer_keys_move() {
        for count in [10, 100, 200] {
            let excess = [65_537, 1_048_583, 2_097_169].map(|size| {
                let policy =
                    format!(r#"{{"policy": "maglev", "key": "source", "table_size": {size}}}"#);
                count as f64 * moved(&long(&policy), count, count / 2, 2_000 * count)
            });
            println!("when one of {count} leaves, {excess:.2?} times its share of the keys move");
            assert!(
                excess.is_sorted_by(|more, fewer| more >= fewer),
                "{count}: {excess:?}"
            );
        }
    }

    #[test]
    fn lookups_are_even() {
        let set = weighted("maglev", &[1; 16]);
        assert_shares(&tally_keys(&set, 160_000), &[1; 16]);
    }
}
