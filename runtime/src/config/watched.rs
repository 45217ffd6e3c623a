//! The current value of something that changes while the process runs, and news of its changes.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

/// The current value. Loading it neither locks nor waits, so it may be done for every exchange.
pub struct Watched<T> {
    current: Arc<ArcSwap<T>>,
    generation: watch::Receiver<u64>,
}

/// The one who replaces the value.
pub struct Publisher<T> {
    current: Arc<ArcSwap<T>>,
    generation: watch::Sender<u64>,
}

/// News of changes. Only the latest value is kept: a slow follower skips what came between.
pub struct Changes<T> {
    watched: Watched<T>,
}

/// A value at generation 1, and the handle that replaces it.
pub fn watched<T>(initial: T) -> (Publisher<T>, Watched<T>) {
    let current = Arc::new(ArcSwap::from_pointee(initial));
    let (sender, receiver) = watch::channel(1);
    let publisher = Publisher {
        current: current.clone(),
        generation: sender,
    };
    let watched = Watched {
        current,
        generation: receiver,
    };
    (publisher, watched)
}

impl<T> Watched<T> {
    /// The value now, for a short look.
    pub fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// The value now, to keep.
    pub fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// How often the value was set, from 1.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// News of the changes from here on.
    pub fn changes(&self) -> Changes<T> {
        let mut watched = self.clone();
        watched.generation.mark_unchanged();
        Changes { watched }
    }
}

impl<T> Publisher<T> {
    /// Replaces the value for all who load it from now on. Returns the new generation.
    pub fn publish(&self, value: T) -> u64 {
        self.current.store(Arc::new(value));
        // After the value: who hears of the generation finds the value that belongs to it, or a newer one.
        let mut generation = 0;
        self.generation.send_modify(|current| {
            *current += 1;
            generation = *current;
        });
        generation
    }

    /// Another reader.
    pub fn watched(&self) -> Watched<T> {
        Watched {
            current: self.current.clone(),
            generation: self.generation.subscribe(),
        }
    }
}

impl<T> Changes<T> {
    /// Waits for a change and returns the value then; `None` when the publisher is gone. May be dropped while it waits without
    /// losing anything.
    pub async fn next(&mut self) -> Option<Arc<T>> {
        self.watched.generation.changed().await.ok()?;
        Some(self.watched.get())
    }
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self {
            current: self.current.clone(),
            generation: self.generation.clone(),
        }
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Changes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_at_once_and_a_slow_follower_gets_the_latest() {
        let (publisher, watched) = watched("one");
        let mut changes = watched.changes();
        assert_eq!((*watched.get(), watched.generation()), ("one", 1));
        assert_eq!(publisher.publish("two"), 2);
        assert_eq!(publisher.publish("three"), 3);
        assert_eq!(**watched.load(), "three");
        assert_eq!(*changes.next().await.unwrap(), "three");
        drop(publisher);
        assert_eq!(changes.next().await, None);
        assert_eq!(**watched.load(), "three", "the last value stays");
    }

    #[tokio::test]
    async fn changes_before_the_question_are_no_news() {
        let (publisher, watched) = watched(1);
        publisher.publish(2);
        let mut changes = watched.changes();
        drop(publisher);
        assert_eq!(changes.next().await, None);
    }
}
