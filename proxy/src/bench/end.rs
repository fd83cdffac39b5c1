//! One end of the link under test: memory to send from, credits, and waiting, as a worker has them.

use super::{Error, Poll, SILENCE_MAX};
use crate::fabric::select::{Fabrics, Kind, Ready};
use crate::fabric::{Broken, Established, Link, Message, Received};
use crate::mux::{Blank, HEADER_BYTES, Transmit};
use rdmesh_config::Node;
use rdmesh_sys::slab::{BufMut, Payload, Slab};
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use smallvec::SmallVec;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Up to this size a message is one piece, as a lane makes it (`LaneConfig::inline_bytes_max`).
const ONE_PIECE_BYTES_MAX: usize = 1024;
/// Looks between two looks at the clock, with `Poll::Always`.
const LOOKS: u32 = 1024;
/// A message that counts has more than a header.
pub(super) const SHORTEST: u32 = HEADER_BYTES as u32 + 1;
/// What the descriptors of the link tell of.
const MESSAGES: u64 = 0;
const ALARM: u64 = 1;

/// Memory that messages leave from: heads packed one behind the other, and a buffer of payload.
pub(super) struct Memory {
    slab: Slab,
    heads: Option<BufMut>,
    pub payload: Payload,
}

impl Memory {
    fn new(slab: Slab) -> io::Result<Self> {
        let mut buffer = slab.take().ok_or(io::ErrorKind::OutOfMemory)?;
        buffer.advance(slab.buffer_bytes());
        let payload = buffer.slice(0, slab.buffer_bytes());
        Ok(Self { slab, heads: None, payload })
    }

    pub fn keep(&mut self, head: &[u8]) -> Option<Payload> {
        if self.heads.as_ref().is_none_or(|buffer| buffer.spare_bytes() < head.len()) {
            self.heads = Some(self.slab.take()?);
        }
        let buffer = self.heads.as_mut()?;
        let start = buffer.filled();
        let end = start + buffer.put(head);
        Some(buffer.slice(start, end))
    }
}

pub(super) struct End {
    pub link: Box<dyn Link>,
    pub memory: Memory,
    /// What came and was not looked at yet.
    pub arrived: Vec<Message>,
    /// Messages of the link so far, and what the other end has said of them.
    pub sent: u64,
    received: u64,
    pub peer_received: u64,
    /// Of those received, which are not mere news of credits, and how many the tests have counted.
    arrivals: u64,
    counted: u64,
    posted: u64,
    told: u64,
    /// What the other end was told last of those received.
    told_received: u64,
    peer_posted: u64,
    kind: Kind,
    credits: u32,
    events: OwnedFd,
    poll: Poll,
    readable: bool,
    heard: Instant,
    looks: u32,
    // Below the link in drop order: the device's memory belongs to it.
    _fabrics: Fabrics,
}

impl End {
    /// Negotiates what the connection becomes and exchanges the first credits.
    pub fn new(socket: TcpStream, node: &Node, poll: Poll) -> Result<Self, Error> {
        let message_bytes = node.limits.message_bytes_max as usize;
        let buffers = (node.limits.slab_bytes as usize / message_bytes).max(8);
        let slab = Slab::new(u32::try_from(buffers).unwrap_or(u32::MAX), message_bytes)?;
        let mut fabrics = Fabrics::new(node, &slab)?;
        let patience = Duration::from_millis(node.timeouts.handshake_ms);
        let ready = negotiate(&mut fabrics, Established { socket, tls: None }, patience)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        // As the worker's engine registers it.
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&events, ready.link.descriptor(), epoll::EventData::new_u64(MESSAGES), flags)
            .map_err(io::Error::from)?;
        if let Some(alarm) = ready.link.alarm() {
            epoll::add(&events, alarm, epoll::EventData::new_u64(ALARM), flags)
                .map_err(io::Error::from)?;
        }
        let mut end = Self {
            link: ready.link,
            memory: Memory::new(slab)?,
            arrived: Vec::new(),
            sent: 0,
            received: 0,
            peer_received: 0,
            arrivals: 0,
            counted: 0,
            posted: ready.credits.into(),
            told: 0,
            told_received: 0,
            // Enough for the first message, which tells the rest.
            peer_posted: 2,
            kind: ready.kind,
            credits: ready.credits,
            events,
            poll,
            readable: true,
            heard: Instant::now(),
            looks: 0,
            _fabrics: fabrics,
        };
        end.say(SHORTEST)?;
        end.await_message()?;
        Ok(end)
    }

    pub fn fabric(&self) -> &'static str {
        match self.kind {
            Kind::Tcp => "tcp",
            Kind::Verbs => "verbs",
        }
    }

    /// Receive buffers of this end.
    pub fn credits(&self) -> u32 {
        self.credits
    }

    /// The last credit is for news of credits, or two ends without any would wait for each other.
    pub fn may_send(&self) -> bool {
        self.link.has_room() && self.sent + 1 < self.peer_posted
    }

    /// Posts a message of `bytes`; the caller flushes. False: there is no memory for it now.
    pub fn send(&mut self, bytes: u32) -> bool {
        let blank = Blank { bytes, received: self.received, posted: self.posted };
        let bytes = (bytes as usize).max(HEADER_BYTES);
        let mut head = [0; ONE_PIECE_BYTES_MAX];
        head[..HEADER_BYTES].copy_from_slice(&blank.header());
        let head_bytes = if bytes > head.len() { HEADER_BYTES } else { bytes };
        let Some(head) = self.memory.keep(&head[..head_bytes]) else { return false };
        let mut tails = SmallVec::new();
        if bytes > head_bytes {
            tails.push(self.memory.payload.clone().split_to(bytes - head_bytes));
        }
        self.link.post_send(Transmit { head, tails, bytes });
        self.sent += 1;
        (self.told, self.told_received) = (self.posted, self.received);
        true
    }

    /// Sends a message that counts, as soon as there is room and credit for it.
    pub fn say(&mut self, bytes: u32) -> Result<(), Error> {
        while !(self.may_send() && self.send(bytes)) {
            self.turn()?;
            self.read()?;
        }
        Ok(self.link.flush()?)
    }

    /// Lets the other end know of all that it has sent; it need not wait for more.
    pub fn tell(&mut self) -> Result<(), Error> {
        while self.told_received < self.received && !self.send_news() {
            self.turn()?;
            self.read()?;
        }
        Ok(self.link.flush()?)
    }

    /// False: there is no room, credit or memory for it now.
    fn send_news(&mut self) -> bool {
        let may = self.link.has_room() && self.sent < self.peer_posted;
        may && self.send(HEADER_BYTES as u32)
    }

    /// Tells of new credits when they are worth a message, as a lane counts it.
    pub fn tell_credits(&mut self) -> Result<(), Error> {
        let worth = u64::from(self.credits / 4).max(2);
        if self.posted - self.told >= worth && self.send_news() {
            self.link.flush()?;
        }
        Ok(())
    }

    /// Takes note of what arrived.
    pub fn read(&mut self) -> Result<(), Error> {
        for message in self.arrived.drain(..) {
            let blank = Blank::read(&message.head)?;
            self.received += 1;
            self.arrivals += u64::from(blank.bytes > HEADER_BYTES as u32);
            self.peer_received = blank.received;
            self.peer_posted = blank.posted;
        }
        self.posted += u64::from(self.link.granted());
        Ok(())
    }

    /// Goes on until the next message that counts is there.
    pub fn await_message(&mut self) -> Result<(), Error> {
        self.await_messages(1)
    }

    /// Goes on until so many more have come.
    pub fn await_messages(&mut self, messages: u32) -> Result<(), Error> {
        self.counted += u64::from(messages);
        while self.arrivals < self.counted {
            self.turn()?;
            self.read()?;
            self.tell_credits()?;
        }
        Ok(())
    }

    /// Waits, unless something may be there, then takes it from the link.
    pub fn turn(&mut self) -> Result<(), Error> {
        self.turn_within(SILENCE_MAX)
    }

    /// As [`Self::turn`], but waits for `time` at most; a longer silence than allowed is an error.
    pub fn turn_within(&mut self, time: Duration) -> Result<(), Error> {
        let before = self.arrived.len();
        if self.may_have_more(time)? {
            self.readable = self.link.receive(&mut self.arrived)? == Received::More;
        }
        if self.arrived.len() > before {
            self.heard = Instant::now();
            self.looks = 0;
            return Ok(());
        }
        self.looks = self.looks.wrapping_add(1);
        let looks_at_clock = self.poll == Poll::Off || self.looks.is_multiple_of(LOOKS);
        if looks_at_clock && self.heard.elapsed() > SILENCE_MAX {
            return Err(Error::Silent);
        }
        Ok(())
    }

    /// Waits as a worker does: polls what can be polled, and asks or sleeps for the descriptor.
    fn may_have_more(&mut self, time: Duration) -> Result<bool, Error> {
        if self.readable {
            return Ok(true);
        }
        match self.poll {
            Poll::Off => {
                if self.link.rest() {
                    self.sleep(time.min(SILENCE_MAX))?;
                }
                Ok(true)
            }
            Poll::Always => Ok(self.link.poll() | self.sleep(Duration::ZERO)?),
        }
    }

    /// Whether the descriptor told of anything.
    fn sleep(&mut self, time: Duration) -> Result<bool, Error> {
        let mut found: Vec<epoll::Event> = Vec::with_capacity(2);
        let time = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        match epoll::wait(&self.events, rustix::buffer::spare_capacity(&mut found), Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        // A connection that takes bytes again.
        let told = !found.is_empty();
        for event in found {
            let flags = event.flags;
            if event.data.u64() == ALARM {
                self.link.alarmed();
                continue;
            }
            if flags.contains(epoll::EventFlags::IN) {
                self.link.noticed();
            }
            if flags.contains(epoll::EventFlags::OUT) {
                self.link.flush()?;
            }
        }
        Ok(told)
    }
}

fn negotiate(
    fabrics: &mut Fabrics,
    established: Established,
    patience: Duration,
) -> Result<Ready, Error> {
    let deadline = Instant::now() + patience;
    let mut negotiation = fabrics.negotiate(established, None)?;
    loop {
        if let Some(ready) = negotiation.step()? {
            return Ok(ready);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Broken::Negotiation("the other end did not answer in time").into());
        }
        let descriptor = negotiation.descriptor()?;
        let mut waited = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut waited, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}
