//! One process of the real binary: its output in a file, its end never left to chance.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::told::WEFT;
use super::{eventually, soon};

/// A running `weft ROLE …`. Killed when dropped; it also ends when the test process does.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
    /// Held open: its end is the child's sign that we are gone.
    _input: Option<ChildStdin>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `weft ARGUMENTS`. What it writes is appended to `DIRECTORY/NAME.log`.
    pub(crate) fn start(
        directory: &Path,
        name: &str,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start_in(&[], directory, name, arguments, environment)
    }

    /// The same inside another program, such as `unshare`, whose end is its own then.
    pub(crate) fn start_in(
        wrapper: &[&str],
        directory: &Path,
        name: &str,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Self {
        let words = wrapper.iter().copied().chain([WEFT.as_str()]);
        let words: Vec<&str> = words.chain(arguments.iter().map(String::as_str)).collect();
        let log = directory.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env("WEFT_EXIT_ON_STDIN_EOF", "1")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self {
            name: name.to_owned(),
            _input: child.stdin.take(),
            child,
            log,
            ended: None,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it and those before it under the same name have written.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The lines of the log that are JSON objects.
    pub(crate) fn log_lines(&self) -> Vec<serde_json::Value> {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits until the log has a line with all of these words, and gives it.
    pub(crate) async fn says(&self, words: &[&str]) -> String {
        eventually(&format!("{} logs {words:?}", self.name), async || {
            self.log()
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
        })
        .await
    }

    /// Asks it to drain and end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none()
            && let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            // Fails only when it has already ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it at once and waits for its end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        eventually(&format!("{} ends", self.name.clone()), async || {
            self.ended()
        })
        .await
    }

    /// Its resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kilobytes.unwrap() * 1024
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        self.entries("fd")
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> usize {
        self.entries("task")
    }

    fn entries(&self, of: &str) -> usize {
        let directory = std::fs::read_dir(format!("/proc/{}/{of}", self.id()));
        directory.unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.name, tail(&log));
        }
        assert_never_panicked(&self.name, &log);
    }
}

/// Fails where a thread of the process panicked. A test that fails anyway keeps its own words.
pub(crate) fn assert_never_panicked(name: &str, log: &str) {
    if !std::thread::panicking() && log.contains("panicked") {
        panic!("a thread of {name} panicked:\n{}", tail(log));
    }
}

/// The end of a log.
fn tail(log: &str) -> String {
    let from = log.lines().count().saturating_sub(40);
    let lines: Vec<&str> = log.lines().skip(from).collect();
    lines.join("\n")
}

/// Runs `weft ARGUMENTS` to its end: whether it succeeded, its output and its errors.
pub(crate) async fn run(arguments: &[&str]) -> (ExitStatus, String, String) {
    let mut command = tokio::process::Command::new(WEFT.as_str());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = soon(&format!("weft {arguments:?}"), command.output())
        .await
        .unwrap();
    (
        output.status,
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
