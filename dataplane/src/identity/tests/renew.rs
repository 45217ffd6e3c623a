//! When to renew and when to try again, as tables.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::identity::renew::{renew_at, retry_after};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn renewal_is_at_half_the_life_give_or_take_a_tenth() {
    const DAY: u64 = 86_400;
    // not before, not after, obtained, random → when
    let cases = [
        (0, 1000, 0, 0.5, 500),
        (0, 1000, 0, 0.0, 400),
        (0, 1000, 0, 1.0, 600),
        (0, DAY, 0, 0.5, DAY / 2),
        // Backdating does not count.
        (0, 60 + DAY, 60, 0.5, 60 + DAY / 2),
        (0, 80, 60, 0.5, 70),
        (0, 80, 60, 0.0, 68),
        // Obtained late in its life: half of the rest.
        (0, 1000, 900, 0.5, 950),
        // Our clock is behind the CA's.
        (100, 200, 50, 0.5, 150),
        // Over already.
        (0, 1000, 1000, 0.5, 1000),
        (0, 1000, 2000, 0.5, 2000),
        // Dice that are loaded.
        (0, 1000, 0, 7.0, 600),
        (0, 1000, 0, -7.0, 400),
    ];
    for (not_before, not_after, obtained, random, expected) in cases {
        let got = renew_at(at(not_before), at(not_after), at(obtained), random);
        let off = got
            .duration_since(at(expected))
            .unwrap_or_else(|early| early.duration());
        assert!(
            off < Duration::from_millis(1),
            "{not_before}..{not_after} obtained {obtained} with {random}: {got:?}"
        );
    }
}

#[test]
fn retries_back_off_and_shrink_with_the_life() {
    const DAY: u64 = 86_400_000;
    // failures, life, rest, random → wait, all in milliseconds
    let cases = [
        (1, DAY, DAY / 2, 0.0, 1_000),
        (1, DAY, DAY / 2, 1.0, 500),
        (2, DAY, DAY / 2, 0.0, 2_000),
        (3, DAY, DAY / 2, 0.0, 4_000),
        (9, DAY, DAY / 2, 0.0, 256_000),
        (10, DAY, DAY / 2, 0.0, 300_000),
        (10, DAY, DAY / 2, 0.5, 225_000),
        (u32::MAX, DAY, DAY / 2, 0.0, 300_000),
        // A life of 20 s: a tenth of it at most.
        (1, 20_000, 10_000, 0.0, 1_000),
        (2, 20_000, 10_000, 0.0, 2_000),
        (5, 20_000, 10_000, 0.0, 2_000),
        (5, 20_000, 10_000, 1.0, 1_000),
        // The end is near: half of what is left.
        (10, DAY, 60_000, 0.0, 30_000),
        (5, 20_000, 3_000, 0.0, 1_500),
        (5, 20_000, 300, 0.0, 150),
        (5, 20_000, 10, 0.0, 100),
        // Over: as often as the life had it.
        (10, DAY, 0, 0.0, 300_000),
        (5, 20_000, 0, 0.0, 2_000),
        // Nonsense from a broken clock does not make a busy loop.
        (5, 0, 0, 1.0, 100),
    ];
    for (failures, life, rest, random, expected) in cases {
        let got = retry_after(
            failures,
            Duration::from_millis(life),
            Duration::from_millis(rest),
            random,
        );
        assert_eq!(
            got.as_millis(),
            expected,
            "{failures} failures, life {life}, rest {rest}, random {random}"
        );
    }
}

/// However the dice fall, a CA that comes back before the end finds somebody asking.
#[test]
fn an_outage_leaves_several_attempts_before_the_end() {
    for seconds in [5_u64, 20, 60, 3600, 86_400] {
        for random in [0.0, 0.5, 1.0] {
            let life = Duration::from_secs(seconds);
            let mut now = renew_at(at(0), at(seconds), at(0), 1.0);
            let mut attempts = 0;
            while now < at(seconds) {
                attempts += 1;
                let rest = at(seconds).duration_since(now).unwrap();
                now += retry_after(attempts, life, rest, random);
            }
            assert!(attempts >= 4, "life {seconds} s: {attempts}");
            assert!(attempts < 2_000, "life {seconds} s: {attempts}");
        }
    }
}
