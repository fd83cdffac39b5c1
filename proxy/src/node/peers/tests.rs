//! Peer managers against each other, and against strangers, on loopback sockets.

mod faults;

use super::dial::{Dialed, Dialer};
use super::testing::{TestCa, TestDir};
use super::wire::{ControlHello, ControlMessage, Preamble, Token};
use super::*;
use crate::fabric::Established;
use crate::node::messages::{LinkId, Side, UnavailableReason};
use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A CA and a directory that all nodes of a test share.
struct World {
    dir: TestDir,
    ca: TestCa,
    addresses: Arc<Mutex<HashMap<String, SocketAddr>>>,
}

impl World {
    fn new() -> Self {
        Self { dir: TestDir::new(), ca: TestCa::new(), addresses: Arc::default() }
    }

    fn list(&self, node: &str, address: SocketAddr) {
        self.addresses.lock().expect("lock").insert(node.to_owned(), address);
    }

    fn options(&self, node: &str) -> Options {
        Options {
            metrics: Arc::default(),
            node: node.to_owned(),
            listen: "127.0.0.1:0".parse().expect("address"),
            encrypt: true,
            features: 0,
            fabrics: vec!["tcp".into()],
            tls: self.ca.node(&self.dir.path, node),
            timing: Timing {
                handshake: ms(5000),
                keepalive: Keepalive { interval: ms(200), timeout: ms(5000) },
                backoff_min: ms(10),
                backoff_max: ms(100),
            },
            peers_max: 16,
            pending_handshakes_max: 64,
        }
    }

    async fn node(&self, name: &str) -> Node {
        self.node_with(name, |_, _| {}).await
    }

    async fn node_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut Options, &mut ControlHello),
    ) -> Node {
        let mut options = self.options(name);
        let workers = 2;
        let mut own = Peers::hello(&options, workers).expect("hello");
        change(&mut options, &mut own);
        own.encrypt = options.encrypt;
        let addresses = Arc::clone(&self.addresses);
        let resolve: Resolve =
            Arc::new(move |name| addresses.lock().expect("lock").get(name).copied());
        let mail = Mailbox::new(1024).expect("eventfd");
        let (requests, inbox) = mpsc::channel(1024);
        // Both workers share a mailbox: tests look at everything in one place.
        let mailboxes = vec![mail.clone(), mail.clone()];
        let peers = Peers::start_as(own, options, resolve, mailboxes, inbox).await.expect("starts");
        self.list(name, peers.local_addr());
        // What replaces it is unsafe; a mailbox owns its descriptor and never changes it.
        #[allow(deprecated)]
        let mail = AsyncFd::new(mail).expect("eventfd");
        Node { peers, requests, mail, got: VecDeque::new() }
    }

    /// A client of this test's own making, with the certificate of `node`.
    fn dialer(&self, node: &str) -> Dialer {
        let files = self.ca.node(&self.dir.path, node);
        let trust = Arc::new(tls::Trust::load(node, files).expect("trust"));
        Dialer { trust, handshake: ms(5000), silence: ms(5000) }
    }

    fn hello(&self, node: &str) -> ControlHello {
        Peers::hello(&self.options(node), 2).expect("hello")
    }

    /// A session of a hand-driven peer `b` with `a`.
    async fn session(&self, dialer: &Dialer, a: &Node, own: &ControlHello) -> Dialed {
        let connected = AtomicBool::new(false);
        let dialed = dialer.control(a.peers.local_addr(), "a", own, &connected).await;
        dialed.map_err(|e| e.text).expect("session")
    }
}

struct Node {
    peers: Peers,
    requests: mpsc::Sender<Request>,
    mail: AsyncFd<Mailbox<Command>>,
    got: VecDeque<Command>,
}

struct Up {
    incarnation: u64,
    lane: u16,
    side: Side,
    link_id: LinkId,
    link: Box<Established>,
}

impl Node {
    async fn command(&mut self) -> Command {
        loop {
            if let Some(command) = self.got.pop_front() {
                return command;
            }
            let ready = timeout(PATIENCE, self.mail.readable()).await.expect("a command in time");
            let mut ready = ready.expect("eventfd");
            ready.clear_ready();
            let mut got = Vec::new();
            self.mail.get_ref().drain(&mut got);
            self.got.extend(got);
        }
    }

    async fn link_up(&mut self) -> Up {
        match self.command().await {
            Command::LinkUp { incarnation, lane, side, link_id, link, .. } => {
                Up { incarnation, lane, side, link_id, link }
            }
            other => panic!("no link but {other:?}"),
        }
    }

    async fn unavailable(&mut self) -> UnavailableReason {
        match self.command().await {
            Command::PeerUnavailable { reason, .. } => reason,
            other => panic!("not unavailable but {other:?}"),
        }
    }

    async fn gone(&mut self) {
        // One for each worker.
        for _ in 0..2 {
            let command = self.command().await;
            assert!(matches!(command, Command::PeerGone { .. }), "{command:?}");
        }
    }

    async fn need(&self, peer: &str, lane: u16) {
        let request = Request::NeedLane { peer: peer.into(), lane };
        self.requests.send(request).await.expect("runs");
    }

    async fn broken(&self, peer: &str, up: &Up) {
        let (lane, link_id) = (up.lane, up.link_id);
        let reason = "test".into();
        let request = Request::LinkBroken { peer: peer.into(), lane, link_id, reason };
        self.requests.send(request).await.expect("runs");
    }

    async fn status(&self, peer: &str) -> Option<PeerStatus> {
        let all = self.peers.handle().status().await;
        all.into_iter().find(|status| status.name == peer)
    }

    async fn until(&self, peer: &str, wanted: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
        let look = async {
            loop {
                match self.status(peer).await {
                    Some(status) if wanted(&status) => return status,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        timeout(PATIENCE, look).await.expect("status in time")
    }

    async fn until_rejected(&self, reason: RejectReason, count: u64) {
        let look = async {
            while self.peers.rejections().count(reason) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, look).await.unwrap_or_else(|_| {
            panic!("{:?}", self.peers.rejections().counts().collect::<Vec<_>>())
        });
    }

    fn rejected(&self) -> u64 {
        self.peers.rejections().counts().map(|(_, count)| count).sum()
    }
}

/// Sends through one link and reads from the other, as workers would.
fn check_bytes(from: &mut Established, to: &mut Established) {
    const TEXT: &[u8] = b"bytes of a lane";
    for link in [&*from, &*to] {
        link.socket.set_nonblocking(false).expect("socket");
        link.socket.set_read_timeout(Some(PATIENCE)).expect("socket");
    }
    match &mut from.tls {
        Some(tls) => {
            tls.writer().write_all(TEXT).expect("plaintext");
            while tls.wants_write() {
                tls.write_tls(&mut from.socket).expect("socket");
            }
        }
        None => from.socket.write_all(TEXT).expect("socket"),
    }
    let mut got = vec![0; TEXT.len()];
    match &mut to.tls {
        Some(tls) => {
            let mut filled = 0;
            while filled < got.len() {
                match tls.reader().read(&mut got[filled..]) {
                    Ok(n) => filled += n,
                    Err(_) => {
                        assert!(tls.read_tls(&mut to.socket).expect("socket") > 0);
                        tls.process_new_packets().expect("TLS");
                    }
                }
            }
        }
        None => to.socket.read_exact(&mut got).expect("read"),
    }
    assert_eq!(got, TEXT);
}

fn check_link(a: &mut Up, b: &mut Up, encrypted: bool) {
    assert_eq!((a.lane, a.side, b.side), (b.lane, Side::Dialer, Side::Acceptor));
    assert_eq!((a.link.tls.is_some(), b.link.tls.is_some()), (encrypted, encrypted));
    check_bytes(&mut a.link, &mut b.link);
    check_bytes(&mut b.link, &mut a.link);
}

#[tokio::test]
async fn either_end_gets_links_for_its_lanes_encrypted_as_agreed() {
    for (a_wants, b_wants) in [(true, true), (false, true), (false, false)] {
        let world = World::new();
        let mut a = world.node_with("a", |o, _| o.encrypt = a_wants).await;
        let mut b = world.node_with("b", |o, _| o.encrypt = b_wants).await;
        // Lane 0 on the wish of the session's dialer, lane 1 on that of its acceptor.
        for (lane, from_a) in [(0, true), (1, false)] {
            if from_a {
                a.need("b", lane).await;
            } else {
                b.need("a", lane).await;
            }
            let (mut at_a, mut at_b) = (a.link_up().await, b.link_up().await);
            assert_eq!(at_a.lane, lane);
            assert_eq!(at_a.incarnation, b.peers.incarnation());
            assert_eq!(at_b.incarnation, a.peers.incarnation());
            check_link(&mut at_a, &mut at_b, a_wants || b_wants);
        }
        let (at_a, at_b) = (a.status("b").await, b.status("a").await);
        let (at_a, at_b) = (at_a.expect("known"), at_b.expect("known"));
        assert_eq!((at_a.session, at_a.dialed_by_us), ("up", true));
        assert_eq!((at_b.session, at_b.dialed_by_us), ("up", false));
        assert_eq!(at_a.lanes.len(), 2);
        assert_eq!(a.rejected() + b.rejected(), 0);
    }
}

#[tokio::test]
async fn ipv6_works_the_same() {
    let world = World::new();
    let listen = |o: &mut Options, _: &mut ControlHello| o.listen = "[::1]:0".parse().expect("v6");
    let mut a = world.node_with("a", listen).await;
    let mut b = world.node_with("b", listen).await;
    b.need("a", 0).await;
    let (mut at_b, mut at_a) = (b.link_up().await, a.link_up().await);
    check_link(&mut at_a, &mut at_b, true);
}

#[tokio::test]
async fn dials_that_cross_end_in_one_session_on_both_ends() {
    for _ in 0..10 {
        let world = World::new();
        let (mut a, mut b) = (world.node("a").await, world.node("b").await);
        a.need("b", 0).await;
        b.need("a", 0).await;
        let (mut at_a, mut at_b) = (a.link_up().await, b.link_up().await);
        check_link(&mut at_a, &mut at_b, true);
        let at_a = a.until("b", |s| s.session == "up").await;
        let at_b = b.until("a", |s| s.session == "up").await;
        assert_ne!(at_a.dialed_by_us, at_b.dialed_by_us);
        assert!(a.got.is_empty() && b.got.is_empty());
    }
}

#[tokio::test]
async fn a_broken_link_is_made_anew_within_the_session() {
    let world = World::new();
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    a.need("b", 0).await;
    let (first_a, first_b) = (a.link_up().await, b.link_up().await);
    // Both notice, as they do in life; the second report is stale or crosses.
    b.broken("a", &first_b).await;
    a.broken("b", &first_a).await;
    let (mut at_a, mut at_b) = (a.link_up().await, b.link_up().await);
    assert!(at_a.link_id != first_a.link_id && at_b.link_id != first_b.link_id);
    check_link(&mut at_a, &mut at_b, true);
}

#[tokio::test]
async fn a_peer_whose_process_ends_is_gone_at_once_and_comes_back_as_another() {
    let world = World::new();
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    a.need("b", 0).await;
    let (_at_a, _at_b) = (a.link_up().await, b.link_up().await);
    let (address, incarnation) = (b.peers.local_addr(), b.peers.incarnation());
    drop(b);
    let started = std::time::Instant::now();
    a.gone().await;
    assert!(started.elapsed() < Duration::from_secs(1));
    a.need("b", 0).await;
    assert!(matches!(
        a.unavailable().await,
        UnavailableReason::Backoff | UnavailableReason::Refused
    ));
    // The interest is remembered: `a` dials in the background until `b` is back.
    let mut b = world.node_with("b", |o, _| o.listen = address).await;
    a.until("b", |s| s.session == "up").await;
    a.need("b", 0).await;
    let (mut at_a, mut at_b) = (a.link_up().await, b.link_up().await);
    assert_ne!(at_a.incarnation, incarnation);
    check_link(&mut at_a, &mut at_b, true);
}

#[tokio::test]
async fn another_incarnation_that_dials_us_replaces_the_old_one() {
    let world = World::new();
    let mut a = world.node("a").await;
    // Never reached: every session is dialled by the other end.
    world.list("b", "127.0.0.1:1".parse().expect("address"));
    let dialer = world.dialer("b");
    let mut own = world.hello("b");
    let first = world.session(&dialer, &a, &own).await;
    own.incarnation ^= 1;
    let _second = world.session(&dialer, &a, &own).await;
    a.gone().await;
    drop(first);
    let status = a.until("b", |s| s.session == "up").await;
    assert_eq!(status.incarnation, own.incarnation);
}

/// Relays connections until told to cut those that stand.
async fn relay(to: SocketAddr) -> (SocketAddr, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (cut, mut cuts) = mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let mut first = None;
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (mut near, _) = accepted.expect("accept");
                    let mut far = TcpStream::connect(to).await.expect("connect");
                    let task = tokio::spawn(async move {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    });
                    first.get_or_insert(task);
                }
                cut = cuts.recv() => match (cut, &first) {
                    (Some(()), Some(task)) => task.abort(),
                    _ => return,
                },
            }
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_lost_session_comes_back_and_links_that_live_stay() {
    let world = World::new();
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    let (address, cut) = relay(b.peers.local_addr()).await;
    world.list("b", address);
    a.need("b", 0).await;
    let (mut at_a, mut at_b) = (a.link_up().await, b.link_up().await);
    cut.send(()).await.expect("relay runs");
    a.until("b", |s| s.last_error.is_some() || s.session != "up").await;
    a.until("b", |s| s.session == "up").await;
    b.until("a", |s| s.session == "up").await;
    // The relay needs this thread meanwhile.
    tokio::task::spawn_blocking(move || check_link(&mut at_a, &mut at_b, true))
        .await
        .expect("bytes pass");
    // Nothing was said about lane 0; the next thing heard is another lane's link.
    a.need("b", 1).await;
    assert_eq!((a.link_up().await.lane, b.link_up().await.lane), (1, 1));
}

#[tokio::test]
async fn a_silent_session_ends() {
    let world = World::new();
    let quick = Keepalive { interval: ms(20), timeout: ms(100) };
    let a = world.node_with("a", |o, _| o.timing.keepalive = quick).await;
    world.list("b", "127.0.0.1:1".parse().expect("address"));
    let dialer = world.dialer("b");
    let silent = world.session(&dialer, &a, &world.hello("b")).await;
    let status = a.until("b", |s| s.session != "up" && s.incarnation != 0).await;
    assert_eq!(status.last_error.as_deref(), Some("silence"));
    drop(silent);
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let world = World::new();
    let mut a = world.node("a").await;
    a.need("nobody", 0).await;
    assert_eq!(a.unavailable().await, UnavailableReason::Unknown);
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = unused.local_addr().expect("address");
    drop(unused);
    world.list("b", address);
    a.need("b", 0).await;
    assert_eq!(a.unavailable().await, UnavailableReason::Refused);
}

#[tokio::test]
async fn a_node_taken_from_the_directory_is_cut_off() {
    let world = World::new();
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    a.need("b", 0).await;
    let (_at_a, _at_b) = (a.link_up().await, b.link_up().await);
    world.addresses.lock().expect("lock").remove("b");
    a.peers.handle().directory_changed().await;
    a.gone().await;
    assert!(a.status("b").await.is_none());
    // It tries to come back, and is not taken.
    a.until_rejected(RejectReason::Unknown, 1).await;
}

#[tokio::test]
async fn draining_is_announced_and_takes_no_new_peer() {
    let world = World::new();
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    let mut c = world.node("c").await;
    a.need("b", 0).await;
    let (_at_a, _at_b) = (a.link_up().await, b.link_up().await);
    b.peers.handle().drain().await;
    for _ in 0..2 {
        assert!(matches!(a.command().await, Command::PeerDraining { .. }));
    }
    a.need("b", 1).await;
    assert_eq!(a.unavailable().await, UnavailableReason::Draining);
    c.need("b", 0).await;
    assert_eq!(c.unavailable().await, UnavailableReason::Draining);
    b.until_rejected(RejectReason::Draining, 1).await;
}
