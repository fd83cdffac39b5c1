//! One connected handoff socket: messages in, messages out, never waiting.

use super::error::HandoffError;
use super::wire::{FdRule, Message};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use tokio::io::unix::AsyncFd;

/// Most messages that wait for the other end to read.
pub const QUEUE_MESSAGES_MAX: usize = 32 << 10;
/// Most bytes of waiting messages.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;

/// One packet with the most early bytes fits with room to spare; the kernel takes less if it must.
const SOCKET_BUFFER_BYTES: usize = 256 << 10;

struct Queued {
    bytes: Box<[u8]>,
    fd: Option<OwnedFd>,
}

/// One connected `SOCK_SEQPACKET` socket, non-blocking, with a bounded queue of messages that the
/// socket did not take yet.
pub struct Channel {
    fd: OwnedFd,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    /// Where packets arrive.
    scratch: Vec<u8>,
}

impl Channel {
    /// Takes a connected socket and makes it non-blocking.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER_BYTES)?;
        Ok(Self { fd, queue: VecDeque::new(), queue_bytes: 0, scratch: Vec::new() })
    }

    /// Next message with its descriptor, or `None` when nothing has arrived.
    ///
    /// A closed channel gives what had arrived before it says so.
    ///
    /// # Errors
    /// See [`HandoffError::is_fatal`]. Every descriptor of a refused message is closed.
    pub fn recv<M: Message>(&mut self) -> Result<Option<(M, Option<OwnedFd>)>, HandoffError> {
        // One byte more than the longest message, so that a longer one is seen to be.
        self.scratch.resize(M::BYTES_MAX + 1, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut self.scratch)];
            match recvmsg(&self.fd, &mut parts, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(HandoffError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        };
        let (mut fd, mut fds) = (None, 0_usize);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds += received.len();
                fd = received.last();
            }
        }
        let bytes = self.scratch.get(..received.bytes).unwrap_or_default();
        if bytes.is_empty() {
            return Err(HandoffError::Closed);
        }
        if fds > 1 {
            return Err(HandoffError::TooManyFds);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            let kind = bytes.first().copied().unwrap_or(0);
            return Err(super::WireError::Length { kind, len: bytes.len() }.into());
        }
        let message = M::decode(bytes)?;
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // None arrived of those that were sent: the limit on open files is reached here.
            return match (fds == 0, message.id()) {
                (true, Some(id)) if message.fd_rule() != FdRule::Forbidden => {
                    Err(HandoffError::FdLost { id })
                }
                (true, None) if message.fd_rule() == FdRule::Optional => Ok(Some((message, None))),
                _ => Err(HandoffError::TooManyFds),
            };
        }
        match (message.fd_rule(), fd.is_some()) {
            (FdRule::Required, false) => Err(HandoffError::MissingFd),
            (FdRule::Forbidden, true) => Err(HandoffError::UnexpectedFd),
            _ => Ok(Some((message, fd))),
        }
    }

    /// Sends a message, or queues it (with a copy of the descriptor) when the socket is full.
    ///
    /// # Errors
    /// [`HandoffError::Full`] when the queue is at its bound: the message was not sent.
    pub fn send<M: Message>(
        &mut self,
        message: &M,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), HandoffError> {
        match (message.fd_rule(), fd.is_some()) {
            (FdRule::Required, false) => return Err(HandoffError::MissingFd),
            (FdRule::Forbidden, true) => return Err(HandoffError::UnexpectedFd),
            _ => {}
        }
        let mut bytes = Vec::with_capacity(64);
        message.encode(&mut bytes);
        if bytes.len() > M::BYTES_MAX {
            let kind = bytes.first().copied().unwrap_or(0);
            return Err(super::WireError::Length { kind, len: bytes.len() }.into());
        }
        // Order is part of the protocol: nothing overtakes what waits already.
        if self.queue.is_empty() && transmit(self.fd.as_fd(), &bytes, fd)? {
            return Ok(());
        }
        if self.queue.len() >= QUEUE_MESSAGES_MAX
            || self.queue_bytes + bytes.len() > QUEUE_BYTES_MAX
        {
            return Err(HandoffError::Full);
        }
        // No descriptor left for the copy: as good as full.
        let copied = fd.map(|fd| fd.try_clone_to_owned()).transpose();
        let fd = copied.map_err(|_| HandoffError::Full)?;
        self.queue_bytes += bytes.len();
        self.queue.push_back(Queued { bytes: bytes.into_boxed_slice(), fd });
        Ok(())
    }

    /// Sends what waits; `true` when nothing is left. To be called when the socket is writable.
    ///
    /// # Errors
    /// [`HandoffError::Closed`], or what the system says.
    pub fn flush(&mut self) -> Result<bool, HandoffError> {
        while let Some(queued) = self.queue.front() {
            let fd = queued.fd.as_ref().map(OwnedFd::as_fd);
            if !transmit(self.fd.as_fd(), &queued.bytes, fd)? {
                return Ok(false);
            }
            self.queue_bytes -= queued.bytes.len();
            self.queue.pop_front();
        }
        Ok(true)
    }

    /// Ends the channel for both ends, though copies of its descriptor may still be held, and drops
    /// what waits.
    pub fn close(&mut self) {
        self.queue.clear();
        self.queue_bytes = 0;
        // An error means that it has ended already.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    /// The channel's readiness in the event loop of tokio, over a copy of its descriptor.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        rdmesh_sys::readiness::watch(self.fd.try_clone()?)
    }

    /// Messages that wait for the socket.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Whether the socket took the packet.
fn transmit(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<bool, HandoffError> {
    let fds = fd.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(HandoffError::TooManyFds);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            // TOOMANYREFS: too many descriptors of this user are in flight; reading frees them.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::TOOMANYREFS) => return Ok(false),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                return Err(HandoffError::Closed);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}
