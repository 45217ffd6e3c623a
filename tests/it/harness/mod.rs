//! What every end-to-end test stands on: a mesh of real processes, the apps, clients and the DNS server around it, and
//! certificates of every kind. A story is told in ten to twenty lines:
//!
//! ```ignore
//! let mesh = Mesh::new().service(Service::new("orders").replicas(2)).route("/orders/*", "orders").start().await;
//! mesh.origin("orders", 0).does(Behaviour::Status(503));
//! assert_eq!(mesh.get("/orders/1").await.text(), "orders-1");
//! ```
//!
//! Nothing outlives a test: processes are killed when the [`Mesh`] goes, and end by themselves when the test process does.

#![allow(clippy::unwrap_used, dead_code)]

pub(crate) mod app;
pub(crate) mod certs;
pub(crate) mod client;
pub(crate) mod dns;
pub(crate) mod ground;
pub(crate) mod load;
pub(crate) mod mesh;
pub(crate) mod origin;
pub(crate) mod process;
pub(crate) mod told;
pub(crate) mod tools;
pub(crate) mod tunnel;
pub(crate) mod wire;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};

#[allow(unused_imports)]
pub(crate) use {
    certs::{Authority, Leaf},
    client::{Client, Reply},
    dns::{Dns, Mood},
    load::Load,
    mesh::{Mesh, Service},
    origin::{Behaviour, Origin},
    process::Process,
    wire::Wire,
};

/// How long anything may take that is bound to happen: far above what a slow and busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value. Panics with `what` when it does not within [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition).await
}

/// Waits until `condition` gives a value. Panics with `what` when it does not in time.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until no more is added to this: it stays as it is for half a second.
pub(crate) async fn settled(count: &AtomicUsize) {
    let (mut before, mut same) = (count.load(Ordering::Relaxed), 0);
    eventually("nothing is added any more", async || {
        let now = count.load(Ordering::Relaxed);
        same = if now == before { same + 1 } else { 0 };
        before = now;
        (same == 25).then_some(())
    })
    .await;
}

/// Where an app listens that hundreds may dial at once. What `TcpListener::bind` leaves room for is 128 that were not accepted
/// yet: to whoever comes then the system says nothing, and they try again a second later.
pub(crate) fn listening(address: SocketAddr) -> TcpListener {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket
        .bind(address)
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.listen(4096).unwrap()
}

/// The time that 99 % of these did not exceed: the nearest rank.
pub(crate) fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[(times.len() * 99).div_ceil(100) - 1]
}

/// The value of a future that must end. Panics with `what` when it does not within [`PATIENCE`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
