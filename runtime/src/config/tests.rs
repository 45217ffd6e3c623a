//! Broken files, each with the exact words for it; and what is not broken although it looks odd.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::units::{Percent, Period, Rate, Size};
use super::{Document, Path, Problems};

/// The forms that a configuration is made of, each once.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mesh {
    trust_domain: String,
    #[serde(default)]
    services: BTreeMap<String, Service>,
    #[serde(default)]
    routes: Vec<Route>,
    admin: Option<Admin>,
    timeout: Option<Period>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    port: u16,
    #[serde(default)]
    protocol: Protocol,
    outlier: Option<Outlier>,
    mesh: Option<bool>,
    weight: Option<NonZeroU32>,
    share: Option<f64>,
    budget: Option<Percent>,
    body: Option<Size>,
    rate: Option<Rate>,
    source: Option<Source>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Protocol {
    #[default]
    Http,
    Grpc,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Outlier {
    window: Option<Period>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Source {
    System,
    Dns(String),
    File { path: String, every: Period },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    to: String,
    path: Option<String>,
    #[serde(default)]
    methods: Vec<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Admin {
    address: SocketAddr,
    allow_remote: bool,
    name: String,
}

fn problems<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> String {
    let mut problems = Problems::new();
    match Document::parse("w", text) {
        Err(problems) => problems.render(),
        Ok(document) => {
            let decoded: Option<T> = document.decode(&mut problems);
            assert_eq!(decoded.is_none(), !problems.is_empty(), "{decoded:?}");
            problems.locate(&document);
            problems.render()
        }
    }
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found = problems::<Mesh>(text);
    let expected: String = expected.iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(found, expected, "\nfor:\n{text}\nfound:\n{found}");
}

#[test]
fn files_that_are_no_yaml() {
    let empty = [
        "w:1:1: the file is empty",
        "    write at least the keys that have no default",
    ];
    check("", &empty);
    check("\n\n", &empty);
    check("# only a comment\n", &empty);
    check("---\n", &empty);
    check(
        "trust_domain: x\nservices:\n\ta: 1\n",
        &[
            "w:3:2: not valid YAML: tabs disallowed within this context (block indentation)",
            "    indent with spaces",
        ],
    );
    let indent = "    indent the keys of a mapping, and the items of a list, all the same; text with `: ` in it needs quotes";
    check(
        "trust_domain: x\n  routes: []\n",
        &[
            "w:2:9: not valid YAML: mapping values are not allowed in this context",
            indent,
        ],
    );
    check(
        "trust_domain: - x\n",
        &[
            "w:1:15: not valid YAML: block sequence entries are not allowed in this context",
            indent,
        ],
    );
    let brackets = "    each `[` needs its `]`, and each `{` its `}`";
    check(
        "trust_domain: [a, b\n",
        &["w:1:15: not valid YAML: unclosed bracket '['", brackets],
    );
    check(
        "services: { a: { port: 1 }}}\n",
        &["w:1:28: not valid YAML: misplaced bracket", brackets],
    );
    check(
        "trust_domain: \"x\n",
        &[
            "w:2:1: not valid YAML: invalid indentation in multiline quoted scalar",
            "    close the quotes; a quote inside needs to be doubled in single quotes, or `\\\"` in double quotes",
        ],
    );
    check(
        "trust_domain: @x\n",
        &[
            "w:1:15: not valid YAML: unexpected character: `@'",
            "    look at the indentation, and quote text with special characters",
        ],
    );
    check(
        "trust_domain: *nobody\n",
        &[
            "w:1:15: not valid YAML: while parsing node, found unknown anchor",
            "    define it first with `&name`; text that begins with `*` needs quotes",
        ],
    );
}

#[test]
fn yaml_that_a_configuration_does_not_need() {
    check(
        "trust_domain: x\n---\ntrust_domain: y\n",
        &[
            "w:2:1: a second document begins here",
            "    write everything in one document, without a line `---` between",
        ],
    );
    check(
        "trust_domain: !secret x\n",
        &[
            "w:1:15: tags (`!name`) are not supported",
            "    remove the tag; write the value in quotes if it is text that begins with `!`",
        ],
    );
    check(
        "trust_domain: x\nservices:\n  a: &a { port: 1 }\n  b:\n    <<: *a\n    port: 2\n",
        &[
            "w:5:5: merge keys (`<<`) are not supported",
            "    write the keys out, or repeat a whole value with `&name` and `*name`",
        ],
    );
    check(
        "? [a, b]\n: 1\ntrust_domain: x\n",
        &[
            "w:1:3: a key is a list or a mapping",
            "    write a key as text; a value that begins with `{`, `[` or `*` needs quotes to be text",
        ],
    );
    check(
        "trust_domain: x\n: y\n",
        &["w:2:1: a value without a key", "    write `key: value`"],
    );
}

#[test]
fn duplicate_keys_are_all_told() {
    check(
        "trust_domain: x\nservices:\n  a: { port: 1 }\n  \"a\": { port: 2, port: 3 }\ntrust_domain: y\n",
        &[
            "w:4:3: key `a` is given twice; the first is on line 3",
            "    keep one of the two",
            "w:4:19: key `port` is given twice; the first is on line 4",
            "    keep one of the two",
            "w:5:1: key `trust_domain` is given twice; the first is on line 1",
            "    keep one of the two",
        ],
    );
}

#[test]
fn unknown_keys() {
    check(
        "trust_domain: x\nrout: []\n",
        &[
            "w:2:1: unknown key `rout`, did you mean `routes`?",
            "    write `routes`, or remove `rout`",
        ],
    );
    check(
        "trust-domain: x\n",
        &[
            "w:1:1: unknown key `trust-domain`, did you mean `trust_domain`?",
            "    write `trust_domain`, or remove `trust-domain`",
        ],
    );
    check(
        "trust_domain: x\nroutes:\n  - to: a\n    upstream: b\n",
        &[
            "w:4:5: unknown key `upstream`",
            "    the keys known here are `to`, `path` and `methods`",
        ],
    );
    check(
        "trust_domain: x\nservices: { a: { port: 1, outlier: { windows: 5s } } }\n",
        &[
            "w:2:38: unknown key `windows`, did you mean `window`?",
            "    write `window`, or remove `windows`",
        ],
    );
}

#[test]
fn missing_keys_are_all_told() {
    check(
        "routes: []\n",
        &[
            "w:1:1: missing key `trust_domain`",
            "    add `trust_domain` at the top level",
        ],
    );
    check(
        "trust_domain: x\nservices:\n  orders:\n    mesh: true\n",
        &[
            "w:3:3: missing key `port`",
            "    add `port` to `services.orders`",
        ],
    );
    check(
        "trust_domain: x\nroutes:\n  - to: a\n  - path: /\n",
        &["w:4:5: missing key `to`", "    add `to` to `routes[1]`"],
    );
    // Three of different types in one mapping, and one in another.
    check(
        "admin: {}\n",
        &[
            "w:1:1: missing key `trust_domain`",
            "    add `trust_domain` at the top level",
            "w:1:1: missing key `address`",
            "    add `address` to `admin`",
            "w:1:1: missing key `allow_remote`",
            "    add `allow_remote` to `admin`",
            "w:1:1: missing key `name`",
            "    add `name` to `admin`",
        ],
    );
}

#[test]
fn values_of_the_wrong_kind() {
    let service = |key_value: &str, expected: &[&str]| {
        check(
            &format!("trust_domain: x\nservices:\n  a:\n    port: 1\n    {key_value}\n"),
            expected,
        );
    };
    check(
        "just text\n",
        &[
            "w:1:1: expected a mapping, found the text `just text`",
            "    the keys known here are `trust_domain`, `services`, `routes`, `admin` and `timeout`",
        ],
    );
    check(
        "- a\n",
        &[
            "w:1:1: expected a mapping, found a list",
            "    the keys known here are `trust_domain`, `services`, `routes`, `admin` and `timeout`",
        ],
    );
    check(
        "trust_domain: [x]\n",
        &["w:1:1: expected text, found a list", "    write text"],
    );
    check(
        "trust_domain: null\n",
        &["w:1:15: expected text, found null", "    write text"],
    );
    check(
        "trust_domain: x\nroutes: orders\n",
        &[
            "w:2:9: expected a list, found the text `orders`",
            "    write `[orders]`",
        ],
    );
    check(
        "trust_domain: x\nroutes:\n  to: orders\n",
        &[
            "w:2:1: expected a list, found a mapping",
            "    begin each item with `- `",
        ],
    );
    check(
        "trust_domain: x\nroutes:\n  - to: a\n    methods: GET\n",
        &[
            "w:4:14: expected a list, found the text `GET`",
            "    write `[GET]`",
        ],
    );
    check(
        "trust_domain: x\nroutes:\n  - orders\n",
        &[
            "w:3:5: expected a mapping, found the text `orders`",
            "    the keys known here are `to`, `path` and `methods`",
        ],
    );
    check(
        "trust_domain: x\nservices: [a]\n",
        &[
            "w:2:1: expected a mapping, found a list",
            "    write `key: value` lines",
        ],
    );
    check(
        "trust_domain: x\nservices:\n  a: { port: 70000 }\n",
        &[
            "w:3:14: expected a whole number from 0 to 65535, found the number 70000",
            "    write a whole number from 0 to 65535",
        ],
    );
    check(
        "trust_domain: x\nservices:\n  a: { port: -1 }\n",
        &[
            "w:3:14: expected a whole number from 0 to 65535, found the number -1",
            "    write a whole number from 0 to 65535",
        ],
    );
    check(
        "trust_domain: x\nservices:\n  a: { port: 80.5 }\n",
        &[
            "w:3:14: expected a whole number from 0 to 65535, found the number 80.5",
            "    write a whole number from 0 to 65535",
        ],
    );
    check(
        "trust_domain: x\nservices:\n  a: { port: \"80\" }\n",
        &[
            "w:3:14: expected a whole number from 0 to 65535, found the text \"80\"",
            "    remove the quotes",
        ],
    );
    check(
        "trust_domain: x\nservices:\n  a: { port: http }\n",
        &[
            "w:3:14: expected a whole number from 0 to 65535, found the text `http`",
            "    write a whole number from 0 to 65535",
        ],
    );
    service(
        "mesh: yes",
        &[
            "w:5:11: expected `true` or `false`, found the text `yes`",
            "    write `true`, without quotes",
        ],
    );
    service(
        "mesh: off",
        &[
            "w:5:11: expected `true` or `false`, found the text `off`",
            "    write `false`, without quotes",
        ],
    );
    service(
        "mesh: \"true\"",
        &[
            "w:5:11: expected `true` or `false`, found the text \"true\"",
            "    write `true`, without quotes",
        ],
    );
    service(
        "mesh: [true]",
        &[
            "w:5:5: expected `true` or `false`, found a list",
            "    write `true` or `false`",
        ],
    );
    service(
        "weight: 0",
        &[
            "w:5:13: expected a whole number other than 0, found the number 0",
            "    write a whole number other than 0",
        ],
    );
    service(
        "share: half",
        &[
            "w:5:12: expected a number, found the text `half`",
            "    write a number",
        ],
    );
    service(
        "share: \"0.5\"",
        &[
            "w:5:12: expected a number, found the text \"0.5\"",
            "    remove the quotes",
        ],
    );
    service(
        "outlier: on",
        &[
            "w:5:14: expected a mapping, found the text `on`",
            "    the only key known here is `window`",
        ],
    );
}

#[test]
fn variants() {
    let service = |key_value: &str, expected: &[&str]| {
        check(
            &format!("trust_domain: x\nservices:\n  a:\n    port: 1\n    {key_value}\n"),
            expected,
        );
    };
    service(
        "protocol: grcp",
        &[
            "w:5:15: unknown value `grcp`, did you mean `grpc`?",
            "    write one of `http` and `grpc`",
        ],
    );
    service(
        "protocol: carrier_pigeon",
        &[
            "w:5:15: unknown value `carrier_pigeon`",
            "    write one of `http` and `grpc`",
        ],
    );
    service(
        "protocol: [http]",
        &[
            "w:5:5: expected one of `http` and `grpc`, found a list",
            "    write one of `http` and `grpc`",
        ],
    );
    service(
        "source: { dnss: x }",
        &[
            "w:5:15: unknown value `dnss`, did you mean `dns`?",
            "    write one of `system`, `dns` and `file`",
        ],
    );
    service(
        "source: dns",
        &[
            "w:5:13: expected a mapping with the key `dns`, found `dns` alone",
            "    write `dns: …`, on its own line or as `{ dns: … }`",
        ],
    );
    service(
        "source: { system: yes }",
        &[
            "w:5:23: expected `system` alone, found a value for it",
            "    write just `system`",
        ],
    );
    service(
        "source: {}",
        &[
            "w:5:5: expected one of `system`, `dns` and `file`, found an empty mapping",
            "    write one of `system`, `dns` and `file`",
        ],
    );
    service(
        "source: { dns: x, system: null }",
        &[
            "w:5:5: expected one of `system`, `dns` and `file`, found 2 keys: `dns` and `system`",
            "    keep one of them",
        ],
    );
    // What is wrong inside a variant is told once, and not again as a wrong variant.
    service(
        "source: { file: { paht: /x, every: 5 } }",
        &[
            "w:5:23: unknown key `paht`, did you mean `path`?",
            "    write `path`, or remove `paht`",
            "w:5:40: `5` is not a duration",
            "    write it with units, such as `500ms`, `5s`, `1m30s`, `24h` or `30d`",
        ],
    );
    service(
        "source: { dns: [] }",
        &["w:5:15: expected text, found a list", "    write text"],
    );
}

#[test]
fn units_say_what_they_want() {
    let service = |key_value: &str, expected: &[&str]| {
        check(
            &format!("trust_domain: x\nservices:\n  a:\n    port: 1\n    {key_value}\n"),
            expected,
        );
    };
    check(
        "trust_domain: x\ntimeout: 15\n",
        &[
            "w:2:10: `15` is not a duration",
            "    write it with units, such as `500ms`, `5s`, `1m30s`, `24h` or `30d`",
        ],
    );
    check(
        "trust_domain: x\ntimeout: {}\n",
        &[
            "w:2:1: expected a duration with units, such as `5s`, found a mapping",
            "    write a duration with units, such as `5s`",
        ],
    );
    service(
        "budget: 120%",
        &[
            "w:5:13: `120%` is not a share",
            "    write a whole number from `0%` to `100%`",
        ],
    );
    service(
        "body: 64kb",
        &[
            "w:5:11: `64kb` is not a size",
            "    write it with units, such as `512B`, `64KiB` or `10MiB`",
        ],
    );
    service(
        "rate: 0/s",
        &[
            "w:5:11: `0/s` allows nothing",
            "    write a count of 1 or more",
        ],
    );
    check(
        "trust_domain: x\nadmin: { address: \"localhost:1\", allow_remote: false, name: a }\n",
        &[
            "w:2:19: `localhost:1`: not an IP address with a port",
            "    write an IP address and a port, such as `127.0.0.1:8080`",
        ],
    );
}

#[test]
fn keys_without_values() {
    let cure = "    write a value (`{}` for the defaults of a mapping, `[]` for an empty list), or remove the key";
    check(
        "trust_domain:\n",
        &["w:1:1: `trust_domain` has no value", cure],
    );
    check(
        "trust_domain: x\nservices:\n",
        &["w:2:1: `services` has no value", cure],
    );
    check(
        "trust_domain: x\nservices:\n  a:\n    outlier:\n    port: 1\n",
        &["w:4:5: `services.a.outlier` has no value", cure],
    );
    check(
        "trust_domain: x\nroutes:\n  -\n",
        &["w:3:4: `routes[0]` has no value", cure],
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    check(
        "\
trust_domain: x
colour: red
timeout: soon
services:
  a: { port: x, mesh: 1 }
  b:
    prot: 80
routes:
  - { to: a, methods: [GET, {}] }
  - 7
  - { path: /x }
",
        &[
            "w:2:1: unknown key `colour`",
            "    the keys known here are `trust_domain`, `services`, `routes`, `admin` and `timeout`",
            "w:3:10: `soon` is not a duration",
            "    write it with units, such as `500ms`, `5s`, `1m30s`, `24h` or `30d`",
            "w:5:14: expected a whole number from 0 to 65535, found the text `x`",
            "    write a whole number from 0 to 65535",
            "w:5:23: expected `true` or `false`, found the number 1",
            "    write `true`, without quotes",
            // `port` is not missed: whoever wrote `prot` meant it.
            "w:7:5: unknown key `prot`, did you mean `port`?",
            "    write `port`, or remove `prot`",
            "w:9:29: expected text, found a mapping",
            "    write text",
            "w:10:5: expected a mapping, found the number 7",
            "    the keys known here are `to`, `path` and `methods`",
            "w:11:5: missing key `to`",
            "    add `to` to `routes[2]`",
        ],
    );
}

#[test]
fn more_problems_than_anybody_reads_are_cut_off() {
    let mut text = String::from("trust_domain: x\nroutes:\n");
    for _ in 0..300 {
        text.push_str("  - { to: a, too: b }\n");
    }
    let document = Document::parse("w", &text).unwrap();
    let mut problems = Problems::new();
    assert!(document.decode::<Mesh>(&mut problems).is_none());
    assert_eq!(problems.len(), 100);
}

#[track_caller]
fn good(text: &str) -> Mesh {
    let document = Document::parse("w", text).unwrap_or_else(|problems| panic!("{problems}"));
    let mut problems = Problems::new();
    document
        .decode(&mut problems)
        .unwrap_or_else(|| panic!("{problems}"))
}

#[test]
fn null_means_none_and_an_empty_mapping_the_defaults() {
    let text = |outlier: &str| {
        format!("trust_domain: x\nservices: {{ a: {{ port: 1, outlier: {outlier} }} }}\n")
    };
    assert_eq!(
        good(&text("{}")).services["a"].outlier,
        Some(Outlier::default())
    );
    assert_eq!(good(&text("null")).services["a"].outlier, None);
    assert_eq!(good(&text("~")).services["a"].outlier, None);
}

#[test]
fn text_may_look_like_anything() {
    let name = |text: &str| good(&format!("trust_domain: {text}\n")).trust_domain;
    assert_eq!(name("1.10"), "1.10");
    assert_eq!(name("true"), "true");
    assert_eq!(name("no"), "no");
    assert_eq!(name("0x1F"), "0x1F");
    assert_eq!(name("'null'"), "null");
    assert_eq!(name("\"\""), "");
    assert_eq!(name("\"a\\u00e9\\n\""), "aé\n");
    assert_eq!(name("|\n  two\n  lines"), "two\nlines\n");
    let mesh = good(
        "trust_domain: x\nservices:\n  1: { port: 1 }\n  null: { port: 2 }\n  on: { port: 0x50 }\n",
    );
    assert_eq!(
        mesh.services.keys().collect::<Vec<_>>(),
        ["1", "null", "on"]
    );
    assert_eq!(mesh.services["on"].port, 80);
}

#[test]
fn variants_in_all_their_forms() {
    let source = |text: &str| {
        let mut mesh = good(&format!(
            "trust_domain: x\nservices: {{ a: {{ port: 1, source: {text} }} }}\n"
        ));
        mesh.services.remove("a").unwrap().source.unwrap()
    };
    assert_eq!(source("system"), Source::System);
    assert_eq!(source("{ system: {} }"), Source::System);
    assert_eq!(source("{ dns: orders }"), Source::Dns("orders".to_owned()));
    assert_eq!(
        source("{ file: { path: /x, every: 1m } }"),
        Source::File {
            path: "/x".to_owned(),
            every: Period::seconds(60)
        }
    );
}

#[test]
fn an_alias_repeats_a_value() {
    let mesh = good(
        "trust_domain: &name x\nservices:\n  a: &a { port: 1, outlier: {} }\n  b: *a\nroutes: [{ to: *name }]\n",
    );
    assert_eq!(mesh.services["a"], mesh.services["b"]);
    assert_eq!(mesh.routes[0].to, "x");
    // Wrong once, told once, where it stands.
    check(
        "trust_domain: x\nservices:\n  a: &a { port: x }\n  b: *a\n",
        &[
            "w:3:17: expected a whole number from 0 to 65535, found the text `x`",
            "    write a whole number from 0 to 65535",
        ],
    );
}

#[test]
fn positions_are_where_a_reader_looks() {
    let text =
        "a: 1\nb:\n  - x\n  -   c: { d: [1, 'é', 3] }\n      e: |\n        text\n\"f g\": {}\n";
    let document = Document::parse("w", text).unwrap();
    let at = |path: &Path, line, column| {
        let position = document.position(path);
        assert_eq!((position.line, position.column), (line, column), "{path}");
    };
    let root = Path::root();
    let item = root.key("b").index(1);
    at(&root, 1, 1);
    at(&root.key("a"), 1, 4);
    at(&root.key("b"), 2, 1);
    at(&root.key("b").index(0), 3, 5);
    at(&item, 4, 7);
    at(&item.key("c"), 4, 7);
    at(&item.key("c").key("d"), 4, 12);
    at(&item.key("c").key("d").index(2), 4, 24);
    // A block begins with its first line.
    at(&item.key("e"), 6, 9);
    at(&root.key("f g"), 7, 1);
    // The nearest that is there.
    at(&item.key("nothing").key("deeper"), 4, 7);
    at(&root.key("b").index(9), 2, 1);
    at(&root.key("a").key("b"), 1, 4);
    // A byte order mark and Windows' line ends move nothing.
    let document = Document::parse("w", "\u{feff}a: 1\r\nb: 2\r\n").unwrap();
    let position = document.position(&root.key("b"));
    assert_eq!((position.line, position.column), (2, 4));
}

/// What checks itself while it is read.
#[derive(Debug, Deserialize)]
#[serde(try_from = "BTreeMap<String, u8>")]
struct NotEmpty;

impl TryFrom<BTreeMap<String, u8>> for NotEmpty {
    type Error = String;

    fn try_from(map: BTreeMap<String, u8>) -> Result<Self, String> {
        if map.is_empty() {
            return Err("there is nothing in it; write at least one entry".to_owned());
        }
        Ok(Self)
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "only decoded")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Colour {
    Red,
    Green,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only decoded")]
struct Odd {
    some: Option<NotEmpty>,
    names: Option<OneOrMany>,
    colours: Option<BTreeMap<Colour, u8>>,
    numbers: Option<BTreeMap<u16, u8>>,
    pair: Option<(u8, u8)>,
    text: Option<char>,
}

#[test]
fn types_of_all_sorts_fail_in_their_place() {
    let check = |text: &str, expected: &str| assert_eq!(problems::<Odd>(text), expected, "{text}");
    check(
        "{ some: { a: 1 }, names: x, colours: { red: 1 }, numbers: { 7: 1 }, pair: [1, 2], text: x }",
        "",
    );
    check(
        "some: {}\n",
        "w:1:1: there is nothing in it\n    write at least one entry\n",
    );
    check(
        "some: { a: 300 }\n",
        "w:1:12: expected a whole number from 0 to 255, found the number 300\n    write a whole number from 0 to 255\n",
    );
    check(
        "names: [a, 1]\n",
        "w:1:1: none of the forms that may stand here\n    write one of those that the reference has for this key\n",
    );
    check(
        "colours: { gren: 1 }\n",
        "w:1:12: unknown value `gren`, did you mean `green`?\n    write one of `red` and `green`\n",
    );
    check(
        "numbers: { x: 1 }\n",
        "w:1:12: expected a whole number from 0 to 65535, found the key `x`\n    write a whole number from 0 to 65535\n",
    );
    check(
        "pair: [1, 2, 3]\n",
        "w:1:1: expected a list of 2, found 3 items\n    write 2 items\n",
    );
    check(
        "pair: [1]\n",
        "w:1:1: expected a list of 2, found 1 items\n    write a list of 2\n",
    );
    check(
        "text: xy\n",
        "w:1:7: expected a character, found the text `xy`\n    write a character\n",
    );
}

/// A type whose first guess never fits: the search must come to an end all the same.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only decoded")]
struct Stubborn {
    shape: Shape,
    never: Never,
    name: String,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "only decoded")]
enum Shape {
    Circle { radius: Never },
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Never;

impl TryFrom<String> for Never {
    type Error = &'static str;

    fn try_from(_: String) -> Result<Self, &'static str> {
        Err("not this one")
    }
}

#[test]
fn the_search_for_missing_keys_ends() {
    let found = problems::<BTreeMap<String, Stubborn>>("a: {}\nb: { never: x }\nc: { shape: 1 }\n");
    let missing = |key: &str, place: &str| {
        found.contains(&format!(
            "missing key `{key}`\n    add `{key}` to `{place}`"
        ))
    };
    assert!(missing("shape", "a") && missing("shape", "b"), "{found}");
    assert!(found.contains("w:2:13: `x`: not this one\n"), "{found}");
    assert!(found.contains("w:3:13: unknown value `1`\n"), "{found}");
}

mod bombs {
    use super::*;

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let rendered = Document::parse("w", text).unwrap_err().render();
        assert!(rendered.contains(expected), "{rendered}");
    }

    #[test]
    fn aliases_of_aliases() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            let list = [before.as_str(); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        refused(&text, "more than 500000 values, aliases included");
    }

    #[test]
    fn aliases_of_long_text() {
        let long = "x".repeat(1 << 20);
        let text = format!("a: &a {long}\nb: [{}]\n", ["*a"; 1_000].join(", "));
        refused(&text, "more than 500000 values, aliases included");
    }

    #[test]
    fn an_alias_of_itself() {
        refused("a: &a [*a]\n", "a value contains itself");
    }

    #[test]
    fn aliases_that_grow_deep() {
        let mut text = String::from("a0: &a0 [x]\n");
        for level in 1..60 {
            text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        refused(&text, "more than 48 levels");
    }

    #[test]
    fn brackets_without_end() {
        refused(&"[".repeat(100_000), "more than 48 levels");
        refused(&"{a: ".repeat(100_000), "more than 48 levels");
        refused(&"- ".repeat(100_000), "more than 48 levels");
        let nested: String = (0..2_000)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect();
        refused(&nested, "more than 48 levels");
    }

    #[test]
    fn the_depth_at_the_limit_is_fine() {
        let text = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Document::parse("w", &text(48)).is_ok());
        refused(&text(49), "more than 48 levels");
    }

    #[test]
    fn values_at_the_limit_are_fine() {
        // The list is a value too.
        let text = |items: usize| "- 1\n".repeat(items);
        assert!(Document::parse("w", &text(499_999)).is_ok());
        refused(&text(500_000), "w:500000:3: more than 500000 values");
    }

    #[test]
    fn no_bytes_at_all_make_it_panic() {
        // Deterministic noise of the characters that mean something to YAML.
        const WORDS: [&str; 24] = [
            "a", ": ", "- ", "[", "]", "{", "}", ",", "\n", "  ", "&a ", "*a", "!t ", "'", "\"",
            "|", ">", "#", "? ", "\t", "---\n", "<<", "\u{0}", "é",
        ];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let text: String = (0..random.usize(1..24))
                .map(|_| WORDS[random.usize(..WORDS.len())])
                .collect();
            if let Ok(document) = Document::parse("w", &text) {
                let mut problems = Problems::new();
                let decoded: Option<Mesh> = document.decode(&mut problems);
                assert_eq!(decoded.is_none(), !problems.is_empty(), "{text:?}");
            }
        }
    }
}

/// What `check` complains of, when it is asked to complain of these.
fn checked(text: &str, complaints: &[(&Path, &[&Path], &str)]) -> String {
    let document = Document::parse("w", text).unwrap();
    let mut problems = Problems::new();
    let good = document.check(&mut problems, |_: Mesh, problems| {
        for (path, others, what) in complaints {
            problems.conflict(path, others, *what, "");
        }
        Some(())
    });
    assert_eq!(good.is_some(), problems.is_empty());
    problems.locate(&document);
    problems.render()
}

#[test]
fn what_is_wrong_with_the_meaning_is_told_beside_what_is_wrong_with_the_shape() {
    let route = |index| Path::root().key("routes").index(index).key("to");
    let text = "trust_domain: x\ncolour: red\nroutes:\n  - { to: a }\n  - { to: b, methods: 7 }\n";
    assert_eq!(
        checked(
            text,
            &[
                (&route(0), &[], "there is no `a`"),
                (&route(1), &[], "there is no `b`")
            ]
        ),
        "w:2:1: unknown key `colour`\n    the keys known here are `trust_domain`, `services`, `routes`, `admin` and `timeout`\n\
         w:4:11: there is no `a`\n\
         w:5:11: there is no `b`\n\
         w:5:23: expected a list, found the number 7\n    write `[7]`\n"
    );
}

#[test]
fn what_may_only_follow_from_what_was_taken_out_is_not_told() {
    let root = Path::root();
    let (routes, services) = (root.key("routes"), root.key("services"));
    let check = |text: &str, complaint: (&Path, &[&Path], &str), kept: bool| {
        let said = checked(text, &[complaint]);
        assert_eq!(said.contains(complaint.2), kept, "{text}\n{said}");
    };
    let item = "trust_domain: x\nroutes:\n  - 7\n  - { to: a }\n";
    // The items moved up.
    check(item, (&routes.index(0).key("to"), &[], "no `a`"), false);
    check(item, (&root.key("trust_domain"), &[], "not `x`"), true);
    let missing = "trust_domain: x\nroutes:\n  - {}\n  - { to: a }\n";
    check(
        missing,
        (&routes.index(0).key("to"), &[], "no `guess`"),
        false,
    );
    check(missing, (&routes.index(0), &[], "leads nowhere"), false);
    check(missing, (&routes.index(1).key("to"), &[], "no `a`"), true);
    check(
        missing,
        (&routes.index(1), &[&routes.index(0)], "the same"),
        false,
    );
    let misspelt = "trust_domain: x\nservice: {}\nroutes:\n  - { to: a }\n";
    check(misspelt, (&services, &[], "nothing there"), false);
    check(
        misspelt,
        (&routes.index(0).key("to"), &[], "no `a` in `services`"),
        false,
    );
    check(misspelt, (&routes.index(0).key("to"), &[], "no `a`"), true);
}
