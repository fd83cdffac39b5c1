//! Capture: programs a pod's network namespace, so that outgoing TCP connections arrive at the
//! sidecar and deliveries can carry the client's own address.
//!
//! Two things are set up, both through netlink alone:
//! - the nftables table `inet rdmesh`, replaced as a whole in one transaction, so that running
//!   twice leaves the same state (counters begin anew) and nobody ever sees half of it. Needs Linux
//!   5.2 or newer with IPv6 built in (it may be switched off).
//! - policy routing: packets with the mark [`Marks::delivery`] are local, whatever their address.
//!   This needs some route to the client, usually the pod's default route. Our rules and routes
//!   bear a routing protocol number of their own, and only those that bear it are ever removed.
//!
//! Besides, `lo` may take packets of 256 KiB, where the kernel can: they spare CPU in bulk.
//!
//! There are two ways, [`Method`]. By **redirect**, chain `output` translates the destination to
//! the sidecar's, and chain `route` marks the answers to delivered connections; both ask connection
//! tracking about each packet. It needs no sysctl, and Kubernetes lets an ordinary container write
//! none. Where the pod has been given [`rdmesh_config::ROUTING_SYSCTLS`], capture **routes**: the
//! pod's own routing leads what is captured to `lo`, where chain `divert` hands the first packet to
//! the sidecar's transparent listener. Nothing is tracked or translated.
//!
//! What it does not do: `exclude_inbound_ports` is nothing of the namespace, the directory tells
//! peers about it. UDP, ICMP and whatever is on its way in are never touched, but for a mark where
//! capture routes. No sysctl is written. A connection that the pod makes to its own address goes
//! over `lo` and is not captured. Where one local port is in use towards several servers at a time,
//! the redirect has to translate the source port of all but one: the sidecar then sees the client's
//! address with another port.

mod error;
mod marks;
mod nft;
mod plan;
mod ranges;
mod routes;
mod sysctls;

pub use error::CaptureError;
pub use marks::Marks;

use rdmesh_config::Capture;
use std::net::{Ipv6Addr, UdpSocket};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// How packets get to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Their destination is translated.
    Redirect,
    /// They are routed to `lo`.
    Route,
}

/// What [`apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Whether IPv6 is captured too: not where it is switched off in the namespace.
    pub ipv6: bool,
    pub method: Method,
}

/// More would make the start of a pod slow: each is a message to the kernel.
const CAPTURE_ROUTES_MAX: usize = 10_000;

/// Programs the network namespace of the calling thread: outgoing TCP that `config` includes goes
/// to `listen_port`. Whatever an earlier run left is replaced.
///
/// # Errors
/// What the operator has to change; the namespace is then as it was before.
pub fn apply(config: &Capture, listen_port: u16) -> Result<Applied, CaptureError> {
    let ipv6 = has_ipv6();
    let plan = |method| plan::Plan::new(config, listen_port, ipv6, method);
    let redirect = plan(Method::Redirect)?;
    let routes = routes::Routes::open()?;
    // Captured connections and deliveries go over it.
    if !routes.loopback_is_up()? {
        return Err(CaptureError::LoopbackDown);
    }
    let mut method = Method::Redirect;
    if sysctls::are_set(ipv6) && is_free_to_route(&routes)? {
        match set_up(&plan(Method::Route)?, &routes) {
            Ok(()) => method = Method::Route,
            Err(error) => {
                tracing::warn!(%error, "capture redirects, although the sysctls would let it route");
            }
        }
    }
    if method == Method::Redirect {
        set_up(&redirect, &routes)?;
    }
    routes.enlarge_loopback_packets();
    Ok(Applied { ipv6, method })
}

fn set_up(plan: &plan::Plan, routes: &routes::Routes) -> Result<(), CaptureError> {
    if plan.routing.captured.as_ref().is_some_and(|c| c.networks.len() > CAPTURE_ROUTES_MAX) {
        return Err(CaptureError::TooManyRoutes { limit: CAPTURE_ROUTES_MAX });
    }
    let mut added = routes.add_tables(&plan.routing)?;
    if let Err(error) = nft::install(plan) {
        routes.undo(&added);
        return Err(error);
    }
    // Last: what they lead to `lo` finds the sidecar only by the table's rules.
    if let Err(error) = routes.add_capture(&plan.routing, &mut added) {
        routes.undo(&added);
        let _ = nft::remove();
        return Err(error);
    }
    routes.remove_others(&plan.routing)
}

/// To route what the pod sends changes the way of connections that it has already, unless they
/// began under the same rule.
fn is_free_to_route(routes: &routes::Routes) -> Result<bool, CaptureError> {
    if routes.route_captures()? {
        return Ok(true);
    }
    let connected = sysctls::has_connections();
    if connected {
        tracing::info!("capture redirects: the pod has connections, which routing would break");
    }
    Ok(!connected)
}

/// Removes all that any [`apply`] left in the network namespace of the calling thread, whatever its
/// config was. Nothing there is success. Captured connections that are still open break: their
/// address translation goes with the last chain that could make one, or their route does.
///
/// # Errors
/// What the operator has to change.
pub fn cleanup() -> Result<(), CaptureError> {
    let routes = routes::Routes::open()?;
    // What they lead to `lo` would be refused there without the table.
    routes.remove_capture()?;
    nft::remove()?;
    routes.restore_loopback_packets();
    routes.remove_all()
}

/// Redirected IPv6 connections go to `::1`, so whether that can be bound is the question.
fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
