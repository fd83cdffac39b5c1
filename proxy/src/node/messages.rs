//! What the control thread and the workers say to each other.
//!
//! What it does not do: carry bytes of streams; those never leave their worker.

use super::status::WorkerStatus;
use crate::directory::Pod;
use crate::fabric::Established;
use crate::handoff::Channel;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

pub use super::mailbox::Mailbox;

/// The name of a node: the SAN of its certificate and its name in the directory.
pub type NodeName = Arc<str>;

/// Which end of a lane this node is. It decides the parity of stream ids, so it must be the same
/// after every resume: it follows from the names alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Dialer,
    Acceptor,
}

impl Side {
    /// The node with the lower name is the dialer.
    #[must_use]
    pub fn of(own: &str, peer: &str) -> Self {
        if own < peer { Self::Dialer } else { Self::Acceptor }
    }
}

/// Lanes with this number and higher never use RDMA: those of pods that want none. Both ends see
/// the number, and do so alike. The rest of it is a number as any other's.
pub const TCP_LANES: u16 = 10_000;

/// A lane's number among its kind: the worker that serves it follows from that.
#[must_use]
pub fn lane_index(lane: u16) -> u16 {
    lane % TCP_LANES
}

/// Whether two nodes of which the larger has so many workers have this lane.
#[must_use]
pub fn lane_exists(lane: u16, workers: u16) -> bool {
    lane < 2 * TCP_LANES && lane_index(lane) < workers
}

/// Distinguishes the links that a lane had in its life, so that late news about an old one does
/// no harm to the new one. Unique in the process.
pub type LinkId = u64;

/// Why a peer cannot be had now. The stable names are label values of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnavailableReason {
    /// The directory does not know the node (any more).
    Unknown,
    /// Nobody listens at the node's address.
    Refused,
    /// No way to the node, or no answer in time.
    Unreachable,
    /// Mutual TLS or the exchange of hellos failed: see the log.
    Handshake,
    /// No protocol version in common.
    Version,
    /// A recent attempt failed and the next is not due yet.
    Backoff,
    /// The peer, or this node, is about to stop.
    Draining,
    /// More peers or lanes than configured.
    Limits,
}

impl UnavailableReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "peer_unknown",
            Self::Refused => "peer_refused",
            Self::Unreachable => "peer_unreachable",
            Self::Handshake => "peer_handshake",
            Self::Version => "peer_version",
            Self::Backoff => "peer_backoff",
            Self::Draining => "peer_draining",
            Self::Limits => "peer_limits",
        }
    }
}

/// Control thread to worker.
#[derive(Debug)]
pub enum Command {
    /// A link for a lane, also unasked when the peer wanted it. If the lane still has an older
    /// link this one replaces it: close the old one without reporting it as broken.
    LinkUp {
        peer: NodeName,
        /// Of the peer's process; another value than before means that its state is gone.
        incarnation: u64,
        lane: u16,
        side: Side,
        link_id: LinkId,
        link: Box<Established>,
    },
    /// The peer's process ended: nothing of its lanes can be resumed, reset their streams now.
    /// A `NeedLane` that is not answered yet still will be.
    PeerGone { peer: NodeName },
    /// No lane can be had from this peer for now: opens that wait for one pass through. Lanes
    /// that have streams keep waiting for their next link.
    PeerUnavailable { peer: NodeName, reason: UnavailableReason },
    /// The peer is about to stop: open no new streams to it, until `PeerGone` or a `LinkUp` of
    /// another incarnation.
    PeerDraining { peer: NodeName },
    /// A pod's sidecar has connected and was greeted.
    Handoff { pod: Arc<Pod>, channel: Channel },
    /// Tell the worker's state.
    Inspect { answer: oneshot::Sender<WorkerStatus> },
    /// Open no new streams, and end at `until` whatever is left.
    Drain { until: Instant },
}

/// Worker to control thread. A worker that finds the queue full keeps the request and sends it
/// later; each is sent once per cause, so they are few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make a link for this lane. Answered by `LinkUp` or `PeerUnavailable` within two seconds.
    /// If it crosses a `LinkUp` on the way, that is the answer.
    NeedLane { peer: NodeName, lane: u16 },
    /// The link died. Another is made until `LaneIdle`, `PeerGone` or the end of the peer.
    LinkBroken { peer: NodeName, lane: u16, link_id: LinkId, reason: String },
    /// The worker has given the lane up and closed its link.
    LaneIdle { peer: NodeName, lane: u16 },
}
