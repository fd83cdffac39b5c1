//! Socket options that neither rustix nor socket2 offers.

use rustix::fd::{AsFd, AsRawFd};
use std::io;

/// `IP_BIND_ADDRESS_NO_PORT`: a bind to port 0 fixes the address only; the port is chosen at
/// connect, where it must be unique together with the destination and not by itself. Without it
/// all connections from one address share 28,000 ports, whatever their destinations. Holds for
/// IPv6 sockets too.
///
/// # Errors
/// What `setsockopt` says.
pub fn set_bind_address_no_port(fd: impl AsFd, on: bool) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, u32::from(on))
}

/// `IP_LOCAL_PORT_RANGE` (Linux 6.3): from which ports a connect chooses. It narrows the
/// namespace's own range: what lies outside of that has no effect. Holds for IPv6 sockets too.
///
/// # Errors
/// `ENOPROTOOPT` where the kernel does not know it.
pub fn set_local_port_range(fd: impl AsFd, first: u16, last: u16) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    set_option(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, u32::from(last) << 16 | u32::from(first))
}

/// `TCP_WINDOW_CLAMP`: the window that is told to the sender is no larger. One that was told already
/// is not taken back.
///
/// # Errors
/// What `setsockopt` says.
pub fn clamp_window(fd: impl AsFd, bytes: u32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

/// `SO_BUF_LOCK` (Linux 5.15): while it is on, the kernel leaves the receive buffer at its size, as
/// it does when a program has set one; off, it fits both buffers to the traffic again.
///
/// # Errors
/// `ENOPROTOOPT` where the kernel does not know it.
pub fn hold_receive_buffer(fd: impl AsFd, on: bool) -> io::Result<()> {
    const SOCK_RCVBUF_LOCK: u32 = 2;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, if on { SOCK_RCVBUF_LOCK } else { 0 })
}

/// Keeps both buffers as large as they are.
///
/// # Errors
/// `ENOPROTOOPT` where the kernel does not know it.
pub fn hold_buffers(fd: impl AsFd) -> io::Result<()> {
    const BOTH_LOCKS: u32 = 3;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, BOTH_LOCKS)
}

fn set_option(
    fd: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: u32,
) -> io::Result<()> {
    // SAFETY: `value` lives through the call and its size is told; the descriptor is borrowed.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    use std::net::SocketAddr;

    /// Whether the kernel knows an option; says so where it does not.
    fn known(set: io::Result<()>, option: &str) -> bool {
        match set {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                eprintln!("NOT TESTED: this kernel does not know {option}");
                false
            }
            set => {
                set.unwrap();
                true
            }
        }
    }

    #[test]
    fn port_is_not_chosen_at_bind() {
        let pairs =
            [(AddressFamily::INET, "127.0.0.1:0"), (AddressFamily::INET6, "[::ffff:127.0.0.1]:0")];
        for (family, address) in pairs {
            let socket = socket(family, SocketType::STREAM, None).unwrap();
            set_bind_address_no_port(&socket, true).unwrap();
            bind(&socket, &address.parse::<SocketAddr>().unwrap()).unwrap();
            let bound = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
            assert_eq!(bound.port(), 0);
        }
    }

    #[test]
    fn buffers_are_held_and_let_go() {
        use rustix::net::sockopt::set_socket_recv_buffer_size;
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let locks = || {
            let (mut value, mut size) = (0_u32, size_of::<u32>() as libc::socklen_t);
            // SAFETY: both live through the call, and `size` is that of `value`.
            let result = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_BUF_LOCK,
                    (&raw mut value).cast(),
                    &raw mut size,
                )
            };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            value
        };
        if !known(hold_receive_buffer(&socket, true), "SO_BUF_LOCK (Linux 5.15)") {
            return;
        }
        assert_eq!(locks(), 2);
        hold_receive_buffer(&socket, false).unwrap();
        assert_eq!(locks(), 0);
        set_socket_recv_buffer_size(&socket, 1 << 16).unwrap();
        assert_eq!(locks(), 2);
        hold_receive_buffer(&socket, false).unwrap();
        assert_eq!(locks(), 0);
        hold_buffers(&socket).unwrap();
        assert_eq!(locks(), 3);
    }

    #[test]
    fn a_connect_takes_the_port_of_a_range_of_one() {
        use rustix::io::Errno;
        use rustix::net::{connect, listen};
        let probe = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        if !known(set_local_port_range(&probe, 40_000, 40_000), "IP_LOCAL_PORT_RANGE (Linux 6.3)") {
            return;
        }
        for (family, address) in
            [(AddressFamily::INET, "127.0.0.1:0"), (AddressFamily::INET6, "[::1]:0")]
        {
            let any = address.parse::<SocketAddr>().unwrap();
            let listener = socket(family, SocketType::STREAM, None).unwrap();
            bind(&listener, &any).unwrap();
            listen(&listener, 4).unwrap();
            let to = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
            let connected_from = |port| {
                let client = socket(family, SocketType::STREAM, None).unwrap();
                set_bind_address_no_port(&client, true).unwrap();
                set_local_port_range(&client, port, port).unwrap();
                bind(&client, &any).unwrap();
                connect(&client, &to)?;
                Ok(SocketAddr::try_from(getsockname(&client).unwrap()).unwrap().port())
            };
            // Some port of the namespace's range, free a moment ago. Another process may take it in
            // between; then the next one.
            let mut tries = (0..100).map(|_| {
                let probe = socket(family, SocketType::STREAM, None).unwrap();
                bind(&probe, &any).unwrap();
                let free = SocketAddr::try_from(getsockname(&probe).unwrap()).unwrap().port();
                drop(probe);
                (free, connected_from(free))
            });
            let (free, port) = tries.find(|(_, port)| *port != Err(Errno::ADDRNOTAVAIL)).unwrap();
            assert_eq!(port, Ok(free));
        }
    }
}
