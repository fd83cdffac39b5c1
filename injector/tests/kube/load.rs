//! Pods made at a steady rate, by server-side dry run: everything happens but the storing.

use super::mesh::{MESHED, is_injected, pod};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const PER_SECOND: u32 = 50;
/// Below it the machine is too slow for the test to mean anything.
const PER_SECOND_MIN: f64 = 40.0;
/// Failures that are told.
const TOLD_MAX: usize = 5;

pub async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap()).unwrap()
}

pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    admissions: u32,
    failed: Vec<String>,
    seconds: f64,
}

impl Load {
    pub fn start(kubeconfig: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(&kubeconfig, &told))
        });
        Self { stop, thread }
    }

    /// Ends it; every admission must have been made and patched. Returns how many there were.
    pub fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let tally = self.thread.join().unwrap();
        let rate = f64::from(tally.admissions) / tally.seconds;
        let told: Vec<&String> = tally.failed.iter().take(TOLD_MAX).collect();
        println!(
            "{} admissions, {rate:.1} a second, {} failed",
            tally.admissions,
            tally.failed.len()
        );
        assert!(
            tally.failed.is_empty(),
            "{} of {}: {told:#?}",
            tally.failed.len(),
            tally.admissions
        );
        assert!(rate > PER_SECOND_MIN, "{rate} admissions a second: the machine is too busy");
        tally.admissions
    }
}

async fn run(kubeconfig: &Path, stop: &AtomicBool) -> Tally {
    let pods: Api<Pod> = Api::namespaced(client(kubeconfig).await, MESHED);
    let mut tick = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let (mut running, mut tally, start) = (JoinSet::new(), Tally::default(), Instant::now());
    let count = |tally: &mut Tally, result: Result<(), String>| {
        tally.admissions += 1;
        tally.failed.extend(result.err());
    };
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        number += 1;
        let pods = pods.clone();
        running.spawn(async move { admit(&pods, number).await });
        while let Some(result) = running.try_join_next() {
            count(&mut tally, result.unwrap());
        }
    }
    while let Some(result) = running.join_next().await {
        count(&mut tally, result.unwrap());
    }
    tally.seconds = start.elapsed().as_secs_f64();
    tally
}

async fn admit(pods: &Api<Pod>, number: u32) -> Result<(), String> {
    let pod = pod(&format!("load-{number}"), MESHED, &json!({}));
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let made = pods.create(&params, &pod).await.map_err(|error| error.to_string())?;
    let made = serde_json::to_value(&made).unwrap();
    if is_injected(&made) { Ok(()) } else { Err(format!("not patched: {made}")) }
}
