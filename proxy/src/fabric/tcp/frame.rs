//! Cuts the byte stream of a `tcp` link into messages without copying: reads go to where the
//! messages stay. Only the head of a message that met the end of a buffer is copied.

use super::MESSAGES_PER_BUFFER;
use crate::fabric::Message;
use crate::mux::{self, ProtocolError};
use rdmesh_sys::slab::{BufMut, Payload, Slab};

pub(super) struct Framer {
    slab: Slab,
    buffer: Option<BufMut>,
    /// Where the first incomplete message starts in `buffer`.
    start: usize,
    message_bytes_max: usize,
}

impl Framer {
    pub(super) fn new(slab: Slab) -> Self {
        let message_bytes_max = slab.buffer_bytes() / MESSAGES_PER_BUFFER;
        Self { slab, buffer: None, start: 0, message_bytes_max }
    }

    /// Room for the next read, or `None` while the slab has no free buffer.
    pub(super) fn space(&mut self) -> Option<&mut [u8]> {
        let fits = self.buffer.is_some()
            && self.slab.buffer_bytes() - self.start >= self.message_bytes_max;
        if !fits {
            self.next_buffer()?;
        }
        self.buffer.as_mut().map(BufMut::spare)
    }

    /// The bytes of the incomplete message, if there are any.
    pub(super) fn pending(&self) -> Option<Payload> {
        let buffer = self.buffer.as_ref()?;
        (buffer.filled() > self.start).then(|| buffer.slice(self.start, buffer.filled()))
    }

    /// Lets go of the bytes of the incomplete message: somebody else completes it.
    pub(super) fn take_pending(&mut self) {
        self.buffer = None;
        self.start = 0;
    }

    /// Whether [`Framer::restore`] can be called.
    pub(super) fn has_room(&self) -> bool {
        self.slab.buffers_free() > 0
    }

    /// Begins anew with the first bytes of a message, after [`Framer::take_pending`].
    pub(super) fn restore<'a>(&mut self, parts: impl Iterator<Item = &'a Payload>) {
        self.start = 0;
        self.buffer = self.slab.take();
        for part in parts {
            if let Some(buffer) = &mut self.buffer {
                buffer.put(part);
            }
        }
    }

    /// Goes on in a fresh buffer, taking the incomplete message along.
    fn next_buffer(&mut self) -> Option<()> {
        let mut fresh = self.slab.take()?;
        if let Some(old) = self.buffer.take() {
            fresh.put(&old.slice(self.start, old.filled()));
        }
        self.buffer = Some(fresh);
        self.start = 0;
        Some(())
    }

    /// Counts `n` bytes as read and appends the messages that are complete now.
    pub(super) fn filled(
        &mut self,
        n: usize,
        messages: &mut Vec<Message>,
    ) -> Result<(), ProtocolError> {
        let Some(buffer) = &mut self.buffer else { return Ok(()) };
        buffer.advance(n);
        let all = buffer.slice(self.start, buffer.filled());
        let mut used = 0;
        while let Some(length) = mux::message_length(&all[used..])? {
            if length > self.message_bytes_max || length == 0 {
                return Err(ProtocolError::MessageTooLong(length as u64));
            }
            if all.len() - used < length {
                break;
            }
            messages.push(buffer.slice(self.start + used, self.start + used + length).into());
            used += length;
        }
        self.start += used;
        if self.start == buffer.filled() {
            // Nothing is pending: an idle link holds no buffer.
            self.buffer = None;
            self.start = 0;
        }
        Ok(())
    }
}
