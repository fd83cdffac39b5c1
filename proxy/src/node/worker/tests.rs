//! Workers in this process, and sidecars that are played by the test.

mod accept;
mod rig;

use crate::directory::Snapshot;
use crate::handoff::{ToNode, ToSidecar};
use crate::node::messages::{Command, Request};
use rdmesh_config::{DirectoryFile, NodeEntry, Timeouts};
use rig::{
    End, PATIENCE, Rig, SERVER_POD, connected, pattern, receive, server, server_for_one, unbound,
};
use rustix::net::sockopt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::spawn;
use std::time::{Duration, Instant};

#[test]
fn bytes_both_ways_and_half_close() {
    let mut rig = Rig::new();
    let (listener, address) = server();
    let mut client = rig.connect(address);
    let (mut served, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), client.local_addr().unwrap().ip());
    let (up, down) = (pattern(1, 3 << 20), pattern(2, 2 << 20));
    let upload = {
        let mut client = client.try_clone().unwrap();
        let up = up.clone();
        spawn(move || {
            client.write_all(&up).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        })
    };
    let mut got = Vec::new();
    served.read_to_end(&mut got).unwrap();
    assert!(got == up);
    upload.join().unwrap();
    // The other direction still flows after the first has ended.
    let download = {
        let down = down.clone();
        spawn(move || served.write_all(&down).unwrap())
    };
    got.clear();
    client.read_to_end(&mut got).unwrap();
    assert!(got == down);
    download.join().unwrap();
}

/// Where many streams have traffic a FIN waits for company: none may wait for ever.
#[test]
fn each_of_many_streams_ends() {
    const STREAMS: usize = 24;
    let mut rig = Rig::new();
    let (listener, address) = server();
    let mut pairs: Vec<_> =
        (0..STREAMS).map(|_| (rig.connect(address), listener.accept().unwrap().0)).collect();
    let ends = |from: &mut TcpStream, to: &mut TcpStream, byte: u8| {
        from.write_all(&[byte]).unwrap();
        from.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        to.read_to_end(&mut got).unwrap();
        assert_eq!(got, [byte]);
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(60) {
        for (client, served) in &mut pairs {
            client.write_all(&[1]).unwrap();
            served.read_exact(&mut [0]).unwrap();
        }
    }
    for (client, served) in &mut pairs {
        served.set_read_timeout(Some(PATIENCE)).unwrap();
        ends(client, served, 2);
        ends(served, client, 3);
    }
}

/// Small pieces one way are gathered by the kernel: what is left of them must not stay there, nor an
/// answer wait.
#[test]
fn gathered_pieces_arrive_without_an_end() {
    let mut rig = Rig::new();
    let (listener, address) = server();
    let mut client = rig.connect(address);
    client.set_nodelay(true).unwrap();
    let mut served = listener.accept().unwrap().0;
    served.set_read_timeout(Some(PATIENCE)).unwrap();
    for round in 0..20 {
        let up = pattern(round, 64 * 1_000);
        for piece in up.chunks(64) {
            client.write_all(piece).unwrap();
        }
        let mut got = vec![0; up.len()];
        served.read_exact(&mut got).unwrap();
        assert!(got == up);
        served.write_all(&up[..64]).unwrap();
        client.read_exact(&mut got[..64]).unwrap();
        assert!(got[..64] == up[..64]);
    }
}

/// The receive buffer of small pieces one way shrinks, nothing gets lost by that, and an answer makes it
/// grow again.
#[test]
fn a_buffer_of_small_pieces_shrinks_and_grows_again() {
    let held = rdmesh_sys::sockopt::hold_receive_buffer(unbound(), true);
    if !kernel_can(&held, "hold a receive buffer (Linux 5.15 can)") {
        return;
    }
    let rmem_max = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
    let buffer = |bytes: usize| 2 * bytes.min(rmem_max.trim().parse().unwrap());
    let mut rig = Rig::new();
    let (listener, address) = server();
    let (mut client, accepted) = rig.hand_over_and_keep(address);
    rig.taken();
    client.set_nodelay(true).unwrap();
    let is = |bytes| sockopt::socket_recv_buffer_size(&accepted).unwrap() == buffer(bytes);
    assert!(!is(128 << 10) && !is(512 << 10));
    let mut served = listener.accept().unwrap().0;
    served.set_read_timeout(Some(PATIENCE)).unwrap();
    let upload = pattern(1, 1 << 20);
    let reader = {
        let (mut served, upload) = (served.try_clone().unwrap(), upload.clone());
        spawn(move || {
            let mut got = vec![0; upload.len()];
            loop {
                served.read_exact(&mut got).unwrap();
                // The last is sent with its first byte changed.
                if got[0] != upload[0] {
                    assert!(got[1..] == upload[1..]);
                    return;
                }
                assert!(got == upload);
            }
        })
    };
    let begun = Instant::now();
    while !is(128 << 10) {
        assert!(begun.elapsed() < PATIENCE);
        for piece in upload.chunks(64) {
            client.write_all(piece).unwrap();
        }
    }
    let mut last = upload;
    last[0] ^= 1;
    client.write_all(&last).unwrap();
    reader.join().unwrap();
    served.write_all(&last).unwrap();
    client.read_exact(&mut last).unwrap();
    while !is(512 << 10) {
        assert!(begun.elapsed() < 2 * PATIENCE);
        std::thread::yield_now();
    }
}

/// Whoever has a copy of a handed-over socket can make it blocking, and a move would wait on it.
#[test]
fn a_socket_that_is_made_blocking_stops_nobody() {
    let mut rig = Rig::new();
    let (listener, address) = server();
    let (mut client, accepted) = rig.hand_over_and_keep(address);
    rig.taken();
    let (mut served, _) = listener.accept().unwrap();
    served.set_read_timeout(Some(PATIENCE)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let meddler = {
        let stop = Arc::clone(&stop);
        spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                accepted.set_nonblocking(false).unwrap();
                std::thread::yield_now();
            }
        })
    };
    // After each part the worker finds the socket empty.
    for part in 0..40 {
        let sent = pattern(part, 1 << 20);
        let upload = {
            let (mut client, sent) = (client.try_clone().unwrap(), sent.clone());
            spawn(move || client.write_all(&sent).unwrap())
        };
        let mut got = vec![0; sent.len()];
        served.read_exact(&mut got).unwrap();
        assert!(got == sent);
        upload.join().unwrap();
    }
    // Nor when it takes nothing: somebody else is served meanwhile.
    let flood = {
        let mut served = served.try_clone().unwrap();
        spawn(move || served.write_all(&pattern(7, 16 << 20)).unwrap())
    };
    let mut other = rig.connect(address);
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut other_served, _) = listener.accept().unwrap();
    for byte in 0..100 {
        other.write_all(&[byte]).unwrap();
        let mut got = [0];
        other_served.set_read_timeout(Some(PATIENCE)).unwrap();
        other_served.read_exact(&mut got).unwrap();
        assert_eq!(got, [byte]);
    }
    let mut got = vec![0; 16 << 20];
    client.read_exact(&mut got).unwrap();
    assert!(got == pattern(7, 16 << 20));
    flood.join().unwrap();
    stop.store(true, Ordering::Relaxed);
    meddler.join().unwrap();
}

/// Says so where it cannot.
fn kernel_can(set: &std::io::Result<()>, what: &str) -> bool {
    if set.is_err() {
        eprintln!("NOT TESTED: this kernel cannot {what}");
    }
    set.is_ok()
}

/// The sidecar of these tests never dials from the client's port, a spare socket always does.
fn spares_are_possible() -> bool {
    let set = rdmesh_sys::sockopt::set_local_port_range(unbound(), 40_000, 40_000);
    kernel_can(&set, "choose a port at connect (Linux 6.3 can)")
}

/// Tries until a spare socket was the one that was used.
fn by_a_spare(mut attempt: impl FnMut() -> bool) {
    let started = Instant::now();
    while !attempt() {
        assert!(started.elapsed() < PATIENCE, "no spare socket was used");
    }
}

/// The first delivery to a place is the sidecar's.
fn until_spares_are_used(rig: &mut Rig, listener: &TcpListener) {
    let address = listener.local_addr().unwrap();
    by_a_spare(|| {
        let client = rig.connect(address);
        listener.accept().unwrap().1 == client.local_addr().unwrap()
    });
}

#[test]
fn spare_sockets_are_connected_from_the_clients_port() {
    if !spares_are_possible() {
        return;
    }
    let mut rig = Rig::new();
    let (listener, address) = server();
    by_a_spare(|| {
        let mut client = rig.connect(address);
        let (mut served, from) = listener.accept().unwrap();
        served.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        from == client.local_addr().unwrap()
    });
    // Nobody listens any more.
    drop(listener);
    let error = rig.connect(address).read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_spare_socket_waits_for_a_full_backlog() {
    if !spares_are_possible() {
        return;
    }
    let mut rig = Rig::new();
    let (listener, address) = server_for_one();
    until_spares_are_used(&mut rig, &listener);
    by_a_spare(|| {
        let _fills_it = TcpStream::connect(address).unwrap();
        let mut client = rig.connect(address);
        client.write_all(b"hello").unwrap();
        listener.accept().unwrap();
        let (mut served, from) = listener.accept().unwrap();
        let mut got = [0; 5];
        served.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        from == client.local_addr().unwrap()
    });
}

#[test]
fn a_connect_that_takes_too_long_is_refused() {
    if !spares_are_possible() {
        return;
    }
    // The client's side does not give up first: its time starts earlier.
    let impatient = Timeouts { open_ms: 100, ..Timeouts::default() };
    let mut rig = Rig::of([End::start("a", Timeouts::default()), End::start("b", impatient)]);
    let (listener, address) = server_for_one();
    until_spares_are_used(&mut rig, &listener);
    let _fills_it = TcpStream::connect(address).unwrap();
    let error = rig.connect(address).read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn reset_arrives_as_reset() {
    let mut rig = Rig::new();
    let (listener, address) = server();
    let mut client = rig.connect(address);
    let (mut served, _) = listener.accept().unwrap();
    client.write_all(b"before").unwrap();
    let mut got = [0; 6];
    served.read_exact(&mut got).unwrap();
    socket2::SockRef::from(&served).set_linger(Some(Duration::ZERO)).unwrap();
    drop(served);
    let error = client.read(&mut got).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn refused_connect_is_a_reset() {
    let mut rig = Rig::new();
    let (listener, address) = server();
    drop(listener);
    let mut client = rig.connect(address);
    let error = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn unknown_destination_stays_with_the_sidecar() {
    let mut rig = Rig::new();
    let _client = rig.hand_over("127.0.0.9:80".parse().unwrap());
    let (answer, socket) = receive(&mut rig.client_sidecar).unwrap();
    assert!(matches!(answer, ToSidecar::Passthrough { id: 1, .. }), "{answer:?}");
    assert!(socket.is_none());
}

#[test]
fn mesh_refusal_gives_the_connection_back_with_its_bytes() {
    let mut rig = Rig::new();
    // Takes the pod away from the far node alone.
    let file = DirectoryFile {
        nodes: vec![NodeEntry { name: "b".into(), address: "127.0.0.1:1".parse().unwrap() }],
        ..DirectoryFile::default()
    };
    let (client, accepted) = connected();
    (&client).write_all(b"early").unwrap();
    rig.b.directory.store(Arc::new(Snapshot::build(&file, "b", 1).unwrap()));
    let open = ToNode::Open {
        id: 7,
        orig_dst: SocketAddr::from((SERVER_POD, 9)),
        src: client.local_addr().unwrap(),
    };
    rig.client_sidecar.send(&open, Some(accepted.as_fd())).unwrap();
    drop(accepted);
    assert_eq!(receive(&mut rig.client_sidecar).unwrap().0, ToSidecar::Taken { id: 7 });
    let (answer, socket) = receive(&mut rig.client_sidecar).unwrap();
    let ToSidecar::Passthrough { id: 7, early, .. } = answer else { panic!("{answer:?}") };
    let mut returned = TcpStream::from(socket.unwrap());
    // What was read comes in the message, what was not is still in the socket.
    let mut rest = vec![0; 5 - early.len()];
    returned.read_exact(&mut rest).unwrap();
    assert_eq!([early, rest].concat(), b"early");
}

#[test]
fn lane_survives_its_link() {
    let mut rig = Rig::new();
    let cutter = rig.link();
    let (listener, address) = server();
    let mut client = rig.connect(address);
    let (mut served, _) = listener.accept().unwrap();
    let sent = pattern(3, 8 << 20);
    let upload = {
        let sent = sent.clone();
        spawn(move || client.write_all(&sent).unwrap())
    };
    let mut got = vec![0; 1 << 20];
    served.read_exact(&mut got).unwrap();
    cutter.shutdown(Shutdown::Both).unwrap();
    loop {
        match rig.a.requests.blocking_recv().unwrap() {
            Request::LinkBroken { link_id, .. } if link_id == rig.links => break,
            _ => {}
        }
    }
    rig.link();
    served.read_to_end(&mut got).unwrap();
    assert!(got == sent);
    upload.join().unwrap();
}

#[test]
fn streams_are_reset_when_the_peer_is_gone() {
    let mut rig = Rig::new();
    let (listener, address) = server();
    let mut client = rig.connect(address);
    let (_served, _) = listener.accept().unwrap();
    assert!(rig.a.mailbox.push(Command::PeerGone { peer: "b".into() }).is_ok());
    let error = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// As when its daemon is rolled.
#[test]
fn a_peer_that_drained_and_went_is_asked_for_again() {
    let mut rig = Rig::new();
    let (_listener, address) = server();
    for command in
        [Command::PeerDraining { peer: "b".into() }, Command::PeerGone { peer: "b".into() }]
    {
        assert!(rig.a.mailbox.push(command).is_ok());
    }
    let _client = rig.hand_over(address);
    let deadline = Instant::now() + PATIENCE;
    while !matches!(rig.a.requests.try_recv(), Ok(Request::NeedLane { .. })) {
        assert!(Instant::now() < deadline, "no link was asked for");
        std::thread::yield_now();
    }
}

#[test]
fn an_idle_lane_gives_its_link_back_and_gets_another() {
    let mut rig = Rig::with(&Timeouts { lane_idle_ms: 500, ..Timeouts::default() });
    let (listener, address) = server();
    let client = rig.connect(address);
    let served = listener.accept().unwrap();
    drop((client, served));
    let need = Request::NeedLane { peer: "b".into(), lane: 0 };
    // Neither end misses the link: it is no failover.
    for (end, peer) in [(&mut rig.a, "b"), (&mut rig.b, "a")] {
        let idle = Request::LaneIdle { peer: peer.into(), lane: 0 };
        let mut told = end.requests.blocking_recv();
        if told.as_ref() == Some(&need) {
            // The first open crossed the first link.
            told = end.requests.blocking_recv();
        }
        assert_eq!(told, Some(idle));
    }
    let mut client = rig.hand_over(address);
    assert_eq!(rig.a.requests.blocking_recv(), Some(need));
    rig.link();
    client.write_all(b"again").unwrap();
    let mut got = [0; 5];
    listener.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"again");
}
