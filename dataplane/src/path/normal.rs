//! One spelling for every path, made before anything looks at it.
//!
//! Proxies are bypassed where two readers of one path see two things: `/admin/../public`, `/%61dmin`, `//admin`,
//! `/x%2F..%2Fadmin`. So a path is rewritten once, here, into a form that no further reader would change; routes and
//! policies match on that form and the endpoint receives it. What has no single meaning is refused, not guessed.
//!
//! The form (RFC 3986 §6.2.2, and then some):
//!
//! * percent-encoded unreserved characters are decoded, other percent-encodings have upper-case digits;
//! * characters that a path may not hold (`"`, `<`, `{`, non-ASCII …) are percent-encoded;
//! * runs of `/` are one `/`; the dot segments `.` and `..` are resolved, after decoding.
//!
//! Refused: control characters, spaces, `\`, `?` and `#`, raw or encoded where that hides them from some reader: `%2F`, `%5C`, `%00`–`%1F`,
//! `%7F`; incomplete percent-encodings; `..` above the root; dot segments with parameters (`/..;x/`), which Java
//! servers resolve and nobody else does.

use std::borrow::Cow;

use http::uri::PathAndQuery;

use crate::error::Error;
use crate::reason::Reason;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is not `*` and has no leading slash.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// A control character or space, raw, or a control character, encoded.
    #[error("the path holds the control character or space 0x{0:02X}")]
    Control(u8),
    /// `\` or `%5C`: some servers take it for `/`.
    #[error("the path holds a backslash, which some servers take for a slash")]
    Backslash,
    /// `%2F`: some servers decode it before they split the path and some after.
    #[error("the path holds an encoded slash, `%2F`, which servers disagree about")]
    EncodedSlash,
    /// `%` without two hexadecimal digits after it.
    #[error("the path holds a `%` that is not followed by two hexadecimal digits")]
    PercentEncoding,
    /// `?` or `#`: the path ended there.
    #[error("the path holds a raw `{0}`")]
    Delimiter(char),
    /// More `..` than there are segments before.
    #[error("the path leads above the root by `..`")]
    AboveRoot,
    /// `/.;x` or `/..;x`.
    #[error("the path holds a dot segment with parameters, which servers disagree about")]
    DotParameters,
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Error::new(Reason::MalformedRequest, problem.to_string())
    }
}

/// The normal form of `path`, which has no query. Borrowed when it already is in that form, as nearly all are.
///
/// `*`, the target of a server-wide `OPTIONS`, stands for itself, and the empty path for `/`.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, Problem> {
    match path.as_bytes() {
        [] => return Ok(Cow::Borrowed("/")),
        b"*" => return Ok(Cow::Borrowed(path)),
        [b'/', ..] => {}
        _ => return Err(Problem::NotAbsolute),
    }
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    resolve_segments(&respell(path.as_bytes())?).map(Cow::Owned)
}

/// The same for a request target: the query is kept as it is.
pub fn normalize_target(target: PathAndQuery) -> Result<PathAndQuery, Error> {
    let normal = match normalize(target.path())? {
        // `?x`, from `http://host?x`, has no path of its own to borrow.
        Cow::Borrowed(same) if target.as_str().starts_with(same) => return Ok(target),
        normal => normal,
    };
    let text = match target.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal.into_owned(),
    };
    PathAndQuery::try_from(text)
        .map_err(|error| Error::new(Reason::MalformedRequest, format!("the target: {error}")))
}

/// What a raw byte in a path is. `/` is looked at on its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stands for itself: unreserved, sub-delimiters, `:`, `@`.
    Plain,
    /// May only stand encoded.
    Encode,
    Slash,
    Percent,
    Refuse,
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Encode; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'/' => Class::Slash,
            b'%' => Class::Percent,
            0..=b' ' | 0x7F | b'\\' | b'?' | b'#' => Class::Refuse,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => Class::Plain,
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
            | b',' | b';' | b'=' | b':' | b'@' => Class::Plain,
            _ => Class::Encode,
        };
        byte += 1;
    }
    table
};

/// Whether `path`, which begins with `/`, is in normal form: one pass, no allocation.
fn is_normal(path: &[u8]) -> bool {
    let mut at = 0;
    while at < path.len() {
        match CLASS[usize::from(path[at])] {
            Class::Plain => at += 1,
            Class::Slash => {
                match path.get(at + 1) {
                    Some(b'/') => return false,
                    Some(b'.') if dot_segment(&path[at + 1..]).is_some() => return false,
                    _ => {}
                }
                at += 1;
            }
            Class::Percent => {
                let (Some(&high), Some(&low)) = (path.get(at + 1), path.get(at + 2)) else {
                    return false;
                };
                let upper = |digit: u8| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
                if !upper(high) || !upper(low) {
                    return false;
                }
                match digits(high, low) {
                    Some(byte) if stays_encoded(byte) => at += 3,
                    _ => return false,
                }
            }
            Class::Encode | Class::Refuse => return false,
        }
    }
    true
}

/// Whether an encoded `byte` is left encoded: it is neither unreserved (decoded) nor refused.
fn stays_encoded(byte: u8) -> bool {
    !is_unreserved(byte) && !matches!(byte, 0..=0x1F | 0x7F | b'/' | b'\\')
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn digits(high: u8, low: u8) -> Option<u8> {
    let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    Some(value(high)? << 4 | value(low)?)
}

/// Every character spelled the one way; segments are left as they are.
fn respell(path: &[u8]) -> Result<String, Problem> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(path.len() + 16);
    let encode = |out: &mut String, byte: u8| {
        out.push('%');
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    };
    let mut at = 0;
    while at < path.len() {
        let byte = path[at];
        at += 1;
        match CLASS[usize::from(byte)] {
            Class::Plain | Class::Slash => out.push(char::from(byte)),
            Class::Encode => encode(&mut out, byte),
            Class::Refuse => {
                return Err(match byte {
                    b'\\' => Problem::Backslash,
                    b'?' | b'#' => Problem::Delimiter(char::from(byte)),
                    _ => Problem::Control(byte),
                });
            }
            Class::Percent => {
                let (high, low) = (path.get(at), path.get(at + 1));
                let decoded = high.zip(low).and_then(|(&high, &low)| digits(high, low));
                let decoded = decoded.ok_or(Problem::PercentEncoding)?;
                at += 2;
                match decoded {
                    b'/' => return Err(Problem::EncodedSlash),
                    b'\\' => return Err(Problem::Backslash),
                    0..=0x1F | 0x7F => return Err(Problem::Control(decoded)),
                    _ if is_unreserved(decoded) => out.push(char::from(decoded)),
                    _ => encode(&mut out, decoded),
                }
            }
        }
    }
    Ok(out)
}

/// Merges slashes and resolves dot segments of a respelled path.
fn resolve_segments(path: &str) -> Result<String, Problem> {
    let mut out = String::with_capacity(path.len());
    // Whether the last segment was a dot segment or empty: then the path ends with a slash.
    let mut open = true;
    for segment in path[1..].split('/') {
        open = true;
        match dot_segment(segment.as_bytes()) {
            Some(Dot::Parameters) => return Err(Problem::DotParameters),
            Some(Dot::Same) => {}
            Some(Dot::Up) => {
                let parent = out.rfind('/').ok_or(Problem::AboveRoot)?;
                out.truncate(parent);
            }
            None if segment.is_empty() => {}
            None => {
                out.push('/');
                out.push_str(segment);
                open = false;
            }
        }
    }
    if open {
        out.push('/');
    }
    Ok(out)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dot {
    Same,
    Up,
    Parameters,
}

/// Whether the segment at the beginning of `rest` is a dot segment, and which.
fn dot_segment(rest: &[u8]) -> Option<Dot> {
    let (dots, after) = match rest {
        [b'.', b'.', after @ ..] => (Dot::Up, after),
        [b'.', after @ ..] => (Dot::Same, after),
        _ => return None,
    };
    match after {
        [] | [b'/', ..] => Some(dots),
        [b';', ..] | [b'%', b'3', b'B', ..] => Some(Dot::Parameters),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn becomes(cases: &[(&str, &str)]) {
        for (path, expected) in cases {
            assert_eq!(normalize(path).as_deref(), Ok(*expected), "{path:?}");
        }
    }

    fn refused(cases: &[(&str, Problem)]) {
        for (path, expected) in cases {
            assert_eq!(normalize(path), Err(*expected), "{path:?}");
        }
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        for path in [
            "/",
            "*",
            "/orders",
            "/orders/",
            "/orders/42/items",
            "/.well-known/jwks.json",
            "/..hidden/...",
            "/a.b/c..d/e.",
            "/a%20b",
            "/%C3%A9",
            "/%252e%252e/",
            "/a;b=c,d/e:f@g",
            "/~user/!$&'()*+,;=",
            "/a%3Bb%3Fc%23",
            "/%25",
        ] {
            assert!(
                matches!(normalize(path), Ok(Cow::Borrowed(same)) if same == path),
                "{path:?}"
            );
        }
    }

    #[test]
    fn unreserved_characters_are_decoded_and_digits_are_upper_case() {
        becomes(&[
            ("/%61dmin", "/admin"),
            ("/%41%5a%7E%2d%5F", "/AZ~-_"),
            ("/%30", "/0"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%2bb", "/a%2Bb"),
            ("/a%3bb", "/a%3Bb"),
            ("/a%3a%40", "/a%3A%40"),
            ("/%2561", "/%2561"),
            ("/%25%36%31", "/%2561"),
        ]);
    }

    #[test]
    fn characters_that_do_not_belong_in_a_path_are_encoded() {
        becomes(&[
            ("/café", "/caf%C3%A9"),
            ("/{id}", "/%7Bid%7D"),
            ("/a\"b", "/a%22b"),
            ("/<a>", "/%3Ca%3E"),
            ("/a|b^c`d", "/a%7Cb%5Ec%60d"),
            ("/[x]", "/%5Bx%5D"),
        ]);
    }

    #[test]
    fn slashes_merge_and_dot_segments_resolve() {
        becomes(&[
            ("", "/"),
            ("//", "/"),
            ("///a", "/a"),
            ("/a//b///c", "/a/b/c"),
            ("/a//", "/a/"),
            ("/.", "/"),
            ("/./", "/"),
            ("/./a", "/a"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/../c", "/a/c"),
            ("/a/b/c/../../d", "/a/d"),
            ("/a//../b", "/b"),
            ("/public/%2e%2e/admin", "/admin"),
            ("/public/%2E./admin", "/admin"),
            ("/public/.%2e/admin", "/admin"),
            ("/a/%2e/b", "/a/b"),
            ("/a/%2e", "/a/"),
            ("/a/.../b//", "/a/.../b/"),
            ("/a/..b/./c", "/a/..b/c"),
        ]);
    }

    #[test]
    fn what_servers_disagree_about_is_refused() {
        refused(&[
            ("orders", Problem::NotAbsolute),
            ("**", Problem::NotAbsolute),
            ("%2Forders", Problem::NotAbsolute),
            ("http://x/", Problem::NotAbsolute),
            ("/a%2Fb", Problem::EncodedSlash),
            ("/a%2fb", Problem::EncodedSlash),
            ("/..%2f..%2fetc", Problem::EncodedSlash),
            ("/a\\b", Problem::Backslash),
            ("/..\\admin", Problem::Backslash),
            ("/a%5Cb", Problem::Backslash),
            ("/a%5cb", Problem::Backslash),
            ("/a%00", Problem::Control(0)),
            ("/a%0d%0aHost:x", Problem::Control(0x0D)),
            ("/a%1F", Problem::Control(0x1F)),
            ("/a%7f", Problem::Control(0x7F)),
            ("/a\0", Problem::Control(0)),
            ("/a\r\n", Problem::Control(0x0D)),
            ("/a\tb", Problem::Control(9)),
            ("/a b", Problem::Control(b' ')),
            ("/a\u{7f}", Problem::Control(0x7F)),
            ("/a?b", Problem::Delimiter('?')),
            ("/a#b", Problem::Delimiter('#')),
            ("/%", Problem::PercentEncoding),
            ("/%4", Problem::PercentEncoding),
            ("/%zz", Problem::PercentEncoding),
            ("/%4g", Problem::PercentEncoding),
            ("/%+1", Problem::PercentEncoding),
            ("/%é", Problem::PercentEncoding),
            ("/%u0041", Problem::PercentEncoding),
            ("/..", Problem::AboveRoot),
            ("/../", Problem::AboveRoot),
            ("/a/../../b", Problem::AboveRoot),
            ("/%2e%2e/b", Problem::AboveRoot),
            ("//../b", Problem::AboveRoot),
            ("/a/..;/b", Problem::DotParameters),
            ("/a/.;x=1/b", Problem::DotParameters),
            ("/a/..%3B/b", Problem::DotParameters),
            ("/a/%2e%2e%3bx", Problem::DotParameters),
        ]);
    }

    #[test]
    fn a_normal_path_stays_as_it_is_and_a_refused_one_says_so_as_a_malformed_request() {
        // Random strings over an alphabet in which every rule of the form has its characters.
        const ALPHABET: &[&str] = &[
            "/", "/", "/", ".", ".", "..", "%2e", "%2E", "%61", "%c3", "%C3", "%25", "a", "B", ";",
            "%3b", "%3B", "é", "{", "%20", "~",
        ];
        let mut random = fastrand::Rng::with_seed(7);
        let mut normalized = 0;
        for _ in 0..50_000 {
            let length = random.usize(0..12);
            let path: String = std::iter::once("/")
                .chain((0..length).map(|_| ALPHABET[random.usize(..ALPHABET.len())]))
                .collect();
            let Ok(once) = normalize(&path) else {
                continue;
            };
            normalized += 1;
            assert!(
                matches!(normalize(&once), Ok(Cow::Borrowed(twice)) if twice == once),
                "{path:?} became {once:?}, which is not normal"
            );
            assert!(once.starts_with('/') && !once.contains("//"), "{path:?}");
            assert!(
                once.split('/')
                    .all(|segment| segment != "." && segment != ".."),
                "{path:?} became {once:?}"
            );
            assert!(once.is_ascii(), "{path:?} became {once:?}");
        }
        assert!(normalized > 10_000, "only {normalized} paths were accepted");
        let error = Error::from(normalize("/a%2Fb").unwrap_err());
        assert_eq!(error.reason, Reason::MalformedRequest);
    }

    #[test]
    fn no_bytes_panic() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..50_000 {
            let bytes: Vec<u8> = (0..random.usize(0..20)).map(|_| random.u8(..)).collect();
            let text = format!("/{}", String::from_utf8_lossy(&bytes));
            if let Ok(normal) = normalize(&text) {
                assert!(is_normal(normal.as_bytes()), "{text:?}");
            }
        }
    }

    #[test]
    fn the_query_is_left_alone() {
        let check = |target: &'static str, expected: &str| {
            let normal = normalize_target(PathAndQuery::from_static(target)).unwrap();
            assert_eq!(normal.as_str(), expected);
        };
        check("/a?x=../%2f//", "/a?x=../%2f//");
        check("/a//b?x=//", "/a/b?x=//");
        check("/a/./b", "/a/b");
        check("/%61?", "/a?");
        check("?x", "/?x");
        check("*", "*");
        assert!(normalize_target(PathAndQuery::from_static("/a%2Fb?x")).is_err());
    }
}
