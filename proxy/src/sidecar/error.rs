//! What keeps a sidecar from starting.

use std::io;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    #[error(
        "cannot listen on TCP port {port}: it is in use; stop the other process or set another sidecar.listen_port (capture redirects to it)"
    )]
    PortInUse { port: u16 },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(
        "missing CAP_NET_RAW: without it IP_TRANSPARENT is refused and connections cannot reach the application from the client's own address; add NET_RAW to the container's capabilities"
    )]
    NoTransparent,
    #[error(
        "missing CAP_NET_RAW (before Linux 5.17: CAP_NET_ADMIN): without it SO_MARK is refused and the sidecar's own connections would be captured again; add the capability to the container"
    )]
    NoMark,
    #[error("cannot set up a socket: {0}")]
    Socket(#[source] io::Error),
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}
