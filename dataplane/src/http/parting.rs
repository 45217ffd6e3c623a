//! Exchanges that their clients took back or broke off, or that ran out of time, while an endpoint worked on them.
//!
//! A client that resets a stream may open another one at once, but the endpoint works on what was taken back until it
//! notices. If the stream's place were free before that, a client could have many times the streams that it was granted
//! worked on. So the place is kept until the endpoint has stopped, as far as that can be known:
//!
//! * A connection of HTTP/1.1 is not just dropped: it is ended on our side, and the endpoint has stopped when it has ended it
//!   on its own, or has begun to answer, which it is then told that nobody wants.
//! * To the reset of a stream HTTP/2 has no answer. The endpoint has stopped when it has answered something that it was asked
//!   after the reset, and when it has had twice the time that its slowest answers take lately, and as long again as it was
//!   waited for. So what is taken back costs a client about as much as waiting would have. A stranger's connection has this
//!   as often as it may take anything back at all at first ([`Resets`]), later for one in ten of its exchanges that an
//!   endpoint answers, and ten seconds beyond.
//!
//! Which endpoints those are is known only where the exchange is dropped, deep below the stream that it belongs to. They
//! are handed up through the thread: [`collect`] drops the exchange, and what is let go of meanwhile notes it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::http1::{Handle, Peer};
use crate::http2::resets::Resets;
use crate::plan::Site;
use crate::timer::Timer;

/// How long an endpoint may go on with what was taken back, as far as the stream's place is concerned. Many servers only look
/// for the end of a connection when they answer; a client whose places they hold waits no longer than for a slow answer.
const MOST: Duration = Duration::from_secs(10);
/// For how long a place is kept in any case: a word to an endpoint takes its time, too.
const LEAST: Duration = Duration::from_millis(100);

/// So many exchanges that an endpoint answers make up for one place that is given back early.
const FOR_ONE: u32 = 10;

thread_local! {
    static NOTED: RefCell<Option<Parted>> = const { RefCell::new(None) };
}

/// What endpoints may still be working on.
#[derive(Debug, Default)]
#[must_use = "the stream's place is to be kept until they are done"]
pub(crate) struct Parted {
    connections: Vec<Handle>,
    streams: Vec<Abandoned>,
}

/// What an endpoint was asked on a stream of HTTP/2 that was reset before it was answered.
#[derive(Debug, Clone)]
pub(crate) struct Abandoned {
    endpoint: Arc<Endpoint>,
    /// When it was reset.
    left: Instant,
    /// How long the answer had been waited for.
    waited: Duration,
}

/// Runs what gives an exchange up, or may do so.
pub(crate) fn collect<T>(give_up: impl FnOnce() -> T) -> (T, Parted) {
    /// Puts back what somebody around us has collected so far, also after a panic.
    struct Around(Option<Parted>);
    impl Drop for Around {
        fn drop(&mut self) {
            NOTED.set(self.0.take());
        }
    }
    let around = Around(NOTED.replace(Some(Parted::default())));
    let outcome = give_up();
    let parted = NOTED.take().unwrap_or_default();
    drop(around);
    (outcome, parted)
}

/// A connection of HTTP/1.1 was let go of in the middle of an exchange.
pub(crate) fn note(connection: &Handle) {
    NOTED.with_borrow_mut(|noted| {
        if let Some(noted) = noted {
            noted.connections.push(Rc::clone(connection));
        }
    });
}

/// A stream of HTTP/2 was let go of before it was answered.
pub(crate) fn note_stream(stream: Abandoned) {
    NOTED.with_borrow_mut(|noted| {
        if let Some(noted) = noted {
            noted.streams.push(stream);
        }
    });
}

/// A connection of HTTP/1.1 to an endpoint from a request's first byte to the head of its answer.
#[derive(Debug)]
pub(crate) struct Engaged<'a>(Option<&'a Handle>);

impl<'a> Engaged<'a> {
    pub(crate) fn new(connection: &'a Handle) -> Self {
        Self(Some(connection))
    }

    /// The answer is there.
    pub(crate) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Engaged<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            note(connection);
        }
    }
}

impl Parted {
    pub(crate) fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.streams.is_empty()
    }

    /// These and others.
    pub(crate) fn and(mut self, others: Self) -> Self {
        self.connections.extend(others.connections);
        self.streams.extend(others.streams);
        self
    }

    /// Until the endpoints have stopped, as far as they show it. `early` is asked before a place is given back that an endpoint
    /// of HTTP/2 may still need. Dropping the future closes the connections.
    pub(crate) async fn gone(self, early: impl Fn() -> bool) {
        if self.is_empty() {
            return tokio::time::sleep(LEAST).await;
        }
        ended(self.connections).await;
        // One after another, since each has its own time and none begins late.
        for stream in &self.streams {
            stream.over(&early).await;
        }
    }
}

/// Until the endpoints have ended these connections or have said anything, or for as long as that is waited for.
async fn ended(mut connections: Vec<Handle>) {
    let mut timer = Timer::new();
    timer.set(Instant::now() + MOST);
    poll_fn(|cx| {
        connections.retain(|connection| poll_gone(connection, cx).is_pending());
        if connections.is_empty() {
            return Poll::Ready(());
        }
        timer.poll_expired(cx)
    })
    .await;
}

/// Ends our side, and waits for the endpoint to end its own or to say anything.
fn poll_gone(connection: &Handle, cx: &mut Context<'_>) -> Poll<()> {
    let Ok(mut connection) = connection.try_borrow_mut() else {
        return Poll::Ready(());
    };
    debug_assert_eq!(connection.peer, Peer::Endpoint);
    let wire = &mut connection.wire;
    // Not what is staged: what did not leave yet is not wanted any more.
    let _: Poll<Result<(), _>> = Pin::new(wire.io()).poll_shutdown(cx);
    wire.poll_fill(cx).map(drop)
}

/// How often a connection's places may be given back before ten seconds are over though nothing shows that the endpoint has
/// stopped. It may work on some things for long and answer others at once.
#[derive(Debug, Default)]
pub(crate) struct Early {
    left: RefCell<Option<Resets>>,
    /// Exchanges since the last that gave one back.
    answered: Cell<u32>,
}

impl Early {
    /// An exchange went to its end, with an answer of an endpoint. A part of them gives back what one may take: whoever has
    /// many may change their mind more often, and yet it takes much to have little in hand.
    pub(super) fn answered(&self) {
        if let Some(left) = &mut *self.left.borrow_mut() {
            let answered = self.answered.get() + 1;
            self.answered.set(answered % FOR_ONE);
            if answered == FOR_ONE {
                left.completed();
            }
        }
    }

    /// Whether one may be given back once more.
    pub(super) fn once_more(&self, site: &Site) -> bool {
        // Members of the mesh speak for many, and are no strangers.
        !site.paces_uploads || {
            let now = Instant::now().into_std();
            let mut left = self.left.borrow_mut();
            left.get_or_insert_with(|| Resets::new(site.http2.streams, now))
                .taken_back(|| now)
        }
    }
}

impl Abandoned {
    /// Of an endpoint that was asked then, and is reset now.
    pub(crate) fn new(endpoint: &Arc<Endpoint>, asked: std::time::Instant) -> Self {
        let left = Instant::now();
        Self {
            endpoint: Arc::clone(endpoint),
            left,
            waited: left.into_std().saturating_duration_since(asked),
        }
    }

    /// The same where nothing that is heard here tells when it stops.
    pub(crate) fn untold(self) -> Self {
        Self {
            waited: MOST,
            ..self
        }
    }

    /// Whether the endpoint may be working on it still, for all that can be known.
    pub(crate) fn lasts(&self, now: std::time::Instant) -> bool {
        let after = now.saturating_duration_since(self.left.into_std());
        after < LEAST || (after < MOST && !self.is_over(after))
    }

    /// Until the endpoint has stopped, for all that can be known, or for as long as that is waited for.
    async fn over(&self, early: impl Fn() -> bool) {
        let mut after = LEAST;
        loop {
            tokio::time::sleep_until(self.left + after).await;
            if after >= MOST {
                return;
            }
            // Looked at seldom: a place is kept for twice as long as it need be at most.
            after = match self.is_over(after) {
                true if early() => return,
                true => MOST,
                false => (2 * after).min(MOST),
            };
        }
    }

    fn is_over(&self, after: Duration) -> bool {
        let slowest = &self.endpoint.slowest;
        after >= self.waited
            && slowest.lately().is_some_and(|took| after >= 2 * took)
            && slowest.has_answered_since(self.left.into_std())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::accept::Io;
    use crate::http1::Connection;

    /// What is left when this is given up.
    fn left_by(give_up: impl FnOnce()) -> Parted {
        collect(give_up).1
    }

    async fn pair() -> (Handle, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        let connection = Connection::new(Io::plain(ours), Peer::Endpoint);
        (Rc::new(RefCell::new(connection)), theirs)
    }

    #[tokio::test]
    async fn a_place_is_kept_until_the_endpoint_has_ended() {
        for answers in [false, true] {
            let (connection, mut theirs) = pair().await;
            let parted = left_by(|| drop(Engaged::new(&connection)));
            drop(connection);
            let mut gone = std::pin::pin!(parted.gone(|| true));
            let early = timeout(Duration::from_millis(300), gone.as_mut()).await;
            assert!(early.is_err(), "the endpoint is still at work");
            // It was told, and may be told more.
            assert_eq!(theirs.read(&mut [0; 8]).await.unwrap(), 0);
            if answers {
                theirs.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            } else {
                drop(theirs);
            }
            timeout(Duration::from_secs(5), gone).await.unwrap();
        }
    }

    /// How long the place is kept.
    async fn kept(parted: Parted) -> Duration {
        let start = Instant::now();
        parted.gone(|| true).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_never_ends_keeps_no_place_for_ever() {
        let (connection, _theirs) = pair().await;
        let parted = left_by(|| drop(Engaged::new(&connection)));
        assert!((MOST..MOST * 2).contains(&kept(parted).await));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_answered_or_never_asked_is_not_waited_for() {
        let (connection, _theirs) = pair().await;
        let parted = left_by(|| Engaged::new(&connection).answered());
        assert!((LEAST..LEAST * 2).contains(&kept(parted).await));
        // Nothing is noted where nobody collects.
        drop(Engaged::new(&connection));
        assert_eq!(Rc::strong_count(&connection), 1);
    }

    #[tokio::test]
    async fn what_is_collected_within_is_not_lost_around() {
        let (first, _theirs) = pair().await;
        let (second, _theirs) = pair().await;
        let around = left_by(|| {
            drop(Engaged::new(&first));
            let within = left_by(|| drop(Engaged::new(&second)));
            assert_eq!(within.connections.len(), 1);
            let panics = std::panic::catch_unwind(|| collect(|| panic!("given up")));
            assert!(panics.is_err());
        });
        assert_eq!(around.connections.len(), 1);
        assert!(Rc::ptr_eq(&around.connections[0], &first));
        assert!(NOTED.take().is_none(), "nobody collects any more");
    }

    fn endpoint() -> Arc<Endpoint> {
        Endpoint::new("10.0.0.1:80".parse().unwrap())
    }

    fn now() -> std::time::Instant {
        Instant::now().into_std()
    }

    /// An answer that takes so long, from now on.
    async fn answers(endpoint: &Endpoint, took: Duration) {
        let asked = now();
        tokio::time::sleep(took).await;
        endpoint.slowest.answered(asked, Some(took));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_at_http2_is_kept_as_long_as_the_endpoint_answers_nothing() {
        for knows in [false, true] {
            let endpoint = endpoint();
            if knows {
                answers(&endpoint, Duration::from_millis(5)).await;
            }
            let parted = left_by(|| note_stream(Abandoned::new(&endpoint, now())));
            assert_eq!(kept(parted).await.as_secs(), MOST.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_at_http2_is_kept_for_twice_the_slowest_answer() {
        for (slowest, wanted) in [
            (5, 100),
            (60, 200),
            (700, 1600),
            (3000, 6400),
            (6000, 10_000),
        ] {
            let endpoint = endpoint();
            answers(&endpoint, Duration::from_millis(slowest)).await;
            let parted = left_by(|| note_stream(Abandoned::new(&endpoint, now())));
            let later = async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                answers(&endpoint, Duration::from_millis(1)).await;
            };
            let (kept, ()) = tokio::join!(kept(parted), later);
            let wanted = Duration::from_millis(wanted);
            assert!(
                (wanted..wanted + Duration::from_millis(20)).contains(&kept),
                "{slowest} ms: {kept:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_waited_for_is_given_as_long_again() {
        let endpoint = endpoint();
        let asked = now();
        tokio::time::sleep(Duration::from_millis(3000)).await;
        let parted = left_by(|| note_stream(Abandoned::new(&endpoint, asked)));
        tokio::time::sleep(Duration::from_millis(2)).await;
        answers(&endpoint, Duration::from_millis(1)).await;
        let kept = kept(parted).await;
        assert!(
            (Duration::from_millis(3000)..MOST).contains(&kept),
            "{kept:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_may_have_left_several_behind() {
        let (one, other) = (endpoint(), endpoint());
        answers(&one, Duration::from_millis(1)).await;
        answers(&other, Duration::from_millis(1)).await;
        let parted = left_by(|| note_stream(Abandoned::new(&one, now())));
        let parted = parted.and(left_by(|| note_stream(Abandoned::new(&other, now()))));
        tokio::time::sleep(Duration::from_millis(2)).await;
        // This one shows that it goes on, the other shows nothing.
        answers(&one, Duration::from_millis(1)).await;
        assert!(kept(parted).await + Duration::from_millis(5) >= MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_has_only_so_many_places_back_early() {
        let mut site = crate::testing::site("public", "127.0.0.1:80".parse().unwrap());
        let early = Early::default();
        let count = || (0..1_000).take_while(|_| early.once_more(&site)).count();
        assert_eq!(count(), 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(count(), 20);
        // Ten exchanges that were answered make up for one.
        (0..9).for_each(|_| early.answered());
        assert_eq!(count(), 0);
        (0..11).for_each(|_| early.answered());
        assert_eq!(count(), 2);
        // Then it is ten seconds.
        let endpoint = endpoint();
        answers(&endpoint, Duration::from_millis(1)).await;
        let parted = left_by(|| note_stream(Abandoned::new(&endpoint, now())));
        tokio::time::sleep(Duration::from_millis(2)).await;
        answers(&endpoint, Duration::from_millis(1)).await;
        let start = Instant::now();
        parted.gone(|| false).await;
        assert!(start.elapsed() + Duration::from_millis(5) >= MOST);
        site.paces_uploads = false;
        assert_eq!(
            (0..1_000).take_while(|_| early.once_more(&site)).count(),
            1_000
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_member_keeps_is_known_without_waiting_for_it() {
        let endpoint = endpoint();
        answers(&endpoint, Duration::from_millis(300)).await;
        let stream = Abandoned::new(&endpoint, now());
        tokio::time::sleep(Duration::from_millis(2)).await;
        answers(&endpoint, Duration::from_millis(1)).await;
        let after = |millis| stream.lasts(stream.left.into_std() + Duration::from_millis(millis));
        // Rounded up, the slowest took a millisecond more.
        assert_eq!([0, 99, 601].map(after), [true; 3]);
        assert_eq!([602, 9_999, 10_000].map(after), [false; 3]);
        let silent = Abandoned::new(&self::endpoint(), now());
        let untold = stream.untold();
        for stream in [&silent, &untold] {
            let after =
                |millis| stream.lasts(stream.left.into_std() + Duration::from_millis(millis));
            assert_eq!([0, 9_999, 10_000].map(after), [true, true, false]);
        }
    }
}
