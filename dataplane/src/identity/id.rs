//! SPIFFE IDs and trust domains, by the letter.
//!
//! A name that proves who somebody is has exactly one spelling: whatever the SPIFFE-ID standard (§2) does not allow is
//! refused when the value is made, so that comparing two of them is comparing two strings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// The longest SPIFFE ID that everybody must support, and the longest that we take (SPIFFE-ID §2.3).
pub const MAX_ID_BYTES: usize = 2048;
/// The longest trust domain (SPIFFE-ID §2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE ID or no trust domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// More than [`MAX_ID_BYTES`].
    #[error("it is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    /// Another scheme, or none.
    #[error("it does not begin with `spiffe://`")]
    Scheme,
    /// `spiffe:///path`.
    #[error("it has no trust domain")]
    NoTrustDomain,
    /// More than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("its trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")]
    LongTrustDomain,
    /// A character outside `a-z 0-9 . - _`: a port, user info and upper case are among them.
    #[error("its trust domain may only have the characters a-z, 0-9, `.`, `-` and `_`")]
    TrustDomainCharacter,
    /// It names a trust domain only, and no workload in it.
    #[error("it has no path, so it names no workload")]
    NoPath,
    /// `//`, or a `/` at the end.
    #[error("its path has an empty segment")]
    EmptySegment,
    /// `.` or `..`.
    #[error("its path has a segment `.` or `..`")]
    DotSegment,
    /// A character outside `a-z A-Z 0-9 . - _`: percent, query, fragment, blanks and non-ASCII are among them.
    #[error(
        "its path may only have the characters a-z, A-Z, 0-9, `.`, `-` and `_` between the slashes"
    )]
    PathCharacter,
}

/// Whose certificates belong together: `shop.internal`. Compared whole, never by suffix.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        check_trust_domain(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

/// A workload's name, checked when made: `spiffe://<trust domain>/<path>`, the path never empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    /// Where the path begins in `text`.
    path: usize,
}

impl SpiffeId {
    /// The identity of a service as Weft's own CA gives it: `spiffe://<trust domain>/service/<name>`.
    pub fn for_service(trust_domain: &TrustDomain, name: &str) -> Result<Self, IdError> {
        check_segment(name)?;
        format!("{SCHEME}{trust_domain}/service/{name}").parse()
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// The path, which begins with a slash.
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// Whether this identity is of that trust domain.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain() == trust_domain.as_str()
    }

    /// `orders` of `spiffe://td/service/orders`; nothing for a path of any other form.
    ///
    /// It leaves the trust domain out. Whoever decides what a caller may do compares whole identities.
    pub fn service_name(&self) -> Option<&str> {
        self.path()
            .strip_prefix("/service/")
            .filter(|name| !name.contains('/'))
    }

    /// A short name for people and metric labels: the service's, or the last segment of the path. It proves nothing.
    pub fn label(&self) -> &str {
        self.service_name().unwrap_or_else(|| {
            let path = self.path();
            path.rfind('/').map_or(path, |slash| &path[slash + 1..])
        })
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (trust_domain, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        check_trust_domain(trust_domain)?;
        let Some(segments) = path.strip_prefix('/') else {
            return Err(IdError::NoPath);
        };
        if segments.is_empty() {
            return Err(IdError::NoPath);
        }
        for segment in segments.split('/') {
            check_segment(segment)?;
        }
        Ok(Self {
            path: SCHEME.len() + trust_domain.len(),
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| {
            serde::de::Error::custom(format_args!("`{text}` is no trust domain: {error}"))
        })
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| {
            serde::de::Error::custom(format_args!("`{text}` is no SPIFFE ID: {error}"))
        })
    }
}

fn check_trust_domain(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::NoTrustDomain);
    }
    if text.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(IdError::LongTrustDomain);
    }
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if !text.bytes().all(allowed) {
        return Err(IdError::TrustDomainCharacter);
    }
    Ok(())
}

fn check_segment(segment: &str) -> Result<(), IdError> {
    let allowed =
        |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    match segment {
        "" => Err(IdError::EmptySegment),
        "." | ".." => Err(IdError::DotSegment),
        _ if segment.bytes().all(allowed) => Ok(()),
        _ => Err(IdError::PathCharacter),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn accepts_exactly_what_the_standard_allows() {
        use IdError::*;
        let long_path = |total: usize| {
            let head = "spiffe://td/";
            format!("{head}{}", "a".repeat(total - head.len()))
        };
        let long_domain = |bytes: usize| format!("spiffe://{}/a", "d".repeat(bytes));
        let (at_limit, over_limit) = (long_path(2048), long_path(2049));
        let (domain_at_limit, domain_over_limit) = (long_domain(255), long_domain(256));
        type Parts<'a> = (&'a str, &'a str);
        let cases: &[(&str, Result<Parts<'_>, IdError>)] = &[
            (
                "spiffe://shop.internal/service/orders",
                Ok(("shop.internal", "/service/orders")),
            ),
            (
                "spiffe://bench.local/ns/default/sa/client",
                Ok(("bench.local", "/ns/default/sa/client")),
            ),
            ("spiffe://a/b", Ok(("a", "/b"))),
            ("spiffe://a/B", Ok(("a", "/B"))),
            ("spiffe://0/0", Ok(("0", "/0"))),
            ("spiffe://a.b-c_d/x", Ok(("a.b-c_d", "/x"))),
            ("spiffe://-/-", Ok(("-", "/-"))),
            ("spiffe://_/_", Ok(("_", "/_"))),
            ("spiffe://10.0.0.1/a", Ok(("10.0.0.1", "/a"))),
            ("spiffe://td/...", Ok(("td", "/..."))),
            ("spiffe://td/.a", Ok(("td", "/.a"))),
            ("spiffe://td/a.", Ok(("td", "/a."))),
            ("spiffe://td/..a", Ok(("td", "/..a"))),
            ("spiffe://td/a/b/c/d/e", Ok(("td", "/a/b/c/d/e"))),
            ("spiffe://td/spiffe", Ok(("td", "/spiffe"))),
            ("spiffe://td/A-Z_a.z-0", Ok(("td", "/A-Z_a.z-0"))),
            (&at_limit, Ok(("td", &at_limit[11..]))),
            (&domain_at_limit, Ok((&domain_at_limit[9..264], "/a"))),
            ("", Err(Empty)),
            (&over_limit, Err(TooLong)),
            (&domain_over_limit, Err(LongTrustDomain)),
            ("spiffe", Err(Scheme)),
            ("spiffe:", Err(Scheme)),
            ("spiffe:/", Err(Scheme)),
            ("spiffe:/td/a", Err(Scheme)),
            ("spiffe:td/a", Err(Scheme)),
            ("//td/a", Err(Scheme)),
            ("td/a", Err(Scheme)),
            ("/td/a", Err(Scheme)),
            ("https://td/a", Err(Scheme)),
            ("SPIFFE://td/a", Err(Scheme)),
            ("Spiffe://td/a", Err(Scheme)),
            (" spiffe://td/a", Err(Scheme)),
            ("\u{feff}spiffe://td/a", Err(Scheme)),
            ("spiffes://td/a", Err(Scheme)),
            ("spiffe://", Err(NoTrustDomain)),
            ("spiffe:///", Err(NoTrustDomain)),
            ("spiffe:///a", Err(NoTrustDomain)),
            ("spiffe://TD/a", Err(TrustDomainCharacter)),
            ("spiffe://tD/a", Err(TrustDomainCharacter)),
            ("spiffe://td:443/a", Err(TrustDomainCharacter)),
            ("spiffe://td:/a", Err(TrustDomainCharacter)),
            ("spiffe://user@td/a", Err(TrustDomainCharacter)),
            ("spiffe://user:pass@td/a", Err(TrustDomainCharacter)),
            ("spiffe://@td/a", Err(TrustDomainCharacter)),
            ("spiffe://[::1]/a", Err(TrustDomainCharacter)),
            ("spiffe://t d/a", Err(TrustDomainCharacter)),
            ("spiffe://t%64/a", Err(TrustDomainCharacter)),
            ("spiffe://t\u{e4}/a", Err(TrustDomainCharacter)),
            ("spiffe://td\0/a", Err(TrustDomainCharacter)),
            ("spiffe://td?q/a", Err(TrustDomainCharacter)),
            ("spiffe://td#f/a", Err(TrustDomainCharacter)),
            ("spiffe://td?q", Err(TrustDomainCharacter)),
            ("spiffe://td\\a", Err(TrustDomainCharacter)),
            ("spiffe://*.td/a", Err(TrustDomainCharacter)),
            ("spiffe://td+x/a", Err(TrustDomainCharacter)),
            ("spiffe://td", Err(NoPath)),
            ("spiffe://td/", Err(NoPath)),
            ("spiffe://td//", Err(EmptySegment)),
            ("spiffe://td//a", Err(EmptySegment)),
            ("spiffe://td/a/", Err(EmptySegment)),
            ("spiffe://td/a//b", Err(EmptySegment)),
            ("spiffe://td/.", Err(DotSegment)),
            ("spiffe://td/..", Err(DotSegment)),
            ("spiffe://td/./a", Err(DotSegment)),
            ("spiffe://td/a/../b", Err(DotSegment)),
            ("spiffe://td/a/..", Err(DotSegment)),
            ("spiffe://td/a/.", Err(DotSegment)),
            ("spiffe://td/a?q=1", Err(PathCharacter)),
            ("spiffe://td/a?", Err(PathCharacter)),
            ("spiffe://td/a#f", Err(PathCharacter)),
            ("spiffe://td/a%2fb", Err(PathCharacter)),
            ("spiffe://td/%61", Err(PathCharacter)),
            ("spiffe://td/a b", Err(PathCharacter)),
            ("spiffe://td/a\n", Err(PathCharacter)),
            ("spiffe://td/a\0", Err(PathCharacter)),
            ("spiffe://td/\u{e4}", Err(PathCharacter)),
            ("spiffe://td/a\u{200b}", Err(PathCharacter)),
            ("spiffe://td/\u{430}", Err(PathCharacter)),
            ("spiffe://td/a:b", Err(PathCharacter)),
            ("spiffe://td/a@b", Err(PathCharacter)),
            ("spiffe://td/a;b", Err(PathCharacter)),
            ("spiffe://td/a,spiffe://td/b", Err(PathCharacter)),
            ("spiffe://td/a*", Err(PathCharacter)),
            ("spiffe://td/~a", Err(PathCharacter)),
            ("spiffe://td/a\\b", Err(PathCharacter)),
            ("spiffe://td/a+b", Err(PathCharacter)),
        ];
        for (text, expected) in cases {
            let got = text.parse::<SpiffeId>();
            let parts = got.as_ref().map(|id| (id.trust_domain(), id.path()));
            assert_eq!(parts.map_err(|error| *error), *expected, "{text:?}");
            if let Ok(id) = &got {
                assert_eq!(id.as_str(), *text);
                assert_eq!(id.to_string(), *text);
            }
        }
    }

    #[test]
    fn trust_domains_are_compared_whole() {
        let domain: TrustDomain = "shop.internal".parse().unwrap();
        let cases = [
            ("spiffe://shop.internal/a", true),
            ("spiffe://shop.internal.evil/a", false),
            ("spiffe://evil.shop.internal/a", false),
            ("spiffe://shop.interna/a", false),
            ("spiffe://shop.internal./a", false),
            ("spiffe://other/shop.internal", false),
        ];
        for (id, member) in cases {
            let id: SpiffeId = id.parse().unwrap();
            assert_eq!(id.is_member_of(&domain), member, "{id}");
        }
    }

    #[test]
    fn names_of_services() {
        let cases = [
            ("spiffe://td/service/orders", Some("orders"), "orders"),
            ("spiffe://td/service/orders/x", None, "x"),
            ("spiffe://td/service", None, "service"),
            ("spiffe://td/services/orders", None, "orders"),
            ("spiffe://td/ns/default/sa/client", None, "client"),
        ];
        for (id, service, label) in cases {
            let id: SpiffeId = id.parse().unwrap();
            assert_eq!((id.service_name(), id.label()), (service, label), "{id}");
        }
    }

    #[test]
    fn a_service_name_is_one_segment() {
        let domain: TrustDomain = "td".parse().unwrap();
        let cases = [
            ("orders", Ok("spiffe://td/service/orders")),
            ("or/ders", Err(IdError::PathCharacter)),
            ("..", Err(IdError::DotSegment)),
            ("", Err(IdError::EmptySegment)),
            ("or ders", Err(IdError::PathCharacter)),
        ];
        for (name, expected) in cases {
            let got = SpiffeId::for_service(&domain, name);
            assert_eq!(
                got.as_ref().map(SpiffeId::as_str),
                expected.as_ref().copied(),
                "{name}"
            );
        }
    }

    #[test]
    fn configuration_says_what_is_wrong_with_a_name() {
        let error = serde_json::from_str::<SpiffeId>("\"spiffe://TD/a\"").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`spiffe://TD/a` is no SPIFFE ID: its trust domain")
        );
        let error = serde_json::from_str::<TrustDomain>("\"a/b\"").unwrap_err();
        assert!(error.to_string().contains("`a/b` is no trust domain"));
    }
}
