//! The links of lanes: found out by negotiation, replaced, lost, and renewed by verbs after a time
//! on `tcp`.
//!
//! While the two ends negotiate, the lane goes on over the link that it has.

use super::Worker;
use super::engine::Token;
use super::lane::{Carrier, LaneSlot};
use super::slots::Key;
use crate::fabric::select::{self, Kind, Negotiation, Ready};
use crate::fabric::{Absence, Broken, Established, Link};
use crate::metrics::{CompletionStatus, FabricKind, FailoverReason, PassthroughReason, Role};
use crate::node::messages::{LinkId, NodeName, Request, Side};
use rdmesh_config::Fabric;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// A link that carried a lane so long was a good one.
const STEADY: Duration = Duration::from_secs(10);

/// Links are polled so often between two looks at the sockets, all together.
const POLLS_PER_LOOK: usize = 32;
/// How often a worker looks whether the device that it uses is being removed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A connection that may become the lane's link.
pub(super) struct Attempt {
    negotiation: Negotiation,
    pub deadline: Instant,
    incarnation: u64,
    link_id: LinkId,
    encrypted: bool,
}

/// What a lane knows about its way by verbs.
#[derive(Default)]
pub(super) struct Path {
    /// In a row.
    failures: u32,
    /// Until then this end offers no queue pair.
    hold_until: Option<Instant>,
    /// Then the lane asks for another link, although the one it has works.
    pub renew_at: Option<Instant>,
    up_since: Option<Instant>,
    /// The reason why it is not verbs, as it was logged last.
    told: String,
}

impl Path {
    fn keep_off(&self, now: Instant) -> Option<Absence> {
        self.hold_until.is_some_and(|until| until > now).then_some(Absence::RecentFailure)
    }

    fn wait(&self, min_ms: u64, max_ms: u64) -> Duration {
        let factor = 1 << self.failures.saturating_sub(1).min(20);
        Duration::from_millis(min_ms.saturating_mul(factor).min(max_ms))
    }
}

impl Worker {
    pub(super) fn link_up(
        &mut self,
        peer: NodeName,
        incarnation: u64,
        number: u16,
        side: Side,
        link_id: LinkId,
        established: Established,
    ) {
        let key = self.lane(&peer, number, side);
        self.drop_attempt(key);
        let now = self.now;
        let Some(slot) = self.lanes.get_mut(key) else { return };
        let encrypted = established.tls.is_some();
        let keep_off =
            if slot.is_tcp() { Some(Absence::Unwanted) } else { slot.path.keep_off(now) };
        let started = self.fabrics.negotiate(established, keep_off).and_then(|negotiation| {
            self.engine.add(negotiation.descriptor()?, Token::Negotiation(key))?;
            Ok(negotiation)
        });
        match started {
            Ok(negotiation) => {
                let deadline = now + Duration::from_millis(self.config.timeouts.handshake_ms);
                slot.attempt =
                    Some(Attempt { negotiation, deadline, incarnation, link_id, encrypted });
                self.negotiate(key);
                self.arm_timer(key);
            }
            Err(error) => {
                let reason = error.to_string();
                self.request(Request::LinkBroken { peer, lane: number, link_id, reason });
            }
        }
    }

    /// Goes on with the negotiation of the lane's next link.
    pub(super) fn negotiate(&mut self, key: Key) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        let Some(attempt) = &mut slot.attempt else { return };
        match attempt.negotiation.step() {
            Ok(None) => {}
            Ok(Some(ready)) => self.attach(key, ready),
            Err(error) => self.attempt_failed(key, &error),
        }
    }

    fn attempt_failed(&mut self, key: Key, error: &Broken) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        let Some(attempt) = &slot.attempt else { return };
        let reason = error.to_string();
        if slot.path.told == reason {
            debug!(peer = &*slot.peer, lane = slot.number, reason, "no link");
        } else {
            warn!(peer = &*slot.peer, lane = slot.number, reason, "no link");
            slot.path.told.clone_from(&reason);
        }
        let link_id = attempt.link_id;
        self.want_another(key, link_id, reason);
        self.drop_attempt(key);
        if matches!(error, Broken::NoVerbs(_)) {
            self.pass_waiting(key, PassthroughReason::PeerUnavailable);
        }
    }

    pub(super) fn drop_attempt(&mut self, key: Key) {
        if let Some(slot) = self.lanes.get_mut(key)
            && let Some(attempt) = slot.attempt.take()
            && let Ok(descriptor) = attempt.negotiation.descriptor()
        {
            self.engine.remove(descriptor);
        }
    }

    /// Puts the lane on the link that its attempt has become.
    fn attach(&mut self, key: Key, ready: Ready) {
        self.engine.remove(ready.link.connection());
        let Some(attempt) = self.lanes.get_mut(key).and_then(|slot| slot.attempt.take()) else {
            return;
        };
        let Ready { link, kind, credits, own, peer: absence } = ready;
        let had_link = self.drop_link(key);
        let added = self.engine.add(link.descriptor(), Token::Link(key)).and_then(|()| {
            link.alarm().map_or(Ok(()), |alarm| self.engine.add(alarm, Token::Alarm(key)))
        });
        if let Err(error) = added {
            self.want_another(key, attempt.link_id, error.to_string());
            return;
        }
        let Some(slot) = self.lanes.get_mut(key) else { return };
        let (before, after) = (slot.fabric, fabric_kind(kind));
        let again = slot.incarnation == attempt.incarnation && slot.link_id != 0;
        slot.incarnation = attempt.incarnation;
        slot.link_id = attempt.link_id;
        slot.encrypted = attempt.encrypted && kind == Kind::Tcp;
        slot.carrier = Carrier::Link(link);
        slot.readable = true;
        slot.mux.link_up_with(credits, self.now);
        slot.path.up_since = Some(self.now);
        if kind == Kind::Verbs {
            self.pollable.push(key);
            self.look_at.get_or_insert(self.now + LOOK_EVERY);
        }
        slot.path.renew_at = None;
        if again && !had_link {
            slot.failovers += 1;
        }
        let fabric = after.as_str();
        let encrypted = slot.encrypted;
        info!(peer = &*slot.peer, lane = slot.number, fabric, encrypted, again, "link up");
        if kind == Kind::Tcp && self.config.fabric != Fabric::Tcp && !slot.is_tcp() {
            let reason = select::reason(own.as_ref(), absence);
            if slot.path.told != reason {
                info!(peer = &*slot.peer, reason, "the link is not verbs");
                slot.path.told = reason;
            }
            // Who lacks it asks again: the other end cannot see when that is over.
            if let Some(own) = own.map(|why| why.absence).filter(|absence| absence.may_pass()) {
                self.renew_later(key, own != Absence::RecentFailure);
            }
        } else if let Some(slot) = self.lanes.get_mut(key) {
            slot.path.told.clear();
        }
        if before != after {
            if had_link && after == FabricKind::Verbs {
                self.node_metrics.failover(FailoverReason::Upgrade);
            }
            self.move_streams(key, after);
        }
        self.serve(key);
    }

    /// Plans the next try with verbs.
    fn renew_later(&mut self, key: Key, failed: bool) {
        let verbs = &self.config.verbs;
        let (min_ms, max_ms) = (verbs.renew_min_ms, verbs.renew_max_ms);
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if failed {
            slot.path.failures = slot.path.failures.saturating_add(1);
        }
        let wait = slot.path.wait(min_ms, max_ms);
        let held = slot.path.hold_until.unwrap_or(self.now);
        slot.path.renew_at = Some(held.max(self.now + wait));
    }

    /// Streams are counted under what carries them.
    fn move_streams(&mut self, key: Key, to: FabricKind) {
        let Some(slot) = self.lanes.get_mut(key) else { return };
        let from = std::mem::replace(&mut slot.fabric, to);
        let keys: Vec<Key> = slot.streams.values().copied().collect();
        let mut moved = [(Role::Client, 0), (Role::Server, 0)];
        for stream in keys {
            if let Some(stream) = self.streams.get_mut(stream) {
                stream.fabric = to;
                if let Some(entry) = moved.iter_mut().find(|(role, _)| *role == stream.role) {
                    entry.1 += 1;
                }
            }
        }
        for (role, count) in moved {
            self.metrics.streams_moved(role, from, to, count);
        }
    }

    /// Takes the lane's link away, if it has one, and tells the state machine.
    pub(super) fn drop_link(&mut self, key: Key) -> bool {
        let Some(slot) = self.lanes.get_mut(key) else { return false };
        slot.attached = false;
        (slot.idle_since, slot.release_at) = (None, None);
        if !matches!(slot.carrier, Carrier::Link(_)) {
            return false;
        }
        if let Carrier::Link(link) = std::mem::replace(&mut slot.carrier, Carrier::Requested) {
            self.engine.remove(link.descriptor());
            if let Some(alarm) = link.alarm() {
                self.engine.remove(alarm);
            }
        }
        self.pollable.retain(|other| *other != key);
        slot.mux.link_down(self.now);
        slot.path.renew_at = None;
        self.node_metrics.lane(&slot.peer, slot.number.into(), slot.fabric, false);
        true
    }

    /// The link itself says that it is over.
    pub(super) fn link_failed(&mut self, key: Key, error: &Broken) {
        if self.released_by_peer(key, error) {
            return;
        }
        if let Broken::Completion(status) = error {
            self.node_metrics.completion_error(CompletionStatus::from_name(status));
        }
        if matches!(error, Broken::Completion(_) | Broken::Device(_)) {
            self.path_failed(key);
        }
        self.link_broken(key, failover(error), error.to_string());
    }

    /// Keeps away from verbs for a while, if that is what failed.
    pub(super) fn path_failed(&mut self, key: Key) {
        let verbs = &self.config.verbs;
        let (min_ms, max_ms) = (verbs.renew_min_ms, verbs.renew_max_ms);
        let now = self.now;
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if slot.fabric != FabricKind::Verbs {
            return;
        }
        if slot.path.up_since.is_some_and(|since| now.duration_since(since) >= STEADY) {
            slot.path.failures = 0;
        }
        slot.path.failures = slot.path.failures.saturating_add(1);
        slot.path.hold_until = Some(now + slot.path.wait(min_ms, max_ms));
    }

    pub(super) fn link_broken(&mut self, key: Key, failover: FailoverReason, reason: String) {
        if !self.drop_link(key) {
            return;
        }
        let Some(slot) = self.lanes.get_mut(key) else { return };
        warn!(peer = &*slot.peer, lane = slot.number, reason, "link broken, another is wanted");
        self.node_metrics.failover(failover);
        let link_id = slot.link_id;
        self.want_another(key, link_id, reason);
        self.serve(key);
    }

    /// Asks the control thread for a link in place of `link_id`.
    fn want_another(&mut self, key: Key, link_id: LinkId, reason: String) {
        let Some(slot) = self.lanes.get(key) else { return };
        let (peer, lane) = (NodeName::clone(&slot.peer), slot.number);
        self.request(Request::LinkBroken { peer, lane, link_id, reason });
    }

    /// Looks for messages without system calls, `patient`ly a few times over; true when there are some.
    pub(super) fn poll_links(&mut self, patient: bool) -> bool {
        let rounds = match self.pollable.len() {
            0 => return false,
            links if patient => (POLLS_PER_LOOK / links).max(1),
            _ => 1,
        };
        (0..rounds).any(|_| {
            std::hint::spin_loop();
            self.any_link_has(Link::poll)
        })
    }

    /// Before the worker sleeps. True when it must not: there are messages.
    pub(super) fn rest_links(&mut self) -> bool {
        self.any_link_has(|link| !link.rest())
    }

    fn any_link_has(&mut self, something: impl Fn(&mut (dyn Link + 'static)) -> bool) -> bool {
        let mut found = false;
        for index in 0..self.pollable.len() {
            let Some(key) = self.pollable.get(index).copied() else { break };
            let Some(slot) = self.lanes.get_mut(key) else { continue };
            let Carrier::Link(link) = &mut slot.carrier else { continue };
            if something(link.as_mut()) {
                slot.readable = true;
                self.serve(key);
                found = true;
            }
        }
        found
    }

    /// Lets go of a device that is being removed.
    pub(super) fn look_at_device(&mut self) {
        if self.look_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.look_at = self.fabrics.uses_device().then(|| self.now + LOOK_EVERY);
        if !self.fabrics.device_removed() {
            return;
        }
        let verbs = |slot: &LaneSlot| slot.fabric == FabricKind::Verbs;
        let keys: Vec<Key> =
            self.lanes.iter().filter(|(_, slot)| verbs(slot)).map(|(key, _)| key).collect();
        for key in keys {
            if let Some(slot) = self.lanes.get_mut(key) {
                slot.readable = true;
            }
            self.serve(key);
        }
        self.serve_lanes();
    }

    /// Asks for a link once more, if what this end lacked for verbs is there now.
    fn renew(&mut self, key: Key) {
        let Some(slot) = self.lanes.get(key) else { return };
        let Carrier::Link(link) = &slot.carrier else { return };
        if slot.attempt.is_some() {
            return;
        }
        if !self.fabrics.verbs_usable(link.connection()) {
            self.renew_later(key, true);
            return;
        }
        debug!(peer = &*slot.peer, lane = slot.number, "tries verbs again");
        let link_id = slot.link_id;
        self.want_another(key, link_id, "another fabric may work again".to_owned());
    }

    /// An attempt that takes too long is given up; a lane whose time on `tcp` is over asks for a
    /// link once more.
    pub(super) fn attempt_timeout(&mut self, key: Key) {
        let now = self.now;
        let Some(slot) = self.lanes.get_mut(key) else { return };
        if slot.attempt.as_ref().is_some_and(|attempt| attempt.deadline <= now) {
            self.attempt_failed(key, &Broken::Negotiation("the peer did not answer in time"));
            return;
        }
        if slot.path.renew_at.is_some_and(|at| at <= now) {
            slot.path.renew_at = None;
            self.renew(key);
        }
    }
}

fn fabric_kind(kind: Kind) -> FabricKind {
    match kind {
        Kind::Tcp => FabricKind::Tcp,
        Kind::Verbs => FabricKind::Verbs,
    }
}

fn failover(error: &Broken) -> FailoverReason {
    match error {
        Broken::Closed => FailoverReason::PeerClosed,
        Broken::Framing(_) | Broken::Negotiation(_) => FailoverReason::Protocol,
        Broken::Io(_)
        | Broken::Tls(_)
        | Broken::Device(_)
        | Broken::Completion(_)
        | Broken::NoVerbs(_) => FailoverReason::LinkBroken,
    }
}
