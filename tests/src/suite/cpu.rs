//! CPU time of the two nodes while a job runs: user and system of what belongs to each, and the
//! interrupt work, which is the machine's and cannot be told apart.

use std::time::Instant;

const TICKS_PER_SECOND: f64 = 100.0;
/// Others' share of the machine above which a measurement does not count as clean.
const FOREIGN_MAX: f64 = 0.05;
const STEAL_MAX: f64 = 0.03;

#[derive(Debug, Clone, Copy, Default)]
pub struct Node {
    pub user: f64,
    pub system: f64,
}

pub struct Meter {
    /// By node; with their children, which nginx and PostgreSQL work in.
    pids: [Vec<u32>; 2],
    begun: Instant,
    nodes: [Node; 2],
    machine: Machine,
}

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub seconds: f64,
    pub nodes: [Node; 2],
    pub softirq: f64,
    pub clean: bool,
}

impl Usage {
    pub fn total(&self) -> f64 {
        self.nodes.iter().map(|node| node.user + node.system).sum::<f64>() + self.softirq
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub busy: f64,
    pub softirq: f64,
    pub steal: f64,
    pub cpus: f64,
}

impl Meter {
    /// Client programs are children of this process: they belong to node 1.
    pub fn start(pids: [Vec<u32>; 2]) -> Self {
        Self { nodes: nodes(&pids), machine: machine(), begun: Instant::now(), pids }
    }

    pub fn stop(&self) -> Usage {
        let seconds = self.begun.elapsed().as_secs_f64();
        let (now, machine) = (nodes(&self.pids), machine());
        let mut used = [Node::default(); 2];
        for (used, (now, then)) in used.iter_mut().zip(now.iter().zip(&self.nodes)) {
            *used = Node { user: now.user - then.user, system: now.system - then.system };
        }
        let softirq = machine.softirq - self.machine.softirq;
        let all = seconds * machine.cpus;
        let mut usage = Usage { seconds, nodes: used, softirq, clean: true };
        let foreign = (machine.busy - self.machine.busy - usage.total()) / all;
        let steal = (machine.steal - self.machine.steal) / all;
        usage.clean = foreign <= FOREIGN_MAX && steal <= STEAL_MAX;
        usage
    }
}

fn nodes(pids: &[Vec<u32>; 2]) -> [Node; 2] {
    let mut nodes = [Node::default(); 2];
    for (node, pids) in nodes.iter_mut().zip(pids) {
        // Asked each time: a server may start a child for each connection.
        for pid in pids.iter().flat_map(|pid| with_children(*pid)) {
            add(node, &format!("/proc/{pid}/stat"));
        }
    }
    // The client programs were children of this process.
    add(&mut nodes[0], "/proc/self/stat");
    nodes
}

/// A process and those that it has started.
pub fn with_children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let children = text.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// Adds fields 14 and 15 of a `stat`, and 16 and 17, those of its children that have ended.
fn add(node: &mut Node, path: &str) {
    let stat = std::fs::read_to_string(path).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    for (index, ticks) in fields.split(' ').skip(11).take(4).enumerate() {
        let seconds = ticks.parse::<f64>().unwrap_or(0.0) / TICKS_PER_SECOND;
        if index % 2 == 0 { node.user += seconds } else { node.system += seconds }
    }
}

pub(crate) fn machine() -> Machine {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let cpus = stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count();
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse::<f64>().unwrap_or(0.0) / TICKS_PER_SECOND)
        .collect();
    let at = |index: usize| fields.get(index).copied().unwrap_or(0.0);
    // user nice system idle iowait irq softirq steal
    let softirq = at(5) + at(6);
    #[allow(clippy::cast_precision_loss)]
    let cpus = cpus.max(1) as f64;
    Machine { busy: at(0) + at(1) + at(2) + softirq, softirq, steal: at(7), cpus }
}
