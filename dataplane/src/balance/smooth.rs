//! The order in which endpoints of different weight take their turns, spread as evenly as whole turns can be.
//!
//! Each turn of an endpoint of weight *w* among *W* has a window: the *k*-th may come no earlier than after ⌊(k−1)·W/w⌋
//! turns and must have come after ⌈k·W/w⌉. Earliest deadline first always meets them all (this is the fair scheduling of
//! Baruah, Cohen, Plaxton and Varvel, "Proportionate progress", 1996), so at no moment has any endpoint had a turn more
//! or less than its exact share. The well-known "smooth" algorithm that raises everybody's credit each turn needs a look
//! at all of them for each turn; this needs two heaps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The most turns in an order. Weights that would need more are rounded.
const MOST_TURNS: u64 = 16_384;

/// One round: the index of whose turn it is, for each turn. Weights are at least 1.
pub(super) fn order(weights: &[u64]) -> Box<[u16]> {
    let weights = fitted(weights);
    let whole: u64 = weights.iter().sum();
    let window = |index: usize, nth: u64| {
        let weight = weights[index];
        let release = nth * whole / weight;
        let deadline = ((nth + 1) * whole).div_ceil(weight);
        (release, deadline)
    };
    let mut waiting = BinaryHeap::new();
    let mut ready = BinaryHeap::new();
    for index in 0..weights.len() {
        waiting.push(Reverse((window(index, 0).0, index, 0)));
    }
    let mut order = Vec::with_capacity(whole as usize);
    for turn in 0..whole {
        while let Some(&Reverse((release, index, nth))) = waiting.peek() {
            if release > turn {
                break;
            }
            waiting.pop();
            ready.push(Reverse((window(index, nth).1, index, nth)));
        }
        // Always there: by now more turns have been released than were taken.
        let Some(Reverse((_, index, nth))) = ready.pop() else {
            break;
        };
        order.push(u16::try_from(index).unwrap_or(u16::MAX));
        if nth + 1 < weights[index] {
            waiting.push(Reverse((window(index, nth + 1).0, index, nth + 1)));
        }
    }
    order.into()
}

/// The same proportions in the smallest whole numbers, rounded where those are still too large.
fn fitted(weights: &[u64]) -> Vec<u64> {
    let common = weights.iter().copied().fold(0, gcd).max(1);
    let whole: u64 = weights.iter().map(|weight| weight / common).sum();
    let most = MOST_TURNS.max(2 * weights.len() as u64);
    weights
        .iter()
        .map(|weight| match weight / common {
            weight if whole <= most => weight,
            weight => ((weight * most + whole / 2) / whole).max(1),
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest distance of anybody from its exact share at any moment, in turns.
    fn worst(weights: &[u64], order: &[u16]) -> f64 {
        let whole: u64 = weights.iter().sum();
        let mut counts = vec![0_u64; weights.len()];
        let mut worst = 0.0_f64;
        for (turn, &index) in order.iter().enumerate() {
            counts[usize::from(index)] += 1;
            for (count, weight) in counts.iter().zip(weights) {
                let exact = (turn + 1) as f64 * *weight as f64 / whole as f64;
                worst = worst.max((*count as f64 - exact).abs());
            }
        }
        worst
    }

    #[test]
    fn nobody_is_ever_a_whole_turn_from_its_share() {
        let cases: &[&[u64]] = &[
            &[1],
            &[5, 1, 1],
            &[1, 1, 1, 1],
            &[4, 3, 2],
            &[100, 1],
            &[1000, 999, 1],
            &[7, 7, 7, 1],
            &[13, 11, 7, 5, 3, 2],
        ];
        for weights in cases {
            let order = order(weights);
            let common = weights.iter().copied().fold(0, gcd);
            assert_eq!(order.len() as u64, weights.iter().sum::<u64>() / common);
            assert!(worst(weights, &order) < 1.0, "{weights:?}: {order:?}");
        }
    }

    #[test]
    fn random_weights_are_as_smooth() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..200 {
            let weights: Vec<_> = (0..rng.usize(1..12)).map(|_| rng.u64(1..200)).collect();
            assert!(worst(&weights, &order(&weights)) < 1.0, "{weights:?}");
        }
    }

    #[test]
    fn an_order_is_bounded_and_keeps_its_proportions() {
        let order = order(&[60_001, 30_000, 10_007, 1]);
        assert!(order.len() as u64 <= MOST_TURNS + 4);
        let share = |n| order.iter().filter(|&&i| i == n).count() as f64 / order.len() as f64;
        assert!((share(0) - 0.6).abs() < 0.001 && (share(1) - 0.3).abs() < 0.001);
        assert!(share(3) > 0.0, "nobody is rounded away");
        let many: Vec<u64> = (0..10_000).map(|n| 1 + n % 7 * 9_001).collect();
        assert!(super::order(&many).len() <= 40_000);
    }
}
