//! Frames of every kind, good and bad, both ways: a proxy passes them and judges none. The rows are of Autobahn's kinds
//! (1 to 7, 9 and 10 of its test suite); what it asks of an endpoint is that bytes are as they were sent.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{H2, upgrade};
use crate::harness::{Behaviour, Client, Mesh, Service, Wire, soon, wire};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CONTINUED: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
/// Taken from the first byte of a frame that is not the last one of its message.
const FIN: u8 = 0x80;

/// A client's frames are masked, a server's are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Client,
    App,
}

/// A frame whose length is written in as few bytes as there may be.
fn frame(by: By, first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let announced = match length {
        0..126 => vec![u8::try_from(length).unwrap()],
        126..65_536 => [&[126][..], &u16::try_from(length).unwrap().to_be_bytes()].concat(),
        _ => [&[127][..], &(length as u64).to_be_bytes()].concat(),
    };
    announcing(by, first, announced, payload)
}

/// A frame that says this of its length.
fn announcing(by: By, first: u8, mut announced: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    if by == By::App {
        return [&[first][..], &announced, payload].concat();
    }
    announced[0] |= 0x80;
    let masked = payload.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b);
    let masked: Vec<u8> = masked.collect();
    [&[first][..], &announced, &MASK, &masked].concat()
}

/// The bytes that one side says, in the writes in which it says them.
type Row = (String, Vec<Vec<u8>>);

/// Each as one write.
fn whole(what: &str, frames: &[Vec<u8>]) -> Row {
    (what.to_owned(), vec![frames.concat()])
}

/// A write for each.
fn apart(what: &str, frames: &[Vec<u8>]) -> Row {
    (what.to_owned(), frames.to_vec())
}

/// In writes of so many bytes.
fn chopped(what: &str, frames: &[Vec<u8>], size: usize) -> Row {
    let bytes = frames.concat();
    let writes = bytes.chunks(size).map(<[u8]>::to_vec).collect();
    (format!("{what}, in writes of {size} bytes"), writes)
}

/// A message in so many fragments of a size.
fn fragments(by: By, first: u8, size: usize, count: usize) -> Vec<Vec<u8>> {
    let payload = vec![b'*'; size];
    let place = |number: usize| match number {
        0 => first & !FIN,
        _ if number + 1 == count => CONTINUED,
        _ => CONTINUED & !FIN,
    };
    (0..count)
        .map(|number| frame(by, place(number), &payload))
        .collect()
}

#[rustfmt::skip] // a row a line
fn rows(by: By) -> Vec<Row> {
    let frame = |first, payload: &[u8]| frame(by, first, payload);
    let said = |code: u16, reason: &[u8]| frame(CLOSE, &[&code.to_be_bytes()[..], reason].concat());
    let text = |payload: &[u8]| frame(TEXT, payload);
    let hello = || text(b"Hello, world!");
    let mut rows = Vec::new();
    // 1 and 2: messages of the lengths at which the frame's head changes, and pings.
    for length in [0, 125, 126, 127, 128, 65_535, 65_536] {
        rows.push(whole(&format!("a text of {length} bytes"), &[text(&vec![b'*'; length])]));
        rows.push(whole(&format!("{length} bytes of any kind"), &[frame(BINARY, &vec![0xfe; length])]));
        rows.push(whole(&format!("a ping of {length} bytes"), &[frame(PING, &vec![0; length])]));
    }
    rows.extend([
        chopped("a text of 65536 bytes", &[text(&[b'*'; 65_536])], 997),
        chopped("a text of 126 bytes", &[text(&[b'*'; 126])], 1),
        chopped("a ping", &[frame(PING, b"ping")], 1),
        whole("a pong that nobody asked for", &[frame(PONG, b"")]),
        whole("a pong and a ping", &[frame(PONG, b"x"), frame(PING, b"y")]),
        whole("ten pings", &vec![frame(PING, b"ping"); 10]),
        apart("ten pings, one by one", &vec![frame(PING, b"ping"); 10]),
        chopped("ten pings", &vec![frame(PING, b"ping"); 10], 1),
    ]);
    // 3: bits that nobody has agreed on; 4: kinds that nobody knows.
    for bits in 1..8 {
        rows.push(whole(&format!("reserved bits {bits:03b}"), &[hello(), frame(TEXT | bits << 4, b"x"), frame(PING, b"")]));
    }
    rows.push(chopped("a reserved bit of a close", &[frame(CLOSE | 0x40, b"")], 1));
    for kind in (3..8).chain(0xb..=0xf) {
        rows.push(whole(&format!("kind {kind:x}"), &[hello(), frame(FIN | kind, b"x"), frame(PING, b"")]));
        rows.push(apart(&format!("kind {kind:x} of nothing"), &[frame(FIN | kind, b""), hello()]));
    }
    // 5: fragments, and what comes between them.
    rows.extend([
        apart("a ping in two", &[frame(PING & !FIN, b"a"), frame(CONTINUED, b"b")]),
        apart("a pong in two", &[frame(PONG & !FIN, b"a"), frame(CONTINUED, b"b")]),
        whole("a text in two", &fragments(by, TEXT, 9, 2)),
        apart("a text in two, one by one", &fragments(by, TEXT, 9, 2)),
        chopped("a text in two", &fragments(by, TEXT, 9, 2), 1),
        apart("a ping in a text", &[frame(TEXT & !FIN, b"a"), frame(PING, b"ping"), frame(CONTINUED, b"b")]),
        chopped("a ping in a text", &[frame(TEXT & !FIN, b"a"), frame(PING, b"ping"), frame(CONTINUED, b"b")], 1),
        apart("pings in a text of five", &[frame(TEXT & !FIN, b"a"), frame(0, b"b"), frame(PING, b"1"), frame(0, b"c"), frame(0, b"d"), frame(PING, b"2"), frame(CONTINUED, b"e")]),
        whole("the end of nothing", &[frame(CONTINUED, b"x"), hello()]),
        apart("the middle of nothing", &[frame(0, b"x"), frame(CONTINUED, b"y"), hello()]),
        apart("a text in a text", &[frame(TEXT & !FIN, b"a"), hello(), frame(CONTINUED, b"b")]),
        apart("fragments of nothing", &[frame(TEXT & !FIN, b""), frame(0, b""), frame(CONTINUED, b"")]),
        apart("a message without an end", &[frame(BINARY & !FIN, b"a"), frame(0, b"b")]),
    ]);
    // 6: texts that are UTF-8 and such as are not.
    for (what, bytes) in [
        ("letters of four lengths", "a\u{e4}\u{20ac}\u{10ffff}".as_bytes()),
        ("what is no letter", "\u{fffe}\u{ffff}\u{feff}\0".as_bytes()),
        ("a byte that never is", b"\xce\xba\xff"),
        ("half a letter", b"\xce\xba\xe1\xbd"),
        ("a slash in two bytes", b"\xc0\xaf"),
        ("half of a pair", b"\xed\xa0\x80"),
        ("beyond the last letter", b"\xf4\x90\x80\x80"),
    ] {
        rows.push(whole(&format!("text: {what}"), &[text(bytes)]));
        rows.push(chopped(&format!("text: {what}"), &[text(bytes)], 1));
        let (before, behind) = bytes.split_at(bytes.len() - 1);
        rows.push(apart(&format!("text: {what}, cut before its last byte"), &[frame(TEXT & !FIN, before), frame(CONTINUED, behind)]));
    }
    // 7: closes, and what comes behind them.
    rows.extend([
        whole("a close without a word", &[frame(CLOSE, b"")]),
        whole("a close of one byte", &[frame(CLOSE, &[3])]),
        whole("a close with a code", &[said(1000, b"")]),
        whole("a close with a reason", &[said(1000, b"as you wish")]),
        whole("a close of 125 bytes", &[said(1000, &[b'*'; 123])]),
        whole("a close of 126 bytes", &[said(1000, &[b'*'; 124])]),
        whole("a reason that is no UTF-8", &[said(1000, b"\xff")]),
        chopped("a close", &[said(1000, b"as you wish")], 1),
        whole("codes that there are", &[1001_u16, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999].map(|code| said(code, b"x"))),
        whole("codes that there are not", &[0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535].map(|code| said(code, b""))),
        whole("two closes", &[said(1000, b""), said(1000, b"")]),
        apart("a text behind a close", &[said(1000, b""), hello()]),
        apart("a ping behind a close", &[said(1000, b""), frame(PING, b"")]),
        apart("a close in a text", &[frame(TEXT & !FIN, b"a"), said(1000, b""), frame(CONTINUED, b"b")]),
        apart("a megabyte behind a close", &[said(1000, b""), frame(BINARY, &vec![1; 1 << 20])]),
    ]);
    // 9: what is long, or says that it is.
    rows.extend([
        whole("a megabyte of text", &[text(&vec![b'*'; 1 << 20])]),
        whole("a megabyte of any kind", &[frame(BINARY, &vec![0xfe; 1 << 20])]),
        whole("64 KiB in fragments of 64 bytes", &fragments(by, BINARY, 64, 1024)),
        whole("a megabyte in fragments of 4 KiB", &fragments(by, TEXT, 4096, 256)),
        whole("a short length in 16 bits", &[announcing(by, TEXT, vec![126, 0, 5], b"Hello")]),
        whole("a short length in 64 bits", &[announcing(by, TEXT, vec![127, 0, 0, 0, 0, 0, 0, 0, 5], b"Hello")]),
        whole("2^63 - 1 bytes, of which nine come", &[announcing(by, BINARY, vec![127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], b"and no more")]),
        whole("2^64 - 1 bytes, of which nine come", &[announcing(by, BINARY, vec![127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], b"and no more")]),
        whole("half a head", &[vec![BINARY]]),
    ]);
    // 10: one message in fragments that are writes of another size.
    rows.push(chopped("64 KiB in fragments of 1300 bytes", &fragments(by, TEXT, 1300, 50), 1337));
    rows
}

/// How a client comes in: what the way is called, its host, and a new connection.
#[derive(Debug, Clone, Copy)]
struct Door {
    name: &'static str,
    host: &'static str,
    tls: bool,
    http2: bool,
}

/// The gateway, and the sidecar of a caller.
const DOORS: [Door; 6] = [
    Door::new("the gateway", "orders", false, false),
    Door::new("the gateway, h2c", "orders", false, true),
    Door::new("the gateway, TLS", "edge.test", true, false),
    Door::new("the gateway, h2", "edge.test", true, true),
    Door::new("a sidecar", "orders", false, false),
    Door::new("a sidecar, h2c", "orders", false, true),
];

impl Door {
    const fn new(name: &'static str, host: &'static str, tls: bool, http2: bool) -> Self {
        Self {
            name,
            host,
            tls,
            http2,
        }
    }

    async fn connect(self, mesh: &Mesh) -> Box<dyn wire::Stream> {
        if self.tls {
            let alpn = if self.http2 { "h2" } else { "http/1.1" };
            let trust = mesh.authority.client(&[alpn]);
            let stream = Client::handshake(mesh.secure(), trust, self.host).await;
            return Box::new(stream.unwrap());
        }
        let at = match self.name.starts_with("a sidecar") {
            true => mesh.outbound("storefront", 0),
            false => mesh.public(),
        };
        Box::new(Wire::connect(at).await.stream)
    }
}

/// A WebSocket as its client has it, whichever version carries it.
type Socket = Wire<Box<dyn wire::Stream>>;

async fn open(mesh: &Mesh, door: Door) -> Socket {
    let stream = door.connect(mesh).await;
    if door.http2 {
        let uri = format!("http://{}/orders/socket", door.host);
        let mut client = H2::over(stream).await;
        let (status, _, tunnel) = client.open_at(&uri, "websocket", b"").await;
        assert_eq!(status, 200, "{}", door.name);
        return Wire::new(Box::new(tunnel.stream));
    }
    let mut wire = Wire::new(stream);
    upgrade(&mut wire, door.host, "/orders/socket").await;
    wire
}

/// A mesh whose app hands its end of each WebSocket to the test.
async fn stage() -> (Mesh, mpsc::Receiver<Wire>) {
    let (sender, ends) = mpsc::channel(1);
    let app = Behaviour::script(move |mut wire| {
        let sender = sender.clone();
        async move {
            if let Some(head) = wire.head().await {
                wire.write(super::agreed(&head)).await;
                let _ = sender.send(wire).await;
            }
        }
    });
    let mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .tls()
        .start()
        .await;
    mesh.origin("orders", 0).does(app);
    (mesh, ends)
}

/// Both ends of a new WebSocket.
async fn both_ends(mesh: &Mesh, ends: &mut mpsc::Receiver<Wire>, door: Door) -> (Socket, Wire) {
    let client = open(mesh, door).await;
    let app = soon("the app's end", ends.recv()).await.unwrap();
    (client, app)
}

async fn say<S: wire::Stream>(wire: &mut Wire<S>, writes: &[Vec<u8>]) {
    for piece in writes {
        wire.write(piece).await;
        // So that each may be a frame of its own.
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_every_kind_arrive_as_they_were_sent_both_ways() {
    let (mesh, mut ends) = stage().await;
    for door in DOORS {
        let both = rows(By::Client).into_iter().zip(rows(By::App));
        for (number, ((what, up), (_, down))) in both.enumerate() {
            let (mut client, mut app) = both_ends(&mesh, &mut ends, door).await;
            let what = format!("{}: {what}", door.name);
            let (sent, answered) = (up.concat(), down.concat());
            let reading = soon(&what, app.exactly(sent.len()));
            let (_, arrived) = tokio::join!(say(&mut client, &up), reading);
            assert!(arrived.as_ref() == Some(&sent), "{what}, to the app");
            let reading = soon(&what, client.exactly(answered.len()));
            let (_, arrived) = tokio::join!(say(&mut app, &down), reading);
            assert!(arrived == Some(answered), "{what}, to the client");
            // And nothing more, whoever ends first.
            if number % 2 == 0 {
                client.finish().await;
                assert_eq!(app.rest().await, b"", "{what}");
                drop(app);
                assert_eq!(client.rest().await, b"", "{what}");
            } else {
                app.finish().await;
                assert_eq!(client.rest().await, b"", "{what}");
                client.finish().await;
                assert_eq!(app.rest().await, b"", "{what}");
            }
        }
    }
}

/// Neither side is kept from a word by what the other is about to say.
#[tokio::test(flavor = "multi_thread")]
async fn a_ping_is_answered_in_the_middle_of_a_message_both_ways() {
    let (mesh, mut ends) = stage().await;
    for door in DOORS {
        let (mut client, mut app) = both_ends(&mesh, &mut ends, door).await;
        let piece = vec![b'*'; 100_000];
        let half = |by| [frame(by, TEXT & !FIN, &piece), frame(by, PING, b"ping")].concat();
        let (asked, told) = (half(By::Client), half(By::App));
        client.write(&asked).await;
        let arrived = soon("half a message and a ping", app.exactly(asked.len())).await;
        assert!(arrived == Some(asked), "{}", door.name);
        // The app has begun a message of its own before it answers.
        app.write(&told).await;
        app.write(frame(By::App, PONG, b"ping")).await;
        let arrived = soon("the same", client.exactly(told.len())).await;
        assert!(arrived == Some(told.clone()), "{}", door.name);
        let pong = frame(By::App, PONG, b"ping");
        let arrived = soon("the answer", client.exactly(pong.len())).await;
        assert_eq!(arrived, Some(pong), "{}", door.name);
        // Neither message has ended, and half a frame is under way.
        let (begin, end) = told.split_at(50_000);
        app.write(begin).await;
        let arrived = soon("half a frame", client.exactly(begin.len())).await;
        assert!(arrived.as_deref() == Some(begin), "{}", door.name);
        let pong = frame(By::Client, PONG, b"ping");
        client.write(&pong).await;
        assert_eq!(soon("a pong", app.exactly(pong.len())).await, Some(pong));
        app.write(end).await;
        let arrived = soon("its rest", client.exactly(end.len())).await;
        assert!(arrived.as_deref() == Some(end), "{}", door.name);
        let last = frame(By::Client, CONTINUED, b"and so on");
        client.write(&last).await;
        assert_eq!(soon("the end", app.exactly(last.len())).await, Some(last));
    }
}

/// How a WebSocket ends in the test below.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The client ends its side.
    Client,
    /// The app closes its connection.
    App,
    /// The app breaks off.
    Reset,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_either_side_travels_as_fast_as_a_word() {
    const TIMES: usize = 9;
    let (mesh, mut ends) = stage().await;
    for door in DOORS {
        for how in [End::Client, End::App, End::Reset] {
            let (mut calm, mut ended) = (Vec::new(), Vec::new());
            for _ in 0..TIMES {
                let (mut client, mut app) = both_ends(&mesh, &mut ends, door).await;
                let begun = Instant::now();
                client.write(b"a").await;
                soon("a word", app.exactly(1)).await.unwrap();
                app.write(b"b").await;
                soon("its answer", client.exactly(1)).await.unwrap();
                calm.push(begun.elapsed());
                let begun = Instant::now();
                match how {
                    End::Client => {
                        client.finish().await;
                        app.rest().await;
                    }
                    End::App => {
                        drop(app);
                        client.rest().await;
                    }
                    End::Reset => {
                        app.reset();
                        client.rest().await;
                    }
                }
                ended.push(begun.elapsed());
            }
            let middle = |mut times: Vec<Duration>| {
                times.sort_unstable();
                times[TIMES / 2]
            };
            let (calm, ended) = (middle(calm), middle(ended));
            // One way, and no timer on it: the least that a system's timers can do is 10 ms and more.
            assert!(
                ended < calm * 4 + Duration::from_millis(5),
                "{}: {how:?} is told after {ended:?}, and a word and its answer take {calm:?}",
                door.name
            );
        }
    }
}
