//! How long admissions take, over connections such as an API server keeps: `make bench-injector`.
//!
//! Open loop: a review is due every 5 ms whatever became of the one before, and its time counts from when it was due.
//! So a pause of the injector is seen in full.

mod common;

use common::client::{Client, review};
use common::injector::{metric, start};
use rdmesh_config::read_documents;
use rdmesh_proxy::trust::Ca;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

const PER_SECOND: u32 = 200;
const SECONDS: u32 = 30;
const WARM_UP: u32 = PER_SECOND;
/// What three API servers keep open between them.
const CONNECTIONS: usize = 6;
const P99_MAX: Duration = Duration::from_millis(5);
const RSS_KIB_MAX: u64 = 30 << 10;

fn memory_kib(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Seconds of CPU so far.
fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// The pod of a Deployment, as an API server sends it.
fn body() -> String {
    let text = include_str!("golden/deployment.yaml");
    let pod: Value = read_documents(text, "golden").unwrap().pop().unwrap();
    review(&pod)
}

#[tokio::test]
#[ignore = "a measurement: make bench-injector"]
async fn latency_and_memory() {
    let program = env!("CARGO_BIN_EXE_rdmesh-injector");
    if !program.contains("/release/") {
        println!("not the release build, which is faster: make bench-injector");
    }
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "bench").await;
    let pid = injector.child.id();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
        clients.push(Arc::new(Mutex::new(client)));
    }
    let body = body();
    let (mut running, mut took) = (JoinSet::new(), Vec::new());
    let start = Instant::now();
    let mut cpu_before = 0.0;
    for number in 0..WARM_UP + PER_SECOND * SECONDS {
        if number == WARM_UP {
            cpu_before = cpu_s(pid);
        }
        let due = start + Duration::from_secs(1) * number / PER_SECOND;
        tokio::time::sleep_until(due.into()).await;
        let (client, body) = (clients[number as usize % CONNECTIONS].clone(), body.clone());
        running.spawn(async move {
            let (status, answer) = client.lock().await.post("/inject/namespace", body).await;
            let took = due.elapsed();
            assert!(status.is_success() && answer.len() > 1000, "{status} {answer:?}");
            (number, took)
        });
        while let Some(done) = running.try_join_next() {
            took.push(done.unwrap());
        }
    }
    while let Some(done) = running.join_next().await {
        took.push(done.unwrap());
    }
    let cpu = (cpu_s(pid) - cpu_before) / f64::from(SECONDS);
    let mut took: Vec<Duration> =
        took.into_iter().filter(|(number, _)| *number >= WARM_UP).map(|(_, took)| took).collect();
    took.sort();
    let at = |per_mille: usize| took[(took.len() * per_mille / 1000).min(took.len() - 1)];
    let (rss, peak) = (memory_kib(pid, "VmRSS:"), memory_kib(pid, "VmHWM:"));
    println!("{} admissions, {PER_SECOND} a second, {CONNECTIONS} connections", took.len());
    for (name, per_mille) in [("p50", 500), ("p99", 990), ("p99.9", 999), ("longest", 1000)] {
        println!("{name:8} {:8.3} ms", at(per_mille).as_secs_f64() * 1e3);
    }
    println!("RSS      {:8.1} MiB, peak {:.1} MiB", rss as f64 / 1024.0, peak as f64 / 1024.0);
    println!("CPU      {:8.1} % of a core", cpu * 100.0);
    let injected = "rdmesh_injector_admissions_total{outcome=\"injected\"}";
    let wanted = f64::from(WARM_UP + PER_SECOND * SECONDS);
    assert!((metric(injector.admin, injected).await - wanted).abs() < 0.5);
    assert!(at(990) < P99_MAX, "99th percentile {:?}, target {P99_MAX:?}", at(990));
    assert!(peak < RSS_KIB_MAX, "{peak} KiB, target {RSS_KIB_MAX}");
}
