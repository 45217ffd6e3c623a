//! What to believe of what DNS says about one kind of records of one name.
//!
//! A name server that is away, overloaded or being restarted says nothing, or nonsense, about a service that is well; to
//! empty the service for that would turn a small failure into a large one. So records are believed at once, absence only
//! when it was said three times in a row over at least ten seconds, and a failure is not taken for an answer at all: what
//! was known stays, however old it gets. Old addresses do little harm, since endpoints that do not answer are ejected;
//! having none fails every exchange.

use std::time::{Duration, Instant};

/// How often absence must be said in a row to be believed.
pub(crate) const ABSENT_TIMES: u32 = 3;

/// How long absence must have lasted to be believed.
pub const ABSENT_FOR: Duration = Duration::from_secs(10);

/// What came of asking once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// These.
    Records(Vec<T>),
    /// An authority says that there are none: the name does not exist (NXDOMAIN) or has none of this kind.
    Nothing,
    /// SERVFAIL, REFUSED, a timeout: nobody knows.
    Failure,
}

/// What is believed.
#[derive(Debug, Clone)]
pub struct Belief<T> {
    absent_for: Duration,
    known: Option<Vec<T>>,
    confirmed: Option<Instant>,
    absent: Option<Absent>,
    doubted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Absent {
    times: u32,
    since: Instant,
}

impl<T: Ord> Belief<T> {
    /// Nothing is known yet. Absence must last for `absent_for` ([`ABSENT_FOR`], but for tests) to be believed.
    pub fn new(absent_for: Duration) -> Self {
        Self {
            absent_for,
            known: None,
            confirmed: None,
            absent: None,
            doubted: false,
        }
    }

    /// Takes in an answer.
    pub fn hear(&mut self, answer: Answer<T>, now: Instant) {
        match answer {
            Answer::Records(mut records) if !records.is_empty() => {
                records.sort_unstable();
                records.dedup();
                self.confirm(records, now);
            }
            Answer::Records(_) | Answer::Nothing => {
                let absent = self.absent.get_or_insert(Absent {
                    times: 0,
                    since: now,
                });
                absent.times = absent.times.saturating_add(1);
                let lasted = now.saturating_duration_since(absent.since);
                let nothing_to_lose = self.known.as_ref().is_some_and(Vec::is_empty);
                if nothing_to_lose || (absent.times >= ABSENT_TIMES && lasted >= self.absent_for) {
                    self.confirm(Vec::new(), now);
                } else {
                    self.doubted = true;
                }
            }
            Answer::Failure => {
                // A resolver in trouble is no witness of absence: three times must be in a row.
                self.absent = None;
                self.doubted = true;
            }
        }
    }

    /// The records, sorted; `None` while nothing is known, which is not the same as knowing that there are none.
    pub fn known(&self) -> Option<&[T]> {
        self.known.as_deref()
    }

    /// When what is known was said last.
    pub fn confirmed(&self) -> Option<Instant> {
        self.confirmed
    }

    /// Whether records are in use that the last answer did not confirm.
    pub fn is_stale(&self) -> bool {
        self.doubted && self.known.as_ref().is_some_and(|known| !known.is_empty())
    }

    fn confirm(&mut self, records: Vec<T>, now: Instant) {
        self.known = Some(records);
        self.confirmed = Some(now);
        self.absent = None;
        self.doubted = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_at_once_absence_after_three_times_and_ten_seconds_failures_never() {
        // Second, what was said (addresses by their last byte; `-` absent, `!` failure), then what is believed
        // (`?` nothing yet, `-` none) and whether it is stale.
        let check = |story: &str| {
            let mut belief = Belief::new(ABSENT_FOR);
            let start = Instant::now();
            for line in story.lines().map(str::trim).filter(|l| !l.is_empty()) {
                let words: Vec<_> = line.split_whitespace().collect();
                let [second, said, _, believed, stale @ ..] = &words[..] else {
                    panic!("{line}");
                };
                let addresses = |text: &str| -> Vec<IpAddr> {
                    text.split(',')
                        .map(|byte| IpAddr::from([10, 0, 0, byte.parse::<u8>().unwrap()]))
                        .collect()
                };
                let answer = match *said {
                    "-" => Answer::Nothing,
                    "!" => Answer::Failure,
                    other => Answer::Records(addresses(other)),
                };
                let now = start + Duration::from_secs_f64(second.parse().unwrap());
                belief.hear(answer, now);
                let expected = match *believed {
                    "?" => None,
                    "-" => Some(vec![]),
                    other => Some(addresses(other)),
                };
                assert_eq!(belief.known(), expected.as_deref(), "{line}");
                assert_eq!(belief.is_stale(), stale == ["stale"], "{line}");
            }
        };
        // Addresses come and go at once.
        check(
            "0 1 -> 1
             1 2,1,2 -> 1,2
             2 2 -> 2",
        );
        // Failures keep what is known, for as long as they last.
        check(
            "0 1,2 -> 1,2
             5 ! -> 1,2 stale
             3600 ! -> 1,2 stale
             99999 ! -> 1,2 stale
             100000 3 -> 3",
        );
        // Absence needs three times…
        check(
            "0 1 -> 1
             1 - -> 1 stale
             12 - -> 1 stale
             13 - -> -
             14 - -> -
             15 2 -> 2",
        );
        // … and ten seconds.
        check(
            "0 1 -> 1
             1 - -> 1 stale
             2 - -> 1 stale
             3 - -> 1 stale
             10.9 - -> 1 stale
             11 - -> -",
        );
        // In a row: an address starts it over, and so does a failure.
        check(
            "0 1 -> 1
             1 - -> 1 stale
             6 - -> 1 stale
             11 1 -> 1
             12 - -> 1 stale
             17 - -> 1 stale
             21 ! -> 1 stale
             22 - -> 1 stale
             27 - -> 1 stale
             32 - -> -",
        );
        // Flapping never empties.
        check(
            "0 1 -> 1
             5 - -> 1 stale
             10 1 -> 1
             15 - -> 1 stale
             20 1 -> 1
             25 - -> 1 stale",
        );
        // At the start nothing is known, and absence is not believed sooner.
        check(
            "0 ! -> ?
             1 - -> ?
             2 ! -> ?
             3 - -> ?
             8 - -> ?
             13 - -> -
             14 ! -> -
             15 - -> -",
        );
        check(
            "0 - -> ?
             1 1 -> 1",
        );
    }

    #[test]
    fn an_empty_list_is_absence() {
        let mut belief = Belief::<IpAddr>::new(ABSENT_FOR);
        let now = Instant::now();
        belief.hear(Answer::Records(vec![[10, 0, 0, 1].into()]), now);
        belief.hear(Answer::Records(vec![]), now);
        assert_eq!(belief.known().unwrap().len(), 1);
        assert_eq!(belief.confirmed(), Some(now));
    }
}
