//! Every configuration in `deploy/examples/` is good: where its files are there, `weft check` says so.

use std::path::Path;

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

#[test]
fn every_example_is_good() {
    let fixtures = Fixtures::new();
    let mut examples: Vec<_> = std::fs::read_dir(root().join("deploy/examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    examples.sort();
    assert!(examples.len() >= 4, "{examples:?}");
    for example in examples {
        let file = std::fs::read_to_string(&example).unwrap();
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
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}:\n{said}",
            example.display()
        );
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
