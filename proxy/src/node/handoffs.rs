//! One socket per pod of this node, where its sidecar arrives; greeted channels go to the workers.
//!
//! The directory that a socket lies in is mounted into its pod alone, so the socket tells which
//! pod speaks. What this does not do: believe anything that a sidecar says about itself, or create
//! the directories (kubelet does, or the static setup).

use super::messages::{Command, Mailbox};
use crate::directory::{Pod, Snapshot};
use crate::handoff::{self, Channel, HandoffError, RejectReason, ToNode, ToSidecar};
use crate::metrics::{HandoffOutcome, NodeMetrics};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// How often directories that were missing are looked for: a sidecar waits this long at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often directories without a pod are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(300);
const EMPTY_AGE_MIN: Duration = Duration::from_secs(600);
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Sidecars of one pod that may be greeted at the same time.
const GREETINGS_MAX: usize = 8;
pub const SOCKET_NAME: &str = "node.sock";

pub struct Handoffs {
    pub node: String,
    pub pods_dir: PathBuf,
    /// kubelet made the directories: empty ones without a pod are left-overs.
    pub sweep_empty: bool,
    pub directory: Arc<ArcSwap<Snapshot>>,
    pub mailboxes: Vec<Mailbox<Command>>,
    pub metrics: Arc<NodeMetrics>,
}

/// A pod's listener, and which directory it was made in.
struct Listening {
    task: JoinHandle<()>,
    directory: (u64, u64),
    pod: Arc<Pod>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Handoffs {
    /// Keeps a socket in the directory of each pod of this node, until the future is dropped.
    pub async fn run(self, mut changes: watch::Receiver<u64>) {
        let shared = Arc::new(self);
        let mut listening: HashMap<Arc<str>, Listening> = HashMap::new();
        // What the directory knows before it was read is no reason to remove anything.
        if changes.wait_for(|generation| *generation > 0).await.is_err() {
            return;
        }
        let mut swept: Option<Instant> = None;
        loop {
            if swept.is_none_or(|last| last.elapsed() > SWEEP_INTERVAL) {
                shared.sweep_stale();
                swept = Some(Instant::now());
            }
            Arc::clone(&shared).look(&mut listening);
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    fn look(self: Arc<Self>, listening: &mut HashMap<Arc<str>, Listening>) {
        let snapshot = self.directory.load_full();
        listening.retain(|uid, _| {
            let known = snapshot.local_pod_by_uid(uid).is_some();
            if !known && !snapshot.keeps_directory(uid) {
                sweep(&self.pods_dir.join(&**uid));
            }
            known
        });
        for pod in snapshot.local_pods() {
            let path = self.pods_dir.join(&*pod.uid);
            let Ok(metadata) = std::fs::metadata(&path) else {
                listening.remove(&pod.uid);
                continue;
            };
            let directory = (metadata.dev(), metadata.ino());
            let current = listening.get(&pod.uid).is_some_and(|known| {
                known.directory == directory
                    && known.pod.addresses == pod.addresses
                    && !known.task.is_finished()
            });
            if current {
                continue;
            }
            listening.remove(&pod.uid);
            match listen(&path) {
                Ok(listener) => {
                    let task = tokio::spawn(Arc::clone(&self).accept(Arc::clone(pod), listener));
                    listening.insert(
                        Arc::clone(&pod.uid),
                        Listening { task, directory, pod: Arc::clone(pod) },
                    );
                }
                Err(error) => {
                    debug!(%error, path = %path.display(), "no handoff socket for the pod yet");
                }
            }
        }
    }

    /// Removes directories of pods that were gone before this process started, or before their sidecar
    /// came.
    fn sweep_stale(&self) {
        let snapshot = self.directory.load();
        let Ok(entries) = std::fs::read_dir(&self.pods_dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|uid| snapshot.keeps_directory(uid)) {
                continue;
            }
            // Only what looks like ours: a socket of this name is in it, or nothing at all for long.
            if entry.path().join(SOCKET_NAME).exists() {
                sweep(&entry.path());
            } else if self.sweep_empty
                && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && is_old(&metadata))
            {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }

    async fn accept(self: Arc<Self>, pod: Arc<Pod>, listener: AsyncFd<OwnedFd>) {
        let greetings = Arc::new(tokio::sync::Semaphore::new(GREETINGS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&greetings).acquire_owned().await else { return };
            let Ok(mut ready) = listener.readable().await else { return };
            match handoff::accept(ready.get_inner()) {
                Ok(Some(socket)) => {
                    let shared = Arc::clone(&self);
                    let pod = Arc::clone(&pod);
                    tokio::spawn(async move {
                        shared.greet(&pod, socket).await;
                        drop(permit);
                    });
                }
                Ok(None) => ready.clear_ready(),
                Err(error) => {
                    // Most often the limit on open files: do not spin on it.
                    warn!(%error, pod = &*pod.name, "a sidecar cannot be accepted");
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
        }
    }

    async fn greet(&self, pod: &Arc<Pod>, socket: OwnedFd) {
        let greeted = tokio::time::timeout(HELLO_TIMEOUT, self.hello(socket)).await;
        match greeted {
            Ok(Ok((worker, channel))) => {
                let command = Command::Handoff { pod: Arc::clone(pod), channel };
                if self.mailboxes[worker].push(command).is_err() {
                    warn!(
                        pod = &*pod.name,
                        worker, "worker takes no sidecar now; it will come again"
                    );
                }
            }
            Ok(Err(error)) => {
                self.metrics.handoff(HandoffOutcome::Malformed);
                warn!(%error, pod = &*pod.name, "a sidecar's greeting was refused");
            }
            Err(_) => {
                self.metrics.handoff(HandoffOutcome::Disconnected);
                warn!(pod = &*pod.name, "a sidecar connected and said nothing");
            }
        }
    }

    async fn hello(&self, socket: OwnedFd) -> Result<(usize, Channel), HandoffError> {
        let mut channel = Channel::new(socket)?;
        let readiness = rdmesh_sys::readiness::watch(channel.as_fd().try_clone_to_owned()?)?;
        let message = loop {
            let mut ready = readiness.readable().await?;
            match channel.recv::<ToNode>()? {
                Some((message, None)) => break message,
                Some((_, Some(_))) => return Err(HandoffError::UnexpectedFd),
                None => ready.clear_ready(),
            }
        };
        drop(readiness);
        let workers = self.mailboxes.len();
        let reason = match message {
            ToNode::Hello { version, .. } if version != handoff::VERSION => RejectReason::Version,
            ToNode::Hello { worker, .. } if (worker as usize) < workers => {
                let workers = u32::try_from(workers).unwrap_or(u32::MAX);
                let welcome = ToSidecar::Welcome {
                    version: handoff::VERSION,
                    workers,
                    node: self.node.clone(),
                };
                channel.send(&welcome, None)?;
                return Ok((worker as usize, channel));
            }
            ToNode::Hello { .. } => RejectReason::BadWorker,
            _ => RejectReason::Protocol,
        };
        channel.send(&ToSidecar::Rejected { version: handoff::VERSION, reason }, None)?;
        Err(HandoffError::Io(io::Error::other(format!("rejected: {reason}"))))
    }
}

fn listen(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    rdmesh_sys::readiness::watch(handoff::listen(directory.join(SOCKET_NAME))?)
}

/// Per-pod directories outlive their pods; one that holds nothing but our socket goes.
fn sweep(directory: &Path) {
    let _ = std::fs::remove_file(directory.join(SOCKET_NAME));
    let _ = std::fs::remove_dir(directory);
}

/// So old that the directory must know its pod, if there is one.
fn is_old(metadata: &std::fs::Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > EMPTY_AGE_MIN)
}
