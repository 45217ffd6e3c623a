//! The bytes between the words: line ends, spaces and colons, of which `httparse` takes more than the grammar allows.
//!
//! Where a head parses, [`Walk`] goes over it once more by the lengths of what was found, so that each byte is either
//! in a name or a value or exactly the delimiter that has to be there. Where it does not, [`fault`] looks for the rule
//! that is broken; that is slow, and nobody minds.

use std::ops::Range;

use super::{Limits, Malformed};
use crate::reason::Reason;

/// ` HTTP/1.1\r\n`
pub(super) const VERSION_END: usize = 11;

/// What a section of fields begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Request,
    Response,
    /// A trailer section has no start line.
    None,
}

const BARE_LF: Malformed = Malformed::new("line feed without carriage return");
const BARE_CR: Malformed = Malformed::new("carriage return without line feed");
const REQUEST_LINE: Malformed = Malformed::new("malformed request line");

/// Where the request line begins: RFC 9112 §2.2 has one empty line before it ignored. `None` when that is not known.
pub(super) fn skip_empty_line(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    match bytes {
        [] | [b'\r'] | [b'\r', b'\n'] => Ok(None),
        [b'\r', b'\n', b'\r' | b'\n', ..] => Err(Malformed::new(
            "more than one empty line before the request",
        )),
        [b'\r', b'\n', ..] => Ok(Some(2)),
        [b'\r', ..] => Err(BARE_CR),
        [b'\n', ..] => Err(BARE_LF),
        _ => Ok(Some(0)),
    }
}

/// The bytes in which the head must end, so that the limit holds however they were cut into reads.
pub(super) fn window<'a>(bytes: &'a [u8], limits: &Limits) -> &'a [u8] {
    &bytes[..bytes.len().min(limits.head_bytes)]
}

/// Checks the delimiters of a request line that `httparse` took.
pub(super) fn request_line(window: &[u8], method: &str, target: &str) -> Result<(), Malformed> {
    let after = method.len() + 1 + target.len();
    let version = window.get(after..after + VERSION_END).ok_or(REQUEST_LINE)?;
    if !window.starts_with(method.as_bytes())
        || window[method.len()] != b' '
        || !version.starts_with(b" HTTP/1.")
    {
        return Err(REQUEST_LINE);
    }
    if !version.ends_with(b"\r\n") {
        return Err(BARE_LF);
    }
    Ok(())
}

/// The length of a status line that `httparse` took.
pub(super) fn status_line(window: &[u8]) -> Result<usize, Malformed> {
    let end = window
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(Malformed::new("malformed status line"))?;
    if end == 0 || window[end - 1] != b'\r' {
        return Err(BARE_LF);
    }
    Ok(end + 1)
}

/// Goes over the fields of a head that `httparse` took, and checks what is between them.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    window: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Begins at the first field.
    pub(super) fn new(window: &'a [u8], at: usize) -> Self {
        Self { window, at }
    }

    /// Where the value of this field is.
    pub(super) fn next(&mut self, field: &httparse::Header<'_>) -> Result<Range<usize>, Malformed> {
        let rest = self.window.get(self.at..).unwrap_or_default();
        if !std::ptr::eq(rest.as_ptr(), field.name.as_ptr()) {
            // Something was skipped where nothing may be.
            return Err(Malformed::new("malformed field"));
        }
        let colon = self.at + field.name.len();
        if self.window.get(colon) != Some(&b':') {
            return Err(Malformed::new("space before the colon"));
        }
        let start = self.skip_space(colon + 1);
        let end = start + field.value.len();
        self.at = self.skip_space(end);
        self.line_end()?;
        Ok(start..end)
    }

    /// Ends the section, which is so long.
    pub(super) fn end(&mut self, size: usize) -> Result<(), Malformed> {
        self.line_end()?;
        if self.at == size {
            Ok(())
        } else {
            Err(Malformed::new("malformed field"))
        }
    }

    fn skip_space(&self, from: usize) -> usize {
        let rest = self.window.get(from..).unwrap_or_default();
        from + rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count()
    }

    fn line_end(&mut self) -> Result<(), Malformed> {
        let rest = self.window.get(self.at..).unwrap_or_default();
        if let [b'\r', b'\n', ..] = rest {
            self.at += 2;
            Ok(())
        } else {
            Err(BARE_LF)
        }
    }
}

/// Whether part of a request can still become one.
pub(super) fn incomplete_request(
    window: &[u8],
    method: Option<&str>,
    target: Option<&str>,
    limits: &Limits,
) -> Result<(), Malformed> {
    let target = match (method, target) {
        (_, Some(target)) => target.len(),
        (Some(method), None) => window.len().saturating_sub(method.len() + 1),
        (None, None) => 0,
    };
    if target > limits.target_bytes {
        return Err(Malformed::because(
            "request target too long",
            Reason::TargetTooLong,
        ));
    }
    incomplete(window, Start::Request, limits)
}

/// Whether part of a response can still become one.
pub(super) fn incomplete_response(window: &[u8], limits: &Limits) -> Result<(), Malformed> {
    incomplete(window, Start::Response, limits)
}

fn incomplete(window: &[u8], start: Start, limits: &Limits) -> Result<(), Malformed> {
    if window.len() >= limits.head_bytes {
        return Err(Malformed::because("head too large", Reason::HeadTooLarge));
    }
    fault(window, start).map_or(Ok(()), Err)
}

/// The rule that is broken by bytes that `httparse` refused.
pub(super) fn explain(window: &[u8], start: Start, error: httparse::Error) -> Malformed {
    if let Some(fault) = fault(window, start) {
        return fault;
    }
    match error {
        httparse::Error::TooManyHeaders => {
            Malformed::because("too many fields", Reason::HeadTooLarge)
        }
        httparse::Error::HeaderName => Malformed::new("field name is not a token"),
        httparse::Error::HeaderValue => Malformed::new("control byte in a field value"),
        httparse::Error::NewLine => BARE_CR,
        httparse::Error::Status => Malformed::new("malformed status line"),
        httparse::Error::Token => Malformed::new("malformed start line"),
        httparse::Error::Version => Malformed::new("malformed version"),
    }
}

/// The first rule that the lines break, as far as lines show it.
fn fault(window: &[u8], start: Start) -> Option<Malformed> {
    let mut rest = window;
    let mut number = 0;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end + 1);
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Some(BARE_LF);
        };
        if let Some(fault) = control(line) {
            return Some(fault);
        }
        let fault = match (number, start) {
            (0, Start::Request) => request_line_fault(line),
            (0, Start::Response) => status_line_fault(line),
            _ if line.is_empty() => return None,
            (0, Start::None) | (1, Start::Request | Start::Response) => field_fault(line, true),
            _ => field_fault(line, false),
        };
        if fault.is_some() {
            return fault;
        }
        number += 1;
        rest = after;
    }
    // The last byte may be the first half of a line end.
    control(rest.strip_suffix(b"\r").unwrap_or(rest))
}

fn control(line: &[u8]) -> Option<Malformed> {
    line.iter().find_map(|byte| match byte {
        b'\r' => Some(BARE_CR),
        0 => Some(Malformed::new("null byte")),
        b'\t' => None,
        0..b' ' | 0x7f => Some(Malformed::new("control byte")),
        _ => None,
    })
}

fn request_line_fault(line: &[u8]) -> Option<Malformed> {
    if line.contains(&b'\t') {
        return Some(Malformed::new("tab in the request line"));
    }
    if !line.is_ascii() {
        return Some(Malformed::new("byte beyond ASCII in the request line"));
    }
    if line.first() == Some(&b' ') {
        return Some(Malformed::new("space before the method"));
    }
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if words.next().is_some() || [method, target, version].contains(&Some(b"")) {
        return Some(Malformed::new("more than one space in the request line"));
    }
    if !method.is_some_and(|method| method.iter().all(|byte| is_token(*byte))) {
        return Some(Malformed::new("method is not a token"));
    }
    match version {
        None => Some(Malformed::new("request line without a version")),
        Some(version) => version_fault(version),
    }
}

fn status_line_fault(line: &[u8]) -> Option<Malformed> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let fault = words.next().and_then(version_fault);
    let is_status = |word: &[u8]| word.len() == 3 && word.iter().all(u8::is_ascii_digit);
    fault.or_else(|| {
        (!words.next().is_some_and(is_status)).then(|| Malformed::new("malformed status line"))
    })
}

fn version_fault(version: &[u8]) -> Option<Malformed> {
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => None,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Some(Malformed::because(
                "version other than 1.0 and 1.1",
                Reason::VersionUnsupported,
            ))
        }
        _ => Some(Malformed::new("malformed version")),
    }
}

fn field_fault(line: &[u8], first: bool) -> Option<Malformed> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Some(Malformed::new(if first {
            "space before the first field"
        } else {
            "folded field line"
        }));
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Some(Malformed::new("field without a colon"));
    };
    match &line[..colon] {
        [] => Some(Malformed::new("empty field name")),
        [.., b' ' | b'\t'] => Some(Malformed::new("space before the colon")),
        name if !name.iter().all(|byte| is_token(*byte)) => {
            Some(Malformed::new("field name is not a token"))
        }
        _ => None,
    }
}

/// `tchar` of RFC 9110 §5.6.2.
pub(in crate::http1) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}
