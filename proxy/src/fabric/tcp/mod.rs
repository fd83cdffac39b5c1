//! The `tcp` fabric: messages back to back in one TCP connection, plain or inside TLS 1.3.
//!
//! Plain, payload that is in pipes is sent from there, and that of large messages is received
//! into pipes.

mod frame;
mod large;
#[cfg(test)]
mod tests;

use super::connection::{receive, send};
use super::session::Session;
use super::{Broken, Link, Message, Received};
use crate::mux::Transmit;
use frame::Framer;
use large::{Large, Moved, Next};
use rdmesh_sys::pipe::{Filling, Pipes};
use rdmesh_sys::slab::{Payload, Slab};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

/// Posted and not yet taken by the kernel: deep enough to fill one write, shallow enough that the
/// lane's scheduler, not this queue, decides what goes next.
const QUEUE_BYTES_MAX: usize = 256 << 10;
const IO_SLICES_MAX: usize = 64;
/// Less than two large messages: nobody sends in bulk.
const FEW_BYTES: usize = 100 << 10;
/// Two records.
const PART_BYTES: usize = 32 << 10;
/// Reads per turn, so that one busy link does not starve the rest of the worker.
const READS_PER_TURN: usize = 4;
/// The same in bytes, for payload that is not read.
const TURN_BYTES: usize = 1 << 20;
/// Unsent bytes the kernel may hold: what waits there can no longer be overtaken.
const UNSENT_BYTES_MAX: u32 = 512 << 10;
/// Messages per receive buffer: one read takes many small messages or several large ones.
const MESSAGES_PER_BUFFER: usize = 4;

/// See [`super::select::receive_slab`].
pub(super) fn receive_slab(message_bytes_max: usize, window_budget_bytes: u64) -> io::Result<Slab> {
    let buffer_bytes = message_bytes_max * MESSAGES_PER_BUFFER;
    // A held slice is at least a quarter of its buffer (the worker copies smaller ones), so four
    // times the budget covers the worst case; address space is free until touched.
    let buffers = (window_budget_bytes as usize).saturating_mul(4) / buffer_bytes + 64;
    Slab::new(u32::try_from(buffers).unwrap_or(u32::MAX), buffer_bytes)
}

pub(super) struct TcpLink {
    socket: TcpStream,
    tls: Option<Session>,
    framer: Framer,
    large: Large,
    pipes: Pipes,
    /// What the socket takes next, shared with the message that is first in the queue.
    stage: Option<Filling>,
    /// Messages received since the last call of `granted`.
    granted: u32,
    queue: VecDeque<Posted>,
    queued_bytes: usize,
}

/// A posted message and how much of it the kernel, or the session, has taken.
struct Posted {
    message: Transmit<Payload>,
    sent_bytes: usize,
}

impl Posted {
    fn remaining(&self) -> usize {
        self.message.bytes - self.sent_bytes
    }

    /// The parts not yet taken, appended to `slices` up to one that is in a pipe. False if there
    /// is one.
    fn slices<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) -> bool {
        for (part, skip) in self.parts() {
            if skip == 0 && part.is_piped() {
                return false;
            }
            slices.push(IoSlice::new(&part[skip..]));
        }
        true
    }

    /// What was not taken: parts, and how much of the first was.
    fn parts(&self) -> impl Iterator<Item = (&Payload, usize)> {
        let mut skip = self.sent_bytes;
        let all = std::iter::once(&self.message.head).chain(&self.message.tails);
        all.filter_map(move |part| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            (skipped < part.len()).then_some((part, skipped))
        })
    }

    /// The next part, if it is in a pipe and none of it was sent.
    fn next_piped(&self) -> Option<&Payload> {
        let (part, skip) = self.parts().next()?;
        (skip == 0 && part.is_piped()).then_some(part)
    }
}

/// What a step of receiving came to.
enum Step {
    /// Go on; so much of the turn is used up.
    Bytes(usize),
    End(Received),
}

impl TcpLink {
    pub(super) fn new(
        socket: TcpStream,
        tls: Option<Session>,
        receive: &Slab,
        pipes: Pipes,
    ) -> Result<Self, Broken> {
        socket.set_nonblocking(true)?;
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        Ok(Self {
            socket,
            tls,
            framer: Framer::new(receive.clone()),
            large: Large::new(pipes.clone()),
            pipes,
            stage: None,
            granted: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
        })
    }

    fn flush_plain(&mut self) -> Result<(), Broken> {
        while !self.queue.is_empty() {
            let staged = self.stage.as_ref().is_some_and(|stage| !stage.is_empty());
            let sent =
                if staged || self.stage_next() { self.send_stage()? } else { self.send_slices()? };
            let Some(n) = sent else { return Ok(()) };
            self.taken(n);
        }
        Ok(())
    }

    fn send_slices(&mut self) -> Result<Option<usize>, Broken> {
        let mut slices = Vec::with_capacity(IO_SLICES_MAX);
        let mut all = true;
        for posted in &self.queue {
            if slices.len() + 1 + posted.message.tails.len() > IO_SLICES_MAX && !slices.is_empty() {
                break;
            }
            all = posted.slices(&mut slices);
            if !all {
                break;
            }
        }
        Ok(send(self.socket.as_fd(), &slices, !all)?)
    }

    /// If what is next is in a pipe, shares it: the message keeps it until it is acknowledged.
    fn stage_next(&mut self) -> bool {
        let Some(part) = self.queue.front().and_then(Posted::next_piped) else { return false };
        if let Some(mut stage) = self.stage.take().or_else(|| self.pipes.take())
            && stage.share(part)
        {
            self.stage = Some(stage);
            return true;
        }
        // To look at it makes the copy that is sent instead.
        let _copied: &[u8] = part;
        false
    }

    fn send_stage(&mut self) -> Result<Option<usize>, Broken> {
        let Some(stage) = &mut self.stage else { return Ok(Some(0)) };
        loop {
            match stage.drain(&self.socket) {
                Ok(n) => return Ok(Some(n)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// Counts `n` bytes as taken by the kernel and lets go of messages that left completely.
    fn taken(&mut self, mut n: usize) {
        self.queued_bytes -= n;
        while let Some(front) = self.queue.front_mut() {
            let step = n.min(front.remaining());
            front.sent_bytes += step;
            n -= step;
            if front.remaining() > 0 {
                return;
            }
            self.queue.pop_front();
        }
    }

    fn read(&mut self, bytes_max: usize, messages: &mut Vec<Message>) -> Result<Step, Broken> {
        let Some(space) = self.framer.space() else { return Ok(Step::End(Received::More)) };
        let wanted = space.len().min(bytes_max);
        let space = &mut space[..wanted];
        let got = match &mut self.tls {
            None => receive(self.socket.as_fd(), space)?,
            Some(session) => session.read_from(&self.socket, space)?,
        };
        let n = match got {
            None => return Ok(Step::End(Received::Drained)),
            Some(0) => return Err(Broken::Closed),
            Some(n) => n,
        };
        let before = messages.len();
        self.framer.filled(n, messages)?;
        for message in &messages[before..] {
            self.granted += 1;
            if self.tls.is_none() {
                self.large.note(&message.head);
            }
        }
        // A short plain read has emptied the socket: the next edge tells of more.
        if n < wanted && self.tls.is_none() {
            return Ok(Step::End(Received::Drained));
        }
        Ok(Step::Bytes(if bytes_max == usize::MAX { TURN_BYTES / READS_PER_TURN } else { n }))
    }

    fn move_payload(&mut self, messages: &mut Vec<Message>) -> Result<Step, Broken> {
        Ok(match self.large.advance(&self.socket, &mut self.framer)? {
            Moved::Message(message) => {
                let bytes = message.tails.iter().flatten().map(Payload::len).sum();
                messages.push(message);
                self.granted += 1;
                Step::Bytes(bytes)
            }
            Moved::Unsuitable => Step::Bytes(0),
            Moved::Drained => Step::End(Received::Drained),
            Moved::NoRoom => Step::End(Received::More),
        })
    }

    /// Moves posted messages through the session as far as it and the socket take them.
    fn flush_tls(&mut self) -> Result<(), Broken> {
        while let Some(session) = &mut self.tls {
            if session.has_room() && !self.queue.is_empty() {
                self.encrypt_next()?;
            } else if !session.write_to(&self.socket)? || self.queue.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Encrypts all that waits; or, where that is little, a part of it: the far end decrypts one while the
    /// next is encrypted here.
    fn encrypt_next(&mut self) -> Result<(), Broken> {
        let Some(session) = &mut self.tls else { return Ok(()) };
        let mut left = if self.queued_bytes > FEW_BYTES { usize::MAX } else { PART_BYTES };
        let mut slices = Vec::with_capacity(IO_SLICES_MAX);
        let mut taken = 0;
        for (part, skip) in self.queue.iter().flat_map(Posted::parts).take(IO_SLICES_MAX) {
            let rest = &part[skip..];
            let bytes = &rest[..rest.len().min(left)];
            if bytes.is_empty() {
                break;
            }
            left -= bytes.len();
            taken += bytes.len();
            slices.push(IoSlice::new(bytes));
        }
        session.encrypt(&mut slices)?;
        self.taken(taken);
        Ok(())
    }
}

impl Link for TcpLink {
    fn has_room(&self) -> bool {
        self.queued_bytes < QUEUE_BYTES_MAX
    }

    fn post_send(&mut self, message: Transmit<Payload>) {
        self.queued_bytes += message.bytes;
        self.queue.push_back(Posted { message, sent_bytes: 0 });
    }

    fn flush(&mut self) -> Result<(), Broken> {
        if self.tls.is_some() { self.flush_tls() } else { self.flush_plain() }
    }

    fn receive(&mut self, messages: &mut Vec<Message>) -> Result<Received, Broken> {
        let mut turn_bytes = TURN_BYTES;
        while turn_bytes > 0 {
            let step = match self.large.next(&mut self.framer) {
                Next::Read(bytes_max) => self.read(bytes_max, messages)?,
                Next::Move => self.move_payload(messages)?,
            };
            match step {
                Step::Bytes(bytes) => turn_bytes = turn_bytes.saturating_sub(bytes),
                Step::End(received) => return Ok(received),
            }
        }
        Ok(Received::More)
    }

    fn takes_pipes(&self) -> bool {
        self.tls.is_none()
    }

    fn granted(&mut self) -> u32 {
        std::mem::take(&mut self.granted)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn connection(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
