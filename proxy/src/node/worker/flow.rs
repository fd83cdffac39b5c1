//! Whether a stream's socket is read at once, or in batches.
//!
//! A sender of many small pieces that are read one by one pays for waking the worker with each, and
//! the worker with two system calls and a message for each. So when pieces come in a row, faster
//! than that, and nothing goes the other way, the kernel gathers them for a moment. Whoever waits
//! for an answer never gets here: the answer ends it.
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
}

#[derive(Debug, Clone, Copy)]
struct Gathers {
    /// Bytes of a usual piece.
    piece: usize,
    read_at: Instant,
}

/// What is to be done about the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Gather,
    ReadAtOnce,
}

impl Flow {
    pub(super) fn new(now: Instant) -> Self {
        Self { run: 0, run_bytes: 0, run_since: now, gathers: None }
    }

    /// When the socket has gathered for long enough, if it gathers.
    pub(super) fn due(&self) -> Option<Instant> {
        self.gathers.map(|gathers| gathers.read_at + GATHER)
    }

    /// So many bytes were read, 0 when there were none.
    pub(super) fn read(&mut self, bytes: usize, now: Instant) -> Option<Change> {
        if let Some(gathers) = &mut self.gathers {
            // What a large read has left is no batch of its own.
            if now.saturating_duration_since(gathers.read_at) < GATHER {
                return None;
            }
            gathers.read_at = now;
            return if bytes < gathers.piece * PAYS_FROM { self.answered() } else { None };
        }
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
        Some(Change::Gather)
    }

    /// Something goes the other way.
    pub(super) fn answered(&mut self) -> Option<Change> {
        self.run = 0;
        self.gathers.take().map(|_| Change::ReadAtOnce)
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
            change = flow.read(64, now);
        }
        (flow, now, change)
    }

    #[test]
    fn a_dense_run_of_small_pieces_is_gathered() {
        let (flow, _, change) = after(RUN - 1, APART);
        assert_eq!((change, flow.due()), (None, None));
        let (flow, now, change) = after(RUN, APART);
        assert_eq!((change, flow.due()), (Some(Change::Gather), Some(now + GATHER)));
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
        assert_eq!(flow.read(64, now), None);
        let (mut flow, now, _) = after(RUN - 1, APART);
        assert_eq!(flow.read(SMALL_BYTES_MAX + 1, now), None);
        assert_eq!(flow.read(64, now), None);
    }

    #[test]
    fn gathering_ends_when_it_does_not_pay_or_an_answer_comes() {
        let (mut flow, now, _) = after(RUN, APART);
        assert_eq!(flow.read(64 * PAYS_FROM, now + GATHER), None);
        assert_eq!(flow.read(0, now + GATHER * 3 / 2), None);
        assert_eq!(flow.due(), Some(now + 2 * GATHER));
        assert_eq!(flow.read(64, now + 2 * GATHER), Some(Change::ReadAtOnce));
        assert_eq!(flow.due(), None);
        let (mut flow, now, _) = after(RUN, APART);
        assert_eq!(flow.read(0, now + GATHER), Some(Change::ReadAtOnce));
        let (mut flow, ..) = after(RUN, APART);
        assert_eq!(flow.answered(), Some(Change::ReadAtOnce));
        assert_eq!(flow.answered(), None);
    }
}
