//! Tunnels over real sockets: each direction ends by itself, the slower side sets the pace, and breaks are passed on.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::rc::Rc;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::super::end::{PIECE, free_spaces};
use super::*;
use crate::accept::Io;
use crate::testing::{story, until};

const PATIENCE: Patience<'static> = Patience {
    idle: Duration::from_secs(600),
    half_closed: Duration::from_secs(600),
    unread: Duration::from_secs(600),
    clogged: None,
};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (listener.accept().await.unwrap().0, theirs)
}

struct Tunnel {
    client: TcpStream,
    endpoint: TcpStream,
    moved: Rc<Cell<(u64, u64)>>,
    running: JoinHandle<Ending>,
}

/// A tunnel between two sockets, of which the story holds the far ends.
async fn tunnel(patience: Patience<'static>) -> Tunnel {
    between(pair().await, pair().await, patience)
}

/// The same between these.
fn between(
    (near, client): (TcpStream, TcpStream),
    (far, endpoint): (TcpStream, TcpStream),
    patience: Patience<'static>,
) -> Tunnel {
    let moved = Rc::new(Cell::new((0, 0)));
    let counted = Rc::clone(&moved);
    let running = tokio::task::spawn_local(async move {
        let (mut near, mut far) = (End::socket(Io::plain(near)), End::socket(Io::plain(far)));
        copy(&mut near, &mut far, patience, |up, down| {
            let (before_up, before_down) = counted.get();
            counted.set((before_up + up, before_down + down));
        })
        .await
    });
    Tunnel {
        client,
        endpoint,
        moved,
        running,
    }
}

#[test]
fn each_direction_ends_by_itself() {
    story(async {
        for client_first in [true, false] {
            let mut tunnel = tunnel(PATIENCE).await;
            let (first, second) = match client_first {
                true => (&mut tunnel.client, &mut tunnel.endpoint),
                false => (&mut tunnel.endpoint, &mut tunnel.client),
            };
            first.write_all(b"that is all").await.unwrap();
            first.shutdown().await.unwrap();
            let mut heard = String::new();
            second.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "that is all", "and its end");
            second.write_all(b"not for me").await.unwrap();
            second.shutdown().await.unwrap();
            heard.clear();
            first.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "not for me");
            assert!(matches!(tunnel.running.await.unwrap(), Ending::Complete));
            assert_eq!(
                tunnel.moved.get(),
                if client_first { (11, 10) } else { (10, 11) }
            );
        }
    });
}

#[test]
fn much_arrives_unchanged_both_ways_at_once() {
    story(async {
        const MUCH: usize = 3_000_001;
        let tunnel = tunnel(PATIENCE).await;
        let talk = |stream: TcpStream, salt: usize| {
            tokio::task::spawn_local(async move {
                let ours: Vec<u8> = (0..MUCH).map(|at| (at * 31 + salt) as u8).collect();
                let (mut read, mut write) = stream.into_split();
                let writing = tokio::task::spawn_local(async move {
                    write.write_all(&ours).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                let mut theirs = Vec::new();
                read.read_to_end(&mut theirs).await.unwrap();
                writing.await.unwrap();
                theirs
            })
        };
        let (one, other) = (talk(tunnel.client, 1), talk(tunnel.endpoint, 2));
        let is = |got: &[u8], salt: usize| {
            got.len() == MUCH
                && got
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == (at * 31 + salt) as u8)
        };
        assert!(is(&one.await.unwrap(), 2));
        assert!(is(&other.await.unwrap(), 1));
        assert!(matches!(tunnel.running.await.unwrap(), Ending::Complete));
        assert_eq!(tunnel.moved.get(), (MUCH as u64, MUCH as u64));
    });
}

#[test]
fn a_reader_who_stops_has_little_taken_in_for_it() {
    story(async {
        let (client, endpoint) = (pair().await, pair().await);
        // What the kernel may hold on the way: so little that what we hold shows beside it.
        let buffers: usize = [&client.0, &client.1, &endpoint.0, &endpoint.1]
            .map(|stream| {
                let socket = SockRef::from(stream);
                socket.set_send_buffer_size(16 * 1024).unwrap();
                socket.set_recv_buffer_size(16 * 1024).unwrap();
                // One of the two is on the way.
                socket.send_buffer_size().unwrap()
            })
            .into_iter()
            .sum();
        let mut tunnel = between(client, endpoint, PATIENCE);
        let piece = [b'x'; 16 * 1024];
        let mut sent = 0_u64;
        // As far as the kernels' buffers and ours go.
        while let Ok(length) =
            tokio::time::timeout(Duration::from_millis(500), tunnel.client.write(&piece)).await
        {
            sent += length.unwrap() as u64;
        }
        let (up, _) = tunnel.moved.get();
        assert!(up > 0, "the endpoint's kernel took some");
        let most = 64 * 1024 + buffers as u64;
        assert!(sent <= most, "{sent} bytes were taken, and {most} may be");
        // Then everything arrives all the same.
        tunnel.client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        tunnel.endpoint.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len() as u64, sent);
    });
}

#[test]
fn whoever_waits_holds_no_buffer() {
    story(async {
        let mut tunnels = Vec::new();
        for _ in 0..20 {
            tunnels.push(tunnel(PATIENCE).await);
        }
        for tunnel in &mut tunnels {
            tunnel.client.write_all(b"ping").await.unwrap();
            let mut heard = [0; 4];
            tunnel.endpoint.read_exact(&mut heard).await.unwrap();
        }
        until("all have said what they moved", || {
            tunnels.iter().all(|tunnel| tunnel.moved.get().0 == 4)
        })
        .await;
        // Twenty idle tunnels of this thread share what one needs at a time.
        assert!(free_spaces() <= 2, "{} of {PIECE} bytes", free_spaces());
    });
}

#[test]
fn a_reset_is_passed_on_as_one() {
    story(async {
        for client_breaks in [true, false] {
            let mut tunnel = tunnel(PATIENCE).await;
            let (breaking, mut other) = match client_breaks {
                true => (tunnel.client, tunnel.endpoint),
                false => (tunnel.endpoint, tunnel.client),
            };
            other.write_all(b"x").await.unwrap();
            breaking.set_zero_linger().unwrap();
            drop(breaking);
            let mut heard = Vec::new();
            let error = other.read_to_end(&mut heard).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            let ending = (&mut tunnel.running).await.unwrap();
            match client_breaks {
                true => assert!(matches!(ending, Ending::Client(_)), "{ending:?}"),
                false => assert!(matches!(ending, Ending::Endpoint(_)), "{ending:?}"),
            }
        }
    });
}

#[test]
fn last_words_arrive_although_nobody_listens_any_more() {
    story(async {
        let mut tunnel = tunnel(PATIENCE).await;
        tunnel.endpoint.write_all(b"last words").await.unwrap();
        // Closed with bytes unread: the endpoint's kernel answers what still comes with a reset.
        tunnel.client.write_all(b"unheard").await.unwrap();
        tunnel.endpoint.readable().await.unwrap();
        drop(tunnel.endpoint);
        let mut heard = [0; 10];
        tunnel.client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"last words");
        let ending = tunnel.running.await.unwrap();
        assert!(matches!(ending, Ending::Endpoint(_)), "{ending:?}");
    });
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_and_sooner_when_one_side_has_ended() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let patience = Patience {
                idle: Duration::from_secs(3600),
                half_closed: Duration::from_secs(10),
                ..PATIENCE
            };
            let start = Instant::now();
            let quiet = tunnel(patience).await;
            assert!(matches!(quiet.running.await.unwrap(), Ending::Idle));
            assert_eq!(start.elapsed().as_secs(), 3600);
            let start = Instant::now();
            let mut half = tunnel(patience).await;
            half.client.shutdown().await.unwrap();
            assert!(matches!(half.running.await.unwrap(), Ending::Idle));
            assert_eq!(start.elapsed().as_secs(), 10);
        })
        .await;
}
