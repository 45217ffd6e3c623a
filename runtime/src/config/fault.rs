//! What serde reports when a tree does not have the shape of a type: the error type of our deserializer.

use std::fmt;

use serde::de::{Expected, Unexpected};

use super::problem::Step;
use super::suggest;

/// The first thing that is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault(Box<Inner>);

#[derive(Debug)]
struct Inner {
    /// Innermost first, as the steps become known while the error travels up.
    steps: Vec<Step>,
    on_key: bool,
    kind: FaultKind,
}

#[derive(Debug)]
pub(super) enum FaultKind {
    UnknownKey {
        key: String,
        known: &'static [&'static str],
    },
    UnknownVariant {
        given: String,
        known: &'static [&'static str],
    },
    Missing(&'static str),
    /// `key:` with nothing after it.
    Absent,
    Shape {
        expected: String,
        found: String,
        cure: String,
    },
    /// From the `Deserialize` of a type that says more: `what; cure`.
    Custom(String),
}

impl Fault {
    pub(super) fn new(kind: FaultKind) -> Self {
        Self(Box::new(Inner {
            steps: Vec::new(),
            on_key: false,
            kind,
        }))
    }

    pub(super) fn shape(
        expected: impl Into<String>,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::new(FaultKind::Shape {
            expected: expected.into(),
            found: found.into(),
            cure: cure.into(),
        })
    }

    /// It happened in the value behind `step`.
    pub(super) fn under(mut self, step: Step) -> Self {
        self.0.steps.push(step);
        self
    }

    /// It is the key itself that is wrong.
    pub(super) fn on_key(mut self, key: &str) -> Self {
        self.0.on_key = true;
        self.under(Step::Key(key.to_owned()))
    }

    /// The place from the root, whether the key is meant and not the value, and what it is.
    pub(super) fn into_parts(self) -> (Vec<Step>, bool, FaultKind) {
        let Inner {
            mut steps,
            on_key,
            kind,
        } = *self.0;
        steps.reverse();
        (steps, on_key, kind)
    }
}

impl FaultKind {
    /// What is wrong, and what to do about it, of the value at `place` which reads `scalar`.
    pub(super) fn words(self, place: &str, scalar: Option<&str>) -> (String, String) {
        match self {
            Self::UnknownKey { key, known } => {
                let key = shorten(&key);
                match suggest::nearest(&key, known) {
                    Some(near) => (
                        format!("unknown key `{key}`, did you mean `{near}`?"),
                        format!("write `{near}`, or remove `{key}`"),
                    ),
                    None if known.is_empty() => (
                        format!("unknown key `{key}`"),
                        "remove it: no keys are known here".to_owned(),
                    ),
                    None => (
                        format!("unknown key `{key}`"),
                        suggest::keys(known),
                    ),
                }
            }
            Self::UnknownVariant { given, known } => {
                let given = shorten(&given);
                let what = match suggest::nearest(&given, known) {
                    Some(near) => format!("unknown value `{given}`, did you mean `{near}`?"),
                    None => format!("unknown value `{given}`"),
                };
                let cure = match known {
                    [only] => format!("write `{only}`"),
                    _ => format!("write one of {}", suggest::list(known)),
                };
                (what, cure)
            }
            Self::Missing(name) => {
                let cure = if place.is_empty() {
                    format!("add `{name}` at the top level")
                } else {
                    format!("add `{name}` to `{place}`")
                };
                (format!("missing key `{name}`"), cure)
            }
            Self::Absent => (
                format!("`{place}` has no value"),
                "write a value (`{}` for the defaults of a mapping, `[]` for an empty list), or remove the key".to_owned(),
            ),
            Self::Shape {
                expected,
                found,
                cure,
            } => {
                let cure = match cure.is_empty() {
                    true => format!("write {expected}"),
                    false => cure,
                };
                (format!("expected {expected}, found {found}"), cure)
            }
            Self::Custom(message) => custom(&message, scalar),
        }
    }
}

/// Types say `what; cure`. Those of the standard library say neither the value nor a cure, so both are added.
fn custom(message: &str, scalar: Option<&str>) -> (String, String) {
    if message.starts_with("data did not match any variant") {
        // The type's name, which is all that serde says, is nobody's business outside.
        return (
            "none of the forms that may stand here".to_owned(),
            "write one of those that the reference has for this key".to_owned(),
        );
    }
    let (what, cure) = match (message, message.split_once("; ")) {
        ("invalid socket address syntax", _) => (
            "not an IP address with a port",
            "write an IP address and a port, such as `127.0.0.1:8080`",
        ),
        ("invalid IP address syntax", _) => (
            "not an IP address",
            "write an IP address, such as `127.0.0.1`",
        ),
        (_, Some((what, cure))) => (what, cure),
        (_, None) => (message, "write another value"),
    };
    match scalar.map(shorten) {
        Some(text) if !what.contains(&text) => (format!("`{text}`: {what}"), cure.to_owned()),
        _ => (what.to_owned(), cure.to_owned()),
    }
}

/// So much of a value that a person recognises it.
pub(super) fn shorten(text: &str) -> String {
    const LIMIT: usize = 64;
    let mut letters = text
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter });
    let mut short: String = letters.by_ref().take(LIMIT).collect();
    if letters.next().is_some() {
        short.push('…');
    }
    short
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only seen when a type formats the error of another; ours are taken apart instead.
        match &self.0.kind {
            FaultKind::UnknownKey { key, .. } => write!(f, "unknown key `{}`", shorten(key)),
            FaultKind::UnknownVariant { given, .. } => {
                write!(f, "unknown value `{}`", shorten(given))
            }
            FaultKind::Missing(name) => write!(f, "missing key `{name}`"),
            FaultKind::Absent => f.write_str("no value"),
            FaultKind::Shape {
                expected, found, ..
            } => write!(f, "expected {expected}, found {found}"),
            FaultKind::Custom(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Fault {}

impl serde::de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(FaultKind::Custom(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::shape(wanted(expected), describe(found), "")
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::shape(wanted(expected), describe(found), "")
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::shape(wanted(expected), format!("{length} items"), "")
    }

    fn unknown_variant(given: &str, known: &'static [&'static str]) -> Self {
        Self::new(FaultKind::UnknownVariant {
            given: given.to_owned(),
            known,
        })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(FaultKind::UnknownKey {
            key: key.to_owned(),
            known,
        })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(FaultKind::Missing(name))
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::new(FaultKind::Custom(format!(
            "`{name}` is given under two of its names; keep one of the two"
        )))
    }
}

/// What serde calls by the names of Rust's types, in words of the file.
fn wanted(expected: &dyn Expected) -> String {
    let words = expected.to_string();
    if words.starts_with("a nonzero") {
        "a whole number other than 0".to_owned()
    } else if words.starts_with("struct ") {
        "a mapping".to_owned()
    } else {
        match words.as_str() {
            "a string" => "text".to_owned(),
            "path string" => "a path".to_owned(),
            _ => words.replace("a tuple of size", "a list of"),
        }
    }
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Str(text) => format!("the text `{}`", shorten(text)),
        Unexpected::Unit | Unexpected::Option => "null".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}
