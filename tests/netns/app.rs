//! Apps and clients that know nothing of Weft: plain blocking sockets, on a host of the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::ground::{APP, Host};
use crate::harness::wire::Head;
use crate::hostile::frames::{
    END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, block, frame,
};
use crate::websocket::agreed;

/// How long any one read may take: far above what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an app does with each connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Does {
    /// Answers every request with its own name, and with the caller as it was told.
    Http(&'static str),
    /// Says this first, then sends back what it gets, to the end.
    Greet(&'static str),
    /// Agrees to be a WebSocket, and then waits for the end.
    Chat,
    /// Begins to answer one call of gRPC, and then waits for the end of it.
    Call,
    /// Answers a request with so many bytes.
    Large(usize),
    /// Takes what comes, and never says a word.
    Listen,
}

/// A listening app. It ends with the test process.
#[derive(Debug)]
pub(crate) struct App {
    /// From where it was called, in order.
    callers: Arc<Mutex<Vec<SocketAddr>>>,
    /// What HTTP was asked, such as `GET /`.
    requests: Arc<Mutex<Vec<String>>>,
    /// Connections that are over.
    ended: Arc<AtomicUsize>,
}

impl App {
    pub(crate) fn start(host: &Host, address: &str, does: Does) -> Self {
        let callers: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let listener = host.run(|| TcpListener::bind(address).unwrap());
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let ended: Arc<AtomicUsize> = Arc::default();
        let (seen, asked, over) = (
            Arc::clone(&callers),
            Arc::clone(&requests),
            Arc::clone(&ended),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                seen.lock().unwrap().push(stream.peer_addr().unwrap());
                // A client that goes away is no failure of the app.
                let (asked, over) = (Arc::clone(&asked), Arc::clone(&over));
                std::thread::spawn(move || {
                    let _: std::io::Result<()> = does.serve(stream, &asked);
                    over.fetch_add(1, Relaxed);
                });
            }
        });
        Self {
            callers,
            requests,
            ended,
        }
    }

    /// How many connections have come to their end, as it sees it.
    pub(crate) fn ended(&self) -> usize {
        self.ended.load(Relaxed)
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn callers(&self) -> Vec<SocketAddr> {
        self.callers.lock().unwrap().clone()
    }
}

impl Does {
    fn serve(self, mut stream: TcpStream, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
        match self {
            Self::Greet(words) => {
                stream.write_all(words.as_bytes())?;
                let mut back = stream.try_clone()?;
                std::io::copy(&mut stream, &mut back)?;
                back.shutdown(std::net::Shutdown::Write)
            }
            Self::Chat => {
                let text = read_head(&mut BufReader::new(stream.try_clone()?))?;
                stream.write_all(agreed(&Head { text }).as_bytes())?;
                std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
            }
            Self::Call => {
                let mut reader = BufReader::new(stream.try_clone()?);
                reader.read_exact(&mut [0; PREFACE.len()])?;
                stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
                // `:status 200` of the static table.
                let head = [&[0x88][..], &block(&[GRPC])].concat();
                loop {
                    let asked = read_frame(&mut reader)?;
                    let answer = match asked.kind {
                        HEADERS => frame(HEADERS, END_HEADERS, asked.stream, &head),
                        PING if asked.flags == 0 => frame(PING, 1, 0, &asked.payload),
                        RST_STREAM => break,
                        _ => continue,
                    };
                    stream.write_all(&answer)?;
                }
                Ok(())
            }
            Self::Listen => std::io::copy(&mut stream, &mut std::io::sink()).map(drop),
            Self::Large(length) => {
                read_head(&mut BufReader::new(stream.try_clone()?))?;
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
                )?;
                stream.write_all(&vec![b'x'; length])
            }
            Self::Http(name) => {
                let mut reader = BufReader::new(stream.try_clone()?);
                loop {
                    let head = read_head(&mut reader)?;
                    if head.is_empty() {
                        return Ok(());
                    }
                    let words: Vec<&str> = head.split(' ').take(2).collect();
                    asked.lock().unwrap().push(words.join(" "));
                    let caller = field(&head, "x-forwarded-client-cert").unwrap_or("nobody");
                    let body = format!("{name} called by {caller}");
                    let length = body.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                    stream.write_all(answer.as_bytes())?;
                }
            }
        }
    }
}

/// The media type of a call.
pub(crate) const GRPC: (&[u8], &[u8]) = (b"content-type", b"application/grpc");

/// A frame of HTTP/2.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

pub(crate) fn read_frame(reader: &mut impl Read) -> std::io::Result<Frame> {
    let mut head = [0; 9];
    reader.read_exact(&mut head)?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    reader.read_exact(&mut payload)?;
    Ok(Frame {
        kind,
        flags,
        stream: u32::from_be_bytes(stream),
        payload,
    })
}

pub(crate) fn read_head(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            break;
        }
    }
    Ok(head)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (own, value) = line.split_once(':')?;
        own.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The reason, if Weft made it.
    pub(crate) fn reason(&self) -> Option<&str> {
        field(&self.head, "weft-reason")
    }
}

/// A connection of an app on this host.
pub(crate) fn connect(host: &Host, to: &str) -> std::io::Result<TcpStream> {
    connect_as(host, APP, to)
}

/// A connection of this user on this host.
pub(crate) fn connect_as(host: &Host, user: u32, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = host.as_user(user, || TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection of an app on this host, from one of the host's addresses.
pub(crate) fn connect_from(host: &Host, from: &str, to: &str) -> std::io::Result<TcpStream> {
    let from: SocketAddr = format!("{from}:0").parse().unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let stream = host.as_user(APP, || -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket.into())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A GET as an app sends it that knows nothing of a proxy: to an address, for a host.
pub(crate) fn get(host: &Host, to: &str, name: &str) -> std::io::Result<Answer> {
    get_on(&mut connect(host, to)?, name, "/")
}

/// The same on a connection that is there.
pub(crate) fn get_on(stream: &mut TcpStream, name: &str, path: &str) -> std::io::Result<Answer> {
    ask_on(stream, &format!("GET {path}"), name)
}

/// Any request without a body, such as `POST /`.
pub(crate) fn ask_on(stream: &mut TcpStream, what: &str, name: &str) -> std::io::Result<Answer> {
    // In one piece: a second one would wait for the acknowledgement of the first.
    let request = format!("{what} HTTP/1.1\r\nhost: {name}\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader)?;
    let broken = || std::io::Error::other(format!("no answer: {head:?}"));
    let status = head.split(' ').nth(1).ok_or_else(broken)?;
    let status = status.parse().map_err(|_| broken())?;
    let length = field(&head, "content-length").and_then(|value| value.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Answer {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
        head,
    })
}

/// Everything that comes until the other side ends.
pub(crate) fn rest(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut rest = String::new();
    stream.read_to_string(&mut rest)?;
    Ok(rest)
}

/// Whether a connection on which this is sent breaks; it may before we have said a word.
pub(crate) fn breaks(host: &Host, to: &str, bytes: &[u8]) -> bool {
    let whole = connect(host, to).and_then(|mut stream| {
        stream.write_all(bytes)?;
        rest(&mut stream)
    });
    whole.is_err()
}

/// So many bytes, as text.
pub(crate) fn take(stream: &mut TcpStream, count: usize) -> std::io::Result<String> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A page of the sidecar on this host.
pub(crate) fn get_on_admin(host: &Host, path: &str) -> std::io::Result<Answer> {
    let mut stream = connect_as(host, 0, "127.0.0.1:15000")?;
    get_on(&mut stream, "localhost", path)
}
