//! `make bench-rdma`: the fabric against perftest, and programs through the mesh against kernel TCP
//! and rsockets, all between the same two guests, interleaved, as medians.
//!
//! What it does not do: tell absolute speeds. The processors are emulated: only ratios within one run
//! mean anything.

use super::scenarios::FORCED;
use crate::guest::cluster::{PATIENCE, eventually, pod_ip};
use crate::guest::wire::{Call, Ended, Measured, Place, Server, Workload};
use crate::guest::{Cluster, Setting};
use crate::{Plan, binary, topology};
use anyhow::{Context, Result, bail, ensure};
use rdmesh_proxy::demo::workload::{IPERF_PORT, SOCKPERF_PORT};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const SIZES: [u32; 4] = [64, 1024, 4096, 65_536];
/// The pods outside the mesh are the second ones of their nodes.
const OUTSIDE: u8 = 11;
const PEER: &str = "192.168.77.2";

/// Figures by name; every round adds one.
#[derive(Debug, Default)]
struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn add(&mut self, name: String, figure: Result<f64>) -> Result<()> {
        let figure = figure.with_context(|| name.clone())?;
        eprintln!("  {name}: {figure:.2}");
        self.0.entry(name).or_default().push(figure);
        Ok(())
    }

    fn median(&self, name: &str) -> Option<f64> {
        let mut all = self.0.get(name)?.clone();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

/// # Errors
/// When the lab cannot be built or a program fails.
pub fn run(rounds: u32) -> Result<()> {
    let started = Instant::now();
    let plan = Plan::new().pod("a", 1).outsider("x", 1).pod("b", 2).outsider("y", 2);
    let mut cluster = Cluster::boot(&plan, &binary::proxy())?;
    let mut figures = Figures::default();
    let result = measure(&mut cluster, rounds, &mut figures);
    if result.is_err() {
        cluster.print_logs();
        cluster.keep_logs();
    }
    result?;
    cluster.power_off()?;
    print(&figures, rounds);
    eprintln!("done in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn measure(cluster: &mut Cluster, rounds: u32, figures: &mut Figures) -> Result<()> {
    for pod in ["b", "y"] {
        for server in [Server::Iperf, Server::Sockperf] {
            cluster.guest(2).call::<Value>(Call::Serve { pod: pod.into(), server }, PATIENCE)?;
        }
    }
    cluster.mesh(&Setting::new(FORCED))?;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for size in SIZES {
            figures.add(format!("perftest latency {size}"), perftest_latency(cluster, size))?;
            figures.add(format!("perftest rate {size}"), perftest_rate(cluster, size))?;
        }
        for (name, size) in [("64", 64), ("65536", 65_536)] {
            figures.add(format!("rstream latency {name}"), rstream(cluster, size))?;
        }
        for (path, client, to) in [
            ("tcp", "x", IpAddr::V4(topology::pod_v4(2, OUTSIDE))),
            ("rdmesh", "a", pod_ip(2, false)),
        ] {
            for size in [64, 16_384] {
                let work = Workload::Sockperf { message_bytes: size, seconds: 3 };
                let ping = program(cluster, client, to, SOCKPERF_PORT, work).map(|m| m.value);
                figures.add(format!("{path} sockperf {size}"), ping)?;
            }
            let work = Workload::Iperf { streams: 1, seconds: 4 };
            let bulk = program(cluster, client, to, IPERF_PORT, work).map(|m| m.value * 1e3);
            figures.add(format!("{path} iperf3"), bulk)?;
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
    cluster.guest(1).call(call, PATIENCE)
}

/// Runs `server` on node 2 and, when it listens on `port`, `client` on node 1; the client's output.
fn both_ends(cluster: &Cluster, server: &str, port: u16, client: &str) -> Result<String> {
    let command = vec!["sh".into(), "-c".into(), format!("exec timeout 40 {server}")];
    let call = Call::Run { place: Place::Node, command, within_ms: 45_000 };
    let serving = cluster.guest(2).start_call(call)?;
    if port != 0 {
        eventually(Duration::from_secs(20), "the server listens", || {
            Ok(!cluster.sh(2, &format!("ss -Hltn 'sport = {port}'"))?.trim().is_empty())
        })?;
    } else {
        std::thread::sleep(Duration::from_millis(1_500));
    }
    let output = cluster.sh(1, &format!("timeout 40 {client}"))?;
    let ended: Ended = serving.wait(PATIENCE)?;
    if ended.code != Some(0) {
        bail!("{server}: exit {:?}: {}{}", ended.code, ended.stdout, ended.stderr);
    }
    Ok(output)
}

/// The RoCE v2 GID of the node's IPv4 address.
const GID_INDEX: u32 = 1;
const PERFTEST_PORT: u16 = 18_515;

fn perftest(cluster: &Cluster, program: &str, size: u32, column: usize) -> Result<f64> {
    let iterations = if size > 16_384 { 200 } else { 1_000 };
    let common = format!("{program} -F -e -d rxe0 -x {GID_INDEX} -s {size} -n {iterations}");
    let output = both_ends(cluster, &common, PERFTEST_PORT, &format!("{common} {PEER}"))?;
    let line = output.lines().find(|line| {
        line.split_whitespace().next().and_then(|word| word.parse().ok()) == Some(size)
    });
    let word = line.and_then(|line| line.split_whitespace().nth(column));
    word.and_then(|word| word.parse().ok()).with_context(|| format!("no figure in: {output}"))
}

/// Typical time of one way, µs.
fn perftest_latency(cluster: &Cluster, size: u32) -> Result<f64> {
    perftest(cluster, "ib_send_lat", size, 4)
}

/// Thousand messages per second.
fn perftest_rate(cluster: &Cluster, size: u32) -> Result<f64> {
    perftest(cluster, "ib_send_bw", size, 4).map(|millions| millions * 1e3)
}

/// One way over an rsocket, µs.
fn rstream(cluster: &Cluster, size: u32) -> Result<f64> {
    let iterations = if size > 16_384 { 100 } else { 500 };
    let common = format!("rstream -S {size} -I {iterations} -C 1");
    let output = both_ends(cluster, &common, 0, &format!("{common} -s {PEER}"))?;
    let figure = output.lines().last().and_then(|line| line.split_whitespace().last());
    let figure: f64 =
        figure.and_then(|word| word.parse().ok()).with_context(|| format!("in: {output}"))?;
    ensure!(figure > 0.0, "no figure in: {output}");
    Ok(figure)
}

fn print(figures: &Figures, rounds: u32) {
    println!("medians of {rounds} rounds; emulated processors: only the ratios mean something\n");
    for (name, all) in &figures.0 {
        let median = figures.median(name).unwrap_or(f64::NAN);
        println!("{name:<28} {median:>12.2}   {all:.2?}");
    }
}
