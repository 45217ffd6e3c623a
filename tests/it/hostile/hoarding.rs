//! Who asks for much and does not take it: little is held for them, and nobody else waits.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Request;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Scene;
use crate::alone::{Host, Origin, PATIENCE, Way, until};
use crate::harness::app::send_all;
use crate::harness::{listening, settled};

/// What each answer holds.
pub(super) const SIZE: usize = 1 << 20;
/// Streams that are not read.
pub(super) const STREAMS: usize = 1500;
/// Streams of one connection, as the edge allows.
pub(super) const EACH: usize = 100;
/// What is written at once.
static PIECE: [u8; 16 * 1024] = [b'x'; 16 * 1024];

/// What an app was asked, and what was taken from it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Bytes of megabytes.
    pub(super) sent: AtomicUsize,
    /// Megabytes of which some was taken.
    pub(super) begun: AtomicUsize,
    /// Heads of uploads.
    pub(super) uploads: AtomicUsize,
}

/// An app that answers `/good` at once and everything else with a megabyte, as fast as it is taken. It reads no body.
pub(super) fn app(address: SocketAddr) -> (JoinSet<()>, Arc<Ledger>) {
    let listener = listening(address);
    let (ledger, mut tasks) = (Arc::new(Ledger::default()), JoinSet::new());
    let noted = Arc::clone(&ledger);
    tasks.spawn(async move {
        let mut conversations = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            conversations.spawn(async move {
                let _: Option<()> = converse(stream, &noted).await;
            });
        }
    });
    (tasks, ledger)
}

async fn converse(stream: TcpStream, ledger: &Ledger) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    // So that what is sent was taken, and does not lie in this host's own buffers: they can hold all of it.
    SockRef::from(&stream)
        .set_send_buffer_size(PIECE.len())
        .ok()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_until(b'\n', &mut head).await.ok()? == 0 {
                return None;
            }
        }
        if head.starts_with(b"POST ") {
            ledger.uploads.fetch_add(1, Ordering::Relaxed);
            // Never read, never answered.
            sleep(PATIENCE).await;
            return None;
        }
        let good = head.starts_with(b"GET /good ");
        let size = if good { 2 } else { SIZE };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.ok()?;
        if good {
            stream.write_all(b"ok").await.ok()?;
            continue;
        }
        let mut left = SIZE;
        while left > 0 {
            let length = stream.write(&PIECE[..left.min(PIECE.len())]).await.ok()?;
            ledger.sent.fetch_add(length, Ordering::Relaxed);
            ledger
                .begun
                .fetch_add(usize::from(left == SIZE), Ordering::Relaxed);
            left -= length;
        }
    }
}

/// A connection by HTTP/2, as wide as `stream` and `connection` say, and the task that drives it.
pub(super) async fn connected(
    way: &Way,
    stream: u32,
    connection: u32,
    tasks: &mut JoinSet<()>,
) -> h2::client::SendRequest<Bytes> {
    let io = way.connect().await.unwrap();
    let (sender, driver) = h2::client::Builder::new()
        .initial_window_size(stream)
        .initial_connection_window_size(connection)
        .handshake(io)
        .await
        .unwrap();
    tasks.spawn(async move {
        let _: Result<(), h2::Error> = driver.await;
    });
    sender
}

pub(super) fn asks(method: &str, host: &str) -> Request<()> {
    let uri = format!("http://{host}/big");
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

pub(super) async fn stage() -> (Scene, JoinSet<()>, Arc<Ledger>) {
    let host = Host::new();
    let (tasks, ledger) = app(host.app());
    let scene = Scene::of(host, Origin::nobody()).await;
    (scene, tasks, ledger)
}

/// 1,500 answers of a megabyte, through gateway and sidecar, for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_not_held_and_stop_nobody() {
    let (mut scene, mut tasks, app) = stage().await;
    let public = Way::Plain(scene.host.public());
    let attack = async {
        let (mut held, mut senders) = (Vec::new(), Vec::new());
        for _ in 0..STREAMS / EACH {
            let mut sender = connected(&public, 0, 1 << 20, &mut tasks).await;
            let mut unread = Vec::new();
            for _ in 0..EACH {
                sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
                unread.push(sender.send_request(asks("GET", "orders"), true).unwrap().0);
            }
            senders.push(sender);
            // Not all at once: the app could not take so many connections, and it is not what is attacked.
            for response in unread {
                let response = timeout(PATIENCE, response).await.unwrap().unwrap();
                assert_eq!(response.status(), 200);
                held.push(response);
            }
        }
        settled(&app.sent).await;
        let taken = app.sent.load(Ordering::Relaxed);
        assert!(taken < STREAMS * SIZE, "all of it was taken from the app");
        // On the very connections between gateway and sidecar that the others clog.
        let mut sender = connected(&public, 1 << 20, 1 << 20, &mut tasks).await;
        for _ in 0..3 {
            sender = sender.ready().await.unwrap();
            let (response, _) = sender.send_request(asks("GET", "orders"), true).unwrap();
            let response = timeout(PATIENCE, response).await.unwrap().unwrap();
            assert_eq!(read(response.into_body()).await, SIZE);
        }
        drop((held, senders));
    };
    let good = scene.doors(&["http/1.1"]);
    scene.under_attack("unread answers", &good, attack).await;
}

pub(super) async fn read(mut body: h2::RecvStream) -> usize {
    let mut read = 0;
    while let Some(data) = timeout(PATIENCE, body.data()).await.unwrap() {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read += data.len();
    }
    read
}

/// Windows without end are a promise to read; who breaks it is not believed.
#[tokio::test(flavor = "multi_thread")]
async fn promises_to_read_are_not_believed_at_any_door() {
    const CONNECTIONS: usize = 4;
    const ALL: usize = CONNECTIONS * EACH;
    let (mut scene, _app, app) = stage().await;
    for (door, way) in scene.doors(&["h2"]) {
        let (begun, sent) = (counted(&app.begun), counted(&app.sent));
        let attack = async {
            use super::frames::*;
            let mut frozen = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut stream = way.connect().await.unwrap();
                let windows = [&4_u16.to_be_bytes()[..], &0x7fff_ffff_u32.to_be_bytes()].concat();
                let mut bytes = [
                    PREFACE.to_vec(),
                    frame(SETTINGS, 0, 0, &windows),
                    frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()),
                ]
                .concat();
                for number in 0..EACH as u32 {
                    let fields = other(b":method", Some(b"GET"));
                    bytes.extend(frame(HEADERS, WHOLE_HEAD, 2 * number + 1, &block(&fields)));
                }
                stream.write_all(&bytes).await.unwrap();
                stream.flush().await.unwrap();
                frozen.push(stream);
            }
            until("each of the answers to be taken from", async || {
                (counted(&app.begun) == begun + ALL).then_some(())
            })
            .await;
            settled(&app.sent).await;
            let taken = counted(&app.sent) - sent;
            assert!(taken < ALL * SIZE, "{door}: all was taken from the app");
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
    }
}

fn counted(count: &AtomicUsize) -> usize {
    count.load(Ordering::Relaxed)
}

/// An app that reads nothing stops those who upload to it, at every door.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_reads_are_not_held() {
    const CONNECTIONS: usize = 3;
    const ALL: usize = CONNECTIONS * EACH;
    let (mut scene, mut tasks, app) = stage().await;
    for (door, way) in scene.doors(&["h2"]) {
        let uploads = counted(&app.uploads);
        let taken = Arc::new(AtomicUsize::new(0));
        let attack = async {
            let mut uploading = JoinSet::new();
            for _ in 0..CONNECTIONS {
                let mut sender = connected(&way, 1 << 16, 1 << 20, &mut tasks).await;
                for _ in 0..EACH {
                    sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
                    let (response, stream) =
                        sender.send_request(asks("POST", "plain"), false).unwrap();
                    uploading.spawn(upload(response, stream, Arc::clone(&taken)));
                }
            }
            until("each of the uploads to reach the app", async || {
                (counted(&app.uploads) == uploads + ALL).then_some(())
            })
            .await;
            // The system's own buffers may take all of it on the way to the app: what our processes hold is watched.
            settled(&taken).await;
        };
        let good = scene.good_ways(&[door]);
        scene.under_attack(door, &good, attack).await;
    }
}

/// Sends a megabyte as far as it is taken, and waits for an answer.
async fn upload(
    response: h2::client::ResponseFuture,
    mut stream: h2::SendStream<Bytes>,
    taken: Arc<AtomicUsize>,
) {
    for _ in 0..SIZE / PIECE.len() {
        if !send_all(&mut stream, Bytes::from_static(&PIECE), false).await {
            return;
        }
        taken.fetch_add(PIECE.len(), Ordering::Relaxed);
    }
    let _: Result<_, h2::Error> = response.await;
}
