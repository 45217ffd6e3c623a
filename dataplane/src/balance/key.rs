//! What exchanges are kept together by.

use std::net::IpAddr;

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_runtime::config::{Path, Problems};

use super::dice::hash;
use super::{cookie, ip_hash};
use crate::head::Head;

/// `key:` of a policy that hashes, as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "BalanceKey")]
pub enum Config {
    /// The address of the client; of IPv6 its /64.
    Source,
    /// A field of the request, its first line.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// A parameter of the query, as it is spelled there.
    Query(String),
    /// A segment of the path, counted from 1: with 2, `/users/17/orders` goes by `17`.
    PathSegment(u8),
}

/// The same, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The client's address.
    Source,
    /// A field.
    Header(HeaderName),
    /// A cookie.
    Cookie(Box<str>),
    /// A parameter of the query.
    Query(Box<str>),
    /// A segment of the path, counted from 0.
    Segment(usize),
}

impl Config {
    pub(super) fn build(&self, place: &Path, problems: &mut Problems) -> Option<Key> {
        let mut wrong = |what: String, cure: &str| problems.at(place, what, cure);
        match self {
            Self::Source => return Some(Key::Source),
            Self::Header(name) => match name.parse() {
                Ok(http::header::HOST) => wrong(
                    "`host` is not among the fields: it is the same for all requests of a service"
                        .to_owned(),
                    "name another field",
                ),
                Ok(name) => return Some(Key::Header(name)),
                Err(_) => wrong(
                    format!("`{name}` is not the name of a field"),
                    "write one such as `x-user-id`",
                ),
            },
            Self::Cookie(name) if cookie::is_name(name) => {
                return Some(Key::Cookie(name.as_str().into()));
            }
            Self::Cookie(name) => wrong(
                format!("`{name}` is not the name of a cookie"),
                "write letters, digits, `-` and `_`, such as `session`",
            ),
            Self::Query(name) if !name.is_empty() => return Some(Key::Query(name.as_str().into())),
            Self::Query(_) => wrong(
                "the parameter has no name".to_owned(),
                "write one, such as `user` for `?user=17`",
            ),
            Self::PathSegment(0) => wrong(
                "segments are counted from 1".to_owned(),
                "write `path_segment: 1` for `a` in `/a/b`",
            ),
            Self::PathSegment(nth) => return Some(Key::Segment(usize::from(*nth) - 1)),
        }
        None
    }
}

impl Key {
    /// The hash of an exchange's key; none when it has no such thing.
    pub fn of(&self, head: &Head, client: IpAddr) -> Option<u64> {
        match self {
            Self::Source => Some(ip_hash::client(client)),
            Self::Header(name) => head.headers.get(name).map(|value| hash(value.as_bytes())),
            Self::Cookie(name) => cookie::values(&head.headers, name).next().map(hash),
            Self::Query(name) => {
                let mut pairs = head.path.query()?.split('&');
                let value = pairs.find_map(|pair| match pair.split_once('=') {
                    Some((key, value)) => (*key == **name).then_some(value),
                    None => (*pair == **name).then_some(""),
                })?;
                Some(hash(value.as_bytes()))
            }
            Self::Segment(nth) => {
                let mut segments = head.path.path().split('/').skip(1);
                let segment = segments.nth(*nth).filter(|segment| !segment.is_empty())?;
                Some(hash(segment.as_bytes()))
            }
        }
    }

    /// The same of a connection that nobody looks into: it has a source and nothing else.
    pub fn of_connection(&self, client: IpAddr) -> Option<u64> {
        match self {
            Self::Source => Some(ip_hash::client(client)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Version};

    use super::*;

    fn check(key: &str, target: &str, fields: &[(&'static str, &str)], expected: Option<&str>) {
        let config: Config = serde_json::from_str(key).unwrap();
        let key = config.build(&Path::root(), &mut Problems::new()).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let head = Head {
            method: Method::GET,
            version: Version::HTTP_11,
            authority: "orders".parse().unwrap(),
            path: target.parse().unwrap(),
            headers,
        };
        let found = key.of(&head, "192.0.2.1".parse().unwrap());
        assert_eq!(
            found,
            expected.map(|text| hash(text.as_bytes())),
            "{key:?} of {target}"
        );
    }

    #[test]
    fn a_key_is_what_the_request_says_or_nothing() {
        let header = r#"{"header": "X-User"}"#;
        check(
            header,
            "/",
            &[("x-user", "ann"), ("x-user", "bob")],
            Some("ann"),
        );
        check(header, "/", &[("x-user", "")], Some(""));
        check(header, "/", &[("x-users", "ann")], None);
        let cookie = r#"{"cookie": "sid"}"#;
        check(cookie, "/", &[("cookie", "a=1; sid=7; sid=8")], Some("7"));
        check(cookie, "/", &[("cookie", "asid=7")], None);
        let query = r#"{"query": "user"}"#;
        check(query, "/?a=1&user=17&user=18", &[], Some("17"));
        check(query, "/?users=17&user", &[], Some(""));
        check(query, "/?users=17", &[], None);
        check(query, "/user=17", &[], None);
        let segment = r#"{"path_segment": 2}"#;
        check(segment, "/users/17/orders?x", &[], Some("17"));
        check(segment, "/users/17", &[], Some("17"));
        check(segment, "/users/", &[], None);
        check(segment, "/users", &[], None);
        check(segment, "*", &[], None);
    }

    #[test]
    fn what_can_never_be_there_is_a_problem() {
        let keys = [
            r#"{"header": "host"}"#,
            r#"{"header": "x user"}"#,
            r#"{"cookie": "a=b"}"#,
            r#"{"query": ""}"#,
            r#"{"path_segment": 0}"#,
        ];
        for key in keys {
            let config: Config = serde_json::from_str(key).unwrap();
            let mut problems = Problems::new();
            assert!(config.build(&Path::root(), &mut problems).is_none());
            assert_eq!(problems.len(), 1, "{key}");
        }
    }
}
