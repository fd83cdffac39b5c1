//! Messages that were sent and are not known to be delivered, to be sent again on another link.
//!
//! What it does not do: decide when; the lane does.

use super::types::{Payload, ProtocolError};
use smallvec::SmallVec;
use std::collections::VecDeque;

pub(super) struct Sent<P> {
    pub head: P,
    pub tails: SmallVec<[P; 4]>,
    pub bytes: usize,
    pub at_us: u64,
}

pub(super) struct Unacked<P> {
    messages: VecDeque<Sent<P>>,
    /// Sequence number of the first of `messages`, or of the next message if there are none.
    first_seq: u64,
    /// Next to put on this link; below `next_seq` while old messages are being sent again.
    link_seq: u64,
    bytes: usize,
}

impl<P: Payload> Unacked<P> {
    pub fn new() -> Self {
        Self { messages: VecDeque::new(), first_seq: 1, link_seq: 1, bytes: 0 }
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn next_seq(&self) -> u64 {
        self.first_seq + self.messages.len() as u64
    }

    /// Whether anything was ever acknowledged.
    pub fn any_acked(&self) -> bool {
        self.first_seq > 1
    }

    pub fn push(&mut self, sent: Sent<P>) {
        debug_assert!(!self.resending(), "new messages go after the old ones");
        self.bytes += sent.bytes;
        self.messages.push_back(sent);
        self.link_seq = self.next_seq();
    }

    /// Drops what is delivered. Returns when the newest of it was sent.
    pub fn acknowledge(&mut self, ack: u64) -> Result<Option<u64>, ProtocolError> {
        if ack >= self.link_seq {
            return Err(ProtocolError::Ack);
        }
        Ok(self.drop_to(ack))
    }

    /// Nothing of what was sent can get lost any more.
    pub fn forget(&mut self) {
        debug_assert!(!self.resending(), "it was sent on this link");
        self.drop_to(self.link_seq - 1);
    }

    /// A new link: everything after `received` goes again.
    pub fn rewind(&mut self, received: u64) -> Result<(), ProtocolError> {
        if received >= self.next_seq() || received + 1 < self.first_seq {
            return Err(ProtocolError::Resume);
        }
        self.drop_to(received);
        self.link_seq = self.first_seq;
        Ok(())
    }

    fn drop_to(&mut self, ack: u64) -> Option<u64> {
        let mut newest_at_us = None;
        while self.first_seq <= ack
            && let Some(sent) = self.messages.pop_front()
        {
            self.first_seq += 1;
            self.bytes -= sent.bytes;
            newest_at_us = Some(sent.at_us);
        }
        newest_at_us
    }

    pub fn resending(&self) -> bool {
        self.link_seq < self.next_seq()
    }

    /// The next message to send again, with its sequence number.
    pub fn peek_resend(&mut self) -> Option<(u64, &mut Sent<P>)> {
        let index = usize::try_from(self.link_seq - self.first_seq).ok()?;
        self.messages.get_mut(index).map(|sent| (self.link_seq, sent))
    }

    pub fn resent_one(&mut self) {
        self.link_seq += 1;
    }
}
