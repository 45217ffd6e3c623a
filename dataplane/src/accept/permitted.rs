//! Connections that were let in for a time: when the time is over, so are they.
//!
//! Bytes that nobody looks at end at that moment, by a reset. An HTTP connection is told why, by an answer to each request
//! that comes after it; what began before, a WebSocket too, has [`LAST`] to come to its end.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use crate::core::Core;
use crate::plan::Site;

/// What HTTP has for its last exchanges, as in a drain.
const LAST: Duration = Duration::from_secs(30);
/// How long the clock is trusted to go on as it does: somebody may set it.
const LOOK: Duration = Duration::from_secs(10);

/// A connection that was let in for a time.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    core: &'a Core,
    listener: Arc<str>,
    from: SocketAddr,
    original: SocketAddr,
}

impl<'a> Guest<'a> {
    /// Nothing for one that is here for as long as it likes, or that was not let in.
    pub(crate) fn of(
        core: &'a Core,
        site: &Site,
        from: SocketAddr,
        original: Option<SocketAddr>,
    ) -> Option<Self> {
        let original = original?;
        let until = site.permitted_until(original)?;
        (SystemTime::now() < until).then(|| Self {
            core,
            listener: Arc::clone(&site.name),
            from,
            original,
        })
    }

    /// Goes on with its exchanges for as long as they may go on. What is under way then is dropped where it is, and nobody takes
    /// the part of an answer for all of it: where only the connection's end would say so, it ends by a reset.
    pub(super) async fn converses(&self, work: Pin<&mut impl Future<Output = ()>>) {
        let over = async {
            self.over().await;
            sleep(LAST).await;
        };
        tokio::select! {
            () = work => {}
            () = over => self.told(),
        }
    }

    /// The time is over; by the plan of that moment, which may have given it more.
    async fn over(&self) {
        loop {
            let plan = self.core.plan();
            let site = plan.site(&self.listener);
            let until = site.and_then(|site| site.permitted_until(self.original));
            drop(plan);
            // A reload that takes the permission back leaves alone what has begun, as every reload does.
            let Some(until) = until else {
                return pending().await;
            };
            match until.duration_since(SystemTime::now()) {
                Ok(left) if !left.is_zero() => sleep(left.min(LOOK)).await,
                _ => return,
            }
        }
    }

    fn told(&self) {
        tracing::info!(listener = %self.listener, peer = %self.from, port = self.original.port(),
            "ended a connection: the time in which plaintext was let in is over");
    }
}

/// Goes on with a connection whose bytes are not looked at, to its end: nothing when its time was over before that.
pub(crate) async fn while_permitted<T>(
    guest: Option<Guest<'_>>,
    work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    let Some(guest) = guest else {
        return Some(work.await);
    };
    tokio::select! {
        done = work => Some(done),
        () = guest.over() => {
            guest.told();
            None
        }
    }
}
