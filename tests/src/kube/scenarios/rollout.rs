//! The parts of the mesh go away and come back while pods work.

use crate::kube::cluster::{Cluster, MESH, SYSTEM, items};
use crate::kube::kubectl::eventually;
use crate::kube::traffic::Counts;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Connections that the steady traffic has open at once: one in a row, and those that wait half a second.
const IN_FLIGHT_MAX: u64 = 8;
/// Each node proxy that goes may cut a long connection once.
const PROXIES_OF_A_CONNECTION: u64 = 2;

/// What the steady traffic has counted until now.
pub fn counts(cluster: &Cluster) -> Result<Counts> {
    let pod = cluster.pod(MESH, "traffic")?.name;
    let log = cluster.kube.run(&["-n", MESH, "logs", &pod, "-c", "traffic", "--tail=1"])?;
    serde_json::from_str(log.trim()).with_context(|| format!("the traffic's log ends with {log:?}"))
}

/// The traffic goes on: new connections, and all of them good.
///
/// # Errors
/// When it does not.
pub fn flows(cluster: &Cluster) -> Result<Counts> {
    let begin = counts(cluster)?;
    eventually(Duration::from_secs(10), "the traffic goes on", || {
        let now = counts(cluster)?;
        ensure!(now.good >= begin.good + 20, "{now:?}");
        Ok(now)
    })
}

fn tunnelled(cluster: &Cluster) -> Result<f64> {
    Ok(cluster.node_metrics(&cluster.node_a)?.sum("rdmesh_streams_total", &[("fabric", "tcp")]))
}

fn goes_through_the_mesh_again(cluster: &Cluster) -> Result<()> {
    eventually(Duration::from_secs(20), "new connections are tunnelled again", || {
        let before = tunnelled(cluster)?;
        flows(cluster)?;
        let now = tunnelled(cluster)?;
        ensure!(now >= before + 10.0, "{} streams ended meanwhile", now - before);
        Ok(())
    })
}

fn report(before: &Counts, after: &Counts, took: Duration) -> String {
    let breaks = after.long_connections - before.long_connections;
    let how = if breaks > 0 { format!(" ({})", after.last_long_fault) } else { String::new() };
    format!(
        "{:.0} s, {} new connections, {} of them failed; the long one was cut {breaks} times{how}",
        took.as_secs_f64(),
        after.good + after.bad - before.good - before.bad,
        after.bad - before.bad
    )
}

/// A pod of traffic whose long connection is tunnelled: one that was cut once may have passed through since.
fn fresh_traffic(cluster: &Cluster) -> Result<Counts> {
    cluster.kube.run(&["-n", MESH, "rollout", "restart", "deployment/traffic"])?;
    cluster.kube.rolled_out(MESH, "deployment/traffic")?;
    let streams = |metrics: &crate::scrape::Metrics| {
        metrics.sum("rdmesh_streams_active", &[("role", "client"), ("fabric", "tcp")])
    };
    eventually(Duration::from_secs(20), "the long connection is made, and tunnelled", || {
        let counts = counts(cluster)?;
        ensure!(counts.long_connections == 1 && counts.good > 0, "{counts:?}");
        let passed = cluster.sidecar_metrics("traffic")?.sum("rdmesh_passthrough_total", &[]);
        let active = streams(&cluster.node_metrics(&cluster.node_a)?);
        ensure!(active >= 1.0, "{active} streams are active, {passed} passed through");
        Ok(counts)
    })
}

/// No new connection fails. The long one lasts longer than the drain: it is reset when its node proxy ends, and
/// nothing else happens to it.
///
/// # Errors
/// When traffic fails while `change` is made and settles.
pub fn under_traffic(cluster: &Cluster, change: impl FnOnce() -> Result<()>) -> Result<String> {
    let before = fresh_traffic(cluster)?;
    let begun = Instant::now();
    change()?;
    let took = begun.elapsed();
    goes_through_the_mesh_again(cluster)?;
    let after = counts(cluster)?;
    let seen = report(&before, &after, took);
    ensure!(after.bad == before.bad, "{seen}; {}", after.last_fault);
    let cut = after.long_connections - before.long_connections;
    ensure!((1..=PROXIES_OF_A_CONNECTION).contains(&cut), "{seen}");
    ensure!(after.last_long_fault.contains("reset"), "{seen}");
    Ok(seen)
}

pub fn restart(cluster: &Cluster) -> Result<String> {
    under_traffic(cluster, || {
        cluster.kube.run(&["-n", SYSTEM, "rollout", "restart", "daemonset/rdmesh-node"])?;
        cluster.kube.rolled_out(SYSTEM, "daemonset/rdmesh-node")
    })
}

/// Without warning, as by a crash: what was open is cut, and nothing else.
pub fn killed(cluster: &Cluster) -> Result<String> {
    let before = fresh_traffic(cluster)?;
    let begun = Instant::now();
    cluster.kill_node_proxy(&cluster.node_b)?;
    goes_through_the_mesh_again(cluster)?;
    let after = counts(cluster)?;
    let seen = report(&before, &after, begun.elapsed());
    ensure!(after.bad - before.bad <= IN_FLIGHT_MAX, "{seen}; {}", after.last_fault);
    ensure!(after.long_connections == before.long_connections + 1, "{seen}");
    ensure!(after.last_long_fault.contains("reset"), "{seen}");
    let pod = cluster.node_proxy(&cluster.node_b)?.object;
    let restarts = items(&pod["status"]["containerStatuses"]).iter().map(|c| &c["restartCount"]);
    Ok(format!("{seen}; restarts of its containers: {:?}", restarts.collect::<Vec<_>>()))
}

/// The pod that would be made, after admission.
///
/// # Errors
/// When it would not be made.
pub fn admitted(cluster: &Cluster) -> Result<Value> {
    let look = cluster.render(include_str!("../../../kube/look.yaml"), &[]);
    let look = cluster
        .kube
        .with_input(&["-n", MESH, "create", "--dry-run=server", "-o", "json", "-f", "-"], &look)?;
    Ok(serde_json::from_str(&look)?)
}

pub fn injectors(cluster: &Cluster) -> Result<String> {
    cluster.kube.run(&["-n", SYSTEM, "rollout", "restart", "deployment/rdmesh-injector"])?;
    let (mut made, mut done) = (0, false);
    let begun = Instant::now();
    // Once more after it is complete: the last old replica goes then.
    while !done || begun.elapsed() < Duration::from_secs(5) {
        ensure!(begun.elapsed() < Duration::from_secs(100), "the injectors' rollout does not end");
        let pod = admitted(cluster)?;
        made += 1;
        let parts = items(&pod["spec"]["initContainers"]).len();
        ensure!(
            parts == 2,
            "pod {made}, {:.1} s after the restart began, was not injected",
            begun.elapsed().as_secs_f64()
        );
        let status =
            ["-n", SYSTEM, "rollout", "status", "deployment/rdmesh-injector", "--watch=false"];
        done = cluster.kube.run(&status)?.contains("successfully");
    }
    Ok(format!("{made} pods admitted meanwhile, all injected"))
}
