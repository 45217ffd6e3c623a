//! A request body that can be sent again: what was sent is kept, up to a bound, until the endpoint has answered.
//!
//! It also knows whether the client is the one who is waited for: an endpoint that cannot answer because the request does
//! not arrive is not to blame.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;

use crate::body::{Body, Frame, Length};
use crate::error::Error;

/// What is kept of a body at most. Linkerd's and Envoy's figure.
const KEPT: usize = 64 * 1024;

#[derive(Debug)]
struct Shared {
    rest: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More came than is kept: what follows is passed on once and cannot be sent again.
    overflowed: bool,
    length: Length,
    /// What is kept at most.
    most: usize,
    /// The client has more to send and we wait for it.
    starved: bool,
    /// When the last piece came that we had to wait for.
    progress: Option<Instant>,
}

/// Hands out the same body for each attempt.
#[derive(Debug)]
pub(crate) struct Replay(Rc<RefCell<Shared>>);

impl Replay {
    /// Of a body that is kept, or, when it will not be sent again anyway, only watched.
    pub(crate) fn new(body: Body, kept: bool) -> Self {
        let length = body.length();
        Self(Rc::new(RefCell::new(Shared {
            rest: body,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            ended: false,
            overflowed: false,
            length,
            most: if kept { KEPT } else { 0 },
            starved: false,
            progress: None,
        })))
    }

    /// Whether everything that the client has sent was passed on, and more is to come.
    pub(crate) fn is_starved(&self) -> bool {
        self.0.borrow().starved
    }

    /// When the last piece came that we had to wait for.
    pub(crate) fn progress(&self) -> Option<Instant> {
        self.0.borrow().progress
    }

    /// The body from its beginning, if that is still possible.
    pub(crate) fn body(&self) -> Option<Body> {
        if self.0.borrow().overflowed {
            return None;
        }
        Some(Body::Replayed(Replayed {
            shared: Rc::clone(&self.0),
            next: 0,
            done: false,
        }))
    }
}

/// One attempt's body.
#[derive(Debug)]
pub struct Replayed {
    shared: Rc<RefCell<Shared>>,
    next: usize,
    done: bool,
}

impl Replayed {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Error>>> {
        let mut shared = self.shared.borrow_mut();
        if self.done {
            return Poll::Ready(None);
        }
        if let Some(piece) = shared.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::Data(piece.clone()))));
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
        let Poll::Ready(frame) = shared.rest.poll_frame(cx) else {
            shared.starved = true;
            return Poll::Pending;
        };
        if std::mem::take(&mut shared.starved) {
            shared.progress = Some(Instant::now());
        }
        match &frame {
            Some(Ok(Frame::Data(data))) => {
                shared.kept_bytes += data.len();
                if shared.kept_bytes > shared.most {
                    shared.overflowed = true;
                    shared.kept.clear();
                    self.next = 0;
                } else {
                    shared.kept.push(data.clone());
                    self.next += 1;
                }
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
            || (self.next >= shared.kept.len()
                && ((shared.ended && shared.trailers.is_none())
                    || (!shared.ended && shared.rest.is_end())))
    }

    pub(crate) fn length(&self) -> Length {
        self.shared.borrow().length
    }
}
