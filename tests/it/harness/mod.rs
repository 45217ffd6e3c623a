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

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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

/// The value of a future that must end. Panics with `what` when it does not within [`PATIENCE`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
