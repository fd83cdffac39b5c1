//! The sidecar on loopback, against the node proxy's end of the protocol driven by the tests.

use super::*;
use crate::handoff::{
    self, Channel, DialFailure, Family, HandoffError, PassthroughReason, RejectReason, ToNode,
    ToSidecar, VERSION,
};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Lab {
    directory: PathBuf,
    metrics: SidecarMetrics,
    /// Where clients "are redirected from".
    target: Rc<Cell<SocketAddr>>,
    listen: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    shared: Rc<Shared>,
}

fn nowhere() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

impl Lab {
    fn start(edit: impl FnOnce(&mut Options)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "rdmesh-sidecar-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let ms = Duration::from_millis;
        let mut options = Options {
            listen_port: 0,
            node_socket: directory.join("node.sock"),
            connections_max: 64,
            connect_timeout: ms(10_000),
            drain_timeout: ms(10_000),
            reconnect_backoff_min: ms(5),
            reconnect_backoff_max: ms(50),
            marks: Marks { passthrough: 0, delivery: 0 },
        };
        edit(&mut options);
        let target = Rc::new(Cell::new(nowhere()));
        let metrics = SidecarMetrics::new().unwrap();
        let pod = Pod {
            original_destination: {
                let target = Rc::clone(&target);
                Box::new(move |_, _| target.get())
            },
            may_deliver: Box::new(|src, _| src.port() != 9),
        };
        let sidecar = Sidecar::bind_in(options, metrics.clone(), pod).unwrap();
        let port = handoff::check_listener(&sidecar.listener).unwrap();
        let (stop, stopped) = oneshot::channel();
        let shared = Rc::clone(&sidecar.shared);
        let running = tokio::task::spawn_local(sidecar.run(async {
            let _ = stopped.await;
        }));
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        Self { directory, metrics, target, listen, stop: Some(stop), running, shared }
    }

    fn node(&self) -> NodeEnd {
        let listener = handoff::listen(self.directory.join("node.sock")).unwrap();
        NodeEnd(rdmesh_sys::readiness::watch(listener).unwrap())
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.listen).await.unwrap()
    }

    /// A server that clients want to reach from now on.
    async fn server(&self) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.target.set(listener.local_addr().unwrap());
        listener
    }

    /// A client relayed to a server.
    async fn relayed(&self) -> (TcpStream, TcpStream) {
        let listener = self.server().await;
        let client = self.client().await;
        (client, listener.accept().await.unwrap().0)
    }

    fn count(&self, name: &str, label: &str) -> u64 {
        self.metrics.count(name, label)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

struct NodeEnd(AsyncFd<OwnedFd>);

impl NodeEnd {
    async fn accept(&self) -> ChannelEnd {
        loop {
            let mut guard = self.0.readable().await.unwrap();
            if let Some(socket) = handoff::accept(self.0.get_ref()).unwrap() {
                let channel = Channel::new(socket).unwrap();
                let ready = channel.watch().unwrap();
                return ChannelEnd { channel, ready };
            }
            guard.clear_ready();
        }
    }

    async fn greet(&self, workers: u32) -> (u32, ChannelEnd) {
        let mut channel = self.accept().await;
        let (ToNode::Hello { version: VERSION, worker }, None) = channel.recv().await else {
            panic!("no greeting");
        };
        channel.send(&ToSidecar::Welcome { version: VERSION, workers, node: "n1".into() });
        (worker, channel)
    }
}

struct ChannelEnd {
    channel: Channel,
    ready: AsyncFd<OwnedFd>,
}

impl ChannelEnd {
    /// Whatever comes next but the listener: this node proxy has the sidecar accept.
    async fn try_recv(&mut self) -> Result<(ToNode, Option<OwnedFd>), HandoffError> {
        loop {
            match self.next().await? {
                (ToNode::Listener, _) => self.send(&ToSidecar::Accept),
                received => return Ok(received),
            }
        }
    }

    async fn next(&mut self) -> Result<(ToNode, Option<OwnedFd>), HandoffError> {
        loop {
            let mut guard = self.ready.readable().await?;
            match self.channel.recv()? {
                Some(received) => return Ok(received),
                None => guard.clear_ready(),
            }
        }
    }

    /// The sidecar's listener, which it lends now.
    async fn listener(&mut self) -> OwnedFd {
        match self.next().await.unwrap() {
            (ToNode::Listener, Some(listener)) => listener,
            other => panic!("{other:?}"),
        }
    }

    fn give(&mut self, socket: &OwnedFd, reason: Option<PassthroughReason>) {
        self.channel.send(&ToSidecar::Accepted { reason }, Some(socket.as_fd())).unwrap();
    }

    async fn recv(&mut self) -> (ToNode, Option<OwnedFd>) {
        self.try_recv().await.unwrap()
    }

    async fn open(&mut self) -> (u32, SocketAddr, SocketAddr, OwnedFd) {
        match self.recv().await {
            (ToNode::Open { id, orig_dst, src }, Some(fd)) => (id, orig_dst, src, fd),
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, message: &ToSidecar) {
        self.channel.send(message, None).unwrap();
    }
}

fn stream(fd: OwnedFd) -> TcpStream {
    TcpStream::from_std(fd.into()).unwrap()
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    all
}

async fn assert_reset(stream: &mut TcpStream) {
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

fn passthrough(id: u32, early: &[u8]) -> ToSidecar {
    ToSidecar::Passthrough { id, reason: PassthroughReason::NotInMesh, early: early.into() }
}

/// Runs a test on a runtime like the sidecar's; a hang is a failure.
fn on_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(30), test).await.expect("the test hangs");
    });
}

#[test]
fn taken_connection_is_the_node_proxys_alone() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (worker, mut channel) = node.greet(1).await;
        assert_eq!(worker, 0);
        let mut client = lab.client().await;
        let (id, orig_dst, src, fd) = channel.open().await;
        assert_eq!((orig_dst, src), (nowhere(), client.local_addr().unwrap()));
        channel.send(&ToSidecar::Taken { id });
        let mut taken = stream(fd);
        client.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        taken.read_exact(&mut got).await.unwrap();
        taken.write_all(&got).await.unwrap();
        // Only when the sidecar has no copy left does this end the connection.
        drop(taken);
        assert_eq!(read_all(&mut client).await, b"ping");
        assert_eq!(lab.count("handoff", "taken"), 1);
        assert_eq!(lab.shared.load.connections.get(), 0);
    });
}

#[test]
fn connection_that_was_not_taken_passes_through() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let server = lab.server().await;
        let mut client = lab.client().await;
        client.write_all(b"question").await.unwrap();
        let (id, orig_dst, _, fd) = channel.open().await;
        assert_eq!(orig_dst, server.local_addr().unwrap());
        drop(fd);
        channel.send(&passthrough(id, b""));
        let (mut served, _) = server.accept().await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut served).await, b"question");
        served.write_all(b"answer").await.unwrap();
        drop(served);
        assert_eq!(read_all(&mut client).await, b"answer");
        assert_eq!(lab.count("passthrough", "outside_mesh"), 1);
    });
}

#[test]
fn returned_connection_passes_through_with_its_early_bytes_first() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let server = lab.server().await;
        let mut client = lab.client().await;
        let (id, _, _, fd) = channel.open().await;
        channel.send(&ToSidecar::Taken { id });
        client.write_all(b"early ").await.unwrap();
        let mut taken = stream(fd);
        let mut early = [0; 6];
        taken.read_exact(&mut early).await.unwrap();
        client.write_all(b"late").await.unwrap();
        let back = taken.into_std().unwrap();
        channel.channel.send(&passthrough(id, &early), Some(back.as_fd())).unwrap();
        drop(back);
        let (mut served, _) = server.accept().await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut served).await, b"early late");
        drop(served);
        assert!(read_all(&mut client).await.is_empty());
        assert_eq!(lab.count("handoff", "returned"), 1);
    });
}

#[test]
fn node_proxy_that_dies_leaves_untaken_connections_only() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let server = lab.server().await;
        let mut first = lab.client().await;
        let (taken_id, _, _, taken) = channel.open().await;
        let second = lab.client().await;
        let (_, _, _, untaken) = channel.open().await;
        // The last words arrive together with the end.
        channel.send(&ToSidecar::Taken { id: taken_id });
        drop((channel, untaken));
        let (served, _) = server.accept().await.unwrap();
        assert_eq!(lab.count("handoff", "taken"), 1);
        assert_eq!(lab.count("passthrough", "node_proxy_lost"), 1);
        stream(taken).write_all(b"mine").await.unwrap();
        assert_eq!(read_all(&mut first).await, b"mine");
        drop((served, second));

        // It comes back, and gets connections again.
        let (_, mut channel) = node.greet(1).await;
        let _third = lab.client().await;
        channel.open().await;
    });
}

#[test]
fn without_a_node_proxy_everything_passes_through_until_it_appears() {
    on_runtime(async {
        // A backoff that would outlast the test: the appearance itself must be noticed.
        let lab = Lab::start(|options| {
            options.reconnect_backoff_min = Duration::from_secs(600);
            options.reconnect_backoff_max = Duration::from_secs(600);
        });
        let (mut client, mut served) = lab.relayed().await;
        assert_eq!(lab.count("passthrough", "node_proxy_away"), 1);
        served.write_all(b"hello").await.unwrap();
        drop(served);
        assert_eq!(read_all(&mut client).await, b"hello");

        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let _client = lab.client().await;
        channel.open().await;
        channel.send(&ToSidecar::Drain);
        // The order of messages is kept, so the refusal of the dial tells that DRAIN was read.
        let nine = SocketAddr::from(([127, 0, 0, 1], 9));
        channel.send(&ToSidecar::Dial { id: 4, src: nine, dst: nowhere(), timeout_ms: 100 });
        let failed = ToNode::DialFailed { id: 4, reason: DialFailure::Denied };
        assert_eq!(channel.recv().await.0, failed);
        drop(lab.relayed().await);
        assert_eq!(lab.count("passthrough", "draining"), 1);
    });
}

#[test]
fn rejected_sidecar_comes_again() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let mut channel = node.accept().await;
        channel.recv().await;
        channel.send(&ToSidecar::Rejected { version: VERSION, reason: RejectReason::UnknownPod });
        drop(channel);
        let mut channel = node.accept().await;
        channel.recv().await;
        channel.send(&ToSidecar::Welcome { version: VERSION + 1, workers: 1, node: "n".into() });
        drop(channel);
        node.greet(1).await;
    });
}

#[test]
fn connections_are_spread_over_the_workers() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let mut channels = [None, None, None];
        for _ in 0..3 {
            let (worker, channel) = node.greet(3).await;
            channels[worker as usize] = Some(channel);
        }
        // The sidecar has read a welcome once it answers on that channel.
        for channel in channels.iter_mut().flatten() {
            let nine = SocketAddr::from(([127, 0, 0, 1], 9));
            channel.send(&ToSidecar::Dial { id: 0, src: nine, dst: nine, timeout_ms: 1 });
            channel.recv().await;
        }
        let _clients = [lab.client().await, lab.client().await, lab.client().await];
        for channel in channels.iter_mut().flatten() {
            channel.open().await;
        }
    });
}

#[test]
fn node_proxy_accepts_at_the_lent_listener() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let listener = channel.listener().await;
        let server = lab.server().await;
        let accept = || handoff::accept_stream(&listener).unwrap().0;

        // Given away, it is the sidecar's.
        let _judged = lab.client().await;
        channel.give(&accept(), None);
        let (_, orig_dst, _, _) = channel.open().await;
        assert_eq!(orig_dst, server.local_addr().unwrap());
        let mut client = lab.client().await;
        channel.give(&accept(), Some(PassthroughReason::NotInMesh));
        let mut served = server.accept().await.unwrap().0;
        served.write_all(b"passed").await.unwrap();
        drop(served);
        assert_eq!(read_all(&mut client).await, b"passed");
        assert_eq!(lab.count("passthrough", "outside_mesh"), 1);

        // Given back, the sidecar accepts until it lends again.
        channel.send(&ToSidecar::Accept);
        let _offered = lab.client().await;
        channel.open().await;
        let _again = channel.listener().await;

        // Without a node proxy it accepts as well.
        drop((channel, node));
        let _passed = lab.client().await;
        server.accept().await.unwrap();
    });
}

#[test]
fn what_a_node_proxy_that_hangs_does_not_accept_is_accepted() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let _listener = channel.listener().await;
        // The first is looked at later, and has no answer; then no other waits for that.
        for _ in 0..3 {
            let _client = lab.client().await;
            channel.open().await;
        }
    });
}

#[test]
fn listener_stays_with_the_sidecar_of_several_workers() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(2).await;
        // The sidecar has read the welcome once it answers.
        let nine = SocketAddr::from(([127, 0, 0, 1], 9));
        channel.send(&ToSidecar::Dial { id: 0, src: nine, dst: nine, timeout_ms: 1 });
        assert!(matches!(channel.next().await.unwrap(), (ToNode::DialFailed { .. }, None)));
        let _client = lab.client().await;
        assert!(matches!(channel.next().await.unwrap(), (ToNode::Open { .. }, Some(_))));
    });
}

#[test]
fn denied_and_unreachable_clients_are_reset() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let refused = lab.server().await;
        drop(refused);
        assert_reset(&mut lab.client().await).await;
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let mut client = lab.client().await;
        let (id, _, _, fd) = channel.open().await;
        drop(fd);
        channel.send(&ToSidecar::Deny { id });
        assert_reset(&mut client).await;
        assert_eq!(lab.count("handoff", "denied"), 1);
    });
}

#[test]
fn connection_to_the_sidecar_itself_is_refused() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        lab.target.set(lab.listen);
        assert_reset(&mut lab.client().await).await;
        assert_eq!(lab.count("handoff", "direct"), 1);
    });
}

#[test]
fn node_proxy_that_breaks_the_protocol_gets_no_second_reader() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let mut client = lab.client().await;
        let (_, _, _, fd) = channel.open().await;
        rustix::net::send(&channel.ready, &[0xff; 12], rustix::net::SendFlags::empty()).unwrap();
        assert!(matches!(channel.try_recv().await, Err(HandoffError::Closed)));
        drop(fd);
        assert_reset(&mut client).await;
        assert_eq!(lab.count("handoff", "lost"), 1);
        node.greet(1).await;
    });
}

#[test]
fn spare_sockets_come_as_asked_and_unused() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
        channel.send(&ToSidecar::Spares { family: Family::V4, count: 3 });
        for host in 1..=3 {
            let (message, Some(socket)) = channel.recv().await else { panic!("no descriptor") };
            assert!(
                matches!(message, ToNode::Spare { family: Family::V4, ports } if ports.0 < ports.1)
            );
            let socket = socket2::Socket::from(socket);
            socket.bind(&SocketAddr::from(([127, 9, 8, host], 0)).into()).unwrap();
            // Non-blocking: within one kernel the handshake goes on without us.
            let _ = socket.connect(&application.local_addr().unwrap().into());
            let (_served, peer) = application.accept().await.unwrap();
            assert_eq!(peer.ip(), std::net::IpAddr::from([127, 9, 8, host]));
        }
    });
}

#[test]
fn application_is_dialled_from_the_clients_address() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let node = lab.node();
        let (_, mut channel) = node.greet(1).await;
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dst = application.local_addr().unwrap();
        // An address of 127.0.0.0/8 is a foreign one that needs no privilege.
        let src = SocketAddr::from(([127, 9, 8, 7], 40_123));
        let mut open = Vec::new();
        for id in [1, 2] {
            // The second finds the port taken, as a connection of a pod to itself does.
            channel.send(&ToSidecar::Dial { id, src, dst, timeout_ms: 5_000 });
            let (message, fd) = channel.recv().await;
            assert_eq!(message, ToNode::Dialed { id });
            let (mut served, peer) = application.accept().await.unwrap();
            assert_eq!(peer.ip(), src.ip());
            assert_eq!(peer.port() == src.port(), id == 1);
            let mut socket = stream(fd.unwrap());
            socket.write_all(b"hello").await.unwrap();
            let mut got = [0; 5];
            served.read_exact(&mut got).await.unwrap();
            open.push((socket, served));
        }
        drop(application);
        let src = SocketAddr::from(([127, 9, 8, 7], 40_124));
        channel.send(&ToSidecar::Dial { id: 3, src, dst, timeout_ms: 5_000 });
        let refused = ToNode::DialFailed { id: 3, reason: DialFailure::Refused };
        assert_eq!(channel.recv().await.0, refused);
        assert_eq!(lab.count("dials", "opened"), 2);
        assert_eq!(lab.count("dials", "refused"), 1);
    });
}

#[test]
fn half_close_travels_both_ways() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let (mut client, mut served) = lab.relayed().await;
        served.write_all(b"greeting").await.unwrap();
        served.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, b"greeting");
        client.write_all(b"still talking").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut served).await, b"still talking");
    });
}

#[test]
fn resets_travel_both_ways() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        for server_resets in [false, true] {
            let (client, served) = lab.relayed().await;
            let (mut first, mut other) =
                if server_resets { (served, client) } else { (client, served) };
            first.write_all(b"last words").await.unwrap();
            let mut got = [0; 10];
            other.read_exact(&mut got).await.unwrap();
            reset(first);
            assert_reset(&mut other).await;
        }
    });
}

#[test]
fn reset_after_a_half_close_travels() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        for server_resets in [false, true] {
            let (client, served) = lab.relayed().await;
            let (mut first, mut other) =
                if server_resets { (served, client) } else { (client, served) };
            first.shutdown().await.unwrap();
            assert!(read_all(&mut other).await.is_empty());
            reset(first);
            // Nothing is read from the side that has ended: only its error state tells.
            let ready = other.ready(tokio::io::Interest::ERROR).await.unwrap();
            assert!(ready.is_error());
        }
    });
}

#[test]
fn reset_is_not_held_up_by_a_full_socket() {
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let (mut client, served) = lab.relayed().await;
        // Fill the way to the client until nothing moves.
        let chunk = vec![1; 64 << 10];
        while timeout(Duration::from_millis(300), served.writable()).await.is_ok() {
            let _ = served.try_write(&chunk);
        }
        reset(served);
        assert_reset(&mut client).await;
        assert_eq!(lab.shared.buffers.held_bytes(), 0);
    });
}

#[test]
fn bulk_both_ways_arrives_unharmed() {
    const LEN: usize = 12 << 20;
    on_runtime(async {
        let lab = Lab::start(|_| ());
        let (client, served) = lab.relayed().await;
        let pattern = |seed: usize| (0..LEN).map(move |i| ((i * 31 + i / 977 + seed) % 251) as u8);
        let exchange = |stream: TcpStream, send: usize, expect: usize| async move {
            let (mut read, mut write) = stream.into_split();
            let writer = async move {
                write.write_all(&pattern(send).collect::<Vec<_>>()).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let reader = async move {
                let mut got = Vec::new();
                read.read_to_end(&mut got).await.unwrap();
                assert!(got.len() == LEN && got.iter().copied().eq(pattern(expect)));
            };
            tokio::join!(writer, reader);
        };
        tokio::join!(exchange(client, 1, 2), exchange(served, 2, 1));
    });
}

#[test]
fn connections_beyond_the_limit_wait() {
    on_runtime(async {
        let lab = Lab::start(|options| options.connections_max = 1);
        let server = lab.server().await;
        let first = lab.client().await;
        let (served, _) = server.accept().await.unwrap();
        let mut second = lab.client().await;
        second.write_all(b"waiting").await.unwrap();
        assert!(timeout(Duration::from_millis(200), server.accept()).await.is_err());
        drop((first, served));
        let (mut served, _) = server.accept().await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(read_all(&mut served).await, b"waiting");
    });
}

#[test]
fn stops_when_the_last_relay_has_ended() {
    on_runtime(async {
        let mut lab = Lab::start(|_| ());
        let (client, served) = lab.relayed().await;
        lab.stop.take().unwrap().send(()).unwrap();
        // New connections are still served.
        let (second, second_served) = lab.relayed().await;
        assert!(!lab.running.is_finished());
        drop((client, served, second, second_served));
        (&mut lab.running).await.unwrap();
    });
}

#[test]
fn stops_at_the_drain_timeout() {
    on_runtime(async {
        let mut lab = Lab::start(|options| options.drain_timeout = Duration::from_millis(50));
        let (_client, _served) = lab.relayed().await;
        lab.stop.take().unwrap().send(()).unwrap();
        (&mut lab.running).await.unwrap();
    });
}

#[test]
fn only_the_application_of_this_pod_is_dialled() {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let src = address("192.0.2.1:1000");
    for dst in [
        "127.0.0.1:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
        "203.0.113.9:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
    ] {
        assert!(!dial::may_deliver(15701, src, address(dst)), "{dst}");
    }
    assert!(dial::is_own_address(address("127.0.0.1:80")));
    assert!(!dial::is_own_address(address("203.0.113.9:80")));
}
