//! What a node proxy says about itself at `/status`, and its form for a terminal.
//!
//! The JSON form is what scripts read: fields are added, not renamed. What it does not do: ask
//! workers or peers; see `node`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

/// What one worker answers when it is asked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WorkerStatus {
    pub index: usize,
    pub streams: u64,
    pub window_granted_bytes: u64,
    pub window_budget_bytes: u64,
    pub slab_bytes: u64,
    pub slab_used_bytes: u64,
    pub lanes: Vec<LaneStatus>,
    /// Uids of the pods whose sidecars are connected.
    pub pods: Vec<String>,
}

/// A lane in a worker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneStatus {
    /// Empty for the same-node pair.
    pub peer: String,
    pub lane: u16,
    pub fabric: String,
    pub encrypted: bool,
    /// Whether a link carries it.
    pub attached: bool,
    pub streams: u64,
    pub unacked_messages: u64,
    /// None before the first measurement.
    pub srtt_us: Option<u64>,
    pub failovers: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: String,
    pub version: String,
    pub uptime_seconds: u64,
    pub draining: bool,
    pub directory: DirectoryStatus,
    pub streams: StreamsStatus,
    /// Receive windows granted to peers.
    pub budget: BudgetStatus,
    pub slab: SlabStatus,
    pub workers: Vec<WorkerSummary>,
    pub peers: Vec<PeerStatus>,
    /// The pods of this node.
    pub pods: Vec<PodStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DirectoryStatus {
    pub generation: u64,
    pub nodes: u64,
    pub pods: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamsStatus {
    pub active: u64,
    /// Those of them between two pods of this node; such a stream counts with both its ends.
    pub local: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BudgetStatus {
    pub granted_bytes: u64,
    pub max_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlabStatus {
    pub used_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSummary {
    pub worker: usize,
    pub streams: u64,
    pub budget: BudgetStatus,
    pub slab: SlabStatus,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    /// As the directory says now; none when it does not have the peer any more.
    pub address: Option<SocketAddr>,
    /// Of the control session: `idle`, `dialing`, `backoff`, `up`.
    pub state: String,
    /// Which run of the peer's process, in hexadecimal: it is too large a number for some readers.
    pub incarnation: Option<String>,
    pub draining: bool,
    /// Attempts in a row that failed.
    pub failures: u32,
    pub last_error: Option<String>,
    pub lanes: Vec<PeerLane>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerLane {
    pub lane: u16,
    pub worker: usize,
    /// `verbs`, `tcp` or `shm`.
    pub fabric: String,
    pub encrypted: bool,
    pub state: LaneState,
    pub streams: u64,
    pub unacked_messages: u64,
    /// None before the first measurement.
    pub srtt_us: Option<u64>,
    pub failovers: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneState {
    /// A link carries it.
    Up,
    /// Its streams wait for a link.
    Waiting,
    /// No link, and no streams that would need one.
    Idle,
}

impl LaneState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Waiting => "waiting",
            Self::Idle => "idle",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    pub name: String,
    pub uid: String,
    /// Whether its sidecar is connected.
    pub connected: bool,
}

impl NodeStatus {
    /// Puts the workers' answers into place: sums, lanes under their peers, pods marked.
    #[must_use]
    pub fn with_workers(mut self, workers: Vec<WorkerStatus>) -> Self {
        let mut peers: BTreeMap<String, PeerStatus> =
            self.peers.into_iter().map(|p| (p.name.clone(), p)).collect();
        for worker in workers {
            let budget = BudgetStatus {
                granted_bytes: worker.window_granted_bytes,
                max_bytes: worker.window_budget_bytes,
            };
            let slab =
                SlabStatus { used_bytes: worker.slab_used_bytes, total_bytes: worker.slab_bytes };
            self.streams.active += worker.streams;
            self.budget.granted_bytes += budget.granted_bytes;
            self.budget.max_bytes += budget.max_bytes;
            self.slab.used_bytes += slab.used_bytes;
            self.slab.total_bytes += slab.total_bytes;
            let (worker_index, streams) = (worker.index, worker.streams);
            self.workers.push(WorkerSummary { worker: worker_index, streams, budget, slab });
            for lane in worker.lanes {
                if lane.peer.is_empty() {
                    self.streams.local += lane.streams;
                    continue;
                }
                let entry = peers.entry(lane.peer.clone());
                let peer = entry.or_insert_with_key(|name| PeerStatus::gone(name));
                peer.lanes.push(PeerLane::of(lane, worker.index));
            }
            for pod in &mut self.pods {
                pod.connected |= worker.pods.contains(&pod.uid);
            }
        }
        self.workers.sort_by_key(|w| w.worker);
        self.peers = peers.into_values().collect();
        for peer in &mut self.peers {
            peer.lanes.sort_by_key(|l| (l.lane, l.worker));
        }
        self
    }

    /// For a terminal: aligned columns, no colours.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.head(&mut out);
        let peers = self.peers.iter().map(PeerStatus::row);
        table(&mut out, &["PEER", "ADDRESS", "STATE", "LANES", "STREAMS", "FAILURES"], peers);
        for peer in &self.peers {
            if let Some(error) = &peer.last_error {
                let _ = writeln!(out, "{}: last error: {}", plain(&peer.name), plain(error));
            }
        }
        let lanes = self.peers.iter().flat_map(|p| p.lanes.iter().map(|l| l.row(&p.name)));
        let columns =
            ["PEER", "LANE", "WORKER", "FABRIC", "ENCRYPTED", "STATE", "STREAMS", "UNACKED"];
        let columns: Vec<&str> = columns.into_iter().chain(["SRTT", "FAILOVERS"]).collect();
        table(&mut out, &columns, lanes);
        let workers = self.workers.iter().map(WorkerSummary::row);
        table(&mut out, &["WORKER", "STREAMS", "WINDOWS", "SLAB"], workers);
        let pods = self.pods.iter().map(|p| {
            let sidecar = if p.connected { "connected" } else { "away" };
            vec![p.name.clone(), p.uid.clone(), sidecar.to_owned()]
        });
        table(&mut out, &["POD", "UID", "SIDECAR"], pods);
        out
    }

    fn head(&self, out: &mut String) {
        let draining = if self.draining { ", draining" } else { "" };
        let _ = writeln!(
            out,
            "node {}, rdmesh {}, up {}{draining}",
            plain(&self.node),
            plain(&self.version),
            duration(self.uptime_seconds)
        );
        let _ = writeln!(
            out,
            "directory: generation {}, {} nodes, {} pods",
            self.directory.generation, self.directory.nodes, self.directory.pods
        );
        let _ = writeln!(
            out,
            "streams: {} open, {} of them within this node",
            self.streams.active, self.streams.local
        );
        let _ = writeln!(out, "windows: {} granted", self.budget.text());
        let _ = writeln!(out, "slab: {} in use", self.slab.text());
    }
}

impl PeerStatus {
    fn gone(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: None,
            state: "gone".to_owned(),
            incarnation: None,
            draining: false,
            failures: 0,
            last_error: None,
            lanes: Vec::new(),
        }
    }

    fn row(&self) -> Vec<String> {
        let up = self.lanes.iter().filter(|l| l.state == LaneState::Up).count();
        let streams: u64 = self.lanes.iter().map(|l| l.streams).sum();
        let draining = if self.draining { ", draining" } else { "" };
        vec![
            self.name.clone(),
            self.address.map_or_else(|| "-".to_owned(), |a| a.to_string()),
            format!("{}{draining}", self.state),
            format!("{up}/{}", self.lanes.len()),
            streams.to_string(),
            self.failures.to_string(),
        ]
    }
}

impl PeerLane {
    fn of(lane: LaneStatus, worker: usize) -> Self {
        let state = match (lane.attached, lane.streams) {
            (true, _) => LaneState::Up,
            (false, 0) => LaneState::Idle,
            (false, _) => LaneState::Waiting,
        };
        Self {
            lane: lane.lane,
            worker,
            fabric: lane.fabric,
            encrypted: lane.encrypted,
            state,
            streams: lane.streams,
            unacked_messages: lane.unacked_messages,
            srtt_us: lane.srtt_us,
            failovers: lane.failovers,
        }
    }

    fn row(&self, peer: &str) -> Vec<String> {
        vec![
            peer.to_owned(),
            self.lane.to_string(),
            self.worker.to_string(),
            self.fabric.clone(),
            if self.encrypted { "yes" } else { "no" }.to_owned(),
            self.state.as_str().to_owned(),
            self.streams.to_string(),
            self.unacked_messages.to_string(),
            self.srtt_us.map_or_else(|| "-".to_owned(), |us| format!("{us}us")),
            self.failovers.to_string(),
        ]
    }
}

impl WorkerSummary {
    fn row(&self) -> Vec<String> {
        let (worker, streams) = (self.worker.to_string(), self.streams.to_string());
        vec![worker, streams, self.budget.text(), self.slab.text()]
    }
}

impl BudgetStatus {
    fn text(&self) -> String {
        format!("{} of {}", bytes(self.granted_bytes), bytes(self.max_bytes))
    }
}

impl SlabStatus {
    fn text(&self) -> String {
        format!("{} of {}", bytes(self.used_bytes), bytes(self.total_bytes))
    }
}

/// An empty line, then columns as wide as their widest cell. Nothing when there are no rows.
fn table(out: &mut String, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let head = columns.iter().map(|&c| c.to_owned()).collect();
    let clean = |row: Vec<String>| row.iter().map(|c| plain(c)).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows.map(clean)).collect();
    if rows.len() == 1 {
        return;
    }
    let mut widths = vec![0; columns.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    out.push('\n');
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// A text may come from a peer: nothing in it may steer the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m {}s", seconds % 60),
        3_600..86_400 => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(peer: &str, lane: u16, streams: u64) -> LaneStatus {
        LaneStatus {
            peer: peer.into(),
            lane,
            fabric: "tcp".into(),
            encrypted: true,
            attached: true,
            streams,
            unacked_messages: 3,
            srtt_us: Some(85),
            failovers: 0,
        }
    }

    fn sample() -> NodeStatus {
        let status = NodeStatus {
            node: "a".into(),
            version: "0.1.0".into(),
            uptime_seconds: 93_784,
            draining: false,
            directory: DirectoryStatus { generation: 4, nodes: 3, pods: 6 },
            streams: StreamsStatus::default(),
            budget: BudgetStatus::default(),
            slab: SlabStatus::default(),
            workers: Vec::new(),
            peers: vec![PeerStatus {
                name: "node-b".into(),
                address: Some("192.0.2.2:15700".parse().unwrap()),
                state: "up".into(),
                incarnation: Some("00c0ffee".into()),
                draining: false,
                failures: 2,
                last_error: Some("no answer\x1b[2J in time".into()),
                lanes: Vec::new(),
            }],
            pods: vec![
                PodStatus { name: "web".into(), uid: "u1".into(), connected: false },
                PodStatus { name: "db".into(), uid: "u2".into(), connected: false },
            ],
        };
        let worker = |index, lanes, pods| WorkerStatus {
            index,
            streams: 6,
            window_granted_bytes: 1 << 20,
            window_budget_bytes: 256 << 20,
            slab_bytes: 64 << 20,
            slab_used_bytes: 1536,
            lanes,
            pods,
        };
        let waiting = LaneStatus { attached: false, srtt_us: None, ..lane("c", 0, 1) };
        status.with_workers(vec![
            worker(1, vec![lane("node-b", 1, 4), lane("", 0, 2)], vec![]),
            worker(0, vec![lane("node-b", 0, 5), waiting], vec!["u1".into()]),
        ])
    }

    #[test]
    fn text() {
        let expected = "\
node a, rdmesh 0.1.0, up 1d 2h
directory: generation 4, 3 nodes, 6 pods
streams: 12 open, 2 of them within this node
windows: 2 MiB of 512 MiB granted
slab: 3 KiB of 128 MiB in use

PEER    ADDRESS          STATE  LANES  STREAMS  FAILURES
c       -                gone   0/1    1        0
node-b  192.0.2.2:15700  up     2/2    9        2
node-b: last error: no answer [2J in time

PEER    LANE  WORKER  FABRIC  ENCRYPTED  STATE    STREAMS  UNACKED  SRTT  FAILOVERS
c       0     0       tcp     yes        waiting  1        3        -     0
node-b  0     0       tcp     yes        up       5        3        85us  0
node-b  1     1       tcp     yes        up       4        3        85us  0

WORKER  STREAMS  WINDOWS           SLAB
0       6        1 MiB of 256 MiB  1.5 KiB of 64 MiB
1       6        1 MiB of 256 MiB  1.5 KiB of 64 MiB

POD  UID  SIDECAR
web  u1   connected
db   u2   away
";
        assert_eq!(sample().to_text(), expected);
    }

    #[test]
    fn json_goes_both_ways() {
        let status = sample();
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["peers"][1]["lanes"][0]["fabric"], "tcp");
        assert_eq!(json["peers"][0]["lanes"][0]["state"], "waiting");
        assert_eq!(json["budget"]["max_bytes"], 512 << 20);
        assert_eq!(serde_json::from_value::<NodeStatus>(json).unwrap(), status);
    }

    #[test]
    fn quantities() {
        let texts = [0, 1023, 1024, 1 << 62].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1 KiB", "4194304 TiB"]);
        let texts = [59, 61, 3_661].map(duration);
        assert_eq!(texts, ["59s", "1m 1s", "1h 1m"]);
    }
}
