//! What is captured and what is not.

use crate::lab::*;
use rdmesh_config::Capture;
use rdmesh_proxy::capture::{self, Applied, Marks, Method};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

const PORT: u16 = 15701;

/// Where capture redirects, and where it routes.
fn captured_worlds(config: &Capture) -> Vec<(World, TcpListener)> {
    World::both().into_iter().map(|world| captured(world, config)).collect()
}

fn captured(world: World, config: &Capture) -> (World, TcpListener) {
    let applied = world.pod.run(|| capture::apply(config, PORT)).unwrap();
    assert_eq!(applied, Applied { ipv6: true, method: world.method });
    let sidecar = world.sidecar();
    (world, sidecar)
}

/// A plain client's connection arrives at the sidecar, which learns where it was to go.
fn assert_captured(world: &World, sidecar: &TcpListener, to: SocketAddr) {
    let client =
        Client::default().connect(&world.pod, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    assert_eq!(client.local_addr().unwrap().ip().to_string(), World::address(to));
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
    for (world, sidecar) in captured_worlds(&Capture::default()) {
        // Nobody listens there: capture does not depend on the destination.
        assert_captured(&world, &sidecar, address("192.0.2.1", 8080));
        assert_captured(&world, &sidecar, address("fd99::1", 8080));
        assert_captured(&world, &sidecar, address("10.42.1.5", 1));
        // Nor on what the sidecar itself listens at.
        assert_captured(&world, &sidecar, address("192.0.2.1", PORT));
        let counters = world.pod.run(|| sh("nft list chain inet rdmesh output"));
        let count = counters.lines().find(|line| line.contains("captured: ")).unwrap();
        assert!(count.contains("counter packets 4 "), "{counters}");
    }
}

#[test]
fn what_stays_in_the_pod_is_not_captured() {
    for (world, sidecar) in captured_worlds(&Capture::default()) {
        for ip in ["127.0.0.1", "127.5.6.7", "::1", POD_V4, POD_V6] {
            let server = listen(&world.pod, ip);
            assert_direct(&world.pod, &sidecar, &server, Client::default());
        }
    }
}

#[test]
fn the_proxys_own_passthrough_reaches_the_real_network() {
    let config = Capture::default();
    let mark = Marks::new(config.mark).unwrap().passthrough;
    for (world, sidecar) in captured_worlds(&config) {
        for ip in ["192.0.2.1", "fd99::1"] {
            let server = listen(&world.outside, ip);
            assert_direct(&world.pod, &sidecar, &server, Client { mark, ..Client::default() });
        }
    }
}

#[test]
fn excluded_ports_and_cidrs_are_not_captured() {
    for world in World::both() {
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
        let (world, sidecar) = captured(world, &config);
        for server in excluded_port.iter().chain(&excluded_net) {
            assert_direct(&world.pod, &sidecar, server, Client::default());
        }
        assert_captured(&world, &sidecar, address("192.0.2.1", 1));
        assert_captured(&world, &sidecar, address("198.52.0.0", 1));
        assert_captured(&world, &sidecar, address("198.50.255.255", 1));
        assert_captured(&world, &sidecar, address("fd97:ffff::1", 1));
    }
}

#[test]
fn only_included_ports_and_cidrs_are_captured() {
    let config = Capture {
        include_outbound_ports: vec![80, 443],
        include_outbound_cidrs: ["192.0.2.0/25", "192.0.2.128/25", "fd99::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        ..Capture::default()
    };
    for (world, sidecar) in captured_worlds(&config) {
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
}

#[test]
fn udp_is_untouched() {
    for (world, _sidecar) in captured_worlds(&Capture::default()) {
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
}

#[test]
fn connections_into_the_pod_are_untouched() {
    for (world, sidecar) in captured_worlds(&Capture::default()) {
        for ip in [POD_V4, POD_V6] {
            let server = listen(&world.pod, ip);
            assert_direct(&world.outside, &sidecar, &server, Client::default());
            // A closed port refuses, and does not keep silent.
            let closed = Client::default().connect(&world.outside, address(ip, 1)).unwrap_err();
            assert_eq!(closed.kind(), io::ErrorKind::ConnectionRefused, "{ip}: {closed}");
            // A reset arrives.
            let at_server = listen(&world.pod, ip);
            let to = at_server.local_addr().unwrap();
            let client = Client::default().connect(&world.outside, to).unwrap();
            let accepted = accept(&at_server).unwrap();
            socket2::SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
            drop(accepted);
            let error = uninterrupted(|| { &client }.read(&mut [0; 8])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{ip}: {error}");
        }
    }
}

#[test]
fn connections_live_through_a_first_and_a_second_run() {
    for world in World::both() {
        let server = listen(&world.outside, "192.0.2.1");
        let older = Client::default().connect(&world.pod, server.local_addr().unwrap()).unwrap();
        let at_server = accept(&server).unwrap();
        // To route would break the older one.
        let run = || {
            let applied = world.pod.run(|| capture::apply(&Capture::default(), PORT)).unwrap();
            assert_eq!(applied.method, Method::Redirect);
        };
        run();
        exchange(&older, &at_server, 10_000);
        let sidecar = world.sidecar();
        let captured = Client::default().connect(&world.pod, address("192.0.2.1", 9)).unwrap();
        let at_sidecar = accept(&sidecar).unwrap();
        run();
        exchange(&captured, &at_sidecar, 10_000);
        exchange(&older, &at_server, 10_000);
    }
}

#[test]
fn connections_live_through_a_second_run_where_capture_routes() {
    let world = World::routing();
    let server = listen(&world.pod, POD_V4);
    let run = |config: &Capture| {
        let applied = world.pod.run(|| capture::apply(config, PORT)).unwrap();
        assert_eq!(applied.method, Method::Route);
    };
    run(&Capture::default());
    let sidecar = world.sidecar();
    let captured = Client::default().connect(&world.pod, address("192.0.2.1", 9)).unwrap();
    let at_sidecar = accept(&sidecar).unwrap();
    let inbound = Client::default().connect(&world.outside, server.local_addr().unwrap()).unwrap();
    let at_server = accept(&server).unwrap();
    run(&Capture::default());
    run(&Capture { exclude_outbound_ports: vec![25], ..Capture::default() });
    exchange(&captured, &at_sidecar, 10_000);
    exchange(&inbound, &at_server, 10_000);
}

#[test]
fn five_thousand_networks_fit() {
    // Every other /24 and /64, so that none can be joined with its neighbour.
    let mut networks: Vec<_> = (0..2_500u32)
        .flat_map(|n| {
            [format!("10.{}.{}.0/24", n / 128, n % 128 * 2), format!("fd00:0:0:{:x}::/64", n * 2)]
        })
        .map(|net| net.parse().unwrap())
        .collect();
    networks.push("192.0.2.1/32".parse().unwrap());
    let config = Capture { exclude_outbound_cidrs: networks, ..Capture::default() };
    for (world, sidecar) in captured_worlds(&config) {
        let server = listen(&world.outside, "192.0.2.1");
        assert_direct(&world.pod, &sidecar, &server, Client::default());
        for ip in ["192.0.2.2", "10.0.1.255", "10.0.3.0", "fd00:0:0:1::1", "fd00:0:0:1385::1"] {
            assert_captured(&world, &sidecar, address(ip, 80));
        }
        let set = world.pod.run(|| sh("nft list set inet rdmesh excluded_ipv6"));
        assert_eq!(set.matches("/64").count(), 2_500);
        let set = world.pod.run(|| sh("nft list set inet rdmesh excluded_ipv4"));
        assert_eq!(set.matches("/24").count(), 2_500);
    }
}

/// The kernel lets one local port serve connections to several servers. A redirect makes them
/// alike, so the later one arrives with another source port; everything else is right.
#[test]
fn one_local_port_towards_two_servers() {
    for (world, sidecar) in captured_worlds(&Capture::default()) {
        let from = address(POD_V4, 43_300);
        let client = Client { from: Some(from), ..Client::default() };
        let one = client.connect(&world.pod, address("192.0.2.1", 80)).unwrap();
        let at_one = accept(&sidecar).unwrap();
        let two = client.connect(&world.pod, address("198.51.100.7", 80)).unwrap();
        let at_two = accept(&sidecar).unwrap();
        let at_two_from = unmapped(at_two.peer_addr().unwrap());
        assert_eq!(unmapped(at_one.peer_addr().unwrap()), from);
        assert_eq!(at_two_from.ip(), from.ip());
        assert_eq!(at_two_from == from, world.method == Method::Route);
        assert_eq!(original_destination(&at_one), address("192.0.2.1", 80));
        assert_eq!(original_destination(&at_two), address("198.51.100.7", 80));
        exchange(&one, &at_one, 10_000);
        exchange(&two, &at_two, 10_000);
    }
}

/// What a program marks, it routes itself; a redirect does not care.
#[test]
fn another_programs_mark() {
    for (world, sidecar) in captured_worlds(&Capture::default()) {
        let server = listen(&world.outside, "192.0.2.1");
        let client = Client { mark: 7, ..Client::default() };
        if world.method == Method::Route {
            assert_direct(&world.pod, &sidecar, &server, client);
        } else {
            client.connect(&world.pod, server.local_addr().unwrap()).unwrap();
            assert!(accept(&sidecar).is_some());
        }
    }
}

/// Where capture routes, the sidecar's socket has the server's address and port. An application may
/// still listen at a port of that number.
#[test]
fn an_application_listens_at_the_number_of_a_port_that_it_connected_to() {
    for (world, sidecar) in captured_worlds(&Capture::default()) {
        let client = Client::default().connect(&world.pod, address("192.0.2.1", 8080)).unwrap();
        let at_sidecar = accept(&sidecar).unwrap();
        // As servers do, and as the standard library does: with SO_REUSEADDR.
        let server = world.pod.run(|| TcpListener::bind("0.0.0.0:8080").unwrap());
        server.set_nonblocking(true).unwrap();
        let direct = Client::default().connect(&world.outside, address(POD_V4, 8080)).unwrap();
        exchange(&direct, &accept(&server).unwrap(), 10_000);
        exchange(&client, &at_sidecar, 10_000);
    }
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}
