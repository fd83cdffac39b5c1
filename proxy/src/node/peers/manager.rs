//! The task that owns all peers: takes events and requests one by one, lets the peer's state
//! machine decide, and carries out what it says.
//!
//! What it does not do: wait. Everything that takes time is a task that reports back by an
//! [`Event`].

use super::dial::{DialError, Dialed, Dialer};
use super::listen::refuse;
use super::outbox::Outbox;
use super::peer::{Action, DialFailure, Peer, PeerConfig, Session};
use super::reject::{RejectReason, Rejections};
use super::session::{self, Control};
use super::status::PeerStatus;
use super::tokens::{Grant, Tokens};
use super::wire::{ControlHello, ControlMessage, Refusal};
use super::{Resolve, Timing};
use crate::fabric::Established;
use crate::node::messages::{Command, LinkId, NodeName, Request, Side, UnavailableReason};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

/// Control messages that wait for a session's socket; a peer that reads so slowly is cut.
const OUTGOING_MAX: usize = 4096;
/// How often the directory is compared with the peers, unasked.
const DIRECTORY_INTERVAL: Duration = Duration::from_secs(1);
/// How soon full mailboxes are tried again.
const OWED_INTERVAL: Duration = Duration::from_millis(20);

/// A session that a peer dialled: authenticated, hellos exchanged, not yet taken.
pub struct Offer {
    pub control: Control,
    pub hello: ControlHello,
    pub address: IpAddr,
}

pub enum Event {
    Offered(Box<Offer>),
    Dialed { peer: NodeName, attempt: u64, result: Result<Box<Dialed>, DialError> },
    Message { peer: NodeName, session: u64, message: ControlMessage },
    SessionDown { peer: NodeName, session: u64, reason: String },
    LinkMade { peer: NodeName, lane: u16, session: u64, made: Result<Box<Established>, DialError> },
    Status(oneshot::Sender<Vec<PeerStatus>>),
    DirectoryChanged,
    Drain,
}

pub struct Manager {
    pub own: ControlHello,
    pub peer_config: PeerConfig,
    pub timing: Timing,
    pub peers_max: usize,
    pub dialer: Dialer,
    pub resolve: Resolve,
    pub tokens: Arc<Mutex<Tokens>>,
    pub rejections: Arc<Rejections>,
    pub outbox: Outbox,
    pub events: mpsc::Sender<Event>,
    pub state: Registry,
}

/// What the manager knows while it runs.
#[derive(Default)]
pub struct Registry {
    peers: HashMap<NodeName, Entry>,
    /// When which peer's state machine wants to be called.
    timers: BTreeSet<(Instant, NodeName)>,
    tasks: JoinSet<()>,
    sessions: u64,
    links: LinkId,
    draining: bool,
}

struct Entry {
    peer: Peer,
    /// The dial under way, and whether it has a TCP connection.
    dial: Option<(u64, AbortHandle, Arc<AtomicBool>)>,
    session: Option<(u64, mpsc::Sender<ControlMessage>)>,
    hello: Option<ControlHello>,
    scheduled: Option<Instant>,
    last_error: Option<String>,
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Manager {
    /// Runs until the workers have dropped their ends of `requests`.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut requests: mpsc::Receiver<Request>,
    ) {
        let mut directory = interval(DIRECTORY_INTERVAL);
        directory.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut wake = self.state.timers.first().map(|(at, _)| *at);
            if self.outbox.owing() {
                let soon = now() + OWED_INTERVAL;
                wake = Some(wake.map_or(soon, |at| at.min(soon)));
            }
            let alarm = async {
                match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.on_request(request),
                    None => return,
                },
                Some(event) = events.recv() => self.on_event(event),
                () = alarm => self.on_alarm(),
                _ = directory.tick() => self.on_directory(),
                Some(_) = self.state.tasks.join_next() => {}
            }
        }
    }

    fn on_alarm(&mut self) {
        self.outbox.flush();
        let now = now();
        while let Some((at, name)) = self.state.timers.first().cloned()
            && at <= now
        {
            self.state.timers.pop_first();
            self.with_peer(&name, |peer| peer.on_timeout(now));
        }
    }

    fn on_request(&mut self, request: Request) {
        let now = now();
        match request {
            Request::NeedLane { peer: name, lane } => {
                if let Err(reason) = self.entry(&name) {
                    let command = Command::PeerUnavailable { peer: name, reason };
                    self.outbox.send_lane(lane, command);
                    return;
                }
                self.with_peer(&name, |peer| peer.need_lane(lane, now));
            }
            Request::LinkBroken { peer: name, lane, link_id, reason } => {
                tracing::debug!(peer = %name, lane, "link broke: {reason}");
                self.with_peer(&name, |peer| peer.link_broken(lane, link_id, now));
            }
            Request::LaneIdle { peer: name, lane } => {
                self.with_peer(&name, |peer| peer.lane_idle(lane));
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = now();
        match event {
            Event::Offered(offer) => self.on_offer(*offer),
            Event::Dialed { peer, attempt, result } => self.on_dialed(&peer, attempt, result),
            Event::Message { peer: name, session, message } => {
                let current = self.current_session(&name);
                if current.is_some_and(|current| current.id == session) {
                    self.with_peer(&name, |peer| peer.message(&message, now));
                }
            }
            Event::SessionDown { peer: name, session, reason } => {
                self.lock_tokens().revoke_session(session);
                let Some(entry) = self.state.peers.get_mut(&name) else { return };
                if entry.session.as_ref().is_some_and(|(id, _)| *id == session) {
                    entry.session = None;
                    entry.last_error = Some(reason.clone());
                    tracing::info!(peer = %name, "control session ended: {reason}");
                }
                self.with_peer(&name, |peer| peer.session_down(session, now));
            }
            Event::LinkMade { peer, lane, session, made } => {
                self.on_link(&peer, lane, session, made);
            }
            Event::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Event::DirectoryChanged => self.on_directory(),
            Event::Drain => {
                self.state.draining = true;
                self.for_all(Peer::drain);
            }
        }
    }

    /// Peers that the directory no longer has are cut off.
    fn on_directory(&mut self) {
        let resolve = &self.resolve;
        let gone: Vec<NodeName> =
            self.state.peers.keys().filter(|name| resolve(name).is_none()).cloned().collect();
        for name in gone {
            tracing::info!(peer = %name, "no longer in the directory");
            self.with_peer(&name, Peer::removed);
            if let Some(entry) = self.state.peers.remove(&name)
                && let Some(at) = entry.scheduled
            {
                self.state.timers.remove(&(at, name));
            }
        }
    }

    // --- peers

    /// Makes sure that there is an entry.
    fn entry(&mut self, name: &NodeName) -> Result<(), UnavailableReason> {
        if self.state.peers.contains_key(name) {
            return Ok(());
        }
        if (self.resolve)(name).is_none() || **name == *self.own.node {
            return Err(UnavailableReason::Unknown);
        }
        if self.state.peers.len() >= self.peers_max && !self.evict() {
            tracing::warn!(peer = %name, "more peers than node.limits.peers_max");
            return Err(UnavailableReason::Limits);
        }
        let mut peer = Peer::new(self.peer_config.clone(), name.clone());
        if self.state.draining {
            peer.drain();
        }
        let entry = Entry {
            peer,
            dial: None,
            session: None,
            hello: None,
            scheduled: None,
            last_error: None,
        };
        self.state.peers.insert(name.clone(), entry);
        Ok(())
    }

    fn evict(&mut self) -> bool {
        let idle = self.state.peers.iter().find(|(_, entry)| entry.peer.forgettable());
        let Some(name) = idle.map(|(name, _)| name.clone()) else { return false };
        if let Some(entry) = self.state.peers.remove(&name)
            && let Some(at) = entry.scheduled
        {
            self.state.timers.remove(&(at, name));
        }
        true
    }

    /// Lets the peer's state machine take an input, then does what it says.
    fn with_peer(&mut self, name: &NodeName, input: impl FnOnce(&mut Peer)) {
        let Some(entry) = self.state.peers.get_mut(name) else { return };
        input(&mut entry.peer);
        self.settle(name);
    }

    fn for_all(&mut self, input: impl Fn(&mut Peer)) {
        let names: Vec<NodeName> = self.state.peers.keys().cloned().collect();
        for name in names {
            self.with_peer(&name, &input);
        }
    }

    fn settle(&mut self, name: &NodeName) {
        // An action may fail at once and so lead to others.
        while let Some(entry) = self.state.peers.get_mut(name) {
            let actions = entry.peer.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.perform(name, action);
            }
        }
        let Some(entry) = self.state.peers.get_mut(name) else { return };
        let next = entry.peer.next_timeout();
        if let Some(old) = std::mem::replace(&mut entry.scheduled, next) {
            self.state.timers.remove(&(old, name.clone()));
        }
        if let Some(at) = next {
            self.state.timers.insert((at, name.clone()));
        }
    }

    fn perform(&mut self, name: &NodeName, action: Action) {
        match action {
            Action::Dial { attempt } => self.dial(name, attempt),
            Action::CancelDial => {
                if let Some(entry) = self.state.peers.get_mut(name)
                    && let Some((_, task, _)) = entry.dial.take()
                {
                    task.abort();
                }
            }
            Action::CloseSession { session } => self.close_session(name, session),
            Action::Send(message) => self.send(name, message),
            Action::IssueToken { lane } => self.issue_token(name, lane),
            Action::DialLink { lane, token } => self.dial_link(name, lane, token),
            Action::PeerGone => {
                tracing::info!(peer = %name, "the peer's process is gone");
                self.outbox.send_all(|| Command::PeerGone { peer: name.clone() });
            }
            Action::PeerDraining => {
                tracing::info!(peer = %name, "the peer is about to stop");
                self.outbox.send_all(|| Command::PeerDraining { peer: name.clone() });
            }
            Action::Unavailable { lane, reason } => {
                let command = Command::PeerUnavailable { peer: name.clone(), reason };
                self.outbox.send_lane(lane, command);
            }
        }
    }

    // --- sessions

    fn dial(&mut self, name: &NodeName, attempt: u64) {
        let Some(entry) = self.state.peers.get_mut(name) else { return };
        let Some(address) = (self.resolve)(name) else {
            entry.peer.dial_failed(attempt, DialFailure::Unknown, now());
            return;
        };
        let connected = Arc::new(AtomicBool::new(false));
        let (dialer, own, events) = (self.dialer.clone(), self.own.clone(), self.events.clone());
        let (peer, flag) = (name.clone(), Arc::clone(&connected));
        let task = self.state.tasks.spawn(async move {
            let result = dialer.control(address, &peer, &own, &flag).await.map(Box::new);
            let _ = events.send(Event::Dialed { peer, attempt, result }).await;
        });
        entry.dial = Some((attempt, task, connected));
    }

    fn on_dialed(&mut self, name: &NodeName, attempt: u64, result: Result<Box<Dialed>, DialError>) {
        let Some(entry) = self.state.peers.get_mut(name) else { return };
        // Cancelled, or of an older attempt: dropping the result closes the connection.
        if entry.dial.as_ref().is_none_or(|(number, ..)| *number != attempt) {
            return;
        }
        entry.dial = None;
        match result {
            Ok(dialed) => {
                let Dialed { control, hello } = *dialed;
                self.adopt(name, control, hello, true);
            }
            Err(DialError { failure, text }) => {
                note_failure(name, entry, failure, text);
                self.with_peer(name, |peer| peer.dial_failed(attempt, failure, now()));
            }
        }
    }

    fn on_offer(&mut self, offer: Offer) {
        let Offer { control, hello, address } = offer;
        let name: NodeName = hello.node.as_str().into();
        let verdict = match self.entry(&name) {
            Ok(()) => self.judge(&name, hello.incarnation),
            Err(UnavailableReason::Limits) => Err(Refusal::Limits),
            Err(_) => Err(Refusal::Unknown),
        };
        match verdict {
            Ok(()) => self.adopt(&name, control, hello, false),
            Err(refusal) => {
                let (reason, text) = match refusal {
                    Refusal::Tie => (RejectReason::Tie, "the other connection is used"),
                    Refusal::Limits => (RejectReason::Limits, "more peers than peers_max"),
                    Refusal::Draining => (RejectReason::Draining, "this node proxy is stopping"),
                    _ => (RejectReason::Unknown, "the directory does not know the node"),
                };
                self.rejections.note(address, reason, &text);
                let patience = self.timing.handshake;
                self.state.tasks.spawn(async move {
                    let told = refuse(control.stream, refusal, text.to_owned());
                    let _ = timeout(patience, told).await;
                });
            }
        }
    }

    fn judge(&mut self, name: &NodeName, incarnation: u64) -> Result<(), Refusal> {
        let Some(entry) = self.state.peers.get_mut(name) else { return Err(Refusal::Unknown) };
        if let Some((attempt, _, connected)) = &entry.dial
            && connected.load(Ordering::Relaxed)
        {
            entry.peer.dial_connected(*attempt);
        }
        let verdict = entry.peer.offer(incarnation);
        self.settle(name);
        verdict
    }

    fn adopt(&mut self, name: &NodeName, control: Control, hello: ControlHello, by_us: bool) {
        let Some(entry) = self.state.peers.get_mut(name) else { return };
        self.state.sessions += 1;
        let id = self.state.sessions;
        let session = Session {
            id,
            dialed_by_us: by_us,
            incarnation: hello.incarnation,
            lanes: self.own.workers.max(hello.workers),
            encrypt: self.own.encrypt || hello.encrypt,
        };
        let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
        if !by_us {
            let _ = sender.try_send(ControlMessage::Accepted);
        }
        tracing::info!(
            peer = %name,
            dialed_by_us = by_us,
            encrypt = session.encrypt,
            version = self.own.common_version(&hello),
            "control session up"
        );
        let keepalive = self.timing.keepalive;
        let task =
            session::run(control, name.clone(), id, keepalive, outgoing, self.events.clone());
        self.state.tasks.spawn(task);
        // Replacing drops the old sender, which ends the old session's task.
        let old = entry.session.replace((id, sender));
        entry.hello = Some(hello);
        entry.last_error = None;
        if let Some((old, _)) = old {
            self.lock_tokens().revoke_session(old);
        }
        self.with_peer(name, |peer| peer.session_up(session, now()));
    }

    fn close_session(&mut self, name: &NodeName, session: u64) {
        self.lock_tokens().revoke_session(session);
        if let Some(entry) = self.state.peers.get_mut(name)
            && entry.session.as_ref().is_some_and(|(id, _)| *id == session)
        {
            entry.session = None;
        }
    }

    fn send(&mut self, name: &NodeName, message: ControlMessage) {
        let Some(entry) = self.state.peers.get_mut(name) else { return };
        let Some((id, sender)) = &entry.session else { return };
        if sender.try_send(message).is_err() {
            let id = *id;
            tracing::warn!(peer = %name, "control session cut: the peer does not read");
            entry.session = None;
            entry.peer.session_down(id, now());
            self.lock_tokens().revoke_session(id);
        }
    }

    fn current_session(&self, name: &NodeName) -> Option<Session> {
        self.state.peers.get(name).and_then(|entry| entry.peer.session())
    }

    // --- links

    fn issue_token(&mut self, name: &NodeName, lane: u16) {
        let Some(session) = self.current_session(name) else { return };
        let grant =
            Grant { peer: name.clone(), lane, session: session.id, encrypt: session.encrypt };
        let at = now();
        let token = {
            let mut tokens = self.lock_tokens();
            // An older one of the same lane is of no use any more.
            tokens.revoke_lane(session.id, lane);
            tokens.issue(grant, at, at + self.timing.handshake)
        };
        match token {
            Some(token) => self.send(name, ControlMessage::LaneToken { lane, token }),
            None => {
                if let Some(entry) = self.state.peers.get_mut(name) {
                    entry.peer.link_failed(lane, "no token to be had".to_owned(), at);
                }
            }
        }
    }

    fn dial_link(&mut self, name: &NodeName, lane: u16, token: super::wire::Token) {
        let Some(session) = self.current_session(name) else { return };
        let address = (self.resolve)(name);
        let (dialer, events, peer) = (self.dialer.clone(), self.events.clone(), name.clone());
        self.state.tasks.spawn(async move {
            let made = match address {
                Some(address) => dialer.link(address, &peer, token, session.encrypt).await,
                None => Err(DialError::new(DialFailure::Unknown, "not in the directory")),
            };
            let made = made.map(Box::new);
            let _ = events.send(Event::LinkMade { peer, lane, session: session.id, made }).await;
        });
    }

    fn on_link(
        &mut self,
        name: &NodeName,
        lane: u16,
        session: u64,
        made: Result<Box<Established>, DialError>,
    ) {
        // Of a session that ended meanwhile: dropping the link closes it, on both ends.
        let Some(current) = self.current_session(name).filter(|current| current.id == session)
        else {
            return;
        };
        match made {
            Ok(link) => {
                self.state.links += 1;
                let link_id = self.state.links;
                let command = Command::LinkUp {
                    peer: name.clone(),
                    incarnation: current.incarnation,
                    lane,
                    side: Side::of(&self.own.node, name),
                    link_id,
                    link,
                };
                if self.outbox.send_lane(lane, command) {
                    self.with_peer(name, |peer| peer.link_made(lane, link_id, now()));
                } else {
                    let text = "the worker is overloaded".to_owned();
                    self.with_peer(name, |peer| peer.link_failed(lane, text, now()));
                }
            }
            Err(DialError { text, .. }) => {
                tracing::warn!(peer = %name, lane, "no link: {text}");
                if let Some(entry) = self.state.peers.get_mut(name) {
                    entry.last_error = Some(text.clone());
                }
                self.with_peer(name, |peer| peer.link_failed(lane, text, now()));
            }
        }
    }

    fn lock_tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> Vec<PeerStatus> {
        let one = |(name, entry): (&NodeName, &Entry)| {
            let address = (self.resolve)(name);
            let error = entry.last_error.clone();
            PeerStatus::of(name, address, &entry.peer, entry.hello.as_ref(), error)
        };
        let mut peers: Vec<PeerStatus> = self.state.peers.iter().map(one).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }
}

/// A failure is worth a line in the log when it is new, not at every retry.
fn note_failure(name: &NodeName, entry: &mut Entry, failure: DialFailure, text: String) {
    if failure == DialFailure::Declined(Refusal::Tie) {
        return;
    }
    if entry.last_error.as_ref() == Some(&text) {
        tracing::debug!(peer = %name, "still no control session: {text}");
    } else {
        tracing::warn!(peer = %name, "no control session: {text}");
        entry.last_error = Some(text);
    }
}
