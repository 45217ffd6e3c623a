//! The demo keeps its promises, says when it did not, and leaves nothing behind. It needs no privileges: where root runs the
//! tests, somebody else runs the demo.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

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
/// The services, and how many of each there are at the start.
const SERVICES: [(&str, usize); 3] = [("storefront", 1), ("orders", 3), ("inventory", 2)];

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

    /// By `script` of bsdutils, if this is where that is: with a terminal for its output, which is handed on. It is told nothing
    /// by its environment, where no program of this machine is to be found.
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
            let mut command = Command::new(program("setpriv", "util-linux").unwrap());
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
            .env_clear()
            .env("PATH", "/nonexistent")
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

    /// The words by which each of them was started, the program's first.
    fn commands(&self) -> Vec<(i32, Vec<String>)> {
        let words = |pid: i32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = line.split_terminator('\0').map(str::to_owned);
            (pid, words.collect())
        };
        self.processes().into_iter().map(words).collect()
    }

    /// Tells a process of it something.
    fn signal(&self, pid: i32, signal: Signal) {
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
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
    let begun = Instant::now();
    let mut demo = Demo::start(&["--for", "30s"]);
    let status = demo.end().await;
    let took = begun.elapsed();
    assert!(status.success(), "{}", demo.said);
    assert_all_shown(&demo);
    // What it keeps back to stop everything is a second.
    let about = Duration::from_secs(28)..Duration::from_secs(100);
    assert!(about.contains(&took), "{took:?}\n{}", demo.said);
    assert_table(&demo.said);
    for words in [
        "starts to fail: 500 to everything.",
        "It is ejected, seen after ",
        " recovers. After its ejection, one request tries it.",
        "is killed: app and sidecar, without warning.",
        "DNS does not name ",
        "A new replica of orders is ready at ",
        "The next renewal comes by itself.",
        "Three requests that the gateway must refuse: no token, a bad token, one too many.",
        "That was the story.",
    ] {
        assert!(demo.said.contains(words), "no {words:?}:\n{}", demo.said);
    }
    // What is no terminal gets no colours, and nothing that moves a cursor.
    assert!(!demo.said.contains('\x1b'), "{}", demo.said);
    demo.assert_nothing_is_left();
}

fn assert_all_shown(demo: &Demo) {
    let marks = demo.marks();
    assert_eq!(marks.len(), 11, "{}", demo.said);
    for mark in marks {
        assert!(mark.starts_with("yes"), "{}", demo.said);
    }
}

/// One of the tables in it has, with something to say, a row for each edge and a line for each service.
fn assert_table(said: &str) {
    let lines: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let is_time = |value: &str, unit: &str| {
        value.parse().is_ok_and(|time: f64| time > 0.0) && ["ms", "s"].contains(&unit)
    };
    for (from, to) in [
        ("ingress", "storefront"),
        ("storefront", "orders"),
        ("orders", "inventory"),
    ] {
        let is_row = |words: &Vec<&str>| match words[..] {
            [
                source,
                "→",
                destination,
                rate,
                success,
                "%",
                p50,
                unit_50,
                p99,
                unit_99,
                "yes",
            ] => {
                (source, destination) == (from, to)
                    && rate.parse().is_ok_and(|rate: f64| rate > 0.0)
                    && success.parse().is_ok_and(|share: f64| share > 0.0)
                    && is_time(p50, unit_50)
                    && is_time(p99, unit_99)
            }
            _ => false,
        };
        assert!(lines.iter().any(is_row), "no {from} → {to}:\n{said}");
    }
    for (service, replicas) in SERVICES {
        let is_line = |words: &Vec<&str>| {
            let endpoints = words.strip_prefix(&[service]).unwrap_or_default();
            let is_endpoint = |endpoint: &[&str]| {
                endpoint[0]
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| ip.is_loopback())
                    && ["healthy", "ejected", "probing", "draining"].contains(&endpoint[1])
            };
            endpoints.len() == 2 * replicas && endpoints.chunks(2).all(is_endpoint)
        };
        assert!(lines.iter().any(is_line), "no {service}:\n{said}");
    }
}

/// Whether these are the words of such a process, such as `ca serve`.
fn is(words: &[String], role: &[&str]) -> bool {
    words.len() > role.len() && words[1..].iter().zip(role).all(|(word, role)| word == role)
}

/// The value of a flag.
fn flag<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == name)?;
    Some(words.get(at + 1)?)
}

/// A CA, a gateway, and for each instance of each service an app and a sidecar on one host, each host with an address of its
/// own; all of one program.
fn assert_separate_processes(demo: &Demo) {
    let commands = demo.commands();
    let programs: BTreeSet<PathBuf> = commands
        .iter()
        .map(|(pid, _)| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap())
        .collect();
    assert_eq!(programs.len(), 1, "{programs:?}");
    let of = |role: &[&str]| -> Vec<&[String]> {
        let all = commands.iter().map(|(_, words)| words.as_slice());
        all.filter(|words| is(words, role)).collect()
    };
    let (cas, gateways) = (of(&["ca", "serve"]), of(&["ingress"]));
    assert_eq!((cas.len(), gateways.len()), (1, 1), "{commands:?}");
    let mut sidecars: Vec<(&str, &str)> = of(&["sidecar"])
        .iter()
        .map(|words| {
            (
                flag(words, "--service").unwrap(),
                flag(words, "--host").unwrap(),
            )
        })
        .collect();
    let mut apps: Vec<(&str, &str)> = of(&["demo-app"])
        .iter()
        .map(|words| {
            let (host, _) = flag(words, "--address").unwrap().split_once(':').unwrap();
            (flag(words, "--service").unwrap(), host)
        })
        .collect();
    sidecars.sort_unstable();
    apps.sort_unstable();
    assert_eq!(sidecars, apps, "each app has its sidecar");
    for (service, replicas) in SERVICES {
        let there = apps.iter().filter(|(of, _)| *of == service).count();
        assert_eq!(there, replicas, "{service}: {apps:?}");
    }
    let hosts = cas
        .iter()
        .chain(&gateways)
        .map(|words| flag(words, "--host").unwrap());
    let hosts: BTreeSet<&str> = hosts.chain(apps.iter().map(|(_, host)| *host)).collect();
    assert_eq!(hosts.len(), 8, "{hosts:?}");
    // And the demo itself, which is all.
    assert_eq!(commands.len(), 15, "{commands:?}");
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
    let commands = demo.commands();
    let is_demo = |words: &[String]| matches!(words, [weft, demo] if weft.ends_with("/weft") && demo == "demo");
    let found = commands.iter().find(|(_, words)| is_demo(words));
    demo.signal(found.expect("a demo").0, Signal::INT);
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
    assert_separate_processes(&demo);
    let authorization = format!("Authorization: Bearer {}", &token["TOKEN=".len()..]);
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
    for (page, code) in [(&gateway, "401"), (&admin, "200"), (&sidecar, "200")] {
        let arguments = ["-s", "-o", "/dev/null", "-w", "%{http_code}", page];
        assert_eq!(says(&curl, &arguments, "").await, code, "{page}");
    }

    // Long after the story is told it is all there.
    let stays = |line: &str| line.ends_with("The mesh stays up until Ctrl-C.");
    demo.line_that("that it stays", stays).await;
    for _ in 0..2 {
        demo.line("weft demo ").await;
    }
    let request = ["-s", "-m", "60", "-H", &authorization, &gateway];
    let answer = says(&curl, &request, "").await;
    assert!(answer.contains("orders"), "{answer}");
    assert!(demo.child.try_wait().unwrap().is_none(), "{}", demo.said);

    let pid = i32::try_from(demo.child.id().unwrap()).unwrap();
    demo.signal(pid, Signal::INT);
    let status = demo.end().await;
    assert_eq!(status.code(), Some(0), "{}", demo.said);
    assert_all_shown(&demo);
    demo.assert_nothing_is_left();
}

/// What it promises is not taken for shown: without its CA the demo says what did not hold, and fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_ca_dies_says_what_did_not_hold_and_fails() {
    let mut demo = Demo::start(&["--for", "20s"]);
    demo.line("TOKEN=").await;
    let commands = demo.commands();
    let ca = commands
        .iter()
        .find(|(_, words)| is(words, &["ca", "serve"]));
    demo.signal(ca.expect("a CA").0, Signal::KILL);
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

/// No promise is kept by a mesh that stands still: the apps in its middle do not say a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_traffic_stands_still_says_what_did_not_hold_and_fails() {
    let mut demo = Demo::start(&["--for", "20s"]);
    demo.line("TOKEN=").await;
    let commands = demo.commands();
    let is_app =
        |words: &[String]| is(words, &["demo-app"]) && flag(words, "--service") == Some("orders");
    let apps: Vec<i32> = commands
        .iter()
        .filter(|(_, words)| is_app(words))
        .map(|(pid, _)| *pid)
        .collect();
    assert_eq!(apps.len(), 3, "{commands:?}");
    for app in apps {
        demo.signal(app, Signal::STOP);
    }
    let status = demo.end().await;
    assert_eq!(status.code(), Some(1), "{}", demo.said);
    let marks = demo.marks();
    let last = marks.last().unwrap();
    assert!(
        last.starts_with("NO") && last.contains("no other request fails"),
        "{}",
        demo.said
    );
    assert_eq!(demo.processes(), BTreeSet::new());
}
