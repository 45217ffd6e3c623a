//! The fields that are not passed on as they came: those that frame the message, name its host or concern one
//! connection only.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

use super::{Framing, Malformed, Upgrade};
use crate::reason::Reason;

/// What a field is to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Passed on as it is.
    Ordinary,
    /// `host`: becomes the authority.
    Host,
    /// `content-length`: becomes the framing.
    ContentLength,
    /// `transfer-encoding`: becomes the framing.
    TransferEncoding,
    /// `connection`: obeyed, and what it lists is dropped.
    Connection,
    /// `upgrade`: obeyed if it is WebSocket.
    Upgrade,
    /// `te`: only `trailers` outlives the hop.
    Te,
    /// `expect`: obeyed and passed on.
    Expect,
    /// `keep-alive`, `proxy-connection`, `http2-settings`: of this connection alone.
    Hop,
}

/// What the field of this name is, in any case of letters.
///
/// By length and first letter, for nearly all fields end there.
pub fn kind(name: &[u8]) -> Kind {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    let Some(first) = name.first() else {
        return Kind::Ordinary;
    };
    match (name.len(), first | 0x20) {
        (2, b't') if is("te") => Kind::Te,
        (4, b'h') if is("host") => Kind::Host,
        (6, b'e') if is("expect") => Kind::Expect,
        (7, b'u') if is("upgrade") => Kind::Upgrade,
        (10, b'c') if is("connection") => Kind::Connection,
        (10, b'k') if is("keep-alive") => Kind::Hop,
        (14, b'c') if is("content-length") => Kind::ContentLength,
        (14, b'h') if is("http2-settings") => Kind::Hop,
        (16, b'p') if is("proxy-connection") => Kind::Hop,
        (17, b't') if is("transfer-encoding") => Kind::TransferEncoding,
        _ => Kind::Ordinary,
    }
}

/// Whether a field of this name may come after the body (RFC 9110 §6.5.1).
///
/// Trailers are easily merged into the head by those who receive them, so whatever frames, routes, authorises,
/// controls or identifies is dropped from them; dropping is what §6.5.1 lets a recipient do.
pub fn may_trail(name: &[u8]) -> bool {
    const NEVER: &[&str] = &[
        "accept-ranges",
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-location",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expires",
        "forwarded",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "retry-after",
        "set-cookie",
        "trailer",
        "vary",
        "warning",
        "www-authenticate",
        "x-real-ip",
    ];
    const FORWARDED: &[u8] = b"x-forwarded-";
    kind(name) == Kind::Ordinary
        && !NEVER
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
        && !name
            .get(..FORWARDED.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(FORWARDED))
}

/// Who sent the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Request,
    Response,
}

/// What becomes of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It belongs into the map.
    Keep,
    /// It was understood and ends here.
    Drop,
    /// It names the host.
    Host,
    /// It was understood as the length of the body.
    Length,
}

/// What the special fields of one message say, gathered in the pass over all fields.
#[derive(Debug)]
pub(super) struct Special {
    role: Role,
    version: Version,
    length: Option<u64>,
    chunked: bool,
    host: bool,
    close: bool,
    persist: bool,
    /// `connection: upgrade`
    switch: bool,
    /// `upgrade: websocket`
    websocket: bool,
    trailers: bool,
    expect: bool,
    /// How many other names `connection` lists.
    listed: usize,
    /// `keep-alive: timeout=SECONDS`
    kept: Option<Duration>,
}

const KEEP_ALIVE: &str = "keep-alive";
/// More would be an attempt to make us search; nobody lists so many.
const MOST_LISTED: usize = 32;

impl Special {
    pub(super) fn new(role: Role, version: Version) -> Self {
        Self {
            role,
            version,
            length: None,
            chunked: false,
            host: false,
            close: false,
            persist: false,
            switch: false,
            websocket: false,
            trailers: false,
            expect: false,
            listed: 0,
            kept: None,
        }
    }

    /// Reads one field.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) -> Result<Then, Malformed> {
        match (kind(name), self.role) {
            (Kind::Ordinary, _) | (Kind::Host | Kind::Expect, Role::Response) => {
                return Ok(Then::Keep);
            }
            (Kind::Host, Role::Request) => {
                if std::mem::replace(&mut self.host, true) {
                    return Err(Malformed::new("more than one host field"));
                }
                return Ok(Then::Host);
            }
            (Kind::Expect, Role::Request) => return self.expect(value),
            (Kind::ContentLength, _) => {
                self.content_length(value)?;
                return Ok(Then::Length);
            }
            (Kind::TransferEncoding, _) => self.transfer_encoding(value)?,
            (Kind::Connection, _) => self.connection(value)?,
            (Kind::Upgrade, _) => {
                self.websocket |= members(value).any(|name| is(name, "websocket"));
            }
            (Kind::Te, _) => self.trailers |= members(value).any(|name| is(name, "trailers")),
            (Kind::Hop, Role::Response) if name.len() == KEEP_ALIVE.len() => {
                self.kept = members(value).find_map(kept).or(self.kept);
            }
            (Kind::Hop, _) => {}
        }
        Ok(Then::Drop)
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.length.is_some() {
            return Err(Malformed::new("more than one content-length field"));
        }
        self.length = Some(length(value)?);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.version == Version::HTTP_10 {
            return Err(Malformed::new("transfer-encoding in HTTP/1.0"));
        }
        if self.chunked {
            return Err(Malformed::new("more than one transfer-encoding field"));
        }
        if !is(value, "chunked") {
            return Err(Malformed::new("transfer-encoding other than chunked"));
        }
        self.chunked = true;
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), Malformed> {
        for name in members(value) {
            if is(name, "close") {
                self.close = true;
            } else if is(name, "keep-alive") {
                self.persist = true;
            } else if is(name, "upgrade") {
                self.switch = true;
            } else if kind(name) == Kind::Ordinary {
                self.listed += 1;
            }
        }
        if self.listed > MOST_LISTED {
            return Err(Malformed::because(
                "too many connection options",
                Reason::HeadTooLarge,
            ));
        }
        Ok(())
    }

    fn expect(&mut self, value: &[u8]) -> Result<Then, Malformed> {
        if self.version == Version::HTTP_10 {
            // RFC 9110 §10.1.1: ignored in HTTP/1.0, which has no interim responses.
            return Ok(Then::Drop);
        }
        if !is(value, "100-continue") {
            return Err(Malformed::because(
                "unknown expectation",
                Reason::ExpectationUnknown,
            ));
        }
        if std::mem::replace(&mut self.expect, true) {
            return Err(Malformed::new("more than one expect field"));
        }
        Ok(Then::Keep)
    }

    /// Drops the fields that `connection` lists, which takes a second look at it: few messages list any.
    pub(super) fn unlist(&self, fields: &[httparse::Header<'_>], headers: &mut HeaderMap) {
        if self.listed > 0 {
            let lists = fields
                .iter()
                .filter(|field| kind(field.name.as_bytes()) == Kind::Connection);
            for name in lists.flat_map(|field| members(field.value)) {
                if let Ok(name) = std::str::from_utf8(name) {
                    headers.remove(name);
                }
            }
        }
        if self.trailers && self.role == Role::Request {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }

    pub(super) fn request_framing(&self) -> Result<Framing, Malformed> {
        Ok(self.declared()?.unwrap_or(Framing::None))
    }

    /// RFC 9112 §6.3, in its order.
    pub(super) fn response_framing(
        &self,
        status: StatusCode,
        method: &Method,
    ) -> Result<Framing, Malformed> {
        let declared = self.declared()?;
        if bodiless(status) || *method == Method::HEAD {
            return Ok(Framing::None);
        }
        Ok(declared.unwrap_or(Framing::UntilClose))
    }

    fn declared(&self) -> Result<Option<Framing>, Malformed> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Malformed::new("content-length with transfer-encoding")),
            (true, None) => Ok(Some(Framing::Chunked)),
            (false, length) => Ok(length.map(Framing::Length)),
        }
    }

    /// Whether a response that can have no body announces one: by the rules it ends with its head, but a sender that
    /// breaks them may go on, and what it sends then must not be taken for the next response.
    pub(super) fn has_forbidden_body(&self, status: StatusCode) -> bool {
        let allowed = status == StatusCode::NOT_MODIFIED || !bodiless(status);
        !allowed && (self.chunked || self.length.is_some_and(|length| length > 0))
    }

    pub(super) fn keep_alive(&self) -> bool {
        !self.close && (self.version == Version::HTTP_11 || self.persist)
    }

    /// How long the sender keeps the connection between two exchanges, if it says so.
    pub(super) fn kept(&self) -> Option<Duration> {
        self.kept
    }

    pub(super) fn expects_continue(&self) -> bool {
        self.expect
    }

    /// The upgrade that a request asks for.
    pub(super) fn websocket(
        &self,
        method: &Method,
        version: Version,
        has_body: bool,
    ) -> Result<Option<Upgrade>, Malformed> {
        if !(self.switch && self.websocket) {
            return Ok(None);
        }
        let refuse = |rule| Err(Malformed::because(rule, Reason::UpgradeRefused));
        if version != Version::HTTP_11 {
            return refuse("upgrade in HTTP/1.0");
        }
        if *method != Method::GET {
            return refuse("upgrade by another method than GET");
        }
        if has_body {
            return refuse("upgrade with a body");
        }
        Ok(Some(Upgrade::Websocket))
    }

    /// Whether a 101 switches to what we asked for.
    pub(super) fn agrees_to_websocket(&self) -> bool {
        self.switch && self.websocket && self.version == Version::HTTP_11
    }
}

fn bodiless(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// A `content-length`, of either version of HTTP: `1*DIGIT` below 2^63, because the rest of the world counts in signed
/// numbers.
pub(crate) fn length(value: &[u8]) -> Result<u64, Malformed> {
    const MALFORMED: Malformed = Malformed::new("content-length is not a number");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(MALFORMED);
    }
    value
        .iter()
        .try_fold(0_u64, |sum, digit| {
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .filter(|length| *length <= i64::MAX.unsigned_abs())
        .ok_or(Malformed::new("content-length is too large"))
}

/// The seconds of `timeout=SECONDS`. No more than a hint: what is no number is no hint.
fn kept(member: &[u8]) -> Option<Duration> {
    let (name, value) = std::str::from_utf8(member).ok()?.split_once('=')?;
    let seconds: u32 = value.trim().parse().ok()?;
    name.trim()
        .eq_ignore_ascii_case("timeout")
        .then(|| Duration::from_secs(seconds.into()))
}

/// The members of a comma-separated list, empty ones left out.
fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

fn is(value: &[u8], other: &str) -> bool {
    value.eq_ignore_ascii_case(other.as_bytes())
}
