//! A peer that says what it likes, to a lane that is in use.
//!
//! The input is a script: records of an operation, an argument, a length and as many bytes. Most
//! operations are messages of the hostile peer; the others are the lane's own side at work, so that
//! the messages meet streams in every state. The header's length and sequence number are filled in
//! for some messages: a fuzzer would hardly guess them.

use crate::behaviour;
use rdmesh_proxy::mux::fuzz::Shared;
use rdmesh_proxy::mux::{
    Budget, Event, HEADER_BYTES, Lane, LaneConfig, Open, RefuseReason, ResetReason, Side, StreamId,
    VERSION,
};
use std::rc::Rc;
use std::time::{Duration, Instant};

const BUDGET_BYTES: u64 = 1 << 20;
const STREAMS_MAX: u32 = 16;
const RECORDS_MAX: usize = 256;

mod operation {
    pub const FRAMES: u8 = 0;
    pub const MESSAGE: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const SEND: u8 = 3;
    pub const FINISH: u8 = 4;
    pub const RESET: u8 = 5;
    pub const TIME: u8 = 6;
    pub const LINK: u8 = 7;
    pub const TRANSMIT: u8 = 8;
    pub const COUNT: u8 = 9;
}

struct Harness {
    lane: Lane<Shared>,
    budget: Rc<Budget>,
    config: LaneConfig,
    now: Instant,
    streams: Vec<StreamId>,
    sequence: u64,
    seen: u64,
}

pub fn run(bytes: &[u8]) -> u64 {
    let config = LaneConfig { credits: 32, streams_max: STREAMS_MAX, ..LaneConfig::default() };
    let budget = Rc::new(Budget::new(BUDGET_BYTES));
    let mut lane = Lane::new(config.clone(), Side::Acceptor, Rc::clone(&budget), 1);
    let now = Instant::now();
    lane.link_up(now);
    let mut harness =
        Harness { lane, budget, config, now, streams: Vec::new(), sequence: 0, seen: 0 };
    let mut rest = bytes;
    for _ in 0..RECORDS_MAX {
        let Some((&[operation, argument, low, high], after)) = rest.split_first_chunk::<4>() else {
            break;
        };
        let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (body, after) = after.split_at(length);
        rest = after;
        harness.step(operation % operation::COUNT, argument, body);
        harness.check();
    }
    harness.lane.abandon(harness.now);
    harness.events();
    assert_eq!(harness.budget.granted(), 0, "an abandoned lane keeps a part of the budget");
    harness.seen
}

impl Harness {
    fn step(&mut self, operation: u8, argument: u8, body: &[u8]) {
        let stream = self.streams.get(usize::from(argument) % self.streams.len().max(1)).copied();
        match (operation, stream) {
            (operation::FRAMES, _) => {
                let message = self.framed(argument, body);
                self.receive(&message);
            }
            (operation::MESSAGE, _) => self.receive(body),
            (operation::OPEN, _) => {
                let open = Open { src: ([10, 0, 0, 1], 1).into(), dst: ([10, 0, 0, 2], 2).into() };
                if let Ok(id) = self.lane.open(open, self.now) {
                    self.streams.push(id);
                }
            }
            (operation::SEND, Some(id)) => {
                let room = self.lane.writable(id).min(usize::from(argument) * 64);
                if room > 0 && self.lane.send(id, Shared::new(&vec![7; room])).is_err() {
                    self.note("send refused");
                }
            }
            (operation::FINISH, Some(id)) => self.lane.finish(id),
            (operation::RESET, Some(id)) => self.lane.reset(id, ResetReason::App),
            (operation::TIME, _) => {
                self.now += Duration::from_millis(u64::from(argument) * 40);
                self.lane.on_timeout(self.now);
            }
            (operation::LINK, _) => self.relink(),
            _ => self.transmit(),
        }
        self.events();
    }

    /// A message whose header fits its body. The highest bit of `argument`: unsequenced; the next:
    /// everything after the first 64 bytes is tails.
    fn framed(&mut self, argument: u8, body: &[u8]) -> Vec<u8> {
        let unsequenced = argument & 0x80 != 0;
        if !unsequenced {
            self.sequence += 1;
        }
        let head = if argument & 0x40 != 0 { body.len().min(64) } else { body.len() };
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        let mut message = vec![VERSION, u8::from(unsequenced), argument & 0x3f, 0];
        message.extend(number(HEADER_BYTES + head));
        message.extend(number(HEADER_BYTES + body.len()));
        message.extend([0; 4]);
        message.extend((if unsequenced { 0 } else { self.sequence }).to_le_bytes());
        message.extend(0_u64.to_le_bytes());
        message.extend(64_u64.to_le_bytes());
        message.extend(body);
        message
    }

    fn receive(&mut self, message: &[u8]) {
        match self.lane.on_message(Shared::new(message), self.now) {
            Ok(()) => self.lane.grant(1),
            Err(error) => {
                self.note(&format!("{error:?}"));
                self.relink();
            }
        }
    }

    fn relink(&mut self) {
        self.lane.link_down(self.now);
        self.lane.link_up(self.now);
    }

    fn transmit(&mut self) {
        for _ in 0..64 {
            let mut alloc = |bytes: &[u8]| Some(Shared::new(bytes));
            let Some(message) = self.lane.poll_transmit(self.now, &mut alloc) else { break };
            assert!(
                message.bytes <= self.config.message_bytes_max as usize,
                "a message is too long"
            );
            self.note("transmit");
        }
    }

    fn events(&mut self) {
        // Each event is answered at once, so a bounded input makes a bounded number of them.
        while let Some(event) = self.lane.poll_event() {
            match event {
                Event::Incoming { id, .. } if id.0 % 8 == 7 => {
                    self.lane.refuse(id, RefuseReason::NoPod);
                }
                Event::Incoming { id, .. } => {
                    self.lane.accept(id);
                    self.streams.push(id);
                }
                Event::Data { id, payload } => self.lane.consumed(id, payload.as_ref().len()),
                Event::LinkDead { .. } => self.relink(),
                Event::Reset { id, .. } | Event::Refused { id, .. } | Event::Closed { id } => {
                    self.streams.retain(|stream| *stream != id);
                }
                other => self.note(&format!("{other:?}")),
            }
        }
    }

    fn note(&mut self, what: &str) {
        self.seen ^= behaviour(what).rotate_left(u32::try_from(self.streams.len()).unwrap_or(0));
    }

    fn check(&self) {
        let granted = self.budget.granted();
        assert!(granted <= BUDGET_BYTES, "granted {granted} of {BUDGET_BYTES}");
        let streams = self.lane.stats().streams;
        assert!(streams <= 2 * STREAMS_MAX as usize, "{streams} streams");
    }
}

fn record(operation: u8, argument: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_le_bytes();
    let mut bytes = vec![operation, argument, length[0], length[1]];
    bytes.extend(body);
    bytes
}

fn frame(kind: u8, stream: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = (stream << 8 | u64::from(kind)).to_le_bytes().to_vec();
    bytes.extend(body);
    bytes
}

fn hello() -> Vec<u8> {
    let mut body = Vec::new();
    for word in [9_u64, 0, 0, 0] {
        body.extend(word.to_le_bytes());
    }
    for half in [65_536_u32, 16_384, 256, 0] {
        body.extend(half.to_le_bytes());
    }
    record(operation::FRAMES, 0x81, &frame(1, 0, &body))
}

fn open(stream: u64) -> Vec<u8> {
    let mut body = vec![0, 0, 0x39, 0x30, 0x50, 0, 0, 0];
    body.extend([10, 42, 0, 5]);
    body.extend([0; 12]);
    body.extend([10, 42, 1, 5]);
    body.extend([0; 12]);
    frame(2, stream, &body)
}

fn data(stream: u64, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    frame(5, stream, &[&length, bytes].concat())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let sequenced = |frames: &[Vec<u8>]| {
        let count = u8::try_from(frames.len()).unwrap_or(0x3f);
        record(operation::FRAMES, count, &frames.concat())
    };
    let opened = [hello(), sequenced(&[open(1), data(1, b"hello"), open(3)])].concat();
    let own =
        [hello(), record(operation::OPEN, 0, &[]), record(operation::TRANSMIT, 0, &[])].concat();
    let tail = [&hello(), &sequenced(&[open(1)]), &{
        let mut body = frame(5, 1, &(0x8000_0000_u32 | 64).to_le_bytes());
        body.resize(64, 0);
        body.extend([5; 64]);
        record(operation::FRAMES, 0x41, &body)
    }]
    .into_iter()
    .flatten()
    .copied()
    .collect();
    vec![
        hello(),
        [
            opened.clone(),
            record(operation::SEND, 200, &[]),
            record(operation::TRANSMIT, 0, &[]),
            sequenced(&[
                frame(6, 1, &(1_u64 << 20).to_le_bytes()),
                frame(7, 1, &[]),
                frame(8, 3, &[1]),
            ]),
            record(operation::FINISH, 0, &[]),
            record(operation::TRANSMIT, 0, &[]),
        ]
        .concat(),
        [
            own,
            sequenced(&[frame(3, 2, &[]), data(2, &[1; 300]), frame(11, 0, &[])]),
            record(operation::SEND, 10, &[]),
            record(operation::RESET, 0, &[]),
            record(operation::TRANSMIT, 0, &[]),
        ]
        .concat(),
        [
            opened,
            record(operation::LINK, 0, &[]),
            hello(),
            record(operation::TIME, 200, &[]),
            record(operation::FRAMES, 0x81, &frame(9, 0, &7_u64.to_le_bytes())),
            record(operation::MESSAGE, 0, &[1, 1, 0, 0]),
        ]
        .concat(),
        tail,
    ]
}
