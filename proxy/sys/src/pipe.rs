//! Bytes that stay in the kernel: they go from socket to socket through a pipe, as references to
//! the pages that the sender filled, and no copy is made on the way.
//!
//! [`Pipes`] is the pool of one thread. A [`Filling`] takes bytes from a socket and becomes a
//! [`Payload`]; who reads such a payload as a slice gets a copy, made on first use.
//! What it does not do: wait. But a call on a socket that somebody made blocking does; see
//! [`crate::interrupt`].

use crate::slab::Payload;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice, tee};
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Room for a message of 64 KiB in the pieces that a network card makes of it.
pub const PIPE_BYTES: usize = 256 << 10;

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused where the user has too many pages in pipes: then it has its default size.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Self { read, write })
    }

    /// Moves bytes on to `target`.
    fn drain(&self, target: impl AsFd, bytes: usize) -> Result<usize, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        splice(&self.read, None, target, None, bytes, flags)
    }
}

struct Pool {
    free: RefCell<Vec<Pipe>>,
    made: Cell<u32>,
    max: u32,
    /// Where bytes go that nobody wants any more.
    sink: OwnedFd,
}

/// A bounded number of pipes, reused last in first out.
#[derive(Clone)]
pub struct Pipes {
    pool: Rc<Pool>,
}

impl Pipes {
    /// At most `max` pipes, made when they are needed.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn new(max: u32) -> io::Result<Self> {
        let sink = OwnedFd::from(std::fs::File::options().write(true).open("/dev/null")?);
        let free = RefCell::default();
        Ok(Self { pool: Rc::new(Pool { free, made: Cell::new(0), max, sink }) })
    }

    /// An empty pipe, or `None` when all are in use or no descriptor is left.
    #[must_use]
    pub fn take(&self) -> Option<Filling> {
        let free = self.pool.free.borrow_mut().pop();
        let pipe = free.or_else(|| {
            let made = self.pool.made.get();
            let pipe = if made < self.pool.max { Pipe::new().ok() } else { None };
            self.pool.made.set(made + u32::from(pipe.is_some()));
            pipe
        })?;
        Some(Filling { pipe: Some(pipe), pipes: self.clone(), len: 0 })
    }

    /// Takes a pipe back in which `left` bytes still are.
    fn put_back(&self, pipe: Pipe, mut left: usize) {
        while left > 0 {
            match pipe.drain(&self.pool.sink, left) {
                Ok(n) if n > 0 => left -= n,
                Err(Errno::INTR) => {}
                _ => {
                    self.pool.made.set(self.pool.made.get() - 1);
                    return;
                }
            }
        }
        self.pool.free.borrow_mut().push(pipe);
    }
}

/// A pipe in the hands of one owner, and how much is in it.
pub struct Filling {
    /// Always there, until it is given away at the end.
    pipe: Option<Pipe>,
    pipes: Pipes,
    len: usize,
}

impl Filling {
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes up to `bytes` from a socket; 0 is the end of what it will give.
    ///
    /// # Errors
    /// `AGAIN` when nothing is there or the pipe is full.
    pub fn fill(&mut self, socket: impl AsFd, bytes: usize) -> Result<usize, Errno> {
        let Some(pipe) = &self.pipe else { return Err(Errno::BADF) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let n = splice(socket, None, &pipe.write, None, bytes, flags)?;
        self.len += n;
        Ok(n)
    }

    /// Takes references to the bytes of `payload`, which keeps them. False when that is not
    /// possible for all of them; some may have been taken then.
    #[must_use]
    pub fn share(&mut self, payload: &Payload) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let Some(piped) = payload.piped() else { return false };
        let source = piped.pipe.borrow();
        let Some(source) = source.as_ref() else { return false };
        loop {
            match tee(&source.read, &pipe.write, payload.len(), SpliceFlags::NONBLOCK) {
                Ok(n) => {
                    self.len += n;
                    return n == payload.len();
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Moves bytes on to a socket.
    ///
    /// # Errors
    /// `AGAIN` when the socket takes nothing now.
    pub fn drain(&mut self, socket: impl AsFd) -> Result<usize, Errno> {
        let Some(pipe) = &self.pipe else { return Err(Errno::BADF) };
        let n = pipe.drain(socket, self.len)?;
        self.len -= n;
        Ok(n)
    }

    /// What was filled in, as a payload.
    #[must_use]
    pub fn finish(mut self) -> Payload {
        let len = self.len;
        let pipe = RefCell::new(self.pipe.take());
        let pipes = self.pipes.clone();
        let (consumed, copied) = (Cell::new(0), OnceCell::new());
        Payload::in_pipe(Piped { pipe, pipes, len, consumed, copied })
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pipes.put_back(pipe, self.len);
        }
    }
}

/// The bytes of a payload that are in a pipe.
pub(crate) struct Piped {
    /// `None` once its bytes were copied.
    pipe: RefCell<Option<Pipe>>,
    pipes: Pipes,
    /// With what has been moved on already.
    len: usize,
    /// How much has been moved on.
    consumed: Cell<usize>,
    /// Everything after `consumed`.
    copied: OnceCell<Box<[u8]>>,
}

impl Piped {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the bytes from `start` to the end are what the pipe holds.
    pub fn holds_from(&self, start: usize) -> bool {
        self.pipe.borrow().is_some() && self.consumed.get() == start
    }

    /// See [`Payload::move_to`].
    pub fn move_to(&self, socket: impl AsFd) -> Result<usize, Errno> {
        let pipe = self.pipe.borrow();
        let Some(pipe) = pipe.as_ref() else { return Err(Errno::BADF) };
        let n = pipe.drain(socket, self.len - self.consumed.get())?;
        self.consumed.set(self.consumed.get() + n);
        Ok(n)
    }

    /// The bytes from `start` on, copied out of the pipe on first use.
    pub fn bytes_from(&self, start: usize) -> &[u8] {
        let copied = self.copied.get_or_init(|| self.copy());
        &copied[start - self.consumed.get()..]
    }

    fn copy(&self) -> Box<[u8]> {
        let mut bytes = vec![0; self.len - self.consumed.get()].into_boxed_slice();
        let mut done = 0;
        if let Some(pipe) = self.pipe.borrow_mut().take() {
            while done < bytes.len() {
                match rustix::io::read(&pipe.read, &mut bytes[done..]) {
                    Ok(n) if n > 0 => done += n,
                    Err(Errno::INTR) => {}
                    // They were put there and nobody else has the descriptor.
                    other => panic!("bytes are missing in a pipe: {other:?}"),
                }
            }
            self.pipes.put_back(pipe, 0);
        }
        bytes
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.borrow_mut().take() {
            self.pipes.put_back(pipe, self.len - self.consumed.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn text(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn piped(pipes: &Pipes, bytes: &[u8]) -> Payload {
        let (mut near, far) = pair();
        near.write_all(bytes).unwrap();
        let mut filling = pipes.take().unwrap();
        while filling.len() < bytes.len() {
            filling.fill(&far, bytes.len() - filling.len()).unwrap();
        }
        filling.finish()
    }

    #[test]
    fn bytes_move_from_socket_to_socket() {
        let pipes = Pipes::new(1).unwrap();
        let bytes = text(50_000);
        let mut payload = piped(&pipes, &bytes);
        assert!(payload.is_piped() && pipes.take().is_none());
        let (near, mut far) = pair();
        while !payload.is_empty() {
            payload.move_to(&near).unwrap();
        }
        drop(near);
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_eq!(got, bytes);
        drop(payload);
        assert!(pipes.take().is_some_and(|pipe| pipe.is_empty()));
    }

    #[test]
    fn shared_bytes_stay_and_can_be_read() {
        let pipes = Pipes::new(2).unwrap();
        let bytes = text(60_000);
        let mut payload = piped(&pipes, &bytes);
        let mut shared = pipes.take().unwrap();
        assert!(shared.share(&payload));
        let (near, mut far) = pair();
        while !shared.is_empty() {
            shared.drain(&near).unwrap();
        }
        let mut got = vec![0; bytes.len()];
        far.read_exact(&mut got).unwrap();
        assert_eq!(got, bytes);
        let head = payload.split_to(1_000);
        assert!(!head.is_piped() && !payload.is_piped());
        assert_eq!((&*head, &*payload), (&bytes[..1_000], &bytes[1_000..]));
    }

    #[test]
    fn what_is_left_after_a_move_can_be_read() {
        let pipes = Pipes::new(1).unwrap();
        let bytes = text(40_000);
        let mut payload = piped(&pipes, &bytes);
        let sink = pipes.pool.sink.try_clone().unwrap();
        // The sink takes one page reference at a time or all of them: either way a prefix.
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        fcntl_setpipe_size(&writer, 4096).unwrap();
        let n = payload.move_to(&writer).unwrap();
        assert!(n > 0);
        assert_eq!(&*payload, &bytes[n..]);
        assert!(!payload.is_piped());
        drop((payload, sink, reader));
        // Nothing of it is left for who takes the pipe next.
        assert_eq!(&*piped(&pipes, b"next"), b"next");
    }

    #[test]
    fn unread_bytes_do_not_stay_in_the_pool() {
        let pipes = Pipes::new(1).unwrap();
        drop(piped(&pipes, &text(30_000)));
        assert_eq!(&*piped(&pipes, b"fresh"), b"fresh");
    }
}
