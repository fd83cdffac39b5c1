//! The multiplexer: many streams over one lane, as a state machine.
//!
//! A [`Lane`] is one endpoint. Messages, bytes and `Instant`s go in; messages, bytes and events
//! come out. It keeps the order and the completeness of every stream over any number of links,
//! holds the peer to its windows and credits, and schedules fairly.
//!
//! What it does not do: read a clock, touch a socket, start a thread, or know what carries its
//! messages. It does not judge addresses either: who may open a stream is the caller's matter.
//!
//! A caller moves messages between link and lane like this, in any order and as often as it likes:
//! feed what arrived ([`Lane::on_message`]), say what was reposted ([`Lane::grant`]), take events
//! until there are none, take messages until there are none, sleep until [`Lane::poll_timeout`].

mod blank;
mod budget;
mod config;
mod fins;
pub mod fuzz;
mod lane;
mod receive;
#[cfg(test)]
mod sim;
mod streams;
#[cfg(test)]
mod tests;
mod transmit;
mod types;
mod unacked;
mod windows;
mod wire;

pub use blank::Blank;
pub use budget::Budget;
pub use config::LaneConfig;
pub use lane::Lane;
pub use transmit::{TAILS_MAX, Transmit};
pub use types::{
    Event, LaneStats, LinkDeadReason, LostReason, Open, OpenError, Payload, ProtocolError,
    RefuseReason, ResetReason, SendError, Side, StreamId,
};
pub use wire::{
    DATA_BYTES, HEADER_BYTES, MESSAGE_BYTES_MIN, VERSION, message_length, message_sizes,
    tail_lengths,
};
