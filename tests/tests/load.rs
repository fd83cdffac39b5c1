//! Many streams, stalled streams, short streams: nobody starves, and nothing leaks.

use rdmesh_tests::process::Process;
use rdmesh_tests::sockets::pair;
use rdmesh_tests::{
    Lab, PATIENCE, Plan, Pod, alone, assert_tunnelled, direct, eventually, lab_with, two_pods,
};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes that `streams` echo-less writers get through to their readers in `time`.
fn rate(pairs: &[(TcpStream, TcpStream)], time: Duration) -> u64 {
    let (stop, sum) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (near, far) in pairs {
            let (stop, sum) = (&stop, &sum);
            scope.spawn(move || {
                let (mut near, chunk) = (near, [1; 32 << 10]);
                while !stop.load(Ordering::Relaxed) {
                    near.write_all(&chunk).expect("write");
                }
                // A mark that this stretch is over.
                near.write_all(&[2]).expect("write");
            });
            scope.spawn(move || {
                let (mut far, mut chunk) = (far, vec![0; 64 << 10]);
                loop {
                    let n = far.read(&mut chunk).expect("read");
                    assert!(n > 0, "an early end");
                    sum.fetch_add(n as u64, Ordering::Relaxed);
                    if chunk[n - 1] == 2 {
                        return;
                    }
                }
            });
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    sum.into_inner()
}

/// Fills a stream until nothing more goes in; returns how much did.
fn stall(near: &mut TcpStream) -> usize {
    near.set_write_timeout(Some(Duration::from_millis(700))).expect("time-out");
    let (chunk, mut sum) = (vec![3; 64 << 10], 0);
    loop {
        match near.write(&chunk) {
            Ok(n) => sum += n,
            Err(_) => return sum,
        }
    }
}

#[test]
fn a_stopped_reader_stops_nobody_else() {
    stop_one_reader(true);
}

/// Payload is in pipes there.
#[test]
fn a_stopped_reader_stops_nobody_else_in_plain_text() {
    stop_one_reader(false);
}

fn stop_one_reader(encrypt: bool) {
    let _alone = alone();
    const BUDGET: u64 = 256 << 20;
    let lab = lab_with(&Plan::new().pod("a", 1).pod("b", 2), |config| {
        config.node.encrypt = encrypt;
        config.node.limits.window_budget_bytes = BUDGET;
    });
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let pairs: Vec<_> = (0..64).map(|_| pair(a, b)).collect();
    let time = Duration::from_millis(1_500);
    rate(&pairs, time / 2); // windows grow
    let mut sum = 0;
    // Whoever else uses the machine moves these rates; a tunnel that lets one stream stop others
    // fails every attempt.
    let kept = (1..=4).any(|attempt| {
        let before = rate(&pairs, time);
        let (mut near, mut far) = pair(a, b);
        let stuck = stall(&mut near);
        let beside = rate(&pairs, time);
        eprintln!(
            "attempt {attempt}: {} MB before, {} MB beside a stream stopped after {} KiB",
            before / 1_000_000,
            beside / 1_000_000,
            stuck >> 10
        );
        if !direct() {
            for node in [1, 2] {
                let metrics = lab.node_metrics(node).expect("metrics");
                let granted = metrics.sum("rdmesh_window_granted_bytes", &[]);
                assert!(granted <= BUDGET as f64, "n{node} granted {granted}");
            }
        }
        go_on(&mut near, &mut far, stuck);
        sum += before + beside + stuck as u64;
        beside * 10 >= before * 8
    });
    assert!(kept, "64 streams lost more than a fifth of their rate in every attempt");
    assert_tunnelled(&lab, sum);
}

/// The stopped reader goes on and gets all of it.
fn go_on(near: &mut TcpStream, far: &mut TcpStream, stuck: usize) {
    near.shutdown(Shutdown::Write).expect("shutdown");
    let (mut chunk, mut sum) = (vec![0; 64 << 10], 0);
    loop {
        match far.read(&mut chunk).expect("read") {
            0 => break,
            n => {
                assert!(chunk[..n].iter().all(|byte| *byte == 3));
                sum += n;
            }
        }
    }
    assert_eq!(sum, stuck);
}

#[test]
fn many_stopped_readers_stay_within_the_budget() {
    stop_many_readers(true);
}

/// Payload is in pipes there.
#[test]
fn many_stopped_readers_stay_within_the_budget_in_plain_text() {
    stop_many_readers(false);
}

fn stop_many_readers(encrypt: bool) {
    let _alone = alone();
    const BUDGET: u64 = 32 << 20;
    let lab = lab_with(&Plan::new().pod("a", 1).pod("b", 2), |config| {
        config.node.encrypt = encrypt;
        config.node.limits.window_budget_bytes = BUDGET;
    });
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let mut pairs: Vec<_> = (0..100).map(|_| pair(a, b)).collect();
    std::thread::scope(|scope| {
        for (near, _) in &mut pairs {
            scope.spawn(|| stall(near));
        }
    });
    if !direct() {
        for node in lab.nodes() {
            let metrics = lab.node_metrics(node.number).expect("metrics");
            let granted = metrics.sum("rdmesh_window_granted_bytes", &[]);
            assert!(granted <= BUDGET as f64, "{} granted {granted}", node.name);
            let slab = metrics.sum("rdmesh_slab_bytes", &[]);
            let rss = node.with_process(|process| process.rss_bytes()).expect("running") as f64;
            let allowed = slab + BUDGET as f64 + f64::from(64 << 20);
            assert!(rss <= allowed, "{} has {rss} bytes resident, {allowed} allowed", node.name);
        }
    }
    // One more, and it works.
    let (mut near, mut far) = pair(a, b);
    near.write_all(b"through").expect("write");
    far.read_exact(&mut [0; 7]).expect("read");
}

fn hold(lab: &Lab, pod: &Pod, port: u16) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hold"));
    command.arg(port.to_string());
    let mut process = lab.spawn(&pod.netns, &format!("hold-{port}"), command).expect("start hold");
    process.wait_listening(&pod.netns, port, PATIENCE).expect("hold listens");
    process
}

fn echo(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte]).expect("write");
    let mut got = [0];
    stream.read_exact(&mut got).expect("the echo");
    assert_eq!(got, [byte]);
}

#[test]
fn fifteen_thousand_idle_streams() {
    let _alone = alone();
    const WANTED: usize = 15_000;
    // This process, the holder and each node proxy have one descriptor per stream.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let count = WANTED.min(limit.saturating_sub(1_000));
    eprintln!("{count} idle streams (the limit on descriptors is {limit})");
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let _hold = hold(&lab, b, 7_000);
    let to = SocketAddr::new(b.ip(false), 7_000);
    let started = Instant::now();
    let mut streams: Vec<TcpStream> = a.run(|| {
        (0..count)
            .map(|number| {
                let stream = TcpStream::connect(to);
                let stream = stream.unwrap_or_else(|e| panic!("connect {number}: {e}"));
                stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
                stream
            })
            .collect()
    });
    eprintln!("opened in {:?}", started.elapsed());
    for (number, stream) in (0_usize..).zip(&mut streams) {
        echo(stream, u8::try_from(number % 251).expect("small"));
    }
    if !direct() {
        let dials = lab.sidecar_metrics(b).expect("metrics").show("rdmesh_sidecar_dials_total");
        eprintln!("deliveries: {dials}");
        for node in lab.nodes() {
            let active = lab.node_metrics(node.number).expect("metrics");
            let active = active.sum("rdmesh_streams_active", &[]);
            let rss = node.with_process(|process| process.rss_bytes()).expect("running");
            eprintln!("{}: {active} streams, {} KiB resident", node.name, rss >> 10);
            let metrics = lab.node_metrics(node.number).expect("metrics");
            eprintln!("passed through: {}", metrics.show("rdmesh_passthrough_total"));
            eprintln!("refused: {}", metrics.show("rdmesh_streams_total"));
            assert!(active >= count as f64, "{} has {active} streams", node.name);
            // What the process needs anyway is in it too: 1.5 KiB each is a bound with room.
            assert!(rss <= count as u64 * 1536 + (24 << 20), "{}: {rss} bytes", node.name);
            eventually(PATIENCE, "no idle stream holds a slab buffer", || {
                let metrics = lab.node_metrics(node.number).expect("metrics");
                let all = metrics.sum("rdmesh_slab_bytes", &[]);
                let held = all - metrics.sum("rdmesh_slab_bytes", &[("state", "free")]);
                // The link itself has some: not one for every tenth stream.
                held < (count / 10) as f64 * 4096.0
            });
        }
    }
    assert_tunnelled(&lab, count as u64);
}

/// What may not grow with connections that are over.
#[derive(Debug, PartialEq)]
struct Footprint {
    open_files: Vec<usize>,
    active: Vec<f64>,
    granted: Vec<f64>,
    slab_free: Vec<f64>,
}

fn footprint(lab: &Lab) -> Footprint {
    let metrics: Vec<_> =
        (1..=2).map(|node| lab.node_metrics(node).expect("metrics of a node proxy")).collect();
    let of = |name: &str, labels: &[(&str, &str)]| {
        metrics.iter().map(|m| m.sum(name, labels)).collect::<Vec<_>>()
    };
    let mut open_files = Vec::new();
    for node in lab.nodes() {
        open_files.push(node.with_process(|process| process.open_files()).expect("running"));
    }
    for pod in lab.pods() {
        open_files.push(pod.with_sidecar(|process| process.open_files()).expect("running"));
    }
    Footprint {
        open_files,
        active: of("rdmesh_streams_active", &[]),
        granted: of("rdmesh_window_granted_bytes", &[]),
        slab_free: of("rdmesh_slab_bytes", &[("state", "free")]),
    }
}

fn node_rss(lab: &Lab) -> Vec<u64> {
    let rss = |node: &rdmesh_proxy::demo::lab::Node| {
        node.with_process(|process| process.rss_bytes()).expect("running")
    };
    lab.nodes().iter().map(rss).collect()
}

/// That a node proxy keeps for a pod without streams.
const SPARE_SOCKETS: usize = 4;
/// Several ports, lest the client's ports in TIME_WAIT run out.
const CHURN_PORTS: u16 = 12;

fn churn(client: &Pod, server: &Pod, connections: u64) {
    const THREADS: u64 = 4;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                client.netns.enter().expect("enter the pod");
                for number in 0..connections / THREADS {
                    let port = u16::try_from((number + thread) % u64::from(CHURN_PORTS));
                    let port = 7_100 + port.expect("small");
                    let to = SocketAddr::new(server.ip(false), port);
                    let mut stream = TcpStream::connect(to)
                        .unwrap_or_else(|e| panic!("connection {number} of thread {thread}: {e}"));
                    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
                    echo(&mut stream, 7);
                }
            });
        }
    });
}

#[test]
fn a_hundred_thousand_short_connections_leave_nothing() {
    let _alone = alone();
    const CONNECTIONS: u64 = 100_000;
    let lab = two_pods();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    let _servers: Vec<_> = (0..CHURN_PORTS).map(|port| hold(&lab, b, 7_100 + port)).collect();
    // The first ones set up what stays: lanes, channels, pools.
    churn(a, b, 2_000);
    if direct() {
        churn(a, b, CONNECTIONS - 2_000);
        return;
    }
    let settled = |lab: &Lab| footprint(lab).active.iter().all(|active| *active == 0.0);
    eventually(PATIENCE, "the first connections end", || settled(&lab));
    assert_tunnelled(&lab, 2_000);
    let (before, rss_before) = (footprint(&lab), node_rss(&lab));
    let started = Instant::now();
    churn(a, b, CONNECTIONS - 2_000);
    eprintln!("{:.0} connections a second", 98_000.0 / started.elapsed().as_secs_f64());
    eventually(PATIENCE, "everything is as before", || {
        let mut now = footprint(&lab);
        // A scrape of a moment ago may still hold its descriptor, and a few sockets are made ahead
        // of time.
        for (now, before) in now.open_files.iter_mut().zip(&before.open_files) {
            if *now <= before + SPARE_SOCKETS {
                *now = *before;
            }
        }
        if now != before {
            eprintln!("before {before:?}\nnow    {now:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
        now == before
    });
    for (before, after) in rss_before.iter().zip(node_rss(&lab)) {
        assert!(after < before + (8 << 20), "resident: {before} bytes before, {after} after");
    }
    assert_tunnelled(&lab, CONNECTIONS);
}
