//! Bad input by operators: one clear line that says what to do, an exit code that is not 0, and
//! nothing half-configured left.

use rdmesh_tests::netns::Netns;
use rdmesh_tests::process::Finished;
use rdmesh_tests::{Lab, PATIENCE, Plan, PodSockets, binary, needs_mesh};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::Command;

fn lab() -> Lab {
    let lab = Lab::new(&Plan::new().pod("a", 1).pod("b", 2), &binary::proxy());
    lab.unwrap_or_else(|e| panic!("build the lab: {e:#}"))
}

fn run(lab: &Lab, netns: &Netns, command: &mut Command) -> Finished {
    lab.run_any(netns, command, PATIENCE).unwrap_or_else(|e| panic!("{e:#}"))
}

/// The program must fail, in one line of its own that has all the words.
fn assert_fails(lab: &Lab, netns: &Netns, command: &mut Command, words: &[&str]) {
    let finished = run(lab, netns, command);
    let text = &finished.stderr;
    assert!(!finished.status.success(), "it should have failed: {command:?}\n{text}");
    assert_eq!(finished.status.signal_number(), None, "it crashed: {text}");
    let line = text.lines().find(|l| words.iter().all(|word| l.contains(word)));
    assert!(line.is_some(), "no line with all of {words:?}: {command:?}\n{text}");
    assert!(!text.contains("panicked"), "{text}");
}

trait SignalNumber {
    fn signal_number(&self) -> Option<i32>;
}

impl SignalNumber for std::process::ExitStatus {
    fn signal_number(&self) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(self)
    }
}

fn proxy(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.proxy_command();
    command.args(arguments);
    command
}

fn file(lab: &Lab, name: &str, text: &str) -> String {
    let path = lab.dir().join(name);
    std::fs::write(&path, text).expect("write");
    path.display().to_string()
}

#[test]
fn wrong_flags() {
    let lab = lab();
    let netns = &lab.node(1).netns;
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["node"],
        &["node", "--config"],
        &["node", "--config", "/x", "--confg", "/y"],
        &["demo", "--encrypt", "perhaps"],
        &["certs"],
        &[],
    ] {
        let finished = run(&lab, netns, &mut proxy(&lab, arguments));
        assert!(!finished.status.success(), "{arguments:?}");
        let text = finished.stderr + &finished.stdout;
        assert!(text.contains("Usage") || text.contains("--help"), "{arguments:?}: {text}");
    }
}

#[test]
fn files_that_are_not_there_or_half_written() {
    let lab = lab();
    let netns = &lab.node(1).netns;
    let half = file(&lab, "half.yaml", "node:\n  name: n1\n  listen: \"0.0.");
    let unknown = file(&lab, "unknown.yaml", "node:\n  name: n1\n  worker: 2\n");
    let wrong = file(&lab, "wrong.yaml", "node:\n  name: n1\n  workers: many\n");
    let dir = lab.dir().display().to_string();
    for subcommand in ["node", "sidecar", "init"] {
        let with = |path: &str| proxy(&lab, &[subcommand, "--config", path]);
        assert_fails(&lab, netns, &mut with("/no/such.yaml"), &["/no/such.yaml"]);
        assert_fails(&lab, netns, &mut with(&dir), &[&dir]);
        assert_fails(&lab, netns, &mut with(&half), &["half.yaml"]);
        assert_fails(&lab, netns, &mut with(&unknown), &["worker"]);
        assert_fails(&lab, netns, &mut with(&wrong), &["workers"]);
    }
    assert_nothing_captured(&lab);
}

#[test]
fn all_faults_of_a_file_at_once() {
    let lab = lab();
    let path = file(
        &lab,
        "faults.yaml",
        "node:\n  name: n1\n  workers: 0\n  limits:\n    lane_credits: 0\n\
         sidecar:\n  listen_port: 0\n",
    );
    let finished = run(&lab, &lab.node(1).netns, &mut proxy(&lab, &["check-config", &path]));
    assert!(!finished.status.success());
    let text = finished.stderr + &finished.stdout;
    for key in ["node.workers", "node.limits.lane_credits", "sidecar.listen_port"] {
        assert!(text.contains(key), "{key} is not told of:\n{text}");
    }
}

#[test]
fn check_config_prints_what_is_in_force() {
    let lab = lab();
    let netns = &lab.node(1).netns;
    let path = file(&lab, "good.yaml", "node:\n  name: n1\n  workers: 2\n");
    let finished = run(&lab, netns, &mut proxy(&lab, &["check-config", &path]));
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(finished.stdout.contains("workers: 2"), "{}", finished.stdout);
    assert!(finished.stdout.contains("listen_port: 15701"), "{}", finished.stdout);
    // What it prints it takes.
    let again = file(&lab, "again.yaml", &finished.stdout);
    let second = run(&lab, netns, &mut proxy(&lab, &["check-config", &again]));
    assert_eq!(second.stdout, finished.stdout);
}

/// Runs `rdmesh-proxy` without any capability.
fn powerless(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "15701", "--regid", "15701", "--clear-groups"]);
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", "--"]);
    command.arg(proxy(lab, &[]).get_program()).args(arguments);
    command
}

fn assert_nothing_captured(lab: &Lab) {
    for pod in lab.pods() {
        let mut command = Command::new("nft");
        command.args(["list", "tables"]);
        let tables = run(lab, &pod.netns, &mut command).stdout;
        assert!(!tables.contains("rdmesh"), "{tables}");
        let mut command = Command::new("ip");
        command.args(["rule", "list"]);
        let rules = run(lab, &pod.netns, &mut command).stdout;
        assert_eq!(rules.lines().count(), 3, "only the kernel's own rules: {rules}");
    }
}

#[test]
fn missing_privileges() {
    if needs_mesh("missing_privileges") {
        return;
    }
    let lab = lab();
    let pod = lab.pod("a");
    let config = lab.pod_config(pod).expect("config").display().to_string();
    let mut init = powerless(&lab, &["init", "--config", &config]);
    assert_fails(&lab, &pod.netns, &mut init, &["CAP_NET_ADMIN"]);
    assert_nothing_captured(&lab);
    let mut sidecar = powerless(&lab, &["sidecar", "--config", &config]);
    assert_fails(&lab, &pod.netns, &mut sidecar, &["CAP_NET_RAW"]);
    let mut demo = powerless(&lab, &["demo"]);
    assert_fails(&lab, &pod.netns, &mut demo, &["root"]);
}

#[test]
fn ports_in_use() {
    if needs_mesh("ports_in_use") {
        return;
    }
    let lab = lab();
    lab.mesh_up().expect("bring the mesh up");
    let (node, pod) = (lab.node(1), lab.pod("a"));
    // A second one of each, in the same places.
    let config = lab.node_config(node).expect("config").display().to_string();
    let mut second = proxy(&lab, &["node", "--config", &config]);
    assert_fails(&lab, &node.netns, &mut second, &["1570", "in use"]);
    let config = lab.pod_config(pod).expect("config").display().to_string();
    let mut second = proxy(&lab, &["sidecar", "--config", &config]);
    assert_fails(&lab, &pod.netns, &mut second, &["157", "in use"]);
    // The first ones work on.
    rdmesh_tests::assert_tunnelled(&lab, 0);
    let (_near, _far) = rdmesh_tests::pair(pod, lab.pod("b"));
    rdmesh_tests::eventually(PATIENCE, "the stream is there", || {
        let metrics = lab.node_metrics(1).expect("metrics");
        metrics.sum("rdmesh_streams_active", &[]) >= 1.0
    });
}

#[test]
fn the_sidecars_port_is_taken_by_the_application() {
    if needs_mesh("the_sidecars_port_is_taken_by_the_application") {
        return;
    }
    let lab = lab();
    let pod = lab.pod("a");
    let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15_701);
    let _taken = pod.listen_on(any, 1).expect("listen");
    let config = lab.pod_config(pod).expect("config").display().to_string();
    let mut sidecar = proxy(&lab, &["sidecar", "--config", &config]);
    assert_fails(&lab, &pod.netns, &mut sidecar, &["15701", "in use"]);
}

#[test]
fn certificates_and_directories_that_are_not_there() {
    if needs_mesh("certificates_and_directories_that_are_not_there") {
        return;
    }
    let lab = lab();
    let node = lab.node(1);
    // No certificates were made, no directory file written.
    let config = lab.node_config(node).expect("config").display().to_string();
    let start = || proxy(&lab, &["node", "--config", &config]);
    let finished = run(&lab, &node.netns, &mut start());
    assert!(!finished.status.success());
    assert!(finished.stderr.contains(&lab.dir().display().to_string()), "{}", finished.stderr);
    let mut certs = proxy(&lab, &["certs", "--node", "n1", "--node", "n2", "--dir"]);
    certs.arg(lab.certs_dir());
    lab.run(&node.netns, &mut certs, PATIENCE).expect("certs");
    assert_fails(&lab, &node.netns, &mut start(), &["directory.yaml"]);
    std::fs::write(lab.directory_path(), "nodes: [{").expect("write");
    assert_fails(&lab, &node.netns, &mut start(), &["directory.yaml"]);
    // A key that is not the certificate's.
    lab.change_directory(|_| {}).expect("write the directory file");
    let dir = lab.certs_dir();
    std::fs::copy(dir.join("n2.key"), dir.join("n1.key")).expect("swap the keys");
    assert_fails(&lab, &node.netns, &mut start(), &["n1"]);
    std::fs::write(dir.join("n1.key"), "garbage").expect("break the key");
    assert_fails(&lab, &node.netns, &mut start(), &["n1.key"]);
}

#[test]
fn a_node_that_has_no_name() {
    if needs_mesh("a_node_that_has_no_name") {
        return;
    }
    let lab = lab();
    let path = file(&lab, "nameless.yaml", "node:\n  workers: 1\n");
    let mut command = proxy(&lab, &["node", "--config", &path]);
    assert_fails(&lab, &lab.node(1).netns, &mut command, &["node.name"]);
}

#[test]
fn status_without_a_node_proxy() {
    if needs_mesh("status_without_a_node_proxy") {
        return;
    }
    let lab = lab();
    let mut command = proxy(&lab, &["status"]);
    assert_fails(&lab, &lab.node(1).netns, &mut command, &["127.0.0.1:15790"]);
}

#[test]
fn status_tells_of_peers_and_streams() {
    if needs_mesh("status_tells_of_peers_and_streams") {
        return;
    }
    let lab = lab();
    lab.mesh_up().expect("bring the mesh up");
    let _held = rdmesh_tests::pair(lab.pod("a"), lab.pod("b"));
    let netns = &lab.node(1).netns;
    let text = run(&lab, netns, &mut proxy(&lab, &["status"])).stdout;
    assert!(text.contains("n2"), "{text}");
    let json = run(&lab, netns, &mut proxy(&lab, &["status", "--json"])).stdout;
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json.contains("n2"), "{value:#}");
}
