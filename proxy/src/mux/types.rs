//! What the lane and its caller say to each other.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// A cheap, shared, immutable slice of bytes.
pub trait Payload: Clone + AsRef<[u8]> {
    /// Cuts off and returns the first `n` bytes (all, if there are fewer).
    #[must_use]
    fn split_to(&mut self, n: usize) -> Self;

    fn len(&self) -> usize {
        self.as_ref().len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it had better not be cut or looked at: it is held elsewhere, and both cost a copy.
    fn whole(&self) -> bool {
        false
    }
}

/// Which end of the lane this is: it decides the parity of the stream ids that it gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Odd stream ids.
    Dialer,
    /// Even stream ids.
    Acceptor,
}

/// A stream of one lane. Never used twice in the life of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

impl StreamId {
    pub(super) fn opener(self) -> Side {
        if self.0 % 2 == 1 { Side::Dialer } else { Side::Acceptor }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The two ends of the connection that a stream carries, as the application sees them. An IPv6
/// flow label and scope do not travel: they mean nothing on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Open {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

macro_rules! reasons {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $code:literal $text:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$inner])* $variant,)*
            /// A code of a newer peer that this version has no word for.
            Other,
        }

        impl $name {
            /// Every reason, for label sets that must be complete.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)* Self::Other];

            /// The code on the wire. Codes are never reused.
            #[must_use]
            pub fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other => u8::MAX,
                }
            }

            #[must_use]
            pub fn from_code(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    _ => Self::Other,
                }
            }

            /// Stable, for metric labels and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other => "other",
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why an OPEN did not become a stream.
    RefuseReason {
        /// The application's host answered the connect with a reset.
        Refused = 1 "refused",
        /// Nobody answered the connect in time.
        Timeout = 2 "timeout",
        /// The network of the destination said so.
        Unreachable = 3 "unreachable",
        /// A policy forbids the connection.
        Denied = 4 "denied",
        NoPod = 16 "no_pod",
        NoSidecar = 17 "no_sidecar",
        Limits = 18 "limits",
        Draining = 19 "draining",
        BadSource = 20 "bad_source",
        /// The lane was lost before the OPEN had left, so nothing happened at the far side.
        LaneLost = 21 "lane_lost",
        /// The far node proxy failed in itself.
        Internal = 22 "internal",
        /// A policy bears on the connection that the far node proxy cannot evaluate.
        PolicyUnknown = 23 "policy_unknown",
    }
}

impl RefuseReason {
    /// Whether the mesh is at fault, and not the application or a policy: then the source passes
    /// the connection through. An unknown reason is not: passing through might bypass a policy.
    #[must_use]
    pub fn is_mesh_reason(self) -> bool {
        match self {
            Self::Refused | Self::Timeout | Self::Unreachable | Self::Denied | Self::Other => false,
            Self::NoPod
            | Self::NoSidecar
            | Self::Limits
            | Self::Draining
            | Self::BadSource
            | Self::LaneLost
            | Self::Internal
            | Self::PolicyUnknown => true,
        }
    }
}

reasons! {
    /// Why a stream was reset.
    ResetReason {
        /// The application reset its connection, or went away with unread data.
        App = 1 "app",
        /// The lane to the peer is lost.
        PeerLost = 2 "peer_lost",
        Limits = 3 "limits",
        Protocol = 4 "protocol",
        /// An operator or a shutdown ended it.
        Admin = 5 "admin",
        /// The stream was not opened in time.
        Timeout = 6 "timeout",
        /// The node proxy failed in itself.
        Internal = 7 "internal",
    }
}

/// Why the lane wants its link killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkDeadReason {
    /// Nothing was heard for the keepalive timeout.
    Silent,
    /// The link never brought the peer's HELLO.
    NoHello,
    /// The lane was given up while this link was still being set up.
    GaveUp,
}

impl LinkDeadReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::NoHello => "no_hello",
            Self::GaveUp => "gave_up",
        }
    }
}

/// Why a lane gave up its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostReason {
    /// No link came in time.
    ResumeTimeout,
    /// The peer does not know our state any more: its process is another one.
    PeerForgot,
    /// The peer broke the protocol within a message.
    Protocol,
    /// The caller said so.
    Abandoned,
}

impl LostReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ResumeTimeout => "resume_timeout",
            Self::PeerForgot => "peer_forgot",
            Self::Protocol => "protocol",
            Self::Abandoned => "abandoned",
        }
    }
}

/// What happened on the lane, in order.
#[derive(Debug, Clone)]
pub enum Event<P> {
    /// HELLOs are exchanged, the lane runs. `resumed`: with the streams that it had.
    Attached {
        resumed: bool,
    },
    /// The peer opens a stream: answer by `accept`, `refuse` or `reset`. Data may follow at once.
    Incoming {
        id: StreamId,
        open: Open,
    },
    Opened {
        id: StreamId,
    },
    /// The id is gone.
    Refused {
        id: StreamId,
        reason: RefuseReason,
    },
    /// Bytes of the stream, in order. Say `consumed` when the application took them.
    Data {
        id: StreamId,
        payload: P,
    },
    /// The peer's application sends no more; all its bytes were delivered before.
    Fin {
        id: StreamId,
    },
    /// The id is gone.
    Reset {
        id: StreamId,
        reason: ResetReason,
    },
    /// `send` takes bytes again, after `writable` said 0.
    Writable {
        id: StreamId,
    },
    /// The caller kills the link and calls `link_down`.
    LinkDead {
        reason: LinkDeadReason,
    },
    /// The lane gave up. Before it came, for every stream, a `Reset`, or a `Refused` (`LaneLost`)
    /// if its OPEN had never left.
    Lost {
        reason: LostReason,
    },
    /// The peer takes no new streams on this lane.
    Goaway,
    /// Both FINs have passed and all bytes are consumed: the id is gone. Never after `Reset`,
    /// `Refused` or one's own `reset`.
    Closed {
        id: StreamId,
    },
}

/// Why `open` gives no stream. Each is the mesh's own reason: the connection passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the lane has no room for another stream: raise limits.streams_max or limits.window_budget_bytes"
    )]
    Limits,
    #[error("this lane is draining and opens no new streams")]
    Draining,
}

/// A mistake of the caller in `send`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("no such stream, or it is not accepted yet")]
    NotOpen,
    #[error("the stream was finished already")]
    Finished,
    #[error("more than writable() allowed")]
    TooMuch,
}

/// What a peer did wrong. The link is of no use any more: kill it and call `link_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the message has version {0}: upgrade the older of the two node proxies")]
    Version(u8),
    #[error("the message header is malformed")]
    Header,
    #[error("a message of {0} bytes is longer than agreed")]
    MessageTooLong(u64),
    #[error("a message or frame ends before its time")]
    Truncated,
    #[error("a message is longer than its frames")]
    Excess,
    #[error("frame kind {0} is unknown or not allowed here")]
    Frame(u8),
    #[error("a field of the frame has an impossible value")]
    Field,
    #[error("message {got} came where {expected} was due")]
    Gap { expected: u64, got: u64 },
    #[error("an acknowledgement of what was never sent")]
    Ack,
    #[error("the peer sent more messages than buffers were posted")]
    Credit,
    #[error("the first message was no HELLO, or HELLO came twice")]
    Hello,
    #[error("the HELLO of a resumed lane contradicts what was agreed before")]
    Resume,
    #[error("stream {0} was never opened")]
    UnknownStream(u64),
    #[error("an OPEN for stream {0}, which is not the peer's to open now")]
    BadOpen(u64),
    #[error("stream {0} got a frame that its state does not allow")]
    StreamState(u64),
    #[error("stream {0} got bytes beyond its window")]
    Window(u64),
    #[error("the peer makes work faster than it takes the answers")]
    Flood,
}

/// A snapshot for metrics and `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaneStats {
    pub attached: bool,
    pub streams: usize,
    pub unacked_messages: usize,
    pub unacked_bytes: usize,
    /// Smoothed round-trip time; `None` before the first sample.
    pub srtt: Option<Duration>,
    /// Messages that the peer can take now.
    pub credits: u64,
    /// Sum of the receive windows granted on this lane.
    pub window_bytes_granted: u64,
    pub messages_sent_total: u64,
    pub messages_received_total: u64,
    pub messages_resent_total: u64,
    pub attached_total: u64,
}
