//! The node proxy: workers, peers, handoff sockets, directory and admin HTTP put together.
//!
//! The control side (everything but the workers) is one ordinary tokio runtime in the calling
//! thread. What it does not do: touch a byte of a stream.

mod handoffs;
pub mod mailbox;
pub mod messages;
pub mod peers;
pub mod status;
mod worker;

use crate::admin::{self, Routes};
use crate::directory::Directory;
use crate::metrics::{NodeMetrics, Registry, WorkerMetrics};
use anyhow::Context;
use messages::{Command, Mailbox, Request};
use peers::Peers;
use rdmesh_config::Config;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

const MAILBOX_COMMANDS_MAX: usize = 4096;
const REQUESTS_MAX: usize = 4096;
/// More than a worker's TLS records in flight take.
const FREED_BYTES_KEPT: u32 = 4 << 20;
const INSPECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the parts of the control side share.
struct Shared {
    config: Config,
    started: Instant,
    mailboxes: Vec<Mailbox<Command>>,
    directory: Arc<Directory>,
    peers: peers::Handle,
    /// Stops its tasks when it is dropped.
    _peers: Peers,
    ready: AtomicBool,
}

impl Shared {
    /// Not before the directory has been read: until then everything passes through.
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && self.directory.generation() > 0
    }
}

/// Runs the node proxy until `stop` completes, with the name of its reason, and a drained end.
///
/// # Errors
/// With what is missing to start, or when a worker fails.
pub fn run(
    config: Config,
    stop: impl Future<Output = io::Result<&'static str>>,
) -> anyhow::Result<()> {
    raise_descriptor_limit();
    rdmesh_sys::heap::keep_freed(FREED_BYTES_KEPT);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    runtime.block_on(serve(config, stop))
}

async fn serve(
    config: Config,
    stop: impl Future<Output = io::Result<&'static str>>,
) -> anyhow::Result<()> {
    let node = &config.node;
    let metrics = Arc::new(NodeMetrics::new());
    let directory = Arc::new(Directory::of(node, Arc::clone(&metrics)).await?);
    let workers = node.workers.max(1) as usize;
    let mailboxes = (0..workers)
        .map(|_| Mailbox::new(MAILBOX_COMMANDS_MAX))
        .collect::<Result<Vec<_>, _>>()
        .context("cannot make the workers' mailboxes")?;
    let worker_metrics: Vec<_> = (0..workers).map(|_| Arc::new(WorkerMetrics::new())).collect();
    let registry = Registry::for_node(Arc::clone(&metrics), worker_metrics.clone())?;

    std::fs::create_dir_all(&node.pods_dir)
        .with_context(|| format!("node.pods_dir: cannot create {}", node.pods_dir.display()))?;
    let (requests, requested) = mpsc::channel::<Request>(REQUESTS_MAX);
    let options = peers::Options { metrics: Arc::clone(&metrics), ..peers::Options::from(node) };
    let known = directory.handle();
    let resolve: peers::Resolve =
        Arc::new(move |name| known.load().node(name).map(|node| node.address));
    let peers = Peers::start(options, resolve, mailboxes.clone(), requested).await?;
    let admin_listener = admin::bind("node.admin", node.admin)?;

    let (failed, mut failures) = mpsc::channel::<anyhow::Error>(workers);
    let threads = worker_metrics
        .iter()
        .enumerate()
        .map(|(index, worker_metrics)| {
            let setup = worker::Setup {
                index,
                config: node.clone(),
                directory: directory.handle(),
                mailbox: mailboxes[index].clone(),
                requests: requests.clone(),
                metrics: Arc::clone(worker_metrics),
                node_metrics: Arc::clone(&metrics),
            };
            spawn_worker(setup, failed.clone())
        })
        .collect::<Result<Vec<_>, _>>()?;
    drop((requests, failed));

    let shared = Arc::new(Shared {
        started: Instant::now(),
        mailboxes: mailboxes.clone(),
        directory: Arc::clone(&directory),
        peers: peers.handle(),
        _peers: peers,
        ready: AtomicBool::new(true),
        config,
    });
    let node = &shared.config.node;
    let handoffs = handoffs::Handoffs {
        node: node.name.clone(),
        pods_dir: node.pods_dir.clone(),
        sweep_empty: node.directory.kubernetes.is_some(),
        directory: directory.handle(),
        mailboxes,
        metrics,
    };
    tokio::spawn(Arc::clone(&directory).run());
    tokio::spawn(handoffs.run(directory.watch()));
    tokio::spawn(admin::serve(admin_listener, routes(&shared, registry)));
    info!(node = node.name, listen = %node.listen, workers, encrypt = node.encrypt, "node proxy is up");

    tokio::select! {
        signal = stop => info!(signal = signal?, "stopping"),
        Some(error) = failures.recv() => return Err(error),
    }
    drain(&shared).await;
    for thread in threads {
        // The drain has a deadline of its own; a worker that misses it is left to the exit.
        if thread.is_finished() && thread.join().is_err() {
            error!("a worker panicked");
        }
    }
    Ok(())
}

fn spawn_worker(
    setup: worker::Setup,
    failed: mpsc::Sender<anyhow::Error>,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let index = setup.index;
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker::run(setup)));
            let error = match end {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    anyhow::Error::from(error).context(format!("worker {index} failed"))
                }
                Err(_) => anyhow::anyhow!(
                    "worker {index} panicked: a defect, please report it with the log"
                ),
            };
            // Nobody listens any more only when the process is ending.
            let _ = failed.blocking_send(error);
        })
        .context("cannot start a worker thread")
}

/// No new streams; those that are open have `drain_ms` to end.
async fn drain(shared: &Shared) {
    shared.ready.store(false, Ordering::Relaxed);
    let time = Duration::from_millis(shared.config.node.timeouts.drain_ms);
    let until = Instant::now() + time;
    shared.peers.drain().await;
    for mailbox in &shared.mailboxes {
        if mailbox.push(Command::Drain { until }).is_err() {
            warn!("a worker does not answer; it is not drained");
        }
    }
    let deadline = until + Duration::from_millis(500);
    while Instant::now() < deadline {
        let left: u64 = inspect(&shared.mailboxes).await.iter().map(|worker| worker.streams).sum();
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks every worker for its state; one that does not answer in time is left out.
async fn inspect(mailboxes: &[Mailbox<Command>]) -> Vec<status::WorkerStatus> {
    let mut answers = Vec::new();
    for mailbox in mailboxes {
        let (answer, answered) = oneshot::channel();
        if mailbox.push(Command::Inspect { answer }).is_ok() {
            answers.push(answered);
        }
    }
    let mut workers = Vec::new();
    for answered in answers {
        if let Ok(Ok(status)) = tokio::time::timeout(INSPECT_TIMEOUT, answered).await {
            workers.push(status);
        }
    }
    workers
}

async fn node_status(shared: &Shared) -> status::NodeStatus {
    let snapshot = shared.directory.snapshot();
    let peers = shared.peers.status().await.into_iter().map(|peer| status::PeerStatus {
        address: peer.address,
        state: peer.session.to_string(),
        incarnation: (peer.incarnation != 0).then(|| format!("{:016x}", peer.incarnation)),
        draining: peer.draining,
        failures: peer.failures,
        last_error: peer.last_error,
        name: peer.name,
        lanes: Vec::new(),
    });
    let pods = snapshot.local_pods().map(|pod| status::PodStatus {
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        connected: false,
    });
    status::NodeStatus {
        node: shared.config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: shared.started.elapsed().as_secs(),
        draining: !shared.ready.load(Ordering::Relaxed),
        directory: status::DirectoryStatus {
            generation: shared.directory.generation(),
            nodes: snapshot.nodes().len() as u64,
            pods: snapshot.pods_total() as u64,
        },
        streams: status::StreamsStatus::default(),
        budget: status::BudgetStatus::default(),
        slab: status::SlabStatus::default(),
        workers: Vec::new(),
        peers: peers.collect(),
        pods: pods.collect(),
    }
    .with_workers(inspect(&shared.mailboxes).await)
}

fn routes(shared: &Arc<Shared>, registry: Registry) -> Routes {
    let ready = Arc::clone(shared);
    let status = Arc::clone(shared);
    Routes::new(registry).ready(move || ready.is_ready()).json("/status", move || {
        let shared = Arc::clone(&status);
        async move { node_status(&shared).await }
    })
}

/// Sockets are the proxy's business: it takes as many descriptors as it may.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            warn!(%error, "the limit on open files cannot be raised");
        }
    }
}
