//! The worker's side of lanes: their links come and go, their messages and events are served.

use super::Worker;
use super::engine::Event;
use super::lane::{Carrier, LaneSlot};
use super::links::Path;
use super::slots::Key;
use crate::fabric::{Broken, Received};
use crate::metrics::{Direction, FabricKind, FailoverReason, PassthroughReason};
use crate::mux::{self, Lane, Open};
use crate::node::messages::{NodeName, Request, Side, TCP_LANES, UnavailableReason};
use rdmesh_config::Fabric;
use rdmesh_sys::pipe::PIPE_BYTES;
use rdmesh_sys::slab::Payload;
use std::cmp::Reverse;
use std::time::Duration;
use tracing::{debug, info, warn};

/// A FIN waits so long for company where many streams have traffic.
const FIN_WAITS: Duration = Duration::from_micros(100);
/// The two ends of the same-node pair are told apart by this in place of a peer's name.
const SAME_NODE: &str = "";

/// Between pods of a node a message is no buffer: what is moved goes on in pieces as large as its
/// pipe.
const TWIN_MESSAGE_BYTES_MAX: u32 = PIPE_BYTES as u32;

impl Worker {
    /// The lane to `peer` for streams opened here; made on first use.
    pub(super) fn lane_to(&mut self, peer: &NodeName, fabric: Fabric) -> Key {
        let index = u16::try_from(self.index).unwrap_or(u16::MAX);
        let first = if fabric == Fabric::Tcp { TCP_LANES } else { 0 };
        let number = index.saturating_add(first);
        let side = Side::of(&self.config.name, peer);
        self.lane(peer, number, side)
    }

    pub(super) fn lane(&mut self, peer: &NodeName, number: u16, side: Side) -> Key {
        if let Some(key) = self.lane_keys.get(&(NodeName::clone(peer), number)) {
            return *key;
        }
        let mux = self.new_mux(side, self.lane_config.clone());
        let slot = LaneSlot::new(mux, NodeName::clone(peer), number, FabricKind::Tcp);
        let key = self.lanes.insert(slot);
        self.lane_keys.insert((NodeName::clone(peer), number), key);
        key
    }

    fn new_mux(&self, side: Side, config: mux::LaneConfig) -> Lane<Payload> {
        let side = match side {
            Side::Dialer => mux::Side::Dialer,
            Side::Acceptor => mux::Side::Acceptor,
        };
        Lane::new(config, side, self.budget.clone(), nonce())
    }

    /// The lane on which streams to pods of this node are opened.
    pub(super) fn same_node_lane(&mut self) -> Key {
        if let Some((near, _)) = self.twins {
            return near;
        }
        let ends = [Side::Dialer, Side::Acceptor].map(|side| {
            let mut config = self.lane_config.clone();
            config.message_bytes_max = config.message_bytes_max.max(TWIN_MESSAGE_BYTES_MAX);
            config.send_queue_bytes_max = TWIN_MESSAGE_BYTES_MAX;
            let mux = self.new_mux(side, config);
            self.lanes.insert(LaneSlot::new(mux, SAME_NODE.into(), 0, FabricKind::Shm))
        });
        for (own, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            if let Some(slot) = self.lanes.get_mut(own) {
                slot.carrier = Carrier::Twin(other);
                slot.mux.link_up(self.now);
            }
        }
        self.twins = Some((ends[0], ends[1]));
        // The hellos pass between the two here and now.
        self.serve(ends[0]);
        self.serve(ends[1]);
        self.serve_lanes();
        ends[0]
    }

    fn lanes_of(&self, peer: &str) -> Vec<Key> {
        self.lanes.iter().filter(|(_, slot)| &*slot.peer == peer).map(|(key, _)| key).collect()
    }

    /// The peer's process is gone and its half of every stream with it.
    pub(super) fn peer_gone(&mut self, peer: &NodeName) {
        for key in self.lanes_of(peer) {
            self.drop_attempt(key);
            self.drop_link(key);
            let Some(slot) = self.lanes.get_mut(key) else { continue };
            slot.path = Path::default();
            debug!(
                peer = &**peer,
                lane = slot.number,
                streams = slot.streams.len(),
                "peer is gone"
            );
            slot.mux.abandon(self.now);
            slot.carrier = Carrier::None;
            // It was that process which was draining; who comes in its place takes streams.
            slot.draining = false;
            self.pass_waiting(key, PassthroughReason::PeerUnavailable);
            self.serve(key);
        }
    }

    pub(super) fn peer_unavailable(&mut self, peer: &NodeName, reason: UnavailableReason) {
        debug!(peer = &**peer, reason = reason.as_str(), "peer is not available");
        for key in self.lanes_of(peer) {
            if let Some(slot) = self.lanes.get_mut(key)
                && matches!(slot.carrier, Carrier::Requested)
                && slot.streams.is_empty()
            {
                slot.carrier = Carrier::None;
            }
            self.pass_waiting(key, PassthroughReason::PeerUnavailable);
        }
    }

    pub(super) fn peer_draining(&mut self, peer: &NodeName) {
        for key in self.lanes_of(peer) {
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.draining = true;
            }
            self.pass_waiting(key, PassthroughReason::Draining);
        }
    }

    pub(super) fn link_event(&mut self, key: Key, event: Event) {
        if let Some(slot) = self.lanes.get_mut(key) {
            if event.readable
                && let Carrier::Link(link) = &mut slot.carrier
            {
                link.noticed();
            }
            slot.readable |= event.readable || event.hangup || event.error;
            self.serve(key);
        }
    }

    pub(super) fn link_alarmed(&mut self, key: Key) {
        if let Some(slot) = self.lanes.get_mut(key)
            && let Carrier::Link(link) = &mut slot.carrier
        {
            link.alarmed();
            slot.readable = true;
            self.serve(key);
        }
    }

    /// Lists a lane to be served in this turn.
    pub(super) fn serve(&mut self, key: Key) {
        if let Some(slot) = self.lanes.get_mut(key)
            && !slot.dirty
        {
            slot.dirty = true;
            self.to_serve.push_back(key);
        }
    }

    /// Serves every listed lane once; what they list meanwhile is served in the next call.
    pub(super) fn serve_lanes(&mut self) {
        for _ in 0..self.to_serve.len() {
            let Some(key) = self.to_serve.pop_front() else { return };
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.dirty = false;
            }
            self.receive(key);
            self.lane_events(key);
            self.write_streams();
            self.transmit(key);
            self.lane_events(key);
            let idle_after = self.idle_after();
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.note_use(self.now, idle_after);
            }
            self.arm_timer(key);
        }
    }

    fn receive(&mut self, key: Key) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if !slot.readable {
            return;
        }
        let Carrier::Link(link) = &mut slot.carrier else {
            slot.readable = false;
            return;
        };
        let mut messages = std::mem::take(&mut self.messages);
        let received = link.receive(&mut messages);
        self.metrics.messages(Direction::Received, slot.fabric, messages.len() as u64);
        let mut failed = None;
        for message in messages.drain(..) {
            if let Err(error) = message.deliver(&mut slot.mux, self.now) {
                failed = Some(Broken::from(error));
                break;
            }
        }
        slot.mux.grant(link.granted());
        self.messages = messages;
        match received {
            Ok(Received::Drained) => slot.readable = false,
            Ok(Received::More) => self.serve(key),
            Err(error) => failed = failed.or(Some(error)),
        }
        if let Some(error) = failed {
            // What came before the break still counts.
            self.lane_events(key);
            self.link_failed(key, &error);
        }
    }

    /// The application's side of a stream has ended. A message of its own for the FIN costs one
    /// worker a write and the other a read and maybe a wake-up, and few wait for it.
    pub(super) fn finish(&mut self, key: Key, id: mux::StreamId) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if self.crowd.many() && matches!(slot.carrier, Carrier::Link(_)) {
            slot.mux.finish_within(id, FIN_WAITS, self.now);
            self.arm_timer(key);
        } else {
            slot.mux.finish(id);
            self.serve(key);
        }
    }

    /// Puts on the link what the lane has to say and the link has room for.
    pub(super) fn transmit(&mut self, key: Key) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        let arena = &mut self.arena;
        let mut keep = |bytes: &[u8]| arena.keep(bytes);
        let mut sent = 0;
        match &mut slot.carrier {
            Carrier::None | Carrier::Requested => {}
            Carrier::Link(link) => {
                let mut result = Ok(());
                loop {
                    while link.has_room() {
                        let Some(message) = slot.mux.poll_transmit(self.now, &mut keep) else {
                            break;
                        };
                        link.post_send(message);
                        sent += 1;
                    }
                    let full = !link.has_room();
                    result = result.and_then(|()| link.flush());
                    // A full queue that the socket took goes on at once: no edge would tell.
                    if result.is_err() || !full || !link.has_room() {
                        break;
                    }
                }
                self.metrics.messages(Direction::Sent, slot.fabric, sent);
                if let Err(error) = result {
                    self.link_failed(key, &error);
                }
            }
            Carrier::Twin(other) => {
                let other = *other;
                let mut messages = Vec::new();
                while let Some(message) = slot.mux.poll_transmit(self.now, &mut keep) {
                    messages.push(message);
                }
                // What is in a pipe can be moved on by its only owner.
                slot.mux.delivered();
                self.deliver_to_twin(other, messages);
            }
        }
    }

    fn deliver_to_twin(&mut self, key: Key, messages: Vec<mux::Transmit<Payload>>) {
        if messages.is_empty() {
            return;
        }
        let Some(slot) = self.lanes.get_mut(key) else { return };
        self.metrics.messages(Direction::Sent, slot.fabric, messages.len() as u64);
        self.metrics.messages(Direction::Received, slot.fabric, messages.len() as u64);
        for message in messages {
            if let Err(error) = slot.mux.on_parts(message.head, message.tails.into_iter(), self.now)
            {
                warn!(%error, "the same-node lane spoke wrongly to itself");
            }
            slot.mux.grant(1);
        }
        self.serve(key);
    }

    /// Acts on what the state machine has to tell.
    pub(super) fn lane_events(&mut self, key: Key) {
        while let Some(event) = self.lanes.get_mut(key).and_then(|slot| slot.mux.poll_event()) {
            self.lane_event(key, event);
        }
    }

    fn lane_event(&mut self, key: Key, event: mux::Event<Payload>) {
        use mux::Event as E;
        match event {
            E::Attached { resumed } => self.attached(key, resumed),
            E::Incoming { id, open } => self.incoming(key, id, open),
            E::Opened { id } => self.on_stream(key, id, Self::stream_opened),
            E::Refused { id, reason } => {
                self.on_stream(key, id, |w, s| w.stream_refused(s, reason));
            }
            E::Data { id, payload } => self.on_stream(key, id, |w, s| w.stream_data(s, payload)),
            E::Fin { id } => self.on_stream(key, id, Self::stream_fin),
            E::Reset { id, reason } => self.on_stream(key, id, |w, s| w.stream_reset(s, reason)),
            E::Writable { id } => self.on_stream(key, id, Self::read_later),
            E::Closed { id } => self.on_stream(key, id, Self::stream_closed),
            E::LinkDead { reason } => {
                self.path_failed(key);
                self.link_broken(key, FailoverReason::Keepalive, reason.as_str().to_owned());
            }
            E::Lost { reason } => self.lane_lost(key, reason.as_str()),
            E::Goaway => {
                if let Some(slot) = self.lanes.get_mut(key) {
                    slot.draining = true;
                }
                self.pass_waiting(key, PassthroughReason::Draining);
            }
        }
    }

    fn on_stream(&mut self, lane: Key, id: mux::StreamId, then: impl FnOnce(&mut Self, Key)) {
        let stream = self.lanes.get(lane).and_then(|slot| slot.streams.get(&id)).copied();
        if let Some(stream) = stream {
            then(self, stream);
        }
    }

    fn attached(&mut self, key: Key, resumed: bool) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        slot.attached = true;
        slot.released = false;
        slot.draining = false;
        if !slot.peer.is_empty() {
            self.node_metrics.lane(&slot.peer, slot.number.into(), slot.fabric, true);
            info!(peer = &*slot.peer, lane = slot.number, resumed, "lane attached");
        }
        let waiting = std::mem::take(&mut slot.waiting);
        for open in waiting {
            self.open_attached(key, open);
        }
        self.serve(key);
    }

    fn lane_lost(&mut self, key: Key, reason: &str) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if std::mem::take(&mut slot.released) {
            // It had nothing to lose: only the state machine forgets.
            return;
        }
        warn!(peer = &*slot.peer, lane = slot.number, reason, "lane lost, its streams were reset");
        if !matches!(slot.carrier, Carrier::Link(_)) {
            slot.carrier = Carrier::None;
            let request =
                Request::LaneIdle { peer: NodeName::clone(&slot.peer), lane: slot.number };
            self.request(request);
            self.drop_attempt(key);
        }
        self.pass_waiting(key, PassthroughReason::LaneLost);
    }

    /// Asks for a link unless there is one or one is under way.
    pub(super) fn want_link(&mut self, key: Key) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if matches!(slot.carrier, Carrier::None) {
            slot.carrier = Carrier::Requested;
            let request =
                Request::NeedLane { peer: NodeName::clone(&slot.peer), lane: slot.number };
            self.request(request);
        }
    }

    /// A pod of the peer asks for a pod of ours.
    fn incoming(&mut self, key: Key, id: mux::StreamId, open: Open) {
        if let Err(reason) = self.deliver(key, id, open) {
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.mux.refuse(id, reason);
            }
            self.serve(key);
        }
    }

    pub(super) fn lane_timeout(&mut self, key: Key) {
        let now = self.now;
        let Some(slot) = self.lanes.get_mut(key) else { return };
        slot.mux.on_timeout(now);
        let late = slot.waiting.iter().take_while(|waiting| waiting.deadline <= now).count();
        let late: Vec<_> = slot.waiting.drain(..late).collect();
        for open in late {
            self.pass_back(&open, PassthroughReason::PeerUnavailable);
        }
        self.attempt_timeout(key);
        self.idle_timeout(key);
        self.serve(key);
        self.serve_lanes();
    }

    /// Keeps one entry in the heap that is not later than what the lane waits for.
    pub(super) fn arm_timer(&mut self, key: Key) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        let Some(mut next) = slot.next_timeout() else { return };
        if slot.timer.is_some_and(|armed| armed <= next) {
            return;
        }
        next = next.max(self.now + Duration::from_micros(100));
        slot.timer = Some(next);
        self.timers.push(Reverse((next, key.index, key.generation)));
    }
}

fn nonce() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers TLS would not have come up; a constant only loses the notice that
    // the other end has forgotten the lane, which the incarnation tells as well.
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes) | 1
}
