//! CPU time of a stretch: ours, and what the rest of the machine took meanwhile.

use crate::suite::cpu::{Machine, machine};
use rdmesh_proxy::demo::lab::process::cpu_seconds;
use std::time::Instant;

const TICKS_PER_SECOND: f64 = 100.0;

/// A running measurement.
#[derive(Debug)]
pub struct Meter {
    pids: Vec<u32>,
    started: Instant,
    ours: f64,
    machine: Machine,
}

/// What a stretch took.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// CPU seconds of our processes and of the kernel's interrupt work, which is done for them.
    pub cpu_seconds: f64,
    /// CPU time of others, as a share of all CPUs.
    pub foreign: f64,
    pub steal: f64,
}

impl Meter {
    /// `pids` live through the whole stretch; children of this process that end in it are counted
    /// too.
    #[must_use]
    pub fn start(pids: &[u32]) -> Self {
        let pids = pids.to_vec();
        Self { ours: ours(&pids), machine: machine(), started: Instant::now(), pids }
    }

    #[must_use]
    pub fn stop(&self) -> Usage {
        let wall = self.started.elapsed().as_secs_f64();
        let now = machine();
        let all = wall * now.cpus;
        let interrupts = now.softirq - self.machine.softirq;
        let cpu_seconds = ours(&self.pids) - self.ours + interrupts;
        let busy = now.busy - self.machine.busy;
        Usage {
            cpu_seconds,
            foreign: ((busy - cpu_seconds) / all).max(0.0),
            steal: (now.steal - self.machine.steal) / all,
        }
    }
}

fn ours(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| cpu_seconds(*pid)).sum::<f64>() + self_and_children()
}

/// This process, and its children that have ended and were waited for.
fn self_and_children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(11).take(4).filter_map(|f| f.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}
