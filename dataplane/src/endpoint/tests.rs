#![allow(clippy::unwrap_used)]

use super::*;

fn endpoint() -> Arc<Endpoint> {
    Endpoint::new("127.0.0.1:80".parse().unwrap())
}

#[test]
fn in_flight_is_exact_however_exchanges_end() {
    let endpoint = endpoint();
    let held: Vec<_> = (0..5).map(|_| endpoint.begin()).collect();
    assert_eq!(endpoint.in_flight(), 5);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _exchange = endpoint.begin();
        panic!("a task dies in the middle");
    }));
    assert!(panicked.is_err());
    assert_eq!(endpoint.in_flight(), 5);
    std::thread::scope(|scope| {
        for exchange in held {
            scope.spawn(move || drop(exchange));
        }
    });
    assert_eq!(endpoint.in_flight(), 0);
    assert_eq!(endpoint.totals().picks, 6);
}

#[test]
fn an_ejected_endpoint_admits_one_probe_when_its_time_is_over() {
    let endpoint = endpoint();
    let now = Instant::now();
    let until = now + Duration::from_secs(5);
    endpoint.eject(until);
    assert!(!endpoint.is_available(now));
    assert!(endpoint.admit(now).is_none());

    let later = until + Duration::from_millis(1);
    assert!(endpoint.is_available(later));
    let probe = endpoint.admit(later).unwrap();
    assert!(probe.is_probe());
    assert_eq!(endpoint.state(), State::Probing);
    assert!(!endpoint.is_available(later));
    assert!(endpoint.admit(later).is_none());
}

#[test]
fn only_one_of_many_threads_gets_the_probe() {
    for _ in 0..200 {
        let endpoint = endpoint();
        let now = Instant::now();
        endpoint.eject(now);
        let barrier = std::sync::Barrier::new(4);
        let probes: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        endpoint.admit(now + Duration::from_secs(1))
                    })
                })
                .collect();
            // All are kept until all have asked: a dropped probe would free the place.
            let got: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            got.iter().flatten().count()
        });
        assert_eq!(probes, 1);
    }
}

#[test]
fn a_probe_that_never_reports_frees_its_place() {
    let endpoint = endpoint();
    let now = Instant::now();
    endpoint.eject(now);
    let later = now + Duration::from_secs(1);
    drop(endpoint.admit(later).unwrap());
    assert!(matches!(endpoint.state(), State::Ejected { .. }));
    assert!(endpoint.admit(later).unwrap().is_probe());
}

#[test]
fn rows_of_failures_are_counted_apart() {
    use Outcome::{LocalFailure, Pushback, RemoteFailure, Success};
    let now = Instant::now();
    let check = |outcomes: &[Outcome], local: u32, remote: u32| {
        let endpoint = endpoint();
        outcomes.iter().for_each(|&o| endpoint.count(o, now));
        let recent = endpoint.recent(now);
        assert_eq!(
            (recent.local_in_a_row, recent.remote_in_a_row),
            (local, remote),
            "{outcomes:?}"
        );
    };
    check(&[], 0, 0);
    check(&[LocalFailure, LocalFailure], 2, 0);
    check(&[RemoteFailure, RemoteFailure], 0, 2);
    check(&[LocalFailure, Success], 0, 0);
    check(&[RemoteFailure, Success], 0, 0);
    // An answer, even a bad one, shows that the network is well.
    check(&[LocalFailure, RemoteFailure], 0, 1);
    check(&[LocalFailure, Pushback], 0, 0);
    // A connection that fails says nothing about the app.
    check(&[RemoteFailure, LocalFailure, RemoteFailure], 0, 2);
    check(&[RemoteFailure, Pushback, RemoteFailure], 0, 2);
}

#[test]
fn weight_grows_from_a_tenth_to_full_in_ten_seconds() {
    let endpoint = endpoint();
    let now = Instant::now();
    assert_eq!(endpoint.warmth(now, SLOW_START), FULL_WEIGHT);
    endpoint.warm(now);
    for (seconds, expected) in [(0, 102), (1, 102), (2, 204), (5, 512), (9, 921), (10, 1024)] {
        assert_eq!(
            endpoint.warmth(now + Duration::from_secs(seconds), SLOW_START),
            expected,
            "after {seconds} s"
        );
    }
    // Warm for good: a clock that looks back does not cool it.
    assert_eq!(endpoint.warmth(now, SLOW_START), FULL_WEIGHT);
}

#[test]
fn ejection_forgets_what_led_to_it() {
    let endpoint = endpoint();
    let now = Instant::now();
    (0..30).for_each(|_| endpoint.count(Outcome::RemoteFailure, now));
    endpoint.eject(now + Duration::from_secs(1));
    assert_eq!(endpoint.recent(now), Recent::default());
    endpoint.count(Outcome::RemoteFailure, now);
    endpoint.recover(now);
    assert_eq!(endpoint.recent(now), Recent::default());
    assert_eq!(endpoint.state(), State::Healthy);
    assert_eq!(endpoint.warmth(now, SLOW_START), MIN_WEIGHT);
    assert_eq!(endpoint.totals().remote_failures, 31);
    assert_eq!(endpoint.totals().ejections, 1);
}
