//! Links cut, processes killed: streams live on where they can, and die as resets where not.

use rdmesh_tests::process::Process;
use rdmesh_tests::sockets::{accept, pair};
use rdmesh_tests::{
    End, Lab, PATIENCE, Pattern, Plan, PodSockets, alone, assert_tunnelled, eventually, lab,
    lab_with, needs_mesh, read_end, topology, two_pods,
};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;

/// Sends a gibibyte each way while `disturb` is at work, and checks every byte of it.
fn a_gibibyte_each_way(near: &TcpStream, far: &TcpStream, disturb: impl FnOnce() + Send) {
    let (up, down) = (Pattern::new(21), Pattern::new(22));
    let send = |pattern: Pattern, mut stream: &TcpStream| {
        pattern.write_to(&mut stream, GIB, 256 << 10).expect("write");
        stream.shutdown(Shutdown::Write).expect("shutdown");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(up, near));
        scope.spawn(|| send(down, far));
        scope.spawn(disturb);
        let at_far = scope.spawn(|| {
            let mut stream = far;
            up.check_to_end(&mut stream).expect("a clean end")
        });
        let mut stream = near;
        assert_eq!(down.check_to_end(&mut stream).expect("a clean end"), GIB);
        assert_eq!(at_far.join().expect("reader"), GIB);
    });
}

fn carried(lab: &Lab, node: u8) -> f64 {
    lab.node_metrics(node).expect("metrics").sum("rdmesh_stream_bytes_total", &[])
}

fn failovers(lab: &Lab) -> f64 {
    lab.node_metrics(1).expect("metrics").sum("rdmesh_lane_failovers_total", &[])
}

/// Kills every TCP connection between the node proxies.
fn cut_links(lab: &Lab) {
    let mut ss = Command::new("ss");
    ss.args(["-K", "( dport = 15700 or sport = 15700 )"]);
    lab.run(&lab.node(1).netns, &mut ss, PATIENCE).expect("ss -K");
}

#[test]
fn the_link_is_killed_amid_a_gibibyte() {
    let _alone = alone();
    if needs_mesh("the_link_is_killed_amid_a_gibibyte") {
        return;
    }
    kill_links_amid_a_gibibyte(&two_pods());
}

/// In plain text payload is moved through pipes, which must keep what was not acknowledged.
#[test]
fn the_plain_link_is_killed_amid_a_gibibyte() {
    let _alone = alone();
    if needs_mesh("the_plain_link_is_killed_amid_a_gibibyte") {
        return;
    }
    let plan = Plan::new().pod("a", 1).pod("b", 2);
    kill_links_amid_a_gibibyte(&lab_with(&plan, |config| config.node.encrypt = false));
}

fn kill_links_amid_a_gibibyte(lab: &Lab) {
    let (near, far) = pair(lab.pod("a"), lab.pod("b"));
    a_gibibyte_each_way(&near, &far, || {
        for cut in 1..=3_u64 {
            #[allow(clippy::cast_precision_loss)]
            let mark = (cut * GIB / 4) as f64;
            eventually(PATIENCE * 2, "bytes flow", || carried(lab, 1) >= mark);
            cut_links(lab);
        }
    });
    assert!(failovers(lab) >= 1.0, "the cuts hit the lane");
    assert_tunnelled(lab, 2 * GIB);
}

#[test]
fn the_interface_goes_down_and_up_amid_a_gibibyte() {
    let _alone = alone();
    if needs_mesh("the_interface_goes_down_and_up_amid_a_gibibyte") {
        return;
    }
    let lab = lab_with(&Plan::new().pod("a", 1).pod("b", 2), |config| {
        config.node.timeouts.keepalive_interval_ms = 200;
        config.node.timeouts.keepalive_timeout_ms = 1_000;
    });
    let (near, far) = pair(lab.pod("a"), lab.pod("b"));
    a_gibibyte_each_way(&near, &far, || {
        eventually(PATIENCE, "bytes flow", || carried(&lab, 1) >= 300e6);
        let node = lab.node(1);
        topology::underlay_down(&node.netns).expect("down");
        // Longer than the keepalive: the link counts as broken and is made anew.
        std::thread::sleep(Duration::from_millis(2_500));
        topology::underlay_up(&node.netns, 1, 2).expect("up");
    });
    assert_tunnelled(&lab, 2 * GIB);
}

#[test]
fn a_short_outage_of_the_interface() {
    let _alone = alone();
    if needs_mesh("a_short_outage_of_the_interface") {
        return;
    }
    let lab = two_pods();
    let (near, far) = pair(lab.pod("a"), lab.pod("b"));
    a_gibibyte_each_way(&near, &far, || {
        eventually(PATIENCE, "bytes flow", || carried(&lab, 1) >= 300e6);
        topology::underlay_down(&lab.node(2).netns).expect("down");
        std::thread::sleep(Duration::from_millis(300));
        topology::underlay_up(&lab.node(2).netns, 2, 1).expect("up");
    });
    assert_tunnelled(&lab, 2 * GIB);
}

/// Opens streams, kills a node proxy, and wants both ends reset within a second.
fn kill_node_resets(number: u8) {
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let mut idle: Vec<_> = (0..10).map(|_| pair(a, b)).collect();
    for (near, far) in &mut idle {
        near.write_all(b"up").expect("write");
        far.read_exact(&mut [0; 2]).expect("read");
    }
    let readers: Vec<_> = idle
        .into_iter()
        .flat_map(|(near, far)| [near, far])
        .map(|mut stream| std::thread::spawn(move || (read_end(&mut stream).1, Instant::now())))
        .collect();
    let killed = Instant::now();
    lab.node(number).kill();
    for reader in readers {
        let (end, at) = reader.join().expect("reader");
        assert_eq!(end, End::Reset, "a reset, not a clean end");
        let took = at.saturating_duration_since(killed);
        assert!(took <= Duration::from_secs(1), "the reset took {took:?}");
    }
    // New connections pass through meanwhile.
    let before = passed(&lab);
    for _ in 0..5 {
        works(&lab);
    }
    assert!(passed(&lab) >= before + 5.0, "they are counted");
    // And tunnel again when it is back.
    lab.start_node(lab.node(number)).expect("start the node proxy again");
    for pod in [a, b] {
        lab.wait_sidecar_connected(pod).expect("the sidecar reconnects");
    }
    eventually(PATIENCE, "connections tunnel again", || {
        let before = tunnelled(&lab);
        works(&lab);
        tunnelled(&lab) > before
    });
    let settled = passed(&lab);
    for _ in 0..5 {
        works(&lab);
    }
    assert!((passed(&lab) - settled).abs() < 0.5, "none passes through any more");
}

fn works(lab: &Lab) {
    let (mut near, mut far) = pair(lab.pod("a"), lab.pod("b"));
    near.write_all(b"question").expect("write");
    far.read_exact(&mut [0; 8]).expect("read");
    far.write_all(b"answer").expect("write");
    near.read_exact(&mut [0; 6]).expect("read");
}

/// Connections of pod a that passed through: the sidecar counts what it does itself.
fn passed(lab: &Lab) -> f64 {
    let metrics = lab.sidecar_metrics(lab.pod("a")).expect("metrics of the sidecar");
    metrics.sum("rdmesh_passthrough_total", &[])
}

fn tunnelled(lab: &Lab) -> f64 {
    carried(lab, 1)
}

#[test]
fn the_clients_node_proxy_is_killed() {
    let _alone = alone();
    if !needs_mesh("the_clients_node_proxy_is_killed") {
        kill_node_resets(1);
    }
}

#[test]
fn the_servers_node_proxy_is_killed() {
    let _alone = alone();
    if !needs_mesh("the_servers_node_proxy_is_killed") {
        kill_node_resets(2);
    }
}

#[test]
fn a_node_proxy_killed_amid_data_never_ends_cleanly() {
    let _alone = alone();
    if needs_mesh("a_node_proxy_killed_amid_data_never_ends_cleanly") {
        return;
    }
    for number in [1, 2] {
        let lab = two_pods();
        let (mut near, mut far) = pair(lab.pod("a"), lab.pod("b"));
        let pattern = Pattern::new(23);
        let writer = std::thread::spawn(move || {
            let result = pattern.write_to(&mut near, 4 * GIB, 64 << 10);
            result.expect_err("four gibibytes went through a dead proxy").kind()
        });
        let mut head = vec![0; 10 << 20];
        far.read_exact(&mut head).expect("read");
        assert!(head == pattern.bytes(10 << 20), "the bytes before the kill differ");
        let killed = Instant::now();
        lab.node(number).kill();
        let mut rest = vec![0; 1 << 20];
        let error = loop {
            match far.read(&mut rest) {
                Ok(0) => panic!("a clean end, n{number} killed"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
        writer.join().expect("writer");
    }
}

#[test]
fn streams_outlive_their_sidecars() {
    let _alone = alone();
    if needs_mesh("streams_outlive_their_sidecars") {
        return;
    }
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let (mut near, mut far) = pair(a, b);
    for pod in [a, b] {
        pod.kill_sidecar();
        near.write_all(b"still here").expect("write");
        far.read_exact(&mut [0; 10]).expect("read");
        far.write_all(b"me too").expect("write");
        near.read_exact(&mut [0; 6]).expect("read");
        lab.start_sidecar(pod).expect("start the sidecar again");
        lab.wait_sidecar_connected(pod).expect("it reconnects");
    }
    let before = tunnelled(&lab);
    works(&lab);
    assert!(tunnelled(&lab) > before, "new connections tunnel");
    assert!(passed(&lab) < 0.5, "and do not pass through");
    near.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_end(&mut far), (vec![], End::Clean));
    far.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_end(&mut near), (vec![], End::Clean));
}

#[test]
fn without_the_servers_sidecar_connections_pass_through() {
    let _alone = alone();
    if needs_mesh("without_the_servers_sidecar_connections_pass_through") {
        return;
    }
    let lab = two_pods();
    works(&lab);
    let before = passed(&lab);
    lab.pod("b").kill_sidecar();
    works(&lab);
    let metrics = lab.sidecar_metrics(lab.pod("a")).expect("metrics");
    assert!(passed(&lab) > before, "{}", metrics.show("rdmesh_passthrough_total"));
}

#[test]
fn a_mesh_that_starts_without_its_node_proxies() {
    let _alone = alone();
    if needs_mesh("a_mesh_that_starts_without_its_node_proxies") {
        return;
    }
    let lab = lab(&Plan::new().pod("a", 1).pod("b", 2));
    for node in lab.nodes() {
        node.kill();
    }
    works(&lab);
    for node in lab.nodes() {
        lab.start_node(node).expect("start");
    }
    for pod in lab.pods() {
        lab.wait_sidecar_connected(pod).expect("reconnect");
    }
    eventually(PATIENCE, "connections tunnel", || {
        works(&lab);
        tunnelled(&lab) > 0.0
    });
}

/// SIGTERM: streams may finish within the drain time, new connections pass through at once.
#[test]
fn a_node_proxy_drains() {
    let _alone = alone();
    if needs_mesh("a_node_proxy_drains") {
        return;
    }
    let lab = lab_with(&Plan::new().pod("a", 1).pod("b", 2), |config| {
        config.node.timeouts.drain_ms = 20_000;
    });
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let (mut near, mut far) = pair(a, b);
    near.write_all(b"before").expect("write");
    far.read_exact(&mut [0; 6]).expect("read");
    let terminate = |process: &mut Process| process.signal(rustix::process::Signal::TERM);
    lab.node(1).with_process(terminate).expect("running").expect("signal");
    eventually(PATIENCE, "new connections pass through", || {
        works(&lab);
        passed(&lab) > 0.5
    });
    near.write_all(b"during").expect("write");
    far.read_exact(&mut [0; 6]).expect("the old stream lives");
    drop(far);
    assert_eq!(read_end(&mut near), (vec![], End::Clean));
    drop(near);
    let status = lab.node(1).with_process(|process| process.wait(Duration::from_secs(10)));
    let status = status.expect("running").expect("it ends when its last stream has");
    assert!(status.success(), "{status}");
}

#[test]
fn a_sidecar_drains() {
    let _alone = alone();
    if needs_mesh("a_sidecar_drains") {
        return;
    }
    let lab = lab_with(&Plan::new().pod("a", 1).outsider("world", 2), |config| {
        config.sidecar.drain_timeout_ms = 20_000;
    });
    let (a, world) = (lab.pod("a"), lab.pod("world"));
    let listener = world.listen();
    let port = listener.local_addr().expect("address").port();
    let mut near = a.dial(SocketAddr::new(world.ip(false), port)).expect("connect");
    let (mut far, _) = accept(&listener).expect("accept");
    let terminate = |process: &mut Process| process.signal(rustix::process::Signal::TERM);
    a.with_sidecar(terminate).expect("running").expect("signal");
    // Its relays go on until they are done.
    for _ in 0..5 {
        near.write_all(b"relayed").expect("write");
        far.read_exact(&mut [0; 7]).expect("read");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(near);
    assert_eq!(read_end(&mut far), (vec![], End::Clean));
    drop(far);
    let status = a.with_sidecar(|process| process.wait(Duration::from_secs(10)));
    let status = status.expect("running").expect("it ends when its last relay has");
    assert!(status.success(), "{status}");
}
