//! Programs of others' making that some tests need. Where CI runs they must be there; elsewhere a test says in one line
//! that it was left out.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::io::AsyncWriteExt as _;

use super::told::{left_out, told};
use super::{eventually, soon};

/// A program, from `PATH` or from where Debian keeps servers. `None`: the test is left out.
pub(crate) fn program(name: &str, package: &str) -> Option<PathBuf> {
    let path = told("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    let found = places.iter().map(|place| place.join(name));
    or_left_out(found.into_iter().find(|file| file.is_file()), name, package)
}

/// A file, such as a library to be loaded. `None`: the test is left out.
pub(crate) fn file(pattern: [&str; 2], package: &str) -> Option<PathBuf> {
    // Between the two is the name of the machine's architecture.
    let [before, after] = pattern;
    let entries = std::fs::read_dir(before).into_iter().flatten().flatten();
    let mut files = entries.map(|entry| entry.path().join(after));
    or_left_out(files.find(|file| file.is_file()), after, package)
}

/// The Python of `target/venv`, which `tests/run` makes and which has these modules.
pub(crate) fn python(modules: &str) -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let import = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .output();
    let has = import.is_ok_and(|output| output.status.success());
    let what = format!("target/venv with {modules}");
    or_left_out(has.then_some(python), &what, "tests/run makes it")
}

fn or_left_out(found: Option<PathBuf>, what: &str, package: &str) -> Option<PathBuf> {
    if found.is_none() {
        left_out(&format!("{what} is missing ({package})"));
    }
    found
}

/// A running server or client of others' making. Killed when dropped, and when the test process ends however it ends.
#[derive(Debug)]
pub(crate) struct Foreign {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Foreign {
    /// Starts it in a directory, where it may leave what it wants and where its output goes.
    pub(crate) fn start<S: AsRef<OsStr>>(
        directory: &Path,
        program: &Path,
        arguments: &[S],
    ) -> Self {
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        let log = tempfile::Builder::new()
            .prefix(&name)
            .suffix(".log")
            .tempfile_in(directory)
            .unwrap()
            .into_temp_path()
            .keep()
            .unwrap();
        let output = std::fs::File::create(&log).unwrap();
        // Of util-linux, as the system's `mount` is.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { name, child, log }
    }

    /// Waits until it takes connections.
    pub(crate) async fn listens(mut self, address: SocketAddr) -> Self {
        eventually(&format!("{} listens", self.name.clone()), async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{} ended: {status}\n{}", self.name, self.log());
            }
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        self
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.name, self.log());
        }
    }
}

/// Runs a program to its end, which must be a good one, with this as its input: what it printed.
pub(crate) async fn output<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    input: &[u8],
) -> Vec<u8> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let feed = async move {
        // It may end without having read everything.
        let _ = pipe.write_all(input).await;
    };
    let what = format!("{} ends", program.display());
    let (_, output) = soon(&what, async {
        tokio::join!(feed, child.wait_with_output())
    })
    .await;
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{what}: {}\n{said}\n{errors}",
        output.status
    );
    output.stdout
}

/// The same, as text.
pub(crate) async fn says<S: AsRef<OsStr>>(program: &Path, arguments: &[S], input: &str) -> String {
    let output = output(program, arguments, input.as_bytes()).await;
    String::from_utf8(output).unwrap()
}
