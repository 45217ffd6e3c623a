#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::testing::{ask, assert_shares, keyed, now, policy, tally};
use super::*;
use crate::endpoint::SLOW_START;

fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
    (0..count)
        .map(|n| Endpoint::new(([127, 0, 1, 1], 1000 + n as u16).into()))
        .collect()
}

fn set(count: usize) -> EndpointSet {
    EndpointSet::new(&Policy::default(), endpoints(count), 0)
}

/// A fair draw.
fn assert_even(counts: &[usize], what: &str) {
    assert!(!counts.is_empty(), "{what}");
    assert_shares(counts, &vec![1; counts.len()]);
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
        let ask = ask(now, rng.u64(..));
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
        let ask = ask(now, 1);
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
            let ask = ask(later, rng.u64(..));
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
    let ask = ask(now(), 0);
    assert!(set.pick(&ask).is_none());
    assert!(set.begin(&ask).is_none());
    assert!(!set.is_panicking());
}

#[test]
fn one_without_weight_takes_nothing_while_another_can() {
    for policy in ["least_request", "round_robin", "random", "maglev", "ring"] {
        let set = testing::weighted(policy, &[0, 1, 1]);
        let now = now();
        let counts = tally(&set, 2_000, &[], now);
        assert_eq!(counts[0], 0, "{policy}: {counts:?}");
        let ids: Vec<_> = set.endpoints().iter().map(|e| e.id).collect();
        assert_eq!(tally(&set, 100, &ids[1..], now), [100, 0, 0], "{policy}");
        set.endpoints()[1].eject(now + Duration::from_secs(60));
        set.recount();
        assert_eq!(tally(&set, 100, &[], now), [0, 0, 100], "{policy}");
        set.endpoints()[2].set_draining(true);
        set.endpoints()[1].recover(now);
        set.recount();
        assert_eq!(tally(&set, 100, &[], now), [0, 100, 0], "{policy}");
    }
}

#[test]
fn when_none_has_a_weight_all_are_alike() {
    let set = testing::weighted("least_request", &[0; 4]);
    assert_even(&tally(&set, 10_000, &[], now()), "all at zero");
}

#[test]
fn every_policy_avoids_what_was_tried_and_what_is_out_and_uses_all_in_panic() {
    let policies = [
        "least_request",
        "round_robin",
        "random",
        "least_response_time",
        "ip_hash",
        "maglev",
        "ring",
    ];
    for policy in policies {
        for weights in [vec![1; 6], vec![4, 1, 1, 2, 1, 1], vec![1; 30]] {
            let set = testing::weighted(policy, &weights);
            let now = now();
            let ids: Vec<_> = set.endpoints().iter().map(|e| e.id).collect();
            let size = ids.len();
            let last = tally(&set, 200, &ids[1..], now);
            assert_eq!(last[0], 200, "{policy}: the one that is left");
            assert_eq!(tally(&set, 200, &ids, now).iter().sum::<usize>(), 200);
            set.endpoints()[0].eject(now + Duration::from_secs(60));
            set.endpoints()[1].set_draining(true);
            set.recount();
            let counts = tally(&set, 3_000, &[], now);
            assert_eq!(counts[..2], [0, 0], "{policy}");
            assert!(counts[2..].iter().all(|&c| c > 0), "{policy}: {counts:?}");
            // All of them out: everybody is used.
            for endpoint in set.endpoints() {
                endpoint.eject(now + Duration::from_secs(60));
            }
            set.recount();
            assert!(set.is_panicking());
            let counts = tally(&set, 200 * size, &[], now);
            assert!(counts.iter().all(|&c| c > 0), "{policy}: {counts:?}");
        }
    }
}

#[test]
fn every_policy_starts_a_new_endpoint_slowly() {
    for policy in [
        "least_request",
        "round_robin",
        "random",
        "least_response_time",
    ] {
        for weights in [vec![1; 4], vec![2, 1, 1, 1, 1], vec![1; 20]] {
            let set = testing::weighted(policy, &weights);
            let now = now();
            set.endpoints()[1].warm(now);
            let full = 100_000.0 / f64::from(weights.iter().sum::<u16>());
            for (after, expected) in [(0, 0.1), (5, 0.5), (10, 1.0)] {
                let later = now + Duration::from_secs(after);
                let share = tally(&set, 100_000, &[], later)[1] as f64 / full;
                assert!(
                    (share - expected).abs() < 0.12,
                    "{policy} of {weights:?}: {share} of its share after {after} s"
                );
            }
        }
    }
}

#[test]
fn a_slow_start_is_as_long_as_the_service_says() {
    for (text, share) in [
        (r#"{"slow_start": "0s"}"#, 1.0),
        (r#"{"slow_start": "1m"}"#, 0.1),
    ] {
        let config: Config = serde_json::from_str(text).unwrap();
        let path = weft_runtime::config::Path::root();
        let policy = config.build(&path, &mut Default::default()).unwrap();
        let set = EndpointSet::new(&policy, endpoints(4), 0);
        let now = now();
        set.endpoints()[0].warm(now);
        let later = now + Duration::from_secs(3);
        let found = tally(&set, 40_000, &[], later)[0] as f64 / 10_000.0;
        assert!((found - share).abs() < 0.03, "{found} under {text}");
    }
}

#[test]
fn a_session_stays_where_it_is_while_that_takes_exchanges() {
    let set = testing::tiers("round_robin", &[3, 1]);
    let now = now();
    let home = set.endpoints()[3].address;
    let session = |n| Ask {
        session: Some(&home),
        ..ask(now, n)
    };
    let at_home = |set: &EndpointSet| {
        let picked = (0..100).filter(|&n| set.pick(&session(n)).unwrap().address == home);
        picked.count()
    };
    assert_eq!(at_home(&set), 100, "also in a lower tier");
    let id = set.endpoints()[3].id;
    let tried = Ask {
        tried: &[id],
        ..session(1)
    };
    assert_ne!(set.pick(&tried).unwrap().id, id, "but not twice");
    set.endpoints()[3].set_draining(true);
    set.recount();
    assert_eq!(at_home(&set), 0);
    set.endpoints()[3].set_draining(false);
    set.endpoints()[3].eject(now + Duration::from_secs(60));
    set.recount();
    assert_eq!(at_home(&set), 0);
    let elsewhere = "192.0.2.1:80".parse().unwrap();
    let lost = Ask {
        session: Some(&elsewhere),
        ..ask(now, 1)
    };
    assert!(set.pick(&lost).is_some(), "an address that is gone");
}

#[test]
fn an_exchange_that_shuns_a_family_goes_to_the_other_while_there_is_one() {
    let addresses = ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80", "[fd00::2]:80"];
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| Endpoint::new(address.parse().unwrap()))
        .collect();
    let now = now();
    for name in [
        "least_request",
        "round_robin",
        "random",
        "least_response_time",
        "ip_hash",
        "maglev",
        "ring",
    ] {
        let set = EndpointSet::new(&policy(name), endpoints.clone(), 1);
        let picked = |shuns, tried: &[u64], n: u64| {
            let ask = Ask {
                tried,
                shuns,
                ..keyed(now, n << 50, n << 50)
            };
            set.pick(&ask).unwrap().clone()
        };
        for n in 0..100 {
            let tried = [endpoints[2].id];
            let family = picked(Some(Family::V6), &tried, n).family();
            assert_eq!(family, Family::V4, "{name}");
            // There is nobody else: better than one that was tried.
            let tried = [0, 1, 2].map(|index| endpoints[index].id);
            let id = picked(Some(Family::V6), &tried, n).id;
            assert_eq!(id, endpoints[3].id, "{name}");
        }
    }
}
