//! The fabric alone: `rdmesh-proxy bench-link` and perftest's `ib_send_lat -e`, `ib_send_bw -e`,
//! between the two nodes, no node proxy in the way.

use super::figures::Figures;
use super::{Listens, PEER, both_ends};
use crate::binary;
use crate::guest::Cluster;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::time::Duration;

pub(super) const SIZES: [u32; 4] = [64, 1024, 16_384, 65_536];
const LIMIT: Duration = Duration::from_secs(60);
/// With `-e` perftest now and then waits for ever in such a guest, or says 0.
const PERFTEST_LIMIT: Duration = Duration::from_secs(20);
const PERFTEST_TRIES: u32 = 4;
/// The RoCE v2 GID of an emulated node's IPv4 address; other devices' perftest finds by itself.
const GID: &str = "-x 1";
const PERFTEST_PORT: u16 = 18_515;
const LINK_PORT: u16 = 15_799;

/// The typical latency, or millions of messages a second, in a line of perftest's.
const FIGURE: usize = 4;
/// With as many messages a call as make a batch: what the device can gain from that.
const BATCH: u32 = 32;
const LISTS: &str = "ib_send_bw -l 32 -Q 32";
/// A guest has no room for the defaults.
const LIMITS: &str = "limits: {window_budget_bytes: 67108864, slab_bytes: 16777216}";

/// Messages there and back.
fn iterations(size: u32) -> u32 {
    if size > 16_384 { 150 } else { 600 }
}

/// Perftest and bench-link in turns, size by size.
pub(super) fn round(cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    for number in [1, 2] {
        let (file, device) = (config(cluster, number), cluster.device(number));
        let config = format!("node: {{{LIMITS}, verbs: {{device: {device}}}}}");
        cluster.sh(number, &format!("echo '{config}' > {file}"))?;
    }
    for size in SIZES {
        let latency = perftest(cluster, "ib_send_lat", size, iterations(size));
        figures.add(&format!("perftest latency {size}"), latency)?;
        // Millions of messages a second.
        let rate = perftest(cluster, "ib_send_bw", size, 4 * iterations(size));
        figures.add(&format!("perftest rate {size}"), rate.map(|millions| millions * 1e6))?;
        if size == SIZES[0] {
            let rate = perftest(cluster, LISTS, size, 4 * iterations(size) / BATCH * BATCH);
            figures.add(&format!("perftest list {size}"), rate.map(|millions| millions * 1e6))?;
        }
        bench_link(cluster, size, figures)?;
    }
    Ok(())
}

fn config(cluster: &Cluster, number: u8) -> String {
    format!("{}/bench-link{number}.yaml", cluster.scratch().display())
}

fn perftest(cluster: &Cluster, program: &str, size: u32, iterations: u32) -> Result<f64> {
    let mut tries = 1;
    loop {
        match perftest_once(cluster, program, size, iterations) {
            Err(error) if tries < PERFTEST_TRIES => {
                eprintln!("  once more, since {error:#}");
                tries += 1;
            }
            other => return other,
        }
    }
}

fn perftest_once(cluster: &Cluster, program: &str, size: u32, iterations: u32) -> Result<f64> {
    let gid = if cluster.spared().is_some() { "" } else { GID };
    let command = |number| {
        let device = cluster.device(number);
        format!("{program} -F -e -d {device} {gid} -s {size} -n {iterations}")
    };
    let server = command(2);
    let server = (server.as_str(), Listens::At(PERFTEST_PORT));
    let ended = both_ends(cluster, server, &format!("{} {PEER}", command(1)), PERFTEST_LIMIT)?;
    if ended.code != Some(0) {
        bail!("{program}: exit {:?}: {}{}", ended.code, ended.stdout, ended.stderr);
    }
    let output = ended.stdout;
    let line = output.lines().find(|line| {
        line.split_whitespace().next().and_then(|word| word.parse().ok()) == Some(size)
    });
    let word = line.and_then(|line| line.split_whitespace().nth(FIGURE));
    let figure: Option<f64> = word.and_then(|word| word.parse().ok());
    figure.filter(|figure| *figure > 0.0).with_context(|| format!("no figure in: {output}"))
}

/// One run for one size; the smallest brings the lane's figure as well.
fn bench_link(cluster: &Cluster, size: u32, figures: &mut Figures) -> Result<()> {
    let proxy = binary::proxy();
    let command =
        |number| format!("{} bench-link --config {}", proxy.display(), config(cluster, number));
    let (listen, connect) = (format!("0.0.0.0:{LINK_PORT}"), format!("{PEER}:{LINK_PORT}"));
    let lane = if size == SIZES[0] { ",lane" } else { "" };
    let messages = if size > 16_384 { 10 * iterations(size) } else { iterations(size) };
    let server = format!("{} --listen {listen}", command(2));
    let client = format!(
        "{} --connect {connect} --json --sizes {size} --messages {messages} \
         --tests latency,rate{lane}",
        command(1)
    );
    let ended = both_ends(cluster, (&server, Listens::At(LINK_PORT)), &client, LIMIT)?;
    if ended.code != Some(0) {
        bail!("bench-link: exit {:?}: {}", ended.code, ended.stderr);
    }
    let report: Value = serde_json::from_str(&ended.stdout).context("bench-link's report")?;
    ensure!(report["fabric"] == "verbs", "bench-link was not on verbs: {report}");
    let figure = |test: &str, key: &str| {
        let all = report["figures"].as_array().context("bench-link's figures")?;
        let found = all.iter().find(|figure| figure["test"] == test).context("a test")?;
        found[key].as_f64().with_context(|| format!("no {key} in {found}"))
    };
    figures.add(&format!("link latency {size}"), figure("latency", "p50_us"))?;
    figures.add(&format!("link latency p99 {size}"), figure("latency", "p99_us"))?;
    figures.add(&format!("link rate {size}"), figure("rate", "messages_per_second"))?;
    if !lane.is_empty() {
        figures.add(&format!("lane rate {size}"), figure("lane", "pieces_per_second"))?;
    }
    Ok(())
}
