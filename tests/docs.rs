//! What the documentation says is so: the metrics and reasons it lists, the files and tests it names, the commands and
//! the configuration that it shows.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use weft_dataplane::foreign::Foreign;
use weft_dataplane::observe::metrics;
use weft_dataplane::reason::Reason;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// README.md and everything under docs/.
fn pages() -> Vec<(String, String)> {
    let mut pages = vec![("README.md".to_owned(), read("README.md"))];
    for path in files(&root().join("docs"), "md") {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let text = read(&name);
        pages.push((name, text));
    }
    pages
}

/// All files of this kind below a folder, build output aside.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
    found
}

/// What stands between single backticks, code blocks aside.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").step_by(2).flat_map(|prose| {
        prose
            .lines()
            .flat_map(|line| line.split('`').skip(1).step_by(2))
    })
}

/// The code blocks of this language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    text.split("```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

/// Words in quotation marks that begin so, in the production code below a folder.
fn names_in(folder: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in files(&root().join(folder), "rs") {
        let text = fs::read_to_string(path).unwrap();
        for word in text.split('"').skip(1).step_by(2) {
            let plain = word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if plain && word.starts_with(prefix) {
                names.insert(word.to_owned());
            }
        }
    }
    names
}

/// What a line of the code says that a constant, or a field of a default, is.
fn value_of(name: &str, code: &str) -> Option<u64> {
    let said = code.lines().find_map(|line| {
        let line = line.trim().trim_start_matches("pub(super) ");
        let line = line
            .trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ");
        match line.strip_prefix("const ") {
            Some(line) => Some(
                line.strip_prefix(name)?
                    .strip_prefix(": ")?
                    .split_once(" = ")?
                    .1,
            ),
            None => line.strip_prefix(name)?.strip_prefix(": "),
        }
        .filter(|said| said.starts_with(|first: char| first.is_ascii_digit()))
    })?;
    let said = said.trim_end_matches([',', ';']).replace('_', "");
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match said.split_once(" << ") {
        Some((left, right)) => Some(number(left)? << number(right)?),
        None => said.split(" * ").map(number).product(),
    }
}

#[test]
fn operations_says_what_each_bound_is() {
    let text = read("docs/operations.md");
    let table = text.split_once("\n## Bounds\n").unwrap().1;
    let mut rows = 0;
    for row in table.lines().filter(|line| line.ends_with("` |")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [most, _, place] = cells[..] else {
            panic!("{row}")
        };
        let (file, name) = place.trim_matches('`').split_once("::").unwrap();
        let (number, unit) = match most.split_once(' ') {
            Some((number, "KiB")) => (number, 1 << 10),
            Some((number, "MiB")) => (number, 1 << 20),
            Some(_) => panic!("{row}"),
            None => (most, 1),
        };
        let number: u64 = number.replace(',', "").parse().unwrap();
        assert_eq!(value_of(name, &read(file)), Some(number * unit), "{row}");
        rows += 1;
    }
    assert!(rows > 20, "{rows} rows");
}

#[test]
fn operations_lists_every_metric_and_no_other() {
    let mut there: BTreeSet<String> = metrics::ALL
        .iter()
        .map(|(_, name, _)| (*name).to_owned())
        .collect();
    there.extend(names_in("ca/src", "weft_ca_"));
    there.extend(names_in("runtime/src/config", "weft_config_"));
    there.extend(names_in("runtime/src/telemetry", "weft_"));
    there.extend(names_in("runtime/src/telemetry", "process_"));
    for room in ["src", "ingress/src", "sidecar/src", "runtime/src/admin"] {
        there.extend(
            names_in(room, "weft_")
                .into_iter()
                .filter(|name| name != "weft_"),
        );
    }
    let text = read("docs/operations.md");
    let listed: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter(|(name, _)| name.starts_with("weft_") || name.starts_with("process_"))
        .map(|(name, _)| name.to_owned())
        .collect();
    let missing: Vec<_> = there.difference(&listed).collect();
    let invented: Vec<_> = listed.difference(&there).collect();
    assert!(missing.is_empty(), "not in docs/operations.md: {missing:?}");
    assert!(
        invented.is_empty(),
        "only in docs/operations.md: {invented:?}"
    );
    for (kind, name, help) in metrics::ALL {
        let row = format!("| `{name}` | {kind} | {help} |");
        assert!(
            text.lines().any(|line| line == row),
            "docs/operations.md should say:\n{row}"
        );
    }
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let sources: Vec<String> = files(&root(), "rs")
        .iter()
        .map(|path| format!("/{}", path.strip_prefix(root()).unwrap().display()))
        .collect();
    let mut missing = Vec::new();
    for (page, text) in pages() {
        for name in quoted(&text) {
            let is_source = name.ends_with(".rs") && !name.contains([' ', '*', '<']);
            if is_source
                && !sources
                    .iter()
                    .any(|path| path.ends_with(&format!("/{name}")))
            {
                missing.push(format!("{page}: {name}"));
            }
        }
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let folder = root().join(&page).parent().unwrap().to_owned();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                missing.push(format!("{page}: ({target})"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let code: String = files(&root(), "rs")
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut missing = Vec::new();
    let mut named = 0;
    for (page, text) in pages() {
        for name in quoted(&text) {
            let plain = name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            let is_code = name.starts_with("weft_")
                || Reason::from_code(name.as_bytes()).is_some()
                || Foreign::ALL.iter().any(|kind| kind.as_str() == name);
            // Only a test says what happens in so many words.
            if !plain || is_code || name.matches('_').count() < 3 {
                continue;
            }
            named += 1;
            let is_test = code.contains(&format!("fn {name}("));
            let is_metric = page.ends_with("operations.md") && name.starts_with("process_");
            if !is_test && !is_metric {
                missing.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(named > 20, "only {named} tests are named");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_row_of_the_hardening_pages_names_a_test_that_is_there() {
    let sources = files(&root(), "rs");
    let mut wrong = Vec::new();
    let mut named = 0;
    for (page, text) in pages() {
        if !page.starts_with("docs/hardening") {
            continue;
        }
        for name in quoted(&text) {
            let Some((file, function)) = name.split_once(".rs::") else {
                continue;
            };
            named += 1;
            // Where the page says that they are, or from the root.
            let places = ["tests/it", "dataplane/src", ""]
                .map(|folder| root().join(folder).join(format!("{file}.rs")));
            let found = places
                .iter()
                .filter(|path| sources.contains(path))
                .any(|path| has_test(&fs::read_to_string(path).unwrap(), function));
            if !found {
                wrong.push(format!("{page}: {name}"));
            }
        }
        // Each row of what is withstood shows something.
        let rows = text
            .lines()
            .filter(|line| line.starts_with("| ") && line.ends_with(" |"));
        let mut shows = false;
        for row in rows {
            if row.contains("| shown by |") || row.ends_with("| test |") {
                shows = true;
            } else if row.starts_with("| name |") {
                shows = false;
            } else if shows && !row.contains(".rs::") {
                wrong.push(format!("{page}: a row without a test: {row}"));
            }
        }
    }
    assert!(named > 80, "only {named} tests are named");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a file has a test of this name, and not just a function.
fn has_test(code: &str, name: &str) -> bool {
    let Some((before, _)) = code.split_once(&format!("fn {name}(")) else {
        return false;
    };
    let attributes = before.rsplit("\n\n").next().unwrap_or(before);
    attributes.contains("test]") || attributes.contains("test(")
}

#[test]
fn every_configuration_that_a_page_shows_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weft.yaml");
    let mut checked = 0;
    for (page, text) in pages() {
        for block in blocks(&text, "yaml") {
            // A part of one is shown without what every file begins with.
            let is_whole = block.lines().any(|line| line.starts_with("trust_domain:"));
            let before = if is_whole {
                ""
            } else {
                "trust_domain: shop.internal\n"
            };
            fs::write(&file, format!("{before}{block}")).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_weft"))
                .arg("check")
                .arg(&file)
                .output()
                .unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{page}:\n{words}");
            checked += 1;
        }
    }
    assert!(checked > 0, "no page shows a configuration");
}

#[test]
fn the_two_commands_of_the_readme_are_there() {
    let readme = read("README.md");
    assert!(readme.contains("\ncargo run --release -- demo "));
    assert!(readme.contains("\ntests/run "));
    let ci = read(".ci/run");
    let commands: Vec<&str> = ci
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect();
    assert_eq!(
        commands,
        [
            "export CI=${CI:-1}",
            "exec bash \"$(dirname \"${BASH_SOURCE[0]}\")/../tests/run\""
        ]
    );
    for role in ["ca serve", "sidecar", "ingress", "check", "demo"] {
        assert!(readme.contains(&format!("| `weft {role}")), "{role}");
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(role.split(' '))
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "weft {role} --help");
    }
}

/// The rows of a page's tables that have a last column `shown by`, with what stands in it.
fn shown_by(text: &str) -> Vec<(&str, &str)> {
    let mut rows = Vec::new();
    let mut is_in = false;
    for line in text.lines() {
        let Some(cells) = line
            .strip_prefix("| ")
            .and_then(|row| row.strip_suffix('|'))
        else {
            // A table ends with the first line that is none of its rows; the line below its head is `|---|`.
            is_in &= line.starts_with("|-");
            continue;
        };
        let (rest, last) = cells.rsplit_once('|').unwrap();
        if last.trim() == "shown by" {
            is_in = true;
        } else if is_in {
            rows.push((rest.split(" | ").next().unwrap(), last.trim()));
        }
    }
    rows
}

/// Whether this is the name of a test: of a function with that attribute, or of a file with such functions.
fn is_test(name: &str, code: &[(String, String)]) -> bool {
    let marked = |text: &str| text.contains("#[test]") || text.contains("#[tokio::test");
    if name.ends_with(".rs") {
        return code.iter().any(|(path, text)| path == name && marked(text));
    }
    code.iter().any(|(_, text)| {
        let at = text.find(&format!("fn {name}("));
        at.is_some_and(|at| {
            // Its attributes: what lies between the end of the item before and its name.
            let before = &text[..at];
            let begin = before.rfind('}').unwrap_or(0);
            marked(&before[begin..])
        })
    })
}

/// Of a page that says what happens in which event: every row of its tables names a test that shows it, and there are so many.
#[track_caller]
fn every_row_names_a_test(page: &str, least: usize) {
    let text = read(page);
    let code: Vec<(String, String)> = files(&root(), "rs")
        .iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    let rows = shown_by(&text);
    assert!(rows.len() >= least, "{page} has only {} events", rows.len());
    let mut wrong = Vec::new();
    for (event, shown) in rows {
        let names: Vec<&str> = quoted(shown).collect();
        if names.is_empty() {
            wrong.push(format!("{event}: nothing shows it"));
        }
        let unknown = names.iter().filter(|name| !is_test(name, &code));
        wrong.extend(unknown.map(|name| format!("{event}: {name} is no test")));
    }
    assert!(wrong.is_empty(), "{page}:\n{}", wrong.join("\n"));
}

#[test]
fn every_event_of_operations_names_the_test_that_shows_it() {
    every_row_names_a_test("docs/operations.md", 50);
}

/// A row behind an empty line is in no table, and is shown as it was typed.
#[test]
fn every_row_stands_in_a_table() {
    let mut pages = pages();
    let bench = "tests/bench/README.md";
    pages.push((bench.to_owned(), read(bench)));
    for (page, text) in pages {
        let mut lines: Vec<_> = text.split("```").step_by(2).flat_map(str::lines).collect();
        lines.insert(0, "");
        for three in lines.windows(3) {
            let is_head = three[1].starts_with('|') && !three[0].starts_with('|');
            assert!(
                !is_head || three[2].starts_with("|--"),
                "{page}: no table has this row: {}",
                three[1]
            );
        }
    }
}

/// A panel of the dashboard that is promised, by its title, and what it asks of which metric.
const PANELS: [(&str, &str, &[&str]); 14] = [
    ("Traffic", "weft_mesh_requests_total", EDGE),
    ("Errors", "weft_mesh_requests_total", EDGE),
    ("Latency", "weft_mesh_request_duration_seconds_bucket", EDGE),
    ("Saturation", "weft_mesh_request_duration_seconds_sum", EDGE),
    ("Retries", "weft_mesh_retries_total", EDGE),
    (
        "Endpoints",
        "weft_mesh_endpoint_state",
        &["service", "endpoint", "state"],
    ),
    (
        "Endpoints ejected",
        "weft_mesh_endpoint_state",
        &["state=\"ejected\""],
    ),
    (
        "Ejections",
        "weft_mesh_endpoint_ejections",
        &["service", "endpoint"],
    ),
    (
        "mTLS coverage",
        "weft_mesh_requests_total",
        &["mtls=\"true\""],
    ),
    (
        "mTLS coverage per edge",
        "weft_mesh_requests_total",
        &["mtls=\"true\"", "source", "destination"],
    ),
    (
        "First certificate to end",
        "weft_mesh_certificate_expiry_seconds",
        &[],
    ),
    (
        "Certificates: time left",
        "weft_mesh_certificate_expiry_seconds",
        &["service", "instance"],
    ),
    (
        "Answers of the gateway's own, by reason",
        "weft_answers_total",
        &["reason"],
    ),
    (
        "The gateway's own answers by route and reason",
        "weft_gateway_answers_total",
        &["route", "reason"],
    ),
];
const EDGE: &[&str] = &["sum by (source, destination"];

#[test]
fn the_dashboard_shows_what_is_promised_of_it() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/dashboards/mesh.json")).unwrap();
    assert_eq!(dashboard["title"], "Mesh");
    let panels = dashboard["panels"].as_array().unwrap();
    for (title, metric, words) in PANELS {
        // A row of panels may have the name of one.
        let is_it = |panel: &&serde_json::Value| panel["title"] == title && panel["type"] != "row";
        let panel = panels.iter().find(is_it);
        let panel = panel.unwrap_or_else(|| panic!("no panel {title}"));
        let queries: Vec<&str> = panel["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|target| target["expr"].as_str().unwrap())
            .collect();
        let shows =
            |query: &str| query.contains(metric) && words.iter().all(|word| query.contains(word));
        assert!(
            queries.iter().any(|query| shows(query)),
            "{title}: {queries:?}"
        );
    }
    // What a query asks for is there to be asked: one that is misspelt would show nothing for ever.
    let known: BTreeSet<&str> = metrics::ALL.iter().map(|(_, name, _)| *name).collect();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in words.filter(|word| word.starts_with("weft_")) {
                let plain = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .unwrap_or(name);
                assert!(
                    known.contains(plain) || known.contains(name),
                    "{}: {name}",
                    panel["title"]
                );
            }
        }
    }
}
