//! A link on a connected queue pair.
//!
//! The connection that it was negotiated on stays open: its end is the end of the peer's process,
//! which RDMA itself would tell late. An epoll set inside holds it and the device's events, and is
//! the link's alarm; messages come by the completion channel, which is its descriptor.

use super::super::negotiate::Connection;
use super::super::{Broken, Link, Message, Received};
use super::{Opened, Prepared};
use crate::mux::Transmit;
use rdmesh_sys::slab::{BufMut, Payload, Slab};
use rdmesh_sys::verbs::{Error, Parts, Polled, QueuePair, status_name};
use rustix::event::{Timespec, epoll};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// On the device or waiting for it: the lane's scheduler decides late what goes next.
const QUEUE_BYTES_MAX: usize = 512 << 10;
/// Every so many messages one reports that it and all before it have left.
const SIGNAL_EVERY: usize = 16;
/// The same in bytes: while one part of the queue is reported and filled again, the device has others.
const SIGNAL_BYTES: usize = QUEUE_BYTES_MAX / 4;
/// Rounds per turn, so that one busy link does not starve the rest of the worker.
const POLLS_PER_TURN: usize = 4;

const CONNECTION: u64 = 0;
const DEVICE: u64 = 1;

pub(in crate::fabric) struct VerbsLink {
    // Before the device in drop order.
    pair: QueuePair,
    opened: Rc<Opened>,
    connection: Connection,
    alarm: OwnedFd,
    alarmed: bool,
    queue: VecDeque<Parts>,
    queued_bytes: usize,
    unsignalled: usize,
    unsignalled_bytes: usize,
    completed: Vec<BufMut>,
    /// The device gave the notice that it was asked for.
    noticed: bool,
    /// What [`Link::poll`] came upon.
    failed: Option<Error>,
    /// Messages that wait for memory to be copied to.
    held: VecDeque<BufMut>,
    granted: u32,
    spill: Spill,
    port: u8,
    port_downs: u64,
    gids_changed: u64,
    gid: (u8, [u8; 16]),
}

/// Where messages are copied when registered buffers are short: packed one behind the other.
struct Spill {
    slab: Slab,
    buffer: Option<BufMut>,
}

impl Spill {
    fn copy(&mut self, bytes: &[u8]) -> Option<Payload> {
        if self.buffer.as_ref().is_none_or(|buffer| buffer.spare_bytes() < bytes.len()) {
            self.buffer = Some(self.slab.take()?);
        }
        let buffer = self.buffer.as_mut()?;
        let start = buffer.filled();
        buffer.put(bytes);
        let copy = buffer.slice(start, start + bytes.len());
        (copy.len() == bytes.len()).then_some(copy)
    }
}

impl VerbsLink {
    pub(in crate::fabric) fn new(
        connection: Connection,
        prepared: Prepared,
    ) -> Result<Self, Broken> {
        let Prepared { opened, pair, chosen, spill, .. } = prepared;
        let alarm = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let watched =
            [(connection.socket.as_fd(), CONNECTION), (opened.device.event_descriptor(), DEVICE)];
        for (descriptor, token) in watched {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            epoll::add(&alarm, descriptor, epoll::EventData::new_u64(token), flags)
                .map_err(std::io::Error::from)?;
        }
        Ok(Self {
            port_downs: opened.downs(chosen.port),
            gids_changed: opened.gids_changed.get(),
            gid: (chosen.gid_index, chosen.gid),
            port: chosen.port,
            pair,
            opened,
            connection,
            alarm,
            // What came before anybody waited for it.
            alarmed: true,
            queue: VecDeque::new(),
            queued_bytes: 0,
            unsignalled: 0,
            unsignalled_bytes: 0,
            completed: Vec::new(),
            noticed: false,
            failed: None,
            held: VecDeque::new(),
            granted: 0,
            spill: Spill { slab: spill, buffer: None },
        })
    }

    /// Looks at the connection and the device, without waiting.
    fn look(&mut self) -> Result<(), Broken> {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 4];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let found = match epoll::wait(&self.alarm, &mut space, Some(&now)) {
            Ok((found, _)) => &*found,
            Err(rustix::io::Errno::INTR) => &[],
            Err(error) => return Err(std::io::Error::from(error).into()),
        };
        for event in found {
            match event.data.u64() {
                CONNECTION => self.check_connection()?,
                _ => self.opened.hear(),
            }
        }
        Ok(())
    }

    fn check_connection(&mut self) -> Result<(), Broken> {
        match self.connection.receive(&mut [0; 64])? {
            None => Ok(()),
            Some(0) => Err(Broken::Closed),
            Some(_) => Err(Broken::Negotiation("bytes beside a queue pair")),
        }
    }

    /// Another link of this worker may have heard it.
    fn check_device(&mut self) -> Result<(), Broken> {
        let device = || self.opened.device.name().to_owned();
        if self.opened.fatal.get() {
            return Err(Broken::Device(format!("{} failed or was removed", device())));
        }
        if self.opened.downs(self.port) != self.port_downs {
            return Err(Broken::Device(format!("port {} of {} is down", self.port, device())));
        }
        if self.opened.take_failed(self.pair.number()) {
            return Err(Broken::Device(format!("{} says that the queue pair failed", device())));
        }
        if self.opened.gids_changed.get() != self.gids_changed {
            self.gids_changed = self.opened.gids_changed.get();
            let (index, raw) = self.gid;
            let gids = self.opened.device.gids(self.port);
            if !gids.iter().any(|gid| gid.index == index && gid.raw == raw) {
                return Err(Broken::Device(format!("the GID {index} of {} changed", device())));
            }
        }
        Ok(())
    }

    /// Hands messages up. For each, the device gets a buffer before its credit is counted: a fresh
    /// one, or, when those are short, the same, and the message is copied out of it.
    fn deliver(&mut self, messages: &mut Vec<Message>) -> Result<bool, Broken> {
        self.held.extend(self.completed.drain(..));
        while let Some(buffer) = self.held.pop_front() {
            let length = buffer.filled();
            let message = buffer.slice(0, length);
            let (message, fresh) = match self.opened.receive_memory.slab().take() {
                Some(fresh) => (message, fresh),
                None => match self.spill.copy(&message) {
                    Some(copy) => {
                        drop((message, buffer));
                        // Nobody else takes buffers in between: this is the same one.
                        let slab = self.opened.receive_memory.slab();
                        let Some(fresh) = slab.take() else { return Ok(false) };
                        (copy, fresh)
                    }
                    None => {
                        drop(message);
                        self.held.push_front(buffer);
                        return Ok(false);
                    }
                },
            };
            self.pair.post_receive(fresh).map_err(broken)?;
            self.granted += 1;
            messages.push(message.into());
        }
        Ok(true)
    }

    /// One message in registered memory and few parts; `None` when there is no buffer for it now.
    fn gather(&self, message: &Parts) -> Option<Parts> {
        let mut buffer = self.opened.receive_memory.slab().take()?;
        for part in message {
            buffer.put(part);
        }
        Some(std::iter::once(buffer.slice(0, buffer.filled())).collect())
    }
}

fn broken(error: Error) -> Broken {
    match error {
        Error::Completion(status) => Broken::Completion(status_name(status)),
        other => Broken::Device(other.to_string()),
    }
}

impl Link for VerbsLink {
    fn has_room(&self) -> bool {
        let sends = self.pair.capacity().sends as usize;
        self.queue.len() + self.pair.sends_in_flight() < sends
            && self.queued_bytes + self.pair.bytes_in_flight() < QUEUE_BYTES_MAX
    }

    fn post_send(&mut self, message: Transmit<Payload>) {
        self.queued_bytes += message.bytes;
        self.queue.push_back(std::iter::once(message.head).chain(message.tails).collect());
    }

    fn flush(&mut self) -> Result<(), Broken> {
        let mut batch: Vec<Parts> = Vec::with_capacity(self.queue.len());
        let mut signals: Vec<bool> = Vec::with_capacity(self.queue.len());
        let inline_max = self.pair.capacity().inline_bytes as usize;
        let mut holds = false;
        while let Some(message) = self.queue.pop_front() {
            let bytes: usize = message.iter().map(Payload::len).sum();
            let message = if self.pair.takes(&message) {
                message
            } else if let Some(gathered) = self.gather(&message) {
                gathered
            } else {
                self.queue.push_front(message);
                break;
            };
            self.queued_bytes -= bytes;
            self.unsignalled += 1;
            if bytes > inline_max {
                self.unsignalled_bytes += bytes;
                holds = true;
            }
            let signal = self.unsignalled >= SIGNAL_EVERY || self.unsignalled_bytes >= SIGNAL_BYTES;
            if signal {
                (self.unsignalled, self.unsignalled_bytes, holds) = (0, 0, false);
            }
            batch.push(message);
            signals.push(signal);
        }
        // What holds buffers is reported by the end of the batch.
        if holds && let Some(last) = signals.last_mut() {
            *last = true;
            (self.unsignalled, self.unsignalled_bytes) = (0, 0);
        }
        self.pair.post_sends(batch, |index| signals.get(index) == Some(&true)).map_err(broken)
    }

    fn receive(&mut self, messages: &mut Vec<Message>) -> Result<Received, Broken> {
        let looked = if std::mem::take(&mut self.alarmed) { self.look() } else { Ok(()) };
        let looked = looked.and_then(|()| self.check_device());
        for _ in 0..POLLS_PER_TURN {
            let polled = match self.failed.take() {
                Some(error) => Err(error),
                None => self.pair.poll(&mut self.completed),
            };
            // What arrived before a failure counts.
            if !self.deliver(messages)? {
                polled.map_err(broken)?;
                return Ok(Received::More);
            }
            if polled.map_err(broken)? == Polled::Empty {
                looked?;
                return Ok(Received::Drained);
            }
        }
        looked?;
        Ok(Received::More)
    }

    fn poll(&mut self) -> bool {
        if self.failed.is_some() {
            return true;
        }
        let before = (self.completed.len(), self.pair.sends_in_flight());
        if let Err(error) = self.pair.poll(&mut self.completed) {
            self.failed = Some(error);
            return true;
        }
        before != (self.completed.len(), self.pair.sends_in_flight())
    }

    fn noticed(&mut self) {
        self.noticed = true;
    }

    /// Who is awake polls: a notice costs three system calls, and a device an interrupt.
    fn rest(&mut self) -> bool {
        if !std::mem::take(&mut self.noticed) {
            return self.failed.is_none();
        }
        if self.pair.read_notice()
            && let Err(error) = self.pair.arm()
        {
            self.failed = Some(error);
        }
        !self.poll()
    }

    fn granted(&mut self) -> u32 {
        std::mem::take(&mut self.granted)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.pair.descriptor()
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        Some(self.alarm.as_fd())
    }

    fn alarmed(&mut self) {
        self.alarmed = true;
    }

    fn connection(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}
