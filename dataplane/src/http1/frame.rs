//! Bodies of HTTP/1 messages: where they end (RFC 9112 §6 and §7).
//!
//! Data are slices of what came in. Chunk lines are read byte by byte into a small state, so nothing has to be kept
//! between reads, whatever their boundaries; only a trailer section is gathered, and it is bounded. A body that stops
//! before its end is an error, never a shorter body.

use bytes::{Buf, Bytes};
use http::HeaderMap;

use super::parse::{self, Framing, Limits, Malformed, is_token};
use crate::reason::Reason;

/// The next part of a body.
#[derive(Debug)]
pub enum Piece {
    /// Some bytes of it, never none.
    Data(Bytes),
    /// The fields after it, those left out that may not be there.
    Trailers(HeaderMap),
    /// It is complete; what is left of the input belongs to the next message. Said again when asked again.
    End,
    /// The input is used up and the body is not complete.
    NeedMore,
}

/// Reads one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    limits: Limits,
    /// Extension bytes of all chunks so far.
    extensions: usize,
}

#[derive(Debug)]
enum State {
    /// So many bytes to come, then the end.
    Length(u64),
    UntilClose,
    /// In the line before a chunk's data.
    Line(Line),
    /// So many bytes of the chunk to come.
    Chunk(u64),
    /// In the line end after a chunk's data.
    ChunkEnd {
        carriage_return: bool,
    },
    /// After the last chunk: an empty line, or fields and an empty line.
    Trailers(Vec<u8>),
    End,
    /// It was malformed; there is no way on.
    Failed(Malformed),
}

impl Decoder {
    /// For a body framed like this.
    pub fn new(framing: Framing, limits: &Limits) -> Self {
        Self {
            state: match framing {
                Framing::None | Framing::Length(0) => State::End,
                Framing::Length(length) => State::Length(length),
                Framing::Chunked => State::Line(Line::default()),
                Framing::UntilClose => State::UntilClose,
            },
            limits: *limits,
            extensions: 0,
        }
    }

    /// The next piece of the body from `input`, which is advanced past it.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Piece, Malformed> {
        let piece = self.step(input);
        if let Err(malformed) = piece {
            self.state = State::Failed(malformed);
        }
        piece
    }

    /// The connection was closed by the peer: fine only where that is the end of the body.
    pub fn on_eof(&mut self) -> Result<(), Malformed> {
        match &self.state {
            State::UntilClose | State::End => {
                self.state = State::End;
                Ok(())
            }
            State::Failed(malformed) => Err(*malformed),
            _ => Err(Malformed::new("body cut short")),
        }
    }

    /// Whether the body is complete.
    pub fn is_end(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// How many bytes are still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::End => Some(0),
            _ => None,
        }
    }

    fn step(&mut self, input: &mut Bytes) -> Result<Piece, Malformed> {
        loop {
            match &mut self.state {
                State::End => return Ok(Piece::End),
                State::Failed(malformed) => return Err(*malformed),
                _ if input.is_empty() => return Ok(Piece::NeedMore),
                State::UntilClose => return Ok(Piece::Data(input.split_off(0))),
                State::Length(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        self.state = State::End;
                    }
                    return Ok(Piece::Data(data));
                }
                State::Chunk(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        self.state = State::ChunkEnd {
                            carriage_return: false,
                        };
                    }
                    return Ok(Piece::Data(data));
                }
                State::ChunkEnd { carriage_return } => match (input.get_u8(), *carriage_return) {
                    (b'\r', false) => *carriage_return = true,
                    (b'\n', true) => self.state = State::Line(Line::default()),
                    _ => return Err(Malformed::new("chunk longer than its size")),
                },
                State::Line(line) => {
                    if let Some(size) = line.read(input, &mut self.extensions, &self.limits)? {
                        self.state = match size {
                            0 => State::Trailers(Vec::new()),
                            size => State::Chunk(size),
                        };
                    }
                }
                State::Trailers(section) => {
                    if gather(section, input, &self.limits)? {
                        let section = Bytes::from(std::mem::take(section));
                        self.state = State::End;
                        let trailers = parse::trailers(&section, &self.limits)?;
                        if !trailers.is_empty() {
                            return Ok(Piece::Trailers(trailers));
                        }
                    }
                }
            }
        }
    }
}

/// As much of `input` as there is and as is `left`.
fn take(input: &mut Bytes, left: &mut u64) -> Bytes {
    let size = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(input.len());
    *left -= size as u64;
    input.split_to(size)
}

/// Moves bytes of the trailer section over; says whether it is complete.
fn gather(section: &mut Vec<u8>, input: &mut Bytes, limits: &Limits) -> Result<bool, Malformed> {
    while !input.is_empty() {
        let byte = input.get_u8();
        section.push(byte);
        if section.len() > limits.trailer_bytes {
            return Err(Malformed {
                rule: "trailers too large",
                reason: Reason::HeadTooLarge,
            });
        }
        if byte == b'\n' {
            if !section.ends_with(b"\r\n") {
                return Err(Malformed::new("line feed without carriage return"));
            }
            if section.len() == 2 || section.ends_with(b"\r\n\r\n") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// `chunk-size [ chunk-ext ] CRLF`
#[derive(Debug, Default)]
struct Line {
    size: u64,
    digits: u8,
    extension: usize,
    at: At,
}

/// Where in the line the next byte is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    /// After the size or a value, in spaces, of which the grammar allows some before `;`.
    BeforeSemicolon,
    /// After `;`, perhaps in spaces.
    BeforeName,
    Name,
    /// After a name, in spaces: `=` or `;` follows.
    AfterName,
    /// After `=`, perhaps in spaces.
    BeforeValue,
    Value,
    Quoted,
    /// After a backslash in a quoted value.
    Escaped,
    AfterQuoted,
    /// After the carriage return.
    End,
}

/// A size of more digits has leading zeros to confuse somebody, or is too large.
const MOST_DIGITS: u8 = 16;

impl Line {
    /// Reads on; the size when the line is complete.
    fn read(
        &mut self,
        input: &mut Bytes,
        extensions: &mut usize,
        limits: &Limits,
    ) -> Result<Option<u64>, Malformed> {
        while !input.is_empty() {
            let byte = input.get_u8();
            if self.at == At::End {
                return match byte {
                    b'\n' => Ok(Some(self.size)),
                    _ => Err(Malformed::new("carriage return without line feed")),
                };
            }
            if self.at == At::Size && byte.is_ascii_hexdigit() {
                self.digit(byte)?;
                continue;
            }
            if self.digits == 0 {
                return Err(Malformed::new("chunk size is not a number"));
            }
            self.at = self.at.after(byte)?;
            if self.at != At::End {
                self.extension += 1;
                *extensions += 1;
                if self.extension > limits.chunk_extension_bytes
                    || *extensions > limits.message_extension_bytes
                {
                    return Err(Malformed::new("chunk extensions too large"));
                }
            }
        }
        Ok(None)
    }

    fn digit(&mut self, byte: u8) -> Result<(), Malformed> {
        const TOO_LARGE: Malformed = Malformed::new("chunk size is too large");
        let value = char::from(byte).to_digit(16).map_or(0, u64::from);
        self.digits += 1;
        if self.digits > MOST_DIGITS {
            return Err(TOO_LARGE);
        }
        self.size = self
            .size
            .checked_mul(16)
            .and_then(|size| size.checked_add(value))
            .filter(|size| *size <= i64::MAX.unsigned_abs())
            .ok_or(TOO_LARGE)?;
        Ok(())
    }
}

impl At {
    /// `*( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] ) CRLF`
    fn after(self, byte: u8) -> Result<Self, Malformed> {
        let space = matches!(byte, b' ' | b'\t');
        Ok(match (self, byte) {
            (At::Size | At::Name | At::Value | At::AfterQuoted, b'\r') => At::End,
            (At::Size | At::BeforeSemicolon, b';') => At::BeforeName,
            (At::Name | At::AfterName | At::Value | At::AfterQuoted, b';') => At::BeforeName,
            (At::Size | At::BeforeSemicolon | At::Value | At::AfterQuoted, _) if space => {
                At::BeforeSemicolon
            }
            (At::BeforeName, _) if space => At::BeforeName,
            (At::BeforeName | At::Name, _) if is_token(byte) => At::Name,
            (At::Name | At::AfterName, _) if space => At::AfterName,
            (At::Name | At::AfterName, b'=') => At::BeforeValue,
            (At::BeforeValue, _) if space => At::BeforeValue,
            (At::BeforeValue, b'"') => At::Quoted,
            (At::BeforeValue | At::Value, _) if is_token(byte) => At::Value,
            (At::Quoted, b'"') => At::AfterQuoted,
            (At::Quoted, b'\\') => At::Escaped,
            (At::Quoted | At::Escaped, b'\t' | b' '..=b'~' | 0x80..) => At::Quoted,
            (At::Size, _) => return Err(Malformed::new("chunk size is not a number")),
            _ => return Err(Malformed::new("malformed chunk extension")),
        })
    }
}

#[cfg(test)]
mod tests;
