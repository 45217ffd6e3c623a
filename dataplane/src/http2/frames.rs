//! What a peer sends, counted by frame on its way to the h2 crate, which does not tell.
//!
//! Frames that are cheap to send and cost us work (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, empty DATA, CONTINUATION,
//! what nobody knows) have an allowance: so many at once, so many a second, and some more for every frame that carries
//! something, either way. Whoever goes beyond it is told to calm down, and the connection ends. Only the nine bytes
//! before each frame are looked at, and the clock is asked only when the allowance is used up.
//!
//! Heads count as worth something from a client, who opens a stream by each, and not from a server, who has no more to say
//! than it was asked: interim answers without end are a flood too.
//!
//! A frame whose length cannot be right ends the connection here too: h2 would, but says PROTOCOL_ERROR where RFC 9113 §4.2
//! wants FRAME_SIZE_ERROR, and for a frame that is larger than agreed it says nothing.

use std::rc::Rc;
use std::time::Instant;

use super::pressure::Pressure;

/// Bytes before each frame's payload.
const HEAD: usize = 9;
/// What a client sends before its first frame.
const PREFACE: usize = 24;
/// Cheap frames at once.
const BURST: u32 = 1000;
/// Cheap frames a second, for as long as it goes.
const RATE: u128 = 200;
/// Cheap frames more for a head or a piece of a body: windows are opened and pings sent along with them.
const EARNED: u32 = 4;
/// A piece of a body earns that only if it is not itself next to nothing.
const WORTH: usize = 128;

/// What we agree to (RFC 9113 §4.2): we never announce more.
const LARGEST: usize = 1 << 14;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// Why a connection is ended for what came on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The first frame is not SETTINGS (RFC 9113 §3.4).
    NoSettings,
    /// A frame has a length that none of its kind has.
    Size,
    /// More cheap frames than anybody needs.
    Flood,
    /// A head that did not come to its end in time.
    Stalled,
}

impl Trouble {
    /// The GOAWAY that says so. It rules out no stream: any of them may have been acted on.
    pub(crate) fn goodbye(self) -> [u8; 17] {
        let reason = match self {
            Self::NoSettings => h2::Reason::PROTOCOL_ERROR,
            Self::Size => h2::Reason::FRAME_SIZE_ERROR,
            Self::Flood | Self::Stalled => h2::Reason::ENHANCE_YOUR_CALM,
        };
        let mut frame = [0; 17];
        frame[2] = 8;
        frame[3] = GOAWAY;
        frame[9..13].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
        frame[13..].copy_from_slice(&u32::from(reason).to_be_bytes());
        frame
    }

    /// In words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::NoSettings => "the first frame is not SETTINGS",
            Self::Size => "a frame of a length that it cannot have",
            Self::Flood => "a flood of frames that carry nothing, or nothing that may be sent",
            Self::Stalled => "a head that did not come to its end in time",
        }
    }
}

/// Whether the frame that came last is a part of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InHead {
    No,
    /// And others are to come.
    Open,
    /// The last one, which may not be there to its end.
    Closing,
}

/// Follows the frames that come in on a connection.
#[derive(Debug)]
pub(crate) struct Frames {
    received: Heads,
    sent: Heads,
    opened: bool,
    from_client: bool,
    allowance: u32,
    refilled: Instant,
    /// Frames so far: a sign of life.
    pub(crate) count: u64,
    /// Which frame began the head that came last.
    began: u64,
    in_head: InHead,
    pressure: Rc<Pressure>,
}

impl Frames {
    /// From the beginning of a connection; what a client sends begins with the preface.
    pub(crate) fn new(from_client: bool, pressure: Rc<Pressure>) -> Self {
        let (received, sent) = if from_client {
            (PREFACE, 0)
        } else {
            (0, PREFACE)
        };
        Self {
            received: Heads::after(received),
            sent: Heads::after(sent),
            opened: false,
            from_client,
            allowance: BURST,
            refilled: Instant::now(),
            count: 0,
            began: 0,
            in_head: InHead::No,
            pressure,
        }
    }

    /// Something of worth went one way or the other, and the peer may have to say something about it.
    fn earn(&mut self) {
        self.allowance = (self.allowance + EARNED).min(BURST);
    }

    /// Takes note of what was written. Every frame counts, however many go in one piece: to each head that is sent under
    /// load, a server has as much to say as to one that is sent alone.
    pub(crate) fn wrote(&mut self, mut bytes: &[u8]) {
        while let Some(head) = self.sent.next(&mut bytes) {
            if matches!(head[3], DATA | HEADERS) && length(head) > 0 {
                self.earn();
            }
        }
    }

    /// Takes note of what was read.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Trouble> {
        while let Some(head) = self.received.next(&mut bytes) {
            self.frame(head)?;
        }
        if self.received.skip == 0 {
            self.pressure.arrived_whole();
        }
        Ok(())
    }

    /// The head that has begun and is not whole yet: a number of its own.
    pub(crate) fn open_head(&self) -> Option<u64> {
        let is_open = match self.in_head {
            InHead::No => false,
            InHead::Open => true,
            InHead::Closing => self.received.skip > 0,
        };
        is_open.then_some(self.began)
    }

    fn frame(&mut self, head: [u8; HEAD]) -> Result<(), Trouble> {
        let [_, _, _, kind, flags, s, t, u, v] = head;
        let length = length(head);
        self.count += 1;
        self.in_head = match kind {
            HEADERS | CONTINUATION if flags & END_HEADERS != 0 => InHead::Closing,
            HEADERS | CONTINUATION => InHead::Open,
            _ => InHead::No,
        };
        if kind == HEADERS {
            self.began = self.count;
        }
        let opens = !std::mem::replace(&mut self.opened, true);
        if opens && (kind != SETTINGS || flags & ACK != 0) {
            return Err(Trouble::NoSettings);
        }
        if !fits(kind, flags, length) {
            return Err(Trouble::Size);
        }
        match kind {
            _ if opens => Ok(()),
            DATA if length > 0 => {
                let stream = u32::from_be_bytes([s, t, u, v]) & 0x7fff_ffff;
                self.pressure.arrives(stream, length);
                // Towards a client h2 has ended the connection by then.
                if !self.from_client && self.pressure.is_overrun() {
                    return Err(Trouble::Flood);
                }
                if length >= WORTH {
                    self.earn();
                }
                Ok(())
            }
            DATA if flags & END_STREAM != 0 => Ok(()),
            HEADERS if self.from_client => {
                self.earn();
                Ok(())
            }
            _ => self.spend(),
        }
    }

    fn spend(&mut self) -> Result<(), Trouble> {
        if self.allowance == 0 {
            self.refill(Instant::now());
        }
        self.allowance = self.allowance.checked_sub(1).ok_or(Trouble::Flood)?;
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.duration_since(self.refilled).as_millis() * RATE / 1000;
        if earned > 0 {
            self.refilled = now;
            self.allowance = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        }
    }
}

/// Finds the heads of frames in a stream of bytes, however it is cut.
#[derive(Debug)]
struct Heads {
    head: [u8; HEAD],
    /// How much of the head is there.
    have: usize,
    /// Bytes that are still to come before the next head.
    skip: usize,
}

impl Heads {
    /// The first comes after so many bytes.
    fn after(skip: usize) -> Self {
        Self {
            head: [0; HEAD],
            have: 0,
            skip,
        }
    }

    /// The next head in these bytes, from which everything up to its end is taken away; nothing where they end before it.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<[u8; HEAD]> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let wanted = (HEAD - self.have).min(bytes.len() - skipped);
        let (part, rest) = bytes[skipped..].split_at(wanted);
        self.head[self.have..self.have + wanted].copy_from_slice(part);
        self.have += wanted;
        *bytes = rest;
        if self.have < HEAD {
            return None;
        }
        self.have = 0;
        self.skip = length(self.head);
        Some(self.head)
    }
}

/// The bytes that follow this head.
fn length(head: [u8; HEAD]) -> usize {
    u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize
}

/// Whether a frame of this kind may have this length (RFC 9113 §4.2 and §6).
fn fits(kind: u8, flags: u8, length: usize) -> bool {
    match kind {
        PRIORITY => length == 5,
        RST_STREAM | WINDOW_UPDATE => length == 4,
        SETTINGS if flags & ACK != 0 => length == 0,
        SETTINGS => length.is_multiple_of(6) && length <= LARGEST,
        PING => length == 8,
        GOAWAY => (8..=LARGEST).contains(&length),
        _ => length <= LARGEST,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::Http2;

    fn frames() -> (Frames, Rc<Pressure>) {
        let pressure = Rc::new(Pressure::new(Http2::MESH));
        let mut frames = Frames::new(true, Rc::clone(&pressure));
        assert_eq!(frames.read(&[b'x'; PREFACE]), Ok(()));
        assert_eq!(frames.read(&frame(SETTINGS, 0, 0, 0)), Ok(()));
        (frames, pressure)
    }

    fn frame(kind: u8, flags: u8, stream: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
        bytes.extend(std::iter::repeat_n(b'x', length.into()));
        bytes
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let all = [
            frame(HEADERS, 4, 1, 50),
            frame(DATA, 0, 1, 200),
            frame(PING, 0, 0, 8),
            frame(DATA, 1, 1, 0),
        ]
        .concat();
        for piece in 1..all.len() {
            let (mut frames, pressure) = frames();
            for bytes in all.chunks(piece) {
                assert_eq!(frames.read(bytes), Ok(()));
            }
            assert_eq!(frames.count, 5, "in pieces of {piece}");
            assert_eq!(pressure.held(), 200, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_head_is_open_from_its_first_byte_to_its_last() {
        for (what, all) in [
            ("in one frame", vec![frame(HEADERS, END_HEADERS, 1, 50)]),
            (
                "in three",
                vec![
                    frame(HEADERS, END_STREAM, 1, 50),
                    frame(CONTINUATION, 0, 1, 10),
                    frame(CONTINUATION, END_HEADERS, 1, 10),
                ],
            ),
            (
                "with an end that is empty",
                vec![
                    frame(HEADERS, 0, 1, 50),
                    frame(CONTINUATION, END_HEADERS, 1, 0),
                ],
            ),
        ] {
            let (mut frames, _) = frames();
            assert_eq!(frames.open_head(), None, "{what}");
            let all = all.concat();
            let (last, most) = all.split_last().map_or((0, &all[..]), |(b, all)| (*b, all));
            for (at, byte) in most.iter().enumerate() {
                assert_eq!(frames.read(&[*byte]), Ok(()));
                let open = (at + 1 >= HEAD).then_some(2);
                assert_eq!(frames.open_head(), open, "{what}, at {at}");
            }
            assert_eq!(frames.read(&[last]), Ok(()));
            assert_eq!(frames.open_head(), None, "{what}");
            // The next is another one.
            assert_eq!(frames.read(&frame(HEADERS, 0, 3, 5)), Ok(()));
            assert_eq!(frames.open_head(), Some(frames.count), "{what}");
        }
    }

    #[test]
    fn a_connection_begins_with_settings() {
        for (kind, flags, verdict) in [
            (SETTINGS, 0, Ok(())),
            (SETTINGS, ACK, Err(Trouble::NoSettings)),
            (HEADERS, 5, Err(Trouble::NoSettings)),
            (PING, 0, Err(Trouble::NoSettings)),
            (99, 0, Err(Trouble::NoSettings)),
        ] {
            let (_, pressure) = frames();
            let mut frames = Frames::new(false, pressure);
            assert_eq!(frames.read(&frame(kind, flags, 0, 0)), verdict, "{kind}");
        }
    }

    #[test]
    fn a_frame_has_a_length_that_its_kind_can_have() {
        let trouble = |kind, flags, length: usize| {
            let (mut frames, _) = frames();
            let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
            let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
            frames.read(&head).is_err()
        };
        for (kind, flags, good, bad) in [
            (DATA, 0, &[0, 1, LARGEST][..], &[LARGEST + 1, 0xff_ffff][..]),
            (HEADERS, 4, &[0, LARGEST], &[LARGEST + 1]),
            (PRIORITY, 0, &[5], &[0, 4, 6]),
            (RST_STREAM, 0, &[4], &[0, 3, 5]),
            (SETTINGS, 0, &[0, 6, 12], &[1, 5, 7, LARGEST + 2]),
            (SETTINGS, ACK, &[0], &[1, 6]),
            (PING, 0, &[8], &[0, 7, 9]),
            (PING, ACK, &[8], &[7]),
            (GOAWAY, 0, &[8, 100], &[0, 7, LARGEST + 1]),
            (WINDOW_UPDATE, 0, &[4], &[0, 3, 5]),
            (0xbe, 0, &[0, LARGEST], &[LARGEST + 1]),
        ] {
            for length in good {
                assert!(!trouble(kind, flags, *length), "{kind}: {length}");
            }
            for length in bad {
                assert!(trouble(kind, flags, *length), "{kind}: {length}");
            }
        }
    }

    #[test]
    fn a_flood_of_frames_that_carry_nothing_is_cut() {
        for (what, kind, flags, length) in [
            ("empty data", DATA, 0, 0),
            ("priorities", 2, 0, 5),
            ("resets", 3, 0, 4),
            ("settings", SETTINGS, 0, 6),
            ("pings", PING, 0, 8),
            ("answers to pings", PING, ACK, 8),
            ("windows", 8, 0, 4),
            ("continuations", 9, 0, 0),
            ("frames that nobody knows", 200, 0, 10),
        ] {
            let (mut frames, _) = frames();
            let sent = (0..5 * BURST)
                .take_while(|_| frames.read(&frame(kind, flags, 1, length)).is_ok())
                .count();
            // What the clock adds while this runs is little.
            let most = BURST as usize + 1000;
            assert!((BURST as usize..most).contains(&sent), "{what}: {sent}");
        }
    }

    #[test]
    fn data_for_nobody_are_a_flood_beyond_the_window_that_it_had() {
        let (_, pressure) = frames();
        let mut frames = Frames::new(false, Rc::clone(&pressure));
        assert_eq!(frames.read(&frame(SETTINGS, 0, 0, 0)), Ok(()));
        // Two readers, of whom one goes.
        pressure.reads();
        pressure.reads();
        pressure.left(1, 0);
        let piece = frame(DATA, 0, 1, 255);
        let sent = (0..1 << 14).take_while(|_| frames.read(&piece).is_ok());
        // Windows of a mebibyte.
        assert_eq!(sent.count(), (1 << 20) / 255);
    }

    #[test]
    fn heads_that_nobody_asked_for_are_a_flood() {
        let (_, pressure) = frames();
        let mut frames = Frames::new(false, pressure);
        frames.wrote(&[0; PREFACE]);
        assert_eq!(frames.read(&frame(SETTINGS, 0, 0, 0)), Ok(()));
        // A busy connection's requests leave together, with little in each, and are answered so.
        for _ in 0..BURST {
            frames.wrote(
                &[frame(HEADERS, 4, 1, 20), frame(DATA, 1, 1, 5)]
                    .concat()
                    .repeat(16),
            );
            let answer = [
                frame(HEADERS, 4, 1, 9),
                frame(DATA, 0, 1, 5),
                frame(HEADERS, 5, 1, 9),
            ];
            assert_eq!(frames.read(&answer.concat().repeat(16)), Ok(()));
        }
        // An interim answer, an answer and trailers to each request.
        for _ in 0..10 * BURST {
            frames.wrote(&frame(HEADERS, 5, 1, 20));
            assert_eq!(frames.read(&frame(HEADERS, 4, 1, 20).repeat(3)), Ok(()));
        }
        let sent = (0..5 * BURST)
            .take_while(|_| frames.read(&frame(HEADERS, 4, 1, 20)).is_ok())
            .count();
        // What the last of them used up is missing; what a slow test is given back meanwhile is there.
        let burst = BURST as usize;
        assert!((burst - 10..burst + 1000).contains(&sent), "{sent}");
    }

    #[test]
    fn frames_that_go_along_with_a_body_are_no_flood() {
        let (mut frames, _) = frames();
        for _ in 0..10 * BURST {
            assert_eq!(frames.read(&frame(DATA, 0, 1, 200)), Ok(()));
            assert_eq!(frames.read(&frame(PING, 0, 0, 8)), Ok(()));
            assert_eq!(frames.read(&frame(8, 0, 0, 4)), Ok(()));
        }
        for _ in 0..10 * BURST {
            frames.wrote(&frame(DATA, 0, 1, 200));
            frames.wrote(&frame(PING, ACK, 0, 8));
            assert_eq!(frames.read(&frame(8, 0, 1, 4)), Ok(()));
            assert_eq!(frames.read(&frame(8, 0, 0, 4)), Ok(()));
        }
    }

    #[test]
    fn time_gives_back_what_was_used_up_and_no_more() {
        let (mut frames, _) = frames();
        let start = frames.refilled;
        frames.allowance = 0;
        frames.refill(start + Duration::from_millis(4));
        assert_eq!(frames.allowance, 0, "less than one");
        frames.refill(start + Duration::from_millis(500));
        assert_eq!(frames.allowance, 100);
        frames.refill(start + Duration::from_secs(3600));
        assert_eq!(frames.allowance, BURST);
    }
}
