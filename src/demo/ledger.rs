//! What the demo promises to show, and what became of each promise. The closing summary and the exit code come from
//! here and from nothing else.

use std::fmt::Write;

/// What the demo sets out to show, in the order in which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    ComesUp,
    EjectsTheFailing,
    TakesBackTheRecovered,
    LosesNothingWithAKilledReplica,
    UsesANewReplica,
    RenewsUnderLoad,
    AsksForAToken,
    RefusesABadToken,
    LimitsTheGreedy,
    EncryptsEveryEdge,
    FailsNothingElse,
}

impl Promise {
    /// All of them.
    pub(super) const ALL: [Promise; 11] = [
        Promise::ComesUp,
        Promise::EjectsTheFailing,
        Promise::TakesBackTheRecovered,
        Promise::LosesNothingWithAKilledReplica,
        Promise::UsesANewReplica,
        Promise::RenewsUnderLoad,
        Promise::AsksForAToken,
        Promise::RefusesABadToken,
        Promise::LimitsTheGreedy,
        Promise::EncryptsEveryEdge,
        Promise::FailsNothingElse,
    ];

    fn text(self) -> &'static str {
        match self {
            Promise::ComesUp => "a whole mesh comes up from one file and one binary",
            Promise::EjectsTheFailing => {
                "a failing replica is ejected: under 2 % of the traffic afterwards"
            }
            Promise::TakesBackTheRecovered => "it recovers, and comes back",
            Promise::LosesNothingWithAKilledReplica => {
                "a replica is killed with requests in flight: every one is answered"
            }
            Promise::UsesANewReplica => "a new replica takes traffic within 5 s",
            Promise::RenewsUnderLoad => "a certificate is renewed under load: nothing fails",
            Promise::AsksForAToken => "a request without a token: 401 and the reason",
            Promise::RefusesABadToken => "a request with a bad token: 401 and the reason",
            Promise::LimitsTheGreedy => "a caller over its limit: 429 and the reason",
            Promise::EncryptsEveryEdge => "every edge is mutual TLS, and plaintext is refused",
            Promise::FailsNothingElse => "through all of it, no other request fails",
        }
    }
}

/// What became of a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    NotShown,
    Held(String),
    Broken(String),
}

/// The promises with their outcomes.
#[derive(Debug)]
pub(super) struct Ledger {
    outcomes: Vec<(Promise, Outcome)>,
}

impl Default for Ledger {
    fn default() -> Self {
        let outcomes = Promise::ALL.map(|promise| (promise, Outcome::NotShown));
        Self {
            outcomes: outcomes.into(),
        }
    }
}

impl Ledger {
    /// Enters what was seen: the evidence, or what was wrong. What broke stays broken.
    pub(super) fn enter(&mut self, promise: Promise, seen: Result<String, String>) {
        let Some((_, outcome)) = self.outcomes.iter_mut().find(|(p, _)| *p == promise) else {
            return;
        };
        if !matches!(outcome, Outcome::Broken(_)) {
            *outcome = match seen {
                Ok(evidence) => Outcome::Held(evidence),
                Err(wrong) => Outcome::Broken(wrong),
            };
        }
    }

    /// Whether all of it was shown.
    pub(super) fn all_held(&self) -> bool {
        let held = |(_, outcome): &(Promise, Outcome)| matches!(outcome, Outcome::Held(_));
        self.outcomes.iter().all(held)
    }

    /// Whether something did not hold. What was not shown, because somebody stopped the demo early, is not broken.
    pub(super) fn any_broken(&self) -> bool {
        let broken = |(_, outcome): &(Promise, Outcome)| matches!(outcome, Outcome::Broken(_));
        self.outcomes.iter().any(broken)
    }

    /// The closing summary.
    pub(super) fn summary(&self) -> String {
        let mut page = String::from("What was shown:\n");
        for (promise, outcome) in &self.outcomes {
            let (mark, detail) = match outcome {
                Outcome::Held(evidence) => ("yes", evidence.as_str()),
                Outcome::Broken(wrong) => ("NO ", wrong.as_str()),
                Outcome::NotShown => ("-  ", "not shown: the demo ended before"),
            };
            // Writing to a string does not fail.
            let _ = writeln!(page, "  {mark}  {}\n         {detail}", promise.text());
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_that_showed_nothing_neither_held_nor_broke() {
        let ledger = Ledger::default();
        assert!(!ledger.all_held());
        assert!(!ledger.any_broken());
        let lines = ledger.summary().matches("not shown").count();
        assert_eq!(lines, Promise::ALL.len());
    }

    #[test]
    fn all_is_well_only_when_every_promise_held() {
        let mut ledger = Ledger::default();
        for promise in Promise::ALL {
            assert!(!ledger.all_held());
            ledger.enter(promise, Ok("seen".to_owned()));
        }
        assert!(ledger.all_held());
    }

    #[test]
    fn what_broke_stays_broken_and_is_told() {
        let mut ledger = Ledger::default();
        let promise = Promise::UsesANewReplica;
        ledger.enter(promise, Err("no request in 5 s".to_owned()));
        ledger.enter(promise, Ok("after all".to_owned()));
        assert!(ledger.any_broken());
        let summary = ledger.summary();
        assert!(
            summary.contains(
                "NO   a new replica takes traffic within 5 s\n         no request in 5 s"
            )
        );
    }
}
