//! What `rdmesh-proxy status` and the metrics say about peers.

use super::peer::{Link, Peer, State};
use super::wire::ControlHello;
use serde::Serialize;
use std::net::SocketAddr;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    pub name: String,
    /// As the directory says now.
    pub address: Option<SocketAddr>,
    /// `idle`, `dialing`, `backoff` or `up`.
    pub session: &'static str,
    pub dialed_by_us: bool,
    /// Of the last session; 0 before the first.
    pub incarnation: u64,
    pub workers: u16,
    /// Whether links to this peer are encrypted.
    pub encrypt: bool,
    pub draining: bool,
    /// Attempts in a row that failed.
    pub failures: u32,
    pub last_error: Option<String>,
    pub lanes: Vec<LaneStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneStatus {
    pub lane: u16,
    /// `none`, `asked`, `dialing`, `backoff` or `up`.
    pub link: &'static str,
    /// Streams wait for the next link.
    pub resuming: bool,
}

impl PeerStatus {
    pub(super) fn of(
        name: &str,
        address: Option<SocketAddr>,
        peer: &Peer,
        hello: Option<&ControlHello>,
        last_error: Option<String>,
    ) -> Self {
        let session = peer.session();
        let lane = |(number, lane): (&u16, &super::peer::Lane)| LaneStatus {
            lane: *number,
            link: match lane.link {
                Link::None => "none",
                Link::Asked { .. } => "asked",
                Link::Dialing => "dialing",
                Link::Backoff { .. } => "backoff",
                Link::Up { .. } => "up",
            },
            resuming: lane.resume,
        };
        Self {
            name: name.to_owned(),
            address,
            session: match peer.state() {
                State::Idle => "idle",
                State::Dialing { .. } => "dialing",
                State::Waiting { .. } => "backoff",
                State::Up { .. } => "up",
            },
            dialed_by_us: session.is_some_and(|session| session.dialed_by_us),
            incarnation: hello.map_or(0, |hello| hello.incarnation),
            workers: hello.map_or(0, |hello| hello.workers),
            encrypt: session.is_some_and(|session| session.encrypt),
            draining: peer.draining(),
            failures: peer.failures(),
            last_error,
            lanes: peer.lanes.iter().map(lane).collect(),
        }
    }
}
