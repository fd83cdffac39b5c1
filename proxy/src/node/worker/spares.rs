//! Spare sockets of a pod: its sidecar makes them ahead of time, the worker connects one to the
//! application when a stream arrives. A delivery then costs no wake-up of the sidecar.
//!
//! What it does not do: decide who may be reached. Only what the sidecar itself has reached before
//! is, and only from exactly the client's address and port; the rest is left to the sidecar.

use crate::handoff::{Family, StreamSocket, connected_ends};
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Kept ready for each family. A pool that was empty when one was needed doubles, until the pod
/// has no streams.
const READY_MIN: u32 = 4;
const READY_MAX: u32 = 64;
/// Places of one pod that are remembered.
const REACHED_MAX: usize = 64;

/// As `linux/socket.h` has it; rustix has no name for it.
const MSG_FASTOPEN: u32 = 0x2000_0000;

/// Of one pod, for as long as its sidecar's channel lasts.
#[derive(Default)]
pub(super) struct Spares {
    v4: Pool,
    v6: Pool,
    /// The sidecar has connected to them: they are the pod's own, and not the sidecar's.
    reached: Vec<SocketAddr>,
}

struct Pool {
    ready: Vec<OwnedFd>,
    /// How many to keep.
    target: u32,
    /// Outside of these the kernel would take another port than the client's.
    ports: (u16, u16),
    /// Asked for and not here yet.
    expected: u32,
    /// The kernel cannot choose the client's port at connect (before Linux 6.3), or the pod has
    /// switched TCP Fast Open off.
    unsupported: bool,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            ready: Vec::new(),
            target: READY_MIN,
            ports: (1, 0),
            expected: 0,
            unsupported: false,
        }
    }
}

/// What a spare socket does for a connection.
pub(super) enum Attempt {
    Begun(OwnedFd, Progress),
    /// None is ready, and one could be used.
    NoneReady,
    /// The sidecar has to dial; nothing has left a socket here.
    Unfit,
}

/// What has become of a connection that was begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Connected,
    /// The application's backlog is full, or the kernel has put the handshake off.
    Connecting,
    Failed(Errno),
}

impl Spares {
    fn pool(&mut self, family: Family) -> &mut Pool {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The sidecar has reached the application at `dst`.
    pub fn reached(&mut self, dst: SocketAddr) {
        if self.reached.len() < REACHED_MAX && !self.reached.contains(&dst) {
            self.reached.push(dst);
        }
    }

    /// The pod has no streams: what a burst needed is let go.
    pub fn rest(&mut self) {
        for pool in [&mut self.v4, &mut self.v6] {
            pool.target = READY_MIN;
            pool.ready.truncate(READY_MIN as usize);
        }
    }

    /// How many to ask the sidecar for now: so many that one wake-up makes several.
    pub fn wanted(&mut self, family: Family) -> Option<u32> {
        let pool = self.pool(family);
        let ready = u32::try_from(pool.ready.len()).unwrap_or(u32::MAX);
        if pool.unsupported || pool.expected > 0 || ready > pool.target / 2 {
            return None;
        }
        pool.expected = pool.target - ready;
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
                // More than wanted by now, if the pod has come to rest meanwhile.
                if pool.ready.len() < pool.target as usize {
                    pool.ready.push(socket);
                }
            }
            // No descriptor was left for it, and for those behind it neither.
            None => pool.expected = 0,
        }
        true
    }

    /// Whether the application could be reached by a spare socket.
    pub fn fit(&mut self, src: SocketAddr, dst: SocketAddr) -> bool {
        if !self.reached.contains(&dst) {
            return false;
        }
        let pool = self.pool(Family::of(dst));
        !pool.unsupported && (pool.ports.0..=pool.ports.1).contains(&src.port())
    }

    pub fn ready(&mut self, family: Family) -> bool {
        !self.pool(family).ready.is_empty()
    }

    /// Begins a connection from `src` to the application at `dst`.
    pub fn connect(&mut self, src: SocketAddr, dst: SocketAddr) -> Attempt {
        if !self.fit(src, dst) {
            return Attempt::Unfit;
        }
        let pool = self.pool(Family::of(dst));
        let Some(socket) = pool.ready.pop() else {
            pool.target = (2 * pool.target).min(READY_MAX);
            return Attempt::NoneReady;
        };
        match begin(&socket, src, dst) {
            Ok(()) => {
                let progress = progress(&socket, src, dst);
                Attempt::Begun(socket, progress)
            }
            Err(Errno::NOPROTOOPT | Errno::OPNOTSUPP) => {
                pool.unsupported = true;
                pool.ready.clear();
                Attempt::Unfit
            }
            // A port that is taken: the sidecar has ways out.
            Err(_) => Attempt::Unfit,
        }
    }
}

/// Binds and connects without waiting; an error leaves the network untouched.
fn begin(socket: &OwnedFd, src: SocketAddr, dst: SocketAddr) -> Result<(), Errno> {
    let failed = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    rdmesh_sys::sockopt::set_local_port_range(socket, src.port(), src.port()).map_err(failed)?;
    rustix::net::bind(socket, &SocketAddr::new(src.ip(), 0))?;
    // The pod shares this socket's file and can make a plain connect block the worker. This one
    // cannot: whether it waits is said in the call. With nothing to send it is a plain connect;
    // only TCP sockets know it, so that no check of what the pod has sent is needed.
    let flags =
        SendFlags::from_bits_retain(MSG_FASTOPEN) | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::net::sendto(socket, &[], flags, &dst) {
        Err(Errno::INPROGRESS) => Ok(()),
        Err(error) => Err(error),
        // Connected before: somebody has used it.
        Ok(_) => Err(Errno::ISCONN),
    }
}

/// Within one kernel the handshake is most often over when the call returns.
pub(super) fn progress(socket: &OwnedFd, src: SocketAddr, dst: SocketAddr) -> Progress {
    match connected_ends(socket) {
        Ok(ends) if ends == (StreamSocket { local: src, peer: dst }) => Progress::Connected,
        Ok(_) => Progress::Failed(Errno::ADDRINUSE),
        Err(_) => match sockopt::socket_error(socket) {
            Ok(Ok(())) => Progress::Connecting,
            Ok(Err(error)) | Err(error) => Progress::Failed(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    const PORTS: (u16, u16) = (40_000, 40_001);

    fn any_socket() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn asks_when_few_are_left_and_takes_no_more_than_asked_for() {
        let mut spares = Spares::default();
        assert!(!spares.arrived(Family::V4, PORTS, Some(any_socket())));
        assert_eq!(spares.wanted(Family::V4), Some(READY_MIN));
        assert_eq!(spares.wanted(Family::V4), None);
        for _ in 0..READY_MIN {
            assert!(spares.arrived(Family::V4, PORTS, Some(any_socket())));
        }
        assert!(!spares.arrived(Family::V4, PORTS, Some(any_socket())));
        assert_eq!(spares.wanted(Family::V4), None);
        spares.v4.ready.truncate(READY_MIN as usize / 2);
        assert_eq!(spares.wanted(Family::V4), Some(READY_MIN / 2));
    }

    #[test]
    fn a_pool_that_was_empty_grows_until_the_pod_rests() {
        let (src, dst) = ("127.0.0.1:40001".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        let mut spares = Spares::default();
        spares.v4.ports = PORTS;
        spares.reached(dst);
        for _ in 0..10 {
            assert!(matches!(spares.connect(src, dst), Attempt::NoneReady));
        }
        assert_eq!(spares.wanted(Family::V4), Some(READY_MAX));
        for _ in 0..10 {
            assert!(spares.arrived(Family::V4, PORTS, Some(any_socket())));
        }
        spares.rest();
        assert!(spares.arrived(Family::V4, PORTS, Some(any_socket())));
        assert_eq!(spares.v4.ready.len(), READY_MIN as usize);
    }

    #[test]
    fn lost_descriptors_are_not_waited_for() {
        let mut spares = Spares::default();
        assert_eq!(spares.wanted(Family::V6), Some(READY_MIN));
        assert!(spares.arrived(Family::V6, PORTS, None));
        assert_eq!(spares.wanted(Family::V6), Some(READY_MIN));
    }

    #[test]
    fn only_reached_places_only_right_ports_and_only_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (src, dst) = ("127.0.0.1:40001".parse().unwrap(), listener.local_addr().unwrap());
        let mut spares = Spares::default();
        spares.wanted(Family::V4);
        let tcp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert!(spares.arrived(Family::V4, PORTS, Some(tcp.into())));
        assert!(matches!(spares.connect(src, dst), Attempt::Unfit));
        spares.reached(dst);
        let other = "127.0.0.1:40002".parse().unwrap();
        assert!(matches!(spares.connect(other, dst), Attempt::Unfit));
        assert_eq!(spares.v4.ready.len(), 1);
        spares.v4.ready = vec![any_socket()];
        assert!(matches!(spares.connect(src, dst), Attempt::Unfit));
        assert!(spares.v4.ready.is_empty());
    }
}
