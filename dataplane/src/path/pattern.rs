//! Patterns over paths, as they stand in routes and in `allow` rules.
//!
//! * `/orders` is that path alone (`/orders/` is another);
//! * `/orders/*` is `/orders` and everything below it, by whole segments, so not `/ordersx`; `/*` is every path;
//! * `/orders/{id}` and `/orders/{id}/items` are templates: `{id}` stands for one segment that is not empty;
//! * both may come together: `/users/{id}/*`.

use std::borrow::Cow;
use std::fmt;

use super::normal::normalize;

/// A checked pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    segments: Vec<Segment>,
    /// Whether anything may follow the segments.
    open: bool,
}

/// What stands between two slashes of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// This text, in normal form.
    Literal(Box<str>),
    /// Any text but none. What the parameter is called makes no difference to what the pattern matches.
    Parameter,
}

/// What is wrong with a pattern, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

impl Pattern {
    /// `/*`, which matches every path, and `*` of a server-wide `OPTIONS`.
    pub fn everything() -> Self {
        Self {
            segments: Vec::new(),
            open: true,
        }
    }

    /// Reads a pattern; one that no normal path could match is refused.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(Invalid {
                what: format!("the path `{text}` has no leading slash, so no request can match it"),
                cure: format!("write `/{text}`"),
            });
        };
        let (rest, open) = match rest {
            "*" => return Ok(Self::everything()),
            _ => match rest.strip_suffix("/*") {
                Some(rest) => (rest, true),
                None => (rest, false),
            },
        };
        let segments = segments(text, rest)?;
        // Literals are compared byte by byte with normal paths, so they must be as a normal path has them.
        let literal: String = segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => format!("/{text}"),
                Segment::Parameter => "/0".to_owned(),
            })
            .collect();
        match normalize(&literal) {
            Ok(Cow::Borrowed(normal)) if !(open && normal.ends_with('/')) => {
                Ok(Self { segments, open })
            }
            Ok(normal) => Err(Invalid {
                what: format!(
                    "the path `{text}` can never match, because requests are normalised first"
                ),
                cure: match respell(text, &normal, segments.len(), open) {
                    Some(respelled) => format!("write `{respelled}`"),
                    None => "write the path without empty and dot segments".to_owned(),
                },
            }),
            Err(problem) => Err(Invalid {
                what: format!("the path `{text}` can never match: {problem}, which is refused"),
                cure: "write the path as it looks after normalisation".to_owned(),
            }),
        }
    }

    /// What stands between the slashes, a trailing `/*` left out.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether the pattern ends with `/*`.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether the normal `path` matches.
    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else {
            return self.open && self.segments.is_empty();
        };
        let mut given = rest.split('/');
        for segment in &self.segments {
            let Some(given) = given.next() else {
                return false;
            };
            let fits = match segment {
                Segment::Literal(text) => **text == *given,
                Segment::Parameter => !given.is_empty(),
            };
            if !fits {
                return false;
            }
        }
        self.open || given.next().is_none()
    }
}

/// The segments of a pattern: `text` is all of it, `rest` what is left without its first slash and its `/*`.
fn segments(text: &str, rest: &str) -> Result<Vec<Segment>, Invalid> {
    let invalid = |what: String, cure: &str| {
        Err(Invalid {
            what: format!("the path `{text}` has {what}"),
            cure: cure.to_owned(),
        })
    };
    let mut segments = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for segment in rest.split('/') {
        if let Some(name) = segment
            .strip_prefix('{')
            .and_then(|segment| segment.strip_suffix('}'))
        {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || !name.chars().all(word) {
                return invalid(
                    format!("a parameter with the name `{name}`"),
                    "name it with letters, digits, `_` or `-`, such as `{id}`",
                );
            }
            if names.contains(&name) {
                return invalid(
                    format!("two parameters `{{{name}}}`"),
                    "give each parameter of a path its own name",
                );
            }
            names.push(name);
            segments.push(Segment::Parameter);
        } else if segment.contains(['{', '}']) {
            return invalid(
                "a parameter that is only part of a segment".to_owned(),
                "let `{name}` stand alone between two slashes",
            );
        } else if segment == "*" || segment == "**" {
            return invalid(
                format!("`{segment}` before its end"),
                "write `{name}` for one segment; `*` stands only at the end, as `/*`",
            );
        } else if segment.contains('*') {
            return invalid(
                "a `*` that is only part of a segment".to_owned(),
                "write `/*` at the end for everything below, or `%2A` for the character itself",
            );
        } else {
            segments.push(Segment::Literal(segment.into()));
        }
    }
    Ok(segments)
}

/// The pattern `text`, of so many segments, as the normal form of its literals has it, where that is one segment for one.
fn respell(text: &str, normal: &str, segments: usize, open: bool) -> Option<String> {
    let normal: Vec<_> = normal.split('/').collect();
    if normal.len() != segments + 1 || (open && normal.last() == Some(&"")) {
        return None;
    }
    let spelled: Vec<_> = normal
        .into_iter()
        .zip(text.split('/'))
        .map(|(normal, given)| match given.starts_with('{') {
            true => given,
            false => normal,
        })
        .collect();
    let end = if open { "/*" } else { "" };
    Some(format!("{}{end}", spelled.join("/")))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Parameter => f.write_str("/{}")?,
            }
        }
        f.write_str(if self.open { "/*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn patterns_match_by_whole_segments() {
        let check = |pattern: &str, yes: &[&str], no: &[&str]| {
            let parsed = Pattern::parse(pattern).unwrap();
            for path in yes {
                assert!(parsed.matches(path), "{pattern} should match {path}");
            }
            for path in no {
                assert!(!parsed.matches(path), "{pattern} should not match {path}");
            }
        };
        check("/", &["/"], &["/a", "*"]);
        check("/*", &["/", "/a", "/a/b/", "*"], &[]);
        check(
            "/orders",
            &["/orders"],
            &["/orders/", "/ordersx", "/orders/1", "/", "/Orders"],
        );
        check("/orders/", &["/orders/"], &["/orders", "/orders/1"]);
        check(
            "/orders/*",
            &["/orders", "/orders/", "/orders/x", "/orders/x/y"],
            &["/ordersx", "/order", "/", "*"],
        );
        check(
            "/orders/{id}",
            &["/orders/1", "/orders/{id}"],
            &["/orders", "/orders/", "/orders/1/", "/orders/1/items"],
        );
        check(
            "/orders/{id}/items",
            &["/orders/1/items"],
            &["/orders//items", "/orders/1"],
        );
        check("/{a}/{b}", &["/x/y"], &["/x", "/x/", "/x/y/z"]);
        check(
            "/users/{id}/*",
            &["/users/1", "/users/1/", "/users/1/a/b"],
            &["/users", "/users/"],
        );
        check("/a%20b/*", &["/a%20b/c"], &["/a b/c"]);
    }

    #[test]
    fn a_pattern_that_can_never_match_is_refused_with_a_way_out() {
        let check = |pattern: &str, cure: &str| {
            let invalid = Pattern::parse(pattern).unwrap_err();
            assert!(
                invalid.what.contains(pattern) || pattern.is_empty(),
                "{invalid:?}"
            );
            assert!(invalid.cure.contains(cure), "{pattern}: {invalid:?}");
        };
        check("", "write `/`");
        check("orders", "write `/orders`");
        check("*", "write `/*`");
        check("/a//b", "without empty");
        check("//*", "without empty");
        check("/a//*", "without empty");
        check("/a/../b", "without empty and dot");
        check("/%61dmin", "write `/admin`");
        check("/%61dmin/{id}/*", "write `/admin/{id}/*`");
        check("/café", "write `/caf%C3%A9`");
        check("/a%2Fb", "after normalisation");
        check("/a b", "after normalisation");
        check("/a?b=c", "after normalisation");
        check("/a/*/b", "{name}");
        check("/a/**", "stands only at the end");
        check("/a*", "`/*` at the end");
        check("/{}", "{id}");
        check("/{a b}", "{id}");
        check("/{id", "stand alone");
        check("/x{id}", "stand alone");
        check("/{id}.json", "stand alone");
        check("/{id}/{id}", "its own name");
    }
}
