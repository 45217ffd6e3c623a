//! Stands beside one workload and takes its traffic both ways: `outbound` from the app to the services it calls,
//! `inbound` from the mesh to the app. Both are listeners of one plan; what they do with an exchange is the data path's.

mod config;
mod design;
mod egress;
mod intercept;
pub mod listens;
mod permissive;
pub mod report;

pub use config::{Config, Settings};
pub use design::Design;

use std::sync::Arc;

use tokio::sync::oneshot;
use weft_dataplane::discovery::Resolver;
use weft_dataplane::identity::{Alpn, Identity, SpiffeId};
use weft_dataplane::node::{self, Process, Size, Who};
use weft_runtime::config::{Watched, watched};
use weft_runtime::ready::Guard;

/// Where and how often a sidecar reports.
#[derive(Clone)]
pub struct Reporting {
    /// The collector and ourselves.
    pub settings: report::Settings,
    /// Who the collector has to be.
    pub collector: weft_dataplane::identity::SpiffeId,
    /// How it is dialled.
    pub dial: report::Dial,
}

/// Says so where a certificate is another's, which no peer would put up with: files can name any.
fn check_name(service: &str, id: &SpiffeId) {
    if id.service_name() != Some(service) {
        tracing::warn!(service, %id, "the certificate is another's: no caller will believe that this is the service; \
             name the files of this service under `identity`, or start the sidecar with `--service` and the certificate's");
    }
}

/// Runs a sidecar until the process has drained. It is ready when `listening` is dropped.
pub async fn run(
    process: Process,
    size: Size,
    resolver: Arc<Resolver>,
    designs: Watched<Design>,
    identity: Arc<Identity>,
    reporting: Option<Reporting>,
    listening: Guard,
) -> Result<(), String> {
    let (service, id) = (Arc::from(designs.get().service()), identity.spiffe_id());
    check_name(&service, &id);
    // Held until the last report is on its way: what ends during the drain is told too.
    let held = process.drain.guard();
    let (done, is_done) = oneshot::channel::<()>();
    let reports = reporting.map(
        |Reporting {
             settings,
             collector,
             dial,
         }| {
            let identity = Arc::clone(&identity);
            let foreigners = Arc::clone(identity.foreigners());
            let tls: report::Tls =
                Arc::new(move || Some(identity.client_config(&collector, Alpn::H2)));
            let registry = Arc::clone(&process.registry);
            report::run(settings, registry, foreigners, dial, tls, async move {
                // Nothing is sent: the other end goes away.
                let _: Result<(), _> = is_done.await;
            })
        },
    );
    let (taken, in_force) = watched(designs.get());
    let shown = in_force.clone();
    process
        .registry
        .permits_from(Box::new(move || shown.load().permits()));
    process.tasks.spawn("permissive", async move {
        permissive::warn(in_force).await;
        Ok::<_, std::convert::Infallible>(())
    });
    let data_path = async move {
        let outcome = node::run(
            process,
            size,
            resolver,
            designs,
            taken,
            Who::known(identity),
            listening,
        )
        .await;
        drop(done);
        outcome
    };
    let outcome = match reports {
        Some(reports) => tokio::join!(data_path, reports).0,
        None => data_path.await,
    };
    drop(held);
    outcome
}
