//! Capture: programs a pod's network namespace, so that outgoing TCP connections arrive at the
//! sidecar and deliveries can carry the client's own address.
//!
//! Two things are set up, both through netlink alone:
//! - the nftables table `inet rdmesh`, replaced as a whole in one transaction, so that running
//!   twice leaves the same state (counters begin anew) and nobody ever sees half of it. Chain
//!   `output` redirects; chain `route` marks the answers to delivered connections. Needs Linux 5.2
//!   or newer with IPv6 built in (it may be switched off).
//! - policy routing: packets with the mark [`Marks::delivery`] are local, whatever their address.
//!   This needs no sysctl (Kubernetes lets an ordinary container write none), but some route to the
//!   client, usually the pod's default route. Our rules and routes bear a routing protocol number
//!   of their own, and only those that bear it are ever removed.
//!
//! What it does not do: `exclude_inbound_ports` is nothing of the namespace, the directory tells
//! peers about it. UDP, ICMP and whatever is on its way in are never touched. No sysctl is written.
//! A connection that the pod makes to its own address goes over `lo` and is not captured. Where one
//! local port is in use towards several servers at a time, the redirect has to translate the source
//! port of all but one: the sidecar then sees the client's address with another port.

mod error;
mod marks;
mod nft;
mod plan;
mod ranges;
mod routes;

pub use error::CaptureError;
pub use marks::Marks;

use rdmesh_config::Capture;
use std::net::{Ipv6Addr, UdpSocket};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What [`apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Whether IPv6 is captured too: not where it is switched off in the namespace.
    pub ipv6: bool,
}

/// Programs the network namespace of the calling thread: outgoing TCP that `config` includes goes
/// to `listen_port`. Whatever an earlier run left is replaced.
///
/// # Errors
/// What the operator has to change; the namespace is then as it was before.
pub fn apply(config: &Capture, listen_port: u16) -> Result<Applied, CaptureError> {
    let ipv6 = has_ipv6();
    let plan = plan::Plan::new(config, listen_port, ipv6)?;
    let routes = routes::Routes::open()?;
    // Redirected connections and deliveries go over it.
    if !routes.loopback_is_up()? {
        return Err(CaptureError::LoopbackDown);
    }
    let added = routes.add(&plan.routing)?;
    if let Err(error) = nft::install(&plan) {
        routes.undo(&added);
        return Err(error);
    }
    routes.remove_others(&plan.routing)?;
    Ok(Applied { ipv6 })
}

/// Removes all that any [`apply`] left in the network namespace of the calling thread, whatever its
/// config was. Nothing there is success. Captured connections that are still open break, because
/// the kernel drops their address translation with the last chain that could make one.
///
/// # Errors
/// What the operator has to change. New connections are no longer captured once the table is gone,
/// which comes first.
pub fn cleanup() -> Result<(), CaptureError> {
    nft::remove()?;
    routes::Routes::open()?.remove_all()
}

/// Redirected IPv6 connections go to `::1`, so whether that can be bound is the question.
fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
