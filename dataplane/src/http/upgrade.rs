//! Tunnels: after a 101 that was asked for, bytes both ways until both sides have ended.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::core::Seat;
use crate::http1::Handle;
use crate::timer::Timer;

/// Runs a tunnel to its end. Each direction ends by itself (half-close), the whole when it is idle for too long or one
/// side fails. What was received behind either head is not lost.
pub(crate) async fn tunnel(
    client: &Handle,
    endpoint: &Handle,
    timer: &mut Timer,
    idle: Duration,
    seat: &Seat,
) {
    let mut up = Direction {
        from: client,
        to: endpoint,
        ended: false,
        moved: 0,
    };
    let mut down = Direction {
        from: endpoint,
        to: client,
        ended: false,
        moved: 0,
    };
    timer.set(Instant::now() + idle);
    let mut moved = 0;
    poll_fn(|cx| {
        seat.wake_at_drain(cx);
        let failed = up.poll(cx).is_err() || down.poll(cx).is_err();
        if failed || (up.ended && down.ended) {
            return Poll::Ready(());
        }
        if up.moved + down.moved != moved {
            moved = up.moved + down.moved;
            timer.set(Instant::now() + idle);
        }
        timer.poll_expired(cx)
    })
    .await;
}

struct Direction<'a> {
    from: &'a Handle,
    to: &'a Handle,
    ended: bool,
    moved: u64,
}

impl Direction<'_> {
    /// Moves what can be moved now.
    fn poll(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        while !self.ended {
            match self.poll_piece(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.to.borrow_mut().wire.poll_flush(cx))?;
        let piece = {
            let from = &mut self.from.borrow_mut().wire;
            if from.input.is_empty() && ready!(from.poll_fill_body(cx))? == 0 {
                Bytes::new()
            } else {
                std::mem::take(&mut from.input)
            }
        };
        let to = &mut self.to.borrow_mut().wire;
        if piece.is_empty() {
            ready!(to.poll_shutdown(cx))?;
            self.ended = true;
        } else {
            self.moved += piece.len() as u64;
            to.stage_piece(piece, b"");
            // Sent at once if the socket takes it; otherwise before the next piece is read.
            let _: Poll<_> = to.poll_flush(cx)?;
        }
        Poll::Ready(Ok(()))
    }
}
