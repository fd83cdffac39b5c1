//! Spare sockets of a pod: its sidecar makes them ahead of time, the worker connects one to the
//! application when a stream arrives. A delivery then costs no wake-up of the sidecar.
//!
//! What it does not do: decide who may be reached, or cope with anything unusual. Whatever is not
//! connected at once, from exactly the client's address and port, is left to the sidecar.

use crate::handoff::{Family, StreamSocket, connected_ends};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// Kept ready for each family.
const READY: u32 = 64;
/// The sidecar is asked for more when so few are left, so that one wake-up makes several.
const LOW: usize = 32;
/// Addresses of one pod that are remembered.
const ADDRESSES_MAX: usize = 16;

/// As `linux/socket.h` has it; rustix has no name for it.
const MSG_FASTOPEN: u32 = 0x2000_0000;

/// Of one pod, for as long as its sidecar's channel lasts.
#[derive(Default)]
pub(super) struct Spares {
    v4: Pool,
    v6: Pool,
    /// The sidecar has connected to them: they are the pod's own. Towards any other address a
    /// socket with a foreign source address would speak to the outside.
    addresses: Vec<IpAddr>,
}

#[derive(Default)]
struct Pool {
    ready: Vec<OwnedFd>,
    /// Outside of these the kernel would take another port than the client's, and the application
    /// would see a connection that ends at once.
    ports: (u16, u16),
    /// Asked for and not here yet.
    expected: u32,
    /// The kernel cannot choose the client's port at connect (before Linux 6.3), or the pod has
    /// switched TCP Fast Open off.
    unsupported: bool,
}

impl Spares {
    fn pool(&mut self, family: Family) -> &mut Pool {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The sidecar has reached the application at `address`.
    pub fn reached(&mut self, address: IpAddr) {
        if self.addresses.len() < ADDRESSES_MAX && !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }

    /// How many to ask the sidecar for now.
    pub fn wanted(&mut self, family: Family) -> Option<u32> {
        let pool = self.pool(family);
        if pool.unsupported || pool.expected > 0 || pool.ready.len() >= LOW {
            return None;
        }
        pool.expected = READY - pool.ready.len() as u32;
        Some(pool.expected)
    }

    /// False for one that was not asked for.
    pub fn arrived(&mut self, family: Family, ports: (u16, u16), socket: Option<OwnedFd>) -> bool {
        let pool = self.pool(family);
        if pool.expected == 0 {
            return false;
        }
        match socket {
            Some(socket) => {
                pool.expected -= 1;
                pool.ports = ports;
                pool.ready.push(socket);
            }
            // No descriptor was left for it, and for those behind it neither.
            None => pool.expected = 0,
        }
        true
    }

    /// A socket from `src` to the application at `dst`, connected. `None`: ask the sidecar.
    pub fn connect(&mut self, src: SocketAddr, dst: SocketAddr) -> Option<OwnedFd> {
        if !self.addresses.contains(&dst.ip()) {
            return None;
        }
        let pool = self.pool(Family::of(dst));
        if !(pool.ports.0..=pool.ports.1).contains(&src.port()) {
            return None;
        }
        let socket = pool.ready.pop()?;
        match connect(&socket, src, dst) {
            Ok(ends) if ends == Some(StreamSocket { local: src, peer: dst }) => Some(socket),
            Err(Errno::NOPROTOOPT | Errno::OPNOTSUPP) => {
                pool.unsupported = true;
                pool.ready.clear();
                None
            }
            // An application that does not listen or accept, a port that is taken: the sidecar
            // finds out again, with the time it takes.
            _ => None,
        }
    }
}

/// Both ends when the connection is there: within one kernel the handshake is over when the call
/// returns.
fn connect(
    socket: &OwnedFd,
    src: SocketAddr,
    dst: SocketAddr,
) -> Result<Option<StreamSocket>, Errno> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    rdmesh_sys::sockopt::set_local_port_range(socket, src.port(), src.port()).map_err(failed)?;
    rustix::net::bind(socket, &SocketAddr::new(src.ip(), 0))?;
    // The pod shares this socket's file and can make a plain connect block the worker. This one
    // cannot: whether it waits is said in the call. With nothing to send it is a plain connect;
    // only TCP sockets know it, so that no check of what the pod has sent is needed.
    let flags =
        SendFlags::from_bits_retain(MSG_FASTOPEN) | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::net::sendto(socket, &[], flags, &dst) {
        Err(Errno::INPROGRESS) => Ok(connected_ends(socket).ok()),
        Err(error) => Err(error),
        Ok(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    const PORTS: (u16, u16) = (40_000, 40_001);

    fn any_socket() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn asks_when_few_are_left_and_takes_no_more_than_asked_for() {
        let mut spares = Spares::default();
        assert!(!spares.arrived(Family::V4, PORTS, Some(any_socket())));
        assert_eq!(spares.wanted(Family::V4), Some(READY));
        assert_eq!(spares.wanted(Family::V4), None);
        for _ in 0..READY {
            assert!(spares.arrived(Family::V4, PORTS, Some(any_socket())));
        }
        assert!(!spares.arrived(Family::V4, PORTS, Some(any_socket())));
        assert_eq!(spares.wanted(Family::V4), None);
        assert_eq!(spares.v4.ready.len(), READY as usize);
        spares.v4.ready.truncate(LOW - 1);
        assert_eq!(spares.wanted(Family::V4), Some(READY - LOW as u32 + 1));
    }

    #[test]
    fn lost_descriptors_are_not_waited_for() {
        let mut spares = Spares::default();
        assert_eq!(spares.wanted(Family::V6), Some(READY));
        assert!(spares.arrived(Family::V6, PORTS, None));
        assert_eq!(spares.wanted(Family::V6), Some(READY));
    }

    #[test]
    fn only_reached_addresses_only_right_ports_and_only_tcp() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (src, dst) = ("127.0.0.1:40001".parse().unwrap(), listener.local_addr().unwrap());
        let mut spares = Spares::default();
        spares.wanted(Family::V4);
        let tcp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert!(spares.arrived(Family::V4, PORTS, Some(tcp.into())));
        assert!(spares.connect(src, dst).is_none());
        spares.reached(dst.ip());
        assert!(spares.connect("127.0.0.1:40002".parse().unwrap(), dst).is_none());
        assert_eq!(spares.v4.ready.len(), 1);
        spares.v4.ready = vec![any_socket()];
        assert!(spares.connect(src, dst).is_none());
        assert!(spares.v4.ready.is_empty());
    }
}
