//! What node proxy and sidecar tell Prometheus is what it expects (`promtool` of Debian's `prometheus`).

use rdmesh_tests::config::Config;
use rdmesh_tests::scrape::get;
use rdmesh_tests::{End, Pattern, needs_mesh, pair, read_end, two_pods};
use std::io::Write;
use std::process::{Command, Stdio};

fn check(what: &str, metrics: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (Debian: prometheus; `make setup` installs it)");
    promtool.stdin.take().expect("piped").write_all(metrics.as_bytes()).expect("write");
    let output = promtool.wait_with_output().expect("promtool");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{what}: {told}");
    assert!(metrics.lines().filter(|line| line.starts_with("rdmesh_")).count() > 10, "{what}");
}

#[test]
fn prometheus_takes_the_metrics_of_node_proxy_and_sidecar() {
    if needs_mesh("prometheus_takes_the_metrics_of_node_proxy_and_sidecar") {
        return;
    }
    let lab = two_pods();
    // A stream, so that there are labels of streams and lanes.
    let (mut near, mut far) = pair(lab.pod("a"), lab.pod("b"));
    let payload = Pattern::new(1);
    payload.write_to(&mut near, 100_000, 10_000).expect("write");
    near.shutdown(std::net::Shutdown::Write).expect("shutdown");
    assert_eq!(payload.check_to_end(&mut far).expect("read"), 100_000);
    drop(far);
    assert_eq!(read_end(&mut near).1, End::Clean);
    let config = Config::default();
    for number in [1, 2] {
        let metrics = get(&lab.node(number).netns, config.node.admin, "/metrics").expect("metrics");
        check(&format!("node proxy {number}"), &metrics);
    }
    for pod in ["a", "b"] {
        let metrics = get(&lab.pod(pod).netns, config.sidecar.admin, "/metrics").expect("metrics");
        check(&format!("sidecar of {pod}"), &metrics);
    }
}
