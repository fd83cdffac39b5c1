//! Socket options of connections between node proxies.

use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// No Nagle, and a dead path is noticed after `silence`, with data in flight or without.
///
/// # Errors
/// What the kernel says.
pub fn tune(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(silence))?;
    // The kernel counts in whole seconds here.
    let step = Duration::from_secs((silence.as_secs() / 3).max(1));
    let keepalive =
        socket2::TcpKeepalive::new().with_time(step).with_interval(step).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}
