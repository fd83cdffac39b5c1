//! ClusterIPs from the directory: no interface has them, the mesh alone knows where they lead.

use rdmesh_tests::config::{DirectoryFile, Endpoint, ServiceEntry, ServicePort};
use rdmesh_tests::sockets::{accept, assert_refused, unmapped};
use rdmesh_tests::{
    Lab, PATIENCE, Plan, Pod, PodSockets, eventually, lab, needs_mesh, scrape::Metrics, topology,
};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PORT: u16 = 80;
const APP: u16 = 8080;

fn vip() -> SocketAddr {
    SocketAddr::new(topology::service_v4(1).into(), PORT)
}

fn service(endpoints: &[(IpAddr, bool)]) -> ServiceEntry {
    let endpoint = |(ip, ready): &(IpAddr, bool)| Endpoint {
        address: SocketAddr::new(*ip, APP),
        ready: *ready,
    };
    ServiceEntry {
        name: "default/shop".into(),
        addresses: vec![vip().ip(), topology::service_v6(1).into()],
        ports: vec![ServicePort {
            port: PORT,
            endpoints: endpoints.iter().map(endpoint).collect(),
        }],
    }
}

fn publish(lab: &Lab, endpoints: &[(IpAddr, bool)]) {
    lab.change_directory(|directory: &mut DirectoryFile| {
        directory.services = vec![service(endpoints)];
    })
    .expect("write the directory file");
}

fn reloads(lab: &Lab, outcome: &str) -> f64 {
    let count =
        |metrics: Metrics| metrics.sum("rdmesh_directory_reloads_total", &[("outcome", outcome)]);
    (1..=2).map(|node| count(lab.node_metrics(node).expect("metrics"))).fold(f64::MAX, f64::min)
}

/// Publishes and waits until both node proxies have it.
fn publish_and_wait(lab: &Lab, endpoints: &[(IpAddr, bool)]) {
    let before = reloads(lab, "applied");
    publish(lab, endpoints);
    eventually(PATIENCE, "the directory is reloaded", || reloads(lab, "applied") > before);
}

/// An application that answers every connection with its name.
struct Named {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Named {
    fn serve(pod: &Pod) -> Self {
        let any = SocketAddr::new(IpAddr::from([0_u16; 8]), APP);
        let listener = pod.listen_on(any, 128).expect("listen");
        listener.set_nonblocking(true).expect("non-blocking");
        let stop = Arc::new(AtomicBool::new(false));
        let (name, flag) = (pod.name.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let _ = stream.write_all(name.as_bytes());
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn who_answers(client: &Pod, to: SocketAddr) -> String {
    let mut stream = client.dial(to).expect("connect to the service");
    let mut name = String::new();
    stream.read_to_string(&mut name).expect("the application's name");
    name
}

fn shop() -> Lab {
    lab(&Plan::new().pod("a", 1).pod("b", 2).pod("c", 2).pod("d", 1))
}

#[test]
fn spreads_over_the_ready_endpoints_only() {
    if needs_mesh("spreads_over_the_ready_endpoints_only") {
        return;
    }
    let lab = shop();
    let (a, b, c, d) = (lab.pod("a"), lab.pod("b"), lab.pod("c"), lab.pod("d"));
    publish_and_wait(&lab, &[(b.v4.into(), true), (c.v4.into(), false), (d.v4.into(), true)]);
    let _servers = [Named::serve(b), Named::serve(c), Named::serve(d)];
    let answers: Vec<String> = (0..60).map(|_| who_answers(a, vip())).collect();
    let count = |name: &str| answers.iter().filter(|answer| *answer == name).count();
    assert_eq!(count("c"), 0, "c is not ready");
    assert!(count("b") >= 12 && count("d") >= 12, "b {} d {}", count("b"), count("d"));
}

#[test]
fn addresses_are_those_that_were_asked_for() {
    if needs_mesh("addresses_are_those_that_were_asked_for") {
        return;
    }
    let lab = shop();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    for ipv6 in [false, true] {
        publish_and_wait(&lab, &[(b.ip(ipv6), true)]);
        let listener: TcpListener =
            b.listen_on(SocketAddr::new(b.ip(ipv6), APP), 16).expect("listen");
        let address = if ipv6 { topology::service_v6(1).into() } else { vip().ip() };
        let asked = SocketAddr::new(address, PORT);
        let client = a.dial(asked).expect("connect");
        let (server, from) = accept(&listener).expect("accept");
        assert_eq!(client.peer_addr().expect("getpeername"), asked);
        assert_eq!(from, client.local_addr().expect("getsockname"), "the client's own address");
        let own = SocketAddr::new(b.ip(ipv6), APP);
        assert_eq!(unmapped(server.local_addr().expect("getsockname")), own);
    }
}

#[test]
fn follows_a_change_of_the_file() {
    if needs_mesh("follows_a_change_of_the_file") {
        return;
    }
    let lab = shop();
    let (a, b, c) = (lab.pod("a"), lab.pod("b"), lab.pod("c"));
    publish_and_wait(&lab, &[(b.v4.into(), true)]);
    let _servers = [Named::serve(b), Named::serve(c)];
    for _ in 0..5 {
        assert_eq!(who_answers(a, vip()), "b");
    }
    publish_and_wait(&lab, &[(c.v4.into(), true)]);
    for _ in 0..5 {
        assert_eq!(who_answers(a, vip()), "c");
    }
}

#[test]
fn a_broken_file_changes_nothing() {
    if needs_mesh("a_broken_file_changes_nothing") {
        return;
    }
    let lab = shop();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    publish_and_wait(&lab, &[(b.v4.into(), true)]);
    let _server = Named::serve(b);
    assert_eq!(who_answers(a, vip()), "b");
    let good = std::fs::read(lab.directory_path()).expect("read the directory file");
    for broken in [&good[..good.len() / 2], b"nodes: 7\n", b"{{{", b"services: [{nme: x}]\n"] {
        let before = reloads(&lab, "invalid");
        std::fs::write(lab.directory_path(), broken).expect("break the directory file");
        eventually(PATIENCE, "the fault is counted", || reloads(&lab, "invalid") > before);
        assert_eq!(who_answers(a, vip()), "b");
    }
    publish_and_wait(&lab, &[(b.v4.into(), true), (lab.pod("c").v4.into(), false)]);
    assert_eq!(who_answers(a, vip()), "b");
}

#[test]
fn ones_own_service() {
    if needs_mesh("ones_own_service") {
        return;
    }
    let lab = shop();
    let a = lab.pod("a");
    publish_and_wait(&lab, &[(a.v4.into(), true)]);
    let listener = a.listen_on(SocketAddr::new(a.v4.into(), APP), 16).expect("listen");
    for _ in 0..3 {
        let mut client = a.dial(vip()).expect("connect to one's own service");
        let (mut server, from) = accept(&listener).expect("accept");
        assert_eq!(from.ip(), a.ip(false));
        client.write_all(b"to myself").expect("write");
        let mut got = [0; 9];
        server.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"to myself");
    }
}

#[test]
fn an_endpoint_on_the_same_node() {
    if needs_mesh("an_endpoint_on_the_same_node") {
        return;
    }
    let lab = shop();
    let (a, d) = (lab.pod("a"), lab.pod("d"));
    publish_and_wait(&lab, &[(d.v4.into(), true)]);
    let _server = Named::serve(d);
    assert_eq!(who_answers(a, vip()), "d");
}

#[test]
fn no_ready_endpoint() {
    if needs_mesh("no_ready_endpoint") {
        return;
    }
    let lab = shop();
    let (a, b) = (lab.pod("a"), lab.pod("b"));
    publish_and_wait(&lab, &[(b.v4.into(), false)]);
    let _server = Named::serve(b);
    // Nobody has the address outside the mesh: passing through ends in a reset.
    assert_refused(a, vip(), Duration::from_secs(12));
    let passed = lab
        .node_metrics(1)
        .expect("metrics")
        .sum("rdmesh_passthrough_total", &[("reason", "no_endpoint")]);
    assert!(passed >= 1.0, "the reason is counted");
    // Ready again: tunnelled again.
    publish_and_wait(&lab, &[(b.v4.into(), true)]);
    assert_eq!(who_answers(a, vip()), "b");
}

#[test]
fn streams_outlive_their_endpoint_in_the_file() {
    if needs_mesh("streams_outlive_their_endpoint_in_the_file") {
        return;
    }
    let lab = shop();
    let (a, b, c) = (lab.pod("a"), lab.pod("b"), lab.pod("c"));
    publish_and_wait(&lab, &[(b.v4.into(), true)]);
    let listener = b.listen_on(SocketAddr::new(b.v4.into(), APP), 16).expect("listen");
    let mut client = a.dial(vip()).expect("connect");
    let (mut server, _) = accept(&listener).expect("accept");
    publish_and_wait(&lab, &[(c.v4.into(), true)]);
    client.write_all(b"still here").expect("write");
    let mut got = [0; 10];
    server.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"still here");
}
