//! Receives the payload of large messages into pipes, so that it goes on to the application's
//! socket without a copy. It is worth that while large messages come one after the other: then
//! their heads are read alone.
//!
//! What it does not do: know what is in a message. One that does not suit is read as any other.

use super::super::Broken;
use super::frame::Framer;
use crate::fabric::Message;
use crate::mux;
use rdmesh_sys::pipe::{Filling, Pipes};
use rdmesh_sys::slab::Payload;
use rustix::io::Errno;
use smallvec::SmallVec;
use std::net::TcpStream;

/// What is smaller costs less to copy than to move.
const PIECE_BYTES_MIN: usize = 16 << 10;
/// A message of this size that could have been moved makes the link look for more of them.
const LARGE_BYTES: usize = 32 << 10;
/// A longer head is full of small pieces.
const MOVABLE_HEAD_BYTES_MAX: usize = 1024;
/// After so many others one after the other, messages are read many at a time again.
const OTHERS_MAX: u8 = 8;
/// The head of a message that brings bytes of one stream.
const HEAD_BYTES: usize = mux::HEADER_BYTES + mux::DATA_BYTES;

/// What to do next to get on with the messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Read so many bytes at most.
    Read(usize),
    /// Move the payload of the message whose head is there.
    Move,
}

pub(super) enum Moved {
    Message(Message),
    /// The socket has no more for now.
    Drained,
    /// Read on as usual: the message does not suit.
    Unsuitable,
    /// As that, once the slab has a free buffer.
    NoRoom,
}

/// A message whose head is there.
struct Partial {
    head: Payload,
    lengths: SmallVec<[usize; 4]>,
    tails: SmallVec<[Payload; 4]>,
    filling: Option<Filling>,
}

pub(super) struct Large {
    pipes: Pipes,
    pub(super) expected: bool,
    others: u8,
    partial: Option<Partial>,
    /// The message that is being received is read as any other.
    unsuitable: bool,
}

/// How the payload of a message is divided, if it is worth to be moved; its head is enough.
fn movable(message: &[u8]) -> Option<SmallVec<[usize; 4]>> {
    let (head, _) = mux::message_sizes(message)?;
    if head > MOVABLE_HEAD_BYTES_MAX {
        return None;
    }
    let lengths = mux::tail_lengths(message)?;
    let worth = !lengths.is_empty() && lengths.iter().all(|n| *n >= PIECE_BYTES_MIN);
    worth.then_some(lengths)
}

impl Large {
    pub(super) fn new(pipes: Pipes) -> Self {
        Self { pipes, expected: false, others: 0, partial: None, unsuitable: false }
    }

    /// A message has been read.
    pub(super) fn note(&mut self, message: &[u8]) {
        self.unsuitable = false;
        if message.len() >= LARGE_BYTES && movable(message).is_some() {
            (self.expected, self.others) = (true, 0);
        } else if self.expected {
            self.others += 1;
            self.expected = self.others < OTHERS_MAX;
        }
    }

    pub(super) fn next(&mut self, framer: &mut Framer) -> Next {
        if !self.expected {
            return Next::Read(usize::MAX);
        }
        if self.partial.is_some() {
            return Next::Move;
        }
        let Some(pending) = framer.pending() else { return Next::Read(HEAD_BYTES) };
        if pending.len() < HEAD_BYTES {
            return Next::Read(HEAD_BYTES - pending.len());
        }
        // What makes no sense is found by who reads on.
        let Some((head, length)) = mux::message_sizes(&pending) else {
            return Next::Read(usize::MAX);
        };
        let suits = !self.unsuitable && head <= MOVABLE_HEAD_BYTES_MAX;
        if suits && pending.len() < head {
            return Next::Read(head - pending.len());
        }
        let lengths = if suits && pending.len() == head { movable(&pending) } else { None };
        match lengths {
            Some(lengths) => {
                framer.take_pending();
                let tails = SmallVec::new();
                self.partial = Some(Partial { head: pending, lengths, tails, filling: None });
                Next::Move
            }
            None => Next::Read(length.saturating_sub(pending.len()).max(1)),
        }
    }

    /// Moves what has arrived of the payload.
    pub(super) fn advance(
        &mut self,
        socket: &TcpStream,
        framer: &mut Framer,
    ) -> Result<Moved, Broken> {
        let mut tried_again = false;
        loop {
            let Some(partial) = &mut self.partial else { return Ok(Moved::Unsuitable) };
            let Some(length) = partial.lengths.get(partial.tails.len()).copied() else {
                let Some(partial) = self.partial.take() else { return Ok(Moved::Unsuitable) };
                self.others = 0;
                return Ok(Moved::Message(Message {
                    head: partial.head,
                    tails: Some(partial.tails),
                }));
            };
            if partial.filling.is_none() {
                partial.filling = self.pipes.take();
            }
            let Some(filling) = &mut partial.filling else { return Ok(self.read_instead(framer)) };
            match filling.fill(socket, length - filling.len()) {
                Ok(0) => return Err(Broken::Closed),
                Ok(_) if filling.len() == length => {
                    partial.tails.extend(partial.filling.take().map(Filling::finish));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Either the socket is empty or the pipe is full of small pieces.
                    let waiting = rustix::io::ioctl_fionread(socket).unwrap_or(0);
                    if waiting == 0 || filling.is_empty() {
                        return Ok(Moved::Drained);
                    }
                    // Unless it came in between.
                    if std::mem::replace(&mut tried_again, true) {
                        return Ok(self.read_instead(framer));
                    }
                }
                Err(error) => return Err(std::io::Error::from(error).into()),
            }
        }
    }

    /// Puts what was moved so far where a read would have put it.
    fn read_instead(&mut self, framer: &mut Framer) -> Moved {
        if !framer.has_room() {
            return Moved::NoRoom;
        }
        if let Some(mut partial) = self.partial.take() {
            partial.tails.extend(partial.filling.take().map(Filling::finish));
            framer.restore(std::iter::once(&partial.head).chain(&partial.tails));
        }
        self.unsuitable = true;
        Moved::Unsuitable
    }
}
