//! Peers that are about to stop, and their return.
//!
//! A sidecar that drains says so in every answer ([`DRAINING`]) while it still works as ever, so a peer stops picking it within a
//! round trip, whatever DNS says and for how long; connections without traffic learn it by GOAWAY. The address may be
//! taken again at once by whoever is started next, and nobody sends word of that. So the core that heard of the departure
//! looks: as soon as the connection to the one who leaves is closed it knocks, until somebody answers. That a new
//! connection is made is proof enough, since who drains closes his listeners before his connections
//! ([`crate::core::Cores::drain`]).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::header::HeaderName;

use super::limits::Patience;
use super::{Cluster, Speaks, connect};
use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::identity::Alpn;

/// What a sidecar that is about to stop says in every answer to its peers, who keep it to themselves.
pub(crate) const DRAINING: HeaderName = HeaderName::from_static("weft-draining");

/// How soon it is looked again at first, and how rarely at most.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const MOST_PAUSE: Duration = Duration::from_secs(2);
/// Whoever is not back after so long is treated as any other endpoint: by what becomes of exchanges.
const PATIENCE: Duration = Duration::from_secs(600);

/// Notes that the process at an endpoint is about to stop: it gets nothing new while others are left.
pub(crate) fn noticed(core: &Rc<Core>, cluster: &Cluster, endpoint: &Endpoint) {
    if endpoint.is_draining() || !cluster.members.set_draining(endpoint.address, true) {
        return;
    }
    tracing::info!(service = %cluster.name, endpoint = %endpoint.address, "endpoint is about to stop");
    tokio::task::spawn_local(watch(
        Rc::downgrade(core),
        Arc::clone(&cluster.name),
        endpoint.address,
    ));
}

/// Waits for somebody to listen there again. The cluster is looked for anew each time, since a reload may replace it.
async fn watch(core: Weak<Core>, service: Arc<str>, address: SocketAddr) {
    let begun = Instant::now();
    let mut pause = FIRST_LOOK;
    loop {
        // Never added to, because the longest time is a promise.
        let spread = 0.5 + 0.5 * fastrand::f64();
        let _: () = tokio::time::sleep(pause.mul_f64(spread)).await;
        let Some(core) = core.upgrade().filter(|core| !core.is_draining(true)) else {
            return;
        };
        let Some((cluster, endpoint)) = find(&core, &service, address) else {
            return;
        };
        if !endpoint.is_draining() {
            return;
        }
        let open = poll_fn(|cx| Poll::Ready(core.peers.is_open(endpoint.id, cx))).await;
        if open {
            pause = FIRST_LOOK;
            continue;
        }
        let is_back = knock(&core, &cluster, &endpoint).await;
        if is_back || begun.elapsed() >= PATIENCE {
            cluster.members.set_draining(address, false);
            tracing::info!(service = %service, endpoint = %address, is_back, "endpoint is used again");
            return;
        }
        pause = (pause * 2).min(MOST_PAUSE);
    }
}

/// The endpoint as the plan of this moment has it.
fn find(core: &Core, service: &str, address: SocketAddr) -> Option<(Arc<Cluster>, Arc<Endpoint>)> {
    let cluster = Arc::clone(core.plan().cluster(service)?);
    let endpoint = {
        let set = cluster.members.load();
        Arc::clone(set.endpoints().iter().find(|e| e.address == address)?)
    };
    Some((cluster, endpoint))
}

/// Whether a connection can be made. One of HTTP/2 is kept for the next exchange.
async fn knock(core: &Rc<Core>, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> bool {
    if cluster.spec.speaks() == Speaks::Http2 {
        let now = Instant::now();
        let mut patience = Patience::new(now + cluster.spec.connect_timeout);
        let room = core.peers.room(core, cluster, endpoint, now, &mut patience);
        return room.await.is_ok();
    }
    connect::open(core, cluster, endpoint.address, Alpn::Http1)
        .await
        .is_ok()
}
