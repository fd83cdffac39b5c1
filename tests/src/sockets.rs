//! Sockets inside pods, and how a connection ended as its reader sees it.

use crate::{PATIENCE, Pod};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum End {
    /// The peer's FIN.
    Clean,
    /// The peer's RST.
    Reset,
}

/// Socket calls made inside a pod. Everything has time-outs: a test never hangs.
pub trait PodSockets {
    /// Listens on all addresses of both families, port chosen by the kernel.
    fn listen(&self) -> TcpListener;
    fn listen_on(&self, address: SocketAddr, backlog: i32) -> Result<TcpListener>;
    fn dial(&self, to: SocketAddr) -> Result<TcpStream>;
    fn dial_within(&self, to: SocketAddr, within: Duration) -> Result<TcpStream>;
    /// Binds this address first.
    fn dial_from(&self, from: SocketAddr, to: SocketAddr) -> Result<TcpStream>;
}

impl PodSockets for Pod {
    fn listen(&self) -> TcpListener {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        self.listen_on(any, 1024).expect("listen in a pod")
    }

    fn listen_on(&self, address: SocketAddr, backlog: i32) -> Result<TcpListener> {
        self.run(|| {
            let socket = tcp_socket(address)?;
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            socket.bind(&SockAddr::from(address))?;
            socket.listen(backlog)?;
            Ok(socket.into())
        })
    }

    fn dial(&self, to: SocketAddr) -> Result<TcpStream> {
        self.dial_within(to, PATIENCE)
    }

    fn dial_within(&self, to: SocketAddr, within: Duration) -> Result<TcpStream> {
        let stream = self.run(|| TcpStream::connect_timeout(&to, within))?;
        patient(&stream)?;
        Ok(stream)
    }

    fn dial_from(&self, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
        self.run(|| {
            let socket = tcp_socket(to)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(from))?;
            socket.connect_timeout(&SockAddr::from(to), PATIENCE)?;
            let stream: TcpStream = socket.into();
            patient(&stream)?;
            Ok(stream)
        })
    }
}

fn tcp_socket(address: SocketAddr) -> Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
}

fn patient(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Accepts one connection, with the patience of tests.
///
/// # Errors
/// The accept's, or that none came in time.
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    accept_within(listener, PATIENCE)
}

/// # Errors
/// The accept's, or `TimedOut`.
pub fn accept_within(listener: &TcpListener, within: Duration) -> Result<(TcpStream, SocketAddr)> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let timeout = Timespec::try_from(within).map_err(std::io::Error::other)?;
    if poll(&mut fds, Some(&timeout))? == 0 {
        return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "nobody connected"));
    }
    let (stream, from) = listener.accept()?;
    patient(&stream)?;
    Ok((stream, unmapped(from)))
}

/// An IPv4 address as such, also where a dual-stack socket shows it as IPv6.
#[must_use]
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A connection from one pod to another: the client's end and the server's.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn pair(client: &Pod, server: &Pod) -> (TcpStream, TcpStream) {
    pair_of(client, server, false)
}

/// Like [`pair`], over IPv6 when asked.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn pair_of(client: &Pod, server: &Pod, ipv6: bool) -> (TcpStream, TcpStream) {
    let listener = server.listen();
    let port = listener.local_addr().expect("local address").port();
    let ours = client.dial(SocketAddr::new(server.ip(ipv6), port)).expect("connect");
    let (theirs, _) = accept(&listener).expect("accept");
    (ours, theirs)
}

/// Reads to the end of the stream: the bytes, and whether it was clean.
///
/// # Panics
/// On any error that is neither.
pub fn read_end(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (all, End::Clean),
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return (all, End::Reset),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => panic!("read: {e}"),
        }
    }
}

/// Closes with a RST instead of a FIN.
pub fn reset(stream: TcpStream) {
    let socket = Socket::from(stream);
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// The wildcard address of IPv4, any port.
#[must_use]
pub fn any_v4() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
}

/// Connects to where nobody serves: the connect must fail, or (behind a capture, which accepts
/// before it knows) the connection must be reset without a byte, within `within`.
///
/// # Panics
/// When the connection lives, ends cleanly, or is silent for longer.
pub fn assert_refused(client: &Pod, to: SocketAddr, within: Duration) {
    let start = std::time::Instant::now();
    if let Ok(mut stream) = client.dial_within(to, within) {
        let left = within.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).expect("read time-out");
        let mut byte = [0];
        match stream.read(&mut byte) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("{to}: expected a reset within {within:?}, got {other:?}"),
        }
    }
    assert!(start.elapsed() <= within + Duration::from_millis(500), "{to}: {:?}", start.elapsed());
}

/// Writes until the peer's end is noticed; the error's kind.
///
/// # Panics
/// When a gigabyte could be written, or nothing happens within the write time-out.
pub fn write_until_error(stream: &mut TcpStream) -> std::io::ErrorKind {
    use std::io::Write;
    let chunk = vec![0_u8; 16 << 10];
    for _ in 0..65_536 {
        if let Err(error) = stream.write_all(&chunk) {
            assert!(
                matches!(
                    error.kind(),
                    std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
                ),
                "write: {error}"
            );
            return error.kind();
        }
    }
    panic!("the peer is gone, and a gigabyte could be written to it");
}
