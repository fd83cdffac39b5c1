//! The one place that names the back ends.

use super::tcp::TcpLink;
use super::{Broken, Established, Link};
use rdmesh_sys::slab::Slab;
use std::io;

/// Makes the link for an authenticated connection. `receive` is the memory messages arrive in.
///
/// # Errors
/// When the socket refuses its options or the slab is empty.
pub fn link(established: Established, receive: &Slab) -> Result<Box<dyn Link>, Broken> {
    Ok(Box::new(TcpLink::new(established, receive)?))
}

/// Memory for the messages that a worker receives: enough buffers for what slow streams hold back
/// under `window_budget_bytes`, in the size the back ends read best.
///
/// # Errors
/// What the mapping says.
pub fn receive_slab(message_bytes_max: usize, window_budget_bytes: u64) -> io::Result<Slab> {
    super::tcp::receive_slab(message_bytes_max, window_budget_bytes)
}
