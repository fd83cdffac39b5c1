//! Back ends that carry the messages of a lane: one link at a time, message in, message out.
//!
//! A link keeps order, delivers whole messages and reports that it broke; what was lost with it is
//! the lane's to send again. What a link does not do: know streams, or choose another link.

mod connection;
mod negotiate;
pub mod select;
mod session;
mod tcp;
#[cfg(feature = "verbs")]
mod verbs;

pub use negotiate::{Absence, Why};

use crate::mux::{self, Transmit};
use rdmesh_sys::slab::Payload;
use smallvec::SmallVec;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::time::Instant;
use thiserror::Error;

impl mux::Payload for Payload {
    fn split_to(&mut self, n: usize) -> Self {
        Payload::split_to(self, n)
    }

    fn len(&self) -> usize {
        Payload::len(self)
    }

    fn whole(&self) -> bool {
        self.is_piped()
    }
}

/// A message as a link brings it.
#[derive(Clone)]
pub struct Message {
    /// The whole message, or its head.
    pub head: Payload,
    /// What follows the head, where it was received apart.
    pub tails: Option<SmallVec<[Payload; 4]>>,
}

impl Message {
    /// Gives it to its lane.
    ///
    /// # Errors
    /// What the lane says of it.
    pub fn deliver(
        self,
        lane: &mut mux::Lane<Payload>,
        now: Instant,
    ) -> Result<(), mux::ProtocolError> {
        match self.tails {
            None => lane.on_message(self.head, now),
            Some(tails) => lane.on_parts(self.head, tails.into_iter(), now),
        }
    }
}

impl From<Payload> for Message {
    fn from(whole: Payload) -> Self {
        Self { head: whole, tails: None }
    }
}

/// A connection to a peer that the handshake has authenticated.
pub struct Established {
    pub socket: TcpStream,
    /// With a session the payload goes through it; it may hold bytes that came with the handshake.
    pub tls: Option<rustls::Connection>,
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established")
            .field("socket", &self.socket)
            .field("encrypted", &self.tls.is_some())
            .finish()
    }
}

/// Why a link can no longer be used.
#[derive(Debug, Error)]
pub enum Broken {
    #[error("the peer closed the connection")]
    Closed,
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("RDMA device: {0}")]
    Device(String),
    #[error("queue pair: {0}")]
    Completion(&'static str),
    #[error("node.fabric is verbs, but: {0}")]
    NoVerbs(String),
    #[error("negotiation of the fabric: {0}")]
    Negotiation(&'static str),
    #[error("message framing: {0}")]
    Framing(#[from] mux::ProtocolError),
}

/// Whether a link has more to give at once, without waiting for its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    Drained,
    More,
}

/// What every back end does. Nothing here blocks.
pub trait Link {
    /// Whether another message may be posted before the posted ones have left.
    fn has_room(&self) -> bool;
    /// Queues a message; the link shares its buffers until they have left.
    fn post_send(&mut self, message: Transmit<Payload>);
    /// Pushes out what is posted, in one batch.
    fn flush(&mut self) -> Result<(), Broken>;
    /// Appends complete messages to `messages`, up to a fair share at a time.
    fn receive(&mut self, messages: &mut Vec<Message>) -> Result<Received, Broken>;
    /// Whether it sends bytes that are in a pipe without copying them.
    fn takes_pipes(&self) -> bool {
        false
    }
    /// Whether `receive` has something, or may send more, as far as can be told without a system
    /// call. A back end that cannot tell says no: its descriptor does.
    fn poll(&mut self) -> bool {
        false
    }
    /// The descriptor was readable.
    fn noticed(&mut self) {}
    /// Before the caller sleeps: has the descriptor tell of what comes from now on. False when
    /// `receive` has something already. A back end that can be polled may be silent otherwise.
    fn rest(&mut self) -> bool {
        true
    }
    /// How many receive buffers were posted anew since the last call: the peer may send so many
    /// messages more.
    fn granted(&mut self) -> u32;
    /// Readable: call `receive`. Writable: call `flush`. Edge-triggered use is fine.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// Readable when something other than messages happens, which is seldom: call `alarmed`, then
    /// `receive`.
    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn alarmed(&mut self) {}
    /// The connection that it was negotiated on.
    fn connection(&self) -> BorrowedFd<'_>;
}
