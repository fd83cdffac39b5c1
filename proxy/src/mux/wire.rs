//! How messages and frames look on the link.
//!
//! All numbers are little-endian. A message is
//!
//! ```text
//!  0 version u8 · 1 flags u8 · 2 frames u16 · 4 head bytes u32 · 8 length u32 · 12 zero u32
//! 16 sequence u64 · 24 acknowledged u64 · 32 credit u64
//! 40 the frames, up to `head bytes`
//!    the tails: the bytes of the DATA frames that say so, in the order of those frames
//! ```
//!
//! `length` counts everything, `acknowledged` is the last sequence number received in order, and
//! `credit` how many receive buffers were posted on this link so far. Unsequenced messages (HELLO,
//! PING, PONG, or nothing but the header) have sequence number 0 and are never sent again.
//!
//! A frame starts with a word of 8 bytes, the kind in the lowest and the stream id in the other
//! seven, and has a fixed body for each kind:
//!
//! ```text
//!  1 HELLO    nonce u64 · peer's nonce u64 · received u64 · features u64
//!             · message bytes max u32 · window initial u32 · unacked messages max u32 · zero u32
//!  2 OPEN     families u8 (bit 0: source is IPv6, bit 1: destination) · zero u8
//!             · source port u16 · destination port u16 · zero u16 · source [16] · destination [16]
//!  3 OPENED   -
//!  4 REFUSED  reason u8
//!  5 DATA     bytes u32, the highest bit set if they are in the tails and do not follow here
//!  6 WINDOW   limit u64: the peer may have sent so many bytes since the stream began
//!  7 FIN      -
//!  8 RESET    reason u8
//!  9 PING     token u64
//! 10 PONG     token u64
//! 11 GOAWAY   -
//! ```
//!
//! What it does not do: judge what a frame means now. Decoding never allocates and never panics.

use super::transmit::TAILS_MAX;
use super::types::{Open, ProtocolError, StreamId};
use smallvec::SmallVec;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Version of everything in this file.
pub const VERSION: u8 = 1;
pub const HEADER_BYTES: usize = 40;
/// Both ends must be able to take messages of this size.
pub const MESSAGE_BYTES_MIN: u32 = 512;

pub(super) const FLAG_UNSEQUENCED: u8 = 1;
const DATA_IN_TAIL: u32 = 1 << 31;
const WORD_BYTES: usize = 8;
/// A DATA frame without its bytes.
pub const DATA_BYTES: usize = WORD_BYTES + 4;
/// The longest frame without its data.
pub(super) const FRAME_BYTES_MAX: usize = WORD_BYTES + 48;
/// Ids have seven bytes on the wire.
pub(super) const STREAM_ID_MAX: u64 = (1 << 56) - 1;

mod kind {
    pub const HELLO: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const OPENED: u8 = 3;
    pub const REFUSED: u8 = 4;
    pub const DATA: u8 = 5;
    pub const WINDOW: u8 = 6;
    pub const FIN: u8 = 7;
    pub const RESET: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
    pub const GOAWAY: u8 = 11;
}

/// The first bytes of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub flags: u8,
    pub frames: u16,
    pub head_bytes: u32,
    pub length: u32,
    pub seq: u64,
    pub ack: u64,
    pub credit: u64,
}

impl Header {
    pub fn unsequenced(&self) -> bool {
        self.flags & FLAG_UNSEQUENCED != 0
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = VERSION;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.frames.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.head_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.ack.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.credit.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(ProtocolError::Truncated)?;
        if bytes[0] != VERSION {
            return Err(ProtocolError::Version(bytes[0]));
        }
        let header = Self {
            flags: bytes[1],
            frames: u16::from_le_bytes(take(bytes, 2)?),
            head_bytes: u32::from_le_bytes(take(bytes, 4)?),
            length: u32::from_le_bytes(take(bytes, 8)?),
            seq: u64::from_le_bytes(take(bytes, 16)?),
            ack: u64::from_le_bytes(take(bytes, 24)?),
            credit: u64::from_le_bytes(take(bytes, 32)?),
        };
        let sound = header.flags & !FLAG_UNSEQUENCED == 0
            && bytes[12..16] == [0; 4]
            && header.head_bytes as usize >= HEADER_BYTES
            && header.head_bytes <= header.length
            && header.unsequenced() == (header.seq == 0)
            && (header.frames > 0 || header.unsequenced());
        if sound { Ok(header) } else { Err(ProtocolError::Header) }
    }
}

/// How long the message is whose first bytes these are; `None` if the header is not complete.
/// The caller compares it with the size of its buffers.
///
/// # Errors
/// When these are no first bytes of a message.
pub fn message_length(bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
    if let Some(version) = bytes.first()
        && *version != VERSION
    {
        return Err(ProtocolError::Version(*version));
    }
    if bytes.len() < HEADER_BYTES {
        return Ok(None);
    }
    Header::decode(bytes).map(|header| Some(header.length as usize))
}

/// Sizes of a message that begins with `bytes`: of its head, and of everything. `None` while too
/// few bytes are there to tell.
#[must_use]
pub fn message_sizes(bytes: &[u8]) -> Option<(usize, usize)> {
    let header = Header::decode(bytes.get(..HEADER_BYTES)?).ok()?;
    Some((header.head_bytes as usize, header.length as usize))
}

/// How the tails of a message are divided among its frames, from its head. `None` for a head that
/// makes no sense, or has too many tails to be worth it.
#[must_use]
pub fn tail_lengths(head: &[u8]) -> Option<SmallVec<[usize; 4]>> {
    let header = Header::decode(head).ok()?;
    let (mut rest, mut lengths) = (head.get(HEADER_BYTES..)?, SmallVec::new());
    for _ in 0..header.frames {
        let (frame, bytes) = Frame::decode(rest).ok()?;
        rest = rest.get(bytes..)?;
        match frame {
            Frame::Data { bytes, in_tail: true, .. } if lengths.len() < TAILS_MAX => {
                lengths.push(bytes as usize);
            }
            Frame::Data { in_tail: true, .. } => return None,
            Frame::Data { bytes, .. } => rest = rest.get(bytes as usize..)?,
            _ => {}
        }
    }
    let tails = header.length.checked_sub(header.head_bytes)? as usize;
    (lengths.iter().sum::<usize>() == tails).then_some(lengths)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    /// Names this life of the sender's state.
    pub nonce: u64,
    /// The life of the receiver's state that the sender goes on with, 0 for none.
    pub peer_nonce: u64,
    /// Last sequence number received from that life.
    pub received: u64,
    pub features: u64,
    pub message_bytes_max: u32,
    pub window_initial_bytes: u32,
    pub unacked_messages_max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    Hello(Hello),
    Open { id: StreamId, open: Open },
    Opened { id: StreamId },
    Refused { id: StreamId, reason: u8 },
    Data { id: StreamId, bytes: u32, in_tail: bool },
    Window { id: StreamId, limit: u64 },
    Fin { id: StreamId },
    Reset { id: StreamId, reason: u8 },
    Ping { token: u64 },
    Pong { token: u64 },
    Goaway,
}

impl Frame {
    pub fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::Open { .. } => kind::OPEN,
            Self::Opened { .. } => kind::OPENED,
            Self::Refused { .. } => kind::REFUSED,
            Self::Data { .. } => kind::DATA,
            Self::Window { .. } => kind::WINDOW,
            Self::Fin { .. } => kind::FIN,
            Self::Reset { .. } => kind::RESET,
            Self::Ping { .. } => kind::PING,
            Self::Pong { .. } => kind::PONG,
            Self::Goaway => kind::GOAWAY,
        }
    }

    fn id(&self) -> u64 {
        match self {
            Self::Open { id, .. }
            | Self::Opened { id }
            | Self::Refused { id, .. }
            | Self::Data { id, .. }
            | Self::Window { id, .. }
            | Self::Fin { id }
            | Self::Reset { id, .. } => id.0,
            Self::Hello(_) | Self::Ping { .. } | Self::Pong { .. } | Self::Goaway => 0,
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let word = self.id() << 8 | u64::from(self.kind());
        out.extend_from_slice(&word.to_le_bytes());
        match *self {
            Self::Hello(hello) => encode_hello(&hello, out),
            Self::Open { open, .. } => encode_open(&open, out),
            Self::Refused { reason, .. } | Self::Reset { reason, .. } => out.push(reason),
            Self::Data { bytes, in_tail, .. } => {
                let word = if in_tail { bytes | DATA_IN_TAIL } else { bytes };
                out.extend_from_slice(&word.to_le_bytes());
            }
            Self::Window { limit: number, .. }
            | Self::Ping { token: number }
            | Self::Pong { token: number } => out.extend_from_slice(&number.to_le_bytes()),
            Self::Opened { .. } | Self::Fin { .. } | Self::Goaway => {}
        }
    }

    /// The frame at the start of `bytes`, and how long it is (without the data that follows it).
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), ProtocolError> {
        let word = u64::from_le_bytes(take(bytes, 0)?);
        let id = StreamId(word >> 8);
        let kind = word.to_le_bytes()[0];
        let for_stream = !matches!(kind, kind::HELLO | kind::PING | kind::PONG | kind::GOAWAY);
        if for_stream != (id.0 != 0) {
            return Err(ProtocolError::Field);
        }
        let body = &bytes[WORD_BYTES..];
        let (frame, body_bytes) = match kind {
            kind::DATA => (decode_data(id, body)?, 4),
            kind::WINDOW => (Self::Window { id, limit: u64::from_le_bytes(take(body, 0)?) }, 8),
            kind::OPEN => (Self::Open { id, open: decode_open(body)? }, 40),
            kind::OPENED => (Self::Opened { id }, 0),
            kind::REFUSED => (Self::Refused { id, reason: take::<1>(body, 0)?[0] }, 1),
            kind::FIN => (Self::Fin { id }, 0),
            kind::RESET => (Self::Reset { id, reason: take::<1>(body, 0)?[0] }, 1),
            kind::PING => (Self::Ping { token: u64::from_le_bytes(take(body, 0)?) }, 8),
            kind::PONG => (Self::Pong { token: u64::from_le_bytes(take(body, 0)?) }, 8),
            kind::GOAWAY => (Self::Goaway, 0),
            kind::HELLO => (Self::Hello(decode_hello(body)?), 48),
            other => return Err(ProtocolError::Frame(other)),
        };
        Ok((frame, WORD_BYTES + body_bytes))
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ProtocolError> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(ProtocolError::Truncated)
}

fn decode_data(id: StreamId, body: &[u8]) -> Result<Frame, ProtocolError> {
    let word = u32::from_le_bytes(take(body, 0)?);
    let bytes = word & !DATA_IN_TAIL;
    if bytes == 0 {
        return Err(ProtocolError::Field);
    }
    Ok(Frame::Data { id, bytes, in_tail: word & DATA_IN_TAIL != 0 })
}

fn encode_hello(hello: &Hello, out: &mut Vec<u8>) {
    for number in [hello.nonce, hello.peer_nonce, hello.received, hello.features] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let limits =
        [hello.message_bytes_max, hello.window_initial_bytes, hello.unacked_messages_max, 0];
    for number in limits {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn decode_hello(body: &[u8]) -> Result<Hello, ProtocolError> {
    let hello = Hello {
        nonce: u64::from_le_bytes(take(body, 0)?),
        peer_nonce: u64::from_le_bytes(take(body, 8)?),
        received: u64::from_le_bytes(take(body, 16)?),
        features: u64::from_le_bytes(take(body, 24)?),
        message_bytes_max: u32::from_le_bytes(take(body, 32)?),
        window_initial_bytes: u32::from_le_bytes(take(body, 36)?),
        unacked_messages_max: u32::from_le_bytes(take(body, 40)?),
    };
    // Four bytes for later use, whatever is in them.
    take::<4>(body, 44)?;
    let sound = hello.nonce != 0
        && hello.message_bytes_max >= MESSAGE_BYTES_MIN
        && hello.window_initial_bytes > 0
        && hello.unacked_messages_max > 0;
    if sound { Ok(hello) } else { Err(ProtocolError::Field) }
}

const SOURCE_IS_V6: u8 = 1;
const DESTINATION_IS_V6: u8 = 2;

fn encode_open(open: &Open, out: &mut Vec<u8>) {
    let families = if open.src.is_ipv6() { SOURCE_IS_V6 } else { 0 }
        | if open.dst.is_ipv6() { DESTINATION_IS_V6 } else { 0 };
    out.extend_from_slice(&[families, 0]);
    out.extend_from_slice(&open.src.port().to_le_bytes());
    out.extend_from_slice(&open.dst.port().to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    for address in [open.src, open.dst] {
        let mut bytes = [0; 16];
        match address.ip() {
            IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => bytes = v6.octets(),
        }
        out.extend_from_slice(&bytes);
    }
}

fn decode_open(body: &[u8]) -> Result<Open, ProtocolError> {
    let [families, zero] = take(body, 0)?;
    let padding: [u8; 2] = take(body, 6)?;
    if families & !(SOURCE_IS_V6 | DESTINATION_IS_V6) != 0 || zero != 0 || padding != [0; 2] {
        return Err(ProtocolError::Field);
    }
    let src = decode_ip(take(body, 8)?, families & SOURCE_IS_V6 != 0)?;
    let dst = decode_ip(take(body, 24)?, families & DESTINATION_IS_V6 != 0)?;
    Ok(Open {
        src: SocketAddr::new(src, u16::from_le_bytes(take(body, 2)?)),
        dst: SocketAddr::new(dst, u16::from_le_bytes(take(body, 4)?)),
    })
}

fn decode_ip(bytes: [u8; 16], is_v6: bool) -> Result<IpAddr, ProtocolError> {
    if is_v6 {
        return Ok(Ipv6Addr::from(bytes).into());
    }
    let (v4, rest) = bytes.split_at(4);
    if rest.iter().any(|byte| *byte != 0) {
        return Err(ProtocolError::Field);
    }
    Ok(Ipv4Addr::from(take::<4>(v4, 0)?).into())
}
