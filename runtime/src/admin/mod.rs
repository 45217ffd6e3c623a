//! The admin pages: what the process knows about itself, over HTTP on a loopback address.
//!
//! `/live /ready /metrics /config /drain` are the same in every role; a role adds its own. All are for reading but `/drain`, which wants a
//! POST. Nobody is asked who they are, hence loopback: whoever is on this host may ask. Other websites in a browser on this host may not: the
//! `Host` must be an address or `localhost` (DNS rebinding), and a POST must not come from a page (`Origin`).

mod answer;
mod config;
mod server;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::config::Status;
use crate::drain;
use crate::ready::Readiness;
use crate::telemetry::metrics::Metrics;

pub use config::{Config, Settings};
pub use server::Bound;

/// Writes a page: its content type and its text.
pub type Page = Arc<dyn Fn() -> (&'static str, String) + Send + Sync>;

/// The pages of a process. Add what the role has to show, then [`bind`](Admin::bind).
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    metrics: Metrics,
    drain: drain::Request,
    watch: drain::Watch,
    config: Option<Status>,
    pages: BTreeMap<String, (String, Page)>,
}

impl Admin {
    /// The pages that every process has.
    pub fn new(readiness: Readiness, metrics: Metrics, trigger: &drain::Trigger) -> Self {
        Self {
            readiness,
            metrics,
            drain: trigger.request(),
            watch: trigger.watch(),
            config: None,
            pages: BTreeMap::new(),
        }
    }

    /// Shows at `/config` the configuration in force, and how it stands.
    pub fn config(&mut self, status: Status) {
        self.config = Some(status);
    }

    /// Shows `page` at `path`, such as `/endpoints`, with `about` in the list of pages. A page at the same path before is replaced; the
    /// pages that every process has are not.
    pub fn page(&mut self, path: impl Into<String>, about: impl Into<String>, page: Page) {
        self.pages.insert(path.into(), (about.into(), page));
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("pages", &self.pages.keys())
            .finish_non_exhaustive()
    }
}
