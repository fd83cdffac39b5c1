//! Streams that arrive get a socket to their application: the worker connects a spare one, or the
//! pod's sidecar is asked to dial.

use super::Worker;
use super::engine::Token;
use super::pods::Dial;
use super::slots::Key;
use super::spares::{Progress, progress};
use super::stream::Stream;
use crate::directory::policy::Verdict;
use crate::handoff::{DialFailure, Family, ToSidecar, check_stream_socket};
use crate::metrics::{HandoffOutcome, PeerRejected, PolicyDirection, Role};
use crate::mux::{Open, RefuseReason, StreamId};
use crate::node::messages::NodeName;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// A connection to an application that the worker has begun.
pub(super) struct Connecting {
    socket: OwnedFd,
    src: SocketAddr,
    dst: SocketAddr,
}

impl Connecting {
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
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
        let Some(slot) = self.pods.get_mut(pod) else { return Err(RefuseReason::NoSidecar) };
        let Some((socket, progress)) = slot.spares.connect(open.src, open.dst) else {
            return self.dial(stream, open);
        };
        self.want_spares(pod, Family::of(open.dst));
        match progress {
            Progress::Connected => {
                let key = self.await_socket(stream);
                self.connected(key, socket);
                Ok(())
            }
            Progress::Connecting => self.await_connect(stream, open, socket),
            Progress::Failed(error) => {
                self.metrics.handoff(HandoffOutcome::OpenFailed);
                Err(refuse_reason(DialFailure::of(error)))
            }
        }
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
    fn dial(&mut self, mut stream: Stream, open: Open) -> Result<(), RefuseReason> {
        let pod = stream.pod;
        let handoff_id = self.next_handoff_id;
        self.next_handoff_id = self.next_handoff_id.wrapping_add(1);
        let timeout_ms = u32::try_from(self.config.timeouts.open_ms).unwrap_or(u32::MAX);
        let message = ToSidecar::Dial { id: handoff_id, src: open.src, dst: open.dst, timeout_ms };
        if !self.tell(pod, &message, None) {
            return Err(RefuseReason::NoSidecar);
        }
        stream.handoff_id = handoff_id;
        let stream = self.await_socket(stream);
        if let Some(slot) = self.pods.get_mut(pod) {
            slot.dials.insert(handoff_id, Dial { stream, src: open.src, dst: open.dst });
        }
        Ok(())
    }

    pub(super) fn dialed(&mut self, key: Key, id: u32, socket: OwnedFd) {
        let dial = self.pods.get_mut(key).and_then(|slot| slot.dials.remove(&id));
        let Some(dial) = dial else {
            self.distrust(key, "a socket that nobody asked for");
            return;
        };
        match check_stream_socket(&socket) {
            // The port differs for a pod that speaks to itself: its own is taken.
            Ok(ends) if ends.peer == dial.dst && ends.local.ip() == dial.src.ip() => {
                self.metrics.handoff(HandoffOutcome::Opened);
                if let Some(slot) = self.pods.get_mut(key) {
                    slot.spares.reached(dial.dst);
                }
                self.want_spares(key, Family::of(dial.dst));
                self.socket_opened(dial.stream, socket);
            }
            Ok(ends) => {
                self.distrust(key, &format!("a socket to {} in place of {}", ends.peer, dial.dst));
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
    }

    pub(super) fn dial_failed(&mut self, key: Key, id: u32, failure: DialFailure) {
        let dial = self.pods.get_mut(key).and_then(|slot| slot.dials.remove(&id));
        let Some(dial) = dial else { return };
        self.metrics.handoff(HandoffOutcome::OpenFailed);
        self.refuse_stream(dial.stream, refuse_reason(failure));
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
        let asked = slot.spares.arrived(family, ports, socket);
        if !asked {
            self.distrust(key, "a spare socket that nobody asked for");
        }
    }

    /// Lists a stream whose connection to the application is under way.
    fn await_connect(
        &mut self,
        mut stream: Stream,
        open: Open,
        socket: OwnedFd,
    ) -> Result<(), RefuseReason> {
        // Should it be given up when the application has it already, it ends by a reset.
        let armed = socket2::SockRef::from(&socket.as_fd()).set_linger(Some(Duration::ZERO));
        if self.connects.len() >= self.config.limits.streams_max as usize {
            return Err(RefuseReason::Limits);
        }
        stream.connecting = Some(Connecting { socket, src: open.src, dst: open.dst });
        let key = self.await_socket(stream);
        let watched = match self.streams.get(key).and_then(|stream| stream.connecting.as_ref()) {
            Some(connecting) => self.engine.add(connecting.socket(), Token::Stream(key)),
            None => Ok(()),
        };
        if let Err(error) = armed.and(watched) {
            debug!(%error, "socket cannot be watched");
            self.refuse_stream(key, RefuseReason::Internal);
            return Ok(());
        }
        let deadline = self.now + Duration::from_millis(self.config.timeouts.open_ms);
        self.connects.push_back((deadline, key));
        Ok(())
    }

    /// Something has happened to a connection that the worker has begun.
    pub(super) fn connect_event(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some(Connecting { socket, src, dst }) = stream.connecting.take() else { return };
        match progress(&socket, src, dst) {
            Progress::Connecting => stream.connecting = Some(Connecting { socket, src, dst }),
            Progress::Connected => {
                self.engine.remove(&socket);
                self.connected(key, socket);
            }
            Progress::Failed(error) => {
                self.engine.remove(&socket);
                self.connect_failed(key, error);
            }
        }
    }

    fn connected(&mut self, key: Key, socket: OwnedFd) {
        self.metrics.handoff(HandoffOutcome::Opened);
        self.socket_opened(key, socket);
        self.unannounced.push(key);
    }

    /// A spare socket holds the handshake's last acknowledgement back for the first bytes to bring
    /// it. Where none were written in this turn it must not wait: the server may speak first.
    pub(super) fn announce(&mut self) {
        let mut listed = std::mem::take(&mut self.unannounced);
        for key in listed.drain(..) {
            if let Some(stream) = self.streams.get(key)
                && !stream.wrote
                && let Some(socket) = &stream.socket
            {
                // Failing that, the kernel's own timer sends it.
                let _ = sockopt::set_tcp_quickack(socket, true);
            }
        }
        self.unannounced = listed;
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
