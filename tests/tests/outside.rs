//! What is none of the mesh's business goes on as before: other destinations, excluded ports and
//! addresses, loopback, UDP; and `init --cleanup` takes the capture away.

use rdmesh_tests::config::{DirectoryFile, Fabric};
use rdmesh_tests::sockets::{accept, reset};
use rdmesh_tests::{
    End, Lab, PATIENCE, Pattern, Plan, Pod, PodSockets, direct, lab, lab_with, needs_mesh, read_end,
};
use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};

/// How often connections of a pod came to its sidecar's port at all, whoever accepted them, and how
/// often they passed through it.
fn seen(lab: &Lab, pod: &Pod) -> (f64, f64) {
    if direct() {
        return (0.0, 0.0);
    }
    let sidecar = lab.sidecar_metrics(pod).expect("metrics");
    let node = lab.node_metrics(pod.node).expect("metrics");
    let passed = sidecar.sum("rdmesh_passthrough_total", &[]);
    let handoffs = [&sidecar, &node].map(|metrics| metrics.sum("rdmesh_handoff_total", &[]));
    (handoffs.iter().sum::<f64>() + passed, passed)
}

fn connect(client: &Pod, server: &Pod, ipv6: bool) -> (TcpStream, TcpStream, SocketAddr) {
    let listener = server.listen();
    let to = SocketAddr::new(server.ip(ipv6), port_of(&listener));
    let near = client.dial(to).expect("connect");
    let (far, from) = accept(&listener).expect("accept");
    (near, far, from)
}

fn port_of(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("local address").port()
}

fn exchange(near: &mut TcpStream, far: &mut TcpStream) {
    let (up, down) = (Pattern::new(11), Pattern::new(12));
    let size = 3 << 20;
    let mut writer = near.try_clone().expect("clone");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            up.write_to(&mut writer, size, 50_000).expect("write");
            writer.shutdown(Shutdown::Write).expect("shutdown");
        });
        assert_eq!(up.check_to_end(far).expect("read"), size);
    });
    let mut writer = far.try_clone().expect("clone");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            down.write_to(&mut writer, size, 50_000).expect("write after the half-close");
            writer.shutdown(Shutdown::Write).expect("shutdown");
        });
        assert_eq!(down.check_to_end(near).expect("read"), size);
    });
}

#[test]
fn a_destination_outside_the_mesh() {
    let lab = lab(&Plan::new().pod("a", 1).outsider("world", 2).outsider("near", 1));
    let a = lab.pod("a");
    for server in ["world", "near"] {
        for ipv6 in [false, true] {
            let (mut near, mut far, from) = connect(a, lab.pod(server), ipv6);
            assert_eq!(from.ip(), a.ip(ipv6), "the pod's own address, as without a mesh");
            exchange(&mut near, &mut far);
        }
    }
    if !direct() {
        let metrics = lab.sidecar_metrics(a).expect("metrics");
        let passed = metrics.sum("rdmesh_passthrough_total", &[("reason", "outside_mesh")]);
        assert!(passed >= 4.0, "{}", metrics.show("rdmesh_passthrough_total"));
    }
}

#[test]
fn resets_pass_through_as_resets() {
    let lab = lab(&Plan::new().pod("a", 1).outsider("world", 2));
    for round in 0..6 {
        let (mut near, mut far, _) = connect(lab.pod("a"), lab.pod("world"), false);
        if round % 2 == 1 {
            std::mem::swap(&mut near, &mut far);
        }
        near.write_all(&[7; 10_000]).expect("write");
        far.read_exact(&mut [0; 10_000]).expect("read");
        reset(near);
        assert_eq!(read_end(&mut far), (vec![], End::Reset));
    }
}

#[test]
fn a_client_outside_the_mesh() {
    let lab = lab(&Plan::new().pod("b", 2).outsider("world", 1));
    let (world, b) = (lab.pod("world"), lab.pod("b"));
    for ipv6 in [false, true] {
        let (mut near, mut far, from) = connect(world, b, ipv6);
        assert_eq!(from, near.local_addr().expect("getsockname"));
        exchange(&mut near, &mut far);
    }
}

#[test]
fn excluded_ports_are_not_captured() {
    let lab = lab_with(&Plan::new().pod("a", 1).pod("b", 2), |config| {
        config.capture.exclude_outbound_ports = vec![9_001];
    });
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let before = seen(&lab, a);
    for ipv6 in [false, true] {
        let address = SocketAddr::new(b.ip(ipv6), 9_001);
        let listener = b.listen_on(address, 16).expect("listen");
        let mut near = a.dial(address).expect("connect");
        let (mut far, from) = accept(&listener).expect("accept");
        assert_eq!(from, near.local_addr().expect("getsockname"));
        exchange(&mut near, &mut far);
    }
    assert_eq!(seen(&lab, a), before, "the mesh saw nothing of it");
}

#[test]
fn only_included_ports_are_captured() {
    let lab = lab_with(&Plan::new().pod("a", 1).pod("b", 2), |config| {
        config.capture.include_outbound_ports = vec![9_100];
    });
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    for (port, captured) in [(9_101, false), (9_100, true)] {
        let before = seen(&lab, a);
        let address = SocketAddr::new(b.ip(false), port);
        let listener = b.listen_on(address, 16).expect("listen");
        let mut near = a.dial(address).expect("connect");
        let (mut far, _) = accept(&listener).expect("accept");
        exchange(&mut near, &mut far);
        assert_eq!(seen(&lab, a) != before, captured && !direct(), "port {port}");
    }
}

#[test]
fn excluded_addresses_are_not_captured() {
    let plan = Plan::new().pod("a", 1).pod("b", 2);
    let lab = lab_with(&plan, |config| {
        let exclude = ["10.42.2.0/24", "fd42:2::/64"];
        config.capture.exclude_outbound_cidrs =
            exclude.iter().map(|net| net.parse().expect("valid")).collect();
    });
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let before = seen(&lab, a);
    for ipv6 in [false, true] {
        let (mut near, mut far, from) = connect(a, b, ipv6);
        assert_eq!(from, near.local_addr().expect("getsockname"));
        exchange(&mut near, &mut far);
    }
    assert_eq!(seen(&lab, a), before, "the mesh saw nothing of it");
}

#[test]
fn ports_that_a_pod_excludes_pass_through() {
    if needs_mesh("ports_that_a_pod_excludes_pass_through") {
        return;
    }
    let lab = Lab::new(&Plan::new().pod("a", 1).pod("b", 2), &rdmesh_tests::binary::proxy())
        .expect("build the lab");
    lab.change_directory(|directory: &mut DirectoryFile| {
        directory.pods[1].exclude_inbound_ports = vec![9_200];
    })
    .expect("write the directory file");
    lab.mesh_up().expect("bring the mesh up");
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let address = SocketAddr::new(b.ip(false), 9_200);
    let listener = b.listen_on(address, 16).expect("listen");
    let mut near = a.dial(address).expect("connect");
    let (mut far, from) = accept(&listener).expect("accept");
    assert_eq!(from.ip(), a.ip(false));
    exchange(&mut near, &mut far);
    let passed = lab
        .node_metrics(1)
        .expect("metrics")
        .sum("rdmesh_passthrough_total", &[("reason", "excluded_port")]);
    assert!(passed >= 1.0, "the reason is counted");
}

#[test]
fn the_fabric_that_a_pod_wants() {
    if needs_mesh("the_fabric_that_a_pod_wants") {
        return;
    }
    let plan = Plan::new().pod("a", 1).pod("any", 2).pod("tcp", 2).pod("verbs", 2);
    let lab = Lab::new(&plan, &rdmesh_tests::binary::proxy()).expect("build the lab");
    lab.change_directory(|directory: &mut DirectoryFile| {
        directory.pods[2].fabric = Fabric::Tcp;
        directory.pods[3].fabric = Fabric::Verbs;
    })
    .expect("write the directory file");
    lab.mesh_up().expect("bring the mesh up");
    let a = lab.pod("a");
    // No RDMA here: the one that wants nothing else is reached without the mesh, also when the
    // lane stands already.
    for (name, passed) in [("verbs", 1.0), ("any", 1.0), ("tcp", 1.0), ("verbs", 2.0)] {
        let (mut near, mut far, from) = connect(a, lab.pod(name), false);
        assert_eq!(from.ip(), a.ip(false));
        exchange(&mut near, &mut far);
        let metrics = lab.node_metrics(1).expect("metrics");
        let reasons = metrics.sum("rdmesh_passthrough_total", &[("reason", "fabric")]);
        assert!((reasons - passed).abs() < 0.5, "after {name}: {reasons} passed through");
    }
    for node in [1, 2] {
        let metrics = lab.node_metrics(node).expect("metrics");
        // A lane of its own, which both ends keep off RDMA.
        let of_its_own = metrics.sum("rdmesh_lane_up", &[("lane", "10000"), ("fabric", "tcp")])
            + metrics.sum("rdmesh_lane_up", &[("lane", "10001"), ("fabric", "tcp")]);
        assert!(
            (of_its_own - 1.0).abs() < 0.5,
            "node {node} has {of_its_own} lanes for pods that want tcp: {} {}",
            metrics.show("rdmesh_lane_up"),
            metrics.show("rdmesh_passthrough_total")
        );
    }
}

#[test]
fn a_pod_that_wants_what_its_node_does_not_have_passes_through() {
    if needs_mesh("a_pod_that_wants_what_its_node_does_not_have_passes_through") {
        return;
    }
    let plan = Plan::new().pod("a", 1).pod("b", 2);
    let lab = Lab::new(&plan, &rdmesh_tests::binary::proxy()).expect("build the lab");
    lab.configure(|config| config.node.fabric = Fabric::Verbs);
    lab.change_directory(|directory: &mut DirectoryFile| {
        directory.pods[1].fabric = Fabric::Tcp;
    })
    .expect("write the directory file");
    lab.mesh_up().expect("bring the mesh up");
    let (mut near, mut far, _) = connect(lab.pod("a"), lab.pod("b"), false);
    exchange(&mut near, &mut far);
    let metrics = lab.node_metrics(1).expect("metrics");
    let passed = metrics.sum("rdmesh_passthrough_total", &[("reason", "fabric")]);
    assert!((passed - 1.0).abs() < 0.5, "{}", metrics.show("rdmesh_passthrough_total"));
    assert!(!metrics.show("rdmesh_lane_up").contains("lane"), "no lane was asked for");
}

#[test]
fn loopback_inside_a_pod_is_not_captured() {
    let lab = lab(&Plan::new().pod("a", 1).pod("b", 2));
    let a = lab.pod("a");
    let before = seen(&lab, a);
    let loopback: [IpAddr; 3] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 9, 9, 9).into(),
    ];
    for ip in loopback {
        let listener = a.listen();
        let mut near = a.dial(SocketAddr::new(ip, port_of(&listener))).expect("connect");
        let (mut far, from) = accept(&listener).expect("accept");
        assert_eq!(from, near.local_addr().expect("getsockname"));
        exchange(&mut near, &mut far);
    }
    assert_eq!(seen(&lab, a), before, "the mesh saw nothing of it");
}

#[test]
fn ones_own_pod_address() {
    let lab = lab(&Plan::new().pod("a", 1).pod("b", 2));
    let a = lab.pod("a");
    for ipv6 in [false, true] {
        let (mut near, mut far, from) = connect(a, a, ipv6);
        assert_eq!(from.ip(), a.ip(ipv6));
        exchange(&mut near, &mut far);
    }
}

#[test]
fn udp_is_left_alone() {
    let lab = lab(&Plan::new().pod("a", 1).pod("b", 2));
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    for ipv6 in [false, true] {
        let bind = |pod: &Pod| {
            let socket = pod.run(|| UdpSocket::bind((pod.ip(ipv6), 0))).expect("bind");
            socket.set_read_timeout(Some(PATIENCE)).expect("read time-out");
            socket
        };
        let (near, far) = (bind(a), bind(b));
        near.send_to(b"datagram", far.local_addr().expect("address")).expect("send");
        let mut got = [0; 16];
        let (length, from) = far.recv_from(&mut got).expect("receive");
        assert_eq!((&got[..length], from), (&b"datagram"[..], near.local_addr().expect("own")));
    }
}

#[test]
fn cleanup_takes_the_capture_away() {
    if needs_mesh("cleanup_takes_the_capture_away") {
        return;
    }
    let lab = lab(&Plan::new().pod("a", 1).pod("b", 2));
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    // Twice is as good as once.
    lab.init_pod(a).expect("init again");
    let (mut near, mut far, _) = connect(a, b, false);
    exchange(&mut near, &mut far);
    let (captured, _) = seen(&lab, a);
    assert!(captured >= 1.0);
    for _ in 0..2 {
        let mut command = lab.proxy_command();
        command.arg("init").arg("--config").arg(lab.pod_config(a).expect("config"));
        command.arg("--cleanup");
        lab.run(&a.netns, &mut command, PATIENCE).expect("clean up");
    }
    let (mut near, mut far, from) = connect(a, b, false);
    assert_eq!(from, near.local_addr().expect("getsockname"));
    exchange(&mut near, &mut far);
    assert_eq!(seen(&lab, a).0, captured, "nothing is captured any more");
    let mut nft = std::process::Command::new("nft");
    nft.args(["list", "tables"]);
    let tables = lab.run(&a.netns, &mut nft, PATIENCE).expect("nft").stdout;
    assert!(!tables.contains("rdmesh"), "{tables}");
    let mut rules = std::process::Command::new("ip");
    rules.args(["rule", "list"]);
    let rules = lab.run(&a.netns, &mut rules, PATIENCE).expect("ip rule").stdout;
    assert_eq!(rules.lines().count(), 3, "only the kernel's own rules: {rules}");
}

/// Without this, a run with RDMESH_E2E_ROUTING=1 could be one like any other.
#[test]
fn capture_goes_by_the_pods_sysctls() {
    if needs_mesh("capture_goes_by_the_pods_sysctls") {
        return;
    }
    for routing in [false, true] {
        let plan = Plan::new().pod("a", 1).pod("b", 2).routing(routing);
        let lab = Lab::new(&plan, &rdmesh_tests::binary::proxy()).expect("build the lab");
        lab.mesh_up().expect("bring the mesh up");
        let (a, b) = (lab.pod("a"), lab.pod("b"));
        let (mut near, mut far, from) = connect(a, b, false);
        assert_eq!(from, near.local_addr().expect("getsockname"));
        exchange(&mut near, &mut far);
        let (captured, passed) = seen(&lab, a);
        assert!(captured >= 1.0 && passed == 0.0, "routing: {routing}");
        for pod in [a, b] {
            let tracked =
                pod.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
            let tracked: u32 = tracked.map_or(0, |count| count.trim().parse().expect("a number"));
            assert_eq!(tracked == 0, routing, "{}: {tracked} entries", pod.name);
        }
    }
}
