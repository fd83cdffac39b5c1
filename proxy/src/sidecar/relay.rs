//! Moves bytes between two TCP sockets so that neither end can tell: a FIN becomes a FIN in its
//! direction, a reset a reset.
//!
//! A direction keeps bytes only while the socket it writes to is full: an idle relay holds no
//! buffer. It waits by `poll_*_ready`, which needs less memory than a future of `readable` does.
//! What it does not do: open sockets, time out, count.

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;

const CHUNK_BYTES: usize = 64 << 10;

/// Memory of all relays of a thread: one buffer to read into, and a count of what is held back.
pub(super) struct Buffers {
    scratch: RefCell<Box<[u8]>>,
    held_bytes: Cell<usize>,
}

impl Buffers {
    pub fn new() -> Self {
        let scratch = vec![0; CHUNK_BYTES].into_boxed_slice();
        Self { scratch: RefCell::new(scratch), held_bytes: Cell::new(0) }
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.get()
    }

    /// How much one read may bring: less, the more is held back, so that thousands of readers that
    /// stopped do not fill the memory.
    fn chunk_bytes(&self) -> usize {
        match self.held_bytes.get() {
            0..0x40_0000 => CHUNK_BYTES,
            0x40_0000..0x80_0000 => CHUNK_BYTES / 4,
            _ => CHUNK_BYTES / 32,
        }
    }
}

/// Bytes that were read and not yet written.
struct Held<'a> {
    bytes: Box<[u8]>,
    written: usize,
    buffers: &'a Buffers,
}

impl<'a> Held<'a> {
    fn new(bytes: Box<[u8]>, buffers: &'a Buffers) -> Self {
        buffers.held_bytes.set(buffers.held_bytes.get() + bytes.len());
        Self { bytes, written: 0, buffers }
    }

    async fn write_to(mut self, to: &TcpStream) -> Result<(), Broken> {
        while let Some(left) = self.bytes.get(self.written..).filter(|left| !left.is_empty()) {
            match try_send(to, left) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll_fn(|cx| to.poll_write_ready(cx)).await.map_err(|_| Broken)?;
                }
                Err(_) => return Err(Broken),
            }
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.buffers.held_bytes.set(self.buffers.held_bytes.get() - self.bytes.len());
    }
}

/// Either end was reset or otherwise lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Broken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both directions ended with a FIN.
    Closed,
    /// One end was reset, and so was the other.
    Reset,
}

/// Relays until both directions have ended. `early` goes to `server` before anything else.
pub(super) async fn relay(
    client: TcpStream,
    server: TcpStream,
    early: Vec<u8>,
    buffers: &Buffers,
) -> Ended {
    let outcome = {
        let up = pin!(pump(&client, &server, early, buffers));
        let down = pin!(pump(&server, &client, Vec::new(), buffers));
        let client_error = pin!(client.ready(Interest::ERROR));
        let server_error = pin!(server.ready(Interest::ERROR));
        both([up, down], [client_error, server_error]).await
    };
    if outcome.is_ok() {
        // A connection that the node proxy gave back comes armed to end by a reset.
        let _ = rustix::net::sockopt::set_socket_linger(&client, None);
        return Ended::Closed;
    }
    reset(client);
    reset(server);
    Ended::Reset
}

/// Ends when both pumps have, or with the first trouble.
///
/// A direction that waits to write, or has ended, does not see that its reading side was reset;
/// the error state of the sockets tells. The pumps come first: what arrived before the reset is
/// passed on as long as there is room.
async fn both(
    mut pumps: [Pin<&mut impl Future<Output = Result<(), Broken>>>; 2],
    mut errors: [Pin<&mut impl Future>; 2],
) -> Result<(), Broken> {
    let mut ended = [false; 2];
    poll_fn(|cx| {
        for (pump, ended) in pumps.iter_mut().zip(&mut ended).filter(|(_, ended)| !**ended) {
            match pump.as_mut().poll(cx) {
                Poll::Ready(Ok(())) => *ended = true,
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => {}
            }
        }
        if ended == [true; 2] {
            return Poll::Ready(Ok(()));
        }
        if errors.iter_mut().any(|error| error.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(Broken));
        }
        Poll::Pending
    })
    .await
}

/// Closes a socket with a reset in place of a FIN.
pub(super) fn reset(socket: impl rustix::fd::AsFd) {
    // An error means that the connection is gone already.
    let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    drop(socket);
}

async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    early: Vec<u8>,
    buffers: &Buffers,
) -> Result<(), Broken> {
    if !early.is_empty() {
        Held::new(early.into_boxed_slice(), buffers).write_to(to).await?;
    }
    loop {
        poll_fn(|cx| from.poll_read_ready(cx)).await.map_err(|_| Broken)?;
        match shovel(from, to, buffers)? {
            Shovelled::All => {}
            Shovelled::Rest(bytes) => Held::new(bytes, buffers).write_to(to).await?,
            Shovelled::End => break,
        }
    }
    rustix::net::shutdown(to, Shutdown::Write).map_err(|_| Broken)
}

enum Shovelled {
    /// What could be read was written.
    All,
    /// The other socket is full.
    Rest(Box<[u8]>),
    End,
}

/// One read and, at once, one write.
fn shovel(from: &TcpStream, to: &TcpStream, buffers: &Buffers) -> Result<Shovelled, Broken> {
    let mut scratch = buffers.scratch.borrow_mut();
    let (chunk, _) = scratch.split_at_mut(buffers.chunk_bytes());
    let bytes = match try_recv(from, chunk) {
        Ok(0) => return Ok(Shovelled::End),
        Ok(n) => chunk.get(..n).ok_or(Broken)?,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Shovelled::All),
        Err(_) => return Err(Broken),
    };
    match try_send(to, bytes) {
        Ok(n) if n == bytes.len() => Ok(Shovelled::All),
        Ok(n) => Ok(Shovelled::Rest(bytes.get(n..).ok_or(Broken)?.into())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Ok(Shovelled::Rest(bytes.into()))
        }
        Err(_) => Err(Broken),
    }
}

/// Reads once. A read that leaves room has emptied the socket: its readiness is cleared at once,
/// which saves the next, futile read.
fn try_recv(socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    let mut received = 0;
    let result = socket.try_io(Interest::READABLE, || {
        let (n, _) = retry(|| rustix::net::recv(socket, &mut *into, RecvFlags::DONTWAIT))?;
        received = n;
        if n > 0 && n < into.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if received > 0 { Ok(received) } else { result.map(|()| 0) }
}

/// Writes once; a short write clears the readiness as above.
fn try_send(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let result = socket.try_io(Interest::WRITABLE, || {
        sent = retry(|| rustix::net::send(socket, bytes, flags))?;
        if sent < bytes.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if sent > 0 { Ok(sent) } else { result.map(|()| 0) }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
