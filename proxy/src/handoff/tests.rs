use super::*;
use proptest::prelude::*;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;

fn pair() -> (Channel, Channel) {
    let (a, b) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (Channel::new(a).unwrap(), Channel::new(b).unwrap())
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// A pipe end whose other end tells when every copy of it is closed.
fn watched_fd() -> (OwnedFd, OwnedFd) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    (write, read)
}

fn assert_all_copies_closed(read: OwnedFd) {
    let mut left = Vec::new();
    std::fs::File::from(read).read_to_end(&mut left).unwrap();
    assert!(left.is_empty());
}

fn send_raw(channel: &Channel, bytes: &[u8], fds: &[&OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    sendmsg(channel, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
}

fn encoded(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

fn open(id: u32) -> ToNode {
    let address = "10.42.0.5:8080".parse().unwrap();
    ToNode::Open { id, orig_dst: address, src: "10.42.0.9:40000".parse().unwrap() }
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        (any::<[u8; 16]>(), any::<u16>(), any::<u32>()).prop_map(|(ip, port, scope)| {
            SocketAddr::from(std::net::SocketAddrV6::new(ip.into(), port, 0, scope))
        }),
    ]
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn to_node() -> impl Strategy<Value = ToNode> {
    let id = any::<u32>();
    prop_oneof![
        (any::<u16>(), id).prop_map(|(version, worker)| ToNode::Hello { version, worker }),
        (id, address(), address()).prop_map(|(id, orig_dst, src)| ToNode::Open {
            id,
            orig_dst,
            src
        }),
        id.prop_map(|id| ToNode::Dialed { id }),
        (id, any::<u8>())
            .prop_map(|(id, code)| ToNode::DialFailed { id, reason: DialFailure::from_code(code) }),
        (family(), any::<(u16, u16)>()).prop_map(|(family, ports)| ToNode::Spare { family, ports }),
        Just(ToNode::Listener),
    ]
}

fn to_sidecar() -> impl Strategy<Value = ToSidecar> {
    let id = any::<u32>();
    let early = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        Just(vec![7; EARLY_BYTES_MAX - 1]),
        Just(vec![7; EARLY_BYTES_MAX]),
    ];
    prop_oneof![
        (any::<u16>(), id, "[a-z0-9.-]{0,253}")
            .prop_map(|(version, workers, node)| { ToSidecar::Welcome { version, workers, node } }),
        (any::<u16>(), any::<u8>()).prop_map(|(version, code)| ToSidecar::Rejected {
            version,
            reason: RejectReason::from_code(code)
        }),
        id.prop_map(|id| ToSidecar::Taken { id }),
        (id, any::<u8>(), early).prop_map(|(id, code, early)| ToSidecar::Passthrough {
            id,
            reason: PassthroughReason::from_code(code),
            early
        }),
        id.prop_map(|id| ToSidecar::Deny { id }),
        (id, address(), address(), any::<u32>()).prop_map(|(id, src, dst, timeout_ms)| {
            ToSidecar::Dial { id, src, dst, timeout_ms }
        }),
        (family(), id).prop_map(|(family, count)| ToSidecar::Spares { family, count }),
        Just(ToSidecar::Drain),
        Just(ToSidecar::Accept),
        Just(ToSidecar::Accepted { reason: None }),
        (1..=u8::MAX).prop_map(|code| ToSidecar::Accepted {
            reason: Some(PassthroughReason::from_code(code))
        }),
    ]
}

proptest! {
    #[test]
    fn round_trip_to_node(message in to_node()) {
        let bytes = encoded(&message);
        prop_assert!(bytes.len() <= ToNode::BYTES_MAX);
        prop_assert_eq!(ToNode::decode(&bytes), Ok(message));
    }

    #[test]
    fn round_trip_to_sidecar(message in to_sidecar()) {
        let bytes = encoded(&message);
        prop_assert!(bytes.len() <= ToSidecar::BYTES_MAX);
        prop_assert_eq!(ToSidecar::decode(&bytes), Ok(message));
    }

    #[test]
    fn cut_and_padded_messages_are_refused(message in to_node(), cut in any::<prop::sample::Index>()) {
        let mut bytes = encoded(&message);
        prop_assert!(ToNode::decode(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert!(ToNode::decode(&bytes).is_err());
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        fuzz_decode(&bytes);
    }

    #[test]
    fn nearly_right_messages_never_panic(
        message in to_sidecar(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encoded(&message);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fuzz_decode(&bytes);
    }
}

#[test]
fn other_versions_are_told_apart() {
    let mut bytes = encoded(&open(1));
    bytes[2] = 9;
    assert_eq!(ToNode::decode(&bytes), Err(WireError::Version { theirs: 9 }));
    let hello = ToNode::Hello { version: 9, worker: 3 };
    assert_eq!(ToNode::decode(&encoded(&hello)), Ok(hello));
}

#[test]
fn socket_travels_with_its_message() {
    let (mut sidecar, mut node) = pair();
    let (mut client, accepted) = tcp_pair();
    assert!(node.recv::<ToNode>().unwrap().is_none());
    sidecar.send(&open(7), Some(accepted.as_fd())).unwrap();
    drop(accepted);
    let (message, fd) = node.recv::<ToNode>().unwrap().unwrap();
    assert_eq!(message, open(7));
    let fd = fd.unwrap();
    let ends = check_stream_socket(&fd).unwrap();
    assert_eq!(ends.peer, client.local_addr().unwrap());
    assert_eq!(ends.local, client.peer_addr().unwrap());
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    TcpStream::from(fd).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn early_bytes_of_full_length_travel() {
    let (mut sidecar, mut node) = pair();
    let (_client, accepted) = tcp_pair();
    let early: Vec<u8> = (0..EARLY_BYTES_MAX).map(|i| (i % 251) as u8).collect();
    let message = ToSidecar::Passthrough { id: 1, reason: PassthroughReason::NoPod, early };
    node.send(&message, Some(accepted.as_fd())).unwrap();
    let (received, fd) = sidecar.recv::<ToSidecar>().unwrap().unwrap();
    assert_eq!(received, message);
    assert!(fd.is_some());

    let early = vec![0; EARLY_BYTES_MAX + 1];
    let message = ToSidecar::Passthrough { id: 1, reason: PassthroughReason::NoPod, early };
    assert!(node.send(&message, Some(accepted.as_fd())).is_err());
}

#[test]
fn too_many_descriptors_are_refused_and_closed() {
    for count in [2, 3, 16] {
        let (sidecar, mut node) = pair();
        let (write, read) = watched_fd();
        send_raw(&sidecar, &encoded(&open(1)), &vec![&write; count]);
        drop(write);
        assert!(matches!(node.recv::<ToNode>(), Err(HandoffError::TooManyFds)), "{count}");
        assert_all_copies_closed(read);
    }
}

#[test]
fn descriptor_where_none_belongs_is_refused_and_closed() {
    let (sidecar, mut node) = pair();
    let (write, read) = watched_fd();
    let message = ToNode::DialFailed { id: 1, reason: DialFailure::Refused };
    send_raw(&sidecar, &encoded(&message), &[&write]);
    drop(write);
    assert!(matches!(node.recv::<ToNode>(), Err(HandoffError::UnexpectedFd)));
    assert_all_copies_closed(read);
}

#[test]
fn missing_descriptors_and_garbage_are_refused() {
    let (sidecar, mut node) = pair();
    send_raw(&sidecar, &encoded(&open(1)), &[]);
    assert!(matches!(node.recv::<ToNode>(), Err(HandoffError::MissingFd)));

    let (write, read) = watched_fd();
    send_raw(&sidecar, &[0xff; 40], &[&write]);
    drop(write);
    assert!(matches!(node.recv::<ToNode>(), Err(HandoffError::Wire(WireError::Kind(0xff)))));
    assert_all_copies_closed(read);

    send_raw(&sidecar, &[HELLO_KIND; ToNode::BYTES_MAX + 40], &[]);
    let error = node.recv::<ToNode>().unwrap_err();
    assert!(matches!(error, HandoffError::Wire(WireError::Length { .. })), "{error}");

    // The channel itself is still in step.
    send_raw(&sidecar, &encoded(&ToNode::Hello { version: 1, worker: 0 }), &[]);
    assert!(node.recv::<ToNode>().unwrap().is_some());
}
const HELLO_KIND: u8 = 1;

#[test]
fn queue_keeps_order_and_descriptors() {
    let (mut sidecar, mut node) = pair();
    let (_client, accepted) = tcp_pair();
    let mut sent = 0;
    while !sidecar.wants_write() || sent < 600 {
        sidecar.send(&open(sent), Some(accepted.as_fd())).unwrap();
        sent += 1;
    }
    drop(accepted);
    let mut received = 0;
    while received < sent {
        sidecar.flush().unwrap();
        while let Some((message, fd)) = node.recv::<ToNode>().unwrap() {
            assert_eq!(message, open(received));
            check_stream_socket(fd.unwrap()).unwrap();
            received += 1;
        }
    }
    assert!(!sidecar.wants_write());
}

#[test]
fn full_queue_refuses_and_drains() {
    let (mut node, mut sidecar) = pair();
    let mut sent = 0_u32;
    while node.send(&ToSidecar::Taken { id: sent }, None).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "no bound");
    }
    let full = node.send(&ToSidecar::Taken { id: sent }, None).unwrap_err();
    assert!(matches!(full, HandoffError::Full) && !full.is_fatal());
    let mut received = 0;
    loop {
        while let Some((message, _)) = sidecar.recv::<ToSidecar>().unwrap() {
            assert_eq!(message, ToSidecar::Taken { id: received });
            received += 1;
        }
        if received == sent {
            break;
        }
        node.flush().unwrap();
    }
    assert!(node.flush().unwrap());
}

#[test]
fn closed_channel_gives_what_had_arrived_first() {
    let (mut node, mut sidecar) = pair();
    node.send(&ToSidecar::Taken { id: 5 }, None).unwrap();
    drop(node);
    assert_eq!(sidecar.recv::<ToSidecar>().unwrap().unwrap().0, ToSidecar::Taken { id: 5 });
    assert!(matches!(sidecar.recv::<ToSidecar>(), Err(HandoffError::Closed)));
    let error = sidecar.send(&ToNode::Dialed { id: 1 }, None).unwrap_err();
    assert!(matches!(error, HandoffError::MissingFd));
    let hello = ToNode::Hello { version: VERSION, worker: 0 };
    assert!(matches!(sidecar.send(&hello, None), Err(HandoffError::Closed)));
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rdmesh-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn listener_replaces_a_stale_socket_but_no_living_one() {
    let directory = Scratch::new("listen");
    let path = directory.0.join("node.sock");
    assert_eq!(connect(&path).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    let first = listen(&path).unwrap();
    assert!(accept(&first).unwrap().is_none());
    assert_eq!(listen(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    assert_eq!(connect(&path).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let second = listen(&path).unwrap();
    let mut sidecar = Channel::new(connect(&path).unwrap()).unwrap();
    let mut node = Channel::new(accept(&second).unwrap().unwrap()).unwrap();
    sidecar.send(&ToNode::Hello { version: VERSION, worker: 0 }, None).unwrap();
    assert!(node.recv::<ToNode>().unwrap().is_some());

    std::fs::write(directory.0.join("file"), b"").unwrap();
    let error = listen(directory.0.join("file")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(listen(directory.0.join("x".repeat(120))).unwrap_err().to_string().contains("108"));
}

#[test]
fn only_connected_tcp_sockets_pass_the_check() {
    let refused = |fd: &dyn AsFd| match check_stream_socket(fd.as_fd()) {
        Err(HandoffError::NotAStream(why)) => why,
        other => panic!("{other:?}"),
    };
    let (_client, accepted) = tcp_pair();
    check_stream_socket(&accepted).unwrap();
    assert_eq!(refused(&TcpListener::bind("127.0.0.1:0").unwrap()), "not connected");
    assert_eq!(refused(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()), "no stream socket");
    assert_eq!(refused(&watched_fd().0), "no socket");
    assert_eq!(refused(&pair().0), "no stream socket");
    let unix = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(refused(&unix.0), "protocol is not TCP");
    let fresh = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    assert_eq!(refused(&fresh), "not connected");
}

#[test]
fn mapped_addresses_become_plain() {
    let dual = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    dual.set_only_v6(false).unwrap();
    dual.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    dual.listen(1).unwrap();
    let port = dual.local_addr().unwrap().as_socket().unwrap().port();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let ends = check_stream_socket(dual.accept().unwrap().0).unwrap();
    assert_eq!(ends.peer, client.local_addr().unwrap());
    assert_eq!(ends.local, client.peer_addr().unwrap());
}
