//! HTTP/2 by the letter: what RFC 9113 and RFC 7541 say of each frame, at every door, with the error code that they name.
//!
//! A stream's error may be answered by ending the connection, for the same reason (RFC 9113 §5.4.2 lets anybody be stricter).
//! A connection's error may not be answered by a reset: the connection has to end.
//!
//! The h2 crate says PROTOCOL_ERROR for all that it cannot decode and for most of what comes behind the end of a stream, where
//! the standards have codes of their own; there both are taken.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::frames::*;
use super::{Scene, good};
use crate::alone::{Stream, Then, Way, fine};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

/// How long nothing may happen until that counts as what happens.
const SILENCE: Duration = Duration::from_secs(20);
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// What the other side has to do.
#[derive(Debug)]
enum Want {
    /// Answer this stream with 200.
    Answer(u32),
    /// Say a frame of this kind, flags and payload.
    Frame(u8, u8, Vec<u8>),
    /// End the connection, with one of these codes if it says anything.
    Goodbye(&'static [u32]),
    /// Reset this stream or end the connection, with one of these codes.
    Reset(u32, &'static [u32]),
}

struct Case {
    what: &'static str,
    /// Answered in full before the rest is sent.
    first: Vec<u8>,
    bytes: Vec<u8>,
    want: Want,
}

fn case(what: &'static str, frames: &[Vec<u8>], want: Want) -> Case {
    Case {
        what,
        first: Vec::new(),
        bytes: frames.concat(),
        want,
    }
}

/// With a whole exchange on stream 1 before it.
fn after(what: &'static str, frames: &[Vec<u8>], want: Want) -> Case {
    Case {
        first: whole(1),
        ..case(what, frames, want)
    }
}

/// A whole request.
fn whole(id: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE_HEAD, id, &block(&request()))
}

/// A request whose body is still to come.
fn begun(id: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, id, &block(&request()))
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// A request with this before or behind its block of fields.
fn odd_block(before: &[u8], behind: &[u8]) -> Vec<u8> {
    let block = [before, &block(&request()), behind].concat();
    frame(HEADERS, WHOLE_HEAD, 1, &block)
}

/// What must be understood.
#[rustfmt::skip] // a row a line
fn good_ones() -> Vec<Case> {
    let pieces = block(&request());
    let ok = || Want::Answer(1);
    vec![
        case("a head and nothing more", &[whole(1)], ok()),
        case("a body", &[begun(1), frame(DATA, END_STREAM, 1, b"x")], ok()),
        case("a body in pieces", &[begun(1), frame(DATA, 0, 1, b"x"), frame(DATA, 0, 1, b""), frame(DATA, END_STREAM, 1, b"y")], ok()),
        case("a body with padding", &[begun(1), frame(DATA, END_STREAM | PADDED, 1, b"\x02x\0\0")], ok()),
        case("the largest frame there may be", &[begun(1), frame(DATA, END_STREAM, 1, &[b'x'; 16_384])], ok()),
        case("a head with padding", &[frame(HEADERS, WHOLE_HEAD | PADDED, 1, &[&[2][..], &pieces, &[0, 0]].concat())], ok()),
        case("a head with a priority", &[frame(HEADERS, WHOLE_HEAD | WITH_PRIORITY, 1, &[&[0, 0, 0, 0, 16][..], &pieces].concat())], ok()),
        case("a head with padding and a priority", &[frame(HEADERS, WHOLE_HEAD | PADDED | WITH_PRIORITY, 1, &[&[2, 0, 0, 0, 0, 16][..], &pieces, &[0, 0]].concat())], ok()),
        case("a head in two pieces", &[frame(HEADERS, END_STREAM, 1, &pieces[..9]), frame(CONTINUATION, END_HEADERS, 1, &pieces[9..])], ok()),
        case("a head in three pieces, one of them empty", &[frame(HEADERS, END_STREAM, 1, &pieces[..9]), frame(CONTINUATION, 0, 1, &[]), frame(CONTINUATION, END_HEADERS, 1, &pieces[9..])], ok()),
        case("a head cut within a text", &[frame(HEADERS, END_STREAM, 1, &pieces[..4]), frame(CONTINUATION, END_HEADERS, 1, &pieces[4..])], ok()),
        case("trailers", &[begun(1), frame(DATA, 0, 1, b"x"), frame(HEADERS, WHOLE_HEAD, 1, &block(&[(b"x", b"y")]))], ok()),
        case("a priority before anything else of the stream", &[frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), whole(1)], ok()),
        case("a priority of a stream that is never opened", &[frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 16]), whole(1)], ok()),
        case("a priority of a stream that is half closed", &[whole(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])], ok()),
        after("a priority of a stream that is closed", &[frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), whole(3)], Want::Answer(3)),
        case("a window of a stream that is half closed", &[whole(1), window(1, 100)], ok()),
        after("a window of a stream that is closed", &[window(1, 100), whole(3)], Want::Answer(3)),
        after("a reset of a stream that is closed", &[frame(RST_STREAM, 0, 1, &[0; 4]), whole(3)], Want::Answer(3)),
        case("a window of the connection", &[window(0, 100), whole(1)], ok()),
        case("the largest window", &[window(0, 0x7fff_ffff - 65_535), whole(1)], ok()),
        case("streams that are left out", &[whole(7)], Want::Answer(7)),
        case("a frame that nobody knows", &[frame(0xbe, 0xff, 0, &[1; 16]), whole(1)], ok()),
        case("a frame that nobody knows, of a stream", &[frame(0xbe, 0xff, 1, &[1; 16]), whole(1)], ok()),
        case("flags that nobody knows", &[frame(HEADERS, WHOLE_HEAD | 0xc2, 1, &pieces)], ok()),
        case("flags that a ping does not have", &[frame(PING, 0xfe, 0, b"weft ...")], Want::Frame(PING, 1, b"weft ...".to_vec())),
        case("the reserved bit of a stream", &[frame(HEADERS, WHOLE_HEAD, 0x8000_0001, &pieces)], ok()),
        case("the reserved bit of a window", &[window(0, 0x8000_0001), whole(1)], ok()),
        case("a setting that nobody knows", &[setting(0xbeef, 7), whole(1)], ok()),
        case("settings are acknowledged", &[setting(4, 70_000)], Want::Frame(SETTINGS, 1, vec![])),
        case("two windows in one frame", &[frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0, 0, 4, 0, 0, 0xff, 0xff]), whole(1)], ok()),
        case("the largest window for streams", &[setting(4, 0x7fff_ffff), whole(1)], ok()),
        case("the largest frames", &[setting(5, 0xff_ffff), whole(1)], ok()),
        case("no push", &[setting(2, 0), whole(1)], ok()),
        case("a ping is answered", &[frame(PING, 0, 0, b"weft ...")], Want::Frame(PING, 1, b"weft ...".to_vec())),
        case("an answer to a ping that nobody sent", &[frame(PING, 1, 0, b"........"), whole(1)], ok()),
        case("a goodbye from a client that still waits", &[whole(1), frame(GOAWAY, 0, 0, &[0; 8])], ok()),
        // RFC 7541.
        case("a field of the static table", &[odd_block(&[], &[0x90])], ok()),
        case("a field that is kept, and used again", &[odd_block(&[], &[0x40, 1, b'x', 1, b'y', 0xbe])], ok()),
        case("a field that is never to be kept", &[odd_block(&[], &[0x10, 1, b'x', 1, b'y'])], ok()),
        case("a Huffman-coded value", &[odd_block(&[], &[0, 1, b'x', 0x82, 0x18, 0xff])], ok()),
        case("a Huffman-coded value with padding", &[odd_block(&[], &[0, 1, b'x', 0x81, 0x1f])], ok()),
        case("an empty Huffman-coded value", &[odd_block(&[], &[0, 1, b'x', 0x80])], ok()),
        case("a smaller table", &[odd_block(&[0x20], &[])], ok()),
        case("a table made smaller and larger again", &[odd_block(&[0x20, 0x3f, 0xe1, 0x1f], &[])], ok()),
        case("an entry larger than the table, which empties it", &[odd_block(&[0x22], &[0x40, 1, b'x', 1, b'y'])], ok()),
    ]
}

/// What must be answered by an error.
#[rustfmt::skip] // a row a line
fn bad_ones() -> Vec<Case> {
    let bye = Want::Goodbye;
    let protocol = || bye(&[PROTOCOL_ERROR]);
    let size = || bye(&[FRAME_SIZE_ERROR]);
    let compression = || bye(&[COMPRESSION_ERROR, PROTOCOL_ERROR]);
    let closed = || Want::Reset(1, &[STREAM_CLOSED, PROTOCOL_ERROR]);
    let bad_head = || Want::Reset(1, &[PROTOCOL_ERROR]);
    let head = || frame(HEADERS, 0, 1, &block(&request()));
    let trailers = |end| frame(HEADERS, end | END_HEADERS, 1, &block(&[(b"x", b"y")]));
    let long = |length: &'static [u8]| frame(HEADERS, END_HEADERS, 1, &block(&with(&[(b"content-length", length)])));
    vec![
        // §4.2, §4.3
        case("data larger than agreed", &[begun(1), frame(DATA, 0, 1, &[b'x'; 16_385])], Want::Reset(1, &[FRAME_SIZE_ERROR])),
        case("a head larger than agreed", &[frame(HEADERS, WHOLE_HEAD, 1, &[0; 16_385])], size()),
        case("settings larger than agreed", &[frame(SETTINGS, 0, 0, &[0; 16_386])], size()),
        case("a frame that nobody knows, larger than agreed", &[frame(0xbe, 0, 0, &[0; 16_385])], size()),
        case("a block that is none", &[frame(HEADERS, WHOLE_HEAD, 1, &[0xff; 4])], compression()),
        case("a priority in the middle of a head", &[head(), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])], protocol()),
        case("settings in the middle of a head", &[head(), frame(SETTINGS, 0, 0, &[])], protocol()),
        case("a ping in the middle of a head", &[head(), frame(PING, 0, 0, &[0; 8])], protocol()),
        case("a reset in the middle of a head", &[head(), frame(RST_STREAM, 0, 1, &[0; 4])], protocol()),
        case("a window in the middle of a head", &[head(), window(0, 1)], protocol()),
        case("data in the middle of a head", &[head(), frame(DATA, 0, 1, b"x")], protocol()),
        case("another head in the middle of a head", &[head(), whole(3)], protocol()),
        case("the same stream's head in the middle of a head", &[head(), whole(1)], protocol()),
        case("another stream's continuation", &[head(), frame(CONTINUATION, END_HEADERS, 3, &[])], protocol()),
        case("what nobody knows in the middle of a head", &[head(), frame(0xbe, 0, 1, &[])], protocol()),
        // §5.1: idle
        case("data of an idle stream", &[frame(DATA, END_STREAM, 1, b"x")], protocol()),
        case("a reset of an idle stream", &[frame(RST_STREAM, 0, 1, &[0; 4])], protocol()),
        case("a window of an idle stream", &[window(1, 100)], protocol()),
        case("a continuation of an idle stream", &[frame(CONTINUATION, END_HEADERS, 1, &[])], protocol()),
        // half closed, by its sender
        case("data behind the end", &[whole(1), frame(DATA, END_STREAM, 1, b"x")], closed()),
        case("a head behind the end", &[whole(1), whole(1)], closed()),
        case("trailers behind the end", &[whole(1), trailers(END_STREAM)], closed()),
        case("a continuation behind the end", &[whole(1), frame(CONTINUATION, END_HEADERS, 1, &[])], bye(&[PROTOCOL_ERROR, STREAM_CLOSED])),
        // closed
        case("data behind a reset", &[begun(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), frame(DATA, END_STREAM, 1, b"x")], closed()),
        case("a head behind a reset", &[begun(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), whole(1)], closed()),
        case("a continuation behind a reset", &[begun(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), frame(CONTINUATION, END_HEADERS, 1, &[])], bye(&[PROTOCOL_ERROR, STREAM_CLOSED])),
        after("data of a stream that is over", &[frame(DATA, END_STREAM, 1, b"x")], closed()),
        after("a head of a stream that is over", &[whole(1)], closed()),
        after("a continuation of a stream that is over", &[frame(CONTINUATION, END_HEADERS, 1, &[])], bye(&[PROTOCOL_ERROR, STREAM_CLOSED])),
        // §5.1.1
        case("a stream with an even number", &[whole(2)], protocol()),
        case("a stream with a smaller number than the last", &[whole(5), whole(3)], protocol()),
        // §5.3.1 of RFC 7540
        case("a head that depends on itself", &[frame(HEADERS, WHOLE_HEAD | WITH_PRIORITY, 1, &[&[0, 0, 0, 1, 16][..], &block(&request())].concat())], bad_head()),
        // §6.1
        case("data of stream 0", &[frame(DATA, 0, 0, b"x")], protocol()),
        case("padding beyond the data", &[begun(1), frame(DATA, END_STREAM | PADDED, 1, &[6, b'x', 0, 0, 0, 0])], protocol()),
        case("padding as long as the data", &[begun(1), frame(DATA, END_STREAM | PADDED, 1, &[2, b'x'])], protocol()),
        case("padding without its length", &[begun(1), frame(DATA, END_STREAM | PADDED, 1, &[])], bye(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR])),
        // §6.2
        case("a head of stream 0", &[frame(HEADERS, WHOLE_HEAD, 0, &block(&request()))], protocol()),
        case("padding beyond the head", &[frame(HEADERS, WHOLE_HEAD | PADDED, 1, &[&[250][..], &block(&request())].concat())], protocol()),
        case("a head too short for its priority", &[frame(HEADERS, WHOLE_HEAD | WITH_PRIORITY, 1, &[0; 4])], bye(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR])),
        // §6.3
        case("a priority of stream 0", &[frame(PRIORITY, 0, 0, &[0, 0, 0, 0, 16])], protocol()),
        case("a priority of 4 bytes", &[begun(1), frame(PRIORITY, 0, 1, &[0; 4])], Want::Reset(1, &[FRAME_SIZE_ERROR])),
        case("a priority of 6 bytes", &[begun(1), frame(PRIORITY, 0, 1, &[0; 6])], Want::Reset(1, &[FRAME_SIZE_ERROR])),
        // §6.4
        case("a reset of stream 0", &[frame(RST_STREAM, 0, 0, &[0; 4])], protocol()),
        case("a reset of 3 bytes", &[begun(1), frame(RST_STREAM, 0, 1, &[0; 3])], size()),
        case("a reset of 5 bytes", &[begun(1), frame(RST_STREAM, 0, 1, &[0; 5])], size()),
        // §6.5
        case("an acknowledgement with content", &[frame(SETTINGS, 1, 0, &[0; 6])], size()),
        case("settings of a stream", &[frame(SETTINGS, 0, 1, &[])], protocol()),
        case("settings of 3 bytes", &[frame(SETTINGS, 0, 0, &[0; 3])], size()),
        case("push of 2", &[setting(2, 2)], protocol()),
        case("a window of 2^31", &[setting(4, 1 << 31)], bye(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR])),
        case("frames of less than 2^14", &[setting(5, 16_383)], protocol()),
        case("frames of 2^24", &[setting(5, 1 << 24)], protocol()),
        case("extended CONNECT of 2", &[setting(8, 2)], protocol()),
        // §6.6
        case("a promise", &[whole(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block(&request())].concat())], protocol()),
        // §6.7
        case("a ping of a stream", &[frame(PING, 0, 1, &[0; 8])], protocol()),
        case("a ping of 6 bytes", &[frame(PING, 0, 0, &[0; 6])], size()),
        case("a ping of 9 bytes", &[frame(PING, 0, 0, &[0; 9])], size()),
        // §6.8
        case("a goodbye of a stream", &[frame(GOAWAY, 0, 1, &[0; 8])], protocol()),
        case("a goodbye of 4 bytes", &[frame(GOAWAY, 0, 0, &[0; 4])], size()),
        // §6.9
        case("a window of the connection made 0 wider", &[window(0, 0)], protocol()),
        case("a window of a stream made 0 wider", &[begun(1), window(1, 0)], bad_head()),
        case("a window of 3 bytes", &[frame(WINDOW_UPDATE, 0, 0, &[0; 3])], size()),
        case("the connection's window beyond 2^31", &[window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)], bye(&[FLOW_CONTROL_ERROR])),
        case("a stream's window beyond 2^31", &[begun(1), window(1, 0x7fff_ffff), window(1, 0x7fff_ffff)], Want::Reset(1, &[FLOW_CONTROL_ERROR])),
        case("all streams' windows beyond 2^31", &[begun(1), window(1, 0x7fff_0000), setting(4, 0x7fff_ffff)], bye(&[FLOW_CONTROL_ERROR])),
        // §6.10
        case("a continuation of stream 0", &[head(), frame(CONTINUATION, END_HEADERS, 0, &[])], protocol()),
        case("a continuation behind a whole head", &[begun(1), frame(CONTINUATION, END_HEADERS, 1, &[])], protocol()),
        case("a continuation behind the last one", &[head(), frame(CONTINUATION, END_HEADERS, 1, &[]), frame(CONTINUATION, END_HEADERS, 1, &[])], protocol()),
        case("a continuation behind data", &[begun(1), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, &[])], protocol()),
        // §8.1
        case("trailers that do not end the stream", &[begun(1), frame(DATA, 0, 1, b"x"), trailers(0)], bad_head()),
        case("trailers with a pseudo-header behind a field", &[begun(1), frame(HEADERS, WHOLE_HEAD, 1, &block(&[(b"x", b"y"), (b":path", b"/")]))], bad_head()),
        case("trailers in upper case", &[begun(1), frame(HEADERS, WHOLE_HEAD, 1, &block(&[(b"X", b"y")]))], bad_head()),
        case("trailers with a connection's field", &[begun(1), frame(HEADERS, WHOLE_HEAD, 1, &block(&[(b"transfer-encoding", b"chunked")]))], bad_head()),
        case("less than the length, in one piece", &[long(b"2"), frame(DATA, END_STREAM, 1, b"x")], bad_head()),
        case("more than the length, in one piece", &[long(b"1"), frame(DATA, END_STREAM, 1, b"xy")], bad_head()),
        case("less than the length, in two pieces", &[long(b"3"), frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1, b"y")], bad_head()),
        case("more than the length, in two pieces", &[long(b"1"), frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1, b"y")], bad_head()),
        case("less than the length, and trailers", &[long(b"2"), frame(DATA, 0, 1, b"x"), trailers(END_STREAM)], bad_head()),
        // RFC 7541
        case("an index beyond the tables", &[odd_block(&[], &[0xc6])], compression()),
        case("a name's index beyond the tables", &[odd_block(&[], &[0x7f, 0x20, 1, b'x'])], compression()),
        case("index 0", &[odd_block(&[], &[0x80])], compression()),
        case("a table's size behind a field", &[odd_block(&[], &[0x20])], compression()),
        case("a table larger than allowed", &[odd_block(&[0x3f, 0xe2, 0x1f], &[])], compression()),
        case("Huffman padding of a whole byte", &[odd_block(&[], &[0, 1, b'x', 0x82, 0x1f, 0xff])], compression()),
        case("Huffman padding of zeros", &[odd_block(&[], &[0, 1, b'x', 0x81, 0x18])], compression()),
        case("Huffman's end of a text within it", &[odd_block(&[], &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])], compression()),
        case("a number of more than 32 bits", &[odd_block(&[], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])], compression()),
        case("a text that ends beyond the block", &[odd_block(&[], &[0, 1, b'x', 9, b'y'])], compression()),
        case("a block that ends in a number", &[odd_block(&[], &[0xff])], compression()),
    ]
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut Stream) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload).await?;
        Ok(Self {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// The error that it tells.
    fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    fn answers(&self, id: u32) -> bool {
        let first = self.payload.iter().find(|byte| **byte & 0xe0 != 0x20);
        self.kind == HEADERS && self.stream == id && first == Some(&0x88)
    }
}

/// Runs one case; what was wrong, if anything was.
async fn run(way: &Way, case: &Case) -> Result<(), String> {
    let mut stream = way.connect().await.unwrap();
    let mut seen = Vec::new();
    let send = [opening(), case.first.clone()].concat();
    stream.write_all(&send).await.unwrap();
    if !case.first.is_empty() {
        stream.flush().await.unwrap();
        loop {
            let frame = Frame::read(&mut stream).await.unwrap();
            if frame.stream == 1
                && matches!(frame.kind, DATA | HEADERS)
                && frame.flags & END_STREAM != 0
            {
                break;
            }
        }
    }
    let _: io::Result<()> = stream.write_all(&case.bytes).await;
    let _: io::Result<()> = stream.flush().await;
    loop {
        let read = timeout(SILENCE, Frame::read(&mut stream)).await;
        let Ok(read) = read else {
            return Err(format!("nothing happened after {seen:?}"));
        };
        let Ok(frame) = read else {
            return match case.want {
                Want::Goodbye(_) | Want::Reset(..) => Ok(()),
                _ => Err(format!("it ended after {seen:?}")),
            };
        };
        match (&case.want, frame.kind) {
            (Want::Answer(id), _) if frame.answers(*id) => return Ok(()),
            (Want::Answer(id), HEADERS) if frame.stream == *id => return Err(format!("{frame:?}")),
            (Want::Frame(kind, flags, payload), _)
                if (frame.kind, frame.flags, &frame.payload) == (*kind, *flags, payload) =>
            {
                if *kind != SETTINGS {
                    return Ok(());
                }
                // The first is for those that the connection began with.
                if seen
                    .iter()
                    .any(|seen: &Frame| seen.kind == SETTINGS && seen.flags == 1)
                {
                    return Ok(());
                }
            }
            (Want::Goodbye(codes) | Want::Reset(_, codes), GOAWAY) => {
                if !codes.contains(&frame.code()) {
                    return Err(format!("a goodbye with {}", frame.code()));
                }
                // And then it has to end.
                let end = timeout(SILENCE, stream.read_to_end(&mut Vec::new())).await;
                return end
                    .map(drop)
                    .map_err(|_| "a goodbye, and it went on".to_owned());
            }
            (Want::Reset(id, codes), RST_STREAM) if frame.stream == *id => {
                if !codes.contains(&frame.code()) {
                    return Err(format!("a reset with {}", frame.code()));
                }
                return Ok(());
            }
            (Want::Reset(id, _), _) if case.first.is_empty() && frame.answers(*id) => {
                return Err("it was served".to_owned());
            }
            (Want::Answer(_) | Want::Frame(..), GOAWAY | RST_STREAM) => {
                return Err(format!("{frame:?}"));
            }
            _ => {}
        }
        seen.push(frame);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_by_the_letter_at_every_door() {
    let mut scene = Scene::set(|_| fine()).await;
    let cases: Vec<Case> = good_ones().into_iter().chain(bad_ones()).collect();
    assert!(cases.len() >= 130, "{} cases", cases.len());
    let mut wrong = Vec::new();
    let plain = scene.doors(&["http/1.1"]);
    for ((door, way), (_, h1)) in scene.doors(&["h2"]).into_iter().zip(plain) {
        for case in &cases {
            if let Err(problem) = run(&way, case).await {
                wrong.push(format!("{door}: {}: {problem}", case.what));
            }
        }
        good(&h1).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    scene.assert_alive().await;
}

/// Trailers have no pseudo-headers. The h2 crate drops those without a word; it matters that they reach nobody.
#[tokio::test(flavor = "multi_thread")]
async fn pseudo_headers_in_trailers_reach_nobody() {
    let mut scene = Scene::set(|_| fine()).await;
    for (door, way) in scene.doors(&["h2"]) {
        let trailers = block(&[(b":path", b"/evil"), (b":authority", b"evil")]);
        let frames = [
            begun(1),
            frame(DATA, 0, 1, b"x"),
            frame(HEADERS, WHOLE_HEAD, 1, &trailers),
        ];
        let heard = converse(&way, &opened(&frames)).await;
        assert!(
            heard.reset || heard.goaway || heard.answers == [0x88],
            "{door}: {heard:?}"
        );
        if heard.answers == [0x88] {
            let seen = scene.origin.last();
            let body = String::from_utf8_lossy(&seen.body).into_owned();
            assert_eq!(
                (seen.target(), body.as_str()),
                ("/two", "1\r\nx\r\n0\r\n\r\n"),
                "{door}"
            );
        }
    }
    scene.assert_alive().await;
}

/// Flow control the other way: nothing is sent that the client has no room for, whatever it does to its windows.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_windows_are_kept_to_the_byte() {
    let mut scene = Scene::set(|_| {
        Then::Keep(
            [
                b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n",
                &b"weftweft"[..],
            ]
            .concat(),
        )
    })
    .await;
    for (door, way) in scene.doors(&["h2"]) {
        let mut stream = way.connect().await.unwrap();
        let start = [opening(), setting(4, 3), whole(1)].concat();
        stream.write_all(&start).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(
            data(&mut stream, 3).await,
            b"wef",
            "{door}: the first window"
        );
        // Smaller than what is used already: the window is negative, and so stays shut at 0.
        let shut = [setting(4, 1), window(1, 2)].concat();
        stream.write_all(&shut).await.unwrap();
        stream.flush().await.unwrap();
        nothing(&mut stream, door).await;
        stream.write_all(&window(1, 1)).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(data(&mut stream, 1).await, b"t", "{door}: one byte");
        nothing(&mut stream, door).await;
        stream.write_all(&setting(4, 100)).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(data(&mut stream, 4).await, b"weft", "{door}: the rest");
    }
    scene.assert_alive().await;
}

/// Data, as much as this.
async fn data(stream: &mut Stream, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let frame = timeout(SILENCE, Frame::read(stream))
            .await
            .unwrap()
            .unwrap();
        assert!(![GOAWAY, RST_STREAM].contains(&frame.kind), "{frame:?}");
        if frame.kind == DATA {
            all.extend(frame.payload);
        }
    }
    all
}

/// No data comes, though it had time to: a ping is answered behind it.
async fn nothing(stream: &mut Stream, door: &str) {
    sleep(Duration::from_millis(100)).await;
    stream
        .write_all(&frame(PING, 0, 0, b"behind.."))
        .await
        .unwrap();
    stream.flush().await.unwrap();
    loop {
        let frame = timeout(SILENCE, Frame::read(stream))
            .await
            .unwrap()
            .unwrap();
        assert!(
            frame.kind != DATA || frame.payload.is_empty(),
            "{door}: {frame:?}"
        );
        if frame.kind == PING && frame.flags == 1 {
            return;
        }
    }
}
