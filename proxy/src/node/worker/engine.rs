//! How a worker learns that a descriptor can be read or written: epoll, edge-triggered. With a
//! ring the worker sleeps in tokio-uring's runtime, and the epoll set is one poll of that ring.
//!
//! What it does not do: read or write.

use super::slots::{GENERATION_MASK, Key};
use rdmesh_sys::uring;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

const EVENTS_PER_TURN: usize = 256;
const ALL: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::OUT)
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::ET);

/// What an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Mailbox,
    Stream(Key),
    Link(Key),
    /// Of a link, apart from its messages.
    Alarm(Key),
    Pod(Key),
    /// A pod's sidecar's listener.
    Listener(Key),
    /// A connection that may become a lane's next link.
    Negotiation(Key),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, key) = match self {
            Self::Mailbox => (0, Key { index: 0, generation: 0 }),
            Self::Stream(key) => (1, key),
            Self::Link(key) => (2, key),
            Self::Pod(key) => (3, key),
            Self::Negotiation(key) => (4, key),
            Self::Alarm(key) => (5, key),
            Self::Listener(key) => (6, key),
        };
        (kind << 56) | (u64::from(key.generation & GENERATION_MASK) << 32) | u64::from(key.index)
    }

    fn decode(raw: u64) -> Self {
        let key = Key {
            index: (raw & 0xffff_ffff) as u32,
            generation: ((raw >> 32) as u32) & GENERATION_MASK,
        };
        match raw >> 56 {
            1 => Self::Stream(key),
            2 => Self::Link(key),
            3 => Self::Pod(key),
            4 => Self::Negotiation(key),
            5 => Self::Alarm(key),
            6 => Self::Listener(key),
            _ => Self::Mailbox,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub token: Token,
    pub readable: bool,
    pub writable: bool,
    /// The other side has sent its FIN, or the socket is dead: a read tells which.
    pub hangup: bool,
    /// The socket has failed (a reset).
    pub error: bool,
}

type Sleep = tokio_uring::InFlightOneshot<Rc<OwnedFd>, uring::Readiness>;

pub(super) struct Engine {
    epoll: Rc<OwnedFd>,
    /// Whether the worker runs in tokio-uring's runtime.
    ring: bool,
    /// The poll of the epoll set that is still in the ring.
    sleep: Option<Sleep>,
    buffer: Vec<epoll::Event>,
}

impl Engine {
    pub(super) fn new(ring: bool) -> io::Result<Self> {
        let epoll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        Ok(Self { epoll, ring, sleep: None, buffer: Vec::with_capacity(EVENTS_PER_TURN) })
    }

    pub(super) fn add(&self, descriptor: impl AsFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.encode());
        Ok(epoll::add(&*self.epoll, descriptor, data, ALL)?)
    }

    /// Connections that wait are an event in every turn, until they are accepted.
    pub(super) fn add_listener(&self, descriptor: impl AsFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.encode());
        Ok(epoll::add(&*self.epoll, descriptor, data, epoll::EventFlags::IN)?)
    }

    /// Whether bytes that come are an event. An end always is.
    pub(super) fn listen(&self, descriptor: impl AsFd, token: Token, on: bool) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.encode());
        let events = if on { ALL } else { ALL.difference(epoll::EventFlags::IN) };
        Ok(epoll::modify(&*self.epoll, descriptor, data, events)?)
    }

    /// Must come before the descriptor is closed: a copy elsewhere (a sidecar's) would keep the
    /// registration alive.
    pub(super) fn remove(&self, descriptor: impl AsFd) {
        if let Err(error) = epoll::delete(&*self.epoll, descriptor) {
            tracing::debug!(%error, "descriptor was not registered");
        }
    }

    /// Waits for events, at most `timeout` (`None`: without end), and appends them to `events`.
    pub(super) async fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        if self.ring && timeout != Some(Duration::ZERO) {
            self.sleep(timeout).await?;
            return self.poll(Some(Duration::ZERO), events);
        }
        self.poll(timeout, events)
    }

    async fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let epoll = &self.epoll;
        let sleep = self.sleep.get_or_insert_with(|| uring::readable(Rc::clone(epoll)));
        let woken = match timeout {
            None => sleep.await,
            Some(time) => match tokio::time::timeout(time, sleep).await {
                Ok(woken) => woken,
                Err(_) => return Ok(()),
            },
        };
        self.sleep = None;
        woken
    }

    fn poll(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        self.buffer.clear();
        let spare = rustix::buffer::spare_capacity(&mut self.buffer);
        match epoll::wait(&*self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        events.extend(self.buffer.iter().map(|event| {
            use epoll::EventFlags as F;
            let flags = event.flags;
            Event {
                token: Token::decode(event.data.u64()),
                readable: flags.contains(F::IN),
                writable: flags.contains(F::OUT),
                hangup: flags.intersects(F::RDHUP | F::HUP),
                error: flags.contains(F::ERR),
            }
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let key = Key { index: u32::MAX, generation: GENERATION_MASK };
        let keyed = [
            Token::Stream,
            Token::Link,
            Token::Alarm,
            Token::Pod,
            Token::Listener,
            Token::Negotiation,
        ];
        for token in keyed.map(|token| token(key)).into_iter().chain([Token::Mailbox]) {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }

    #[test]
    fn without_interest_in_bytes_an_end_is_an_event_still() {
        use std::io::Write as _;
        use std::os::unix::net::UnixStream;
        let (ours, mut far) = UnixStream::pair().unwrap();
        let mut engine = Engine::new(false).unwrap();
        let token = Token::Stream(Key { index: 1, generation: 1 });
        let readable = |engine: &mut Engine| {
            let mut events = Vec::new();
            engine.poll(Some(Duration::ZERO), &mut events).unwrap();
            events.iter().any(|event| event.readable || event.hangup)
        };
        engine.add(&ours, token).unwrap();
        engine.listen(&ours, token, false).unwrap();
        far.write_all(b"bytes").unwrap();
        assert!(!readable(&mut engine));
        engine.listen(&ours, token, true).unwrap();
        assert!(readable(&mut engine));
        engine.listen(&ours, token, false).unwrap();
        assert!(!readable(&mut engine));
        drop(far);
        assert!(readable(&mut engine));
    }
}
