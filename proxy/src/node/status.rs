//! What `/status` tells.

use serde::{Deserialize, Serialize};

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub index: usize,
    pub streams: u64,
    pub window_granted_bytes: u64,
    pub window_budget_bytes: u64,
    pub slab_bytes: u64,
    pub slab_used_bytes: u64,
    pub lanes: Vec<LaneStatus>,
    /// Uids of the pods whose sidecar is connected.
    pub pods: Vec<String>,
}

/// One lane of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaneStatus {
    pub peer: String,
    pub lane: u16,
    pub fabric: String,
    pub encrypted: bool,
    pub attached: bool,
    pub streams: u64,
    pub unacked_messages: u64,
    pub srtt_us: Option<u64>,
    pub failovers: u64,
}
