//! An echo server for very many connections: `hold PORT`. A test cannot hold both ends of 15,000
//! connections itself under a limit of 20,000 descriptors.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use rustix::event::epoll;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

const LISTENER: u64 = u64::MAX;

fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("usage: hold PORT")?.parse()?;
    let listener = listen(port)?;
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let readable = epoll::EventFlags::IN;
    epoll::add(&poller, listener.as_fd(), epoll::EventData::new_u64(LISTENER), readable)?;
    let mut held: HashMap<u64, TcpStream> = HashMap::new();
    let mut events = Vec::with_capacity(1024);
    let mut chunk = vec![0; 16 << 10];
    loop {
        events.clear();
        epoll::wait(&poller, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let token = event.data.u64();
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let token = u64::try_from(stream.as_raw_fd())?;
                    let data = epoll::EventData::new_u64(token);
                    epoll::add(&poller, stream.as_fd(), data, readable)?;
                    held.insert(token, stream);
                }
            } else if let Some(stream) = held.get_mut(&token)
                && !echo(stream, &mut chunk)
            {
                held.remove(&token);
            }
        }
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], port)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Whether the connection lives on.
fn echo(stream: &mut TcpStream, chunk: &mut [u8]) -> bool {
    match stream.read(chunk) {
        Ok(0) => false,
        // The echoes are small: they fit the socket buffer, or the test is to fail.
        Ok(n) => stream.write_all(&chunk[..n]).is_ok(),
        Err(e) => e.kind() == ErrorKind::WouldBlock,
    }
}
