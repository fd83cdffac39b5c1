//! The floor of the benchmarks: a relay with a thread for each direction, that reads and writes or splices.
//!
//! What it does not do: anything that a proxy has to (hide itself, carry on when a link ends, limits).

use crate::guest::wire::Sockets;
use anyhow::Context;
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, pipe, splice};
use socket2::{Domain, Socket, Type};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::thread::spawn;

const BUFFER_BYTES: usize = 64 << 10;
/// What an unprivileged pipe may hold at most, by default.
const PIPE_BYTES: usize = 1 << 20;
/// The kernel's number for SMC's sockets.
pub const SMC: u8 = 43;

impl Sockets {
    /// A socket of this kind; addresses are IPv4's.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open(self) -> io::Result<Socket> {
        match self {
            Self::Tcp => Socket::new(Domain::IPV4, Type::STREAM, None),
            Self::Smc => Socket::new(Domain::from(i32::from(SMC)), Type::STREAM, None),
            // The preloaded library takes only those for its own that `exec` leaves open.
            Self::Rsocket => Socket::new_raw(Domain::IPV4, Type::STREAM, None),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Smc => "smc",
            Self::Rsocket => "rsocket",
        }
    }
}

/// Where a relay listens or connects: `tcp:ADDRESS`, `smc:ADDRESS` or `rsocket:ADDRESS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub sockets: Sockets,
    pub address: SocketAddr,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sockets.word(), self.address)
    }
}

impl FromStr for End {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (word, address) = text.split_once(':').context("no kind of sockets before a colon")?;
        let kinds = [Sockets::Tcp, Sockets::Smc, Sockets::Rsocket];
        let sockets = kinds.into_iter().find(|kind| kind.word() == word);
        let sockets = sockets.with_context(|| format!("no sockets are called {word}"))?;
        let address = address.parse().with_context(|| format!("{address} is no address"))?;
        Ok(Self { sockets, address })
    }
}

/// How bytes go from one socket to the other.
#[derive(Debug, Clone, Copy)]
pub enum By {
    Copying,
    Splicing,
}

/// Carries bytes between the two until both ways have ended.
///
/// # Errors
/// When a socket fails.
pub fn join(near: TcpStream, far: TcpStream, by: By) -> io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    // Shared, and not duplicated: an rsocket cannot be.
    let (near, far) = (Arc::new(near), Arc::new(far));
    let (near_too, far_too) = (Arc::clone(&near), Arc::clone(&far));
    spawn(move || pump(&near_too, &far_too, by));
    pump(&far, &near, by)
}

fn pump(from: &TcpStream, to: &TcpStream, by: By) -> io::Result<()> {
    let result = match by {
        By::Copying => copy(from, to),
        By::Splicing => splice_all(from, to),
    };
    let _ = to.shutdown(if result.is_ok() { Shutdown::Write } else { Shutdown::Both });
    result
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

fn splice_all(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (out, into) = pipe()?;
    fcntl_setpipe_size(&into, PIPE_BYTES)?;
    loop {
        let mut held = splice(from, None, &into, None, PIPE_BYTES, SpliceFlags::MOVE)?;
        if held == 0 {
            return Ok(());
        }
        while held > 0 {
            held -= splice(&out, None, to, None, held, SpliceFlags::MOVE)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_end_is_read_as_it_is_written() {
        for text in ["tcp:127.0.0.1:80", "smc:10.0.0.1:1", "rsocket:[::1]:65535"] {
            assert_eq!(text.parse::<End>().unwrap().to_string(), text);
        }
        for text in ["127.0.0.1:80", "udp:127.0.0.1:80", "tcp:localhost:80", ""] {
            assert!(text.parse::<End>().is_err(), "{text}");
        }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn both_ways_are_carried_to_their_ends() {
        for by in [By::Copying, By::Splicing] {
            let ((mut client, near), (far, mut server)) = (pair(), pair());
            let relay = spawn(move || join(near, far, by));
            client.write_all(b"there").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut heard = String::new();
            server.read_to_string(&mut heard).unwrap();
            server.write_all(b"and back").unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!((heard.as_str(), answer.as_str()), ("there", "and back"), "{by:?}");
            relay.join().unwrap().unwrap();
        }
    }
}
