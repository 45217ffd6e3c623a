//! What a connection adds to the counters and to the access log.

use std::net::SocketAddr;
use std::time::Instant;

use crate::error::Error;
use crate::http::Caller;
use crate::http::entry::Entry;
use crate::observe::{ExchangeCells, OpenExchange};
use crate::plan::{Rule, Site};
use crate::reason::Reason;

/// What CONNECT is answered with: a connection that was established counts as that.
const ESTABLISHED: u16 = 200;

/// One connection's.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) started: Instant,
    /// By which balancing tells connections apart, where it does.
    pub(super) key: Option<u64>,
    /// The edge to the service, the edge from the caller, and the route: those that there are.
    cells: [Option<OpenExchange>; 3],
    entry: Option<Box<Entry>>,
    status: Option<u16>,
    reason: Option<Reason>,
    up: u64,
    down: u64,
}

impl Account {
    pub(super) fn begin(caller: &Caller, site: &Site, rule: &Rule) -> Self {
        let core = &caller.core;
        let cells = [
            core.wired(&rule.target, site).cells.clone(),
            core.inbound(caller, site, rule),
            core.route(site, rule),
        ];
        Self {
            started: Instant::now(),
            key: rule.target.spec.balance.client_key(caller.address.ip()),
            cells: cells.map(|cells| cells.map(ExchangeCells::begin)),
            entry: Entry::of_connection(caller, site, rule),
            status: None,
            reason: None,
            up: 0,
            down: 0,
        }
    }

    /// This is where it is tried.
    pub(super) fn tries(&mut self, endpoint: SocketAddr, attempt: u32) {
        if let Some(entry) = &mut self.entry {
            entry.endpoint = Some(endpoint);
            entry.attempts = attempt;
        }
    }

    /// It is there. Counted now and not at its end, which may be days away.
    pub(super) fn established(&mut self) {
        self.status = Some(ESTABLISHED);
        for cells in self.cells.iter().flatten() {
            cells.record(self.status, self.started.elapsed());
        }
    }

    /// It could not be had. Counted by caller and route with the answers; here only for the edge to the service.
    pub(super) fn refused(&mut self, error: &Error) {
        self.status = Some(error.reason.status().as_u16());
        self.reason = Some(error.reason);
        if let Some(cells) = &self.cells[0] {
            cells.answered(error.reason);
            cells.record(self.status, self.started.elapsed());
        }
    }

    /// So many bytes went to the endpoint and to the client.
    pub(super) fn moved(&mut self, up: u64, down: u64) {
        self.up += up;
        self.down += down;
        for cells in self.cells.iter().flatten() {
            cells.add_bytes(up, down);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Whoever asked went away first.
            for cells in self.cells.iter().flatten() {
                cells.record(None, self.started.elapsed());
            }
        }
        if let Some(entry) = &mut self.entry {
            entry.write(
                self.status,
                self.reason,
                self.started.elapsed(),
                self.up,
                self.down,
            );
        }
    }
}
