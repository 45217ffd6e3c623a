//! Every configuration in `deploy/` is good: where its files are there, `weft check` says so.

use std::path::{Path, PathBuf};

use super::fixtures::Fixtures;
use super::{root, text, weft};

/// What stands in for the files that the examples name.
const FILES: [(&str, &str); 6] = [
    ("tls/cert.pem", "cert.pem"),
    ("tls/key.pem", "key.pem"),
    ("machines.json", "keys.json"),
    ("/run/weft/identity/cert.pem", "svid.pem"),
    ("/run/weft/identity/key.pem", "svid.key"),
    ("/run/weft/identity/bundle.pem", "bundle.pem"),
];

/// The files of ours below a folder: those that name a trust domain. Beside them are Prometheus', Grafana's and Docker's.
fn configurations(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(configurations(&path));
        } else if path
            .extension()
            .is_some_and(|own| own == "yaml" || own == "yml")
        {
            let file = std::fs::read_to_string(&path).unwrap();
            if file.lines().any(|line| line.starts_with("trust_domain:")) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_configuration_that_we_deliver_is_good() {
    let fixtures = Fixtures::new();
    let deploy = root().join("deploy");
    let all = configurations(&deploy);
    let examples = all
        .iter()
        .filter(|path| path.starts_with(deploy.join("examples")));
    assert!(examples.count() >= 4, "{all:?}");
    assert!(all.contains(&deploy.join("compose/weft.yaml")), "{all:?}");
    for path in all {
        let file = std::fs::read_to_string(&path).unwrap();
        let directory = fixtures.with(&file);
        let at = directory.path();
        for (named, fixture) in FILES {
            // Absolute ones cannot be put where the example says.
            let relative = named.trim_start_matches('/');
            let place = at.join(relative);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::copy(at.join(fixture), place).unwrap();
        }
        let moved = file.replace(" /run/", " run/");
        std::fs::write(at.join("weft.yaml"), moved).unwrap();
        let output = weft(at, &["check", "weft.yaml"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{}:\n{said}", path.display());
        assert!(text(&output.stdout).starts_with("weft.yaml: good ("));
    }
}

/// `weft check` reads the files that an example names, so an example cannot be good without them by mistake.
#[test]
fn the_files_that_examples_name_are_looked_at() {
    let example = root().join("deploy/examples/gateway.yaml");
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(example, directory.path().join("weft.yaml")).unwrap();
    let output = weft(directory.path(), &["check", "weft.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("tls/cert.pem"));
    assert!(!Path::new("tls/cert.pem").exists());
}
