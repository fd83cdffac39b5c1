//! Policies in the directory file: what they forbid neither goes out nor comes in, and lifting them
//! is enough to let it.

use rdmesh_tests::config::{DirectoryFile, PolicyEntry, PolicyPeer, PolicyRule, Selector};
use rdmesh_tests::sockets::{accept, assert_refused};
use rdmesh_tests::{Lab, PATIENCE, Plan, Pod, PodSockets, eventually, lab, needs_mesh};
use std::net::SocketAddr;

fn named(name: &str) -> Selector {
    let labels = [("name".to_owned(), name.to_owned())];
    Selector { match_labels: labels.into(), ..Selector::default() }
}

fn rule(peer: &str) -> Vec<PolicyRule> {
    let peer = PolicyPeer { pods: Some(named(peer)), ..PolicyPeer::default() };
    vec![PolicyRule { peers: Some(vec![peer]), ports: None }]
}

fn generations(lab: &Lab) -> f64 {
    let of = |node| {
        let metrics = lab.node_metrics(node).expect("metrics of a node proxy");
        metrics.sum("rdmesh_directory_generation", &[])
    };
    of(1) + of(2)
}

/// Puts the policies in force at both nodes, and every pod's name into its labels.
fn enforce(lab: &Lab, policies: Vec<PolicyEntry>) {
    let before = generations(lab);
    lab.change_directory(|directory: &mut DirectoryFile| {
        for pod in &mut directory.pods {
            let name = pod.name.rsplit('/').next().unwrap_or_default().to_owned();
            pod.labels.insert("name".into(), name);
        }
        directory.policies = policies;
    })
    .expect("write the directory file");
    eventually(PATIENCE, "both nodes have the policies", || generations(lab) >= before + 2.0);
}

fn denied(lab: &Lab, node: u8, direction: &str) -> f64 {
    let metrics = lab.node_metrics(node).expect("metrics of a node proxy");
    metrics.sum("rdmesh_policy_denied_total", &[("direction", direction)])
}

fn connects(from: &Pod, to: &Pod) {
    let listener = to.listen();
    let port = listener.local_addr().expect("a listener's address").port();
    let _client = from.dial(SocketAddr::new(to.v4.into(), port)).expect("dial");
    accept(&listener).expect("accept");
}

/// The application listens, and still nobody comes through.
fn refused(from: &Pod, to: &Pod) {
    let listener = to.listen();
    let port = listener.local_addr().expect("a listener's address").port();
    assert_refused(from, SocketAddr::new(to.v4.into(), port), PATIENCE);
    listener.set_nonblocking(true).expect("non-blocking");
    assert!(listener.accept().is_err(), "a forbidden connection reached the application");
}

#[test]
fn policies_hold_at_both_ends_and_lift() {
    if needs_mesh("policies_hold_at_both_ends_and_lift") {
        return;
    }
    let lab = lab(&Plan::new().pod("a", 1).pod("b", 2).pod("c", 1));
    let pod = |name: &str| lab.pod(name);
    let (a, b, c) = (pod("a"), pod("b"), pod("c"));
    connects(a, b);

    // Into `b` comes `a` alone: across the nodes.
    let ingress = PolicyEntry {
        name: "b-from-a".into(),
        pods: named("b"),
        ingress: Some(rule("a")),
        ..PolicyEntry::default()
    };
    enforce(&lab, vec![ingress.clone()]);
    connects(a, b);
    refused(c, b);
    assert_eq!((denied(&lab, 1, "egress"), denied(&lab, 2, "ingress")), (0.0, 1.0));

    // `a` may go to `b` alone: not to its neighbour on the same node.
    let egress = PolicyEntry {
        name: "a-to-b".into(),
        pods: named("a"),
        egress: Some(rule("b")),
        ..PolicyEntry::default()
    };
    enforce(&lab, vec![ingress, egress]);
    connects(a, b);
    refused(a, c);
    connects(b, c);
    assert_eq!(denied(&lab, 1, "egress"), 1.0);

    // Nobody into `c`, from the same node.
    let closed = PolicyEntry {
        name: "c-closed".into(),
        pods: named("c"),
        ingress: Some(Vec::new()),
        ..PolicyEntry::default()
    };
    enforce(&lab, vec![closed]);
    refused(a, c);
    refused(b, c);
    assert_eq!(denied(&lab, 1, "ingress"), 2.0);

    enforce(&lab, Vec::new());
    connects(a, c);
    connects(b, c);
    connects(c, b);
}
