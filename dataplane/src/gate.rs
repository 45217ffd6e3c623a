//! How many of something there may be at a time, and a short line for those that come beyond that.
//!
//! One number for all cores, so that a limit is a limit and not a share of one per core. Entering is one atomic operation
//! while there is room. Whoever finds none may stand in line, which is bounded: places that are given back go to the
//! one who waits longest, whatever core it is on, and nobody who comes later gets past the line. How *long* somebody
//! waits is the caller's matter: dropping the [`Wait`] leaves the line.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// More than there will ever be: no limit.
pub const NO_LIMIT: usize = usize::MAX >> 1;

/// A limit and those who wait for it.
#[derive(Debug)]
pub struct Gate {
    /// How many may be inside.
    most: AtomicUsize,
    /// How many may wait.
    longest: AtomicUsize,
    inside: AtomicUsize,
    /// The length of the line, to be looked at without its lock.
    waiting: AtomicUsize,
    /// Guards the order of those who wait. Taken only when somebody waits or wants to.
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    /// In the order of their numbers, which is that of their arrival.
    waiting: VecDeque<(u64, Option<Waker>)>,
    /// Those who have a place and have not noticed yet.
    called: HashSet<u64>,
}

/// The line is as long as it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineFull;

impl Gate {
    /// For so many inside and so many in line.
    pub fn new(most: usize, longest: usize) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(most),
            longest: AtomicUsize::new(longest),
            inside: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
        })
    }

    /// From now on these are the bounds. Whoever is inside stays, also beyond a lower one.
    pub fn limit(&self, most: usize, longest: usize) {
        let unchanged = self.most.load(Relaxed) == most && self.longest.load(Relaxed) == longest;
        if unchanged {
            return;
        }
        self.longest.store(longest, Relaxed);
        self.most.store(most, SeqCst);
        self.call();
    }

    /// How many may be inside.
    pub fn most(&self) -> usize {
        self.most.load(Relaxed)
    }

    /// How many are inside now.
    pub fn inside(&self) -> usize {
        self.inside.load(Relaxed)
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// A place, if there is one and nobody waits for it.
    pub fn enter(self: &Arc<Self>) -> Option<Slot> {
        if self.waiting.load(Relaxed) > 0 {
            return None;
        }
        if self.inside.fetch_add(1, SeqCst) < self.most.load(Relaxed) {
            return Some(Slot(Arc::clone(self)));
        }
        self.leave();
        None
    }

    /// The end of the line, unless it is too long.
    pub fn wait(self: &Arc<Self>) -> Result<Wait, LineFull> {
        let number = {
            let mut line = self.lock();
            if line.waiting.len() >= self.longest.load(Relaxed) {
                return Err(LineFull);
            }
            let number = line.next;
            line.next += 1;
            line.waiting.push_back((number, None));
            self.waiting.store(line.waiting.len(), SeqCst);
            number
        };
        // Stores the length of the line and looks for room; whoever leaves gives room and looks at the line. One of the
        // two sees the other, so no place is left empty with somebody waiting for it.
        self.call();
        Ok(Wait {
            gate: Arc::clone(self),
            number,
            ended: false,
        })
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.call();
        }
    }

    /// Gives the places that are free to those who wait, in order.
    fn call(&self) {
        let mut wakers = Vec::new();
        {
            let mut line = self.lock();
            while !line.waiting.is_empty() && self.try_enter() {
                if let Some((number, waker)) = line.waiting.pop_front() {
                    line.called.insert(number);
                    wakers.extend(waker);
                }
            }
            self.waiting.store(line.waiting.len(), SeqCst);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn try_enter(&self) -> bool {
        let most = self.most.load(SeqCst);
        let enter = |inside: usize| (inside < most).then_some(inside + 1);
        self.inside.fetch_update(SeqCst, SeqCst, enter).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // What it guards is whole between any two statements.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place inside, given back when dropped.
#[derive(Debug)]
pub struct Slot(Arc<Gate>);

impl Slot {
    /// Where it is a place of.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Somebody in line; ready with a place. Dropping it leaves the line, and gives a place back that has just come.
#[derive(Debug)]
#[must_use = "whoever drops it does not wait"]
pub struct Wait {
    gate: Arc<Gate>,
    number: u64,
    ended: bool,
}

impl Future for Wait {
    type Output = Slot;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Slot> {
        let gate = Arc::clone(&self.gate);
        let mut line = gate.lock();
        if line.called.remove(&self.number) {
            drop(line);
            self.ended = true;
            return Poll::Ready(Slot(gate));
        }
        if let Ok(at) = line
            .waiting
            .binary_search_by_key(&self.number, |(number, _)| *number)
            && let Some((_, waker)) = line.waiting.get_mut(at)
        {
            match waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                waker => *waker = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut line = self.gate.lock();
        if line.called.remove(&self.number) {
            drop(line);
            self.gate.leave();
            return;
        }
        if let Ok(at) = line
            .waiting
            .binary_search_by_key(&self.number, |(number, _)| *number)
        {
            line.waiting.remove(at);
            self.gate.waiting.store(line.waiting.len(), SeqCst);
        }
        drop(line);
        // The one behind may be first now, or the last have gone, with room that newcomers were kept from.
        self.gate.call();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    fn poll(wait: &mut Wait) -> Option<Slot> {
        match Pin::new(wait).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => Some(place),
            Poll::Pending => None,
        }
    }

    #[test]
    fn there_are_as_many_places_as_it_says() {
        let gate = Gate::new(2, 0);
        let (first, second) = (gate.enter().unwrap(), gate.enter().unwrap());
        assert!(gate.enter().is_none());
        assert_eq!(gate.inside(), 2, "who found no room takes none");
        drop(first);
        let third = gate.enter().unwrap();
        assert!(gate.enter().is_none());
        drop((second, third));
        assert_eq!(gate.inside(), 0);
    }

    #[test]
    fn a_place_goes_to_the_one_who_waits_longest_and_to_nobody_past_the_line() {
        let gate = Gate::new(1, 2);
        let inside = gate.enter().unwrap();
        let (mut first, mut second) = (gate.wait().unwrap(), gate.wait().unwrap());
        assert_eq!(gate.wait().err(), Some(LineFull), "as long as it may be");
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(
            Pin::new(&mut first)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        assert!(poll(&mut second).is_none());
        drop(inside);
        assert!(woken.0.load(SeqCst));
        assert!(gate.enter().is_none(), "it is the first one's");
        assert!(poll(&mut second).is_none());
        let place = poll(&mut first).unwrap();
        assert_eq!((gate.inside(), gate.waiting()), (1, 1));
        drop(place);
        drop(poll(&mut second).unwrap());
        assert_eq!((gate.inside(), gate.waiting()), (0, 0));
    }

    #[test]
    fn who_gives_up_leaves_the_line_and_the_place_that_has_just_come() {
        let gate = Gate::new(1, 3);
        let inside = gate.enter().unwrap();
        let (first, second, mut third) = (
            gate.wait().unwrap(),
            gate.wait().unwrap(),
            gate.wait().unwrap(),
        );
        drop(second);
        assert_eq!(gate.waiting(), 2);
        drop(inside);
        assert!(poll(&mut third).is_none(), "it was the first one's turn");
        drop(first);
        drop(poll(&mut third).unwrap());
        assert_eq!((gate.inside(), gate.waiting()), (0, 0));
    }

    #[test]
    fn a_higher_limit_lets_in_who_waits() {
        let gate = Gate::new(1, 1);
        let _inside = gate.enter().unwrap();
        let mut wait = gate.wait().unwrap();
        gate.limit(2, 1);
        assert!(poll(&mut wait).is_some());
        gate.limit(1, 1);
        assert!(gate.enter().is_none());
    }

    #[test]
    fn cores_count_exactly_and_nobody_is_forgotten() {
        const MOST: usize = 3;
        let gate = Gate::new(MOST, 64);
        let inside = AtomicUsize::new(0);
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let tasks = tokio::task::LocalSet::new();
                    runtime().block_on(tasks.run_until(async {
                        let one = async |round: u32| {
                            let place = match gate.enter() {
                                Some(place) => place,
                                None => gate.wait().unwrap().await,
                            };
                            assert!(inside.fetch_add(1, SeqCst) < MOST);
                            for _ in 0..round % 3 {
                                tokio::task::yield_now().await;
                            }
                            inside.fetch_sub(1, SeqCst);
                            drop(place);
                        };
                        for round in 0..3_000 {
                            // Some of those who wait give up in between.
                            let first = one(round);
                            let second = one(round + 1);
                            tokio::join!(first, second);
                            if let Ok(wait) = gate.wait() {
                                drop(wait);
                            }
                        }
                    }));
                });
            }
        });
        assert_eq!((gate.inside(), gate.waiting()), (0, 0));
    }
}
