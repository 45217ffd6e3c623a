//! The invariants under mutation, from fixed seeds: the same on every machine.

use std::time::{Duration, Instant};

use super::*;
use crate::http1::corpus;

/// The messages of the tables, each with the byte that chooses its role.
fn seeds() -> Vec<Vec<u8>> {
    let bodies: &[&[u8]] = &[
        b"5\r\nhello\r\n0\r\n\r\nnext",
        b"5;a=b;c=\"d\\\"\"\r\nhello\r\n0\r\nx: y\r\n\r\n",
        b"1\r\na\r\n2\r\nbc\r\n0\r\ngrpc-status: 0\r\nhost: b\r\n\r\nGET / HTTP/1.1\r\n",
    ];
    let long = |head: &str| {
        [
            head.as_bytes(),
            b"transfer-encoding: chunked\r\n\r\n",
            bodies[1],
        ]
        .concat()
    };
    let requests = corpus::requests()
        .into_iter()
        .map(|case| (0, case.bytes.to_vec()));
    let responses = corpus::responses().into_iter().map(|case| {
        let choice = match (case.method == Method::HEAD, case.asked_upgrade) {
            (true, _) => 3,
            (_, true) => 4,
            _ => 2,
        };
        (choice, case.bytes.to_vec())
    });
    let bodies = bodies.iter().map(|body| (5, body.to_vec()));
    let whole = [
        (0, long("POST /x HTTP/1.1\r\nhost: a\r\n")),
        (2, long("HTTP/1.1 200 OK\r\n")),
        (
            2,
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhellonext".to_vec(),
        ),
        (2, b"HTTP/1.1 200 OK\r\n\r\nuntil it closes".to_vec()),
    ];
    requests
        .chain(responses)
        .chain(bodies)
        .chain(whole)
        .map(|(choice, message)| [&[choice, 128], &message[..]].concat())
        .collect()
}

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\0",
    b",",
    b";",
    b"\"",
    b"\x7f",
    b"\x80",
    b"0\r\n\r\n",
    b"chunked",
    b"content-length: 1\r\n",
    b"transfer-encoding: chunked\r\n",
    b"host: b\r\n",
    b"connection: close\r\n",
    b"connection: x\r\n",
    b"te: trailers\r\n",
    b"expect: 100-continue\r\n",
    b"upgrade: websocket\r\nconnection: upgrade\r\n",
    b"http://b",
    b"9223372036854775807",
    b"18446744073709551616",
    b"7fffffffffffffff",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
];

fn mutate(random: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.usize(..seeds.len())].clone();
    bytes[1] = random.u8(..);
    for _ in 0..random.usize(1..5) {
        let at = random.usize(2..=bytes.len());
        match random.u8(..7) {
            0 if at < bytes.len() => bytes[at] = random.u8(..),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            2 if at < bytes.len() => {
                bytes.remove(at);
            }
            3 => {
                let other = &seeds[random.usize(..seeds.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.usize(2..=other.len())..]);
            }
            4 => {
                let end = random.usize(at..=bytes.len());
                bytes.extend_from_within(at..end);
            }
            _ => {
                let word = WORDS[random.usize(..WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn seeds_hold() {
    for seed in seeds() {
        for cut in (0..=u8::MAX).step_by(5) {
            fuzz(&[&[seed[0], cut], &seed[2..]].concat());
        }
    }
}

#[test]
fn mutations_hold() {
    const MOST: usize = 400_000;
    let seeds = seeds();
    let mut random = fastrand::Rng::with_seed(0x77_65_66_74);
    // A slow machine tries fewer of the same.
    let end = Instant::now() + Duration::from_secs(5);
    for round in 0..MOST {
        let bytes = mutate(&mut random, &seeds);
        if let Err(panic) = std::panic::catch_unwind(|| fuzz(&bytes)) {
            eprintln!("round {round}: {}", bytes.escape_ascii());
            std::panic::resume_unwind(panic);
        }
        if round % 1000 == 0 && Instant::now() > end {
            assert!(round > 1000, "only {round} tries in five seconds");
            break;
        }
    }
}

#[test]
fn noise_holds() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        let size = random.usize(..200);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
            .take(size)
            .collect();
        fuzz(&bytes);
    }
}
