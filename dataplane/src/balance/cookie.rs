//! Finds cookies in a request.

use http::HeaderMap;
use http::header::COOKIE;

/// The values of the cookies of this name, in the order in which they stand. What is no cookie is passed over.
pub(super) fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(COOKIE).iter().flat_map(move |line| {
        line.as_bytes()
            .split(|&byte| byte == b';')
            .filter_map(|pair| {
                let pair = pair.trim_ascii();
                let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
                // Quotes are part of the grammar, not of the value (RFC 6265 §4.1.1).
                let unquoted = value
                    .strip_prefix(b"\"")
                    .and_then(|v| v.strip_suffix(b"\""));
                Some(unquoted.unwrap_or(value))
            })
    })
}

/// Whether cookies may have this name (a token of RFC 9110).
pub(super) fn is_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], name: &str, expected: &[&str]) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, line.parse().unwrap());
        }
        let found: Vec<_> = values(&headers, name)
            .map(|value| std::str::from_utf8(value).unwrap())
            .collect();
        assert_eq!(found, expected, "{name} in {lines:?}");
    }

    #[test]
    fn cookies_are_found_by_their_whole_name_in_all_lines() {
        check(&["a=1; b=2"], "b", &["2"]);
        check(&["ab=1; b=2;b=3"], "b", &["2", "3"]);
        check(&["a=1", "b=\"2\""], "b", &["2"]);
        check(&["a=1=2; b="], "a", &["1=2"]);
        check(&["a=1; b="], "b", &[""]);
        check(&["a=1; b"], "b", &[]);
        check(&[";;; =1;a"], "a", &[]);
        check(&[], "a", &[]);
    }

    #[test]
    fn names_are_tokens() {
        assert!(is_name("weft-orders") && is_name("SID"));
        assert!(
            !is_name("") && !is_name("a b") && !is_name("a=b") && !is_name("a;b") && !is_name("ü")
        );
    }
}
