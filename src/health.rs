//! `weft health`: asks the process beside it whether it is ready, and says so by its exit code. Health checks of
//! containers use it: an image with one binary has neither a shell nor curl.
//!
//! It reads no configuration: a file that was broken a minute ago does not make a process sick that goes on with the last
//! good one.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use weft_runtime::config::units::Period;

/// The most that is read of an answer; what is missing takes a line.
const LONGEST: usize = 16 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its admin pages
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 15_000)))]
    address: SocketAddr,
    /// Asks whether it runs, and not whether traffic may come
    #[arg(long)]
    live: bool,
    /// How long the answer may take
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    timeout: Period,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let page = if args.live { "/live" } else { "/ready" };
    match ask(args.address, page, args.timeout.as_duration()) {
        Ok(answer) if answer.status == 200 => {
            println!("{}", answer.body.trim_end());
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            eprintln!("{}", answer.body.trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!(
                "http://{}{page}: {error}; is a `weft` running here, with its admin pages at that address?",
                args.address
            );
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: String,
}

/// One exchange, all of it within `limit`.
fn ask(address: SocketAddr, page: &str, limit: Duration) -> io::Result<Answer> {
    let until = Instant::now() + limit;
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok::<_, io::Error>(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    write!(
        stream,
        "GET {page} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    let mut piece = [0; 2048];
    while bytes.len() < LONGEST {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
            // A signal, which is no answer: with a timeout set the system does not go on by itself.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    parse(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP"))
}

/// Our own admin pages answer with a `content-length`, so that what follows the head is the body.
fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.split(' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    Some(Answer {
        status: words.next()?.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        let answer = |status, body: &str| {
            Some(Answer {
                status,
                body: body.to_owned(),
            })
        };
        for (text, expected) in [
            (
                "HTTP/1.1 200 OK\r\na: b\r\n\r\nlive\n",
                answer(200, "live\n"),
            ),
            ("HTTP/1.1 503 \r\na: b\r\n\r\n", answer(503, "")),
            ("HTTP/1.1 200 OK\r\n", None),
            ("HTTP/1.1\r\n\r\n", None),
            ("SSH-2.0-x\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn silence_ends_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = ask(address, "/ready", Duration::from_millis(50)).unwrap_err();
        let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        assert!(kinds.contains(&error.kind()), "{error:?}");
    }
}
