//! Says aloud, and again every day, where plaintext is let in and for how long.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use weft_dataplane::cluster::mtls::Permit;
use weft_runtime::config::Watched;

use crate::Design;

/// How often it is said.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Follows the designs in force for as long as there are new ones.
pub(crate) async fn warn(designs: Watched<Arc<Design>>) {
    let mut changes = designs.changes();
    let mut design = designs.get();
    loop {
        if let Some(permit) = design.permit() {
            say(design.service(), permit, SystemTime::now());
        }
        tokio::select! {
            next = changes.next() => match next {
                Some(next) => design = next,
                None => return,
            },
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

fn say(service: &str, permit: &Permit, now: SystemTime) {
    let ports = &permit.ports;
    match permit.until.duration_since(now) {
        Ok(left) if !left.is_zero() => {
            let days = left.as_secs() / AGAIN.as_secs();
            tracing::warn!(
                service,
                ?ports,
                days,
                "plaintext is let in beside mutual TLS; it will be refused after so many days"
            );
        }
        _ => {
            tracing::warn!(
                service,
                ?ports,
                "the time in which plaintext was let in is over: it is refused"
            );
        }
    }
}
