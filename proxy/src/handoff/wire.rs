//! The layout of handoff messages.
//!
//! ```text
//! header    kind u8, argument u8, version u16                              4 bytes
//! address   family u8 (4 or 6), zero u8, port u16, scope u32, address 16   24 bytes
//! ```
//! All little-endian except the address itself. HELLO, WELCOME and REJECTED keep their layout in
//! every version, so that two ends of different versions can tell each other so.

use super::error::WireError;
use super::reason::{DialFailure, PassthroughReason, RejectReason};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Version of the protocol that this build speaks.
pub const VERSION: u16 = 3;
/// Most bytes that come back with a connection that passes through after all.
pub const EARLY_BYTES_MAX: usize = 64 << 10;
pub const NODE_NAME_BYTES_MAX: usize = 253;

const HEADER_BYTES: usize = 4;
const ADDRESS_BYTES: usize = 24;

/// Whether a descriptor belongs to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdRule {
    Required,
    Optional,
    Forbidden,
}

/// One direction's messages.
pub trait Message: Sized {
    /// No encoded message is longer.
    const BYTES_MAX: usize;
    fn encode(&self, out: &mut Vec<u8>);
    /// # Errors
    /// Whatever is not exactly one message is refused.
    fn decode(bytes: &[u8]) -> Result<Self, WireError>;
    fn fd_rule(&self) -> FdRule;
    /// The connection that the message is about.
    fn id(&self) -> Option<u32>;
}

/// From the sidecar. `Open` ids are chosen by the sidecar, `Dial` ids by the node proxy; both are
/// per channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToNode {
    Hello {
        version: u16,
        worker: u32,
    },
    /// With the client's socket.
    Open {
        id: u32,
        orig_dst: SocketAddr,
        src: SocketAddr,
    },
    /// With a socket connected to the application.
    Dialed {
        id: u32,
    },
    DialFailed {
        id: u32,
        reason: DialFailure,
    },
    /// With a socket of the pod's network namespace that is prepared for a delivery and not yet
    /// bound. It can be bound at connect to one of the `ports`, the first to the last.
    Spare {
        family: Family,
        ports: (u16, u16),
    },
    /// With the socket at which redirected connections arrive: the node proxy may accept there.
    /// The sidecar does not until it is told to ([`ToSidecar::Accept`], [`ToSidecar::Drain`], or
    /// the end of the channel).
    Listener,
}

/// What a spare socket can be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn code(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    fn from_code(code: u8) -> Result<Self, WireError> {
        match code {
            4 => Ok(Self::V4),
            6 => Ok(Self::V6),
            _ => Err(WireError::Field("address family")),
        }
    }
}

/// From the node proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSidecar {
    Welcome {
        version: u16,
        workers: u32,
        node: String,
    },
    Rejected {
        version: u16,
        reason: RejectReason,
    },
    /// The node proxy owns the connection; the sidecar closes its copy of the socket.
    Taken {
        id: u32,
    },
    /// Without a descriptor: an `Open` that was not taken. With one: a connection that was, and
    /// the bytes that were already read from it.
    Passthrough {
        id: u32,
        reason: PassthroughReason,
        early: Vec<u8>,
    },
    /// With a connection that the node proxy accepted at the sidecar's port and has not read from.
    /// With a reason it passes through, without one it is as if the sidecar had accepted it.
    Accepted {
        reason: Option<PassthroughReason>,
    },
    /// The node proxy does not accept at the sidecar's port (any more).
    Accept,
    /// The sidecar resets the client.
    Deny {
        id: u32,
    },
    /// Open a socket to the application at `dst` from the client's own address `src`.
    Dial {
        id: u32,
        src: SocketAddr,
        dst: SocketAddr,
        timeout_ms: u32,
    },
    /// Send so many spare sockets, so that deliveries need not ask for each one.
    Spares {
        family: Family,
        count: u32,
    },
    /// The node proxy is going away: new connections pass through.
    Drain,
}

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const DIALED: u8 = 3;
const DIAL_FAILED: u8 = 4;
const SPARE: u8 = 5;
const LISTENER: u8 = 6;
const WELCOME: u8 = 65;
const REJECTED: u8 = 66;
const TAKEN: u8 = 67;
const PASSTHROUGH: u8 = 68;
const DENY: u8 = 69;
const DIAL: u8 = 70;
const DRAIN: u8 = 71;
const SPARES: u8 = 72;
const ACCEPTED: u8 = 73;
const ACCEPT: u8 = 74;

/// In place of a reason. No reason has this code.
const NO_REASON: u8 = 0;

impl Message for ToNode {
    const BYTES_MAX: usize = HEADER_BYTES + 4 + 2 * ADDRESS_BYTES;

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, worker } => {
                header(out, HELLO, 0, *version);
                put_u32(out, *worker);
            }
            Self::Open { id, orig_dst, src } => {
                header(out, OPEN, 0, VERSION);
                put_u32(out, *id);
                put_address(out, orig_dst);
                put_address(out, src);
            }
            Self::Dialed { id } => {
                header(out, DIALED, 0, VERSION);
                put_u32(out, *id);
            }
            Self::DialFailed { id, reason } => {
                header(out, DIAL_FAILED, reason.code(), VERSION);
                put_u32(out, *id);
            }
            Self::Spare { family, ports: (first, last) } => {
                header(out, SPARE, family.code(), VERSION);
                put_u32(out, u32::from(*last) << 16 | u32::from(*first));
            }
            Self::Listener => header(out, LISTENER, 0, VERSION),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes)?;
        let message = match r.kind {
            HELLO => Self::Hello { version: r.version, worker: r.u32()? },
            kind if r.version != VERSION && (OPEN..=LISTENER).contains(&kind) => {
                return Err(WireError::Version { theirs: r.version });
            }
            OPEN => Self::Open { id: r.u32()?, orig_dst: r.address()?, src: r.address()? },
            DIALED => Self::Dialed { id: r.u32()? },
            DIAL_FAILED => {
                Self::DialFailed { id: r.u32()?, reason: DialFailure::from_code(r.argument()) }
            }
            SPARE => {
                let family = Family::from_code(r.argument())?;
                let [f0, f1, l0, l1] = r.array()?;
                let ports = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([l0, l1]));
                Self::Spare { family, ports }
            }
            LISTENER => Self::Listener,
            kind => return Err(WireError::Kind(kind)),
        };
        r.end(message)
    }

    fn fd_rule(&self) -> FdRule {
        match self {
            Self::Open { .. } | Self::Dialed { .. } => FdRule::Required,
            // It may be lost on the way, when no descriptor is left.
            Self::Spare { .. } | Self::Listener => FdRule::Optional,
            Self::Hello { .. } | Self::DialFailed { .. } => FdRule::Forbidden,
        }
    }

    fn id(&self) -> Option<u32> {
        match self {
            Self::Hello { .. } | Self::Spare { .. } | Self::Listener => None,
            Self::Open { id, .. } | Self::Dialed { id } | Self::DialFailed { id, .. } => Some(*id),
        }
    }
}

impl Message for ToSidecar {
    const BYTES_MAX: usize = HEADER_BYTES + 4 + EARLY_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome { version, workers, node } => {
                header(out, WELCOME, 0, *version);
                put_u32(out, *workers);
                out.extend_from_slice(node.as_bytes());
            }
            Self::Rejected { version, reason } => header(out, REJECTED, reason.code(), *version),
            Self::Taken { id } => {
                header(out, TAKEN, 0, VERSION);
                put_u32(out, *id);
            }
            Self::Passthrough { id, reason, early } => {
                header(out, PASSTHROUGH, reason.code(), VERSION);
                put_u32(out, *id);
                out.extend_from_slice(early);
            }
            Self::Deny { id } => {
                header(out, DENY, 0, VERSION);
                put_u32(out, *id);
            }
            Self::Dial { id, src, dst, timeout_ms } => {
                header(out, DIAL, 0, VERSION);
                put_u32(out, *id);
                put_address(out, src);
                put_address(out, dst);
                put_u32(out, *timeout_ms);
            }
            Self::Spares { family, count } => {
                header(out, SPARES, family.code(), VERSION);
                put_u32(out, *count);
            }
            Self::Drain => header(out, DRAIN, 0, VERSION),
            Self::Accepted { reason } => {
                let code = reason.map_or(NO_REASON, PassthroughReason::code);
                header(out, ACCEPTED, code, VERSION);
            }
            Self::Accept => header(out, ACCEPT, 0, VERSION),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes)?;
        let message = match r.kind {
            WELCOME => Self::Welcome { version: r.version, workers: r.u32()?, node: r.name()? },
            REJECTED => {
                Self::Rejected { version: r.version, reason: RejectReason::from_code(r.argument()) }
            }
            kind if r.version != VERSION && (TAKEN..=ACCEPT).contains(&kind) => {
                return Err(WireError::Version { theirs: r.version });
            }
            TAKEN => Self::Taken { id: r.u32()? },
            PASSTHROUGH => Self::Passthrough {
                id: r.u32()?,
                reason: PassthroughReason::from_code(r.argument()),
                early: r.rest(EARLY_BYTES_MAX)?.to_vec(),
            },
            DENY => Self::Deny { id: r.u32()? },
            DIAL => Self::Dial {
                id: r.u32()?,
                src: r.address()?,
                dst: r.address()?,
                timeout_ms: r.u32()?,
            },
            SPARES => Self::Spares { family: Family::from_code(r.argument())?, count: r.u32()? },
            DRAIN => Self::Drain,
            ACCEPTED => {
                let code = r.argument();
                let reason = (code != NO_REASON).then(|| PassthroughReason::from_code(code));
                Self::Accepted { reason }
            }
            ACCEPT => Self::Accept,
            kind => return Err(WireError::Kind(kind)),
        };
        r.end(message)
    }

    fn fd_rule(&self) -> FdRule {
        match self {
            // Bytes that were read can only come back together with the socket.
            Self::Passthrough { early, .. } if !early.is_empty() => FdRule::Required,
            // It may be lost on the way, when no descriptor is left.
            Self::Passthrough { .. } | Self::Accepted { .. } => FdRule::Optional,
            _ => FdRule::Forbidden,
        }
    }

    fn id(&self) -> Option<u32> {
        match self {
            Self::Welcome { .. }
            | Self::Rejected { .. }
            | Self::Spares { .. }
            | Self::Accepted { .. }
            | Self::Accept
            | Self::Drain => None,
            Self::Taken { id }
            | Self::Passthrough { id, .. }
            | Self::Deny { id }
            | Self::Dial { id, .. } => Some(*id),
        }
    }
}

fn header(out: &mut Vec<u8>, kind: u8, argument: u8, version: u16) {
    out.extend_from_slice(&[kind, argument]);
    out.extend_from_slice(&version.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_address(out: &mut Vec<u8>, address: &SocketAddr) {
    let (family, scope, octets) = match address {
        SocketAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.ip().octets());
            (4, 0, octets)
        }
        SocketAddr::V6(v6) => (6, v6.scope_id(), v6.ip().octets()),
    };
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&address.port().to_le_bytes());
    put_u32(out, scope);
    out.extend_from_slice(&octets);
}

/// Cuts fields off the front of a packet; nothing is read beyond its end.
struct Reader<'a> {
    kind: u8,
    argument: u8,
    argument_read: bool,
    version: u16,
    left: &'a [u8],
    len: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, WireError> {
        let kind = bytes.first().copied().unwrap_or(0);
        let Some(([_, argument, v0, v1], left)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(WireError::Length { kind, len: bytes.len() });
        };
        let version = u16::from_le_bytes([*v0, *v1]);
        Ok(Self {
            kind,
            argument: *argument,
            argument_read: false,
            version,
            left,
            len: bytes.len(),
        })
    }

    fn argument(&mut self) -> u8 {
        self.argument_read = true;
        self.argument
    }

    fn too_short(&self) -> WireError {
        WireError::Length { kind: self.kind, len: self.len }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.left.split_first_chunk::<N>().ok_or_else(|| self.too_short())?;
        self.left = tail;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    fn address(&mut self) -> Result<SocketAddr, WireError> {
        let [family, zero] = self.array()?;
        let port = u16::from_le_bytes(self.array()?);
        let scope = self.u32()?;
        let octets: [u8; 16] = self.array()?;
        match (family, zero) {
            (4, 0) => {
                let ([a, b, c, d], padding) = octets.split_first_chunk().expect("16 bytes");
                if scope != 0 || padding.iter().any(|byte| *byte != 0) {
                    return Err(WireError::Field("IPv4 address"));
                }
                Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)), port))
            }
            (6, 0) => Ok(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into()),
            _ => Err(WireError::Field("address family")),
        }
    }

    fn rest(&mut self, len_max: usize) -> Result<&'a [u8], WireError> {
        if self.left.len() > len_max {
            return Err(self.too_short());
        }
        Ok(std::mem::take(&mut self.left))
    }

    fn name(&mut self) -> Result<String, WireError> {
        let bytes = self.rest(NODE_NAME_BYTES_MAX)?;
        let name = std::str::from_utf8(bytes).map_err(|_| WireError::Field("node name"))?;
        if name.chars().any(char::is_control) {
            return Err(WireError::Field("node name"));
        }
        Ok(name.to_owned())
    }

    fn end<M>(&self, message: M) -> Result<M, WireError> {
        if !self.left.is_empty() {
            return Err(self.too_short());
        }
        if !self.argument_read && self.argument != 0 {
            return Err(WireError::Field("header argument"));
        }
        Ok(message)
    }
}
