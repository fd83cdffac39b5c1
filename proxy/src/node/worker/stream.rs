//! One end of a stream: the application's socket and what waits on either side of it.
//!
//! What it does not do: know lanes or pods; the worker moves what these functions return.

use super::crowd::Seen;
use super::deliver::Connecting;
use super::flow::Flow;
use super::slots::Key;
use crate::metrics::{FabricKind, Role};
use crate::mux::StreamId;
use rdmesh_sys::pipe::Filling;
use rdmesh_sys::slab::{BufMut, Payload};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const IO_SLICES_MAX: usize = 32;
/// A move that does not wait is over long before.
const WAIT_MIN: Duration = Duration::from_millis(20);
/// What is smaller costs less to copy than to move.
const BULK_BYTES_MIN: usize = 16 << 10;
/// After so many smaller reads in a row nobody asks any more whether a large one is due.
const BULK_READS: u8 = 8;
/// A held slice of a receive buffer that is smaller than this part of it is copied, so that a slow
/// application pins no more memory than four times its window.
const HELD_PART_MIN: usize = 4;

/// Bytes that the application's socket has not taken yet.
enum Chunk {
    Shared(Payload),
    Copied(Box<[u8]>, usize),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(payload) => payload,
            Self::Copied(bytes, start) => &bytes[*start..],
        }
    }

    /// Without a look at the bytes: those in a pipe would be copied for it.
    fn len(&self) -> usize {
        match self {
            Self::Shared(payload) => payload.len(),
            Self::Copied(bytes, start) => bytes.len() - start,
        }
    }

    fn skip(&mut self, n: usize) {
        match self {
            Self::Shared(payload) => drop(payload.split_to(n)),
            Self::Copied(_, start) => *start += n,
        }
    }
}

pub(super) struct Stream {
    /// `None` while it is being opened.
    pub socket: Option<OwnedFd>,
    /// The worker itself is opening it.
    pub connecting: Option<Connecting>,
    pub lane: Key,
    pub id: StreamId,
    pub pod: Key,
    /// The sidecar's number for this connection, or ours for the dial.
    pub handoff_id: u32,
    /// By the worker, and nobody else has the socket.
    pub accepted: bool,
    /// Bytes that were moved to the socket and are not counted yet.
    pub moved: u64,
    /// At the sizes of its buffers.
    pub bytes_since_look: usize,
    pub role: Role,
    pub fabric: FabricKind,
    pub since: Instant,
    pub seen: Seen,
    /// What was sent before the far side answered; given back if it turns the stream down.
    pub early: Option<Vec<Payload>>,
    pub early_bytes: usize,
    /// The socket may have bytes for us.
    pub readable: bool,
    /// Queued in the worker's list of streams to read.
    pub queued: bool,
    /// The application has sent its FIN (or we no longer read).
    pub read_done: bool,
    pub hangup: bool,
    /// The socket has failed (a reset): what it still holds may be read, then it is over.
    pub failed: bool,
    pub writable: bool,
    /// The peer's FIN has come; it is passed on once `out` is empty.
    pub fin_received: bool,
    pub write_done: bool,
    /// The application may not have been told yet that it has a connection.
    pub unannounced: bool,
    /// Smaller reads until it is no longer worth to ask for bulk.
    bulk: u8,
    pub flow: Flow,
    /// Listed among the streams whose socket gathers.
    pub gathering: bool,
    /// The socket was made non-blocking.
    prepared: bool,
    /// `out` may hold payload that is in a pipe.
    piped: bool,
    /// The socket made a move wait, though it had been non-blocking.
    pub blocked: Option<Blocked>,
    /// Listed among the streams whose `out` is to be written after this batch.
    pub dirty: bool,
    out: VecDeque<Chunk>,
}

/// How much a stream's socket is to blame for a move that took long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    /// It is blocking.
    Surely,
    /// It may have been; or the worker was not given the CPU.
    Perhaps,
}

/// What a read from the application's socket gave.
pub(super) enum Read {
    Bytes(Payload),
    End,
    Nothing,
    /// The socket made the call wait.
    Interrupted,
    Failed(io::Error),
}

impl Stream {
    pub(super) fn new(
        lane: Key,
        id: StreamId,
        pod: Key,
        role: Role,
        fabric: FabricKind,
        now: Instant,
    ) -> Self {
        Self {
            socket: None,
            connecting: None,
            lane,
            id,
            pod,
            handoff_id: 0,
            accepted: false,
            moved: 0,
            bytes_since_look: 0,
            role,
            fabric,
            since: now,
            seen: Seen::default(),
            early: (role == Role::Client).then(Vec::new),
            early_bytes: 0,
            readable: true,
            queued: false,
            read_done: false,
            hangup: false,
            failed: false,
            writable: true,
            fin_received: false,
            write_done: false,
            unannounced: false,
            bulk: 0,
            flow: Flow::new(now),
            gathering: false,
            prepared: false,
            piped: false,
            blocked: None,
            dirty: false,
            out: VecDeque::new(),
        }
    }

    /// Reads at most `max` bytes into `buffer`.
    pub(super) fn read(&mut self, buffer: &mut BufMut, max: usize) -> Read {
        let Some(socket) = &self.socket else { return Read::Nothing };
        let start = buffer.filled();
        let room = max.min(buffer.spare_bytes());
        loop {
            match rustix::net::recv(socket, &mut buffer.spare()[..room], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Read::End,
                Ok((n, _)) => {
                    // A short read has emptied the socket; more will raise another edge. An end
                    // that is already there will not, so with one seen we go on reading.
                    if n < room && !self.hangup {
                        self.readable = false;
                    }
                    self.note(n);
                    buffer.advance(n);
                    return Read::Bytes(buffer.slice(start, start + n));
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Read::Nothing;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Read::Failed(error.into()),
            }
        }
    }

    fn note(&mut self, read: usize) {
        self.bulk = if read < BULK_BYTES_MIN { self.bulk.saturating_sub(1) } else { BULK_READS };
    }

    pub(super) fn brought_bulk(&self) -> bool {
        self.bulk > 0
    }

    /// How many bytes wait on the socket, if it is worth to move `max` of them.
    pub(super) fn bulk_waits(&self, max: usize) -> Option<usize> {
        let waiting = rustix::io::ioctl_fionread(self.socket.as_ref()?).ok()?;
        let waiting = usize::try_from(waiting).ok()?;
        (waiting.min(max) >= BULK_BYTES_MIN).then_some(waiting)
    }

    /// Moves at most `max` bytes into a pipe, of those that [`Self::bulk_waits`] has told of.
    pub(super) fn read_moved(&mut self, mut pipe: Filling, max: usize, waiting: usize) -> Read {
        let Some(socket) = &self.socket else { return Read::Nothing };
        let started = Instant::now();
        match pipe.fill(socket, max) {
            Ok(0) => Read::End,
            Ok(n) => {
                // As in `read`; but a pipe takes no more than so many pieces at a time.
                if n >= waiting && !self.hangup {
                    self.readable = false;
                }
                self.note(n);
                Read::Bytes(pipe.finish())
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Read::Nothing
            }
            Err(Errno::INTR) => {
                self.blocked = Blocked::of(socket, started);
                Read::Interrupted
            }
            Err(error) => Read::Failed(error.into()),
        }
    }

    /// Before the first move: one that waits is for hostile sockets only.
    pub(super) fn prepare_moves(&mut self) {
        if !self.prepared
            && let Some(socket) = &self.socket
        {
            self.prepared = true;
            // A socket on which this fails is dead; reading tells.
            let _ = rustix::io::ioctl_fionbio(socket, true);
        }
    }

    /// Whether some of what waits could be moved.
    pub(super) fn holds_pipes(&self) -> bool {
        self.piped
    }

    fn next_can_move(&self) -> bool {
        matches!(self.out.front(), Some(Chunk::Shared(payload)) if payload.can_move())
    }

    pub(super) fn push(&mut self, payload: Payload) {
        self.piped |= payload.is_piped();
        self.out.push_back(Chunk::Shared(payload));
    }

    /// Writes what waits, with or without moves; returns how many bytes the socket took.
    pub(super) fn write(&mut self, moves: bool) -> io::Result<usize> {
        let mut total = 0;
        while self.writable && !self.out.is_empty() {
            let Some(socket) = &self.socket else { break };
            let moves = moves && self.blocked.is_none();
            if moves && self.next_can_move() {
                total += self.write_moved()?;
                continue;
            }
            let mut slices = [IoSlice::new(&[]); IO_SLICES_MAX];
            let mut count = 0;
            let mut offered = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.out) {
                if moves && matches!(chunk, Chunk::Shared(payload) if payload.can_move()) {
                    break;
                }
                *slice = IoSlice::new(chunk.bytes());
                offered += chunk.len();
                count += 1;
            }
            let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // The FIN follows and takes them along, see `finish_write`.
            flags.set(SendFlags::MORE, self.fin_received && count == self.out.len());
            let mut control = rustix::net::SendAncillaryBuffer::default();
            match rustix::net::sendmsg(socket, &slices[..count], &mut control, flags) {
                Ok(n) => {
                    self.skip(n);
                    total += n;
                    // A short write has filled the socket and armed the edge that tells of room.
                    self.writable = n == offered;
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.hold();
        self.piped &= !self.out.is_empty();
        Ok(total)
    }

    /// Moves the first chunk to the socket.
    fn write_moved(&mut self) -> io::Result<usize> {
        let (Some(socket), Some(Chunk::Shared(payload))) = (&self.socket, self.out.front_mut())
        else {
            return Ok(0);
        };
        let started = Instant::now();
        match payload.move_to(socket) {
            Ok(n) => {
                if payload.is_empty() {
                    self.out.pop_front();
                } else {
                    // Full; or somebody made it blocking, and the call was interrupted.
                    self.blocked = Blocked::of(socket, started);
                }
                self.moved += n as u64;
                Ok(n)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(Errno::INTR) => {
                self.blocked = Blocked::of(socket, started);
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn skip(&mut self, mut n: usize) {
        while let Some(front) = self.out.front_mut() {
            let len = front.len();
            if n < len {
                front.skip(n);
                return;
            }
            n -= len;
            self.out.pop_front();
        }
    }

    /// Copies slices that are small beside the buffer they pin.
    fn hold(&mut self) {
        for chunk in &mut self.out {
            if let Chunk::Shared(payload) = chunk
                && payload.len() < payload.pinned_bytes() / HELD_PART_MIN
            {
                *chunk = Chunk::Copied(payload.as_ref().into(), 0);
            }
        }
    }

    /// What came before a reset goes out before it, as far as the socket takes it. A FIN that came,
    /// too, is void: no bytes may wait for it.
    pub(super) fn write_before_reset(&mut self) {
        self.fin_received = false;
        let _ = self.write(false);
    }

    /// A spare socket holds the handshake's last acknowledgement back for the first bytes to bring it.
    /// So many were written at once. Without any it must not wait: the server may speak first, and
    /// who comes next must not be there before.
    pub(super) fn announce(&mut self, written: usize) {
        if std::mem::take(&mut self.unannounced)
            && written == 0
            && let Some(socket) = &self.socket
        {
            // Failing that, the kernel's own timer sends it.
            let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
        }
    }

    /// Passes the peer's FIN on once everything before it was written.
    pub(super) fn finish_write(&mut self) {
        if self.fin_received
            && !self.write_done
            && self.out.is_empty()
            && let Some(socket) = &self.socket
        {
            // Fails only on a socket that is already dead; the next read tells.
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
            self.write_done = true;
        }
    }

    /// From here on a sudden end (ours too) is a reset, never a clean end.
    pub(super) fn arm(&self) -> io::Result<()> {
        self.linger(Some(Duration::ZERO))
    }

    /// Both directions have ended: the close is a clean one.
    pub(super) fn disarm(&self) -> io::Result<()> {
        self.linger(None)
    }

    fn linger(&self, linger: Option<Duration>) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        socket2::SockRef::from(&socket.as_fd()).set_linger(linger)
    }
}

impl Blocked {
    /// After a move that began at `started` and ended early. A signal can end it without a wait.
    fn of(socket: &OwnedFd, started: Instant) -> Option<Self> {
        let flags = rustix::fs::fcntl_getfl(socket);
        if flags.is_ok_and(|flags| !flags.contains(rustix::fs::OFlags::NONBLOCK)) {
            return Some(Self::Surely);
        }
        (started.elapsed() >= WAIT_MIN).then_some(Self::Perhaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdmesh_sys::pipe::Pipes;
    use rdmesh_sys::slab::Slab;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    fn stream() -> Stream {
        let key = Key { index: 0, generation: 0 };
        Stream::new(key, StreamId(1), key, Role::Server, FabricKind::Tcp, Instant::now())
    }

    fn in_a_pipe(bytes: usize) -> Payload {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&vec![7; bytes]).unwrap();
        let mut filling = Pipes::new(1).unwrap().take().unwrap();
        while filling.len() < bytes {
            filling.fill(&far, bytes - filling.len()).unwrap();
        }
        filling.finish()
    }

    /// The peer's first bytes may come, in a pipe, before the application's socket is there.
    #[test]
    fn payload_in_a_pipe_waits_for_the_socket() {
        const BYTES: usize = 20_000;
        let mut stream = stream();
        stream.push(in_a_pipe(BYTES));
        assert_eq!(stream.write(true).unwrap(), 0);
        assert!(stream.holds_pipes());
        let (mut application, ours) = UnixStream::pair().unwrap();
        stream.socket = Some(ours.into());
        let mut written = 0;
        while written < BYTES {
            written += stream.write(true).unwrap();
        }
        let mut got = vec![0; BYTES];
        application.read_exact(&mut got).unwrap();
        assert!(got.iter().all(|byte| *byte == 7));
        assert!(!stream.holds_pipes());
    }

    #[test]
    fn bulk_is_looked_for_while_some_was_seen_lately() {
        const MAX: usize = 64 << 10;
        let (mut application, ours) = UnixStream::pair().unwrap();
        let mut stream = stream();
        stream.socket = Some(ours.into());
        let slab = Slab::new(1, MAX).unwrap();
        let mut send = |bytes: usize| application.write_all(&vec![7; bytes]).unwrap();
        let plain = |stream: &mut Stream| {
            assert!(matches!(stream.read(&mut slab.take().unwrap(), MAX), Read::Bytes(_)));
        };
        send(100);
        plain(&mut stream);
        assert!(!stream.brought_bulk());
        send(BULK_BYTES_MIN);
        plain(&mut stream);
        assert!(stream.brought_bulk());

        send(BULK_BYTES_MIN);
        assert_eq!(stream.bulk_waits(MAX), Some(BULK_BYTES_MIN));
        assert_eq!(stream.bulk_waits(BULK_BYTES_MIN - 1), None);
        stream.readable = true;
        let pipe = Pipes::new(1).unwrap().take().unwrap();
        let Read::Bytes(moved) = stream.read_moved(pipe, MAX, BULK_BYTES_MIN) else { panic!() };
        assert_eq!((moved.len(), stream.readable), (BULK_BYTES_MIN, false));
        // What is left raises no edge, nor does an end that was seen: both are to be read.
        send(2 * BULK_BYTES_MIN);
        for (hangup, waiting) in [(false, 2 * BULK_BYTES_MIN), (true, BULK_BYTES_MIN)] {
            assert_eq!(stream.bulk_waits(MAX), Some(waiting));
            (stream.readable, stream.hangup) = (true, hangup);
            let pipe = Pipes::new(1).unwrap().take().unwrap();
            let read = stream.read_moved(pipe, BULK_BYTES_MIN, waiting);
            assert!(matches!(read, Read::Bytes(moved) if moved.len() == BULK_BYTES_MIN));
            assert!(stream.readable);
        }
        stream.hangup = false;

        for _ in 0..BULK_READS {
            assert!(stream.brought_bulk());
            send(100);
            assert_eq!(stream.bulk_waits(MAX), None);
            plain(&mut stream);
        }
        assert!(!stream.brought_bulk());
    }

    #[test]
    fn bytes_before_a_fin_go_out_with_it_or_before_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slab = Slab::new(1, 4096).unwrap();
        for reset in [false, true] {
            let mut application = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut stream = stream();
            stream.socket = Some(listener.accept().unwrap().0.into());
            stream.arm().unwrap();
            let mut buffer = slab.take().unwrap();
            buffer.advance(100);
            stream.push(buffer.slice(0, 100));
            stream.fin_received = true;
            if reset {
                stream.write_before_reset();
                stream.socket = None;
            } else {
                assert_eq!(stream.write(true).unwrap(), 100);
                stream.finish_write();
            }
            application.read_exact(&mut [0; 100]).unwrap();
            let end = application.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(end, if reset { Err(io::ErrorKind::ConnectionReset) } else { Ok(0) });
        }
    }

    #[test]
    fn payload_in_a_pipe_stays_there_when_what_was_before_it_is_written() {
        let mut stream = stream();
        let arena = Slab::new(1, 4096).unwrap();
        let mut buffer = arena.take().unwrap();
        buffer.advance(100);
        stream.push(buffer.slice(0, 100));
        stream.push(in_a_pipe(20_000));
        stream.skip(100);
        assert!(stream.next_can_move());
    }
}
