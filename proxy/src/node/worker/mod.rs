//! A worker: one thread that moves bytes between applications' sockets and lanes.
//!
//! Everything it needs is its own: sockets, slab, lanes, state machines. It hears from the control
//! thread through a mailbox and answers through a bounded channel. It never blocks but in
//! [`engine::Engine::wait`].
//! What it does not do: dial or accept peers, read files, look at the clock more than once a turn.

mod accept;
mod crowd;
mod deliver;
mod engine;
mod flow;
mod gather;
mod idle;
mod lane;
mod lanes;
mod lines;
mod links;
mod memory;
mod pods;
mod polling;
mod slots;
mod spares;
mod stream;
mod streams;
mod watchdog;

#[cfg(test)]
mod tests;

use crate::directory::Snapshot;
use crate::fabric::Message;
use crate::fabric::select::Fabrics;
use crate::metrics::{NodeMetrics, SlabState, WorkerMetrics};
use crate::mux::{Budget, LaneConfig};
use crate::node::messages::{Command, Mailbox, NodeName, Request};
use crate::node::status::WorkerStatus;
use arc_swap::ArcSwap;
use crowd::Crowd;
use engine::{Engine, Event, Token};
use futures_util::FutureExt;
use lane::LaneSlot;
use lines::Pair;
use memory::Arena;
use pods::PodSlot;
use polling::Spin;
use rdmesh_config::{Io, Node};
use rdmesh_sys::slab::Slab;
use slots::{Key, Slots};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::Stream;
use tracing::{info, warn};
use watchdog::Watchdog;

/// What a worker is made from; everything else it makes in its own thread.
pub struct Setup {
    pub index: usize,
    pub config: Node,
    pub directory: Arc<ArcSwap<Snapshot>>,
    pub mailbox: Mailbox<Command>,
    pub requests: tokio::sync::mpsc::Sender<Request>,
    pub metrics: Arc<WorkerMetrics>,
    /// For what happens rarely: lanes, failovers, rejections.
    pub node_metrics: Arc<NodeMetrics>,
}

struct Worker {
    index: usize,
    config: Node,
    directory: Arc<ArcSwap<Snapshot>>,
    mailbox: Mailbox<Command>,
    requests: tokio::sync::mpsc::Sender<Request>,
    metrics: Arc<WorkerMetrics>,
    node_metrics: Arc<NodeMetrics>,
    engine: Engine,
    watchdog: Watchdog,
    crowd: Crowd,
    arena: Arena,
    fabrics: Fabrics,
    budget: Rc<Budget>,
    lane_config: LaneConfig,
    streams: Slots<Stream>,
    /// Those of them whose socket was accepted here.
    accepted: u32,
    lanes: Slots<LaneSlot>,
    pods: Slots<PodSlot>,
    lane_keys: HashMap<(NodeName, u16), Key>,
    /// Lanes whose link can be polled.
    pollable: Vec<Key>,
    /// The same-node pair: streams are opened on the first and arrive on the second.
    twins: Option<(Key, Key)>,
    pod_keys: HashMap<Arc<str>, Key>,
    /// Streams whose socket may have bytes, in the order in which they are read.
    to_read: VecDeque<Key>,
    /// Streams whose socket gathers, and when to look at it.
    gathering: VecDeque<(Instant, Key)>,
    /// Streams that found the slab empty.
    starved: Vec<Key>,
    to_write: Vec<Key>,
    to_serve: VecDeque<Key>,
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Connections to applications that are under way, and until when.
    connects: VecDeque<(Instant, Key)>,
    /// Lines that are held up, and until when.
    held: VecDeque<(Instant, Key, Pair)>,
    /// Requests that the control thread's queue had no room for.
    unsent: VecDeque<Request>,
    messages: Vec<Message>,
    /// Peers whose lies were logged.
    distrusted: HashSet<NodeName>,
    next_handoff_id: u32,
    now: Instant,
    /// When to look at the RDMA device next, while one is in use.
    look_at: Option<Instant>,
    stop_at: Option<Instant>,
    stopped: bool,
}

/// Runs a worker until it is told to stop.
///
/// # Errors
/// When memory or the event queue cannot be had at the start, or the event queue fails later.
pub fn run(setup: Setup) -> io::Result<()> {
    let ring = match setup.config.io {
        Io::Uring => ring(setup.index),
        // Measured: plain calls after epoll are faster than what tokio-uring offers for sockets.
        Io::Auto | Io::Readiness => None,
    };
    match ring {
        Some(ring) => ring.block_on(async { Worker::new(setup, true)?.run().await }),
        None => Worker::new(setup, false)?.run().now_or_never().unwrap_or(Ok(())),
    }
}

/// A runtime on io_uring, unless the kernel, a seccomp profile or a sysctl refuses it.
fn ring(worker: usize) -> Option<tokio_uring::Runtime> {
    match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => {
            info!(worker, "I/O by io_uring");
            Some(runtime)
        }
        Err(error) => {
            warn!(worker, %error, "io_uring is refused (kernel, seccomp profile or sysctl kernel.io_uring_disabled): readiness I/O is used");
            None
        }
    }
}

impl Worker {
    fn new(setup: Setup, ring: bool) -> io::Result<Self> {
        let limits = &setup.config.limits;
        let workers = u64::from(setup.config.workers.max(1));
        let message_bytes = limits.message_bytes_max as usize;
        let slab_buffers = (limits.slab_bytes as usize / message_bytes).max(8);
        let budget_bytes = limits.window_budget_bytes / workers;
        let slab = Slab::new(u32::try_from(slab_buffers).unwrap_or(u32::MAX), message_bytes)?;
        let fabrics = Fabrics::new(&setup.config, &slab)?;
        let engine = Engine::new(ring)?;
        engine.add(&setup.mailbox, Token::Mailbox)?;
        let lane_config = lane_config(&setup.config);
        let now = Instant::now();
        Ok(Self {
            index: setup.index,
            config: setup.config,
            directory: setup.directory,
            mailbox: setup.mailbox,
            requests: setup.requests,
            metrics: setup.metrics,
            node_metrics: setup.node_metrics,
            distrusted: HashSet::new(),
            engine,
            watchdog: Watchdog::new(),
            crowd: Crowd::new(now),
            arena: Arena::new(slab),
            fabrics,
            budget: Rc::new(Budget::new(budget_bytes)),
            lane_config,
            streams: Slots::new(),
            accepted: 0,
            lanes: Slots::new(),
            pods: Slots::new(),
            lane_keys: HashMap::new(),
            pollable: Vec::new(),
            twins: None,
            pod_keys: HashMap::new(),
            to_read: VecDeque::new(),
            gathering: VecDeque::new(),
            starved: Vec::new(),
            to_write: Vec::new(),
            to_serve: VecDeque::new(),
            timers: BinaryHeap::new(),
            connects: VecDeque::new(),
            held: VecDeque::new(),
            unsent: VecDeque::new(),
            messages: Vec::new(),
            next_handoff_id: 0,
            now,
            look_at: None,
            stop_at: None,
            stopped: false,
        })
    }

    /// Pends only with a ring; without one it blocks in the engine.
    async fn run(mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let mut spin = Spin::new(&self.config, self.now);
        while !self.stopped {
            let working = self.has_work();
            let spinning = !working && spin.wanted(self.now, self.crowd.many());
            let awake = working || spinning;
            // Links that can be polled are asked for a notice only before the worker sleeps.
            let found = if awake { self.poll_links(spinning) } else { self.rest_links() };
            let timeout = if awake || found { Some(Duration::ZERO) } else { self.next_wait() };
            self.engine.wait(timeout, &mut events).await?;
            self.now = Instant::now();
            let busy = working || found || !events.is_empty();
            if spinning && !busy {
                // Whoever else could run on this CPU does; a spin must cost nobody's work.
                rustix::thread::sched_yield();
            }
            spin.looked(self.now, !spinning, busy);
            self.crowd.tick(self.now);
            for event in events.drain(..) {
                self.dispatch(event);
            }
            self.turn();
        }
        Ok(())
    }

    fn has_work(&self) -> bool {
        !self.to_read.is_empty() || !self.to_serve.is_empty()
    }

    /// How long to sleep when no event comes.
    fn next_wait(&self) -> Option<Duration> {
        let mut next = self.timers.peek().map(|Reverse((at, _, _))| *at);
        let others = [self.stop_at, self.look_at];
        let queues = [self.connects_due(), self.held_due(), self.gather_due()];
        for other in others.into_iter().chain(queues).flatten() {
            next = Some(next.map_or(other, |at| at.min(other)));
        }
        if !self.starved.is_empty() || !self.unsent.is_empty() {
            let soon = self.now + Duration::from_millis(1);
            next = Some(next.map_or(soon, |at| at.min(soon)));
        }
        next.map(|at| at.saturating_duration_since(self.now))
    }

    fn dispatch(&mut self, event: Event) {
        match event.token {
            Token::Mailbox => self.commands(),
            Token::Stream(key) => self.stream_event(key, event),
            Token::Link(key) => self.link_event(key, event),
            Token::Alarm(key) => self.link_alarmed(key),
            Token::Pod(key) => self.pod_event(key, event),
            Token::Listener(key) => self.accept_streams(key),
            Token::Negotiation(key) => self.negotiate(key),
        }
    }

    /// The work that events have left: reads, then lanes (which make writes), then timers.
    fn turn(&mut self) {
        self.wake_starved();
        self.read_gathered();
        self.read_streams();
        self.serve_lanes();
        self.write_streams();
        // Writing frees windows and may end streams: tell the peers in the same turn.
        self.serve_lanes();
        self.write_streams();
        self.expire();
        self.watchdog.rest(self.now);
        self.look_at_device();
        self.send_requests();
        self.publish();
    }

    fn expire(&mut self) {
        while let Some(Reverse((at, index, generation))) = self.timers.peek().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop();
            let key = Key { index, generation };
            if let Some(slot) = self.lanes.get_mut(key)
                && slot.timer == Some(at)
            {
                slot.timer = None;
                self.lane_timeout(key);
            }
        }
        self.expire_connects();
        self.expire_held();
        if self.stop_at.is_some_and(|at| at <= self.now) {
            self.stopped = true;
        }
    }

    fn request(&mut self, request: Request) {
        self.unsent.push_back(request);
    }

    fn send_requests(&mut self) {
        use tokio::sync::mpsc::error::TrySendError;
        while let Some(request) = self.unsent.pop_front() {
            match self.requests.try_send(request) {
                Ok(()) => {}
                Err(TrySendError::Full(request)) => {
                    self.unsent.push_front(request);
                    return;
                }
                // The control side is gone: the process is about to end.
                Err(TrySendError::Closed(_)) => self.stopped = true,
            }
        }
    }

    fn publish(&self) {
        let slab = self.arena.slab();
        let receive = self.fabrics.receive_slab();
        let used = (slab.buffers_total() - slab.buffers_free()) * slab.buffer_bytes();
        let held = (receive.buffers_total() - receive.buffers_free()) * receive.buffer_bytes();
        let free = slab.buffers_free() * slab.buffer_bytes();
        self.metrics.slab_bytes(SlabState::Free, free as u64);
        self.metrics.slab_bytes(SlabState::InFlight, used as u64);
        self.metrics.slab_bytes(SlabState::Received, held as u64);
        self.metrics.windows(self.budget.granted(), self.budget.bytes_max());
    }

    fn commands(&mut self) {
        let mut commands = Vec::new();
        self.mailbox.drain(&mut commands);
        for command in commands {
            match command {
                Command::LinkUp { peer, incarnation, lane, side, link_id, link } => {
                    self.link_up(peer, incarnation, lane, side, link_id, *link);
                }
                Command::PeerGone { peer } => self.peer_gone(&peer),
                Command::PeerUnavailable { peer, reason } => self.peer_unavailable(&peer, reason),
                Command::PeerDraining { peer } => self.peer_draining(&peer),
                Command::Handoff { pod, channel } => self.add_pod(pod, channel),
                Command::Inspect { answer } => {
                    // The asker may have given up.
                    let _ = answer.send(self.status());
                }
                Command::Drain { until } => self.drain(until),
            }
        }
    }

    fn drain(&mut self, until: Instant) {
        self.stop_at = Some(until);
        let pods: Vec<Key> = self.pods.iter().map(|(key, _)| key).collect();
        for key in pods {
            self.forget_listener(key);
            self.tell_drain(key);
        }
        let lanes: Vec<Key> = self.lanes.iter().map(|(key, _)| key).collect();
        for key in lanes {
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.mux.goaway();
            }
            self.serve(key);
        }
    }

    fn status(&self) -> WorkerStatus {
        let slab = self.arena.slab();
        WorkerStatus {
            index: self.index,
            streams: self.streams.len() as u64,
            window_granted_bytes: self.budget.granted(),
            window_budget_bytes: self.budget.bytes_max(),
            slab_bytes: (slab.buffers_total() * slab.buffer_bytes()) as u64,
            slab_used_bytes: ((slab.buffers_total() - slab.buffers_free()) * slab.buffer_bytes())
                as u64,
            lanes: self.lanes.iter().map(|(_, slot)| slot.status()).collect(),
            pods: self.pods.iter().map(|(_, pod)| pod.uid().to_string()).collect(),
        }
    }
}

fn lane_config(config: &Node) -> LaneConfig {
    let limits = &config.limits;
    let timeouts = &config.timeouts;
    LaneConfig {
        message_bytes_max: limits.message_bytes_max,
        credits: limits.lane_credits,
        unacked_messages_max: limits.lane_credits,
        window_initial_bytes: limits.window_initial_bytes,
        window_max_bytes: limits.window_max_bytes,
        streams_max: limits.streams_max,
        open_timeout: Duration::from_millis(timeouts.open_ms),
        resume_timeout: Duration::from_millis(timeouts.lane_resume_ms),
        keepalive_interval: Duration::from_millis(timeouts.keepalive_interval_ms),
        keepalive_timeout: Duration::from_millis(timeouts.keepalive_timeout_ms),
        ..LaneConfig::default()
    }
}
