//! Which back end a link gets: both ends say on the link's own connection what they have.
//!
//! Each end sends an offer, a record of fixed size: the address of a queue pair that has its
//! receive buffers posted, or the reason why there is none. Where both offer one, each connects its
//! own and says so in a second record; where both could, the link is a queue pair and the
//! connection stays beside it as the sign of the peer's life. In every other case the connection
//! itself carries the messages. All numbers are little-endian:
//!
//! ```text
//!  0 "rdmV" · 4 version u8 · 5 record u8 (1 offer, 2 connected) · 6 absence u8 (0: present)
//!  7 ethernet u8 · 8 queue pair u32 · 12 first packet u32 · 16 GID [16] · 32 LID u16
//! 34 MTU code u8 · 35 zero u8 · 36 receive buffers u32 · 40 buffer bytes u32 · 44 zero [20]
//! ```
//!
//! What it does not do: block, or wait for ever: the caller has a deadline.

use super::connection;
use super::session::Session;
use super::{Broken, Established};
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

const MAGIC: [u8; 4] = *b"rdmV";
const VERSION: u8 = 1;
const RECORD_BYTES: usize = 64;
const OFFER: u8 = 1;
const CONNECTED: u8 = 2;

macro_rules! absences {
    ($($(#[$doc:meta])* $name:ident = $code:literal $text:literal,)+) => {
        /// Why an end of a link has no queue pair. Codes are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Absence { $($(#[$doc])* $name,)+ Other }

        impl Absence {
            fn code(self) -> u8 {
                match self { $(Self::$name => $code,)+ Self::Other => u8::MAX }
            }

            fn from_code(code: u8) -> Option<Self> {
                match code { 0 => None, $($code => Some(Self::$name),)+ _ => Some(Self::Other) }
            }

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ Self::Other => "a reason that this version does not know" }
            }
        }
    };
}

absences! {
    Off = 1 "node.fabric is tcp",
    NotBuilt = 2 "built without the feature verbs",
    NoDevice = 3 "no RDMA device",
    NoPermission = 4 "no permission to use the RDMA device",
    Memlock = 5 "the limit on locked memory is too low",
    NoGid = 6 "no RDMA device has a GID of this node's address",
    PortDown = 7 "the device's port is down",
    Memory = 8 "no receive buffers are left: raise node.verbs.receive_bytes",
    RecentFailure = 9 "it failed a short while ago",
    Device = 10 "the RDMA device failed",
    Refused = 11 "the device refused the peer's address",
    Unwanted = 12 "the lane is for pods that want none",
}

impl Absence {
    /// Whether waiting may change it.
    #[must_use]
    pub fn may_pass(self) -> bool {
        !matches!(self, Self::Off | Self::NotBuilt | Self::Unwanted)
    }
}

/// An absence and its particulars, for the operator of this node.
#[derive(Debug, Clone)]
pub struct Why {
    pub absence: Absence,
    pub detail: String,
}

impl From<Absence> for Why {
    fn from(absence: Absence) -> Self {
        Self { absence, detail: String::new() }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.absence.as_str())?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// The address of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Offer {
    pub ethernet: bool,
    pub queue_pair: u32,
    pub first_packet: u32,
    pub gid: [u8; 16],
    pub lid: u16,
    pub mtu_code: u8,
    pub receives: u32,
    pub buffer_bytes: u32,
}

type Record = [u8; RECORD_BYTES];

fn encode(kind: u8, offer: Result<Offer, Absence>) -> Record {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = VERSION;
    bytes[5] = kind;
    match offer {
        Err(absence) => bytes[6] = absence.code(),
        Ok(offer) => {
            bytes[7] = offer.ethernet.into();
            bytes[8..12].copy_from_slice(&offer.queue_pair.to_le_bytes());
            bytes[12..16].copy_from_slice(&offer.first_packet.to_le_bytes());
            bytes[16..32].copy_from_slice(&offer.gid);
            bytes[32..34].copy_from_slice(&offer.lid.to_le_bytes());
            bytes[34] = offer.mtu_code;
            bytes[36..40].copy_from_slice(&offer.receives.to_le_bytes());
            bytes[40..44].copy_from_slice(&offer.buffer_bytes.to_le_bytes());
        }
    }
    bytes
}

fn decode(kind: u8, bytes: &Record) -> Result<Result<Offer, Absence>, Broken> {
    if bytes[..4] != MAGIC {
        return Err(Broken::Negotiation("what came is no record of it"));
    }
    if bytes[4] != VERSION {
        return Err(Broken::Negotiation("the peer has another version: upgrade the older one"));
    }
    if bytes[5] != kind {
        return Err(Broken::Negotiation("a record came out of turn"));
    }
    if let Some(absence) = Absence::from_code(bytes[6]) {
        return Ok(Err(absence));
    }
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut gid = [0; 16];
    gid.copy_from_slice(&bytes[16..32]);
    let offer = Offer {
        ethernet: bytes[7] != 0,
        queue_pair: word(8),
        first_packet: word(12),
        gid,
        lid: u16::from_le_bytes([bytes[32], bytes[33]]),
        mtu_code: bytes[34],
        receives: word(36),
        buffer_bytes: word(40),
    };
    let sound = kind == CONNECTED
        || (offer.queue_pair < 1 << 24
            && offer.first_packet < 1 << 24
            && (1..=5).contains(&offer.mtu_code));
    if sound { Ok(Ok(offer)) } else { Err(Broken::Negotiation("an offer has impossible values")) }
}

/// The authenticated connection of a link.
pub(super) struct Connection {
    pub socket: TcpStream,
    pub tls: Option<Session>,
}

impl Connection {
    /// `None` when nothing is there, `Some(0)` at the end.
    pub fn receive(&mut self, space: &mut [u8]) -> Result<Option<usize>, Broken> {
        match &mut self.tls {
            None => Ok(connection::receive(self.socket.as_fd(), space)?),
            Some(session) => session.read_from(&self.socket, space),
        }
    }
}

/// This node's part in a negotiation: an offered queue pair that can be connected.
pub(super) trait Endpoint: Sized {
    fn offer(&self) -> Offer;
    /// # Errors
    /// With what the device says.
    fn connect(&mut self, remote: &Offer) -> Result<(), Why>;
}

/// The endpoint of a build without queue pairs.
#[cfg(not(feature = "verbs"))]
pub(super) enum Nothing {}

#[cfg(not(feature = "verbs"))]
impl Endpoint for Nothing {
    fn offer(&self) -> Offer {
        match *self {}
    }

    fn connect(&mut self, _: &Offer) -> Result<(), Why> {
        match *self {}
    }
}

/// How it ended.
pub(super) enum Outcome<E> {
    QueuePair(Connection, E),
    Connection { connection: Connection, own: Option<Why>, peer: Option<Absence> },
}

enum Stage {
    Offered,
    /// Ours is connected, or refused to.
    Connected(Result<(), Why>),
}

pub(super) struct Negotiator<E> {
    connection: Option<Connection>,
    endpoint: Result<E, Why>,
    stage: Stage,
    unsent: Vec<u8>,
    record: Record,
    received: usize,
}

impl<E: Endpoint> Negotiator<E> {
    pub fn new(established: Established, endpoint: Result<E, Why>) -> Result<Self, Broken> {
        let Established { socket, tls } = established;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let connection = Connection { socket, tls: tls.map(Session::new) };
        let offer = endpoint.as_ref().map(Endpoint::offer).map_err(|why| why.absence);
        let mut negotiator = Self {
            connection: Some(connection),
            endpoint,
            stage: Stage::Offered,
            unsent: Vec::new(),
            record: [0; RECORD_BYTES],
            received: 0,
        };
        negotiator.say(encode(OFFER, offer))?;
        Ok(negotiator)
    }

    fn say(&mut self, record: Record) -> Result<(), Broken> {
        match self.connection.as_mut().and_then(|connection| connection.tls.as_mut()) {
            Some(session) => session.encrypt(&mut [IoSlice::new(&record)])?,
            None => self.unsent.extend_from_slice(&record),
        }
        Ok(())
    }

    /// Goes on as far as it can now. `None`: wait for the descriptor.
    pub fn step(&mut self) -> Result<Option<Outcome<E>>, Broken> {
        loop {
            if !self.flush()? || !self.fill()? {
                return Ok(None);
            }
            let record = std::mem::replace(&mut self.record, [0; RECORD_BYTES]);
            self.received = 0;
            match std::mem::replace(&mut self.stage, Stage::Offered) {
                Stage::Offered => {
                    let remote = decode(OFFER, &record)?;
                    let (Ok(endpoint), Ok(remote)) = (&mut self.endpoint, remote) else {
                        return Ok(self.connection(None, remote.err()));
                    };
                    let connected = endpoint.connect(&remote);
                    let said = connected.as_ref().map(|()| Offer::default());
                    self.say(encode(CONNECTED, said.map_err(|why| why.absence)))?;
                    self.stage = Stage::Connected(connected);
                }
                Stage::Connected(own) => {
                    let peer = decode(CONNECTED, &record)?.err();
                    if own.is_err() || peer.is_some() {
                        return Ok(self.connection(own.err(), peer));
                    }
                    let refused = Err(Why::from(Absence::Other));
                    let endpoint = std::mem::replace(&mut self.endpoint, refused);
                    let (Some(connection), Ok(endpoint)) = (self.connection.take(), endpoint)
                    else {
                        return Ok(None);
                    };
                    return Ok(Some(Outcome::QueuePair(connection, endpoint)));
                }
            }
        }
    }

    fn connection(&mut self, own: Option<Why>, peer: Option<Absence>) -> Option<Outcome<E>> {
        let refused = Err(Why::from(Absence::Other));
        let own = std::mem::replace(&mut self.endpoint, refused).err().or(own);
        let connection = self.connection.take()?;
        Some(Outcome::Connection { connection, own, peer })
    }

    fn flush(&mut self) -> Result<bool, Broken> {
        let Some(Connection { socket, tls }) = &mut self.connection else { return Ok(false) };
        if let Some(session) = tls {
            return Ok(session.write_to(socket)?);
        }
        while !self.unsent.is_empty() {
            let Some(n) = connection::send(socket.as_fd(), &[IoSlice::new(&self.unsent)], false)?
            else {
                return Ok(false);
            };
            self.unsent.drain(..n);
        }
        Ok(true)
    }

    /// Reads up to the end of one record and not a byte further. False: not all is there.
    fn fill(&mut self) -> Result<bool, Broken> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        while self.received < RECORD_BYTES {
            match connection.receive(&mut self.record[self.received..])? {
                None => return Ok(false),
                Some(0) => return Err(Broken::Closed),
                Some(n) => self.received += n,
            }
        }
        Ok(true)
    }

    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        let connection = self.connection.as_ref();
        connection.map(|c| c.socket.as_fd()).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    struct Fake {
        offer: Offer,
        connects: bool,
        connected_to: Option<Offer>,
    }

    impl Endpoint for Fake {
        fn offer(&self) -> Offer {
            self.offer
        }

        fn connect(&mut self, remote: &Offer) -> Result<(), Why> {
            self.connected_to = Some(*remote);
            if self.connects { Ok(()) } else { Err(Absence::Refused.into()) }
        }
    }

    fn fake(queue_pair: u32, connects: bool) -> Result<Fake, Why> {
        let offer = Offer { queue_pair, mtu_code: 5, ..Offer::default() };
        Ok(Fake { offer, connects, connected_to: None })
    }

    fn run(ends: [Result<Fake, Why>; 2]) -> [Outcome<Fake>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let mut sockets = [near, far].into_iter();
        let mut negotiators = ends.map(|end| {
            let socket = sockets.next().unwrap();
            Negotiator::new(Established { socket, tls: None }, end).unwrap()
        });
        let mut outcomes = [None, None];
        while outcomes.iter().any(Option::is_none) {
            for (negotiator, outcome) in negotiators.iter_mut().zip(&mut outcomes) {
                if outcome.is_none() {
                    *outcome = negotiator.step().unwrap();
                }
            }
        }
        outcomes.map(Option::unwrap)
    }

    #[test]
    fn two_queue_pairs_meet() {
        let [Outcome::QueuePair(_, a), Outcome::QueuePair(_, b)] =
            run([fake(1, true), fake(2, true)])
        else {
            panic!("both could");
        };
        assert_eq!((a.connected_to, b.connected_to), (Some(b.offer), Some(a.offer)));
    }

    #[test]
    fn one_without_or_one_refusing_leaves_the_connection() {
        for ends in [
            [Err(Absence::NoDevice.into()), fake(2, true)],
            [fake(1, true), Err(Absence::Off.into())],
            [fake(1, false), fake(2, true)],
        ] {
            let outcomes = run(ends);
            assert!(outcomes.iter().all(|o| matches!(o, Outcome::Connection { .. })));
        }
    }

    #[test]
    fn foreign_bytes_break_it() {
        let mut record = encode(OFFER, Err(Absence::Off));
        assert!(decode(OFFER, &record).unwrap().is_err());
        assert!(decode(CONNECTED, &record).is_err());
        record[0] ^= 1;
        assert!(decode(OFFER, &record).is_err());
        assert!(decode(OFFER, &encode(OFFER, Ok(Offer::default()))).is_err());
    }
}
