//! Writes a checked file down again, for the admin page: what was read and nothing else, without comments, aliases resolved.
//!
//! It is a good file again and means the same, but for what could be a secret. Those stand elsewhere by design
//! (`secret.rs`); what is left is the query of a URL, where some issuers want a key to be.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::document::Document;
use super::node::{Kind, Node};
use super::scalar::{Meaning, meaning};

/// Stands in a URL for what was in its query.
const REDACTED: &str = "REDACTED";

/// A URL as it may be shown and logged: without its query, where some issuers want a key to be.
pub fn redact_query(url: &str) -> Cow<'_, str> {
    match url.split_once('?') {
        Some((before, query)) if !query.is_empty() => format!("{before}?{REDACTED}").into(),
        _ => url.into(),
    }
}

impl Document {
    /// The document as YAML, in block style.
    pub fn show(&self) -> String {
        let mut text = String::new();
        write(&mut text, self.root(), 0);
        // The root is a mapping, which begins on a line of its own.
        text.trim_start_matches('\n').to_owned()
    }
}

/// Writes what comes behind a key or a dash, up to the end of its last line.
fn write(text: &mut String, node: &Node, depth: usize) {
    let line = |text: &mut String, begin: &str| {
        let _ = write!(text, "{:indent$}{begin}", "", indent = 2 * depth);
    };
    match &node.kind {
        Kind::Mapping(entries) if entries.is_empty() => text.push_str(" {}\n"),
        Kind::Sequence(items) if items.is_empty() => text.push_str(" []\n"),
        Kind::Mapping(entries) => {
            text.push('\n');
            for entry in entries {
                line(text, &scalar(&entry.key, true));
                text.push(':');
                write(text, &entry.value, depth + 1);
            }
        }
        Kind::Sequence(items) => {
            text.push('\n');
            for (_, item) in items {
                line(text, "-");
                write(text, item, depth + 1);
            }
        }
        Kind::Scalar { text: value, plain } => {
            // Elsewhere a question mark is a question mark.
            let value = match value.split_once('?') {
                Some((before, _)) if before.contains("://") => redact_query(value),
                _ => value.as_str().into(),
            };
            let bare = *plain && !matches!(meaning(&value), Meaning::Text(_) | Meaning::Absent);
            let _ = match bare {
                true => writeln!(text, " {value}"),
                false => writeln!(text, " {}", scalar(&value, *plain)),
            };
        }
        Kind::Guess(_) => text.push_str(" null\n"),
    }
}

/// Text, in quotes where it could be taken for something else.
fn scalar(text: &str, plain: bool) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
    let bare = plain
        && text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '/')
        && text.bytes().all(harmless)
        && matches!(meaning(text), Meaning::Text(_));
    match bare {
        true => text.to_owned(),
        // What JSON escapes, YAML reads the same way.
        false => serde_json::Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn shown(text: &str) -> String {
        Document::parse("weft.yaml", text).unwrap().show()
    }

    #[test]
    fn it_says_the_same_in_block_style_and_without_comments() {
        let file = "# a password: s3cret\n\
                    base: &base { timeout: 2s, retry: { attempts: 0 } } # of all\n\
                    services:\n  orders: *base\n  \"on\": []\n\
                    routes: [ { match: { path: /a/* }, to: \"orders\" }, {} ]\n\
                    list:\n- [ 1, 0x10, true, ~ ]\n- \"true\"\n- 'it''s: # fine'\n- '10'\n- 127.0.0.1:80\n";
        let expected = "base:\n  timeout: 2s\n  retry:\n    attempts: 0\n\
                        services:\n  orders:\n    timeout: 2s\n    retry:\n      attempts: 0\n  on: []\n\
                        routes:\n  -\n    match:\n      path: \"/a/*\"\n    to: \"orders\"\n  - {}\n\
                        list:\n  -\n    - 1\n    - 0x10\n    - true\n    - ~\n  - \"true\"\n  - \"it's: # fine\"\n  - \"10\"\n  - \"127.0.0.1:80\"\n";
        assert_eq!(shown(file), expected);
        assert_eq!(shown(expected), expected, "and so does what it says");
    }

    #[test]
    fn text_that_could_be_anything_stays_text() {
        for text in [
            "",
            " ",
            "a\nb",
            "~",
            "1e3",
            "- a",
            "é\u{7}\"\\",
            "#",
            "a: b",
            "*a",
            "null",
        ] {
            let quoted = serde_json::Value::from(text).to_string();
            let again = shown(&format!("key: {quoted}\n"));
            let read = |file: &str| {
                let document = Document::parse("weft.yaml", file).unwrap();
                let mut problems = super::super::Problems::new();
                let map =
                    document.decode::<std::collections::HashMap<String, String>>(&mut problems);
                map.unwrap().remove("key").unwrap()
            };
            assert_eq!(read(&again), text, "{again}");
        }
    }

    #[test]
    fn what_a_url_asks_with_is_not_shown() {
        let file = "url: https://id.example/keys?token=s3cret&a=b\npath: /a?\nother: 'a?b'\n";
        let text = shown(file);
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("https://id.example/keys?REDACTED"), "{text}");
        assert!(
            text.contains("\"/a?\"") && text.contains("\"a?b\""),
            "{text}"
        );
    }
}
