//! Hosts, as routes name them and as requests bring them.

use std::net::Ipv6Addr;

/// Names longer than this are in no DNS.
const LONGEST: usize = 255;

/// Which hosts a route matches; lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Host {
    /// Every host.
    Any,
    /// `*.example.com`, held as `example.com`: every name below it, any number of labels, and not itself.
    Below(Box<str>),
    /// This name or address.
    Exact(Box<str>),
}

impl Host {
    /// Reads a host; what is wrong and what to do about it otherwise.
    pub(super) fn parse(text: &str) -> Result<Self, (String, String)> {
        let wrong = |what: &str, cure: String| Err((format!("the host `{text}` {what}"), cure));
        if let Some((scheme, rest)) = text.split_once("://") {
            let host = rest.split(['/', ':']).next().unwrap_or(rest);
            return wrong(
                &format!("has a scheme, `{scheme}`, which is not part of a host"),
                format!("write `{host}`"),
            );
        }
        if let Some((host, _)) = text.split_once('/') {
            return wrong(
                "has a path",
                format!("write `host: {host}`, and the path under `path:`"),
            );
        }
        if let Some(address) = text.strip_prefix('[') {
            return match address.strip_suffix(']').map(str::parse::<Ipv6Addr>) {
                Some(Ok(address)) => Ok(Self::Exact(format!("[{address}]").into())),
                _ => wrong(
                    "is not an IPv6 address in brackets, without a port",
                    "write `[2001:db8::1]` or a name".to_owned(),
                ),
            };
        }
        if let Some((host, _)) = text.split_once(':') {
            return wrong(
                "has a port; routes match whatever the port",
                format!("write `{host}`, and choose the port under `listeners`"),
            );
        }
        if text == "*" {
            return wrong(
                "matches every host",
                "leave `host` out to match all hosts".to_owned(),
            );
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.contains('*') {
            return wrong(
                "has a `*` that is not its whole first label",
                "write `*.example.com`".to_owned(),
            );
        }
        // Underscores are not host names by RFC 1123, but compose and Kubernetes users have them.
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if name.len() > LONGEST || !name.split('.').all(label) {
            return wrong(
                "is not a name or an address",
                "write labels of letters, digits and `-` with dots between, such as `api.example.com` \
                 (names beyond ASCII in their `xn--` form)"
                    .to_owned(),
            );
        }
        let name = name.to_ascii_lowercase().into();
        Ok(if below {
            Self::Below(name)
        } else {
            Self::Exact(name)
        })
    }
}

/// Hands `act` the host as tables hold it: lower case, without the dot of the root; `None` when it is too long to be a
/// name. On the stack, because it is done for every exchange.
pub(super) fn lowered<R>(host: &str, act: impl FnOnce(Option<&str>) -> R) -> R {
    let host = host.strip_suffix('.').unwrap_or(host);
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return act((host.len() <= LONGEST).then_some(host));
    }
    let mut buffer = [0; LONGEST];
    let lower = buffer.get_mut(..host.len()).and_then(|buffer| {
        buffer.copy_from_slice(host.as_bytes());
        buffer.make_ascii_lowercase();
        std::str::from_utf8(buffer).ok()
    });
    act(lower)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn hosts_are_read_in_any_letter_case() {
        let exact = |text: &str| Host::Exact(text.into());
        assert_eq!(
            Host::parse("API.Example.com").unwrap(),
            exact("api.example.com")
        );
        assert_eq!(Host::parse("example.com.").unwrap(), exact("example.com"));
        assert_eq!(Host::parse("orders").unwrap(), exact("orders"));
        assert_eq!(Host::parse("my_app").unwrap(), exact("my_app"));
        assert_eq!(Host::parse("127.0.0.1").unwrap(), exact("127.0.0.1"));
        assert_eq!(
            Host::parse("[2001:DB8:0::1]").unwrap(),
            exact("[2001:db8::1]")
        );
        assert_eq!(
            Host::parse("*.Example.com").unwrap(),
            Host::Below("example.com".into())
        );
    }

    #[test]
    fn what_is_not_a_host_is_refused_with_a_way_out() {
        let check = |text: &str, what: &str, cure: &str| {
            let (said, way) = Host::parse(text).unwrap_err();
            assert!(said.contains(what), "{text}: {said}");
            assert!(way.contains(cure), "{text}: {way}");
        };
        check("https://example.com/x", "scheme", "write `example.com`");
        check("example.com:8080", "port", "write `example.com`");
        check("example.com/orders", "path", "under `path:`");
        check("*", "every host", "leave `host` out");
        check("*example.com", "first label", "*.example.com");
        check("a.*.com", "first label", "*.example.com");
        check("*.*.com", "first label", "*.example.com");
        check("", "not a name", "labels");
        check("*.", "not a name", "labels");
        check("a..b", "not a name", "labels");
        check(".a", "not a name", "labels");
        check("a b", "not a name", "labels");
        check("bücher.example", "not a name", "xn--");
        check("user@example.com", "not a name", "labels");
        check("[::1]:80", "brackets", "[2001:db8::1]");
        check("[x]", "brackets", "[2001:db8::1]");
        check(&"a.".repeat(200), "not a name", "labels");
    }

    #[test]
    fn lowering_never_truncates() {
        lowered("Example.COM.", |host| assert_eq!(host, Some("example.com")));
        lowered(&"A".repeat(255), |host| {
            assert_eq!(host.unwrap().len(), 255);
        });
        lowered(&"A".repeat(256), |host| assert_eq!(host, None));
        lowered(&"a".repeat(256), |host| assert_eq!(host, None));
        lowered("", |host| assert_eq!(host, Some("")));
    }
}
