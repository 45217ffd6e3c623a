//! When a certificate is replaced: at half of the life that the configuration gives it.

use std::time::{Duration, SystemTime};

use crate::profile::Validity;

/// Whether the certificate should be replaced by one that lives `lifetime` from `now`, or until its `issuer` ends.
///
/// Measured by what is left and not by what has passed: a longer `lifetime` in the configuration takes effect at once,
/// and backdating plays no part.
pub(crate) fn due(
    now: SystemTime,
    current: &Validity,
    lifetime: Duration,
    issuer: &Validity,
) -> bool {
    let left = current.not_after.duration_since(now).unwrap_or_default();
    // Near the issuer's end a new one would end no later; making it again and again would help nobody.
    let gains =
        Validity::new(now, lifetime, Duration::ZERO, Some(issuer)).not_after > current.not_after;
    left <= lifetime / 2 && gains
}

/// How long until it may be due.
pub(crate) fn wait(now: SystemTime, current: &Validity, lifetime: Duration) -> Duration {
    let left = current.not_after.duration_since(now).unwrap_or_default();
    left.saturating_sub(lifetime / 2)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_certificate_is_due_at_half_its_life() {
        let check = |now, ends, lifetime, issuer_ends, expected| {
            let current = Validity {
                not_before: at(0),
                not_after: at(ends),
            };
            let issuer = Validity {
                not_before: at(0),
                not_after: at(issuer_ends),
            };
            let lifetime = Duration::from_secs(lifetime);
            assert_eq!(
                due(at(now), &current, lifetime, &issuer),
                expected,
                "{now} {ends} {lifetime:?} {issuer_ends}"
            );
            if expected {
                assert_eq!(wait(at(now), &current, lifetime), Duration::ZERO);
            }
        };
        check(1000, 1100, 100, 9000, false);
        check(1049, 1100, 100, 9000, false);
        check(1050, 1100, 100, 9000, true);
        check(1099, 1100, 100, 9000, true);
        // Over already, as after a long sleep.
        check(2000, 1100, 100, 9000, true);
        // A longer life was configured.
        check(1000, 1100, 200, 9000, true);
        // A shorter one.
        check(1000, 1100, 50, 9000, false);
        // As long as the issuer allows: again would be the same.
        check(1060, 1100, 100, 1100, false);
        check(1060, 1100, 100, 1101, true);
        check(2000, 1100, 100, 1100, false);
    }

    #[test]
    fn the_wait_ends_when_it_is_due() {
        let current = Validity {
            not_before: at(0),
            not_after: at(1100),
        };
        let issuer = Validity {
            not_before: at(0),
            not_after: at(9000),
        };
        let lifetime = Duration::from_secs(100);
        let wait = wait(at(1000), &current, lifetime);
        assert_eq!(wait, Duration::from_secs(50));
        assert!(due(at(1000) + wait, &current, lifetime, &issuer));
    }
}
