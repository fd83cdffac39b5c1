//! Counters of the control side: peers, lanes, directory, handoff that no worker has seen yet.

use super::labels::{
    CompletionStatus, FabricKind, FailoverReason, HandoffOutcome, PassthroughReason, PeerRejected,
    ReloadOutcome,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Series of `rdmesh_lane_up` at most; lanes above it are not shown one by one.
const LANES_MAX: usize = 65_536;

pub(super) type LaneKey = (Arc<str>, u32);

#[derive(Debug)]
pub struct NodeMetrics {
    pub(super) lanes: Mutex<BTreeMap<LaneKey, (FabricKind, bool)>>,
    pub(super) failovers: [AtomicU64; FailoverReason::COUNT],
    pub(super) peer_rejected: [AtomicU64; PeerRejected::COUNT],
    pub(super) directory_reloads: [AtomicU64; ReloadOutcome::COUNT],
    pub(super) directory_generation: AtomicU64,
    pub(super) handoff: [AtomicU64; HandoffOutcome::COUNT],
    pub(super) passthrough: [AtomicU64; PassthroughReason::COUNT],
    pub(super) completion_errors: [AtomicU64; CompletionStatus::COUNT],
}

impl Default for NodeMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl NodeMetrics {
    #[must_use]
    pub fn new() -> Self {
        Self {
            lanes: Mutex::new(BTreeMap::new()),
            failovers: std::array::from_fn(|_| AtomicU64::new(0)),
            peer_rejected: std::array::from_fn(|_| AtomicU64::new(0)),
            directory_reloads: std::array::from_fn(|_| AtomicU64::new(0)),
            directory_generation: AtomicU64::new(0),
            handoff: std::array::from_fn(|_| AtomicU64::new(0)),
            passthrough: std::array::from_fn(|_| AtomicU64::new(0)),
            completion_errors: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// A lane exists and has a link (`up`), or waits for one. A later call replaces the fabric.
    pub fn lane(&self, peer: &Arc<str>, lane: u32, fabric: FabricKind, up: bool) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let full = lanes.len() >= LANES_MAX;
        match lanes.entry((peer.clone(), lane)) {
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                entry.insert((fabric, up));
            }
            std::collections::btree_map::Entry::Vacant(entry) if !full => {
                entry.insert((fabric, up));
            }
            std::collections::btree_map::Entry::Vacant(_) => {}
        }
    }

    /// The lane is gone for good.
    pub fn lane_removed(&self, peer: &Arc<str>, lane: u32) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.remove(&(peer.clone(), lane));
    }

    pub fn failover(&self, reason: FailoverReason) {
        self.failovers[reason.index()].fetch_add(1, Relaxed);
    }

    pub fn peer_rejected(&self, reason: PeerRejected) {
        self.peer_rejected[reason.index()].fetch_add(1, Relaxed);
    }

    #[must_use]
    pub fn peer_rejected_count(&self, reason: PeerRejected) -> u64 {
        self.peer_rejected[reason.index()].load(Relaxed)
    }

    pub fn directory_reload(&self, outcome: ReloadOutcome) {
        self.directory_reloads[outcome.index()].fetch_add(1, Relaxed);
    }

    /// Set, not added: the generation of the snapshot in use.
    pub fn directory_generation(&self, generation: u64) {
        self.directory_generation.store(generation, Relaxed);
    }

    pub fn handoff(&self, outcome: HandoffOutcome) {
        self.handoff[outcome.index()].fetch_add(1, Relaxed);
    }

    pub fn completion_error(&self, status: CompletionStatus) {
        self.completion_errors[status.index()].fetch_add(1, Relaxed);
    }

    pub fn passthrough(&self, reason: PassthroughReason) {
        self.passthrough[reason.index()].fetch_add(1, Relaxed);
    }
}
