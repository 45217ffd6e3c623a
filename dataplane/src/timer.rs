//! A deadline that is cheap to move.
//!
//! A connection moves its deadline several times per exchange: idle, head, exchange, idle again. Re-registering a timer
//! each time would cost more than parsing the request. So the timer stays armed for the earliest deadline that it was
//! ever given, and when it fires too early it is armed again for the one that holds by then: about one registration per
//! period of the shortest timeout, whatever the number of exchanges.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// A movable deadline. It fires never before its deadline and never long after it.
#[derive(Debug, Default)]
pub struct Timer {
    deadline: Option<Instant>,
    armed: Option<Armed>,
}

#[derive(Debug)]
struct Armed {
    at: Instant,
    sleep: Pin<Box<Sleep>>,
}

thread_local! {
    static FREE: RefCell<Vec<Timer>> = const { RefCell::new(Vec::new()) };
    static RECENT: Cell<Option<std::time::Instant>> = const { Cell::new(None) };
}

/// The time, for whoever needs to know it exactly.
pub fn now() -> std::time::Instant {
    let now = std::time::Instant::now();
    RECENT.set(Some(now));
    now
}

/// The time as this thread last asked for it: for a deadline that is set right after something that was timed, since
/// asking costs as much as parsing a header.
pub fn recent() -> Instant {
    Instant::from_std(RECENT.get().unwrap_or_else(now))
}

/// Timers kept for reuse per thread.
const FREE_TIMERS: usize = 256;

/// A timer from the thread's free list, which it goes back to: still armed, so that a short-lived exchange need not
/// register one. It may wake the task that had it last once more; tasks put up with that.
#[derive(Debug)]
pub struct Pooled(Timer);

impl std::ops::Deref for Pooled {
    type Target = Timer;

    fn deref(&self) -> &Timer {
        &self.0
    }
}

impl std::ops::DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Timer {
        &mut self.0
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut timer = std::mem::take(&mut self.0);
        timer.clear();
        // The list is gone when the thread ends.
        let _: Result<(), _> = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < FREE_TIMERS {
                free.push(timer);
            }
        });
    }
}

impl Timer {
    /// One that was used before, without a deadline.
    pub fn pooled() -> Pooled {
        Pooled(FREE.with_borrow_mut(Vec::pop).unwrap_or_default())
    }

    /// Without a deadline.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on, fires at `deadline`.
    pub fn set(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// When it fires, if it does.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// From now on, never fires.
    pub fn clear(&mut self) {
        self.deadline = None;
    }

    /// Ready once the deadline has passed; registers the task to be woken for it.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        loop {
            let armed = match &mut self.armed {
                Some(armed) => armed,
                None => self.armed.insert(Armed {
                    at: deadline,
                    sleep: Box::pin(tokio::time::sleep_until(deadline)),
                }),
            };
            if armed.at > deadline {
                armed.at = deadline;
                armed.sleep.as_mut().reset(deadline);
            }
            if armed.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if armed.at >= deadline {
                // Left in place, fired: the next deadline that is set is later and arms it anew.
                return Poll::Ready(());
            }
            armed.at = deadline;
            armed.sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    async fn expires_after(timer: &mut Timer) -> Duration {
        let start = Instant::now();
        poll_fn(|cx| timer.poll_expired(cx)).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_deadline_that_holds() {
        let second = Duration::from_secs(1);
        let mut timer = Timer::new();
        timer.set(Instant::now() + second * 3);
        assert!(poll_once(&mut timer).await.is_pending());
        timer.set(Instant::now() + second);
        assert_eq!(
            expires_after(&mut timer).await.as_secs(),
            1,
            "an earlier deadline counts"
        );
        timer.set(Instant::now() + second * 2);
        assert!(poll_once(&mut timer).await.is_pending());
        timer.set(Instant::now() + second * 9);
        assert_eq!(
            expires_after(&mut timer).await.as_secs(),
            9,
            "a later deadline counts"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_it_never_fires() {
        let mut timer = Timer::new();
        timer.set(Instant::now());
        timer.clear();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(poll_once(&mut timer).await.is_pending());
    }

    async fn poll_once(timer: &mut Timer) -> Poll<()> {
        poll_fn(|cx| Poll::Ready(timer.poll_expired(cx))).await
    }
}
