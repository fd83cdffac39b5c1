//! Streams that arrive get a socket to their application: the worker connects a spare one, or the
//! pod's sidecar is asked to dial.

use super::Worker;
use super::engine::Token;
use super::lines::{Arrival, Pair};
use super::slots::Key;
use super::spares::{Attempt, Progress, progress};
use super::stream::Stream;
use crate::directory::policy::Verdict;
use crate::handoff::{DialFailure, Family, ToSidecar, check_stream_socket};
use crate::metrics::{HandoffOutcome, PeerRejected, PolicyDirection, Role};
use crate::mux::{Open, RefuseReason, StreamId};
use crate::node::messages::NodeName;
use rustix::io::Errno;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// A connection to an application that the worker has begun.
pub(super) struct Connecting {
    socket: OwnedFd,
    arrival: Arrival,
}

impl Connecting {
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) fn pair(&self) -> Pair {
        self.arrival.pair()
    }
}

impl Worker {
    /// Opens a socket to the application that an arriving stream wants.
    pub(super) fn deliver(
        &mut self,
        lane: Key,
        id: StreamId,
        open: Open,
    ) -> Result<(), RefuseReason> {
        let Some(slot) = self.lanes.get(lane) else { return Err(RefuseReason::Internal) };
        let fabric = slot.fabric;
        let pod = self.admit(lane, open)?;
        let stream = Stream::new(lane, id, pod, Role::Server, fabric, self.now);
        let arrival = Arrival { stream: self.await_socket(stream), open };
        self.arrived(pod, arrival);
        Ok(())
    }

    /// In the order of their arrival, see [`super::lines`].
    fn arrived(&mut self, pod: Key, arrival: Arrival) {
        let Some(slot) = self.pods.get_mut(pod) else { return };
        let pair = arrival.pair();
        // The sidecar keeps the order of what it is told: who needs it anyway need not wait.
        let waits = slot.lines.busy(pair) && slot.spares.fit(arrival.open.src, arrival.open.dst);
        if waits || slot.lines.waits(pair) {
            let held_until = slot.lines.join(arrival, self.now);
            self.held.extend(held_until.map(|at| (at, pod, pair)));
        } else {
            self.connect(pod, arrival, true);
        }
    }

    /// Lets those go on whose turn it is.
    fn advance(&mut self, pod: Key, pair: Pair, may_wait: bool) {
        while let Some(arrival) = self.pods.get_mut(pod).and_then(|slot| slot.lines.next(pair)) {
            // The client may have given up.
            if self.streams.get(arrival.stream).is_some() && !self.connect(pod, arrival, may_wait) {
                return;
            }
        }
    }

    /// False if it has to wait for a spare socket, which it does if it may.
    fn connect(&mut self, pod: Key, arrival: Arrival, may_wait: bool) -> bool {
        let Arrival { stream, open } = arrival;
        let Some(slot) = self.pods.get_mut(pod) else { return true };
        let attempt = slot.spares.connect(open.src, open.dst);
        let waits = may_wait && matches!(attempt, Attempt::NoneReady);
        if waits {
            slot.lines.wait_for_spare(arrival);
        }
        if !matches!(attempt, Attempt::Unfit) {
            self.want_spares(pod, Family::of(open.dst));
        }
        match attempt {
            Attempt::Begun(socket, Progress::Connected) => self.connected(stream, socket),
            Attempt::Begun(socket, Progress::Connecting) => {
                self.await_connect(pod, arrival, socket);
            }
            Attempt::Begun(_, Progress::Failed(error)) => self.connect_failed(stream, error),
            Attempt::NoneReady if waits => {}
            Attempt::NoneReady | Attempt::Unfit => self.dial(pod, arrival),
        }
        !waits
    }

    /// The pod that a stream may be delivered to.
    fn admit(&mut self, lane: Key, open: Open) -> Result<Key, RefuseReason> {
        let Some(slot) = self.lanes.get(lane) else { return Err(RefuseReason::Internal) };
        let snapshot = self.directory.load();
        if !slot.peer.is_empty() && !snapshot.node_owns(&slot.peer, open.src.ip()) {
            let peer = NodeName::clone(&slot.peer);
            self.distrust_peer(&peer, open.src);
            return Err(RefuseReason::BadSource);
        }
        let pod = snapshot.local_pod(open.dst.ip()).ok_or(RefuseReason::NoPod)?;
        if pod.excludes_port(open.dst.port()) {
            return Err(RefuseReason::NoPod);
        }
        match snapshot.ingress(pod, open.src.ip(), open.dst.port()) {
            Verdict::Allow => {}
            Verdict::Deny => {
                self.metrics.policy_denied(PolicyDirection::Ingress);
                debug!(pod = &*pod.name, src = %open.src, "a policy forbids the connection");
                return Err(RefuseReason::Denied);
            }
            Verdict::Unknown => return Err(RefuseReason::PolicyUnknown),
        }
        if self.stop_at.is_some() {
            return Err(RefuseReason::Draining);
        }
        let key = *self.pod_keys.get(&pod.uid).ok_or(RefuseReason::NoSidecar)?;
        let slot =
            self.pods.get(key).filter(|slot| slot.connected()).ok_or(RefuseReason::NoSidecar)?;
        let workers = self.config.workers.max(1);
        if slot.streams >= self.config.limits.streams_per_pod_max / workers {
            return Err(RefuseReason::Limits);
        }
        Ok(key)
    }

    /// Counted each time, logged once per peer.
    fn distrust_peer(&mut self, peer: &NodeName, src: SocketAddr) {
        self.node_metrics.peer_rejected(PeerRejected::BadSource);
        if self.distrusted.insert(peer.clone()) {
            warn!(peer = &**peer, %src, "peer opened a stream from an address that is not its own; refused");
        }
    }

    /// Asks the destination's sidecar for a socket to its application.
    fn dial(&mut self, pod: Key, arrival: Arrival) {
        let Open { src, dst } = arrival.open;
        let id = self.next_handoff_id;
        self.next_handoff_id = id.wrapping_add(1);
        let timeout_ms = u32::try_from(self.config.timeouts.open_ms).unwrap_or(u32::MAX);
        let message = ToSidecar::Dial { id, src, dst, timeout_ms };
        if !self.tell(pod, &message, None) {
            return self.refuse_stream(arrival.stream, RefuseReason::NoSidecar);
        }
        if let Some(stream) = self.streams.get_mut(arrival.stream) {
            stream.handoff_id = id;
        }
        if let Some(slot) = self.pods.get_mut(pod) {
            slot.dials.insert(id, arrival);
        }
        self.begun(pod, arrival.pair());
    }

    /// A connection to the application is under way.
    fn begun(&mut self, pod: Key, pair: Pair) {
        if let Some(slot) = self.pods.get_mut(pod) {
            let held_until = slot.lines.begun(pair, self.now);
            self.held.extend(held_until.map(|at| (at, pod, pair)));
        }
    }

    /// It is made, or will not be.
    pub(super) fn connect_over(&mut self, pod: Key, pair: Pair) {
        if let Some(slot) = self.pods.get_mut(pod) {
            slot.lines.over(pair);
        }
        self.advance(pod, pair, true);
    }

    pub(super) fn dialed(&mut self, key: Key, id: u32, socket: OwnedFd) {
        let Some(dial) = self.pods.get_mut(key).and_then(|slot| slot.dials.remove(&id)) else {
            self.distrust(key, "a socket that nobody asked for");
            return;
        };
        let Open { src, dst } = dial.open;
        match check_stream_socket(&socket) {
            // The port differs for a pod that speaks to itself: its own is taken.
            Ok(ends) if ends.peer == dst && ends.local.ip() == src.ip() => {
                self.metrics.handoff(HandoffOutcome::Opened);
                if let Some(slot) = self.pods.get_mut(key) {
                    slot.spares.reached(dst);
                }
                self.want_spares(key, Family::of(dst));
                self.socket_opened(dial.stream, socket);
            }
            Ok(ends) => {
                self.distrust(key, &format!("a socket to {} in place of {dst}", ends.peer));
                self.metrics.handoff(HandoffOutcome::BadSource);
                self.refuse_stream(dial.stream, RefuseReason::Refused);
            }
            // Connected a moment ago: the application has reset it at once.
            Err(error) => {
                debug!(%error, "dialled socket is of no use");
                self.metrics.handoff(HandoffOutcome::OpenFailed);
                self.refuse_stream(dial.stream, RefuseReason::Refused);
            }
        }
        self.connect_over(key, dial.pair());
    }

    pub(super) fn dial_failed(&mut self, key: Key, id: u32, failure: DialFailure) {
        if self.end_dial(key, id, refuse_reason(failure)) {
            self.metrics.handoff(HandoffOutcome::OpenFailed);
        }
    }

    /// Refuses the stream of a dial that has come to nothing. False if there was no such dial.
    pub(super) fn end_dial(&mut self, key: Key, id: u32, reason: RefuseReason) -> bool {
        let Some(dial) = self.pods.get_mut(key).and_then(|slot| slot.dials.remove(&id)) else {
            return false;
        };
        self.refuse_stream(dial.stream, reason);
        self.connect_over(key, dial.pair());
        true
    }

    /// When the first line that is held up goes on.
    pub(super) fn held_due(&self) -> Option<Instant> {
        self.held.front().map(|(at, ..)| *at)
    }

    pub(super) fn expire_held(&mut self) {
        while let Some((at, pod, pair)) = self.held.front().copied()
            && at <= self.now
        {
            self.held.pop_front();
            if let Some(slot) = self.pods.get_mut(pod) {
                slot.lines.forget(pair, at);
            }
            self.advance(pod, pair, true);
        }
    }

    fn want_spares(&mut self, key: Key, family: Family) {
        let wanted = self.pods.get_mut(key).and_then(|slot| slot.spares.wanted(family));
        if let Some(count) = wanted {
            self.tell(key, &ToSidecar::Spares { family, count }, None);
        }
    }

    pub(super) fn spare_arrived(
        &mut self,
        key: Key,
        family: Family,
        ports: (u16, u16),
        socket: Option<OwnedFd>,
    ) {
        let Some(slot) = self.pods.get_mut(key) else { return };
        let none_left = socket.is_none();
        if !slot.spares.arrived(family, ports, socket) {
            self.distrust(key, "a spare socket that nobody asked for");
            return;
        }
        while let Some(slot) = self.pods.get_mut(key)
            && (none_left || slot.spares.ready(family))
            && let Some(pair) = slot.lines.next_for_spare(family)
        {
            self.advance(key, pair, !none_left);
        }
    }

    /// The connection of a stream to the application is under way.
    fn await_connect(&mut self, pod: Key, arrival: Arrival, socket: OwnedFd) {
        let key = arrival.stream;
        // Should it be given up when the application has it already, it ends by a reset.
        let armed = socket2::SockRef::from(&socket.as_fd()).set_linger(Some(Duration::ZERO));
        if self.connects.len() >= self.config.limits.streams_max as usize {
            return self.refuse_stream(key, RefuseReason::Limits);
        }
        let watched = armed.and_then(|()| self.engine.add(&socket, Token::Stream(key)));
        if let Some(stream) = self.streams.get_mut(key) {
            stream.connecting = Some(Connecting { socket, arrival });
        }
        if let Err(error) = watched {
            debug!(%error, "socket cannot be watched");
            return self.refuse_stream(key, RefuseReason::Internal);
        }
        let deadline = self.now + Duration::from_millis(self.config.timeouts.open_ms);
        self.connects.push_back((deadline, key));
        self.begun(pod, arrival.pair());
    }

    /// Something has happened to a connection that the worker has begun.
    pub(super) fn connect_event(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some(Connecting { socket, arrival }) = stream.connecting.take() else { return };
        let pod = stream.pod;
        match progress(&socket, arrival.open.src, arrival.open.dst) {
            Progress::Connecting => stream.connecting = Some(Connecting { socket, arrival }),
            Progress::Connected => {
                self.engine.remove(&socket);
                self.connected(key, socket);
                self.connect_over(pod, arrival.pair());
            }
            Progress::Failed(error) => {
                self.engine.remove(&socket);
                self.connect_failed(key, error);
                self.connect_over(pod, arrival.pair());
            }
        }
    }

    fn connected(&mut self, key: Key, socket: OwnedFd) {
        self.metrics.handoff(HandoffOutcome::Opened);
        if let Some(stream) = self.streams.get_mut(key) {
            stream.unannounced = true;
        }
        self.socket_opened(key, socket);
    }

    fn connect_failed(&mut self, key: Key, error: Errno) {
        self.metrics.handoff(HandoffOutcome::OpenFailed);
        self.refuse_stream(key, refuse_reason(DialFailure::of(error)));
    }

    /// When the first connection that is under way has had its time.
    pub(super) fn connects_due(&self) -> Option<Instant> {
        self.connects.front().map(|(at, _)| *at)
    }

    pub(super) fn expire_connects(&mut self) {
        while let Some((at, key)) = self.connects.front().copied() {
            let waits = self.streams.get(key).is_some_and(|stream| stream.connecting.is_some());
            if waits && at > self.now {
                return;
            }
            self.connects.pop_front();
            if waits {
                self.connect_failed(key, Errno::TIMEDOUT);
            }
        }
    }
}

fn refuse_reason(failure: DialFailure) -> RefuseReason {
    match failure {
        DialFailure::Refused => RefuseReason::Refused,
        DialFailure::Timeout => RefuseReason::Timeout,
        DialFailure::Unreachable => RefuseReason::Unreachable,
        DialFailure::Denied => RefuseReason::NoPod,
        DialFailure::Limits => RefuseReason::Limits,
        DialFailure::Internal | DialFailure::Other(_) => RefuseReason::Internal,
    }
}
