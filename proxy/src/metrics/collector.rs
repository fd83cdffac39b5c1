//! Sums the workers' counters and shows them, with the control side's, as Prometheus metrics.
//!
//! Runs at scrape, on the control runtime; it only loads.

use super::control::NodeMetrics;
use super::family::{Family, Kind, Sample};
use super::labels::{
    CompletionStatus, Direction, FabricKind, FailoverReason, HandoffOutcome, Outcome,
    PassthroughReason, PeerRejected, PolicyDirection, ReloadOutcome, Role, SlabState,
};
use super::worker::{OPEN_BUCKETS_SECONDS, WorkerMetrics};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family { name, help, kind: Kind::Counter, labels }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, help, kind: Kind::Gauge, labels }
}

const STREAMS_ACTIVE: Family =
    gauge("rdmesh_streams_active", &["role", "fabric"], "Streams that are open now.");
const STREAMS: Family =
    counter("rdmesh_streams_total", &["role", "fabric", "outcome"], "Streams that ended, by how.");
const STREAM_BYTES: Family = counter(
    "rdmesh_stream_bytes_total",
    &["direction", "fabric"],
    "Payload of streams, sent to and received from peers.",
);
const STREAM_OPEN: Family = Family {
    name: "rdmesh_stream_open_seconds",
    help: "Time from the handoff of a client's socket until the far side opened the stream.",
    kind: Kind::Histogram,
    labels: &[],
};
const PASSTHROUGH: Family = counter(
    "rdmesh_passthrough_total",
    &["reason"],
    "Connections that did not go through the mesh, by why.",
);
const LANE_UP: Family = gauge(
    "rdmesh_lane_up",
    &["peer", "lane", "fabric"],
    "1 while the lane has a link, 0 while it waits for one.",
);
const LANE_FAILOVERS: Family =
    counter("rdmesh_lane_failovers_total", &["reason"], "Links that lanes lost, by why.");
const VERBS_COMPLETION_ERRORS: Family = counter(
    "rdmesh_verbs_completion_errors_total",
    &["status"],
    "Queue pairs that failed, by the status of the completion that told.",
);
const MOVED_BYTES: Family = counter(
    "rdmesh_stream_moved_bytes_total",
    &["direction"],
    "Payload from and to applications that was moved between sockets and not copied.",
);
const LINK_MESSAGES: Family = counter(
    "rdmesh_link_messages_total",
    &["direction", "fabric"],
    "Messages sent to and received from peers.",
);
const MESSAGES_RESENT: Family = counter(
    "rdmesh_lane_messages_resent_total",
    &[],
    "Messages that were sent again on another link.",
);
const SLAB_BYTES: Family =
    gauge("rdmesh_slab_bytes", &["state"], "Memory of the workers' slabs, by what it is doing.");
const WINDOW_GRANTED: Family =
    gauge("rdmesh_window_granted_bytes", &[], "Sum of the receive windows granted to peers.");
const WINDOW_BUDGET: Family =
    gauge("rdmesh_window_budget_bytes", &[], "What the sum of receive windows may reach.");
const HANDOFF: Family = counter(
    "rdmesh_handoff_total",
    &["outcome"],
    "Connections of pods and sockets to applications, by what became of them.",
);
const POLICY_DENIED: Family =
    counter("rdmesh_policy_denied_total", &["direction"], "Connections that a policy denied.");
const PEER_REJECTED: Family =
    counter("rdmesh_peer_rejected_total", &["reason"], "Peers and streams of peers turned away.");
const DIRECTORY_RELOADS: Family =
    counter("rdmesh_directory_reloads_total", &["outcome"], "Changes of the directory seen.");
const DIRECTORY_GENERATION: Family =
    gauge("rdmesh_directory_generation", &[], "Number of the directory snapshot in use.");

const FAMILIES: [&Family; 19] = [
    &STREAMS_ACTIVE,
    &STREAMS,
    &STREAM_BYTES,
    &MOVED_BYTES,
    &STREAM_OPEN,
    &PASSTHROUGH,
    &LANE_UP,
    &LANE_FAILOVERS,
    &VERBS_COMPLETION_ERRORS,
    &LINK_MESSAGES,
    &MESSAGES_RESENT,
    &SLAB_BYTES,
    &WINDOW_GRANTED,
    &WINDOW_BUDGET,
    &HANDOFF,
    &POLICY_DENIED,
    &PEER_REJECTED,
    &DIRECTORY_RELOADS,
    &DIRECTORY_GENERATION,
];

/// The collector of a node proxy.
#[derive(Debug)]
pub(super) struct NodeCollector {
    node: Arc<NodeMetrics>,
    workers: Vec<Arc<WorkerMetrics>>,
    descs: Vec<Desc>,
}

impl NodeCollector {
    pub fn new(
        node: Arc<NodeMetrics>,
        workers: Vec<Arc<WorkerMetrics>>,
    ) -> prometheus::Result<Self> {
        let descs = FAMILIES.iter().map(|f| f.desc()).collect::<Result<_, _>>()?;
        Ok(Self { node, workers, descs })
    }

    fn sum(&self, pick: impl Fn(&WorkerMetrics) -> &AtomicU64) -> f64 {
        self.workers.iter().map(|w| pick(w).load(Relaxed)).sum::<u64>() as f64
    }

    fn streams(&self, out: &mut Vec<MetricFamily>) {
        let mut active = Vec::new();
        let mut ended = Vec::new();
        for (&role, &fabric) in pairs(Role::ALL, FabricKind::ALL) {
            let (r, f) = (role.index(), fabric.index());
            let now: i64 = self.workers.iter().map(|w| w.streams_active[r][f].load(Relaxed)).sum();
            active.push(Sample::new(&[role.as_str(), fabric.as_str()], now as f64));
            for outcome in Outcome::ALL {
                let labels = [role.as_str(), fabric.as_str(), outcome.as_str()];
                let n = self.sum(|w| &w.streams_ended[r][f][outcome.index()]);
                ended.push(Sample::new(&labels, n));
            }
        }
        out.push(STREAMS_ACTIVE.collect(active));
        out.push(STREAMS.collect(ended));
    }

    fn traffic(&self, out: &mut Vec<MetricFamily>) {
        let mut bytes = Vec::new();
        let mut messages = Vec::new();
        for (&direction, &fabric) in pairs(Direction::ALL, FabricKind::ALL) {
            let (d, f) = (direction.index(), fabric.index());
            let labels = [direction.as_str(), fabric.as_str()];
            bytes.push(Sample::new(&labels, self.sum(|w| &w.stream_bytes[d][f])));
            messages.push(Sample::new(&labels, self.sum(|w| &w.link_messages[d][f])));
        }
        out.push(STREAM_BYTES.collect(bytes));
        out.push(LINK_MESSAGES.collect(messages));
        out.push(
            MOVED_BYTES.collect(
                Direction::ALL
                    .iter()
                    .map(|d| Sample::new(&[d.as_str()], self.sum(|w| &w.moved_bytes[d.index()]))),
            ),
        );
        let resent = self.sum(|w| &w.messages_resent);
        out.push(MESSAGES_RESENT.collect([Sample::plain(resent)]));
    }

    fn opening(&self, out: &mut Vec<MetricFamily>) {
        let mut buckets = [0; OPEN_BUCKETS_SECONDS.len() + 1];
        let mut sum_seconds = 0.0;
        for worker in &self.workers {
            for (sum, n) in buckets.iter_mut().zip(&worker.open.buckets) {
                *sum += n.load(Relaxed);
            }
            sum_seconds += worker.open.sum_nanos.load(Relaxed) as f64 / 1e9;
        }
        out.push(STREAM_OPEN.collect_histogram(&OPEN_BUCKETS_SECONDS, &buckets, sum_seconds));
    }

    fn memory(&self, out: &mut Vec<MetricFamily>) {
        let slab = SlabState::ALL
            .iter()
            .map(|s| Sample::new(&[s.as_str()], self.sum(|w| &w.slab_bytes[s.index()])));
        out.push(SLAB_BYTES.collect(slab));
        let granted = self.sum(|w| &w.window_granted_bytes);
        out.push(WINDOW_GRANTED.collect([Sample::plain(granted)]));
        let budget = self.sum(|w| &w.window_budget_bytes);
        out.push(WINDOW_BUDGET.collect([Sample::plain(budget)]));
    }

    fn admission(&self, out: &mut Vec<MetricFamily>) {
        let node = &self.node;
        out.push(PASSTHROUGH.collect(PassthroughReason::ALL.iter().map(|r| {
            let i = r.index();
            let control = node.passthrough[i].load(Relaxed) as f64;
            Sample::new(&[r.as_str()], control + self.sum(|w| &w.passthrough[i]))
        })));
        out.push(HANDOFF.collect(HandoffOutcome::ALL.iter().map(|o| {
            let i = o.index();
            let control = node.handoff[i].load(Relaxed) as f64;
            Sample::new(&[o.as_str()], control + self.sum(|w| &w.handoff[i]))
        })));
        out.push(
            POLICY_DENIED.collect(
                PolicyDirection::ALL
                    .iter()
                    .map(|d| Sample::new(&[d.as_str()], self.sum(|w| &w.policy_denied[d.index()]))),
            ),
        );
    }

    fn control(&self, out: &mut Vec<MetricFamily>) {
        let node = &self.node;
        let of = |label: &str, n: &AtomicU64| Sample::new(&[label], n.load(Relaxed) as f64);
        out.push(LANE_UP.collect(self.lanes()));
        out.push(LANE_FAILOVERS.collect(
            FailoverReason::ALL.iter().map(|r| of(r.as_str(), &node.failovers[r.index()])),
        ));
        out.push(
            VERBS_COMPLETION_ERRORS.collect(
                CompletionStatus::ALL
                    .iter()
                    .map(|s| of(s.as_str(), &node.completion_errors[s.index()])),
            ),
        );
        out.push(PEER_REJECTED.collect(
            PeerRejected::ALL.iter().map(|r| of(r.as_str(), &node.peer_rejected[r.index()])),
        ));
        out.push(DIRECTORY_RELOADS.collect(
            ReloadOutcome::ALL.iter().map(|o| of(o.as_str(), &node.directory_reloads[o.index()])),
        ));
        let generation = node.directory_generation.load(Relaxed) as f64;
        out.push(DIRECTORY_GENERATION.collect([Sample::plain(generation)]));
    }

    fn lanes(&self) -> Vec<Sample> {
        let lanes = self.node.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes
            .iter()
            .map(|((peer, lane), (fabric, up))| {
                let lane = lane.to_string();
                Sample::new(&[peer, &lane, fabric.as_str()], f64::from(u8::from(*up)))
            })
            .collect()
    }
}

fn pairs<'a, A, B>(a: &'a [A], b: &'a [B]) -> impl Iterator<Item = (&'a A, &'a B)> {
    a.iter().flat_map(move |x| b.iter().map(move |y| (x, y)))
}

impl Collector for NodeCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut out = Vec::with_capacity(FAMILIES.len());
        self.streams(&mut out);
        self.traffic(&mut out);
        self.opening(&mut out);
        self.memory(&mut out);
        self.admission(&mut out);
        self.control(&mut out);
        out
    }
}
