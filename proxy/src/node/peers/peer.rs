//! One peer, as a state machine: its session, its lanes' links, and when to try again.
//!
//! What it does not do: I/O, tasks or reading the clock. Inputs come with the time, outputs are
//! [`Action`]s that the manager carries out. So ties, restarts and backoff are tested step by step.

use super::backoff::Backoff;
pub use super::peer_types::{Action, DialFailure, Lane, Link, PeerConfig, Session, State};
use super::wire::{ControlMessage, Refusal};
use crate::node::messages::{LinkId, NodeName, TCP_LANES, UnavailableReason, lane_exists};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Lanes that a worker may name before the peer has told how many there are.
const LANES_MAX: u16 = super::wire::WORKERS_MAX;
const _: () = assert!(LANES_MAX <= TCP_LANES);
/// How long opens wait for a first link before they pass through, whatever the attempt is at.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after the last open towards a peer that is down it is dialled in the background.
const INTEREST: Duration = Duration::from_secs(60);

pub struct Peer {
    config: PeerConfig,
    name: NodeName,
    state: State,
    /// Of the process whose lanes the workers may hold.
    incarnation: Option<u64>,
    pub lanes: BTreeMap<u16, Lane>,
    backoff: Backoff,
    attempts: u64,
    interest_until: Option<Instant>,
    /// The peer said that it is about to stop.
    peer_draining: bool,
    own_draining: bool,
    actions: Vec<Action>,
}

impl Peer {
    #[must_use]
    pub fn new(config: PeerConfig, name: NodeName) -> Self {
        let backoff = Backoff::new(config.backoff_min, config.backoff_max);
        Self {
            config,
            name,
            state: State::Idle,
            incarnation: None,
            lanes: BTreeMap::new(),
            backoff,
            attempts: 0,
            interest_until: None,
            peer_draining: false,
            own_draining: false,
            actions: Vec::new(),
        }
    }

    /// What was decided since the last call, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub fn session(&self) -> Option<Session> {
        match self.state {
            State::Up { session, .. } => Some(session),
            _ => None,
        }
    }

    #[must_use]
    pub fn draining(&self) -> bool {
        self.peer_draining
    }

    #[must_use]
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Whether nothing is lost when this peer is forgotten.
    #[must_use]
    pub fn forgettable(&self) -> bool {
        let quiet = matches!(self.state, State::Idle | State::Waiting { .. });
        quiet && !self.in_use()
    }

    fn in_use(&self) -> bool {
        self.lanes.values().any(Lane::in_use)
    }

    // --- what workers ask

    pub fn need_lane(&mut self, lane: u16, now: Instant) {
        let lanes = self.session().map_or(LANES_MAX, |session| session.lanes);
        if !lane_exists(lane, lanes) {
            return self.unavailable(lane, UnavailableReason::Limits);
        }
        if self.peer_draining || self.own_draining {
            return self.unavailable(lane, UnavailableReason::Draining);
        }
        self.interest_until = Some(now + INTEREST);
        let failing = self.backoff.failures() > 0;
        match self.state {
            State::Up { .. } => {}
            State::Idle => self.dial(),
            State::Waiting { until } if until <= now => self.dial(),
            // A tie is being settled, not a failure: the session is about to stand.
            State::Waiting { .. } | State::Dialing { .. } if !failing => {}
            State::Waiting { .. } | State::Dialing { .. } => {
                return self.unavailable(lane, UnavailableReason::Backoff);
            }
        }
        let up = self.session().is_some();
        let patience = PATIENCE.min(self.config.handshake);
        let entry = self.lane(lane);
        if matches!(entry.link, Link::Up { since, .. } if now.duration_since(since) >= patience) {
            // Not just crossed on the way: the worker lost its link without a word.
            entry.link = Link::None;
        }
        match entry.link {
            Link::Up { .. } => {}
            Link::Backoff { .. } => self.unavailable(lane, UnavailableReason::Backoff),
            link => {
                entry.waiting = Some(now + patience);
                if up && link == Link::None {
                    self.start_lane(lane, now);
                }
            }
        }
    }

    pub fn link_broken(&mut self, lane: u16, id: LinkId, now: Instant) {
        let steady = self.config.backoff_max;
        // Unknown: late news of a lane that ended with its peer.
        let Some(entry) = self.lanes.get_mut(&lane) else { return };
        if entry.last_id != Some(id) {
            return;
        }
        entry.resume = true;
        match entry.link {
            // A link that breaks as soon as it is made must not be remade in a hot loop.
            Link::Up { since, .. } if now.duration_since(since) < steady => {
                entry.link = Link::Backoff { until: now + entry.backoff.fail() };
            }
            Link::Up { .. } => {
                entry.link = Link::None;
                entry.backoff.reset();
                self.start_lane(lane, now);
            }
            Link::None => self.start_lane(lane, now),
            // Another is in the making or due.
            Link::Asked { .. } | Link::Dialing | Link::Backoff { .. } => {}
        }
        if self.state == State::Idle {
            self.dial();
        }
    }

    pub fn lane_idle(&mut self, lane: u16) {
        self.lanes.remove(&lane);
    }

    // --- sessions

    /// The manager's dial has a TCP connection: from now on it counts in a tie.
    pub fn dial_connected(&mut self, number: u64) {
        if let State::Dialing { attempt, connected } = &mut self.state
            && *attempt == number
        {
            *connected = true;
        }
    }

    pub fn dial_failed(&mut self, number: u64, failure: DialFailure, now: Instant) {
        if !matches!(self.state, State::Dialing { attempt, .. } if attempt == number) {
            return;
        }
        if failure == DialFailure::Declined(Refusal::Tie) {
            // The peer's own connection is on its way; look again soon in case it is not.
            let until = now + self.backoff.jittered(self.config.backoff_min * 4);
            self.state = State::Waiting { until };
            return;
        }
        if matches!(failure, DialFailure::Refused | DialFailure::Unknown) {
            self.gone();
        }
        self.state = State::Waiting { until: now + self.backoff.fail() };
        self.answer_waiting(failure.reason());
    }

    /// Judges a session that the peer dialled.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn offer(&mut self, incarnation: u64) -> Result<(), Refusal> {
        let known = self.incarnation == Some(incarnation);
        if self.own_draining && !known {
            return Err(Refusal::Draining);
        }
        let ours_wins = *self.config.own < *self.name;
        match self.state {
            State::Up { session, .. } if known && session.dialed_by_us && ours_wins => {
                // Either theirs crossed ours on the way, or ours is dead and only they know.
                self.actions.push(Action::Send(ControlMessage::Ping));
                Err(Refusal::Tie)
            }
            State::Dialing { connected: true, .. } if ours_wins => Err(Refusal::Tie),
            _ => Ok(()),
        }
    }

    /// A session stands, dialled by either end. It replaces an older one.
    pub fn session_up(&mut self, session: Session, now: Instant) {
        match self.state {
            State::Up { session: old, .. } => {
                self.actions.push(Action::CloseSession { session: old.id });
                self.forget_progress();
            }
            State::Dialing { .. } if !session.dialed_by_us => {
                self.actions.push(Action::CancelDial);
            }
            _ => {}
        }
        if self.incarnation.is_some_and(|old| old != session.incarnation) {
            self.gone();
        }
        self.peer_draining = false;
        self.backoff.forgive();
        self.incarnation = Some(session.incarnation);
        self.state = State::Up { session, since: now };
        if self.own_draining {
            self.actions.push(Action::Send(ControlMessage::Goaway));
        }
        let wanted: Vec<u16> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.wanted() && lane.link == Link::None)
            .map(|(number, _)| *number)
            .collect();
        for lane in wanted {
            self.start_lane(lane, now);
        }
    }

    pub fn session_down(&mut self, id: u64, now: Instant) {
        let State::Up { session, since } = self.state else { return };
        if session.id != id {
            return;
        }
        self.forget_progress();
        self.state = State::Idle;
        if now.duration_since(since) >= self.config.backoff_max {
            self.backoff.reset();
        }
        if !self.in_use() {
            return;
        }
        // A session that ends as soon as it stands must not be remade in a hot loop.
        if now.duration_since(since) < self.config.backoff_max {
            self.state = State::Waiting { until: now + self.backoff.fail() };
        } else {
            self.dial();
        }
    }

    /// The directory no longer has the node: it is not believed any more.
    pub fn removed(&mut self) {
        match self.state {
            State::Up { session, .. } => {
                self.actions.push(Action::CloseSession { session: session.id });
            }
            State::Dialing { .. } => self.actions.push(Action::CancelDial),
            _ => {}
        }
        self.state = State::Idle;
        self.gone();
        self.answer_waiting(UnavailableReason::Unknown);
        self.lanes.clear();
    }

    pub fn drain(&mut self) {
        self.own_draining = true;
        if self.session().is_some() {
            self.actions.push(Action::Send(ControlMessage::Goaway));
        }
        self.answer_waiting(UnavailableReason::Draining);
    }

    // --- what the peer says

    pub fn message(&mut self, message: &ControlMessage, now: Instant) {
        let State::Up { session, .. } = self.state else { return };
        match *message {
            ControlMessage::WantLane { lane } if !session.dialed_by_us => {
                self.token_wanted(lane, session.lanes, now);
            }
            ControlMessage::LaneToken { lane, token } if session.dialed_by_us => {
                if !lane_exists(lane, session.lanes) || self.lane(lane).link == Link::Dialing {
                    return;
                }
                // Also while a link is up: then the peer's end of it broke first.
                self.lane(lane).link = Link::Dialing;
                self.actions.push(Action::DialLink { lane, token });
            }
            ControlMessage::LaneFailed { lane, .. } => {
                if let Some(entry) = self.lanes.get_mut(&lane)
                    && matches!(entry.link, Link::Asked { .. })
                {
                    self.lane_failed(lane, UnavailableReason::Unreachable, now);
                }
            }
            ControlMessage::Goaway if !self.peer_draining => {
                self.peer_draining = true;
                self.actions.push(Action::PeerDraining);
                self.answer_waiting(UnavailableReason::Draining);
            }
            _ => {}
        }
    }

    fn token_wanted(&mut self, lane: u16, lanes: u16, now: Instant) {
        if !lane_exists(lane, lanes) {
            let text = format!("there are {lanes} lanes");
            self.actions.push(Action::Send(ControlMessage::LaneFailed { lane, text }));
            return;
        }
        // One given unasked crossed the wish for it: it serves both.
        if matches!(self.lane(lane).link, Link::Asked { until } if until > now) {
            return;
        }
        self.give_token(lane, now);
    }

    // --- links

    /// A link of this lane was made, by either end's dial.
    pub fn link_made(&mut self, lane: u16, id: LinkId, now: Instant) {
        let entry = self.lane(lane);
        entry.link = Link::Up { id, since: now };
        entry.last_id = Some(id);
        entry.resume = false;
        entry.waiting = None;
    }

    /// This end's dial of the link, or the issue of its token, failed.
    pub fn link_failed(&mut self, lane: u16, text: String, now: Instant) {
        self.actions.push(Action::Send(ControlMessage::LaneFailed { lane, text }));
        self.lane_failed(lane, UnavailableReason::Unreachable, now);
    }

    fn start_lane(&mut self, lane: u16, now: Instant) {
        let State::Up { session, .. } = self.state else { return };
        if session.dialed_by_us {
            let until = now + self.config.handshake;
            self.lane(lane).link = Link::Asked { until };
            self.actions.push(Action::Send(ControlMessage::WantLane { lane }));
        } else {
            self.give_token(lane, now);
        }
    }

    fn give_token(&mut self, lane: u16, now: Instant) {
        let until = now + self.config.handshake;
        self.lane(lane).link = Link::Asked { until };
        self.actions.push(Action::IssueToken { lane });
    }

    fn lane_failed(&mut self, lane: u16, reason: UnavailableReason, now: Instant) {
        let entry = self.lane(lane);
        entry.link = Link::Backoff { until: now + entry.backoff.fail() };
        if entry.waiting.take().is_some() {
            self.unavailable(lane, reason);
        }
    }

    fn lane(&mut self, lane: u16) -> &mut Lane {
        let config = &self.config;
        self.lanes.entry(lane).or_insert_with(|| Lane::new(config))
    }

    fn unavailable(&mut self, lane: u16, reason: UnavailableReason) {
        self.actions.push(Action::Unavailable { lane, reason });
    }

    fn answer_waiting(&mut self, reason: UnavailableReason) {
        for (number, lane) in &mut self.lanes {
            if lane.waiting.take().is_some() {
                self.actions.push(Action::Unavailable { lane: *number, reason });
            }
        }
    }

    fn dial(&mut self) {
        self.attempts += 1;
        self.state = State::Dialing { attempt: self.attempts, connected: false };
        self.actions.push(Action::Dial { attempt: self.attempts });
    }

    /// Links in the making end with their session; those that stand do not.
    fn forget_progress(&mut self) {
        for lane in self.lanes.values_mut() {
            if matches!(lane.link, Link::Asked { .. } | Link::Dialing) {
                lane.link = Link::None;
            }
        }
    }

    /// The peer's process ended: nothing can be resumed.
    fn gone(&mut self) {
        self.peer_draining = false;
        if self.incarnation.take().is_some() {
            self.actions.push(Action::PeerGone);
        }
        self.lanes.retain(|_, lane| {
            lane.resume = false;
            lane.link = Link::None;
            lane.last_id = None;
            lane.waiting.is_some()
        });
    }

    // --- time

    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let session = match self.state {
            State::Waiting { until } => Some(until),
            _ => None,
        };
        let lanes = self.lanes.values().flat_map(|lane| {
            let link = match lane.link {
                Link::Asked { until } | Link::Backoff { until } => Some(until),
                _ => None,
            };
            [link, lane.waiting]
        });
        lanes.chain([session]).flatten().min()
    }

    pub fn on_timeout(&mut self, now: Instant) {
        if matches!(self.state, State::Waiting { until } if until <= now) {
            if self.in_use() || self.interest_until.is_some_and(|until| until > now) {
                self.dial();
            } else {
                self.state = State::Idle;
                self.backoff.reset();
            }
        }
        let numbers: Vec<u16> = self.lanes.keys().copied().collect();
        for number in numbers {
            self.lane_timeout(number, now);
        }
        // What is neither linked nor wanted needs no memory.
        self.lanes.retain(|_, lane| lane.in_use() || lane.link != Link::None);
    }

    fn lane_timeout(&mut self, number: u16, now: Instant) {
        let lane = self.lane(number);
        match lane.link {
            Link::Asked { until } if until <= now => {
                self.lane_failed(number, UnavailableReason::Unreachable, now);
            }
            Link::Backoff { until } if until <= now => {
                lane.link = Link::None;
                if lane.wanted() {
                    self.start_lane(number, now);
                }
            }
            _ => {}
        }
        let lane = self.lane(number);
        if lane.waiting.is_some_and(|until| until <= now) {
            lane.waiting = None;
            self.unavailable(number, UnavailableReason::Unreachable);
        }
    }
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
