//! The `tcp` fabric: messages back to back in one TCP connection, plain or inside TLS 1.3.

mod frame;

use super::connection::{receive, send};
use super::session::Session;
use super::{Broken, Link, Received};
use crate::mux::Transmit;
use frame::Framer;
use rdmesh_sys::slab::{Payload, Slab};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

/// Posted and not yet taken by the kernel: deep enough to fill one write, shallow enough that the
/// lane's scheduler, not this queue, decides what goes next.
const QUEUE_BYTES_MAX: usize = 256 << 10;
const IO_SLICES_MAX: usize = 64;
/// Reads per turn, so that one busy link does not starve the rest of the worker.
const READS_PER_TURN: usize = 4;
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
    /// Messages received since the last call of `granted`.
    granted: u32,
    queue: VecDeque<Posted>,
    queued_bytes: usize,
}

/// A posted message and how much of it the kernel has taken.
struct Posted {
    message: Transmit<Payload>,
    sent_bytes: usize,
}

impl Posted {
    fn remaining(&self) -> usize {
        self.message.bytes - self.sent_bytes
    }

    /// The parts not yet taken, appended to `slices`.
    fn slices<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        let mut skip = self.sent_bytes;
        for part in std::iter::once(&self.message.head).chain(&self.message.tails) {
            if skip >= part.len() {
                skip -= part.len();
            } else {
                slices.push(IoSlice::new(&part[skip..]));
                skip = 0;
            }
        }
    }
}

impl TcpLink {
    pub(super) fn new(
        socket: TcpStream,
        tls: Option<Session>,
        receive: &Slab,
    ) -> Result<Self, Broken> {
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        Ok(Self {
            socket,
            tls,
            framer: Framer::new(receive.clone()),
            granted: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
        })
    }

    fn flush_plain(&mut self) -> Result<(), Broken> {
        while !self.queue.is_empty() {
            let mut slices = Vec::with_capacity(IO_SLICES_MAX);
            for posted in &self.queue {
                if slices.len() + 1 + posted.message.tails.len() > IO_SLICES_MAX
                    && !slices.is_empty()
                {
                    break;
                }
                posted.slices(&mut slices);
            }
            let Some(n) = send(self.socket.as_fd(), &slices)? else { return Ok(()) };
            drop(slices);
            self.taken(n);
        }
        Ok(())
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

    /// Moves posted messages through the session as far as it and the socket take them.
    fn flush_tls(&mut self) -> Result<(), Broken> {
        let Some(session) = &mut self.tls else { return Ok(()) };
        loop {
            while session.has_room() {
                let Some(posted) = self.queue.pop_front() else { break };
                self.queued_bytes -= posted.message.bytes;
                session.encrypt(&posted.message)?;
            }
            if !session.write_to(&self.socket)? || self.queue.is_empty() {
                return Ok(());
            }
        }
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

    fn receive(&mut self, messages: &mut Vec<Payload>) -> Result<Received, Broken> {
        for _ in 0..READS_PER_TURN {
            let Some(space) = self.framer.space() else { return Ok(Received::More) };
            let wanted = space.len();
            let got = match &mut self.tls {
                None => receive(self.socket.as_fd(), space)?,
                Some(session) => session.read_from(&self.socket, space)?,
            };
            match got {
                None => return Ok(Received::Drained),
                Some(0) => return Err(Broken::Closed),
                Some(n) => {
                    let before = messages.len();
                    self.framer.filled(n, messages)?;
                    let new = messages.len() - before;
                    self.granted += u32::try_from(new).unwrap_or(0);
                    // A short plain read has emptied the socket: the next edge tells of more.
                    if n < wanted && self.tls.is_none() {
                        return Ok(Received::Drained);
                    }
                }
            }
        }
        Ok(Received::More)
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
