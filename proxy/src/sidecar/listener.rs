//! The port where captured connections arrive.

use super::error::SidecarError;
use crate::handoff;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

const BACKLOG: i32 = 4096;
/// A node proxy lets go of what the sidecar before this one has lent as soon as it sees its end.
const PORT_IS_FREE_WITHIN: Duration = Duration::from_secs(1);

/// Listens on all addresses of both families, or of IPv4 where IPv6 is switched off.
pub(super) fn listen(port: u16) -> Result<OwnedFd, SidecarError> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let address = match listen_at(both) {
        Ok(socket) => return Ok(socket.into()),
        Err(error) if no_ipv6(&error) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        Err(error) => return Err(explain(both, error)),
    };
    Ok(listen_at(address).map_err(|error| explain(address, error))?.into())
}

fn listen_at(address: SocketAddr) -> io::Result<Socket> {
    let started = Instant::now();
    loop {
        match listen_now(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && started.elapsed() < PORT_IS_FREE_WITHIN =>
            {
                std::thread::sleep(PORT_IS_FREE_WITHIN / 20);
            }
            listening => return listening,
        }
    }
}

fn listen_now(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    super::dial::spare_congestion_control(&socket);
    socket.set_nonblocking(true)?;
    if let Err(error) = super::dial::become_transparent(&socket, address) {
        tracing::warn!(%error, "connections that the capture routes here are refused");
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::PROTONOSUPPORT)
    )
}

fn explain(address: SocketAddr, source: io::Error) -> SidecarError {
    match source.kind() {
        io::ErrorKind::AddrInUse => SidecarError::PortInUse { port: address.port() },
        _ => SidecarError::Listen { address, source },
    }
}

/// Next connection; waits for it.
pub(super) async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    loop {
        let mut guard = listener.readable().await?;
        match accept_now(listener.get_ref())? {
            Some(socket) => return Ok(socket),
            None => guard.clear_ready(),
        }
    }
}

/// Next connection, if one waits.
pub(super) fn accept_now(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    loop {
        match handoff::accept_stream(listener) {
            Ok((socket, _)) => return Ok(Some(socket)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) if handoff::is_about_one_connection(error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a connection is to be accepted.
pub(super) fn is_waiting(listener: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    // An error is for the accept to tell.
    poll(&mut fds, Some(&Timespec::default())) != Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::check_stream_socket;

    #[tokio::test]
    async fn both_families_arrive_and_nodelay_is_inherited() {
        let listener = listen(0).unwrap();
        let port = handoff::check_listener(&listener).unwrap();
        let listener = rdmesh_sys::readiness::watch(listener).unwrap();
        for host in ["127.0.0.1", "::1"] {
            let client = tokio::net::TcpStream::connect((host, port)).await.unwrap();
            let accepted = accept(&listener).await.unwrap();
            let ends = check_stream_socket(&accepted).unwrap();
            assert_eq!(ends.peer, client.local_addr().unwrap());
            assert!(rustix::net::sockopt::tcp_nodelay(&accepted).unwrap());
            // Not captured: it wanted to come here.
            assert_eq!(handoff::original_destination(&accepted, ends.local, port), ends.local);
        }
        assert!(matches!(listen(port), Err(SidecarError::PortInUse { .. })));
    }
}
