//! Messages of no lane: a header, and bytes that mean nothing. Links are measured with them.
//!
//! What it does not do: enter a lane. There they count as mere acknowledgements.

use super::types::ProtocolError;
use super::wire::{FLAG_UNSEQUENCED, HEADER_BYTES, Header};

/// What a blank message tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blank {
    /// Of the whole message, header included.
    pub bytes: u32,
    /// Messages that its sender has received on the link.
    pub received: u64,
    /// Receive buffers that its sender has posted on the link.
    pub posted: u64,
}

impl Blank {
    /// The first bytes of the message.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let header = Header {
            flags: FLAG_UNSEQUENCED,
            frames: 0,
            head_bytes: HEADER_BYTES as u32,
            length: self.bytes,
            seq: 0,
            ack: self.received,
            credit: self.posted,
        };
        header.encode()
    }

    /// # Errors
    /// When this is another message, or not the whole of it.
    pub fn read(message: &[u8]) -> Result<Self, ProtocolError> {
        let header = Header::decode(message)?;
        if !header.unsequenced() || header.frames > 0 {
            return Err(ProtocolError::Header);
        }
        if header.length as usize != message.len() {
            return Err(ProtocolError::Truncated);
        }
        Ok(Self { bytes: header.length, received: header.ack, posted: header.credit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let blank = Blank { bytes: 64, received: 7, posted: 9 };
        let mut message = blank.header().to_vec();
        message.resize(64, 0);
        assert_eq!(Blank::read(&message), Ok(blank));
        assert_eq!(super::super::message_length(&message), Ok(Some(64)));
        assert_eq!(Blank::read(&message[..63]), Err(ProtocolError::Truncated));
        message[2] = 1;
        assert_eq!(Blank::read(&message), Err(ProtocolError::Header));
    }
}
