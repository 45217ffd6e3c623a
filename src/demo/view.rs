//! What the collector knows, as the table and the story need it: rates and latencies of the last seconds, states of
//! endpoints, certificates.
//!
//! The collector's `/mesh` page has totals. A rate is the difference of two pages, and so is a latency: the histograms
//! are cumulative, and the difference of two of them is the histogram of the time between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::watch;

use super::http::{self, Client};

/// How often the page is read; sidecars report every half second.
const POLL: Duration = Duration::from_millis(300);
/// How long a reading may take.
const READ_DEADLINE: Duration = Duration::from_secs(2);
/// Over how long rates and latencies are taken.
const WINDOW: Duration = Duration::from_secs(3);

/// The page `/mesh`; what we do not use is ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Page {
    edges: Vec<EdgeTotals>,
    endpoints: Vec<EndpointReport>,
    certificates: Vec<Certificate>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct EdgeTotals {
    source: String,
    destination: String,
    direction: String,
    mtls: bool,
    /// 1xx … 5xx, and exchanges without any answer.
    by_class: Vec<u64>,
    latency_bounds_us: Vec<u64>,
    /// One more than there are bounds: the last is for all above.
    latency_counts: Vec<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct EndpointReport {
    service: String,
    address: String,
    state: String,
}

/// A certificate in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
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
        if let Ok(page) = serde_json::from_slice::<Page>(&answer.body) {
            publish.send_replace(Arc::new(history.take(page, Instant::now())));
        }
    }
}

/// The pages of the last seconds.
#[derive(Debug, Default)]
struct History {
    // Bounded by WINDOW and POLL: about ten.
    pages: VecDeque<(Instant, Page)>,
}

impl History {
    /// Takes the newest page and gives the view of the window that ends with it.
    fn take(&mut self, page: Page, now: Instant) -> View {
        while let Some((taken, _)) = self.pages.get(1)
            && now.duration_since(*taken) >= WINDOW
        {
            self.pages.pop_front();
        }
        let nothing = (now, Page::default());
        let (since, before) = self.pages.front().unwrap_or(&nothing);
        let view = view(before, &page, now.duration_since(*since));
        self.pages.push_back((now, page));
        view
    }
}

fn view(before: &Page, after: &Page, span: Duration) -> View {
    let earlier = by_edge(before);
    let edges = by_edge(after)
        .into_iter()
        .map(|((source, destination), now)| {
            let key = (source, destination);
            // The first page has everything since the start, and no time to divide it by.
            let window = match earlier.get(&key) {
                Some(then) if !span.is_zero() => now.since(then),
                _ => EdgeSum::default(),
            };
            let quantile = |q| quantile(&now.bounds, &window.latency, q);
            EdgeRow {
                source: source.to_owned(),
                destination: destination.to_owned(),
                per_second: rate(window.ended, span),
                success: share(window.ended - window.failed, window.ended),
                p50: quantile(0.50),
                p99: quantile(0.99),
                mtls: now.mtls == Some(true),
            }
        });
    View {
        edges: edges.collect(),
        endpoints: endpoints(after),
        certificates: after.certificates.clone(),
    }
}

/// An edge, whoever reported it.
#[derive(Debug, Clone, Default)]
struct EdgeSum {
    ended: u64,
    failed: u64,
    /// Said by nobody yet, or by all who reported the edge.
    mtls: Option<bool>,
    bounds: Vec<u64>,
    latency: Vec<u64>,
}

impl EdgeSum {
    fn add(&mut self, edge: &EdgeTotals) {
        let class = |index: usize| edge.by_class.get(index).copied().unwrap_or(0);
        self.ended += edge.by_class.iter().sum::<u64>();
        self.failed += class(4) + class(5);
        // One reporter without it, and the edge is without it.
        self.mtls = Some(self.mtls.unwrap_or(true) && edge.mtls);
        if self.latency.is_empty() {
            self.bounds.clone_from(&edge.latency_bounds_us);
            self.latency.clone_from(&edge.latency_counts);
            return;
        }
        for (sum, count) in self.latency.iter_mut().zip(&edge.latency_counts) {
            *sum += count;
        }
    }

    /// A process that restarts or leaves takes its counts along: then there is no difference, and not a huge one.
    fn since(&self, earlier: &EdgeSum) -> EdgeSum {
        let counts = self.latency.iter().enumerate().map(|(index, count)| {
            let before = earlier.latency.get(index).copied().unwrap_or(0);
            count.saturating_sub(before)
        });
        let ended = self.ended.saturating_sub(earlier.ended);
        EdgeSum {
            ended,
            failed: self.failed.saturating_sub(earlier.failed).min(ended),
            mtls: self.mtls,
            bounds: Vec::new(),
            latency: counts.collect(),
        }
    }
}

/// Each edge as its callers count it: the called side counts the same exchanges once more.
fn by_edge(page: &Page) -> BTreeMap<(&str, &str), EdgeSum> {
    let mut edges: BTreeMap<_, EdgeSum> = BTreeMap::new();
    let outbound = page.edges.iter().filter(|edge| edge.direction != "inbound");
    for edge in outbound {
        let key = (short(&edge.source), short(&edge.destination));
        edges.entry(key).or_default().add(edge);
    }
    edges
}

fn endpoints(page: &Page) -> Vec<EndpointRow> {
    let mut states: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for report in &page.endpoints {
        let state = states
            .entry((short(&report.service), &report.address))
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

fn gravity(state: &str) -> u8 {
    match state {
        "healthy" => 0,
        "draining" => 1,
        "probing" => 2,
        _ => 3,
    }
}

/// The name of a service, when its whole identity is given.
fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// `127.9.0.21` of `127.9.0.21:15008`.
pub(super) fn ip_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn rate(count: u64, span: Duration) -> f64 {
    if span.is_zero() {
        return 0.0;
    }
    as_float(count) / span.as_secs_f64()
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| as_float(part) / as_float(whole))
}

/// The value below which the share `q` of the counted lies: linear inside its bucket.
///
/// The bucket without an upper bound has no inside: its lower bound stands for it.
fn quantile(bounds_us: &[u64], counts: &[u64], q: f64) -> Option<Duration> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = as_float(total) * q;
    let mut below = 0.0;
    for (index, count) in counts.iter().enumerate() {
        let count = as_float(*count);
        if below + count >= rank && count > 0.0 {
            let low = index.checked_sub(1).and_then(|i| bounds_us.get(i));
            let low = as_float(low.copied().unwrap_or(0));
            let high = bounds_us.get(index).map_or(low, |bound| as_float(*bound));
            let micros = low + (high - low) * ((rank - below) / count);
            return Some(Duration::from_secs_f64(micros / 1e6));
        }
        below += count;
    }
    None
}

/// Counts of a demo are far below the 2^53 up to which this is exact.
#[allow(clippy::cast_precision_loss)]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn quantiles_lie_inside_their_bucket() {
        let bounds = [1_000, 2_000, 4_000];
        for (counts, q, expected_us) in [
            // All in the second bucket: its middle is the median.
            ([0, 100, 0, 0], 0.5, Some(1_500)),
            ([0, 100, 0, 0], 1.0, Some(2_000)),
            // Half in the first, half in the third.
            ([50, 0, 50, 0], 0.5, Some(1_000)),
            ([50, 0, 50, 0], 0.75, Some(3_000)),
            // Above all bounds: the last bound is what we know.
            ([0, 0, 0, 10], 0.5, Some(4_000)),
            ([98, 0, 0, 2], 0.99, Some(4_000)),
            // Nothing counted.
            ([0, 0, 0, 0], 0.5, None),
        ] {
            let found = quantile(&bounds, &counts, q).map(|d| d.as_micros());
            assert_eq!(found, expected_us, "{counts:?} {q}");
        }
        assert_eq!(quantile(&[], &[5], 0.5), Some(Duration::ZERO));
        assert_eq!(quantile(&[], &[], 0.5), None);
    }

    fn page(answered: u64, failed: u64, fast: u64) -> Page {
        serde_json::from_value(json!({
            "a field of a later version": 1,
            "edges": [
                { "source": "spiffe://shop.internal/service/storefront", "destination": "orders",
                  "direction": "outbound", "mtls": true, "by_class": [0, answered, 0, 0, failed, 0],
                  "latency_bounds_us": [1000, 2000], "latency_counts": [fast, 0, 0] },
                { "source": "storefront", "destination": "orders",
                  "direction": "inbound", "mtls": true, "by_class": [0, 1000, 0, 0, 0, 0],
                  "latency_bounds_us": [1000, 2000], "latency_counts": [0, 0, 1000] },
            ],
            "endpoints": [],
        }))
        .unwrap()
    }

    #[test]
    fn a_row_is_the_difference_of_two_pages() {
        let start = Instant::now();
        let mut history = History::default();
        let first = history.take(page(1_000, 0, 1_000), start);
        // What was before we looked is no rate.
        assert_eq!(first.edge("storefront", "orders").unwrap().per_second, 0.0);
        assert_eq!(first.edge("storefront", "orders").unwrap().success, None);

        let view = history.take(page(1_090, 10, 1_100), start + Duration::from_secs(1));
        let row = view.edge("storefront", "orders").unwrap();
        assert_eq!(row.per_second, 100.0);
        assert_eq!(row.success, Some(0.9));
        assert_eq!(row.p50, Some(Duration::from_micros(500)));
        assert!(row.mtls);
        assert_eq!(
            view.edges.len(),
            1,
            "the called side counts the same exchanges"
        );
    }

    #[test]
    fn the_window_moves_on() {
        let start = Instant::now();
        let mut history = History::default();
        for second in 0..10 {
            let at = start + Duration::from_secs(second);
            let view = history.take(page(second * 10, 0, 0), at);
            if second > 0 {
                assert_eq!(view.edges[0].per_second, 10.0);
            }
        }
        assert!(history.pages.len() <= 5, "{}", history.pages.len());
    }

    #[test]
    fn a_process_that_starts_anew_makes_no_huge_rate() {
        let start = Instant::now();
        let mut history = History::default();
        history.take(page(1_000, 10, 1_000), start);
        let view = history.take(page(5, 0, 5), start + Duration::from_secs(1));
        assert_eq!(view.edges[0].per_second, 0.0);
    }

    #[test]
    fn an_endpoint_is_as_bad_as_its_worst_caller_says() {
        let report = |state: &str| json!({ "service": "inventory", "address": "127.9.0.31:15008", "state": state });
        let page: Page = serde_json::from_value(json!({
            "endpoints": [report("healthy"), report("ejected"), report("healthy")],
        }))
        .unwrap();
        let view = view(&Page::default(), &page, Duration::ZERO);
        assert_eq!(view.endpoints.len(), 1);
        assert_eq!(view.state_of("inventory", "127.9.0.31"), Some("ejected"));
        assert_eq!(view.state_of("inventory", "127.9.0.32"), None);
    }

    #[test]
    fn one_caller_in_plaintext_makes_the_edge_plaintext() {
        let edge = |mtls: bool| {
            json!({ "source": "orders", "destination": "inventory", "mtls": mtls,
            "by_class": [0, 1], "latency_counts": [1, 0], "latency_bounds_us": [1000] })
        };
        let page: Page =
            serde_json::from_value(json!({ "edges": [edge(true), edge(false), edge(true)] }))
                .unwrap();
        let view = view(&Page::default(), &page, Duration::ZERO);
        assert!(!view.edge("orders", "inventory").unwrap().mtls);
    }
}
