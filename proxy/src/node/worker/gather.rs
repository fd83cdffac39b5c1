//! Streams whose socket gathers small pieces (see [`super::flow`]) are read when it is time.

use super::Worker;
use super::engine::Token;
use super::flow::Change;
use super::slots::Key;
use rdmesh_sys::sockopt as sys;
use rustix::net::sockopt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;
use tracing::debug;

/// What the sender of small pieces is told it may send, until its window before is used up.
const NARROW_WINDOW_BYTES: u32 = 64 << 10;
/// More than TCP can tell.
const WIDE_WINDOW_BYTES: u32 = 1 << 30;
/// A small receive buffer, and what it is at once when it need not be small any more, or the most that
/// a program may ask for (`net.core.rmem_max`). The kernel doubles both, for its own needs.
const SMALL_BUFFER_BYTES: usize = 128 << 10;
const BUFFER_BYTES: usize = 512 << 10;

/// Narrows the window and keeps both from growing. Returns how much the sender may have been told
/// before. Does nothing where the kernel could not undo it.
fn narrow(socket: &OwnedFd) -> io::Result<usize> {
    sys::hold_receive_buffer(socket, true)?;
    sys::clamp_window(socket, NARROW_WINDOW_BYTES)?;
    Ok(sockopt::socket_recv_buffer_size(socket)?)
}

/// From now on the buffer alone is the bound.
fn shrink(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size(socket, SMALL_BUFFER_BYTES)?;
    sys::clamp_window(socket, WIDE_WINDOW_BYTES)
}

fn restore(socket: &OwnedFd, shrunk: bool) -> io::Result<()> {
    sys::clamp_window(socket, WIDE_WINDOW_BYTES)?;
    if shrunk {
        // One that was full all the time has taught the kernel that no more is wanted.
        sockopt::set_socket_recv_buffer_size(socket, BUFFER_BYTES)?;
    }
    sys::hold_receive_buffer(socket, false)
}

impl Worker {
    /// So many bytes were read from a stream's socket.
    pub(super) fn flow_read(&mut self, key: Key, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if let Some(change) = stream.flow.read(bytes, !stream.readable, self.now) {
            self.flow_changes(key, change);
        }
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.gathering
            && let Some(due) = stream.flow.due()
        {
            stream.gathering = true;
            self.gathering.push_back((due, key));
        }
    }

    /// Bytes went to a stream's application.
    pub(super) fn flow_answered(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if let Some(change) = stream.flow.answered() {
            self.flow_changes(key, change);
        }
    }

    fn flow_changes(&mut self, key: Key, change: Change) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some(socket) = &stream.socket else { return };
        let listen = |on| self.engine.listen(socket, Token::Stream(key), on);
        let changed = match change {
            Change::Gather { narrow: false } => listen(false),
            Change::Gather { narrow: true } => listen(false).and_then(|()| {
                stream.flow.narrowed(narrow(socket)?);
                Ok(())
            }),
            Change::ShrinkBuffer => shrink(socket),
            // What has come meanwhile is an event as soon as it is listened for.
            Change::ReadAtOnce => listen(true),
            Change::Restore { shrunk } => listen(true).and_then(|()| restore(socket, shrunk)),
        };
        if let Err(error) = changed {
            debug!(%error, ?change, "socket stays as it is");
        }
    }

    pub(super) fn gather_due(&self) -> Option<Instant> {
        self.gathering.front().map(|(at, _)| *at)
    }

    /// Reads what was gathered for long enough.
    pub(super) fn read_gathered(&mut self) {
        while let Some((at, key)) = self.gathering.front().copied()
            && at <= self.now
        {
            self.gathering.pop_front();
            let Some(stream) = self.streams.get_mut(key) else { continue };
            stream.gathering = false;
            if stream.flow.due().is_some() {
                stream.readable = true;
                self.read_later(key);
            }
        }
    }
}
