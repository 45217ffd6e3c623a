//! The defaults on one page. Whoever changes one changes what every file means that does not say otherwise: it is changed
//! here too, on purpose. Those of the CA are in its crate.

use std::time::{Duration, Instant, SystemTime};

use weft_runtime::config::units::{Interval, Percent, Period};
use weft_runtime::drain;

use crate::balance::config::Name;
use crate::cluster::config::{Defaults, FAR, NEAR};
use crate::cluster::{limits, retry};
use crate::discovery::{self, belief};
use crate::endpoint::{Endpoint, FULL_WEIGHT, SLOW_START, window};
use crate::health::{self, outlier};
use crate::identity::renew::renew_at;
use crate::observe::registry;
use crate::plan::Timeouts;
use crate::{authn, balance, http, http1};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_defaults_sheet() {
    balancing_and_discovery();
    health_of_endpoints();
    retries();
    timeouts_and_limits();
    identity_and_keys();
}

fn balancing_and_discovery() {
    let defaults = Defaults::default();
    assert_eq!(defaults.balance, balance::Config::Short(Name::LeastRequest));
    assert_eq!(balance::SCAN, 8);
    assert_eq!(
        balance::config::Settings::default().slow_start,
        Period::seconds(10)
    );
    assert_eq!(SLOW_START, seconds(10));
    let (endpoint, now) = (Endpoint::new(([10, 0, 0, 1], 80).into()), Instant::now());
    endpoint.warm(now);
    assert_eq!(endpoint.warmth(now, SLOW_START), FULL_WEIGHT / 10);

    let dns = discovery::Config::default();
    assert_eq!(
        (dns.min_ttl, dns.max_ttl),
        (Period::seconds(1), Period::seconds(5))
    );
    assert_eq!(dns.stale, Period::seconds(3_600));
    assert_eq!((belief::ABSENT_TIMES, belief::ABSENT_FOR), (3, seconds(10)));
}

fn health_of_endpoints() {
    let probes = health::Config::default();
    assert_eq!(probes.interval, Interval::seconds(3));
    assert_eq!(probes.timeout, Interval::seconds(1));
    assert_eq!((probes.fall, probes.rise), (3, 2));
    // Nobody is probed unless the file says so.
    assert_eq!(Defaults::default().health, None);

    let expected = outlier::Config {
        enabled: true,
        consecutive: 5,
        ratio: Percent::new(50),
        ratio_requests: 20,
        ejection: Period::seconds(5),
        max_ejection: Period::seconds(60),
        jitter: Percent::new(50),
        forget_after: Period::seconds(60),
        max_ejected: Percent::new(50),
    };
    assert_eq!(Defaults::default().outlier, expected);
    assert_eq!(window::SPAN, seconds(10));
}

fn retries() {
    let expected = retry::Config {
        attempts: 1,
        budget: Percent::new(20),
        min_per_second: 3,
        statuses: Vec::new(),
        grpc_statuses: Vec::new(),
    };
    assert_eq!(Defaults::default().retry, expected);
    // Full jitter: from all of it down to nothing.
    let longest = [1, 2, 10].map(|retry| retry::backoff(retry, 0));
    assert_eq!(longest, [25, 50, 250].map(Duration::from_millis));
    assert!(retry::backoff(1, u64::MAX) < Duration::from_micros(1));
    assert_eq!(http::KEPT, 64 * 1024);
}

fn timeouts_and_limits() {
    let defaults = Defaults::default();
    assert_eq!(defaults.timeout, Period::seconds(15));
    assert_eq!(defaults.connect_timeout, None);
    assert_eq!((NEAR, FAR), (seconds(1), seconds(3)));
    let timeouts = Timeouts::default();
    assert_eq!(
        (timeouts.idle, timeouts.stream_idle),
        (seconds(60), seconds(300))
    );

    let expected = limits::Config {
        in_flight: 1_024,
        waiting: 1_024,
        wait: Period::millis(500),
        connections: None,
        endpoint: limits::EndpointConfig {
            in_flight: None,
            waiting: 128,
            connections: None,
        },
    };
    assert_eq!(defaults.limits, expected);
    let heads = http1::Limits::default();
    assert_eq!((heads.head_bytes, heads.fields), (64 * 1024, 128));
    let leaving = drain::Config::default();
    assert_eq!(
        (leaving.delay, leaving.timeout),
        (Period::seconds(5), Period::seconds(30))
    );
    assert_eq!((registry::IDLE, registry::MAX_KEYS), (seconds(600), 1_000));
}

fn identity_and_keys() {
    assert_eq!(authn::REFRESH, seconds(600));
    assert_eq!(authn::PATIENCE, seconds(24 * 3_600));
    let (now, life) = (SystemTime::UNIX_EPOCH, seconds(24 * 3_600));
    let at = |random| renew_at(now, now + life, now, random);
    let parts = [0.0, 0.5, 1.0].map(|random| at(random).duration_since(now).ok());
    assert_eq!(parts, [0.4, 0.5, 0.6].map(|part| Some(life.mul_f64(part))));
}
