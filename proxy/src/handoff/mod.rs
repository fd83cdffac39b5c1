//! Handoff: how a pod's sidecar gives sockets to the node proxy of its node, and gets them back.
//!
//! One `SOCK_SEQPACKET` Unix socket per pod; the sidecar opens one connection per worker of the
//! node proxy. Every message is one packet with a fixed little-endian layout and at most one file
//! descriptor. A connection of a client belongs to the sidecar until it receives
//! [`ToSidecar::Taken`]; a sidecar that loses the channel reads what has arrived before it decides
//! who owns what. A sidecar also lends its listening socket ([`ToNode::Listener`]): what the node
//! proxy accepts there itself, and carries, costs no message at all.
//!
//! What it does not do: decide anything about a connection, keep a list of them, or wait. It is
//! driven by whoever owns the event loop, on either side.

mod channel;
mod error;
mod reason;
mod socket;
mod wire;

#[cfg(test)]
mod tests;

pub use channel::{Channel, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX};
pub use error::{HandoffError, WireError};
pub use reason::{DialFailure, PassthroughReason, RejectReason};
pub use socket::{
    StreamSocket, accept, accept_stream, check_listener, check_stream_socket, connect,
    connected_ends, is_about_one_connection, listen, local_end, normalised, original_destination,
};
pub use wire::{
    EARLY_BYTES_MAX, Family, FdRule, Message, NODE_NAME_BYTES_MAX, ToNode, ToSidecar, VERSION,
};

/// Decodes `bytes` as either direction's message and checks that what was understood encodes to
/// the same bytes. The entry point of the fuzz target.
///
/// # Panics
/// When a decoded message does not encode to the bytes that it came from: a fault of this room.
pub fn fuzz_decode(bytes: &[u8]) {
    fn round_trip<M: Message>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            let mut again = Vec::new();
            message.encode(&mut again);
            assert_eq!(again, bytes, "decoding and encoding disagree");
        }
    }
    round_trip::<ToNode>(bytes);
    round_trip::<ToSidecar>(bytes);
}
