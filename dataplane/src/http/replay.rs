//! A request's body on its way: counted, and for as long as no endpoint has answered kept, up to a bound, so that it can be
//! sent again.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use crate::body::{Body, Frame, Length};
use crate::error::Error;

/// What is kept of a body at most. Linkerd's and Envoy's figure.
pub(crate) const KEPT: usize = 64 * 1024;

#[derive(Debug)]
struct Shared {
    rest: Body,
    /// Whether what comes is kept.
    keep: bool,
    /// All that came so far, or nothing. Copied, because a small piece of a body may be a slice of a large buffer.
    kept: Vec<u8>,
    /// How much of what is kept the attempt at hand has had.
    next: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    length: Length,
    received: u64,
    starving: bool,
}

impl Shared {
    /// Frees what is kept, once nobody asks for it again and the attempt at hand has had it.
    fn let_go(&mut self) {
        if !self.keep && self.next >= self.kept.len() {
            self.kept = Vec::new();
            self.next = 0;
        }
    }
}

/// Hands out the same body for each attempt, one attempt at a time.
#[derive(Debug, Clone)]
pub(crate) struct Replay(Rc<RefCell<Shared>>);

impl Replay {
    /// Of this body; without `keep` for one attempt only.
    pub(crate) fn new(body: Body, keep: bool) -> Self {
        let length = body.length();
        Self(Rc::new(RefCell::new(Shared {
            rest: body,
            keep,
            kept: Vec::new(),
            next: 0,
            trailers: None,
            ended: false,
            length,
            received: 0,
            starving: false,
        })))
    }

    /// The body from its beginning, if that is still possible.
    pub(crate) fn body(&self) -> Option<Body> {
        self.is_repeatable().then(|| {
            self.0.borrow_mut().next = 0;
            Body::Replayed(Replayed {
                shared: Rc::clone(&self.0),
                done: false,
            })
        })
    }

    /// Whether [`Replay::body`] still gives it.
    pub(crate) fn is_repeatable(&self) -> bool {
        let shared = self.0.borrow();
        shared.received == shared.kept.len() as u64
    }

    /// Whether all of it has come from the client.
    pub(crate) fn is_complete(&self) -> bool {
        let shared = self.0.borrow();
        shared.ended || shared.rest.is_end()
    }

    /// Nobody will ask for it again.
    pub(crate) fn forget(&self) {
        let mut shared = self.0.borrow_mut();
        shared.keep = false;
        shared.let_go();
    }

    /// How many bytes have come from the client.
    pub(crate) fn received(&self) -> u64 {
        self.0.borrow().received
    }

    /// Whether the last who asked for more had to wait for the client.
    pub(crate) fn is_starving(&self) -> bool {
        self.0.borrow().starving
    }
}

/// One attempt's body.
#[derive(Debug)]
pub struct Replayed {
    shared: Rc<RefCell<Shared>>,
    done: bool,
}

impl Replayed {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Error>>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        if self.done {
            return Poll::Ready(None);
        }
        if shared.next < shared.kept.len() {
            let piece = Bytes::copy_from_slice(&shared.kept[shared.next..]);
            shared.next = shared.kept.len();
            shared.let_go();
            return Poll::Ready(Some(Ok(Frame::Data(piece))));
        }
        if shared.ended {
            self.done = true;
            return Poll::Ready(
                shared
                    .trailers
                    .clone()
                    .map(|trailers| Ok(Frame::Trailers(trailers))),
            );
        }
        let polled = shared.rest.poll_frame(cx);
        shared.starving = polled.is_pending();
        let frame = ready!(polled);
        match &frame {
            Some(Ok(Frame::Data(data))) => {
                shared.received += data.len() as u64;
                if shared.keep && shared.kept.len() + data.len() <= KEPT {
                    shared.kept.extend_from_slice(data);
                } else {
                    // What follows is passed on once.
                    shared.keep = false;
                }
                shared.next = shared.kept.len();
                shared.let_go();
            }
            Some(Ok(Frame::Trailers(trailers))) => {
                shared.trailers = Some(trailers.clone());
                shared.ended = true;
                self.done = true;
            }
            Some(Err(_)) => {}
            None => {
                shared.ended = true;
                self.done = true;
            }
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end(&self) -> bool {
        let shared = self.shared.borrow();
        self.done
            || (shared.next >= shared.kept.len()
                && ((shared.ended && shared.trailers.is_none())
                    || (!shared.ended && shared.rest.is_end())))
    }

    pub(crate) fn length(&self) -> Length {
        self.shared.borrow().length
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::poll_fn;

    use super::*;

    /// Data and trailers as text, until it ends or there is nothing to have now.
    async fn read(body: &mut Body) -> String {
        let mut text = String::new();
        poll_fn(|cx| {
            while let Poll::Ready(Some(frame)) = body.poll_frame(cx) {
                match frame.unwrap() {
                    Frame::Data(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                    Frame::Trailers(trailers) => text.push_str(&format!("{trailers:?}")),
                }
            }
            Poll::Ready(())
        })
        .await;
        text
    }

    #[tokio::test]
    async fn a_small_body_can_be_had_again() {
        let replay = Replay::new(Body::Full("hello".into()), true);
        for _ in 0..3 {
            let mut body = replay.body().unwrap();
            assert_eq!(body.length(), Length::Exact(5));
            assert!(!body.is_end());
            assert_eq!(read(&mut body).await, "hello");
            assert!(body.is_end());
        }
        assert_eq!(replay.received(), 5, "counted once");
    }

    #[tokio::test]
    async fn a_body_that_is_not_kept_can_be_had_until_it_is_read() {
        let replay = Replay::new(Body::Full("hello".into()), false);
        drop(replay.body().unwrap());
        assert_eq!(read(&mut replay.body().unwrap()).await, "hello");
        assert!(replay.body().is_none());
    }

    #[tokio::test]
    async fn only_so_much_is_kept() {
        let check = async |length: usize, repeatable: bool| {
            let replay = Replay::new(Body::Full("x".repeat(length).into()), true);
            let mut body = replay.body().unwrap();
            assert_eq!(read(&mut body).await.len(), length);
            assert!(body.is_end());
            assert_eq!(replay.body().is_some(), repeatable, "{length}");
        };
        check(KEPT, true).await;
        check(KEPT + 1, false).await;
    }

    #[tokio::test]
    async fn what_is_forgotten_still_reaches_its_reader() {
        let replay = Replay::new(Body::Full("hello".into()), true);
        read(&mut replay.body().unwrap()).await;
        let mut second = replay.body().unwrap();
        replay.forget();
        assert_eq!(read(&mut second).await, "hello");
        assert!(second.is_end());
        assert_eq!(replay.0.borrow().kept.capacity(), 0);
    }

    #[tokio::test]
    async fn what_was_sent_is_kept_no_longer_than_until_it_is_forgotten() {
        let replay = Replay::new(Body::Full("x".repeat(KEPT).into()), true);
        let mut body = replay.body().unwrap();
        read(&mut body).await;
        assert!(replay.0.borrow().kept.capacity() >= KEPT);
        replay.forget();
        assert_eq!(replay.0.borrow().kept.capacity(), 0);
        assert!(body.is_end() && !replay.is_repeatable());
    }
}
