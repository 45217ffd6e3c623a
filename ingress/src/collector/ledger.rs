//! Adds up what sidecars report. Pure: it is handed the report, who sent it, and the time.
//!
//! A report holds totals of one run of one process. The ledger remembers the last totals of each run and adds only what
//! is new to the mesh's series, so the series never go back, whatever comes twice, late or not at all, and whoever
//! restarts. An edge that a newer report of a run does not name was forgotten there; should it come back, it begins anew
//! and says so by its life, for there need not have been a report in between. A series that no report has named for [`SILENT`] is forgotten too: services are renamed, and there is only so
//! much room. A run that has been silent for [`SILENT`] is no longer shown, but its last totals are kept while there is
//! room: a sidecar that was cut off for an hour goes on where it was. When there is no room, the run that has been
//! silent longest is forgotten, or one of an identity that has more than its share; should it come back after all, what it reports first of each edge is where counting starts
//! again, because to count it whole would count it twice.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_dataplane::observe::registry::admit;
use weft_dataplane::observe::{
    BOUNDS_US, CLASSES, Direction, EdgeKey, EdgeTotals, EndpointState, Totals,
};
use weft_dataplane::reason::Reason;
use weft_proto::report::{self, ReportRequest};

use super::foreign::{self, Said, Strangers, Table};

/// After this time without a report a run is no longer shown and may be forgotten.
pub const SILENT: Duration = Duration::from_secs(600);
/// Runs remembered.
pub const MAX_RUNS: usize = 4_096;
/// An identity with more runs than this makes room for others when all places are taken.
const CROWD: usize = MAX_RUNS / 8;
/// Edges in one report.
pub const MAX_EDGES: usize = 1_024;
/// Edges remembered over all runs, about 700 bytes each.
pub const MAX_REMEMBERED: usize = 32_768;
/// Series; what comes after that is counted under "other".
pub const MAX_SERIES: usize = 16_384;
/// Endpoints in one report.
pub const MAX_ENDPOINTS: usize = 4_096;
/// Endpoints remembered over all runs.
pub const MAX_ENDPOINTS_REMEMBERED: usize = 65_536;
/// Names of forgotten runs, so that one that comes back is not counted twice.
pub const MAX_FORGOTTEN: usize = 16_384;
/// How often it is looked for series to forget.
const TIDY: Duration = Duration::from_secs(60);
/// How often the runs are searched for one to forget, when there was none.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The largest count that is believed; JSON readers lose precision above it too. Sums of bytes and of time may be larger:
/// five thousand tunnels that end after weeks have lasted so many microseconds together.
pub const MAX_COUNT: u64 = 1 << 53;
/// Bytes in any name.
pub const MAX_NAME: usize = 256;
/// Buckets of a latency histogram, and reasons of an edge.
const MAX_BUCKETS: usize = 64;

/// A sidecar, as its certificate proves it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its SPIFFE ID.
    pub identity: Arc<str>,
    /// The services whose identity that is: the only ones it may speak for.
    pub services: Arc<[Arc<str>]>,
}

impl Peer {
    /// The service for which it reports, if it may. Who does not say has one only.
    fn speaks_for(&self, named: &str) -> Option<&Arc<str>> {
        match named.is_empty() {
            true => self.services.first(),
            false => self.services.iter().find(|service| &***service == named),
        }
    }
}

/// What became of a report that was well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was added, but for this.
    Taken(Missing),
    /// It was no newer than the last one of its run.
    Stale,
}

/// What of a report was not added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missing {
    /// Edges for which the reporter may not speak, and counts of edges and foreign peers that do not say at which end they
    /// were made.
    pub refused: u64,
    /// Edges for which there was no room.
    pub edges_left_out: u64,
    /// Endpoints for which there was no room.
    pub endpoints_left_out: u64,
    /// Foreign peers and counts of them for which there was no room.
    pub foreign_left_out: u64,
}

impl Missing {
    /// Whether there was too little room for something.
    pub fn has_no_room(&self) -> bool {
        self.edges_left_out + self.endpoints_left_out + self.foreign_left_out > 0
    }
}

/// Why a report was refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not what a sidecar of ours sends.
    #[error("malformed report: {0}")]
    Malformed(&'static str),
    /// It is from somebody who may not report for the service that it names.
    #[error("the identity is not of the service that the report is for")]
    Foreign,
    /// There is no room for another reporter.
    #[error("too many reporters")]
    Full,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RunKey {
    identity: Arc<str>,
    instance: Arc<str>,
    run: u64,
}

/// One run of one process.
#[derive(Debug)]
pub struct Run {
    /// The service that it stands beside.
    pub service: Arc<str>,
    /// When it last reported.
    pub seen: Instant,
    /// The endpoints as it saw them.
    pub endpoints: Vec<report::Endpoint>,
    /// Its certificate.
    pub certificate: Option<report::Certificate>,
    /// The foreign peers that it saw.
    pub foreign: Said,
    sequence: u64,
    /// It was forgotten and has come back, and there was not room yet for all that it says: what is heard of it for the
    /// first time may have been counted before.
    returned: bool,
    /// What each edge said last.
    edges: HashMap<EdgeKey, Last>,
}

#[derive(Debug)]
struct Last {
    life: u64,
    totals: Totals,
}

#[derive(Debug)]
struct Series {
    totals: Totals,
    /// When a report last named it.
    seen: Instant,
}

/// What there is only so much room for, and runs hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Held {
    Place,
    Edges,
    Endpoints,
    Foreign(Table),
}

impl Held {
    fn by(self, run: &Run) -> bool {
        match self {
            Self::Place => true,
            Self::Edges => !run.edges.is_empty(),
            Self::Endpoints => !run.endpoints.is_empty(),
            Self::Foreign(table) => run.foreign.is_in(table),
        }
    }
}

/// The mesh's series, and what is needed to keep them right.
#[derive(Debug, Default)]
pub struct Ledger {
    runs: HashMap<RunKey, Run>,
    /// How many of them each identity has.
    by_identity: HashMap<Arc<str>, usize>,
    series: HashMap<EdgeKey, Series>,
    /// When it was last looked for series to forget.
    tidied: Option<Instant>,
    /// Sum over all runs' edges.
    remembered: usize,
    /// Sum over all runs' endpoints.
    endpoints: usize,
    foreign: Strangers,
    /// When no run that holds this was silent long enough to be forgotten.
    looked_in_vain: HashMap<Held, Instant>,
    forgotten: HashSet<u64>,
    forgotten_order: VecDeque<u64>,
    hasher: RandomState,
}

impl Ledger {
    /// Takes one report.
    pub fn take(
        &mut self,
        peer: &Peer,
        mut request: ReportRequest,
        now: Instant,
    ) -> Result<Outcome, Refusal> {
        check(&request)?;
        let service = peer.speaks_for(&request.service).ok_or(Refusal::Foreign)?;
        let key = RunKey {
            identity: Arc::clone(&peer.identity),
            instance: Arc::from(request.instance.as_str()),
            run: request.run,
        };
        match self.runs.get_mut(&key) {
            Some(run) if request.sequence <= run.sequence => return Ok(Outcome::Stale),
            Some(run) => {
                run.sequence = request.sequence;
                run.seen = now;
                run.service = Arc::clone(service);
            }
            None => self.enter(&key, service, request.sequence, now)?,
        }
        let mut missing = Missing::default();
        self.edges(&key, service, &request.edges, now, &mut missing);
        self.tidy(now);
        request
            .endpoints
            .retain(|endpoint| EndpointState::from_name(&endpoint.state).is_some());
        missing.endpoints_left_out = self.state(&key, request.endpoints, request.certificate, now);
        let foreign = request.foreign.unwrap_or_default();
        self.foreign(&key, foreign, now, &mut missing);
        Ok(Outcome::Taken(missing))
    }

    /// Remembers one more run.
    fn enter(
        &mut self,
        key: &RunKey,
        service: &Arc<str>,
        sequence: u64,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.runs.len() >= MAX_RUNS
            && !self.forget_silent(Held::Place, now)
            && !self.thin_out(&key.identity)
        {
            return Err(Refusal::Full);
        }
        let run = Run {
            service: Arc::clone(service),
            seen: now,
            endpoints: Vec::new(),
            certificate: None,
            foreign: Said::default(),
            sequence,
            returned: self.forgotten.contains(&self.hasher.hash_one(key)),
            edges: HashMap::new(),
        };
        self.runs.insert(key.clone(), run);
        let identity = Arc::clone(&key.identity);
        *self.by_identity.entry(identity).or_default() += 1;
        Ok(())
    }

    /// Adds what is new of a run's edges, and forgets those that it does not name.
    fn edges(
        &mut self,
        run: &RunKey,
        service: &str,
        edges: &[report::Edge],
        now: Instant,
        missing: &mut Missing,
    ) {
        let mut named = HashSet::new();
        for said in edges {
            let Some(edge) = own(said, service) else {
                missing.refused += 1;
                continue;
            };
            let counted = self.make_room(run, &edge, now) && self.count(run, &edge, said, now);
            missing.edges_left_out += u64::from(!counted);
            named.insert(edge);
        }
        if let Some(run) = self.runs.get_mut(run) {
            let before = run.edges.len();
            run.edges.retain(|edge, _| named.contains(edge));
            self.remembered -= before - run.edges.len();
        }
    }

    /// Whether an edge of this run is remembered or can be.
    fn make_room(&mut self, run: &RunKey, edge: &EdgeKey, now: Instant) -> bool {
        let run = self.runs.get(run);
        if run.is_some_and(|run| run.edges.contains_key(edge)) {
            return true;
        }
        while self.remembered >= MAX_REMEMBERED {
            if !self.forget_silent(Held::Edges, now) {
                return false;
            }
        }
        true
    }

    /// Adds what is new of one edge.
    fn count(&mut self, run: &RunKey, edge: &EdgeKey, said: &report::Edge, now: Instant) -> bool {
        let Some(run) = self.runs.get_mut(run) else {
            return false;
        };
        let totals = totals(said);
        let last = match run.edges.entry(edge.clone()) {
            Entry::Occupied(last) => last.into_mut(),
            Entry::Vacant(place) => {
                self.remembered += 1;
                place.insert(Last {
                    life: said.life,
                    totals: match run.returned {
                        true => totals.clone(),
                        false => Totals::default(),
                    },
                })
            }
        };
        if last.life != said.life {
            *last = Last {
                life: said.life,
                totals: Totals::default(),
            };
        }
        let new = totals.since(&last.totals);
        // The larger one, so that totals that fall and rise again are not counted twice.
        last.totals.max(&totals);
        let key = admit(edge.clone(), self.series.len(), MAX_SERIES, |key| {
            self.series.contains_key(key)
        });
        let series = self.series.entry(key).or_insert_with(|| Series {
            totals: Totals::default(),
            seen: now,
        });
        series.totals.add(&new);
        series.seen = now;
        true
    }

    /// Forgets series that no report has named for [`SILENT`].
    pub fn tidy(&mut self, now: Instant) {
        let just_now = |then| now.saturating_duration_since(then) < TIDY;
        if !self.tidied.is_some_and(just_now) {
            self.tidied = Some(now);
            self.series
                .retain(|_, series| now.saturating_duration_since(series.seen) < SILENT);
        }
    }

    /// Replaces what a run says of the present. Gives how many endpoints there was no room for: the last ones, because
    /// sidecars name the sick ones first.
    fn state(
        &mut self,
        run: &RunKey,
        mut endpoints: Vec<report::Endpoint>,
        certificate: Option<report::Certificate>,
        now: Instant,
    ) -> u64 {
        let had = self.runs.get(run).map_or(0, |run| run.endpoints.len());
        let said = endpoints.len();
        while self.endpoints - had + said > MAX_ENDPOINTS_REMEMBERED
            && self.forget_silent(Held::Endpoints, now)
        {}
        let Some(run) = self.runs.get_mut(run) else {
            return 0;
        };
        let others = self.endpoints - had;
        endpoints.truncate(MAX_ENDPOINTS_REMEMBERED - others);
        self.endpoints = others + endpoints.len();
        let left_out = said - endpoints.len();
        run.endpoints = endpoints;
        run.certificate = certificate;
        left_out as u64
    }

    /// Takes the foreign peers of a run.
    fn foreign(
        &mut self,
        run: &RunKey,
        foreign: report::Foreign,
        now: Instant,
        missing: &mut Missing,
    ) {
        if let Some(run) = self.runs.get(run) {
            let needs = run.foreign.needs(&run.service, &foreign);
            for table in [Table::Counts, Table::Peers] {
                while self.foreign.lacks(table, &needs)
                    && self.forget_silent(Held::Foreign(table), now)
                {}
            }
        }
        let Some(run) = self.runs.get_mut(run) else {
            return;
        };
        let (said, all) = (&mut run.foreign, &mut self.foreign);
        let counted = all.count(said, &run.service, &foreign.counts, run.returned);
        run.returned &= missing.edges_left_out + counted.left_out > 0;
        missing.refused += counted.refused;
        missing.foreign_left_out = counted.left_out + all.show(said, foreign);
    }

    /// Forgets, of the runs that hold this, the one that has been silent longest, if that is long enough.
    fn forget_silent(&mut self, what: Held, now: Instant) -> bool {
        // Looking costs a walk over all runs; when it was in vain, it is so for a while.
        if (self.looked_in_vain.get(&what))
            .is_some_and(|then| now.saturating_duration_since(*then) < LOOK_AGAIN)
        {
            return false;
        }
        let holding = self.runs.iter().filter(|(_, run)| what.by(run));
        let oldest = holding.min_by_key(|(_, run)| run.seen);
        match oldest.filter(|(_, run)| is_silent(run, now)) {
            Some((key, _)) => {
                let key = key.clone();
                self.forget(&key);
                true
            }
            None => {
                self.looked_in_vain.insert(what, now);
                false
            }
        }
    }

    /// Forgets a run of the identity that has most of them, for one of an identity that has fewer: whoever makes up runs
    /// keeps nobody out but itself. Two that have as many take none from each other.
    fn thin_out(&mut self, newcomer: &Arc<str>) -> bool {
        let own = self.by_identity.get(newcomer).copied().unwrap_or(0);
        let most = self.by_identity.iter().max_by_key(|(_, count)| **count);
        let crowd = most.filter(|(_, count)| **count > CROWD.max(own + 1));
        let Some((crowd, _)) = crowd else {
            return false;
        };
        let theirs = self.runs.iter().filter(|(key, _)| key.identity == *crowd);
        let oldest = theirs.min_by_key(|(_, run)| run.seen);
        let Some(key) = oldest.map(|(key, _)| key.clone()) else {
            return false;
        };
        self.forget(&key);
        true
    }

    fn forget(&mut self, key: &RunKey) {
        if let Some(run) = self.runs.remove(key) {
            self.remembered -= run.edges.len();
            self.endpoints -= run.endpoints.len();
            self.foreign.forget(&run.foreign);
            self.note_forgotten(self.hasher.hash_one(key));
            if let Entry::Occupied(mut count) = self.by_identity.entry(Arc::clone(&key.identity)) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    fn note_forgotten(&mut self, name: u64) {
        if self.forgotten.insert(name) {
            self.forgotten_order.push_back(name);
        }
        if self.forgotten_order.len() > MAX_FORGOTTEN
            && let Some(first) = self.forgotten_order.pop_front()
        {
            self.forgotten.remove(&first);
        }
    }

    /// The mesh's series.
    pub fn series(&self) -> Vec<EdgeTotals> {
        let series = self.series.iter().map(|(key, series)| EdgeTotals {
            key: key.clone(),
            totals: series.totals.clone(),
        });
        series.collect()
    }

    /// The foreign peers of the mesh.
    pub fn strangers(&self) -> &Strangers {
        &self.foreign
    }

    /// The runs that are there now: identity, instance, and what they said.
    pub fn reporters(&self, now: Instant) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &Run)> {
        self.runs
            .iter()
            .filter(move |(_, run)| !is_silent(run, now))
            .map(|(key, run)| (&key.identity, &key.instance, run))
    }

    /// Runs remembered, silent ones included.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }
}

fn is_silent(run: &Run, now: Instant) -> bool {
    now.saturating_duration_since(run.seen) >= SILENT
}

/// Whether a report has the form that ours have, within the bounds.
fn check(request: &ReportRequest) -> Result<(), Refusal> {
    let fits = |name: &String| name.len() <= MAX_NAME;
    let named = |name: &String| fits(name) && !name.is_empty();
    let rule = |holds: bool, rule| {
        if holds {
            Ok(())
        } else {
            Err(Refusal::Malformed(rule))
        }
    };
    rule(fits(&request.instance), "the instance's name is too long")?;
    rule(fits(&request.service), "the service's name is too long")?;
    rule(request.edges.len() <= MAX_EDGES, "too many edges")?;
    rule(
        request.endpoints.len() <= MAX_ENDPOINTS,
        "too many endpoints",
    )?;
    for edge in &request.edges {
        let (bounds, counts) = (&edge.latency_bounds_us, &edge.latency_counts);
        rule(
            named(&edge.source) && named(&edge.destination),
            "an edge's name is empty or too long",
        )?;
        rule(edge.by_class.len() <= CLASSES.len(), "too many classes")?;
        rule(bounds.len() < MAX_BUCKETS, "too many buckets")?;
        rule(bounds.is_sorted(), "bounds that do not rise")?;
        rule(
            counts.is_empty() || counts.len() == bounds.len() + 1,
            "buckets and bounds do not match",
        )?;
        rule(edge.reasons.len() <= MAX_BUCKETS, "too many reasons")?;
        rule(edge.reasons.keys().all(fits), "a reason's name is too long")?;
        let mut counts = (edge.by_class.iter())
            .chain(&edge.latency_counts)
            .chain(edge.reasons.values())
            .chain([&edge.retries]);
        rule(
            counts.all(|count| *count <= MAX_COUNT),
            "a count is too large",
        )?;
    }
    for endpoint in &request.endpoints {
        rule(
            named(&endpoint.service) && named(&endpoint.address),
            "an endpoint's name is empty or too long",
        )?;
    }
    if let Some(foreign) = &request.foreign {
        check_foreign(foreign)?;
    }
    if let Some(certificate) = &request.certificate {
        rule(
            certificate.spiffe_id.len() <= 2_048,
            "the identity is too long",
        )?;
        rule(fits(&certificate.serial), "the serial number is too long")?;
    }
    Ok(())
}

fn check_foreign(foreign: &report::Foreign) -> Result<(), Refusal> {
    let fits = |name: &String| name.len() <= MAX_NAME;
    let good = foreign.counts.len() <= foreign::MAX_COUNTS
        && foreign.peers.len() <= foreign::MAX_PEERS
        && foreign.left_out <= MAX_COUNT;
    if !good {
        return Err(Refusal::Malformed("too many foreign peers"));
    }
    let counts = foreign.counts.iter().all(|count| {
        fits(&count.kind)
            && fits(&count.service)
            && !count.service.is_empty()
            && count.count <= MAX_COUNT
    });
    let peers = foreign.peers.iter().all(|peer| {
        let names = [
            &peer.kind,
            &peer.service,
            &peer.peer,
            &peer.address,
            &peer.identity,
        ];
        names.into_iter().all(fits) && peer.count <= MAX_COUNT && u16::try_from(peer.port).is_ok()
    });
    match counts && peers {
        true => Ok(()),
        false => Err(Refusal::Malformed(
            "a foreign peer's name or count is out of bounds",
        )),
    }
}

/// The key of an edge that this service may speak for: what it called, and who called it.
fn own(edge: &report::Edge, service: &str) -> Option<EdgeKey> {
    let (direction, mine) = match edge.direction() {
        report::Direction::Outbound => (Direction::Outbound, &edge.source),
        report::Direction::Inbound => (Direction::Inbound, &edge.destination),
        report::Direction::Unspecified => return None,
    };
    (mine == service).then(|| EdgeKey {
        source: Arc::from(edge.source.as_str()),
        destination: Arc::from(edge.destination.as_str()),
        direction,
        mtls: edge.mtls,
    })
}

/// An edge's totals in our own buckets. A reporter of another version may have other bounds; each of its buckets goes
/// whole into ours that holds its upper bound, so that latencies are never shown shorter than they were.
fn totals(edge: &report::Edge) -> Totals {
    let mut totals = Totals {
        latency_sum_us: edge.latency_sum_us,
        retries: edge.retries,
        request_bytes: edge.request_bytes,
        response_bytes: edge.response_bytes,
        ..Totals::default()
    };
    totals.by_class[..edge.by_class.len()].copy_from_slice(&edge.by_class);
    let bounds = edge.latency_bounds_us.iter().copied().chain([u64::MAX]);
    for (bound, count) in bounds.zip(&edge.latency_counts) {
        let bucket = &mut totals.latency[BOUNDS_US.partition_point(|ours| *ours < bound)];
        *bucket = bucket.saturating_add(*count);
    }
    for (code, count) in &edge.reasons {
        let known = Reason::from_code(code.as_bytes());
        let place = known.map_or(Reason::ALL.len(), |reason| reason as usize);
        let slot = &mut totals.reasons[place];
        *slot = slot.saturating_add(*count);
    }
    totals
}

#[cfg(test)]
mod tests;
