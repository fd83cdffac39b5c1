//! `make demo-rdma`: the demo's programs between two pods of two machines, direct and over RDMA queue
//! pairs, and what proves that it was RDMA.
//!
//! What it does not do: serve as a benchmark. Emulated processors give ratios, not figures.

use super::scenarios::FORCED;
use super::scenarios::proof::{self, Counts};
use crate::guest::cluster::{PATIENCE, pod_ip};
use crate::guest::wire::{Call, Ended, Measured, Place, Server, Workload};
use crate::guest::{Cluster, Setting};
use crate::{Plan, binary, topology};
use anyhow::{Context, Result, ensure};
use rdmesh_proxy::demo::show::{Row, print_rows, size};
use rdmesh_proxy::demo::workload::{HTTP_PORT, IPERF_PORT, SOCKPERF_PORT};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Instant;

const BIG_BYTES: u64 = 32 << 20;
const SMALL_REQUESTS: u32 = 50;

struct Item {
    name: &'static str,
    port: u16,
    work: Workload,
    /// Names, units and whether less is better: of the value, and of the second one where there is.
    rows: &'static [(&'static str, &'static str, bool)],
    scale: f64,
}

const ITEMS: &[Item] = &[
    Item {
        name: "iperf3, 1 stream",
        port: IPERF_PORT,
        work: Workload::Iperf { streams: 1, seconds: 4 },
        rows: &[("iperf3, 1 stream", "Mbit/s", false)],
        scale: 1e3,
    },
    Item {
        name: "iperf3, 8 streams",
        port: IPERF_PORT,
        work: Workload::Iperf { streams: 8, seconds: 4 },
        rows: &[("iperf3, 8 streams", "Mbit/s", false)],
        scale: 1e3,
    },
    Item {
        name: "sockperf ping-pong, 64 bytes",
        port: SOCKPERF_PORT,
        work: Workload::Sockperf { message_bytes: 64, seconds: 3 },
        rows: &[
            ("sockperf 64 B, median", "µs", true),
            ("sockperf 64 B, 99th percentile", "µs", true),
        ],
        scale: 1.0,
    },
    Item {
        name: "nginx + curl, one large file",
        port: HTTP_PORT,
        work: Workload::CurlBig,
        rows: &[("curl, 32 MiB file", "MB/s", false)],
        scale: 1e-6,
    },
    Item {
        name: "nginx + curl, a new connection per request",
        port: HTTP_PORT,
        work: Workload::CurlSmall { requests: SMALL_REQUESTS },
        rows: &[("curl, new connections", "1/s", false)],
        scale: 1.0,
    },
];

/// The devices' own counters, both nodes': what went through the queue pairs. Of rxe; of others.
const COUNTERS: [&str; 5] =
    ["sent_pkts", "rcvd_pkts", "rdma_sends", "port_xmit_packets", "port_rcv_packets"];

/// # Errors
/// When anything is missing or fails, or the bytes did not go where they should.
pub fn run(json_wanted: bool) -> Result<()> {
    let started = Instant::now();
    say("preparing two machines, each a node with an RDMA device");
    let plan = Plan::new().pod("a", 1).pod("b", 2);
    let mut cluster = Cluster::boot(&plan, &binary::proxy())?;
    say(&cluster.describe());
    let result = show(&mut cluster, json_wanted);
    if result.is_err() {
        cluster.print_logs();
        cluster.keep_logs();
    }
    result?;
    cluster.power_off()?;
    say(&format!("done in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(())
}

fn say(what: &str) {
    eprintln!("· {what}");
}

fn show(cluster: &mut Cluster, json_wanted: bool) -> Result<()> {
    say("starting iperf3, sockperf and nginx, unmodified, in the pod on node 2");
    let servers = [Server::Iperf, Server::Sockperf, Server::Nginx { big_bytes: BIG_BYTES }];
    for server in servers {
        cluster.machine(2).call::<Value>(Call::Serve { pod: "b".into(), server }, PATIENCE)?;
    }
    let direct = phase(cluster, "direct")?;
    say("starting the mesh with `fabric: verbs`: no other way than RDMA");
    cluster.mesh(&Setting::new(FORCED))?;
    let rnr = proof::rnr(cluster)?;
    let before = (Counts::read(cluster)?, counters(cluster)?);
    let meshed = phase(cluster, "meshed")?;
    let after = (Counts::read(cluster)?, counters(cluster)?);
    let rnr = proof::rnr(cluster)?.saturating_sub(rnr);
    let capture = capture(cluster)?;
    let rows = rows(&direct, &meshed);
    let program_bytes: f64 = meshed.iter().map(|measured| measured.bytes).sum();
    let verbs_bytes = after.0.verbs_bytes - before.0.verbs_bytes;
    if json_wanted {
        let report = json!({
            "rows": rows,
            "proof": {
                "program_bytes": program_bytes,
                "verbs_stream_bytes": verbs_bytes,
                "other_stream_bytes": after.0.other_bytes,
                "verbs_messages": after.0.verbs_messages - before.0.verbs_messages,
                "passed_through": after.0.passed_through,
                "device_counters_before": before.1,
                "device_counters_after": after.1,
                "rnr_naks": rnr,
                "capture_roce_packets": capture.roce,
                "capture_pod_tcp_packets": capture.pod_tcp,
            },
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_rows(&rows);
        if cluster.spared().is_none() {
            println!("(on emulated processors: the ratios mean something, the figures do not)\n");
        }
        println!("bytes the programs moved               {:>12}", size(program_bytes));
        println!("stream bytes on verbs, both nodes      {:>12}", size(verbs_bytes));
        println!("stream bytes on any other fabric       {:>12}", after.0.other_bytes);
        let messages = after.0.verbs_messages - before.0.verbs_messages;
        println!("messages on verbs, both nodes          {messages:>12}");
        println!("rdmesh_passthrough_total               {:>12}", after.0.passed_through);
        println!("\ncounters of the devices, both nodes    {:>12} {:>12}", "before", "after");
        for ((name, before), (_, after)) in before.1.iter().zip(&after.1) {
            println!("  {name:<36} {before:>12} {after:>12}");
        }
        println!("RNR NAKs since the mesh is up          {rnr:>12}");
        println!("\non the wire between the nodes, while curl fetched the large file once more");
        match capture.roce {
            Some(packets) => println!("  RoCE v2 packets (UDP port 4791)      {packets:>12}"),
            None => println!("  RoCE packets: on the device, where no kernel sees them"),
        }
        println!("  TCP packets between pods             {:>12}", capture.pod_tcp);
        println!("{}", capture.sample);
    }
    ensure!(after.0.other_bytes == 0.0, "stream bytes went over another fabric");
    ensure!(after.0.passed_through == 0.0, "connections passed by the mesh");
    // Each node counts a byte once, as sent or as received.
    ensure!(verbs_bytes >= 2.0 * program_bytes, "the streams did not carry the programs' bytes");
    ensure!(capture.roce != Some(0), "the capture shows no RoCE packet");
    ensure!(capture.pod_tcp == 0, "the capture shows TCP between pods");
    ensure!(rnr == 0, "a queue pair found no receive buffer (RNR)");
    Ok(())
}

fn phase(cluster: &Cluster, phase: &str) -> Result<Vec<Measured>> {
    let measure = |item: &Item| -> Result<Measured> {
        let begun = Instant::now();
        let measured = one(cluster, item).with_context(|| format!("{phase}: {}", item.name))?;
        eprintln!("  {phase}: {} … {:.1} s", item.name, begun.elapsed().as_secs_f64());
        Ok(measured)
    };
    ITEMS.iter().map(measure).collect()
}

fn one(cluster: &Cluster, item: &Item) -> Result<Measured> {
    let to = SocketAddr::new(pod_ip(2, false), item.port);
    let call = Call::Workload { from: "a".into(), to, workload: item.work };
    cluster.machine(1).call(call, PATIENCE)
}

fn rows(direct: &[Measured], meshed: &[Measured]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (item, (direct, meshed)) in ITEMS.iter().zip(direct.iter().zip(meshed)) {
        let figures = [(direct.value, meshed.value), (direct.second, meshed.second)];
        for ((workload, unit, lower_is_better), (direct, meshed)) in item.rows.iter().zip(figures) {
            rows.push(Row {
                workload,
                unit,
                lower_is_better: *lower_is_better,
                direct: direct * item.scale,
                meshed: meshed * item.scale,
                ratio: meshed / direct,
            });
        }
    }
    rows
}

/// Those that the devices have.
fn counters(cluster: &Cluster) -> Result<Vec<(&'static str, u64)>> {
    let mut all = Vec::new();
    for name in COUNTERS {
        if let Some(count) = proof::device_counter(cluster, name)? {
            all.push((name, count));
        }
    }
    Ok(all)
}

struct Capture {
    /// Nothing where RoCE does not pass the kernel.
    roce: Option<u64>,
    pod_tcp: u64,
    sample: String,
}

/// What tcpdump sees on node 1's underlay while the large file is fetched once more.
fn capture(cluster: &Cluster) -> Result<Capture> {
    say("capturing on the underlay");
    let (under, dir) = (topology::UNDERLAY, cluster.scratch().display());
    let file = format!("{dir}/underlay.pcap");
    let dump = format!(
        "tcpdump -Z root -s 128 -B 16384 -ni {under} -w {file} 2>{dir}/tcpdump.err & \
         echo $! > {dir}/tcpdump.pid; wait"
    );
    let command = vec!["sh".into(), "-c".into(), dump];
    let call = Call::Run { place: Place::Node, command, within_ms: 60_000 };
    let dumping = cluster.machine(1).start_call(call)?;
    let ready = format!(
        "for i in $(seq 100); do grep -q 'listening on' {dir}/tcpdump.err && exit 0; \
         sleep 0.1; done; cat {dir}/tcpdump.err >&2; exit 1"
    );
    cluster.sh(1, &ready)?;
    let big = ITEMS.iter().find(|item| matches!(item.work, Workload::CurlBig)).context("curl")?;
    one(cluster, big)?;
    cluster.sh(1, &format!("kill -INT $(cat {dir}/tcpdump.pid)"))?;
    dumping.wait::<Ended>(PATIENCE)?;
    let count = |filter: &str| -> Result<u64> {
        let script = format!("tcpdump -Z root -nr {file} '{filter}' 2>/dev/null | wc -l");
        cluster.sh(1, &script)?.trim().parse().context("a number of packets")
    };
    let sample = "-c 3 'udp port 4791' 2>/dev/null | cut -c1-110";
    let emulated = cluster.spared().is_none();
    Ok(Capture {
        roce: emulated.then(|| count("udp port 4791")).transpose()?,
        pod_tcp: count("tcp and (net 10.42.0.0/16 or net fd42::/16)")?,
        sample: cluster.sh(1, &format!("tcpdump -Z root -tnr {file} {sample}"))?,
    })
}
