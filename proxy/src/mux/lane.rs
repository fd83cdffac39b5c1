//! One endpoint of a lane: its state, what the caller does to links and streams, and time.
//!
//! What it does not do: see `receive` for what comes from the peer, `transmit` for what goes to
//! it, `windows` for how much may come.

use super::budget::Budget;
use super::config::LaneConfig;
use super::fins::LateFins;
use super::streams::{IdHash, Loss, Phase, Stream, Streams};
use super::transmit::Builder;
use super::types::{
    Event, LaneStats, LinkDeadReason, LostReason, Open, OpenError, Payload, RefuseReason,
    ResetReason, SendError, Side, StreamId,
};
use super::unacked::Unacked;
use super::wire::{DATA_BYTES, HEADER_BYTES, MESSAGE_BYTES_MIN, STREAM_ID_MAX};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// With fewer there would be no credit in reserve to tell of new credits.
const CREDITS_MIN: u32 = 4;
/// Sizes beyond make no sense and would overflow a field of the wire.
const BYTES_MAX: u32 = 1 << 30;
/// A shorter interval would only keep the lane busy with itself.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// Never the time of anything.
pub(super) const NEVER: u64 = u64::MAX;

/// A frame that waits; what it says is looked up when it is sent, if it can change.
pub(super) enum Control {
    Open { id: StreamId, open: Open },
    Opened { id: StreamId },
    Refused { id: StreamId, reason: RefuseReason },
    Window { id: StreamId },
    Reset { id: StreamId, reason: ResetReason },
    Goaway,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    Down,
    /// The peer's HELLO is awaited.
    Handshake,
    Up,
    /// Of no use any more; `link_down` is awaited.
    Failed,
}

/// What is counted anew on each link.
pub(super) struct Link {
    pub state: LinkState,
    pub hello_sent: bool,
    /// Posted when the link came up.
    pub credits_first: u32,
    /// Receive buffers posted, and what the peer was told of them.
    pub posted: u64,
    pub told: u64,
    pub received: u64,
    pub sent: u64,
    pub peer_credit: u64,
    pub heard_us: u64,
    pub ping_at_us: u64,
    pub ping_due: bool,
    pub ping_token: Option<u64>,
    pub pong: Option<u64>,
}

impl Link {
    fn new(state: LinkState, credits: u32, now_us: u64, ping_at_us: u64) -> Self {
        Self {
            state,
            hello_sent: false,
            credits_first: credits,
            posted: u64::from(credits),
            told: 0,
            received: 0,
            sent: 0,
            peer_credit: 0,
            heard_us: now_us,
            ping_at_us,
            ping_due: false,
            ping_token: None,
            pong: None,
        }
    }

    pub fn alive(&self) -> bool {
        matches!(self.state, LinkState::Handshake | LinkState::Up)
    }

    pub fn credits(&self) -> u64 {
        self.peer_credit.saturating_sub(self.sent)
    }
}

/// One endpoint of a lane.
pub struct Lane<P> {
    pub(super) config: LaneConfig,
    pub(super) side: Side,
    pub(super) budget: Rc<Budget>,
    /// Names this life of our state, as `peer_nonce` names the peer's that we go on with.
    pub(super) nonce: u64,
    pub(super) peer_nonce: Option<u64>,
    base: Option<Instant>,
    pub(super) now_us: u64,
    pub(super) link: Link,
    pub(super) streams: Streams<P>,
    pub(super) next_id: u64,
    pub(super) peer_id_highest: u64,
    pub(super) control: VecDeque<Control>,
    /// Streams that have something to send, in the order of their turns. May hold ids that are
    /// gone.
    pub(super) ready: VecDeque<StreamId>,
    pub(super) events: VecDeque<Event<P>>,
    pub(super) unacked: Unacked<P>,
    pub(super) builder: Builder<P>,
    /// Last sequence number received in order, and what the peer was told of it.
    pub(super) received_seq: u64,
    pub(super) acknowledged_seq: u64,
    pub(super) ack_at_us: u64,
    pub(super) ack_due: bool,
    /// A sequenced message is half applied: it must not be applied again.
    pub(super) applying: bool,
    pub(super) message_bytes_max: u32,
    pub(super) peer_window_initial: u32,
    pub(super) peer_unacked_max: u32,
    open_deadlines: VecDeque<(u64, StreamId)>,
    pub(super) late_fins: LateFins,
    resume_at_us: u64,
    pub(super) draining: bool,
    pub(super) peer_draining: bool,
    pub(super) srtt_us: Option<u64>,
    pub(super) granted: u64,
    pub(super) messages_sent_total: u64,
    pub(super) messages_received_total: u64,
    pub(super) messages_resent_total: u64,
    pub(super) attached_total: u64,
}

impl<P: Payload> Lane<P> {
    /// `nonce`: a random number; the peer knows by it whether this is still the lane it knew.
    #[must_use]
    pub fn new(mut config: LaneConfig, side: Side, budget: Rc<Budget>, nonce: u64) -> Self {
        config.credits = config.credits.max(CREDITS_MIN);
        config.unacked_messages_max = config.unacked_messages_max.max(1);
        config.message_bytes_max = config.message_bytes_max.clamp(MESSAGE_BYTES_MIN, BYTES_MAX);
        config.window_initial_bytes = config.window_initial_bytes.clamp(1, BYTES_MAX);
        config.window_max_bytes =
            config.window_max_bytes.clamp(config.window_initial_bytes, BYTES_MAX);
        config.send_queue_bytes_max = config.send_queue_bytes_max.clamp(1, BYTES_MAX);
        config.quantum_bytes = config.quantum_bytes.clamp(1, BYTES_MAX);
        config.keepalive_interval = config.keepalive_interval.max(INTERVAL_MIN);
        let nonce = nonce.max(1);
        Self {
            side,
            budget,
            nonce,
            peer_nonce: None,
            base: None,
            now_us: 0,
            link: Link::new(LinkState::Down, 0, 0, NEVER),
            streams: Streams::with_hasher(IdHash { seed: nonce }),
            next_id: match side {
                Side::Dialer => 1,
                Side::Acceptor => 2,
            },
            peer_id_highest: 0,
            control: VecDeque::new(),
            ready: VecDeque::new(),
            events: VecDeque::new(),
            unacked: Unacked::new(),
            builder: Builder::new(),
            received_seq: 0,
            acknowledged_seq: 0,
            ack_at_us: NEVER,
            ack_due: false,
            applying: false,
            message_bytes_max: config.message_bytes_max,
            peer_window_initial: 0,
            peer_unacked_max: 0,
            open_deadlines: VecDeque::new(),
            late_fins: LateFins::new(),
            resume_at_us: NEVER,
            draining: false,
            peer_draining: false,
            srtt_us: None,
            granted: 0,
            messages_sent_total: 0,
            messages_received_total: 0,
            messages_resent_total: 0,
            attached_total: 0,
            config,
        }
    }

    // --- link

    /// A fresh link, with `LaneConfig::credits` receive buffers posted.
    pub fn link_up(&mut self, now: Instant) {
        self.link_up_with(self.config.credits, now);
    }

    /// A fresh link with this many receive buffers posted, at least four.
    pub fn link_up_with(&mut self, credits: u32, now: Instant) {
        self.tick(now);
        if self.link.state != LinkState::Down {
            self.link_down(now);
        }
        let ping_at_us = self.now_us + micros(self.config.keepalive_interval);
        self.link = Link::new(LinkState::Handshake, credits, self.now_us, ping_at_us);
    }

    /// The link died. The lane waits for another.
    pub fn link_down(&mut self, now: Instant) {
        self.tick(now);
        self.link = Link::new(LinkState::Down, 0, self.now_us, NEVER);
        self.ack_at_us = NEVER;
        self.ack_due = false;
        if self.peer_nonce.is_some() && self.resume_at_us == NEVER {
            self.resume_at_us = self.now_us + micros(self.config.resume_timeout);
        }
    }

    /// So many more receive buffers were posted on this link.
    pub fn grant(&mut self, n: u32) {
        if self.link.state != LinkState::Down {
            self.link.posted += u64::from(n);
        }
    }

    /// The peer's process is known to be gone: gives the streams up at once.
    pub fn abandon(&mut self, now: Instant) {
        self.tick(now);
        self.give_up(LostReason::Abandoned);
    }

    // --- streams

    /// Opens a stream. Data may be sent at once.
    ///
    /// # Errors
    /// For reasons of the mesh alone; the connection can pass through.
    pub fn open(&mut self, open: Open, now: Instant) -> Result<StreamId, OpenError> {
        self.tick(now);
        if self.draining || self.peer_draining {
            return Err(OpenError::Draining);
        }
        if self.control.len() >= self.control_max() {
            self.drop_cancelled_opens();
        }
        if self.streams.len() >= self.config.streams_max as usize
            || self.control.len() >= self.control_max()
            || self.next_id > STREAM_ID_MAX
        {
            return Err(OpenError::Limits);
        }
        let id = StreamId(self.next_id);
        let send_limit = u64::from(self.peer_window_initial);
        if !self.add_stream(id, Phase::Opening, send_limit) {
            return Err(OpenError::Limits);
        }
        self.next_id += 2;
        self.control.push_back(Control::Open { id, open });
        self.note_open_deadline(id);
        Ok(id)
    }

    /// Answers `Incoming` with OPENED.
    pub fn accept(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.phase == Phase::Incoming
        {
            stream.phase = Phase::Open;
            self.control.push_back(Control::Opened { id });
        }
    }

    /// Answers `Incoming` with REFUSED; the id is gone.
    pub fn refuse(&mut self, id: StreamId, reason: RefuseReason) {
        if self.streams.get(&id).is_some_and(|stream| stream.phase == Phase::Incoming) {
            self.remove_stream(id);
            self.control.push_back(Control::Refused { id, reason });
        }
    }

    /// Bytes that the next `send` takes; 0 for now, and then `Event::Writable` comes.
    pub fn writable(&mut self, id: StreamId) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let bytes = stream.writable(self.config.send_queue_bytes_max);
        stream.writable_wanted = bytes == 0;
        bytes as usize
    }

    /// The largest piece that fits one message beside its headers and a small frame: who reads no
    /// more at a time leaves no crumbs for the next message.
    pub fn piece_bytes_max(&self) -> usize {
        self.message_bytes_max as usize - HEADER_BYTES - 2 * DATA_BYTES
    }

    /// Takes bytes to send.
    ///
    /// # Errors
    /// When the caller disregards `writable`, or the stream is not there to send on. The payload
    /// is dropped.
    pub fn send(&mut self, id: StreamId, payload: P) -> Result<(), SendError> {
        let stream = self.streams.get_mut(&id).ok_or(SendError::NotOpen)?;
        stream.push(payload, self.config.send_queue_bytes_max)?;
        make_ready(&mut self.ready, id, stream);
        Ok(())
    }

    /// RESET after what was sent and fits the window; the id is gone for the caller.
    pub fn reset(&mut self, id: StreamId, reason: ResetReason) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if matches!(stream.phase, Phase::Resetting(_)) {
            return;
        }
        if stream.phase == Phase::Opening && !stream.open_sent {
            // The peer never hears of it: the OPEN that still waits is skipped.
            self.remove_stream(id);
            return;
        }
        stream.truncate_to_window();
        if stream.queued_bytes() == 0 {
            self.remove_stream(id);
            self.control.push_back(Control::Reset { id, reason });
            return;
        }
        stream.phase = Phase::Resetting(reason);
        let reserved = std::mem::take(&mut stream.reserved);
        make_ready(&mut self.ready, id, stream);
        self.give_back(reserved);
    }

    /// Drain: the peer opens no new streams here.
    pub fn goaway(&mut self) {
        if !self.draining {
            self.draining = true;
            self.control.push_back(Control::Goaway);
        }
    }

    /// Where both ends are in one process: everything that `poll_transmit` gave is on the other side
    /// already, and is not kept to be sent again.
    pub fn delivered(&mut self) {
        self.unacked.forget();
    }

    /// Whether nothing is under way in either direction, as far as this end knows.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.link.state == LinkState::Up
            && self.streams.is_empty()
            && self.control.is_empty()
            && self.unacked.len() == 0
            && !self.ack_due
            && self.ack_at_us == NEVER
    }

    pub fn poll_event(&mut self) -> Option<Event<P>> {
        self.events.pop_front()
    }

    // --- time

    /// When `on_timeout` is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut at_us = self.resume_at_us.min(self.late_fins.at_us);
        if self.link.alive() {
            let silence = self.link.heard_us + micros(self.config.keepalive_timeout);
            at_us = at_us.min(silence);
        }
        if self.link.state == LinkState::Up {
            at_us = at_us.min(self.link.ping_at_us).min(self.ack_at_us);
        }
        if let Some((open_at_us, _)) = self.open_deadlines.front() {
            at_us = at_us.min(*open_at_us);
        }
        if at_us == NEVER { None } else { self.base?.checked_add(Duration::from_micros(at_us)) }
    }

    pub fn on_timeout(&mut self, now: Instant) {
        self.tick(now);
        self.expire_opens();
        if self.fins_due() {
            self.let_fins_go();
        }
        if self.resume_at_us <= self.now_us {
            self.give_up(LostReason::ResumeTimeout);
        }
        if self.link.alive()
            && self.link.heard_us + micros(self.config.keepalive_timeout) <= self.now_us
        {
            let reason = match self.link.state {
                LinkState::Handshake => LinkDeadReason::NoHello,
                _ => LinkDeadReason::Silent,
            };
            self.link.state = LinkState::Failed;
            self.events.push_back(Event::LinkDead { reason });
        }
        if self.link.state == LinkState::Up {
            self.on_link_timeout();
        }
    }

    fn on_link_timeout(&mut self) {
        if self.ack_at_us <= self.now_us {
            self.ack_at_us = NEVER;
            self.ack_due = true;
        }
        if self.link.ping_at_us <= self.now_us {
            let interval_us = micros(self.config.keepalive_interval);
            self.link.ping_due = self.link.heard_us + interval_us <= self.now_us;
            let since_us = if self.link.ping_due { self.now_us } else { self.link.heard_us };
            self.link.ping_at_us = since_us + interval_us;
        }
    }

    fn note_open_deadline(&mut self, id: StreamId) {
        // Those who have an answer are only dropped at the front; one slow stream there would
        // hold all of them.
        if self.open_deadlines.len() > 64 + 2 * self.streams.len() {
            let streams = &self.streams;
            self.open_deadlines.retain(|(_, id)| is_opening(streams, *id));
        }
        self.open_deadlines.push_back((self.now_us + micros(self.config.open_timeout), id));
    }

    /// Drops what is settled from the front, so that no timeout is set for it.
    pub(super) fn trim_open_deadlines(&mut self) {
        while let Some((_, id)) = self.open_deadlines.front()
            && !is_opening(&self.streams, *id)
        {
            self.open_deadlines.pop_front();
        }
    }

    fn expire_opens(&mut self) {
        while let Some((at_us, id)) = self.open_deadlines.front().copied() {
            let opening = is_opening(&self.streams, id);
            if opening && at_us > self.now_us {
                break;
            }
            self.open_deadlines.pop_front();
            if !opening {
                continue;
            }
            let sent = self.streams.get(&id).is_some_and(|stream| stream.open_sent);
            self.remove_stream(id);
            let reason = if sent {
                self.control.push_back(Control::Reset { id, reason: ResetReason::Timeout });
                RefuseReason::Timeout
            } else {
                RefuseReason::LaneLost
            };
            self.events.push_back(Event::Refused { id, reason });
        }
    }

    /// Microseconds since the first time that was passed in: half the size of an `Instant`.
    pub(super) fn tick(&mut self, now: Instant) {
        let base = *self.base.get_or_insert(now);
        self.now_us = self.now_us.max(micros(now.saturating_duration_since(base)));
    }

    pub(super) fn note_rtt(&mut self, sample_us: u64) {
        self.srtt_us = Some(match self.srtt_us {
            Some(srtt_us) => (srtt_us * 7 + sample_us) / 8,
            None => sample_us,
        });
    }

    // --- state

    #[must_use]
    pub fn stats(&self) -> LaneStats {
        LaneStats {
            attached: self.link.state == LinkState::Up,
            streams: self.streams.len(),
            unacked_messages: self.unacked.len(),
            unacked_bytes: self.unacked.bytes(),
            srtt: self.srtt_us.map(Duration::from_micros),
            credits: self.link.credits(),
            window_bytes_granted: self.granted,
            messages_sent_total: self.messages_sent_total,
            messages_received_total: self.messages_received_total,
            messages_resent_total: self.messages_resent_total,
            attached_total: self.attached_total,
        }
    }

    /// Frames that may wait. Only a peer that lets us answer and takes no answers gets there.
    pub(super) fn control_max(&self) -> usize {
        1024 + 4 * self.config.streams_max as usize
    }

    /// Without a link, streams that were reset again leave their OPENs behind.
    fn drop_cancelled_opens(&mut self) {
        let streams = &self.streams;
        self.control.retain(|control| match control {
            Control::Open { id, .. } => streams.contains_key(id),
            _ => true,
        });
    }

    /// False if the budget has no room for the stream's window.
    pub(super) fn add_stream(&mut self, id: StreamId, phase: Phase, send_limit: u64) -> bool {
        let window = self.config.window_initial_bytes;
        if !self.budget.reserve(window) {
            return false;
        }
        self.granted += u64::from(window);
        self.streams.insert(id, Box::new(Stream::new(phase, send_limit, window, self.now_us)));
        true
    }

    pub(super) fn remove_stream(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.give_back(stream.reserved);
            let ready_max = 64 + 2 * self.streams.len();
            if stream.in_ready && self.ready.len() > ready_max {
                self.ready.retain(|id| self.streams.contains_key(id));
            }
        }
        self.trim_open_deadlines();
    }

    pub(super) fn give_back(&mut self, bytes: u32) {
        self.granted -= u64::from(bytes);
        self.budget.release(u64::from(bytes));
    }

    /// The id goes when both ends are done with it.
    pub(super) fn close_if_done(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|stream| stream.is_done()) {
            self.remove_stream(id);
            self.events.push_back(Event::Closed { id });
        }
    }

    /// Gives up towards a peer that may still know us: a new nonce tells it.
    pub(super) fn give_up(&mut self, reason: LostReason) {
        if self.link.alive() {
            // The old nonce is out on this link.
            self.link.state = LinkState::Failed;
            self.events.push_back(Event::LinkDead { reason: LinkDeadReason::GaveUp });
        }
        self.nonce = self.nonce.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1).max(1);
        self.lose(reason);
    }

    /// Ends all streams and begins at the beginning.
    pub(super) fn lose(&mut self, reason: LostReason) {
        for (id, stream) in self.streams.drain() {
            match stream.loss() {
                Loss::Nothing => {}
                Loss::Refused(reason) => self.events.push_back(Event::Refused { id, reason }),
                Loss::Reset(reason) => self.events.push_back(Event::Reset { id, reason }),
            }
        }
        self.budget.release(std::mem::take(&mut self.granted));
        self.peer_nonce = None;
        self.peer_id_highest = 0;
        self.peer_draining = false;
        self.peer_window_initial = 0;
        self.control.clear();
        if self.draining {
            self.control.push_back(Control::Goaway);
        }
        self.ready.clear();
        self.unacked = Unacked::new();
        self.builder = Builder::new();
        self.received_seq = 0;
        self.acknowledged_seq = 0;
        self.ack_at_us = NEVER;
        self.ack_due = false;
        self.applying = false;
        self.open_deadlines.clear();
        self.late_fins = LateFins::new();
        self.resume_at_us = NEVER;
        self.events.push_back(Event::Lost { reason });
    }

    pub(super) fn attached(&mut self) {
        self.link.state = LinkState::Up;
        self.resume_at_us = NEVER;
        self.attached_total += 1;
    }
}

impl<P> Drop for Lane<P> {
    fn drop(&mut self) {
        self.budget.release(self.granted);
    }
}

fn is_opening<P>(streams: &Streams<P>, id: StreamId) -> bool {
    streams.get(&id).is_some_and(|stream| stream.phase == Phase::Opening)
}

pub(super) fn make_ready<P: Payload>(
    ready: &mut VecDeque<StreamId>,
    id: StreamId,
    stream: &mut Stream<P>,
) {
    if !stream.in_ready && stream.wants_turn() {
        stream.in_ready = true;
        ready.push_back(id);
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    // Sums of such times must not overflow.
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}
