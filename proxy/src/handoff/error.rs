//! What can go wrong on a handoff channel.

use std::io;

/// Why a packet is not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("message of {len} bytes is too short or too long for its kind {kind}")]
    Length { kind: u8, len: usize },
    #[error("unknown message kind {0}")]
    Kind(u8),
    #[error("message of protocol version {theirs}, this end speaks {ours}", ours = super::VERSION)]
    Version { theirs: u16 },
    #[error("malformed {0}")]
    Field(&'static str),
}

#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    #[error("the other end closed the handoff channel")]
    Closed,
    #[error("handoff queue is full: the other end does not read")]
    Full,
    #[error("handoff message refused: {0}")]
    Wire(#[from] WireError),
    #[error("handoff message with more than one file descriptor refused")]
    TooManyFds,
    #[error("handoff message with a file descriptor where none belongs refused")]
    UnexpectedFd,
    #[error("handoff message without the file descriptor that belongs to it refused")]
    MissingFd,
    /// The message was understood but its descriptor could not be installed here. The channel
    /// goes on; the connection `id` is still with the sender only if the protocol says so.
    #[error(
        "no file descriptor left for connection {id}: raise the limit on open files or lower the connection limit"
    )]
    FdLost { id: u32 },
    #[error("descriptor is not a connected TCP socket: {0}")]
    NotAStream(&'static str),
    #[error("handoff channel: {0}")]
    Io(#[from] io::Error),
}

impl HandoffError {
    /// Whether the channel is of no use any more. [`HandoffError::Full`] and
    /// [`HandoffError::FdLost`] concern one message, [`HandoffError::NotAStream`] one descriptor.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Full | Self::FdLost { .. } | Self::NotAStream(_))
    }
}

impl From<rustix::io::Errno> for HandoffError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}
