//! The process's own resources, read from `/proc/self` at scrape; names as Prometheus's client
//! libraries have them.

use super::family::{Family, Kind, Sample};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const FAMILIES: [Family; 4] = [
    Family {
        name: "process_resident_memory_bytes",
        help: "Resident memory of the process.",
        kind: Kind::Gauge,
        labels: &[],
    },
    Family {
        name: "process_cpu_seconds_total",
        help: "User and system CPU time of the process.",
        kind: Kind::Counter,
        labels: &[],
    },
    Family {
        name: "process_open_fds",
        help: "Open file descriptors of the process.",
        kind: Kind::Gauge,
        labels: &[],
    },
    Family {
        name: "process_start_time_seconds",
        help: "When the process registered its metrics, in seconds since the epoch.",
        kind: Kind::Gauge,
        labels: &[],
    },
];

/// Reads the values in the order of [`FAMILIES`]; what cannot be read is left out.
pub(super) fn sample(started: SystemTime) -> [Option<Sample>; 4] {
    let started = started.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs_f64());
    [resident_bytes(), Some(cpu_seconds()), open_fds(), started].map(|v| v.map(Sample::plain))
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib * 1024) as f64)
}

fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

fn open_fds() -> Option<f64> {
    // The descriptor of the listing itself is one too many.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1)) as f64)
}
