use super::*;
use crate::metrics::PassthroughReason;
use rdmesh_config::{
    DirectoryFile, Endpoint, Fabric, NodeEntry, PodEntry, ServiceEntry, ServicePort,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

fn node(name: &str, address: &str) -> NodeEntry {
    NodeEntry { name: name.into(), address: address.parse().unwrap() }
}

fn pod(name: &str, node: &str, addresses: &[&str]) -> PodEntry {
    PodEntry {
        name: name.into(),
        uid: format!("uid-{name}"),
        node: node.into(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..PodEntry::default()
    }
}

fn service(name: &str, address: &str, port: u16, endpoints: &[(&str, bool)]) -> ServiceEntry {
    let endpoints = endpoints
        .iter()
        .map(|(address, ready)| Endpoint { address: address.parse().unwrap(), ready: *ready });
    ServiceEntry {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        ports: vec![ServicePort { port, endpoints: endpoints.collect() }],
    }
}

fn file() -> DirectoryFile {
    let mut excluding = pod("b2", "b", &["10.42.1.6"]);
    excluding.exclude_inbound_ports = vec![9000, 22];
    DirectoryFile {
        nodes: vec![node("a", "192.0.2.1:15700"), node("b", "[2001:db8::2]:15700")],
        pods: vec![
            pod("a1", "a", &["10.42.0.5", "fd00::5"]),
            pod("a2", "a", &["10.42.0.6"]),
            pod("b1", "b", &["10.42.1.5", "fd00:1::5"]),
            excluding,
        ],
        services: vec![
            service(
                "web",
                "10.43.0.1",
                80,
                &[
                    ("10.42.0.5:8080", true),
                    ("10.42.1.5:8080", true),
                    ("10.42.1.6:8080", true),
                    ("10.42.0.6:8080", false),
                ],
            ),
            service("none", "10.43.0.2", 80, &[("10.42.1.5:80", false)]),
            service("foreign", "10.43.0.3", 80, &[("198.51.100.7:80", true)]),
        ],
        ..DirectoryFile::default()
    }
}

fn snapshot() -> Snapshot {
    Snapshot::build(&file(), "a", 7).unwrap()
}

fn source(snapshot: &Snapshot) -> Arc<Pod> {
    snapshot.local_pod("10.42.0.5".parse().unwrap()).unwrap().clone()
}

fn resolve(snapshot: &Snapshot, to: &str) -> Decision {
    snapshot.resolve(&source(snapshot), to.parse().unwrap())
}

fn passes(reason: PassthroughReason) -> Decision {
    Decision::Passthrough { reason }
}

#[test]
fn pod_addresses() {
    let s = snapshot();
    for to in ["10.42.1.5:443", "[fd00:1::5]:443", "[::ffff:10.42.1.5]:443"] {
        let Decision::Mesh { node, dst, pod, .. } = resolve(&s, to) else { panic!("{to}") };
        assert_eq!((&*node, &*pod.name), ("b", "b1"));
        assert_eq!(dst.ip(), to.parse::<SocketAddr>().unwrap().ip().to_canonical());
        assert_eq!(dst.port(), 443);
    }
    let Decision::Local { pod, .. } = resolve(&s, "10.42.0.6:1") else { panic!() };
    assert_eq!(&*pod.name, "a2");
    // Its own address is this node's too.
    assert!(matches!(resolve(&s, "[fd00::5]:1"), Decision::Local { .. }));
    assert_eq!(resolve(&s, "10.42.9.9:1"), passes(PassthroughReason::OutsideMesh));
    assert_eq!(resolve(&s, "[fd00::9]:1"), passes(PassthroughReason::OutsideMesh));
}

#[test]
fn excluded_ports() {
    let s = snapshot();
    assert_eq!(resolve(&s, "10.42.1.6:22"), passes(PassthroughReason::ExcludedPort));
    assert_eq!(resolve(&s, "10.42.1.6:9000"), passes(PassthroughReason::ExcludedPort));
    assert!(matches!(resolve(&s, "10.42.1.6:80"), Decision::Mesh { .. }));
}

#[test]
fn wishes_of_both_pods_meet() {
    use Fabric::{Auto, Tcp, Verbs};
    for (near, far, met) in [
        (Auto, Auto, Some(Auto)),
        (Tcp, Auto, Some(Tcp)),
        (Auto, Verbs, Some(Verbs)),
        (Tcp, Tcp, Some(Tcp)),
        (Verbs, Tcp, None),
        (Tcp, Verbs, None),
    ] {
        let mut file = file();
        (file.pods[0].fabric, file.pods[2].fabric) = (near, far);
        let s = Snapshot::build(&file, "a", 7).unwrap();
        match (resolve(&s, "10.42.1.5:80"), met) {
            (Decision::Mesh { fabric, .. }, Some(met)) => assert_eq!(fabric, met),
            (decision, None) => assert_eq!(decision, passes(PassthroughReason::Fabric)),
            (decision, met) => panic!("{near:?} and {far:?}: {decision:?}, not {met:?}"),
        }
        // Within a node there is but one way.
        assert!(matches!(resolve(&s, "10.42.0.6:1"), Decision::Local { .. }));
    }
}

#[test]
fn services_spread_evenly_over_ready_endpoints() {
    let s = snapshot();
    let mut seen = BTreeMap::new();
    for _ in 0..300 {
        let dst = match resolve(&s, "10.43.0.1:80") {
            Decision::Mesh { dst, .. } => dst,
            // The hairpin to the source's own pod among them.
            Decision::Local { dst, .. } => dst,
            other => panic!("{other:?}"),
        };
        *seen.entry(dst.to_string()).or_insert(0) += 1;
    }
    let even = ["10.42.0.5:8080", "10.42.1.5:8080", "10.42.1.6:8080"];
    assert_eq!(seen, even.iter().map(|a| ((*a).to_owned(), 100)).collect());
}

#[test]
fn nodes_begin_at_different_endpoints() {
    let first = |seed| {
        let s = Snapshot::build(&file(), "a", seed).unwrap();
        format!("{:?}", resolve(&s, "10.43.0.1:80"))
    };
    let firsts: std::collections::BTreeSet<_> =
        (0..64_u64).map(|i| first(i.wrapping_mul(0x1234_5678_9ABC_DEF1))).collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn services_that_do_not_reach_a_pod() {
    let s = snapshot();
    assert_eq!(resolve(&s, "10.43.0.2:80"), passes(PassthroughReason::NoEndpoint));
    assert_eq!(resolve(&s, "10.43.0.3:80"), passes(PassthroughReason::OutsideMesh));
    assert_eq!(resolve(&s, "10.43.0.1:81"), passes(PassthroughReason::OutsideMesh));
}

#[test]
fn owners() {
    let s = snapshot();
    let owns = |node: &str, addr: &str| s.node_owns(node, addr.parse().unwrap());
    assert!(owns("b", "10.42.1.5") && owns("b", "fd00:1::5") && owns("b", "::ffff:10.42.1.5"));
    assert!(!owns("a", "10.42.1.5") && !owns("b", "10.42.0.5"));
    assert!(!owns("b", "10.42.7.7") && !owns("", "10.42.7.7") && !owns("b", "10.43.0.1"));
    assert!(s.local_pod("10.42.1.5".parse().unwrap()).is_none());
    assert!(source(&s).has_address("::ffff:10.42.0.5".parse().unwrap()));
}

#[test]
fn nodes_and_local_pods() {
    let s = snapshot();
    assert_eq!(s.node("b").unwrap().address, "[2001:db8::2]:15700".parse().unwrap());
    assert!(s.node("c").is_none());
    assert_eq!((s.nodes().len(), s.pods_total(), &**s.me()), (2, 4, "a"));
    let uids: Vec<_> = s.local_pods().map(|p| &*p.uid).collect();
    assert_eq!(uids, ["uid-a1", "uid-a2"]);
    assert_eq!(&*s.local_pod_by_uid("uid-a2").unwrap().name, "a2");
    assert!(s.local_pod_by_uid("uid-b1").is_none());
}

#[test]
fn faults() {
    let fault = |change: fn(&mut DirectoryFile)| {
        let mut f = file();
        change(&mut f);
        Snapshot::build(&f, "a", 0).unwrap_err()
    };
    assert_eq!(
        Snapshot::build(&file(), "c", 0).unwrap_err(),
        SnapshotError::SelfMissing("c".into())
    );
    assert_eq!(
        fault(|f| f.nodes.push(node("b", "192.0.2.9:1"))),
        SnapshotError::NodeTwice("b".into())
    );
    for uid in ["", "..", ".hidden", "a/b", "../x", "a\0b", "ü", &"x".repeat(129)] {
        let mut f = file();
        f.pods[0].uid = uid.into();
        assert!(
            matches!(Snapshot::build(&f, "a", 0), Err(SnapshotError::BadUid { .. })),
            "{uid:?}"
        );
    }
    assert!(matches!(fault(|f| f.pods[1].uid = "uid-a1".into()), SnapshotError::UidTwice(_)));
    assert!(matches!(
        fault(|f| f.pods[1].addresses = vec!["::ffff:10.42.1.5".parse().unwrap()]),
        SnapshotError::AddressTwice(_)
    ));
    assert!(matches!(
        fault(|f| f.services[0].addresses = vec!["10.42.1.5".parse().unwrap()]),
        SnapshotError::AddressTwice(_)
    ));
    assert!(matches!(
        fault(|f| f.services[1].addresses = f.services[0].addresses.clone()),
        SnapshotError::PortTwice { .. }
    ));
    assert!(matches!(fault(|f| f.pods[3].node = "z".into()), SnapshotError::UnknownNode { .. }));
    for address in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "::ffff:127.0.0.1"] {
        let mut f = file();
        f.pods[0].addresses = vec![address.parse().unwrap()];
        assert!(matches!(Snapshot::build(&f, "a", 0), Err(SnapshotError::BadAddress { .. })));
    }
}

#[test]
fn many_pods() {
    let mut f = DirectoryFile { nodes: file().nodes, ..DirectoryFile::default() };
    f.pods = (0..150_000_u32)
        .map(|i| {
            let node = if i % 2 == 0 { "a" } else { "b" };
            let [_, x, y, z] = i.to_be_bytes();
            pod(
                &i.to_string(),
                node,
                &[&format!("10.{x}.{y}.{z}"), &format!("fd00::{x:x}:{y:x}{z:02x}")],
            )
        })
        .collect();
    let s = Snapshot::build(&f, "a", 0).unwrap();
    assert_eq!(s.local_pods().len(), 75_000);
    let source = s.local_pod("10.0.0.2".parse().unwrap()).unwrap();
    for i in 0..150_000_u32 {
        let [_, x, y, z] = i.to_be_bytes();
        let decision = s.resolve(source, format!("10.{x}.{y}.{z}:80").parse().unwrap());
        assert_eq!(matches!(decision, Decision::Local { .. }), i % 2 == 0);
    }
}

/// A directory of its own, gone with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("rdmesh-directory-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("directory.yaml")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(pods: usize) -> String {
    let mut f = file();
    f.services.clear();
    f.pods.truncate(pods);
    f.to_yaml()
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn open(dir: &Dir) -> (Directory, crate::metrics::Registry) {
    let metrics = Arc::new(NodeMetrics::new());
    let registry = crate::metrics::Registry::for_node(metrics.clone(), Vec::new()).unwrap();
    (Directory::open(dir.file(), "a", metrics).unwrap(), registry)
}

fn reloads(registry: &crate::metrics::Registry, outcome: &str) -> String {
    let text = registry.render().unwrap();
    let start = format!("rdmesh_directory_reloads_total{{outcome=\"{outcome}\"}} ");
    text.lines().find_map(|l| l.strip_prefix(&start)).unwrap().to_owned()
}

#[test]
fn reload_by_rename() {
    let dir = Dir::new();
    std::fs::write(dir.file(), text(4)).unwrap();
    let (directory, registry) = open(&dir);
    let watch = directory.watch();
    assert!(matches!(directory.poll(), Poll::Unchanged));
    replace(&dir.file(), &text(2));
    assert!(matches!(directory.poll(), Poll::Settling));
    assert!(matches!(directory.poll(), Poll::Applied { generation: 2 }));
    assert!(matches!(directory.poll(), Poll::Unchanged));
    assert_eq!((directory.generation(), directory.snapshot().pods_total()), (2, 2));
    assert!(watch.has_changed().unwrap());
    assert_eq!(reloads(&registry, "applied"), "1");
}

#[test]
fn old_one_stays_when_the_new_has_faults() {
    let dir = Dir::new();
    std::fs::write(dir.file(), text(4)).unwrap();
    let (directory, registry) = open(&dir);
    let other_node = text(4).replace("name: a\n", "name: z\n");
    for (i, bad) in ["nodes: [", "", "unknown_key: 1", &other_node].iter().enumerate() {
        replace(&dir.file(), bad);
        assert!(matches!(directory.poll(), Poll::Settling));
        assert!(matches!(directory.poll(), Poll::Rejected(_)), "{bad}");
        // Told once.
        assert!(matches!(directory.poll(), Poll::Unchanged));
        assert_eq!(reloads(&registry, "invalid"), (i + 1).to_string());
    }
    assert_eq!((directory.generation(), directory.snapshot().pods_total()), (1, 4));
    replace(&dir.file(), &text(1));
    assert!(matches!(directory.poll(), Poll::Settling));
    assert!(matches!(directory.poll(), Poll::Applied { .. }));
    assert_eq!(directory.snapshot().pods_total(), 1);
}

#[test]
fn half_written_file_is_not_taken() {
    let dir = Dir::new();
    std::fs::write(dir.file(), text(4)).unwrap();
    let (directory, registry) = open(&dir);
    let whole = text(3);
    // Each half would be a valid directory with fewer pods.
    let half = text(1);
    std::fs::write(dir.file(), "").unwrap();
    assert!(matches!(directory.poll(), Poll::Settling));
    std::fs::write(dir.file(), half).unwrap();
    assert!(matches!(directory.poll(), Poll::Settling));
    std::fs::write(dir.file(), whole).unwrap();
    assert!(matches!(directory.poll(), Poll::Settling));
    assert_eq!(directory.snapshot().pods_total(), 4);
    assert!(matches!(directory.poll(), Poll::Applied { generation: 2 }));
    assert_eq!(directory.snapshot().pods_total(), 3);
    assert_eq!(reloads(&registry, "invalid"), "0");
}

#[test]
fn file_that_goes_and_comes_back() {
    let dir = Dir::new();
    std::fs::write(dir.file(), text(4)).unwrap();
    let (directory, registry) = open(&dir);
    std::fs::remove_file(dir.file()).unwrap();
    assert!(matches!(directory.poll(), Poll::Settling));
    assert!(matches!(directory.poll(), Poll::Rejected(_)));
    assert!(matches!(directory.poll(), Poll::Unchanged));
    assert_eq!(reloads(&registry, "unreadable"), "1");
    std::fs::write(dir.file(), text(2)).unwrap();
    assert!(matches!(directory.poll(), Poll::Settling));
    assert!(matches!(directory.poll(), Poll::Applied { generation: 2 }));
}

#[tokio::test]
async fn run_follows_the_file() {
    let dir = Dir::new();
    std::fs::write(dir.file(), text(4)).unwrap();
    let (directory, _registry) = open(&dir);
    let directory = Arc::new(directory);
    let mut watch = directory.watch();
    let running = tokio::spawn(directory.clone().run());
    replace(&dir.file(), &text(2));
    watch.changed().await.unwrap();
    assert_eq!(directory.snapshot().pods_total(), 2);
    running.abort();
}

#[test]
fn first_load_tells_what_to_do() {
    let dir = Dir::new();
    let open = || Directory::open(dir.file(), "a", Arc::new(NodeMetrics::new()));
    let missing = open().unwrap_err().to_string();
    assert!(missing.contains("node.directory.file"), "{missing}");
    std::fs::write(dir.file(), text(4).replace("name: a\n", "name: z\n")).unwrap();
    let fault = open().unwrap_err().to_string();
    assert!(fault.contains("directory.yaml"), "{fault}");
}
