//! Making and checking sockets: the Unix sockets of the channels, and the TCP sockets that are
//! handed over.

use super::error::HandoffError;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, ipproto, sockopt,
};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

const BACKLOG: i32 = 64;

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn unix_address(path: &Path) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|errno| {
        let why = format!(
            "{} cannot be the path of a Unix socket ({errno}): it has {} bytes, 108 is the most",
            path.display(),
            path.as_os_str().len()
        );
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })
}

/// Listens at `path`, non-blocking. A socket that a dead process left there is removed.
///
/// Everyone who can reach the path may connect: the directory, mounted into one pod only, is the
/// guard, and a sidecar runs under another uid than the node proxy.
///
/// # Errors
/// `AddrInUse` when a living process listens there; what the system says otherwise.
pub fn listen(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    let address = unix_address(path)?;
    remove_stale(path)?;
    let socket = unix_socket()?;
    net::bind(&socket, &address)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let why = format!("{} exists and is not a socket: remove it", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => {
            let why = format!("another process listens at {}: stop it first", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
    }
}

/// Next connection at a socket of [`listen`], non-blocking; `None` when there is none.
///
/// # Errors
/// What `accept4` says.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    loop {
        match net::accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => return Ok(Some(socket)),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Connects to the listener at `path` without waiting.
///
/// # Errors
/// What the system says; `WouldBlock` when the listener's backlog is full.
pub fn connect(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let address = unix_address(path.as_ref())?;
    let socket = unix_socket()?;
    net::connect(&socket, &address)?;
    Ok(socket)
}

/// Both ends of a connected TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSocket {
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// Checks that a descriptor from another process is a connected TCP socket and nothing else.
///
/// # Errors
/// [`HandoffError::NotAStream`] with what is wrong about it.
pub fn check_stream_socket(fd: impl AsFd) -> Result<StreamSocket, HandoffError> {
    check_tcp(&fd)?;
    connected_ends(fd)
}

/// Checks that a descriptor from another process is a TCP socket that listens, and tells its port.
///
/// # Errors
/// [`HandoffError::NotAStream`] with what is wrong about it.
pub fn check_listener(fd: impl AsFd) -> Result<u16, HandoffError> {
    check_tcp(&fd)?;
    if !sockopt::socket_acceptconn(&fd)? {
        return Err(HandoffError::NotAStream("does not listen"));
    }
    Ok(inet(net::getsockname(&fd)?)?.port())
}

fn check_tcp(fd: impl AsFd) -> Result<(), HandoffError> {
    let refuse = HandoffError::NotAStream;
    if sockopt::socket_type(&fd).map_err(|_| refuse("no socket"))? != SocketType::STREAM {
        return Err(refuse("no stream socket"));
    }
    match sockopt::socket_protocol(&fd)? {
        Some(ipproto::TCP) => Ok(()),
        _ => Err(refuse("protocol is not TCP")),
    }
}

/// Next connection at a TCP listener, non-blocking, and where it comes from.
///
/// # Errors
/// What `accept4` says; see [`is_about_one_connection`].
pub fn accept_stream(listener: impl AsFd) -> Result<(OwnedFd, SocketAddr), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) = net::acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    // A client that has gone already has no address.
    Ok((socket, normalised(peer.ok_or(Errno::CONNABORTED)?)))
}

/// `accept4` also tells network errors of the connection that it would have returned.
#[must_use]
pub fn is_about_one_connection(error: Errno) -> bool {
    !matches!(
        error,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::BADF | Errno::INVAL
    )
}

/// Where a connection wanted to go that was accepted at `local`, by the listener at `port`. By
/// another port it was routed here, and bears its destination; by that port it was redirected, and
/// connection tracking tells. Whoever connects to the listener itself wanted to go to `local`.
#[must_use]
pub fn original_destination(socket: impl AsFd, local: SocketAddr, port: u16) -> SocketAddr {
    if local.port() != port {
        return local;
    }
    let tracked = match local {
        SocketAddr::V4(_) => sockopt::ip_original_dst(socket).map(SocketAddr::V4),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(socket).map(SocketAddr::V6),
    };
    tracked.map_or(local, normalised)
}

/// The socket's own end.
///
/// # Errors
/// When it is no internet socket.
pub fn local_end(socket: impl AsFd) -> io::Result<SocketAddr> {
    inet(net::getsockname(socket)?).map_err(io::Error::other)
}

/// Both ends of a socket that is known to be TCP's.
///
/// # Errors
/// [`HandoffError::NotAStream`] when it is not connected (any more).
pub fn connected_ends(fd: impl AsFd) -> Result<StreamSocket, HandoffError> {
    // A listening socket has no peer either.
    let peer = net::getpeername(&fd).ok().flatten();
    let peer = peer.ok_or(HandoffError::NotAStream("not connected"))?;
    let local = net::getsockname(&fd)?;
    Ok(StreamSocket { local: inet(local)?, peer: inet(peer)? })
}

fn inet(address: SocketAddrAny) -> Result<SocketAddr, HandoffError> {
    SocketAddr::try_from(address)
        .map(normalised)
        .map_err(|_| HandoffError::NotAStream("no internet address"))
}

/// An IPv4 address in IPv6 clothes, as dual-stack sockets tell it, becomes plain IPv4.
#[must_use]
pub fn normalised(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), address.port()),
        IpAddr::V6(_) => address,
    }
}
