//! How the configuration stands: what is in force since when, and why the file is not, when it was refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Shared between whoever loads the configuration and the admin page that shows it.
#[derive(Debug, Clone)]
pub struct Status {
    source: Arc<PathBuf>,
    /// Guards the facts below, for as long as it takes to copy them.
    facts: Arc<Mutex<Facts>>,
}

#[derive(Debug, Clone)]
struct Facts {
    generation: u64,
    loaded: SystemTime,
    refused: Option<(SystemTime, String)>,
}

impl Status {
    /// Generation 1 was loaded from `source` at `now`.
    pub fn new(source: &Path, now: SystemTime) -> Self {
        let status = Self {
            source: Arc::new(source.to_path_buf()),
            facts: Arc::new(Mutex::new(Facts {
                generation: 1,
                loaded: now,
                refused: None,
            })),
        };
        status.publish();
        status
    }

    /// A new configuration is in force.
    pub fn loaded(&self, now: SystemTime) {
        {
            let mut facts = self.facts();
            facts.generation += 1;
            facts.loaded = now;
            facts.refused = None;
        }
        metrics::counter!("weft_config_reloads_total", "result" => "loaded").increment(1);
        self.publish();
    }

    /// The file was read anew, but is not what it should be: the old configuration stays.
    pub fn refused(&self, now: SystemTime, why: impl Into<String>) {
        self.facts().refused = Some((now, why.into()));
        metrics::counter!("weft_config_reloads_total", "result" => "refused").increment(1);
        self.publish();
    }

    /// How many configurations have been in force, this one included.
    pub fn generation(&self) -> u64 {
        self.facts().generation
    }

    /// Why the file as it is now is not in force, if so.
    pub fn refusal(&self) -> Option<String> {
        self.facts().refused.clone().map(|(_, why)| why)
    }

    /// For people and programs that read YAML: comments to put in front of the configuration itself.
    pub(crate) fn render(&self) -> String {
        let facts = self.facts().clone();
        let mut text = format!(
            "# source: {}\n# generation: {}\n# loaded: {}\n",
            self.source.display(),
            facts.generation,
            stamp(facts.loaded)
        );
        match facts.refused {
            None => text.push_str("# refused: never since then\n"),
            Some((when, why)) => {
                text.push_str(&format!(
                    "# refused: {}, and what is below stays in force, because\n",
                    stamp(when)
                ));
                for line in why.lines() {
                    text.push_str(&format!("#   {line}\n"));
                }
            }
        }
        text
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "no process reloads its configuration 2^53 times"
    )]
    fn publish(&self) {
        let facts = self.facts();
        metrics::gauge!("weft_config_generation").set(facts.generation as f64);
        metrics::gauge!("weft_config_refused").set(if facts.refused.is_some() { 1.0 } else { 0.0 });
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // The facts are whole at every moment: a panic elsewhere cannot have broken them.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(when: SystemTime) -> String {
    OffsetDateTime::from(when)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_refusal_is_shown_until_the_file_is_good_again() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let status = Status::new(Path::new("weft.yaml"), at(0));
        status.refused(at(60), "weft.yaml:1:1: unknown key `x`\n    remove it\n");
        assert_eq!(status.generation(), 1);
        assert_eq!(
            status.render(),
            "# source: weft.yaml\n# generation: 1\n# loaded: 1970-01-01T00:00:00Z\n\
             # refused: 1970-01-01T00:01:00Z, and what is below stays in force, because\n\
             #   weft.yaml:1:1: unknown key `x`\n#       remove it\n"
        );
        status.loaded(at(90));
        assert_eq!((status.generation(), status.refusal()), (2, None));
    }
}
