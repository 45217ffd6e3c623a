//! How much of a connection's bodies the h2 crate holds for readers that do not come for it, and how wide the windows of
//! its streams are because of that.
//!
//! A wide window lets one body run at full speed; a thousand wide windows are a gigabyte that a peer may fill. h2 has one
//! window size for all streams of a connection. So it is wide while readers keep up, and narrow once more than a
//! certain amount is held: then the readers are what is slow, and a narrow window costs them nothing. The
//! connection's own window is wider than that amount, and then wider than all streams' together, so no stream waits for
//! another's reader.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::plan::Http2;

/// How long windows stay narrow at least.
const STAY: Duration = Duration::from_secs(1);
/// Bodies that are remembered to be nobody's any more, while their rest arrives.
const MOST_GONE: usize = 1024;
/// More than the widest window of a connection, which nobody can have outstanding.
const MOST_HELD: usize = 2 * Http2::MESH.crowded_window as usize;

/// The sizes of a connection's stream windows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    /// While readers keep up.
    pub(crate) wide: u32,
    /// While they do not.
    pub(crate) narrow: u32,
    /// They do not when more than this is held for all of them.
    pub(crate) crowded: usize,
}

impl Windows {
    /// As the plan bounds them.
    pub(crate) fn of(bounds: &Http2) -> Self {
        Self {
            wide: bounds.stream_window,
            narrow: bounds.narrow_window,
            crowded: bounds.crowded,
        }
    }
}

/// What is held on one connection.
#[derive(Debug)]
pub(crate) struct Pressure {
    windows: Windows,
    held: Cell<usize>,
    readers: Cell<usize>,
    /// The piece whose end has not arrived: h2 does not know of it yet.
    arriving: Cell<Option<(u32, usize)>>,
    /// Streams whose reader has gone: what still arrives for them is dropped by h2.
    gone: RefCell<HashSet<u32, RandomState>>,
    /// How much that was so far.
    late: Cell<usize>,
    /// Since when windows are narrow.
    narrow: Cell<Option<Instant>>,
}

impl Pressure {
    /// Of a connection with nothing on it.
    pub(crate) fn new(windows: Windows) -> Self {
        Self {
            windows,
            held: Cell::new(0),
            readers: Cell::new(0),
            arriving: Cell::new(None),
            gone: RefCell::default(),
            late: Cell::new(0),
            narrow: Cell::new(None),
        }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// A piece of a body comes in.
    pub(crate) fn arrives(&self, stream: u32, length: usize) {
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
        let wide = self.windows.wide as usize;
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

    /// A reader has come to the end of its body.
    pub(crate) fn ended(&self) {
        let readers = self.readers.get() - 1;
        self.readers.set(readers);
        if readers == 0 {
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

    /// The window size that streams should have from now on, when that is another one.
    pub(crate) fn turn(&self) -> Option<u32> {
        match self.narrow.get() {
            None => (self.held.get() > self.windows.crowded).then_some(self.windows.narrow),
            Some(since) => (self.held.get() < self.windows.crowded / 4 && since.elapsed() >= STAY)
                .then_some(self.windows.wide),
        }
    }

    /// The peer is being told so.
    pub(crate) fn turned(&self) {
        self.narrow.set(match self.narrow.get() {
            None => Some(Instant::now()),
            Some(_) => None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: Windows = Windows {
        wide: 1000,
        narrow: 10,
        crowded: 4000,
    };

    #[test]
    fn windows_are_narrow_from_the_bound_on() {
        let pressure = Pressure::new(WINDOWS);
        pressure.reads();
        pressure.arrives(1, 4000);
        assert_eq!(pressure.turn(), None, "at the bound");
        pressure.arrives(1, 1);
        assert_eq!(pressure.turn(), Some(10));
        pressure.turned();
        assert_eq!(pressure.turn(), None);
        pressure.passed_on(3900);
        assert_eq!(pressure.turn(), None, "not at once");
        pressure
            .narrow
            .set(Instant::now().checked_sub(Duration::from_secs(2)));
        assert_eq!(pressure.turn(), Some(1000));
        pressure.arrives(1, 2000);
        assert_eq!(pressure.turn(), None, "still much");
    }

    #[test]
    fn what_arrives_for_a_reader_that_has_gone_is_not_held() {
        let pressure = Pressure::new(WINDOWS);
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
        let pressure = Pressure::new(WINDOWS);
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
