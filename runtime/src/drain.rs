//! Ending without losing anything: say so while everything works as ever, finish what you have, then stop.
//!
//! The [`Trigger`] is with the one who decides; everybody else has a [`Watch`]. When the drain begins, listeners stop
//! accepting and connections tell their peers that no more exchanges are welcome. Whatever must not be cut holds a [`Guard`]; so does a
//! listener until it has closed its socket, or there would be a moment without a guard in which a connection is still on its way
//! in. When the last guard is dropped, or the time is up, the drain has ended and everything stops.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{Notify, watch};

use crate::config::units::Period;

/// How a process ends, as the configuration has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Drain")]
pub struct Config {
    /// How long the process is not ready but works as ever, so that whoever sends it traffic has seen it and goes elsewhere.
    pub delay: Period,
    /// How long running exchanges may take after that.
    pub timeout: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            delay: Period::seconds(5),
            timeout: Period::seconds(30),
        }
    }
}

/// How long whoever is cut gets for its last words. Not for work: it is for lines of a log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where the process stands on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It works.
    Serving,
    /// It works, and tells everybody that it will not for long.
    Leaving,
    /// It finishes what it has.
    Draining,
    /// It stops; what still runs is cut.
    Ended,
}

/// Begins the drain and waits for its end. When it is dropped the drain has ended: nobody else could begin it any more.
pub struct Trigger {
    shared: Arc<Shared>,
}

/// Sees the drain come, and holds back its end. Cheap to clone, for all threads.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
    stage: watch::Receiver<Stage>,
}

/// Holds back the end of the drain until it is dropped.
pub struct Guard {
    shared: Arc<Shared>,
}

/// Asks for a drain from somewhere else than the place that carries it out, such as an admin page.
#[derive(Clone)]
pub struct Request {
    shared: Arc<Shared>,
}

struct Shared {
    /// The same as the channel's value, for a look that costs one load.
    now: AtomicU8,
    stage: watch::Sender<Stage>,
    guards: AtomicUsize,
    /// Told when the last guard is dropped.
    released: Notify,
    /// Told when somebody asks for a drain. Holds one permit, so asking before anybody waits is not lost.
    requested: Notify,
}

/// A trigger and the first of its watches.
pub fn channel() -> (Trigger, Watch) {
    let (sender, receiver) = watch::channel(Stage::Serving);
    let shared = Arc::new(Shared {
        now: AtomicU8::new(Stage::Serving as u8),
        stage: sender,
        guards: AtomicUsize::new(0),
        released: Notify::new(),
        requested: Notify::new(),
    });
    let watch = Watch {
        shared: shared.clone(),
        stage: receiver,
    };
    (Trigger { shared }, watch)
}

impl Shared {
    fn enter(&self, stage: Stage) {
        // `Release` pairs with the load in `is_draining`: who sees the stage sees what was done before it.
        self.now.fetch_max(stage as u8, Ordering::Release);
        self.stage.send_if_modified(|current| {
            let later = stage > *current;
            if later {
                *current = stage;
            }
            later
        });
    }
}

impl Trigger {
    /// Has everybody say that the drain is about to begin, for those who can turn to somebody else before it does.
    pub fn leave(&self) {
        self.shared.enter(Stage::Leaving);
    }

    /// Begins the drain, waits until nobody holds a guard any more, but no longer than `timeout`, and ends it. Returns how many
    /// guards were still held, which is how much was cut. Who held them gets a moment more, to say what it was.
    ///
    /// Dropping the future keeps the stage that was reached; the next call goes on from there.
    pub async fn drain(&self, timeout: Duration) -> usize {
        self.shared.enter(Stage::Draining);
        let _ = tokio::time::timeout(timeout, self.released()).await;
        let cut = self.shared.guards.load(Ordering::Acquire);
        self.shared.enter(Stage::Ended);
        let _ = tokio::time::timeout(LAST_WORDS, self.released()).await;
        cut
    }

    /// Waits until somebody asks for a drain through a [`Request`].
    pub async fn requested(&self) {
        self.shared.requested.notified().await;
    }

    /// A handle that asks for a drain.
    pub fn request(&self) -> Request {
        Request {
            shared: self.shared.clone(),
        }
    }

    /// Another watch.
    pub fn watch(&self) -> Watch {
        Watch {
            stage: self.shared.stage.subscribe(),
            shared: self.shared.clone(),
        }
    }

    /// How many guards are held.
    pub fn guards(&self) -> usize {
        self.shared.guards.load(Ordering::Acquire)
    }

    async fn released(&self) {
        loop {
            // Registered before the count is read, or the last release could fall in between.
            let released = self.shared.released.notified();
            if self.guards() == 0 {
                return;
            }
            released.await;
        }
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.shared.enter(Stage::Ended);
    }
}

impl Watch {
    /// Whether the drain has begun. One atomic load.
    pub fn is_draining(&self) -> bool {
        self.shared.now.load(Ordering::Acquire) >= Stage::Draining as u8
    }

    /// Whether everything is to stop. One atomic load.
    #[cfg(test)]
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.now.load(Ordering::Acquire) >= Stage::Ended as u8
    }

    /// Waits until it is known that the drain is about to begin; at once when it is. May be dropped at any time.
    pub async fn leaving(&self) {
        self.reaches(Stage::Leaving).await;
    }

    /// Waits until the drain begins; at once when it has. May be dropped at any time.
    pub async fn draining(&self) {
        self.reaches(Stage::Draining).await;
    }

    /// Waits until everything is to stop; at once when it is. May be dropped at any time.
    pub async fn ended(&self) {
        self.reaches(Stage::Ended).await;
    }

    /// Holds back the end of the drain until the guard is dropped.
    pub fn guard(&self) -> Guard {
        self.shared.guards.fetch_add(1, Ordering::AcqRel);
        Guard {
            shared: self.shared.clone(),
        }
    }

    async fn reaches(&self, wanted: Stage) {
        let mut stage = self.stage.clone();
        // The sender lives as long as any watch, so this cannot fail.
        let _ = stage.wait_for(|&stage| stage >= wanted).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.shared.guards.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.released.notify_waiters();
        }
    }
}

impl Clone for Guard {
    fn clone(&self) -> Self {
        self.shared.guards.fetch_add(1, Ordering::AcqRel);
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl Request {
    /// Asks for a drain. More than once is the same as once.
    pub fn ask(&self) {
        self.shared.requested.notify_one();
    }
}

impl fmt::Debug for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trigger")
            .field("guards", &self.guards())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("draining", &self.is_draining())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_the_last_guard_and_no_longer() {
        let (trigger, watch) = channel();
        let (first, second) = (watch.guard(), watch.guard());
        let begun = Instant::now();
        let work = async {
            watch.draining().await;
            drop(first);
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(watch.is_draining() && !watch.has_ended());
            drop(second);
        };
        let (cut, ()) = tokio::join!(trigger.drain(LONG), work);
        assert_eq!(cut, 0);
        assert_eq!(begun.elapsed(), Duration::from_secs(4));
        assert!(watch.has_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn drain_cuts_what_takes_too_long_and_says_how_much() {
        let (trigger, watch) = channel();
        let held: Vec<_> = (0..3).map(|_| watch.guard()).collect();
        let copied = held[0].clone();
        let begun = Instant::now();
        let told = async {
            watch.ended().await;
            assert_eq!(begun.elapsed(), LONG);
        };
        let (cut, ()) = tokio::join!(trigger.drain(LONG), told);
        assert_eq!(cut, 4);
        // They had their last words, and did not use them.
        assert_eq!(begun.elapsed(), LONG + LAST_WORDS);
        drop((held, copied));
        assert_eq!(trigger.guards(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn drain_of_an_idle_process_takes_no_time() {
        let (trigger, watch) = channel();
        assert!(!watch.is_draining());
        let begun = Instant::now();
        assert_eq!(trigger.drain(LONG).await, 0);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_begins_while_draining_is_waited_for_too() {
        let (trigger, watch) = channel();
        let first = watch.guard();
        let work = async {
            watch.draining().await;
            let late = watch.guard();
            drop(first);
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(late);
        };
        let begun = Instant::now();
        let (cut, ()) = tokio::join!(trigger.drain(LONG), work);
        assert_eq!((cut, begun.elapsed()), (0, Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn watches_of_other_threads_and_later_ones_see_the_drain() {
        let (trigger, watch) = channel();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let watch = watch.clone();
                let guard = watch.guard();
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build();
                    runtime.expect("a runtime").block_on(watch.draining());
                    drop(guard);
                })
            })
            .collect();
        assert_eq!(trigger.drain(LONG).await, 0);
        for thread in threads {
            thread.join().expect("saw the drain");
        }
        trigger.watch().draining().await;
    }

    #[tokio::test]
    async fn who_leaves_is_not_draining_yet() {
        let (trigger, watch) = channel();
        trigger.leave();
        watch.leaving().await;
        assert!(!watch.is_draining());
        assert_eq!(trigger.drain(LONG).await, 0);
        trigger.leave();
        assert!(watch.has_ended(), "there is no way back");
    }

    #[tokio::test]
    async fn a_request_before_anybody_waits_is_not_lost() {
        let (trigger, _watch) = channel();
        let request = trigger.request();
        request.ask();
        request.ask();
        trigger.requested().await;
    }

    #[tokio::test]
    async fn a_lost_trigger_ends_everything() {
        let (trigger, watch) = channel();
        drop(trigger);
        watch.draining().await;
        watch.ended().await;
        assert!(watch.has_ended());
    }
}
