//! Every byte arrives, once and in its place, whatever the sizes of writes and payloads.

use rdmesh_tests::sockets::pair_of;
use rdmesh_tests::{Lab, Pattern, Plan, assert_tunnelled, direct, lab, pair, two_pods};
use rustix::fs::{FlockOperation, flock};
use std::net::{Shutdown, TcpStream};

/// Sends `up` and `down` at once, each in writes of `step` bytes, and checks both.
fn exchange(client: &mut TcpStream, server: &mut TcpStream, up: u64, down: u64, step: usize) {
    let (to_server, to_client) = (Pattern::new(up ^ 0x5EED), Pattern::new(down ^ 0xBEEF));
    let send = |pattern: Pattern, stream: &TcpStream, length: u64| {
        let mut stream = stream.try_clone().expect("clone");
        pattern.write_to(&mut stream, length, step).expect("write");
        stream.shutdown(Shutdown::Write).expect("shutdown");
    };
    let (client_writes, server_writes) = (&*client, &*server);
    std::thread::scope(|scope| {
        scope.spawn(|| send(to_server, client_writes, up));
        scope.spawn(|| send(to_client, server_writes, down));
        let at_server = scope.spawn(|| {
            let mut stream = server_writes;
            to_server.check_to_end(&mut stream).expect("read")
        });
        let mut stream = client_writes;
        assert_eq!(to_client.check_to_end(&mut stream).expect("read"), down, "bytes down");
        assert_eq!(at_server.join().expect("the server's reader"), up, "bytes up");
    });
}

fn exchange_in(lab: &Lab, up: u64, down: u64, step: usize) {
    let (mut client, mut server) = pair(lab.pod("a"), lab.pod("b"));
    exchange(&mut client, &mut server, up, down, step);
}

#[test]
fn payloads_of_all_sizes_both_ways() {
    let lab = two_pods();
    let mut sum = 0;
    for size in [0, 1, 2, 1_447, 1_448, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 1 << 20] {
        exchange_in(&lab, size, size, 64 << 10);
        exchange_in(&lab, size, 0, 64 << 10);
        exchange_in(&lab, 0, size, 64 << 10);
        sum += 4 * size;
    }
    assert_tunnelled(&lab, sum);
}

#[test]
fn payloads_of_all_sizes_over_ipv6() {
    let lab = two_pods();
    for size in [0, 1, 1_447, 65_536, 4 << 20] {
        let (mut client, mut server) = pair_of(lab.pod("a"), lab.pod("b"), true);
        exchange(&mut client, &mut server, size, size, 64 << 10);
    }
    assert_tunnelled(&lab, 8 << 20);
}

#[test]
fn writes_of_one_byte() {
    let lab = two_pods();
    let (mut client, mut server) = pair(lab.pod("a"), lab.pod("b"));
    client.set_nodelay(true).expect("nodelay");
    server.set_nodelay(true).expect("nodelay");
    exchange(&mut client, &mut server, 50_000, 50_000, 1);
    assert_tunnelled(&lab, 100_000);
}

#[test]
fn writes_of_four_mebibytes() {
    let lab = two_pods();
    exchange_in(&lab, 64 << 20, 64 << 20, 4 << 20);
    assert_tunnelled(&lab, 128 << 20);
}

#[test]
fn one_gibibyte_both_ways_at_once() {
    let lab = two_pods();
    exchange_in(&lab, 1 << 30, 1 << 30, 256 << 10);
    assert_tunnelled(&lab, 2 << 30);
}

#[test]
fn pods_of_one_node() {
    let lab = lab(&Plan::new().pod("a", 1).pod("b", 1));
    for size in [0, 1, 1_447, 65_536, 32 << 20] {
        exchange_in(&lab, size, size, 64 << 10);
    }
}

#[test]
fn many_streams_at_once() {
    let lab = two_pods();
    let mut pairs: Vec<_> = (0..64).map(|_| pair(lab.pod("a"), lab.pod("b"))).collect();
    std::thread::scope(|scope| {
        for (number, (client, server)) in pairs.iter_mut().enumerate() {
            let size = (number as u64 + 1) * 37_003;
            scope.spawn(move || exchange(client, server, size, size / 2, 8_192));
        }
    });
    assert_tunnelled(&lab, 64 * 37_003);
}

/// The ways of working that a node proxy can be configured to.
fn variant(change: impl FnOnce(&mut rdmesh_tests::config::Node)) -> Lab {
    let plan = Plan::new().pod("a", 1).pod("b", 2);
    let lab = rdmesh_tests::lab_with(&plan, |config| change(&mut config.node));
    for size in [0, 1, 1_447, 65_536, 64 << 20] {
        exchange_in(&lab, size, size, 64 << 10);
    }
    let mut pairs: Vec<_> = (0..16).map(|_| pair(lab.pod("a"), lab.pod("b"))).collect();
    std::thread::scope(|scope| {
        for (client, server) in &mut pairs {
            scope.spawn(move || exchange(client, server, 1 << 20, 1 << 20, 10_000));
        }
    });
    assert_tunnelled(&lab, 160 << 20);
    lab
}

#[test]
fn in_plain_text() {
    let lab = variant(|node| node.encrypt = false);
    if direct() {
        return;
    }
    // Of bulk, which is most of what `variant` sends, nearly nothing is copied.
    for number in [1, 2] {
        let metrics = lab.node_metrics(number).expect("metrics");
        for direction in ["sent", "received"] {
            let sum = |name| metrics.sum(name, &[("direction", direction)]);
            let of_all = sum("rdmesh_stream_moved_bytes_total") / sum("rdmesh_stream_bytes_total");
            assert!(of_all > 0.5, "n{number} moved {of_all} of the bytes {direction}");
        }
    }
}

/// The machine's setting of io_uring, as it was when this is dropped. Whoever else runs this test
/// waits meanwhile.
struct IoUring {
    before: String,
    _lock: std::fs::File,
}

impl IoUring {
    const PATH: &str = "/proc/sys/kernel/io_uring_disabled";

    fn hold() -> Self {
        let lock = std::fs::File::open(Self::PATH).expect("open the setting");
        flock(&lock, FlockOperation::LockExclusive).expect("lock the setting");
        let before = std::fs::read_to_string(Self::PATH).expect("read the setting");
        Self { before, _lock: lock }
    }

    fn forbid(&self) {
        std::fs::write(Self::PATH, "2").expect("change the setting");
    }
}

impl Drop for IoUring {
    fn drop(&mut self) {
        std::fs::write(Self::PATH, &self.before).expect("put the setting back");
    }
}

#[test]
fn with_io_uring_and_where_the_host_refuses_it() {
    let uring = |node: &mut rdmesh_tests::config::Node| node.io = rdmesh_tests::config::Io::Uring;
    let log = |lab: &Lab| lab.node(1).with_process(|process| process.log()).expect("a log");
    if direct() {
        return drop(variant(uring));
    }
    let refused = "io_uring is refused";
    let setting = IoUring::hold();
    let lab = variant(uring);
    assert!(log(&lab).contains("I/O by io_uring"), "{}", log(&lab));
    setting.forbid();
    let lab = variant(uring);
    assert!(log(&lab).contains(refused), "{}", log(&lab));
}

#[test]
fn with_readiness_instead_of_io_uring() {
    variant(|node| node.io = rdmesh_tests::config::Io::Readiness);
}

#[test]
fn without_polling() {
    variant(|node| node.polling = rdmesh_tests::config::Polling::Off);
}

#[test]
fn with_two_workers() {
    variant(|node| node.workers = 2);
}

#[test]
fn with_small_windows_and_few_credits() {
    variant(|node| {
        node.limits.window_initial_bytes = 4 << 10;
        node.limits.window_max_bytes = 64 << 10;
        node.limits.lane_credits = 4;
        node.limits.message_bytes_max = 8 << 10;
    });
}
