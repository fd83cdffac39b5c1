//! The client programs, and what their output says.

use super::paths::Kind;
use crate::Lab;
use crate::netns::Netns;
use anyhow::{Context, Result, bail};
use rdmesh_proxy::demo::workload::{self, SOCKPERF_BYTES_MAX, Target};
use std::process::Command;
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(20);
pub const PING_METRICS: [(&str, &str); 8] = [
    ("mean", "avg-latency="),
    ("standard deviation", "(std-dev="),
    ("p50", "percentile 50.000 ="),
    ("p99", "percentile 99.000 ="),
    ("p99.9", "percentile 99.900 ="),
    ("p99.99", "percentile 99.990 ="),
    ("p99.999", "percentile 99.999 ="),
    ("max", "<MAX> observation ="),
];

pub fn check(kinds: &[Kind]) -> Result<()> {
    let mut wanted = vec!["ip", "iperf3", "sockperf", "nginx", "wrk", "redis-benchmark", "pgbench"];
    if kinds.iter().any(|kind| matches!(kind, Kind::Haproxy { .. })) {
        wanted.push("haproxy");
    }
    workload::check_programs(&wanted)
}

/// One-way times in µs, in the order of [`PING_METRICS`].
pub fn ping_pong(
    lab: &Lab,
    from: &Netns,
    to: Target,
    bytes: u32,
    time: Duration,
) -> Result<Vec<f64>> {
    let mut command = sockperf("ping-pong", to, bytes, time);
    let text = lab.run(from, &mut command, time + GRACE)?.stdout;
    let text = plain(&text);
    PING_METRICS
        .iter()
        .map(|(name, key)| number(&text, key).with_context(|| format!("sockperf gave no {name}")))
        .collect()
}

/// Messages per second.
pub fn throughput(lab: &Lab, from: &Netns, to: Target, bytes: u32, time: Duration) -> Result<f64> {
    let mut command = sockperf("throughput", to, bytes, time);
    let text = lab.run(from, &mut command, time + GRACE)?.stdout;
    number(&plain(&text), "Message Rate is").context("sockperf gave no rate")
}

fn sockperf(mode: &str, to: Target, bytes: u32, time: Duration) -> Command {
    let mut command = Command::new("sockperf");
    command.args([mode, "--tcp", "-i", &to.ip.to_string(), "-p", &to.port.to_string()]);
    command.args(["-t", &time.as_secs().max(1).to_string()]);
    // Below 14 bytes it does not go.
    command.args(["--msg-size", &bytes.clamp(14, SOCKPERF_BYTES_MAX).to_string()]);
    command
}

/// Requests per second over 16 connections.
pub fn wrk(
    lab: &Lab,
    from: &Netns,
    to: Target,
    file: &str,
    keep_alive: bool,
    time: Duration,
) -> Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c16", &format!("-d{}s", time.as_secs().max(1))]);
    if !keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{}:{}/{file}", to.ip, to.port));
    let text = lab.run(from, &mut command, time + GRACE)?.stdout;
    if text.contains("Socket errors") || text.contains("Non-2xx") {
        bail!("wrk saw errors: {}", text.trim());
    }
    number(&text, "Requests/sec:").context("wrk gave no rate")
}

/// Transactions per second of select-only pgbench with 8 clients.
pub fn pgbench(lab: &Lab, from: &Netns, to: Target, time: Duration) -> Result<f64> {
    let mut command = Command::new("pgbench");
    command.args(["-h", &to.ip.to_string(), "-p", &to.port.to_string(), "-U", "postgres"]);
    command.args(["-S", "-n", "-c", "8", "-T", &time.as_secs().max(1).to_string(), "postgres"]);
    let text = lab.run(from, &mut command, time + GRACE)?.stdout;
    number(&text, "tps =").context("pgbench gave no rate")
}

/// sockperf colours its output even in a file.
fn plain(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, escape)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = escape.split_once('m').map_or("", |(_, tail)| tail);
    }
    plain + rest
}

/// The number after the first `key`; runs of blanks count as one.
fn number(text: &str, key: &str) -> Option<f64> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let rest = text.split_once(key)?.1.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sockperf_says_is_understood() {
        let text = "sockperf: \u{1b}[2;35m====> avg-latency=9.412 (std-dev=2.031, mean-ad=0.6)\u{1b}[0m\n\
                    sockperf: ---> <MAX> observation =  120.500\n\
                    sockperf: ---> percentile 99.999 =  119.250\n\
                    sockperf: Summary: Message Rate is 417230 [msg/sec]\n";
        let text = plain(text);
        assert_eq!(number(&text, "avg-latency="), Some(9.412));
        assert_eq!(number(&text, "(std-dev="), Some(2.031));
        assert_eq!(number(&text, "<MAX> observation ="), Some(120.5));
        assert_eq!(number(&text, "percentile 99.999 ="), Some(119.25));
        assert_eq!(number(&text, "Message Rate is"), Some(417_230.0));
        assert_eq!(number(&text, "nothing"), None);
    }
}
