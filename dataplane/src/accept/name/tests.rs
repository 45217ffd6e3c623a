//! Read ahead in one piece and byte by byte, by who begins to speak and goes on, stops, or says something else.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Longer than any of these tests may take.
const LONG: Duration = Duration::from_secs(60);

/// A connection, from both ends.
async fn pair() -> (TcpStream, Io) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let client = client.unwrap();
    client.set_nodelay(true).unwrap();
    (client, Io::plain(accepted.unwrap().0))
}

/// What is found when this is sent in pieces of this size; nothing of it may be lost.
async fn found<T>(
    bytes: &[u8],
    piece: usize,
    read: impl AsyncFnOnce(&mut Io) -> Option<T>,
) -> Option<T> {
    let (mut client, mut io) = pair().await;
    // Detection has read a part before and put it back.
    let begun = bytes.len().min(3);
    io.unread(Bytes::copy_from_slice(&bytes[..begun]));
    let send = async {
        for piece in bytes[begun..].chunks(piece) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
    };
    let take = async {
        let found = read(&mut io).await;
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, bytes);
        found
    };
    tokio::join!(take, send).0
}

async fn host(bytes: &[u8], piece: usize) -> Option<String> {
    let limits = Limits::default();
    found(bytes, piece, async |io| head(io, &limits, LONG).await)
        .await
        .map(|head| head.host().to_owned())
}

async fn sni(bytes: &[u8], piece: usize) -> Option<String> {
    found(bytes, piece, async |io| server(io, LONG).await).await
}

fn client_hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(crate::identity::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn a_host_is_found_however_its_head_arrives() {
    let request =
        b"POST /a HTTP/1.1\r\naccept: */*\r\nhost: orders:8080\r\ncontent-length: 4\r\n\r\nbody";
    for piece in [1, 7, 1000] {
        assert_eq!(host(request, piece).await.as_deref(), Some("orders"));
    }
    let absolute = b"GET http://orders/ HTTP/1.1\r\nhost: orders\r\n\r\n";
    assert_eq!(host(absolute, 1000).await.as_deref(), Some("orders"));
}

#[tokio::test]
async fn what_is_no_request_of_ours_has_no_host() {
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nhost: orders\r\n",
        b"EHLO mail.example\r\n",
        b"\x00\x01\x02",
        b"",
    ] {
        assert_eq!(host(bytes, 1000).await, None, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_servers_name_is_found_however_the_hello_arrives() {
    let hello = client_hello("api.example");
    for piece in [1, 100, 5000] {
        assert_eq!(sni(&hello, piece).await.as_deref(), Some("api.example"));
    }
    // In two records, as is allowed.
    let (first, second) = hello[5..].split_at(60);
    let mut split = Vec::new();
    for part in [first, second] {
        split.extend_from_slice(&hello[..3]);
        split.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        split.extend_from_slice(part);
    }
    assert_eq!(sni(&split, 1000).await.as_deref(), Some("api.example"));
}

#[tokio::test]
async fn a_hello_without_a_name_or_none_at_all_has_none() {
    assert_eq!(sni(&client_hello("10.0.0.1"), 1000).await, None);
    let hello = client_hello("api.example");
    assert_eq!(sni(&hello[..40], 1000).await, None, "cut short");
    assert_eq!(sni(b"\x16\x03\x01\x00\x02\xff\xff", 1000).await, None);
    assert_eq!(sni(b"GET / HTTP/1.1\r\n\r\n", 1000).await, None);
}

#[tokio::test]
async fn no_more_is_held_than_the_bound() {
    let limits = Limits::default();
    let endless = vec![b'a'; limits.head_bytes * 3];
    let mut request = b"GET / HTTP/1.1\r\nx: ".to_vec();
    request.extend_from_slice(&endless);
    assert_eq!(host(&request, 4096).await, None);
    // A record that says that it is longer than records may be.
    let mut record = vec![0x16, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xff];
    record.extend_from_slice(&endless);
    assert_eq!(sni(&record, 4096).await, None);
}

#[tokio::test]
async fn who_stops_is_waited_for_and_not_for_ever() {
    let (mut client, mut io) = pair().await;
    client.write_all(b"GET / HT").await.unwrap();
    let limits = Limits::default();
    let patience = Duration::from_millis(50);
    assert!(head(&mut io, &limits, patience).await.is_none());
    let mut all = [0; 8];
    io.read_exact(&mut all).await.unwrap();
    assert_eq!(&all, b"GET / HT");
}
