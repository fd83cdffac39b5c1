//! What the metrics, the devices and the kernel say about where bytes went.

use crate::guest::Cluster;
use anyhow::{Context, Result, ensure};

pub const RDMA_FABRIC: &str = "verbs";
const PODS: [(u8, &str); 2] = [(1, "a"), (2, "b")];

/// Both nodes' counts, summed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counts {
    pub verbs_bytes: f64,
    pub other_bytes: f64,
    pub verbs_messages: f64,
    pub passed_through: f64,
    pub failovers: f64,
}

impl Counts {
    pub fn read(cluster: &Cluster) -> Result<Self> {
        let mut sum = Self {
            verbs_bytes: 0.0,
            other_bytes: 0.0,
            verbs_messages: 0.0,
            passed_through: 0.0,
            failovers: 0.0,
        };
        for number in [1, 2] {
            let metrics = cluster.metrics(number)?;
            let verbs = [("fabric", RDMA_FABRIC)];
            let on_verbs = metrics.sum("rdmesh_stream_bytes_total", &verbs);
            sum.verbs_bytes += on_verbs;
            sum.other_bytes += metrics.sum("rdmesh_stream_bytes_total", &[]) - on_verbs;
            sum.verbs_messages += metrics.sum("rdmesh_link_messages_total", &verbs);
            sum.passed_through += metrics.sum("rdmesh_passthrough_total", &[]);
            sum.failovers += metrics.sum("rdmesh_lane_failovers_total", &[]);
        }
        for (number, pod) in PODS {
            let metrics = cluster.sidecar_metrics(number, pod)?;
            sum.passed_through += metrics.sum("rdmesh_passthrough_total", &[]);
        }
        Ok(sum)
    }

    /// Since these counts every stream byte went over verbs.
    pub fn assert_all_on_verbs(&self, cluster: &Cluster) -> Result<()> {
        let now = Self::read(cluster)?;
        let passed = now.passed_through - self.passed_through;
        ensure!(passed == 0.0, "{passed} connections passed through");
        let other = now.other_bytes - self.other_bytes;
        ensure!(other == 0.0, "{other} stream bytes on another fabric than verbs");
        ensure!(now.verbs_bytes > self.verbs_bytes, "no stream byte on verbs");
        ensure!(now.verbs_messages > self.verbs_messages, "no message on verbs");
        Ok(())
    }
}

/// How often a queue pair has found its peer without a receive buffer, as the devices count it.
pub fn rnr(cluster: &Cluster) -> Result<u64> {
    // Of rxe, sent and received; of mlx5.
    const NAMES: [&str; 3] = ["send_rnr_err", "rcvd_rnr_err", "rnr_nak_retry_err"];
    let mut sum = None;
    for name in NAMES {
        if let Some(count) = device_counter(cluster, name)? {
            sum = Some(sum.unwrap_or(0) + count);
        }
    }
    sum.with_context(|| format!("no device counts {}: nothing would show an RNR", NAMES.join(", ")))
}

/// A counter of the nodes' devices, all ports; nothing when none has such a counter.
pub fn device_counter(cluster: &Cluster, name: &str) -> Result<Option<u64>> {
    let mut sum = None;
    for number in cluster.nodes_by_device() {
        let ports = format!("/sys/class/infiniband/{}/ports/*", cluster.device(*number));
        let script =
            format!("cat {ports}/counters/{name} {ports}/hw_counters/{name} 2>/dev/null; :");
        for line in cluster.sh(*number, &script)?.lines() {
            let count: u64 =
                line.trim().parse().with_context(|| format!("counter {name}: {line}"))?;
            sum = Some(sum.unwrap_or(0) + count);
        }
    }
    Ok(sum)
}

/// The queue pairs of a node's node proxy. The kernel has them under the thread that made them.
pub fn queue_pairs(cluster: &Cluster, number: u8) -> Result<usize> {
    let pid = cluster.node_state(number)?.pid;
    let listed = cluster.sh(number, &format!("ls /proc/{pid}/task; rdma resource show qp"))?;
    let threads: Vec<&str> = listed.lines().take_while(|line| !line.contains(' ')).collect();
    let owner = |line: &str| line.split(" pid ").nth(1)?.split(' ').next().map(str::to_owned);
    let own = |line: &&str| owner(line).is_some_and(|owner| threads.contains(&owner.as_str()));
    Ok(listed.lines().filter(|line| line.contains("type RC")).filter(own).count())
}

/// What the threads of node proxies hold of a node's device, for a comparison before and after.
pub fn resources(cluster: &Cluster, number: u8) -> Result<String> {
    let device = cluster.device(number);
    let script = format!(
        "for kind in qp cq mr pd ctx; do \
         echo \"$kind $(rdma resource show $kind | grep '{device}[ /].* comm worker-' | wc -l)\"; done"
    );
    let held = cluster.sh(number, &script)?.trim().to_owned();
    let nothing = held.lines().find(|line| line.ends_with(" 0"));
    ensure!(nothing.is_none(), "a node proxy at work holds some of everything: {held}");
    Ok(held)
}

/// The lanes that are up on a node, by fabric.
pub fn lanes_on_verbs(cluster: &Cluster, number: u8) -> Result<bool> {
    let metrics = cluster.metrics(number)?;
    let on = metrics.sum("rdmesh_lane_up", &[("fabric", RDMA_FABRIC)]);
    Ok(on > 0.0 && on >= metrics.sum("rdmesh_lane_up", &[]))
}
