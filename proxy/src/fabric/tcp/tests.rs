use super::*;
use crate::mux::{Budget, Event, Lane, LaneConfig, Open, Side, StreamId};
use rdmesh_sys::pipe::Pipes;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    // As the node proxy's: a part does not wait for the acknowledgement of the one before.
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// The two ends of a link: a socket, and a TLS session if it is encrypted.
type Ends = [(TcpStream, Option<Session>); 2];

fn plain() -> Ends {
    let (near, far) = pair();
    [(near, None), (far, None)]
}

fn encrypted() -> Ends {
    let made = rcgen::generate_simple_self_signed(vec!["b".into()]).unwrap();
    let key = made.signing_key.serialize_der();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.try_into().unwrap())
        .unwrap();
    let name = "b".try_into().unwrap();
    let client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
    let (near, far) = pair();
    let shake = |mut tls: rustls::Connection, socket: &TcpStream| {
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut &*socket).unwrap();
        }
        Some(Session::new(tls))
    };
    let sessions = std::thread::scope(|scope| {
        let at_far = scope.spawn(|| shake(server.into(), &far));
        [shake(client.into(), &near), at_far.join().unwrap()]
    });
    let [at_near, at_far] = sessions;
    [(near, at_near), (far, at_far)]
}

/// One end: a lane, its link, and what arrived on each stream.
struct End {
    lane: Lane<Payload>,
    link: TcpLink,
    slab: Slab,
    pipes: Pipes,
    got: Vec<u8>,
    moved: usize,
    streams: Vec<StreamId>,
    receive: Slab,
}

impl End {
    fn new(side: Side, (socket, tls): (TcpStream, Option<Session>), pipes_max: u32) -> Self {
        let budget = Rc::new(Budget::new(64 << 20));
        let config = LaneConfig { window_initial_bytes: 4 << 20, ..LaneConfig::default() };
        let slab = Slab::new(256, 64 << 10).unwrap();
        let receive = receive_slab(64 << 10, 4 << 20).unwrap();
        let pipes = Pipes::new(pipes_max).unwrap();
        let link = TcpLink::new(socket, tls, &receive, pipes.clone()).unwrap();
        let mut lane = Lane::new(config, side, budget, u64::from(side == Side::Dialer) + 1);
        lane.link_up(Instant::now());
        let (got, streams) = (Vec::new(), Vec::new());
        Self { lane, link, slab, pipes, got, moved: 0, streams, receive }
    }

    fn relink(&mut self, (socket, tls): (TcpStream, Option<Session>)) {
        self.link = TcpLink::new(socket, tls, &self.receive, self.pipes.clone()).unwrap();
        self.lane.link_up(Instant::now());
    }

    fn send(&mut self) {
        let now = Instant::now();
        let slab = self.slab.clone();
        let mut keep = |bytes: &[u8]| {
            let mut buffer = slab.take()?;
            let n = buffer.put(bytes);
            Some(buffer.slice(0, n))
        };
        while self.link.has_room() {
            let Some(message) = self.lane.poll_transmit(now, &mut keep) else { break };
            self.link.post_send(message);
        }
        self.link.flush().unwrap();
    }

    fn receive(&mut self) {
        let now = Instant::now();
        let mut messages = Vec::new();
        self.link.receive(&mut messages).unwrap();
        for Message { head, tails } in messages {
            match tails {
                None => self.lane.on_message(head, now).unwrap(),
                Some(tails) => {
                    self.moved += tails.iter().map(Payload::len).sum::<usize>();
                    self.lane.on_parts(head, tails.into_iter(), now).unwrap();
                }
            }
        }
        self.lane.grant(self.link.granted());
        while let Some(event) = self.lane.poll_event() {
            match event {
                Event::Incoming { id, .. } => {
                    self.lane.accept(id);
                    self.streams.push(id);
                }
                Event::Data { id, payload } => {
                    self.got.extend_from_slice(&payload);
                    self.lane.consumed(id, payload.len());
                }
                _ => {}
            }
        }
    }
}

/// A payload as it comes from an application's socket, moved or read.
fn payload(end: &End, bytes: &[u8], moved: bool) -> Payload {
    if moved && let Some(mut filling) = end.pipes.take() {
        let (mut near, far) = pair();
        let writer = bytes.to_vec();
        let writer = std::thread::spawn(move || near.write_all(&writer).unwrap());
        while filling.len() < bytes.len() {
            filling.fill(&far, bytes.len() - filling.len()).unwrap();
        }
        writer.join().unwrap();
        return filling.finish();
    }
    let mut buffer = end.slab.take().unwrap();
    let n = buffer.put(bytes);
    buffer.slice(0, n)
}

fn pattern(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i % 251) as u8 ^ (i / 65_521) as u8).collect()
}

/// Both ends on one link, with a stream.
fn joined([near, far]: Ends, pipes_max: u32) -> (End, End, StreamId) {
    let mut a = End::new(Side::Dialer, near, pipes_max);
    let mut b = End::new(Side::Acceptor, far, pipes_max);
    let address = "10.0.0.1:1".parse().unwrap();
    for _ in 0..4 {
        turn(&mut a, &mut b);
    }
    let id = a.lane.open(Open { src: address, dst: address }, Instant::now()).unwrap();
    for _ in 0..4 {
        turn(&mut a, &mut b);
    }
    (a, b, id)
}

fn turn(a: &mut End, b: &mut End) {
    a.send();
    b.receive();
    b.send();
    a.receive();
}

/// Sends pieces of these sizes over one stream; after half of them another link takes over.
fn carry(
    sizes: &[usize],
    moved: bool,
    pipes_max: u32,
    first: Ends,
    mut second: Option<Ends>,
) -> (usize, usize) {
    let (mut a, mut b, id) = joined(first, pipes_max);
    let mut sent = 0;
    for (index, size) in sizes.iter().enumerate() {
        let piece = payload(&a, &pattern(sent, *size), moved);
        while a.lane.writable(id) < *size {
            turn(&mut a, &mut b);
        }
        a.lane.send(id, piece).unwrap();
        sent += size;
        if index == sizes.len() / 2
            && let Some([near, far]) = second.take()
        {
            // Some of it is on its way: in the lane's queue, in the link's, in the sockets.
            a.send();
            a.relink(near);
            b.relink(far);
        }
        if index % 3 == 0 {
            turn(&mut a, &mut b);
        }
    }
    let mut quiet = 0;
    while quiet < 1_000 && b.got.len() < sent {
        let before = b.got.len();
        turn(&mut a, &mut b);
        quiet = if b.got.len() == before { quiet + 1 } else { 0 };
    }
    assert_eq!(b.got.len(), sent);
    assert!(b.got == pattern(0, sent), "bytes differ");
    (b.moved, sent)
}

const MIXED: [usize; 14] = [
    65_000, 65_484, 65_484, 1, 65_484, 40_000, 16_384, 200, 65_484, 30_000, 30_000, 65_484, 15_000,
    65_484,
];

fn many() -> Vec<usize> {
    MIXED.iter().copied().cycle().take(70).collect()
}

#[test]
fn large_payload_is_moved() {
    let (moved, sent) = carry(&[65_484; 40], true, 64, plain(), None);
    assert!(moved > sent / 2, "{moved} of {sent} moved");
}

#[test]
fn small_pieces_packed_in_large_messages_are_read_as_ever() {
    let (mut a, mut b, id) = joined(plain(), 64);
    let mut largest = 0;
    while b.got.len() < 500_000 {
        let mut pieces = 0;
        while pieces < 100 && a.lane.writable(id) >= 500 {
            let piece = payload(&a, &pattern(0, 500), false);
            a.lane.send(id, piece).unwrap();
            pieces += 1;
        }
        let before = b.got.len();
        turn(&mut a, &mut b);
        largest = largest.max(b.got.len() - before);
        assert!(!b.link.large.expected);
    }
    assert!(largest > 32 << 10, "they were not packed: {largest} bytes in a turn");
}

#[test]
fn mixed_sizes_arrive_in_order() {
    for ends in [plain, encrypted] {
        carry(&many(), true, 64, ends(), None);
        carry(&many(), false, 64, ends(), None);
    }
}

#[test]
fn without_pipes_bytes_are_copied() {
    for pipes in [0, 1, 2, 3] {
        carry(&many(), true, pipes, plain(), None);
    }
}

#[test]
fn moved_payload_is_sent_again_on_another_link() {
    for (first, second) in [
        (plain(), plain()),
        (encrypted(), encrypted()),
        (plain(), encrypted()),
        (encrypted(), plain()),
    ] {
        carry(&many(), true, 64, first, Some(second));
    }
    carry(&many(), true, 3, plain(), Some(plain()));
}

#[test]
fn a_message_in_crumbs_is_read_in_one_piece() {
    let (near, far) = pair();
    // One pipe takes no more than so many pieces: crumbs fill it before the message is complete.
    let (lane_near, lane_far) = pair();
    let mut a = End::new(Side::Dialer, (lane_near, None), 8);
    let mut b = End::new(Side::Acceptor, (far, None), 8);
    // What `a` writes goes to `b` a few bytes at a time.
    let mut relay = lane_far;
    relay.set_nonblocking(true).unwrap();
    near.set_nonblocking(true).unwrap();
    let address = "10.0.0.1:1".parse().unwrap();
    let mut pass = |a: &mut End, b: &mut End, crumb: usize| {
        a.send();
        let mut bytes = vec![0; 1 << 20];
        while let Ok(n) = relay.read(&mut bytes) {
            for part in bytes[..n].chunks(crumb) {
                (&near).write_all(part).unwrap();
                b.receive();
            }
        }
        b.receive();
        b.send();
        while let Ok(n) = (&near).read(&mut bytes) {
            relay.write_all(&bytes[..n]).unwrap();
        }
        a.receive();
    };
    for _ in 0..4 {
        pass(&mut a, &mut b, 1 << 20);
    }
    let id = a.lane.open(Open { src: address, dst: address }, Instant::now()).unwrap();
    let mut sent = 0;
    for round in 0..24 {
        while a.lane.writable(id) < 65_484 {
            pass(&mut a, &mut b, 700);
        }
        let piece = payload(&a, &pattern(sent, 65_484), round % 2 == 0);
        a.lane.send(id, piece).unwrap();
        sent += 65_484;
        pass(&mut a, &mut b, 700);
    }
    for _ in 0..20 {
        pass(&mut a, &mut b, 700);
    }
    assert!(b.got == pattern(0, sent), "{} of {sent} bytes, or they differ", b.got.len());
}
