//! What an origin that speaks HTTP/2 may not do to its clients: an app, a server outside of the mesh, or a peer's sidecar
//! that has been taken over. The h2 crate's server would not send these.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::frames::*;
use super::{Scene, good};
use crate::alone::{Host, PATIENCE, Reply, Running, Stream, Way, fine, until};
use crate::harness::certs::service;
use crate::harness::listening;

/// Where the origin listens that speaks HTTP/2 in plaintext, and the one that poses as a peer's sidecar.
pub(super) const STRANGER: u16 = 21_600;
pub(super) const PEER: u16 = 21_601;
/// Where the sidecar beside the first of them takes what its app sends, and what the mesh sends.
const CALLEE_OUTBOUND: u16 = 21_521;
const CALLEE_MESH: u16 = 21_528;

/// What is said in answer to a request on this stream.
type Answer = Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// What a rogue does.
#[derive(Clone)]
enum Act {
    /// Begins with SETTINGS as it should, and says this to each request.
    Say(Answer),
    /// The same, and then this over and over for as long as it is taken.
    Flood(Answer, Answer),
    /// Says this instead of anything else, as soon as it is connected to.
    Begin(Vec<u8>),
}

/// A server that does what it is told to, to each request on its own.
struct Rogue {
    act: Arc<Mutex<Act>>,
    /// Floods that were ended by the other side.
    cut: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Rogue {
    async fn start(address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = listening(address);
        let act = Arc::new(Mutex::new(Act::Say(well())));
        let cut = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (acts, cuts) = (Arc::clone(&act), Arc::clone(&cut));
        tasks.spawn(async move {
            let mut conversations = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, acts, cuts) = (tls.clone(), Arc::clone(&acts), Arc::clone(&cuts));
                conversations.spawn(async move {
                    let stream: Stream = match tls {
                        None => Box::new(stream),
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    let _: io::Result<()> = converse(stream, &acts, &cuts).await;
                });
            }
        });
        Self {
            act,
            cut,
            _tasks: tasks,
        }
    }

    fn does(&self, act: &Act) {
        *self.act.lock().unwrap() = act.clone();
    }
}

async fn converse(mut stream: Stream, acts: &Mutex<Act>, cuts: &AtomicUsize) -> io::Result<()> {
    let begun = acts.lock().unwrap().clone();
    if let Act::Begin(bytes) = begun {
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        // What comes is read, so that it is not this side that resets the connection.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return Ok(());
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    stream.flush().await?;
    stream.read_exact(&mut [0; PREFACE.len()]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match (head[3], head[4]) {
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
            (PING, 0) => stream.write_all(&frame(PING, 1, 0, &[0; 8])).await?,
            (HEADERS, _) => {
                let act = acts.lock().unwrap().clone();
                match act {
                    Act::Say(answer) => stream.write_all(&answer(id)).await?,
                    Act::Flood(answer, again) => {
                        stream.write_all(&answer(id)).await?;
                        let again = again(id);
                        // Read beside it, or both might wait for the other to read.
                        let (mut read, mut write) = tokio::io::split(stream);
                        let mut nowhere = tokio::io::sink();
                        tokio::select! {
                            _ = async { while write.write_all(&again).await.is_ok() {} } => {}
                            _ = tokio::io::copy(&mut read, &mut nowhere) => {}
                        }
                        cuts.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    Act::Begin(_) => return Ok(()),
                }
            }
            _ => {}
        }
        stream.flush().await?;
    }
}

fn status(code: &'static [u8]) -> (&'static [u8], &'static [u8]) {
    (b":status", code)
}

fn fields(more: &[(&'static [u8], &'static [u8])]) -> Fields {
    [&[status(b"200")], more].concat()
}

/// A good answer.
fn well() -> Answer {
    Arc::new(|id| {
        let head = block(&fields(&[(b"content-length", b"2")]));
        let frames = [
            frame(HEADERS, END_HEADERS, id, &head),
            frame(DATA, END_STREAM, id, b"ok"),
        ];
        frames.concat()
    })
}

/// A head of these fields, and `ok`.
fn head(fields: Fields) -> Act {
    Act::Say(Arc::new(move |id| {
        let head = frame(HEADERS, END_HEADERS, id, &block(&fields));
        [head, frame(DATA, END_STREAM, id, b"ok")].concat()
    }))
}

/// These frames.
fn say(frames: impl Fn(u32) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Act {
    Act::Say(Arc::new(move |id| frames(id).concat()))
}

/// These frames, and these without end.
fn flood(
    first: impl Fn(u32) -> Vec<Vec<u8>> + Send + Sync + 'static,
    again: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> Act {
    Act::Flood(
        Arc::new(move |id| first(id).concat()),
        Arc::new(move |id| again(id).repeat(64)),
    )
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

fn open(id: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, id, &block(&fields(&[])))
}

/// A literal field that is longer than [`block`] can say.
fn long_field(name: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend_from_slice(name);
    bytes.push(0x7f);
    let mut rest = length - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes.extend(std::iter::repeat_n(b'y', length));
    bytes
}

/// One block in as many frames as it needs.
fn in_pieces(id: u32, end: u8, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(16_000).peekable();
    let mut bytes = Vec::new();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let end = if kind == HEADERS { end } else { 0 };
        bytes.extend(frame(kind, last | end, id, piece));
        kind = CONTINUATION;
    }
    bytes
}

/// Small on the wire, large when decoded: one entry of the table, a thousand times.
fn bomb() -> Vec<u8> {
    let mut bomb = block(&fields(&[]));
    bomb.extend([0x40, 1, b'x', 0x7f, 0x81, 0x1e]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    bomb
}

/// Heads that are none: the client is told 502, and nothing of them.
#[rustfmt::skip] // a row a line
fn bad_heads() -> Vec<(&'static str, Act)> {
    let with = |more: &[(&'static [u8], &'static [u8])]| head(fields(more));
    let before = |more: &[(&'static [u8], &'static [u8])]| head([more, &[status(b"200")]].concat());
    let trailing = |status: &'static [u8]| head(vec![(b":status", status)]);
    vec![
        ("no status", head(vec![(b"x", b"y")])),
        ("an empty head", head(vec![])),
        ("two statuses", with(&[status(b"200")])),
        ("two different statuses", with(&[status(b"404")])),
        ("a status that is no number", trailing(b"abc")),
        ("an empty status", trailing(b"")),
        ("a status of two digits", trailing(b"20")),
        ("a status of four digits", trailing(b"2000")),
        ("a status with words", trailing(b"200 OK")),
        ("a signed status", trailing(b"+20")),
        ("status 000", trailing(b"000")),
        ("status 099", trailing(b"099")),
        ("status 600", trailing(b"600")),
        ("status 999", trailing(b"999")),
        ("a status behind a field", before(&[(b"x", b"y")])),
        ("a pseudo-header that nobody knows", with(&[(b":evil", b"y")])),
        ("upper case in a name", with(&[(b"X-Upper", b"y")])),
        ("a space in a name", with(&[(b"x y", b"z")])),
        ("a colon in a name", with(&[(b"x:y", b"z")])),
        ("a line end in a name", with(&[(b"x\r\ny", b"z")])),
        ("an empty name", with(&[(b"", b"z")])),
        ("a line end in a value", with(&[(b"x", b"y\r\nset-cookie: evil")])),
        ("a line feed in a value", with(&[(b"x", b"y\nz")])),
        ("a carriage return in a value", with(&[(b"x", b"y\rz")])),
        ("a null in a value", with(&[(b"x", b"y\0z")])),
        ("connection", with(&[(b"connection", b"close")])),
        ("keep-alive", with(&[(b"keep-alive", b"timeout=5")])),
        ("proxy-connection", with(&[(b"proxy-connection", b"close")])),
        ("transfer-encoding", with(&[(b"transfer-encoding", b"chunked")])),
        ("upgrade", with(&[(b"upgrade", b"h2c")])),
        ("two lengths", with(&[(b"content-length", b"2"), (b"content-length", b"2")])),
        ("two different lengths", with(&[(b"content-length", b"2"), (b"content-length", b"3")])),
        ("a list of lengths", with(&[(b"content-length", b"2, 2")])),
        ("a length that is no number", with(&[(b"content-length", b"x")])),
        ("an empty length", with(&[(b"content-length", b"")])),
        ("a signed length", with(&[(b"content-length", b"+2")])),
        ("a length of 2^63", with(&[(b"content-length", b"9223372036854775808")])),
        ("a length of 2^64 and 2", with(&[(b"content-length", b"18446744073709551618")])),
        ("a length and no body", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &block(&fields(&[(b"content-length", b"5")])))])),
        ("101", say(|id| vec![frame(HEADERS, END_HEADERS, id, &block(&[status(b"101"), (b"upgrade-insecure", b"x")]))])),
        ("101 as the end", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &block(&[status(b"101")]))])),
        ("an interim answer that ends the stream", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &block(&[status(b"103")]))])),
        ("an interim answer with a body", say(|id| vec![frame(HEADERS, END_HEADERS, id, &block(&[status(b"103")])), frame(DATA, END_STREAM, id, b"ok")])),
        ("twenty interim answers", say(|id| vec![frame(HEADERS, END_HEADERS, id, &block(&[status(b"103")])).repeat(20), well()(id)])),
        ("an interim answer of a bad form", say(|id| vec![frame(HEADERS, END_HEADERS, id, &block(&[status(b"103"), (b"connection", b"x")])), well()(id)])),
        ("a body before the head", say(|id| vec![frame(DATA, 0, id, b"ok"), well()(id)])),
        ("more than 128 fields", say(|id| vec![in_pieces(id, END_STREAM, &[block(&fields(&[])), block(&[(b"a", b"b")]).repeat(200)].concat())])),
        ("a field of 70 KB", say(|id| vec![in_pieces(id, END_STREAM, &[block(&fields(&[])), long_field(b"x", 70_000)].concat())])),
        ("fields of 70 KB together", say(|id| vec![in_pieces(id, END_STREAM, &[block(&fields(&[])), long_field(b"x", 1000).repeat(70)].concat())])),
        ("a bomb of fields", say(|id| vec![in_pieces(id, END_STREAM, &bomb())])),
        ("a reset", say(|id| vec![frame(RST_STREAM, 0, id, &[0, 0, 0, 2])])),
        ("a refusal", say(|id| vec![frame(RST_STREAM, 0, id, &[0, 0, 0, 7])])),
        ("a reset without an error", say(|id| vec![frame(RST_STREAM, 0, id, &[0; 4])])),
        ("a reset for a reason that nobody knows", say(|id| vec![frame(RST_STREAM, 0, id, &[0xff; 4])])),
        ("a head in the middle of a head", say(|id| vec![frame(HEADERS, 0, id, &block(&fields(&[]))), well()(id)])),
        ("data in the middle of a head", say(|id| vec![frame(HEADERS, 0, id, &block(&fields(&[]))), frame(DATA, END_STREAM, id, b"ok")])),
        ("a continuation of nothing", say(|id| vec![frame(CONTINUATION, END_HEADERS, id, &block(&fields(&[])))])),
        ("a continuation of another stream", say(|id| vec![frame(HEADERS, 0, id, &block(&fields(&[]))), frame(CONTINUATION, END_HEADERS, id + 2, &[])])),
        ("an answer of stream 0", say(|_| vec![frame(HEADERS, WHOLE_HEAD, 0, &block(&fields(&[])))])),
        ("an answer of a stream that is not open", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id + 100, &block(&fields(&[])))])),
        ("an answer of a stream that only it could open", say(|_| vec![frame(HEADERS, WHOLE_HEAD, 2, &block(&fields(&[])))])),
        ("data of stream 0", say(|_| vec![frame(DATA, 0, 0, b"x")])),
        ("data of a stream that is not open", say(|id| vec![frame(DATA, 0, id + 100, b"x")])),
        ("a promise", say(|id| vec![frame(PUSH_PROMISE, END_HEADERS, id, &[&[0, 0, 0, 2][..], &block(&request())].concat())])),
        ("a promise of stream 0", say(|_| vec![frame(PUSH_PROMISE, END_HEADERS, 0, &[&[0, 0, 0, 2][..], &block(&request())].concat())])),
        ("padding beyond the frame", say(|id| vec![frame(HEADERS, WHOLE_HEAD | 8, id, &[200, 0])])),
        ("a frame of 16 MiB", say(|_| vec![vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]])),
        ("a head of 5 bytes' priority and no more", say(|id| vec![frame(HEADERS, WHOLE_HEAD | 0x20, id, &[0; 3])])),
        ("a stream that depends on itself", say(|id| vec![frame(HEADERS, WHOLE_HEAD | 0x20, id, &[&id.to_be_bytes()[..], &[7], &block(&fields(&[]))].concat())])),
        ("an index of 0", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0x80])])),
        ("an index beyond the table", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0xbf, 0x7f])])),
        ("a number without end", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0xff; 8])])),
        ("a text beyond the block", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0, 5, b'x'])])),
        ("Huffman padding that is none", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0, 0x81, 0, 0x81, 0])])),
        ("Huffman padding of a byte and more", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0x88, 0, 1, b'x', 0x82, 0xff, 0xff])])),
        ("a table size beyond the setting", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0x3f, 0xff, 0xff, 0x7f, 0x88])])),
        ("a table size behind a field", say(|id| vec![frame(HEADERS, WHOLE_HEAD, id, &[0x88, 0x20])])),
        ("a reset of stream 0", say(|_| vec![frame(RST_STREAM, 0, 0, &[0; 4])])),
        ("a reset of 3 bytes", say(|id| vec![frame(RST_STREAM, 0, id, &[0; 3])])),
        ("a reset of a stream that is not open", say(|id| vec![frame(RST_STREAM, 0, id + 100, &[0; 4])])),
        ("settings of 5 bytes", say(|_| vec![frame(SETTINGS, 0, 0, &[0; 5])])),
        ("settings of a stream", say(|id| vec![frame(SETTINGS, 0, id, &[])])),
        ("an acknowledgement with content", say(|_| vec![frame(SETTINGS, 1, 0, &[0; 6])])),
        ("push of 2", say(|_| vec![setting(2, 2)])),
        ("a window of 2^31", say(|_| vec![setting(4, 1 << 31)])),
        ("frames of 1 byte", say(|_| vec![setting(5, 1)])),
        ("frames of 16 MiB", say(|_| vec![setting(5, 1 << 24)])),
        ("a ping of 7 bytes", say(|_| vec![frame(PING, 0, 0, &[0; 7])])),
        ("a ping of a stream", say(|id| vec![frame(PING, 0, id, &[0; 8])])),
        ("a goodbye of a stream", say(|id| vec![frame(GOAWAY, 0, id, &[0; 8])])),
        ("a goodbye that names no stream", say(|_| vec![frame(GOAWAY, 0, 0, &[0; 8])])),
        ("a goodbye of 4 bytes", say(|_| vec![frame(GOAWAY, 0, 0, &[0; 4])])),
        ("a window update of nothing", say(|_| vec![frame(WINDOW_UPDATE, 0, 0, &[0; 4])])),
        ("a window update of nothing, of the stream", say(|id| vec![frame(WINDOW_UPDATE, 0, id, &[0; 4])])),
        ("a window update of 3 bytes", say(|_| vec![frame(WINDOW_UPDATE, 0, 0, &[0; 3])])),
        ("a window beyond 2^31", say(|_| vec![frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])])),
        ("a window beyond 2^31, of the stream", say(|id| vec![frame(WINDOW_UPDATE, 0, id, &[0x7f, 0xff, 0xff, 0xff])])),
        ("a window update of a stream that is not open", say(|id| vec![frame(WINDOW_UPDATE, 0, id + 100, &[0, 0, 0, 1])])),
        // Instead of a beginning.
        ("HTTP/1.1", Act::Begin(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())),
        ("words", Act::Begin(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec())),
        ("nulls", Act::Begin(vec![0; 64])),
        ("an acknowledgement before settings", Act::Begin(frame(SETTINGS, 1, 0, &[]))),
        ("a ping before settings", Act::Begin(frame(PING, 0, 0, &[0; 8]))),
        ("an answer before settings", Act::Begin(well()(1))),
        ("a frame that nobody knows before settings", Act::Begin(frame(0xbe, 0, 0, &[]))),
        ("a goodbye before settings", Act::Begin(frame(GOAWAY, 0, 0, &[0; 8]))),
    ]
}

/// A head that is good and a rest that is not: the client must be able to tell.
#[rustfmt::skip] // a row a line
fn bad_bodies() -> Vec<(&'static str, Act)> {
    let long = |length: &'static [u8], data: &'static [u8]| say(move |id| vec![
        frame(HEADERS, END_HEADERS, id, &block(&fields(&[(b"content-length", length)]))),
        frame(DATA, END_STREAM, id, data),
    ]);
    let then = |frames: fn(u32) -> Vec<u8>| say(move |id| vec![open(id), frame(DATA, 0, id, b"ok"), frames(id)]);
    vec![
        ("less than its length", long(b"5", b"abc")),
        ("more than its length", long(b"1", b"abc")),
        ("trailers where less came than the length", say(|id| vec![
            frame(HEADERS, END_HEADERS, id, &block(&fields(&[(b"content-length", b"5")]))), frame(DATA, 0, id, b"abc"),
            frame(HEADERS, WHOLE_HEAD, id, &block(&[(b"x", b"y")])),
        ])),
        ("a reset in the middle", then(|id| frame(RST_STREAM, 0, id, &[0, 0, 0, 2]))),
        ("a cancel in the middle", then(|id| frame(RST_STREAM, 0, id, &[0, 0, 0, 8]))),
        ("a reset without an error in the middle", then(|id| frame(RST_STREAM, 0, id, &[0; 4]))),
        ("trailers that do not end the stream", then(|id| frame(HEADERS, END_HEADERS, id, &block(&[(b"x", b"y")])))),
        ("trailers with a line end", then(|id| frame(HEADERS, WHOLE_HEAD, id, &block(&[(b"x", b"y\r\n\r\nHTTP/1.1 200 OK")])))),
        ("trailers with upper case", then(|id| frame(HEADERS, WHOLE_HEAD, id, &block(&[(b"X", b"y")])))),
        ("trailers with transfer-encoding", then(|id| frame(HEADERS, WHOLE_HEAD, id, &block(&[(b"transfer-encoding", b"chunked")])))),
        ("more than 128 trailers", then(|id| in_pieces(id, END_STREAM, &block(&[(b"a", b"b")]).repeat(200)))),
        ("a second head", then(open)),
        ("a bad frame", then(|_| frame(PING, 0, 0, &[0; 7]))),
        ("a head in the middle of trailers", then(|id| [frame(HEADERS, END_STREAM, id, &block(&[(b"x", b"y")])), open(id)].concat())),
        ("padding beyond the frame", then(|id| frame(DATA, END_STREAM | 8, id, &[200, 0]))),
        ("padding of no length", then(|id| frame(DATA, END_STREAM | 8, id, &[]))),
        ("a promise", then(|id| frame(PUSH_PROMISE, END_HEADERS, id, &[&[0, 0, 0, 2][..], &block(&request())].concat()))),
        ("a goodbye that takes it back", then(|_| frame(GOAWAY, 0, 0, &[0; 8]))),
        ("data of another stream", then(|id| frame(DATA, 0, id + 100, b"x"))),
    ]
}

/// What looks odd and is allowed.
#[rustfmt::skip] // a row a line
fn odd_but_good() -> Vec<(&'static str, Act)> {
    let after = |frames: fn(u32) -> Vec<u8>| say(move |id| vec![frames(id), well()(id)]);
    vec![
        ("a frame that nobody knows", after(|_| frame(0xbe, 0xff, 0, &[1; 16]))),
        ("a frame that nobody knows, of the stream", after(|id| frame(0xbe, 0xff, id, &[1; 16]))),
        ("a setting that nobody knows", after(|_| setting(0xbeef, 7))),
        ("settings again", after(|_| setting(4, 1 << 20))),
        ("a ping", after(|_| frame(PING, 0, 0, &[7; 8]))),
        ("an answer to a ping that nobody sent", after(|_| frame(PING, 1, 0, &[7; 8]))),
        ("a priority", after(|id| frame(PRIORITY, 0, id, &[0, 0, 0, 0, 7]))),
        ("windows", after(|id| [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 9]), frame(WINDOW_UPDATE, 0, id, &[0, 0, 0, 9])].concat())),
        ("early hints", after(|id| frame(HEADERS, END_HEADERS, id, &block(&[status(b"103"), (b"link", b"x")])))),
        ("an empty piece of a body", say(|id| vec![open(id), frame(DATA, 0, id, b"o"), frame(DATA, 0, id, b""), frame(DATA, END_STREAM, id, b"k")])),
        ("padding", say(|id| vec![open(id), frame(DATA, END_STREAM | 8, id, b"\x03ok\0\0\0")])),
        ("trailers", say(|id| vec![open(id), frame(DATA, 0, id, b"ok"), frame(HEADERS, WHOLE_HEAD, id, &block(&[(b"x", b"y")]))])),
        ("a head in pieces", say(|id| vec![frame(HEADERS, 0, id, &[0x88]), frame(CONTINUATION, 0, id, &[]), frame(CONTINUATION, END_HEADERS, id, &block(&[(b"x", b"y")])), frame(DATA, END_STREAM, id, b"ok")])),
        ("a new size of the table", say(|id| vec![frame(HEADERS, END_HEADERS, id, &[0x20, 0x3f, 0xe1, 0x1f, 0x88]), frame(DATA, END_STREAM, id, b"ok")])),
        ("a goodbye after this", say(|id| vec![frame(GOAWAY, 0, 0, &[&id.to_be_bytes()[..], &[0; 4]].concat()), well()(id)])),
        ("a whole answer and a reset without an error", say(|id| vec![well()(id), frame(RST_STREAM, 0, id, &[0; 4])])),
    ]
}

/// What no end comes of.
#[rustfmt::skip] // a row a line
fn floods() -> Vec<(&'static str, Act)> {
    let nothing = |_| vec![];
    vec![
        ("interim answers", flood(nothing, |id| frame(HEADERS, END_HEADERS, id, &block(&[status(b"103"), (b"link", b"x")])))),
        ("a head", flood(|id| vec![frame(HEADERS, 0, id, &block(&fields(&[])))], |id| frame(CONTINUATION, 0, id, &block(&[(b"x-flood", &[b'y'; 100])])))),
        ("an empty head", flood(|id| vec![frame(HEADERS, 0, id, &block(&fields(&[])))], |id| frame(CONTINUATION, 0, id, &[]))),
        ("trailers", flood(|id| vec![open(id), frame(HEADERS, END_STREAM, id, &block(&[(b"x", b"y")]))], |id| frame(CONTINUATION, 0, id, &block(&[(b"x-flood", &[b'y'; 100])])))),
        ("settings", flood(nothing, |_| frame(SETTINGS, 0, 0, &[]))),
        ("settings with content", flood(nothing, |_| setting(4, 65_536))),
        ("pings", flood(nothing, |_| frame(PING, 0, 0, &[7; 8]))),
        ("answers to pings", flood(nothing, |_| frame(PING, 1, 0, &[7; 8]))),
        ("empty data", flood(|id| vec![open(id)], |id| frame(DATA, 0, id, &[]))),
        ("padding and nothing else", flood(|id| vec![open(id)], |id| frame(DATA, 8, id, &[0]))),
        ("priorities", flood(nothing, |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 7]))),
        ("windows of the connection", flood(nothing, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("windows of the stream", flood(nothing, |id| frame(WINDOW_UPDATE, 0, id, &[0, 0, 0, 1]))),
        ("resets", flood(nothing, |id| frame(RST_STREAM, 0, id, &[0, 0, 0, 8]))),
        ("frames that nobody knows", flood(nothing, |_| frame(0xbe, 0, 0, &[1; 16]))),
        ("goodbyes", flood(nothing, |_| frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]))),
        ("data beyond the window", flood(|id| vec![open(id)], |id| frame(DATA, 0, id, &[b'x'; 16_384]))),
        ("data of a stream that has ended", flood(|id| vec![well()(id)], |id| frame(DATA, 0, id, &[b'x'; 16_384]))),
        ("heads of a stream that has ended", flood(|id| vec![well()(id)], |id| frame(HEADERS, WHOLE_HEAD, id, &block(&fields(&[]))))),
    ]
}

/// A [`Scene`] in which a rogue is the app of a sidecar, a server outside of the mesh, and a peer's sidecar.
struct Stage {
    scene: Scene,
    callee: Running,
    _host: Host,
    /// In plaintext, and by mutual TLS.
    rogues: [Rogue; 2],
}

impl Stage {
    async fn set() -> Self {
        let scene = Scene::set(|_| fine()).await;
        let host = scene.edge.beside();
        let text = std::fs::read_to_string(scene.edge.directory().join("weft.yaml")).unwrap();
        let text = text
            .replace(&scene.edge.admin().to_string(), &host.admin().to_string())
            .replace(
                &scene.host.outbound().to_string(),
                &host.at(CALLEE_OUTBOUND).to_string(),
            )
            .replace(
                &scene.host.mesh().to_string(),
                &host.at(CALLEE_MESH).to_string(),
            );
        host.write("weft.yaml", &text);
        host.identify(&scene.mesh, "calls");
        let tls = scene.mesh.leaf(&service("peer")).server(&["h2"]);
        let rogues = [
            Rogue::start(host.at(STRANGER), None).await,
            Rogue::start(host.at(PEER), Some(TlsAcceptor::from(tls))).await,
        ];
        let callee = host.sidecar("calls").await;
        Self {
            scene,
            callee,
            _host: host,
            rogues,
        }
    }

    /// From where, to whom and by which name each rogue is asked.
    fn ways(&self) -> [(&'static str, Way, &'static str, &Rogue); 5] {
        let [public, _, outbound, _] = self.scene.doors(&["http/1.1"]).map(|(_, way)| way);
        let member = self.scene.mesh.leaf(&service("storefront"));
        let mesh = Way::Tls(
            self.scene.host.at(CALLEE_MESH),
            member.client(&["http/1.1"]),
        );
        let [plain, tls] = &self.rogues;
        [
            ("gateway to stranger", public.clone(), "stranger", plain),
            ("gateway to peer", public, "peer", tls),
            ("sidecar to stranger", outbound.clone(), "stranger", plain),
            ("sidecar to peer", outbound, "peer", tls),
            ("sidecar to its app", mesh, "calls", plain),
        ]
    }

    async fn assert_alive(&mut self) {
        self.scene.assert_alive().await;
        self.callee.assert_alive().await;
    }
}

async fn asked(way: &Way, method: &str, host: &str) -> Vec<u8> {
    let request = format!("{method} /two HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    way.send(request.as_bytes()).await.unwrap_or_default()
}

/// The answer, if it came to the end that its head promises and nothing came after that.
fn whole(bytes: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    // Interim answers with nothing behind them are none yet.
    let mut last = &*text;
    while last.starts_with("HTTP/1.1 1") && !last.starts_with("HTTP/1.1 101 ") {
        last = last.split_once("\r\n\r\n")?.1;
    }
    last.split_once("\r\n\r\n")?;
    let reply = Reply::parse(bytes);
    let ended = match reply.field("content-length") {
        Some(length) => reply.text().len() == length.parse::<usize>().unwrap(),
        None if reply.field("transfer-encoding").is_some() => {
            (body.starts_with("0\r\n") || body.contains("\r\n0\r\n")) && body.ends_with("\r\n\r\n")
        }
        None => body.is_empty(),
    };
    (ended || head.starts_with("HTTP/1.1 1")).then_some(reply)
}

/// Waits until a rogue that behaves is believed again: the connection on which it did not may be on its way out.
async fn behaves(way: &Way, host: &str, rogue: &Rogue, what: &str) {
    rogue.does(&Act::Say(well()));
    until(&format!("a good answer after {what}"), async || {
        let reply = whole(&asked(way, "GET", host).await)?;
        (reply.status == 200 && reply.text() == "ok").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_http2_answers_become_a_502_wherever_they_come_from() {
    let mut stage = Stage::set().await;
    let cases = bad_heads();
    assert!(cases.len() >= 100, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (path, way, host, rogue) in stage.ways() {
        behaves(&way, host, rogue, "nothing").await;
        for (what, act) in &cases {
            rogue.does(act);
            let bytes = asked(&way, "GET", host).await;
            let Some(reply) = whole(&bytes) else {
                wrong.push(format!(
                    "{path}: {what}: {:?}",
                    String::from_utf8_lossy(&bytes)
                ));
                continue;
            };
            let reason = reply.field("weft-reason").unwrap_or_default();
            let known = ["upstream_malformed", "upstream_reset", "connect_failed"];
            if reply.status != 502
                || !known.contains(&reason)
                || !bytes.starts_with(b"HTTP/1.1 502 ") && !what.contains("interim")
            {
                wrong.push(format!("{path}: {what}: {reply:?}"));
            }
            behaves(&way, host, rogue, what).await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    good(&stage.ways()[0].1).await;
    stage.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_http2_never_becomes_a_whole_one() {
    let mut stage = Stage::set().await;
    let mut wrong = Vec::new();
    for (path, way, host, rogue) in stage.ways() {
        for (what, act) in bad_bodies() {
            rogue.does(&act);
            let bytes = asked(&way, "GET", host).await;
            if whole(&bytes).is_some_and(|reply| reply.status != 502) {
                wrong.push(format!(
                    "{path}: {what}: {:?}",
                    String::from_utf8_lossy(&bytes)
                ));
            }
            behaves(&way, host, rogue, what).await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stage.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_http2_allows_an_origin_is_taken() {
    let mut stage = Stage::set().await;
    let mut wrong = Vec::new();
    for (path, way, host, rogue) in stage.ways() {
        for (what, act) in odd_but_good() {
            rogue.does(&act);
            let request = format!(
                "GET /two HTTP/1.1\r\nhost: {host}\r\nte: trailers\r\nconnection: close, te\r\n\r\n"
            );
            let bytes = way.send(request.as_bytes()).await.unwrap_or_default();
            let reply = whole(&bytes);
            // What comes before the answer and after it arrives as well.
            let text = String::from_utf8_lossy(&bytes);
            let has_more = match what {
                "early hints" => {
                    text.starts_with("HTTP/1.1 103 ")
                        && text.contains("\r\nlink: x\r\n\r\nHTTP/1.1 200 ")
                }
                "trailers" => text.ends_with("\r\n0\r\nx: y\r\n\r\n"),
                _ => text.starts_with("HTTP/1.1 200 "),
            };
            if !has_more || reply.is_none_or(|reply| reply.status != 200 || reply.text() != "ok") {
                wrong.push(format!(
                    "{path}: {what}: {:?}",
                    String::from_utf8_lossy(&bytes)
                ));
            }
            behaves(&way, host, rogue, what).await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stage.assert_alive().await;
}

/// What HTTP/1.1 has no body for has none, whatever came: its client would take it for the next answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_where_http1_has_none_is_not_passed_on() {
    let mut stage = Stage::set().await;
    let answer = |code: &'static [u8]| head(vec![status(code), (b"x", b"y")]);
    for (path, way, host, rogue) in stage.ways() {
        for (method, code) in [
            ("GET", &b"204"[..]),
            ("GET", b"304"),
            ("HEAD", b"200"),
            ("HEAD", b"404"),
        ] {
            let code: &'static [u8] = code;
            rogue.does(&answer(code));
            let bytes = asked(&way, method, host).await;
            let text = String::from_utf8_lossy(&bytes);
            let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            assert!(
                body.is_empty() || text.starts_with("HTTP/1.1 502 "),
                "{path}: {method} {code:?}: {text:?}"
            );
            behaves(&way, host, rogue, method).await;
        }
    }
    stage.assert_alive().await;
}

/// The h2 crate drops these without a word, or when the answer is over for us: it matters that they reach nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_beyond_an_answer_reaches_nobody() {
    let mut stage = Stage::set().await;
    let trailers = |fields: Fields| {
        say(move |id| {
            vec![
                open(id),
                frame(DATA, 0, id, b"ok"),
                frame(HEADERS, WHOLE_HEAD, id, &block(&fields)),
            ]
        })
    };
    let cases = [
        ("a status in trailers", "ok", trailers(vec![status(b"299")])),
        (
            "a path in trailers",
            "ok",
            trailers(vec![(b":path", b"/299")]),
        ),
        (
            "a body of a length of 0",
            "",
            head(fields(&[(b"content-length", b"0")])),
        ),
    ];
    for (path, way, host, rogue) in stage.ways() {
        for (what, body, act) in &cases {
            rogue.does(act);
            let bytes = asked(&way, "GET", host).await;
            let reply = whole(&bytes).unwrap_or_else(|| panic!("{path}: {what}: {bytes:?}"));
            if reply.status != 502 {
                assert_eq!(
                    (reply.status, reply.text().as_str()),
                    (200, *body),
                    "{path}: {what}"
                );
                assert!(
                    !bytes.windows(3).any(|seen| seen == b"299"),
                    "{path}: {what}"
                );
            }
            behaves(&way, host, rogue, what).await;
        }
    }
    stage.assert_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_origins_are_cut_and_hurt_nobody() {
    let mut stage = Stage::set().await;
    let floods = floods();
    let ways = stage.ways().map(|(path, way, host, rogue)| {
        (
            path,
            way,
            host,
            Arc::clone(&rogue.act),
            Arc::clone(&rogue.cut),
        )
    });
    for (path, way, host, act, cut) in ways {
        let is_callee = path == "sidecar to its app";
        let good = match path {
            _ if is_callee => vec![("callee", Way::Plain(stage.scene.host.at(CALLEE_OUTBOUND)))],
            _ if path.starts_with("gateway") => stage.scene.good_ways(&["public"]),
            _ => stage.scene.good_ways(&["outbound"]),
        };
        // Whoever is attacked is watched.
        if is_callee {
            std::mem::swap(&mut stage.scene.sidecar, &mut stage.callee);
        }
        let attack = async {
            for (what, flood) in &floods {
                let before = cut.load(Ordering::Relaxed);
                *act.lock().unwrap() = flood.clone();
                // It reads a moment later than it could: what comes until then is held or is not.
                let mut client = way.connect().await.unwrap();
                let request =
                    format!("GET /two HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
                client.write_all(request.as_bytes()).await.unwrap();
                client.flush().await.unwrap();
                sleep(Duration::from_millis(200)).await;
                let mut bytes = vec![0; 1 << 16];
                let mut all = Vec::new();
                let read = async {
                    while let Ok(length @ 1..) = client.read(&mut bytes).await {
                        if all.len() < 1 << 20 {
                            all.extend_from_slice(&bytes[..length]);
                        }
                        if what.starts_with("data beyond") {
                            // Never: who reads is sent more.
                            sleep(PATIENCE).await;
                        }
                    }
                };
                let cut_off = format!("{path}: {what} to be cut");
                let cutting = until(&cut_off, async || {
                    (cut.load(Ordering::Relaxed) > before).then_some(())
                });
                tokio::select! {
                    () = async { read.await; std::future::pending().await } => {}
                    () = cutting => {}
                }
                let ended = what.ends_with("has ended");
                if !ended && let Some(reply) = whole(&all) {
                    assert_ne!(reply.status, 200, "{path}: {what}: {reply:?}");
                }
            }
        };
        timeout(PATIENCE * 4, stage.scene.under_attack(path, &good, attack))
            .await
            .unwrap();
        if is_callee {
            std::mem::swap(&mut stage.scene.sidecar, &mut stage.callee);
        }
        *act.lock().unwrap() = Act::Say(well());
    }
    for (_, way, host, rogue) in stage.ways() {
        behaves(&way, host, rogue, "the floods").await;
    }
    stage.assert_alive().await;
}
