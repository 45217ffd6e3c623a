#![allow(clippy::unwrap_used)]

use super::*;
use crate::balance::testing::ask;
use crate::health::outlier;
use weft_runtime::config::units::Percent;
use weft_runtime::config::{Path, Problems};

/// In the middle: no jitter.
const MIDDLE: u64 = 1 << 63;

fn rules(change: impl FnOnce(&mut outlier::Config)) -> Rules {
    let mut config = outlier::Config::default();
    change(&mut config);
    let mut problems = Problems::new();
    config.build(&Path::root(), &mut problems).unwrap()
}

fn members() -> Members {
    Members::new("orders", balance::Policy::default(), Rules::default())
}

fn addresses(count: usize) -> Vec<SocketAddr> {
    (0..count)
        .map(|n| ([10, 0, (n >> 8) as u8, n as u8], 80).into())
        .collect()
}

/// One service with so many endpoints that have warmed up.
fn warm(count: usize) -> (Members, Instant) {
    let members = members();
    let now = Instant::now();
    members.apply(addresses(count), now);
    (members, now + SLOW_START)
}

fn endpoint(members: &Members, index: usize) -> Arc<Endpoint> {
    Arc::clone(&members.load().endpoints()[index])
}

fn fail(members: &Members, endpoint: &Arc<Endpoint>, times: usize, now: Instant) {
    for _ in 0..times {
        members.record(&mut endpoint.begin(), Outcome::RemoteFailure, now, MIDDLE);
    }
}

fn until(endpoint: &Endpoint, now: Instant) -> Option<Duration> {
    match endpoint.state() {
        State::Ejected { until } => Some(until.saturating_duration_since(now)),
        _ => None,
    }
}

fn ejected(members: &Members) -> usize {
    let set = members.load();
    set.endpoints().iter().filter(|e| e.is_ejected()).count()
}

#[test]
fn five_failures_in_a_row_eject_for_five_seconds() {
    let (members, now) = warm(3);
    let sick = endpoint(&members, 0);
    fail(&members, &sick, 4, now);
    assert_eq!(sick.state(), State::Healthy);
    fail(&members, &sick, 1, now);
    let time = until(&sick, now).unwrap();
    assert!(time.abs_diff(Duration::from_secs(5)) < Duration::from_millis(5));
    assert_eq!(members.ejections(), 1);
    assert_eq!(members.load().available(), 2);
}

#[test]
fn half_of_twenty_eject_though_never_five_in_a_row() {
    let (members, now) = warm(2);
    let sick = endpoint(&members, 0);
    let mut ended = 0;
    while !sick.is_ejected() {
        let outcome = if ended % 2 == 0 {
            Outcome::LocalFailure
        } else {
            Outcome::Success
        };
        members.record(&mut sick.begin(), outcome, now, MIDDLE);
        ended += 1;
        assert!(ended < 100);
    }
    // The 21st exchange is the first failure with twenty behind it: 11 of 21.
    assert_eq!(ended, 21);
}

#[test]
fn a_probe_brings_it_back_slowly() {
    let (members, now) = warm(3);
    let sick = endpoint(&members, 0);
    fail(&members, &sick, 5, now);
    let later = now + Duration::from_secs(6);
    let mut probe = sick.admit(later).unwrap();
    members.record(&mut probe, Outcome::Success, later, MIDDLE);
    assert_eq!(sick.state(), State::Healthy);
    assert_eq!(members.load().available(), 3);
    assert!(sick.warmth(later, SLOW_START) < crate::endpoint::FULL_WEIGHT / 5);
    // The next time lasts twice as long, until a clean minute has passed.
    fail(&members, &sick, 5, later);
    assert_eq!(until(&sick, later).unwrap().as_secs_f64().round(), 10.0);
}

#[test]
fn a_failed_probe_doubles_the_time() {
    for outcome in [
        Outcome::RemoteFailure,
        Outcome::LocalFailure,
        Outcome::Pushback,
    ] {
        let (members, mut now) = warm(3);
        let sick = endpoint(&members, 0);
        fail(&members, &sick, 5, now);
        for seconds in [10.0, 20.0, 40.0, 60.0, 60.0] {
            now += until(&sick, now).unwrap() + Duration::from_millis(5);
            let mut probe = sick.admit(now).unwrap();
            members.record(&mut probe, outcome, now, MIDDLE);
            let time = until(&sick, now).unwrap().as_secs_f64();
            assert_eq!(time.round(), seconds, "{outcome:?}");
            assert!(sick.admit(now).is_none());
        }
        assert_eq!(sick.totals().ejections, 6);
    }
}

#[test]
fn only_the_probe_decides() {
    let (members, now) = warm(3);
    let sick = endpoint(&members, 0);
    let mut old = [sick.begin(), sick.begin(), sick.begin()];
    fail(&members, &sick, 5, now);
    let later = now + Duration::from_secs(6);
    let mut probe = sick.admit(later).unwrap();
    for exchange in &mut old {
        members.record(exchange, Outcome::RemoteFailure, later, MIDDLE);
        members.record(exchange, Outcome::Success, later, MIDDLE);
    }
    assert_eq!(sick.state(), State::Probing);
    members.record(&mut probe, Outcome::Success, later, MIDDLE);
    assert_eq!(sick.state(), State::Healthy);
}

#[test]
fn a_single_endpoint_is_never_ejected_and_of_two_one() {
    let (members, now) = warm(1);
    fail(&members, &endpoint(&members, 0), 100, now);
    assert_eq!(ejected(&members), 0);

    let (members, now) = warm(2);
    fail(&members, &endpoint(&members, 0), 100, now);
    fail(&members, &endpoint(&members, 1), 100, now);
    assert_eq!(ejected(&members), 1);
    assert!(endpoint(&members, 0).is_ejected());
}

/// Random exchanges, probes that fail, succeed and vanish, membership and rule changes, in random order.
#[test]
fn never_the_last_and_never_more_than_allowed() {
    for size in 1..=20_usize {
        for seed in 0..30 {
            let mut rng = fastrand::Rng::with_seed(seed * 100 + size as u64);
            let members = members();
            let mut now = Instant::now();
            let all = addresses(size);
            members.apply(all.clone(), now);
            let mut limit = 50;
            let mut held: Vec<InFlight> = Vec::new();
            for step in 0..400 {
                now += Duration::from_millis(rng.u64(..2_000));
                match rng.u32(..40) {
                    0 => {
                        let mut some = all.clone();
                        rng.shuffle(&mut some);
                        some.truncate(rng.usize(..=size));
                        members.apply(some, now);
                    }
                    1 => {
                        limit = rng.u8(..=100);
                        let rules = rules(|config| config.max_ejected = Percent::new(limit));
                        members.configure(balance::Policy::default(), rules, now);
                    }
                    2 if !held.is_empty() => {
                        held.swap_remove(rng.usize(..held.len()));
                    }
                    3..=8 if !held.is_empty() => {
                        let mut exchange = held.swap_remove(rng.usize(..held.len()));
                        let outcome = if rng.u8(..4) == 0 {
                            Outcome::Success
                        } else {
                            Outcome::LocalFailure
                        };
                        members.record(&mut exchange, outcome, now, rng.u64(..));
                    }
                    _ => {
                        let ask = ask(now, rng.u64(..));
                        let set = members.load();
                        let exchange = set.begin(&ask);
                        assert_eq!(exchange.is_none(), set.endpoints().is_empty());
                        held.extend(exchange);
                        // Some keep failing, so that the limit is really reached.
                        if let Some(endpoint) = set.endpoints().get(rng.usize(..size)) {
                            let mut exchange = endpoint.begin();
                            let outcome = Outcome::RemoteFailure;
                            members.record(&mut exchange, outcome, now, rng.u64(..));
                        }
                    }
                }
                let set = members.load();
                let present = set.endpoints().len();
                let out = ejected(&members);
                let share = present * usize::from(limit) / 100;
                let allowed = if present < 2 {
                    0
                } else {
                    share.clamp(1, present - 1)
                };
                assert!(
                    out <= allowed,
                    "{out} of {present} out at {limit}%: size {size}, seed {seed}, step {step}"
                );
                assert_eq!(set.available(), present - out);
                let in_flight: u32 = set.endpoints().iter().map(|e| e.in_flight()).sum();
                assert!(in_flight as usize <= held.len());
            }
            drop(held);
            let set = members.load();
            assert!(set.endpoints().iter().all(|e| e.in_flight() == 0));
            assert!(
                size == 1 || members.ejections() > 0,
                "the test must reach ejections: size {size}, seed {seed}"
            );
        }
    }
}

fn allowed(present: usize, percent: u8) -> usize {
    if present < 2 {
        return 0;
    }
    (present * usize::from(percent) / 100).clamp(1, present - 1)
}

/// Every number of endpoints up to twenty, and of each every number of them that fails, by every share.
#[test]
fn as_many_as_fail_are_ejected_and_no_more_than_allowed_and_all_return() {
    for size in 1..=20_usize {
        for sick in 0..=size {
            for percent in [0, 10, 29, 50, 67, 100] {
                let (members, mut now) = warm(size);
                let rules = rules(|config| config.max_ejected = Percent::new(percent));
                members.configure(balance::Policy::default(), rules, now);
                let told = format!("{sick} of {size} fail, {percent}%");
                for _ in 0..5 {
                    for index in 0..sick {
                        fail(&members, &endpoint(&members, index), 1, now);
                    }
                }
                let out = sick.min(allowed(size, percent));
                assert_eq!(ejected(&members), out, "{told}");
                assert_eq!(members.load().available(), size - out, "{told}");
                let panics = 2 * (size - out) < size;
                assert_eq!(members.load().is_panicking(), panics, "{told}");
                assert_eq!(members.summary().panics, u64::from(panics), "{told}");
                // Whatever is out, somebody serves.
                let ask = ask(now, 7);
                assert!(members.load().begin(&ask).is_some(), "{told}");

                // Well again: each of those that are out returns by exactly one probe.
                now += Duration::from_secs(61);
                for index in 0..size {
                    let endpoint = endpoint(&members, index);
                    if !endpoint.is_ejected() {
                        continue;
                    }
                    let mut probe = endpoint.admit(now).unwrap();
                    assert!(endpoint.admit(now).is_none(), "{told}: one probe only");
                    members.record(&mut probe, Outcome::Success, now, MIDDLE);
                    assert_eq!(endpoint.state(), State::Healthy, "{told}");
                }
                assert_eq!(ejected(&members), 0, "{told}");
                assert!(!members.load().is_panicking(), "{told}");
            }
        }
    }
}

/// Outcomes, probes of health, draining, and members that come and go, in random order; then everybody is well, and
/// nobody may be left out for ever.
#[test]
fn nobody_is_stuck_whatever_happened() {
    let checks = Checks::default();
    for size in 1..=20_usize {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed * 100 + size as u64);
            let (members, mut now) = warm(size);
            let all = addresses(size);
            let mut held: Vec<InFlight> = Vec::new();
            for step in 0..300 {
                let told = format!("size {size}, seed {seed}, step {step}");
                now += Duration::from_millis(rng.u64(..3_000));
                let set = members.load();
                let some = match set.endpoints() {
                    [] => None,
                    endpoints => Some(Arc::clone(&endpoints[rng.usize(..endpoints.len())])),
                };
                let out = ejected(&members);
                match (rng.u32(..30), some) {
                    (0, _) => {
                        let mut some = all.clone();
                        rng.shuffle(&mut some);
                        some.truncate(rng.usize(..=size));
                        members.apply(some, now);
                    }
                    (1 | 2, Some(one)) => {
                        members.set_draining(one.address, rng.bool());
                    }
                    (3..=10, Some(one)) => {
                        let outcome = if rng.u8(..3) == 0 {
                            Ok(())
                        } else {
                            Err("answered 500".to_owned())
                        };
                        members.probed(&one, outcome, &checks, now);
                    }
                    (11..=18, Some(one)) => {
                        // Not by a pick: also what is out may still fail.
                        fail(&members, &one, rng.usize(..6), now);
                        if ejected(&members) > out {
                            assert!(members.load().available() > 0, "not the last one: {told}");
                        }
                    }
                    (19..=22, _) if !held.is_empty() => {
                        let mut exchange = held.swap_remove(rng.usize(..held.len()));
                        if rng.bool() {
                            let outcome = Outcome::LocalFailure;
                            members.record(&mut exchange, outcome, now, rng.u64(..));
                        }
                    }
                    _ => {
                        let random = rng.u64(..);
                        let ask = ask(now, random);
                        let exchange = members.load().begin(&ask);
                        let is_empty = members.load().endpoints().is_empty();
                        assert_eq!(exchange.is_none(), is_empty, "{told}");
                        held.extend(exchange);
                    }
                }
                let set = members.load();
                let present = set.endpoints().len();
                assert!(ejected(&members) <= allowed(present, 50), "{told}");
                let available = set.endpoints().iter().filter(|e| !e.is_out()).count();
                assert_eq!(set.available(), available, "{told}");
                assert_eq!(set.is_panicking(), 2 * available < present, "{told}");
                let probing = |e: &&Arc<Endpoint>| e.state() == State::Probing;
                for one in set.endpoints().iter().filter(probing) {
                    let probes = held
                        .iter()
                        .filter(|flight| flight.endpoint().id == one.id && flight.is_probe());
                    assert_eq!(probes.count(), 1, "one probe, and somebody has it: {told}");
                }
            }
            held.clear();
            members.apply(all.clone(), now);
            now += Duration::from_secs(61);
            for address in all {
                members.set_draining(address, false);
            }
            for _ in 0..checks.rise {
                for index in 0..size {
                    members.probed(&endpoint(&members, index), Ok(()), &checks, now);
                }
            }
            for index in 0..size {
                if let Some(mut exchange) = endpoint(&members, index).admit(now) {
                    members.record(&mut exchange, Outcome::Success, now, MIDDLE);
                }
                let state = endpoint(&members, index).state();
                assert_eq!(state, State::Healthy, "size {size}, seed {seed}");
            }
            assert_eq!(members.load().available(), size);
        }
    }
}

#[test]
fn one_that_fails_its_probes_is_passed_over_until_it_passes() {
    let (members, now) = warm(3);
    let (checks, sick) = (Checks::default(), endpoint(&members, 0));
    let probe = |outcome: Result<(), &str>| {
        members.probed(&sick, outcome.map_err(str::to_owned), &checks, now);
    };
    probe(Ok(()));
    probe(Err("answered 500"));
    probe(Err("answered 500"));
    assert!(sick.is_available(now));
    assert_eq!(members.view()[0].failure.as_deref(), Some("answered 500"));
    probe(Err("answered 503"));
    assert_eq!(sick.state(), State::Unhealthy);
    assert!(sick.admit(now).is_none());
    assert_eq!(members.load().available(), 2);
    assert_eq!(members.view()[0].verdict, Verdict::Failing);
    assert_eq!(members.view()[0].failure.as_deref(), Some("answered 503"));
    // It keeps that through what DNS does.
    members.apply(addresses(3)[1..].to_vec(), now);
    probe(Ok(()));
    members.apply(addresses(3), now);
    assert_eq!(sick.state(), State::Unhealthy);
    probe(Ok(()));
    assert_eq!(sick.state(), State::Unhealthy);
    probe(Ok(()));
    assert_eq!(sick.state(), State::Healthy);
    assert!(
        sick.warmth(now, SLOW_START) < crate::endpoint::FULL_WEIGHT / 5,
        "slowly"
    );
    let summary = members.summary();
    assert_eq!((summary.probes_passed, summary.probes_failed), (4, 3));
}

#[test]
fn the_last_that_is_left_is_not_ejected_whyever_the_others_are_out() {
    let (members, now) = warm(4);
    members.set_draining(addresses(4)[0], true);
    for index in [1, 2] {
        for _ in 0..3 {
            let failed = Err("answered 500".to_owned());
            members.probed(&endpoint(&members, index), failed, &Checks::default(), now);
        }
    }
    let last = endpoint(&members, 3);
    fail(&members, &last, 50, now);
    assert!(!last.is_ejected());
    assert_eq!(members.load().available(), 1);
    assert!(members.load().is_panicking());
}

#[test]
fn panic_is_told_and_counted_over_all_sets() {
    let (members, now) = warm(3);
    for index in 0..2 {
        for _ in 0..3 {
            let failed = Err("answered 500".to_owned());
            members.probed(&endpoint(&members, index), failed, &Checks::default(), now);
        }
    }
    assert!(members.summary().panicking);
    let pick = || {
        let ask = ask(now, 3);
        members.load().begin(&ask).unwrap()
    };
    (0..5).for_each(|_| drop(pick()));
    assert_eq!(members.summary().panic_picks, 5);
    members.apply(addresses(5), now);
    let summary = members.summary();
    assert_eq!((summary.panicking, summary.panics), (false, 1));
    drop(pick());
    assert_eq!(
        members.summary().panic_picks,
        5,
        "none forgotten, none added"
    );
}

#[test]
fn an_old_probe_does_not_end_a_newer_one() {
    let (members, now) = warm(2);
    let sick = endpoint(&members, 0);
    fail(&members, &sick, 5, now);
    let later = now + Duration::from_secs(60);
    let mut old = sick.admit(later).unwrap();
    // Taken back because the other left, and ejected again once that was back.
    members.apply(addresses(1), later);
    members.apply(addresses(2), later);
    fail(&members, &sick, 5, later);
    let last = later + Duration::from_secs(60);
    let newer = sick.admit(last).unwrap();
    assert!(!old.is_probe());
    members.record(&mut old, Outcome::Success, last, MIDDLE);
    drop(old);
    assert_eq!(sick.state(), State::Probing);
    assert!(sick.admit(last).is_none());
    drop(newer);
    assert!(sick.admit(last).is_some());
}

#[test]
fn the_rules_hold_when_all_cores_report_at_once() {
    let (members, now) = warm(4);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let members = &members;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                for millis in 0..5_000 {
                    let now = now + Duration::from_millis(millis * 3);
                    let ask = ask(now, rng.u64(..));
                    let mut exchange = members.load().begin(&ask).unwrap();
                    let outcome = if rng.bool() {
                        Outcome::LocalFailure
                    } else {
                        Outcome::Success
                    };
                    members.record(&mut exchange, outcome, now, rng.u64(..));
                    assert!(ejected(members) <= 2);
                }
            });
        }
    });
    let set = members.load();
    assert!(set.endpoints().iter().all(|e| e.in_flight() == 0));
    assert!(members.ejections() > 0);
}

#[test]
fn a_failing_replica_gets_next_to_nothing() {
    let (members, start) = warm(3);
    let sick = endpoint(&members, 1);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut to_sick = 0;
    // A minute of 200 requests a second.
    for n in 0..12_000 {
        let now = start + Duration::from_millis(5 * n);
        let ask = ask(now, rng.u64(..));
        let mut exchange = members.load().begin(&ask).unwrap();
        let outcome = if exchange.endpoint().id == sick.id {
            to_sick += 1;
            Outcome::RemoteFailure
        } else {
            Outcome::Success
        };
        members.record(&mut exchange, outcome, now, rng.u64(..));
    }
    assert!((5..=15).contains(&to_sick), "{to_sick} of 12,000");
}

#[test]
fn state_survives_membership_changes() {
    let (members, now) = warm(4);
    let sick = endpoint(&members, 0);
    fail(&members, &sick, 5, now);
    let mut grown = addresses(5);
    grown.reverse();
    assert!(members.apply(grown, now));
    assert_eq!(endpoint(&members, 0).id, sick.id);
    assert!(endpoint(&members, 0).is_ejected());
    assert_eq!(members.load().available(), 4);
}

#[test]
fn an_address_that_comes_back_within_ten_minutes_is_the_same_endpoint() {
    let check = |away: u64, same: bool| {
        let (members, now) = warm(4);
        let sick = endpoint(&members, 0);
        fail(&members, &sick, 5, now);
        members.apply(addresses(4)[1..].to_vec(), now);
        let later = now + Duration::from_secs(away);
        members.apply(addresses(4), later);
        let back = endpoint(&members, 0);
        assert_eq!(back.id == sick.id, same, "after {away} s");
        assert_eq!(back.is_ejected(), same, "after {away} s");
    };
    check(1, true);
    check(599, true);
    check(600, false);
}

#[test]
fn a_record_that_flickers_does_not_start_the_endpoint_anew() {
    let (members, now) = warm(4);
    let same = endpoint(&members, 0);
    let full = crate::endpoint::FULL_WEIGHT;
    assert_eq!(same.warmth(now, SLOW_START), full);
    members.apply(addresses(4)[1..].to_vec(), now);
    members.apply(addresses(4), now + Duration::from_secs(1));
    assert_eq!(same.warmth(now + Duration::from_secs(1), SLOW_START), full);
    members.apply(addresses(4)[1..].to_vec(), now);
    members.apply(addresses(4), now + Duration::from_secs(60));
    assert!(same.warmth(now + Duration::from_secs(60), SLOW_START) < full);
}

#[test]
fn when_the_healthy_ones_go_the_ejected_come_back() {
    let (members, now) = warm(4);
    let (first, second) = (endpoint(&members, 0), endpoint(&members, 1));
    fail(&members, &first, 5, now);
    fail(&members, &second, 5, now + Duration::from_secs(1));
    assert_eq!(ejected(&members), 2);
    members.apply(addresses(2), now);
    // The one whose time is over first.
    assert!(!first.is_ejected());
    assert!(second.is_ejected());
    assert_eq!(members.load().available(), 1);
    members.apply(addresses(2)[1..].to_vec(), now);
    assert!(!second.is_ejected());
}

/// Three of one tier and one of the next.
fn two_tiers() -> Vec<Place> {
    let mut places: Vec<Place> = addresses(4).into_iter().map(Place::new).collect();
    places[3].priority = 1;
    places
}

/// Does something while the set of these places is being made, which it is for as long as that takes.
fn while_building(members: &Members, next: Vec<Place>, now: Instant, act: impl FnOnce() + Send) {
    let (set, left) = (Arc::clone(&members.load()), next.len());
    let held = set.hold_next().expect("it has tiers");
    std::thread::scope(|scope| {
        scope.spawn(|| members.apply(next, now));
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        scope.spawn(move || {
            while lock(&members.known).present.len() != left {
                std::thread::yield_now();
            }
            act();
            done.send(()).unwrap();
        });
        let ended = is_done.recv_timeout(Duration::from_secs(10));
        drop(held);
        assert!(ended.is_ok(), "it waited for the set");
    });
}

#[test]
fn exchanges_end_and_endpoints_drain_while_a_set_is_being_made() {
    let (members, now) = (members(), Instant::now());
    members.apply(two_tiers(), now);
    let (sick, leaving) = (endpoint(&members, 0), endpoint(&members, 1));
    let (before, later) = (members.generation(), now + SLOW_START);
    while_building(&members, two_tiers()[..3].to_vec(), later, || {
        fail(&members, &sick, 5, later);
        assert!(sick.is_ejected());
        assert!(members.set_draining(leaving.address, true));
        assert_eq!(members.summary().available, 2);
        assert_eq!(members.generation(), before, "it is still being made");
    });
    assert_eq!(members.generation(), before + 1);
    assert!(sick.is_ejected());
    let summary = members.summary();
    assert_eq!((summary.endpoints, summary.available), (3, 1));
    assert!(summary.panicking, "one of three is well");
}

#[test]
fn who_was_ejected_while_a_set_was_made_where_it_is_the_last_comes_back() {
    let (members, now) = (members(), Instant::now());
    members.apply(two_tiers(), now);
    let (sick, later) = (endpoint(&members, 0), now + SLOW_START);
    while_building(&members, two_tiers()[..1].to_vec(), later, || {
        fail(&members, &sick, 5, later);
        assert!(sick.is_ejected(), "three others are well");
    });
    assert!(!sick.is_ejected());
    assert_eq!(members.load().available(), 1);
}

#[test]
fn a_probe_under_way_when_its_endpoint_is_taken_back_harms_nobody() {
    for outcome in [Outcome::Success, Outcome::LocalFailure] {
        let (members, now) = warm(2);
        let sick = endpoint(&members, 0);
        fail(&members, &sick, 5, now);
        let later = now + Duration::from_secs(6);
        let mut probe = sick.admit(later).unwrap();
        members.apply(addresses(1), later);
        assert_eq!(sick.state(), State::Healthy);
        members.record(&mut probe, outcome, later, MIDDLE);
        assert_eq!(sick.state(), State::Healthy);
    }
}

#[test]
fn an_endpoint_that_left_while_probing_keeps_what_was_learnt() {
    let (members, now) = warm(4);
    let sick = endpoint(&members, 0);
    fail(&members, &sick, 5, now);
    let later = now + Duration::from_secs(6);
    let mut probe = sick.admit(later).unwrap();
    members.apply(addresses(4)[1..].to_vec(), later);
    members.record(&mut probe, Outcome::RemoteFailure, later, MIDDLE);
    members.apply(addresses(4), later);
    let time = until(&endpoint(&members, 0), later).unwrap();
    assert_eq!(time.as_secs_f64().round(), 10.0);
}

#[test]
fn switching_detection_off_takes_everything_back() {
    let (members, now) = warm(4);
    fail(&members, &endpoint(&members, 0), 5, now);
    assert_eq!(ejected(&members), 1);
    let off = rules(|config| config.enabled = false);
    members.configure(balance::Policy::default(), off, now);
    assert_eq!(ejected(&members), 0);
    fail(&members, &endpoint(&members, 0), 500, now);
    assert_eq!(ejected(&members), 0);
}

#[test]
fn draining_endpoints_are_passed_over_unless_too_many() {
    let (members, now) = warm(3);
    let address = |index| addresses(3)[index];
    members.set_draining(address(0), true);
    assert_eq!(members.load().available(), 2);
    assert!(!members.load().is_panicking());
    members.set_draining(address(1), true);
    assert!(members.load().is_panicking());
    let ask = ask(now, 3);
    assert!(members.load().begin(&ask).is_some());
    members.set_draining(address(1), false);
    assert!(!members.load().is_panicking());
}

#[test]
fn memberships_are_sorted_deduplicated_and_swapped_only_when_they_change() {
    let members = members();
    let now = Instant::now();
    assert_eq!(members.generation(), 0);
    assert!(!members.apply(Vec::<Place>::new(), now));
    let mut twice = [addresses(3), addresses(3)].concat();
    twice.reverse();
    assert!(members.apply(twice, now));
    let found: Vec<_> = members
        .load()
        .endpoints()
        .iter()
        .map(|e| e.address)
        .collect();
    assert_eq!(found, addresses(3));
    assert_eq!(members.generation(), 1);
    assert!(!members.apply(addresses(3), now));
    assert_eq!(members.generation(), 1);
    assert!(members.apply(Vec::<Place>::new(), now));
    assert!(members.load().endpoints().is_empty());
    assert_eq!(members.generation(), 2);
}

#[test]
fn what_discovery_says_of_an_address_may_change_and_nothing_known_is_lost() {
    let (members, now) = warm(4);
    let sick = endpoint(&members, 0);
    fail(&members, &sick, 5, now);
    assert!(sick.is_ejected());
    let mut places: Vec<Place> = addresses(4).into_iter().map(Place::new).collect();
    places[0].weight = 3;
    places[0].priority = 1;
    places[0].zone = Some("a".into());
    let before = members.generation();
    assert!(members.apply(places.clone(), now));
    assert_eq!(members.generation(), before + 1, "policies see it");
    let same = endpoint(&members, 0);
    assert_eq!(same.id, sick.id);
    assert_eq!(*same.place(), places[0]);
    assert!(same.is_ejected());
    assert!(!members.apply(places.clone(), now));
    // Twice the same address: the tier that is used first counts, whatever the order.
    let mut twice = vec![places[0].clone(), Place::new(places[0].address)];
    twice.extend_from_slice(&places[1..]);
    assert!(members.apply(twice, now));
    assert_eq!(endpoint(&members, 0).place().priority, 0);
    assert_eq!(members.load().endpoints().len(), 4);
    // One that comes back is where discovery says it is now.
    members.apply(places[1..].to_vec(), now);
    assert!(members.apply(places.clone(), now));
    assert_eq!(*endpoint(&members, 0).place(), places[0]);
    assert!(endpoint(&members, 0).is_ejected());
}

#[test]
fn no_more_than_ten_thousand_endpoints_are_used() {
    let members = members();
    let now = Instant::now();
    members.apply(addresses(MOST_ENDPOINTS + 1), now);
    assert_eq!(members.load().endpoints().len(), MOST_ENDPOINTS);
    members.apply(addresses(MOST_ENDPOINTS), now);
    assert_eq!(members.generation(), 1);
}

#[test]
fn no_more_than_a_thousand_and_some_are_remembered_the_ejected_before_all() {
    let members = members();
    let now = Instant::now();
    members.apply(addresses(MOST_GONE + 500), now);
    let sick = endpoint(&members, MOST_GONE + 499);
    fail(&members, &sick, 5, now);
    assert!(sick.is_ejected());
    members.apply(Vec::<Place>::new(), now);
    assert_eq!(lock(&members.known).gone.len(), MOST_GONE);
    members.apply(addresses(MOST_GONE + 500), now);
    assert_eq!(endpoint(&members, MOST_GONE + 499).id, sick.id);
    assert_eq!(lock(&members.known).gone.len(), 0);
    // And nobody for longer than ten minutes.
    members.apply(addresses(1), now);
    members.apply(addresses(2), now + REMEMBER_GONE);
    members.apply(addresses(1), now + REMEMBER_GONE);
    assert_eq!(lock(&members.known).gone.len(), 1);
}

#[test]
fn churn_of_addresses_does_not_grow_memory() {
    let members = members();
    let mut now = Instant::now();
    for round in 0..5_000_u32 {
        now += Duration::from_millis(10);
        let address = SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + round), 80));
        members.apply(vec![address], now);
    }
    let known = lock(&members.known);
    assert_eq!(known.present.len(), 1);
    assert_eq!(known.gone.len(), MOST_GONE);
}
