//! A peer that says that it is about to stop, among callers who all ask at once: whoever begins after the word has come goes
//! elsewhere, on whatever core.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::task::JoinSet;

use crate::alone::{Host, IDENTITY, Way, until};
use crate::harness::app::{App, send_all};
use crate::harness::certs::{Authority, service};

/// Callers at the same time.
const CALLERS: usize = 16;
/// Exchanges that have ended before the peer says it, and after.
const ENOUGH: usize = 300;

/// A peer's sidecar of which the test knows what it says, and when.
struct Peer {
    leaving: Arc<AtomicBool>,
    /// The paths that it was asked for.
    seen: Arc<Mutex<HashSet<String>>>,
    _app: App,
}

impl Peer {
    async fn start(address: SocketAddr, config: Arc<ServerConfig>) -> Self {
        let leaving = Arc::new(AtomicBool::new(false));
        let seen: Arc<Mutex<HashSet<String>>> = Arc::default();
        let (says, noted) = (Arc::clone(&leaving), Arc::clone(&seen));
        let app = App::sidecar(address, config, move |mut asked| {
            noted.lock().unwrap().insert(asked.path());
            let (fields, text): (&[(&str, &[u8])], &'static str) = match says.load(SeqCst) {
                true => (&[("weft-draining", b"?1")], "leaving"),
                false => (&[], "staying"),
            };
            async move {
                let mut body = asked.begin(fields);
                send_all(&mut body, Bytes::from_static(text.as_bytes()), true).await;
            }
        })
        .await;
        Self {
            leaving,
            seen,
            _app: app,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_begins_after_the_first_word_of_leaving_goes_elsewhere_for_all_callers() {
    let mesh = Authority::new();
    let host = Host::new();
    let addresses = [21_601, 21_602].map(|port| host.at(port));
    let server = || mesh.leaf(&service("pair")).server(&["h2"]);
    let peers = [
        Peer::start(addresses[0], server()).await,
        Peer::start(addresses[1], server()).await,
    ];
    host.identify(&mesh, "gateway");
    host.configure(&format!(
        "{IDENTITY}services:\n  pair: {{ endpoints: [\"{}\", \"{}\"], balance: {{ slow_start: 0s }}, retry: {{ attempts: 0 }} }}\n\
         ingress:\n  listeners: [ {{ name: public, address: \"{}\" }} ]\n  routes: [ {{ to: pair }} ]\n",
        addresses[0],
        addresses[1],
        host.public()
    ));
    let mut ingress = host.start(&["ingress", "--workers", "4"], &[]);
    ingress.ready().await;
    // Set by whoever hears first; and what each has begun after that.
    let (told, stop) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let way = Way::Plain(host.public());
        let (told, stop, counts) = (Arc::clone(&told), Arc::clone(&stop), Arc::clone(&counts));
        callers.spawn(async move {
            let mut begun_after = Vec::new();
            for number in 0.. {
                if stop.load(SeqCst) {
                    break;
                }
                let path = format!("/{caller}-{number}");
                let is_after = told.load(SeqCst);
                let reply = way
                    .ask(&format!("GET {path}"), &[("host", "pair")], "")
                    .await;
                assert_eq!(reply.status, 200, "{path}: {reply:?}");
                if reply.text() == "leaving" {
                    assert_eq!(reply.field("weft-draining"), None, "this is between us");
                    told.store(true, SeqCst);
                }
                counts[usize::from(is_after)].fetch_add(1, SeqCst);
                if is_after {
                    begun_after.push(path);
                }
            }
            begun_after
        });
    }
    let ended = async |when: usize| {
        until("exchanges to end", async || {
            (counts[when].load(SeqCst) >= ENOUGH).then_some(())
        })
        .await;
    };
    ended(0).await;
    assert!(
        peers
            .iter()
            .all(|peer| peer.seen.lock().unwrap().len() > ENOUGH / 10)
    );
    peers[0].leaving.store(true, SeqCst);
    ended(1).await;
    stop.store(true, SeqCst);
    let begun_after: Vec<String> = callers.join_all().await.concat();
    assert!(begun_after.len() >= ENOUGH);
    let seen = peers[0].seen.lock().unwrap().clone();
    let late: Vec<&String> = begun_after
        .iter()
        .filter(|path| seen.contains(*path))
        .collect();
    assert!(late.is_empty(), "sent to the one that leaves: {late:?}");
    ingress.assert_alive().await;
}
