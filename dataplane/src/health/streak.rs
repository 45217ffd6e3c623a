//! From single probes to a verdict: so many failures in a row take an endpoint out, so many successes bring it back.
//!
//! An endpoint of which nothing is known is usable. One that has never passed a probe needs a single success to count as
//! well, one that has been well before and failed must pass several: it may flap.

use super::Checks;

/// What the probes of an endpoint say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Not enough yet. It is used.
    #[default]
    Unknown,
    /// It is well.
    Passing,
    /// It is not, and is passed over.
    Failing,
}

impl Verdict {
    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Passing => "passing",
            Self::Failing => "failing",
        }
    }
}

/// The probes of one endpoint so far, as far as they matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streak {
    verdict: Verdict,
    has_passed: bool,
    /// Probes in a row that speak against the verdict.
    against: u32,
}

impl Streak {
    /// What they say.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Adds a probe. Returns whether the verdict changed.
    pub fn note(&mut self, passed: bool, checks: &Checks) -> bool {
        let before = self.verdict;
        let agrees = passed == (self.verdict == Verdict::Passing);
        if agrees && self.verdict != Verdict::Unknown {
            self.against = 0;
        } else if passed {
            self.against += 1;
            let enough = if self.has_passed { checks.rise } else { 1 };
            if self.verdict == Verdict::Unknown || self.against >= enough {
                self.turn(Verdict::Passing);
            }
        } else {
            self.against += 1;
            if self.against >= checks.fall {
                self.turn(Verdict::Failing);
            }
        }
        self.has_passed |= passed;
        self.verdict != before
    }

    fn turn(&mut self, verdict: Verdict) {
        self.verdict = verdict;
        self.against = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(fall: u32, rise: u32) -> Checks {
        Checks {
            fall,
            rise,
            ..Checks::default()
        }
    }

    /// `+` for a probe that passes, `-` for one that fails; after each the verdict: `?`, `P` or `F`.
    fn check(fall: u32, rise: u32, probes: &str, verdicts: &str) {
        let mut streak = Streak::default();
        let mut before = Verdict::Unknown;
        for (place, (probe, expected)) in probes.chars().zip(verdicts.chars()).enumerate() {
            let changed = streak.note(probe == '+', &checks(fall, rise));
            let verdict = match streak.verdict() {
                Verdict::Unknown => '?',
                Verdict::Passing => 'P',
                Verdict::Failing => 'F',
            };
            assert_eq!(verdict, expected, "{probes}, after {}", place + 1);
            assert_eq!(changed, streak.verdict() != before, "{probes}");
            before = streak.verdict();
        }
        assert_eq!(probes.len(), verdicts.len());
    }

    #[test]
    fn three_failures_take_it_out_and_two_successes_bring_it_back() {
        check(3, 2, "+---++", "PPPFFP");
        check(3, 2, "+--+--+---", "PPPPPPPPPF");
        check(3, 2, "+---+-+-++", "PPPFFFFFFP");
        check(3, 2, "+---++---", "PPPFFPPPF");
        check(1, 1, "+-+-", "PFPF");
        check(2, 5, "+--++++-+++++", "PPFFFFFFFFFFP");
    }

    #[test]
    fn one_that_was_never_well_needs_one_success() {
        check(3, 2, "+", "P");
        check(3, 2, "--+", "??P");
        check(3, 2, "---+", "??FP");
        check(3, 2, "------+---+", "??FFFFPPPFF");
    }

    #[test]
    fn every_short_history_keeps_the_rules() {
        for fall in 1..=4 {
            for rise in 1..=4 {
                for history in 0..1_u32 << 12 {
                    let mut streak = Streak::default();
                    let checks = checks(fall, rise);
                    let mut row = (true, 0);
                    let mut has_passed = false;
                    for step in 0..12 {
                        let passed = history >> step & 1 == 1;
                        row = (passed, if row.0 == passed { row.1 + 1 } else { 1 });
                        let before = streak.verdict();
                        streak.note(passed, &checks);
                        let enough = match (passed, has_passed) {
                            (false, _) => fall,
                            (true, true) => rise,
                            (true, false) => 1,
                        };
                        has_passed |= passed;
                        let expected = match (passed, row.1 >= enough) {
                            (true, true) => Verdict::Passing,
                            (false, true) => Verdict::Failing,
                            _ => before,
                        };
                        assert_eq!(
                            streak.verdict(),
                            expected,
                            "{history:b} {step} {fall} {rise}"
                        );
                    }
                }
            }
        }
    }
}
