//! Connections to endpoints in the middle of exchanges that their clients took back.
//!
//! A client that resets a stream may open another one at once, but the endpoint works on what was taken back until it
//! notices. If the stream's place were free before that, a client could have many times the streams that it was granted
//! worked on. So such a connection is not just dropped: it is ended on our side, and the place is kept until the endpoint
//! has ended it on its own, or has begun to answer, which it is then told that nobody wants.
//!
//! Which connections those are is known only where the exchange is dropped, deep below the stream that it belongs to. They
//! are handed up through the thread: [`collect`] drops the exchange, and what lets go of a connection meanwhile notes it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::{Handle, Peer};
use crate::timer::Timer;

/// How long an endpoint may go on with what was taken back, as far as the stream's place is concerned. Many servers only look
/// for the end of a connection when they answer; a client whose places they hold waits no longer than for a slow answer.
const MOST: Duration = Duration::from_secs(10);
/// The same where nothing tells when the endpoint has stopped: HTTP/2 has no answer to a reset. The peer's sidecar holds
/// a place of its own until its app has ended.
const UNTOLD: Duration = Duration::from_millis(100);

thread_local! {
    static NOTED: RefCell<Option<Vec<Handle>>> = const { RefCell::new(None) };
}

/// What was in the middle of an exchange when that was dropped.
#[derive(Debug, Default)]
#[must_use = "the stream's place is to be kept until they are gone"]
pub(crate) struct Parted(Vec<Handle>);

/// Runs what gives an exchange up.
pub(crate) fn collect(give_up: impl FnOnce()) -> Parted {
    NOTED.set(Some(Vec::new()));
    give_up();
    Parted(NOTED.take().unwrap_or_default())
}

/// A connection was let go of in the middle of an exchange.
pub(super) fn note(connection: &Handle) {
    NOTED.with_borrow_mut(|noted| {
        if let Some(noted) = noted {
            noted.push(Rc::clone(connection));
        }
    });
}

/// A connection to an endpoint from a request's first byte to the head of its answer.
#[derive(Debug)]
pub(super) struct Engaged<'a>(Option<&'a Handle>);

impl<'a> Engaged<'a> {
    pub(super) fn new(connection: &'a Handle) -> Self {
        Self(Some(connection))
    }

    /// The answer is there.
    pub(super) fn answered(mut self) {
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
    /// Until the endpoints have stopped, as far as they show it. Dropping the future closes the connections.
    pub(crate) async fn gone(mut self) {
        if self.0.is_empty() {
            return tokio::time::sleep(UNTOLD).await;
        }
        let mut timer = Timer::new();
        timer.set(Instant::now() + MOST);
        poll_fn(|cx| {
            self.0
                .retain(|connection| poll_gone(connection, cx).is_pending());
            if self.0.is_empty() {
                return Poll::Ready(());
            }
            timer.poll_expired(cx)
        })
        .await;
    }
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
            let parted = collect(|| drop(Engaged::new(&connection)));
            drop(connection);
            let mut gone = std::pin::pin!(parted.gone());
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

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_never_ends_keeps_no_place_for_ever() {
        let (connection, _theirs) = pair().await;
        let parted = collect(|| drop(Engaged::new(&connection)));
        let start = Instant::now();
        parted.gone().await;
        assert!((MOST..MOST * 2).contains(&start.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_answered_or_never_asked_is_not_waited_for() {
        let (connection, _theirs) = pair().await;
        let parted = collect(|| Engaged::new(&connection).answered());
        let start = Instant::now();
        parted.gone().await;
        assert!((UNTOLD..UNTOLD * 2).contains(&start.elapsed()));
        // Nothing is noted where nobody collects.
        drop(Engaged::new(&connection));
        assert_eq!(Rc::strong_count(&connection), 1);
    }
}
