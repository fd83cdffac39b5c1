//! Who this node proxy talks to: the listener for peers, mutual TLS, control sessions, and the
//! making of links for lanes. Runs on the control runtime (tokio, one thread).
//!
//! Every connection starts with a plain preamble that says what it is for ([`wire`]). A control
//! session is always authenticated; the links of lanes are bound to it by one-time tokens.
//! What it does not do: touch bytes of streams, or choose where a stream goes. Links are handed
//! to workers by [`Command`]s, and workers say what they need by [`Request`]s.

mod backoff;
mod dial;
mod listen;
mod manager;
mod outbox;
mod peer;
mod peer_types;
mod reject;
mod session;
mod socket;
mod status;
#[cfg(test)]
mod testing;
mod tls;
mod tokens;
pub mod wire;

pub use reject::{RejectReason, Rejections};
pub use session::Keepalive;
pub use status::{LaneStatus, PeerStatus};
pub use tls::{TlsError, TlsFiles};

use self::manager::{Event, Manager, Registry};
use super::messages::{Command, Mailbox, NodeName, Request};
use crate::metrics::NodeMetrics;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Where the directory says that a node proxy listens; `None` for a node that it does not know.
pub type Resolve = Arc<dyn Fn(&str) -> Option<SocketAddr> + Send + Sync>;

/// Events of connections that wait for the manager.
const EVENTS_MAX: usize = 1024;
/// Tokens outstanding at once.
const TOKENS_MAX: usize = 16 << 10;

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub handshake: Duration,
    pub keepalive: Keepalive,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl From<&rdmesh_config::Timeouts> for Timing {
    fn from(timeouts: &rdmesh_config::Timeouts) -> Self {
        let ms = Duration::from_millis;
        Self {
            handshake: ms(timeouts.handshake_ms),
            keepalive: Keepalive {
                interval: ms(timeouts.keepalive_interval_ms.max(1)),
                timeout: ms(timeouts.keepalive_timeout_ms),
            },
            backoff_min: ms(timeouts.reconnect_backoff_min_ms),
            backoff_max: ms(timeouts.reconnect_backoff_max_ms),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    /// The node's own name.
    pub node: String,
    pub listen: SocketAddr,
    pub encrypt: bool,
    /// Bits that both ends must know before they are used.
    pub features: u64,
    /// Names of the back ends that this node has.
    pub fabrics: Vec<String>,
    pub tls: TlsFiles,
    pub timing: Timing,
    pub peers_max: usize,
    pub pending_handshakes_max: usize,
    /// Where rejections are counted.
    pub metrics: Arc<NodeMetrics>,
}

impl From<&rdmesh_config::Node> for Options {
    fn from(node: &rdmesh_config::Node) -> Self {
        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            node: node.name.clone(),
            listen: node.listen,
            encrypt: node.encrypt,
            features: 0,
            fabrics: vec!["tcp".to_owned()],
            tls: TlsFiles {
                ca: node.tls.ca.clone(),
                cert: node.tls.cert.clone(),
                key: node.tls.key.clone(),
            },
            timing: Timing::from(&node.timeouts),
            peers_max: count(node.limits.peers_max),
            pending_handshakes_max: count(node.limits.pending_handshakes_max),
            metrics: Arc::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "cannot listen for peers on {address} (node.listen): {source}; is another node proxy running, or is the address not of this host?"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("the system gives no randomness for the incarnation: {0}")]
    Random(getrandom::Error),
    #[error("{0} workers: from 1 to {max} are possible", max = wire::WORKERS_MAX)]
    Workers(usize),
}

/// The running room. Dropping it stops everything.
pub struct Peers {
    address: SocketAddr,
    incarnation: u64,
    rejections: Arc<Rejections>,
    events: mpsc::Sender<Event>,
    tasks: [AbortHandle; 2],
}

impl Peers {
    /// Loads the TLS files, listens, and runs from then on; call it on the control runtime.
    /// One mailbox per worker, in their order. It ends with the last sender of `requests`.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub async fn start(
        options: Options,
        resolve: Resolve,
        mailboxes: Vec<Mailbox<Command>>,
        requests: mpsc::Receiver<Request>,
    ) -> Result<Self, StartError> {
        let own = Self::hello(&options, mailboxes.len())?;
        Self::start_as(own, options, resolve, mailboxes, requests).await
    }

    fn hello(options: &Options, workers: usize) -> Result<wire::ControlHello, StartError> {
        let count = u16::try_from(workers).ok().filter(|n| (1..=wire::WORKERS_MAX).contains(n));
        Ok(wire::ControlHello {
            version_min: wire::PROTOCOL_VERSION_MIN,
            version_max: wire::PROTOCOL_VERSION_MAX,
            node: options.node.clone(),
            incarnation: getrandom::u64().map_err(StartError::Random)?,
            workers: count.ok_or(StartError::Workers(workers))?,
            encrypt: options.encrypt,
            features: options.features,
            fabrics: options.fabrics.clone(),
        })
    }

    async fn start_as(
        own: wire::ControlHello,
        options: Options,
        resolve: Resolve,
        mailboxes: Vec<Mailbox<Command>>,
        requests: mpsc::Receiver<Request>,
    ) -> Result<Self, StartError> {
        let trust = Arc::new(tls::Trust::load(&options.node, options.tls)?);
        let failed = |source| StartError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let tokens = Arc::new(Mutex::new(tokens::Tokens::new(TOKENS_MAX)));
        let rejections = Arc::new(Rejections::new(Arc::clone(&options.metrics)));
        let timing = options.timing;
        let incarnation = own.incarnation;
        let gate = listen::Gate {
            trust: Arc::clone(&trust),
            own: own.clone(),
            resolve: Arc::clone(&resolve),
            tokens: Arc::clone(&tokens),
            rejections: Arc::clone(&rejections),
            events: events.clone(),
            timing,
            pending_max: options.pending_handshakes_max,
        };
        let manager = Manager {
            peer_config: peer::PeerConfig {
                own: NodeName::from(own.node.as_str()),
                handshake: timing.handshake,
                backoff_min: timing.backoff_min,
                backoff_max: timing.backoff_max,
            },
            own,
            timing,
            peers_max: options.peers_max,
            dialer: dial::Dialer {
                trust,
                handshake: timing.handshake,
                silence: timing.keepalive.timeout,
            },
            resolve,
            tokens,
            rejections: Arc::clone(&rejections),
            outbox: outbox::Outbox::new(mailboxes),
            events: events.clone(),
            state: Registry::default(),
        };
        let tasks = [
            tokio::spawn(listen::run(listener, Arc::new(gate))).abort_handle(),
            tokio::spawn(manager.run(inbox, requests)).abort_handle(),
        ];
        Ok(Self { address, incarnation, rejections, events, tasks })
    }

    /// Where peers arrive; tells the port if `listen` had 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Counters for `rdmesh_peer_rejected_total{reason}`.
    #[must_use]
    pub fn rejections(&self) -> &Arc<Rejections> {
        &self.rejections
    }

    /// A handle for other tasks, such as the admin server.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { events: self.events.clone() }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Asks the running room; outlives it without harm.
#[derive(Clone)]
pub struct Handle {
    events: mpsc::Sender<Event>,
}

impl Handle {
    /// All peers with which there was something to do, by name. Empty when the room has ended.
    pub async fn status(&self) -> Vec<PeerStatus> {
        let (reply, answer) = oneshot::channel();
        if self.events.send(Event::Status(reply)).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Peers that the directory no longer has are cut off now rather than within a second.
    pub async fn directory_changed(&self) {
        let _ = self.events.send(Event::DirectoryChanged).await;
    }

    /// Tells all peers that this node proxy is about to stop, and takes no new ones. Lanes live on.
    pub async fn drain(&self) {
        let _ = self.events.send(Event::Drain).await;
    }
}

#[cfg(test)]
mod tests;
