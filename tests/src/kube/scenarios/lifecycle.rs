//! helm install, upgrade and uninstall.

use super::rollout::{admitted, counts, flows, under_traffic};
use crate::kube::cluster::{Cluster, MESH, PLAIN, RELEASE, SYSTEM, items, text};
use crate::kube::kubectl::eventually;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub fn install(cluster: &Cluster) -> Result<String> {
    let begun = Instant::now();
    cluster.namespace(SYSTEM, "")?;
    cluster.release("install", &[])?;
    let time = begun.elapsed().as_secs_f64();
    for node in &cluster.nodes {
        cluster.node_proxy(node)?;
    }
    cluster.kube.helm(&["test", RELEASE, "--namespace", SYSTEM, "--timeout", "60s"])?;
    Ok(format!("ready on {} nodes after {time:.1} s", cluster.nodes.len()))
}

pub fn upgrade(cluster: &Cluster) -> Result<String> {
    let seen = under_traffic(cluster, || {
        cluster.release("upgrade", &["node.logLevel=debug", "sidecar.memory=48Mi"])?;
        cluster.kube.rolled_out(SYSTEM, "daemonset/rdmesh-node")?;
        cluster.kube.rolled_out(SYSTEM, "deployment/rdmesh-injector")
    })?;
    // Replicas that are going still answer for a moment.
    eventually(Duration::from_secs(10), "new pods get what the upgrade says", || {
        let pod = admitted(cluster)?;
        let sidecar =
            items(&pod["spec"]["initContainers"]).iter().find(|c| c["name"] == "rdmesh-proxy");
        let memory =
            sidecar.map(|c| text(&c["resources"]["requests"]["memory"])).unwrap_or_default();
        ensure!(memory == "48Mi", "the sidecar asks for {memory:?}");
        Ok(())
    })?;
    Ok(seen)
}

/// As the README tells: the label goes, pods are made anew, then the release goes. Two deployments are forgotten: they
/// must work on.
pub fn uninstall(cluster: &Cluster) -> Result<String> {
    let kube = &cluster.kube;
    kube.run(&["label", "namespace", MESH, "rdmesh.io/inject-"])?;
    let gone = ["web", "client-a", "client-b"];
    for app in gone {
        kube.run(&["-n", MESH, "rollout", "restart", &format!("deployment/{app}")])?;
    }
    for app in gone {
        kube.rolled_out(MESH, &format!("deployment/{app}"))?;
    }
    let forgotten = [cluster.pod(MESH, "echo")?.uid, cluster.pod(MESH, "traffic")?.uid];
    eventually(Duration::from_secs(20), "the directories of pods that went are swept", || {
        let left = cluster.directories()?;
        let others = left.iter().filter(|entry| !forgotten.iter().any(|uid| entry.ends_with(uid)));
        ensure!(others.count() == 0, "{left:?}");
        Ok(())
    })?;
    let before = flows(cluster)?;
    kube.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "110s"])?;
    flows(cluster)?;
    let after = counts(cluster)?;
    ensure!(
        after.bad == before.bad,
        "{} connections failed: {}",
        after.bad - before.bad,
        after.last_fault
    );

    nothing_is_left(cluster)?;
    // The label alone does nothing now.
    kube.run(&["label", "namespace", MESH, "rdmesh.io/inject=enabled"])?;
    let pod = admitted(cluster)?;
    ensure!(
        pod["spec"]["initContainers"].is_null(),
        "injected without an injector: {}",
        pod["spec"]
    );
    for namespace in [MESH, PLAIN] {
        let rules = cluster.rules_of_new_pod(namespace)?;
        ensure!(!rules.contains("rdmesh"), "nftables in a new pod of {namespace}: {rules}");
    }
    Ok("no object, no directory, no nftables table in new pods; pods that stayed meshed work on"
        .into())
}

fn nothing_is_left(cluster: &Cluster) -> Result<()> {
    let kinds = cluster.kube.run(&["api-resources", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !kind.starts_with("events") && !kind.contains("metrics.k8s.io"))
        .collect();
    let labelled =
        ["get", &kinds.join(","), "-A", "-l", "app.kubernetes.io/name=rdmesh", "-o", "name"];
    eventually(Duration::from_secs(30), "all objects of the release are gone", || {
        let left = cluster.kube.run(&labelled)?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    // Also those that are not labelled.
    let named = [
        "get",
        "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,priorityclasses",
        "-o",
        "name",
    ];
    let left = cluster.kube.run(&named)?;
    let left: Vec<&str> = left
        .lines()
        .filter(|name| name.contains("rdmesh") && !name.contains("rdmesh-e2e"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    let own = [
        "get",
        "secrets,configmaps,leases,services,serviceaccounts,roles,rolebindings,pods",
        "-n",
        SYSTEM,
        "-o",
        "name",
    ];
    let left = cluster.kube.run(&own)?;
    let left: Vec<&str> =
        left.lines().filter(|name| name.contains("rdmesh") || name.contains("helm")).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
