//! What a route matches on: as it stands in the file, and checked.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::{Path, Problems};

use super::host::Host;
use crate::path::Pattern;

/// The `match:` of a route. What is left out matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// `api.example.com`, or `*.example.com` for every name below `example.com`. Case and port make no difference.
    #[serde(default)]
    pub host: Option<String>,
    /// `/orders` exactly, `/orders/*` for it and all below, `/orders/{id}` for one segment of any text.
    #[serde(default)]
    pub path: Option<String>,
    /// Any of these methods, such as `[GET, POST]`.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
    /// All of these fields with exactly these values; of a field that is sent more than once, one line suffices.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// A [`Match`] that was checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) host: Host,
    pub(super) path: Pattern,
    pub(super) conditions: Conditions,
}

/// What is left to look at when host and path fit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conditions {
    /// Any of these; empty for all methods.
    pub(super) methods: Vec<Method>,
    /// All of these, sorted by name.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Conditions {
    pub(super) fn fit(&self, method: &Method, headers: &HeaderMap) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && self
                .headers
                .iter()
                .all(|(name, value)| headers.get_all(name).iter().any(|given| given == value))
    }
}

/// Fields that are gone, or are not fields, when routes are matched.
const NEVER_SEEN: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "content-length",
];

impl Match {
    /// Reports all that is wrong at `place`; `None` when something is.
    pub(super) fn check(&self, place: &Path, problems: &mut Problems) -> Option<Checked> {
        let before = problems.len();
        let host = self.host.as_deref().map_or(Ok(Host::Any), Host::parse);
        let host = host.map_err(|(what, cure)| problems.at(&place.key("host"), what, cure));
        let path = self
            .path
            .as_deref()
            .map_or_else(|| Ok(Pattern::everything()), Pattern::parse)
            .map_err(|invalid| problems.at(&place.key("path"), invalid.what, invalid.cure));
        let methods = match &self.methods {
            Some(methods) => check_methods(methods, &place.key("methods"), problems),
            None => Vec::new(),
        };
        let headers = self.check_headers(&place.key("headers"), problems);
        (problems.len() == before).then_some(Checked {
            host: host.ok()?,
            path: path.ok()?,
            conditions: Conditions { methods, headers },
        })
    }

    fn check_headers(
        &self,
        place: &Path,
        problems: &mut Problems,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(self.headers.len());
        for (text, value) in &self.headers {
            let place = place.key(text);
            let Ok(name) = HeaderName::try_from(text.as_str()) else {
                problems.at(
                    &place,
                    format!("`{text}` is not the name of a header"),
                    "write a name of letters, digits and `-`, such as `x-beta`",
                );
                continue;
            };
            if name == http::header::HOST {
                problems.at(
                    &place,
                    "a route cannot match on the header `host`",
                    "write the name under `host:` of the match",
                );
                continue;
            }
            if NEVER_SEEN.contains(&name.as_str()) {
                problems.at(
                    &place,
                    format!("the header `{name}` belongs to the connection, so no route sees it"),
                    "match on another header",
                );
                continue;
            }
            if headers.iter().any(|(other, _)| *other == name) {
                problems.at(
                    &place,
                    format!("the header `{name}` is listed twice, in different letter case"),
                    "list it once",
                );
                continue;
            }
            let trimmed = value.trim_matches([' ', '\t']);
            match HeaderValue::try_from(value.as_str()) {
                Ok(value) if trimmed.len() == value.len() => headers.push((name, value)),
                Ok(_) => problems.at(
                    &place,
                    format!("no header has the value `{value}`: spaces around it do not count"),
                    format!("write `{trimmed}`"),
                ),
                Err(_) => problems.at(
                    &place,
                    format!("{value:?} cannot be the value of a header"),
                    "write visible characters and spaces only",
                ),
            }
        }
        headers.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        headers
    }
}

fn check_methods(list: &[String], place: &Path, problems: &mut Problems) -> Vec<Method> {
    if list.is_empty() {
        problems.at(
            place,
            "the list of methods is empty, so the rule can never match",
            "list at least one method, or leave `methods` out to match all",
        );
    }
    let mut methods: Vec<Method> = Vec::with_capacity(list.len());
    for (index, text) in list.iter().enumerate() {
        let place = place.index(index);
        match crate::path::method(text) {
            Err(invalid) => problems.at(&place, invalid.what, invalid.cure),
            Ok(method) if methods.contains(&method) => problems.at(
                &place,
                format!("the method `{method}` is listed twice"),
                "list it once",
            ),
            Ok(method) => methods.push(method),
        }
    }
    methods.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    methods
}
