//! The demo: the same programs between the same two pods, first direct, then through the mesh.
//!
//! What it does not do: serve as a benchmark. Runs are short and not repeated.

use super::lab::{Lab, Plan, site};
use super::workload::{self, Target};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const PROGRAMS: [&str; 8] =
    ["ip", "nft", "setpriv", "iperf3", "sockperf", "nginx", "curl", "sysctl"];
const BULK_TIME: Duration = Duration::from_secs(3);
const PING_TIME: Duration = Duration::from_secs(2);
const BIG_BYTES: u64 = 512 << 20;
const SMALL_REQUESTS: u32 = 200;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub keep: bool,
    pub json: bool,
    pub encrypt: bool,
}

/// What the demo found; `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
    pub proof: Proof,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub workload: &'static str,
    pub unit: &'static str,
    pub lower_is_better: bool,
    pub direct: f64,
    pub meshed: f64,
    /// meshed / direct
    pub ratio: f64,
}

/// What the metrics of node proxies and sidecars say about the meshed phase.
#[derive(Debug, Serialize)]
pub struct Proof {
    /// Payload that the programs say they moved.
    pub program_bytes: f64,
    /// Payload that node 1 and node 2 carried in streams, both directions.
    pub n1_stream_bytes: f64,
    pub n2_stream_bytes: f64,
    pub streams: f64,
    pub passed_through: f64,
}

struct Figure {
    workload: &'static str,
    unit: &'static str,
    lower_is_better: bool,
    value: f64,
    bytes: f64,
}

/// Runs the demo and prints its table.
///
/// # Errors
/// When anything is missing or fails; nothing is left behind then.
pub fn run(options: Options, proxy: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo needs root (it makes network namespaces): run it with sudo");
    }
    workload::check_programs(&PROGRAMS)?;
    // A release build aborts on a panic: no drop would run.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        site::tear_down_all();
        std::process::exit(101);
    }));
    let started = Instant::now();
    say("making two nodes with a pod each, in network namespaces of this machine");
    let lab = Lab::new(&Plan::new().pod("client", 1).pod("server", 2), proxy)?;
    let server = lab.pod("server");
    say("starting iperf3, sockperf and nginx, unmodified, in the pod on node 2");
    let servers = [
        workload::iperf_server(&lab, server)?,
        workload::sockperf_server(&lab, server)?,
        workload::nginx(&lab, server, BIG_BYTES)?,
    ];
    let direct = phase(&lab, "direct")?;
    say("starting the mesh: a node proxy per node, a sidecar per pod");
    lab.configure(|config| config.node.encrypt = options.encrypt);
    lab.mesh_up()?;
    let meshed = phase(&lab, "meshed")?;
    let report = Report { proof: proof(&lab, &meshed)?, rows: rows(&direct, &meshed) };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report, options.encrypt);
    }
    judge(&report.proof)?;
    say(&format!("done in {:.0} s", started.elapsed().as_secs_f64()));
    if options.keep {
        print_looking_around(&lab, proxy);
        servers.into_iter().for_each(std::mem::forget);
        return lab.keep();
    }
    Ok(())
}

/// Removes what `--keep` left.
pub fn take_down() -> usize {
    site::sweep(true)
}

/// Progress goes to standard error: standard output is the report's.
fn say(what: &str) {
    eprintln!("· {what}");
}

fn measuring<T>(phase: &str, what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("  {phase}: {what} … ");
    let _ = std::io::stderr().flush();
    let started = Instant::now();
    let result = run().with_context(|| format!("{phase}: {what}"));
    match &result {
        Ok(_) => eprintln!("{:.1} s", started.elapsed().as_secs_f64()),
        Err(_) => eprintln!(),
    }
    result
}

fn phase(lab: &Lab, name: &str) -> Result<Vec<Figure>> {
    let from = &lab.pod("client").netns;
    let ip = IpAddr::V4(lab.pod("server").v4);
    let at = |port| Target { ip, port };
    let mut figures = Vec::new();
    let mut add = |workload, unit, lower_is_better, value, bytes| {
        figures.push(Figure { workload, unit, lower_is_better, value, bytes });
    };
    let iperf = |streams: u32| {
        measuring(name, &format!("iperf3, {streams} stream(s)"), || {
            workload::iperf(lab, from, at(workload::IPERF_PORT), streams, BULK_TIME, &[])
        })
    };
    let bulk = iperf(1)?;
    add("iperf3, 1 stream", "Gbit/s", false, bulk.gbit_per_second, bulk.bytes);
    let bulk = iperf(8)?;
    add("iperf3, 8 streams", "Gbit/s", false, bulk.gbit_per_second, bulk.bytes);
    let ping = measuring(name, "sockperf ping-pong, 64 bytes", || {
        workload::sockperf(lab, from, at(workload::SOCKPERF_PORT), 64, PING_TIME)
    })?;
    add("sockperf 64 B, median", "µs", true, ping.p50_us, ping.messages * 128.0);
    add("sockperf 64 B, 99th percentile", "µs", true, ping.p99_us, 0.0);
    let (speed, bytes) = measuring(name, "nginx + curl, one large file", || {
        workload::curl_big(lab, from, at(workload::HTTP_PORT))
    })?;
    add("curl, 512 MiB file", "MB/s", false, speed / 1e6, bytes);
    let (rate, bytes) = measuring(name, "nginx + curl, a new connection per request", || {
        workload::curl_small(lab, from, at(workload::HTTP_PORT), SMALL_REQUESTS)
    })?;
    add("curl, new connections", "1/s", false, rate, bytes);
    Ok(figures)
}

fn rows(direct: &[Figure], meshed: &[Figure]) -> Vec<Row> {
    direct
        .iter()
        .zip(meshed)
        .map(|(direct, meshed)| Row {
            workload: direct.workload,
            unit: direct.unit,
            lower_is_better: direct.lower_is_better,
            direct: direct.value,
            meshed: meshed.value,
            ratio: meshed.value / direct.value,
        })
        .collect()
}

fn proof(lab: &Lab, meshed: &[Figure]) -> Result<Proof> {
    let (n1, n2) = (lab.node_metrics(1)?, lab.node_metrics(2)?);
    let mut passed_through = 0.0;
    for pod in lab.pods() {
        passed_through += lab.sidecar_metrics(pod)?.sum("rdmesh_passthrough_total", &[]);
    }
    passed_through += n1.sum("rdmesh_passthrough_total", &[]);
    passed_through += n2.sum("rdmesh_passthrough_total", &[]);
    Ok(Proof {
        program_bytes: meshed.iter().map(|figure| figure.bytes).sum(),
        n1_stream_bytes: n1.sum("rdmesh_stream_bytes_total", &[]),
        n2_stream_bytes: n2.sum("rdmesh_stream_bytes_total", &[]),
        streams: n1.sum("rdmesh_streams_total", &[("role", "client"), ("outcome", "closed")])
            + n1.sum("rdmesh_streams_active", &[("role", "client")]),
        passed_through,
    })
}

/// The demo fails when the bytes did not go where it says they went.
fn judge(proof: &Proof) -> Result<()> {
    let carried = proof.n1_stream_bytes.min(proof.n2_stream_bytes);
    if carried < proof.program_bytes {
        bail!(
            "the programs moved {} but the streams carried only {}",
            size(proof.program_bytes),
            size(carried)
        );
    }
    if proof.passed_through > 0.0 {
        bail!("{} connections passed by the mesh", proof.passed_through);
    }
    Ok(())
}

/// The table of figures.
pub fn print_rows(rows: &[Row]) {
    println!();
    println!("{:<32} {:>6} {:>12} {:>12} {:>8}", "workload", "unit", "direct", "meshed", "ratio");
    for row in rows {
        let better = if row.lower_is_better { " (less is better)" } else { "" };
        println!(
            "{:<32} {:>6} {:>12.2} {:>12.2} {:>8.2}{better}",
            row.workload, row.unit, row.direct, row.meshed, row.ratio
        );
    }
}

fn print_report(report: &Report, encrypt: bool) {
    print_rows(&report.rows);
    let proof = &report.proof;
    println!();
    println!("payload between nodes: {}", if encrypt { "TLS 1.3" } else { "plain" });
    println!("bytes the programs moved        {:>12}", size(proof.program_bytes));
    println!("rdmesh_stream_bytes_total on n1 {:>12}", size(proof.n1_stream_bytes));
    println!("rdmesh_stream_bytes_total on n2 {:>12}", size(proof.n2_stream_bytes));
    println!("streams tunnelled               {:>12}", proof.streams);
    println!("rdmesh_passthrough_total        {:>12}", proof.passed_through);
    println!();
}

/// A number of bytes for people.
pub fn size(bytes: f64) -> String {
    if bytes >= 1e9 { format!("{:.3} GB", bytes / 1e9) } else { format!("{:.3} MB", bytes / 1e6) }
}

fn print_looking_around(lab: &Lab, proxy: &Path) {
    let (proxy, dir) = (proxy.display(), lab.dir().display());
    let (client, server) = (lab.pod("client"), lab.pod("server"));
    let (n1, n2) = (lab.node(1).netns.name(), lab.node(2).netns.name());
    let (inside, v4, v6) = (client.netns.name(), server.v4, server.v6);
    println!("The lab stays up. To look around (as root):");
    println!("  ip netns exec {n1} {proxy} status");
    println!("  ip netns exec {n1} curl -s http://127.0.0.1:15790/metrics | grep ^rdmesh_");
    println!("  ip netns exec {inside} curl -sI http://{v4}:{}/small", workload::HTTP_PORT);
    println!("  ip netns exec {inside} curl -sI -g 'http://[{v6}]:{}/small'", workload::HTTP_PORT);
    println!("  ip netns exec {inside} iperf3 -c {v4} -t 3");
    println!("  ip netns exec {inside} nft list table inet rdmesh");
    println!("  ip netns exec {n2} tcpdump -ni under0 -c 20 port 15700");
    println!("  ls {dir} {dir}/logs        # configs, certificates, directory file, logs");
    println!("To take it down:");
    println!("  {proxy} demo --down");
}
