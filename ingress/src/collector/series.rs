//! Shows the mesh to Prometheus: `weft_mesh_*`, beside the process's own series.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{Label, counter, gauge};
use weft_dataplane::observe::exposition::{Kind, Page};
use weft_dataplane::observe::metrics::{self as names, help};
use weft_dataplane::observe::{EdgeKey, EdgeTotals, Totals};

use super::foreign::{Key, own};
use super::ledger::Ledger;
use super::{Collector, Local, accept, lock};

/// What was reported and what this process counted itself, by edge.
pub(super) fn snapshot(ledger: &Ledger, local: &[Local]) -> Vec<EdgeTotals> {
    let own = local.iter().flat_map(|local| local.registry.totals());
    let mut edges = BTreeMap::<EdgeKey, Totals>::new();
    for edge in ledger.series().into_iter().chain(own) {
        edges.entry(edge.key).or_default().add(&edge.totals);
    }
    edges
        .into_iter()
        .map(|(key, totals)| EdgeTotals { key, totals })
        .collect()
}

/// The foreign peers that were reported and that this process saw itself.
pub(super) fn foreign(ledger: &Ledger, local: &[Local]) -> BTreeMap<Key, u64> {
    let mut series = ledger.strangers().series().clone();
    for local in local {
        for count in local.registry.foreign().counts {
            let sum = series.entry(own(&local.service, &count)).or_default();
            *sum = sum.saturating_add(count.count);
        }
    }
    series
}

impl Collector {
    /// Copies the mesh's counters and levels into the `metrics` crate. Called just before the page is made.
    pub fn publish(&self) {
        // Nobody may be left who reports.
        lock(&self.ledger).tidy(Instant::now());
        for edge in self.snapshot() {
            let labels = names::edge_metric_labels(&edge.key);
            names::publish_exchanges(names::MESH_NAMES, &labels, &edge.totals);
        }
        for (key, count) in foreign(&lock(&self.ledger), &lock(&self.local)) {
            let labels = vec![
                Label::new("source", key.source),
                Label::new("destination", key.destination),
                Label::new("direction", key.end.as_str()),
                Label::new("kind", key.kind.as_str()),
            ];
            counter!(names::MESH_FOREIGN_PEERS, labels).absolute(count);
        }
        gauge!(names::COLLECTOR_CONNECTIONS).set(self.connections() as f64);
    }

    /// Has what the collector itself counts be there from the start, so that the first refusal already is an increase.
    pub(super) fn begin() {
        for result in ["taken", "stale", "refused"] {
            counter!(names::COLLECTOR_REPORTS, "result" => result).increment(0);
        }
        for name in [
            names::COLLECTOR_REFUSED_COUNTS,
            names::COLLECTOR_EDGES_LEFT_OUT,
            names::COLLECTOR_ENDPOINTS_LEFT_OUT,
            names::COLLECTOR_FOREIGN_LEFT_OUT,
        ] {
            counter!(name).increment(0);
        }
        accept::begin();
    }

    /// Writes the mesh's latencies, endpoints, certificates and reporters onto the page.
    pub fn render(&self, out: &mut String, now: Instant, wall: SystemTime) {
        let mut page = Page::new(out);
        let name = names::MESH_REQUEST_DURATION;
        page.family(name, Kind::Histogram, help(name));
        for edge in self.snapshot() {
            names::edge_latency(&mut page, name, &edge.key, &edge.totals);
        }
        let present = self.present(now);
        present.render(&mut page, wall);
    }

    fn present(&self, now: Instant) -> Present {
        let mut present = Present::default();
        for (_, instance, run) in lock(&self.ledger).reporters(now) {
            *present
                .reporters
                .entry(Arc::clone(&run.service))
                .or_default() += 1;
            for endpoint in &run.endpoints {
                let key = (endpoint.service.clone(), endpoint.address.clone());
                present.endpoint(key, &endpoint.state, endpoint.ejections);
            }
            if let Some(certificate) = &run.certificate {
                let ends = u64::try_from(certificate.not_after_unix).unwrap_or(0);
                present.certificate(&run.service, instance, ends);
            }
        }
        for local in lock(&self.local).iter() {
            for row in local.registry.endpoints() {
                let key = (row.service.to_string(), row.address.to_string());
                present.endpoint(key, row.state.as_str(), row.ejections);
            }
            if let Some(row) = local.registry.certificate() {
                let ends = row.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
                present.certificate(&local.service, &local.instance, ends.as_secs());
            }
        }
        present
    }
}

type Address = (String, String);

/// What is so now, over all reporters that are there. Sorted, so that two pages can be compared.
#[derive(Default)]
struct Present {
    reporters: BTreeMap<Arc<str>, u64>,
    states: BTreeMap<(Address, String), u64>,
    ejections: BTreeMap<Address, u64>,
    certificates: BTreeMap<(Arc<str>, Arc<str>), u64>,
}

impl Present {
    fn endpoint(&mut self, key: Address, state: &str, ejections: u64) {
        let all = self.ejections.entry(key.clone()).or_default();
        *all = all.saturating_add(ejections);
        *self.states.entry((key, state.to_owned())).or_default() += 1;
    }

    /// Instances of one name are one series: the certificate that ends first is the one to look at.
    fn certificate(&mut self, service: &Arc<str>, instance: &Arc<str>, ends: u64) {
        let key = (Arc::clone(service), Arc::clone(instance));
        let first = self.certificates.entry(key).or_insert(ends);
        *first = ends.min(*first);
    }

    fn render(&self, page: &mut Page<'_>, wall: SystemTime) {
        let family = |page: &mut Page<'_>, name| page.family(name, Kind::Gauge, help(name));
        family(page, names::MESH_ENDPOINT_STATE);
        for (((service, endpoint), state), reporters) in &self.states {
            let labels = [
                ("service", service.as_str()),
                ("endpoint", endpoint),
                ("state", state),
            ];
            page.sample(names::MESH_ENDPOINT_STATE, &labels, reporters);
        }
        family(page, names::MESH_ENDPOINT_EJECTIONS);
        for ((service, endpoint), ejections) in &self.ejections {
            let labels = [("service", service.as_str()), ("endpoint", endpoint)];
            page.sample(names::MESH_ENDPOINT_EJECTIONS, &labels, ejections);
        }
        family(page, names::MESH_CERTIFICATE_EXPIRY);
        for ((service, instance), ends) in &self.certificates {
            let labels = [("service", &**service), ("instance", &**instance)];
            let ends = UNIX_EPOCH.checked_add(Duration::from_secs(*ends));
            let left = names::seconds_until(ends.unwrap_or(wall), wall);
            page.sample(names::MESH_CERTIFICATE_EXPIRY, &labels, left);
        }
        family(page, names::MESH_REPORTERS);
        for (service, reporters) in &self.reporters {
            page.sample(names::MESH_REPORTERS, &[("service", service)], reporters);
        }
    }
}
