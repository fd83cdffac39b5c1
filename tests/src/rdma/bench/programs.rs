//! Application to application: sockperf and iperf3 through the mesh, over kernel TCP, over rsockets
//! (preloaded), and what rdmacm-utils' own `rstream` does over rsockets; the floor of a proxy over them.
//!
//! What it does not do: wait for what stalls. After its time a program is killed, and the table says so.

use super::figures::Figures;
use super::talks::{self, PING_PONGS, PORT, Path, RELAYS, SIZES, pod};
use super::{KILLED, Listens, PEER, both_ends};
use crate::guest::Cluster;
use crate::guest::cluster::{PATIENCE, pod_ip};
use crate::guest::wire::{Call, Measured, PRELOAD, Server, Sockets, Talk, Workload};
use crate::topology;
use anyhow::{Context, Result, anyhow, bail};
use rdmesh_proxy::demo::workload::{IPERF_PORT, SOCKPERF_PORT};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The pods outside the mesh are the second ones of their nodes.
pub(super) const OUTSIDE: u8 = 11;
const SOCKPERF_SECONDS: u64 = 2;
const IPERF_SECONDS: u64 = 4;
/// For what may stall: several times what it would take.
const STALLS_AFTER: Duration = Duration::from_secs(10);
/// rsockets' listeners are known to no tool.
const RSOCKETS_LISTEN_AFTER: Duration = Duration::from_millis(1_500);
/// rsockets are addressed by the device's own address, which no namespace has.
const NO_ADDRESS: &str = "not tried: the device has no address on a node";

pub(super) fn prepare(cluster: &Cluster) -> Result<()> {
    for name in ["b", "y"] {
        for server in [Server::Iperf, Server::Sockperf] {
            let call = Call::Serve { pod: name.into(), server };
            cluster.machine(2).call::<Value>(call, PATIENCE)?;
        }
        talks::hear(cluster, pod(name), Sockets::Tcp, PORT)?;
    }
    if cluster.spared().is_none() {
        talks::start_relays(cluster, Sockets::Rsocket, PEER.parse()?)?;
    }
    Ok(())
}

pub(super) fn round(cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    // The lane may have no link yet, or have given it back while others were measured.
    let (near, far) = cluster.pair()?;
    near.says_to(&far, 1, 64)?;
    drop((near, far));
    for (path, client, to) in
        [("tcp", "x", IpAddr::V4(topology::pod_v4(2, OUTSIDE))), ("rdmesh", "a", pod_ip(2, false))]
    {
        for size in SIZES {
            let work = Workload::Sockperf { message_bytes: size, seconds: SOCKPERF_SECONDS };
            let ping = program(cluster, client, to, SOCKPERF_PORT, work).map(|m| m.value);
            figures.add(&format!("{path} sockperf {size}"), ping)?;
        }
        let work = Workload::Iperf { streams: 1, seconds: IPERF_SECONDS };
        let bulk = program(cluster, client, to, IPERF_PORT, work).map(|m| m.value * 1e3);
        figures.add(&format!("{path} iperf3"), bulk)?;
    }
    rsockets(cluster, figures)?;
    for talk in PING_PONGS.into_iter().chain([Talk::Bulk]) {
        talks::say_meshed(cluster, talk, figures)?;
        let path = Path::relays();
        if cluster.spared().is_some() {
            figures.miss(RELAYS, NO_ADDRESS.to_owned());
        } else {
            talks::say_on_device(cluster, &path, talk, &path.figure(talk), figures)?;
        }
    }
    Ok(())
}

fn program(
    cluster: &Cluster,
    client: &str,
    ip: IpAddr,
    port: u16,
    workload: Workload,
) -> Result<Measured> {
    let call = Call::Workload { from: client.into(), to: SocketAddr::new(ip, port), workload };
    cluster.machine(1).call(call, PATIENCE)
}

fn rsockets(cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    type Try<'a> = (String, Box<dyn Fn(&Cluster) -> Result<f64> + 'a>);
    let mut tries: Vec<Try<'_>> = Vec::new();
    for size in SIZES {
        tries.push((format!("rstream {size}"), Box::new(move |c| rstream_latency(c, size))));
        tries.push((format!("rsockets sockperf {size}"), Box::new(move |c| sockperf(c, size))));
    }
    tries.push(("rstream bulk".into(), Box::new(rstream_bulk)));
    tries.push(("rsockets iperf3".into(), Box::new(iperf)));
    for (name, one) in tries {
        if figures.missing().contains_key(&name) {
            continue;
        }
        if cluster.spared().is_some() {
            figures.miss(&name, NO_ADDRESS.to_owned());
            continue;
        }
        match one(cluster) {
            Ok(figure) => figures.add(&name, Ok(figure))?,
            Err(error) => figures.miss(&name, format!("{error:#}")),
        }
    }
    Ok(())
}

/// The client's output, or what became of it.
fn over_rsockets(cluster: &Cluster, server: &str, client: &str) -> Result<String> {
    let server = (server, Listens::After(RSOCKETS_LISTEN_AFTER));
    let ended = both_ends(cluster, server, client, STALLS_AFTER)?;
    if KILLED.contains(&ended.code) {
        bail!("stalls (killed after {} s)", STALLS_AFTER.as_secs());
    }
    if ended.code != Some(0) {
        let all = format!("{}{}", ended.stderr, ended.stdout);
        let last = all.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        bail!("fails (exit {:?}: {})", ended.code.unwrap_or(-1), last.trim());
    }
    Ok(ended.stdout)
}

fn sockperf(cluster: &Cluster, size: u32) -> Result<f64> {
    let server =
        format!("env LD_PRELOAD={PRELOAD} sockperf server --tcp -i {PEER} -p {SOCKPERF_PORT}");
    let client = format!(
        "env LD_PRELOAD={PRELOAD} sockperf ping-pong --tcp -i {PEER} -p {SOCKPERF_PORT} -t {SOCKPERF_SECONDS} \
         --msg-size {size}"
    );
    let output = over_rsockets(cluster, &server, &client)?;
    let line = output.lines().find(|line| line.contains("percentile 50.000"));
    let figure = line.and_then(|line| line.rsplit('=').next()?.trim().parse().ok());
    figure.ok_or_else(|| anyhow!("fails (no figures)"))
}

/// Mbit/s.
fn iperf(cluster: &Cluster) -> Result<f64> {
    let server = format!("env LD_PRELOAD={PRELOAD} iperf3 -s -1 -p {IPERF_PORT}");
    let client =
        format!("env LD_PRELOAD={PRELOAD} iperf3 -c {PEER} -p {IPERF_PORT} -t {IPERF_SECONDS} -J");
    let output = over_rsockets(cluster, &server, &client)?;
    let report: Value = serde_json::from_str(&output).context("iperf3's report")?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    let bits = bits.filter(|bits| *bits > 0.0);
    bits.map(|bits| bits / 1e6).ok_or_else(|| anyhow!("fails (moves nothing)"))
}

/// One way over an rsocket, µs.
fn rstream_latency(cluster: &Cluster, size: u32) -> Result<f64> {
    rstream(cluster, size, 300, 1, 0)
}

/// Mbit/s over an rsocket, 64 KiB a call, 64 calls one way and then the other.
fn rstream_bulk(cluster: &Cluster) -> Result<f64> {
    rstream(cluster, 65_536, 5, 64, 1).map(|gbit| gbit * 1e3)
}

/// The figure that is so many words from the end of what `rstream` says last.
fn rstream(
    cluster: &Cluster,
    size: u32,
    iterations: u32,
    transfers: u32,
    from_end: usize,
) -> Result<f64> {
    let common = format!("rstream -T b -S {size} -I {iterations} -C {transfers}");
    let output = over_rsockets(cluster, &common, &format!("{common} -s {PEER}"))?;
    let words: Vec<&str> =
        output.lines().last().map(|line| line.split_whitespace().collect()).unwrap_or_default();
    let figure = words.iter().rev().nth(from_end).and_then(|word| word.parse().ok());
    let figure: f64 = figure.with_context(|| format!("in: {output}"))?;
    if figure > 0.0 { Ok(figure) } else { Err(anyhow!("fails (no figure in: {output})")) }
}
