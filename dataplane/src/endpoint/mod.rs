//! One address of a service: how loaded it is, how it has been doing, and whether it may be picked.
//!
//! An endpoint outlives the memberships that contain it: what is known about an address survives DNS changes and
//! reloads, because a new [`crate::balance::EndpointSet`] is built around the same endpoints. All cores share it, so
//! everything here is an atomic, and an exchange that goes well touches no lock. What the counts *mean* (when an endpoint
//! is to be left alone, for how long) is decided in [`crate::health::outlier`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub mod latency;
pub mod place;
pub(crate) mod slowest;
pub mod window;

use latency::Latency;
use place::Place;
use slowest::Slowest;
use window::{Sums, Window, instant, stamp};

use crate::gate::{Gate, NO_LIMIT, Slot};

/// How long a new or returned endpoint takes to reach its full share, unless the service says otherwise.
pub const SLOW_START: Duration = Duration::from_secs(10);

/// The weight of an endpoint that is not warming up.
pub const FULL_WEIGHT: u32 = 1024;

/// The least weight, a tenth: a new endpoint must be tried at all to warm up.
const MIN_WEIGHT: u32 = FULL_WEIGHT / 10;

/// Between two notes of something that every exchange may find, in milliseconds.
const NOTE_EVERY: u64 = 1_000;

/// In [`Endpoint::health`]: the one exchange that may probe is under way.
const PROBING: u64 = 1 << 63;

/// In [`Endpoint::withdrawn`]: it said that it is about to stop.
const DRAINING: u8 = 1;

/// In [`Endpoint::withdrawn`]: it fails the probes of its health.
const UNHEALTHY: u8 = 2;

/// How one exchange ended, as far as the endpoint is to be judged by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It answered, and the answer says nothing against it.
    Success,
    /// It answered that it has enough to do (429, `RESOURCE_EXHAUSTED`, 503 with `Retry-After`) or that it cannot do such
    /// a thing at all (501). That is no failure, but not a sign of recovery either: a probe that ends so has failed.
    Pushback,
    /// It was not reached or the connection broke: connect, TLS, reset, timeout. Also when it was the peer's own sidecar that
    /// said first that the time was over.
    LocalFailure,
    /// It answered with a failure of its own: 5xx.
    RemoteFailure,
}

impl Outcome {
    /// Whether this counts against the endpoint.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::LocalFailure | Self::RemoteFailure)
    }
}

/// The two kinds of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4, also as IPv6 writes it.
    V4,
    /// IPv6.
    V6,
}

/// Whether an endpoint takes exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does.
    Healthy,
    /// It said that it is about to stop; what it has, it finishes.
    Draining,
    /// It fails the probes of its health.
    Unhealthy,
    /// It is left alone until then; afterwards one exchange is let through to see.
    Ejected {
        /// When a probe may be sent; it may have passed already.
        until: Instant,
    },
    /// The one exchange that decides whether it returns is under way.
    Probing,
}

/// What happened to an endpoint since it was first seen. They only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Exchanges begun.
    pub picks: u64,
    /// Ended well.
    pub successes: u64,
    /// Ended in a pushback.
    pub pushbacks: u64,
    /// Not reached, or broken off.
    pub local_failures: u64,
    /// Answered with a failure.
    pub remote_failures: u64,
    /// Times it was left alone.
    pub ejections: u64,
}

/// The recent past of an endpoint, as outlier detection looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recent {
    /// Local failures in a row.
    pub local_in_a_row: u32,
    /// Remote failures in a row.
    pub remote_in_a_row: u32,
    /// Exchanges that ended in the last ten seconds, and the failures among them.
    pub window: Sums,
}

/// One address of a service.
// Aligned so that two busy endpoints never share a cache line (x86 fetches them in pairs), and in this order so that an
// exchange needs one such pair: where endpoints are many, each is cold by the time it is picked again.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Endpoint {
    /// Zero when healthy, else the stamp until when it is ejected, and [`PROBING`].
    health: AtomicU64,
    in_flight: AtomicU32,
    /// Zero when it takes exchanges, else why not: [`DRAINING`], [`UNHEALTHY`]. One word, because each pick reads it.
    withdrawn: AtomicU8,
    /// When it was new or came back, as a stamp; zero when that is long ago.
    warm_from: AtomicU64,
    /// Unique in this process.
    pub id: u64,
    picks: AtomicU64,
    successes: AtomicU64,
    local_in_a_row: AtomicU32,
    remote_in_a_row: AtomicU32,
    window: Window,
    /// How long it takes to answer, where somebody measures that.
    pub latency: Latency,
    /// When something was noted last that every exchange may find, as a stamp; zero when nothing was.
    noted: AtomicU64,
    /// Where it listens.
    pub address: SocketAddr,
    /// Exchanges, where there is a limit on them.
    pub(crate) places: Arc<Gate>,
    /// Connections, where there is a limit on them.
    pub(crate) connections: Arc<Gate>,
    /// What discovery says of it now. Read where a set is built, not for each exchange.
    place: ArcSwap<Place>,
    pushbacks: AtomicU64,
    local_failures: AtomicU64,
    remote_failures: AtomicU64,
    ejections: AtomicU64,
    /// How long its slowest answers took lately, where it speaks HTTP/2.
    pub(crate) slowest: Slowest,
}

impl Family {
    const fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Addresses, or what has one, in the order in which they are best tried: the families take turns, IPv6 first, each in the
    /// order it came ("happy eyeballs", RFC 8305 §4).
    pub fn in_turns<T>(list: impl IntoIterator<Item = T>, ip: impl Fn(&T) -> IpAddr) -> Vec<T> {
        let is_v6 = |one: &T| Self::of(ip(one)) == Self::V6;
        let (v6, v4): (Vec<_>, Vec<_>) = list.into_iter().partition(is_v6);
        let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
        let mut order = Vec::with_capacity(v6.len() + v4.len());
        loop {
            let before = order.len();
            order.extend(v6.next());
            order.extend(v4.next());
            if order.len() == before {
                return order;
            }
        }
    }
}

impl Endpoint {
    /// Of which kind its address is.
    pub fn family(&self) -> Family {
        Family::of(self.address.ip())
    }

    /// A healthy endpoint that has seen nothing yet, at an address of which nothing else is known.
    pub fn new(address: SocketAddr) -> Arc<Self> {
        Self::at(Place::new(address))
    }

    /// A healthy endpoint that has seen nothing yet.
    pub fn at(place: Place) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Relaxed),
            address: place.address,
            place: ArcSwap::from_pointee(place),
            in_flight: AtomicU32::new(0),
            local_in_a_row: AtomicU32::new(0),
            remote_in_a_row: AtomicU32::new(0),
            withdrawn: AtomicU8::new(0),
            health: AtomicU64::new(0),
            warm_from: AtomicU64::new(0),
            picks: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            pushbacks: AtomicU64::new(0),
            local_failures: AtomicU64::new(0),
            remote_failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            slowest: Slowest::default(),
            window: Window::default(),
            noted: AtomicU64::new(0),
            latency: Latency::default(),
            places: Gate::new(NO_LIMIT, 0),
            connections: Gate::new(NO_LIMIT, 0),
        })
    }

    /// What discovery says of it now: its tier, weight and zone. A membership's [`crate::balance::EndpointSet`] is built
    /// anew when that changes, so a policy reads it once.
    pub fn place(&self) -> Arc<Place> {
        self.place.load_full()
    }

    /// Takes over what discovery says of it; what is known about it stays.
    pub(crate) fn set_place(&self, place: Place) {
        debug_assert_eq!(place.address, self.address, "an endpoint is its address");
        self.place.store(Arc::new(place));
    }

    /// Begins an exchange, whatever the state: from here it counts as load, a connection that is still being made too.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        self.picks.fetch_add(1, Relaxed);
        InFlight {
            endpoint: Arc::clone(self),
            probe: 0,
            slot: None,
        }
    }

    /// Begins an exchange if the state allows one: any number when healthy, exactly one when an ejection is over, none
    /// otherwise.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Option<InFlight> {
        if self.is_withdrawn() {
            return None;
        }
        let health = self.health.load(Relaxed);
        if health == 0 {
            return Some(self.begin());
        }
        if health & PROBING != 0 || health > stamp(now) {
            return None;
        }
        // Whoever sets the mark has the probe; the others see it and go elsewhere.
        self.health
            .compare_exchange(health, health | PROBING, Relaxed, Relaxed)
            .ok()?;
        let mut exchange = self.begin();
        exchange.probe = health;
        Some(exchange)
    }

    /// Whether [`Endpoint::admit`] would let an exchange through.
    pub fn is_available(&self, now: Instant) -> bool {
        let health = self.health.load(Relaxed);
        let healthy = health == 0 || (health & PROBING == 0 && health <= stamp(now));
        healthy && !self.is_withdrawn()
    }

    /// Whether it is ejected, probing, unhealthy or draining: not among those that carry the service.
    pub fn is_out(&self) -> bool {
        self.is_ejected() || self.is_withdrawn()
    }

    /// Whether it is unhealthy or draining.
    fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Relaxed) != 0
    }

    /// Whether it said that it is about to stop.
    pub fn is_draining(&self) -> bool {
        self.withdrawn.load(Relaxed) & DRAINING != 0
    }

    /// Whether it is ejected; until a probe succeeds that is so, however long ago the time was over.
    pub fn is_ejected(&self) -> bool {
        self.health.load(Relaxed) != 0
    }

    /// Whether it takes exchanges.
    pub fn state(&self) -> State {
        let withdrawn = self.withdrawn.load(Relaxed);
        match self.health.load(Relaxed) {
            _ if withdrawn & DRAINING != 0 => State::Draining,
            _ if withdrawn & UNHEALTHY != 0 => State::Unhealthy,
            0 => State::Healthy,
            health if health & PROBING != 0 => State::Probing,
            health => State::Ejected {
                until: instant(health),
            },
        }
    }

    /// Exchanges that are under way, connections that are still being made included.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Its share in relation to a warm endpoint, out of [`FULL_WEIGHT`]: from a tenth to all of it over `slow_start`.
    pub fn warmth(&self, now: Instant, slow_start: Duration) -> u32 {
        let from = self.warm_from.load(Relaxed);
        if from == 0 {
            return FULL_WEIGHT;
        }
        let span = slow_start.as_millis() as u64;
        let passed = stamp(now).saturating_sub(from);
        if passed >= span {
            // Once is enough: from now on it costs one load.
            let _ = self.warm_from.compare_exchange(from, 0, Relaxed, Relaxed);
            return FULL_WEIGHT;
        }
        (u64::from(FULL_WEIGHT) * passed / span).max(u64::from(MIN_WEIGHT)) as u32
    }

    /// What happened since it was first seen.
    pub fn totals(&self) -> Totals {
        Totals {
            picks: self.picks.load(Relaxed),
            successes: self.successes.load(Relaxed),
            pushbacks: self.pushbacks.load(Relaxed),
            local_failures: self.local_failures.load(Relaxed),
            remote_failures: self.remote_failures.load(Relaxed),
            ejections: self.ejections.load(Relaxed),
        }
    }

    /// How it has been doing lately.
    pub fn recent(&self, now: Instant) -> Recent {
        Recent {
            local_in_a_row: self.local_in_a_row.load(Relaxed),
            remote_in_a_row: self.remote_in_a_row.load(Relaxed),
            window: self.window.sums(now),
        }
    }

    /// Counts how an exchange ended. Judging is the caller's part ([`crate::cluster::members::Members::record`]).
    pub fn count(&self, outcome: Outcome, now: Instant) {
        self.window.add(now, outcome.is_failure());
        match outcome {
            Outcome::Success => {
                self.successes.fetch_add(1, Relaxed);
                clear(&self.local_in_a_row);
                clear(&self.remote_in_a_row);
            }
            Outcome::Pushback => {
                self.pushbacks.fetch_add(1, Relaxed);
                clear(&self.local_in_a_row);
            }
            Outcome::LocalFailure => {
                self.local_failures.fetch_add(1, Relaxed);
                self.local_in_a_row.fetch_add(1, Relaxed);
            }
            // It was reached, so this ends a row of local failures; the reverse would hide an app that only fails.
            Outcome::RemoteFailure => {
                self.remote_failures.fetch_add(1, Relaxed);
                clear(&self.local_in_a_row);
                self.remote_in_a_row.fetch_add(1, Relaxed);
            }
        }
    }

    /// Leaves it alone until `until`; what led to it is forgotten, so that it is judged anew when it returns.
    pub fn eject(&self, until: Instant) {
        self.health.store(stamp(until), Relaxed);
        self.ejections.fetch_add(1, Relaxed);
        self.forget();
    }

    /// Takes it back, slowly.
    pub fn recover(&self, now: Instant) {
        self.forget();
        self.warm(now);
        self.health.store(0, Relaxed);
    }

    /// Begins a slow start.
    pub fn warm(&self, now: Instant) {
        self.warm_from.store(stamp(now), Relaxed);
    }

    /// Marks it as about to stop, or not so any more.
    pub fn set_draining(&self, draining: bool) {
        self.withdraw(DRAINING, draining);
    }

    /// Marks it as failing the probes of its health, or not so any more.
    pub fn set_unhealthy(&self, unhealthy: bool) {
        self.withdraw(UNHEALTHY, unhealthy);
    }

    /// Whether something that every exchange may find is to be noted now: once a second over all cores, so that noting it,
    /// which takes a lock, is not done as often as exchanges end.
    pub(crate) fn takes_note(&self, now: Instant) -> bool {
        let (now, last) = (stamp(now), self.noted.load(Relaxed));
        let is_due = last == 0 || now >= last + NOTE_EVERY;
        is_due
            && self
                .noted
                .compare_exchange(last, now, Relaxed, Relaxed)
                .is_ok()
    }

    fn withdraw(&self, why: u8, so: bool) {
        if so {
            self.withdrawn.fetch_or(why, Relaxed);
        } else {
            self.withdrawn.fetch_and(!why, Relaxed);
        }
    }

    fn forget(&self) {
        clear(&self.local_in_a_row);
        clear(&self.remote_in_a_row);
        self.window.clear();
    }
}

/// Zeroes a counter that is nearly always zero, without claiming its cache line when it is.
fn clear(counter: &AtomicU32) {
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}

/// An exchange that is under way at an endpoint; it counts as load until this is dropped, however it ends.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    /// Which ejection it probes, by the stamp at which that was over; zero when it is no probe.
    probe: u64,
    /// Its place there, where there is a limit.
    slot: Option<Slot>,
}

impl InFlight {
    /// Where.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Whether this exchange decides if an ejected endpoint returns. One that was taken back meanwhile, and maybe ejected
    /// again, does not wait for it any more.
    pub fn is_probe(&self) -> bool {
        self.probe != 0 && self.endpoint.health.load(Relaxed) == self.probe | PROBING
    }

    /// Keeps this place for as long as it runs.
    pub(crate) fn hold(&mut self, slot: Slot) {
        self.slot = Some(slot);
    }

    /// Takes over the duty to say how the probe ended, if this is one.
    pub(crate) fn take_probe(&mut self) -> bool {
        let is_probe = self.is_probe();
        self.probe = 0;
        is_probe
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.probe != 0 {
            // Nobody learnt anything (the client went away, say): the next exchange may probe. Unless another ejection
            // has begun, whose probe is not ours to end.
            let probing = self.probe | PROBING;
            let _ = self
                .endpoint
                .health
                .compare_exchange(probing, self.probe, Relaxed, Relaxed);
        }
        self.endpoint.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
