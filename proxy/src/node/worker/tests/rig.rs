//! Two workers in this process, joined by a TCP link on loopback, with sidecars that are played by
//! the test through the real handoff channel.

use crate::directory::Snapshot;
use crate::fabric::Established;
use crate::handoff::{Channel, DialFailure, HandoffError, ToNode, ToSidecar};
use crate::metrics::{NodeMetrics, WorkerMetrics};
use crate::node::messages::{Command, Mailbox, Request, Side};
use crate::node::worker::{Setup, run};
use arc_swap::ArcSwap;
use rdmesh_config::{DirectoryFile, Node, NodeEntry, PodEntry, Timeouts};
use rustix::event::{PollFd, PollFlags, poll};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub(super) const CLIENT_POD: Ipv4Addr = Ipv4Addr::new(127, 86, 0, 1);
pub(super) const SERVER_POD: Ipv4Addr = Ipv4Addr::new(127, 86, 0, 2);

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct End {
    pub(super) mailbox: Mailbox<Command>,
    pub(super) requests: mpsc::Receiver<Request>,
    thread: Option<JoinHandle<()>>,
    pub(super) directory: Arc<ArcSwap<Snapshot>>,
}

/// A sidecar's channel, and the command that brings its other end.
pub(super) fn sidecar(directory: &ArcSwap<Snapshot>, uid: &str) -> (Channel, Command) {
    let (near, far) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let pod = Arc::clone(directory.load().local_pod_by_uid(uid).unwrap());
    let command = Command::Handoff { pod, channel: Channel::new(far).unwrap() };
    (Channel::new(near).unwrap(), command)
}

impl End {
    pub(super) fn start(name: &str, timeouts: Timeouts) -> Self {
        let (setup, requests) = Self::setup(name, timeouts);
        let (mailbox, directory) = (setup.mailbox.clone(), Arc::clone(&setup.directory));
        let thread = spawn(move || run(setup).unwrap());
        Self { mailbox, requests, thread: Some(thread), directory }
    }

    pub(super) fn setup(name: &str, timeouts: Timeouts) -> (Setup, mpsc::Receiver<Request>) {
        let file = DirectoryFile {
            nodes: ["a", "b"]
                .iter()
                .map(|name| NodeEntry {
                    name: (*name).into(),
                    address: "127.0.0.1:1".parse().unwrap(),
                })
                .collect(),
            pods: [("a", CLIENT_POD), ("b", SERVER_POD)]
                .iter()
                .map(|(node, address)| PodEntry {
                    name: format!("pod-{node}"),
                    uid: format!("uid-{node}"),
                    node: (*node).into(),
                    addresses: vec![(*address).into()],
                    ..PodEntry::default()
                })
                .collect(),
            ..DirectoryFile::default()
        };
        let directory = Arc::new(ArcSwap::from_pointee(Snapshot::build(&file, name, 1).unwrap()));
        let mailbox = Mailbox::new(64).unwrap();
        let (sender, requests) = mpsc::channel(64);
        let setup = Setup {
            index: 0,
            config: Node { name: name.into(), timeouts, ..Node::default() },
            directory,
            mailbox,
            requests: sender,
            metrics: Arc::new(WorkerMetrics::new()),
            node_metrics: Arc::new(NodeMetrics::new()),
        };
        (setup, requests)
    }

    pub(super) fn sidecar(&self, uid: &str) -> Channel {
        let (near, command) = sidecar(&self.directory, uid);
        assert!(self.mailbox.push(command).is_ok());
        near
    }

    pub(super) fn link_up(&self, peer: &str, side: Side, link_id: u64, socket: TcpStream) {
        let link = Box::new(Established { socket, tls: None });
        let command =
            Command::LinkUp { peer: peer.into(), incarnation: 1, lane: 0, side, link_id, link };
        assert!(self.mailbox.push(command).is_ok());
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.mailbox.push(Command::Drain { until: Instant::now() });
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

pub(super) struct Rig {
    pub(super) a: End,
    pub(super) b: End,
    pub(super) client_sidecar: Channel,
    next_id: u32,
    pub(super) links: u64,
}

pub(super) fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((CLIENT_POD, 0)).unwrap();
    let near = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // As a client's port is: another connection may have the same number.
    rdmesh_sys::sockopt::set_bind_address_no_port(&near, true).unwrap();
    near.bind(&SocketAddr::from((CLIENT_POD, 0)).into()).unwrap();
    near.connect(&listener.local_addr().unwrap().into()).unwrap();
    let near = TcpStream::from(near);
    let far = listener.accept().unwrap().0;
    for end in [&near, &far] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (near, far)
}

/// Waits until the channel has a message.
pub(super) fn receive(channel: &mut Channel) -> Option<(ToSidecar, Option<OwnedFd>)> {
    loop {
        match channel.recv::<ToSidecar>() {
            Ok(Some(message)) => return Some(message),
            Ok(None) => {
                let fd = channel.as_fd();
                let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
                let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience)).unwrap();
                assert!(ready > 0 || std::thread::panicking(), "the worker said nothing");
            }
            Err(HandoffError::Closed) => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

pub(super) fn unbound() -> socket2::Socket {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()
}

/// Sends spare sockets, and dials what it is told to from the client's address and any port, until
/// the channel closes.
pub(super) fn serve_dials(mut channel: Channel) {
    while let Some((message, _)) = receive(&mut channel) {
        if let ToSidecar::Spares { family, count } = message {
            for _ in 0..count {
                let socket = unbound();
                rdmesh_sys::sockopt::set_bind_address_no_port(&socket, true).unwrap();
                let spare = ToNode::Spare { family, ports: (1024, u16::MAX) };
                channel.send(&spare, Some(socket.as_fd())).unwrap();
            }
        }
        let ToSidecar::Dial { id, src, dst, .. } = message else { continue };
        let socket = unbound();
        socket.bind(&SocketAddr::new(src.ip(), 0).into()).unwrap();
        let sent = match socket.connect(&dst.into()) {
            Ok(()) => channel.send(&ToNode::Dialed { id }, Some(socket.as_fd())),
            Err(_) => channel.send(&ToNode::DialFailed { id, reason: DialFailure::Refused }, None),
        };
        sent.unwrap();
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(&Timeouts::default())
    }

    pub(super) fn with(timeouts: &Timeouts) -> Self {
        Self::of(["a", "b"].map(|name| End::start(name, timeouts.clone())))
    }

    pub(super) fn of([a, b]: [End; 2]) -> Self {
        let client_sidecar = a.sidecar("uid-a");
        let server_sidecar = b.sidecar("uid-b");
        spawn(move || serve_dials(server_sidecar));
        let mut rig = Self { a, b, client_sidecar, next_id: 0, links: 0 };
        rig.link();
        rig
    }

    /// Joins the two by a fresh link; returns a handle that can cut it.
    pub(super) fn link(&mut self) -> TcpStream {
        let (near, far) = connected();
        let cutter = near.try_clone().unwrap();
        self.links += 1;
        self.a.link_up("b", Side::Dialer, self.links, near);
        self.b.link_up("a", Side::Acceptor, self.links, far);
        cutter
    }

    /// A client's socket whose other end was handed over; not yet answered.
    pub(super) fn hand_over(&mut self, dst: SocketAddr) -> TcpStream {
        self.hand_over_and_keep(dst).0
    }

    /// As that, with the other end too.
    pub(super) fn hand_over_and_keep(&mut self, dst: SocketAddr) -> (TcpStream, TcpStream) {
        let (client, accepted) = connected();
        self.next_id += 1;
        let src = client.local_addr().unwrap();
        let open = ToNode::Open { id: self.next_id, orig_dst: dst, src };
        self.client_sidecar.send(&open, Some(accepted.as_fd())).unwrap();
        (client, accepted)
    }

    pub(super) fn connect(&mut self, dst: SocketAddr) -> TcpStream {
        let client = self.hand_over(dst);
        self.taken();
        client
    }

    pub(super) fn taken(&mut self) {
        let (answer, _) = receive(&mut self.client_sidecar).unwrap();
        assert_eq!(answer, ToSidecar::Taken { id: self.next_id });
    }
}

pub(super) fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((SERVER_POD, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Has room for one connection that is not accepted yet.
pub(super) fn server_for_one() -> (TcpListener, SocketAddr) {
    let listener = unbound();
    listener.bind(&SocketAddr::from((SERVER_POD, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(super) fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}
