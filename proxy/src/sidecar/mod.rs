//! Sidecar: accepts a pod's captured connections and hands them to the node proxy; opens sockets
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

use crate::handoff::{self, PassthroughReason, StreamSocket, connected_ends};
use backoff::Backoff;
use relay::{Buffers, reset};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
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
/// When the sidecar looks for connections that the node proxy, which accepts them, has left.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
const SWEEP_LOOKS: u32 = 10;
/// When a node proxy that stopped accepting, or did not want to, is asked again.
const LEND_AGAIN_MIN: Duration = Duration::from_secs(1);
const LEND_AGAIN_MAX: Duration = Duration::from_secs(300);
/// So long a time of accepting was no vain attempt.
const LENT_FOR_LONG: Duration = Duration::from_secs(10);

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
    /// Where a connection wanted to go that was accepted at this address.
    original_destination: Box<dyn Fn(BorrowedFd<'_>, SocketAddr) -> SocketAddr>,
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
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    async fn slot(&self) -> Slot {
        Slot::new(&self.load, self.permit().await)
    }
}

/// A sidecar that listens; nothing is served before [`Sidecar::run`].
pub struct Sidecar {
    listener: OwnedFd,
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
            original_destination: Box::new(move |socket, local| {
                handoff::original_destination(socket, local, listen_port)
            }),
            may_deliver: Box::new(move |src, dst| dial::may_deliver(listen_port, src, dst)),
        };
        Self::bind_in(options, metrics, pod)
    }

    fn bind_in(
        mut options: Options,
        metrics: SidecarMetrics,
        pod: Pod,
    ) -> Result<Self, SidecarError> {
        dial::check_privileges(options.marks)?;
        let listener = listener::listen(options.listen_port)?;
        if let Ok(port) = handoff::check_listener(&listener) {
            options.listen_port = port;
        }
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

/// Accepts, or has the node proxy accept: it then needs no word with the sidecar for a connection.
async fn accept_all(listener: OwnedFd, shared: Rc<Shared>) {
    let mut backoff = Backoff::new(LEND_AGAIN_MIN, LEND_AGAIN_MAX);
    loop {
        if shared.uplink.lend(&listener) {
            let since = Instant::now();
            sweep(&listener, &shared).await;
            if since.elapsed() > LENT_FOR_LONG {
                backoff.reset();
            }
        }
        accept_own(&listener, &shared, backoff.step()).await;
    }
}

/// Until the node proxy might.
async fn accept_own(listener: &OwnedFd, shared: &Rc<Shared>, time_max: Duration) {
    let accepting = async {
        let mut exhausted = false;
        loop {
            if let Err(error) = accept_some(listener, shared, &mut exhausted).await
                && !std::mem::replace(&mut exhausted, true)
            {
                tracing::error!(%error, "cannot accept connections; they wait");
            }
            sleep(EXHAUSTED_PAUSE).await;
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shared.uplink.changed() => {}
        () = sleep(time_max) => {}
    }
}

/// Until that fails. Only then is the listener watched: each connection wakes who watches it.
async fn accept_some(
    listener: &OwnedFd,
    shared: &Rc<Shared>,
    exhausted: &mut bool,
) -> io::Result<()> {
    let watched = rdmesh_sys::readiness::watch(listener.try_clone()?)?;
    loop {
        // At the limit new connections wait in the backlog.
        let permit = shared.permit().await;
        let socket = listener::accept(&watched).await?;
        *exhausted = false;
        admit(shared, socket, permit, None);
    }
}

/// The node proxy accepts. What it leaves, because it hangs, is accepted here.
async fn sweep(listener: &OwnedFd, shared: &Rc<Shared>) {
    while shared.uplink.listens() {
        tokio::select! {
            () = shared.uplink.changed() => {}
            () = arrived_a_while_ago(listener) => {
                // What was offered after an earlier look has no answer.
                if shared.uplink.silent_for(SWEEP_INTERVAL) {
                    return;
                }
                while let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned()
                    && let Ok(Some(socket)) = listener::accept_now(listener)
                {
                    admit(shared, socket, Some(permit), None);
                }
            }
        }
    }
}

/// When connections were seen to wait at every look for a while: a node proxy that is well leaves none
/// sooner or later. To take what it is about to accept would change the order.
async fn arrived_a_while_ago(listener: &OwnedFd) {
    let mut looks = 0;
    while looks < SWEEP_LOOKS {
        if looks == 0 {
            let watched = listener.try_clone().and_then(rdmesh_sys::readiness::watch);
            if let Ok(watched) = &watched {
                let _ = watched.readable().await;
            }
            // Not watched any more: each connection would wake the sidecar.
        }
        sleep(SWEEP_INTERVAL / SWEEP_LOOKS).await;
        looks = if listener::is_waiting(listener) { looks + 1 } else { 0 };
    }
}

/// A connection that the node proxy accepted and does not carry.
fn accepted(shared: &Rc<Shared>, socket: OwnedFd, reason: Option<PassthroughReason>) {
    let shared = Rc::clone(shared);
    tokio::task::spawn_local(async move {
        let permit = shared.permit().await;
        admit(&shared, socket, permit, reason);
    });
}

/// With a reason it passes through, without one the node proxy is asked.
fn admit(
    shared: &Rc<Shared>,
    socket: OwnedFd,
    permit: Option<OwnedSemaphorePermit>,
    reason: Option<PassthroughReason>,
) {
    // A client that has gone already has no address.
    let Ok(ends) = connected_ends(&socket) else { return };
    let Some(orig_dst) = captured_from(shared, &socket, &ends) else {
        shared.metrics.handoff(Handoff::Direct);
        tracing::debug!(src = %ends.peer, "refused a connection that was not captured");
        return reset(socket);
    };
    let client = Client::new(socket, orig_dst, ends.peer, Slot::new(&shared.load, permit));
    if let Some(reason) = reason {
        shared.metrics.handoff(Handoff::Passthrough);
        passthrough::spawn(shared, client, reason);
    } else if let Err((client, reason)) =
        shared.uplink.offer(client, shared.options.connect_timeout)
    {
        passthrough::spawn(shared, client, reason);
    }
}

/// Where the client wanted to go, unless it wanted to come here.
fn captured_from(shared: &Shared, socket: &OwnedFd, ends: &StreamSocket) -> Option<SocketAddr> {
    let orig_dst = (shared.pod.original_destination)(socket.as_fd(), ends.local);
    let here = orig_dst.port() == shared.options.listen_port && dial::is_own_address(orig_dst);
    (!here).then_some(orig_dst)
}
