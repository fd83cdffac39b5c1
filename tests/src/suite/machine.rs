//! On what it was measured.

use serde::{Deserialize, Serialize};
use std::process::Command;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// Of the last minute, when the run began.
    pub load: f64,
    /// Programs and what they say their version is.
    pub versions: Vec<(String, String)>,
}

const PROGRAMS: [(&str, &str); 8] = [
    ("iperf3", "--version"),
    ("sockperf", "--version"),
    ("nginx", "-v"),
    ("wrk", "-v"),
    ("redis-server", "--version"),
    ("pgbench", "--version"),
    ("haproxy", "-v"),
    ("ip", "-V"),
];

impl Machine {
    #[must_use]
    pub fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let cpuinfo = read("/proc/cpuinfo");
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok());
        let mut versions = vec![("rdmesh".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        for (program, flag) in PROGRAMS {
            versions.extend(version(program, flag).map(|version| (program.to_owned(), version)));
        }
        Self {
            cpu: field(&cpuinfo, "model name"),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: memory.unwrap_or(0) >> 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0.0),
            versions,
        }
    }
}

/// The first word with a digit and a dot of what it says; programs do not agree on the stream.
fn version(program: &str, flag: &str) -> Option<String> {
    let program = rdmesh_proxy::demo::workload::program(program);
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).replace(['/', ',', '=', '-'], " ");
    let is_version = |word: &&str| word.contains('.') && word.chars().any(|c| c.is_ascii_digit());
    text.split_whitespace().find(is_version).map(str::to_owned)
}
