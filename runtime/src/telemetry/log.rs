//! The log: one line an event, to standard error, for people on a terminal and as JSON everywhere else.
//!
//! Writing never holds up whoever logs: lines go through a bounded queue to a thread of their own, and when the reader of our standard error is too slow
//! they are dropped and counted. A proxy that waits for its log is down when the log's disk is full.

use std::io::{self, IsTerminal};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::env;

/// The variable that says what is logged, before and above the configuration: `WEFT_LOG=debug` or `WEFT_LOG=info,weft_dataplane::http=debug`.
pub const VARIABLE: &str = "WEFT_LOG";

/// How many lines wait for a slow reader before more are dropped.
const LINE_LIMIT: usize = 8_192;

/// The log, as the configuration has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Log")]
pub struct Config {
    /// For people or for programs.
    pub format: Format,
    /// How much.
    pub level: Level,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// How much is logged. A level is a promise to whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Somebody should look.
    Error,
    /// It will become an error.
    Warn,
    /// A change of state.
    #[default]
    Info,
    /// Each exchange.
    Debug,
}

/// Keeps the log running; writes what still waits when it is dropped, so `main` holds it to the end.
#[derive(Debug)]
pub struct Log {
    dropped: ErrorCounter,
    _worker: WorkerGuard,
}

/// The process logs already.
#[derive(Debug, thiserror::Error)]
#[error("the log is started already")]
pub struct AlreadyStarted;

impl Log {
    /// How many lines were dropped because the reader of standard error was too slow.
    pub fn dropped_lines(&self) -> u64 {
        dropped_lines(&self.dropped)
    }

    /// Makes the metric `weft_log_lines_dropped_total` follow.
    pub fn count_in(&self, metrics: &super::metrics::Metrics) {
        let dropped = self.dropped.clone();
        metrics.on_render(Box::new(move || {
            ::metrics::counter!("weft_log_lines_dropped_total").absolute(dropped_lines(&dropped));
        }));
    }
}

fn dropped_lines(counter: &ErrorCounter) -> u64 {
    counter.dropped_lines() as u64
}

/// Starts the log of the process. Once.
pub fn init(format: Format, level: Level) -> Result<Log, AlreadyStarted> {
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINE_LIMIT)
        .thread_name("log")
        .finish(io::stderr());
    let dropped = writer.error_counter();
    let (filter, complaint) = filter(env::read(VARIABLE).as_deref(), level);
    let terminal = io::stderr().is_terminal();
    subscriber(format, terminal, filter, writer)
        .try_init()
        .map_err(|_| AlreadyStarted)?;
    if let Some(complaint) = complaint {
        tracing::warn!(variable = VARIABLE, %complaint, "log filter ignored");
    }
    Ok(Log {
        dropped,
        _worker: worker,
    })
}

fn subscriber(
    format: Format,
    terminal: bool,
    filter: EnvFilter,
    writer: NonBlocking,
) -> Box<dyn tracing::Subscriber + Send + Sync> {
    let json = match format {
        Format::Auto => !terminal,
        Format::Text => false,
        Format::Json => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(terminal);
    if json {
        Box::new(builder.json().flatten_event(true).finish())
    } else {
        Box::new(builder.finish())
    }
}

/// What is logged, and what is wrong with the wish for it: a typing error in it must not keep the process from starting.
fn filter(wish: Option<&str>, level: Level) -> (EnvFilter, Option<String>) {
    let default: Directive = LevelFilter::from(level).into();
    let builder = EnvFilter::builder().with_default_directive(default.clone());
    match wish.map(|wish| builder.parse(wish)) {
        Some(Ok(filter)) => (filter, None),
        None => (EnvFilter::default().add_directive(default), None),
        Some(Err(error)) => (
            EnvFilter::default().add_directive(default),
            Some(error.to_string()),
        ),
    }
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{Arc, Mutex};

    /// Standard error for a test.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, terminal: bool, wish: Option<&str>) -> String {
        let paper = Paper::default();
        let (writer, worker) = NonBlockingBuilder::default().finish(paper.clone());
        let (filter, _) = filter(wish, Level::Info);
        tracing::subscriber::with_default(subscriber(format, terminal, filter, writer), || {
            tracing::info!(port = 15_001, "listening");
            tracing::debug!("not by default");
        });
        // Waits for the writing thread.
        drop(worker);
        let bytes = paper.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_for_programs_is_one_object_a_line() {
        let text = written(Format::Auto, false, None);
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "listening");
        assert_eq!(line["port"], 15_001);
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    #[test]
    fn text_for_people_has_colours_only_on_a_terminal() {
        let terminal = written(Format::Auto, true, None);
        assert!(terminal.contains("listening") && terminal.contains('\u{1b}'));
        let file = written(Format::Text, false, None);
        assert!(file.contains("listening port=15001") && !file.contains('\u{1b}'));
    }

    #[test]
    fn the_environment_says_what_is_logged() {
        assert!(written(Format::Text, false, Some("debug")).contains("not by default"));
        assert_eq!(written(Format::Text, false, Some("off")), "");
    }

    #[test]
    fn a_broken_wish_is_told_and_ignored() {
        let (filter, complaint) = filter(Some("weft=loud=very"), Level::Warn);
        assert_eq!(filter.to_string(), "warn");
        assert!(complaint.is_some());
    }

    /// A standard error that nobody reads.
    struct Stuck(SyncSender<()>, Receiver<()>);

    impl io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.try_send(());
            // Until the test lets go of its end.
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_no_time() {
        let (stuck, is_stuck) = sync_channel(1);
        let (free, freed) = sync_channel(0);
        let (writer, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(4)
            .finish(Stuck(stuck, freed));
        let dropped = writer.error_counter();
        let (filter, _) = filter(None, Level::Info);
        tracing::subscriber::with_default(subscriber(Format::Json, false, filter, writer), || {
            tracing::info!("the one that is being written");
            is_stuck.recv().unwrap();
            for number in 0..10 {
                tracing::info!(number, "more");
            }
        });
        // Four wait, six are gone.
        assert_eq!(dropped_lines(&dropped), 6);
        drop(free);
        drop(worker);
    }
}
