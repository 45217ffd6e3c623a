//! The demo keeps its promises, and leaves nothing behind.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::told::WEFT;

/// The processes of this machine whose environment names our directory.
fn processes_of(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            String::from_utf8_lossy(&environment)
                .contains(directory)
                .then(|| entry.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unattended_demo_shows_everything_and_leaves_nothing_behind() {
    let directory = tempfile::Builder::new()
        .prefix("weft-it-demo-")
        .tempdir()
        .unwrap();
    let path = directory.path().to_str().unwrap().to_owned();
    let mut command = tokio::process::Command::new(WEFT.as_str());
    command
        .args(["demo", "--for", "30s"])
        // Everything that it writes goes there, and its children inherit the mark.
        .env("TMPDIR", &path)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(180), command.output())
        .await
        .expect("the demo ends by itself")
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (_, summary) = said.split_once("What was shown:").expect("a summary");
    let marks: Vec<&str> = summary
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .collect();
    assert_eq!(marks.len(), 11, "{summary}");
    assert!(
        marks.iter().all(|mark| mark.starts_with("yes")),
        "{summary}"
    );
    assert_eq!(
        std::fs::read_dir(&path).unwrap().count(),
        0,
        "files are left in {path}"
    );
    assert_eq!(processes_of(&path), BTreeSet::new());
}
