//! The demo keeps its promises, says when it did not, and leaves nothing behind. It needs no privileges: where root runs the
//! tests, somebody else runs the demo.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::harness::told::WEFT;
use crate::harness::tools::{program, says};

/// The user without any privileges, and without a home.
const NOBODY: u32 = 65_534;
/// How long a demo may take from beginning to end.
const WHOLE: Duration = Duration::from_secs(180);

/// A running demo, and all that it has said.
struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: String,
    /// Everything that it writes goes there, and its children inherit the name: the mark by which they are found.
    directory: TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        Self::start_by(None, arguments)
    }

    /// By `script` of bsdutils, if this is where that is: with a terminal for its output, which is handed on.
    fn start_by(script: Option<&Path>, arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("weft-it-demo-")
            .tempdir()
            .unwrap();
        let path = directory.path();
        let is_root = rustix::process::geteuid().is_root();
        let mut weft = PathBuf::from(WEFT.as_str());
        let mut command = if is_root {
            // Where the binary is, others may have no access.
            weft = path.join("weft");
            std::fs::copy(WEFT.as_str(), &weft).unwrap();
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            let nobody = NOBODY.to_string();
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
                .args(["--no-new-privs", "--"])
                .arg(script.unwrap_or(&weft));
            command
        } else {
            Command::new(script.unwrap_or(&weft))
        };
        if script.is_some() {
            let words = format!("'{}' demo {}", weft.display(), arguments.join(" "));
            command.args(["--quiet", "--return", "--command", &words, "/dev/null"]);
        } else {
            command.arg("demo").args(arguments);
        }
        std::fs::create_dir(path.join("tmp")).unwrap();
        std::fs::set_permissions(
            path.join("tmp"),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .unwrap();
        let mut child = command
            .current_dir(path)
            .env("HOME", path)
            .env("TMPDIR", path.join("tmp"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            said: String::new(),
            directory,
        }
    }

    /// Reads on until a line begins with this, and gives it.
    async fn line(&mut self, start: &str) -> String {
        self.line_that(start, |line| line.starts_with(start)).await
    }

    /// Reads on until a line is so, and gives it.
    async fn line_that(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let reading = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.said.push_str(&line);
                self.said.push('\n');
                if is_so(&line) {
                    return line;
                }
            }
            panic!("it ended without {what:?}:\n{}", self.said);
        };
        tokio::time::timeout(WHOLE, reading).await.expect(what)
    }

    /// Reads on to its end.
    async fn end(&mut self) -> ExitStatus {
        let ending = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.said.push_str(&line);
                self.said.push('\n');
            }
            self.child.wait().await.unwrap()
        };
        let ended = tokio::time::timeout(WHOLE, ending).await;
        ended.expect("the demo ends")
    }

    /// The marks of the summary: `yes`, `NO` or `-`, and what for.
    fn marks(&self) -> Vec<&str> {
        let (_, summary) = self.said.split_once("What was shown:").expect("a summary");
        let lines = summary.lines().filter_map(|line| line.strip_prefix("  "));
        lines.filter(|line| !line.starts_with(' ')).collect()
    }

    /// The processes of this machine that are of this demo.
    fn processes(&self) -> BTreeSet<i32> {
        let mark = self.directory.path().to_str().unwrap();
        let is_ours = |entry: &Path| {
            let environment = std::fs::read(entry.join("environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(mark)
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let ours = entries.filter(|entry| is_ours(&entry.path()));
        ours.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    fn assert_nothing_is_left(&self) {
        let tmp = self.directory.path().join("tmp");
        let left: Vec<_> = std::fs::read_dir(tmp).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.processes(), BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unattended_demo_shows_everything_and_leaves_nothing_behind() {
    let mut demo = Demo::start(&["--for", "30s"]);
    let status = demo.end().await;
    assert!(status.success(), "{}", demo.said);
    let marks = demo.marks();
    assert_eq!(marks.len(), 11, "{}", demo.said);
    for mark in marks {
        assert!(mark.starts_with("yes"), "{}", demo.said);
    }
    // What is no terminal gets no colours, and nothing that moves a cursor.
    assert!(!demo.said.contains('\x1b'), "{}", demo.said);
    demo.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_on_a_terminal_draws_its_table_over_the_last_one() {
    let Some(script) = program("script", "bsdutils") else {
        return;
    };
    let mut demo = Demo::start_by(Some(&script), &[]);
    // Up by as many lines as there were, and everything below goes.
    let redraws = |line: &str| {
        let up = line.split("A\r\x1b[J").next().unwrap_or_default();
        up.strip_prefix("\x1b[")
            .is_some_and(|lines| up.len() < line.len() && lines.parse::<usize>().is_ok())
    };
    for _ in 0..3 {
        demo.line_that("a table over the last one", redraws).await;
    }
    let is_demo = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.ends_with(b"/weft\0demo\0")
    };
    let pid = demo.processes().into_iter().find(is_demo).expect("a demo");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    let status = demo.end().await;
    assert_eq!(status.code(), Some(0), "{}", demo.said);
    demo.assert_nothing_is_left();
}

/// Everything that it prints to be tried by hand is tried; and it stays until somebody says Ctrl-C.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_demo_says_to_try_by_hand_works_until_it_is_interrupted() {
    let (Some(curl), Some(sh)) = (program("curl", "curl"), program("sh", "dash")) else {
        return;
    };
    let mut demo = Demo::start(&[]);
    let url = async |demo: &mut Demo, what: &str| {
        let line = demo.line(&format!("  {what} ")).await;
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("http"));
        url.unwrap().to_owned()
    };
    let gateway = url(&mut demo, "the gateway").await;
    let admin = url(&mut demo, "its admin pages").await;
    let sidecar = url(&mut demo, "a sidecar's").await;
    let token = demo.line("TOKEN=").await;
    let mut shown = Vec::new();
    for _ in 0..3 {
        let line = demo.line("curl ").await;
        let script = format!("{token}\n{line} -m 60 -w '\\n%{{http_code}}'");
        shown.push(says(&sh, &["-c", &script], "").await);
    }
    let [with_token, without, mesh] = &shown[..] else {
        unreachable!()
    };
    assert!(with_token.ends_with("\n200"), "{with_token}");
    assert!(with_token.contains("orders"), "{with_token}");
    assert!(without.ends_with("\n401"), "{without}");
    assert!(without.contains("token_missing"), "{without}");
    assert!(mesh.ends_with("\n200"), "{mesh}");
    assert!(mesh.contains("storefront"), "{mesh}");
    for (page, code) in [(gateway, "401"), (admin, "200"), (sidecar, "200")] {
        let arguments = ["-s", "-o", "/dev/null", "-w", "%{http_code}", &page];
        assert_eq!(says(&curl, &arguments, "").await, code, "{page}");
    }

    let pid = demo.child.id().and_then(|id| i32::try_from(id).ok());
    kill_process(pid.and_then(Pid::from_raw).unwrap(), Signal::INT).unwrap();
    let status = demo.end().await;
    assert_eq!(status.code(), Some(0), "{}", demo.said);
    let marks = demo.marks();
    assert!(marks[0].starts_with("yes"), "{}", demo.said);
    assert!(
        marks.iter().all(|mark| !mark.starts_with("NO")),
        "{}",
        demo.said
    );
    demo.assert_nothing_is_left();
}

/// What it promises is not taken for shown: without its CA the demo says what did not hold, and fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_ca_dies_says_what_did_not_hold_and_fails() {
    let mut demo = Demo::start(&["--for", "20s"]);
    demo.line("TOKEN=").await;
    let is_ca = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.windows(9).any(|part| part == b"\0ca\0serve")
    };
    let ca = demo.processes().into_iter().find(is_ca).expect("a CA");
    kill_process(Pid::from_raw(ca).unwrap(), Signal::KILL).unwrap();
    let status = demo.end().await;
    assert_eq!(status.code(), Some(1), "{}", demo.said);
    // Which promise is the first to need it depends on how fast the story goes.
    let marks = demo.marks();
    assert!(
        marks.iter().any(|mark| mark.starts_with("NO")),
        "{}",
        demo.said
    );
    assert!(demo.said.contains("ca ended (signal: 9"), "{}", demo.said);
    assert_eq!(demo.processes(), BTreeSet::new());
}
