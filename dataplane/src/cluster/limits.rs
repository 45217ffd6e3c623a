//! How much may be under way with a service and with each of its endpoints, and who waits when it is more.
//!
//! A limit is exact and of the whole process: no core has a share of its own. Exchanges beyond a limit wait, so that a
//! short burst costs time and no failures, but never long and never many: a queue that cannot be emptied soon only makes
//! every answer late. What cannot wait is refused with its reason, and told when to come back.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::units::Period;
use weft_runtime::config::{Path, Problems};

use super::Cluster;
use crate::balance::Ask;
use crate::core::Core;
use crate::endpoint::{Endpoint, InFlight};
use crate::error::Error;
use crate::gate::{Gate, LineFull, NO_LIMIT, Slot};
use crate::http1::Handle;
use crate::reason::Reason;

/// What whoever is refused is told to wait.
pub(crate) const COME_BACK: Duration = Duration::from_secs(1);

/// `limits:` of a service: from this process to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Limits")]
pub struct Config {
    /// Exchanges in flight at most.
    pub in_flight: u32,
    /// Exchanges at most that wait for one in flight to end. `0`: none waits.
    pub waiting: u32,
    /// How long one waits at most, for an exchange, a connection or a stream to end, before it is refused.
    pub wait: Period,
    /// Connections to all of its endpoints at most, idle ones included. No limit when left out: an endpoint never has more than
    /// there are exchanges in flight, and over HTTP/2 four for each core (16 while most of what they carried was taken back).
    pub connections: Option<u32>,
    /// The same for each of its endpoints.
    pub endpoint: EndpointConfig,
}

/// `limits.endpoint:` of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "EndpointLimits")]
pub struct EndpointConfig {
    /// Exchanges in flight at most. An endpoint that has so many is passed over while another has fewer. No limit when
    /// left out.
    pub in_flight: Option<u32>,
    /// Exchanges at most that wait for one endpoint, when all have as many in flight or connections as they may.
    pub waiting: u32,
    /// Connections at most, idle ones included. No limit when left out.
    pub connections: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_flight: 1024,
            waiting: 1024,
            wait: Period::millis(500),
            connections: None,
            endpoint: EndpointConfig::default(),
        }
    }
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            in_flight: None,
            waiting: 128,
            connections: None,
        }
    }
}

impl Config {
    /// Checks the values. `path` is where they stand in the file.
    pub fn build(&self, path: &Path, problems: &mut Problems) -> Option<Limits> {
        let before = problems.len();
        let endpoint = path.key("endpoint");
        for (at, limit, cure) in [
            (
                path.key("in_flight"),
                Some(self.in_flight),
                "write 1 or more; 1024 is the default",
            ),
            (
                path.key("connections"),
                self.connections,
                "write 1 or more, or leave it out for no limit",
            ),
            (
                endpoint.key("in_flight"),
                self.endpoint.in_flight,
                "write 1 or more, or leave it out for no limit",
            ),
            (
                endpoint.key("connections"),
                self.endpoint.connections,
                "write 1 or more, or leave it out for no limit",
            ),
        ] {
            if limit == Some(0) {
                problems.at(&at, "a limit of 0 refuses everything", cure);
            }
        }
        (problems.len() == before).then(|| Limits {
            in_flight: self.in_flight as usize,
            waiting: self.waiting as usize,
            wait: self.wait.as_duration(),
            connections: self.connections.map(|most| most as usize),
            endpoint: EndpointLimits {
                in_flight: self.endpoint.in_flight.map(|most| most as usize),
                waiting: self.endpoint.waiting as usize,
                connections: self.endpoint.connections.map(|most| most as usize),
            },
        })
    }
}

/// Checked values of `limits:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Exchanges in flight.
    pub in_flight: usize,
    /// Exchanges that wait.
    pub waiting: usize,
    /// For how long.
    pub wait: Duration,
    /// Connections to all endpoints.
    pub connections: Option<usize>,
    /// Of each endpoint.
    pub endpoint: EndpointLimits,
}

/// Checked values of `limits.endpoint:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointLimits {
    /// Exchanges in flight.
    pub in_flight: Option<usize>,
    /// Exchanges that wait.
    pub waiting: usize,
    /// Connections.
    pub connections: Option<usize>,
}

impl Limits {
    /// None at all: whoever counts is somebody else.
    pub const NONE: Self = Self {
        in_flight: NO_LIMIT,
        waiting: 0,
        wait: Duration::ZERO,
        connections: None,
        endpoint: EndpointLimits {
            in_flight: None,
            waiting: 0,
            connections: None,
        },
    };
}

/// Until when an exchange may wait: so long from when it first has to, whatever it waits for, and never beyond its
/// deadline.
#[derive(Debug)]
pub(crate) struct Patience {
    deadline: Instant,
    until: Option<Instant>,
}

impl Patience {
    /// Has not waited yet.
    pub(crate) fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            until: None,
        }
    }

    /// Whether it had to wait already.
    pub(crate) fn was_tried(&self) -> bool {
        self.until.is_some()
    }

    /// When its patience ends, which begins with the first question.
    pub(crate) fn until(&mut self, wait: Duration, now: Instant) -> Instant {
        *self.until.get_or_insert((now + wait).min(self.deadline))
    }
}

/// Why somebody who stood in line has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turned {
    /// The line is as long as it may be.
    Away(usize),
    /// Nothing ended in time.
    Late(Duration),
}

impl Turned {
    fn words(self) -> String {
        match self {
            Self::Away(0) => "its limit".to_owned(),
            Self::Away(waiting) => format!("its limit, and {waiting} wait already"),
            Self::Late(waited) => format!("its limit, and none ended within {waited:?}"),
        }
    }
}

async fn stand_in_line(
    gate: &Arc<Gate>,
    patience: &mut Patience,
    wait: Duration,
) -> Result<Slot, Turned> {
    let now = Instant::now();
    let until = patience.until(wait, now);
    let turn = gate
        .wait()
        .map_err(|LineFull| Turned::Away(gate.waiting()))?;
    tokio::time::timeout_at(until.into(), turn)
        .await
        .map_err(|_| Turned::Late(until.saturating_duration_since(now)))
}

impl Cluster {
    /// A place for one more exchange, if there is one at once.
    pub(crate) fn admit(&self) -> Option<Slot> {
        self.places.enter()
    }

    /// A place for one more exchange, when another ends soon enough. Boxed by who calls it: it is large and rare.
    pub(crate) async fn wait_for_place(&self, patience: &mut Patience) -> Result<Slot, Error> {
        stand_in_line(&self.places, patience, self.spec.limits.wait)
            .await
            .map_err(|turned| {
                let detail = format!(
                    "{} has {} exchanges in flight, {}",
                    self.name,
                    self.spec.limits.in_flight,
                    turned.words()
                );
                Error::new(Reason::Overloaded, detail).retry_after(COME_BACK)
            })
    }

    /// Picks an endpoint and begins an exchange there, or when another ends soon enough. `ask` says then when that was.
    pub(crate) async fn begin(
        &self,
        ask: &mut Ask<'_>,
        patience: &mut Patience,
    ) -> Result<InFlight, Error> {
        match self.begin_at_once(ask) {
            Ok(flight) => Ok(flight),
            Err(NoEndpoint::Nobody) => {
                Err(Error::not_processed(Reason::NoEndpoints, self.why_empty()))
            }
            Err(NoEndpoint::AllFull(flight)) => {
                // Boxed: it is large and rare.
                let flight = Box::pin(self.wait_for_endpoint(flight, patience)).await?;
                ask.now = Instant::now();
                Ok(flight)
            }
        }
    }

    fn begin_at_once(&self, ask: &Ask<'_>) -> Result<InFlight, NoEndpoint> {
        let set = self.members.load();
        let mut flight = set.begin(ask).ok_or(NoEndpoint::Nobody)?;
        let Some(most) = self.spec.limits.endpoint.in_flight else {
            return Ok(flight);
        };
        if let Some(slot) = self.slot_at(flight.endpoint(), most) {
            flight.hold(slot);
            return Ok(flight);
        }
        // Another one, then, in the order in which endpoints are picked: the least loaded that has room.
        let mut others: Vec<_> = set
            .endpoints()
            .iter()
            .filter(|other| other.places.inside() < most && other.is_available(ask.now))
            .collect();
        others.sort_by_key(|other| {
            let is_shunned = ask.shuns == Some(other.family());
            (ask.tried.contains(&other.id), is_shunned, other.in_flight())
        });
        for other in others {
            if let Some(slot) = self.slot_at(other, most)
                && let Some(mut flight) = other.admit(ask.now)
            {
                flight.hold(slot);
                return Ok(flight);
            }
        }
        Err(NoEndpoint::AllFull(flight))
    }

    fn slot_at(&self, endpoint: &Endpoint, most: usize) -> Option<Slot> {
        endpoint
            .places
            .limit(most, self.spec.limits.endpoint.waiting);
        endpoint.places.enter()
    }

    /// Waits for the endpoint that was picked although it is full: until another exchange there ends.
    async fn wait_for_endpoint(
        &self,
        mut flight: InFlight,
        patience: &mut Patience,
    ) -> Result<InFlight, Error> {
        let endpoint = Arc::clone(flight.endpoint());
        match stand_in_line(&endpoint.places, patience, self.spec.limits.wait).await {
            Ok(slot) => {
                flight.hold(slot);
                Ok(flight)
            }
            Err(turned) => {
                let detail = format!(
                    "every endpoint of {} has {} exchanges in flight, {}",
                    self.name,
                    endpoint.places.most(),
                    turned.words()
                );
                Err(Error::new(Reason::Overloaded, detail).retry_after(COME_BACK))
            }
        }
    }
}

/// Why an exchange was not begun.
#[derive(Debug)]
enum NoEndpoint {
    /// There is none.
    Nobody,
    /// All have as many exchanges in flight as they may; this is the one that would have been picked.
    AllFull(InFlight),
}

/// A connection's places, of its endpoint and of its service, where there are limits.
#[derive(Debug)]
pub(crate) struct Held {
    slots: [Option<Slot>; 2],
}

impl Held {
    /// Who else wants them.
    pub(crate) fn demand(&self) -> Demand {
        Demand {
            gates: self
                .slots
                .each_ref()
                .map(|slot| slot.as_ref().map(|slot| Arc::clone(slot.gate()))),
        }
    }

    /// How many exchanges wait for such a place.
    pub(crate) fn wanted(&self) -> usize {
        let waiting = |slot: &Slot| slot.gate().waiting();
        self.slots.iter().flatten().map(waiting).max().unwrap_or(0)
    }
}

/// Those who wait for a connection's places.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    gates: [Option<Arc<Gate>>; 2],
}

impl Demand {
    #[cfg(test)]
    pub(crate) fn of(gates: [Option<Arc<Gate>>; 2]) -> Self {
        Self { gates }
    }

    /// How many they are.
    pub(crate) fn waiting(&self) -> usize {
        let waiting = |gate: &Arc<Gate>| gate.waiting();
        self.gates.iter().flatten().map(waiting).max().unwrap_or(0)
    }

    /// Whether there is room for one more connection.
    pub(crate) fn has_room(&self) -> bool {
        let has_room = |gate: &Arc<Gate>| gate.waiting() == 0 && gate.inside() < gate.most();
        self.gates.iter().flatten().all(has_room)
    }
}

/// What a connection that is to be opened finds.
#[derive(Debug)]
pub(crate) enum Way {
    /// It may.
    Open(Option<Box<Held>>),
    /// One that was in use is idle now.
    Reuse(Handle),
}

/// The places for one more connection: at once, or when another ends soon enough. Where `reuse` says so, an HTTP/1.1
/// connection to the endpoint that becomes idle on this core meanwhile is as good.
pub(crate) async fn way_for_one_more(
    core: &Core,
    cluster: &Cluster,
    endpoint: &Endpoint,
    patience: &mut Patience,
    reuse: bool,
) -> Result<Way, Error> {
    let limits = &cluster.spec.limits;
    if limits.connections.is_none() && limits.endpoint.connections.is_none() {
        return Ok(Way::Open(None));
    }
    let mut slots = [None, None];
    if let Some(most) = limits.endpoint.connections {
        endpoint.connections.limit(most, limits.endpoint.waiting);
    }
    for (slot, gate, most) in [
        (0, &endpoint.connections, limits.endpoint.connections),
        (1, &cluster.connections, limits.connections),
    ] {
        let Some(most) = most else { continue };
        if let Some(found) = gate.enter() {
            slots[slot] = Some(found);
            continue;
        }
        let now = Instant::now();
        let until = patience.until(limits.wait, now);
        let turned = match gate.wait() {
            Err(LineFull) => Turned::Away(gate.waiting()),
            Ok(mut turn) => {
                // Idle connections make room, here and on the other cores.
                core.relieve();
                core.pressure.send_modify(|count| *count += 1);
                let found = poll_fn(|cx| {
                    if let Poll::Ready(slot) = Pin::new(&mut turn).poll(cx) {
                        return Poll::Ready(Ok(slot));
                    }
                    if reuse && let Some(idle) = core.pool.take_or_wait(endpoint.id, cx) {
                        return Poll::Ready(Err(idle));
                    }
                    Poll::Pending
                });
                match tokio::time::timeout_at(until.into(), found).await {
                    Ok(Ok(found)) => {
                        slots[slot] = Some(found);
                        continue;
                    }
                    Ok(Err(idle)) => return Ok(Way::Reuse(idle)),
                    Err(_) => Turned::Late(until.saturating_duration_since(now)),
                }
            }
        };
        let whose = match slot {
            0 => endpoint.address.to_string(),
            _ => cluster.name.to_string(),
        };
        let detail = format!("{whose} has {most} connections, {}", turned.words());
        let error = match slot {
            // Another endpoint may have room.
            0 => Error::not_processed(Reason::TooManyConnections, detail),
            _ => Error::new(Reason::TooManyConnections, detail),
        };
        return Err(error.retry_after(COME_BACK));
    }
    Ok(Way::Open(Some(Box::new(Held { slots }))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use super::*;
    use crate::balance::testing::ask;
    use crate::cluster::Speaks;
    use crate::endpoint::Family;
    use crate::testing::spec;

    #[test]
    fn who_takes_the_place_of_a_full_endpoint_is_not_of_a_family_that_is_shunned() {
        let addresses = ["127.0.0.1:1", "[::1]:1", "[::1]:2"];
        let mut addresses = addresses.map(|text| text.parse::<SocketAddr>().unwrap());
        addresses.sort_unstable();
        let mut spec = spec(Speaks::Http1, &addresses);
        spec.limits.endpoint.in_flight = Some(2);
        let cluster = Cluster::new(spec, false);
        let now = Instant::now();
        cluster.members.apply(addresses.to_vec(), now);
        let at = |index: usize| Arc::clone(&cluster.members.load().endpoints()[index]);
        let begin = |session: &SocketAddr, shuns| {
            let mut ask = ask(now, 0);
            (ask.session, ask.shuns) = (Some(session), shuns);
            cluster.begin_at_once(&ask).unwrap()
        };
        // The first of IPv6 is full, the other is half full, and that of IPv4 is idle.
        let [v6, other_v6] = [addresses[1], addresses[2]];
        let _full = [begin(&v6, None), begin(&v6, None)];
        let _half = begin(&other_v6, None);
        let (v4, other) = (at(0), at(2));
        let begun = begin(&v6, Some(Family::V4));
        assert_eq!(begun.endpoint().id, other.id);
        drop(begun);
        assert_eq!(begin(&v6, None).endpoint().id, v4.id);
    }
}
