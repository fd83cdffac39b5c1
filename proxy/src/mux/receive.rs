//! What comes from the peer: checks it and applies it.
//!
//! A message that is wrong in its header only costs the link: the peer sends it again on the next
//! one. A message that is wrong within was applied in part, so the lane is lost with it.
//!
//! What it does not do: trust. Every number here may have been chosen by an adversary.

use super::lane::{Control, Lane, LinkState, NEVER, make_ready};
use super::streams::{Phase, Stream};
use super::types::{
    Event, LostReason, Open, Payload, ProtocolError, RefuseReason, ResetReason, StreamId,
};
use super::wire::{Frame, HEADER_BYTES, Header, Hello};
use std::time::Instant;

/// How long an acknowledgement waits for a message to ride on.
const ACK_DELAY_US: u64 = 5_000;

/// The bytes of a message, eaten from the front.
struct Cursor<P, I> {
    head: P,
    /// Of `head`, how much is decoded.
    at: usize,
    tail: Option<P>,
    tails: I,
}

impl<P: Payload, I: Iterator<Item = P>> Cursor<P, I> {
    fn frame(&mut self) -> Result<Frame, ProtocolError> {
        let rest = self.head.as_ref().get(self.at..).ok_or(ProtocolError::Truncated)?;
        let (frame, bytes) = Frame::decode(rest)?;
        self.at += bytes;
        Ok(frame)
    }

    fn inline(&mut self, bytes: usize) -> Result<P, ProtocolError> {
        if self.head.len() - self.at < bytes {
            return Err(ProtocolError::Truncated);
        }
        let _decoded = self.head.split_to(self.at);
        self.at = 0;
        Ok(self.head.split_to(bytes))
    }

    /// Up to `bytes` from the tails; at least one.
    fn tail(&mut self, bytes: usize) -> Result<P, ProtocolError> {
        loop {
            let mut tail = match self.tail.take() {
                Some(tail) => tail,
                None => self.tails.next().ok_or(ProtocolError::Truncated)?,
            };
            if tail.is_empty() {
                continue;
            }
            if tail.len() <= bytes {
                return Ok(tail);
            }
            let piece = tail.split_to(bytes);
            self.tail = Some(tail);
            return Ok(piece);
        }
    }

    fn finish(mut self) -> Result<(), ProtocolError> {
        let done = self.at == self.head.len()
            && self.tail.is_none()
            && self.tails.all(|tail| tail.is_empty());
        if done { Ok(()) } else { Err(ProtocolError::Excess) }
    }
}

impl<P: Payload> Lane<P> {
    /// A message in one piece, as a network link brings it.
    ///
    /// # Errors
    /// When the peer broke the protocol: the link is to be killed.
    pub fn on_message(&mut self, message: P, now: Instant) -> Result<(), ProtocolError> {
        self.tick(now);
        if !self.link.alive() {
            return Ok(());
        }
        let mut tail = message;
        let result = Header::decode(tail.as_ref()).and_then(|header| {
            if header.length as usize != tail.len() {
                return Err(ProtocolError::Truncated);
            }
            let head = tail.split_to(header.head_bytes as usize);
            self.receive(&header, head, std::iter::once(tail))
        });
        self.settle_receive(result)
    }

    /// A message in pieces, as a link within the node brings it.
    ///
    /// # Errors
    /// When the peer broke the protocol: the link is to be killed.
    pub fn on_parts(
        &mut self,
        head: P,
        tails: impl Iterator<Item = P>,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        self.tick(now);
        if !self.link.alive() {
            return Ok(());
        }
        let result = Header::decode(head.as_ref()).and_then(|header| {
            if header.head_bytes as usize != head.len() {
                return Err(ProtocolError::Truncated);
            }
            self.receive(&header, head, tails)
        });
        self.settle_receive(result)
    }

    fn settle_receive(&mut self, result: Result<(), ProtocolError>) -> Result<(), ProtocolError> {
        if result.is_err() {
            self.link.state = LinkState::Failed;
            if std::mem::take(&mut self.applying) {
                self.give_up(LostReason::Protocol);
            }
        }
        result
    }

    fn receive(
        &mut self,
        header: &Header,
        head: P,
        tails: impl Iterator<Item = P>,
    ) -> Result<(), ProtocolError> {
        if header.length > self.config.message_bytes_max {
            return Err(ProtocolError::MessageTooLong(u64::from(header.length)));
        }
        self.link.received += 1;
        if self.link.received > self.link.posted {
            return Err(ProtocolError::Credit);
        }
        self.messages_received_total += 1;
        self.link.heard_us = self.now_us;
        let mut cursor = Cursor { head, at: HEADER_BYTES, tail: None, tails };
        if self.link.state == LinkState::Handshake {
            return self.receive_hello(header, cursor);
        }
        if let Some(sent_at_us) = self.unacked.acknowledge(header.ack)? {
            self.note_rtt(self.now_us - sent_at_us);
        }
        self.link.peer_credit = self.link.peer_credit.max(header.credit);
        if header.unsequenced() {
            for _ in 0..header.frames {
                self.apply_service(cursor.frame()?)?;
            }
            return cursor.finish();
        }
        if header.seq <= self.received_seq {
            return Ok(());
        }
        if header.seq != self.received_seq + 1 {
            let (expected, got) = (self.received_seq + 1, header.seq);
            return Err(ProtocolError::Gap { expected, got });
        }
        self.applying = true;
        for _ in 0..header.frames {
            let frame = cursor.frame()?;
            self.apply(frame, &mut cursor)?;
        }
        cursor.finish()?;
        self.applying = false;
        self.received_seq += 1;
        if self.ack_at_us == NEVER {
            self.ack_at_us = self.now_us + ACK_DELAY_US;
        }
        Ok(())
    }

    fn receive_hello(
        &mut self,
        header: &Header,
        mut cursor: Cursor<P, impl Iterator<Item = P>>,
    ) -> Result<(), ProtocolError> {
        if !header.unsequenced() || header.frames != 1 {
            return Err(ProtocolError::Hello);
        }
        let Frame::Hello(hello) = cursor.frame()? else { return Err(ProtocolError::Hello) };
        cursor.finish()?;
        // From here on an error says that the two states do not fit: another link will not help.
        self.applying = true;
        self.attach(&hello)?;
        self.applying = false;
        self.link.peer_credit = header.credit;
        Ok(())
    }

    /// Goes on where the lane was, if both ends still know each other; else begins anew.
    fn attach(&mut self, hello: &Hello) -> Result<(), ProtocolError> {
        if self.peer_nonce.is_some_and(|known| known != hello.nonce) {
            self.lose(LostReason::PeerForgot);
        }
        // A peer that does not know us has received nothing from this life of ours: it sends
        // HELLO before it can have.
        let knows_us = hello.peer_nonce == self.nonce;
        let mut resumed = self.peer_nonce.is_some();
        if resumed && !knows_us && (self.unacked.any_acked() || self.received_seq > 0) {
            // Yet we heard from it: it gave up and kept its name.
            self.lose(LostReason::PeerForgot);
            resumed = false;
        }
        let message_bytes_max = self.config.message_bytes_max.min(hello.message_bytes_max);
        if resumed
            && (hello.window_initial_bytes != self.peer_window_initial
                || message_bytes_max != self.message_bytes_max)
        {
            return Err(ProtocolError::Resume);
        }
        self.unacked.rewind(if knows_us { hello.received } else { 0 })?;
        self.peer_nonce = Some(hello.nonce);
        self.message_bytes_max = message_bytes_max;
        self.peer_unacked_max = hello.unacked_messages_max;
        if !resumed {
            self.peer_window_initial = hello.window_initial_bytes;
            let send_limit = u64::from(hello.window_initial_bytes);
            for (id, stream) in &mut self.streams {
                stream.send_limit = send_limit;
                make_ready(&mut self.ready, *id, stream);
            }
        }
        self.attached();
        self.events.push_back(Event::Attached { resumed });
        Ok(())
    }

    fn apply_service(&mut self, frame: Frame) -> Result<(), ProtocolError> {
        match frame {
            Frame::Ping { token } => self.link.pong = Some(token),
            Frame::Pong { token } => {
                if self.link.ping_token == Some(token) {
                    self.link.ping_token = None;
                    self.note_rtt(self.now_us.saturating_sub(token));
                }
            }
            Frame::Hello(_) => return Err(ProtocolError::Hello),
            other => return Err(ProtocolError::Frame(other.kind())),
        }
        Ok(())
    }

    fn apply(
        &mut self,
        frame: Frame,
        cursor: &mut Cursor<P, impl Iterator<Item = P>>,
    ) -> Result<(), ProtocolError> {
        match frame {
            Frame::Data { id, bytes, in_tail } => self.apply_data(id, bytes, in_tail, cursor),
            Frame::Window { id, limit } => self.apply_window(id, limit),
            Frame::Open { id, open } => self.apply_open(id, open),
            Frame::Opened { id } => self.apply_opened(id),
            Frame::Refused { id, reason } => self.apply_refused(id, reason),
            Frame::Fin { id } => self.apply_fin(id),
            Frame::Reset { id, reason } => self.apply_reset(id, reason),
            Frame::Goaway => {
                self.peer_draining = true;
                self.events.push_back(Event::Goaway);
                Ok(())
            }
            Frame::Hello(_) => Err(ProtocolError::Hello),
            Frame::Ping { .. } | Frame::Pong { .. } => Err(ProtocolError::Frame(frame.kind())),
        }
    }

    /// The stream, or `None` if it is over on our side and the peer cannot know that yet.
    fn stream(&mut self, id: StreamId) -> Result<Option<&mut Stream<P>>, ProtocolError> {
        if self.streams.contains_key(&id) {
            let stream = self.streams.get_mut(&id).map(|stream| &mut **stream);
            return Ok(stream.filter(|stream| !matches!(stream.phase, Phase::Resetting(_))));
        }
        let existed = if id.opener() == self.side {
            id.0 < self.next_id
        } else {
            id.0 <= self.peer_id_highest
        };
        if existed { Ok(None) } else { Err(ProtocolError::UnknownStream(id.0)) }
    }

    fn apply_data(
        &mut self,
        id: StreamId,
        bytes: u32,
        in_tail: bool,
        cursor: &mut Cursor<P, impl Iterator<Item = P>>,
    ) -> Result<(), ProtocolError> {
        let known = if let Some(stream) = self.stream(id)? {
            if stream.fin_received || stream.phase == Phase::Opening {
                return Err(ProtocolError::StreamState(id.0));
            }
            if stream.receive_limit - stream.received < u64::from(bytes) {
                return Err(ProtocolError::Window(id.0));
            }
            stream.received += u64::from(bytes);
            true
        } else {
            false
        };
        let mut left = bytes as usize;
        while left > 0 {
            let payload = if in_tail { cursor.tail(left)? } else { cursor.inline(left)? };
            left -= payload.len();
            if known {
                self.events.push_back(Event::Data { id, payload });
            }
        }
        Ok(())
    }

    fn apply_window(&mut self, id: StreamId, limit: u64) -> Result<(), ProtocolError> {
        let Some(stream) = self.stream(id)? else { return Ok(()) };
        if limit < stream.send_limit {
            return Err(ProtocolError::Field);
        }
        stream.send_limit = limit;
        if let Some(stream) = self.streams.get_mut(&id) {
            make_ready(&mut self.ready, id, stream);
        }
        Ok(())
    }

    fn apply_open(&mut self, id: StreamId, open: Open) -> Result<(), ProtocolError> {
        if id.opener() == self.side || id.0 <= self.peer_id_highest {
            return Err(ProtocolError::BadOpen(id.0));
        }
        self.peer_id_highest = id.0;
        if self.control.len() >= self.control_max() {
            return Err(ProtocolError::Flood);
        }
        let send_limit = u64::from(self.peer_window_initial);
        let refusal = if self.draining {
            RefuseReason::Draining
        } else if self.streams.len() < self.config.streams_max as usize
            && self.add_stream(id, Phase::Incoming, send_limit)
        {
            self.events.push_back(Event::Incoming { id, open });
            return Ok(());
        } else {
            RefuseReason::Limits
        };
        self.control.push_back(Control::Refused { id, reason: refusal });
        Ok(())
    }

    fn apply_opened(&mut self, id: StreamId) -> Result<(), ProtocolError> {
        let Some(stream) = self.stream(id)? else { return Ok(()) };
        if stream.phase != Phase::Opening {
            return Err(ProtocolError::StreamState(id.0));
        }
        stream.phase = Phase::Open;
        self.trim_open_deadlines();
        self.events.push_back(Event::Opened { id });
        Ok(())
    }

    fn apply_refused(&mut self, id: StreamId, reason: u8) -> Result<(), ProtocolError> {
        match self.stream(id)?.map(|stream| stream.phase) {
            Some(Phase::Opening) => {
                let reason = RefuseReason::from_code(reason);
                self.events.push_back(Event::Refused { id, reason });
            }
            Some(_) => return Err(ProtocolError::StreamState(id.0)),
            None => {}
        }
        self.remove_stream(id);
        Ok(())
    }

    fn apply_fin(&mut self, id: StreamId) -> Result<(), ProtocolError> {
        let Some(stream) = self.stream(id)? else { return Ok(()) };
        if stream.fin_received || stream.phase == Phase::Opening {
            return Err(ProtocolError::StreamState(id.0));
        }
        stream.fin_received = true;
        self.events.push_back(Event::Fin { id });
        self.settle(id);
        self.close_if_done(id);
        Ok(())
    }

    fn apply_reset(&mut self, id: StreamId, reason: u8) -> Result<(), ProtocolError> {
        if self.stream(id)?.is_some() {
            let reason = ResetReason::from_code(reason);
            self.events.push_back(Event::Reset { id, reason });
        }
        self.remove_stream(id);
        Ok(())
    }
}
