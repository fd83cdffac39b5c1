//! Whether a stream's socket is read at once, or in batches.
//!
//! A sender of many small pieces that are read one by one pays for waking the worker with each, and
//! the worker with two system calls and a message for each. So when pieces come in a row, faster
//! than that, and nothing goes the other way, the kernel gathers them for a moment. Whoever waits
//! for an answer never gets here: the answer ends it.
//!
//! While the kernel gathers, a receive buffer that is small fills up, and holds the sender's TCP back
//! until it has joined many pieces to few segments. A buffer must not shrink below the window that
//! the sender has been told, or what it sends is dropped. So the window is narrowed first, and the
//! buffer when all that was told before must have been used.
//!
//! What it does not do: touch the socket or the clock.

use std::time::{Duration, Instant};

/// Larger reads are batches already.
const SMALL_BYTES_MAX: usize = 8 << 10;
/// So many small reads in a row begin it,
const RUN: u32 = 16;
/// if they came within this time.
const RUN_WITHIN: Duration = Duration::from_micros(400);
/// How long the kernel gathers at most.
const GATHER: Duration = Duration::from_micros(50);
/// A batch of fewer usual pieces does not pay.
const PAYS_FROM: usize = 3;

#[derive(Debug)]
pub(super) struct Flow {
    /// Small reads in a row, their bytes, and when the first was.
    run: u32,
    run_bytes: usize,
    run_since: Instant,
    gathers: Option<Gathers>,
    buffer: Buffer,
}

#[derive(Debug, Clone, Copy)]
struct Gathers {
    /// Bytes of a usual piece.
    piece: usize,
    read_at: Instant,
}

/// The socket's receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buffer {
    /// As it was.
    Untouched,
    /// So many bytes that the sender was told it may send are still to be read at most.
    Narrowed(usize),
    Small,
}

/// What is to be done about the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Its bytes are no event; with `narrow` its window is to be narrowed, see [`Flow::narrowed`].
    Gather { narrow: bool },
    /// Its bytes are an event again.
    ReadAtOnce,
    /// Its receive buffer may be made small.
    ShrinkBuffer,
    /// Its bytes are an event, and its window may be wide; so may its buffer, if it has shrunk.
    Restore { shrunk: bool },
}

impl Flow {
    pub(super) fn new(now: Instant) -> Self {
        Self { run: 0, run_bytes: 0, run_since: now, gathers: None, buffer: Buffer::Untouched }
    }

    /// When the socket has gathered for long enough, if it gathers.
    pub(super) fn due(&self) -> Option<Instant> {
        self.gathers.map(|gathers| gathers.read_at + GATHER)
    }

    /// So many bytes were read, 0 when there were none, and then the socket may have been empty.
    pub(super) fn read(&mut self, bytes: usize, emptied: bool, now: Instant) -> Option<Change> {
        if let Buffer::Narrowed(told) = &mut self.buffer {
            *told = told.saturating_sub(bytes);
        }
        let change = if self.gathers.is_some() {
            self.gathered(bytes, now)
        } else {
            self.read_at_once(bytes, now)
        };
        if change.is_none() && emptied && self.buffer == Buffer::Narrowed(0) {
            self.buffer = Buffer::Small;
            return Some(Change::ShrinkBuffer);
        }
        change
    }

    fn gathered(&mut self, bytes: usize, now: Instant) -> Option<Change> {
        let gathers = self.gathers.as_mut()?;
        // What a large read has left is no batch of its own.
        if now.saturating_duration_since(gathers.read_at) < GATHER {
            return None;
        }
        gathers.read_at = now;
        if bytes >= gathers.piece * PAYS_FROM {
            return None;
        }
        self.run = 0;
        self.gathers = None;
        Some(Change::ReadAtOnce)
    }

    fn read_at_once(&mut self, bytes: usize, now: Instant) -> Option<Change> {
        if bytes == 0 {
            return None;
        }
        if bytes > SMALL_BYTES_MAX {
            self.run = 0;
            return None;
        }
        if self.run == 0 || now.saturating_duration_since(self.run_since) > RUN_WITHIN {
            (self.run, self.run_bytes, self.run_since) = (0, 0, now);
        }
        self.run += 1;
        self.run_bytes += bytes;
        if self.run < RUN {
            return None;
        }
        let piece = self.run_bytes / RUN as usize;
        self.gathers = Some(Gathers { piece, read_at: now });
        Some(Change::Gather { narrow: self.buffer == Buffer::Untouched })
    }

    /// The socket's window was narrowed; before, the sender may have been told as much as its buffer
    /// could hold.
    pub(super) fn narrowed(&mut self, buffer_bytes: usize) {
        self.buffer = Buffer::Narrowed(buffer_bytes);
    }

    /// Something goes the other way.
    pub(super) fn answered(&mut self) -> Option<Change> {
        self.run = 0;
        let buffer = std::mem::replace(&mut self.buffer, Buffer::Untouched);
        let changed = self.gathers.take().is_some() || buffer != Buffer::Untouched;
        changed.then_some(Change::Restore { shrunk: buffer == Buffer::Small })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_micros(10);

    /// A flow that has read `pieces` of 64 bytes, and the time of the last.
    fn after(pieces: u32, apart: Duration) -> (Flow, Instant, Option<Change>) {
        let mut now = Instant::now();
        let (mut flow, mut change) = (Flow::new(now), None);
        for _ in 0..pieces {
            now += apart;
            change = flow.read(64, true, now);
        }
        (flow, now, change)
    }

    #[test]
    fn a_dense_run_of_small_pieces_is_gathered() {
        let (flow, _, change) = after(RUN - 1, APART);
        assert_eq!((change, flow.due()), (None, None));
        let (flow, now, change) = after(RUN, APART);
        assert_eq!(
            (change, flow.due()),
            (Some(Change::Gather { narrow: true }), Some(now + GATHER))
        );
    }

    #[test]
    fn pieces_that_come_slowly_are_read_at_once() {
        let (flow, ..) = after(100, RUN_WITHIN / RUN * 2);
        assert_eq!(flow.due(), None);
    }

    #[test]
    fn an_answer_or_a_large_read_begins_the_run_anew() {
        let (mut flow, now, _) = after(RUN - 1, APART);
        assert_eq!(flow.answered(), None);
        assert_eq!(flow.read(64, true, now), None);
        let (mut flow, now, _) = after(RUN - 1, APART);
        assert_eq!(flow.read(SMALL_BYTES_MAX + 1, true, now), None);
        assert_eq!(flow.read(64, true, now), None);
    }

    #[test]
    fn gathering_ends_when_it_does_not_pay_or_an_answer_comes() {
        let (mut flow, now, _) = after(RUN, APART);
        assert_eq!(flow.read(64 * PAYS_FROM, true, now + GATHER), None);
        assert_eq!(flow.read(0, true, now + GATHER * 3 / 2), None);
        assert_eq!(flow.due(), Some(now + 2 * GATHER));
        assert_eq!(flow.read(64, true, now + 2 * GATHER), Some(Change::ReadAtOnce));
        assert_eq!(flow.due(), None);
        let (mut flow, now, _) = after(RUN, APART);
        assert_eq!(flow.read(0, true, now + GATHER), Some(Change::ReadAtOnce));
        let (mut flow, ..) = after(RUN, APART);
        assert_eq!(flow.answered(), Some(Change::Restore { shrunk: false }));
        assert_eq!(flow.answered(), None);
    }

    #[test]
    fn the_buffer_shrinks_when_the_window_told_before_was_used() {
        const BATCH: usize = 1000;
        let (mut flow, mut now, _) = after(RUN, APART);
        let mut read = |flow: &mut Flow, bytes, emptied| {
            now += GATHER;
            flow.read(bytes, emptied, now)
        };
        assert_eq!(read(&mut flow, BATCH, true), None);
        flow.narrowed(2 * BATCH);
        // Gathering may end and begin: it does not matter how the bytes are read.
        assert_eq!(read(&mut flow, 1, true), Some(Change::ReadAtOnce));
        assert_eq!(read(&mut flow, 2 * BATCH, false), None);
        assert_eq!(read(&mut flow, 0, true), Some(Change::ShrinkBuffer));
        assert_eq!(read(&mut flow, 0, true), None);
        let begun = (0..RUN).find_map(|_| flow.read(1, true, now));
        assert_eq!(begun, Some(Change::Gather { narrow: false }));
        assert_eq!(
            (flow.answered(), flow.answered()),
            (Some(Change::Restore { shrunk: true }), None)
        );
    }
}
