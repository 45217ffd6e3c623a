//! Sums the cores' cells when somebody reads.
//!
//! A core asks once for cells of its own and keeps them; the locks here are taken when a core meets an edge for the
//! first time and when somebody reads, never per exchange. When a core has dropped its cells, their counts are folded
//! into the key's base, so that nothing is lost and nothing piles up. The number of keys is bounded (what comes after
//! that is counted under "other"). A key lives as long as anybody counts under it, and [`IDLE`] longer: cores keep cells
//! for the routes and services that the plan in force names, and callers that it names are kept here, so it is a route, a
//! service or a caller that is no more. While it lives its
//! counters never go back, and where edges are reported none goes before its last counts were taken. One that comes back
//! begins at zero, under another number, by which the collector tells that it did.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cells::{
    AnswerCells, Cells, ConnectionCells, ConnectionTotals, EdgeCells, RouteCells, Totals,
};
use super::rows::{
    CertificateRow, EndpointRow, KeySetRow, LimitRow, ListenerCertificateRow, PermitRow,
    ServiceRow, SourceRow,
};
use crate::foreign::Snapshot;

/// Keys of one kind that are kept apart; with the overflow keys a report and a page stay within 1,024.
pub const MAX_KEYS: usize = 1_000;
/// Keys in which one side is "other"; beyond them both sides are.
const MAX_OVERFLOW_KEYS: usize = 16;

/// How long a key is kept under which nobody counts any more.
pub const IDLE: Duration = Duration::from_secs(600);

/// The name of what was too many to be told apart.
pub const OTHER: &str = "other";

/// Which of the two proxies on an edge counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The caller's.
    Outbound,
    /// The called service's.
    Inbound,
}

impl Direction {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One edge of the mesh, as one of its two proxies sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// The calling service.
    pub source: Arc<str>,
    /// The called service.
    pub destination: Arc<str>,
    /// Which side counted.
    pub direction: Direction,
    /// Whether the exchanges crossed the network in mutual TLS.
    pub mtls: bool,
}

/// What one edge counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeTotals {
    /// Which edge.
    pub key: EdgeKey,
    /// Its counts since the process started.
    pub totals: Totals,
}

/// One route of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The listener that took the exchange.
    pub listener: Arc<str>,
    /// The route that matched, by its name: never a raw path.
    pub route: Arc<str>,
    /// The service behind it.
    pub service: Arc<str>,
}

/// What one route counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTotals {
    /// Which route.
    pub key: RouteKey,
    /// Its counts since the process started.
    pub totals: Totals,
}

/// A key of bounded number.
pub trait Key: Clone + Eq + Hash + Ord {
    /// The same with the side that varies most replaced.
    fn overflow(&self) -> Self;
    /// One of very few keys, when even those are too many.
    fn last_resort(&self) -> Self;
}

impl Key for EdgeKey {
    fn overflow(&self) -> Self {
        let mut key = self.clone();
        // A proxy stands beside one service: the far side is the one that varies.
        match self.direction {
            Direction::Outbound => key.destination = Arc::from(OTHER),
            Direction::Inbound => key.source = Arc::from(OTHER),
        }
        key
    }

    fn last_resort(&self) -> Self {
        Self {
            source: Arc::from(OTHER),
            destination: Arc::from(OTHER),
            ..*self
        }
    }
}

impl Key for RouteKey {
    fn overflow(&self) -> Self {
        Self {
            listener: Arc::clone(&self.listener),
            route: Arc::from(OTHER),
            service: Arc::from(OTHER),
        }
    }

    fn last_resort(&self) -> Self {
        Self {
            listener: Arc::from(OTHER),
            ..self.overflow()
        }
    }
}

impl Key for Arc<str> {
    fn overflow(&self) -> Self {
        Arc::from(OTHER)
    }

    fn last_resort(&self) -> Self {
        Arc::from(OTHER)
    }
}

/// A key to use in place of `key` in a map of bounded size: itself while there is room. `len` is the map's size,
/// `known` says whether it has a key, `max` how many ordinary keys it may have.
pub fn admit<K: Key>(key: K, len: usize, max: usize, known: impl Fn(&K) -> bool) -> K {
    if known(&key) || len < max {
        return key;
    }
    let overflow = key.overflow();
    if known(&overflow) || len < max + MAX_OVERFLOW_KEYS {
        return overflow;
    }
    key.last_resort()
}

/// Every key's cells, and what cells that are no more have counted.
struct Ledger<K, C: Cells> {
    // Guards the map; taken to hand out cells and to read, for as long as a sum takes.
    entries: Mutex<HashMap<K, Entry<C>>>,
    /// How many entries there have been.
    lives: AtomicU64,
}

struct Entry<C: Cells> {
    /// No other entry has it, of this key or any.
    life: u64,
    base: C::Totals,
    live: Vec<Arc<C>>,
    /// Since when nobody has cells of it, as far as anybody has looked.
    idle: Option<Instant>,
}

impl<C: Cells> Entry<C> {
    /// Takes over what cells counted that no core holds any more.
    fn fold(&mut self) {
        let base = &mut self.base;
        // `get_mut` succeeds when nobody else has the cells, and then sees all that was written to them.
        self.live.retain_mut(|cells| match Arc::get_mut(cells) {
            Some(last) => {
                last.add_to(base);
                false
            }
            None => true,
        });
    }

    fn totals(&mut self) -> C::Totals {
        self.fold();
        let mut totals = self.base.clone();
        for cells in &self.live {
            cells.add_to(&mut totals);
        }
        totals
    }
}

impl<K, C: Cells> Default for Ledger<K, C> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            lives: AtomicU64::new(0),
        }
    }
}

impl<K: Key, C: Cells> Ledger<K, C> {
    fn cells(&self, key: K) -> Arc<C> {
        let mut entries = lock(&self.entries);
        let key = admit(key, entries.len(), MAX_KEYS, |key| {
            entries.contains_key(key)
        });
        let entry = entries.entry(key).or_insert_with(|| Entry {
            life: self.lives.fetch_add(1, Ordering::Relaxed) + 1,
            base: C::Totals::default(),
            live: Vec::new(),
            idle: None,
        });
        entry.idle = None;
        entry.fold();
        let cells = Arc::new(C::default());
        entry.live.push(Arc::clone(&cells));
        cells
    }

    /// Forgets keys under which nobody has counted for [`IDLE`], but for those that are to stay, and those of which `told`
    /// does not say that their last counts were told.
    fn forget_idle(
        &self,
        now: Instant,
        stays: impl Fn(&K) -> bool,
        told: impl Fn(Instant) -> bool,
    ) {
        lock(&self.entries).retain(|key, entry| {
            entry.fold();
            if !entry.live.is_empty() || stays(key) {
                entry.idle = None;
                return true;
            }
            let since = *entry.idle.get_or_insert(now);
            now.saturating_duration_since(since) < IDLE || !told(since)
        });
    }

    /// Sorted by key.
    fn totals(&self) -> impl DoubleEndedIterator<Item = (K, C::Totals)> + use<K, C> {
        let totals = self.lives().into_iter();
        totals.map(|(key, _, totals)| (key, totals))
    }

    /// Sorted by key, each with the number of its entry.
    fn lives(&self) -> Vec<(K, u64, C::Totals)> {
        let mut entries = lock(&self.entries);
        let mut totals: Vec<_> = entries
            .iter_mut()
            .map(|(key, entry)| (key.clone(), entry.life, entry.totals()))
            .collect();
        drop(entries);
        totals.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        totals
    }
}

type Provide<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Everything that one process counts.
#[derive(Default)]
pub struct Registry {
    edges: Ledger<EdgeKey, EdgeCells>,
    routes: Ledger<RouteKey, RouteCells>,
    connections: Ledger<Arc<str>, ConnectionCells>,
    // One key only, the empty one: answers are per process.
    answers: Ledger<Arc<str>, AnswerCells>,
    // Guard the providers; held while one is called, so a provider must not call the registry.
    endpoints: Mutex<Option<Provide<Vec<EndpointRow>>>>,
    services: Mutex<Option<Provide<Vec<ServiceRow>>>>,
    sources: Mutex<Option<Provide<Vec<SourceRow>>>>,
    certificate: Mutex<Option<Provide<Option<CertificateRow>>>>,
    permits: Mutex<Option<Provide<Vec<PermitRow>>>>,
    foreign: Mutex<Option<Provide<Snapshot>>>,
    key_sets: Mutex<Option<Provide<Vec<KeySetRow>>>>,
    limits: Mutex<Option<Provide<Vec<LimitRow>>>>,
    listener_certificates: Mutex<Option<Provide<Vec<ListenerCertificateRow>>>>,
    /// Where edges are reported: as of when they were taken last, if ever.
    reported: Mutex<Option<Option<Instant>>>,
    pub(super) access_log_dropped: Arc<AtomicU64>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// New cells for this edge, to be kept and written to by one core only.
    pub fn edge(&self, key: EdgeKey) -> Arc<EdgeCells> {
        self.edges.cells(key)
    }

    /// New cells for this route of the gateway, to be kept and written to by one core only.
    pub fn route(&self, key: RouteKey) -> Arc<RouteCells> {
        self.routes.cells(key)
    }

    /// New cells for this listener's connections, to be kept and written to by one core only.
    pub fn connections(&self, listener: &Arc<str>) -> Arc<ConnectionCells> {
        self.connections.cells(Arc::clone(listener))
    }

    /// New cells for answers of our own, to be kept and written to by one core only.
    pub fn answers(&self) -> Arc<AnswerCells> {
        self.answers.cells(Arc::from(""))
    }

    /// Edges are reported to somebody from now on: none is forgotten that was not taken.
    pub fn begin_reporting(&self) {
        lock(&self.reported).get_or_insert(None);
    }

    /// The edges were taken as they were then.
    pub fn reported(&self, as_of: Instant) {
        *lock(&self.reported) = Some(Some(as_of));
    }

    /// Forgets what nobody has counted under for [`IDLE`], but for callers of which `names` says that they may come again
    /// at any time. To be called now and then.
    pub fn forget_idle(&self, now: Instant, names: impl Fn(&str) -> bool) {
        let reported = *lock(&self.reported);
        // Cores hold the cells of routes and of called services while the plan names them, and those of a caller only a
        // little longer than it calls. One that calls once an hour would have its first exchange of each in a new series,
        // which `increase()` does not see.
        let stays = |key: &EdgeKey| key.direction == Direction::Inbound && names(&key.source);
        // Nothing is counted after a key has become idle: a report from later on has all of it.
        self.edges.forget_idle(now, stays, |since| match reported {
            None => true,
            Some(taken) => taken.is_some_and(|as_of| as_of >= since),
        });
        self.routes.forget_idle(now, |_| false, |_| true);
        self.connections.forget_idle(now, |_| false, |_| true);
    }

    /// What every edge counted, sorted by key.
    pub fn totals(&self) -> Vec<EdgeTotals> {
        let edges = self.edges.totals();
        edges
            .map(|(key, totals)| EdgeTotals { key, totals })
            .collect()
    }

    /// What every edge counted, sorted by key, each with a number that tells it from the same edge before it was forgotten:
    /// one that comes back begins at zero, and has another one.
    pub fn lives(&self) -> Vec<(EdgeTotals, u64)> {
        let edges = self.edges.lives().into_iter();
        edges
            .map(|(key, life, totals)| (EdgeTotals { key, totals }, life))
            .collect()
    }

    /// What every route counted, sorted by key.
    pub fn route_totals(&self) -> Vec<RouteTotals> {
        let routes = self.routes.totals();
        routes
            .map(|(key, totals)| RouteTotals { key, totals })
            .collect()
    }

    /// What every listener counted, sorted by name.
    pub fn connection_totals(&self) -> Vec<(Arc<str>, ConnectionTotals)> {
        self.connections.totals().collect()
    }

    /// Answers of our own, in the order of [`Reason::ALL`](crate::reason::Reason::ALL); empty before the first core asked for cells.
    pub fn answer_totals(&self) -> Vec<u64> {
        self.answers
            .totals()
            .next_back()
            .map(|(_, totals)| totals)
            .unwrap_or_default()
    }

    /// Who knows the endpoints. Called when somebody reads; must not call the registry.
    pub fn endpoints_from(&self, provide: Box<dyn Fn() -> Vec<EndpointRow> + Send + Sync>) {
        *lock(&self.endpoints) = Some(provide);
    }

    /// Who knows the services. Called when somebody reads; must not call the registry.
    pub fn services_from(&self, provide: Box<dyn Fn() -> Vec<ServiceRow> + Send + Sync>) {
        *lock(&self.services) = Some(provide);
    }

    /// Who knows how the sources of endpoints are doing. Called when somebody reads; must not call the registry.
    pub fn sources_from(&self, provide: Box<dyn Fn() -> Vec<SourceRow> + Send + Sync>) {
        *lock(&self.sources) = Some(provide);
    }

    /// Who knows our certificate. Called when somebody reads; must not call the registry.
    pub fn certificate_from(&self, provide: Box<dyn Fn() -> Option<CertificateRow> + Send + Sync>) {
        *lock(&self.certificate) = Some(provide);
    }

    /// Who knows where plaintext is let in. Called when somebody reads; must not call the registry.
    pub fn permits_from(&self, provide: Box<dyn Fn() -> Vec<PermitRow> + Send + Sync>) {
        *lock(&self.permits) = Some(provide);
    }

    /// Who knows the foreign peers. Called when somebody reads; must not call the registry.
    pub fn foreign_from(&self, provide: Box<dyn Fn() -> Snapshot + Send + Sync>) {
        *lock(&self.foreign) = Some(provide);
    }

    /// Who knows the keys of token issuers. Called when somebody reads; must not call the registry.
    pub fn key_sets_from(&self, provide: Box<dyn Fn() -> Vec<KeySetRow> + Send + Sync>) {
        *lock(&self.key_sets) = Some(provide);
    }

    /// Who knows the rate limits. Called when somebody reads; must not call the registry.
    pub fn limits_from(&self, provide: Box<dyn Fn() -> Vec<LimitRow> + Send + Sync>) {
        *lock(&self.limits) = Some(provide);
    }

    /// Who knows the certificates of public listeners. Called when somebody reads; must not call the registry.
    pub fn listener_certificates_from(
        &self,
        provide: Box<dyn Fn() -> Vec<ListenerCertificateRow> + Send + Sync>,
    ) {
        *lock(&self.listener_certificates) = Some(provide);
    }

    /// The keys of token issuers now.
    pub fn key_sets(&self) -> Vec<KeySetRow> {
        ask(&self.key_sets)
    }

    /// The rate limits now.
    pub fn limits(&self) -> Vec<LimitRow> {
        ask(&self.limits)
    }

    /// The certificates of public listeners now.
    pub fn listener_certificates(&self) -> Vec<ListenerCertificateRow> {
        ask(&self.listener_certificates)
    }

    /// The foreign peers that came to us and to which we came.
    pub fn foreign(&self) -> Snapshot {
        ask(&self.foreign)
    }

    /// Where plaintext is let in, and until when.
    pub fn permits(&self) -> Vec<PermitRow> {
        ask(&self.permits)
    }

    /// The endpoints now.
    pub fn endpoints(&self) -> Vec<EndpointRow> {
        ask(&self.endpoints)
    }

    /// The services now.
    pub fn services(&self) -> Vec<ServiceRow> {
        ask(&self.services)
    }

    /// The sources of endpoints now, one for each service.
    pub fn sources(&self) -> Vec<SourceRow> {
        ask(&self.sources)
    }

    /// Our certificate now.
    pub fn certificate(&self) -> Option<CertificateRow> {
        ask(&self.certificate)
    }

    /// The counter of access log lines that were dropped, shared with the log.
    pub fn access_log_dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.access_log_dropped)
    }
}

/// What the one who knows says now; nothing when there is nobody.
fn ask<T: Default>(provide: &Mutex<Option<Provide<T>>>) -> T {
    lock(provide)
        .as_ref()
        .map(|provide| provide())
        .unwrap_or_default()
}

/// Nothing here leaves data half changed when it panics, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::reason::Reason;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    fn edge(destination: &str) -> EdgeKey {
        EdgeKey {
            source: Arc::from("storefront"),
            destination: Arc::from(destination),
            direction: Direction::Outbound,
            mtls: true,
        }
    }

    #[test]
    fn four_cores_add_up_exactly_while_somebody_reads() {
        const EACH: u64 = 50_000;
        let registry = Registry::new();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let cores: Vec<_> = (0..4)
                .map(|core| {
                    let registry = &registry;
                    scope.spawn(move || {
                        // Half of the cores drop and ask again, as they do when connections come and go.
                        let mut cells = registry.edge(edge("orders"));
                        for n in 0..EACH {
                            if core % 2 == 0 && n % 1_000 == 0 {
                                cells = registry.edge(edge("orders"));
                            }
                            let status = if n % 10 == 0 { None } else { Some(200) };
                            cells.record(status, Duration::from_micros(n % 400));
                            cells.add_bytes(1, 2);
                            if n % 5 == 0 {
                                cells.retried();
                                cells.answered(Reason::ConnectFailed);
                            }
                        }
                    })
                })
                .collect();
            let reader = scope.spawn(|| {
                let mut last = Totals::default();
                while !stop.load(Ordering::Relaxed) {
                    if let Some(edge) = registry.totals().pop() {
                        let totals = edge.totals;
                        assert!(totals.requests() >= last.requests(), "went back");
                        assert_eq!(last.since(&totals).requests(), 0, "went back");
                        last = totals;
                    }
                }
            });
            for core in cores {
                core.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        let totals = registry.totals().pop().unwrap().totals;
        assert_eq!(totals.requests(), 4 * EACH);
        assert_eq!(totals.by_class[5], 4 * EACH / 10);
        assert_eq!(totals.latency.iter().sum::<u64>(), 4 * EACH);
        assert_eq!(
            totals.latency_sum_us,
            4 * (0..EACH).map(|n| n % 400).sum::<u64>()
        );
        assert_eq!(
            (totals.request_bytes, totals.response_bytes),
            (4 * EACH, 8 * EACH)
        );
        assert_eq!(totals.retries, 4 * EACH / 5);
        assert_eq!(totals.answers(Reason::ConnectFailed), 4 * EACH / 5);
    }

    #[test]
    fn cells_that_were_dropped_are_folded_and_forgotten() {
        let registry = Registry::new();
        for _ in 0..1_000 {
            registry
                .edge(edge("orders"))
                .record(Some(200), Duration::ZERO);
        }
        assert_eq!(registry.totals()[0].totals.requests(), 1_000);
        let entries = lock(&registry.edges.entries);
        assert!(entries[&edge("orders")].live.is_empty());
    }

    #[test]
    fn edges_beyond_the_bound_are_counted_as_other() {
        let registry = Registry::new();
        for n in 0..5_000 {
            registry
                .edge(edge(&format!("service-{n}")))
                .record(Some(200), Duration::ZERO);
        }
        let totals = registry.totals();
        assert_eq!(totals.len(), MAX_KEYS + 1);
        let sum: u64 = totals.iter().map(|edge| edge.totals.requests()).sum();
        assert_eq!(sum, 5_000);
        let other = totals
            .iter()
            .find(|e| &*e.key.destination == OTHER)
            .unwrap();
        assert_eq!(other.totals.requests(), 5_000 - MAX_KEYS as u64);
        // A key from before the bound is still counted as itself.
        registry
            .edge(edge("service-7"))
            .record(None, Duration::ZERO);
        let seven = registry
            .totals()
            .into_iter()
            .find(|e| e.key == edge("service-7"));
        assert_eq!(seven.unwrap().totals.requests(), 2);
    }

    /// So many seconds after an instant.
    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_key_under_which_nobody_counts_any_more_makes_room_for_others_after_a_while() {
        let (registry, start) = (Registry::new(), Instant::now());
        let held = registry.edge(edge("held"));
        for n in 0..5_000 {
            registry
                .edge(edge(&format!("service-{n}")))
                .record(Some(200), Duration::ZERO);
        }
        registry.forget_idle(start, |_| false);
        registry.forget_idle(after(start, 599), |_| false);
        assert_eq!(registry.totals().len(), MAX_KEYS + 1, "not yet");
        held.record(Some(200), Duration::ZERO);
        registry.forget_idle(after(start, 600), |_| false);
        let totals = registry.totals();
        assert_eq!(totals.len(), 1, "but for one that somebody holds");
        assert_eq!(totals[0].totals.requests(), 1);
        // Names that are new are told apart again.
        registry.edge(edge("new")).record(Some(200), Duration::ZERO);
        assert!(registry.totals().iter().any(|e| e.key == edge("new")));
    }

    #[test]
    fn who_counts_again_in_time_goes_on_where_it_was() {
        let (registry, start) = (Registry::new(), Instant::now());
        let count = || {
            registry
                .edge(edge("orders"))
                .record(Some(200), Duration::ZERO);
        };
        count();
        registry.forget_idle(start, |_| false);
        registry.forget_idle(after(start, 400), |_| false);
        count();
        registry.forget_idle(after(start, 500), |_| false);
        registry.forget_idle(after(start, 1_099), |_| false);
        count();
        assert_eq!(registry.totals()[0].totals.requests(), 3);
    }

    #[test]
    fn an_edge_that_is_reported_stays_until_its_last_counts_were_taken() {
        let (registry, start) = (Registry::new(), Instant::now());
        registry.begin_reporting();
        registry
            .edge(edge("orders"))
            .record(Some(200), Duration::ZERO);
        registry.reported(start);
        registry.forget_idle(after(start, 1), |_| false);
        registry.forget_idle(after(start, 10_000), |_| false);
        assert_eq!(registry.totals().len(), 1, "the collector is away");
        registry.reported(after(start, 10_001));
        registry.forget_idle(after(start, 10_002), |_| false);
        assert!(registry.totals().is_empty());
    }

    #[test]
    fn a_caller_that_the_plan_names_is_not_forgotten_however_seldom_it_calls() {
        let (registry, start) = (Registry::new(), Instant::now());
        let caller = |source: &str| EdgeKey {
            source: Arc::from(source),
            direction: Direction::Inbound,
            ..edge("orders")
        };
        let called = edge("nightly");
        for key in [caller("nightly"), caller("gone"), called] {
            registry.edge(key).record(Some(200), Duration::ZERO);
        }
        for hour in 0..3 {
            registry.forget_idle(after(start, hour * 3_600), |name| name == "nightly");
        }
        let left: Vec<_> = registry.totals().into_iter().map(|edge| edge.key).collect();
        assert_eq!(left, [caller("nightly")]);
        // Until no plan names it any more.
        registry.forget_idle(after(start, 10_800), |_| false);
        registry.forget_idle(after(start, 11_400), |_| false);
        assert!(registry.totals().is_empty());
    }

    #[test]
    fn an_edge_that_was_forgotten_and_comes_back_is_another_one() {
        let (registry, start) = (Registry::new(), Instant::now());
        let count = || {
            registry
                .edge(edge("orders"))
                .record(Some(200), Duration::ZERO);
            let (edge, life) = registry.lives().pop().unwrap();
            (edge.totals.requests(), life)
        };
        let (_, first) = count();
        assert_eq!(count(), (2, first), "nothing was forgotten");
        registry.forget_idle(start, |_| false);
        registry.forget_idle(after(start, 600), |_| false);
        let (requests, second) = count();
        assert_eq!(requests, 1);
        assert_ne!(second, first);
    }

    #[test]
    fn the_bound_holds_when_both_sides_vary() {
        let registry = Registry::new();
        for n in 0..4_000 {
            let key = EdgeKey {
                source: Arc::from(format!("source-{n}")),
                direction: [Direction::Outbound, Direction::Inbound][n % 2],
                mtls: n % 3 == 0,
                ..edge(&format!("destination-{n}"))
            };
            registry.edge(key).record(Some(200), Duration::ZERO);
        }
        let totals = registry.totals();
        assert!(totals.len() <= 1_024, "{}", totals.len());
        let sum: u64 = totals.iter().map(|edge| edge.totals.requests()).sum();
        assert_eq!(sum, 4_000);
    }
}
