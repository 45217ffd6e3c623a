//! How the configuration stands: what is in force since when, what of it is not, and why the file is not, when it was refused.
//!
//! A file that is good is not in force yet: whoever works by it has to take it, which may take a while, and may not be able
//! to. So there are three steps, [`handed`](Status::handed), [`taking`](Status::taking) and [`loaded`](Status::loaded), and
//! between them, before them and after them it may be [`refused`](Status::refused). While one is taken the next may be
//! handed on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Shared between whoever loads the configuration, whoever takes it and the admin page that shows it.
#[derive(Debug, Clone)]
pub struct Status {
    source: Arc<PathBuf>,
    /// Guards the facts below, for as long as it takes to show them.
    facts: Arc<Mutex<Facts>>,
}

#[derive(Debug)]
struct Facts {
    generation: u64,
    /// Whether the process has begun its work.
    begun: bool,
    loaded: SystemTime,
    /// The configuration in force, as it is shown.
    shown: Arc<str>,
    /// What in it counts from the next start on.
    waiting: Vec<String>,
    /// Listeners of it that could not be opened, and why.
    unopened: Vec<String>,
    refused: Option<Refused>,
    handed: Option<Handed>,
    /// What of that is being put in force.
    taking: Option<Handed>,
    /// Numbers refusals and what was handed on, in the order in which they happened.
    steps: u64,
}

#[derive(Debug, Clone)]
struct Refused {
    step: u64,
    when: SystemTime,
    why: String,
}

/// A configuration that was found good and is not in force yet.
#[derive(Debug)]
struct Handed {
    step: u64,
    shown: Arc<str>,
    waiting: Vec<String>,
    then: Option<Then>,
}

/// What is to be done when a configuration is in force.
struct Then(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Then").finish_non_exhaustive()
    }
}

impl Status {
    /// Generation 1 was loaded from `source` at `now`; `shown` is how it is shown.
    pub fn new(source: &Path, shown: impl Into<Arc<str>>, now: SystemTime) -> Self {
        let status = Self {
            source: Arc::new(source.to_path_buf()),
            facts: Arc::new(Mutex::new(Facts {
                generation: 1,
                begun: false,
                loaded: now,
                shown: shown.into(),
                waiting: Vec::new(),
                unopened: Vec::new(),
                refused: None,
                handed: None,
                taking: None,
                steps: 0,
            })),
        };
        status.publish();
        status
    }

    /// The file is good, and whoever works by it says next whether it is in force. The keys `waiting` are read at the start
    /// only: what they say now counts from the next one on. `then` is called when it is in force, and never when it comes to
    /// nothing; at once as long as the process has not begun its work, for that may wait for what a new file mends.
    pub fn handed(
        &self,
        shown: impl Into<Arc<str>>,
        waiting: Vec<String>,
        then: impl FnOnce() + Send + 'static,
    ) {
        let mut facts = self.facts();
        facts.steps += 1;
        let step = facts.steps;
        let mut handed = Handed {
            step,
            shown: shown.into(),
            waiting,
            then: None,
        };
        let begun = facts.begun;
        if begun {
            handed.then = Some(Then(Box::new(then)));
            facts.handed = Some(handed);
            return;
        }
        facts.handed = Some(handed);
        drop(facts);
        then();
    }

    /// What was handed on last is being put in force now. To be called when it is fetched, before anything is awaited.
    pub fn taking(&self) {
        let mut facts = self.facts();
        facts.taking = facts.handed.take();
    }

    /// What was being put in force is so.
    pub fn loaded(&self, now: SystemTime) {
        let (waits, then) = {
            let mut facts = self.facts();
            facts.generation += 1;
            facts.loaded = now;
            let mut before = facts.waiting.clone();
            let mut then = None;
            if let Some(handed) = facts.taking.take() {
                // The file may have become worse while this one was taken.
                if facts
                    .refused
                    .as_ref()
                    .is_some_and(|refused| refused.step < handed.step)
                {
                    facts.refused = None;
                }
                facts.shown = handed.shown;
                then = handed.then;
                before = std::mem::replace(&mut facts.waiting, handed.waiting);
            }
            for key in &before {
                restart_gauge(key).set(0.0);
            }
            for key in &facts.waiting {
                restart_gauge(key).set(1.0);
            }
            let waits = (before != facts.waiting).then(|| facts.waiting.clone());
            (waits, then)
        };
        if let Some(Then(then)) = then {
            then();
        }
        match waits {
            Some(keys) if !keys.is_empty() => tracing::warn!(
                keys = keys.join(", "),
                "these keys are read at the start only, and have changed: restart to have them in force"
            ),
            Some(_) => tracing::info!("no key waits for a restart any more"),
            None => {}
        }
        metrics::counter!("weft_config_reloads_total", "result" => "loaded").increment(1);
        self.publish();
    }

    /// The process has begun its work; with a file that was handed on before that, if one was taken.
    pub fn began(&self, now: SystemTime) {
        let has_taken = {
            let mut facts = self.facts();
            facts.begun = true;
            facts.taking.is_some()
        };
        if has_taken {
            self.loaded(now);
        }
    }

    /// The file was read anew, but is not what it should be, or cannot be put in force: the old configuration stays.
    pub fn refused(&self, now: SystemTime, why: impl Into<String>) {
        {
            let mut facts = self.facts();
            facts.steps += 1;
            facts.refused = Some(Refused {
                step: facts.steps,
                when: now,
                why: why.into(),
            });
        }
        metrics::counter!("weft_config_reloads_total", "result" => "refused").increment(1);
        self.publish();
    }

    /// Of what is in force, these listeners could not be opened, each with the reason; none when all are open.
    pub fn unopened(&self, listeners: Vec<String>) {
        self.facts().unopened = listeners;
        self.publish();
    }

    /// How many configurations have been in force, this one included.
    pub fn generation(&self) -> u64 {
        self.facts().generation
    }

    /// Why the file as it is now is not in force, if so.
    pub fn refusal(&self) -> Option<String> {
        self.facts().refused.clone().map(|refused| refused.why)
    }

    /// For people and programs that read YAML: how it stands in comments, and then the configuration in force.
    pub(crate) fn render(&self) -> String {
        let facts = self.facts();
        let mut text = format!(
            "# source: {}\n# generation: {}\n# loaded: {}\n",
            self.source.display(),
            facts.generation,
            stamp(facts.loaded)
        );
        match &facts.refused {
            None => text.push_str("# refused: never since then\n"),
            Some(Refused { when, why, .. }) => {
                text.push_str(&format!(
                    "# refused: {}, and what is below stays in force, because\n",
                    stamp(*when)
                ));
                for line in why.lines() {
                    text.push_str(&format!("#   {line}\n"));
                }
            }
        }
        if !facts.unopened.is_empty() {
            text.push_str("# not open, and tried again every second:\n");
            for listener in &facts.unopened {
                text.push_str(&format!("#   {listener}\n"));
            }
        }
        if !facts.waiting.is_empty() {
            let keys = facts.waiting.join(", ");
            text.push_str(&format!(
                "# waiting for a restart, because they are read at the start only: {keys}\n"
            ));
        }
        format!("{text}\n{}", facts.shown)
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "no process reloads its configuration 2^53 times"
    )]
    fn publish(&self) {
        let facts = self.facts();
        let whole = facts.refused.is_none() && facts.unopened.is_empty();
        metrics::gauge!("weft_config_generation").set(facts.generation as f64);
        metrics::gauge!("weft_config_refused").set(if whole { 0.0 } else { 1.0 });
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // The facts are whole at every moment: a panic elsewhere cannot have broken them.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn restart_gauge(key: &str) -> metrics::Gauge {
    metrics::gauge!("weft_config_restart_needed", "key" => key.to_owned())
}

fn stamp(when: SystemTime) -> String {
    OffsetDateTime::from(when)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn keys(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn a_refusal_is_shown_until_the_file_is_good_again() {
        let status = Status::new(Path::new("weft.yaml"), "a: 1\n", at(0));
        status.refused(at(60), "weft.yaml:1:1: unknown key `x`\n    remove it\n");
        assert_eq!(status.generation(), 1);
        assert_eq!(
            status.render(),
            "# source: weft.yaml\n# generation: 1\n# loaded: 1970-01-01T00:00:00Z\n\
             # refused: 1970-01-01T00:01:00Z, and what is below stays in force, because\n\
             #   weft.yaml:1:1: unknown key `x`\n#       remove it\n\na: 1\n"
        );
        status.handed("a: 2\n", Vec::new(), || {});
        assert_eq!(
            (status.generation(), status.refusal().is_some()),
            (1, true),
            "it is not in force yet"
        );
        assert!(status.render().ends_with("\na: 1\n"));
        status.taking();
        status.loaded(at(90));
        assert_eq!((status.generation(), status.refusal()), (2, None));
        assert!(status.render().ends_with("\na: 2\n"));
    }

    #[test]
    fn what_is_found_wrong_while_a_good_one_is_taken_is_not_forgotten() {
        let status = Status::new(Path::new("weft.yaml"), "a: 1\n", at(0));
        status.handed("a: 2\n", Vec::new(), || {});
        status.taking();
        status.refused(at(1), "worse");
        status.loaded(at(2));
        assert_eq!(
            (status.generation(), status.refusal().as_deref()),
            (2, Some("worse"))
        );
    }

    #[test]
    fn a_file_that_is_good_may_still_be_refused_by_who_takes_it() {
        let status = Status::new(Path::new("weft.yaml"), "a: 1\n", at(0));
        status.handed("a: 2\n", keys(&["log"]), || {});
        status.taking();
        status.refused(at(1), "the key set is gone");
        let page = status.render();
        assert!(page.contains("#   the key set is gone\n"), "{page}");
        assert!(
            page.ends_with("\na: 1\n") && !page.contains("restart"),
            "{page}"
        );
        assert_eq!(status.generation(), 1);
    }

    #[test]
    fn what_is_handed_on_while_one_is_taken_is_not_mistaken_for_it() {
        let (recorder, metrics) = crate::telemetry::metrics::Metrics::detached("1.2.3");
        ::metrics::with_local_recorder(&recorder, || {
            let waits = || metrics.render().contains("{key=\"log\"} 1\n");
            let status = Status::new(Path::new("weft.yaml"), "a: 1\n", at(0));
            status.handed("a: 2\n", keys(&["log"]), || {});
            status.taking();
            status.handed("a: 3\n", keys(&["log"]), || {});
            status.loaded(at(1));
            assert!(status.render().ends_with("\na: 2\n") && waits());
            status.taking();
            status.loaded(at(2));
            assert!(status.render().ends_with("\na: 3\n") && waits());
            // And where nothing was taken, nothing else is shown.
            status.loaded(at(3));
            assert!(status.render().ends_with("\na: 3\n") && waits());

            status.handed("a: 4\n", Vec::new(), || {});
            status.taking();
            status.handed("a: 5\n", Vec::new(), || {});
            status.loaded(at(4));
            status.taking();
            status.refused(at(5), "worse");
            let page = status.render();
            assert!(
                page.contains("worse") && page.ends_with("\na: 4\n"),
                "{page}"
            );
        });
    }

    #[test]
    fn what_comes_with_a_file_counts_when_it_is_in_force_and_before_the_beginning_at_once() {
        let status = Status::new(Path::new("weft.yaml"), "a: 1\n", at(0));
        let counts = Arc::new(AtomicU64::new(1));
        let hand = |value| {
            let counts = Arc::clone(&counts);
            status.handed("", Vec::new(), move || {
                counts.store(value, Ordering::Relaxed);
            });
        };
        let counts = || counts.load(Ordering::Relaxed);
        hand(2);
        assert_eq!(counts(), 2, "the process may wait for it");
        status.taking();
        status.began(at(1));
        hand(3);
        status.taking();
        status.refused(at(2), "the key set is gone");
        hand(4);
        status.taking();
        hand(5);
        assert_eq!(counts(), 2, "neither is in force");
        status.loaded(at(3));
        assert_eq!(counts(), 4);
    }

    #[test]
    fn what_was_handed_on_before_the_beginning_is_what_it_began_with() {
        let status = Status::new(Path::new("weft.yaml"), "a: 1\n", at(0));
        status.began(at(1));
        assert_eq!(status.generation(), 1);
        status.handed("a: 2\n", Vec::new(), || {});
        status.taking();
        status.began(at(1));
        assert_eq!(status.generation(), 2);
    }

    #[test]
    fn what_waits_for_a_restart_and_what_is_not_open_is_shown_and_counted_until_it_is_over() {
        let (recorder, metrics) = crate::telemetry::metrics::Metrics::detached("1.2.3");
        ::metrics::with_local_recorder(&recorder, || {
            let status = Status::new(Path::new("weft.yaml"), "a: 1\n", at(0));
            status.handed("a: 2\n", keys(&["log", "resolver"]), || {});
            status.taking();
            status.loaded(at(1));
            status.unopened(keys(&["listener `public` on 1.2.3.4:80: in use"]));
            let page = status.render();
            assert!(
                page.contains(
                    "# waiting for a restart, because they are read at the start only: log, resolver\n"
                ),
                "{page}"
            );
            assert!(page.contains("#   listener `public` on 1.2.3.4:80: in use\n"));
            let text = metrics.render();
            assert!(text.contains("weft_config_restart_needed{key=\"resolver\"} 1\n"));
            assert!(text.contains("weft_config_refused 1\n"), "{text}");

            status.handed("a: 3\n", keys(&["log"]), || {});
            status.taking();
            status.loaded(at(2));
            status.unopened(Vec::new());
            let text = metrics.render();
            assert!(text.contains("weft_config_restart_needed{key=\"resolver\"} 0\n"));
            assert!(text.contains("weft_config_restart_needed{key=\"log\"} 1\n"));
            assert!(text.contains("weft_config_refused 0\n"), "{text}");
            assert!(!status.render().contains("not open"));
        });
    }
}
