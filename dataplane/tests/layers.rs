//! Invariants of docs/architecture.md that no compiler checks, read off the sources: which module may use which, and
//! what may be done in one place only.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer 0: words that everybody uses.
const WORDS: &[&str] = &[
    "dial",
    "endpoint",
    "error",
    "foreign",
    "gate",
    "head",
    "path",
    "principal",
    "reason",
    "timer",
];
/// Layer 1: features, each for itself.
const FEATURES: &[&str] = &[
    "authn",
    "authz",
    "balance",
    "discovery",
    "health",
    "identity",
    "limit",
    "observe",
    "route",
    "trusted",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// One file of ours, without comments and without its tests.
struct Source {
    /// From the workspace's root.
    path: String,
    code: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = &str> {
        self.code.lines().map(str::trim)
    }

    /// The module of its crate that it belongs to.
    fn module(&self) -> &str {
        let (_, inside) = self.path.split_once("src/").unwrap();
        inside.split(['/', '.']).next().unwrap()
    }

    /// The modules of its own crate that it names, with the line that does.
    fn uses(&self) -> Vec<(&str, &str)> {
        self.lines()
            .flat_map(|line| {
                line.match_indices("crate::").map(move |(at, word)| {
                    let rest = &line[at + word.len()..];
                    let end = rest
                        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                        .unwrap_or(rest.len());
                    (&rest[..end], line)
                })
            })
            .collect()
    }
}

/// All production code under these folders.
fn sources(folders: &[&str]) -> Vec<Source> {
    let root = workspace();
    let mut found = Vec::new();
    for folder in folders {
        collect(&root, &root.join(folder), &mut found);
    }
    assert!(!found.is_empty(), "no sources in {folders:?}");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_test = ["tests", "tests.rs", "testing.rs", "corpus.rs", "differ.rs"].contains(&name);
        if is_test {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap()
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect::<Vec<_>>()
                .join("\n");
            let path = path.strip_prefix(root).unwrap().display().to_string();
            found.push(Source { path, code });
        }
    }
}

const EVERYTHING: &[&str] = &[
    "src",
    "proto/src",
    "runtime/src",
    "dataplane/src",
    "sidecar/src",
    "ingress/src",
    "ca/src",
];

/// Every line of production code that holds one of these, but for those in `places`.
fn lines_with(folders: &[&str], needles: &[&str], places: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources(folders) {
        if places.contains(&source.path.as_str()) {
            continue;
        }
        for line in source.lines() {
            if needles.iter().any(|needle| line.contains(needle)) {
                found.push(format!("{}: {line}", source.path));
            }
        }
    }
    found
}

#[test]
fn every_module_of_the_data_path_is_in_a_layer() {
    let library = fs::read_to_string(workspace().join("dataplane/src/lib.rs")).unwrap();
    let in_layer = |number: char| {
        let heading = format!("// Layer {number}");
        let (_, rest) = library.split_once(&heading).unwrap();
        let block = rest.split("\n\n").next().unwrap();
        block
            .lines()
            .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
            .collect::<Vec<_>>()
    };
    assert_eq!(in_layer('0'), WORDS);
    assert_eq!(in_layer('1'), FEATURES);
}

#[test]
fn a_feature_uses_words_and_itself_and_no_other_feature() {
    let mut wrong = Vec::new();
    for source in sources(&["dataplane/src"]) {
        let module = source.module();
        if !FEATURES.contains(&module) {
            continue;
        }
        for (used, line) in source.uses() {
            if used != module && !WORDS.contains(&used) {
                wrong.push(format!("{}: {line}", source.path));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "a feature reaches beyond its words:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn words_use_words_only() {
    let mut wrong = Vec::new();
    for source in sources(&["dataplane/src"]) {
        if !WORDS.contains(&source.module()) {
            continue;
        }
        for (used, line) in source.uses() {
            // What an identity is, is a word; how it is proven is the feature's matter.
            let is_word = WORDS.contains(&used) || line == "pub use crate::identity::SpiffeId;";
            if !is_word {
                wrong.push(format!("{}: {line}", source.path));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "a word is not simple:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn only_the_configuration_reads_the_environment() {
    let needles = ["env::var", "env::vars", "option_env!"];
    let wrong = lines_with(EVERYTHING, &needles, &["runtime/src/config/env.rs"]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tasks_are_started_in_groups_or_on_their_core() {
    let wrong = lines_with(
        EVERYTHING,
        &["tokio::spawn(", "task::spawn(", "unbounded_channel("],
        &["runtime/src/task.rs"],
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What is not `Send` stays in the data path, whose cores own it.
    let local = lines_with(EVERYTHING, &["spawn_local("], &[]);
    assert!(!local.is_empty());
    for line in local {
        assert!(line.starts_with("dataplane/src/"), "{line}");
    }
}

#[test]
fn decisions_are_handed_the_time_and_the_dice() {
    let wrong = lines_with(
        &[
            "dataplane/src/authz",
            "dataplane/src/balance",
            "dataplane/src/health",
            "dataplane/src/limit",
            "dataplane/src/path",
            "dataplane/src/route",
            "ca/src/admit",
        ],
        &["Instant::now(", "SystemTime::now(", "fastrand::"],
        &[],
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn dependencies_point_one_way() {
    let allowed = BTreeMap::from([
        ("proto", vec![]),
        ("runtime", vec![]),
        ("dataplane", vec!["weft-proto", "weft-runtime"]),
        (
            "sidecar",
            vec!["weft-dataplane", "weft-proto", "weft-runtime"],
        ),
        (
            "ingress",
            vec!["weft-dataplane", "weft-proto", "weft-runtime"],
        ),
        ("ca", vec!["weft-proto", "weft-runtime"]),
    ]);
    for (room, allowed) in allowed {
        let manifest = fs::read_to_string(workspace().join(room).join("Cargo.toml")).unwrap();
        let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
        let mut used: Vec<&str> = rest
            .split("\n[")
            .next()
            .unwrap()
            .lines()
            .filter(|line| line.starts_with("weft-"))
            .map(|line| line.split(['.', ' ']).next().unwrap())
            .collect();
        used.sort_unstable();
        for name in &used {
            assert!(allowed.contains(name), "{room} depends on {name}");
        }
        assert!(
            !manifest.contains("[features]"),
            "{room} has cargo features"
        );
    }
}
