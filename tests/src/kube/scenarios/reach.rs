//! Who is meshed and who is not, and that each is reached.

use crate::kube::cluster::{Cluster, MESH, PLAIN, items, text};
use crate::kube::kubectl::eventually;
use crate::kube::scenarios::NOT_RUN;
use anyhow::{Context, Result, bail, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const WORKLOADS: &str = include_str!("../../../kube/workloads.yaml");
const PLAIN_WORKLOADS: &str = include_str!("../../../kube/plain.yaml");
const JOB: &str = include_str!("../../../kube/job.yaml");
const BLOB_BYTES: f64 = 8_388_608.0;

pub fn untouched(cluster: &Cluster) -> Result<String> {
    cluster.namespace(PLAIN, "")?;
    cluster.apply(PLAIN, PLAIN_WORKLOADS, &[])?;
    for what in ["deployment/client", "deployment/server", "daemonset/host"] {
        cluster.kube.rolled_out(PLAIN, what)?;
    }
    let pod = cluster.pod(PLAIN, "client")?.object;
    ensure!(pod["spec"]["initContainers"].is_null(), "init containers: {}", pod["spec"]);
    ensure!(items(&pod["spec"]["containers"]).len() == 1, "containers: {}", pod["spec"]);
    let marks = format!("{}{}", pod["metadata"]["labels"], pod["metadata"]["annotations"]);
    ensure!(!marks.contains("rdmesh.io"), "marks of the injector: {marks}");
    let rules = cluster.rules_of_new_pod(PLAIN)?;
    ensure!(!rules.contains("rdmesh"), "nftables in a pod that is not meshed: {rules}");
    Ok("one container, no mark, no nftables table".into())
}

pub fn meshed(cluster: &Cluster) -> Result<String> {
    cluster.namespace(MESH, ", rdmesh.io/inject: enabled")?;
    cluster.apply(MESH, WORKLOADS, &[])?;
    let begun = Instant::now();
    for app in ["web", "echo", "client-a", "client-b", "traffic"] {
        cluster.kube.rolled_out(MESH, &format!("deployment/{app}"))?;
    }
    let up = begun.elapsed().as_secs_f64();
    cluster.wait_for_sidecars()?;
    let pod = cluster.pod(MESH, "web")?.object;
    let names: Vec<String> =
        items(&pod["spec"]["initContainers"]).iter().map(|c| text(&c["name"])).collect();
    ensure!(names == ["rdmesh-init", "rdmesh-proxy"], "init containers: {names:?}");
    // The look that finds nothing elsewhere finds something here.
    let rules = cluster.rules_of_new_pod(MESH)?;
    ensure!(rules.contains("table inet rdmesh"), "nftables in a meshed pod: {rules}");
    let routes = rules.contains("tproxy");
    ensure!(routes == cluster.has_pod_sysctls(), "the capture is by the wrong method: {rules}");
    let mut directories = 0;
    for node in &cluster.nodes {
        let own: Vec<String> = cluster
            .directories()?
            .into_iter()
            .filter(|d| d.starts_with(&format!("{node} ")))
            .collect();
        for app in ["web", "client-a"] {
            let pod = cluster.pod(MESH, app)?;
            let here = own.iter().any(|entry| entry.ends_with(&pod.uid));
            if here && pod.object["spec"]["nodeName"] != node.as_str() {
                bail!(
                    "{node} has the directory of a pod of another node: the nodes must not share /run/rdmesh (kube-lab: HOSTDIRS=/run/rdmesh)"
                );
            }
            directories += usize::from(here);
        }
    }
    ensure!(
        directories == 2,
        "{directories} of 2 per-pod directories are on their nodes: {:?}",
        cluster.directories()?
    );
    Ok(format!("5 deployments ready after {up:.1} s"))
}

pub fn through_the_mesh(cluster: &Cluster) -> Result<String> {
    let ipv6 = cluster.pod(MESH, "web")?.address.is_ipv6();
    reached(cluster, ipv6)
}

/// The same from and to the other of the addresses that the pods of a dual-stack cluster have.
pub fn by_the_other_family(cluster: &Cluster) -> Result<String> {
    let web = cluster.pod(MESH, "web")?;
    let ipv6 = web.address.is_ipv4();
    if web.address_of(ipv6).is_none() {
        return Ok(format!("{NOT_RUN}: this cluster's pods have one address each"));
    }
    reached(cluster, ipv6)
}

fn reached(cluster: &Cluster, ipv6: bool) -> Result<String> {
    let (web, family) = (cluster.pod(MESH, "web")?, if ipv6 { "-6" } else { "-4" });
    let host = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let service = cluster.kube.json(&["-n", MESH, "get", "service", "web"])?;
    let mut cluster_addresses = items(&service["spec"]["clusterIPs"]).iter();
    let cluster_address = cluster_addresses
        .find_map(|address| text(address).parse().ok().filter(|a: &IpAddr| a.is_ipv6() == ipv6));
    let ways = [
        format!("{}:8080", host(web.address_of(ipv6).context("web's address")?)),
        host(cluster_address.context("a ClusterIP of this family")?),
        "web".into(),
        format!("web.{MESH}.svc.cluster.local"),
        "web-headless:8080".into(),
    ];
    let want = cluster.kube.exec(MESH, &web.name, "web", &["sha256sum", "/tmp/data/blob"])?;
    let want = want.split_whitespace().next().unwrap_or_default().to_owned();
    let mut seen = Vec::new();
    for (client, fabric) in [("client-a", "tcp"), ("client-b", "shm")] {
        let pod = cluster.pod(MESH, client)?;
        let own = pod.address_of(ipv6).context("the client's address")?;
        let node = text(&pod.object["spec"]["nodeName"]);
        let before = cluster.node_metrics(&node)?;
        for way in &ways {
            let url = format!("http://{way}/who");
            let who = ["curl", family, "-sS", "--max-time", "10", &url];
            let who = cluster.kube.exec(MESH, &pod.name, "client", &who)?;
            ensure!(
                who.trim() == own.to_string(),
                "{client} at {own} reached {way}, which saw {who}"
            );
            let fetch = format!("curl {family} -sS --max-time 30 http://{way}/blob | sha256sum");
            let got = cluster.kube.exec(MESH, &pod.name, "client", &["sh", "-c", &fetch])?;
            ensure!(
                got.starts_with(&want),
                "{client} got other bytes of {way} than were sent: {got}"
            );
        }
        let after = cluster.node_metrics(&node)?;
        let sum = |name: &str, labels: &[(&str, &str)]| {
            after.sum(name, labels) - before.sum(name, labels)
        };
        let bytes =
            sum("rdmesh_stream_bytes_total", &[("direction", "received"), ("fabric", fabric)]);
        let wanted = BLOB_BYTES * 5.0;
        ensure!(
            bytes >= wanted,
            "{client}: {bytes} bytes came over {fabric}, not {wanted}: {}",
            after.show("rdmesh_stream_bytes_total")
        );
        let streams = sum("rdmesh_streams_total", &[("fabric", fabric)]);
        ensure!(streams >= 10.0, "{client}: {streams} streams over {fabric}, not 10");
        seen.push(format!("{client}: {:.0} MiB over {fabric}", bytes / 1_048_576.0));
    }
    for app in ["web", "client-a", "client-b"] {
        let metrics = cluster.sidecar_metrics(app)?;
        let passed = metrics.sum("rdmesh_passthrough_total", &[]);
        ensure!(
            passed == 0.0,
            "{app} let connections pass through: {}",
            metrics.show("rdmesh_passthrough_total")
        );
    }
    Ok(format!("{}, source addresses kept, nothing passed through", seen.join(", ")))
}

/// From the mesh outwards, and inwards from outside.
pub fn outside(cluster: &Cluster) -> Result<String> {
    let dial = |namespace: &str, app: &str, to: &str| {
        let pod = cluster.pod(namespace, app)?;
        let echo = format!("echo hello | nc -w 5 {to} 7000");
        let got = cluster.kube.exec(namespace, &pod.name, "client", &["sh", "-c", &echo])?;
        ensure!(got.trim() == "hello", "{app} sent hello to {to} and got {got:?}");
        Ok(())
    };
    let server = cluster.pod(PLAIN, "server")?;
    dial(MESH, "client-a", &server.address.to_string())?;
    let metrics = cluster.sidecar_metrics("client-a")?;
    let passed = metrics.sum("rdmesh_passthrough_total", &[("reason", "outside_mesh")]);
    ensure!(passed >= 1.0, "not counted: {}", metrics.show("rdmesh_passthrough_total"));
    dial(PLAIN, "client", &cluster.pod(MESH, "echo")?.address.to_string())?;
    Ok("outwards by passthrough (outside_mesh), inwards directly".into())
}

pub fn job(cluster: &Cluster) -> Result<String> {
    let time = run_job(cluster, "")?;
    Ok(format!("complete after {time:.1} s, its directory swept"))
}

/// By the lanes' numbers, which tell it with and without RDMA devices in the cluster.
pub fn wanted_fabric(cluster: &Cluster) -> Result<String> {
    // One for each worker at most; a cluster's nodes have fewer than that.
    const TCP_LANES: std::ops::Range<u16> = 10_000..10_256;
    let lanes = || -> Result<f64> {
        let metrics = cluster.node_metrics(&cluster.node_a)?;
        let up = |lane: u16| metrics.sum("rdmesh_lane_up", &[("lane", &lane.to_string())]);
        Ok(TCP_LANES.map(up).sum())
    };
    let before = lanes()?;
    ensure!(before == 0.0, "{before} lanes that keep off RDMA, before any pod wanted one");
    run_job(cluster, "rdmesh.io/fabric: tcp")?;
    let now = lanes()?;
    ensure!(
        now == 1.0,
        "{now} lanes that keep off RDMA after one connection of a pod that wants so"
    );
    Ok("the connection of a Job that wants tcp has a lane of its own".into())
}

/// Runs the job with these annotations of its pod; how long it took.
fn run_job(cluster: &Cluster, annotations: &str) -> Result<f64> {
    let begun = Instant::now();
    cluster.apply(MESH, JOB, &[("annotations", annotations)])?;
    cluster.kube.run(&[
        "-n",
        MESH,
        "wait",
        "job/job",
        "--for=condition=Complete",
        "--timeout=60s",
    ])?;
    let time = begun.elapsed().as_secs_f64();
    let pods = cluster.kube.json(&["-n", MESH, "get", "pods", "-l", "app=job"])?;
    let pod = &items(&pods["items"])[0];
    let addresses = &pod["status"]["podIPs"];
    let log = cluster.kube.run(&["-n", MESH, "logs", "job/job", "-c", "job"])?;
    ensure!(
        items(addresses).iter().any(|entry| entry["ip"] == log.trim()),
        "the job at {addresses} was seen as {log}"
    );
    let uid = text(&pod["metadata"]["uid"]);
    cluster.kube.run(&["-n", MESH, "delete", "job", "job", "--wait", "--cascade=foreground"])?;
    eventually(Duration::from_secs(10), "the job's directory is swept", || {
        let left = cluster.directories()?;
        ensure!(!left.iter().any(|entry| entry.ends_with(&uid)), "{left:?}");
        Ok(())
    })?;
    Ok(time)
}
