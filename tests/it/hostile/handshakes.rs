//! Handshakes that are meant to cost: those that never end, and those that end in a refusal and begin again.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ALL_VERSIONS, ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Scene;
use super::origins::PEER;
use crate::alone::{PATIENCE, Way, fine, until};
use crate::harness::certs::{Authority, nobody, service};
use crate::harness::listening;
use crate::mtls::Impostor;

const H1: &[&str] = &["http/1.1"];
/// Connections that stall at each door.
const STALLS: usize = 300;
/// Who begins again and again.
const ATTACKERS: usize = 8;
/// For how long.
const LASTS: Duration = Duration::from_secs(5);
/// Certificates beyond a chain: together nearly as much as a message of TLS may be, and more than that.
const NEARLY: usize = 120;
const TOO_MANY: usize = 400;

/// What a client says first.
fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("gateway.example").unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Connections that say this and then nothing, until each of them was given up. How long the last one took.
async fn stall(door: SocketAddr, start: &[u8]) -> Duration {
    let mut streams = Vec::new();
    for _ in 0..STALLS {
        let mut stream = TcpStream::connect(door).await.unwrap();
        stream.write_all(start).await.unwrap();
        streams.push(stream);
    }
    let begun = Instant::now();
    for mut stream in streams {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        // With a reset or an end: somebody who is not there learns nothing either way.
        let _: Result<usize, _> = read.expect("it may go on for ever");
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stall_are_given_up_and_take_nobodys_place() {
    let mut scene = Scene::set(|_| fine()).await;
    let doors = scene.doors(H1);
    for name in ["secure", "mesh"] {
        let (_, good) = doors.iter().find(|(door, _)| *door == name).unwrap();
        let Way::Tls(door, config) = good else {
            panic!("{name} is for TLS");
        };
        let whole = hello(config);
        for part in [1, whole.len() - 1] {
            let attack = async {
                let took = stall(*door, &whole[..part]).await;
                // 5 seconds, on a machine that has other things to do.
                assert!(took < Duration::from_secs(20), "{name}, {part}: {took:?}");
            };
            let good = scene.good_ways(&[name]);
            scene
                .under_attack("stalled handshakes", &good, attack)
                .await;
        }
    }
}

/// Begins again and again, by as many as attack. What is asked then is never answered: how often it was tried.
async fn again_and_again(way: &Way, asks: bool) -> usize {
    let tried = Arc::new(AtomicUsize::new(0));
    let mut attackers = JoinSet::new();
    for _ in 0..ATTACKERS {
        let (way, tried) = (way.clone(), Arc::clone(&tried));
        attackers.spawn(async move {
            let begun = Instant::now();
            while begun.elapsed() < LASTS {
                if asks {
                    let request =
                        b"GET /attack HTTP/1.1\r\nhost: plain\r\nconnection: close\r\n\r\n";
                    let answer = way.send(request).await.unwrap_or_default();
                    assert!(!answer.starts_with(b"HTTP/"), "it got in");
                } else {
                    let _: std::io::Result<_> = way.connect().await;
                }
                tried.fetch_add(1, Relaxed);
            }
        });
    }
    while let Some(ended) = attackers.join_next().await {
        ended.unwrap();
    }
    tried.load(Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_are_refused_and_begin_again_cost_nobody_else() {
    let mut scene = Scene::set(|_| fine()).await;
    let (mesh, secure) = (scene.host.mesh(), scene.host.secure());
    let storefront = service("storefront");
    let shown = [
        ("no certificate", nobody(ALL_VERSIONS, H1)),
        ("another CA", Authority::new().leaf(&storefront).client(H1)),
        (
            "a long chain of another CA",
            Authority::new().leaf(&storefront).behind(NEARLY).client(H1),
        ),
        (
            "a chain beyond all bounds",
            scene.mesh.leaf(&storefront).behind(TOO_MANY).client(H1),
        ),
        (
            "a small RSA key",
            scene.mesh.leaf_with_rsa("storefront", 1024).client(H1),
        ),
    ];
    for (what, config) in shown {
        let way = Way::Tls(mesh, config);
        let attack = async {
            let tried = again_and_again(&way, true).await;
            assert!(tried >= ATTACKERS, "{what}: {tried}");
        };
        let good = scene.good_ways(&["mesh"]);
        scene.under_attack(what, &good, attack).await;
    }
    // Who is asked for no certificate can only make us work: handshakes that nothing follows.
    let way = Way::Tls(secure, nobody(ALL_VERSIONS, H1));
    let attack = async {
        let tried = again_and_again(&way, false).await;
        assert!(tried >= ATTACKERS, "{tried}");
    };
    let good = scene.good_ways(&["secure"]);
    scene
        .under_attack("handshakes for nothing", &good, attack)
        .await;
    let seen = scene.origin.requests();
    assert!(seen.iter().all(|seen| !seen.head.contains("/attack")));
    // Each was told apart.
    for cause in ["no_certificate", "unknown_authority", "not_an_identity"] {
        let labels = [("cause", cause)];
        let refused = scene
            .sidecar
            .metric("weft_tls_handshake_failures_total", &labels);
        assert!(refused.await >= 1.0, "{cause}");
    }
}

/// How long a server takes that has something to say and does not come to an end with it.
const DRIP: Duration = Duration::from_millis(200);

/// A server that reads and then says, one byte at a time, how a handshake might go on.
async fn dripping(address: SocketAddr) -> JoinSet<()> {
    let listener = listening(address);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut conversations = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            conversations.spawn(async move {
                let _: std::io::Result<usize> = stream.read(&mut [0; 4096]).await;
                // A record of 16 KiB that holds a ServerHello.
                let beginning = [0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc, 3, 3];
                for byte in beginning.into_iter().chain(std::iter::repeat(7)) {
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    sleep(DRIP).await;
                }
            });
        }
    });
    tasks
}

/// Waits until whoever was there before has gone.
async fn is_free(address: SocketAddr) {
    until("the address to be free", async || {
        TcpListener::bind(address).await.ok()
    })
    .await;
}

/// Asks for what is behind such a server, again and again; how often.
async fn calls(way: &Way) -> usize {
    let tried = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..ATTACKERS {
        let (way, tried) = (way.clone(), Arc::clone(&tried));
        callers.spawn(async move {
            let begun = Instant::now();
            while begun.elapsed() < LASTS {
                let reply = way.ask("GET /attack", &[("host", "peer")], "").await;
                assert!((502..=504).contains(&reply.status), "{reply:?}");
                tried.fetch_add(1, Relaxed);
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    tried.load(Relaxed)
}

/// The other way round: it is we who call, and who is called that costs.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_of_servers_that_drip_or_show_endless_chains_cost_nobody_else() {
    let mut scene = Scene::set(|_| fine()).await;
    let address = scene.host.at(PEER);
    let peer = service("peer");
    let h2 = &["h2"];
    let configs = [
        ("a long chain", scene.mesh.leaf(&peer).behind(NEARLY)),
        (
            "a long chain of another CA",
            Authority::new().leaf(&peer).behind(NEARLY),
        ),
        (
            "a chain beyond all bounds",
            scene.mesh.leaf(&peer).behind(TOO_MANY),
        ),
    ]
    .map(|(what, leaf)| (what, leaf.server(h2)));
    let doors = ["public", "outbound"];
    let ways = scene.good_ways(&doors);
    for (door, way) in &ways {
        let good = scene.good_ways(&[door]);
        for (what, config) in &configs {
            is_free(address).await;
            let _impostor = Impostor::tls(address, Arc::clone(config)).await;
            let what = format!("{what}, from {door}");
            let attack = async {
                let tried = calls(way).await;
                assert!(tried >= ATTACKERS, "{what}: {tried}");
            };
            scene.under_attack(&what, &good, attack).await;
        }
        is_free(address).await;
        let _dripping = dripping(address).await;
        let what = format!("a server that drips, from {door}");
        let attack = async {
            let tried = calls(way).await;
            assert!(tried >= ATTACKERS, "{what}: {tried}");
        };
        scene.under_attack(&what, &good, attack).await;
    }
    assert!(
        scene
            .origin
            .requests()
            .iter()
            .all(|seen| seen.target() == "/good")
    );
}
