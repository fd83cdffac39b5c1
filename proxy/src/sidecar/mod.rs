//! Sidecar: accepts a pod's redirected connections and hands them to the node proxy; opens sockets
//! to the pod's application when the node proxy asks; relays plain TCP for what the mesh does not
//! carry.
//!
//! What it does not do: choose what goes through the mesh (the node proxy does), look at bytes, or
//! keep anything of a connection that was taken. It never closes a channel on which clients wait:
//! only the node proxy knows whether it has begun to read from their sockets.
//!
//! One thread, no locks: everything is shared by `Rc`.

mod backoff;
mod dial;
mod error;
mod listener;
mod metrics;
mod passthrough;
mod relay;
mod session;
mod uplink;
mod watch;

#[cfg(test)]
mod tests;

pub use error::SidecarError;
pub use metrics::{Handoff, SidecarMetrics};

use crate::handoff::{StreamSocket, connected_ends};
use listener::Lookup;
use relay::{Buffers, reset};
use rustix::fd::{AsFd, OwnedFd};
use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

/// Dials to the application at the same time.
const DIALS_MAX: usize = 1024;
/// Dials under way and those that wait for their turn. A burst is read from the channel faster
/// than it is dialled; to refuse it would send its connections past the mesh.
const DIALS_WAITING_MAX: usize = 16_384;
/// How long to wait when no descriptor is left for the next connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Marks of the sidecar's own sockets; see `capture`. 0 means no mark, for a network namespace
/// without capture; without a delivery mark the client's address must be a local one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Exempt from capture, routed as usual.
    pub passthrough: u32,
    /// Exempt from capture; a foreign source address is local.
    pub delivery: u32,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub listen_port: u16,
    pub node_socket: PathBuf,
    pub connections_max: u32,
    pub connect_timeout: Duration,
    pub drain_timeout: Duration,
    pub reconnect_backoff_min: Duration,
    pub reconnect_backoff_max: Duration,
    pub marks: Marks,
}

/// What the pod's network namespace says.
struct Pod {
    original_destination: Lookup,
    may_deliver: Box<dyn Fn(SocketAddr, SocketAddr) -> bool>,
}

/// A connection that the sidecar holds.
struct Client {
    socket: OwnedFd,
    orig_dst: SocketAddr,
    src: SocketAddr,
    since: Instant,
    slot: Slot,
}

impl Client {
    fn new(socket: OwnedFd, orig_dst: SocketAddr, src: SocketAddr, slot: Slot) -> Self {
        Self { socket, orig_dst, src, since: Instant::now(), slot }
    }
}

/// Held by each connection that the sidecar answers for.
struct Slot {
    load: Rc<Load>,
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct Load {
    connections: Cell<usize>,
    fewer: Notify,
}

impl Slot {
    fn new(load: &Rc<Load>, permit: Option<OwnedSemaphorePermit>) -> Self {
        load.connections.set(load.connections.get() + 1);
        Self { load: Rc::clone(load), _permit: permit }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.load.connections.set(self.load.connections.get() - 1);
        self.load.fewer.notify_one();
    }
}

struct Shared {
    options: Options,
    metrics: SidecarMetrics,
    pod: Pod,
    uplink: uplink::Uplink,
    buffers: Buffers,
    load: Rc<Load>,
    connections: Arc<Semaphore>,
    dials: Semaphore,
    dials_waiting: Arc<Semaphore>,
}

impl Shared {
    async fn slot(&self) -> Slot {
        // The semaphore is never closed.
        Slot::new(&self.load, Arc::clone(&self.connections).acquire_owned().await.ok())
    }
}

/// A sidecar that listens; nothing is served before [`Sidecar::run`].
pub struct Sidecar {
    listener: AsyncFd<OwnedFd>,
    shared: Rc<Shared>,
}

impl Sidecar {
    /// Checks privileges and listens. Needs a tokio runtime of one thread around it.
    ///
    /// # Errors
    /// What the operator has to mend.
    pub fn bind(options: Options, metrics: SidecarMetrics) -> Result<Self, SidecarError> {
        let listen_port = options.listen_port;
        let pod = Pod {
            original_destination: Box::new(listener::original_destination),
            may_deliver: Box::new(move |src, dst| dial::may_deliver(listen_port, src, dst)),
        };
        Self::bind_in(options, metrics, pod)
    }

    fn bind_in(options: Options, metrics: SidecarMetrics, pod: Pod) -> Result<Self, SidecarError> {
        dial::check_privileges(options.marks)?;
        let listener = listener::listen(options.listen_port)?;
        let connections = Arc::new(Semaphore::new(options.connections_max as usize));
        let shared = Rc::new(Shared {
            options,
            metrics,
            pod,
            uplink: uplink::Uplink::default(),
            buffers: Buffers::new(),
            load: Rc::default(),
            connections,
            dials: Semaphore::new(DIALS_MAX),
            dials_waiting: Arc::new(Semaphore::new(DIALS_WAITING_MAX)),
        });
        Ok(Self { listener, shared })
    }

    /// Serves until `stop`, then for as long as connections are relayed or being handed over, but
    /// no longer than the drain timeout. Connections that the node proxy took live on there.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, shared } = self;
        let tasks = LocalSet::new();
        tasks
            .run_until(async {
                uplink::spawn(&shared);
                tokio::task::spawn_local(accept_all(listener, Rc::clone(&shared)));
                stop.await;
                drain(&shared).await;
            })
            .await;
    }
}

async fn drain(shared: &Shared) {
    let left = shared.load.connections.get();
    tracing::info!(connections = left, "stopping once the connections here have ended");
    let emptied = async {
        while shared.load.connections.get() > 0 {
            shared.load.fewer.notified().await;
        }
    };
    if timeout(shared.options.drain_timeout, emptied).await.is_err() {
        let left = shared.load.connections.get();
        tracing::warn!(connections = left, "drain timeout: what is left is cut off");
    }
}

async fn accept_all(listener: AsyncFd<OwnedFd>, shared: Rc<Shared>) {
    let mut exhausted = false;
    loop {
        // At the limit new connections wait in the backlog.
        let permit = Arc::clone(&shared.connections).acquire_owned().await.ok();
        match listener::accept(&listener).await {
            Ok(socket) => {
                exhausted = false;
                admit(&shared, socket, permit);
            }
            Err(error) => {
                if !exhausted {
                    tracing::error!(%error, "cannot accept connections; they wait");
                }
                exhausted = true;
                sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

fn admit(shared: &Rc<Shared>, socket: OwnedFd, permit: Option<OwnedSemaphorePermit>) {
    // A client that has gone already has no address.
    let Ok(ends) = connected_ends(&socket) else { return };
    let Some(orig_dst) = redirected_from(shared, &socket, &ends) else {
        shared.metrics.handoff(Handoff::Direct);
        tracing::debug!(src = %ends.peer, "refused a connection that was not redirected");
        return reset(socket);
    };
    let client = Client::new(socket, orig_dst, ends.peer, Slot::new(&shared.load, permit));
    if let Err((client, reason)) = shared.uplink.offer(client, shared.options.connect_timeout) {
        passthrough::spawn(shared, client, reason);
    }
}

/// Where the client wanted to go, unless it wanted to come here.
fn redirected_from(shared: &Shared, socket: &OwnedFd, ends: &StreamSocket) -> Option<SocketAddr> {
    let orig_dst = (shared.pod.original_destination)(socket.as_fd(), ends).ok()?;
    let here = orig_dst == ends.local
        || (orig_dst.port() == shared.options.listen_port && dial::is_own_address(orig_dst));
    (!here).then_some(orig_dst)
}
