//! `make bench-micro`: what the state machine and the handoff cost by themselves, without sockets
//! between two nodes. `tests/instructions.sh` counts the instructions of the same cases.
//!
//! What it does not do: tell what a user gets. `make bench` does.
#![forbid(unsafe_code)]

use criterion::Criterion;
use rdmesh_proxy::handoff::{Channel, Message, ToNode};
use rdmesh_proxy::mux::{Budget, Event, Lane, LaneConfig, Open, Side, StreamId, Transmit};
use rdmesh_sys::slab::{BufMut, Payload, Slab};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::hint::black_box;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One turn of a case, to be repeated.
type Turn = Box<dyn FnMut()>;

/// What a turn does, and how to make one.
type Case = (&'static str, fn() -> Turn);

const CASES: [Case; 6] = [
    ("a message with one piece of 64 B", || pieces(1, 64)),
    ("a message with 64 pieces of 64 B, of as many streams", || pieces(64, 64)),
    ("a message with one piece of 60 KiB", || pieces(1, 60 << 10)),
    ("a stream is opened, accepted and closed", short_stream),
    ("handoff: Open is written and read", handoff_codec),
    ("handoff: Open and its descriptor pass a socket", handoff_socket),
];

fn main() {
    let variable = |name: &str| std::env::var(name).ok();
    match (variable("MICRO_CASE"), variable("MICRO_TURNS")) {
        (Some(number), Some(turns)) => repeat(&number, &turns),
        (Some(_), None) => CASES.iter().for_each(|(name, _)| println!("{name}")),
        _ => measure(),
    }
}

fn measure() {
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for (name, make) in CASES {
        let mut turn = make();
        criterion.bench_function(name, |bencher| bencher.iter(&mut turn));
    }
    criterion.final_summary();
}

/// For who counts instructions from outside.
fn repeat(number: &str, turns: &str) {
    let number: usize = number.parse().expect("MICRO_CASE is the number of a case");
    let turns: u32 = turns.parse().expect("MICRO_TURNS is a number");
    let mut turn = CASES[number].1();
    for _ in 0..turns {
        turn();
    }
}

/// Where heads of messages and payload are, as in a worker.
struct Memory {
    slab: Slab,
    current: Option<BufMut>,
}

impl Memory {
    fn new() -> Self {
        Self { slab: Slab::new(256, 128 << 10).expect("memory"), current: None }
    }

    fn keep(&mut self, bytes: &[u8]) -> Payload {
        if self.current.as_ref().is_none_or(|buffer| buffer.spare_bytes() < bytes.len()) {
            self.current = self.slab.take();
        }
        let buffer = self.current.as_mut().expect("a free buffer");
        let start = buffer.filled();
        buffer.put(bytes);
        buffer.slice(start, start + bytes.len())
    }
}

/// Two lanes on a link that is never in the way.
struct Pair {
    now: Instant,
    lanes: [Lane<Payload>; 2],
    memory: Memory,
}

impl Pair {
    fn new() -> Self {
        let budget = || Rc::new(Budget::new(1 << 30));
        let lane = |side, nonce| Lane::new(LaneConfig::default(), side, budget(), nonce);
        let lanes = [lane(Side::Dialer, 1), lane(Side::Acceptor, 2)];
        let mut pair = Self { now: Instant::now(), lanes, memory: Memory::new() };
        for lane in &mut pair.lanes {
            lane.link_up(pair.now);
        }
        pair.settle();
        pair
    }

    fn transmit(&mut self, from: usize) -> Option<Transmit<Payload>> {
        let Self { now, lanes, memory } = self;
        lanes[from].poll_transmit(*now, &mut |head| Some(memory.keep(head)))
    }

    /// Messages in both directions until there are none; what arrives is taken at once.
    fn settle(&mut self) {
        while let Some((to, message)) =
            (0..2).find_map(|from| self.transmit(from).map(|message| (1 - from, message)))
        {
            let lane = &mut self.lanes[to];
            lane.on_parts(message.head, message.tails.into_iter(), self.now).expect("a message");
            lane.grant(1);
            while let Some(event) = lane.poll_event() {
                match event {
                    Event::Incoming { id, .. } => lane.accept(id),
                    Event::Data { id, payload } => lane.consumed(id, payload.len()),
                    Event::Fin { id } => lane.finish(id),
                    _ => {}
                }
            }
        }
        self.now += Duration::from_micros(50);
    }

    fn open(&mut self) -> StreamId {
        let (src, dst) = addresses();
        let id = self.lanes[0].open(Open { src, dst }, self.now).expect("a stream");
        self.settle();
        id
    }
}

fn addresses() -> (SocketAddr, SocketAddr) {
    ("10.42.1.10:40000".parse().expect("valid"), "10.42.2.10:80".parse().expect("valid"))
}

fn pieces(streams: usize, bytes: usize) -> Turn {
    let mut pair = Pair::new();
    let streams: Vec<StreamId> = (0..streams).map(|_| pair.open()).collect();
    // The windows grow to what a piece needs.
    while pair.lanes[0].writable(streams[0]) < bytes {
        let n = pair.lanes[0].writable(streams[0]);
        let piece = pair.memory.keep(&vec![7; n.min(64 << 10)]);
        pair.lanes[0].send(streams[0], piece).expect("room");
        pair.settle();
    }
    let payload = Memory::new().keep(&vec![7; bytes]);
    Box::new(move || {
        for id in &streams {
            pair.lanes[0].send(*id, payload.clone()).expect("room");
        }
        pair.settle();
    })
}

fn short_stream() -> Turn {
    let mut pair = Pair::new();
    Box::new(move || {
        let id = pair.open();
        pair.lanes[0].finish(id);
        pair.settle();
    })
}

fn handoff_codec() -> Turn {
    let (src, orig_dst) = addresses();
    let mut bytes = Vec::new();
    Box::new(move || {
        bytes.clear();
        black_box(ToNode::Open { id: 7, orig_dst, src }).encode(&mut bytes);
        black_box(ToNode::decode(&bytes).expect("what was encoded"));
    })
}

fn handoff_socket() -> Turn {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (near, far) = socketpair(family, kind, SocketFlags::CLOEXEC, None).expect("sockets");
    let (mut near, mut far) = (Channel::new(near).expect("near"), Channel::new(far).expect("far"));
    let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("a descriptor");
    let (src, orig_dst) = addresses();
    Box::new(move || {
        let open = ToNode::Open { id: 7, orig_dst, src };
        near.send(&open, Some(client.as_fd())).expect("sent");
        black_box(far.recv::<ToNode>().expect("a message").expect("at once"));
    })
}
