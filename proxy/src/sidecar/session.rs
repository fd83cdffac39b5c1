//! One channel to the node proxy: which clients are offered over it, and what the node proxy says
//! about them.
//!
//! A client belongs to the sidecar until `Taken`. When the channel ends, what had arrived before
//! is read first; every client that is then still here passes through.

use super::metrics::Handoff;
use super::relay::reset;
use super::{Client, Shared, dial, passthrough};
use crate::handoff::{
    Channel, DialFailure, Family, HandoffError, PassthroughReason, ToNode, ToSidecar,
};
use rustix::fd::{AsFd, OwnedFd};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Messages handled before others get their turn.
const BATCH: usize = 64;
/// Spare sockets made at a time, however many are asked for.
const SPARES_MAX: u32 = 64;

pub(super) struct Session {
    channel: RefCell<Channel>,
    ready: AsyncFd<OwnedFd>,
    clients: RefCell<BTreeMap<u32, Client>>,
    next_id: Cell<u32>,
    draining: Cell<bool>,
    /// The node proxy has the listening socket.
    listens: Cell<bool>,
    warned: Cell<bool>,
    /// When the node proxy last said something.
    heard: Cell<Instant>,
    /// What sending met; [`Session::run`] ends with it.
    failed: RefCell<Option<HandoffError>>,
    wake: Notify,
}

impl Session {
    pub fn new(channel: Channel) -> io::Result<Self> {
        Ok(Self {
            ready: channel.watch()?,
            channel: RefCell::new(channel),
            heard: Cell::new(Instant::now()),
            clients: RefCell::default(),
            next_id: Cell::new(0),
            draining: Cell::new(false),
            listens: Cell::new(false),
            warned: Cell::new(false),
            failed: RefCell::default(),
            wake: Notify::new(),
        })
    }

    /// Next message; waits for it.
    pub async fn recv(&self) -> Result<(ToSidecar, Option<OwnedFd>), HandoffError> {
        loop {
            let mut guard = self.ready.readable().await?;
            if let Some(received) = self.channel.borrow_mut().recv()? {
                return Ok(received);
            }
            guard.clear_ready();
        }
    }

    pub fn send(&self, message: &ToNode, fd: Option<&OwnedFd>) -> Result<(), HandoffError> {
        let mut channel = self.channel.borrow_mut();
        let sent = channel.send(message, fd.map(AsFd::as_fd));
        if channel.wants_write() {
            self.wake.notify_one();
        }
        match sent {
            Err(error) if error.is_fatal() => {
                // Both the caller and `run` want to know.
                *self.failed.borrow_mut() = Some(error);
                self.wake.notify_one();
                Err(HandoffError::Closed)
            }
            other => other,
        }
    }

    /// How long the node proxy has said nothing while clients waited.
    pub fn silence(&self) -> Duration {
        let clients = self.clients.borrow();
        // Ids grow, so the first is the oldest.
        let waited = clients.first_key_value().map_or(Duration::ZERO, |(_, c)| c.since.elapsed());
        waited.min(self.heard.get().elapsed())
    }

    /// Offers a client to the node proxy. Given back with the reason when that cannot be.
    pub fn offer(
        &self,
        client: Client,
        silence_max: Duration,
    ) -> Result<(), (Client, PassthroughReason)> {
        if self.draining.get() {
            return Err((client, PassthroughReason::Draining));
        }
        // It hangs, and no more shall hang with it.
        if self.silence() > silence_max {
            return Err((client, PassthroughReason::NodeBusy));
        }
        let mut clients = self.clients.borrow_mut();
        let mut id = self.next_id.get();
        while clients.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        let open = ToNode::Open { id, orig_dst: client.orig_dst, src: client.src };
        match self.send(&open, Some(&client.socket)) {
            Ok(()) => {
                self.next_id.set(id.wrapping_add(1));
                clients.insert(id, client);
                Ok(())
            }
            Err(HandoffError::Full) => Err((client, PassthroughReason::NodeBusy)),
            Err(_) => Err((client, PassthroughReason::NodeLost)),
        }
    }

    /// Lends the listening socket, unless the node proxy is known not to want it.
    pub fn lend(&self, listener: &OwnedFd) -> bool {
        let lent = !self.draining.get() && self.send(&ToNode::Listener, Some(listener)).is_ok();
        self.listens.set(lent);
        lent
    }

    pub fn listens(&self) -> bool {
        self.listens.get()
    }

    fn accept_here(&self, shared: &Shared) {
        self.listens.set(false);
        shared.uplink.accept_changed();
    }

    /// Serves the channel until it ends, then sees to the clients that are left.
    pub async fn run(self: &Rc<Self>, shared: &Rc<Shared>) -> HandoffError {
        let error = loop {
            if let Err(error) = self.turn(shared).await {
                break error;
            }
        };
        self.abandon(shared, &error);
        error
    }

    async fn turn(self: &Rc<Self>, shared: &Rc<Shared>) -> Result<(), HandoffError> {
        let wants_write = self.channel.borrow().wants_write();
        tokio::select! {
            guard = self.ready.readable() => {
                let mut guard = guard?;
                for _ in 0..BATCH {
                    let received = self.channel.borrow_mut().recv();
                    match received {
                        Ok(Some((message, fd))) => self.handle(shared, message, fd)?,
                        Ok(None) => {
                            guard.clear_ready();
                            break;
                        }
                        Err(error) if error.is_fatal() => return Err(error),
                        Err(error) => tracing::warn!(%error, "a returned connection is lost"),
                    }
                }
            }
            guard = self.ready.writable(), if wants_write => {
                let mut guard = guard?;
                if !self.channel.borrow_mut().flush()? {
                    guard.clear_ready();
                }
            }
            () = self.wake.notified() => {
                // A closed channel is read to its end first: it may hold a `Taken`.
                let failed = self.failed.borrow_mut().take();
                if let Some(error) = failed.filter(|error| !matches!(error, HandoffError::Closed)) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn handle(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        message: ToSidecar,
        fd: Option<OwnedFd>,
    ) -> Result<(), HandoffError> {
        self.heard.set(Instant::now());
        match message {
            ToSidecar::Taken { id } => {
                if self.remove(id).is_some() {
                    shared.metrics.handoff(Handoff::Taken);
                }
            }
            ToSidecar::Deny { id } => {
                if let Some(client) = self.remove(id) {
                    shared.metrics.handoff(Handoff::Denied);
                    reset(client.socket);
                }
            }
            ToSidecar::Passthrough { reason, early, .. } if fd.is_some() => {
                shared.metrics.handoff(Handoff::Returned);
                if let Some(socket) = fd {
                    let returned = passthrough::returned(Rc::clone(shared), socket, reason, early);
                    tokio::task::spawn_local(returned);
                }
            }
            ToSidecar::Passthrough { id, reason, .. } => {
                if let Some(client) = self.remove(id) {
                    shared.metrics.handoff(Handoff::Passthrough);
                    passthrough::spawn(shared, client, reason);
                }
            }
            ToSidecar::Dial { id, src, dst, timeout_ms } => {
                let time_max = Duration::from_millis(timeout_ms.into());
                self.dial(shared, id, (src, dst), time_max);
            }
            ToSidecar::Spares { family, count } => self.send_spares(shared, family, count),
            ToSidecar::Accepted { reason } => match fd {
                Some(socket) => super::accepted(shared, socket, reason),
                // No descriptor was left for it here.
                None => shared.metrics.handoff(Handoff::Lost),
            },
            ToSidecar::Accept => self.accept_here(shared),
            ToSidecar::Drain => {
                tracing::info!("the node proxy is going away: new connections pass through");
                self.draining.set(true);
                self.accept_here(shared);
            }
            ToSidecar::Welcome { .. } | ToSidecar::Rejected { .. } => {
                return Err(io::Error::other("greeting out of turn").into());
            }
        }
        Ok(())
    }

    /// A message about an unknown client is about one that is decided already.
    fn remove(&self, id: u32) -> Option<Client> {
        let client = self.clients.borrow_mut().remove(&id);
        if client.is_none() {
            tracing::debug!(id, "the node proxy spoke of a connection that is not here");
        }
        client
    }

    fn dial(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        id: u32,
        (src, dst): (std::net::SocketAddr, std::net::SocketAddr),
        time_max: Duration,
    ) {
        let refused = if (shared.pod.may_deliver)(src, dst) {
            match std::sync::Arc::clone(&shared.dials_waiting).try_acquire_owned() {
                Ok(place) => {
                    let (session, shared) = (Rc::clone(self), Rc::clone(shared));
                    tokio::task::spawn_local(async move {
                        let _place = place;
                        let opened = match timeout(time_max, shared.dials.acquire()).await {
                            Ok(Ok(_turn)) => {
                                dial::to_application(&shared.options, src, dst, time_max).await
                            }
                            _ => Err(DialFailure::Limits),
                        };
                        session.answer_dial(&shared, id, opened);
                    });
                    return;
                }
                Err(_) => DialFailure::Limits,
            }
        } else {
            if !self.warned.replace(true) {
                tracing::warn!(%src, %dst, "refused to deliver: not an address of this pod's application; further ones are only counted");
            }
            DialFailure::Denied
        };
        self.answer_dial(shared, id, Err(refused));
    }

    fn send_spares(&self, shared: &Shared, family: Family, count: u32) {
        let spare = ToNode::Spare { family, ports: dial::outgoing_ports().into_inner() };
        for _ in 0..count.min(SPARES_MAX) {
            let socket = dial::spare(shared.options.marks, family);
            if let Err(error) = &socket {
                tracing::debug!(%error, "no spare socket");
            }
            // One without a descriptor tells that no more will come.
            let sent = self.send(&spare, socket.as_ref().ok());
            if sent.is_err() || socket.is_err() {
                return;
            }
        }
    }

    fn answer_dial(&self, shared: &Shared, id: u32, opened: Result<OwnedFd, DialFailure>) {
        shared.metrics.dialled(opened.as_ref().map(|_| ()).map_err(|reason| *reason));
        match opened {
            Ok(socket) => {
                if self.send(&ToNode::Dialed { id }, Some(&socket)).is_err() {
                    reset(socket);
                }
            }
            // A node proxy that cannot be told has a timeout of its own.
            Err(reason) => drop(self.send(&ToNode::DialFailed { id, reason }, None)),
        }
    }

    fn abandon(&self, shared: &Rc<Shared>, error: &HandoffError) {
        // Dials under way still hold this session, and waiting messages copies of sockets.
        self.channel.borrow_mut().close();
        let clients = std::mem::take(&mut *self.clients.borrow_mut());
        for client in clients.into_values() {
            if matches!(error, HandoffError::Closed) {
                passthrough::spawn(shared, client, PassthroughReason::NodeLost);
            } else {
                // The node proxy lives and broke the protocol: it may be reading from the socket,
                // and two readers would tear the bytes apart.
                shared.metrics.handoff(Handoff::Lost);
                reset(client.socket);
            }
        }
    }
}
