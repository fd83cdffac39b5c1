//! NetworkPolicy on tunnelled connections.

use crate::kube::cluster::{Cluster, MESH, text};
use crate::kube::traffic::Watch;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

const POLICY: &str = include_str!("../../../kube/policy.yaml");
/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);
/// How long a connection of the traffic lasts.
const OPEN_TIME_MAX: Duration = Duration::from_millis(700);
const HOLD: Duration = Duration::from_secs(3);

pub fn ingress(cluster: &Cluster) -> Result<String> {
    denied_and_lifted(cluster, "echo", "Ingress", &cluster.node_b)
}

pub fn egress(cluster: &Cluster) -> Result<String> {
    denied_and_lifted(cluster, "client-a", "Egress", &cluster.node_a)
}

fn denied_and_lifted(cluster: &Cluster, app: &str, direction: &str, node: &str) -> Result<String> {
    let service = cluster.kube.json(&["-n", MESH, "get", "service", "echo"])?;
    let echo = format!("{}:7000", text(&service["spec"]["clusterIP"]));
    let client = cluster.pod(MESH, "client-a")?;
    let watch = Watch::start(&cluster.kube, MESH, &client.name, &echo)?;
    watch.until(true, Instant::now(), Duration::from_secs(10))?;

    let label = direction.to_lowercase();
    let denied = |metrics: &crate::scrape::Metrics| {
        metrics.sum("rdmesh_policy_denied_total", &[("direction", &label)])
    };
    let before = denied(&cluster.node_metrics(node)?);
    let denied_after = changes(&watch, false, || {
        cluster.apply(MESH, POLICY, &[("app", app), ("direction", direction)])
    })?;
    // Those that were open already may end in order.
    watch.during(OPEN_TIME_MAX)?;
    let (first, last) = watch.during(HOLD)?;
    ensure!(
        last.good == first.good,
        "{} connections came through the policy",
        last.good - first.good
    );
    ensure!(last.bad > first.bad, "no connection was tried");
    let counted = denied(&cluster.node_metrics(node)?) - before;
    ensure!(counted >= 1.0, "rdmesh_policy_denied_total of {node} was not raised");

    let lifted_after = changes(&watch, true, || {
        cluster.kube.run(&["-n", MESH, "delete", "networkpolicy", "deny"]).map(drop)
    })?;
    Ok(format!(
        "denied after {} ms, {} refused in {HOLD:?}, lifted after {} ms",
        denied_after.as_millis(),
        last.bad - first.bad,
        lifted_after.as_millis()
    ))
}

/// How long after the API server has it a change is felt. It may be felt before kubectl has come back.
fn changes(watch: &Watch, works: bool, change: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    change()?;
    let took = begun.elapsed();
    Ok(watch.until(works, begun, took + WITHIN)?.saturating_sub(took))
}
