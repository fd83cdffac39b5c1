//! What goes to the peer: which message is due, and what is in it.
//!
//! Control frames go first, then the streams take turns (deficit round-robin). HELLO, PING, PONG
//! and mere acknowledgements travel unsequenced.
//!
//! Credits: a sequenced message leaves one credit in reserve, and the last one is spent only on a
//! message that itself tells of new credits. So of two ends at least one always has credits left
//! or under way to it, and they never wait for each other for ever.

use super::config::LaneConfig;
use super::lane::{Control, Lane, LinkState, NEVER, make_ready};
use super::streams::{Phase, Stream};
use super::types::{Event, Payload, StreamId};
use super::unacked::Sent;
use super::wire::{
    DATA_BYTES, FLAG_UNSEQUENCED, FRAME_BYTES_MAX, Frame, HEADER_BYTES, Header, Hello,
};
use smallvec::SmallVec;

/// Most tails of one message: what a scatter/gather list takes.
pub const TAILS_MAX: usize = 16;
/// Bounds the work for one message.
const FRAMES_MAX: u16 = 4096;
/// A piece is not cut for less room than this at the end of a message.
const CUT_BYTES_MIN: usize = 1024;

/// A message for the link: the head, then the tails, without gaps.
#[derive(Debug, Clone)]
pub struct Transmit<P> {
    pub head: P,
    pub tails: SmallVec<[P; 4]>,
    /// Head and tails.
    pub bytes: usize,
}

/// A message in the making. It survives a slab that has no room for its head just now.
pub(super) struct Builder<P> {
    head: Vec<u8>,
    tails: SmallVec<[P; 4]>,
    tails_bytes: usize,
    frames: u16,
    bytes_max: usize,
    /// Memory for the unsequenced messages, which pass by the one in the making.
    service: Vec<u8>,
}

enum Put {
    Taken(usize),
    /// The message has no room for more.
    Full,
}

enum Turn {
    /// Nothing more to send now.
    Idle,
    /// RESET is out: the stream is gone.
    Gone,
    /// The quantum is used up, the next stream is due.
    Over,
    Full,
}

impl<P: Payload> Builder<P> {
    pub fn new() -> Self {
        Self {
            head: Vec::new(),
            tails: SmallVec::new(),
            tails_bytes: 0,
            frames: 0,
            bytes_max: 0,
            service: Vec::new(),
        }
    }

    fn start(&mut self, bytes_max: usize) {
        debug_assert!(self.frames == 0);
        self.head.clear();
        self.head.resize(HEADER_BYTES, 0);
        self.tails_bytes = 0;
        self.bytes_max = bytes_max;
    }

    fn bytes(&self) -> usize {
        self.head.len() + self.tails_bytes
    }

    fn room(&self) -> usize {
        if self.frames >= FRAMES_MAX { 0 } else { self.bytes_max.saturating_sub(self.bytes()) }
    }

    fn put(&mut self, frame: &Frame) {
        frame.encode(&mut self.head);
        self.frames += 1;
    }

    /// DATA of up to `n` bytes from the front of the stream's queue.
    fn put_data(&mut self, id: StreamId, stream: &mut Stream<P>, n: usize, inline: usize) -> Put {
        let Some(room) = self.room().checked_sub(DATA_BYTES + 1) else { return Put::Full };
        let bytes = n.min(room + 1);
        let whole = stream.front().is_some_and(P::whole);
        if bytes < n && (bytes < CUT_BYTES_MIN || whole) && self.frames > 0 {
            return Put::Full;
        }
        let in_tail = bytes > inline;
        if in_tail && self.tails.len() >= TAILS_MAX {
            return Put::Full;
        }
        let Some(piece) = stream.take_front(bytes) else { return Put::Taken(0) };
        let bytes = piece.len();
        self.put(&Frame::Data { id, bytes: bytes as u32, in_tail });
        if in_tail {
            self.tails_bytes += bytes;
            self.tails.push(piece);
        } else {
            self.head.extend_from_slice(piece.as_ref());
        }
        Put::Taken(bytes)
    }

    /// Lets a stream send until its turn is over. `alone`: nobody waits.
    fn serve(
        &mut self,
        id: StreamId,
        stream: &mut Stream<P>,
        alone: bool,
        config: &LaneConfig,
    ) -> Turn {
        if alone {
            stream.debt = 0;
        }
        if stream.deficit == 0 {
            let paid = stream.debt.min(config.quantum_bytes);
            stream.debt -= paid;
            stream.deficit = config.quantum_bytes - paid;
        }
        loop {
            let Some((piece, whole)) = stream.front().map(|piece| (piece.len(), piece.whole()))
            else {
                return self.end(id, stream);
            };
            let window = usize::try_from(stream.send_window()).unwrap_or(usize::MAX);
            if window == 0 {
                return Turn::Idle;
            }
            if stream.deficit == 0 && !alone {
                return Turn::Over;
            }
            // What had better not be cut is sent now and paid for by the turns to come.
            let turn = if alone || whole { usize::MAX } else { stream.deficit as usize };
            let n = piece.min(window).min(turn);
            match self.put_data(id, stream, n, config.inline_bytes_max as usize) {
                Put::Taken(bytes) => {
                    if !alone {
                        stream.debt += (bytes as u32).saturating_sub(stream.deficit);
                    }
                    stream.deficit = stream.deficit.saturating_sub(bytes as u32);
                }
                Put::Full => return Turn::Full,
            }
        }
    }

    /// What follows the last byte.
    fn end(&mut self, id: StreamId, stream: &mut Stream<P>) -> Turn {
        if !stream.wants_turn() {
            return Turn::Idle;
        }
        if self.room() < FRAME_BYTES_MAX {
            return Turn::Full;
        }
        if let Phase::Resetting(reason) = stream.phase {
            self.put(&Frame::Reset { id, reason: reason.code() });
            return Turn::Gone;
        }
        self.put(&Frame::Fin { id });
        stream.fin_sent = true;
        Turn::Idle
    }
}

impl<P: Payload> Lane<P> {
    /// The next message to put on the link; `None` when there is nothing to send now, no credit,
    /// no link, or `alloc`, which copies a head into memory of the link, gave nothing (then call
    /// again when it might).
    pub fn poll_transmit(
        &mut self,
        now: std::time::Instant,
        alloc: &mut dyn FnMut(&[u8]) -> Option<P>,
    ) -> Option<Transmit<P>> {
        self.tick(now);
        if !self.link.alive() {
            return None;
        }
        if !self.link.hello_sent {
            return self.transmit_hello(alloc);
        }
        if self.link.state != LinkState::Up {
            return None;
        }
        let credits = self.link.credits();
        let urgent = self.link.ping_due || self.link.pong.is_some();
        if credits >= 2 && !urgent {
            if self.unacked.resending() {
                return self.transmit_again(alloc);
            }
            if self.unacked.len() < self.config.unacked_messages_max as usize && self.build() {
                return self.transmit_built(alloc);
            }
        }
        let telling = self.credits_to_tell();
        if (urgent || self.acknowledgement_due() || telling)
            && (credits >= 2 || (credits == 1 && telling))
        {
            return self.transmit_service(alloc);
        }
        None
    }

    /// Enough new credits to be worth a message. At least two, so that messages that only tell of
    /// credits do not provoke each other for ever.
    fn credits_to_tell(&self) -> bool {
        let threshold = u64::from(self.link.credits_first / 4).max(2);
        self.link.posted - self.link.told >= threshold
    }

    fn acknowledgement_due(&self) -> bool {
        let threshold = u64::from(self.peer_unacked_max.min(self.link.credits_first) / 4).max(1);
        self.ack_due || self.received_seq - self.acknowledged_seq >= threshold
    }

    fn transmit_hello(&mut self, alloc: &mut dyn FnMut(&[u8]) -> Option<P>) -> Option<Transmit<P>> {
        let hello = Hello {
            nonce: self.nonce,
            peer_nonce: self.peer_nonce.unwrap_or(0),
            received: self.received_seq,
            features: 0,
            message_bytes_max: self.config.message_bytes_max,
            window_initial_bytes: self.config.window_initial_bytes,
            unacked_messages_max: self.config.unacked_messages_max,
        };
        let transmit = self.transmit_unsequenced(&[Frame::Hello(hello)], alloc)?;
        self.link.hello_sent = true;
        Some(transmit)
    }

    fn transmit_service(
        &mut self,
        alloc: &mut dyn FnMut(&[u8]) -> Option<P>,
    ) -> Option<Transmit<P>> {
        let mut frames = SmallVec::<[Frame; 2]>::new();
        let ping = self.link.ping_due.then_some(self.now_us);
        frames.extend(ping.map(|token| Frame::Ping { token }));
        frames.extend(self.link.pong.map(|token| Frame::Pong { token }));
        let transmit = self.transmit_unsequenced(&frames, alloc)?;
        if ping.is_some() {
            self.link.ping_due = false;
            self.link.ping_token = ping;
        }
        self.link.pong = None;
        Some(transmit)
    }

    fn transmit_unsequenced(
        &mut self,
        frames: &[Frame],
        alloc: &mut dyn FnMut(&[u8]) -> Option<P>,
    ) -> Option<Transmit<P>> {
        let mut head = std::mem::take(&mut self.builder.service);
        head.clear();
        head.resize(HEADER_BYTES, 0);
        for frame in frames {
            frame.encode(&mut head);
        }
        let bytes = head.len();
        let header = self.header(0, frames.len() as u16, bytes, bytes);
        head[..HEADER_BYTES].copy_from_slice(&header.encode());
        let payload = alloc(&head);
        self.builder.service = head;
        let head = payload?;
        self.note_transmitted();
        Some(Transmit { head, tails: SmallVec::new(), bytes })
    }

    /// A message that went out on a link before: the same frames under a fresh header.
    fn transmit_again(&mut self, alloc: &mut dyn FnMut(&[u8]) -> Option<P>) -> Option<Transmit<P>> {
        let (ack, credit, now_us) = (self.received_seq, self.link.posted, self.now_us);
        let (_, sent) = self.unacked.peek_resend()?;
        let mut header = Header::decode(sent.head.as_ref()).ok()?;
        (header.ack, header.credit) = (ack, credit);
        let mut copy = sent.head.as_ref().to_vec();
        copy[..HEADER_BYTES].copy_from_slice(&header.encode());
        let head = alloc(&copy)?;
        sent.head = head.clone();
        sent.at_us = now_us;
        let transmit = Transmit { head, tails: sent.tails.clone(), bytes: sent.bytes };
        self.unacked.resent_one();
        self.messages_resent_total += 1;
        self.note_transmitted();
        Some(transmit)
    }

    fn transmit_built(&mut self, alloc: &mut dyn FnMut(&[u8]) -> Option<P>) -> Option<Transmit<P>> {
        let bytes = self.builder.bytes();
        let head_bytes = self.builder.head.len();
        let header =
            self.header(self.unacked.next_seq(), self.builder.frames, head_bytes, bytes).encode();
        self.builder.head[..HEADER_BYTES].copy_from_slice(&header);
        let head = alloc(&self.builder.head)?;
        let tails = std::mem::take(&mut self.builder.tails);
        self.builder.frames = 0;
        self.unacked.push(Sent {
            head: head.clone(),
            tails: tails.clone(),
            bytes,
            at_us: self.now_us,
        });
        self.note_transmitted();
        Some(Transmit { head, tails, bytes })
    }

    fn header(&self, seq: u64, frames: u16, head_bytes: usize, bytes: usize) -> Header {
        Header {
            flags: if seq == 0 { FLAG_UNSEQUENCED } else { 0 },
            frames,
            head_bytes: head_bytes as u32,
            length: bytes as u32,
            seq,
            ack: self.received_seq,
            credit: self.link.posted,
        }
    }

    /// Every message tells what was received and posted.
    fn note_transmitted(&mut self) {
        self.link.sent += 1;
        self.link.told = self.link.posted;
        self.acknowledged_seq = self.received_seq;
        self.ack_at_us = NEVER;
        self.ack_due = false;
        self.messages_sent_total += 1;
    }

    /// Fills the builder, if it is not waiting with a message already. False if there is nothing.
    fn build(&mut self) -> bool {
        if self.builder.frames > 0 {
            return true;
        }
        if self.control.is_empty() && self.ready.is_empty() && !self.fins_due() {
            return false;
        }
        self.let_fins_go();
        self.builder.start(self.message_bytes_max as usize);
        // Data never overtakes the OPEN of its stream.
        if self.build_control() {
            self.build_data();
        }
        self.builder.frames > 0
    }

    /// False if some had to stay behind.
    fn build_control(&mut self) -> bool {
        while self.builder.room() >= FRAME_BYTES_MAX {
            let Some(control) = self.control.pop_front() else { return true };
            let frame = match control {
                Control::Open { id, open } => {
                    let Some(stream) = self.streams.get_mut(&id) else { continue };
                    stream.open_sent = true;
                    Frame::Open { id, open }
                }
                Control::Window { id } => {
                    let Some(stream) = self.streams.get_mut(&id) else { continue };
                    stream.window_queued = false;
                    Frame::Window { id, limit: stream.receive_limit }
                }
                Control::Opened { id } => Frame::Opened { id },
                Control::Refused { id, reason } => Frame::Refused { id, reason: reason.code() },
                Control::Reset { id, reason } => Frame::Reset { id, reason: reason.code() },
                Control::Goaway => Frame::Goaway,
            };
            self.builder.put(&frame);
        }
        self.control.is_empty()
    }

    fn build_data(&mut self) {
        while let Some(id) = self.ready.front().copied() {
            let alone = self.ready.len() == 1;
            let Some(stream) = self.streams.get_mut(&id) else {
                self.ready.pop_front();
                continue;
            };
            let turn = self.builder.serve(id, stream, alone, &self.config);
            if stream.writable_wanted && stream.writable_again(self.config.send_queue_bytes_max) {
                stream.writable_wanted = false;
                self.events.push_back(Event::Writable { id });
            }
            if matches!(turn, Turn::Full) {
                return;
            }
            self.ready.pop_front();
            stream.in_ready = false;
            match turn {
                Turn::Over => make_ready(&mut self.ready, id, stream),
                Turn::Gone => self.remove_stream(id),
                Turn::Idle | Turn::Full => {
                    stream.deficit = 0;
                    self.close_if_done(id);
                }
            }
        }
    }
}
