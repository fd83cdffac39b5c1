//! The cluster under test: what the scenarios put into it, see of it, and take out again.
//!
//! What it does not do: judge; see `scenarios`.

use super::kubectl::{Kube, eventually};
use crate::scrape::Metrics;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The release's namespace.
pub const SYSTEM: &str = "rdmesh-e2e-system";
/// Has the label.
pub const MESH: &str = "rdmesh-e2e";
pub const PLAIN: &str = "rdmesh-e2e-plain";
pub const WATCH: &str = "rdmesh-e2e-prometheus";
pub const RELEASE: &str = "rdmesh";
pub const NODE_ADMIN: u16 = 15790;
pub const SIDECAR_ADMIN: u16 = 15791;

const DNS: &str = include_str!("../../kube/dns.yaml");
const DNS_OBJECTS: &str =
    "deployment/e2e-dns,service/kube-dns,configmap/e2e-dns,serviceaccount/e2e-dns";
const CLUSTER_OBJECTS: &str = "clusterrole/e2e-dns,clusterrolebinding/e2e-dns,clusterrole/rdmesh-e2e-prometheus,clusterrolebinding/rdmesh-e2e-prometheus";
/// Where the chart says that node proxies and sidecars meet.
const PODS_DIR: &str = "/host/run/rdmesh/pods";

pub struct Cluster {
    pub kube: Kube,
    /// All, and of them the two where the workloads go.
    pub nodes: Vec<String>,
    pub node_a: String,
    pub node_b: String,
    image: String,
    pod_image: String,
    /// Values of the chart besides those that the scenarios set, with spaces between them.
    settings: String,
    /// Whether the cluster's DNS is ours.
    own_dns: bool,
}

/// A pod as the scenarios need it.
#[derive(Debug, Clone)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub address: IpAddr,
    pub object: Value,
}

impl Pod {
    #[must_use]
    pub fn address_of(&self, ipv6: bool) -> Option<IpAddr> {
        let mut all = items(&self.object["status"]["podIPs"]).iter();
        all.find_map(|entry| {
            text(&entry["ip"]).parse().ok().filter(|a: &IpAddr| a.is_ipv6() == ipv6)
        })
    }
}

impl Cluster {
    /// # Errors
    /// When the cluster is not fit, or another rdmesh is in it.
    pub fn new() -> Result<Self> {
        let kube = Kube::new()?;
        let listed = kube.json(&["get", "nodes"])?;
        let ready = |node: &&Value| {
            items(&node["status"]["conditions"])
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let nodes: Vec<String> = items(&listed["items"])
            .iter()
            .filter(ready)
            .map(|node| text(&node["metadata"]["name"]))
            .collect();
        ensure!(nodes.len() >= 2, "two ready nodes are needed; the cluster has {nodes:?}");
        let variable = |name: &str, default: &str| {
            std::env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned())
        };
        let mut cluster = Self {
            node_a: nodes[0].clone(),
            node_b: nodes[1].clone(),
            nodes,
            kube,
            image: variable("E2E_IMAGE", "localhost/rdmesh:dev"),
            pod_image: variable("E2E_POD_IMAGE", "localhost/rdmesh-e2e:dev"),
            settings: std::env::var("E2E_SET").unwrap_or_default(),
            own_dns: false,
        };
        cluster.tell_versions(&listed)?;
        // What a run that was cut off left.
        cluster.clean()?;
        if let Ok(other) =
            cluster.kube.json(&["get", "mutatingwebhookconfiguration", "rdmesh-injector"])
        {
            bail!("another rdmesh is installed in this cluster: {}", other["metadata"]["labels"]);
        }
        cluster.give_dns()?;
        Ok(cluster)
    }

    fn tell_versions(&self, nodes: &Value) -> Result<()> {
        let version = self.kube.json(&["version"])?;
        let info = &items(&nodes["items"])[0]["status"]["nodeInfo"];
        println!(
            "Kubernetes {}, kubectl {}, helm {}, {}, kernel {}, kube-proxy as the cluster has it; nodes {}",
            text(&version["serverVersion"]["gitVersion"]),
            text(&version["clientVersion"]["gitVersion"]),
            self.kube.helm(&["version", "--short"])?.trim(),
            text(&info["containerRuntimeVersion"]),
            text(&info["kernelVersion"]),
            self.nodes.join(", ")
        );
        Ok(())
    }

    /// Node proxies find the injector by name, and so do clients their servers.
    fn give_dns(&mut self) -> Result<()> {
        if self.kube.run(&["-n", "kube-system", "get", "service", "kube-dns"]).is_ok() {
            return Ok(());
        }
        let config = format!("/api/v1/nodes/{}/proxy/configz", self.node_a);
        let config: Value = serde_json::from_str(&self.kube.run(&["get", "--raw", &config])?)?;
        let address = text(&config["kubeletconfig"]["clusterDNS"][0]);
        ensure!(!address.is_empty(), "the cluster has no DNS, and its kubelets expect none");
        println!("NOTE: this cluster has no DNS; for this run it gets a dnsmasq at {address}");
        self.own_dns = true;
        self.kube.apply(&self.render(DNS, &[("address", &address)]))?;
        self.kube.rolled_out("kube-system", "deployment/e2e-dns")
    }

    /// A template with its `${name}`s replaced.
    #[must_use]
    pub fn render(&self, template: &str, values: &[(&str, &str)]) -> String {
        let own = [("image", &*self.pod_image), ("node_a", &self.node_a), ("node_b", &self.node_b)];
        own.iter().chain(values).fold(template.to_owned(), |text, (name, value)| {
            text.replace(&format!("${{{name}}}"), value)
        })
    }

    /// # Errors
    /// When the API server refuses the objects.
    pub fn apply(&self, namespace: &str, template: &str, values: &[(&str, &str)]) -> Result<()> {
        let values: Vec<_> = values.iter().copied().chain([("namespace", namespace)]).collect();
        // Into the namespace without saying it in each object.
        let objects = self.render(template, &values);
        let parts: Vec<&str> = objects.split("\n---\n").collect();
        let placed: Vec<String> = parts
            .iter()
            .map(|part| {
                part.replacen(
                    "metadata: {name:",
                    &format!("metadata: {{namespace: {namespace}, name:"),
                    1,
                )
            })
            .collect();
        self.kube.apply(&placed.join("\n---\n"))
    }

    /// # Errors
    /// When the API server refuses it.
    pub fn namespace(&self, name: &str, labels: &str) -> Result<()> {
        self.kube.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{rdmesh-e2e: \"true\"{labels}}}}}\n"
        ))
    }

    /// helm install or upgrade of the chart beside this crate.
    ///
    /// # Errors
    /// When helm fails, or what it installs does not become ready.
    pub fn release(&self, verb: &str, settings: &[&str]) -> Result<String> {
        let (repository, tag) = self.image.rsplit_once(':').context("E2E_IMAGE has no tag")?;
        let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/rdmesh");
        let chart = chart.to_string_lossy();
        let image = [format!("image.repository={repository}"), format!("image.tag={tag}")];
        let mut arguments =
            vec![verb, RELEASE, &*chart, "--namespace", SYSTEM, "--wait", "--timeout", "110s"];
        let settings = settings.iter().copied().chain(self.settings.split_whitespace());
        for setting in image.iter().map(String::as_str).chain(settings) {
            arguments.extend(["--set", setting]);
        }
        self.kube.helm(&arguments)
    }

    /// Whether the meshed pods have the sysctls by which capture routes.
    #[must_use]
    pub fn has_pod_sysctls(&self) -> bool {
        self.settings.split_whitespace().any(|setting| setting == "sidecar.podSysctls=true")
    }

    /// The running pods with these labels.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<Pod>> {
        let listed = self.kube.json(&["-n", namespace, "get", "pods", "-l", labels])?;
        let running = items(&listed["items"])
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter(|pod| pod["status"]["phase"] == "Running");
        running
            .map(|pod| {
                Ok(Pod {
                    name: text(&pod["metadata"]["name"]),
                    uid: text(&pod["metadata"]["uid"]),
                    address: text(&pod["status"]["podIP"])
                        .parse()
                        .context("a running pod without an address")?,
                    object: pod.clone(),
                })
            })
            .collect()
    }

    /// The one pod of a deployment of the workloads.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn pod(&self, namespace: &str, app: &str) -> Result<Pod> {
        let mut pods = self.pods(namespace, &format!("app={app}"))?;
        ensure!(pods.len() == 1, "{} pods of {app} run, not 1", pods.len());
        pods.pop().context("no pod")
    }

    /// # Errors
    /// When there is none.
    pub fn node_proxy(&self, node: &str) -> Result<Pod> {
        let pods = self.pods(SYSTEM, "app.kubernetes.io/component=node")?;
        let here = pods.into_iter().find(|pod| pod.object["spec"]["nodeName"] == node);
        here.with_context(|| format!("no node proxy runs on {node}"))
    }

    /// # Errors
    /// When the node proxy does not answer.
    pub fn node_metrics(&self, node: &str) -> Result<Metrics> {
        let pod = self.node_proxy(node)?;
        Ok(Metrics::parse(&self.kube.get(SYSTEM, &pod.name, NODE_ADMIN, "/metrics")?))
    }

    /// # Errors
    /// When the sidecar does not answer.
    pub fn sidecar_metrics(&self, app: &str) -> Result<Metrics> {
        let pod = self.pod(MESH, app)?;
        Ok(Metrics::parse(&self.kube.get(MESH, &pod.name, SIDECAR_ADMIN, "/metrics")?))
    }

    /// The per-pod directories of all nodes, as `NODE UID`.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn directories(&self) -> Result<Vec<String>> {
        self.on_hosts(&format!("ls {PODS_DIR} 2>/dev/null || true"))
    }

    /// Removes per-pod directories that hold nothing but a node proxy's socket.
    ///
    /// # Errors
    /// When one holds more.
    pub fn remove_directories(&self) -> Result<()> {
        let left = self.on_hosts(&format!(
            "rm -f {PODS_DIR}/*/node.sock; rmdir {PODS_DIR}/* 2>/dev/null; ls {PODS_DIR} 2>/dev/null || true"
        ))?;
        ensure!(left.is_empty(), "these cannot be removed: {left:?}");
        Ok(())
    }

    /// SIGKILL to the node proxy of a node, found by its container's id and by nothing else.
    ///
    /// # Errors
    /// When there is no process of it.
    pub fn kill_node_proxy(&self, node: &str) -> Result<()> {
        let pod = self.node_proxy(node)?.object;
        let statuses = items(&pod["status"]["containerStatuses"]);
        let status = statuses.iter().find(|status| status["name"] == "node");
        let id = status.map(|status| text(&status["containerID"])).unwrap_or_default();
        let id = id.rsplit('/').next().unwrap_or_default();
        ensure!(id.len() >= 32, "the node proxy's container has no id: {status:?}");
        let hosts = self.pods(PLAIN, "app=host")?;
        let host = hosts.iter().find(|host| host.object["spec"]["nodeName"] == node);
        let host = &host.with_context(|| format!("no pod looks at {node}"))?.name;
        let kill = format!(
            "for p in /proc/[0-9]*; do grep -q {id} $p/cgroup 2>/dev/null && kill -KILL ${{p#/proc/}} && echo $p; done"
        );
        let killed =
            self.kube.exec(PLAIN, host, "host", &["sh", "-c", &format!("{kill}; true")])?;
        ensure!(!killed.trim().is_empty(), "no process of container {id} was found on {node}");
        Ok(())
    }

    /// The words that a command prints on the nodes, each after the node's name.
    fn on_hosts(&self, command: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for pod in self.pods(PLAIN, "app=host")? {
            let node = text(&pod.object["spec"]["nodeName"]);
            let found = self.kube.exec(PLAIN, &pod.name, "host", &["sh", "-c", command])?;
            all.extend(found.split_whitespace().map(|word| format!("{node} {word}")));
        }
        Ok(all)
    }

    /// The nftables rules in the namespace of a new pod.
    ///
    /// # Errors
    /// When the pod does not come up, or nftables do not answer.
    pub fn rules_of_new_pod(&self, namespace: &str) -> Result<String> {
        self.apply(namespace, include_str!("../../kube/look.yaml"), &[])?;
        self.kube.run(&[
            "-n",
            namespace,
            "wait",
            "pod/look",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?;
        let rules = self.kube.exec(namespace, "look", "look", &["nft", "list", "ruleset"])?;
        self.kube.run(&["-n", namespace, "delete", "pod", "look", "--wait"])?;
        Ok(rules)
    }

    /// Takes out whatever these tests put in, in the order in which an operator would: first the pods, so that the
    /// node proxies sweep their directories.
    ///
    /// # Errors
    /// When something stays.
    pub fn clean(&self) -> Result<()> {
        let delete = |what: &[&str]| {
            let words: Vec<&str> = what
                .iter()
                .copied()
                .chain(["--ignore-not-found", "--wait", "--timeout=110s"])
                .collect();
            self.kube.run(&words).map(drop)
        };
        delete(&["delete", "namespace", MESH])?;
        if self.pods(PLAIN, "app=host").is_ok_and(|pods| !pods.is_empty()) {
            // Where node proxies run, they sweep; after an uninstallation nobody does.
            let swept = eventually(Duration::from_secs(5), "the directories are swept", || {
                let left = self.directories()?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            });
            if swept.is_err() {
                self.remove_directories()?;
            }
        }
        delete(&["delete", "namespace", PLAIN, WATCH])?;
        if self.kube.helm(&["status", RELEASE, "--namespace", SYSTEM]).is_ok() {
            self.kube.helm(&[
                "uninstall",
                RELEASE,
                "--namespace",
                SYSTEM,
                "--wait",
                "--timeout",
                "110s",
            ])?;
        }
        delete(&["delete", "namespace", SYSTEM])?;
        // The Service is ours only beside our Deployment.
        if self.kube.run(&["-n", "kube-system", "get", "deployment", "e2e-dns"]).is_ok() {
            let objects: Vec<&str> = DNS_OBJECTS.split(',').collect();
            delete(&[&["-n", "kube-system", "delete"][..], &objects].concat())?;
        }
        let objects: Vec<&str> = CLUSTER_OBJECTS.split(',').collect();
        delete(&[&["delete"][..], &objects].concat())
    }

    /// What is known when something went wrong.
    pub fn print_state(&self) {
        let asks: &[&[&str]] = &[
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "events", "-A", "--field-selector=type=Warning"],
            &[
                "-n",
                SYSTEM,
                "logs",
                "-l",
                "app.kubernetes.io/component=node",
                "--all-containers",
                "--prefix",
                "--tail=40",
            ],
            &[
                "-n",
                SYSTEM,
                "logs",
                "-l",
                "app.kubernetes.io/component=injector",
                "--prefix",
                "--tail=20",
            ],
            &["-n", WATCH, "logs", "-l", "app", "--prefix", "--tail=10"],
            &[
                "-n",
                MESH,
                "logs",
                "-l",
                "app",
                "-c",
                "rdmesh-proxy",
                "--prefix",
                "--tail=20",
                "--ignore-errors",
            ],
        ];
        for ask in asks {
            match self.kube.run(ask) {
                Ok(text) => eprintln!("--- kubectl {}\n{text}", ask.join(" ")),
                Err(error) => eprintln!("--- {error:#}"),
            }
        }
    }

    /// Waits until the node proxies know the sidecars of all meshed pods.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn wait_for_sidecars(&self) -> Result<()> {
        for app in ["web", "echo", "client-a", "client-b", "traffic"] {
            eventually(Duration::from_secs(20), "a sidecar is connected", || {
                let connected =
                    self.sidecar_metrics(app)?.sum("rdmesh_sidecar_node_connected", &[]);
                ensure!(connected >= 1.0, "the sidecar of {app} has no channel to its node proxy");
                Ok(())
            })?;
        }
        Ok(())
    }
}

#[must_use]
pub fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[must_use]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
