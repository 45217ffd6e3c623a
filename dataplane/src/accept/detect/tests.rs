//! What first bytes say, as a table, and what silence says.

#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[test]
fn first_bytes_decide_as_soon_as_they_can() {
    let check = |bytes: &[u8], decided_at: usize, expected: Detected| {
        let name = String::from_utf8_lossy(bytes);
        for length in 0..bytes.len() {
            let so_far = judge(&bytes[..length]);
            let expected = (length >= decided_at).then_some(expected);
            assert_eq!(so_far, expected, "the first {length} of {name:?}");
        }
        assert_eq!(judge(bytes), Some(expected), "{name:?}");
    };
    use Detected::{BrokenHttp2, Http1, Http2, Opaque, Tls};
    let whole = |text: &[u8]| text.len();
    for line in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.0\n",
        "POST http://orders/1 HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT db:5432 HTTP/1.1\r\n",
        "BASELINE-CONTROL /a HTTP/1.1\r\n",
        "\r\nGET / HTTP/1.1\r\n",
        "PRIVATE / HTTP/1.1\r\n",
        // The codec says what is wrong with it.
        "GET / HTTP/3.0\r\n",
    ] {
        check(line.as_bytes(), whole(line.as_bytes()), Http1);
    }
    check(PREFACE, whole(PREFACE), Http2);
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", 24, BrokenHttp2);
    check(b"PRI * HTTP/2.1\r\n", 14, BrokenHttp2);
    check(b"PRI * HTTP/2 ", 13, BrokenHttp2);
    check(b"PRI * HTTP/1.1\r\n", 16, Http1);
    // TLS: a handshake record, versions 1.0 to 1.3, a ClientHello.
    check(b"\x16\x03\x01\x02\x00\x01\x00", 6, Tls);
    check(b"\x16\x03\x03\x00\x10\x01", 6, Tls);
    check(b"\x16\x03\x01\x02\x00\x02\x00", 6, Opaque);
    check(b"\x16\x05\x01", 2, Opaque);
    check(b"\x16\x03\x09", 3, Opaque);
    // Protocols of text that begin like a request and are none.
    check(b"GET key\r\n", 9, Opaque);
    check(b"get key\n", 8, Opaque);
    check(b"SET key HTTP/1.1x\r\n", 19, Opaque);
    check(b"GET HTTP/1.1\r\n", 14, Http1);
    check(b"EHLO mail.example\r\n", 19, Opaque);
    check(b"QUIT\r\n", 5, Opaque);
    check(b"SSH-2.0-OpenSSH_9.2\r\n", 20, Opaque);
    // And such as do not.
    check(b"*1\r\n$4\r\nPING\r\n", 3, Opaque);
    check(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1, Opaque);
    check(b"\x10\x26\x00", 1, Opaque);
    check(b"\r\n\r\n", 3, Opaque);
    check(b"\rx", 2, Opaque);
    check(b"<stream>", 1, Opaque);
    check(b"GET /a\x00b HTTP/1.1\r\n", 7, Opaque);
    check(b"GET / HTTP/1.1\rx", 16, Opaque);
    check(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", 25, Opaque);
}

#[test]
fn a_line_without_end_is_decided_all_the_same() {
    let endless = [b"GET /".as_slice(), &[b'x'; 2 * MOST]].concat();
    assert_eq!(judge(&endless[..MOST]), None);
    assert_eq!(judge(&endless), Some(Detected::Http1));
}

#[test]
fn half_a_request_line_is_http_when_patience_ends() {
    let check = |bytes: &[u8], expected: Detected| {
        assert_eq!(judge(bytes), None, "it is open");
        assert_eq!(after_patience(bytes), expected);
    };
    check(b"GET /slow", Detected::Http1);
    check(b"POST http://orders", Detected::Http1);
    check(b"", Detected::Timeout);
    check(b"GET key", Detected::Timeout);
    check(b"HELO", Detected::Timeout);
    check(b"PRI * HTTP", Detected::Timeout);
    check(b"\x16\x03", Detected::Timeout);
}

async fn pair() -> (Io, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    (Io::plain(ours), theirs)
}

const PATIENCE: Duration = Duration::from_millis(200);

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_waits_for_the_patience_and_no_longer() {
    let (mut io, _theirs) = pair().await;
    let start = Instant::now();
    assert_eq!(protocol(&mut io, PATIENCE).await, Some(Detected::Timeout));
    assert_eq!(start.elapsed().as_millis(), PATIENCE.as_millis());
}

#[tokio::test]
async fn what_was_read_is_still_there() {
    let (mut io, mut theirs) = pair().await;
    theirs.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    let detected = protocol(&mut io, Duration::from_secs(60)).await;
    assert_eq!(detected, Some(Detected::Opaque));
    let mut again = [0; 14];
    io.read_exact(&mut again).await.unwrap();
    assert_eq!(&again, b"*1\r\n$4\r\nPING\r\n");
}

#[tokio::test]
async fn an_end_without_a_word_is_passed_on() {
    let (mut io, mut theirs) = pair().await;
    theirs.shutdown().await.unwrap();
    let detected = protocol(&mut io, Duration::from_secs(60)).await;
    assert_eq!(detected, Some(Detected::Opaque));
}
