//! What is captured and what is not.

use crate::lab::*;
use rdmesh_config::Capture;
use rdmesh_proxy::capture::{self, Marks};
use std::net::{SocketAddr, TcpListener, UdpSocket};

const PORT: u16 = 15701;

fn captured_world(config: &Capture) -> (World, TcpListener) {
    let world = World::new();
    let applied = world.pod.run(|| capture::apply(config, PORT)).unwrap();
    assert!(applied.ipv6);
    let sidecar = world.sidecar();
    (world, sidecar)
}

/// A plain client's connection arrives at the sidecar, which learns where it was to go.
fn assert_captured(world: &World, sidecar: &TcpListener, to: SocketAddr) {
    let client = Client::default().connect(&world.pod, to).unwrap();
    let accepted = accept(sidecar).unwrap_or_else(|| panic!("{to} is captured"));
    assert_eq!(original_destination(&accepted), to);
    assert_eq!(client.peer_addr().unwrap(), to, "the client sees what it asked for");
    assert_eq!(unmapped(accepted.peer_addr().unwrap()), client.local_addr().unwrap());
    exchange(&client, &accepted, 10_000);
}

/// The connection arrives at the server itself, from the pod's address.
fn assert_direct(ns: &Netns, sidecar: &TcpListener, server: &TcpListener, client: Client) {
    let to = server.local_addr().unwrap();
    let stream = client.connect(ns, to).unwrap();
    let accepted = accept(server).unwrap_or_else(|| panic!("{to} is reached directly"));
    assert!(accept(sidecar).is_none(), "{to} is not captured");
    assert_eq!(accepted.peer_addr().unwrap(), stream.local_addr().unwrap());
    exchange(&stream, &accepted, 10_000);
}

#[test]
fn tcp_of_both_families_arrives_at_the_sidecar() {
    let (world, sidecar) = captured_world(&Capture::default());
    // Nobody listens there: the redirect does not depend on the destination.
    assert_captured(&world, &sidecar, address("192.0.2.1", 8080));
    assert_captured(&world, &sidecar, address("fd99::1", 8080));
    assert_captured(&world, &sidecar, address("10.42.1.5", 1));
    let counters = world.pod.run(|| sh("nft list chain inet rdmesh output"));
    assert!(counters.contains("counter packets 3 "), "{counters}");
}

#[test]
fn what_stays_in_the_pod_is_not_captured() {
    let (world, sidecar) = captured_world(&Capture::default());
    for ip in ["127.0.0.1", "127.5.6.7", "::1", POD_V4, POD_V6] {
        let server = listen(&world.pod, ip);
        assert_direct(&world.pod, &sidecar, &server, Client::default());
    }
}

#[test]
fn the_proxys_own_passthrough_reaches_the_real_network() {
    let config = Capture::default();
    let (world, sidecar) = captured_world(&config);
    let mark = Marks::new(config.mark).unwrap().passthrough;
    for ip in ["192.0.2.1", "fd99::1"] {
        let server = listen(&world.outside, ip);
        assert_direct(&world.pod, &sidecar, &server, Client { mark, ..Client::default() });
    }
}

#[test]
fn excluded_ports_and_cidrs_are_not_captured() {
    let world = World::new();
    let excluded_port = ["192.0.2.1", "fd99::1"].map(|ip| listen(&world.outside, ip));
    let excluded_net = ["198.51.100.7", "fd98::7"].map(|ip| listen(&world.outside, ip));
    let config = Capture {
        exclude_outbound_ports: excluded_port.iter().map(port).collect(),
        exclude_outbound_cidrs: [
            "198.51.100.0/24",
            "198.51.0.0/16",
            "198.51.100.7/32",
            "fd98::/16",
        ]
        .map(|net| net.parse().unwrap())
        .to_vec(),
        ..Capture::default()
    };
    world.pod.run(|| capture::apply(&config, PORT)).unwrap();
    let sidecar = world.sidecar();
    for server in excluded_port.iter().chain(&excluded_net) {
        assert_direct(&world.pod, &sidecar, server, Client::default());
    }
    assert_captured(&world, &sidecar, address("192.0.2.1", 1));
    assert_captured(&world, &sidecar, address("198.52.0.0", 1));
    assert_captured(&world, &sidecar, address("198.50.255.255", 1));
    assert_captured(&world, &sidecar, address("fd97:ffff::1", 1));
}

#[test]
fn only_included_ports_and_cidrs_are_captured() {
    let world = World::new();
    let config = Capture {
        include_outbound_ports: vec![80, 443],
        include_outbound_cidrs: ["192.0.2.0/25", "192.0.2.128/25", "fd99::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        ..Capture::default()
    };
    world.pod.run(|| capture::apply(&config, PORT)).unwrap();
    let sidecar = world.sidecar();
    for ip in ["192.0.2.1", "192.0.2.0", "192.0.2.255", "fd99::1"] {
        assert_captured(&world, &sidecar, address(ip, 443));
    }
    for ip in SERVERS {
        let other_port = listen(&world.outside, ip);
        assert_direct(&world.pod, &sidecar, &other_port, Client::default());
    }
    for ip in ["198.51.100.7", "fd98::7"] {
        let included_port = world.outside.run(|| TcpListener::bind(address(ip, 80)).unwrap());
        included_port.set_nonblocking(true).unwrap();
        assert_direct(&world.pod, &sidecar, &included_port, Client::default());
    }
}

#[test]
fn udp_is_untouched() {
    let (world, _sidecar) = captured_world(&Capture::default());
    for (server, client) in [("192.0.2.1", POD_V4), ("fd99::1", POD_V6)] {
        let server = world.outside.run(|| UdpSocket::bind(address(server, 0)).unwrap());
        let client = world.pod.run(|| UdpSocket::bind(address(client, 0)).unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        let mut buffer = [0; 16];
        client.send_to(b"question", server.local_addr().unwrap()).unwrap();
        let (length, from) = uninterrupted(|| server.recv_from(&mut buffer)).unwrap();
        assert_eq!((&buffer[..length], from), (&b"question"[..], client.local_addr().unwrap()));
        server.send_to(b"answer", from).unwrap();
        let (length, from) = uninterrupted(|| client.recv_from(&mut buffer)).unwrap();
        assert_eq!((&buffer[..length], from), (&b"answer"[..], server.local_addr().unwrap()));
    }
}

#[test]
fn connections_into_the_pod_are_untouched() {
    let (world, sidecar) = captured_world(&Capture::default());
    for ip in [POD_V4, POD_V6] {
        let server = listen(&world.pod, ip);
        assert_direct(&world.outside, &sidecar, &server, Client::default());
    }
}

#[test]
fn connections_live_through_a_first_and_a_second_run() {
    let world = World::new();
    let server = listen(&world.outside, "192.0.2.1");
    let older = Client::default().connect(&world.pod, server.local_addr().unwrap()).unwrap();
    let at_server = accept(&server).unwrap();
    let run = || world.pod.run(|| capture::apply(&Capture::default(), PORT)).unwrap();
    run();
    exchange(&older, &at_server, 10_000);
    let sidecar = world.sidecar();
    let captured = Client::default().connect(&world.pod, address("192.0.2.1", 9)).unwrap();
    let at_sidecar = accept(&sidecar).unwrap();
    run();
    exchange(&captured, &at_sidecar, 10_000);
    exchange(&older, &at_server, 10_000);
}

#[test]
fn five_thousand_networks_fit() {
    let world = World::new();
    let server = listen(&world.outside, "192.0.2.1");
    // Every other /24 and /64, so that none can be joined with its neighbour.
    let mut networks: Vec<_> = (0..2_500u32)
        .flat_map(|n| {
            [format!("10.{}.{}.0/24", n / 128, n % 128 * 2), format!("fd00:0:0:{:x}::/64", n * 2)]
        })
        .map(|net| net.parse().unwrap())
        .collect();
    networks.push("192.0.2.1/32".parse().unwrap());
    let config = Capture { exclude_outbound_cidrs: networks, ..Capture::default() };
    world.pod.run(|| capture::apply(&config, PORT)).unwrap();
    let sidecar = world.sidecar();
    assert_direct(&world.pod, &sidecar, &server, Client::default());
    for ip in ["192.0.2.2", "10.0.1.255", "10.0.3.0", "fd00:0:0:1::1", "fd00:0:0:1385::1"] {
        assert_captured(&world, &sidecar, address(ip, 80));
    }
    let set = world.pod.run(|| sh("nft list set inet rdmesh excluded_ipv6"));
    assert_eq!(set.matches("/64").count(), 2_500);
    let set = world.pod.run(|| sh("nft list set inet rdmesh excluded_ipv4"));
    assert_eq!(set.matches("/24").count(), 2_500);
}

/// The kernel lets one local port serve connections to several servers. The redirect makes them
/// alike, so the later one arrives with another source port; everything else is right.
#[test]
fn one_local_port_towards_two_servers() {
    let (world, sidecar) = captured_world(&Capture::default());
    let from = Some(address(POD_V4, 43_300));
    let client = Client { from, ..Client::default() };
    let one = client.connect(&world.pod, address("192.0.2.1", 80)).unwrap();
    let at_one = accept(&sidecar).unwrap();
    let two = client.connect(&world.pod, address("198.51.100.7", 80)).unwrap();
    let at_two = accept(&sidecar).unwrap();
    assert_eq!(unmapped(at_one.peer_addr().unwrap()), client.from.unwrap());
    assert_eq!(unmapped(at_two.peer_addr().unwrap()).ip(), client.from.unwrap().ip());
    assert_eq!(original_destination(&at_one), address("192.0.2.1", 80));
    assert_eq!(original_destination(&at_two), address("198.51.100.7", 80));
    exchange(&one, &at_one, 10_000);
    exchange(&two, &at_two, 10_000);
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}
