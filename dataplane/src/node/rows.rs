//! What is at work now, as rows for pages, metrics and reports.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::AtWork;
use crate::authn::KeySet;
use crate::balance::sticky::Outcome;
use crate::cluster::members::View;
use crate::endpoint::State;
use crate::limit::Limiter;
use crate::observe::{
    EndpointRow, EndpointState, KeySetRow, LimitRow, Registry, ServiceRow, SourceRow,
};

/// Has the registry ask for rows of what is at work whenever somebody reads.
pub(super) fn show(registry: &Registry, work: &Arc<ArcSwap<AtWork>>) {
    show_endpoints(registry, work);
    show_services(registry, work);
    show_key_sets(registry, work);
    show_limits(registry, work);
}

fn show_key_sets(registry: &Registry, work: &Arc<ArcSwap<AtWork>>) {
    let work = Arc::clone(work);
    registry.key_sets_from(Box::new(move || {
        let now = Instant::now();
        let row = |(authn, keys): &(Arc<str>, Arc<KeySet>)| KeySetRow {
            authn: Arc::clone(authn),
            keys: keys.len(),
            failures: keys.failures(),
            age: keys.age(now),
        };
        work.load().key_sets.iter().map(row).collect()
    }));
}

fn show_limits(registry: &Registry, work: &Arc<ArcSwap<AtWork>>) {
    let work = Arc::clone(work);
    registry.limits_from(Box::new(move || {
        let row = |limiter: &Arc<Limiter>| LimitRow {
            limit: Arc::from(limiter.name()),
            keys: limiter.keys(),
            forgotten: limiter.forgotten(),
        };
        work.load().limiters.iter().map(row).collect()
    }));
}

fn show_endpoints(registry: &Registry, work: &Arc<ArcSwap<AtWork>>) {
    let sources = Arc::clone(work);
    registry.sources_from(Box::new(move || {
        let work = sources.load();
        let meshed = work.clusters.iter().filter(|cluster| !cluster.is_local);
        let mut rows: Vec<_> = meshed
            .map(|cluster| {
                let report = cluster.discovery.report();
                SourceRow {
                    service: Arc::clone(&cluster.name),
                    known: report.known,
                    endpoints: report.addresses,
                    stale: report.stale,
                    last_success: report.last_success,
                    error: report.last_error,
                }
            })
            .collect();
        rows.sort_by(|a, b| a.service.cmp(&b.service));
        rows
    }));
    let work = Arc::clone(work);
    registry.endpoints_from(Box::new(move || {
        let mut rows = Vec::new();
        let work = work.load();
        for cluster in work.clusters.iter().filter(|cluster| !cluster.is_local) {
            for View {
                endpoint,
                verdict,
                failure,
            } in cluster.members.view()
            {
                rows.push(EndpointRow {
                    service: Arc::clone(&cluster.name),
                    address: endpoint.address,
                    state: match endpoint.state() {
                        State::Healthy => EndpointState::Healthy,
                        State::Draining => EndpointState::Draining,
                        State::Unhealthy => EndpointState::Unhealthy,
                        State::Ejected { .. } => EndpointState::Ejected,
                        State::Probing => EndpointState::Probing,
                    },
                    health: cluster.spec.health.as_ref().map(|_| verdict.as_str()),
                    failure,
                    ejections: endpoint.totals().ejections,
                    in_flight: u64::from(endpoint.in_flight()),
                });
            }
        }
        rows
    }));
}

fn show_services(registry: &Registry, work: &Arc<ArcSwap<AtWork>>) {
    let work = Arc::clone(work);
    registry.services_from(Box::new(move || {
        let work = work.load();
        let shown = work.clusters.iter().filter(|cluster| !cluster.is_local);
        let mut rows: Vec<_> = shown
            .map(|cluster| {
                let summary = cluster.members.summary();
                ServiceRow {
                    service: Arc::clone(&cluster.name),
                    endpoints: summary.endpoints,
                    available: summary.available,
                    panicking: summary.panicking,
                    panics: summary.panics,
                    panic_picks: summary.panic_picks,
                    is_probed: cluster.spec.health.is_some(),
                    probes_passed: summary.probes_passed,
                    probes_failed: summary.probes_failed,
                    sessions: cluster.spec.sticky.as_ref().map(|_| {
                        let mut counts = summary.sessions.into_iter();
                        Outcome::ALL.map(|outcome| (outcome.as_str(), counts.next().unwrap_or(0)))
                    }),
                    in_flight: cluster.in_flight() as u64,
                    waiting: cluster.waiting() as u64,
                    breaker: cluster
                        .breaker
                        .as_ref()
                        .map(|breaker| (breaker.state().as_str(), breaker.openings())),
                }
            })
            .collect();
        rows.sort_by(|a, b| a.service.cmp(&b.service));
        rows
    }));
}
