//! The words of the peer's state machine: what goes out of it, and what it remembers.

use super::backoff::Backoff;
use super::wire::{ControlMessage, Refusal, Token};
use crate::node::messages::{LinkId, NodeName, UnavailableReason};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct PeerConfig {
    pub own: NodeName,
    pub handshake: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

/// What the manager shall do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect and make a control session; report with this attempt's number.
    Dial {
        attempt: u64,
    },
    CancelDial,
    CloseSession {
        session: u64,
    },
    Send(ControlMessage),
    /// Issue a token for the lane and send it.
    IssueToken {
        lane: u16,
    },
    /// Connect and present the token.
    DialLink {
        lane: u16,
        token: Token,
    },
    /// To all workers.
    PeerGone,
    PeerDraining,
    /// To the worker of the lane.
    Unavailable {
        lane: u16,
        reason: UnavailableReason,
    },
}

/// Why a dial led to no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// Nobody listens: the peer's process is gone.
    Refused,
    Unreachable,
    Handshake,
    Version,
    /// The peer said no.
    Declined(Refusal),
    /// The directory has no address.
    Unknown,
}

impl DialFailure {
    pub fn reason(self) -> UnavailableReason {
        match self {
            Self::Refused => UnavailableReason::Refused,
            Self::Unreachable => UnavailableReason::Unreachable,
            Self::Version | Self::Declined(Refusal::Version) => UnavailableReason::Version,
            Self::Declined(Refusal::Limits) => UnavailableReason::Limits,
            Self::Declined(Refusal::Draining) => UnavailableReason::Draining,
            Self::Unknown => UnavailableReason::Unknown,
            Self::Handshake | Self::Declined(_) => UnavailableReason::Handshake,
        }
    }
}

/// A session that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub id: u64,
    pub dialed_by_us: bool,
    pub incarnation: u64,
    pub lanes: u16,
    pub encrypt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Idle,
    Dialing { attempt: u64, connected: bool },
    Waiting { until: Instant },
    Up { session: Session, since: Instant },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    None,
    /// A token was asked for (dialer) or given (acceptor).
    Asked {
        until: Instant,
    },
    Dialing,
    Backoff {
        until: Instant,
    },
    Up {
        id: LinkId,
        since: Instant,
    },
}

#[derive(Debug)]
pub struct Lane {
    pub link: Link,
    /// The worker holds state of this lane that waits for another link.
    pub resume: bool,
    /// The worker asked and wants an answer until then.
    pub waiting: Option<Instant>,
    /// The link that the worker got last; it holds the lane until it says otherwise.
    pub last_id: Option<LinkId>,
    pub backoff: Backoff,
}

impl Lane {
    pub fn new(config: &PeerConfig) -> Self {
        let backoff = Backoff::new(config.backoff_min, config.backoff_max);
        Self { link: Link::None, resume: false, waiting: None, last_id: None, backoff }
    }

    pub fn wanted(&self) -> bool {
        self.resume || self.waiting.is_some()
    }

    pub fn in_use(&self) -> bool {
        self.wanted() || self.last_id.is_some()
    }
}
