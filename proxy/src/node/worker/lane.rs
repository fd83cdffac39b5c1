//! A lane as the worker holds it: the state machine, the link that carries it now, and the streams
//! on it.

use super::links::{Attempt, Path};
use super::slots::Key;
use crate::fabric::Link;
use crate::metrics::FabricKind;
use crate::mux::{Lane, StreamId};
use crate::node::messages::{LinkId, NodeName, TCP_LANES};
use crate::node::status::LaneStatus;
use rdmesh_sys::slab::Payload;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

/// What carries a lane.
pub(super) enum Carrier {
    /// Nobody has asked for a link, or the last attempt failed.
    None,
    /// The control side is making one.
    Requested,
    Link(Box<dyn Link>),
    /// The other end is in this worker: the same-node path.
    Twin(Key),
}

/// A connection that is about to become a stream.
pub(super) struct Waiting {
    pub pod: Key,
    /// What its sidecar, which still holds the socket too, calls it; `None` when the worker has
    /// accepted it.
    pub handoff_id: Option<u32>,
    pub socket: std::os::fd::OwnedFd,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// Rather not through the mesh than over another fabric.
    pub verbs_only: bool,
    pub deadline: Instant,
}

/// Opens that may wait for one lane; more are passed through.
pub(super) const WAITING_MAX: usize = 16 << 10;

pub(super) struct LaneSlot {
    pub mux: Lane<Payload>,
    /// Empty for the same-node pair.
    pub peer: NodeName,
    pub number: u16,
    pub incarnation: u64,
    pub link_id: LinkId,
    /// The peer takes no new streams.
    pub draining: bool,
    pub fabric: FabricKind,
    pub encrypted: bool,
    pub carrier: Carrier,
    /// The connection that may become its next link.
    pub attempt: Option<Attempt>,
    /// What is known about the way by verbs.
    pub path: Path,
    pub attached: bool,
    pub streams: HashMap<StreamId, Key>,
    pub waiting: VecDeque<Waiting>,
    /// Streams whose FIN waits for a message to go with, and how long it does at most.
    pub ending: Vec<StreamId>,
    pub ending_until: Option<Instant>,
    /// Since when nobody uses it, and when it gives its link back.
    pub idle_since: Option<Instant>,
    pub release_at: Option<Instant>,
    /// It gave its link back and had none since.
    pub released: bool,
    /// The link may have messages for us.
    pub readable: bool,
    /// Listed among the lanes to serve in this turn.
    pub dirty: bool,
    /// The earliest entry of this lane in the worker's timer heap.
    pub timer: Option<Instant>,
    pub failovers: u64,
}

impl LaneSlot {
    pub(super) fn new(mux: Lane<Payload>, peer: NodeName, number: u16, fabric: FabricKind) -> Self {
        Self {
            mux,
            peer,
            number,
            incarnation: 0,
            link_id: 0,
            draining: false,
            fabric,
            encrypted: false,
            carrier: Carrier::None,
            attempt: None,
            path: Path::default(),
            attached: false,
            streams: HashMap::new(),
            waiting: VecDeque::new(),
            ending: Vec::new(),
            ending_until: None,
            idle_since: None,
            release_at: None,
            released: false,
            readable: false,
            dirty: false,
            timer: None,
            failovers: 0,
        }
    }

    /// It must not use RDMA, whatever there is.
    pub(super) fn is_tcp(&self) -> bool {
        self.number >= TCP_LANES
    }

    pub(super) fn takes_pipes(&self) -> bool {
        match &self.carrier {
            Carrier::Link(link) => link.takes_pipes(),
            Carrier::Twin(_) => true,
            Carrier::None | Carrier::Requested => false,
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let waiting = self.waiting.front().map(|waiting| waiting.deadline);
        let attempt = self.attempt.as_ref().map(|attempt| attempt.deadline);
        let rest = [self.path.renew_at, self.release_at, self.ending_until];
        let all = [self.mux.poll_timeout(), waiting, attempt].into_iter().chain(rest);
        all.flatten().min()
    }

    /// Lets FINs go that have waited, if their time is over or something else goes now.
    pub(super) fn end_streams(&mut self, now: Instant) {
        if self.ending_until.is_some_and(|until| until <= now || self.mux.has_frames()) {
            self.ending_until = None;
            for id in self.ending.drain(..) {
                self.mux.finish(id);
            }
        }
    }

    pub(super) fn status(&self) -> LaneStatus {
        let stats = self.mux.stats();
        LaneStatus {
            peer: self.peer.to_string(),
            lane: self.number,
            fabric: self.fabric.as_str().to_owned(),
            encrypted: self.encrypted,
            attached: self.attached,
            streams: self.streams.len() as u64,
            unacked_messages: stats.unacked_messages as u64,
            srtt_us: stats.srtt.and_then(|srtt| u64::try_from(srtt.as_micros()).ok()),
            failovers: self.failovers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Arena;
    use super::*;
    use crate::mux::{Budget, Event, LaneConfig, Open, Side};
    use rdmesh_sys::slab::Slab;
    use std::rc::Rc;
    use std::time::Duration;

    fn end(side: Side, now: Instant) -> LaneSlot {
        let mut mux = Lane::new(LaneConfig::default(), side, Rc::new(Budget::new(1 << 20)), 1);
        mux.link_up(now);
        LaneSlot::new(mux, "peer".into(), 0, FabricKind::Tcp)
    }

    /// What `from` has to say, until it says nothing.
    fn pass(from: &mut LaneSlot, to: &mut LaneSlot, arena: &mut Arena, now: Instant) -> usize {
        let mut messages = 0;
        from.end_streams(now);
        while let Some(message) = from.mux.poll_transmit(now, &mut |bytes| arena.keep(bytes)) {
            to.mux.on_parts(message.head, message.tails.into_iter(), now).unwrap();
            to.mux.grant(1);
            messages += 1;
        }
        messages
    }

    fn fins(slot: &mut LaneSlot) -> usize {
        std::iter::from_fn(|| slot.mux.poll_event())
            .filter(|event| matches!(event, Event::Fin { .. }))
            .count()
    }

    #[test]
    fn a_fin_that_waits_goes_with_the_next_message_or_when_its_time_is_over() {
        let now = Instant::now();
        let mut arena = Arena::new(Slab::new(8, 64 << 10).unwrap());
        let (mut near, mut far) = (end(Side::Dialer, now), end(Side::Acceptor, now));
        for _ in 0..2 {
            pass(&mut near, &mut far, &mut arena, now);
            pass(&mut far, &mut near, &mut arena, now);
        }
        let address = "127.0.0.1:1".parse().unwrap();
        let open =
            |near: &mut LaneSlot| near.mux.open(Open { src: address, dst: address }, now).unwrap();
        let ids = [open(&mut near), open(&mut near)];
        pass(&mut near, &mut far, &mut arena, now);
        let until = now + Duration::from_micros(100);
        for id in ids {
            near.ending.push(id);
            near.ending_until = Some(until);
            assert!(near.next_timeout().is_some_and(|at| at <= until));
            pass(&mut near, &mut far, &mut arena, now);
            assert_eq!(fins(&mut far), 0);
            if id == ids[0] {
                open(&mut near);
                assert_eq!(pass(&mut near, &mut far, &mut arena, now), 1);
            } else {
                assert_eq!(pass(&mut near, &mut far, &mut arena, until), 1);
            }
            assert_eq!(fins(&mut far), 1);
            assert_eq!((near.ending.len(), near.ending_until), (0, None));
        }
    }
}
