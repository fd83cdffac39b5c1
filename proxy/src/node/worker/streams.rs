//! The worker's side of streams: applications' sockets are read and written, streams begin and end.

use super::Worker;
use super::deliver::Connecting;
use super::engine::{Event, Token};
use super::lane::Waiting;
use super::pods::PodSlot;
use super::slots::Key;
use super::stream::{Read, Stream};
use crate::metrics::{Direction, Outcome, PassthroughReason, Role};
use crate::mux::{Open, RefuseReason, ResetReason, StreamId};
use rdmesh_sys::slab::Payload;
use std::os::fd::AsFd;
use tracing::debug;

/// What may be read before the far side has answered: it must fit one handoff message, should the
/// connection go back to its sidecar.
const EARLY_BYTES_MAX: usize = 32 << 10;
/// Enough for one write of the link, little enough to stay in the cache.
const READS_PER_TURN: usize = 4;

impl Worker {
    pub(super) fn stream_event(&mut self, key: Key, event: Event) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.connecting.is_some() {
            self.connect_event(key);
            return;
        }
        stream.hangup |= event.hangup || event.error;
        stream.failed |= event.error;
        if event.readable || event.hangup || event.error {
            stream.readable = true;
            self.read_later(key);
        }
        if event.writable {
            self.writable(key);
        }
    }

    fn writable(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.writable
        {
            stream.writable = true;
            self.write_later(key);
        }
    }

    pub(super) fn read_later(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.queued
            && stream.readable
            && (!stream.read_done || stream.failed)
        {
            stream.queued = true;
            self.to_read.push_back(key);
        }
    }

    /// Gives every listed stream a few reads in turn, so that a bulk stream fills several messages
    /// before the link is written to; who has more stays listed.
    pub(super) fn read_streams(&mut self) {
        for _ in 0..READS_PER_TURN {
            for _ in 0..self.to_read.len() {
                let Some(key) = self.to_read.pop_front() else { return };
                if let Some(stream) = self.streams.get_mut(key) {
                    stream.queued = false;
                    self.read_stream(key);
                }
            }
        }
    }

    pub(super) fn wake_starved(&mut self) {
        if !self.starved.is_empty() {
            for key in std::mem::take(&mut self.starved) {
                self.read_later(key);
            }
        }
    }

    fn read_stream(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some(slot) = self.lanes.get_mut(stream.lane) else { return };
        if stream.read_done {
            // The application has reset a connection that it had half closed before.
            if stream.failed {
                self.abort(key);
            }
            return;
        }
        let mut max = slot.mux.writable(stream.id).min(slot.mux.piece_bytes_max());
        if stream.early.is_some() {
            max = max.min(EARLY_BYTES_MAX - stream.early_bytes);
        }
        if max == 0 {
            // A reset does not wait for a window.
            if stream.failed {
                self.abort(key);
            }
            return;
        }
        let moves = stream.brought_bulk()
            && stream.early.is_none()
            && slot.takes_pipes()
            && self.pods.get(stream.pod).is_some_and(PodSlot::moves);
        let waiting = if moves { stream.bulk_waits(max) } else { None };
        let waiting = waiting.filter(|_| self.watchdog.watches(self.now));
        let pipe = waiting.and_then(|waiting| Some((self.fabrics.pipes().take()?, waiting)));
        let read = if let Some((pipe, waiting)) = pipe {
            stream.prepare_moves();
            stream.read_moved(pipe, max, waiting)
        } else if let Some(buffer) = self.arena.for_read() {
            stream.read(buffer, max)
        } else {
            self.starved.push(key);
            return;
        };
        match read {
            Read::Bytes(payload) => {
                self.flow_read(key, payload.len());
                self.stream_read(key, payload);
            }
            Read::Interrupted => {
                self.look_at_blocked(key);
                self.read_later(key);
            }
            Read::End => {
                stream.read_done = true;
                let (lane, id) = (stream.lane, stream.id);
                self.finish(lane, id);
            }
            Read::Nothing => self.flow_read(key, 0),
            Read::Failed(error) => {
                debug!(%error, "application's socket failed");
                self.abort(key);
            }
        }
    }

    fn stream_read(&mut self, key: Key, payload: Payload) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some(slot) = self.lanes.get_mut(stream.lane) else { return };
        let bytes = payload.len();
        self.crowd.note(&mut stream.seen);
        self.metrics.bytes(Direction::Sent, stream.fabric, bytes as u64);
        if payload.is_piped() {
            self.metrics.moved(Direction::Sent, bytes as u64);
        }
        if let Some(early) = &mut stream.early {
            stream.early_bytes += payload.len();
            early.push(payload.clone());
        }
        if let Err(error) = slot.mux.send(stream.id, payload) {
            // Cannot happen: the window was asked for above. Losing bytes silently would be worse.
            debug!(%error, "stream refused bytes it had room for");
            self.abort(key);
            return;
        }
        let lane = stream.lane;
        self.bound_accepted(key, bytes);
        self.serve(lane);
        self.read_later(key);
    }

    pub(super) fn stream_data(&mut self, key: Key, payload: Payload) {
        if let Some(stream) = self.streams.get_mut(key) {
            self.crowd.note(&mut stream.seen);
            self.metrics.bytes(Direction::Received, stream.fabric, payload.len() as u64);
            stream.push(payload);
            self.write_later(key);
        }
    }

    pub(super) fn stream_fin(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.fin_received = true;
            self.write_later(key);
        }
    }

    pub(super) fn write_later(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.dirty
        {
            stream.dirty = true;
            self.to_write.push(key);
        }
    }

    pub(super) fn write_streams(&mut self) {
        let mut listed = std::mem::take(&mut self.to_write);
        for key in listed.drain(..) {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.dirty = false;
                self.write_stream(key);
            }
        }
        if self.to_write.is_empty() {
            self.to_write = listed;
        }
    }

    fn write_stream(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let lane = stream.lane;
        let moves = stream.holds_pipes()
            && self.pods.get(stream.pod).is_some_and(PodSlot::moves)
            && self.watchdog.watches(self.now);
        if moves {
            stream.prepare_moves();
        }
        let written = stream.write(moves);
        let moved = std::mem::take(&mut stream.moved);
        if moved > 0 {
            self.metrics.moved(Direction::Received, moved);
        }
        if stream.blocked.is_some() {
            self.look_at_blocked(key);
            // What is left goes on by copies, or later.
            self.write_later(key);
        }
        let Some(stream) = self.streams.get_mut(key) else { return };
        match written {
            Ok(written) => {
                stream.announce(written);
                stream.finish_write();
                if written > 0
                    && let Some(slot) = self.lanes.get_mut(lane)
                {
                    slot.mux.consumed(stream.id, written);
                    self.bound_accepted(key, written);
                    self.serve(lane);
                    self.flow_answered(key);
                }
            }
            Err(error) => {
                debug!(%error, "application's socket takes no more");
                self.abort(key);
            }
        }
    }

    /// A socket may have made the worker wait: see [`super::watchdog`].
    fn look_at_blocked(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key)
            && let Some(blocked) = stream.blocked.take()
        {
            let pod = stream.pod;
            self.distrust_socket(pod, blocked);
        }
    }

    /// Starts a stream for a connection of this pod.
    pub(super) fn open_stream(&mut self, lane: Key, open: Waiting) {
        let Some(slot) = self.lanes.get_mut(lane) else { return };
        let (src, dst) = (open.src, open.dst);
        let id = match slot.mux.open(Open { src, dst }, self.now) {
            Ok(id) => id,
            Err(error) => {
                debug!(%error, "stream not opened");
                self.pass_back(&open, PassthroughReason::Limits);
                return;
            }
        };
        let fabric = slot.fabric;
        if !self.take(&open) {
            self.reset_in_lane(lane, id);
            return;
        }
        let mut stream = Stream::new(lane, id, open.pod, Role::Client, fabric, self.now);
        stream.accepted = open.handoff_id.is_none();
        stream.handoff_id = open.handoff_id.unwrap_or_default();
        stream.socket = Some(open.socket);
        if let Some(key) = self.adopt(stream) {
            if let Some(slot) = self.lanes.get_mut(lane) {
                slot.streams.insert(id, key);
            }
            self.read_later(key);
            self.serve(lane);
        } else {
            self.reset_in_lane(lane, id);
        }
    }

    /// Lists a stream and watches its socket. `None` when the kernel refuses: the socket is reset.
    fn adopt(&mut self, stream: Stream) -> Option<Key> {
        let (role, fabric, pod) = (stream.role, stream.fabric, stream.pod);
        let armed = stream.arm();
        if stream.accepted {
            self.count_accepted(pod, 1);
        }
        let key = self.streams.insert(stream);
        self.metrics.stream_started(role, fabric);
        self.count_stream(pod, 1);
        if let Err(error) = armed.and_then(|()| self.watch(key)) {
            debug!(%error, "socket cannot be watched");
            self.forget(key, Outcome::Limits);
            return None;
        }
        Some(key)
    }

    fn watch(&mut self, key: Key) -> std::io::Result<()> {
        match self.streams.get(key).and_then(|stream| stream.socket.as_ref()) {
            Some(socket) => self.engine.add(socket, Token::Stream(key)),
            None => Ok(()),
        }
    }

    /// Lists a stream whose socket is still being opened.
    pub(super) fn await_socket(&mut self, stream: Stream) -> Key {
        let (lane, id) = (stream.lane, stream.id);
        self.metrics.stream_started(stream.role, stream.fabric);
        self.count_stream(stream.pod, 1);
        let key = self.streams.insert(stream);
        if let Some(slot) = self.lanes.get_mut(lane) {
            slot.streams.insert(id, key);
        }
        key
    }

    /// The socket that the stream waited for is there.
    pub(super) fn socket_opened(&mut self, key: Key, socket: std::os::fd::OwnedFd) {
        let Some(stream) = self.streams.get_mut(key) else {
            // The client is gone: so is this connection, by a reset.
            let _ =
                socket2::SockRef::from(&socket.as_fd()).set_linger(Some(std::time::Duration::ZERO));
            return;
        };
        stream.socket = Some(socket);
        let (lane, id) = (stream.lane, stream.id);
        if let Err(error) = stream.arm().and_then(|()| self.watch(key)) {
            debug!(%error, "socket cannot be watched");
            self.refuse_stream(key, RefuseReason::Internal);
            return;
        }
        if let Some(slot) = self.lanes.get_mut(lane) {
            slot.mux.accept(id);
        }
        self.serve(lane);
        self.write_later(key);
        self.read_later(key);
    }

    pub(super) fn refuse_stream(&mut self, key: Key, reason: RefuseReason) {
        let Some(stream) = self.streams.get(key) else { return };
        let (lane, id) = (stream.lane, stream.id);
        if let Some(slot) = self.lanes.get_mut(lane) {
            slot.mux.refuse(id, reason);
        }
        self.forget(key, refused_outcome(reason));
        self.serve(lane);
    }

    pub(super) fn stream_opened(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.early = None;
            self.metrics.opened_in(self.now.saturating_duration_since(stream.since));
            self.read_later(key);
        }
    }

    pub(super) fn stream_refused(&mut self, key: Key, reason: RefuseReason) {
        if reason.is_mesh_reason() {
            self.give_back(key, passthrough_reason(reason));
        } else {
            // The socket is armed: closing it is the reset that a refusal looks like.
            self.forget(key, refused_outcome(reason));
        }
    }

    pub(super) fn stream_reset(&mut self, key: Key, reason: ResetReason) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.write_before_reset();
        }
        let outcome = match reason {
            ResetReason::PeerLost => Outcome::LaneLost,
            ResetReason::Timeout => Outcome::Timeout,
            ResetReason::Limits => Outcome::Limits,
            ResetReason::Protocol => Outcome::Protocol,
            _ => Outcome::Reset,
        };
        self.forget(key, outcome);
    }

    /// Both directions ended and every byte is in the application's socket.
    pub(super) fn stream_closed(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.finish_write();
            if let Err(error) = stream.disarm() {
                debug!(%error, "socket stays armed");
            }
            self.forget(key, Outcome::Closed);
        }
    }

    /// The application's side failed: the peer's side is reset.
    fn abort(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        let (lane, id) = (stream.lane, stream.id);
        self.reset_in_lane(lane, id);
        self.forget(key, Outcome::Reset);
    }

    fn reset_in_lane(&mut self, lane: Key, id: StreamId) {
        if let Some(slot) = self.lanes.get_mut(lane) {
            slot.mux.reset(id, ResetReason::App);
        }
        self.serve(lane);
    }

    /// Removes a stream from every list and closes its socket.
    pub(super) fn forget(&mut self, key: Key, outcome: Outcome) {
        let Some(stream) = self.unlist(key) else { return };
        self.metrics.stream_ended(stream.role, stream.fabric, outcome);
    }

    pub(super) fn unlist(&mut self, key: Key) -> Option<Stream> {
        let stream = self.streams.remove(key)?;
        let connecting = stream.connecting.as_ref().map(Connecting::socket);
        if let Some(socket) = stream.socket.as_ref().or(connecting) {
            self.engine.remove(socket);
        }
        if let Some(slot) = self.lanes.get_mut(stream.lane) {
            slot.streams.remove(&stream.id);
        }
        if stream.accepted {
            self.count_accepted(stream.pod, -1);
        }
        if let Some(connecting) = &stream.connecting {
            self.connect_over(stream.pod, connecting.pair());
        }
        self.count_stream(stream.pod, -1);
        Some(stream)
    }
}

fn refused_outcome(reason: RefuseReason) -> Outcome {
    match reason {
        RefuseReason::Timeout => Outcome::Timeout,
        RefuseReason::Denied => Outcome::Denied,
        RefuseReason::Limits => Outcome::Limits,
        RefuseReason::BadSource => Outcome::BadSource,
        RefuseReason::LaneLost => Outcome::LaneLost,
        _ => Outcome::Refused,
    }
}

fn passthrough_reason(reason: RefuseReason) -> PassthroughReason {
    match reason {
        RefuseReason::NoPod => PassthroughReason::PeerNoPod,
        RefuseReason::NoSidecar => PassthroughReason::PeerNoSidecar,
        RefuseReason::Limits => PassthroughReason::Limits,
        RefuseReason::Draining => PassthroughReason::Draining,
        RefuseReason::BadSource => PassthroughReason::BadSource,
        RefuseReason::LaneLost => PassthroughReason::LaneLost,
        RefuseReason::PolicyUnknown => PassthroughReason::PolicyUnknown,
        _ => PassthroughReason::PeerUnavailable,
    }
}
