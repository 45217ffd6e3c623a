//! The least pace of a client's upload: one that drips holds an exchange, and its endpoint, for as long as it likes.
//!
//! Asked when a piece comes in, so that it costs no timer: a client that sends nothing at all runs into a timeout anyway.

use std::time::{Duration, Instant};

/// Bytes a second, from the first piece on. Far below what the slowest of phones does.
const LEAST: u64 = 256;
/// How long any pace will do.
const GRACE: Duration = Duration::from_secs(20);

/// The pace of one body.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    began: Option<Instant>,
    received: u64,
}

impl Pace {
    /// Takes note of a piece, and says whether the body still comes fast enough.
    pub(crate) fn keeps(&mut self, length: usize, now: Instant) -> bool {
        let began = *self.began.get_or_insert(now);
        self.received += length as u64;
        let elapsed = now.duration_since(began);
        elapsed < GRACE || self.received / LEAST >= elapsed.as_secs()
    }

    /// What the client is told.
    pub(crate) fn words() -> String {
        format!("the body came more slowly than {LEAST} bytes a second")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many seconds an upload of one piece a second is given up.
    fn given_up_after(piece: usize) -> Option<u64> {
        let start = Instant::now();
        let mut pace = Pace::default();
        (0..3600).find(|second| !pace.keeps(piece, start + Duration::from_secs(*second)))
    }

    #[test]
    fn an_upload_that_drips_is_given_up() {
        assert_eq!(given_up_after(1), Some(20));
        assert_eq!(given_up_after(200), Some(20));
        assert_eq!(given_up_after(255), Some(256), "what it had sent counts");
        assert_eq!(given_up_after(256), None);
        assert_eq!(given_up_after(100_000), None);
    }

    #[test]
    fn a_pause_after_much_is_no_drip() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.keeps(1 << 20, start));
        assert!(pace.keeps(1, start + Duration::from_secs(600)));
    }
}
