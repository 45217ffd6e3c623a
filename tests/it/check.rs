//! `weft check`: every broken configuration gives located problems, each once, in the order of the file, with the way
//! out; and no role starts with one.
//!
//! The configurations and what is said of them are tables in `tests/golden/check/`: `=== title`, the file, `=>`, and
//! what `weft check` prints. `WEFT_UPDATE_GOLDEN=1` writes what it prints now; read the difference before you believe it.

#![allow(clippy::unwrap_used)]

mod examples;
mod fixtures;
mod page;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use fixtures::Fixtures;

/// Of the project.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `weft` with these arguments, run to its end in `directory`.
fn weft(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(crate::harness::told::WEFT.as_str())
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .env_remove("WEFT_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What stands at `path`, or what is to stand there now when the variable says so.
#[track_caller]
fn compare(path: &Path, variable: &str, now: &str) {
    if crate::harness::told::told(variable).is_some() {
        std::fs::write(path, now).unwrap();
        return;
    }
    let before = std::fs::read_to_string(path).unwrap_or_default();
    for (index, (before, now)) in before.lines().zip(now.lines()).enumerate() {
        assert_eq!(
            before,
            now,
            "{} line {}: run with {variable}=1 and read the difference",
            path.display(),
            index + 1
        );
    }
    assert_eq!(
        before.lines().count(),
        now.lines().count(),
        "{}: run with {variable}=1 and read the difference",
        path.display()
    );
}

struct Case {
    title: String,
    file: String,
    said: String,
}

fn cases(table: &Path) -> Vec<Case> {
    let table = std::fs::read_to_string(table).unwrap();
    let mut cases = Vec::new();
    for case in table.split("=== ").skip(1) {
        let (title, rest) = case.split_once('\n').unwrap();
        let (file, said) = match rest.strip_prefix("=>\n") {
            Some(said) => ("", said),
            None => rest
                .split_once("\n=>\n")
                .unwrap_or_else(|| panic!("`{title}` has no line `=>`")),
        };
        cases.push(Case {
            title: title.to_owned(),
            file: if file.is_empty() {
                String::new()
            } else {
                format!("{file}\n")
            },
            said: said.trim_end().to_owned(),
        });
    }
    assert!(!cases.is_empty());
    cases
}

/// Calls `act` with every item, on a few threads: processes are waited for, mostly.
fn on_threads<T: Sync, R: Send>(items: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else {
                    return done;
                };
                done.push((index, act(item)));
            }
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What holds whatever is wrong: a place for each problem, in the order of the file, none twice, and a way out.
#[track_caller]
fn check_form(title: &str, file: &str, said: &str) {
    let mut places = Vec::new();
    let mut heads = Vec::new();
    let mut lines = said.lines().peekable();
    while let Some(head) = lines.next() {
        let rest = head
            .strip_prefix("weft.yaml:")
            .unwrap_or_else(|| panic!("{title}: `{head}` does not begin with the file"));
        let mut parts = rest.splitn(3, ':');
        let line: usize = parts.next().unwrap().parse().unwrap();
        let column: usize = parts.next().unwrap().parse().unwrap();
        assert!(
            (1..=file.lines().count() + 1).contains(&line),
            "{title}: no line {line}"
        );
        let width = file
            .lines()
            .nth(line - 1)
            .map_or(0, |line| line.chars().count());
        assert!((1..=width + 1).contains(&column), "{title}: {head}");
        assert!(
            parts.next().unwrap().trim().len() > 10,
            "{title}: `{head}` says nothing"
        );
        places.push((line, column));
        heads.push(head);
        let mut cure = 0;
        while lines.next_if(|line| line.starts_with("    ")).is_some() {
            cure += 1;
        }
        assert!(cure > 0, "{title}: no way out of `{head}`");
    }
    assert!(!places.is_empty(), "{title}: nothing is said");
    assert!(places.is_sorted(), "{title}: out of order:\n{said}");
    let count = heads.len();
    heads.dedup();
    assert_eq!(heads.len(), count, "{title}: something is said twice");
}

fn check_table(theme: &str) {
    let path = root().join(format!("tests/golden/check/{theme}.txt"));
    let cases = cases(&path);
    let fixtures = Fixtures::new();
    let said = on_threads(&cases, |case| {
        let directory = fixtures.with(&case.file);
        let output = weft(directory.path(), &["check", "weft.yaml"]);
        let said = text(&output.stderr).to_owned();
        assert_eq!(output.status.code(), Some(2), "{}: {said}", case.title);
        assert_eq!(text(&output.stdout), "", "{}", case.title);
        said
    });
    let mut now = String::new();
    for (case, said) in cases.iter().zip(&said) {
        now.push_str(&format!("=== {}\n{}=>\n{said}\n", case.title, case.file));
    }
    compare(&path, "WEFT_UPDATE_GOLDEN", &now);
    for (case, said) in cases.iter().zip(&said) {
        check_form(&case.title, &case.file, said);
    }
}

#[test]
fn what_is_not_yaml() {
    check_table("syntax");
}

#[test]
fn what_has_the_wrong_shape() {
    check_table("shape");
}

#[test]
fn services_that_cannot_be_and_rules_that_never_match() {
    check_table("services");
}

#[test]
fn health_that_asks_nothing_or_too_much() {
    check_table("health");
}

#[test]
fn routes_that_lead_nowhere_and_limits_that_allow_nothing() {
    check_table("routes");
}

#[test]
fn addresses_names_and_times() {
    check_table("addresses");
}

#[test]
fn interception_and_its_exceptions() {
    check_table("intercept");
}

/// The one thing that is told to who looks, and does not keep a process from starting.
#[test]
fn an_exception_whose_last_day_is_over_is_a_problem() {
    let file = "trust_domain: shop.internal\nca: { address: \"ca:15012\" }\nsidecar: { intercept: {} }\nservices:\n  \
                orders: { mtls: { permissive: { until: 2020-02-29 } } }\n";
    let directory = Fixtures::new().with(file);
    let output = weft(directory.path(), &["check", "weft.yaml"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    check_form("a last day that is over", file, said);
    assert!(
        said.starts_with("weft.yaml:5:42: `2020-02-29` is over"),
        "{said}"
    );
}

#[test]
fn files_that_the_file_names() {
    check_table("files");
}

#[test]
fn services_that_are_not_http() {
    check_table("tcp");
}

#[test]
fn several_problems_at_once() {
    check_table("several");
}

#[test]
fn there_are_more_than_a_hundred_broken_configurations() {
    let tables = std::fs::read_dir(root().join("tests/golden/check")).unwrap();
    let count: usize = tables
        .map(|table| cases(&table.unwrap().path()).len())
        .sum();
    assert!(count >= 100, "{count}");
}

/// What each program says is what `weft check` says, and perhaps more that concerns it alone; and it ends with 2.
#[test]
fn no_role_starts_with_a_broken_file() {
    const ROLES: [&str; 5] = [
        "ingress",
        "sidecar --service orders",
        "ca serve",
        "ca token create --service orders",
        "run --service orders",
    ];
    let fixtures = Fixtures::new();
    let mut all: Vec<(Case, &[&str])> = Vec::new();
    for table in std::fs::read_dir(root().join("tests/golden/check")).unwrap() {
        let table = table.unwrap().path();
        // Certificates and key sets are there where the program is that reads them, and its file is looked at as a whole.
        let roles = match table.ends_with("files.txt") {
            true => &ROLES[..1],
            false => &ROLES[..],
        };
        all.extend(cases(&table).into_iter().map(|case| (case, roles)));
    }
    on_threads(&all, |(case, roles)| {
        let directory = fixtures.with(&case.file);
        for role in *roles {
            let mut words: Vec<&str> = role.split(' ').collect();
            words.extend(["--config", "weft.yaml"]);
            if words[0] == "run" {
                words.extend(["--", "touch", "started"]);
            }
            let output = weft(directory.path(), &words);
            assert!(!directory.path().join("started").exists(), "{}", case.title);
            let said = text(&output.stderr);
            let context = format!("{} as {role:?} says:\n{said}", case.title);
            assert_eq!(output.status.code(), Some(2), "{context}");
            assert_eq!(text(&output.stdout), "", "{context}");
            let mut lines = said.lines();
            for line in case.said.lines() {
                assert!(
                    lines.any(|said| said == line),
                    "`{line}` is missing: {context}"
                );
            }
        }
    });
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_with_a_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::create_dir(at.join("directory")).unwrap();
    std::fs::write(at.join("binary.yaml"), b"trust_domain: \xff\n").unwrap();
    let large = format!("trust_domain: shop.internal\n#{}\n", "x".repeat(4 << 20));
    std::fs::write(at.join("large.yaml"), large).unwrap();
    for (file, why) in [
        ("missing.yaml", "No such file or directory"),
        ("directory", "not a regular file"),
        ("binary.yaml", "not UTF-8 text (byte 14)"),
        ("large.yaml", "larger than 4 MiB"),
    ] {
        for arguments in [
            &["check", file][..],
            &["ca", "serve", "--config", file],
            &["sidecar", "--service", "orders", "--config", file],
            &["ingress", "--config", file],
        ] {
            let output = weft(at, arguments);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
            assert_eq!(text(&output.stdout), "");
            let begin = format!("{file}: cannot be read: {why}");
            assert!(said.starts_with(&begin), "{arguments:?}: {said}");
            assert!(
                said.lines().nth(1).unwrap().starts_with("    give "),
                "{said}"
            );
        }
    }
}

#[test]
fn a_good_file_is_said_to_be_good() {
    let fixtures = Fixtures::new();
    let directory = fixtures.with(
        "trust_domain: shop.internal\n\
         services: { orders: { mesh: false } }\n\
         ingress: { routes: [ { to: orders } ] }\n",
    );
    let output = weft(directory.path(), &["check", "weft.yaml"]);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        text(&output.stdout),
        "weft.yaml: good (1 service, 1 route)\n"
    );
    assert_eq!(output.status.code(), Some(0));
}

/// Whatever directory the program is started in.
#[test]
fn paths_in_the_file_are_relative_to_its_directory() {
    let fixtures = Fixtures::new();
    let directory = fixtures.with(
        r#"trust_domain: shop.internal
ca: { address: "127.0.0.1:15012", state: state }
identity: { cert: svid.pem, key: svid.key, bundle: bundle.pem }
ingress:
  listeners: [ { name: tls, address: "127.0.0.1:8443", tls: { cert: cert.pem, key: key.pem } } ]
  authn:
    file: { jwt: { issuer: "https://id.example", jwks: { file: keys.json } } }
    url: { jwt: { issuer: "https://id.example", jwks: { url: "https://id.example/keys", ca: cert.pem } } }
"#,
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let file: PathBuf = directory.path().join("weft.yaml");
    let file = file.to_str().unwrap();
    let output = weft(elsewhere.path(), &["check", file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    // The state of the CA has no beginning here, and it is looked for beside the file.
    let create = [
        "ca",
        "token",
        "create",
        "--service",
        "orders",
        "--config",
        file,
    ];
    weft(elsewhere.path(), &create);
    let left: Vec<_> = std::fs::read_dir(elsewhere.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_access_log_that_cannot_be_written_is_said() {
    let fixtures = Fixtures::new();
    let directory = fixtures.with(
        "trust_domain: shop.internal\n\
         access_log: { file: nowhere/access.log }\n\
         ingress: { listeners: [ { name: public, address: \"192.0.2.1:8080\" } ] }\n",
    );
    let output = weft(directory.path(), &["check", "weft.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("weft.yaml:2:21: `nowhere` is no directory\n"),
        "{said}"
    );
    let output = weft(directory.path(), &["ingress"]);
    assert!(!output.status.success());
    let said = [text(&output.stdout), text(&output.stderr)].concat();
    assert!(
        said.contains("the access log (`access_log`) cannot be written: "),
        "{said}"
    );
}

/// The access log is opened before the listeners, and this listener cannot be: the address is nobody's.
#[test]
fn the_access_log_is_beside_the_file() {
    let fixtures = Fixtures::new();
    let directory = fixtures.with(
        "trust_domain: shop.internal\n\
         access_log: { file: certs/access.log }\n\
         ingress: { listeners: [ { name: public, address: \"192.0.2.1:8080\" } ] }\n",
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let file = directory.path().join("weft.yaml");
    let output = weft(
        elsewhere.path(),
        &["ingress", "--config", file.to_str().unwrap()],
    );
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let log = directory.path().join("certs/access.log");
    assert!(log.exists(), "{}", text(&output.stderr));
}
