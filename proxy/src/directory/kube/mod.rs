//! The API server of a cluster as a source of snapshots.
//!
//! Six watches (pods of the mesh, nodes, services, endpoint slices, namespaces, policies) keep small
//! records of their objects; after a change, and a short wait for more of them, a new snapshot is
//! made of the records. Whatever the API server does (away, slow, history gone), the last state
//! stays in force. What this does not do: write to the API server, or choose endpoints (`services`
//! says which are ready; the snapshot takes turns).
//!
//! All of it is in a thread of its own: reading a large cluster's objects takes seconds, and who reads
//! waits while a snapshot is made. Peers and sidecars must not wait for that.

mod build;
mod convert;
mod policies;
mod records;
mod services;
mod watch;

use super::Snapshot;
use super::snapshot::{Assembly, NodeInfo, NodeName};
use crate::metrics::NodeMetrics;
use kube::config::{KubeConfigOptions, Kubeconfig};
use records::Store;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Changes come in bursts (a rollout, a node's loss): they are taken together.
const DEBOUNCE_MIN: Duration = Duration::from_millis(100);
const DEBOUNCE_MAX: Duration = Duration::from_millis(500);
/// Making snapshots takes at most this part of a core.
const BUILD_SHARE: u32 = 8;
/// API groups with policies that this program does not know: tunnelled traffic would bypass them.
const FOREIGN_POLICIES: &[&str] = &[
    "policy.networking.k8s.io",
    "cilium.io",
    "crd.projectcalico.org",
    "projectcalico.org",
    "crd.antrea.io",
];

#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    #[error("cannot use the kubeconfig {}", .path.display())]
    Kubeconfig { path: PathBuf, source: kube::config::KubeconfigError },
    #[error(
        "no service account: outside a cluster, set node.directory.kubernetes.kubeconfig to a file"
    )]
    ServiceAccount(#[source] kube::config::InClusterError),
    #[error("cannot make a client of the API server")]
    Client(#[source] kube::Error),
}

/// Which API server, and as whom; it is not asked anything yet.
pub(super) async fn config(kubeconfig: &Path) -> Result<kube::Config, KubeError> {
    let mut config = if kubeconfig.as_os_str().is_empty() {
        kube::Config::incluster().map_err(KubeError::ServiceAccount)?
    } else {
        let wrong = |source| KubeError::Kubeconfig { path: kubeconfig.to_owned(), source };
        let file = Kubeconfig::read_from(kubeconfig).map_err(wrong)?;
        let options = KubeConfigOptions::default();
        kube::Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
    };
    config.connect_timeout = Some(Duration::from_secs(10));
    // Watches are silent for long; `watch` has its own limits.
    config.read_timeout = None;
    // It has its own pauses between tries, too.
    config.default_retry = false;
    // A client belongs to the thread that it is made in; here it only tells what is wrong with the config.
    kube::Client::try_from(config.clone()).map_err(KubeError::Client)?;
    Ok(config)
}

/// Runs `source` in a thread of its own until the future is dropped.
pub(super) async fn in_own_thread(source: Source, publish: impl Fn(Snapshot) + Send + 'static) {
    // Dropped with the future, which ends the thread.
    let (_alive, gone) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("directory".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    () = source.run(publish) => {}
                    _ = gone => {}
                }
            }),
            Err(error) => {
                tracing::error!(%error, "no runtime for the directory; it stays as it is");
            }
        }
    });
    if let Err(error) = thread {
        tracing::error!(%error, "no thread for the directory; it stays as it is");
    }
    std::future::pending::<()>().await;
}

/// What is known before the API server has answered: this node. Everything passes through.
pub(super) fn unknown(me: &str, listen: SocketAddr) -> Snapshot {
    let name = NodeName::from(me);
    let info = NodeInfo { name: name.clone(), address: listen };
    let nodes = HashMap::from([(name.as_arc().clone(), info)]);
    Assembly::new(name, nodes, 0, 0).finish([], HashMap::new())
}

pub(super) struct Source {
    pub config: kube::Config,
    pub me: String,
    /// Where this node proxy listens; peers are expected at the same port.
    pub listen: SocketAddr,
    pub metrics: Arc<NodeMetrics>,
}

impl Source {
    /// Gives every new state to `publish`, until the future is dropped.
    pub async fn run(self, publish: impl Fn(Snapshot)) {
        let client = match kube::Client::try_from(self.config.clone()) {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "no client of the API server; the directory stays as it is");
                return;
            }
        };
        let store = Arc::new(Store::new());
        let watches = watch::all(&client, &store, &self.metrics);
        let _watches = AbortOnDrop(watches);
        tokio::join!(warn_of_foreign_policies(&client), self.rebuild(&store, publish));
    }

    async fn rebuild(&self, store: &Arc<Store>, publish: impl Fn(Snapshot)) {
        let mut pause = DEBOUNCE_MIN;
        loop {
            store.changed.notified().await;
            tokio::time::sleep(pause).await;
            let (store, me, listen) = (Arc::clone(store), self.me.clone(), self.listen);
            let started = Instant::now();
            let built = tokio::task::spawn_blocking(move || {
                let records = store.lock();
                records.synced().then(|| build::snapshot(&records, &me, listen))
            });
            match built.await {
                Ok(Some(snapshot)) => publish(snapshot),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "making a snapshot failed; the old one stays in force");
                }
            }
            pause = (started.elapsed() * BUILD_SHARE).clamp(DEBOUNCE_MIN, DEBOUNCE_MAX);
        }
    }
}

async fn warn_of_foreign_policies(client: &kube::Client) {
    // Asked once; a cluster seldom gets another policy engine, and then restarts its daemons.
    if let Ok(groups) = client.list_api_groups().await {
        for group in groups.groups.iter().filter(|g| FOREIGN_POLICIES.contains(&g.name.as_str())) {
            tracing::warn!(
                group = group.name,
                "the cluster has policies of this API group; they do not bear on tunnelled \
                 connections, only NetworkPolicy does"
            );
        }
    }
}

struct AbortOnDrop(Vec<tokio::task::JoinHandle<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod watch_tests;
