//! Counters with one writer: the core that owns them. Anyone may read them at any time.
//!
//! A core adds with a relaxed load and a relaxed store, not with a read-modify-write: half the price, and exact as
//! long as nobody else writes. So a set of cells must stay on the core that asked the [`Registry`] for it; two threads
//! that write to one set lose counts (and nothing worse).
//!
//! [`Registry`]: super::Registry

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::reason::Reason;

/// Upper bounds of the latency buckets in microseconds; one more bucket holds all that is slower.
pub const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// Latency buckets, the last one included.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Classes of status; the last one is for exchanges that ended without any answer.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// One slot a reason, and a last one for reasons that a newer peer knows and we do not.
pub const REASONS: usize = Reason::ALL.len() + 1;

/// What counts and can be summed.
pub trait Cells: Default + Send + Sync {
    /// The sum over any number of these cells.
    type Totals: Clone + Default;

    /// Adds what was counted so far.
    fn add_to(&self, totals: &mut Self::Totals);
}

/// One counter of one writer.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    fn sub(&self, n: u64) {
        self.0.store(self.get().wrapping_sub(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The exchanges of one edge or one route, as one core saw them.
// Aligned, so that two cores' cells never share a cache line.
#[derive(Debug)]
#[repr(align(64))]
pub struct ExchangeCells {
    by_class: [Cell; CLASSES.len()],
    latency: [Cell; BUCKETS],
    latency_sum_us: Cell,
    retries: Cell,
    request_bytes: Cell,
    response_bytes: Cell,
    in_flight: Cell,
    reasons: [Cell; REASONS],
}

/// The exchanges between one caller and one service.
pub type EdgeCells = ExchangeCells;

/// The exchanges that one route of the gateway took.
pub type RouteCells = ExchangeCells;

impl Default for ExchangeCells {
    fn default() -> Self {
        Self {
            by_class: Default::default(),
            latency: Default::default(),
            latency_sum_us: Cell::default(),
            retries: Cell::default(),
            request_bytes: Cell::default(),
            response_bytes: Cell::default(),
            in_flight: Cell::default(),
            reasons: std::array::from_fn(|_| Cell::default()),
        }
    }
}

impl ExchangeCells {
    /// An exchange ended: with this status, or with none when the peer went away before there was one.
    pub fn record(&self, status: Option<u16>, latency: Duration) {
        let us = micros(latency);
        self.by_class[class_of(status)].add(1);
        self.latency[bucket_of(us)].add(1);
        self.latency_sum_us.add(us);
    }

    /// An attempt was repeated.
    pub fn retried(&self) {
        self.retries.add(1);
    }

    /// We answered in place of the endpoint. The exchange is recorded too, with the answer's status.
    pub fn answered(&self, reason: Reason) {
        self.reasons[reason as usize].add(1);
    }

    /// Body bytes that passed, from and to the caller.
    pub fn add_bytes(&self, request: u64, response: u64) {
        self.request_bytes.add(request);
        self.response_bytes.add(response);
    }

    /// An exchange began; it is in flight until the guard is dropped, which must happen on the same core.
    pub fn begin(self: Arc<Self>) -> OpenExchange {
        self.in_flight.add(1);
        OpenExchange(self)
    }
}

impl Cells for ExchangeCells {
    type Totals = Totals;

    fn add_to(&self, totals: &mut Totals) {
        for (sum, cell) in totals.by_class.iter_mut().zip(&self.by_class) {
            *sum += cell.get();
        }
        for (sum, cell) in totals.latency.iter_mut().zip(&self.latency) {
            *sum += cell.get();
        }
        for (sum, cell) in totals.reasons.iter_mut().zip(&self.reasons) {
            *sum += cell.get();
        }
        totals.latency_sum_us += self.latency_sum_us.get();
        totals.retries += self.retries.get();
        totals.request_bytes += self.request_bytes.get();
        totals.response_bytes += self.response_bytes.get();
        // A level may be read between two writes; it must not overflow for that.
        totals.in_flight = totals.in_flight.wrapping_add(self.in_flight.get());
    }
}

/// An exchange in flight, and the cells that it counts in.
#[derive(Debug)]
pub struct OpenExchange(Arc<ExchangeCells>);

impl std::ops::Deref for OpenExchange {
    type Target = ExchangeCells;

    fn deref(&self) -> &ExchangeCells {
        &self.0
    }
}

impl Drop for OpenExchange {
    fn drop(&mut self) {
        self.0.in_flight.sub(1);
    }
}

/// The class of a status, as an index into [`CLASSES`]. What is beyond 599 counts as 5xx (RFC 9110 §15).
pub fn class_of(status: Option<u16>) -> usize {
    match status {
        Some(status @ 100..=599) => usize::from(status / 100 - 1),
        Some(_) => 4,
        None => 5,
    }
}

/// The bucket of a latency: the first whose bound is not below it.
pub fn bucket_of(us: u64) -> usize {
    BOUNDS_US.partition_point(|bound| *bound < us)
}

/// Rounded and not cut, so that the sum of many short latencies is not too small.
fn micros(latency: Duration) -> u64 {
    // Not by the nanoseconds of all of it, whose division takes 128 bits.
    let below = u64::from((latency.subsec_nanos() + 500) / 1_000);
    latency
        .as_secs()
        .saturating_mul(1_000_000)
        .saturating_add(below)
}

/// What a number of [`ExchangeCells`] counted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Exchanges by [class](CLASSES).
    pub by_class: [u64; CLASSES.len()],
    /// Exchanges by latency, in the buckets of [`BOUNDS_US`].
    pub latency: [u64; BUCKETS],
    /// Their latencies added up.
    pub latency_sum_us: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// Body bytes from the caller.
    pub request_bytes: u64,
    /// Body bytes to the caller.
    pub response_bytes: u64,
    /// Exchanges in flight now: a level, not a count.
    pub in_flight: u64,
    /// Answers of our own by reason; the last slot is for reasons unknown to this version.
    pub reasons: [u64; REASONS],
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            by_class: [0; CLASSES.len()],
            latency: [0; BUCKETS],
            latency_sum_us: 0,
            retries: 0,
            request_bytes: 0,
            response_bytes: 0,
            in_flight: 0,
            reasons: [0; REASONS],
        }
    }
}

impl Totals {
    /// All exchanges.
    pub fn requests(&self) -> u64 {
        sum(&self.by_class)
    }

    /// Exchanges that failed: 5xx, or no answer.
    pub fn failures(&self) -> u64 {
        self.by_class[4].saturating_add(self.by_class[5])
    }

    /// The latency that this share of exchanges did not exceed, interpolated inside its bucket as Prometheus does;
    /// the highest bound for all that is slower. None when there were no exchanges.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        quantile(&BOUNDS_US, &self.latency, share)
    }

    /// Adds another total, levels included.
    pub fn add(&mut self, other: &Self) {
        self.merge(other, u64::saturating_add);
        self.in_flight = self.in_flight.wrapping_add(other.in_flight);
    }

    /// What was counted since `earlier`; never negative. The level is the present one.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut delta = self.clone();
        delta.merge(earlier, u64::saturating_sub);
        delta
    }

    /// The larger of both, counter by counter.
    pub fn max(&mut self, other: &Self) {
        self.merge(other, u64::max);
    }

    /// Answers of our own with this reason.
    pub fn answers(&self, reason: Reason) -> u64 {
        self.reasons[reason as usize]
    }

    /// Combines all counters, but not the level.
    fn merge(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        let pairs = (self.by_class.iter_mut().zip(&other.by_class))
            .chain(self.latency.iter_mut().zip(&other.latency))
            .chain(self.reasons.iter_mut().zip(&other.reasons))
            .chain([
                (&mut self.latency_sum_us, &other.latency_sum_us),
                (&mut self.retries, &other.retries),
                (&mut self.request_bytes, &other.request_bytes),
                (&mut self.response_bytes, &other.response_bytes),
            ]);
        for (mine, theirs) in pairs {
            *mine = with(*mine, *theirs);
        }
    }
}

/// Totals may come from the network: adding them up must not overflow.
fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
}

/// The quantile of a histogram with these upper bounds in microseconds and counts per bucket (one more than bounds).
pub fn quantile(bounds_us: &[u64], counts: &[u64], share: f64) -> Option<Duration> {
    let all = sum(counts);
    if all == 0 {
        return None;
    }
    let rank = share.clamp(0.0, 1.0) * all as f64;
    let mut below = 0u64;
    let mut lower = 0u64;
    for (bound, count) in bounds_us.iter().zip(counts) {
        if *count > 0 && below.saturating_add(*count) as f64 >= rank {
            let inside = ((rank - below as f64) / *count as f64).clamp(0.0, 1.0);
            let us = lower as f64 + inside * bound.saturating_sub(lower) as f64;
            return Some(Duration::from_nanos((us * 1_000.0) as u64));
        }
        below = below.saturating_add(*count);
        lower = *bound;
    }
    Some(Duration::from_micros(lower))
}

/// Why a TLS handshake with a client failed: a closed list, since it becomes a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HandshakeFailure {
    /// It did not end in time.
    Timeout,
    /// The client went away.
    Closed,
    /// What came was no TLS at all.
    Plaintext,
    /// The two sides have no version, suite or protocol in common, or one broke the protocol.
    Protocol,
    /// The client showed no certificate.
    NoCertificate,
    /// The client's certificate is from nobody whom we trust.
    UnknownAuthority,
    /// The client's certificate has ended.
    Expired,
    /// The client's certificate has not begun.
    NotYetValid,
    /// The client is of another trust domain.
    TrustDomain,
    /// The client's certificate is no proper X.509-SVID.
    NotAnIdentity,
    /// We had no certificate to show.
    IdentityMissing,
    /// Anything else; the log has it.
    Other,
}

impl HandshakeFailure {
    /// Every cause; `cause as usize` is its index.
    pub const ALL: [Self; 12] = [
        Self::Timeout,
        Self::Closed,
        Self::Plaintext,
        Self::Protocol,
        Self::NoCertificate,
        Self::UnknownAuthority,
        Self::Expired,
        Self::NotYetValid,
        Self::TrustDomain,
        Self::NotAnIdentity,
        Self::IdentityMissing,
        Self::Other,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Plaintext => "plaintext",
            Self::Protocol => "protocol",
            Self::NoCertificate => "no_certificate",
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::TrustDomain => "trust_domain",
            Self::NotAnIdentity => "not_an_identity",
            Self::IdentityMissing => "identity_missing",
            Self::Other => "other",
        }
    }
}

/// What a connection to a port that takes anything turned out to speak: a closed list, since it becomes a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Detected {
    /// HTTP/1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Something that begins as HTTP/2 and goes on as nothing.
    BrokenHttp2,
    /// TLS that is not ours to open.
    Tls,
    /// Something else.
    Opaque,
    /// Nothing at all for as long as we waited: the server speaks first.
    Timeout,
}

impl Detected {
    /// Every outcome; `detected as usize` is its index.
    pub const ALL: [Self; 6] = [
        Self::Http1,
        Self::Http2,
        Self::BrokenHttp2,
        Self::Tls,
        Self::Opaque,
        Self::Timeout,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::BrokenHttp2 => "broken_http2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
            Self::Timeout => "timeout",
        }
    }
}

/// What became of a connection that was redirected to us: a closed list, since it becomes a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Redirected {
    /// It was meant for a service of the mesh, and went there.
    Service,
    /// It was meant for somebody else, and was passed on.
    Passthrough,
    /// It was to be passed on, and nobody was there.
    Unreachable,
    /// It was meant for somebody else to whom nothing is let out.
    EgressDenied,
    /// It was our own.
    Looped,
    /// It came in plaintext, and was let in.
    PlaintextPermitted,
    /// It came in plaintext, and was not let in.
    PlaintextRefused,
    /// It came in TLS to a port of the app that takes plaintext at most, and was not let in.
    UnexpectedTls,
}

impl Redirected {
    /// Every outcome; `redirected as usize` is its index.
    pub const ALL: [Self; 8] = [
        Self::Service,
        Self::Passthrough,
        Self::Unreachable,
        Self::EgressDenied,
        Self::Looped,
        Self::PlaintextPermitted,
        Self::PlaintextRefused,
        Self::UnexpectedTls,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Passthrough => "passthrough",
            Self::Unreachable => "unreachable",
            Self::EgressDenied => "egress_denied",
            Self::Looped => "looped",
            Self::PlaintextPermitted => "plaintext_permitted",
            Self::PlaintextRefused => "plaintext_refused",
            Self::UnexpectedTls => "unexpected_tls",
        }
    }
}

/// The connections of one listener, as one core saw them.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ConnectionCells {
    accepted: Cell,
    active: Cell,
    refused: Cell,
    parse_errors: Cell,
    unread: Cell,
    handshakes: [Cell; HandshakeFailure::ALL.len()],
    detected: [Cell; Detected::ALL.len()],
    redirected: [Cell; Redirected::ALL.len()],
    passed_up: Cell,
    passed_down: Cell,
}

impl ConnectionCells {
    /// A connection was accepted; it is active until the guard is dropped, which must happen on the same core.
    pub fn accepted(self: &Arc<Self>) -> OpenConnection {
        self.accepted.add(1);
        self.active.add(1);
        OpenConnection(Arc::clone(self))
    }

    /// A connection was closed at once, because a limit was reached.
    pub fn refused(&self) {
        self.refused.add(1);
    }

    /// A client's TLS handshake failed.
    pub fn handshake_failed(&self, cause: HandshakeFailure) {
        self.handshakes[cause as usize].add(1);
    }

    /// It was found out what a connection speaks.
    pub fn detected(&self, detected: Detected) {
        self.detected[detected as usize].add(1);
    }

    /// Something became of a connection that was redirected to us.
    pub fn redirected(&self, outcome: Redirected) {
        self.redirected[outcome as usize].add(1);
    }

    /// So many bytes were passed on from and to the clients of connections that are none of ours to understand.
    pub fn passed(&self, up: u64, down: u64) {
        self.passed_up.add(up);
        self.passed_down.add(down);
    }

    /// A connection was ended because what came on it was not HTTP as we take it.
    pub fn parse_error(&self) {
        self.parse_errors.add(1);
    }

    /// A reader was given up that did not take what waited for it.
    pub fn unread(&self) {
        self.unread.add(1);
    }
}

/// An open connection.
#[derive(Debug)]
pub struct OpenConnection(Arc<ConnectionCells>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.active.sub(1);
    }
}

/// What a number of [`ConnectionCells`] counted together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionTotals {
    /// Connections taken.
    pub accepted: u64,
    /// Connections open now.
    pub active: u64,
    /// Connections closed at once because of a limit.
    pub refused: u64,
    /// Connections ended for what came on them.
    pub parse_errors: u64,
    /// Readers given up that did not take what waited for them.
    pub unread: u64,
    /// Failed handshakes, in the order of [`HandshakeFailure::ALL`].
    pub handshakes: [u64; HandshakeFailure::ALL.len()],
    /// What connections were found to speak, in the order of [`Detected::ALL`].
    pub detected: [u64; Detected::ALL.len()],
    /// What became of those that were redirected to us, in the order of [`Redirected::ALL`].
    pub redirected: [u64; Redirected::ALL.len()],
    /// Bytes passed on from clients.
    pub passed_up: u64,
    /// Bytes passed on to clients.
    pub passed_down: u64,
}

impl Cells for ConnectionCells {
    type Totals = ConnectionTotals;

    fn add_to(&self, totals: &mut ConnectionTotals) {
        totals.accepted += self.accepted.get();
        totals.active = totals.active.wrapping_add(self.active.get());
        totals.refused += self.refused.get();
        totals.parse_errors += self.parse_errors.get();
        totals.unread += self.unread.get();
        for (sum, cell) in totals.handshakes.iter_mut().zip(&self.handshakes) {
            *sum += cell.get();
        }
        for (sum, cell) in totals.detected.iter_mut().zip(&self.detected) {
            *sum += cell.get();
        }
        for (sum, cell) in totals.redirected.iter_mut().zip(&self.redirected) {
            *sum += cell.get();
        }
        totals.passed_up += self.passed_up.get();
        totals.passed_down += self.passed_down.get();
    }
}

/// Every answer that one core made itself, whether or not it belongs to an edge or a route.
#[derive(Debug)]
#[repr(align(64))]
pub struct AnswerCells([Cell; Reason::ALL.len()]);

impl Default for AnswerCells {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Cell::default()))
    }
}

impl AnswerCells {
    /// An answer of our own was made.
    pub fn answered(&self, reason: Reason) {
        self.0[reason as usize].add(1);
    }
}

impl Cells for AnswerCells {
    type Totals = Vec<u64>;

    fn add_to(&self, totals: &mut Vec<u64>) {
        totals.resize(Reason::ALL.len(), 0);
        for (sum, cell) in totals.iter_mut().zip(&self.0) {
            *sum += cell.get();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_latency_falls_into_the_first_bucket_that_holds_it() {
        for (us, bucket) in [
            (0, 0),
            (100, 0),
            (101, 1),
            (250, 1),
            (1_000, 3),
            (1_001, 4),
            (10_000_000, 15),
            (10_000_001, 16),
            (u64::MAX, 16),
        ] {
            assert_eq!(bucket_of(us), bucket, "{us} µs");
        }
    }

    #[test]
    fn a_status_has_one_class() {
        for (status, class) in [
            (Some(100), "1xx"),
            (Some(204), "2xx"),
            (Some(304), "3xx"),
            (Some(499), "4xx"),
            (Some(500), "5xx"),
            (Some(999), "5xx"),
            (Some(0), "5xx"),
            (None, "none"),
        ] {
            assert_eq!(CLASSES[class_of(status)], class, "{status:?}");
        }
    }

    #[test]
    fn the_indices_of_labels_are_their_places_in_the_list() {
        for (index, cause) in HandshakeFailure::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, index);
        }
        for (index, outcome) in Redirected::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn short_latencies_are_rounded_and_not_cut() {
        let cells = EdgeCells::default();
        for _ in 0..1_000 {
            cells.record(Some(200), Duration::from_nanos(1_600));
        }
        let mut totals = Totals::default();
        cells.add_to(&mut totals);
        assert_eq!(totals.latency_sum_us, 2_000);
    }

    #[test]
    fn quantiles_interpolate_inside_a_bucket() {
        let mut totals = Totals::default();
        assert_eq!(totals.quantile(0.5), None);
        totals.latency[3] = 100; // 0.5 to 1 ms
        assert_eq!(totals.quantile(0.5), Some(Duration::from_micros(750)));
        assert_eq!(totals.quantile(1.0), Some(Duration::from_millis(1)));
        totals.latency[16] = 100; // over 10 s
        assert_eq!(totals.quantile(0.99), Some(Duration::from_secs(10)));
        assert_eq!(totals.quantile(f64::NAN), Some(Duration::from_secs(10)));
    }

    #[test]
    fn levels_end_with_their_guards() {
        let edge = Arc::new(EdgeCells::default());
        let connection = Arc::new(ConnectionCells::default());
        let levels = || {
            let (mut totals, mut connections) = Default::default();
            edge.add_to(&mut totals);
            connection.add_to(&mut connections);
            (totals.in_flight, connections.active)
        };
        let exchanges = (Arc::clone(&edge).begin(), Arc::clone(&edge).begin());
        let open = connection.accepted();
        assert_eq!(levels(), (2, 1));
        drop((exchanges, open));
        assert_eq!(levels(), (0, 0));
    }

    #[test]
    fn a_difference_of_totals_is_never_negative() {
        let mut earlier = Totals::default();
        earlier.by_class[1] = 5;
        let mut later = Totals::default();
        later.by_class[1] = 3;
        later.retries = 2;
        let delta = later.since(&earlier);
        assert_eq!((delta.by_class[1], delta.retries), (0, 2));
    }
}
