//! Idle HTTP/1.1 connections of one core, by endpoint: the last one put back is the first one taken, so that those
//! that are not needed grow old and go.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::http1::Handle;

/// Kept per endpoint and core at most.
const MOST_IDLE: usize = 256;
/// Closed after so many seconds unused. Below the usual keep-alive of servers (60 s and up), so that they do not close
/// first.
const IDLE: u64 = 55;
/// Not used any more this long before the time after which the endpoint says that it closes it: a request that is on its
/// way then may be lost. In seconds, one of them because ours may just have begun.
const CLOSING: u64 = 2;

/// Idle connections.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// One lies in the table itself: where endpoints are many, each has one, and it is cold by the time it is used again.
    idle: RefCell<HashMap<u64, SmallVec<[Idle; 1]>, RandomState>>,
    /// Exchanges that wait for one because there may not be one more.
    waiting: RefCell<Vec<(u64, Waker)>>,
    /// How often it was swept, which is how it tells the time: asking the clock would cost every exchange.
    swept: Cell<u64>,
}

#[derive(Debug)]
struct Idle {
    connection: Handle,
    /// By the pool's own count.
    since: u64,
}

impl Pool {
    /// A connection to this endpoint that is open and silent, as far as we know.
    pub(crate) fn take(&self, endpoint: u64, cx: &mut Context<'_>) -> Option<Handle> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&endpoint)?;
        while let Some(Idle { connection, since }) = list.pop() {
            let keeps = connection.borrow().keeps;
            if keeps.is_some_and(|keeps| self.swept.get() - since + CLOSING > keeps.as_secs()) {
                continue;
            }
            // One that has something to say, or has ended, is of no use any more.
            if connection.borrow_mut().wire.poll_disturbed(cx).is_pending() {
                return Some(connection);
            }
        }
        None
    }

    /// The same; who finds none is woken when one is put back.
    pub(crate) fn take_or_wait(&self, endpoint: u64, cx: &mut Context<'_>) -> Option<Handle> {
        let found = self.take(endpoint, cx);
        if found.is_none() {
            let mut waiting = self.waiting.borrow_mut();
            let is_known =
                |(id, waker): &(u64, Waker)| *id == endpoint && waker.will_wake(cx.waker());
            if !waiting.iter().any(is_known) {
                waiting.push((endpoint, cx.waker().clone()));
            }
        }
        found
    }

    /// Closes idle connections for those who wait for their places, on whatever core they are.
    pub(crate) fn relieve(&self) {
        self.idle.borrow_mut().retain(|_, list| {
            // With each that goes one less is wanted.
            list.retain(|idle| idle.connection.borrow().wire.wanted() == 0);
            !list.is_empty()
        });
    }

    /// Puts a connection back. It must be between two exchanges.
    pub(crate) fn put(&self, endpoint: u64, connection: Handle) {
        debug_assert_eq!(
            Rc::strong_count(&connection),
            1,
            "nobody else uses an idle connection"
        );
        connection.borrow_mut().wire.release_space();
        if connection.borrow().wire.wanted() > 0 {
            let mut waiting = self.waiting.borrow_mut();
            let here = waiting.extract_if(.., |(id, _)| *id == endpoint);
            let woken: Vec<_> = here.map(|(_, waker)| waker).collect();
            if woken.is_empty() {
                // Whoever waits is on another core, or for another endpoint: the place is of more use than the connection.
                return;
            }
            woken.into_iter().for_each(Waker::wake);
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(endpoint).or_default();
        if list.len() < MOST_IDLE {
            list.push(Idle {
                connection,
                since: self.swept.get(),
            });
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty()
    }

    /// Closes what has been idle for too long. To be called once a second.
    pub(crate) fn sweep(&self) {
        let now = self.swept.get() + 1;
        self.swept.set(now);
        // Those who still wait ask again when they are woken.
        self.waiting
            .borrow_mut()
            .drain(..)
            .for_each(|(_, waker)| waker.wake());
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|idle| now - idle.since < IDLE);
            !list.is_empty()
        });
    }
}
