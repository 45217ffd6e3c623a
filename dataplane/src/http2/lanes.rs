//! Places for the exchanges of HTTP/2 connections, used again.
//!
//! An exchange's future is some KiB, and under load each connection begins and ends them by the dozen: an allocation of
//! that size each time costs as much as parsing the request did. So a lane is a future that never ends and runs one exchange
//! after another in the same room. The thread keeps those that are free, for all its connections, up to a bound; an idle
//! connection holds none.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;

use super::server::{Ended, stream};
use crate::error::Error;
use crate::http::Caller;
use crate::http::exchange::Request;

/// Free lanes kept per thread: as many exchanges as a busy connection has at a time.
const FREE_LANES: usize = 128;

thread_local! {
    static FREE: RefCell<Vec<Lane>> = const { RefCell::new(Vec::new()) };
}

/// A request that came on a connection, and whom it came from.
pub(super) struct Job {
    pub(super) caller: Rc<Caller>,
    pub(super) request: Result<Request, Error>,
    pub(super) is_head: bool,
    pub(super) respond: SendResponse<Bytes>,
}

/// Where a lane finds what it is to do, and leaves how that ended.
#[derive(Default)]
struct Desk {
    job: Cell<Option<Job>>,
    ended: Cell<Option<Ended>>,
}

struct Lane {
    desk: Rc<Desk>,
    work: Pin<Box<dyn Future<Output = Infallible>>>,
}

impl Lane {
    fn new() -> Self {
        let desk = Rc::<Desk>::default();
        Self {
            work: Box::pin(work(Rc::clone(&desk))),
            desk,
        }
    }
}

async fn work(desk: Rc<Desk>) -> Infallible {
    loop {
        let job = poll_fn(|_| desk.job.take().map_or(Poll::Pending, Poll::Ready)).await;
        desk.ended.set(Some(stream(job).await));
    }
}

/// One exchange in its lane. Dropping it before its end takes the exchange back.
pub(super) struct Running(Option<Lane>);

impl Running {
    /// Begins when it is polled.
    pub(super) fn new(job: Job) -> Self {
        let lane = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(Lane::new);
        lane.desk.job.set(Some(job));
        Self(Some(lane))
    }
}

impl Future for Running {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let Some(lane) = &mut self.0 else {
            return Poll::Pending;
        };
        // It waits for its next job when this one has ended.
        let _: Poll<Infallible> = lane.work.as_mut().poll(cx);
        let Some(ended) = lane.desk.ended.take() else {
            return Poll::Pending;
        };
        if let Some(lane) = self.0.take() {
            FREE.with_borrow_mut(|free| {
                if free.len() < FREE_LANES {
                    free.push(lane);
                }
            });
        }
        Poll::Ready(ended)
    }
}
