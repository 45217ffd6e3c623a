//! Ready when everything that must be there is there.
//!
//! Each part that has to be up before traffic may come takes a named [`Guard`] while the process starts and drops it when it is up. When the
//! last guard is dropped the process is ready, and stays so until it is told to [leave](Readiness::leave).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Whether the process may be sent traffic. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    shared: Arc<Shared>,
}

/// Something is not up yet. Dropping it says that it is.
pub struct Guard {
    shared: Arc<Shared>,
    number: u64,
}

struct Shared {
    /// Guards the list of what is missing.
    missing: Mutex<Missing>,
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct Missing {
    /// By number, so that two guards may have the same name.
    guards: BTreeMap<u64, String>,
    next: u64,
    /// Why the process will not be ready again.
    leaving: Option<String>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Nothing is missing yet: take the first guard before anybody asks.
    pub fn new() -> Self {
        let (ready, _) = watch::channel(true);
        Self {
            shared: Arc::new(Shared {
                missing: Mutex::default(),
                ready,
            }),
        }
    }

    /// `name` is missing until the guard is dropped.
    pub fn guard(&self, name: impl Into<String>) -> Guard {
        let number = self.shared.change(|missing| {
            let number = missing.next;
            missing.next += 1;
            missing.guards.insert(number, name.into());
            number
        });
        Guard {
            shared: self.shared.clone(),
            number,
        }
    }

    /// The process is not ready any more, and will not be again.
    pub fn leave(&self, why: impl Into<String>) {
        self.shared
            .change(|missing| missing.leaving = Some(why.into()));
    }

    /// Whether nothing is missing.
    pub fn is_ready(&self) -> bool {
        *self.shared.ready.borrow()
    }

    /// What is missing, in the order in which it was asked for.
    pub fn missing(&self) -> Vec<String> {
        let missing = self.shared.lock();
        let guards = missing.guards.values().cloned();
        missing.leaving.iter().cloned().chain(guards).collect()
    }

    /// Waits until nothing is missing. May be dropped at any time.
    pub async fn ready(&self) {
        let mut ready = self.shared.ready.subscribe();
        // The sender is ours, so this cannot fail.
        let _ = ready.wait_for(|&ready| ready).await;
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Missing) -> T) -> T {
        let mut missing = self.lock();
        let result = change(&mut missing);
        let ready = missing.guards.is_empty() && missing.leaving.is_none();
        // Under the lock, so that two changes cannot be told in the wrong order.
        self.ready.send_if_modified(|current| {
            let news = *current != ready;
            *current = ready;
            news
        });
        result
    }

    fn lock(&self) -> MutexGuard<'_, Missing> {
        // The list is whole at every moment: a panic elsewhere cannot have broken it.
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    /// The same as dropping it, in a word that says what it means.
    pub fn ready(self) {}
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared
            .change(|missing| missing.guards.remove(&self.number));
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("missing", &self.missing())
            .finish()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        let certificate = readiness.guard("certificate");
        let endpoints = readiness.guard("endpoints of orders");
        assert_eq!(readiness.missing(), ["certificate", "endpoints of orders"]);
        certificate.ready();
        assert!(!readiness.is_ready());
        assert_eq!(readiness.missing(), ["endpoints of orders"]);
        let waiter = readiness.clone();
        tokio::join!(waiter.ready(), async { drop(endpoints) });
        assert!(readiness.is_ready());
        assert!(readiness.missing().is_empty());
    }

    #[test]
    fn guards_of_the_same_name_count_each() {
        let readiness = Readiness::new();
        let (first, second) = (readiness.guard("core"), readiness.guard("core"));
        drop(first);
        assert_eq!(readiness.missing(), ["core"]);
        drop(second);
        assert!(readiness.is_ready());
    }

    #[test]
    fn who_leaves_does_not_come_back() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        readiness.leave("draining");
        drop(readiness.guard("late"));
        assert!(!readiness.is_ready());
        assert_eq!(readiness.missing(), ["draining"]);
    }
}
