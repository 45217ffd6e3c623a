//! Sets to pick from, and what statistics are expected of their picks.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use weft_runtime::config::{Path, Problems};

use super::*;
use crate::endpoint::place::Place;

/// A policy by its name, with a key where it needs one.
pub(super) fn policy(name: &str) -> Policy {
    long(&match name {
        "maglev" | "ring" => format!(r#"{{"policy": "{name}", "key": "source"}}"#),
        _ => format!(r#"{{"policy": "{name}"}}"#),
    })
}

/// A policy by its long form.
pub(super) fn long(text: &str) -> Policy {
    let config: Config = serde_json::from_str(text).unwrap();
    config.build(&Path::root(), &mut Problems::new()).unwrap()
}

fn place(index: usize) -> Place {
    let index = u32::try_from(index).unwrap();
    let address = std::net::Ipv4Addr::from(0x0a00_0001 + index);
    Place::new((address, 8_080).into())
}

fn endpoints(weights: &[u16]) -> Vec<Arc<Endpoint>> {
    let weighted = weights.iter().enumerate().map(|(index, &weight)| {
        Endpoint::at(Place {
            weight,
            ..place(index)
        })
    });
    weighted.collect()
}

/// A group of endpoints of these weights.
pub(super) fn group(weights: &[u16]) -> Group {
    Group::new(endpoints(weights).into(), crate::endpoint::SLOW_START)
}

/// A set of endpoints of these weights.
pub(super) fn weighted(name: &str, weights: &[u16]) -> EndpointSet {
    seeded(name, weights, 1)
}

pub(super) fn seeded(name: &str, weights: &[u16], seed: u64) -> EndpointSet {
    EndpointSet::new(&policy(name), endpoints(weights), seed)
}

/// One with a bound on the load.
pub(super) fn bounded(name: &str, weights: &[u16], max_load: f64) -> EndpointSet {
    let policy = long(&format!(
        r#"{{"policy": "{name}", "key": "source", "max_load": {max_load}}}"#
    ));
    EndpointSet::new(&policy, endpoints(weights), 1)
}

/// A set with so many endpoints in each tier, in this order.
pub(super) fn tiers(name: &str, sizes: &[usize]) -> EndpointSet {
    let priorities = sizes
        .iter()
        .enumerate()
        .flat_map(|(tier, &size)| std::iter::repeat_n(tier, size));
    let endpoints = priorities.enumerate().map(|(index, tier)| {
        Endpoint::at(Place {
            priority: u16::try_from(tier).unwrap(),
            ..place(index)
        })
    });
    EndpointSet::new(&policy(name), endpoints.collect(), 1)
}

/// A set with so many endpoints in each of the zones `0`, `1`, …, in this order, for a process in that zone.
pub(super) fn zones(name: &str, sizes: &[usize], own: Option<&str>) -> EndpointSet {
    let zones = sizes
        .iter()
        .enumerate()
        .flat_map(|(zone, &size)| std::iter::repeat_n(zone, size));
    let endpoints = zones.enumerate().map(|(index, zone)| {
        Endpoint::at(Place {
            zone: Some(zone.to_string().into()),
            ..place(index)
        })
    });
    let policy = policy(name).in_zone(own.map(Arc::from).as_ref());
    EndpointSet::new(&policy, endpoints.collect(), 1)
}

pub(super) fn now() -> Instant {
    Instant::now()
}

/// A question of an exchange without anything special.
pub(crate) fn ask(now: Instant, random: u64) -> Ask<'static> {
    Ask {
        tried: &[],
        shuns: None,
        now,
        random,
        key: None,
        session: None,
    }
}

/// The same with a key.
pub(super) fn keyed(now: Instant, key: u64, random: u64) -> Ask<'static> {
    Ask {
        key: Some(key),
        ..ask(now, random)
    }
}

/// Hashes of so many different keys.
pub(super) fn keys(count: usize) -> Vec<u64> {
    (0..count)
        .map(|n| dice::hash(format!("user-{n}").as_bytes()))
        .collect()
}

/// The index of the endpoint that a set picks.
pub(super) fn position(set: &EndpointSet, ask: &Ask<'_>) -> usize {
    let picked = set.pick(ask).unwrap();
    let found = set.endpoints().iter().position(|e| e.id == picked.id);
    found.unwrap()
}

/// Picks so many times, without beginning anything, and counts by position.
pub(super) fn tally(set: &EndpointSet, times: usize, tried: &[u64], now: Instant) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let asks = (0..times).map(|_| Ask {
        tried,
        ..ask(now, rng.u64(..))
    });
    count(set, asks)
}

/// The same for so many different keys.
pub(super) fn tally_keys(set: &EndpointSet, count_of_keys: usize) -> Vec<usize> {
    let now = now();
    count(
        set,
        keys(count_of_keys)
            .into_iter()
            .map(|key| keyed(now, key, 0)),
    )
}

fn count<'a>(set: &EndpointSet, asks: impl Iterator<Item = Ask<'a>>) -> Vec<usize> {
    let places: std::collections::HashMap<u64, usize> = set
        .endpoints()
        .iter()
        .enumerate()
        .map(|(index, endpoint)| (endpoint.id, index))
        .collect();
    let mut counts = vec![0; set.endpoints().len()];
    for ask in asks {
        counts[places[&set.pick(&ask).unwrap().id]] += 1;
    }
    counts
}

/// The part of so many keys that go elsewhere when one of `size` leaves.
pub(super) fn moved(policy: &Policy, size: usize, leaver: usize, count_of_keys: usize) -> f64 {
    let all = endpoints(&vec![1; size]);
    let mut rest = all.clone();
    rest.remove(leaver);
    let before = EndpointSet::new(policy, all, 1);
    let after = EndpointSet::new(policy, rest, 1);
    let now = now();
    let moves = keys(count_of_keys).into_iter().filter(|&key| {
        let ask = keyed(now, key, 0);
        before.pick(&ask).unwrap().id != after.pick(&ask).unwrap().id
    });
    moves.count() as f64 / count_of_keys as f64
}

/// Whether little more than the keys of the one that leaves go elsewhere, whichever it is.
pub(super) fn assert_few_move(policy: &Policy, size: usize) {
    for leaver in [0, size / 2, size - 1] {
        // Two thousand of them at least are the leaver's, so that the share is told to within a few per cent.
        let moved = moved(policy, size, leaver, 20_000.max(2_000 * size));
        assert!(moved * size as f64 <= 1.2, "{moved} of {size}");
    }
}

/// Five standard deviations of a fair draw by weight: a sound policy fails this once in a million seeds, and the seeds are
/// fixed.
pub(super) fn assert_shares(counts: &[usize], weights: &[u16]) {
    let total: usize = counts.iter().sum();
    let whole: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    for (&count, &weight) in counts.iter().zip(weights) {
        let share = f64::from(weight) / whole;
        let mean = total as f64 * share;
        let deviation = (mean * (1.0 - share)).sqrt();
        assert!(
            (count as f64 - mean).abs() <= 5.0 * deviation + 0.5,
            "{count}, not {mean}: {counts:?}"
        );
    }
}
