//! How much of a connection's bodies the h2 crate holds for readers that do not come for it, and how wide the windows of
//! its streams are because of that.
//!
//! A wide window lets one body run at full speed; a thousand wide windows are a gigabyte that a peer may fill. h2 has one
//! window size for all streams of a connection. So it is wide while readers keep up, and narrow once more than a
//! certain amount is held: then the readers are what is slow, and a narrow window costs them nothing. The
//! connection's own window is wider than that amount, and then by all narrow windows wider still, so no stream waits for
//! another's reader. The streams' are wide again when the peer has used up what it had of that: a window is never taken
//! back, and there is to be no moment at which all of it may be sent at their widest.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Buf;
use foldhash::fast::RandomState;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::plan::Http2;

/// How long windows stay narrow at least.
const STAY: Duration = Duration::from_secs(1);
/// Bodies that are remembered to be nobody's any more, while their rest arrives.
const MOST_GONE: usize = 1024;
/// More than the widest window of a connection, which nobody can have outstanding.
const MOST_HELD: usize = 2 * Http2::MESH.crowded_window as usize;

/// A connection of h2's, at either end of it.
pub(crate) trait Connection {
    /// Makes the windows of all streams so wide. False where the peer has not confirmed yet what they are.
    fn set_streams(&mut self, window: u32) -> bool;
    /// Makes its own so wide. To make it narrower takes nothing back: the peer is given no more until it is.
    fn set_whole(&mut self, window: u32);
}

impl<T: AsyncRead + AsyncWrite + Unpin, B: Buf> Connection for h2::server::Connection<T, B> {
    fn set_streams(&mut self, window: u32) -> bool {
        self.set_initial_window_size(window).is_ok()
    }

    fn set_whole(&mut self, window: u32) {
        self.set_target_window_size(window);
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, B: Buf> Connection for h2::client::Connection<T, B> {
    fn set_streams(&mut self, window: u32) -> bool {
        self.set_initial_window_size(window).is_ok()
    }

    fn set_whole(&mut self, window: u32) {
        self.set_target_window_size(window);
    }
}

/// How wide a connection's windows are.
#[derive(Debug, Clone, Copy)]
enum Width {
    /// Readers keep up.
    Wide,
    /// They have not since then.
    Narrow(Instant),
    /// They do again, and the peer may still send so much more than the connection's usual window.
    Shrinking(usize),
}

/// What is held on one connection.
#[derive(Debug)]
pub(crate) struct Pressure {
    bounds: Http2,
    held: Cell<usize>,
    readers: Cell<usize>,
    /// There are streams that nobody has looked at yet, of whose bodies something may be held.
    unseen: Cell<bool>,
    /// The piece whose end has not arrived: h2 does not know of it yet.
    arriving: Cell<Option<(u32, usize)>>,
    /// Streams whose reader has gone: what still arrives for them is dropped by h2.
    gone: RefCell<HashSet<u32, RandomState>>,
    /// How much that was so far.
    late: Cell<usize>,
    width: Cell<Width>,
}

impl Pressure {
    /// Of a connection with nothing on it.
    pub(crate) fn new(bounds: Http2) -> Self {
        Self {
            bounds,
            held: Cell::new(0),
            readers: Cell::new(0),
            unseen: Cell::new(false),
            arriving: Cell::new(None),
            gone: RefCell::default(),
            late: Cell::new(0),
            width: Cell::new(Width::Wide),
        }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// A piece of a body comes in.
    pub(crate) fn arrives(&self, stream: u32, length: usize) {
        if let Width::Shrinking(left) = self.width.get() {
            self.width
                .set(Width::Shrinking(left.saturating_sub(length)));
        }
        let gone = self.gone.borrow();
        if gone.is_empty() || !gone.contains(&stream) {
            self.held.set(self.held.get() + length);
            self.arriving.set(Some((stream, length)));
        } else {
            self.late.set(self.late.get() + length);
        }
    }

    /// Whether more has come than the windows let anybody send who keeps to them: h2 drops what is for nobody and goes on.
    pub(crate) fn is_overrun(&self) -> bool {
        let wide = self.bounds.stream_window as usize;
        self.held.get() > MOST_HELD || self.late.get() > self.gone.borrow().len() * wide
    }

    /// Every piece so far has come in to its end.
    pub(crate) fn arrived_whole(&self) {
        self.arriving.set(None);
    }

    /// Somebody reads a body.
    pub(crate) fn reads(&self) {
        self.readers.set(self.readers.get() + 1);
    }

    /// So much of a body went on to where it goes.
    pub(crate) fn passed_on(&self, length: usize) {
        self.held.set(self.held.get().saturating_sub(length));
    }

    /// Whether there are streams that nobody has looked at.
    pub(crate) fn unseen(&self, unseen: bool) {
        self.unseen.set(unseen);
    }

    /// A reader has come to the end of its body.
    pub(crate) fn ended(&self) {
        let readers = self.readers.get() - 1;
        self.readers.set(readers);
        if readers == 0 && !self.unseen.get() {
            // Whatever was counted wrongly (padding, streams that nobody ever saw) is not counted for ever.
            self.held.set(0);
            self.forget_gone();
        }
    }

    fn forget_gone(&self) {
        self.gone.borrow_mut().clear();
        self.late.set(0);
    }

    /// A reader has gone before the end, and h2 drops the rest with these bytes.
    pub(crate) fn left(&self, stream: u32, unread: usize) {
        self.passed_on(unread);
        if let Some((arriving, length)) = self.arriving.get()
            && arriving == stream
        {
            self.passed_on(length);
            self.arriving.set(None);
        }
        if self.gone.borrow().len() >= MOST_GONE {
            self.forget_gone();
        }
        self.gone.borrow_mut().insert(stream);
        self.ended();
    }

    /// Gives the connection the windows that it should have from now on, when those are others. Says whether the peer is to
    /// be told.
    pub(crate) fn turn(&self, connection: &mut impl Connection) -> bool {
        let (bounds, held) = (&self.bounds, self.held.get());
        let next = match self.width.get() {
            Width::Wide if held > bounds.crowded => {
                if !connection.set_streams(bounds.narrow_window) {
                    return false;
                }
                // Behind those of the streams.
                connection.set_whole(bounds.crowded_window);
                Width::Narrow(Instant::now())
            }
            Width::Narrow(since) if held < bounds.crowded / 4 && since.elapsed() >= STAY => {
                connection.set_whole(bounds.connection_window);
                Width::Shrinking((bounds.crowded_window - bounds.connection_window) as usize)
            }
            Width::Shrinking(_) if held > bounds.crowded => {
                connection.set_whole(bounds.crowded_window);
                Width::Narrow(Instant::now())
            }
            Width::Shrinking(0) if connection.set_streams(bounds.stream_window) => Width::Wide,
            _ => return false,
        };
        self.width.set(next);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const BOUNDS: Http2 = Http2 {
        streams: 100,
        stream_window: 1000,
        narrow_window: 10,
        crowded: 4000,
        connection_window: 8000,
        crowded_window: 9000,
        send_buffer: 0,
    };

    /// What h2 was told last, and whether the peer confirms it.
    #[derive(Debug, PartialEq)]
    struct Told {
        streams: u32,
        whole: u32,
        confirms: bool,
    }

    impl Connection for Told {
        fn set_streams(&mut self, window: u32) -> bool {
            if self.confirms {
                self.streams = window;
            }
            self.confirms
        }

        fn set_whole(&mut self, window: u32) {
            self.whole = window;
        }
    }

    fn told() -> Told {
        Told {
            streams: BOUNDS.stream_window,
            whole: BOUNDS.connection_window,
            confirms: true,
        }
    }

    /// The windows after a turn, where there is one.
    fn turned(pressure: &Pressure, told: &mut Told) -> Option<(u32, u32)> {
        let turns = pressure.turn(told);
        turns.then_some((told.streams, told.whole))
    }

    /// As if they had been narrow for long.
    fn later(pressure: &Pressure) {
        let Width::Narrow(since) = pressure.width.get() else {
            panic!("{:?}", pressure.width.get());
        };
        let since = since.checked_sub(Duration::from_secs(2)).unwrap();
        pressure.width.set(Width::Narrow(since));
    }

    #[test]
    fn windows_are_narrow_from_the_bound_on() {
        let (pressure, mut told) = (Pressure::new(BOUNDS), told());
        pressure.reads();
        pressure.arrives(1, 4000);
        assert_eq!(turned(&pressure, &mut told), None, "at the bound");
        pressure.arrives(1, 1);
        told.confirms = false;
        assert_eq!(turned(&pressure, &mut told), None);
        assert_eq!(told.whole, 8000, "not before those of the streams");
        told.confirms = true;
        assert_eq!(turned(&pressure, &mut told), Some((10, 9000)));
        assert_eq!(turned(&pressure, &mut told), None);
        pressure.passed_on(3900);
        assert_eq!(turned(&pressure, &mut told), None, "not at once");
        later(&pressure);
        assert_eq!(turned(&pressure, &mut told), Some((10, 8000)));
    }

    /// A window that was given is not taken back: as long as the peer has it, those of the streams stay narrow.
    #[test]
    fn streams_are_wide_again_when_the_connection_is_what_it_was() {
        let (pressure, mut told) = (Pressure::new(BOUNDS), told());
        for _ in 0..3 {
            pressure.reads();
            pressure.arrives(1, 4001);
            assert_eq!(turned(&pressure, &mut told), Some((10, 9000)));
            pressure.passed_on(4001);
            later(&pressure);
            assert_eq!(turned(&pressure, &mut told), Some((10, 8000)));
            pressure.arrives(1, 999);
            assert_eq!(turned(&pressure, &mut told), None);
            // Readers may stop meanwhile.
            pressure.arrives(1, 3002);
            assert_eq!(turned(&pressure, &mut told), Some((10, 9000)));
            pressure.passed_on(4001);
            later(&pressure);
            assert_eq!(turned(&pressure, &mut told), Some((10, 8000)));
            pressure.arrives(1, 1000);
            assert_eq!(turned(&pressure, &mut told), Some((1000, 8000)));
            pressure.ended();
        }
    }

    #[test]
    fn what_nobody_has_looked_at_is_not_forgotten() {
        let pressure = Pressure::new(BOUNDS);
        pressure.reads();
        pressure.arrives(1, 100);
        pressure.arrives(3, 200);
        pressure.passed_on(100);
        pressure.unseen(true);
        pressure.ended();
        assert_eq!(pressure.held(), 200);
        pressure.unseen(false);
        pressure.reads();
        pressure.passed_on(200);
        pressure.ended();
        assert_eq!(pressure.held(), 0);
    }

    /// Those of the edge and of the mesh: no stream waits for another's reader, whatever was in flight.
    #[test]
    fn a_connection_has_room_for_all_narrow_windows_besides() {
        for bounds in [Http2::EDGE, Http2::MESH] {
            let narrow = bounds.streams * bounds.narrow_window;
            assert!(bounds.connection_window as usize > bounds.crowded);
            let in_flight = match bounds.crowded_window == bounds.connection_window {
                // There is no more than that while windows are wide either.
                true => u32::try_from(bounds.crowded).unwrap(),
                false => bounds.connection_window,
            };
            assert!(bounds.crowded_window >= in_flight + narrow, "{bounds:?}");
        }
    }

    #[test]
    fn what_arrives_for_a_reader_that_has_gone_is_not_held() {
        let pressure = Pressure::new(BOUNDS);
        pressure.reads();
        pressure.reads();
        pressure.arrives(3, 100);
        pressure.arrives(1, 100);
        pressure.arrived_whole();
        // Of stream 1, h2 has 100; a piece of 50 is on its way.
        pressure.arrives(1, 50);
        pressure.left(1, 100);
        assert_eq!(pressure.held(), 100, "of stream 3");
        pressure.arrives(1, 500);
        assert_eq!(pressure.held(), 100);
        pressure.left(3, 100);
        assert_eq!(pressure.held(), 0);
    }

    #[test]
    fn what_was_counted_wrongly_is_forgotten_with_the_last_reader() {
        let pressure = Pressure::new(BOUNDS);
        pressure.reads();
        pressure.arrives(1, 300);
        pressure.passed_on(100);
        pressure.ended();
        assert_eq!(pressure.held(), 0);
        for stream in 0..5000 {
            pressure.reads();
            pressure.reads();
            pressure.left(stream, 0);
            pressure.readers.set(1);
            assert!(pressure.gone.borrow().len() <= MOST_GONE);
        }
    }
}
