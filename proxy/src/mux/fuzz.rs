//! A way for a fuzzer to drive a lane with what it likes.
//!
//! What it does not do: judge more than that nothing panics, that the budget holds, and that a
//! lane that was told nonsense can be used again.

use super::wire::{FLAG_UNSEQUENCED, Frame, HEADER_BYTES, Header, Hello};
use super::{Budget, Event, Lane, LaneConfig, Open, Payload, RefuseReason, ResetReason, Side};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a FIN may wait.
const WAIT: Duration = Duration::from_millis(2);

/// Bytes by reference count.
#[derive(Debug, Clone)]
pub struct Shared {
    bytes: Rc<[u8]>,
    start: usize,
    end: usize,
}

impl Shared {
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), start: 0, end: bytes.len() }
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

impl Payload for Shared {
    fn split_to(&mut self, n: usize) -> Self {
        let middle = self.start + n.min(self.end - self.start);
        let front = Self { bytes: Rc::clone(&self.bytes), start: self.start, end: middle };
        self.start = middle;
        front
    }
}

/// Feeds a lane that has shaken hands with what the fuzzer made. The input is a list of records:
/// a mode, a length, and so many bytes. By the mode they are a whole message as it is, or the
/// frames of a message under a right header (else hardly any input would get beyond the header),
/// sequenced or not; or the lane's own application does something.
pub fn drive_lane(input: &[u8]) {
    let budget = Rc::new(Budget::new(1 << 20));
    let config = LaneConfig { streams_max: 64, ..LaneConfig::default() };
    let mut lane = Lane::new(config, Side::Acceptor, Rc::clone(&budget), 1);
    let mut driver = Driver { now: Instant::now(), seq: 0 };
    driver.connect(&mut lane);
    let mut rest = input;
    while let [mode, length, body @ ..] = rest {
        let (body, after) = body.split_at(body.len().min(usize::from(*length)));
        rest = after;
        driver.record(&mut lane, *mode, body);
        driver.answer(&mut lane);
        assert!(budget.granted() <= budget.bytes_max());
    }
    lane.abandon(driver.now);
    assert_eq!((lane.stats().streams, budget.granted()), (0, 0));
    driver.connect(&mut lane);
    assert!(lane.stats().attached, "the lane is of no use any more");
}

struct Driver {
    now: Instant,
    seq: u64,
}

impl Driver {
    fn connect(&mut self, lane: &mut Lane<Shared>) {
        lane.link_down(self.now);
        lane.link_up(self.now);
        self.seq = 0;
        let hello = Frame::Hello(Hello {
            nonce: 2,
            peer_nonce: 0,
            received: 0,
            features: 0,
            message_bytes_max: 64 << 10,
            window_initial_bytes: 4096,
            unacked_messages_max: 16,
        });
        let mut frames = Vec::new();
        hello.encode(&mut frames);
        let message = message(&frames, 1, 0, 0);
        // An error here shows in the stats.
        let _ = lane.on_message(Shared::new(&message), self.now);
        self.answer(lane);
    }

    fn record(&mut self, lane: &mut Lane<Shared>, mode: u8, body: &[u8]) {
        let id = super::StreamId(u64::from(body.first().copied().unwrap_or_default()));
        let result = match mode % 8 {
            0 => lane.on_message(Shared::new(body), self.now),
            1..4 => {
                let unsequenced = mode % 8 == 1;
                let seq = if unsequenced { 0 } else { self.seq + 1 };
                let tails = if mode % 8 == 3 { body.len() / 2 } else { 0 };
                let whole = message(body, u16::from(mode / 8), seq, tails);
                let result = lane.on_message(Shared::new(&whole), self.now);
                self.seq += u64::from(result.is_ok() && !unsequenced);
                result
            }
            4 => {
                self.now += Duration::from_millis(u64::from(mode) * 4);
                lane.on_timeout(self.now);
                Ok(())
            }
            5 => {
                let end = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
                let _ = lane.open(Open { src: end, dst: end }, self.now);
                Ok(())
            }
            6 => {
                let bytes = lane.writable(id).min(body.len());
                let _ = lane.send(id, Shared::new(&body[..bytes]));
                Ok(())
            }
            _ => {
                match mode / 8 % 4 {
                    0 => lane.reset(id, ResetReason::App),
                    1 if mode >= 128 => lane.finish_within(id, WAIT, self.now),
                    1 => lane.finish(id),
                    2 => lane.refuse(id, RefuseReason::Denied),
                    _ => lane.accept(id),
                }
                Ok(())
            }
        };
        if result.is_err() {
            self.connect(lane);
        }
    }

    fn answer(&self, lane: &mut Lane<Shared>) {
        lane.grant(1);
        while let Some(event) = lane.poll_event() {
            match event {
                Event::Incoming { id, .. } if id.0 % 3 != 0 => lane.accept(id),
                Event::Data { id, payload } if id.0 % 5 != 0 => lane.consumed(id, payload.len()),
                _ => {}
            }
        }
        while let Some(sent) = lane.poll_transmit(self.now, &mut |head| Some(Shared::new(head))) {
            let bytes = sent.head.len() + sent.tails.iter().map(Payload::len).sum::<usize>();
            assert_eq!(bytes, sent.bytes);
        }
    }
}

/// `frames`, of which the last `tails` bytes are no frames but tails, under a header.
fn message(frames: &[u8], count: u16, seq: u64, tails: usize) -> Vec<u8> {
    let length = (HEADER_BYTES + frames.len()) as u32;
    let header = Header {
        flags: if seq == 0 { FLAG_UNSEQUENCED } else { 0 },
        frames: count,
        head_bytes: length - tails as u32,
        length,
        seq,
        ack: 0,
        credit: 1 << 20,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(frames);
    bytes
}

/// Decodes what may be a message header or a frame.
pub fn decode(input: &[u8]) {
    let _ = super::message_length(input);
    if let Ok((frame, bytes)) = Frame::decode(input) {
        assert!(bytes <= input.len());
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(Frame::decode(&again), Ok((frame, bytes)));
    }
}
