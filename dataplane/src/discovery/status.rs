//! How a source is doing, for the admin page, the metrics and readiness.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// The state of one followed source; written by [`super::follow`], read by whoever asks.
#[derive(Debug, Default)]
pub struct Status {
    report: Mutex<Report>,
    changed: Notify,
}

/// A moment of a [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether addresses, or that there are none, are known at all.
    pub known: bool,
    /// How many addresses are in use.
    pub addresses: usize,
    /// When the source answered last.
    pub last_success: Option<Instant>,
    /// What went wrong last, until the next answer.
    pub last_error: Option<String>,
    /// Whether what is in use could not be confirmed when it was due.
    pub stale: bool,
    /// Whether it could not be confirmed for so long that somebody should look.
    pub expired: bool,
}

impl Status {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state now.
    pub fn report(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until something is known.
    pub async fn known(&self) {
        loop {
            let changed = self.changed.notified();
            if self.report().known {
                return;
            }
            changed.await;
        }
    }

    /// Changes the state.
    pub(super) fn update(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
    }

    /// The addresses stand in the configuration: there is nothing to wait for.
    pub(super) fn settled(&self, addresses: usize) {
        self.update(|report| {
            report.known = true;
            report.addresses = addresses;
        });
    }
}
