//! Counters of one worker.
//!
//! Each worker has its own, so that no cache line of the data path is shared between workers; they
//! are summed at scrape. What it does not do: anything that locks or allocates.

use super::labels::{
    Direction, FabricKind, HandoffOutcome, Outcome, PassthroughReason, PolicyDirection, Role,
    SlabState,
};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the opening-time histogram.
pub(super) const OPEN_BUCKETS_SECONDS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0,
    5.0, 10.0,
];
const OPEN_BUCKETS_NANOS: [u64; OPEN_BUCKETS_SECONDS.len()] = [
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

type Counters<const N: usize> = [AtomicU64; N];

fn counters<const N: usize>() -> Counters<N> {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// One histogram; the last bucket is the one without an upper bound.
#[derive(Debug)]
pub(super) struct OpenHistogram {
    pub buckets: Counters<{ OPEN_BUCKETS_SECONDS.len() + 1 }>,
    pub sum_nanos: AtomicU64,
}

// Aligned so that two workers' counters never share a cache line (or a prefetched pair).
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerMetrics {
    pub(super) streams_active: [[AtomicI64; FabricKind::COUNT]; Role::COUNT],
    pub(super) streams_ended: [[Counters<{ Outcome::COUNT }>; FabricKind::COUNT]; Role::COUNT],
    pub(super) stream_bytes: [Counters<{ FabricKind::COUNT }>; Direction::COUNT],
    pub(super) moved_bytes: Counters<{ Direction::COUNT }>,
    pub(super) link_messages: [Counters<{ FabricKind::COUNT }>; Direction::COUNT],
    pub(super) passthrough: Counters<{ PassthroughReason::COUNT }>,
    pub(super) handoff: Counters<{ HandoffOutcome::COUNT }>,
    pub(super) policy_denied: Counters<{ PolicyDirection::COUNT }>,
    pub(super) slab_bytes: Counters<{ SlabState::COUNT }>,
    pub(super) window_granted_bytes: AtomicU64,
    pub(super) window_budget_bytes: AtomicU64,
    pub(super) messages_resent: AtomicU64,
    pub(super) open: OpenHistogram,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl WorkerMetrics {
    #[must_use]
    pub fn new() -> Self {
        Self {
            streams_active: std::array::from_fn(|_| std::array::from_fn(|_| AtomicI64::new(0))),
            streams_ended: std::array::from_fn(|_| std::array::from_fn(|_| counters())),
            stream_bytes: std::array::from_fn(|_| counters()),
            moved_bytes: counters(),
            link_messages: std::array::from_fn(|_| counters()),
            passthrough: counters(),
            handoff: counters(),
            policy_denied: counters(),
            slab_bytes: counters(),
            window_granted_bytes: AtomicU64::new(0),
            window_budget_bytes: AtomicU64::new(0),
            messages_resent: AtomicU64::new(0),
            open: OpenHistogram { buckets: counters(), sum_nanos: AtomicU64::new(0) },
        }
    }

    pub fn stream_started(&self, role: Role, fabric: FabricKind) {
        self.streams_active[role.index()][fabric.index()].fetch_add(1, Relaxed);
    }

    /// `fabric` is the one that the stream was last counted under.
    pub fn stream_ended(&self, role: Role, fabric: FabricKind, outcome: Outcome) {
        self.streams_active[role.index()][fabric.index()].fetch_sub(1, Relaxed);
        self.streams_ended[role.index()][fabric.index()][outcome.index()].fetch_add(1, Relaxed);
    }

    /// A lane with `count` streams of this role went over to another fabric.
    pub fn streams_moved(&self, role: Role, from: FabricKind, to: FabricKind, count: u32) {
        let count = i64::from(count);
        self.streams_active[role.index()][from.index()].fetch_sub(count, Relaxed);
        self.streams_active[role.index()][to.index()].fetch_add(count, Relaxed);
    }

    /// Streams that are open now, over all roles and fabrics.
    #[must_use]
    pub fn active(&self) -> u64 {
        let sum: i64 = self.streams_active.iter().flatten().map(|a| a.load(Relaxed)).sum();
        u64::try_from(sum).unwrap_or(0)
    }

    /// Payload of streams, without any header.
    pub fn bytes(&self, direction: Direction, fabric: FabricKind, n: u64) {
        self.stream_bytes[direction.index()][fabric.index()].fetch_add(n, Relaxed);
    }

    /// Those of them that were not copied between the application's socket and the link.
    pub fn moved(&self, direction: Direction, n: u64) {
        self.moved_bytes[direction.index()].fetch_add(n, Relaxed);
    }

    pub fn messages(&self, direction: Direction, fabric: FabricKind, n: u64) {
        self.link_messages[direction.index()][fabric.index()].fetch_add(n, Relaxed);
    }

    pub fn messages_resent(&self, n: u64) {
        self.messages_resent.fetch_add(n, Relaxed);
    }

    /// Time from the handoff of the client's socket until the peer's OPENED arrived.
    pub fn opened_in(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = OPEN_BUCKETS_NANOS.partition_point(|&bound| bound < nanos);
        self.open.buckets[bucket].fetch_add(1, Relaxed);
        self.open.sum_nanos.fetch_add(nanos, Relaxed);
    }

    pub fn passthrough(&self, reason: PassthroughReason) {
        self.passthrough[reason.index()].fetch_add(1, Relaxed);
    }

    pub fn handoff(&self, outcome: HandoffOutcome) {
        self.handoff[outcome.index()].fetch_add(1, Relaxed);
    }

    pub fn policy_denied(&self, direction: PolicyDirection) {
        self.policy_denied[direction.index()].fetch_add(1, Relaxed);
    }

    /// Set, not added: what the worker's slab holds in this state now.
    pub fn slab_bytes(&self, state: SlabState, bytes: u64) {
        self.slab_bytes[state.index()].store(bytes, Relaxed);
    }

    /// Set, not added: the receive windows granted by this worker now, and its share of the budget.
    pub fn windows(&self, granted_bytes: u64, budget_bytes: u64) {
        self.window_granted_bytes.store(granted_bytes, Relaxed);
        self.window_budget_bytes.store(budget_bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_agree_and_bounds_are_inclusive() {
        for (s, n) in OPEN_BUCKETS_SECONDS.iter().zip(OPEN_BUCKETS_NANOS) {
            assert_eq!(Duration::from_secs_f64(*s), Duration::from_nanos(n));
        }
        let m = WorkerMetrics::new();
        m.opened_in(Duration::from_micros(50));
        m.opened_in(Duration::from_micros(51));
        m.opened_in(Duration::from_secs(11));
        m.opened_in(Duration::MAX);
        let seen: Vec<u64> = m.open.buckets.iter().map(|b| b.load(Relaxed)).collect();
        assert_eq!((seen[0], seen[1], seen[16]), (1, 1, 2));
    }

    #[test]
    fn active_follows_moves() {
        let m = WorkerMetrics::new();
        m.stream_started(Role::Client, FabricKind::Verbs);
        m.stream_started(Role::Server, FabricKind::Verbs);
        m.streams_moved(Role::Client, FabricKind::Verbs, FabricKind::Tcp, 1);
        m.stream_ended(Role::Client, FabricKind::Tcp, Outcome::Closed);
        assert_eq!(m.active(), 1);
        m.stream_ended(Role::Server, FabricKind::Verbs, Outcome::Reset);
        assert_eq!(m.active(), 0);
    }
}
