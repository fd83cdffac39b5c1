//! Many streams, stopped streams, short streams.

use super::proof;
use super::semantics::exchange;
use crate::guest::Cluster;
use crate::guest::cluster::{PATIENCE, eventually, pod_ip};
use crate::guest::remote::clean;
use crate::guest::wire::{Call, Leave, Place};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Instant;

/// An echo server in pod `b`.
fn echo_server(cluster: &Cluster, port: u16) -> Result<SocketAddr> {
    let me = std::env::current_exe().context("find this program's own file")?;
    let hold = me.with_file_name("hold").to_string_lossy().into_owned();
    let spawn = Call::Spawn {
        place: Place::Pod("b".into()),
        name: format!("hold-{port}"),
        command: vec![hold, port.to_string()],
        port: Some(port),
    };
    cluster.machine(2).call::<Value>(spawn, PATIENCE)?;
    Ok(SocketAddr::new(pod_ip(2, false), port))
}

/// 16 streams go on beside one whose reader has stopped, and not much slower than before.
pub fn stopped_reader(cluster: &mut Cluster) -> Result<Option<String>> {
    const STREAMS: usize = 16;
    const BYTES: u64 = 1 << 20;
    let round = |cluster: &Cluster| -> Result<f64> {
        let pairs: Result<Vec<_>> = (0..STREAMS).map(|_| cluster.pair()).collect();
        let pairs = pairs?;
        let started = Instant::now();
        let mut under_way = Vec::new();
        for (near, far) in &pairs {
            under_way.push(near.start_write(4, BYTES, 64 << 10, Leave::Shutdown)?);
            under_way.push(far.start_check(4)?);
        }
        for (number, ticket) in under_way.into_iter().enumerate() {
            if number % 2 == 1 {
                clean(ticket, BYTES)?;
            } else {
                ticket.wait::<Value>(PATIENCE)?;
            }
        }
        Ok(started.elapsed().as_secs_f64())
    };
    round(cluster)?; // The lane is made, the windows grow.
    let before = round(cluster)?;
    let (near, far) = cluster.pair()?;
    let stuck = near.stall()?;
    let beside = round(cluster)?;
    near.leave(Leave::Shutdown)?;
    far.check(3, stuck)?;
    // Twice the time: an emulated CPU on a busy machine moves by itself.
    ensure!(
        beside <= before * 2.0 + 1.0,
        "16 streams took {before:.1} s, and {beside:.1} s beside a stopped one ({stuck} bytes in it)"
    );
    Ok(None)
}

/// What may not grow with connections that are over: descriptors, streams, queue pairs.
fn footprint(cluster: &Cluster) -> Result<[(u64, f64, f64, usize); 2]> {
    let of = |number| -> Result<_> {
        let metrics = cluster.metrics(number)?;
        Ok((
            cluster.node_state(number)?.open_files,
            metrics.sum("rdmesh_streams_active", &[]),
            metrics.sum("rdmesh_window_granted_bytes", &[]),
            proof::queue_pairs(cluster, number)?,
        ))
    };
    Ok([of(1)?, of(2)?])
}

/// 1,000 connections; on an emulated CPU each costs milliseconds.
pub fn churn(cluster: &mut Cluster) -> Result<Option<String>> {
    let to = echo_server(cluster, 7_100)?;
    let churn = |connections| -> Result<f64> {
        cluster.machine(1).call(Call::Churn { pod: "a".into(), to, connections }, 2 * PATIENCE)
    };
    churn(50)?;
    let settled = || Ok(footprint(cluster)?.iter().all(|node| node.1 == 0.0));
    eventually(PATIENCE, "the first connections end", settled)?;
    let before = footprint(cluster)?;
    let seconds = churn(1_000)?;
    let mut now = footprint(cluster)?;
    let mut same = || -> Result<bool> {
        now = footprint(cluster)?;
        // A scrape of a moment ago may still hold its descriptor.
        Ok((0..2).all(|n| {
            let (before, now) = (&before[n], &now[n]);
            now.0 <= before.0 + 1 && (now.1, now.2, now.3) == (before.1, before.2, before.3)
        }))
    };
    if eventually(PATIENCE / 3, "everything is as before", &mut same).is_err() {
        anyhow::bail!("before {before:?}, after 1,000 connections in {seconds:.1} s {now:?}");
    }
    Ok(None)
}

/// Streams share the lanes: one for each worker.
pub fn thousand_streams(cluster: &mut Cluster) -> Result<Option<String>> {
    const STREAMS: u32 = 1_000;
    let to = echo_server(cluster, 7_200 + u16::try_from(cluster.workers())?)?;
    // On a slow machine the nodes may still be on their way to each other; what cannot wait so long passes through.
    eventually(PATIENCE, "a lane is up", || {
        let (near, far) = cluster.pair()?;
        exchange(&near, &far, 1_000, 1_000, 1_000)?;
        Ok(cluster.metrics(1)?.sum("rdmesh_lane_up", &[]) > 0.0)
    })?;
    let call = Call::Hold { pod: "a".into(), to, streams: STREAMS };
    let held: u64 = cluster.machine(1).call(call, PATIENCE)?;
    cluster.machine(1).call::<Value>(Call::EchoHeld { held }, PATIENCE)?;
    for number in [1, 2] {
        let active = cluster.metrics(number)?.sum("rdmesh_streams_active", &[]);
        ensure!(active >= f64::from(STREAMS), "node {number} has {active} streams");
        let (pairs, workers) = (proof::queue_pairs(cluster, number)?, cluster.workers());
        ensure!(
            (1..=workers).contains(&pairs),
            "node {number} has {pairs} queue pairs for {workers} worker: {}",
            cluster.sh(number, "rdma resource show qp")?
        );
    }
    cluster.machine(1).call::<Value>(Call::DropHeld { held }, PATIENCE)?;
    let (near, far) = cluster.pair()?;
    exchange(&near, &far, 1_000, 1_000, 1_000)?;
    Ok(None)
}

/// Nothing of the device is held for a peer that nobody talks to; the next stream is on verbs again.
pub fn idle_lane(cluster: &mut Cluster) -> Result<Option<String>> {
    let before = proof::Counts::read(cluster)?;
    for _ in 0..2 {
        let (near, far) = cluster.pair()?;
        exchange(&near, &far, 1_000, 1_000, 1_000)?;
        for number in [1, 2] {
            eventually(PATIENCE, "the queue pairs are given back", || {
                Ok(proof::queue_pairs(cluster, number)? == 0)
            })?;
        }
    }
    let now = proof::Counts::read(cluster)?;
    ensure!(now.failovers == before.failovers, "an idle lane's end was counted as a failover");
    Ok(None)
}
