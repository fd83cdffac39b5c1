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
    let value = libc::c_int::from(on);
    // SAFETY: `value` lives through the call and its size is told; the descriptor is borrowed.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
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
}
