//! The mesh now, as the admin page `/mesh` tells it: for people and for `weft demo`.
//!
//! Figures are totals: whoever wants rates keeps the page before and takes the difference ([`EdgeView::since`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use weft_dataplane::foreign::{End, Row};
use weft_dataplane::observe::cells::quantile;
use weft_dataplane::observe::{BOUNDS_US, CLASSES, CertificateRow, EdgeTotals, EndpointRow};
use weft_dataplane::reason::Reason;
use weft_proto::report;

use super::ledger::Run;
use super::{Collector, Local, lock};

/// Foreign peers on the page.
pub const MAX_FOREIGN_SHOWN: usize = 1_024;

/// The page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeshPage {
    /// Every edge, sorted; an edge is there once as the caller and once as the called side counts it.
    pub edges: Vec<EdgeView>,
    /// Every sidecar that reports, sorted by service and instance.
    pub reporters: Vec<ReporterView>,
    /// The foreign peers that those reporters saw, the latest first.
    #[serde(default)]
    pub foreign: Vec<ForeignView>,
    /// Foreign peers that they saw and that are not listed, because there was no room.
    #[serde(default)]
    pub foreign_left_out: u64,
}

/// One edge with what was counted since the collector's start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EdgeView {
    /// The calling service.
    pub source: String,
    /// The called service.
    pub destination: String,
    /// Who counted: `outbound` for the caller's proxy, `inbound` for the called service's.
    pub direction: String,
    /// Whether the exchanges crossed the network in mutual TLS.
    pub mtls: bool,
    /// All exchanges.
    pub requests: u64,
    /// Exchanges that ended with 5xx or without an answer.
    pub failures: u64,
    /// Exchanges by class of status; `none` is for those without an answer.
    pub by_class: BTreeMap<String, u64>,
    /// Repeated attempts.
    pub retries: u64,
    /// Body bytes from callers.
    pub request_bytes: u64,
    /// Body bytes to callers.
    pub response_bytes: u64,
    /// Answers that the proxy made itself, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Half of all exchanges were not slower than this.
    pub p50_ms: Option<f64>,
    /// Of a hundred exchanges, 99 were not slower than this.
    pub p99_ms: Option<f64>,
    /// Upper bounds of the latency buckets.
    pub latency_bounds_us: Vec<u64>,
    /// Exchanges by latency bucket, one more than bounds.
    pub latency_counts: Vec<u64>,
    /// All latencies added up.
    pub latency_sum_us: u64,
}

/// One sidecar, or this process itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReporterView {
    /// Its proven identity; empty for this process.
    pub identity: String,
    /// The service that it stands beside.
    pub service: String,
    /// Where it is.
    pub instance: String,
    /// Time since its last report.
    pub silent_ms: u64,
    /// The endpoints as it sees them.
    pub endpoints: Vec<EndpointView>,
    /// Its certificate.
    pub certificate: Option<CertificateView>,
}

/// One endpoint, as one reporter sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// The service that it belongs to.
    pub service: String,
    /// Where it is.
    pub address: String,
    /// `healthy`, `ejected`, `probing`, `draining` or `unhealthy`.
    pub state: String,
    /// How often it was ejected.
    pub ejections: u64,
    /// Exchanges in flight there from this reporter.
    pub in_flight: u64,
}

/// A peer that is not of the mesh, that could not prove it, or that refused the reporter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignView {
    /// The service beside which the reporter stands.
    pub reporter: String,
    /// Where the reporter is.
    pub instance: String,
    /// `inbound`: the peer came to the reporter; `outbound`: the reporter went to the peer.
    pub direction: String,
    /// What was wrong, by a word of a closed list.
    pub kind: String,
    /// The service that was meant.
    pub service: String,
    /// The endpoint or, of those who came, the address or network.
    pub peer: String,
    /// The address that it came from last.
    pub address: Option<String>,
    /// The port that it came to.
    pub port: Option<u32>,
    /// Who its certificate says that it is, which is not proven.
    pub identity_unproven: Option<String>,
    /// How often, since it was first seen.
    pub count: u64,
    /// When it was seen first, in seconds since 1970.
    pub first_seen_unix: i64,
    /// When it was seen last.
    pub last_seen_unix: i64,
    /// When it will be refused, if it is let in for now.
    pub refused_from_unix: Option<i64>,
}

/// One reporter's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Who it says that the reporter is.
    pub spiffe_id: String,
    /// When it begins, in seconds since 1970.
    pub not_before_unix: i64,
    /// When it ends.
    pub not_after_unix: i64,
    /// Its serial number.
    pub serial: String,
    /// Renewals since the reporter's start.
    pub renewals: u64,
    /// Renewals that failed.
    pub renewal_failures: u64,
}

impl Collector {
    /// The mesh now.
    pub fn page(&self, now: Instant) -> MeshPage {
        let edges = self.snapshot().iter().map(EdgeView::new).collect();
        let mut reporters: Vec<_> = lock(&self.ledger)
            .reporters(now)
            .map(|(identity, instance, run)| ReporterView::new(identity, instance, run, now))
            .chain(lock(&self.local).iter().map(ReporterView::local))
            .collect();
        reporters.sort_by(|a, b| {
            (&a.service, &a.instance, a.silent_ms).cmp(&(&b.service, &b.instance, b.silent_ms))
        });
        let (foreign, foreign_left_out) = self.foreign(now);
        MeshPage {
            edges,
            reporters,
            foreign,
            foreign_left_out,
        }
    }

    /// The foreign peers, and how many are not among them.
    fn foreign(&self, now: Instant) -> (Vec<ForeignView>, u64) {
        let (mut views, mut left_out) = (Vec::new(), 0u64);
        for (_, instance, run) in lock(&self.ledger).reporters(now) {
            left_out = left_out.saturating_add(run.foreign.left_out);
            let seen = run.foreign.peers.iter();
            views.extend(seen.map(|peer| ForeignView::new(&run.service, instance, peer)));
        }
        for local in lock(&self.local).iter() {
            let snapshot = local.registry.foreign();
            left_out = left_out.saturating_add(snapshot.left_out);
            let seen = snapshot.rows.iter();
            views.extend(seen.map(|row| ForeignView::local(local, row)));
        }
        views.sort_by(|a, b| {
            let key = |view: &ForeignView| (view.reporter.clone(), view.instance.clone());
            (b.last_seen_unix.cmp(&a.last_seen_unix)).then_with(|| key(a).cmp(&key(b)))
        });
        let beyond = views.len().saturating_sub(MAX_FOREIGN_SHOWN) as u64;
        views.truncate(MAX_FOREIGN_SHOWN);
        (views, left_out.saturating_add(beyond))
    }
}

impl MeshPage {
    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a page has only strings as keys")
    }
}

impl EdgeView {
    fn new(EdgeTotals { key, totals }: &EdgeTotals) -> Self {
        let classes = CLASSES.iter().map(ToString::to_string);
        let reasons = Reason::ALL.iter().map(|reason| reason.code());
        let mut view = Self {
            source: key.source.to_string(),
            destination: key.destination.to_string(),
            direction: key.direction.as_str().to_owned(),
            mtls: key.mtls,
            requests: 0,
            failures: 0,
            by_class: classes.zip(totals.by_class).collect(),
            retries: totals.retries,
            request_bytes: totals.request_bytes,
            response_bytes: totals.response_bytes,
            reasons: reasons
                .chain(["unknown"])
                .zip(totals.reasons)
                .filter(|(_, count)| *count > 0)
                .map(|(code, count)| (code.to_owned(), count))
                .collect(),
            p50_ms: None,
            p99_ms: None,
            latency_bounds_us: BOUNDS_US.to_vec(),
            latency_counts: totals.latency.to_vec(),
            latency_sum_us: totals.latency_sum_us,
        };
        view.derive();
        view
    }

    /// What was counted since an earlier view of the same edge, with its own quantiles.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut view = self.clone();
        let maps = [
            (&mut view.by_class, &earlier.by_class),
            (&mut view.reasons, &earlier.reasons),
        ];
        for (mine, before) in maps {
            for (name, count) in mine {
                *count = count.saturating_sub(before.get(name).copied().unwrap_or(0));
            }
        }
        let buckets = view.latency_counts.iter_mut();
        for (count, before) in buckets.zip(&earlier.latency_counts) {
            *count = count.saturating_sub(*before);
        }
        view.retries = view.retries.saturating_sub(earlier.retries);
        view.request_bytes = view.request_bytes.saturating_sub(earlier.request_bytes);
        view.response_bytes = view.response_bytes.saturating_sub(earlier.response_bytes);
        view.latency_sum_us = view.latency_sum_us.saturating_sub(earlier.latency_sum_us);
        view.derive();
        view
    }

    /// Whether both views are of one edge.
    pub fn is_same_edge(&self, other: &Self) -> bool {
        let key = |view: &Self| (view.source.clone(), view.destination.clone());
        key(self) == key(other) && self.direction == other.direction && self.mtls == other.mtls
    }

    /// The latency that this share of exchanges did not exceed.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        quantile(&self.latency_bounds_us, &self.latency_counts, share)
    }

    /// Sets what follows from the rest.
    fn derive(&mut self) {
        let class = |name: &str| self.by_class.get(name).copied().unwrap_or(0);
        self.failures = class("5xx").saturating_add(class("none"));
        let classes = self.by_class.values();
        self.requests = classes.fold(0, |sum, count| sum.saturating_add(*count));
        let ms = |share| {
            self.quantile(share)
                .map(|latency| latency.as_secs_f64() * 1e3)
        };
        (self.p50_ms, self.p99_ms) = (ms(0.5), ms(0.99));
    }
}

impl ReporterView {
    fn new(identity: &str, instance: &str, run: &Run, now: Instant) -> Self {
        let silent = now.saturating_duration_since(run.seen).as_millis();
        Self {
            identity: identity.to_owned(),
            service: run.service.to_string(),
            instance: instance.to_owned(),
            silent_ms: u64::try_from(silent).unwrap_or(u64::MAX),
            endpoints: run.endpoints.iter().map(EndpointView::from).collect(),
            certificate: run.certificate.as_ref().map(CertificateView::from),
        }
    }

    fn local(local: &Local) -> Self {
        Self {
            identity: String::new(),
            service: local.service.to_string(),
            instance: local.instance.to_string(),
            silent_ms: 0,
            endpoints: local
                .registry
                .endpoints()
                .iter()
                .map(EndpointView::from)
                .collect(),
            certificate: local
                .registry
                .certificate()
                .as_ref()
                .map(CertificateView::from),
        }
    }
}

impl ForeignView {
    fn new(reporter: &str, instance: &str, peer: &report::ForeignPeer) -> Self {
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        Self {
            reporter: reporter.to_owned(),
            instance: instance.to_owned(),
            direction: match peer.direction() {
                report::Direction::Outbound => End::Outbound,
                _ => End::Inbound,
            }
            .as_str()
            .to_owned(),
            kind: peer.kind.clone(),
            service: peer.service.clone(),
            peer: peer.peer.clone(),
            address: said(&peer.address),
            port: (peer.port > 0).then_some(peer.port),
            identity_unproven: said(&peer.identity),
            count: peer.count,
            first_seen_unix: peer.first_seen_unix,
            last_seen_unix: peer.last_seen_unix,
            refused_from_unix: (peer.until_unix != 0).then_some(peer.until_unix),
        }
    }

    fn local(local: &Local, row: &Row) -> Self {
        Self {
            reporter: local.service.to_string(),
            instance: local.instance.to_string(),
            direction: row.end.as_str().to_owned(),
            kind: row.kind.as_str().to_owned(),
            service: row.service.to_string(),
            peer: row.peer.to_string(),
            address: row.address.map(|ip| ip.to_string()),
            port: row.port.map(u32::from),
            identity_unproven: row.identity.as_deref().map(str::to_owned),
            count: row.count,
            first_seen_unix: unix(row.first),
            last_seen_unix: unix(row.last),
            refused_from_unix: row.until.map(unix),
        }
    }
}

impl From<&report::Endpoint> for EndpointView {
    fn from(endpoint: &report::Endpoint) -> Self {
        Self {
            service: endpoint.service.clone(),
            address: endpoint.address.clone(),
            state: endpoint.state.clone(),
            ejections: endpoint.ejections,
            in_flight: endpoint.in_flight,
        }
    }
}

impl From<&EndpointRow> for EndpointView {
    fn from(row: &EndpointRow) -> Self {
        Self {
            service: row.service.to_string(),
            address: row.address.to_string(),
            state: row.state.as_str().to_owned(),
            ejections: row.ejections,
            in_flight: row.in_flight,
        }
    }
}

impl From<&CertificateRow> for CertificateView {
    fn from(row: &CertificateRow) -> Self {
        Self {
            spiffe_id: row.spiffe_id.to_string(),
            not_before_unix: unix(row.not_before),
            not_after_unix: unix(row.not_after),
            serial: row.serial.to_string(),
            renewals: row.renewals,
            renewal_failures: row.renewal_failures,
        }
    }
}

fn unix(time: SystemTime) -> i64 {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

impl From<&report::Certificate> for CertificateView {
    fn from(certificate: &report::Certificate) -> Self {
        Self {
            spiffe_id: certificate.spiffe_id.clone(),
            not_before_unix: certificate.not_before_unix,
            not_after_unix: certificate.not_after_unix,
            serial: certificate.serial.clone(),
            renewals: certificate.renewals,
            renewal_failures: certificate.renewal_failures,
        }
    }
}
