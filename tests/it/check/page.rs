//! The pages that are made from the code: `docs/configuration.md` from the types of the configuration (by way of the
//! JSON Schema that `weft check --schema` prints), and `docs/reasons.md` from the list of reasons. `WEFT_UPDATE_DOCS=1`
//! writes them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{compare, root, text, weft};

const INTRODUCTION: &str = "# Configuration

One file, `weft.yaml`, describes the whole mesh, and every process reads it: each takes the part that it needs, and takes a
change of the file in place. Unknown keys are errors; `weft check FILE` tells everything that is wrong at once, and no
process starts with a file that it complains about (but for an exception from mutual TLS whose last day is over). Examples are in `deploy/examples/`. `weft check --schema` prints a JSON Schema, for editors.

Durations are written with units (`500ms`, `5s`, `1m30s`, `24h`, `30d`), rates as a count per time (`100/s`, `5/m`,
`1000/h`, `1/d`), shares in per cent (`20%`). Paths of files are relative to the directory of the file.

This page is generated from the types, so it has every key. In the column *default*, **required** is a key that must be there,
and `-` one that may be left out without anything in its place.
";

fn schema() -> Value {
    let output = weft(root(), &["check", "--schema"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Writes the page: the top level, and then every mapping where it is first met.
struct Page<'a> {
    schema: &'a Value,
    text: String,
    /// Names of definitions that have their section, and where that is.
    seen: BTreeSet<String>,
}

impl<'a> Page<'a> {
    fn section(&mut self, place: &str, mapping: &'a Value) {
        let title = match place {
            "" => "The top level".to_owned(),
            _ => format!("`{place}`"),
        };
        self.text.push_str(&format!("\n## {title}\n\n"));
        self.text
            .push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        let required: Vec<&str> = mapping["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut inner = Vec::new();
        for (key, value) in mapping["properties"].as_object().unwrap() {
            let kind = self.kind(value);
            let place = match place {
                "" => key.clone(),
                _ => format!("{place}.{key}"),
            };
            let default = match &value["default"] {
                _ if required.contains(&key.as_str()) => "**required**".to_owned(),
                Value::String(text) => format!("`{text}`"),
                Value::Null if value["type"] == "array" => "`[]`".to_owned(),
                Value::Null if value["type"] == "object" => "`{}`".to_owned(),
                // A mapping with defaults of its own, or a key that may be absent.
                Value::Null => match &kind.inner {
                    Some((suffix, _)) if suffix.is_empty() && !is_nullable(value) => {
                        "its defaults".to_owned()
                    }
                    _ => "-".to_owned(),
                },
                Value::Array(list) if list.is_empty() => "`[]`".to_owned(),
                Value::Object(map) if map.is_empty() => "`{}`".to_owned(),
                other => format!("`{other}`"),
            };
            let mut meaning = description(value);
            assert!(!meaning.is_empty(), "`{place}` has no description");
            let choices = self.choices(value);
            if !choices.is_empty() {
                meaning = format!("{meaning} {choices}");
            }
            self.text.push_str(&format!(
                "| `{key}` | {} | {default} | {} |\n",
                kind.words,
                meaning.replace('|', "\\|")
            ));
            if let Some((suffix, mapping)) = kind.inner {
                inner.push((format!("{place}{suffix}"), mapping));
            }
        }
        for (place, (name, mapping)) in inner {
            // `retry` and its like stand in two places and are told of in the first.
            if self.seen.insert(name) {
                self.section(&place, mapping);
            }
        }
    }

    /// What one writes, and the mapping in it that has a section of its own.
    fn kind(&self, value: &'a Value) -> Kind<'a> {
        let value = strip_null(value);
        if let Some(forms) = value["anyOf"].as_array() {
            // One of several forms, such as a text or a list of them.
            let kinds: Vec<_> = forms
                .iter()
                .filter(|form| form["type"] != "null")
                .map(|form| self.kind(form))
                .collect();
            let words: Vec<_> = kinds.iter().map(|kind| kind.words.clone()).collect();
            return Kind {
                words: words.join(" or "),
                inner: kinds.into_iter().find_map(|kind| kind.inner),
            };
        }
        if let Some((name, target)) = self.reference(value) {
            return match target.get("properties") {
                Some(_) => Kind {
                    words: "mapping".into(),
                    inner: Some((String::new(), (name, target))),
                },
                None if target.get("anyOf").is_some() => self.kind(target),
                None => Kind {
                    words: "one of several words".into(),
                    inner: self.choice_with_keys(target),
                },
            };
        }
        let word = match &value["type"] {
            Value::Array(types) => types.iter().find(|one| **one != "null"),
            one => Some(one),
        };
        let plain = |words: &str| Kind {
            words: words.to_owned(),
            inner: None,
        };
        match (word.and_then(Value::as_str), value["format"].as_str()) {
            (Some("array"), _) => {
                let item = self.kind(&value["items"]);
                Kind {
                    words: format!("list of {}", plural(&item.words)),
                    inner: item.inner.map(|(_, inner)| ("[]".to_owned(), inner)),
                }
            }
            (Some("object"), _) => {
                let item = self.kind(&value["additionalProperties"]);
                Kind {
                    words: format!("{} by name", plural(&item.words)),
                    inner: item.inner.map(|(_, inner)| (".NAME".to_owned(), inner)),
                }
            }
            (Some("boolean"), _) => plain("`true` or `false`"),
            (Some("integer"), Some("uint16")) => plain("port"),
            (Some("integer" | "number"), _) => plain("number"),
            (Some("string"), Some("ip")) => plain("IP address"),
            (Some("string"), Some(format)) => plain(format),
            (Some("string"), None) => plain("text"),
            other => panic!("no word for {other:?}: {value}"),
        }
    }

    fn reference(&self, value: &'a Value) -> Option<(String, &'a Value)> {
        let name = value["$ref"].as_str()?.strip_prefix("#/$defs/")?;
        Some((name.to_owned(), &self.schema["$defs"][name]))
    }

    /// The choice that says more in a mapping, as `{ file: … }` does not.
    fn choice_with_keys(&self, target: &'a Value) -> Option<(String, (String, &'a Value))> {
        let choices = target["oneOf"].as_array().into_iter().flatten();
        let mut keys = choices.filter_map(|choice| choice["properties"].as_object());
        keys.find_map(|keys| {
            let (key, value) = keys.iter().next()?;
            let (name, mapping) = self.reference(value)?;
            let has_keys = mapping.get("properties").is_some();
            has_keys.then(|| (format!(".{key}"), (name, mapping)))
        })
    }

    /// The words that may stand there, with what each means.
    fn choices(&self, value: &'a Value) -> String {
        let value = strip_null(value);
        let value = match value["type"].as_str() {
            Some("array") => &value["items"],
            _ => value,
        };
        let Some((_, target)) = self.reference(value) else {
            return String::new();
        };
        if let Some(forms) = target["anyOf"].as_array() {
            return forms.iter().map(|form| self.choices(form)).collect();
        }
        let choices: Vec<String> = target["oneOf"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|choice| {
                let word = match (&choice["const"], choice["properties"].as_object()) {
                    (Value::String(word), _) => word.clone(),
                    // A choice that says more, as `{ file: … }`.
                    (_, Some(keys)) => {
                        let keys: Vec<_> = keys.keys().map(|key| format!("{key}: …")).collect();
                        format!("{{ {} }}", keys.join(", "))
                    }
                    _ => panic!("no words for {choice}"),
                };
                format!("`{word}`: {}", description(choice))
            })
            .collect();
        choices.join(" ")
    }
}

struct Kind<'a> {
    words: String,
    /// What follows the key in the title of the section, and the definition.
    inner: Option<(String, (String, &'a Value))>,
}

fn is_nullable(value: &Value) -> bool {
    value["anyOf"]
        .as_array()
        .is_some_and(|forms| forms.iter().any(|form| form["type"] == "null"))
}

/// Of something or nothing, the something.
fn strip_null(value: &Value) -> &Value {
    let forms = value["anyOf"].as_array().into_iter().flatten();
    let mut something = forms.filter(|form| form["type"] != "null");
    match (something.next(), something.next()) {
        (Some(only), None) => only,
        _ => value,
    }
}

fn plural(words: &str) -> String {
    match words {
        "text" => "texts".to_owned(),
        "IP address" => "IP addresses".to_owned(),
        "one of several words" => "words".to_owned(),
        words => words
            .split(" or ")
            .map(|word| match word {
                "text" => "texts".to_owned(),
                word => format!("{word}s"),
            })
            .collect::<Vec<_>>()
            .join(" or "),
    }
}

fn description(value: &Value) -> String {
    value["description"]
        .as_str()
        .unwrap_or_default()
        .replace('\n', " ")
}

#[test]
fn the_reference_of_the_configuration_is_what_the_types_say() {
    let schema = schema();
    let mut page = Page {
        schema: &schema,
        text: INTRODUCTION.to_owned(),
        seen: BTreeSet::new(),
    };
    page.section("", &schema);
    // Every definition that is a mapping was met, so every key is on the page.
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        let met = definition.get("properties").is_none() || page.seen.contains(name);
        assert!(met, "{name} has no section");
    }
    compare(
        &root().join("docs/configuration.md"),
        "WEFT_UPDATE_DOCS",
        &page.text,
    );
}

#[test]
fn the_reference_of_the_reasons_is_what_the_code_says() {
    let page = weft_dataplane::reason::reference();
    compare(&root().join("docs/reasons.md"), "WEFT_UPDATE_DOCS", &page);
}

/// What editors get is strict where the programs are.
#[test]
fn the_schema_knows_every_key_and_no_other() {
    let schema = schema();
    let mut mappings = vec![&schema];
    mappings.extend(schema["$defs"].as_object().unwrap().values());
    for mapping in mappings {
        if mapping.get("properties").is_some() {
            assert_eq!(mapping["additionalProperties"], false, "{mapping:#}");
        }
    }
    assert_eq!(schema["required"], serde_json::json!(["trust_domain"]));
    let routes = &schema["$defs"]["Ingress"]["properties"]["routes"];
    assert_eq!(routes["type"], "array");
}
