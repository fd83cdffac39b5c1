//! The directory: which pod is where, what a service resolves to, and who may speak for an address.
//!
//! [`Snapshot`] is what the data path reads; [`Directory`] holds the newest one and makes new ones
//! when its source changes: a file, or the API server of a cluster. The only room that knows
//! Kubernetes. What this room does not do: talk to peers, touch sockets, or keep any
//! state of a connection.

mod from_file;
mod hash;
mod kube;
pub mod policy;
mod snapshot;
mod source;

pub use from_file::SnapshotError;
pub use snapshot::{Decision, NodeInfo, NodeName, Pod, Snapshot, uid_is_safe};
pub use source::SourceError;

use crate::metrics::{NodeMetrics, ReloadOutcome};
use arc_swap::ArcSwap;
use source::Signature;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How often the file is looked at. A change is taken when two looks in a row see the same, so it
/// is in force after twice this time.
pub const POLL_INTERVAL: Duration = Duration::from_millis(400);

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the directory file {} is not valid: {fault}", .path.display())]
    Snapshot { path: PathBuf, fault: SnapshotError },
    #[error(transparent)]
    Kubernetes(#[from] kube::KubeError),
}

impl DirectoryError {
    fn outcome(&self) -> ReloadOutcome {
        match self {
            Self::Source(SourceError::Unreadable { .. }) | Self::Kubernetes(_) => {
                ReloadOutcome::Unreadable
            }
            Self::Source(_) | Self::Snapshot { .. } => ReloadOutcome::Invalid,
        }
    }
}

/// What a look at the source found.
#[derive(Debug)]
pub enum Poll {
    Unchanged,
    /// Something changes; perhaps it is still being written.
    Settling,
    Applied {
        generation: u64,
    },
    /// The new content has a fault; the old snapshot stays. Told once per content.
    Rejected(DirectoryError),
}

/// The directory of this node.
pub struct Directory {
    me: String,
    current: Arc<ArcSwap<Snapshot>>,
    generation: watch::Sender<u64>,
    metrics: Arc<NodeMetrics>,
    source: Source,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let generation = self.generation();
        f.debug_struct("Directory").field("me", &self.me).field("generation", &generation).finish()
    }
}

enum Source {
    File { path: PathBuf, seen: Mutex<Seen> },
    Kubernetes { config: Box<::kube::Config>, listen: SocketAddr },
}

/// What polling remembers. A signature is `None` while there is no readable file.
#[derive(Debug)]
struct Seen {
    /// The last content that was applied or rejected.
    settled: Option<Signature>,
    /// A newer content, seen once.
    pending: Option<Option<Signature>>,
}

impl Directory {
    /// The source that the configuration names.
    ///
    /// # Errors
    /// When there is nothing to start with: see [`Self::open`] and [`Self::kubernetes`].
    pub async fn of(
        config: &rdmesh_config::Node,
        metrics: Arc<NodeMetrics>,
    ) -> Result<Self, DirectoryError> {
        match &config.directory.kubernetes {
            Some(kubernetes) => {
                Self::kubernetes(&kubernetes.kubeconfig, &config.name, config.listen, metrics).await
            }
            None => Self::open(&config.directory.file, &config.name, metrics),
        }
    }

    /// Reads the API server of a cluster. Before it has answered, generation 0 holds: no pod is
    /// known, and everything passes through. `listen` has the port of all node proxies.
    ///
    /// # Errors
    /// When it cannot be told which API server, or as whom.
    pub async fn kubernetes(
        kubeconfig: &Path,
        me: &str,
        listen: SocketAddr,
        metrics: Arc<NodeMetrics>,
    ) -> Result<Self, DirectoryError> {
        let config = Box::new(kube::config(kubeconfig).await?);
        metrics.directory_generation(0);
        Ok(Self {
            me: me.to_owned(),
            current: Arc::new(ArcSwap::from_pointee(kube::unknown(me, listen))),
            generation: watch::Sender::new(0),
            metrics,
            source: Source::Kubernetes { config, listen },
        })
    }

    /// Loads the file for the first time.
    ///
    /// # Errors
    /// When it cannot be read or has a fault: there is no old snapshot to go on with.
    pub fn open(
        path: impl Into<PathBuf>,
        me: &str,
        metrics: Arc<NodeMetrics>,
    ) -> Result<Self, DirectoryError> {
        let path = path.into();
        let (signature, snapshot) = load(&path, me)?;
        metrics.directory_generation(1);
        let seen = Mutex::new(Seen { settled: Some(signature), pending: None });
        Ok(Self {
            me: me.to_owned(),
            current: Arc::new(ArcSwap::from_pointee(snapshot)),
            generation: watch::Sender::new(1),
            metrics,
            source: Source::File { path, seen },
        })
    }

    /// For the workers: `handle().load()` is the newest snapshot, without a lock.
    #[must_use]
    pub fn handle(&self) -> Arc<ArcSwap<Snapshot>> {
        self.current.clone()
    }

    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Grows by one with each applied change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// For who must act on changes: nodes and pods that came or went.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Follows the source until the future is dropped.
    pub async fn run(self: Arc<Self>) {
        match &self.source {
            Source::File { .. } => self.follow_file().await,
            Source::Kubernetes { config, listen } => {
                let source = kube::Source {
                    config: (**config).clone(),
                    me: self.me.clone(),
                    listen: *listen,
                    metrics: self.metrics.clone(),
                };
                let this = Arc::clone(&self);
                kube::in_own_thread(source, move |snapshot| this.publish(snapshot)).await;
            }
        }
    }

    fn publish(&self, snapshot: Snapshot) {
        let (nodes, pods) = (snapshot.nodes().len(), snapshot.pods_total());
        match self.apply(snapshot) {
            1 => tracing::info!(nodes, pods, "directory complete"),
            // A cluster changes all the time.
            generation => tracing::debug!(generation, nodes, pods, "directory changed"),
        }
    }

    async fn follow_file(self: &Arc<Self>) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let this = self.clone();
            // A large file takes a while to parse; the control runtime has other things to do.
            if let Err(error) = tokio::task::spawn_blocking(move || this.poll_and_log()).await {
                tracing::error!(%error, "reading the directory failed; the old one stays in force");
            }
        }
    }

    fn poll_and_log(&self) {
        match self.poll() {
            Poll::Unchanged | Poll::Settling => {}
            Poll::Applied { generation } => {
                let now = self.current.load();
                let (nodes, pods) = (now.nodes().len(), now.pods_total());
                tracing::info!(generation, nodes, pods, "directory reloaded");
            }
            Poll::Rejected(error) => {
                // As an error, not as text: its causes are told too.
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(error, "directory not reloaded, the old one stays in force");
            }
        }
    }

    /// One look at the file.
    pub fn poll(&self) -> Poll {
        let Source::File { path, seen } = &self.source else { return Poll::Unchanged };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = Signature::of(path);
        let now = found.as_ref().ok().copied();
        if now == seen.settled {
            seen.pending = None;
            return Poll::Unchanged;
        }
        // A file that is written in place is half of one for a while, and half a directory may
        // well be a valid one: so nothing is read before it has come to rest.
        if seen.pending != Some(now) {
            seen.pending = Some(now);
            return Poll::Settling;
        }
        let loaded = found.map_err(DirectoryError::from).and_then(|_| load(path, &self.me));
        match loaded {
            Err(DirectoryError::Source(SourceError::Changing { .. })) => {
                seen.pending = None;
                Poll::Settling
            }
            Err(error) => {
                *seen = Seen { settled: now, pending: None };
                self.metrics.directory_reload(error.outcome());
                Poll::Rejected(error)
            }
            Ok((signature, snapshot)) => {
                *seen = Seen { settled: Some(signature), pending: None };
                Poll::Applied { generation: self.apply(snapshot) }
            }
        }
    }

    fn apply(&self, snapshot: Snapshot) -> u64 {
        self.current.store(Arc::new(snapshot));
        self.generation.send_modify(|g| *g += 1);
        let generation = self.generation();
        self.metrics.directory_reload(ReloadOutcome::Applied);
        self.metrics.directory_generation(generation);
        generation
    }
}

fn load(path: &std::path::Path, me: &str) -> Result<(Signature, Snapshot), DirectoryError> {
    let (signature, file) = source::load(path)?;
    let seed = random_seed();
    let snapshot = Snapshot::build(&file, me, seed)
        .map_err(|fault| DirectoryError::Snapshot { path: path.to_owned(), fault })?;
    Ok((signature, snapshot))
}

fn random_seed() -> u64 {
    // Only for an even start over endpoints; any number will do.
    getrandom::u64().unwrap_or(0)
}

#[cfg(test)]
mod tests;
