//! The foreign peers of the whole mesh: counts that never go back, and what each sidecar says of the present.
//!
//! Counts are added up as those of edges are: a run's last ones are remembered, and what is new of them goes to the
//! mesh's. Which peers they were is replaced with each report, and shown as long as its reporter is there. Reporters are
//! proven, but their words are not: kinds are made words of our list, names are cut and cleaned.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use weft_dataplane::foreign::{Count, End, Foreign, clean};
use weft_proto::report;

/// Counts in one report.
pub const MAX_COUNTS: usize = 512;
/// Counts remembered over all runs.
pub const MAX_COUNTS_REMEMBERED: usize = 32_768;
/// Peers in one report.
pub const MAX_PEERS: usize = 256;
/// Peers remembered over all runs, about 500 bytes each.
pub const MAX_PEERS_REMEMBERED: usize = 16_384;
/// Series; what comes after that is counted under "other".
pub const MAX_SERIES: usize = 4_096;

/// The name of whom nobody has proven.
const UNKNOWN: &str = "unknown";
const OTHER: &str = "other";

/// What is counted apart in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The service that went there, as its sidecar reports it; `unknown` of those who came.
    pub source: Arc<str>,
    /// The service that was meant.
    pub destination: Arc<str>,
    /// Who reports it.
    pub end: End,
    /// What was wrong.
    pub kind: Foreign,
}

impl Key {
    /// What a reporter beside `service` counts: itself is always one of the two.
    fn of(service: &Arc<str>, end: End, kind: Foreign, meant: &str) -> Self {
        let (source, destination) = match end {
            End::Inbound => (Arc::from(UNKNOWN), Arc::clone(service)),
            End::Outbound => (Arc::clone(service), Arc::from(meant)),
        };
        Self {
            source,
            destination,
            end,
            kind,
        }
    }

    /// One of very few.
    fn other(&self) -> Self {
        Self {
            source: Arc::from(OTHER),
            destination: Arc::from(OTHER),
            ..*self
        }
    }
}

/// What one run said last.
#[derive(Debug, Default)]
pub struct Said {
    /// The peers, the latest first.
    pub peers: Vec<report::ForeignPeer>,
    /// Those that are not among them.
    pub left_out: u64,
    counts: HashMap<Key, u64>,
}

/// Counts of one report that were not taken.
#[derive(Debug, Default)]
pub(super) struct Uncounted {
    /// Those that do not say who went to whom.
    pub(super) refused: u64,
    /// Those for which there was no room.
    pub(super) left_out: u64,
}

/// What is bounded over all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Table {
    Counts,
    Peers,
}

/// By how much a report would have these tables grow; peers may become fewer.
#[derive(Debug)]
pub(super) struct Needs {
    counts: usize,
    peers: usize,
    peers_before: usize,
}

impl Said {
    /// Whether it takes up room there.
    pub(super) fn is_in(&self, table: Table) -> bool {
        match table {
            Table::Counts => !self.counts.is_empty(),
            Table::Peers => !self.peers.is_empty(),
        }
    }

    /// What the next report of the sidecar of `service` needs.
    pub(super) fn needs(&self, service: &Arc<str>, foreign: &report::Foreign) -> Needs {
        let keys = foreign.counts.iter().filter_map(|count| {
            let (end, kind) = (end(count.direction())?, Foreign::from_name(&count.kind));
            Some(Key::of(service, end, kind, &clean(&count.service)))
        });
        let new: HashSet<_> = keys.filter(|key| !self.counts.contains_key(key)).collect();
        Needs {
            counts: new.len(),
            peers: foreign.peers.len(),
            peers_before: self.peers.len(),
        }
    }
}

/// The mesh's counts, and how much is remembered for them.
#[derive(Debug, Default)]
pub struct Strangers {
    series: BTreeMap<Key, u64>,
    counts: usize,
    peers: usize,
}

impl Strangers {
    /// Adds what is new in these counts of the sidecar of `service`. `begins_here`: what it counted before is known.
    /// Those for which there is no room count when there is, because the next report says them again.
    pub(super) fn count(
        &mut self,
        said: &mut Said,
        service: &Arc<str>,
        counts: &[report::ForeignCount],
        begins_here: bool,
    ) -> Uncounted {
        let mut uncounted = Uncounted::default();
        for count in counts {
            let Some(end) = end(count.direction()) else {
                uncounted.refused += 1;
                continue;
            };
            let kind = Foreign::from_name(&count.kind);
            let key = Key::of(service, end, kind, &clean(&count.service));
            if !said.counts.contains_key(&key) {
                if self.counts >= MAX_COUNTS_REMEMBERED {
                    uncounted.left_out += 1;
                    continue;
                }
                self.counts += 1;
                let before = if begins_here { count.count } else { 0 };
                said.counts.insert(key.clone(), before);
            }
            let last = said.counts.entry(key.clone()).or_default();
            let new = count.count.saturating_sub(*last);
            // The larger one, so that counts that fall and rise again are not counted twice.
            *last = count.count.max(*last);
            self.add(key, new);
        }
        uncounted
    }

    fn add(&mut self, key: Key, new: u64) {
        let is_known = self.series.contains_key(&key);
        let key = match is_known || self.series.len() < MAX_SERIES {
            true => key,
            false => key.other(),
        };
        let sum = self.series.entry(key).or_default();
        *sum = sum.saturating_add(new);
    }

    /// Replaces the peers of a run. Gives how many there was no room for.
    pub(super) fn show(&mut self, said: &mut Said, mut foreign: report::Foreign) -> u64 {
        let others = self.peers - said.peers.len();
        let room = MAX_PEERS_REMEMBERED - others;
        let left_out = foreign.peers.len().saturating_sub(room) as u64;
        foreign.peers.truncate(room);
        foreign.peers.iter_mut().for_each(tidy);
        self.peers = others + foreign.peers.len();
        said.peers = foreign.peers;
        said.left_out = foreign.left_out.saturating_add(left_out);
        left_out
    }

    /// Whether there is room for all of it in this table only when something is forgotten.
    pub(super) fn lacks(&self, table: Table, needs: &Needs) -> bool {
        match table {
            Table::Counts => needs.counts > 0 && self.counts + needs.counts > MAX_COUNTS_REMEMBERED,
            Table::Peers => self.peers - needs.peers_before + needs.peers > MAX_PEERS_REMEMBERED,
        }
    }

    /// A run is forgotten; what it counted stays counted.
    pub(super) fn forget(&mut self, said: &Said) {
        self.counts -= said.counts.len();
        self.peers -= said.peers.len();
    }

    /// The mesh's counts, sorted.
    pub fn series(&self) -> &BTreeMap<Key, u64> {
        &self.series
    }
}

/// What this process counted itself, as the mesh counts it.
pub(super) fn own(service: &Arc<str>, count: &Count) -> Key {
    Key::of(service, count.end, count.kind, &count.service)
}

/// Makes others' words ours.
fn tidy(peer: &mut report::ForeignPeer) {
    Foreign::from_name(&peer.kind)
        .as_str()
        .clone_into(&mut peer.kind);
    for name in [
        &mut peer.service,
        &mut peer.peer,
        &mut peer.address,
        &mut peer.identity,
    ] {
        *name = clean(name);
    }
}

fn end(direction: report::Direction) -> Option<End> {
    match direction {
        report::Direction::Inbound => Some(End::Inbound),
        report::Direction::Outbound => Some(End::Outbound),
        report::Direction::Unspecified => None,
    }
}

#[cfg(test)]
mod tests;
