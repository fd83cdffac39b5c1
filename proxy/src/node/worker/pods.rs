//! The worker's side of handoff: sidecars come, go, and hand connections over.

use super::Worker;
use super::accept::Listener;
use super::engine::{Event, Token};
use super::lane::{Carrier, WAITING_MAX, Waiting};
use super::lines::{Arrival, Lines};
use super::slots::Key;
use super::spares::Spares;
use super::stream::Blocked;
use crate::directory::{Decision, Pod, Snapshot};
use crate::handoff::{self, Channel, HandoffError, ToNode, ToSidecar, check_stream_socket};
use crate::metrics::{FabricKind, HandoffOutcome, Outcome, PassthroughReason, PolicyDirection};
use crate::mux::RefuseReason;
use rdmesh_config::Fabric;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Answers that may wait for a sidecar before its messages do.
const ANSWERS_MAX: usize = 1024;

/// Moves that took long within this time are no accident.
const SUSPICION_LASTS: Duration = Duration::from_secs(1);
const SUSPICIONS_MAX: u32 = 4;

pub(super) struct PodSlot {
    pod: Arc<Pod>,
    /// `None` while the sidecar is away; its streams live on.
    channel: Option<Channel>,
    pub listener: Option<Listener>,
    pub streams: u32,
    /// Those of them whose socket was accepted here.
    pub accepted: u32,
    /// Sockets that the sidecar was asked to open.
    pub dials: HashMap<u32, Arrival>,
    pub lines: Lines,
    pub spares: Spares,
    /// Its lies are logged once.
    warned: bool,
    /// One of its sockets was made blocking: see [`super::watchdog`].
    blocks: bool,
    /// How often in a row that seemed so, and since when.
    suspicions: u32,
    suspected_at: Option<Instant>,
}

impl PodSlot {
    pub(super) fn uid(&self) -> &str {
        &self.pod.uid
    }

    /// It may have got another address since its sidecar arrived.
    pub(super) fn pod(&self, snapshot: &Snapshot) -> Arc<Pod> {
        Arc::clone(snapshot.local_pod_by_uid(&self.pod.uid).unwrap_or(&self.pod))
    }

    /// Whether payload may be moved from and to its sockets.
    pub(super) fn moves(&self) -> bool {
        !self.blocks
    }

    pub(super) fn connected(&self) -> bool {
        self.channel.is_some()
    }
}

impl Worker {
    /// A sidecar has connected and was found to be this pod's; an older connection is replaced.
    pub(super) fn add_pod(&mut self, pod: Arc<Pod>, channel: Channel) {
        let uid = Arc::clone(&pod.uid);
        let key = match self.pod_keys.get(&uid) {
            Some(key) => *key,
            None => {
                let slot = PodSlot {
                    pod: Arc::clone(&pod),
                    channel: None,
                    listener: None,
                    streams: 0,
                    accepted: 0,
                    dials: HashMap::new(),
                    lines: Lines::default(),
                    spares: Spares::default(),
                    warned: false,
                    blocks: false,
                    suspicions: 0,
                    suspected_at: None,
                };
                let key = self.pods.insert(slot);
                self.pod_keys.insert(uid, key);
                key
            }
        };
        self.disconnect(key);
        if let Err(error) = self.engine.add(&channel, Token::Pod(key)) {
            warn!(%error, pod = &*pod.name, "sidecar's channel cannot be watched");
            return;
        }
        info!(pod = &*pod.name, uid = &*pod.uid, "sidecar connected");
        if let Some(slot) = self.pods.get_mut(key) {
            slot.pod = pod;
            slot.channel = Some(channel);
            slot.warned = false;
        }
        if self.stop_at.is_some() {
            self.tell_drain(key);
        }
        self.pod_messages(key);
    }

    /// Closes the channel, if there is one; what was being opened over it is refused.
    fn disconnect(&mut self, key: Key) {
        self.forget_listener(key);
        let Some(slot) = self.pods.get_mut(key) else { return };
        let Some(channel) = slot.channel.take() else { return };
        self.engine.remove(&channel);
        slot.spares = Spares::default();
        let dials = std::mem::take(&mut slot.dials).into_values();
        for arrival in dials.chain(slot.lines.dissolve()) {
            self.refuse_stream(arrival.stream, RefuseReason::NoSidecar);
        }
    }

    pub(super) fn count_stream(&mut self, key: Key, change: i32) {
        if let Some(slot) = self.pods.get_mut(key) {
            slot.streams = slot.streams.saturating_add_signed(change);
            if slot.streams == 0 {
                slot.spares.rest();
            }
            if slot.streams == 0 && slot.channel.is_none() {
                let uid = Arc::clone(&slot.pod.uid);
                self.pods.remove(key);
                self.pod_keys.remove(&uid);
            }
        }
    }

    pub(super) fn pod_event(&mut self, key: Key, event: Event) {
        if event.writable
            && let Some(channel) = self.channel(key)
            && let Err(error) = channel.flush()
        {
            self.channel_failed(key, &error);
            return;
        }
        if event.readable || event.writable || event.hangup || event.error {
            self.pod_messages(key);
        }
    }

    fn channel(&mut self, key: Key) -> Option<&mut Channel> {
        self.pods.get_mut(key)?.channel.as_mut()
    }

    fn pod_messages(&mut self, key: Key) {
        loop {
            let Some(channel) = self.channel(key) else { return };
            // Each message makes an answer: a sidecar that does not take them is not read either.
            if channel.queued() > ANSWERS_MAX {
                return;
            }
            match channel.recv::<ToNode>() {
                Ok(None) => return,
                Ok(Some((message, socket))) => self.pod_message(key, message, socket),
                Err(HandoffError::FdLost { id }) => {
                    self.metrics.handoff(HandoffOutcome::Limits);
                    self.descriptor_lost(key, id);
                }
                Err(error) => {
                    self.channel_failed(key, &error);
                    return;
                }
            }
        }
    }

    fn channel_failed(&mut self, key: Key, error: &HandoffError) {
        let outcome = match error {
            HandoffError::Closed | HandoffError::Io(_) => HandoffOutcome::Disconnected,
            _ => HandoffOutcome::Malformed,
        };
        self.metrics.handoff(outcome);
        if let Some(slot) = self.pods.get_mut(key) {
            info!(pod = &*slot.pod.name, %error, "sidecar disconnected");
        }
        self.disconnect(key);
        self.count_stream(key, 0);
    }

    fn pod_message(&mut self, key: Key, message: ToNode, socket: Option<OwnedFd>) {
        match (message, socket) {
            (ToNode::Open { id, orig_dst, .. }, Some(socket)) => {
                self.handed_over(key, id, orig_dst, socket);
            }
            (ToNode::Dialed { id }, Some(socket)) => self.dialed(key, id, socket),
            (ToNode::DialFailed { id, reason }, None) => self.dial_failed(key, id, reason),
            (ToNode::Spare { family, ports }, socket) => {
                self.spare_arrived(key, family, ports, socket);
            }
            (ToNode::Listener, socket) => self.listener_arrived(key, socket),
            // A second HELLO, or a descriptor where none belongs (which the channel refuses).
            _ => self.channel_failed(key, &HandoffError::UnexpectedFd),
        }
    }

    /// The descriptor of an `Open` or `Dialed` did not fit into this process.
    fn descriptor_lost(&mut self, key: Key, id: u32) {
        if !self.end_dial(key, id, RefuseReason::Limits) {
            self.pass_through(key, id, PassthroughReason::Limits);
        }
    }

    /// A sidecar hands over a connection of its application.
    fn handed_over(&mut self, key: Key, id: u32, orig_dst: SocketAddr, socket: OwnedFd) {
        let Some(slot) = self.pods.get(key) else { return };
        let snapshot = self.directory.load();
        let pod = slot.pod(&snapshot);
        let src = match check_stream_socket(&socket) {
            Ok(ends) if pod.has_address(ends.peer.ip()) => ends.peer,
            Ok(ends) => {
                self.distrust(
                    key,
                    &format!("a connection from {}, which is not its own", ends.peer),
                );
                self.deny(key, id, HandoffOutcome::BadSource);
                return;
            }
            // Most often the application has gone again already.
            Err(error) => {
                debug!(%error, pod = &*pod.name, "handed-over socket is of no use");
                self.deny(key, id, HandoffOutcome::Malformed);
                return;
            }
        };
        let full = self.full(slot);
        if self.stop_at.is_some() || full {
            let reason = if full { PassthroughReason::Limits } else { PassthroughReason::Draining };
            self.pass_through(key, id, reason);
            return;
        }
        let deadline = self.now + Duration::from_millis(self.config.timeouts.handshake_ms);
        let decision = snapshot.resolve(&pod, orig_dst);
        drop(snapshot);
        let verbs_only = matches!(&decision, Decision::Mesh { fabric: Fabric::Verbs, .. });
        let waiting = |dst| Waiting {
            pod: key,
            handoff_id: Some(id),
            socket,
            src,
            dst,
            verbs_only,
            deadline,
        };
        match decision {
            Decision::Passthrough { reason } => self.pass_through(key, id, reason),
            Decision::Deny => {
                self.metrics.policy_denied(PolicyDirection::Egress);
                debug!(pod = &*pod.name, dst = %orig_dst, "a policy forbids the connection");
                self.deny(key, id, HandoffOutcome::Denied);
            }
            Decision::Local { dst, .. } => {
                self.metrics.handoff(HandoffOutcome::Local);
                let lane = self.same_node_lane();
                self.open_stream(lane, waiting(dst));
            }
            Decision::Mesh { fabric, .. } if fabric.meet(self.config.fabric).is_none() => {
                self.pass_through(key, id, PassthroughReason::Fabric);
            }
            Decision::Mesh { node, dst, fabric, .. } => {
                let lane = self.lane_to(node.as_arc(), fabric);
                self.open_or_wait(lane, waiting(dst));
            }
        }
    }

    /// Whether there is no room for another stream of the pod.
    pub(super) fn full(&self, slot: &PodSlot) -> bool {
        let limits = &self.config.limits;
        let workers = self.config.workers.max(1);
        slot.streams >= limits.streams_per_pod_max / workers
            || self.streams.len() >= (limits.streams_max / workers) as usize
    }

    fn open_or_wait(&mut self, lane: Key, open: Waiting) {
        let Some(slot) = self.lanes.get_mut(lane) else { return };
        if slot.draining {
            self.pass_back(&open, PassthroughReason::Draining);
        } else if slot.attached {
            self.open_attached(lane, open);
        } else if !slot.streams.is_empty() && !matches!(slot.carrier, Carrier::Link(_)) {
            // The lane has lost its link: a new connection need not wait for the next one.
            self.pass_back(&open, PassthroughReason::PeerUnavailable);
        } else if slot.waiting.len() >= WAITING_MAX {
            self.pass_back(&open, PassthroughReason::Limits);
        } else {
            slot.waiting.push_back(open);
            self.want_link(lane);
            self.arm_timer(lane);
        }
    }

    /// Starts a stream, unless the lane is now on what the pods do not want.
    pub(super) fn open_attached(&mut self, lane: Key, open: Waiting) {
        let Some(slot) = self.lanes.get(lane) else { return };
        if open.verbs_only && slot.fabric != FabricKind::Verbs {
            self.pass_back(&open, PassthroughReason::Fabric);
        } else {
            self.metrics.handoff(HandoffOutcome::Mesh);
            self.open_stream(lane, open);
        }
    }

    /// Tells the sidecar that a connection is ours; false when the sidecar is not there any more.
    pub(super) fn take(&mut self, open: &Waiting) -> bool {
        let Some(id) = open.handoff_id else { return true };
        self.tell(open.pod, &ToSidecar::Taken { id }, None)
    }

    /// Tells the sidecar to relay a connection that it still holds.
    fn pass_through(&mut self, key: Key, id: u32, reason: PassthroughReason) {
        self.metrics.passthrough(reason);
        self.metrics.handoff(HandoffOutcome::Passthrough);
        let message =
            ToSidecar::Passthrough { id, reason: handoff_reason(reason), early: Vec::new() };
        self.tell(key, &message, None);
    }

    pub(super) fn pass_back(&mut self, open: &Waiting, reason: PassthroughReason) {
        match open.handoff_id {
            Some(id) => self.pass_through(open.pod, id, reason),
            None => self.give_accepted(open.pod, &open.socket, Some(reason)),
        }
    }

    pub(super) fn pass_waiting(&mut self, lane: Key, reason: PassthroughReason) {
        let Some(slot) = self.lanes.get_mut(lane) else { return };
        for open in std::mem::take(&mut slot.waiting) {
            self.pass_back(&open, reason);
        }
    }

    /// Gives a connection that was taken, and what was read from it, back to its sidecar.
    pub(super) fn give_back(&mut self, key: Key, reason: PassthroughReason) {
        // What was done to its window and buffer is undone.
        self.flow_answered(key);
        let Some(stream) = self.unlist(key) else { return };
        self.metrics.stream_ended(stream.role, stream.fabric, Outcome::Returned);
        let Some(socket) = &stream.socket else { return };
        let early = stream.early.iter().flatten().flat_map(|part| part.iter().copied()).collect();
        // The socket stays armed: should it never reach the sidecar, it ends by a reset.
        let id = stream.handoff_id;
        let message = ToSidecar::Passthrough { id, reason: handoff_reason(reason), early };
        if self.tell(stream.pod, &message, Some(socket)) {
            self.metrics.passthrough(reason);
            self.metrics.handoff(HandoffOutcome::Returned);
        }
        if stream.accepted {
            self.stop_accepting(stream.pod);
        }
    }

    fn deny(&mut self, key: Key, id: u32, outcome: HandoffOutcome) {
        self.metrics.handoff(outcome);
        self.tell(key, &ToSidecar::Deny { id }, None);
    }

    pub(super) fn tell(&mut self, key: Key, message: &ToSidecar, socket: Option<&OwnedFd>) -> bool {
        let Some(channel) = self.channel(key) else { return false };
        match channel.send(message, socket.map(AsFd::as_fd)) {
            Ok(()) => true,
            // Also when it is only full: a sidecar that does not read can be told nothing.
            Err(error) => {
                self.channel_failed(key, &error);
                false
            }
        }
    }

    pub(super) fn tell_drain(&mut self, key: Key) {
        self.tell(key, &ToSidecar::Drain, None);
    }

    /// Certain, or suspected several times within a second: no more moves for this pod.
    pub(super) fn distrust_socket(&mut self, key: Key, blocked: Blocked) {
        let now = self.now;
        let Some(slot) = self.pods.get_mut(key) else { return };
        let long_ago = |at: Instant| now.saturating_duration_since(at) > SUSPICION_LASTS;
        if slot.suspected_at.is_none_or(long_ago) {
            (slot.suspected_at, slot.suspicions) = (Some(now), 0);
        }
        slot.suspicions += 1;
        let certain = blocked == Blocked::Surely || slot.suspicions >= SUSPICIONS_MAX;
        if certain && !slot.blocks {
            slot.blocks = true;
            warn!(
                pod = &*slot.pod.name,
                uid = &*slot.pod.uid,
                "a handed-over socket was made blocking; this pod's payload is copied from now on"
            );
        }
    }

    pub(super) fn distrust(&mut self, key: Key, what: &str) {
        if let Some(slot) = self.pods.get_mut(key)
            && !slot.warned
        {
            slot.warned = true;
            warn!(
                pod = &*slot.pod.name,
                uid = &*slot.pod.uid,
                "sidecar handed over {what}; refused"
            );
        }
    }
}

pub(super) fn handoff_reason(reason: PassthroughReason) -> handoff::PassthroughReason {
    use handoff::PassthroughReason as H;
    match reason {
        PassthroughReason::OutsideMesh => H::NotInMesh,
        PassthroughReason::NoEndpoint => H::NoEndpoint,
        PassthroughReason::ExcludedPort => H::ExcludedPort,
        PassthroughReason::NodeProxyAway => H::NodeAway,
        PassthroughReason::PeerUnavailable | PassthroughReason::OpenTimeout => H::PeerAway,
        PassthroughReason::PeerNoPod => H::NoPod,
        PassthroughReason::PeerNoSidecar => H::NoSidecar,
        PassthroughReason::PeerVersion => H::Incompatible,
        PassthroughReason::Limits => H::Limits,
        PassthroughReason::Draining => H::Draining,
        PassthroughReason::LaneLost => H::LaneLost,
        PassthroughReason::BadSource => H::BadSource,
        PassthroughReason::PolicyUnknown => H::Policy,
        PassthroughReason::Fabric => H::Fabric,
    }
}
