//! Lanes that nobody uses give their link back: its connection, its queue pair, its receive buffers.
//!
//! The state machine stays as it is, so that a stream that the peer opens at the same moment arrives
//! over the next link. Either end may begin; the other, whose lane is idle as well, does not miss it.
//! What it does not do: end control sessions; they tell when a peer's process is gone.

use super::Worker;
use super::lane::{Carrier, LaneSlot};
use super::slots::Key;
use crate::fabric::Broken;
use crate::node::messages::{NodeName, Request};
use std::time::{Duration, Instant};
use tracing::info;

impl LaneSlot {
    fn unused(&self) -> bool {
        matches!(self.carrier, Carrier::Link(_))
            && self.streams.is_empty()
            && self.waiting.is_empty()
            && self.attempt.is_none()
            && self.mux.is_idle()
    }

    /// Keeps account of how long nobody has used the lane.
    pub(super) fn note_use(&mut self, now: Instant, idle_after: Duration) {
        let since = self.idle_since.unwrap_or(now);
        self.idle_since = self.unused().then_some(since);
        self.release_at = self.idle_since.and_then(|since| since.checked_add(idle_after));
    }
}

impl Worker {
    pub(super) fn idle_after(&self) -> Duration {
        Duration::from_millis(self.config.timeouts.lane_idle_ms)
    }

    /// Gives the link of a lane back that was idle for long enough.
    pub(super) fn idle_timeout(&mut self, key: Key) {
        let Some(slot) = self.lanes.get(key) else { return };
        if slot.release_at.is_some_and(|at| at <= self.now) {
            self.release(key);
        }
    }

    /// Whether the end of a link is the peer's release of it. The peers' clocks start at the same
    /// message, but stop at times of their own: half of the time is enough.
    pub(super) fn released_by_peer(&mut self, key: Key, error: &Broken) -> bool {
        let enough = self.idle_after() / 2;
        let Some(slot) = self.lanes.get(key) else { return false };
        let idle = slot.idle_since.is_some_and(|since| self.now.duration_since(since) >= enough);
        let released = idle && slot.unused() && matches!(error, Broken::Closed | Broken::Io(_));
        if released {
            self.release(key);
        }
        released
    }

    fn release(&mut self, key: Key) {
        self.drop_link(key);
        let Some(slot) = self.lanes.get_mut(key) else { return };
        slot.carrier = Carrier::None;
        slot.released = true;
        info!(peer = &*slot.peer, lane = slot.number, "idle lane, its link is released");
        let request = Request::LaneIdle { peer: NodeName::clone(&slot.peer), lane: slot.number };
        self.request(request);
    }
}
