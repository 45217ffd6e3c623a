//! One process of the demo: started from our own binary, its output in a file, and never left behind.
//!
//! Three nets catch a child, so that nothing stays whatever happens to the demo: the orderly stop at the end, the
//! kill when the value is dropped, and the pipe to the child's standard input, which ends even when the demo is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};

/// Tells a role to end with its standard input.
const EXIT_ON_STDIN_EOF: (&str, &str) = ("WEFT_EXIT_ON_STDIN_EOF", "1");
/// How much of a log is shown when its process failed.
const TAIL_LINES: usize = 15;
/// How much of a log's end is read for that.
const TAIL_BYTES: u64 = 16 << 10;
/// How long a command that only prints something may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// A process could not be started, or did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("start {name}: {source}")]
    Start {
        name: String,
        source: std::io::Error,
    },
    #[error("{name} ended ({status}); its log is {log}:\n{tail}", log = log.display())]
    Ended {
        name: String,
        status: ExitStatus,
        log: PathBuf,
        tail: String,
    },
    #[error("{name} was not ready within {waited:?}; its log is {log}:\n{tail}", log = log.display())]
    NotReady {
        name: String,
        waited: Duration,
        log: PathBuf,
        tail: String,
    },
    #[error("`weft {command}` failed: {output}")]
    Command { command: String, output: String },
}

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Held open: its end is the child's sign that we are gone.
    _input: Option<ChildStdin>,
}

impl Process {
    /// Starts `weft ARGUMENTS`; `name` is for people and for the log's file name.
    pub(super) fn start(
        directory: &Path,
        name: String,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let log = directory.join(format!("{name}.log"));
        let started = File::create(&log).and_then(|output| {
            let errors = output.try_clone()?;
            command(arguments)?
                .envs([EXIT_ON_STDIN_EOF])
                .envs(environment.iter().copied())
                .stdin(Stdio::piped())
                .stdout(output)
                .stderr(errors)
                .spawn()
        });
        match started {
            Ok(mut child) => Ok(Self {
                name,
                _input: child.stdin.take(),
                child,
                log,
            }),
            Err(source) => Err(Error::Start { name, source }),
        }
    }

    /// An error if the process has ended by itself.
    pub(super) fn still_runs(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(Error::Ended {
                name: self.name.clone(),
                status,
                log: self.log.clone(),
                tail: tail(&self.log),
            }),
            // Still running; or the question itself failed, which says nothing about the process.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// The error of a process that is too slow to start.
    pub(super) fn not_ready(&self, waited: Duration) -> Error {
        Error::NotReady {
            name: self.name.clone(),
            waited,
            log: self.log.clone(),
            tail: tail(&self.log),
        }
    }

    /// Ends it at once and without warning, as a host's death does. Does not wait: see [`Process::gone`].
    pub(super) fn kill(&mut self) {
        // Fails only when it has already ended.
        let _ = self.child.start_kill();
    }

    /// Asks it to drain and end.
    pub(super) fn terminate(&self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            // Fails only when it has already ended.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits for its end.
    pub(super) async fn gone(&mut self) {
        // Fails only when there is nothing to wait for.
        let _ = self.child.wait().await;
    }
}

/// Runs `weft ARGUMENTS` to its end and gives what it printed.
pub(super) async fn output(arguments: &[String]) -> Result<String, Error> {
    let failed = |output: String| Error::Command {
        command: arguments.join(" "),
        output,
    };
    let run = async { command(arguments)?.stdin(Stdio::null()).output().await };
    match tokio::time::timeout(COMMAND_DEADLINE, run).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(Ok(output)) => Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("not done within {COMMAND_DEADLINE:?}"))),
    }
}

fn command(arguments: &[String]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(arguments)
        .kill_on_drop(true)
        // Ctrl-C is for the demo, which then stops its children in order.
        .process_group(0);
    Ok(command)
}

fn tail(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => last_lines(&text),
        Err(error) => format!("  (cannot be read: {error})"),
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let shown: Vec<String> = lines[from..].iter().map(|l| format!("  {l}")).collect();
    if shown.is_empty() {
        "  (empty)".to_owned()
    } else {
        shown.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_shown() {
        assert_eq!(last_lines(""), "  (empty)");
        assert_eq!(last_lines("one\ntwo\n"), "  one\n  two");
        let long: String = (0..100).map(|n| format!("{n}\n")).collect();
        let shown = last_lines(&long);
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.starts_with("  85\n") && shown.ends_with("  99"));
    }

    #[test]
    fn a_log_that_is_not_there_is_said_so() {
        assert!(tail(Path::new("/nonexistent/weft.log")).contains("cannot be read"));
    }
}
