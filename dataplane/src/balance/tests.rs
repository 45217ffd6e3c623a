#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::endpoint::SLOW_START;

fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
    (0..count)
        .map(|n| Endpoint::new(([127, 0, 1, 1], 1000 + n as u16).into()))
        .collect()
}

fn set(count: usize) -> EndpointSet {
    EndpointSet::new(Config::LeastRequest, endpoints(count))
}

/// Picks `times` times, without beginning anything, and counts by position.
fn tally(set: &EndpointSet, times: usize, tried: &[u64], now: Instant) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = HashMap::new();
    for _ in 0..times {
        let ask = Ask {
            tried,
            now,
            random: rng.u64(..),
        };
        *counts.entry(set.pick(&ask).unwrap().id).or_insert(0) += 1;
    }
    set.endpoints()
        .iter()
        .map(|e| counts.get(&e.id).copied().unwrap_or(0))
        .collect()
}

/// Five standard deviations of a fair draw: a sound policy fails this once in a million seeds, and the seed is fixed.
fn assert_even(counts: &[usize], what: &str) {
    let total: usize = counts.iter().sum();
    let mean = total as f64 / counts.len() as f64;
    let deviation = (mean * (1.0 - 1.0 / counts.len() as f64)).sqrt();
    for &count in counts {
        assert!(
            (count as f64 - mean).abs() <= 5.0 * deviation + 0.5,
            "{what}: {counts:?}"
        );
    }
}

#[test]
fn ties_are_broken_evenly_at_any_size() {
    for size in (1..=20).chain([100]) {
        let counts = tally(&set(size), 20_000, &[], Instant::now());
        assert_even(&counts, &format!("{size} endpoints"));
    }
}

#[test]
fn of_two_the_less_loaded_is_always_taken() {
    let set = set(2);
    let _load = set.endpoints()[0].begin();
    assert_eq!(tally(&set, 10_000, &[], Instant::now()), [0, 10_000]);
}

#[test]
fn of_few_the_least_loaded_is_always_taken() {
    for size in 3..=8 {
        let set = set(size);
        let _load: Vec<_> = set.endpoints()[1..].iter().map(Endpoint::begin).collect();
        assert_eq!(tally(&set, 1_000, &[], Instant::now())[0], 1_000);
    }
}

#[test]
fn of_many_the_most_loaded_is_never_taken() {
    // Two *different* ones are compared; drawn with replacement it would be taken one time in N².
    for size in [9, 20, 100] {
        let set = set(size);
        let _load = set.endpoints()[3].begin();
        let counts = tally(&set, 100_000, &[], Instant::now());
        assert_eq!(counts[3], 0, "{size} endpoints");
        // The others are not equally likely to the last digit, but the missing share is spread over all.
        let others: Vec<_> = counts.iter().copied().filter(|&c| c > 0).collect();
        assert_even(&others, &format!("{size} endpoints"));
    }
}

/// Time goes in ticks; one exchange arrives each tick and ends after its endpoint's time. Returns how many each got.
fn simulate(set: &EndpointSet, ticks: &[usize], arrivals: usize, now: Instant) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut running: Vec<(usize, InFlight)> = Vec::new();
    let mut counts = vec![0; ticks.len()];
    for tick in 0..arrivals {
        running.retain(|(end, _)| *end > tick);
        let ask = Ask {
            tried: &[],
            now,
            random: rng.u64(..),
        };
        let exchange = set.begin(&ask).unwrap();
        let index = set
            .endpoints()
            .iter()
            .position(|e| e.id == exchange.endpoint().id)
            .unwrap();
        counts[index] += 1;
        running.push((tick + ticks[index], exchange));
    }
    drop(running);
    assert!(set.endpoints().iter().all(|e| e.in_flight() == 0));
    counts
}

#[test]
fn equal_endpoints_under_steady_load_stay_within_a_few_per_cent() {
    for (size, time) in [(3, 10), (3, 1), (8, 40), (20, 100)] {
        let set = set(size);
        let counts = simulate(&set, &vec![time; size], 30_000, Instant::now());
        let mean = 30_000.0 / size as f64;
        for &count in &counts {
            let off = (count as f64 - mean).abs() / mean;
            assert!(off < 0.03, "{size} endpoints of {time} ticks: {counts:?}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_less() {
    // Ten times as slow. It gets more than a tenth, since a comparison of two idle ones is blind for that, but not much.
    for size in [3, 20] {
        let mut times = vec![20; size];
        times[0] = 200;
        let counts = simulate(&set(size), &times, 50_000, Instant::now());
        let others = (50_000 - counts[0]) / (size - 1);
        assert!(
            counts[0] * 4 < others,
            "{size} endpoints: {} for the slow one, {others} for each other",
            counts[0]
        );
    }
}

#[test]
fn what_was_tried_is_avoided_while_others_are_left() {
    for size in [2, 3, 8, 9, 30] {
        let set = set(size);
        let ids: Vec<_> = set.endpoints().iter().map(|e| e.id).collect();
        let now = Instant::now();
        let counts = tally(&set, 1_000, &ids[1..], now);
        assert_eq!(counts[0], 1_000, "{size} endpoints, one left");
        // Even when it is the busiest by far.
        let _load: Vec<_> = (0..50).map(|_| set.endpoints()[0].begin()).collect();
        assert_eq!(tally(&set, 1_000, &ids[1..], now)[0], 1_000);
        // When all were tried, one of them is better than none.
        assert_eq!(tally(&set, 1_000, &ids, now).iter().sum::<usize>(), 1_000);
    }
}

#[test]
fn ejected_and_draining_endpoints_get_nothing() {
    for size in [2, 3, 8, 9, 30] {
        let set = set(size);
        let now = Instant::now();
        set.endpoints()[0].eject(now + Duration::from_secs(5));
        if size > 3 {
            set.endpoints()[1].set_draining(true);
        }
        set.recount();
        assert!(!set.is_panicking());
        let counts = tally(&set, 5_000, &[], now);
        assert_eq!(counts[0], 0, "{size} endpoints");
        assert!(size <= 3 || counts[1] == 0, "{size} endpoints");
        let rest: Vec<_> = counts.into_iter().filter(|&c| c > 0).collect();
        assert_even(&rest, &format!("the rest of {size}"));
        // Not even a retry goes there while the others were only tried.
        let ids: Vec<_> = set.endpoints().iter().map(|e| e.id).collect();
        assert_eq!(tally(&set, 1_000, &ids[1..], now)[0], 0);
        assert_eq!(set.panic_picks(), 0);
    }
}

#[test]
fn below_half_all_are_used_and_counted() {
    for size in [2, 3, 8, 9, 30] {
        let set = set(size);
        let now = Instant::now();
        let half = size.div_ceil(2);
        for (out, endpoint) in set.endpoints().iter().enumerate() {
            assert_eq!(set.available(), size - out);
            assert_eq!(
                set.is_panicking(),
                size - out < half,
                "{out} of {size} are out"
            );
            endpoint.eject(now + Duration::from_secs(5));
            set.recount();
        }
        let counts = tally(&set, 10_000, &[], now);
        assert_even(&counts, &format!("{size} endpoints, all out"));
        assert_eq!(set.panic_picks(), 10_000);
        let ask = Ask {
            tried: &[],
            now,
            random: 1,
        };
        assert!(!set.begin(&ask).unwrap().is_probe());
    }
}

#[test]
fn a_new_endpoint_starts_with_a_tenth_of_its_share() {
    for size in [2, 5, 20] {
        let set = set(size);
        let now = Instant::now();
        set.endpoints()[0].warm(now);
        let share = |after| {
            let later = now + Duration::from_secs(after);
            let counts = tally(&set, 200_000, &[], later);
            counts[0] as f64 / (200_000.0 / size as f64)
        };
        // Its share grows with its weight; while it stands aside the others take over.
        for (after, expected) in [(0, 0.1), (5, 0.5)] {
            let share = share(after);
            assert!(
                (share - expected).abs() < 0.03,
                "{size} endpoints: {share} of a full share after {after} s"
            );
        }
        assert!((share(SLOW_START.as_secs()) - 1.0).abs() < 0.05);
    }
}

#[test]
fn endpoints_that_are_all_new_are_balanced_as_usual() {
    for size in [2, 8, 20] {
        let set = set(size);
        let now = Instant::now();
        set.endpoints().iter().for_each(|e| e.warm(now));
        let later = now + Duration::from_secs(1);
        assert_even(&tally(&set, 20_000, &[], later), "all new");
        let _load: Vec<_> = set.endpoints()[1..].iter().map(Endpoint::begin).collect();
        if size <= 8 {
            assert_eq!(tally(&set, 1_000, &[], later)[0], 1_000);
        }
    }
}

#[test]
fn exactly_one_exchange_probes() {
    let set = set(2);
    let now = Instant::now();
    set.endpoints()[0].eject(now);
    set.recount();
    let later = now + Duration::from_secs(1);
    let mut rng = fastrand::Rng::with_seed(3);
    let held: Vec<_> = (0..100)
        .map(|_| {
            let ask = Ask {
                tried: &[],
                now: later,
                random: rng.u64(..),
            };
            set.begin(&ask).unwrap()
        })
        .collect();
    assert_eq!(held.iter().filter(|e| e.is_probe()).count(), 1);
    assert_eq!(set.endpoints()[0].in_flight(), 1);
    assert_eq!(set.endpoints()[1].in_flight(), 99);
}

#[test]
fn an_empty_set_has_nothing_to_pick() {
    let set = set(0);
    let ask = Ask {
        tried: &[],
        now: Instant::now(),
        random: 0,
    };
    assert!(set.pick(&ask).is_none());
    assert!(set.begin(&ask).is_none());
    assert!(!set.is_panicking());
}

#[test]
fn the_policy_is_named_in_the_configuration() {
    let config: Config = serde_json::from_str(r#""least_request""#).unwrap();
    assert_eq!(config, Config::default());
    assert!(serde_json::from_str::<Config>(r#""least_requests""#).is_err());
}
