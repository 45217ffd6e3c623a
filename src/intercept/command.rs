//! A command of the system's, run to its end.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

/// A command, by the name that is looked for on PATH.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    name: &'static str,
}

/// Why a command did not do its work.
#[derive(Debug)]
pub(super) enum Failed {
    /// It is not there, or may not be run.
    Missing(String),
    /// The system does not let us.
    NotPermitted(&'static str),
    /// It said this.
    Said { tool: &'static str, words: String },
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(words) => f.write_str(words),
            Self::NotPermitted(tool) => write!(
                f,
                "`{tool}` may not look at or change the rules of this network namespace\n    \
                 run as root or with CAP_NET_ADMIN (in compose: `cap_add: [NET_ADMIN]`)"
            ),
            Self::Said { tool, words } => write!(f, "`{tool}` failed: {words}"),
        }
    }
}

impl Tool {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name }
    }

    /// Runs it with this input; what it printed, if it succeeded.
    pub(super) fn run(self, arguments: &[&str], input: Option<&str>) -> Result<String, Failed> {
        let tool = self.name;
        let missing = |error: &std::io::Error| {
            Failed::Missing(match error.kind() {
                ErrorKind::NotFound => format!("there is no `{tool}` on PATH"),
                _ => format!("`{tool}` cannot be run: {error}"),
            })
        };
        let mut child = Command::new(tool)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| missing(&error))?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // One that ends before it has read all says why on its other end.
            let _: Result<(), _> = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| missing(&error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let denied = ["Operation not permitted", "Permission denied"];
        if denied.iter().any(|denied| words.contains(denied)) {
            return Err(Failed::NotPermitted(tool));
        }
        let words = match words.is_empty() {
            true => format!("it ended with {}", output.status),
            false => words,
        };
        Err(Failed::Said { tool, words })
    }
}
