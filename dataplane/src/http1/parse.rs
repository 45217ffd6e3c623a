//! Heads of HTTP/1 messages: bytes in, checked words out (RFC 9112, RFC 9110).
//!
//! A proxy that reads a message another way than the endpoint behind it can be made to smuggle one message inside
//! another. So there is one parse, as strict as the grammar, and what leaves is written anew from its result: no line
//! of a peer's is ever passed on, and where a message is ambiguous about its end it is refused, not repaired.
//!
//! `httparse` finds the fields; it is lenient about line ends, so `lines` checks every byte that it skipped. Fields
//! are then read in one pass: framing and hop-by-hop ones are understood and dropped, all others become slices of the
//! one [`Bytes`] they came in. Nothing is allocated per field (but names that `http` does not know).
//!
//! Parsing is not incremental. A caller that holds part of a head calls again only when [`may_complete`] says so of
//! the new bytes, or when it holds more than [`Limits::head_bytes`]: the number of lines is bounded, hence the number
//! of parses, and feeding a head byte by byte is not quadratic.

mod field;
mod lines;
mod target;

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use httparse::{ParserConfig, Status};

pub(crate) use self::field::length;
pub use self::field::{Kind, kind, may_trail};
use self::field::{Role, Special};
pub(super) use self::lines::is_token;
use self::target::Target;
pub(crate) use self::target::{authority, check_authority};
use super::spare;
use crate::head::Head;
use crate::reason::Reason;

/// Bounds on what a peer sends. The same ones hold for clients and for endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The start line and all fields, line ends included.
    pub head_bytes: usize,
    /// The number of fields of a head, at most [`MOST_FIELDS`].
    pub fields: usize,
    /// The request target.
    pub target_bytes: usize,
    /// The extensions of one chunk.
    pub chunk_extension_bytes: usize,
    /// The extensions of all chunks of a message.
    pub message_extension_bytes: usize,
    /// The trailer section.
    pub trailer_bytes: usize,
    /// The number of fields in the trailer section.
    pub trailer_fields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 * 1024,
            fields: 128,
            target_bytes: 16 * 1024,
            chunk_extension_bytes: 256,
            message_extension_bytes: 16 * 1024,
            trailer_bytes: 8 * 1024,
            trailer_fields: 32,
        }
    }
}

/// What [`Limits::fields`] can be at most: the fields of a head are indexed on the stack.
pub const MOST_FIELDS: usize = 256;

/// Fields that a head gets on its way through us; a map that grows is built twice.
const ROOM: usize = 4;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes, below 2^63.
    Length(u64),
    /// Chunks, then perhaps trailers.
    Chunked,
    /// Everything until the connection closes. Only responses may end like that.
    UntilClose,
}

/// A protocol to switch to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455.
    Websocket,
}

/// The head of a request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What routes and policies see.
    pub head: Head,
    /// How the body ends. Never [`Framing::UntilClose`].
    pub framing: Framing,
    /// Whether the client wants to send more on this connection.
    pub keep_alive: bool,
    /// Whether the client waits for a `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// The upgrade asked for, if it is one that can be tunnelled. Others are dropped: a server may ignore `Upgrade`.
    pub upgrade: Option<Upgrade>,
    /// How many of the bytes were the head.
    pub consumed: usize,
}

/// The head of a response.
#[derive(Debug, Clone)]
pub struct Response {
    /// 100 to 599. 1xx are returned like any other, and the final response follows them.
    pub status: StatusCode,
    /// The fields, framing and hop-by-hop ones removed. `content-length` is kept where there is no body (an answer to
    /// HEAD, or 304) and the field describes the one there would have been.
    pub headers: HeaderMap,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the connection can be used again after the body.
    pub keep_alive: bool,
    /// How long the endpoint says that it keeps the connection open between two exchanges.
    pub keeps: Option<Duration>,
    /// Whether this is the 101 that was asked for: what follows is the other protocol.
    pub upgrade: bool,
    /// How many of the bytes were the head.
    pub consumed: usize,
}

/// A message that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct Malformed {
    /// The rule it breaks, for people.
    pub rule: &'static str,
    /// What the client is told.
    pub reason: Reason,
}

impl Malformed {
    /// A message that breaks the grammar or is ambiguous.
    pub const fn new(rule: &'static str) -> Self {
        Self {
            rule,
            reason: Reason::MalformedRequest,
        }
    }

    /// The same fault, made by an endpoint: nothing about it is the client's to mend.
    pub const fn upstream(self) -> Self {
        Self {
            rule: self.rule,
            reason: Reason::UpstreamMalformed,
        }
    }

    const fn because(rule: &'static str, reason: Reason) -> Self {
        Self { rule, reason }
    }
}

impl From<Malformed> for crate::error::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(malformed.reason, malformed.rule)
    }
}

/// Whether a head of which part is held may be complete, or provably wrong, with these new bytes.
pub fn may_complete(fresh: &[u8]) -> bool {
    fresh.contains(&b'\n')
}

/// The request that `bytes` begin with; `None` when its head is not complete yet.
///
/// Errors come as early as a line shows them; a prefix of a valid head is never one.
pub fn request(bytes: &Bytes, limits: &Limits) -> Result<Option<Request>, Malformed> {
    let Some(start) = lines::skip_empty_line(bytes)? else {
        return Ok(None);
    };
    let window = lines::window(&bytes[start..], limits);
    let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let slots = &mut slots[..limits.fields.min(MOST_FIELDS)];
    let mut raw = httparse::Request::new(&mut []);
    let size =
        match ParserConfig::default().parse_request_with_uninit_headers(&mut raw, window, slots) {
            Ok(Status::Complete(size)) => size,
            Ok(Status::Partial) => {
                let (method, target) = (raw.method, raw.path);
                return lines::incomplete_request(window, method, target, limits).map(|()| None);
            }
            Err(error) => return Err(lines::explain(window, lines::Start::Request, error)),
        };
    let (Some(method), Some(path), Some(minor)) = (raw.method, raw.path, raw.version) else {
        return Err(Malformed::new("malformed request line"));
    };
    lines::request_line(window, method, path)?;
    let version = version(minor);
    let method = self::method(method)?;

    let at = start + raw_target_offset(raw.method);
    let target = target::parse(bytes.slice(at..at + path.len()), &method, limits)?;

    let mut special = Special::new(Role::Request, version);
    let mut headers = spare::take(raw.headers.len() + ROOM);
    let mut walk = lines::Walk::new(window, at - start + path.len() + lines::VERSION_END);
    let mut host = None;
    for field in raw.headers.iter() {
        let value = walk.next(field)?;
        match special.take(field.name.as_bytes(), &window[value.clone()])? {
            field::Then::Drop | field::Then::Length => {}
            field::Then::Host => host = Some(value),
            field::Then::Keep => {
                let value = bytes.slice(start + value.start..start + value.end);
                append(&mut headers, field.name, value)?;
            }
        }
    }
    walk.end(size)?;
    special.unlist(raw.headers, &mut headers);

    let host = host
        .map(|value| authority(bytes.slice(start + value.start..start + value.end)))
        .transpose()?;
    let (authority, path) = match (target, host) {
        (Target::Absolute(authority, path), Some(_)) => (authority, path),
        // HTTP/1.0 knows no `Host`, and this form needs none.
        (Target::Absolute(authority, path), None) if version == Version::HTTP_10 => {
            (authority, path)
        }
        (Target::Origin(path), Some(authority)) => (authority, path),
        (_, None) => return Err(Malformed::new("no host field")),
    };
    let framing = special.request_framing()?;
    let has_body = !matches!(framing, Framing::None | Framing::Length(0));
    let upgrade = special.websocket(&method, version, has_body)?;
    Ok(Some(Request {
        head: Head {
            method,
            version,
            authority,
            path,
            headers,
        },
        framing,
        keep_alive: special.keep_alive(),
        expect_continue: special.expects_continue() && has_body,
        upgrade,
        consumed: start + size,
    }))
}

/// The response that `bytes` begin with, to a request by `method`; `None` when its head is not complete yet.
///
/// `asked_upgrade` says whether that request asked to switch to WebSocket: a 101 nobody asked for is malformed.
pub fn response(
    bytes: &Bytes,
    method: &Method,
    asked_upgrade: bool,
    limits: &Limits,
) -> Result<Option<Response>, Malformed> {
    parse_response(bytes, method, asked_upgrade, limits).map_err(Malformed::upstream)
}

fn parse_response(
    bytes: &Bytes,
    method: &Method,
    asked_upgrade: bool,
    limits: &Limits,
) -> Result<Option<Response>, Malformed> {
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Err(Malformed::new("empty line before the status line"));
    }
    let window = lines::window(bytes, limits);
    let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let slots = &mut slots[..limits.fields.min(MOST_FIELDS)];
    let mut raw = httparse::Response::new(&mut []);
    let size =
        match ParserConfig::default().parse_response_with_uninit_headers(&mut raw, window, slots) {
            Ok(Status::Complete(size)) => size,
            Ok(Status::Partial) => {
                return lines::incomplete_response(window, limits).map(|()| None);
            }
            Err(error) => return Err(lines::explain(window, lines::Start::Response, error)),
        };
    let (Some(code), Some(minor)) = (raw.code, raw.version) else {
        return Err(Malformed::new("malformed status line"));
    };
    let version = version(minor);
    let status = match code {
        100..=599 => StatusCode::from_u16(code)
            .map_err(|_| Malformed::new("status code outside 100 to 599"))?,
        _ => return Err(Malformed::new("status code outside 100 to 599")),
    };

    let mut special = Special::new(Role::Response, version);
    let mut headers = spare::take(raw.headers.len() + ROOM);
    let mut walk = lines::Walk::new(window, lines::status_line(window)?);
    let mut length = None;
    for field in raw.headers.iter() {
        let range = walk.next(field)?;
        match special.take(field.name.as_bytes(), &window[range.clone()])? {
            field::Then::Keep => append(&mut headers, field.name, bytes.slice(range))?,
            field::Then::Length => length = Some(range),
            field::Then::Drop | field::Then::Host => {}
        }
    }
    walk.end(size)?;
    special.unlist(raw.headers, &mut headers);

    let informational = status.is_informational();
    let framing = special.response_framing(status, method)?;
    let upgrade = status == StatusCode::SWITCHING_PROTOCOLS;
    if upgrade && !(asked_upgrade && special.agrees_to_websocket()) {
        return Err(Malformed::new("101 that nobody asked for"));
    }
    if framing == Framing::None && !informational && status != StatusCode::NO_CONTENT {
        // The length that the body would have had.
        if let Some(range) = length {
            append(&mut headers, "content-length", bytes.slice(range))?;
        }
    }
    Ok(Some(Response {
        status,
        headers,
        framing,
        keep_alive: special.keep_alive()
            && framing != Framing::UntilClose
            && !special.has_forbidden_body(status),
        keeps: special.kept(),
        upgrade,
        consumed: size,
    }))
}

fn append(headers: &mut HeaderMap, name: &str, value: Bytes) -> Result<(), Malformed> {
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Malformed::new("field name is not a token"))?;
    let value = HeaderValue::from_maybe_shared(value)
        .map_err(|_| Malformed::new("control byte in a field value"))?;
    headers
        .try_append(name, value)
        .map_err(|_| Malformed::because("too many fields", Reason::HeadTooLarge))?;
    Ok(())
}

fn version(minor: u8) -> Version {
    if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    }
}

/// Longer ones are not in use, and each would be allocated.
const LONGEST_METHOD: usize = 32;

fn method(name: &str) -> Result<Method, Malformed> {
    let method =
        Method::from_bytes(name.as_bytes()).map_err(|_| Malformed::new("method is not a token"))?;
    if method == Method::CONNECT {
        return Err(Malformed::because(
            "connect is not forwarded",
            Reason::MethodUnsupported,
        ));
    }
    if name.len() > LONGEST_METHOD {
        return Err(Malformed::because(
            "method too long",
            Reason::MethodUnsupported,
        ));
    }
    Ok(method)
}

fn raw_target_offset(method: Option<&str>) -> usize {
    method.map_or(0, |method| method.len() + 1)
}

/// Trailer fields from a complete, bounded trailer section (its empty last line included).
pub(super) fn trailers(section: &Bytes, limits: &Limits) -> Result<HeaderMap, Malformed> {
    let mut slots = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let slots = &mut slots[..limits.trailer_fields.min(MOST_FIELDS)];
    let (size, fields) = match httparse::parse_headers(section, slots) {
        Ok(Status::Complete(parsed)) => parsed,
        Ok(Status::Partial) => return Err(Malformed::new("malformed trailer section")),
        Err(error) => return Err(lines::explain(section, lines::Start::None, error)),
    };
    let mut walk = lines::Walk::new(section, 0);
    let mut trailers = HeaderMap::new();
    for field in fields {
        let value = walk.next(field)?;
        if may_trail(field.name.as_bytes()) {
            append(&mut trailers, field.name, section.slice(value))?;
        }
    }
    walk.end(size)?;
    if size != section.len() {
        return Err(Malformed::new("malformed trailer section"));
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests;
