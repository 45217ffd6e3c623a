//! Request targets and authorities, by the grammar of RFC 9112 §3.2 and RFC 3986.

use std::net::Ipv6Addr;

use bytes::Bytes;
use http::Method;
use http::uri::{Authority, PathAndQuery};

use super::{Limits, Malformed};
use crate::reason::Reason;

/// What a request line asks for.
#[derive(Debug)]
pub(super) enum Target {
    /// Only a path (or `*`): the authority comes from `Host`.
    Origin(PathAndQuery),
    /// With an authority, which wins over `Host`.
    Absolute(Authority, PathAndQuery),
}

/// Reads a request target.
pub(super) fn parse(target: Bytes, method: &Method, limits: &Limits) -> Result<Target, Malformed> {
    if target.len() > limits.target_bytes {
        return Err(Malformed::because(
            "request target too long",
            Reason::TargetTooLong,
        ));
    }
    match target.first() {
        Some(b'/') => Ok(Target::Origin(path_and_query(target)?)),
        Some(b'*') if target.len() == 1 && *method == Method::OPTIONS => {
            Ok(Target::Origin(PathAndQuery::from_static("*")))
        }
        _ => absolute(&target, method),
    }
}

fn absolute(target: &Bytes, method: &Method) -> Result<Target, Malformed> {
    let start = ["http://", "https://"]
        .iter()
        .find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
        })
        .map(|scheme| scheme.len())
        .ok_or(Malformed::new(
            "request target is neither a path nor an http URI",
        ))?;
    let rest = target.slice(start..);
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let authority = authority(rest.slice(..end))?;
    let path = match rest.get(end) {
        Some(b'/') => path_and_query(rest.slice(end..))?,
        // RFC 9112 §3.2.4: the form that an `OPTIONS *` takes through a proxy.
        None if *method == Method::OPTIONS => PathAndQuery::from_static("*"),
        None => PathAndQuery::from_static("/"),
        Some(_) => path_and_query(Bytes::from([b"/", &rest[end..]].concat()))?,
    };
    Ok(Target::Absolute(authority, path))
}

fn path_and_query(target: Bytes) -> Result<PathAndQuery, Malformed> {
    let mut bytes = target.iter().enumerate();
    for (at, byte) in bytes.by_ref() {
        match byte {
            b'?' => break,
            b'#' => return Err(Malformed::new("fragment in the request target")),
            b'%' if !is_escape(&target[at..]) => {
                return Err(Malformed::new("malformed percent-encoding in the path"));
            }
            // Some take a backslash for a slash; of the others none is in a path that a client encoded.
            b'\\' | b'"' | b'<' | b'>' | b'`' | 0..=b' ' | 0x7f.. => {
                return Err(Malformed::new("byte in the path that must be encoded"));
            }
            _ => {}
        }
    }
    // A query is opaque to us, and browsers leave more of it unencoded.
    for (_, byte) in bytes {
        match byte {
            b'#' => return Err(Malformed::new("fragment in the request target")),
            b'"' | b'<' | b'>' | 0..=b' ' | 0x7f.. => {
                return Err(Malformed::new("byte in the query that must be encoded"));
            }
            _ => {}
        }
    }
    PathAndQuery::from_maybe_shared(target).map_err(|_| Malformed::new("malformed request target"))
}

fn is_escape(rest: &[u8]) -> bool {
    matches!(rest, [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// Reads `host [":" port]`: a name, an IPv4 or a bracketed IPv6 address; no user, no empty host, no empty port.
pub(crate) fn authority(bytes: Bytes) -> Result<Authority, Malformed> {
    check_authority(&bytes)?;
    Authority::from_maybe_shared(bytes).map_err(|_| Malformed::new("malformed host"))
}

/// Whether [`authority`] reads this.
pub(crate) fn check_authority(bytes: &[u8]) -> Result<(), Malformed> {
    let port = if bytes.first() == Some(&b'[') {
        let end = bytes
            .iter()
            .position(|byte| *byte == b']')
            .ok_or(Malformed::new("malformed address in the host"))?;
        std::str::from_utf8(&bytes[1..end])
            .ok()
            .and_then(|address| address.parse::<Ipv6Addr>().ok())
            .ok_or(Malformed::new("malformed address in the host"))?;
        &bytes[end + 1..]
    } else {
        let end = bytes
            .iter()
            .position(|byte| !NAME[usize::from(*byte)])
            .unwrap_or(bytes.len());
        match &bytes[end..] {
            [] | [b':', ..] if end == 0 => return Err(Malformed::new("empty host")),
            port @ ([] | [b':', ..]) => port,
            _ => return Err(Malformed::new("malformed host")),
        }
    };
    check_port(port)
}

fn check_port(port: &[u8]) -> Result<(), Malformed> {
    const MALFORMED: Malformed = Malformed::new("malformed port in the host");
    match port {
        [] => Ok(()),
        [b':', digits @ ..] if (1..=5).contains(&digits.len()) => {
            let mut number = 0_u32;
            for digit in digits {
                if !digit.is_ascii_digit() {
                    return Err(MALFORMED);
                }
                number = number * 10 + u32::from(digit - b'0');
            }
            if number <= u32::from(u16::MAX) {
                Ok(())
            } else {
                Err(MALFORMED)
            }
        }
        _ => Err(MALFORMED),
    }
}

/// [`is_name`], answered beforehand.
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_name(byte as u8);
        byte += 1;
    }
    table
};

/// `reg-name` of RFC 3986 §3.2.2 without percent-encoding, which no name that can be resolved has.
const fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}
