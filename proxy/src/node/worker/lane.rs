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
        let rest = [self.path.renew_at, self.release_at];
        let all = [self.mux.poll_timeout(), waiting, attempt].into_iter().chain(rest);
        all.flatten().min()
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
