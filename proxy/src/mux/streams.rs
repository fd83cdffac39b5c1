//! The state of one stream, and the table of them.
//!
//! What it does not do: talk to the peer or the caller; the lane does.

use super::types::{Payload, RefuseReason, ResetReason, SendError, StreamId};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

/// Pieces in the send queue of one stream. Bytes alone are no bound: a piece of one byte costs as
/// much as a long one.
const QUEUE_PIECES_MAX: usize = 128;
/// Queues that grew beyond this give their memory back when they are empty.
const QUEUE_KEPT_PIECES_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// We sent, or will send, an OPEN and have no answer.
    Opening,
    /// The peer's OPEN waits for the caller's answer.
    Incoming,
    Open,
    /// The caller reset it; what is left of the queue goes out, then the RESET.
    Resetting(ResetReason),
}

pub(super) struct Stream<P> {
    queue: VecDeque<P>,
    queued_bytes: u32,
    pub phase: Phase,
    pub open_sent: bool,
    pub finish: bool,
    pub fin_sent: bool,
    pub fin_received: bool,
    pub in_ready: bool,
    pub window_queued: bool,
    pub writable_wanted: bool,
    /// What is left of the stream's turn.
    pub deficit: u32,
    /// What it has sent beyond its turns.
    pub debt: u32,
    pub sent: u64,
    pub send_limit: u64,
    pub received: u64,
    pub consumed: u64,
    pub receive_limit: u64,
    pub window: u32,
    /// Of the budget; never less than what the peer may still send plus what is not consumed.
    pub reserved: u32,
    pub epoch_consumed: u64,
    pub epoch_us: u64,
}

impl<P: Payload> Stream<P> {
    pub fn new(phase: Phase, send_limit: u64, window: u32, now_us: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            phase,
            open_sent: false,
            finish: false,
            fin_sent: false,
            fin_received: false,
            in_ready: false,
            window_queued: false,
            writable_wanted: false,
            deficit: 0,
            debt: 0,
            sent: 0,
            send_limit,
            received: 0,
            consumed: 0,
            receive_limit: u64::from(window),
            window,
            reserved: window,
            epoch_consumed: 0,
            epoch_us: now_us,
        }
    }

    fn takes_data(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open) && !self.finish
    }

    /// Bytes that the next `push` may bring. Little room counts as none: it would only cut the
    /// stream into crumbs.
    pub fn writable(&self, queue_bytes_max: u32) -> u32 {
        if !self.takes_data() || self.queue.len() >= QUEUE_PIECES_MAX {
            return 0;
        }
        let free = queue_bytes_max.saturating_sub(self.queued_bytes);
        if free < queue_bytes_max / 4 { 0 } else { free }
    }

    /// Whether a caller who was told 0 should come again.
    pub fn writable_again(&self, queue_bytes_max: u32) -> bool {
        self.takes_data()
            && self.queued_bytes <= queue_bytes_max / 2
            && self.queue.len() <= QUEUE_PIECES_MAX / 2
    }

    pub fn push(&mut self, payload: P, queue_bytes_max: u32) -> Result<(), SendError> {
        if self.finish {
            return Err(SendError::Finished);
        }
        if !self.takes_data() {
            return Err(SendError::NotOpen);
        }
        let free = queue_bytes_max.saturating_sub(self.queued_bytes);
        let bytes = u32::try_from(payload.len()).map_err(|_| SendError::TooMuch)?;
        if bytes > free || self.queue.len() >= QUEUE_PIECES_MAX {
            return Err(SendError::TooMuch);
        }
        if bytes > 0 {
            self.queued_bytes += bytes;
            self.queue.push_back(payload);
        }
        Ok(())
    }

    pub fn front(&self) -> Option<&P> {
        self.queue.front()
    }

    /// Cuts `n` bytes off the first piece, which has as many.
    pub fn take_front(&mut self, n: usize) -> Option<P> {
        let front = self.queue.front_mut()?;
        let taken = if front.len() <= n { self.queue.pop_front()? } else { front.split_to(n) };
        let bytes = taken.len() as u32;
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
        self.sent += u64::from(bytes);
        if self.queue.is_empty() && self.queue.capacity() > QUEUE_KEPT_PIECES_MAX {
            self.queue = VecDeque::new();
        }
        Some(taken)
    }

    /// Drops what the window does not take now.
    pub fn truncate_to_window(&mut self) {
        let mut keep = self.send_window();
        let mut kept = VecDeque::new();
        let mut kept_bytes = 0;
        while keep > 0 {
            let Some(mut piece) = self.queue.pop_front() else { break };
            let piece = piece.split_to(usize::try_from(keep).unwrap_or(usize::MAX));
            keep -= piece.len() as u64;
            kept_bytes += piece.len() as u32;
            kept.push_back(piece);
        }
        self.queue = kept;
        self.queued_bytes = kept_bytes;
    }

    pub fn queued_bytes(&self) -> u32 {
        self.queued_bytes
    }

    pub fn send_window(&self) -> u64 {
        self.send_limit.saturating_sub(self.sent)
    }

    /// Whether the scheduler has something to do for it.
    pub fn wants_turn(&self) -> bool {
        if self.queued_bytes > 0 {
            return self.send_window() > 0;
        }
        match self.phase {
            Phase::Resetting(_) => true,
            _ => self.finish && !self.fin_sent,
        }
    }

    pub fn is_done(&self) -> bool {
        self.fin_sent && self.fin_received && self.consumed == self.received
    }

    /// What the caller is told when the lane is lost.
    pub fn loss(&self) -> Loss {
        match self.phase {
            Phase::Resetting(_) => Loss::Nothing,
            Phase::Opening if !self.open_sent => Loss::Refused(RefuseReason::LaneLost),
            _ => Loss::Reset(ResetReason::PeerLost),
        }
    }
}

pub(super) enum Loss {
    Nothing,
    Refused(RefuseReason),
    Reset(ResetReason),
}

/// Boxed: the table grows by moving its entries, and idle streams are many.
pub(super) type Streams<P> = HashMap<StreamId, Box<Stream<P>>, IdHash>;

/// Stream ids are numbers that the peer may choose; the seed keeps it from choosing collisions.
#[derive(Clone, Copy)]
pub(super) struct IdHash {
    pub seed: u64,
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher(self.seed)
    }
}

pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}
