//! Keeps one channel to each worker of the node proxy: connects, greets, and comes back with
//! backoff after a loss.

use super::backoff::Backoff;
use super::session::Session;
use super::watch::SocketWatch;
use super::{Client, Shared};
use crate::handoff::{
    self, Channel, HandoffError, PassthroughReason, RejectReason, ToNode, ToSidecar, VERSION,
};
use rustix::fd::OwnedFd;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const GREETING_TIME: Duration = Duration::from_secs(5);
const WORKERS_MAX: u32 = 1024;

/// The channels that are up.
#[derive(Default)]
pub(super) struct Uplink {
    /// By worker.
    sessions: RefCell<Vec<Option<Rc<Session>>>>,
    next: Cell<usize>,
    /// How many workers the node proxy said to have.
    workers: Cell<u32>,
    appeared: Notify,
    /// Who accepts may be another now. Only one waits for it.
    changed: Notify,
}

impl Uplink {
    /// Asks the sessions in turn, each once. Given back with the last reason when none wants it.
    pub fn offer(
        &self,
        client: Client,
        silence_max: Duration,
    ) -> Result<(), (Client, PassthroughReason)> {
        let sessions = self.sessions.borrow();
        let start = self.next.get();
        self.next.set(start.wrapping_add(1));
        let mut declined = (client, PassthroughReason::NodeAway);
        for i in 0..sessions.len() {
            let at = start.wrapping_add(i) % sessions.len();
            if let Some(session) = sessions.get(at).and_then(Option::as_ref) {
                match session.offer(declined.0, silence_max) {
                    Ok(()) => return Ok(()),
                    Err(again) => declined = again,
                }
            }
        }
        Err(declined)
    }

    /// Lends the listening socket to the node proxy; false when the sidecar has to accept.
    ///
    /// A node proxy of several workers is offered each connection in place of that: the workers
    /// take turns, so that a few long connections are spread evenly.
    pub fn lend(&self, listener: &OwnedFd) -> bool {
        self.workers.get() == 1 && self.first().is_some_and(|session| session.lend(listener))
    }

    /// Whether the node proxy accepts.
    pub fn listens(&self) -> bool {
        self.first().is_some_and(|session| session.listens())
    }

    /// Whether clients have waited so long for a word of it.
    pub fn silent_for(&self, time: Duration) -> bool {
        self.first().is_some_and(|session| session.silence() >= time)
    }

    fn first(&self) -> Option<Rc<Session>> {
        self.sessions.borrow().first().cloned().flatten()
    }

    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn accept_changed(&self) {
        self.changed.notify_one();
    }

    fn put(&self, worker: u32, session: Option<Rc<Session>>) {
        let mut sessions = self.sessions.borrow_mut();
        let at = worker as usize;
        if sessions.len() <= at {
            sessions.resize_with(at + 1, || None);
        }
        if let Some(slot) = sessions.get_mut(at) {
            *slot = session;
        }
        let used = sessions.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        sessions.truncate(used);
        self.accept_changed();
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Handoff(#[from] HandoffError),
    #[error("no greeting within {GREETING_TIME:?}")]
    Silent,
    #[error("the node proxy turned this sidecar away: {0}")]
    Rejected(RejectReason),
    #[error(
        "the node proxy speaks handoff version {0}, this sidecar {VERSION}: run the same release of both"
    )]
    Version(u16),
    #[error("greeting makes no sense")]
    Greeting,
}

struct Greeted {
    session: Rc<Session>,
    workers: u32,
    node: String,
}

async fn greet(shared: &Shared, worker: u32) -> Result<Greeted, ConnectError> {
    let channel = Channel::new(handoff::connect(&shared.options.node_socket)?)?;
    let session = Rc::new(Session::new(channel)?);
    session.send(&ToNode::Hello { version: VERSION, worker }, None)?;
    let answer = timeout(GREETING_TIME, session.recv()).await.map_err(|_| ConnectError::Silent)?;
    match answer?.0 {
        ToSidecar::Welcome { version, .. } if version != VERSION => {
            Err(ConnectError::Version(version))
        }
        ToSidecar::Welcome { workers, node, .. } if (1..=WORKERS_MAX).contains(&workers) => {
            Ok(Greeted { session, workers, node })
        }
        ToSidecar::Rejected { version, reason: RejectReason::Version } => {
            Err(ConnectError::Version(version))
        }
        ToSidecar::Rejected { reason, .. } => Err(ConnectError::Rejected(reason)),
        _ => Err(ConnectError::Greeting),
    }
}

/// Keeps the channel to worker 0 for ever, and starts the keepers of the others.
pub(super) fn spawn(shared: &Rc<Shared>) {
    tokio::task::spawn_local(watch(Rc::clone(shared)));
    tokio::task::spawn_local(keep(Rc::clone(shared), 0));
}

async fn watch(shared: Rc<Shared>) {
    let socket = &shared.options.node_socket;
    let watch = match SocketWatch::new(socket) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, socket = %socket.display(), "cannot watch the directory of the node proxy's socket; its return is noticed later");
            return;
        }
    };
    while watch.changed().await.is_ok() {
        shared.uplink.appeared.notify_waiters();
    }
}

/// Ends when the node proxy has no such worker (any more).
async fn keep(shared: Rc<Shared>, worker: u32) {
    let options = &shared.options;
    let mut backoff = Backoff::new(options.reconnect_backoff_min, options.reconnect_backoff_max);
    let mut complained = String::new();
    while worker == 0 || worker < shared.uplink.workers.get() {
        let appeared = shared.uplink.appeared.notified();
        tokio::pin!(appeared);
        appeared.as_mut().enable();
        match greet(&shared, worker).await {
            Ok(greeted) => {
                complained.clear();
                let since = Instant::now();
                serve(&shared, worker, greeted).await;
                if since.elapsed() > options.reconnect_backoff_max {
                    backoff.reset();
                }
            }
            Err(error) => {
                let complaint = error.to_string();
                // Once per trouble, not once per attempt.
                if complaint != complained && worker == 0 {
                    let socket = options.node_socket.display();
                    tracing::warn!(%socket, "no channel to the node proxy, connections pass through: {complaint}");
                    complained = complaint;
                }
            }
        }
        tokio::select! {
            () = sleep(backoff.step()) => {}
            () = appeared => backoff.reset(),
        }
    }
}

async fn serve(shared: &Rc<Shared>, worker: u32, greeted: Greeted) {
    let Greeted { session, workers, node } = greeted;
    if worker == 0 {
        tracing::info!(node, workers, "connected to the node proxy");
        let before = shared.uplink.workers.replace(workers).max(1);
        for other in before..workers {
            tokio::task::spawn_local(keep(Rc::clone(shared), other));
        }
    }
    let _connected = shared.metrics.node_connected();
    shared.uplink.put(worker, Some(Rc::clone(&session)));
    let error = session.run(shared).await;
    shared.uplink.put(worker, None);
    if worker == 0 {
        tracing::warn!(node, "lost the node proxy, connections pass through: {error}");
    }
}
