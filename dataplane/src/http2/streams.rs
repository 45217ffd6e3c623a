//! The exchanges of one connection, polled when something has happened to them.
//!
//! All of them live in the connection's own task, and so does h2's side of it. They wake one another all the time: what h2
//! reads wakes a stream, what a stream sends wakes h2. If each of those woke the task, it would be polled once more for every
//! wake-up, to find that all is done; and a set that allocates a node for each future does so once for each exchange. So
//! whoever is polled here gets the waker of a place, which sets a bit, and wakes the task only when nobody looks at the bits.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::{Either, LocalBoxFuture};

use super::lanes::Running;
use super::server::Ended;

/// Places that an idle connection keeps.
const KEPT: usize = 4;
/// How many places have their bits in one word.
const WORD: usize = u64::BITS as usize;

/// One exchange: in a lane, or a tunnel, which is rare and has a box of its own.
pub(super) type Work = Either<Running, LocalBoxFuture<'static, Ended>>;

/// What has happened since somebody looked.
#[derive(Debug)]
struct Board {
    /// A bit for each place.
    rung: Box<[AtomicU64]>,
    /// The same for the connection.
    connection: AtomicBool,
    /// The task looks, or was woken and is going to.
    awake: AtomicBool,
    task: Mutex<Waker>,
}

impl Board {
    fn is_rung(&self) -> bool {
        self.connection.load(SeqCst) || self.rung.iter().any(|word| word.load(SeqCst) != 0)
    }

    /// Something has happened, which is noted already.
    fn wake(&self) {
        // Who looks away says so first and looks at the bits once more then.
        if !self.awake.load(SeqCst) && !self.awake.swap(true, SeqCst) {
            self.task().wake_by_ref();
        }
    }

    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes what is in one place, and h2's side of the connection where there is no place.
#[derive(Debug)]
struct Bell {
    board: Arc<Board>,
    place: Option<usize>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let was_rung = match self.place {
            Some(place) => {
                let bit = 1 << (place % WORD);
                self.board.rung[place / WORD].fetch_or(bit, SeqCst) & bit != 0
            }
            None => self.board.connection.swap(true, SeqCst),
        };
        if !was_rung {
            self.board.wake();
        }
    }
}

struct Place {
    waker: Waker,
    work: Option<Work>,
}

/// The set.
pub(super) struct Streams {
    board: Arc<Board>,
    connection: Waker,
    /// The task, as the board knows it.
    task: Waker,
    /// Grows to what has been open at a time.
    places: Vec<Place>,
    most: usize,
    free: Vec<usize>,
    /// Bits that were taken from the board and not looked at yet, and the word after theirs.
    taken: u64,
    next: usize,
}

impl Streams {
    /// Room for so many at a time.
    pub(super) fn new(most: usize) -> Self {
        let board = Arc::new(Board {
            rung: (0..most.div_ceil(WORD))
                .map(|_| AtomicU64::new(0))
                .collect(),
            connection: AtomicBool::new(false),
            awake: AtomicBool::new(true),
            task: Mutex::new(Waker::noop().clone()),
        });
        let bell = Bell {
            board: Arc::clone(&board),
            place: None,
        };
        Self {
            connection: Waker::from(Arc::new(bell)),
            task: Waker::noop().clone(),
            board,
            places: Vec::new(),
            most,
            free: Vec::new(),
            taken: 0,
            next: 0,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// The task begins to look: until [`Streams::leave`] nothing that happens wakes it.
    pub(super) fn enter(&mut self, cx: &Context<'_>) {
        self.board.awake.store(true, SeqCst);
        if !self.task.will_wake(cx.waker()) {
            self.task = cx.waker().clone();
            *self.board.task() = self.task.clone();
        }
    }

    /// The task stops looking. What has happened and was not looked at wakes it.
    pub(super) fn leave(&self) {
        self.board.awake.store(false, SeqCst);
        if self.board.is_rung() {
            self.board.wake();
        }
    }

    /// By which h2's side is woken.
    pub(super) fn waker(&self) -> Waker {
        self.connection.clone()
    }

    /// What h2's side was woken for is being looked at.
    pub(super) fn look_at_connection(&self) {
        if self.board.connection.load(SeqCst) {
            self.board.connection.store(false, SeqCst);
        }
    }

    /// Whether something has happened to a stream or to the connection since all were polled.
    pub(super) fn is_rung(&self) -> bool {
        self.board.is_rung()
    }

    /// Adds one, which begins when it is polled. There must be room.
    pub(super) fn push(&mut self, work: Work) {
        let place = self.free.pop().unwrap_or_else(|| {
            let place = self.places.len();
            let bell = Bell {
                board: Arc::clone(&self.board),
                place: Some(place),
            };
            self.places.push(Place {
                waker: Waker::from(Arc::new(bell)),
                work: None,
            });
            place
        });
        self.places[place].work = Some(work);
        self.board.rung[place / WORD].fetch_or(1 << (place % WORD), SeqCst);
    }

    /// Polls each that something has happened to, until one has ended. None when all were polled; those to which something
    /// happened meanwhile are polled the next time.
    pub(super) fn poll_ended(&mut self) -> Option<Ended> {
        loop {
            while self.taken != 0 {
                let bit = self.taken.trailing_zeros() as usize;
                self.taken &= self.taken - 1;
                let place = (self.next - 1) * WORD + bit;
                // Who was here last may still ring.
                let Some(Place {
                    waker,
                    work: Some(work),
                }) = self.places.get_mut(place)
                else {
                    continue;
                };
                let polled = Pin::new(work).poll(&mut Context::from_waker(waker));
                if let Poll::Ready(ended) = polled {
                    self.places[place].work = None;
                    self.free.push(place);
                    return Some(ended);
                }
            }
            let Some(word) = self.board.rung.get(self.next) else {
                self.next = 0;
                return None;
            };
            self.next += 1;
            if word.load(SeqCst) != 0 {
                self.taken = word.swap(0, SeqCst);
            }
        }
    }

    /// There are none: keeps little for the next.
    pub(super) fn rest(&mut self) {
        debug_assert_eq!(self.len(), 0);
        if self.places.len() > KEPT {
            self.places = Vec::new();
            self.free = Vec::new();
        }
    }
}

impl Drop for Streams {
    /// Bells that are still held somewhere hold the board, and must not hold the task.
    fn drop(&mut self) {
        *self.board.task() = Waker::noop().clone();
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("len", &self.len())
            .field("board", &self.board)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use futures_util::FutureExt;

    use super::*;

    /// The connection's task, and how often it was woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    impl Task {
        fn woken(&self) -> usize {
            self.0.swap(0, SeqCst)
        }
    }

    /// An exchange that leaves its waker, counts how often it is polled, and ends when it is told.
    #[derive(Default)]
    struct Exchange {
        waker: RefCell<Option<Waker>>,
        polls: Cell<usize>,
        ends: Cell<bool>,
        wakes_itself: Cell<bool>,
    }

    impl Exchange {
        fn work(self: &Rc<Self>) -> Work {
            let this = Rc::clone(self);
            let future = poll_fn(move |cx| {
                this.polls.set(this.polls.get() + 1);
                *this.waker.borrow_mut() = Some(cx.waker().clone());
                if this.wakes_itself.get() {
                    cx.waker().wake_by_ref();
                }
                match this.ends.get() {
                    true => Poll::Ready(Ended::Whole),
                    false => Poll::Pending,
                }
            });
            Either::Right(future.boxed_local())
        }

        fn waker(&self) -> Waker {
            self.waker.borrow().clone().unwrap()
        }

        fn polled(&self) -> usize {
            self.polls.take()
        }
    }

    /// One look at everything; says how many have ended.
    fn look(streams: &mut Streams, task: &Arc<Task>) -> usize {
        streams.enter(&Context::from_waker(&Waker::from(Arc::clone(task))));
        let ended = std::iter::from_fn(|| streams.poll_ended()).count();
        streams.leave();
        ended
    }

    fn exchanges(streams: &mut Streams, count: usize) -> Vec<Rc<Exchange>> {
        (0..count)
            .map(|_| {
                let exchange = Rc::<Exchange>::default();
                streams.push(exchange.work());
                exchange
            })
            .collect()
    }

    #[test]
    fn each_is_polled_when_something_has_happened_to_it_and_not_else() {
        let (mut streams, task) = (Streams::new(1000), Arc::<Task>::default());
        let all = exchanges(&mut streams, 200);
        assert_eq!(look(&mut streams, &task), 0);
        assert!(all.iter().all(|exchange| exchange.polled() == 1));
        assert_eq!(task.woken(), 0, "nothing has happened since");
        for place in [0, 63, 64, 199] {
            all[place].waker().wake();
            all[place].waker().wake();
        }
        assert_eq!(task.woken(), 1, "once for all of it");
        assert_eq!(look(&mut streams, &task), 0);
        for (place, exchange) in all.iter().enumerate() {
            let is_woken = [0, 63, 64, 199].contains(&place);
            assert_eq!(exchange.polled(), usize::from(is_woken), "{place}");
        }
        assert_eq!(task.woken(), 0);
    }

    #[test]
    fn what_happens_while_the_task_looks_does_not_wake_it_and_is_not_lost() {
        let (mut streams, task) = (Streams::new(100), Arc::<Task>::default());
        let all = exchanges(&mut streams, 2);
        look(&mut streams, &task);
        let waker = Waker::from(Arc::clone(&task));
        streams.enter(&Context::from_waker(&waker));
        all[1].waker().wake();
        streams.waker().wake();
        assert!(streams.is_rung());
        streams.look_at_connection();
        assert_eq!(streams.poll_ended().map(|_| ()), None);
        assert_eq!(all[1].polled(), 2);
        assert!(!streams.is_rung());
        streams.leave();
        assert_eq!(task.woken(), 0, "it has looked at all of it");
        streams.enter(&Context::from_waker(&waker));
        streams.waker().wake();
        streams.leave();
        assert_eq!(task.woken(), 1, "it left before it had looked");
    }

    #[test]
    fn one_that_wakes_itself_waits_until_the_others_had_their_turn() {
        let (mut streams, task) = (Streams::new(100), Arc::<Task>::default());
        let all = exchanges(&mut streams, 2);
        all[0].wakes_itself.set(true);
        for _ in 0..3 {
            look(&mut streams, &task);
            assert_eq!(all[0].polled(), 1, "and not again and again");
            assert_eq!(task.woken(), 1);
        }
        assert_eq!(all[1].polled(), 1);
    }

    #[test]
    fn places_are_used_again_and_who_was_there_before_may_still_ring() {
        let (mut streams, task) = (Streams::new(3), Arc::<Task>::default());
        let first = exchanges(&mut streams, 3);
        assert!(streams.is_full());
        look(&mut streams, &task);
        let late = first[1].waker();
        first[1].ends.set(true);
        late.wake_by_ref();
        assert_eq!(look(&mut streams, &task), 1);
        assert_eq!(streams.len(), 2);
        late.wake_by_ref();
        assert_eq!(look(&mut streams, &task), 0, "nobody is there");
        let second = exchanges(&mut streams, 1);
        assert!(streams.is_full());
        late.wake();
        look(&mut streams, &task);
        assert_eq!(second[0].polled(), 1);
        assert_eq!(first[1].polled(), 2, "what has ended is not polled again");
    }

    #[test]
    fn a_connection_that_was_busy_once_keeps_little_and_still_works() {
        let (mut streams, task) = (Streams::new(100), Arc::<Task>::default());
        let all = exchanges(&mut streams, 100);
        look(&mut streams, &task);
        let late = all[99].waker();
        for exchange in &all {
            exchange.ends.set(true);
            exchange.waker().wake();
        }
        assert_eq!(look(&mut streams, &task), 100);
        streams.rest();
        assert_eq!(streams.places.capacity() + streams.free.capacity(), 0);
        late.wake();
        look(&mut streams, &task);
        let next = exchanges(&mut streams, 1);
        look(&mut streams, &task);
        assert_eq!(next[0].polled(), 1);
    }

    #[test]
    fn whoever_rings_after_the_end_holds_no_task() {
        let (mut streams, task) = (Streams::new(100), Arc::<Task>::default());
        let all = exchanges(&mut streams, 1);
        look(&mut streams, &task);
        let late = all[0].waker();
        assert!(Arc::strong_count(&task) > 1);
        drop(streams);
        assert_eq!(Arc::strong_count(&task), 1);
        late.wake();
        assert_eq!(task.woken(), 0);
    }

    #[test]
    fn no_wake_of_another_thread_is_lost() {
        /// Wakes its thread.
        struct Here(thread::Thread);

        impl Wake for Here {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }

        const RINGS: usize = 20_000;
        let mut streams = Streams::new(100);
        let exchange = &exchanges(&mut streams, 1)[0];
        let waker = Waker::from(Arc::new(Here(thread::current())));
        // Each ring answers the poll before it, so one that is lost ends this test in waiting for ever.
        let (polled, rings) = std::sync::mpsc::sync_channel::<Waker>(1);
        let ringer = thread::spawn(move || rings.into_iter().for_each(Waker::wake));
        let mut seen = 0;
        while seen < RINGS {
            streams.enter(&Context::from_waker(&waker));
            assert!(streams.poll_ended().is_none());
            for _ in 0..exchange.polled() {
                seen += 1;
                polled.send(exchange.waker()).unwrap();
            }
            streams.leave();
            if !streams.is_rung() {
                // A ring since then has left a token, and this returns at once.
                thread::park();
            }
        }
        drop(polled);
        ringer.join().unwrap();
    }
}
