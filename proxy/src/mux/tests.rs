use super::fuzz;
use super::streams::Stream;
use super::wire::{Frame, HEADER_BYTES, Header, Hello};
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

impl Payload for Bytes {
    fn split_to(&mut self, n: usize) -> Self {
        let n = n.min(self.len());
        Bytes::split_to(self, n)
    }

    /// Some are, by their first byte, so that the simulator meets both kinds.
    fn whole(&self) -> bool {
        self.len() >= 1_000 && self.first().is_some_and(|byte| byte % 4 == 3)
    }
}

// --- wire

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

fn id() -> impl Strategy<Value = StreamId> {
    (1..1u64 << 56).prop_map(StreamId)
}

fn frame() -> impl Strategy<Value = Frame> {
    let hello = (
        1..=u64::MAX,
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        512..=u32::MAX,
        1..=u32::MAX,
        1..=u32::MAX,
    );
    prop_oneof![
        hello.prop_map(|(nonce, peer_nonce, received, features, message, window, unacked)| {
            Frame::Hello(Hello {
                nonce,
                peer_nonce,
                received,
                features,
                message_bytes_max: message,
                window_initial_bytes: window,
                unacked_messages_max: unacked,
            })
        }),
        (id(), address(), address())
            .prop_map(|(id, src, dst)| Frame::Open { id, open: Open { src, dst } }),
        id().prop_map(|id| Frame::Opened { id }),
        (id(), any::<u8>()).prop_map(|(id, reason)| Frame::Refused { id, reason }),
        (id(), 1..1u32 << 31, any::<bool>()).prop_map(|(id, bytes, in_tail)| Frame::Data {
            id,
            bytes,
            in_tail
        }),
        (id(), any::<u64>()).prop_map(|(id, limit)| Frame::Window { id, limit }),
        id().prop_map(|id| Frame::Fin { id }),
        (id(), any::<u8>()).prop_map(|(id, reason)| Frame::Reset { id, reason }),
        any::<u64>().prop_map(|token| Frame::Ping { token }),
        any::<u64>().prop_map(|token| Frame::Pong { token }),
        Just(Frame::Goaway),
    ]
}

proptest! {
    #[test]
    fn frames_survive_the_wire_and_not_its_end(frame in frame()) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        prop_assert_eq!(Frame::decode(&bytes), Ok((frame, bytes.len())));
        for end in 0..bytes.len() {
            prop_assert_eq!(Frame::decode(&bytes[..end]), Err(ProtocolError::Truncated));
        }
        bytes.push(0xff);
        prop_assert_eq!(Frame::decode(&bytes), Ok((frame, bytes.len() - 1)));
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0..13u8) {
        fuzz::decode(&bytes);
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        fuzz::decode(&bytes);
    }

    #[test]
    fn any_input_leaves_a_lane_that_works(input in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz::drive_lane(&input);
    }

    /// Frames that are right in themselves, in an order that is not.
    #[test]
    fn any_frames_leave_a_lane_that_works(frames in prop::collection::vec((frame(), 1..8u64), 1..60)) {
        let mut input = Vec::new();
        for (mut frame, small) in frames {
            match &mut frame {
                Frame::Open { id, .. } | Frame::Opened { id } | Frame::Refused { id, .. }
                | Frame::Data { id, .. } | Frame::Window { id, .. } | Frame::Fin { id }
                | Frame::Reset { id, .. } => id.0 = small,
                _ => {}
            }
            if let Frame::Data { bytes, in_tail, .. } = &mut frame {
                (*bytes, *in_tail) = (small as u32, false);
            }
            let mut body = Vec::new();
            frame.encode(&mut body);
            if let Frame::Data { bytes, .. } = frame {
                body.resize(body.len() + bytes as usize, 7);
            }
            let service = matches!(frame, Frame::Ping { .. } | Frame::Pong { .. });
            input.extend_from_slice(&[8 + if service { 1 } else { 2 }, body.len() as u8]);
            input.extend_from_slice(&body);
        }
        fuzz::drive_lane(&input);
    }
}

#[test]
fn header_survives_the_wire_and_hostile_lengths_do_not() {
    let header =
        Header { flags: 0, frames: 3, head_bytes: 60, length: 100, seq: 7, ack: 5, credit: 9 };
    let bytes = header.encode();
    assert_eq!(Header::decode(&bytes), Ok(header));
    assert_eq!(message_length(&bytes), Ok(Some(100)));
    for end in 0..HEADER_BYTES {
        assert_eq!(message_length(&bytes[..end]), Ok(None));
        assert_eq!(Header::decode(&bytes[..end]), Err(ProtocolError::Truncated));
    }
    let hostile = [
        Header { head_bytes: 39, ..header },
        Header { head_bytes: 101, ..header },
        Header { head_bytes: u32::MAX, length: 0, ..header },
        Header { seq: 0, ..header },
        Header { flags: 1, ..header },
        Header { flags: 2, ..header },
        Header { frames: 0, ..header },
    ];
    for header in hostile {
        assert_eq!(message_length(&header.encode()), Err(ProtocolError::Header), "{header:?}");
    }
    assert_eq!(message_length(b"GET / HTTP/1.1"), Err(ProtocolError::Version(b'G')));
}

#[test]
fn reasons_keep_their_codes() {
    for reason in RefuseReason::ALL {
        assert_eq!(RefuseReason::from_code(reason.code()), *reason);
    }
    for reason in ResetReason::ALL {
        assert_eq!(ResetReason::from_code(reason.code()), *reason);
    }
    assert_eq!(RefuseReason::from_code(200), RefuseReason::Other);
    assert!(!RefuseReason::Other.is_mesh_reason() && !RefuseReason::Denied.is_mesh_reason());
    assert!(RefuseReason::NoSidecar.is_mesh_reason());
}

// --- lanes

/// Two lanes on a perfect link without latency.
struct Pair {
    now: Instant,
    lanes: [Lane<Bytes>; 2],
    events: [Vec<Event<Bytes>>; 2],
}

impl Pair {
    fn new(config: &LaneConfig) -> Self {
        Self::with_budget(config, 1 << 30)
    }

    fn with_budget(config: &LaneConfig, bytes_max: u64) -> Self {
        let lane =
            |side, nonce| Lane::new(config.clone(), side, Rc::new(Budget::new(bytes_max)), nonce);
        let lanes = [lane(Side::Dialer, 11), lane(Side::Acceptor, 12)];
        let mut pair = Self { now: Instant::now(), lanes, events: [Vec::new(), Vec::new()] };
        pair.link_up();
        pair.run();
        pair
    }

    fn link_up(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.link_up(self.now));
    }

    fn transmit(&mut self, from: usize) -> Option<Vec<u8>> {
        let alloc = &mut |head: &[u8]| Some(Bytes::copy_from_slice(head));
        let sent = self.lanes[from].poll_transmit(self.now, alloc)?;
        let mut bytes = sent.head.to_vec();
        sent.tails.iter().for_each(|tail| bytes.extend_from_slice(tail));
        Some(bytes)
    }

    fn deliver(&mut self, to: usize, message: Vec<u8>) {
        self.lanes[to].on_message(message.into(), self.now).unwrap();
        self.lanes[to].grant(1);
        self.gather();
    }

    fn gather(&mut self) {
        for (lane, events) in self.lanes.iter_mut().zip(&mut self.events) {
            events.extend(std::iter::from_fn(|| lane.poll_event()));
        }
    }

    /// Until nothing moves any more.
    fn run(&mut self) {
        while let Some((from, message)) =
            (0..2).find_map(|from| self.transmit(from).map(|message| (from, message)))
        {
            self.deliver(1 - from, message);
        }
        self.gather();
    }

    fn open(&mut self) -> StreamId {
        let (src, dst) = ("10.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        let id = self.lanes[0].open(Open { src, dst }, self.now).unwrap();
        self.run();
        self.lanes[1].accept(id);
        self.run();
        id
    }

    fn data_bytes(&self, side: usize, wanted: StreamId) -> usize {
        let bytes = |event: &Event<Bytes>| match event {
            Event::Data { id, payload } if *id == wanted => payload.len(),
            _ => 0,
        };
        self.events[side].iter().map(bytes).sum()
    }

    fn advance(&mut self, step: Duration) {
        let end = self.now + step;
        loop {
            let next = self.lanes.iter().filter_map(Lane::poll_timeout).min();
            self.now = next.map_or(end, |at| at.min(end));
            self.lanes.iter_mut().for_each(|lane| lane.on_timeout(self.now));
            self.run();
            if self.now >= end {
                return;
            }
        }
    }
}

fn zeros(n: usize) -> Bytes {
    Bytes::from(vec![0; n])
}

#[test]
fn idle_stream_is_small() {
    assert!(size_of::<Stream<Bytes>>() <= 200, "{}", size_of::<Stream<Bytes>>());
}

#[test]
fn small_message_waits_for_one_quantum_at_most() {
    let mut pair = Pair::new(&LaneConfig { window_initial_bytes: 1 << 20, ..Default::default() });
    let (bulk, small) = (pair.open(), pair.open());
    pair.lanes[0].send(bulk, zeros(100 << 10)).unwrap();
    let first = pair.transmit(0).unwrap();
    assert_eq!(first.len(), 64 << 10, "a bulk stream alone fills its messages");
    pair.lanes[0].send(small, zeros(10)).unwrap();
    let second = pair.transmit(0).unwrap();
    pair.deliver(1, first);
    let before = pair.data_bytes(1, bulk);
    pair.deliver(1, second);
    let is_small = |event: &Event<Bytes>| matches!(event, Event::Data { id, .. } if *id == small);
    let at = pair.events[1].iter().position(is_small).expect("it is in the very next message");
    pair.events[1].truncate(at);
    assert!(pair.data_bytes(1, bulk) - before <= 16 << 10);
}

#[test]
fn a_fin_that_waits_goes_with_the_next_message_or_when_its_time_is_over() {
    let wait = Duration::from_micros(100);
    let mut pair = Pair::new(&LaneConfig::default());
    let streams = [pair.open(), pair.open(), pair.open()];
    let fins = |pair: &mut Pair| {
        pair.run();
        let events = std::mem::take(&mut pair.events[1]);
        events.iter().filter(|event| matches!(event, Event::Fin { .. })).count()
    };
    // With what another stream has to say.
    pair.lanes[0].finish_within(streams[0], wait, pair.now);
    assert_eq!(fins(&mut pair), 0);
    pair.lanes[0].send(streams[1], zeros(10)).unwrap();
    assert_eq!(fins(&mut pair), 1);
    // With the stream's own bytes, at once.
    pair.lanes[0].send(streams[1], zeros(10)).unwrap();
    pair.lanes[0].finish_within(streams[1], wait, pair.now);
    assert_eq!(fins(&mut pair), 1);
    // Alone, when its time is over. A second one of the same stream is none.
    pair.lanes[0].finish_within(streams[2], wait, pair.now);
    pair.lanes[0].finish_within(streams[2], wait / 4, pair.now);
    pair.advance(wait / 2);
    assert_eq!(fins(&mut pair), 0);
    pair.advance(wait / 2);
    assert_eq!(fins(&mut pair), 1);
    pair.advance(2 * wait);
    assert_eq!(fins(&mut pair), 0);
}

#[test]
fn bulk_streams_share_evenly() {
    let mut pair = Pair::new(&LaneConfig { window_initial_bytes: 1 << 20, ..Default::default() });
    let streams: Vec<_> = (0..4).map(|_| pair.open()).collect();
    for _ in 0..8 {
        for id in &streams {
            let n = pair.lanes[0].writable(*id);
            pair.lanes[0].send(*id, zeros(n)).unwrap();
        }
        let message = pair.transmit(0).unwrap();
        pair.deliver(1, message);
    }
    let got: Vec<_> = streams.iter().map(|id| pair.data_bytes(1, *id)).collect();
    let spread = got.iter().max().unwrap() - got.iter().min().unwrap();
    assert!(spread <= 2 * (16 << 10), "{got:?}");
}

#[test]
fn whole_pieces_are_not_cut_and_are_paid_for() {
    let mut pair = Pair::new(&LaneConfig { window_initial_bytes: 8 << 20, ..Default::default() });
    let (whole, cut) = (pair.open(), pair.open());
    let alloc = &mut |head: &[u8]| Some(Bytes::copy_from_slice(head));
    for _ in 0..60 {
        while pair.lanes[0].writable(whole) >= 50_000 {
            pair.lanes[0].send(whole, Bytes::from(vec![3; 50_000])).unwrap();
        }
        let n = pair.lanes[0].writable(cut);
        pair.lanes[0].send(cut, zeros(n)).unwrap();
        let Some(sent) = pair.lanes[0].poll_transmit(pair.now, alloc) else { panic!("no message") };
        assert!(sent.bytes <= 64 << 10);
        for tail in sent.tails.iter().filter(|tail| tail[0] == 3) {
            assert_eq!(tail.len(), 50_000, "in one piece");
        }
        let mut message = sent.head.to_vec();
        sent.tails.iter().for_each(|tail| message.extend_from_slice(tail));
        pair.deliver(1, message);
        // Acknowledgements and credits.
        while let Some(message) = pair.transmit(1) {
            pair.deliver(0, message);
        }
    }
    let got = [whole, cut].map(|id| pair.data_bytes(1, id));
    assert!(got[0].abs_diff(got[1]) <= 2 * (64 << 10), "{got:?}");
}

#[test]
fn the_largest_piece_goes_in_one_message() {
    let mut pair = Pair::new(&LaneConfig { message_bytes_max: 4096, ..Default::default() });
    let id = pair.open();
    let bytes = pair.lanes[0].piece_bytes_max();
    assert!(bytes > 4000);
    pair.lanes[0].send(id, zeros(bytes)).unwrap();
    let message = pair.transmit(0).expect("a message");
    assert!(message.len() <= 4096);
    pair.deliver(1, message);
    assert_eq!((pair.data_bytes(1, id), pair.transmit(0)), (bytes, None));
}

#[test]
fn reader_that_stops_stops_only_itself() {
    let mut pair = Pair::new(&LaneConfig::default());
    let (slow, quick) = (pair.open(), pair.open());
    for _ in 0..100 {
        for id in [slow, quick] {
            let n = pair.lanes[0].writable(id);
            pair.lanes[0].send(id, zeros(n)).unwrap();
        }
        pair.run();
        let got = pair.data_bytes(1, quick);
        pair.events[1].retain(|event| !matches!(event, Event::Data { id, .. } if *id == quick));
        pair.lanes[1].consumed(quick, got);
        pair.now += Duration::from_micros(10);
        pair.run();
    }
    assert_eq!(pair.data_bytes(1, slow), 16 << 10);
    assert!(pair.lanes[1].streams[&quick].consumed > 1 << 20);
    assert!(pair.lanes[1].streams[&quick].window > 16 << 10, "its window has grown");
}

#[test]
fn what_is_delivered_at_once_is_not_kept() {
    let mut pair = Pair::new(&LaneConfig::default());
    let id = pair.open();
    for round in 1..=3 {
        let payload = zeros(5_000);
        let alone = payload.clone();
        pair.lanes[0].send(id, payload).unwrap();
        let message = pair.transmit(0).unwrap();
        assert!(!alone.is_unique());
        pair.lanes[0].delivered();
        assert!(alone.is_unique(), "the sender has kept it");
        assert_eq!(pair.lanes[0].stats().unacked_messages, 0);
        pair.deliver(1, message);
        pair.lanes[1].consumed(id, 5_000);
        // The acknowledgements that come all the same tell nothing new.
        pair.run();
        assert_eq!(pair.lanes[1].streams[&id].received, 5_000 * round);
    }
}

#[test]
fn many_small_writes_share_a_message() {
    let mut pair = Pair::new(&LaneConfig::default());
    let streams: Vec<_> = (0..100).map(|_| pair.open()).collect();
    streams.iter().for_each(|id| pair.lanes[0].send(*id, zeros(100)).unwrap());
    let message = pair.transmit(0).unwrap();
    pair.deliver(1, message);
    assert!(streams.iter().all(|id| pair.data_bytes(1, *id) == 100));
}

#[test]
fn windows_shrink_under_pressure() {
    let config = LaneConfig { window_initial_bytes: 1000, ..Default::default() };
    let mut pair = Pair::with_budget(&config, 16_000);
    let id = pair.open();
    let exchange = |pair: &mut Pair, n: usize| {
        for _ in 0..n {
            let bytes = pair.lanes[0].writable(id).min(500);
            pair.lanes[0].send(id, zeros(bytes)).unwrap();
            pair.run();
            let got = pair.data_bytes(1, id);
            pair.events[1].clear();
            pair.lanes[1].consumed(id, got);
            pair.run();
        }
    };
    exchange(&mut pair, 100);
    assert_eq!(pair.lanes[1].streams[&id].window, 8000);
    let others: Vec<_> = (0..7).map(|_| pair.open()).collect();
    exchange(&mut pair, 100);
    assert_eq!(pair.lanes[1].streams[&id].window, 1000, "new streams have taken the budget");
    assert_eq!(pair.lanes[1].stats().window_bytes_granted, 1000 * (others.len() as u64 + 1));
}

#[test]
fn limits_refuse_and_goaway_drains() {
    let mut pair = Pair::with_budget(&LaneConfig::default(), 16 << 10);
    let open = Open { src: "10.0.0.1:1".parse().unwrap(), dst: "10.0.0.2:2".parse().unwrap() };
    let id = pair.open();
    assert_eq!(pair.lanes[0].open(open, pair.now), Err(OpenError::Limits));
    pair.lanes[0].reset(id, ResetReason::App);
    pair.run();
    assert!(matches!(pair.events[1].last(), Some(Event::Reset { reason: ResetReason::App, .. })));
    // The dialer has room again; it is the acceptor who has not.
    let theirs = pair.lanes[1].open(open, pair.now).unwrap();
    pair.lanes[1].goaway();
    let now = pair.now;
    let ours = pair.lanes[0].open(open, now);
    assert_eq!(ours.map(|id| id.0), Ok(3));
    pair.run();
    assert!(pair.events[0].iter().any(|event| matches!(event, Event::Goaway)));
    let refused = |event: &Event<Bytes>| matches!(event, Event::Refused { reason, .. } if reason.is_mesh_reason());
    assert!(pair.events[0].iter().any(refused));
    assert!(pair.events[1].iter().any(refused), "{theirs} did not fit the dialer's budget");
    assert_eq!(pair.lanes[0].open(open, now), Err(OpenError::Draining));
}

#[test]
fn streams_outlive_their_link_and_not_their_peer() {
    let mut pair = Pair::new(&LaneConfig::default());
    let id = pair.open();
    pair.lanes[0].send(id, Bytes::from_static(b"lost on the way")).unwrap();
    assert!(pair.transmit(0).is_some());
    pair.lanes.iter_mut().for_each(|lane| lane.link_down(pair.now));
    pair.link_up();
    pair.run();
    assert_eq!(pair.data_bytes(1, id), 15);
    assert!(pair.events[0].iter().any(|event| matches!(event, Event::Attached { resumed: true })));
    assert_eq!(pair.lanes[0].stats().messages_resent_total, 1);

    pair.lanes.iter_mut().for_each(|lane| lane.link_down(pair.now));
    let budget = Rc::new(Budget::new(1 << 20));
    pair.lanes[1] = Lane::new(LaneConfig::default(), Side::Acceptor, budget, 99);
    pair.link_up();
    pair.run();
    let tail: Vec<_> = pair.events[0].iter().rev().take(3).collect();
    assert!(matches!(
        tail[..],
        [
            Event::Attached { resumed: false },
            Event::Lost { reason: LostReason::PeerForgot },
            Event::Reset { reason: ResetReason::PeerLost, .. },
        ]
    ));
    pair.open();
}

#[test]
fn silence_kills_the_link_and_signs_of_life_do_not() {
    let mut pair = Pair::new(&LaneConfig::default());
    pair.open();
    pair.advance(Duration::from_secs(60));
    assert!(pair.lanes.iter().all(|lane| lane.stats().attached));
    let end = pair.now + Duration::from_secs(6);
    while pair.now < end {
        pair.now = pair.lanes[0].poll_timeout().map_or(end, |at| at.min(end));
        pair.lanes[0].on_timeout(pair.now);
        while pair.transmit(0).is_some() {}
        pair.gather();
    }
    let dead =
        |event: &Event<Bytes>| matches!(event, Event::LinkDead { reason: LinkDeadReason::Silent });
    assert_eq!(pair.events[0].iter().filter(|event| dead(event)).count(), 1);
}

#[test]
fn open_without_a_link_is_refused_for_the_mesh() {
    let budget = Rc::new(Budget::new(1 << 20));
    let mut lane: Lane<Bytes> =
        Lane::new(LaneConfig::default(), Side::Dialer, Rc::clone(&budget), 1);
    let now = Instant::now();
    let open = Open { src: "10.0.0.1:1".parse().unwrap(), dst: "10.0.0.2:2".parse().unwrap() };
    lane.open(open, now).unwrap();
    assert_eq!(lane.poll_timeout(), Some(now + Duration::from_secs(10)));
    lane.on_timeout(now + Duration::from_secs(10));
    let event = lane.poll_event();
    assert!(matches!(event, Some(Event::Refused { reason: RefuseReason::LaneLost, .. })));
    assert_eq!((lane.poll_timeout(), budget.granted()), (None, 0));
}

#[test]
fn peer_that_breaks_the_rules_costs_only_its_lane() {
    let cases: [(&[Frame], ProtocolError); 6] = [
        (&[Frame::Fin { id: StreamId(1) }], ProtocolError::UnknownStream(1)),
        (&[Frame::Opened { id: StreamId(2) }], ProtocolError::UnknownStream(2)),
        (&[Frame::Ping { token: 1 }], ProtocolError::Frame(9)),
        (
            &[Frame::Open {
                id: StreamId(2),
                open: Open { src: "1.1.1.1:1".parse().unwrap(), dst: "[::]:0".parse().unwrap() },
            }],
            ProtocolError::BadOpen(2),
        ),
        (
            &[Frame::Goaway, Frame::Window { id: StreamId(9), limit: 1 }],
            ProtocolError::UnknownStream(9),
        ),
        (
            &[
                Frame::Open {
                    id: StreamId(1),
                    open: Open {
                        src: "1.1.1.1:1".parse().unwrap(),
                        dst: "[::]:0".parse().unwrap(),
                    },
                },
                Frame::Data { id: StreamId(1), bytes: 16385, in_tail: true },
            ],
            ProtocolError::Window(1),
        ),
    ];
    for (frames, expected) in cases {
        let mut pair = Pair::new(&LaneConfig::default());
        let mut body = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut body));
        let head_bytes = (HEADER_BYTES + body.len()) as u32;
        let length = if matches!(expected, ProtocolError::Window(_)) {
            head_bytes + 16385
        } else {
            head_bytes
        };
        let frames = frames.len() as u16;
        let header = Header { flags: 0, frames, head_bytes, length, seq: 1, ack: 0, credit: 64 };
        let mut message = header.encode().to_vec();
        message.extend_from_slice(&body);
        message.resize(length as usize, 0);
        let (head, now) = (Bytes::from(message), pair.now);
        assert_eq!(pair.lanes[1].on_message(head, now), Err(expected));
        pair.gather();
        let lost =
            |event: &Event<Bytes>| matches!(event, Event::Lost { reason: LostReason::Protocol });
        assert!(pair.events[1].iter().any(lost));
        assert!(pair.transmit(1).is_none());
        assert_eq!(pair.lanes[1].stats().window_bytes_granted, 0);
        pair.lanes.iter_mut().for_each(|lane| lane.link_down(now));
        pair.link_up();
        pair.run();
        assert!(pair.lanes.iter().all(|lane| lane.stats().attached), "both begin anew");
    }
}

#[test]
fn message_beyond_the_posted_buffers_is_an_error() {
    let mut pair = Pair::new(&LaneConfig { credits: 4, ..Default::default() });
    let header =
        Header { flags: 1, frames: 0, head_bytes: 40, length: 40, seq: 0, ack: 0, credit: 4 };
    let message = Bytes::copy_from_slice(&header.encode());
    let now = pair.now;
    let results: Vec<_> = (0..5).map(|_| pair.lanes[1].on_message(message.clone(), now)).collect();
    assert_eq!(results[..4], [Ok(()); 4]);
    assert_eq!(results[4], Err(ProtocolError::Credit));
}
