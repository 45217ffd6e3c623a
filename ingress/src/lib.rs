//! Stands at the edge: public listeners in front of the mesh, and the collector that sidecars report to.

pub mod collector;
mod config;
mod design;
mod tls;

pub use config::{Config, Listener, Route, Target, Tls};
pub use design::{Design, Files};

use std::sync::Arc;

use tokio::net::TcpListener;
use weft_dataplane::discovery::Resolver;
use weft_dataplane::node::{self, Process, Size, Who};
use weft_runtime::config::{Watched, watched};
use weft_runtime::ready::Guard;

use collector::Collector;

/// Runs an ingress until the process has drained. The collector needs an identity; without one there is none.
/// One that is not there yet is had when a configuration needs it. It is ready when `listening` is dropped.
pub async fn run(
    process: Process,
    size: Size,
    resolver: Arc<Resolver>,
    designs: Watched<Design>,
    who: Who,
    collecting: Option<(Arc<Collector>, std::net::SocketAddr)>,
    listening: Guard,
) -> Result<(), String> {
    let (taken, in_force) = watched(designs.get());
    let (shown, known) = (in_force.clone(), in_force.clone());
    process
        .registry
        .listener_certificates_from(Box::new(move || {
            shown.load().shown().map(|shown| shown.row()).collect()
        }));
    process.tasks.spawn("listener certificates", async move {
        tls::follow(in_force).await;
        Ok::<_, std::convert::Infallible>(())
    });
    if let (Some((collector, address)), Some(identity)) = (collecting, who.identity()) {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            // Or letting go of `listening` would say that we are ready, for as long as it takes to end.
            process.readiness.leave("it has failed");
            format!("the collector on {address}: {error}")
        })?;
        tracing::info!(%address, "collecting reports");
        let foreigners = Arc::clone(identity.foreigners());
        let identity = Arc::clone(identity);
        let tls: collector::Tls = Arc::new(move || identity.server_config());
        let drain = process.drain.clone();
        process.tasks.spawn("collector", async move {
            let whose: collector::Whose =
                Arc::new(move |identity| known.load().services().whose(identity));
            let stop = async move {
                drain.ended().await;
            };
            collector::serve(collector, listener, tls, whose, foreigners, stop).await
        });
    }
    node::run(process, size, resolver, designs, taken, who, listening).await
}
