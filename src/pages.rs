//! The admin pages that both proxies have: the endpoints, foreign peers and certificates.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use weft_dataplane::foreign::{Row, Snapshot};
use weft_dataplane::observe::PermitRow;

use crate::role::Running;

pub(crate) fn add(running: &mut Running) {
    let registry = Arc::clone(&running.process.registry);
    let endpoints = move || {
        let rows: Vec<_> = registry
            .endpoints()
            .into_iter()
            .map(|row| {
                json!({
                    "service": &*row.service,
                    "address": row.address,
                    "state": row.state.as_str(),
                    "health": row.health,
                    "problem": row.failure.as_deref(),
                    "ejections": row.ejections,
                    "in_flight": row.in_flight,
                })
            })
            .collect();
        let services: Vec<_> = registry
            .services()
            .into_iter()
            .map(|row| {
                json!({
                    "service": &*row.service,
                    "endpoints": row.endpoints,
                    "available": row.available,
                    "panic": row.panicking,
                })
            })
            .collect();
        let now = Instant::now();
        let sources: Vec<_> = registry
            .sources()
            .into_iter()
            .map(|row| {
                let age = row.last_success.map(|at| now.saturating_duration_since(at));
                json!({
                    "service": &*row.service,
                    "known": row.known,
                    "endpoints": row.endpoints,
                    "stale": row.stale,
                    "seconds_since_confirmed": age.map(|age| age.as_secs()),
                    "problem": row.error,
                })
            })
            .collect();
        let page = json!({ "services": services, "endpoints": rows, "sources": sources });
        ("application/json", format!("{page:#}\n"))
    };
    running.admin.page(
        "/endpoints",
        "the endpoints of each service as seen from here, and how their sources are doing",
        Arc::new(endpoints),
    );

    let registry = Arc::clone(&running.process.registry);
    let peers = move || {
        let page = peers(&registry.foreign(), &registry.permits());
        ("application/json", format!("{page:#}\n"))
    };
    running.admin.page(
        "/peers",
        "who is not of the mesh and came to us, or did not prove who it is, or refused us; and where plaintext is let in",
        Arc::new(peers),
    );

    let registry = Arc::clone(&running.process.registry);
    let certs = move || {
        let certificate = registry.certificate().map(|row| {
            json!({
                "spiffe_id": &*row.spiffe_id,
                "not_before_unix": unix(row.not_before),
                "not_after_unix": unix(row.not_after),
                "serial": &*row.serial,
                "renewals": row.renewals,
                "renewal_failures": row.renewal_failures,
            })
        });
        let shown = registry.listener_certificates().into_iter().map(|row| {
            json!({
                "listener": &*row.listener,
                "not_after_unix": row.not_after.map(unix),
                "problem": row.problem.as_deref(),
            })
        });
        let page = json!({ "certificate": certificate, "listeners": shown.collect::<Vec<_>>() });
        ("application/json", format!("{page:#}\n"))
    };
    running.admin.page(
        "/certs",
        "the certificate in use, and those that listeners show to the public",
        Arc::new(certs),
    );
}

fn peers(foreign: &Snapshot, permits: &[PermitRow]) -> Value {
    let row = |row: &Row| {
        json!({
            "direction": row.end.as_str(),
            "kind": row.kind.as_str(),
            "service": &*row.service,
            "peer": row.peer.to_string(),
            "address": row.address,
            "port": row.port,
            "identity_unproven": row.identity.as_deref(),
            "count": row.count,
            "first_seen_unix": unix(row.first),
            "last_seen_unix": unix(row.last),
            "refused_from_unix": row.until.map(unix),
        })
    };
    let permit =
        |row: &PermitRow| json!({ "port": row.port, "refused_from_unix": unix(row.until) });
    json!({
        "peers": foreign.rows.iter().map(row).collect::<Vec<_>>(),
        "left_out": foreign.left_out,
        "plaintext": permits.iter().map(permit).collect::<Vec<_>>(),
    })
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
