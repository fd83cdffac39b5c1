//! Strangers, liars and what they send: refused, and nobody else is disturbed.

use super::*;

#[tokio::test]
async fn another_ca_is_refused_by_both() {
    let (world, other) = (World::new(), World::new());
    let mut a = world.node("a").await;
    let mut b = other.node("b").await;
    world.list("b", b.peers.local_addr());
    other.list("a", a.peers.local_addr());
    a.need("b", 0).await;
    assert_eq!(a.unavailable().await, UnavailableReason::Handshake);
    b.until_rejected(RejectReason::Tls, 1).await;
    b.need("a", 0).await;
    assert_eq!(b.unavailable().await, UnavailableReason::Handshake);
    a.until_rejected(RejectReason::Tls, 1).await;
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused() {
    let world = World::new();
    let a = world.node("a").await;
    let files = world.ca.node(&world.dir.path, "x");
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(files.ca).expect("read");
    let ca = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).expect("pem");
    roots.add(ca).expect("CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    for alpn in [tls::ALPN_CONTROL, tls::ALPN_LINK] {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let link = alpn == tls::ALPN_LINK;
        let preamble = if link { Preamble::LinkTls } else { Preamble::Control };
        let mut stream = TcpStream::connect(a.peers.local_addr()).await.expect("connect");
        stream.write_all(&preamble.encode()).await.expect("write");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream =
            connector.connect(tls::server_name("a").expect("name"), stream).await.expect("1.3");
        assert!(stream.read_u8().await.is_err());
    }
    a.until_rejected(RejectReason::Tls, 2).await;
}

#[tokio::test]
async fn a_right_certificate_with_another_name_in_the_hello_is_refused() {
    let world = World::new();
    let a = world.node("a").await;
    world.list("b", a.peers.local_addr());
    // Signed by the right CA, for c; it says that it is b, or even a.
    for claimed in ["b", "a"] {
        let mut c = world.node_with("c", |_, own| own.node = claimed.into()).await;
        world.list("a", a.peers.local_addr());
        if claimed == "b" {
            c.need("a", 0).await;
            assert_eq!(c.unavailable().await, UnavailableReason::Handshake);
        } else {
            let connected = AtomicBool::new(false);
            let own = ControlHello { node: "a".into(), ..world.hello("c") };
            let dialer = world.dialer("c");
            let address = a.peers.local_addr();
            let error = dialer.control(address, "a", &own, &connected).await.err();
            assert!(error.expect("refused").text.contains("certificate is of another node"));
        }
    }
    a.until_rejected(RejectReason::Name, 2).await;
}

#[tokio::test]
async fn an_address_where_another_node_answers_is_no_peer() {
    let world = World::new();
    let (mut a, c) = (world.node("a").await, world.node("c").await);
    world.list("b", c.peers.local_addr());
    a.need("b", 0).await;
    assert_eq!(a.unavailable().await, UnavailableReason::Handshake);
    let error = a.until("b", |s| s.last_error.is_some()).await.last_error.expect("text");
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_node_that_the_directory_does_not_know_is_refused_and_told() {
    let world = World::new();
    let a = world.node("a").await;
    let dialer = world.dialer("stranger");
    let own = world.hello("stranger");
    let connected = AtomicBool::new(false);
    let error = dialer.control(a.peers.local_addr(), "a", &own, &connected).await.err();
    let text = error.expect("refused").text;
    assert!(text.contains("the directory of a has no node"), "{text}");
    a.until_rejected(RejectReason::Unknown, 1).await;
}

#[tokio::test]
async fn versions_with_nothing_in_common_are_refused_on_both_ends() {
    let world = World::new();
    let mut a = world.node("a").await;
    let mut b = world.node_with("b", |_, own| (own.version_min, own.version_max) = (7, 9)).await;
    a.need("b", 0).await;
    assert_eq!(a.unavailable().await, UnavailableReason::Version);
    let error = a.until("b", |s| s.last_error.is_some()).await.last_error.expect("text");
    assert!(error.contains("a speaks 1 to 1") && error.contains("b speaks 7 to 9"), "{error}");
    b.need("a", 0).await;
    assert_eq!(b.unavailable().await, UnavailableReason::Version);
    assert!(a.peers.rejections().count(RejectReason::Version) > 0);
}

#[tokio::test]
async fn garbage_is_closed_and_disturbs_nobody() {
    let world = World::new();
    let (mut a, mut b) = (world.node("a").await, world.node("b").await);
    let mut newer = Preamble::Control.encode();
    newer[6] = 99;
    let mut stray = Preamble::LinkTls.encode();
    stray[20] = 1;
    let garbage: [&[u8]; 6] =
        [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00", &[0; 40], &newer, &stray, b"RDMESX"];
    for bytes in garbage {
        let mut stream = TcpStream::connect(a.peers.local_addr()).await.expect("connect");
        stream.write_all(bytes).await.expect("write");
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed");
        assert!(ended.is_err() || rest.is_empty());
    }
    a.until_rejected(RejectReason::Garbage, 6).await;
    // Nothing or half a preamble, then the end: a port scan or a health check.
    drop(TcpStream::connect(a.peers.local_addr()).await.expect("connect"));
    let mut half = TcpStream::connect(a.peers.local_addr()).await.expect("connect");
    half.write_all(b"RDMESH\x01").await.expect("write");
    drop(half);
    a.until_rejected(RejectReason::Closed, 2).await;
    // A right preamble with no TLS behind it.
    let mut stream = TcpStream::connect(a.peers.local_addr()).await.expect("connect");
    stream.write_all(&Preamble::Control.encode()).await.expect("write");
    stream.write_all(&[b'x'; 100]).await.expect("write");
    a.until_rejected(RejectReason::Tls, 1).await;
    b.need("a", 0).await;
    let (mut at_b, mut at_a) = (b.link_up().await, a.link_up().await);
    check_link(&mut at_a, &mut at_b, true);
}

#[tokio::test]
async fn an_authenticated_peer_that_talks_nonsense_is_cut() {
    let world = World::new();
    let a = world.node("a").await;
    world.list("b", "127.0.0.1:1".parse().expect("address"));
    let dialer = world.dialer("b");
    let mut dialed = world.session(&dialer, &a, &world.hello("b")).await;
    dialed.control.stream.write_all(&u32::MAX.to_le_bytes()).await.expect("write");
    let status = a.until("b", |s| s.session != "up" && s.incarnation != 0).await;
    assert!(status.last_error.expect("text").contains("at most 16384"));
}

#[tokio::test]
async fn the_slow_and_the_many_are_turned_away() {
    let world = World::new();
    let a = world
        .node_with("a", |o, _| {
            o.timing.handshake = ms(300);
            o.pending_handshakes_max = 2;
        })
        .await;
    // One address may have half of the slots: one of two.
    let mut slow = TcpStream::connect(a.peers.local_addr()).await.expect("connect");
    slow.write_all(b"RDMESH").await.expect("write");
    let mut second = TcpStream::connect(a.peers.local_addr()).await.expect("connect");
    assert!(matches!(second.read(&mut [0]).await, Ok(0) | Err(_)));
    a.until_rejected(RejectReason::TooMany, 1).await;
    assert!(matches!(slow.read(&mut [0]).await, Ok(0) | Err(_)));
    a.until_rejected(RejectReason::Slow, 1).await;
}

async fn token(dialed: &mut Dialed, lane: u16) -> Token {
    let control = &mut dialed.control;
    let want = ControlMessage::WantLane { lane };
    wire::write_message(&mut control.stream, &want).await.expect("write");
    loop {
        let message = control.reader.read_from(&mut control.stream);
        match timeout(PATIENCE, message).await.expect("in time").expect("message") {
            ControlMessage::LaneToken { token, .. } => return token,
            ControlMessage::Ping => {}
            other => panic!("no token but {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_token_is_good_once_for_its_session_its_node_and_its_kind() {
    let world = World::new();
    let mut a = world.node_with("a", |o, _| o.encrypt = false).await;
    world.list("b", "127.0.0.1:1".parse().expect("address"));
    let address = a.peers.local_addr();
    let (b, c) = (world.dialer("b"), world.dialer("c"));
    // b wants encryption although a does not.
    let mut dialed = world.session(&b, &a, &world.hello("b")).await;

    let once = token(&mut dialed, 0).await;
    let mut link = b.link(address, "a", once, true).await.expect("link");
    let mut up = a.link_up().await;
    check_bytes(&mut up.link, &mut link);
    assert!(b.link(address, "a", once, true).await.is_err());
    a.until_rejected(RejectReason::Token, 1).await;

    let stolen = token(&mut dialed, 0).await;
    assert!(c.link(address, "a", stolen, true).await.is_err());
    a.until_rejected(RejectReason::Name, 1).await;

    let plain = token(&mut dialed, 1).await;
    assert!(b.link(address, "a", plain, false).await.is_err());
    a.until_rejected(RejectReason::Plain, 1).await;

    let guessed = [7; wire::TOKEN_BYTES];
    assert!(b.link(address, "a", guessed, false).await.is_err());
    a.until_rejected(RejectReason::Token, 2).await;
}

#[tokio::test]
async fn a_token_ends_with_its_session() {
    let world = World::new();
    let a = world.node("a").await;
    world.list("b", "127.0.0.1:1".parse().expect("address"));
    let b = world.dialer("b");
    let mut dialed = world.session(&b, &a, &world.hello("b")).await;
    let late = token(&mut dialed, 0).await;
    drop(dialed);
    a.until("b", |s| s.session != "up").await;
    assert!(b.link(a.peers.local_addr(), "a", late, true).await.is_err());
    a.until_rejected(RejectReason::Token, 1).await;
}

#[tokio::test]
async fn where_encryption_is_wanted_plain_links_are_not_even_looked_at() {
    let world = World::new();
    let a = world.node("a").await;
    let b = world.dialer("b");
    assert!(b.link(a.peers.local_addr(), "a", [1; 32], false).await.is_err());
    a.until_rejected(RejectReason::Plain, 1).await;
}

#[tokio::test]
async fn a_port_in_use_or_missing_files_end_the_start_with_a_clear_line() {
    let world = World::new();
    let a = world.node("a").await;
    let start = |options: Options| {
        let mail = vec![Mailbox::new(1).expect("eventfd")];
        let (_, inbox) = mpsc::channel(1);
        Peers::start(options, Arc::new(|_| None), mail, inbox)
    };
    let mut options = world.options("b");
    options.listen = a.peers.local_addr();
    let text = start(options).await.err().expect("refused").to_string();
    assert!(text.contains("node.listen") && text.contains("in use"), "{text}");
    let mut options = world.options("b");
    options.tls.ca = world.dir.path.join("none.pem");
    let text = start(options).await.err().expect("refused").to_string();
    assert!(text.contains("none.pem") && text.contains("rdmesh-proxy certs"), "{text}");
}
