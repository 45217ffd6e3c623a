//! Programs of others' making that some tests need. Where CI runs they must be there; elsewhere a test says in one line
//! that it was left out.

use std::path::{Path, PathBuf};

/// A program, from `PATH` or from where Debian keeps servers. `None`: the test is left out.
pub(crate) fn program(name: &str, package: &str) -> Option<PathBuf> {
    #[allow(
        clippy::disallowed_methods,
        reason = "a test's own question, and not a program's"
    )]
    let path = std::env::var_os("PATH").unwrap_or_default();
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
    let import = std::process::Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .output();
    let has = import.is_ok_and(|output| output.status.success());
    let what = format!("target/venv with {modules}");
    or_left_out(has.then_some(python), &what, "tests/run makes it")
}

fn or_left_out(found: Option<PathBuf>, what: &str, package: &str) -> Option<PathBuf> {
    if found.is_none() {
        #[allow(
            clippy::disallowed_methods,
            reason = "a test's own question, and not a program's"
        )]
        let is_ci = std::env::var_os("CI").is_some();
        assert!(!is_ci, "{what} is missing ({package})");
        eprintln!("left out: {what} is missing ({package})");
    }
    found
}
