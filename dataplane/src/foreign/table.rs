//! The table of foreign peers: those seen last, and how often each kind was seen at all.
//!
//! Two bounds, because two things are asked. Counts by end, kind and service never go back and lose nothing, so they
//! make metrics; what comes after [`MAX_COUNTS`] of them is counted under [`OTHER`]. Rows say which peers; beyond
//! [`MAX_PEERS`] the one that has been away longest goes, and is counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::{End, Foreign, Peer, clean};

/// Peers that are told apart.
pub const MAX_PEERS: usize = 256;
/// Combinations of end, kind and service that are counted apart.
pub const MAX_COUNTS: usize = 256;
/// How long a line in the log about a peer stands for those that would say the same.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// The service of those that came after that.
pub const OTHER: &str = "other";

/// Somebody was seen.
#[derive(Debug, Clone)]
pub struct Sighting<'a> {
    /// Where we stood.
    pub end: End,
    /// What was wrong.
    pub kind: Foreign,
    /// The service that it came to, or that we meant.
    pub service: &'a Arc<str>,
    /// Who it was.
    pub peer: Peer,
    /// The address that it came from.
    pub address: Option<IpAddr>,
    /// The port that it came to.
    pub port: Option<u16>,
    /// Who its certificate says that it is, which is proven only where nothing else was wrong.
    pub identity: Option<&'a str>,
    /// When its kind is no longer let in.
    pub until: Option<SystemTime>,
}

impl<'a> Sighting<'a> {
    /// Somebody came from this address.
    pub fn came(
        kind: Foreign,
        service: &'a Arc<str>,
        from: IpAddr,
        port: Option<u16>,
        identity: Option<&'a str>,
    ) -> Self {
        Self {
            end: End::Inbound,
            kind,
            service,
            peer: Peer::from_address(from),
            address: Some(from.to_canonical()),
            port,
            identity,
            until: None,
        }
    }

    /// We went to this endpoint.
    pub fn met(
        kind: Foreign,
        service: &'a Arc<str>,
        at: SocketAddr,
        identity: Option<&'a str>,
    ) -> Self {
        Self {
            end: End::Outbound,
            kind,
            service,
            peer: Peer::Endpoint(at),
            address: None,
            port: None,
            identity,
            until: None,
        }
    }
}

/// A foreign peer, and how often it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where we stood.
    pub end: End,
    /// What was wrong.
    pub kind: Foreign,
    /// The service that it came to, or that we meant.
    pub service: Arc<str>,
    /// Who it was.
    pub peer: Peer,
    /// The port that it came to.
    pub port: Option<u16>,
    /// The address that it came from last.
    pub address: Option<IpAddr>,
    /// Who its certificate said last that it is: cleaned, and not proven.
    pub identity: Option<Arc<str>>,
    /// When its kind is no longer let in.
    pub until: Option<SystemTime>,
    /// How often.
    pub count: u64,
    /// When first.
    pub first: SystemTime,
    /// When last.
    pub last: SystemTime,
}

/// How often a kind was seen, since the process started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Where we stood.
    pub end: End,
    /// What was wrong.
    pub kind: Foreign,
    /// The service, or [`OTHER`].
    pub service: Arc<str>,
    /// How often.
    pub count: u64,
}

/// The table at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The peers, the one seen last first.
    pub rows: Vec<Row>,
    /// The counts, sorted.
    pub counts: Vec<Count>,
    /// Rows that had to go for others.
    pub left_out: u64,
}

/// The foreign peers of one process.
#[derive(Debug, Default)]
pub struct Foreigners {
    // Guards the table; held to note one sighting or to copy it, never across an await.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    rows: HashMap<RowKey, Seen>,
    counts: HashMap<CountKey, u64>,
    left_out: u64,
    /// Sightings so far.
    turn: u64,
}

type CountKey = (End, Foreign, Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RowKey {
    end: End,
    kind: Foreign,
    service: Arc<str>,
    peer: Peer,
    port: Option<u16>,
}

#[derive(Debug)]
struct Seen {
    address: Option<IpAddr>,
    identity: Option<Arc<str>>,
    until: Option<SystemTime>,
    count: u64,
    first: SystemTime,
    last: SystemTime,
    /// When whoever noted it was asked to say so.
    told: Option<SystemTime>,
    /// Which sighting of all it was last: clocks stand still and go back.
    turn: u64,
}

impl Foreigners {
    /// Notes that somebody was seen at this time. Returns whether that is worth a line in the log: the first time, and
    /// then once a minute.
    pub fn saw(&self, sighting: &Sighting<'_>, now: SystemTime) -> bool {
        self.table().saw(sighting, now)
    }

    /// The table now.
    pub fn snapshot(&self) -> Snapshot {
        let table = self.table();
        let mut rows: Vec<_> = table.rows.iter().collect();
        rows.sort_unstable_by_key(|(_, seen)| std::cmp::Reverse(seen.turn));
        let rows = rows.into_iter().map(|(key, seen)| seen.row(key)).collect();
        let counts = table.counts.iter();
        let mut counts: Vec<_> = counts
            .map(|((end, kind, service), &count)| Count {
                end: *end,
                kind: *kind,
                service: Arc::clone(service),
                count,
            })
            .collect();
        let left_out = table.left_out;
        drop(table);
        counts
            .sort_unstable_by(|a, b| (a.end, a.kind, &a.service).cmp(&(b.end, b.kind, &b.service)));
        Snapshot {
            rows,
            counts,
            left_out,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing here leaves the table half changed when it panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn saw(&mut self, sighting: &Sighting<'_>, now: SystemTime) -> bool {
        let turn = self.count(sighting);
        let key = RowKey {
            end: sighting.end,
            kind: sighting.kind,
            service: Arc::clone(sighting.service),
            peer: sighting.peer,
            port: sighting.port,
        };
        if self.rows.len() >= MAX_PEERS && !self.rows.contains_key(&key) {
            self.leave_one_out();
        }
        let seen = match self.rows.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Seen::first(now)),
        };
        seen.again(sighting, now, turn);
        seen.tell(now)
    }

    /// Counts it, and says how many there were in all.
    fn count(&mut self, sighting: &Sighting<'_>) -> u64 {
        let (end, kind) = (sighting.end, sighting.kind);
        let mut key = (end, kind, Arc::clone(sighting.service));
        if self.counts.len() >= MAX_COUNTS && !self.counts.contains_key(&key) {
            // Of these there are two for each kind at most.
            key.2 = Arc::from(OTHER);
        }
        *self.counts.entry(key).or_default() += 1;
        self.turn += 1;
        self.turn
    }

    /// Forgets the row that has not changed for longest.
    fn leave_one_out(&mut self) {
        let oldest = self.rows.iter().min_by_key(|(_, seen)| seen.turn);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.rows.remove(&key);
            self.left_out += 1;
        }
    }
}

impl Seen {
    fn first(now: SystemTime) -> Self {
        Self {
            address: None,
            identity: None,
            until: None,
            count: 0,
            first: now,
            last: now,
            told: None,
            turn: 0,
        }
    }

    /// Whether it is to be told, from when on it is told.
    fn tell(&mut self, now: SystemTime) -> bool {
        // A clock that has gone back says nothing about how long ago it was.
        let ago = self.told.map(|told| now.duration_since(told));
        let is_news = !matches!(ago, Some(Ok(ago)) if ago < TELL_AGAIN);
        if is_news {
            self.told = Some(now);
        }
        is_news
    }

    fn again(&mut self, sighting: &Sighting<'_>, now: SystemTime, turn: u64) {
        self.count += 1;
        self.last = now;
        self.turn = turn;
        self.address = sighting.address;
        self.until = sighting.until;
        if let Some(identity) = sighting.identity {
            self.identity = Some(Arc::from(clean(identity)));
        }
    }

    fn row(&self, key: &RowKey) -> Row {
        Row {
            end: key.end,
            kind: key.kind,
            service: Arc::clone(&key.service),
            peer: key.peer,
            port: key.port,
            address: self.address,
            identity: self.identity.clone(),
            until: self.until,
            count: self.count,
            first: self.first,
            last: self.last,
        }
    }
}
