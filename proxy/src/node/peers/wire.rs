//! The bytes of the handshake: the plain preamble of every connection between node proxies, and
//! the length-prefixed JSON messages of a control session.
//!
//! What it does not do: believe anything. Who may say what is decided by its callers.

use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// magic (6), layout version (1), kind (1), token (32).
pub const PREAMBLE_BYTES: usize = 40;
pub const TOKEN_BYTES: usize = 32;
const MAGIC: &[u8; 6] = b"RDMESH";
/// Of the preamble's layout alone. What is spoken after it is negotiated by [`ControlHello`].
const PREAMBLE_VERSION: u8 = 1;

/// Protocol versions that this program speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
pub const PROTOCOL_VERSION_MAX: u16 = 1;

/// Largest control message, length prefix excluded.
pub const CONTROL_BYTES_MAX: usize = 16 << 10;
const LENGTH_BYTES: usize = 4;

/// What a peer may announce at most.
pub const WORKERS_MAX: u16 = 1024;
const NAME_BYTES_MAX: usize = 253;
const FABRICS_MAX: usize = 16;
const FABRIC_BYTES_MAX: usize = 32;
const TEXT_BYTES_MAX: usize = 512;

/// Sent by the acceptor of a link after the token was good, so that the dialer hands over only
/// links that will work.
pub const LINK_ACCEPTED: u8 = 1;

pub type Token = [u8; TOKEN_BYTES];

/// What the dialer wants of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// TLS follows, a control session inside it.
    Control,
    /// TLS follows, inside it the token and then messages of a lane.
    LinkTls,
    /// Messages of a lane follow, in plain text.
    LinkPlain(Token),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not an rdmesh connection")]
    Magic,
    #[error("handshake layout {0} is not known here: the peer runs another release")]
    PreambleVersion(u8),
    #[error("unknown kind of connection {0}")]
    Kind(u8),
    #[error("a token where none belongs")]
    StrayToken,
    #[error("incomplete: {got} of {want} bytes")]
    Short { got: usize, want: usize },
    #[error("a control message of {0} bytes, at most {CONTROL_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("malformed control message: {0}")]
    Json(String),
    #[error("control message with a bad {0}")]
    Field(&'static str),
}

impl Preamble {
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let (kind, token) = match self {
            Self::Control => (1, [0; TOKEN_BYTES]),
            Self::LinkTls => (2, [0; TOKEN_BYTES]),
            Self::LinkPlain(token) => (3, *token),
        };
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..6].copy_from_slice(MAGIC);
        bytes[6] = PREAMBLE_VERSION;
        bytes[7] = kind;
        bytes[8..].copy_from_slice(&token);
        bytes
    }

    /// Whether `bytes` may be the beginning of a preamble.
    #[must_use]
    pub fn could_start_with(bytes: &[u8]) -> bool {
        bytes.iter().zip(MAGIC).all(|(a, b)| a == b)
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, WireError> {
        if &bytes[..6] != MAGIC {
            return Err(WireError::Magic);
        }
        if bytes[6] != PREAMBLE_VERSION {
            return Err(WireError::PreambleVersion(bytes[6]));
        }
        let mut token = [0; TOKEN_BYTES];
        token.copy_from_slice(&bytes[8..]);
        let blank = token == [0; TOKEN_BYTES];
        match (bytes[7], blank) {
            (1, true) => Ok(Self::Control),
            (2, true) => Ok(Self::LinkTls),
            (1 | 2, false) => Err(WireError::StrayToken),
            // A blank token was never issued; let the look-up say so.
            (3, _) => Ok(Self::LinkPlain(token)),
            (kind, _) => Err(WireError::Kind(kind)),
        }
    }
}

/// The first message of both ends of a control session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlHello {
    pub version_min: u16,
    pub version_max: u16,
    pub node: String,
    /// Random per process: another value tells that the process is another.
    pub incarnation: u64,
    pub workers: u16,
    /// Whether this end wants the payload of `tcp` links encrypted.
    pub encrypt: bool,
    #[serde(default)]
    pub features: u64,
    #[serde(default)]
    pub fabrics: Vec<String>,
}

impl ControlHello {
    /// The highest version that both ends speak.
    #[must_use]
    pub fn common_version(&self, other: &Self) -> Option<u16> {
        let highest = self.version_max.min(other.version_max);
        (highest >= self.version_min.max(other.version_min)).then_some(highest)
    }

    fn check(&self) -> Result<(), WireError> {
        let name_ok = !self.node.is_empty()
            && self.node.len() <= NAME_BYTES_MAX
            && self.node.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let fabrics_ok = self.fabrics.len() <= FABRICS_MAX
            && self.fabrics.iter().all(|name| name.len() <= FABRIC_BYTES_MAX);
        match () {
            () if !name_ok => Err(WireError::Field("node name")),
            () if self.version_min > self.version_max => Err(WireError::Field("version range")),
            () if !(1..=WORKERS_MAX).contains(&self.workers) => {
                Err(WireError::Field("number of workers"))
            }
            () if !fabrics_ok => Err(WireError::Field("list of fabrics")),
            () => Ok(()),
        }
    }
}

/// Why an authenticated peer's session is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Both ends dialled at once and the other connection wins.
    Tie,
    Version,
    /// The directory here does not know the peer.
    Unknown,
    /// The certificate is not of the node that the hello names.
    Name,
    Limits,
    Draining,
    #[serde(other)]
    Other,
}

/// Everything said on a control session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ControlMessage {
    Hello(ControlHello),
    /// The acceptor's answer after both hellos.
    Accepted,
    Refused {
        refusal: Refusal,
        text: String,
    },
    Ping,
    Pong,
    /// Dialer to acceptor: issue a token for this lane.
    WantLane {
        lane: u16,
    },
    /// Acceptor to dialer: dial this lane's link. Also sent unasked, when the acceptor needs it.
    LaneToken {
        lane: u16,
        #[serde(with = "hex_token")]
        token: Token,
    },
    /// The lane's link could not be made; another attempt follows later.
    LaneFailed {
        lane: u16,
        text: String,
    },
    /// The sender is about to stop.
    Goaway,
    /// From a newer release; ignored.
    #[serde(other)]
    Unknown,
}

mod hex_token {
    use super::{TOKEN_BYTES, Token};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Write;

    pub fn serialize<S: Serializer>(token: &Token, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * TOKEN_BYTES);
        for byte in token {
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Token, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digits = text.as_bytes();
        if digits.len() != 2 * TOKEN_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(D::Error::custom("a token is 64 hexadecimal digits"));
        }
        let mut token = [0; TOKEN_BYTES];
        for (byte, pair) in token.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(pair, 16).map_err(D::Error::custom)?;
        }
        Ok(token)
    }
}

/// Cuts a text from outside for the log: short, one line.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().take(TEXT_BYTES_MAX / 4).filter(|c| !c.is_control()).collect()
}

impl ControlMessage {
    /// The message with its length prefix.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = Vec::with_capacity(LENGTH_BYTES + json.len());
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&json);
        bytes
    }

    /// # Errors
    /// What is wrong with the JSON or with a field.
    pub fn decode(json: &[u8]) -> Result<Self, WireError> {
        let message: Self =
            serde_json::from_slice(json).map_err(|e| WireError::Json(printable(&e.to_string())))?;
        if let Self::Hello(hello) = &message {
            hello.check()?;
        }
        Ok(message)
    }
}

/// Collects control messages out of arbitrary pieces of a byte stream.
#[derive(Debug, Default)]
pub struct ControlReader {
    bytes: Vec<u8>,
}

impl ControlReader {
    /// Takes the next whole message, `None` if more bytes are needed.
    ///
    /// # Errors
    /// A length beyond the limit or a malformed message; the stream is of no use after that.
    pub fn next_message(&mut self) -> Result<Option<ControlMessage>, WireError> {
        let Some(prefix) = self.bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > CONTROL_BYTES_MAX {
            return Err(WireError::TooLong(length));
        }
        let end = LENGTH_BYTES + length;
        let Some(json) = self.bytes.get(LENGTH_BYTES..end) else { return Ok(None) };
        let message = ControlMessage::decode(json)?;
        self.bytes.drain(..end);
        Ok(Some(message))
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads on until a message is whole. Safe to drop at any time: nothing read is lost.
    ///
    /// # Errors
    /// The end of the stream is `UnexpectedEof`; a bad message is `InvalidData`.
    pub async fn read_from<R: AsyncRead + Unpin>(
        &mut self,
        stream: &mut R,
    ) -> io::Result<ControlMessage> {
        loop {
            let next = self.next_message();
            if let Some(message) =
                next.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?
            {
                return Ok(message);
            }
            let mut piece = [0u8; 2048];
            let n = stream.read(&mut piece).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.push(&piece[..n]);
        }
    }
}

/// # Errors
/// What the stream says.
pub async fn write_message<W: AsyncWrite + Unpin>(
    stream: &mut W,
    message: &ControlMessage,
) -> io::Result<()> {
    stream.write_all(&message.encode()).await?;
    stream.flush().await
}

/// Everything that an unauthenticated or authenticated peer can send before its session stands,
/// decoded from one piece of bytes: a preamble and, for a control connection, the first message.
/// Meant for fuzzing.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode_handshake(bytes: &[u8]) -> Result<(Preamble, Option<ControlMessage>), WireError> {
    let Some((head, rest)) = bytes.split_first_chunk::<PREAMBLE_BYTES>() else {
        return Err(WireError::Short { got: bytes.len(), want: PREAMBLE_BYTES });
    };
    let preamble = Preamble::decode(head)?;
    if preamble != Preamble::Control {
        return Ok((preamble, None));
    }
    let mut reader = ControlReader::default();
    reader.push(rest);
    Ok((preamble, reader.next_message()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> ControlHello {
        ControlHello {
            version_min: 1,
            version_max: 3,
            node: "node-a".into(),
            incarnation: u64::MAX,
            workers: 2,
            encrypt: true,
            features: 5,
            fabrics: vec!["tcp".into()],
        }
    }

    #[test]
    fn preambles_round_trip() {
        for preamble in [Preamble::Control, Preamble::LinkTls, Preamble::LinkPlain([7; 32])] {
            assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
        }
    }

    #[test]
    fn bad_preambles_say_what_is_wrong() {
        let mut bytes = Preamble::Control.encode();
        bytes[39] = 1;
        assert_eq!(Preamble::decode(&bytes), Err(WireError::StrayToken));
        bytes[7] = 9;
        assert_eq!(Preamble::decode(&bytes), Err(WireError::Kind(9)));
        bytes[6] = 2;
        assert_eq!(Preamble::decode(&bytes), Err(WireError::PreambleVersion(2)));
        bytes[0] = b'G';
        assert_eq!(Preamble::decode(&bytes), Err(WireError::Magic));
    }

    #[test]
    fn messages_round_trip_in_any_pieces() {
        let messages = [
            ControlMessage::Hello(hello()),
            ControlMessage::Accepted,
            ControlMessage::Refused { refusal: Refusal::Tie, text: "x".into() },
            ControlMessage::Ping,
            ControlMessage::WantLane { lane: 3 },
            ControlMessage::LaneToken { lane: 3, token: [0xab; 32] },
            ControlMessage::LaneFailed { lane: 1, text: "no".into() },
            ControlMessage::Goaway,
        ];
        let stream: Vec<u8> = messages.iter().flat_map(ControlMessage::encode).collect();
        for piece in [1, 3, 100, stream.len()] {
            let mut reader = ControlReader::default();
            let mut got = Vec::new();
            for bytes in stream.chunks(piece) {
                reader.push(bytes);
                while let Some(message) = reader.next_message().expect("valid") {
                    got.push(message);
                }
            }
            assert_eq!(got, messages);
        }
    }

    #[test]
    fn messages_of_a_newer_release_are_tolerated() {
        let unknown = br#"{"type":"shiny","a":[1]}"#;
        assert_eq!(ControlMessage::decode(unknown), Ok(ControlMessage::Unknown));
        let refused = br#"{"type":"refused","refusal":"moon","text":""}"#;
        let expected = ControlMessage::Refused { refusal: Refusal::Other, text: String::new() };
        assert_eq!(ControlMessage::decode(refused), Ok(expected));
    }

    #[test]
    fn hostile_lengths_and_fields_are_refused() {
        let mut reader = ControlReader::default();
        reader.push(&u32::MAX.to_le_bytes());
        assert!(matches!(reader.next_message(), Err(WireError::TooLong(_))));
        let bad: [fn(&mut ControlHello); 6] = [
            |h| h.node.clear(),
            |h| h.node = "a b".into(),
            |h| h.node = "x".repeat(254),
            |h| h.workers = 0,
            |h| h.version_min = 9,
            |h| h.fabrics = vec![String::new(); 17],
        ];
        for change in bad {
            let mut hello = hello();
            change(&mut hello);
            let json = serde_json::to_vec(&ControlMessage::Hello(hello)).expect("serialises");
            assert!(matches!(ControlMessage::decode(&json), Err(WireError::Field(_))));
        }
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        let mut old = hello();
        old.version_max = 2;
        assert_eq!(hello().common_version(&old), Some(2));
        old.version_min = 4;
        old.version_max = 9;
        assert_eq!(hello().common_version(&old), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_handshake(&bytes);
            let _ = ControlMessage::decode(&bytes);
            let mut whole = Preamble::Control.encode().to_vec();
            whole.extend_from_slice(&bytes);
            let _ = decode_handshake(&whole);
        }
    }
}
