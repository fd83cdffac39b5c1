//! Connections that the worker accepts itself, at the listener that a pod's sidecar has lent. Those
//! that a lane takes at once need no word with the sidecar; the others are given to it.
//!
//! What it does not do: keep a connection waiting. Until a stream is open a connection belongs to
//! the sidecar, which outlives this process.

use super::Worker;
use super::engine::Token;
use super::lane::Waiting;
use super::pods::{PodSlot, handoff_reason};
use super::slots::Key;
use super::stream::Blocked;
use crate::directory::Decision;
use crate::handoff::{
    ToSidecar, accept_stream, check_listener, is_about_one_connection, local_end,
    original_destination,
};
use crate::metrics::{HandoffOutcome, PassthroughReason};
use rdmesh_config::Fabric;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tracing::debug;

/// Connections of one pod in a turn.
const ACCEPTS_PER_TURN: usize = 16;
/// Linux charges an accepted socket's buffers to the memory cgroup of the process that accepts. So
/// these sockets are few, of one pod and of all; the sidecars accept the others.
const ACCEPTED_PER_POD_MAX: u32 = 64;
const ACCEPTED_MAX: u32 = 128;
/// And their buffers, which the kernel would let grow to `tcp_rmem` and `tcp_wmem`, stay as they are
/// when a look at them finds so much.
const BUFFER_BYTES_MAX: usize = 2 << 20;
const BYTES_BETWEEN_LOOKS: usize = 1 << 20;

pub(super) struct Listener {
    pub socket: OwnedFd,
    /// Who wants to go there was not redirected.
    port: u16,
}

impl PodSlot {
    fn accepts(&self, accepted_by_all: u32) -> bool {
        self.accepted < ACCEPTED_PER_POD_MAX && accepted_by_all < ACCEPTED_MAX
    }
}

impl Worker {
    /// A sidecar lends its listener. Where it is of no use, the sidecar goes on accepting.
    pub(super) fn listener_arrived(&mut self, key: Key, socket: Option<OwnedFd>) {
        self.forget_listener(key);
        let Some(slot) = self.pods.get_mut(key) else { return };
        let wanted = slot.moves() && slot.accepts(self.accepted) && self.stop_at.is_none();
        let listener = socket.filter(|_| wanted).and_then(|socket| {
            let port = check_listener(&socket).ok()?;
            // The mode is the file's, which the sidecar shares.
            rustix::io::ioctl_fionbio(&socket, true).ok()?;
            self.engine.add_listener(&socket, Token::Listener(key)).ok()?;
            Some(Listener { socket, port })
        });
        match listener {
            Some(listener) => slot.listener = Some(listener),
            None => {
                self.tell(key, &ToSidecar::Accept, None);
            }
        }
    }

    /// False if there was none.
    pub(super) fn forget_listener(&mut self, key: Key) -> bool {
        let listener = self.pods.get_mut(key).and_then(|slot| slot.listener.take());
        if let Some(listener) = &listener {
            self.engine.remove(&listener.socket);
        }
        listener.is_some()
    }

    /// The sidecar accepts, and will lend the listener again after a while.
    pub(super) fn stop_accepting(&mut self, key: Key) {
        if self.forget_listener(key) {
            self.tell(key, &ToSidecar::Accept, None);
        }
    }

    pub(super) fn accept_streams(&mut self, key: Key) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(slot) = self.pods.get(key) else { return };
            let Some(listener) = &slot.listener else { return };
            if !slot.accepts(self.accepted) {
                return self.stop_accepting(key);
            }
            // A pod can make the listener blocking, as any of its sockets.
            if !self.watchdog.watches(self.now) {
                return self.stop_accepting(key);
            }
            match accept_stream(&listener.socket) {
                Ok((socket, src)) => {
                    let port = listener.port;
                    self.accepted(key, socket, src, port);
                }
                Err(Errno::AGAIN) => return,
                // It has waited: only the watchdog has ended that.
                Err(Errno::INTR) => {
                    self.distrust_socket(key, Blocked::Surely);
                    return self.stop_accepting(key);
                }
                Err(error) if is_about_one_connection(error) => {}
                Err(error) => {
                    debug!(%error, "cannot accept; left to the sidecar");
                    return self.stop_accepting(key);
                }
            }
        }
    }

    fn accepted(&mut self, key: Key, socket: OwnedFd, src: SocketAddr, port: u16) {
        let Some(slot) = self.pods.get(key) else { return };
        let snapshot = self.directory.load();
        let pod = slot.pod(&snapshot);
        let local = local_end(&socket).ok();
        let orig_dst = local.map(|local| original_destination(&socket, local, port));
        let decision = match orig_dst.filter(|dst| dst.port() != port) {
            Some(orig_dst) if pod.has_address(src.ip()) && !self.full(slot) => {
                snapshot.resolve(&pod, orig_dst)
            }
            // What is odd or rare is the sidecar's to judge.
            _ => return self.give_accepted(key, &socket, None),
        };
        drop(snapshot);
        match decision {
            Decision::Passthrough { reason } => self.give_accepted(key, &socket, Some(reason)),
            Decision::Local { dst, .. } => {
                self.metrics.handoff(HandoffOutcome::Local);
                let lane = self.same_node_lane();
                self.open_stream(lane, self.accepted_open(key, socket, src, dst, false));
            }
            Decision::Mesh { node, dst, fabric, .. }
                if fabric.meet(self.config.fabric).is_some() =>
            {
                let lane = self.lane_to(node.as_arc(), fabric);
                if self.lanes.get(lane).is_some_and(|lane| lane.attached && !lane.draining) {
                    let verbs_only = fabric == Fabric::Verbs;
                    let open = self.accepted_open(key, socket, src, dst, verbs_only);
                    self.open_attached(lane, open);
                } else {
                    self.give_accepted(key, &socket, None);
                }
            }
            Decision::Mesh { .. } | Decision::Deny => self.give_accepted(key, &socket, None),
        }
    }

    /// A stream's socket was accepted here, or such a stream has ended.
    pub(super) fn count_accepted(&mut self, pod: Key, change: i32) {
        self.accepted = self.accepted.saturating_add_signed(change);
        if let Some(slot) = self.pods.get_mut(pod) {
            slot.accepted = slot.accepted.saturating_add_signed(change);
        }
    }

    /// So many bytes went through a stream's socket.
    pub(super) fn bound_accepted(&mut self, key: Key, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key).filter(|stream| stream.accepted) else {
            return;
        };
        stream.bytes_since_look += bytes;
        if stream.bytes_since_look < BYTES_BETWEEN_LOOKS {
            return;
        }
        stream.bytes_since_look = 0;
        if let Some(socket) = &stream.socket
            && let Err(error) = bound_buffers(socket)
        {
            debug!(%error, "socket's buffers are not bounded");
        }
    }

    fn accepted_open(
        &self,
        pod: Key,
        socket: OwnedFd,
        src: SocketAddr,
        dst: SocketAddr,
        verbs_only: bool,
    ) -> Waiting {
        Waiting { pod, handoff_id: None, socket, src, dst, verbs_only, deadline: self.now }
    }

    /// To the sidecar. With a reason it passes through, without one it is offered as any other.
    pub(super) fn give_accepted(
        &mut self,
        key: Key,
        socket: &OwnedFd,
        reason: Option<PassthroughReason>,
    ) {
        // Should it never get there, it ends by a reset.
        let _ = socket2::SockRef::from(&socket.as_fd()).set_linger(Some(Duration::ZERO));
        let message = ToSidecar::Accepted { reason: reason.map(handoff_reason) };
        if self.tell(key, &message, Some(socket))
            && let Some(reason) = reason
        {
            self.metrics.passthrough(reason);
            self.metrics.handoff(HandoffOutcome::Passthrough);
        }
        // It is charged to this process as long as it lasts, and there may be more like it.
        self.stop_accepting(key);
    }
}

fn bound_buffers(socket: &OwnedFd) -> io::Result<()> {
    let receive = sockopt::socket_recv_buffer_size(socket)?;
    let send = sockopt::socket_send_buffer_size(socket)?;
    if receive.max(send) < BUFFER_BYTES_MAX {
        return Ok(());
    }
    rdmesh_sys::sockopt::hold_buffers(socket).or_else(|_| {
        // Before Linux 5.15. What was asked for stays, too; there may be less of it.
        sockopt::set_socket_recv_buffer_size(socket, BUFFER_BYTES_MAX / 2)?;
        Ok(sockopt::set_socket_send_buffer_size(socket, BUFFER_BYTES_MAX / 2)?)
    })
}
