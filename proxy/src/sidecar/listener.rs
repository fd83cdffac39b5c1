//! The port that capture redirects to, and where a redirected connection wanted to go.

use super::error::SidecarError;
use crate::handoff::{StreamSocket, normalised};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::unix::AsyncFd;

const BACKLOG: i32 = 4096;

/// Tells where a redirected connection wanted to go.
pub(super) type Lookup = Box<dyn Fn(BorrowedFd<'_>, &StreamSocket) -> io::Result<SocketAddr>>;

/// Asks connection tracking, which did the redirect.
pub(super) fn original_destination(
    socket: BorrowedFd<'_>,
    ends: &StreamSocket,
) -> io::Result<SocketAddr> {
    let destination = match ends.local {
        SocketAddr::V4(_) => SocketAddr::V4(sockopt::ip_original_dst(socket)?),
        SocketAddr::V6(_) => SocketAddr::V6(sockopt::ipv6_original_dst(socket)?),
    };
    Ok(normalised(destination))
}

/// Listens on all addresses of both families, or of IPv4 where IPv6 is switched off.
pub(super) fn listen(port: u16) -> Result<AsyncFd<OwnedFd>, SidecarError> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let address = match listen_at(both) {
        Ok(socket) => return watch(socket),
        Err(error) if no_ipv6(&error) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        Err(error) => return Err(explain(both, error)),
    };
    watch(listen_at(address).map_err(|error| explain(address, error))?)
}

fn watch(socket: Socket) -> Result<AsyncFd<OwnedFd>, SidecarError> {
    rdmesh_sys::readiness::watch(socket.into()).map_err(SidecarError::Socket)
}

fn listen_at(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    super::dial::spare_congestion_control(&socket);
    socket.set_nonblocking(true)?;
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

/// Next connection.
pub(super) async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let mut guard = listener.readable().await?;
        match guard.try_io(|listener| Ok(acceptfrom_with(listener.get_ref(), flags)?)) {
            Ok(Ok((socket, _))) => return Ok(socket),
            Ok(Err(error)) if is_about_one_connection(&error) => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

/// `accept4` also tells network errors of the connection that it would have returned.
fn is_about_one_connection(error: &io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else { return false };
    !matches!(
        errno,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::BADF | Errno::INVAL
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::check_stream_socket;
    use std::os::fd::AsFd;

    #[tokio::test]
    async fn both_families_arrive_and_nodelay_is_inherited() {
        let listener = listen(0).unwrap();
        let port = SocketAddr::try_from(rustix::net::getsockname(listener.get_ref()).unwrap())
            .unwrap()
            .port();
        for host in ["127.0.0.1", "::1"] {
            let client = tokio::net::TcpStream::connect((host, port)).await.unwrap();
            let accepted = accept(&listener).await.unwrap();
            let ends = check_stream_socket(&accepted).unwrap();
            assert_eq!(ends.peer, client.local_addr().unwrap());
            assert!(sockopt::tcp_nodelay(&accepted).unwrap());
            // Not redirected: there is nothing to find out, or nothing else than where it arrived.
            let original = original_destination(accepted.as_fd(), &ends);
            assert!(original.map_or(true, |original| original == ends.local));
        }
        assert!(matches!(listen(port), Err(SidecarError::PortInUse { .. })));
    }
}
