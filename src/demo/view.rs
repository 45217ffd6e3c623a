//! What the collector knows, as the table and the story need it: rates and latencies of the last seconds, states of
//! endpoints, certificates.
//!
//! The collector's `/mesh` page has totals. A rate is the difference of two pages, and so is a latency: the histograms
//! are cumulative, and the difference of two of them is the histogram of the time between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weft_dataplane::observe::cells::quantile;
use weft_ingress::collector::page::{EdgeView, MeshPage, ReporterView};

use super::http::{self, Client};

/// How often the page is read; sidecars report every half second.
const POLL: Duration = Duration::from_millis(300);
/// How long a reading may take.
const READ_DEADLINE: Duration = Duration::from_secs(2);
/// Over how long rates and latencies are taken.
const WINDOW: Duration = Duration::from_secs(3);
/// Whoever has not reported for so long has ended: what it saw last is of no interest.
const SILENT_MS: u64 = 5_000;

/// A certificate in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Certificate {
    /// The process that has it.
    pub(super) instance: String,
    pub(super) spiffe_id: String,
    pub(super) serial: String,
    pub(super) renewals: u64,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EdgeRow {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) per_second: f64,
    /// Of the exchanges that ended in the window; none, no rate.
    pub(super) success: Option<f64>,
    pub(super) p50: Option<Duration>,
    pub(super) p99: Option<Duration>,
    pub(super) mtls: bool,
}

/// One endpoint, as its callers see it together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointRow {
    pub(super) service: String,
    pub(super) address: String,
    /// The state that is furthest from healthy among what the callers say.
    pub(super) state: String,
}

/// The mesh now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct View {
    pub(super) edges: Vec<EdgeRow>,
    pub(super) endpoints: Vec<EndpointRow>,
    pub(super) certificates: Vec<Certificate>,
}

impl View {
    /// What the callers say of the endpoint at this IP address.
    pub(super) fn state_of(&self, service: &str, host: &str) -> Option<&str> {
        let found = self
            .endpoints
            .iter()
            .find(|endpoint| endpoint.service == service && ip_of(&endpoint.address) == host);
        found.map(|endpoint| endpoint.state.as_str())
    }

    /// The row of an edge.
    pub(super) fn edge(&self, source: &str, destination: &str) -> Option<&EdgeRow> {
        let wanted = |row: &&EdgeRow| row.source == source && row.destination == destination;
        self.edges.iter().find(wanted)
    }
}

/// Reads the page again and again, and publishes what it says. Ends when nobody looks any more.
pub(super) async fn follow(client: Client, url: String, publish: watch::Sender<Arc<View>>) {
    let mut history = History::default();
    let mut pace = tokio::time::interval(POLL);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !publish.is_closed() {
        pace.tick().await;
        // A page that cannot be had or read leaves the last view in place: whoever waits has a deadline.
        let Ok(answer) = http::get(&client, &url, READ_DEADLINE).await else {
            continue;
        };
        if let Ok(page) = serde_json::from_slice::<MeshPage>(&answer.body) {
            publish.send_replace(Arc::new(history.take(page, Instant::now())));
        }
    }
}

/// The pages of the last seconds.
#[derive(Debug, Default)]
struct History {
    // Bounded by WINDOW and POLL: about ten.
    pages: VecDeque<(Instant, MeshPage)>,
}

impl History {
    /// Takes the newest page and gives the view of the window that ends with it.
    fn take(&mut self, page: MeshPage, now: Instant) -> View {
        while let Some((taken, _)) = self.pages.get(1)
            && now.duration_since(*taken) >= WINDOW
        {
            self.pages.pop_front();
        }
        let view = match self.pages.front() {
            Some((since, before)) => view(before, &page, now.duration_since(*since)),
            // What was before we looked has no time to divide it by.
            None => view(&page, &page, Duration::ZERO),
        };
        self.pages.push_back((now, page));
        view
    }
}

fn view(before: &MeshPage, after: &MeshPage, span: Duration) -> View {
    let live = |reporter: &&ReporterView| reporter.silent_ms < SILENT_MS;
    let reporters: Vec<_> = after.reporters.iter().filter(live).collect();
    View {
        edges: edges(before, after, span),
        endpoints: endpoints(&reporters),
        certificates: reporters.iter().copied().filter_map(certificate).collect(),
    }
}

/// Each edge as its callers count it: the called side counts the same exchanges once more.
fn edges(before: &MeshPage, after: &MeshPage, span: Duration) -> Vec<EdgeRow> {
    let mut sums: BTreeMap<(&str, &str), EdgeSum> = BTreeMap::new();
    for edge in after.edges.iter().filter(|e| e.direction == "outbound") {
        let same = before.edges.iter().find(|then| then.is_same_edge(edge));
        let window = same.map_or_else(|| edge.clone(), |then| edge.since(then));
        let key = (edge.source.as_str(), edge.destination.as_str());
        sums.entry(key).or_default().add(edge, &window);
    }
    let row = |((source, destination), sum)| EdgeSum::row(sum, source, destination, span);
    sums.into_iter().map(row).collect()
}

/// An edge, with mutual TLS or without.
#[derive(Debug, Default)]
struct EdgeSum {
    requests: u64,
    failures: u64,
    /// Whether any exchange was answered without mutual TLS; one that found no endpoint says nothing.
    plaintext: bool,
    bounds: Vec<u64>,
    latency: Vec<u64>,
}

impl EdgeSum {
    fn add(&mut self, total: &EdgeView, window: &EdgeView) {
        self.requests += window.requests;
        self.failures += window.failures;
        self.plaintext |= !total.mtls && total.by_class.get("2xx").is_some_and(|n| *n > 0);
        if self.latency.is_empty() {
            self.bounds.clone_from(&window.latency_bounds_us);
            self.latency.clone_from(&window.latency_counts);
            return;
        }
        for (sum, count) in self.latency.iter_mut().zip(&window.latency_counts) {
            *sum += count;
        }
    }

    fn row(self, source: &str, destination: &str, span: Duration) -> EdgeRow {
        let quantile = |share| quantile(&self.bounds, &self.latency, share);
        EdgeRow {
            source: source.to_owned(),
            destination: destination.to_owned(),
            per_second: rate(self.requests, span),
            success: share(self.requests.saturating_sub(self.failures), self.requests),
            p50: quantile(0.50),
            p99: quantile(0.99),
            mtls: !self.plaintext,
        }
    }
}

fn endpoints(reporters: &[&ReporterView]) -> Vec<EndpointRow> {
    let mut states: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for report in reporters.iter().flat_map(|reporter| &reporter.endpoints) {
        let state = states
            .entry((&report.service, &report.address))
            .or_insert(&report.state);
        if gravity(&report.state) > gravity(state) {
            *state = &report.state;
        }
    }
    let rows = states
        .into_iter()
        .map(|((service, address), state)| EndpointRow {
            service: service.to_owned(),
            address: address.to_owned(),
            state: state.to_owned(),
        });
    rows.collect()
}

fn certificate(reporter: &ReporterView) -> Option<Certificate> {
    let certificate = reporter.certificate.as_ref()?;
    Some(Certificate {
        instance: reporter.instance.clone(),
        spiffe_id: certificate.spiffe_id.clone(),
        serial: certificate.serial.clone(),
        renewals: certificate.renewals,
    })
}

fn gravity(state: &str) -> u8 {
    match state {
        "healthy" => 0,
        "draining" => 1,
        "probing" => 2,
        _ => 3,
    }
}

/// `127.9.0.21` of `127.9.0.21:15008`.
pub(super) fn ip_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn rate(count: u64, span: Duration) -> f64 {
    if span.is_zero() {
        return 0.0;
    }
    count as f64 / span.as_secs_f64()
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn edge(direction: &str, mtls: bool, answered: u64, failed: u64, latency: [u64; 3]) -> Value {
        json!({
            "source": "storefront", "destination": "orders", "direction": direction, "mtls": mtls,
            "requests": answered + failed, "failures": failed,
            "by_class": { "1xx": 0, "2xx": answered, "3xx": 0, "4xx": 0, "5xx": failed, "none": 0 },
            "retries": 0, "request_bytes": 0, "response_bytes": 0, "reasons": {},
            "p50_ms": null, "p99_ms": null,
            "latency_bounds_us": [1000, 2000], "latency_counts": latency, "latency_sum_us": 0,
        })
    }

    fn reporter(instance: &str, silent_ms: u64, states: &[(&str, &str)]) -> Value {
        let endpoint = |(address, state): &(&str, &str)| {
            json!({ "service": "inventory", "address": address, "state": state,
                    "ejections": 0, "in_flight": 0 })
        };
        let endpoints: Vec<_> = states.iter().map(endpoint).collect();
        json!({
            "identity": "spiffe://shop.internal/service/orders", "service": "orders",
            "instance": instance, "silent_ms": silent_ms, "endpoints": endpoints,
            "certificate": {
                "spiffe_id": "spiffe://shop.internal/service/orders", "not_before_unix": 1,
                "not_after_unix": 2, "serial": "0a", "renewals": 3, "renewal_failures": 0,
            },
        })
    }

    fn page(edges: &[Value], reporters: &[Value]) -> MeshPage {
        let page = json!({ "edges": edges, "reporters": reporters });
        serde_json::from_value(page).unwrap()
    }

    #[test]
    fn a_row_is_the_difference_of_two_pages() {
        let at = |answered, failed, fast| {
            let ours = edge("outbound", true, answered, failed, [fast, 0, 0]);
            let theirs = edge("inbound", true, 9_999, 0, [0, 0, 9_999]);
            page(&[ours, theirs], &[])
        };
        let start = Instant::now();
        let mut history = History::default();
        let first = history.take(at(1_000, 0, 1_000), start);
        let row = first.edge("storefront", "orders").unwrap();
        assert_eq!((row.per_second, row.success, row.p50), (0.0, None, None));

        let view = history.take(at(1_090, 10, 1_100), start + Duration::from_secs(1));
        assert_eq!(
            view.edges.len(),
            1,
            "the called side counts the same exchanges"
        );
        let row = view.edge("storefront", "orders").unwrap();
        assert_eq!(row.per_second, 100.0);
        assert_eq!(row.success, Some(0.9));
        assert_eq!(row.p50, Some(Duration::from_micros(500)));
        assert!(row.mtls);
    }

    #[test]
    fn the_window_moves_on() {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..10 {
            let page = page(&[edge("outbound", true, second * 10, 0, [0; 3])], &[]);
            let view = history.take(page, start + Duration::from_secs(second));
            if second > 0 {
                assert_eq!(view.edges[0].per_second, 10.0);
            }
        }
        assert!(history.pages.len() <= 5, "{}", history.pages.len());
    }

    #[test]
    fn an_edge_that_appears_counts_from_zero() {
        let start = Instant::now();
        let mut history = History::default();
        history.take(page(&[], &[]), start);
        let appeared = page(&[edge("outbound", true, 50, 0, [50, 0, 0])], &[]);
        let view = history.take(appeared, start + Duration::from_secs(1));
        assert_eq!(view.edges[0].per_second, 50.0);
    }

    #[test]
    fn one_answer_in_plaintext_makes_the_edge_plaintext() {
        for (plaintext, mtls) in [
            // Failed before there was a connection: neither here nor there.
            (edge("outbound", false, 0, 7, [7, 0, 0]), true),
            (edge("outbound", false, 1, 0, [1, 0, 0]), false),
        ] {
            let page = page(&[plaintext, edge("outbound", true, 10, 0, [10, 0, 0])], &[]);
            let view = view(&page, &page, Duration::ZERO);
            assert_eq!(view.edges.len(), 1);
            assert_eq!(view.edge("storefront", "orders").unwrap().mtls, mtls);
        }
    }

    #[test]
    fn an_endpoint_is_as_bad_as_its_worst_caller_says() {
        let sees = |state| [("127.9.0.31:15008", state)];
        let page = page(
            &[],
            &[
                reporter("a", 10, &sees("healthy")),
                reporter("b", 10, &sees("ejected")),
                reporter("c", 10, &sees("healthy")),
            ],
        );
        let view = view(&page, &page, Duration::ZERO);
        assert_eq!(view.endpoints.len(), 1);
        assert_eq!(view.state_of("inventory", "127.9.0.31"), Some("ejected"));
        assert_eq!(view.state_of("inventory", "127.9.0.32"), None);
    }

    #[test]
    fn who_has_ended_has_no_say() {
        let page = page(
            &[],
            &[
                reporter("a", 10, &[("127.9.0.31:15008", "healthy")]),
                reporter("dead", 60_000, &[("127.9.0.31:15008", "ejected")]),
            ],
        );
        let view = view(&page, &page, Duration::ZERO);
        assert_eq!(view.state_of("inventory", "127.9.0.31"), Some("healthy"));
        assert_eq!(view.certificates.len(), 1);
        assert_eq!(view.certificates[0].instance, "a");
        assert_eq!(view.certificates[0].renewals, 3);
    }
}
