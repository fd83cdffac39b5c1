//! Accepting at a lent listener, by a worker that the test itself drives.

use super::rig::{CLIENT_POD, End, connected, receive, sidecar};
use crate::handoff::{Channel, ToSidecar};
use crate::node::messages::Command;
use crate::node::worker::Worker;
use crate::node::worker::slots::Key;
use rdmesh_config::Timeouts;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// A worker that the test itself drives, and a sidecar's end of its channel.
fn worker_and_sidecar() -> (Worker, Channel) {
    let (setup, _requests) = End::setup("a", Timeouts::default());
    let (channel, command) = sidecar(&setup.directory, "uid-a");
    let mut worker = Worker::new(setup, false).unwrap();
    let Command::Handoff { pod, channel: far } = command else { unreachable!() };
    worker.add_pod(pod, far);
    (worker, channel)
}

/// And a listener that it has lent.
fn lent() -> (Worker, Channel, Key, TcpListener) {
    let (mut worker, channel) = worker_and_sidecar();
    let key = worker.pod_keys["uid-a"];
    let listener = TcpListener::bind((CLIENT_POD, 0)).unwrap();
    worker.listener_arrived(key, Some(listener.try_clone().unwrap().into()));
    (worker, channel, key, listener)
}

#[test]
fn only_a_tcp_listener_is_accepted_at() {
    let (mut worker, mut channel) = worker_and_sidecar();
    let key = worker.pod_keys["uid-a"];
    let (near, _far) = connected();
    let udp = std::net::UdpSocket::bind((CLIENT_POD, 0)).unwrap();
    let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
    for wrong in [Some(near.into()), Some(udp.into()), Some(unix.into()), None] {
        worker.listener_arrived(key, wrong);
        assert_eq!(receive(&mut channel).unwrap().0, ToSidecar::Accept);
    }
    worker.listener_arrived(key, Some(TcpListener::bind((CLIENT_POD, 0)).unwrap().into()));
    assert!(matches!(channel.recv::<ToSidecar>(), Ok(None)));
}

/// What is odd is the sidecar's: here a connection that nobody has redirected.
#[test]
fn an_accepted_connection_that_is_not_carried_goes_to_the_sidecar() {
    let (mut worker, mut channel, key, listener) = lent();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    worker.accept_streams(key);
    let (message, socket) = receive(&mut channel).unwrap();
    assert_eq!(message, ToSidecar::Accepted { reason: None });
    TcpStream::from(socket.unwrap()).write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    // It counts for this process' memory, so that there will not be many.
    assert_eq!(receive(&mut channel).unwrap().0, ToSidecar::Accept);
}

/// Its sidecar has the same file.
#[test]
fn a_listener_that_is_made_blocking_stops_nobody() {
    let (mut worker, mut channel, key, listener) = lent();
    listener.set_nonblocking(false).unwrap();
    // Nobody connects: without the watchdog this would wait for ever.
    worker.accept_streams(key);
    assert_eq!(receive(&mut channel).unwrap().0, ToSidecar::Accept);
    // Nor is it tried again.
    worker.listener_arrived(key, Some(listener.into()));
    assert_eq!(receive(&mut channel).unwrap().0, ToSidecar::Accept);
}
