//! Nobody is believed: sidecars that lie, peers that are none, addresses that are not theirs, and
//! garbage on every port and socket. Each is refused and counted, and disturbs nobody else.

use rdmesh_proxy::handoff::{self, Channel, ToNode, ToSidecar};
use rdmesh_tests::config::Tls;
use rdmesh_tests::netns::Netns;
use rdmesh_tests::sockets::{accept, accept_within, pair};
use rdmesh_tests::{
    Lab, PATIENCE, Pattern, Plan, Pod, PodSockets, binary, eventually, needs_mesh, two_pods,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn works(client: &Pod, server: &Pod) {
    let (mut near, mut far) = pair(client, server);
    near.write_all(b"question").expect("write");
    far.read_exact(&mut [0; 8]).expect("read");
    far.write_all(b"answer").expect("write");
    near.read_exact(&mut [0; 6]).expect("read");
}

fn count(lab: &Lab, node: u8, name: &str, labels: &[(&str, &str)]) -> f64 {
    lab.node_metrics(node).expect("metrics").sum(name, labels)
}

fn rejected(lab: &Lab, node: u8, reason: &str) -> f64 {
    count(lab, node, "rdmesh_peer_rejected_total", &[("reason", reason)])
}

fn passed(lab: &Lab, pod: &str) -> f64 {
    let metrics = lab.sidecar_metrics(lab.pod(pod)).expect("metrics");
    metrics.sum("rdmesh_passthrough_total", &[])
}

/// A lab that is built but not started, to be configured wrongly.
fn unstarted(plan: &Plan) -> Lab {
    Lab::new(plan, &binary::proxy()).unwrap_or_else(|e| panic!("build the lab: {e:#}"))
}

fn certs(lab: &Lab, arguments: &[&str], dir: &Path) {
    let mut command = lab.proxy_command();
    command.arg("certs").arg("--dir").arg(dir).args(arguments);
    lab.run(&lab.node(1).netns, &mut command, PATIENCE).expect("certs");
}

fn tls_of(dir: &Path, name: &str) -> Tls {
    Tls {
        ca: dir.join("ca.crt"),
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
    }
}

/// Node 2 is not who it says: connections pass through, the reason is counted on either side, and
/// the log does not grow with every attempt.
fn assert_shut_out(lab: &Lab, reasons: &[&str]) {
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    for _ in 0..15 {
        works(a, b);
        works(b, a);
    }
    assert!(passed(lab, "a") >= 15.0, "connections pass by a peer that is not trusted");
    assert!(passed(lab, "b") >= 15.0, "in both directions");
    let all = || -> f64 {
        let of = |node| reasons.iter().map(|reason| rejected(lab, node, reason)).sum::<f64>();
        of(1) + of(2)
    };
    let counted = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        all() >= 1.0
    });
    if !counted {
        rdmesh_tests::print_logs(lab);
    }
    assert!(counted, "none of {reasons:?} is counted");
    for node in lab.nodes() {
        let log = node.with_process(|process| process.log()).expect("running");
        let warnings = log.lines().filter(|l| l.contains("WARN") || l.contains("ERROR")).count();
        assert!(warnings <= 12, "{} warns {warnings} times:\n{log}", node.name);
        let granted = count(lab, node.number, "rdmesh_stream_bytes_total", &[]);
        assert!(granted == 0.0, "{} carried bytes of an untrusted peer", node.name);
    }
}

#[test]
fn a_peer_with_another_ca() {
    if needs_mesh("a_peer_with_another_ca") {
        return;
    }
    let lab = unstarted(&Plan::new().pod("a", 1).pod("b", 2));
    let other = lab.dir().join("other");
    certs(&lab, &["--node", "n2"], &other);
    lab.configure_node(2, |config| config.node.tls = tls_of(&other, "n2"));
    lab.mesh_up().expect("bring the mesh up");
    assert_shut_out(&lab, &["tls", "bad_certificate"]);
}

/// Whoever answers at the address of n2 is n3, by a certificate of the right CA.
#[test]
fn a_peer_with_another_nodes_certificate() {
    if needs_mesh("a_peer_with_another_nodes_certificate") {
        return;
    }
    let lab = unstarted(&Plan::new().pod("a", 1).pod("b", 2));
    let dir = lab.certs_dir();
    certs(&lab, &["--node", "n1", "--node", "n2", "--node", "n3"], &dir);
    lab.configure_node(2, |config| {
        config.node.name = "n3".into();
        config.node.tls = tls_of(&dir, "n3");
    });
    lab.separate_directory(2, |directory| {
        directory.nodes[1].name = "n3".into();
        directory.pods[1].node = "n3".into();
    })
    .expect("a directory of its own");
    lab.mesh_up().expect("bring the mesh up");
    assert_shut_out(&lab, &["tls", "wrong_name", "unknown"]);
}

#[test]
fn a_peer_that_is_not_in_the_directory() {
    if needs_mesh("a_peer_that_is_not_in_the_directory") {
        return;
    }
    let lab = unstarted(&Plan::new().pod("a", 1).pod("b", 2));
    lab.separate_directory(1, |directory| {
        directory.nodes.retain(|node| node.name != "n2");
        directory.pods.retain(|pod| pod.node != "n2");
    })
    .expect("a directory of its own");
    lab.mesh_up().expect("bring the mesh up");
    assert_shut_out(&lab, &["unknown"]);
}

/// A right certificate, and streams from an address that is another node's.
#[test]
fn a_peer_that_speaks_for_a_pod_that_is_not_its_own() {
    if needs_mesh("a_peer_that_speaks_for_a_pod_that_is_not_its_own") {
        return;
    }
    let lab = unstarted(&Plan::new().pod("a", 1).pod("b", 2).pod("evil", 2));
    // Node 1 knows that the address of evil is not on node 2.
    lab.separate_directory(1, |directory| {
        for pod in &mut directory.pods {
            if pod.name.ends_with("evil") {
                pod.node = "n1".into();
            }
        }
    })
    .expect("a directory of its own");
    lab.mesh_up().expect("bring the mesh up");
    let (a, b, evil) = (lab.pod("a"), lab.pod("b"), lab.pod("evil"));
    works(b, a);
    let carried = || count(&lab, 1, "rdmesh_stream_bytes_total", &[]);
    let before = carried();
    assert!(before >= 14.0, "the honest pod's stream was tunnelled");
    // The client must not suffer: refused by the mesh, it passes through.
    works(evil, a);
    assert!((carried() - before).abs() < 0.5, "nothing of it went through the tunnel");
    assert!(passed(&lab, "evil") >= 1.0);
    eventually(PATIENCE, "it is counted", || rejected(&lab, 1, "bad_source") >= 1.0);
    // The lane lives on for the honest.
    works(b, a);
    assert!(carried() > before);
}

/// Speaks to the node proxy of node 1 as pod a's sidecar would.
struct Liar {
    channel: Channel,
}

impl Liar {
    fn connect(lab: &Lab) -> Self {
        (0..100).find_map(|_| Self::try_connect(lab)).expect("the node proxy takes a sidecar")
    }

    /// The pod's true sidecar comes back whenever it is displaced, and displaces the liar.
    fn try_connect(lab: &Lab) -> Option<Self> {
        let socket = lab.pod_dir(lab.pod("a")).join("node.sock");
        let fd = handoff::connect(socket).expect("connect to the node proxy");
        let mut liar = Self { channel: Channel::new(fd).expect("channel") };
        let hello = ToNode::Hello { version: handoff::VERSION, worker: 0 };
        liar.say(&hello, None).then(|| liar.hear()).flatten()?;
        Some(liar)
    }

    /// Sends an `Open` for this socket, and returns the answer; `None` is a closed channel.
    fn offer(lab: &Lab, open: &ToNode, fd: BorrowedFd<'_>) -> Option<ToSidecar> {
        let mut attempts = 0..100;
        loop {
            attempts.next().expect("the liar is displaced before it can lie");
            let mut liar = Self::connect(lab);
            if liar.say(open, Some(fd)) {
                return liar.hear();
            }
        }
    }

    /// Whether it could be sent.
    fn say(&mut self, message: &ToNode, fd: Option<BorrowedFd<'_>>) -> bool {
        self.channel.send(message, fd).is_ok() && self.channel.flush().is_ok()
    }

    /// The next message, or that the channel was closed.
    fn hear(&mut self) -> Option<ToSidecar> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.channel.recv::<ToSidecar>() {
                Ok(Some((message, _))) => return Some(message),
                Ok(None) => assert!(Instant::now() < deadline, "the node proxy says nothing"),
                Err(_) => return None,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_sidecar_that_hands_over_another_pods_socket() {
    if needs_mesh("a_sidecar_that_hands_over_another_pods_socket") {
        return;
    }
    let lab = rdmesh_tests::lab(&Plan::new().pod("a", 1).pod("c", 1).pod("b", 2));
    let (a, c, b) = (lab.pod("a"), lab.pod("c"), lab.pod("b"));
    let target = b.listen();
    let port = target.local_addr().expect("address").port();
    let orig_dst = SocketAddr::new(b.ip(false), port);
    // A connection inside pod c, as c's own sidecar would have it: its addresses are c's.
    let (_near, theirs) = pair(c, c);
    let src = theirs.peer_addr().expect("peer");
    for claimed in [src, SocketAddr::new(a.ip(false), src.port())] {
        let answer =
            Liar::offer(&lab, &ToNode::Open { id: 1, orig_dst, src: claimed }, theirs.as_fd());
        assert!(!matches!(answer, Some(ToSidecar::Taken { .. })), "{answer:?}");
    }
    accept_within(&target, Duration::from_millis(300)).expect_err("nobody arrives at the server");
    eventually(PATIENCE, "it is counted", || {
        count(&lab, 1, "rdmesh_handoff_total", &[("outcome", "bad_source")]) >= 2.0
    });
    works(a, b);
    works(c, b);
}

#[test]
fn a_sidecar_that_hands_over_what_is_no_connection() {
    if needs_mesh("a_sidecar_that_hands_over_what_is_no_connection") {
        return;
    }
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let orig_dst = SocketAddr::new(b.ip(false), 80);
    let src = SocketAddr::new(a.ip(false), 40_000);
    let file = std::fs::File::open("/dev/zero").expect("open");
    let listener: TcpListener = a.listen();
    let udp = a.run(|| std::net::UdpSocket::bind((a.v4, 0))).expect("bind");
    let (unix, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
    let bad: [BorrowedFd<'_>; 4] = [file.as_fd(), listener.as_fd(), udp.as_fd(), unix.as_fd()];
    for fd in bad {
        let answer = Liar::offer(&lab, &ToNode::Open { id: 1, orig_dst, src }, fd);
        assert!(!matches!(answer, Some(ToSidecar::Taken { .. })), "{answer:?}");
    }
    // A channel full of requests that were never made.
    let mut liar = Liar::connect(&lab);
    for id in 0..100 {
        let failed = ToNode::DialFailed { id, reason: handoff::DialFailure::from_code(1) };
        if liar.channel.send(&failed, None).is_err() {
            break;
        }
    }
    works(a, b);
    works(b, a);
}

/// Reproducible garbage of all lengths.
fn garbage() -> Vec<Vec<u8>> {
    let lengths = [1, 3, 4, 5, 16, 100, 1_000, 16_384, 70_000];
    let mut all: Vec<Vec<u8>> =
        lengths.iter().map(|length| Pattern::new(*length).bytes(*length as usize)).collect();
    all.push(vec![0; 64 << 10]);
    all.push(vec![0xFF; 64 << 10]);
    all.push(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec());
    // A TLS record that claims to be longer than it is.
    all.push(vec![0x16, 0x03, 0x01, 0xFF, 0xFF, 0x01]);
    // The magic of the handshake with nonsense behind it.
    all.push([&b"RDMESH"[..], &[0xFF; 60]].concat());
    all.push([&b"RDMESH"[..], &[1, 0], &[0; 300]].concat());
    all.push([&b"RDMESH"[..], &[1, 1], &[7; 300]].concat());
    all.push([&b"RDMESH"[..], &[1, 2], &[9; 300]].concat());
    all
}

/// Throws garbage at a TCP port; whatever it does to the connection is right, if it ends.
fn throw(netns: &Netns, to: SocketAddr) {
    for bytes in garbage() {
        let stream = match netns.run(|| TcpStream::connect_timeout(&to, PATIENCE)) {
            Ok(stream) => stream,
            // The capture may turn those away who were not redirected there.
            Err(_) if to.port() == 15_701 => return,
            Err(error) => panic!("{to}: {error}"),
        };
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("time-out");
        stream.set_write_timeout(Some(Duration::from_secs(2))).expect("time-out");
        let mut stream = stream;
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 1_024]);
    }
}

#[test]
fn garbage_on_every_port() {
    if needs_mesh("garbage_on_every_port") {
        return;
    }
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let (mut near, mut far) = pair(a, b);
    let (n1, n2) = (&lab.node(1).netns, &lab.node(2).netns);
    let local = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    throw(n2, "192.168.77.1:15700".parse().expect("valid"));
    throw(n1, "192.168.77.2:15700".parse().expect("valid"));
    throw(n1, local(15_790));
    throw(&a.netns, local(15_791));
    throw(&a.netns, local(15_701));
    throw(&b.netns, SocketAddr::new(b.ip(false), 15_701));
    // The old stream lives, new ones are made, both sides count what they saw.
    near.write_all(b"alive").expect("write");
    far.read_exact(&mut [0; 5]).expect("read");
    works(a, b);
    works(b, a);
    for node in [1, 2] {
        let all = count(&lab, node, "rdmesh_peer_rejected_total", &[]);
        assert!(all >= 5.0, "n{node} counts {all} rejections");
        let log = lab.node(node).with_process(|process| process.log()).expect("running");
        let lines = log.lines().filter(|line| line.contains("WARN")).count();
        assert!(lines <= 12, "n{node} warns {lines} times:\n{log}");
    }
}

#[test]
fn garbage_on_the_pod_socket() {
    if needs_mesh("garbage_on_the_pod_socket") {
        return;
    }
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let (mut near, mut far) = pair(a, b);
    let path: PathBuf = lab.pod_dir(a).join("node.sock");
    for bytes in garbage() {
        let fd = handoff::connect(&path).expect("connect to the node proxy");
        // Longer than any message: refused by the kernel or by the node proxy.
        let _ = rustix::net::send(&fd, &bytes, rustix::net::SendFlags::NOSIGNAL);
    }
    // Connections that never say anything.
    let silent: Vec<_> = (0..50).map(|_| handoff::connect(&path)).collect();
    near.write_all(b"alive").expect("write");
    far.read_exact(&mut [0; 5]).expect("read");
    works(a, b);
    drop(silent);
    works(b, a);
    eventually(PATIENCE, "it is counted", || {
        count(&lab, 1, "rdmesh_handoff_total", &[("outcome", "malformed")]) >= 1.0
    });
}

#[test]
fn peers_that_never_finish_their_handshake() {
    if needs_mesh("peers_that_never_finish_their_handshake") {
        return;
    }
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let to: SocketAddr = "192.168.77.2:15700".parse().expect("valid");
    // More than may be pending, from an address that is no node's.
    let stranger = b;
    let held: Vec<_> = stranger
        .run(|| (0..300).filter_map(|_| TcpStream::connect_timeout(&to, PATIENCE).ok()).collect());
    assert!(!held.is_empty());
    works(a, b);
    works(b, a);
    let tunnelled = || count(&lab, 1, "rdmesh_stream_bytes_total", &[]);
    eventually(PATIENCE, "connections tunnel all the same", || {
        let before = tunnelled();
        works(a, b);
        tunnelled() > before
    });
}

#[test]
fn another_pods_directory_is_no_way_in() {
    if needs_mesh("another_pods_directory_is_no_way_in") {
        return;
    }
    // What a pod may not reach without a mesh it does not reach with one: a listener on another
    // pod's loopback, asked for through the mesh with a forged destination.
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let secret =
        b.listen_on(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), 4).expect("listen on loopback");
    let port = secret.local_addr().expect("address").port();
    // A true connection of pod a, as its sidecar has it, with a destination of the liar's choice.
    let (_near, ours) = pair(a, a);
    let src = ours.peer_addr().expect("peer");
    for orig_dst in [
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        SocketAddr::new("127.0.0.2".parse().expect("valid"), port),
    ] {
        let answer = Liar::offer(&lab, &ToNode::Open { id: 1, orig_dst, src }, ours.as_fd());
        assert!(!matches!(answer, Some(ToSidecar::Taken { .. })), "{orig_dst}: {answer:?}");
    }
    accept_within(&secret, Duration::from_millis(300)).expect_err("nobody reaches the loopback");
    let listener = b.listen();
    let to = SocketAddr::new(b.ip(false), listener.local_addr().expect("address").port());
    let _client = a.dial(to).expect("connect");
    accept(&listener).expect("accept");
}
