//! Source-address preservation: the application sees the client's own address.

use crate::lab::*;
use rdmesh_config::Capture;
use rdmesh_proxy::capture::{self, Marks};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Where capture redirects, and where it routes.
fn delivery_worlds() -> [(World, u32); 2] {
    let config = Capture::default();
    World::both().map(|world| {
        let applied = world.pod.run(|| capture::apply(&config, 15701)).unwrap();
        assert_eq!(applied.method, world.method);
        (world, Marks::new(config.mark).unwrap().delivery)
    })
}

fn deliver(world: &World, mark: u32, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let client = Client { mark, from: Some(from), transparent: true, ..Client::default() };
    client.connect(&world.pod, to)
}

/// Clients: of another network, and one that the world outside really has.
const CLIENTS: [(&str, &str); 4] =
    [("10.99.1.7", POD_V4), ("192.0.2.1", POD_V4), ("fd55::7", POD_V6), ("fd99::1", POD_V6)];

#[test]
fn the_application_sees_the_clients_own_address() {
    for (world, mark) in delivery_worlds() {
        for (client, server) in CLIENTS {
            let listener = listen(&world.pod, server);
            let from = address(client, 43_210);
            let mut sidecar =
                deliver(&world, mark, from, listener.local_addr().unwrap()).expect(client);
            let mut application = accept(&listener).unwrap();
            assert_eq!(application.peer_addr().unwrap(), from);
            assert_eq!(sidecar.local_addr().unwrap(), from);
            exchange(&sidecar, &application, 1 << 20);

            // The half-closes arrive, each way for itself.
            sidecar.shutdown(Shutdown::Write).unwrap();
            assert_eq!(uninterrupted(|| application.read(&mut [0; 8])).unwrap(), 0);
            application.write_all(b"late").unwrap();
            application.shutdown(Shutdown::Write).unwrap();
            let mut rest = String::new();
            sidecar.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "late");
        }
    }
}

#[test]
fn an_application_on_all_addresses_is_reached_too() {
    for (world, mark) in delivery_worlds() {
        let listener = listen(&world.pod, "::");
        for (client, server) in CLIENTS {
            let to = address(server, listener.local_addr().unwrap().port());
            let from = address(client, 43_211);
            let sidecar = deliver(&world, mark, from, to).expect(client);
            let application = accept(&listener).unwrap();
            assert_eq!(unmapped(application.peer_addr().unwrap()), from);
            exchange(&sidecar, &application, 1 << 16);
        }
    }
}

#[test]
fn a_closed_port_refuses_at_once() {
    for (world, mark) in delivery_worlds() {
        for (client, server) in CLIENTS {
            let error =
                deliver(&world, mark, address(client, 43_212), address(server, 1)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{client}: {error}");
        }
    }
}

#[test]
fn a_reset_by_the_application_arrives() {
    for (world, mark) in delivery_worlds() {
        for (client, server) in CLIENTS {
            let listener = listen(&world.pod, server);
            let to = listener.local_addr().unwrap();
            let mut sidecar = deliver(&world, mark, address(client, 43_213), to).unwrap();
            let application = accept(&listener).unwrap();
            socket2::SockRef::from(&application).set_linger(Some(Duration::ZERO)).unwrap();
            drop(application);
            let error = uninterrupted(|| sidecar.read(&mut [0; 8])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{client}");
        }
    }
}

#[test]
fn the_client_connects_directly_and_by_delivery_side_by_side() {
    for (world, mark) in delivery_worlds() {
        for (client, server) in [("10.77.0.1", POD_V4), ("fd77::1", POD_V6)] {
            let listener = listen(&world.pod, server);
            let to = listener.local_addr().unwrap();
            let sidecar = deliver(&world, mark, address(client, 43_214), to).unwrap();
            let delivered = accept(&listener).unwrap();
            let direct = Client { from: Some(address(client, 43_215)), ..Client::default() }
                .connect(&world.outside, to)
                .unwrap();
            let arrived = accept(&listener).unwrap();
            assert_eq!(arrived.peer_addr().unwrap(), address(client, 43_215));
            exchange(&direct, &arrived, 100_000);
            exchange(&sidecar, &delivered, 100_000);
        }
    }
}

#[test]
fn a_pod_whose_sockets_inherit_marks_works_as_well() {
    let [(world, mark), _] = delivery_worlds();
    world.pod.run(|| write("/proc/sys/net/ipv4/tcp_fwmark_accept", "1"));
    for (client, server) in CLIENTS {
        let listener = listen(&world.pod, server);
        let from = address(client, 43_217);
        let sidecar = deliver(&world, mark, from, listener.local_addr().unwrap()).expect(client);
        let application = accept(&listener).unwrap();
        assert_eq!(application.peer_addr().unwrap(), from);
        exchange(&sidecar, &application, 1 << 20);
    }
}

#[test]
fn without_the_mark_nothing_is_delivered() {
    let [(world, _), _] = delivery_worlds();
    let listener = listen(&world.pod, POD_V4);
    let to = listener.local_addr().unwrap();
    let from = Some(address("192.0.2.1", 43_216));
    let timeout = Some(Duration::from_millis(200));
    let client = Client { mark: 0, from, transparent: true, timeout };
    // The answer goes out to the real owner of the address.
    let error = client.connect(&world.pod, to).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
