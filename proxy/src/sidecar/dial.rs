//! Opens sockets: to where a client wanted to go, and to the pod's own application on behalf of a
//! client far away.

use super::error::SidecarError;

use super::{Marks, Options};
use crate::handoff::{DialFailure, Family, normalised};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// The other end of a relay may vanish without a word, and the client's own keepalives end here.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(300))
    .with_interval(Duration::from_secs(15))
    .with_retries(8);

/// Tells at start what would fail at every connection otherwise.
pub(super) fn check_privileges(marks: Marks) -> Result<(), SidecarError> {
    let probe = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
        .map_err(SidecarError::Socket)?;
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match set_mark(&probe, marks.passthrough) {
        Err(error) if denied(&error) => return Err(SidecarError::NoMark),
        other => other.map_err(SidecarError::Socket)?,
    }
    match set_transparent(&probe, marks, "127.0.0.1:1".parse().expect("an address")) {
        Err(error) if denied(&error) => Err(SidecarError::NoTransparent),
        other => other.map_err(SidecarError::Socket),
    }
}

/// Connects to where the client wanted to go, from the address that the client has.
pub(super) async fn to_original(
    options: &Options,
    src: SocketAddr,
    dst: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = new_socket(dst)?;
    set_mark(&socket, options.marks.passthrough)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    if src.is_ipv4() == dst.is_ipv4() && !src.ip().is_loopback() {
        rdmesh_sys::sockopt::set_bind_address_no_port(&socket, true)?;
        // A pod with several addresses keeps the one that it chose. Failing that, any will do.
        let _ = socket.bind(&without_port(src).into());
    }
    connect(socket, dst, options.connect_timeout).await
}

/// A port is rarely taken twice in a row.
const OTHER_PORTS_TRIED: u32 = 8;

/// A client may take a port again as soon as its own kernel has let go of it. Here the connection
/// before may still wait for the application's last acknowledgement.
const PORT_IS_FREE_AFTER: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
    Duration::from_millis(64),
    Duration::from_millis(128),
];

/// Connects to the pod's application at `dst` as `src`. See [`may_deliver`].
pub(super) async fn to_application(
    options: &Options,
    src: SocketAddr,
    dst: SocketAddr,
    time_max: Duration,
) -> Result<OwnedFd, DialFailure> {
    let (src, dst) = (normalised(src), normalised(dst));
    let time_max = time_max.min(options.connect_timeout);
    let mut opened = with_its_port(options.marks, src, dst, time_max).await;
    for wait in PORT_IS_FREE_AFTER {
        if !matches!(&opened, Err(error) if still_connected(error, src)) {
            break;
        }
        tokio::time::sleep(wait).await;
        opened = with_its_port(options.marks, src, dst, time_max).await;
    }
    // The client may be in this very pod (a service that leads back to it), where its port is
    // taken by itself; or the application listens on a port of the same number. The address is
    // what matters, so another port does. The kernel's own choice would pass over every port that
    // a delivery was bound to in the last minute, so that it is made here.
    for _ in 0..OTHER_PORTS_TRIED {
        if !matches!(&opened, Err(error) if port_is_taken(error)) {
            break;
        }
        opened = deliver(options.marks, other_port(src), dst, Port::AtConnect, time_max).await;
    }
    let stream = opened.map_err(|error| failure(&error))?;
    Ok(OwnedFd::from(stream.into_std().map_err(|_| DialFailure::Internal)?))
}

async fn with_its_port(
    marks: Marks,
    src: SocketAddr,
    dst: SocketAddr,
    time_max: Duration,
) -> io::Result<TcpStream> {
    let opened = deliver(marks, src, dst, Port::AtConnect, time_max).await;
    if matches!(&opened, Err(error) if port_is_taken(error)) {
        return deliver(marks, src, dst, Port::AtBind, time_max).await;
    }
    opened
}

/// Whether there is a connection with these very addresses and ports. One whose client is in this
/// pod is the client's own, and not about to end.
fn still_connected(error: &io::Error, src: SocketAddr) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable && !is_own_address(src)
}

/// Only the application itself is reached, as from outside: the node proxy may be wrong about
/// addresses, and what listens on loopback counts on not being reachable.
pub(super) fn may_deliver(listen_port: u16, src: SocketAddr, dst: SocketAddr) -> bool {
    let (src, dst) = (normalised(src), normalised(dst));
    let ordinary = |ip: IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
    src.is_ipv4() == dst.is_ipv4()
        && ordinary(src.ip())
        && ordinary(dst.ip())
        && src.port() != 0
        && dst.port() != 0
        && dst.port() != listen_port
        && is_own_address(dst)
}

/// Whether the address belongs to this network namespace. A socket without special rights can be
/// bound to such addresses alone.
pub(super) fn is_own_address(address: SocketAddr) -> bool {
    UdpSocket::bind(without_port(address)).is_ok()
}

/// A socket to which only the two addresses are missing.
pub(super) fn spare(marks: Marks, family: Family) -> io::Result<OwnedFd> {
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = for_delivery(marks, SocketAddr::new(any, 0))?;
    rdmesh_sys::sockopt::set_bind_address_no_port(&socket, true)?;
    // The worker, which has the client's first bytes at hand most often, sends the handshake's last
    // acknowledgement with them, or at once if it has none.
    sockopt::set_tcp_quickack(&socket, false)?;
    Ok(socket.into())
}

fn for_delivery(marks: Marks, dst: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(dst)?;
    set_mark(&socket, marks.delivery)?;
    set_transparent(&socket, marks, dst)?;
    spare_congestion_control(&socket);
    // One client port may have connections to several ports of this pod.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// When a delivery takes the client's port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    /// The port's number stays free for the connections that the application makes itself, also in
    /// the minute in which the kernel remembers this one after its end. Needs Linux 6.3 and a port
    /// of the range for outgoing connections; without them it is [`Port::AtBind`].
    AtConnect,
    /// An explicit bind: while it lasts, and a minute longer, no connect of this pod chooses this
    /// number. Several thousand clients a minute then leave the application none.
    AtBind,
}

async fn deliver(
    marks: Marks,
    src: SocketAddr,
    dst: SocketAddr,
    port: Port,
    time_max: Duration,
) -> io::Result<TcpStream> {
    let socket = for_delivery(marks, dst)?;
    let chosen = port == Port::AtConnect
        && outgoing_ports().contains(&src.port())
        && rdmesh_sys::sockopt::set_local_port_range(&socket, src.port(), src.port()).is_ok();
    if chosen {
        rdmesh_sys::sockopt::set_bind_address_no_port(&socket, true)?;
        socket.bind(&without_port(src).into())?;
    } else {
        socket.bind(&src.into())?;
    }
    let stream = connect(socket, dst, time_max).await?;
    // Somebody changed the range for outgoing connections meanwhile.
    if chosen && stream.local_addr()?.port() != src.port() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    Ok(stream)
}

/// The ports that this network namespace takes for outgoing connections; none when it is unknown.
pub(super) fn outgoing_ports() -> RangeInclusive<u16> {
    static PORTS: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    let read = || {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut ports = text.split_whitespace().map(|port| port.parse::<u16>().ok());
        Some(ports.next()??..=ports.next()??)
    };
    #[allow(clippy::reversed_empty_ranges)] // on purpose: it contains nothing
    PORTS.get_or_init(|| read().unwrap_or(1..=0)).clone()
}

fn new_socket(dst: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(dst), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// For hops that never leave the pod's kernel: a host whose default is BBR would pace them, which
/// was measured to cost four times the CPU. Reno is in every kernel and open to everybody; without
/// it the default does.
pub(super) fn spare_congestion_control(socket: &Socket) {
    if let Err(error) = socket.set_tcp_congestion(b"reno") {
        tracing::debug!(%error, "congestion control stays the default");
    }
}

fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    if mark == 0 { Ok(()) } else { socket.set_mark(mark) }
}

fn set_transparent(socket: &Socket, marks: Marks, family: SocketAddr) -> io::Result<()> {
    if marks.delivery == 0 { Ok(()) } else { become_transparent(socket, family) }
}

/// It may have an address that is not the pod's; an IPv6 socket of either family.
pub(super) fn become_transparent(socket: &Socket, family: SocketAddr) -> io::Result<()> {
    match family {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

async fn connect(socket: Socket, dst: SocketAddr, time_max: Duration) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    match timeout(time_max, socket.connect(dst)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn without_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// The same address with a random port from where clients' ports usually are.
fn other_port(mut address: SocketAddr) -> SocketAddr {
    const FIRST: u16 = 32_768;
    const COUNT: u32 = 28_232;
    let random = getrandom::u32().unwrap_or_else(|_| u32::from(address.port())) % COUNT;
    address.set_port(FIRST.saturating_add(u16::try_from(random).unwrap_or(0)));
    address
}

fn port_is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

fn failure(error: &io::Error) -> DialFailure {
    if error.kind() == io::ErrorKind::TimedOut {
        return DialFailure::Timeout;
    }
    Errno::from_io_error(error).map_or(DialFailure::Internal, DialFailure::of)
}
