//! RDMA fails in the middle of things: streams do not notice, lanes move to tcp and come back.

use super::proof::{self, Counts};
use super::semantics::exchange;
use crate::guest::Cluster;
use crate::guest::cluster::{PATIENCE, eventually};
use crate::guest::remote::{clean, done};
use crate::guest::wire::{Call, Leave};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

const BYTES: u64 = 64 << 20;
const STEP: usize = 256 << 10;
/// A lane that can go back to verbs does so within this time.
const BACK_WITHIN: Duration = Duration::from_secs(40);

fn carried(cluster: &Cluster) -> Result<f64> {
    Ok(cluster.metrics(1)?.sum("rdmesh_stream_bytes_total", &[]))
}

/// Waits until a transfer that began at `start` bytes is well under way.
fn under_way(cluster: &Cluster, start: f64) -> Result<()> {
    #[allow(clippy::cast_precision_loss)]
    let mark = start + (BYTES / 4) as f64;
    eventually(PATIENCE, "bytes flow", || Ok(carried(cluster)? >= mark))
}

/// 64 MiB each way on one stream; when it is under way `disturb` does its work.
fn disturbed(cluster: &Cluster, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = carried(cluster)?;
    let (near, far) = cluster.pair()?;
    let writes = [
        near.start_write(21, BYTES, STEP, Leave::Shutdown)?,
        far.start_write(22, BYTES, STEP, Leave::Shutdown)?,
    ];
    let (at_far, at_near) = (far.start_check(21)?, near.start_check(22)?);
    under_way(cluster, start)?;
    disturb()?;
    clean(at_near, BYTES)?;
    clean(at_far, BYTES)?;
    writes.into_iter().try_for_each(done)
}

/// All lanes are on verbs before something happens to it.
pub(super) fn on_verbs(cluster: &Cluster) -> Result<()> {
    let (near, far) = cluster.pair()?;
    exchange(&near, &far, 1_000, 1_000, 1_000)?;
    eventually(BACK_WITHIN, "the lanes are on verbs", || {
        Ok(proof::lanes_on_verbs(cluster, 1)? && proof::lanes_on_verbs(cluster, 2)?)
    })
}

/// A failover was counted, nothing passed through, and the lanes go back to verbs.
fn failed_over_and_back(cluster: &Cluster, before: &Counts) -> Result<()> {
    let now = Counts::read(cluster)?;
    ensure!(now.failovers > before.failovers, "no failover was counted: {now:?}");
    ensure!(now.passed_through == before.passed_through, "connections passed through: {now:?}");
    eventually(BACK_WITHIN, "the lanes are back on verbs", || {
        Ok(proof::lanes_on_verbs(cluster, 1)? && proof::lanes_on_verbs(cluster, 2)?)
    })?;
    let before = Counts::read(cluster)?;
    let (near, far) = cluster.pair()?;
    exchange(&near, &far, 1 << 20, 1 << 20, STEP)?;
    before.assert_all_on_verbs(cluster).context("after the return to verbs")
}

pub fn device_removed(cluster: &mut Cluster) -> Result<Option<String>> {
    if let Some(why) = cluster.spared() {
        return Ok(Some(why));
    }
    on_verbs(cluster)?;
    let before = Counts::read(cluster)?;
    disturbed(cluster, || {
        // The counters go with the device.
        ensure!(proof::rnr(cluster)? == 0, "a queue pair found no receive buffer");
        cluster.sh(1, "rdma link delete rxe0")?;
        std::thread::sleep(Duration::from_secs(1));
        cluster.sh(1, "rdma link add rxe0 type rxe netdev under0").map(drop)
    })?;
    failed_over_and_back(cluster, &before)?;
    Ok(None)
}

pub fn interface_down(cluster: &mut Cluster) -> Result<Option<String>> {
    if let Some(why) = cluster.spared() {
        return Ok(Some(why));
    }
    on_verbs(cluster)?;
    let before = Counts::read(cluster)?;
    disturbed(cluster, || {
        cluster.machine(2).call::<Value>(Call::Underlay { up: false }, PATIENCE)?;
        std::thread::sleep(Duration::from_secs(2));
        cluster.machine(2).call::<Value>(Call::Underlay { up: true }, PATIENCE).map(drop)
    })?;
    failed_over_and_back(cluster, &before)?;
    Ok(None)
}

/// Every RoCE packet is dropped until the device gives up: its retries exceeded, the queue pair goes
/// to the error state, while TCP goes on.
pub fn queue_pair_error(cluster: &mut Cluster) -> Result<Option<String>> {
    if let Some(why) = cluster.spared() {
        return Ok(Some(why));
    }
    on_verbs(cluster)?;
    let before = Counts::read(cluster)?;
    let errors = |cluster: &Cluster| -> Result<f64> {
        let of = |number| -> Result<f64> {
            Ok(cluster.metrics(number)?.sum("rdmesh_verbs_completion_errors_total", &[]))
        };
        Ok(of(1)? + of(2)?)
    };
    let errors_before = errors(cluster)?;
    disturbed(cluster, || {
        filter(cluster, "drop")?;
        let failed =
            eventually(PATIENCE, "the queue pair fails", || Ok(errors(cluster)? > errors_before));
        unfilter(cluster)?;
        failed
    })?;
    failed_over_and_back(cluster, &before)?;
    Ok(None)
}

pub fn loss(cluster: &mut Cluster) -> Result<Option<String>> {
    if let Some(why) = cluster.spared() {
        return Ok(Some(why));
    }
    let (near, far) = cluster.pair()?;
    near.says_to(&far, 1, 1)?;
    filter(cluster, "numgen random mod 100 < 1 drop")?;
    let (near, far) = cluster.pair()?;
    // 16 MiB: a device that emulates go-back-N loses a time-out with each packet.
    let result = exchange(&near, &far, 16 << 20, 16 << 20, STEP);
    unfilter(cluster)?;
    result?;
    Ok(None)
}

const LOSSY: &str = "add table inet lossy; \
     add chain inet lossy in { type filter hook input priority 0; }; add rule inet lossy in";

/// Does this with RoCE packets that arrive, on both nodes. The device takes them from a UDP socket,
/// behind the packet filter.
fn filter(cluster: &Cluster, verdict: &str) -> Result<()> {
    for number in [1, 2] {
        cluster.sh(number, &format!("nft '{LOSSY} udp dport 4791 {verdict}'"))?;
    }
    Ok(())
}

fn unfilter(cluster: &Cluster) -> Result<()> {
    for number in [1, 2] {
        cluster.sh(number, "nft delete table inet lossy")?;
    }
    Ok(())
}

pub fn node_killed(cluster: &mut Cluster) -> Result<Option<String>> {
    on_verbs(cluster)?;
    let (near, far) = cluster.pair()?;
    near.says_to(&far, 1, 1_000)?;
    let (at_near, at_far) = (near.start_check(0)?, far.start_check(0)?);
    let killed = Instant::now();
    cluster.machine(2).call::<Value>(Call::KillNode, PATIENCE)?;
    for end in [at_near, at_far] {
        crate::guest::remote::reset(end).context("a stream of a killed node proxy")?;
    }
    let noticed = killed.elapsed();
    ensure!(noticed <= Duration::from_secs(3), "the peer noticed after {noticed:?}");
    let left = Duration::from_secs(3).saturating_sub(killed.elapsed());
    eventually(
        left,
        "the peer frees its queue pairs",
        || Ok(proof::queue_pairs(cluster, 1)? == 0),
    )?;
    cluster.machine(2).call::<Value>(Call::StartNode, PATIENCE)?;
    tunnels_again(cluster)?;
    Ok(None)
}

/// New connections pass through until the peer is found again; then they are on verbs.
fn tunnels_again(cluster: &Cluster) -> Result<()> {
    eventually(PATIENCE, "connections tunnel again", || {
        let before = Counts::read(cluster)?;
        let (near, far) = cluster.pair()?;
        near.says_to(&far, 1, 1_000)?;
        Ok(Counts::read(cluster)?.verbs_bytes > before.verbs_bytes)
    })
}

/// 12 restarts unless `RDMA_RESTARTS` says how many: each takes one to two seconds.
pub fn restarts(cluster: &mut Cluster) -> Result<Option<String>> {
    let wanted = std::env::var("RDMA_RESTARTS").unwrap_or_else(|_| "12".to_owned());
    let restarts: u32 =
        wanted.parse().with_context(|| format!("RDMA_RESTARTS is {wanted}: a number is wanted"))?;
    let once = || -> Result<()> {
        cluster.machine(2).call::<Value>(Call::KillNode, PATIENCE)?;
        cluster.machine(2).call::<Value>(Call::StartNode, PATIENCE)?;
        tunnels_again(cluster)
    };
    let settled = || {
        let active = |number| -> Result<f64> {
            Ok(cluster.metrics(number)?.sum("rdmesh_streams_active", &[]))
        };
        Ok(active(1)? == 0.0 && active(2)? == 0.0)
    };
    for _ in 0..2 {
        once()?;
    }
    eventually(PATIENCE, "no stream is left", settled)?;
    let read = || -> Result<_> {
        Ok((proof::resources(cluster, 1)?, proof::resources(cluster, 2)?, cluster.node_state(1)?))
    };
    let before = read()?;
    for number in 0..restarts {
        once().with_context(|| format!("restart {number}"))?;
    }
    eventually(PATIENCE, "no stream is left", settled)?;
    let after = read()?;
    ensure!(after.0 == before.0, "node 1's device:\n{}\nafter:\n{}", before.0, after.0);
    ensure!(after.1 == before.1, "node 2's device:\n{}\nafter:\n{}", before.1, after.1);
    let (files, were) = (after.2.open_files, before.2.open_files);
    ensure!(files <= were + 1, "node 1 had {were} descriptors, and now {files}");
    let (rss, was) = (after.2.rss_bytes, before.2.rss_bytes);
    if rss > was + (8 << 20) {
        bail!("node 1 had {was} bytes resident, and now {rss}");
    }
    Ok(None)
}
