//! What happens to a fleet, event by event. Each test says first what may fail, and shows that nothing else does. Events
//! that other promises are about have their tests there: docs/operations.md has the whole table.

#![allow(clippy::unwrap_used)]

pub(crate) mod clock;
mod killed;
mod names;
mod silence;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{Method, Request};
use tokio::task::JoinSet;

use crate::harness::client::whole;
use crate::harness::told::{at_most, is_strict};
use crate::harness::{Mesh, Reply, eventually, p99};

/// What was asked, and what became of it.
#[derive(Debug)]
struct Exchange {
    method: Method,
    /// Of its own, so that one that arrives twice is seen.
    target: String,
    took: Duration,
    reply: Result<Reply, String>,
}

impl Exchange {
    fn is_good(&self) -> bool {
        self.reply.as_ref().is_ok_and(|reply| reply.code() == 200)
    }
}

/// How long an exchange may take while something is away that no exchange needs.
pub(crate) fn unfelt() -> Duration {
    at_most(Duration::from_secs(1), Duration::from_secs(2))
}

/// How long the machine itself may keep one of a hundred, where nobody holds it to the letter.
pub(crate) const HALT: Duration = Duration::from_secs(5);

/// GETs and POSTs through a door, one after the other by each of so many callers, until told to stop.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: JoinSet<Vec<Exchange>>,
}

impl Traffic {
    /// By the gateway.
    pub(crate) fn start(mesh: &Mesh, callers: usize) -> Self {
        Self::through(mesh, mesh.public(), "shop", callers)
    }

    pub(crate) fn through(
        mesh: &Mesh,
        door: SocketAddr,
        host: &'static str,
        callers: usize,
    ) -> Self {
        let (stop, done) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
        let mut set = JoinSet::new();
        for caller in 0..callers {
            let (stop, done, client) = (stop.clone(), done.clone(), mesh.client.clone());
            set.spawn(async move {
                let mut exchanges = Vec::new();
                while !stop.load(Relaxed) {
                    let method = [Method::GET, Method::POST][exchanges.len() % 2].clone();
                    let target = format!("/orders/{caller}-{}", exchanges.len());
                    let request = Request::builder()
                        .method(method.clone())
                        .uri(format!("http://{door}{target}"))
                        .header("host", host)
                        .body(whole("an order"))
                        .unwrap();
                    let start = Instant::now();
                    let reply = client.try_send(request).await;
                    let took = start.elapsed();
                    done.fetch_add(1, Relaxed);
                    exchanges.push(Exchange {
                        method,
                        target,
                        took,
                        reply,
                    });
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                exchanges
            });
        }
        Self {
            stop,
            done,
            callers: set,
        }
    }

    /// Waits until so many more exchanges have ended.
    pub(crate) async fn more(&self, exchanges: usize) {
        let wanted = self.done.load(Relaxed) + exchanges;
        eventually("more exchanges end", async || {
            (self.done.load(Relaxed) >= wanted).then_some(())
        })
        .await;
    }

    /// Lets the exchanges under way end.
    pub(crate) async fn stop(self) -> Outcome {
        self.stop.store(true, Relaxed);
        Outcome(
            self.callers
                .join_all()
                .await
                .into_iter()
                .flatten()
                .collect(),
        )
    }
}

/// All that was asked.
#[derive(Debug)]
pub(crate) struct Outcome(Vec<Exchange>);

impl Outcome {
    /// Those that failed, in words.
    fn failed(&self, method: &Method) -> Vec<String> {
        let failed = self.0.iter().filter(|e| e.method == method && !e.is_good());
        failed.map(|exchange| format!("{exchange:?}")).collect()
    }

    /// Nothing failed, and nothing took longer. Of the thousands that unhurried code answers beside other tests one in a hundred
    /// may: what halts the machine for a moment is not what is looked for.
    pub(crate) fn assert_all_within(&self, limit: Duration) {
        for method in [Method::GET, Method::POST] {
            let failed = self.failed(&method);
            assert!(failed.is_empty(), "{failed:#?}");
        }
        if is_strict() {
            return self.assert_none_longer(limit);
        }
        let p99 = p99(self.0.iter().map(|exchange| exchange.took).collect());
        assert!(p99 < limit, "p99 was {p99:?}, and {limit:?} may be");
        self.assert_none_longer(limit.max(HALT));
    }

    fn assert_none_longer(&self, limit: Duration) {
        let slowest = self.0.iter().max_by_key(|exchange| exchange.took).unwrap();
        assert!(slowest.took < limit, "{slowest:?}");
    }

    /// A POST that was answered well came to one app once; one that was not, to one app at most.
    pub(crate) fn assert_nothing_twice(&self, mesh: &Mesh, service: &str) {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for origin in mesh.origins(service) {
            for (target, times) in origin.by_target("POST") {
                *seen.entry(target).or_default() += times;
            }
        }
        for exchange in self.0.iter().filter(|e| e.method == Method::POST) {
            let times = seen.get(&exchange.target).copied().unwrap_or_default();
            let least = usize::from(exchange.is_good());
            assert!((least..=1).contains(&times), "{times} times: {exchange:?}");
        }
    }
}
