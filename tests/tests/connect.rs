//! Connections that cannot be made, and some that can only just: the client learns it as soon as
//! with any sidecar, and the reason is counted.

use rdmesh_tests::sockets::{accept, accept_within, any_v4, assert_refused};
use rdmesh_tests::{
    Lab, PATIENCE, Plan, PodSockets, direct, eventually, lab_with, needs_mesh, pair, two_pods,
};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// What these labs allow for a connect.
const CONNECT_TIMEOUT_MS: u64 = 1_500;
const SLACK: Duration = Duration::from_millis(1_500);

fn quick_lab(plan: &Plan) -> Lab {
    lab_with(plan, |config| {
        config.sidecar.connect_timeout_ms = CONNECT_TIMEOUT_MS;
        config.node.timeouts.open_ms = CONNECT_TIMEOUT_MS;
    })
}

fn refused_streams(lab: &Lab) -> f64 {
    lab.node_metrics(1).expect("metrics").sum("rdmesh_streams_total", &[("outcome", "refused")])
}

#[test]
fn a_closed_port_is_a_reset_at_once() {
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    for ipv6 in [false, true] {
        assert_refused(a, SocketAddr::new(b.ip(ipv6), 9), Duration::from_secs(1));
    }
    if !direct() {
        eventually(PATIENCE, "both are counted", || refused_streams(&lab) >= 2.0);
    }
}

#[test]
fn a_closed_port_of_the_same_node_is_a_reset_at_once() {
    let lab = quick_lab(&Plan::new().pod("a", 1).pod("b", 1));
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    assert_refused(a, SocketAddr::new(b.ip(false), 9), Duration::from_secs(1));
}

#[test]
fn data_sent_to_a_closed_port_is_not_swallowed() {
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let Ok(mut stream) = a.dial(SocketAddr::new(b.ip(false), 9)) else {
        return; // A direct connect fails: better still.
    };
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let error = stream.read(&mut [0; 64]).expect_err("a reset, never a clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// `iperf3 --bidir` tells its connections apart by the order in which they come.
#[test]
fn connections_arrive_in_the_order_in_which_they_were_made() {
    const BURSTS: usize = 40;
    let lab = quick_lab(&Plan::new().pod("a", 1).pod("b", 1).pod("c", 2));
    let b = lab.pod("b");
    for client in [lab.pod("a"), lab.pod("c")] {
        let listener = b.listen();
        let port = listener.local_addr().expect("its address").port();
        for burst in 0..BURSTS {
            let to = SocketAddr::new(b.ip(burst % 2 == 1), port);
            // From less than the spare sockets of a pod at rest to many more.
            let made: Vec<TcpStream> = (0..2 + burst)
                .map(|index| {
                    let mut stream = client.dial(to).expect("connect");
                    // The others have nothing to say for now.
                    if index % 3 != burst % 3 {
                        stream.write_all(b"first").expect("write");
                    }
                    stream
                })
                .collect();
            let port = |stream: &TcpStream| stream.local_addr().expect("its address").port();
            let accepted = || accept(&listener).expect("accept").1.port();
            let came: Vec<u16> = made.iter().map(|_| accepted()).collect();
            assert_eq!(came, made.iter().map(port).collect::<Vec<_>>(), "burst {burst}");
        }
    }
}

/// What the server's node proxy finds at once it announces in order, with first bytes or without.
#[test]
fn connections_that_come_together_keep_their_order() {
    if needs_mesh("connections_that_come_together_keep_their_order") {
        return;
    }
    let lab = quick_lab(&Plan::new().pod("a", 1).pod("b", 2));
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let listener = b.listen();
    let to = SocketAddr::new(b.ip(false), listener.local_addr().expect("its address").port());
    let signal = |signal| {
        let process = lab.node(2).with_process(|process| process.signal(signal));
        process.expect("running").expect("signal");
    };
    let seen = |metric| lab.node_metrics(1).expect("metrics").sum(metric, &[]);
    let accepted = || accept(&listener).expect("accept").1.port();
    let port = |stream: &TcpStream| stream.local_addr().expect("its address").port();
    for _ in 0..5 {
        // A lane, and spare sockets that are ready.
        drop(pair(a, b));
        eventually(PATIENCE, "nothing is open", || seen("rdmesh_streams_active") == 0.0);
        let bytes = seen("rdmesh_stream_bytes_total");
        signal(Signal::STOP);
        let silent = a.dial(to).expect("connect");
        let mut speaks = a.dial(to).expect("connect");
        speaks.write_all(b"first").expect("write");
        eventually(PATIENCE, "both are sent", || {
            seen("rdmesh_streams_active") == 2.0 && seen("rdmesh_stream_bytes_total") == bytes + 5.0
        });
        signal(Signal::CONT);
        assert_eq!([accepted(), accepted()], [port(&silent), port(&speaks)]);
    }
}

/// An application behind a packet filter that drops: no answer ever comes.
#[test]
fn a_silent_application_times_out_as_configured() {
    let lab = quick_lab(&Plan::new().pod("a", 1).pod("b", 2));
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let mut nft = Command::new("nft");
    nft.arg(
        "add table inet silent; \
         add chain inet silent in { type filter hook input priority 0; }; \
         add rule inet silent in tcp dport 9 drop",
    );
    lab.run(&b.netns, &mut nft, PATIENCE).expect("a silent port");
    let patience = Duration::from_millis(CONNECT_TIMEOUT_MS) + SLACK;
    for ipv6 in [false, true] {
        assert_refused(a, SocketAddr::new(b.ip(ipv6), 9), patience);
    }
    if !direct() {
        let metrics = lab.node_metrics(1).expect("metrics");
        let show = metrics.show("rdmesh_streams_total");
        let labels = [("role", "client"), ("outcome", "timeout")];
        let failed = metrics.sum("rdmesh_streams_total", &labels);
        assert!(failed >= 2.0, "the time-outs are counted: {show}");
    }
}

#[test]
fn a_pod_that_vanished() {
    let lab = quick_lab(&Plan::new().pod("a", 1).pod("b", 2));
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let to = SocketAddr::new(b.ip(false), 8080);
    if !direct() {
        b.kill_sidecar();
    }
    // The directory still has the pod; its namespace is dead as a door nail.
    b.netns.ip("link set eth0 down\n").expect("cut the pod off");
    let patience = 2 * Duration::from_millis(CONNECT_TIMEOUT_MS) + SLACK;
    assert_refused(a, to, patience);
}

#[test]
fn an_address_that_nobody_has() {
    let lab = quick_lab(&Plan::new().pod("a", 1).pod("b", 2));
    let a = lab.pod("a");
    let patience = Duration::from_millis(CONNECT_TIMEOUT_MS) + SLACK;
    assert_refused(a, "10.42.2.250:80".parse().expect("valid"), patience);
    assert_refused(a, "[fd42:2::250]:80".parse().expect("valid"), patience);
}

#[test]
fn an_application_that_accepts_late() {
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let listener = b.listen();
    let to = SocketAddr::new(b.ip(false), listener.local_addr().expect("local").port());
    let mut clients: Vec<_> = (0..20_u8).map(|_| a.dial(to).expect("connect")).collect();
    for (number, client) in (0_u8..).zip(&mut clients) {
        client.write_all(&[number; 1_000]).expect("write before the accept");
    }
    // The point of the test: time goes by before the application accepts.
    std::thread::sleep(Duration::from_millis(700));
    for _ in 0..20 {
        let (mut server, _) = accept(&listener).expect("accept");
        let mut got = [0; 1_000];
        server.read_exact(&mut got).expect("what was written before the accept");
        server.write_all(&got[..1]).expect("answer");
    }
    for (number, client) in (0_u8..).zip(&mut clients) {
        let mut answer = [0xFF];
        client.read_exact(&mut answer).expect("the answer");
        assert_eq!(answer, [number]);
    }
}

#[test]
fn a_full_backlog_harms_only_those_who_do_not_fit() {
    let lab = quick_lab(&Plan::new().pod("a", 1).pod("b", 2));
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let listener = b.listen_on(any_v4(), 1).expect("listen");
    let to = SocketAddr::new(b.ip(false), listener.local_addr().expect("local").port());
    let patience = Duration::from_millis(CONNECT_TIMEOUT_MS) + SLACK;
    let clients: Vec<_> = std::thread::scope(|scope| {
        let dials: Vec<_> = (0..8).map(|_| scope.spawn(|| a.dial_within(to, patience))).collect();
        dials.into_iter().filter_map(|dial| dial.join().expect("dial").ok()).collect()
    });
    assert!(!clients.is_empty(), "the first ones fit into the backlog");
    // Whoever got in is served; whoever did not is reset in time. Nobody hangs.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(patience);
            while let Ok((mut server, _)) = accept_within(&listener, Duration::from_millis(500)) {
                let _ = server.write_all(b"hello");
            }
        });
        let ends: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    let mut greeting = [0; 5];
                    match client.read_exact(&mut greeting) {
                        Ok(()) => true,
                        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => false,
                        Err(e) => panic!("neither served nor reset: {e}"),
                    }
                })
            })
            .collect();
        let served = ends.into_iter().filter(|_| true).map(|end| end.join().expect("client"));
        assert!(served.filter(|served| *served).count() >= 1, "nobody was served");
    });
    // And afterwards all is well.
    let mut client = a.dial(to).expect("connect");
    let (mut server, _) = accept(&listener).expect("accept");
    server.write_all(b"x").expect("write");
    client.read_exact(&mut [0; 1]).expect("read");
}

#[test]
fn the_client_gives_up_before_the_far_side_answers() {
    if needs_mesh("the_client_gives_up_before_the_far_side_answers") {
        return;
    }
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let listener = b.listen();
    let to = SocketAddr::new(b.ip(false), listener.local_addr().expect("local").port());
    for _ in 0..50 {
        drop(a.dial(to).expect("connect"));
    }
    let active = |node| lab.node_metrics(node).expect("metrics").sum("rdmesh_streams_active", &[]);
    while let Ok((server, _)) = accept_within(&listener, Duration::from_millis(300)) {
        drop(server);
    }
    eventually(PATIENCE, "no stream is left", || active(1) == 0.0 && active(2) == 0.0);
}

/// Connections that the client's sidecar has offered, and those that its node proxy has put into
/// the mesh.
fn offered_and_meshed(lab: &Lab) -> (f64, f64) {
    let sidecar = lab.sidecar_metrics(lab.pod("a")).expect("metrics of the sidecar");
    let node = lab.node_metrics(1).expect("metrics of the node proxy");
    let meshed = node.sum("rdmesh_handoff_total", &[("outcome", "mesh")]);
    (sidecar.sum("rdmesh_handoff_total", &[]), meshed)
}

fn echo((near, far): &mut (TcpStream, TcpStream)) {
    for up in [true, false] {
        let (from, to) = if up { (&mut *near, &mut *far) } else { (&mut *far, &mut *near) };
        from.write_all(b"word").expect("write");
        let mut got = [0; 4];
        to.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"word");
    }
}

#[test]
fn connections_need_no_word_with_the_sidecar_unless_there_are_many() {
    if needs_mesh("connections_need_no_word_with_the_sidecar_unless_there_are_many") {
        return;
    }
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    // The first ones find no lane.
    eventually(PATIENCE, "the node proxy accepts by itself", || {
        let (offered, meshed) = offered_and_meshed(&lab);
        echo(&mut pair(a, b));
        let now = offered_and_meshed(&lab);
        now.0 == offered && now.1 > meshed
    });
    // What the node proxy accepts is charged to its own memory.
    const BY_NODE_PROXY_MAX: f64 = 64.0;
    let before = offered_and_meshed(&lab);
    let mut pairs: Vec<_> = (0..100).map(|_| pair(a, b)).collect();
    pairs.iter_mut().for_each(echo);
    let now = offered_and_meshed(&lab);
    assert_eq!(now.1 - before.1, 100.0, "all are in the mesh");
    assert!(now.0 - before.0 >= 100.0 - BY_NODE_PROXY_MAX, "{before:?} {now:?}");
}
