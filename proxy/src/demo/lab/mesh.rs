//! The mesh inside a lab: config files, certificates, the directory file, and the processes
//! `init`, `sidecar` and `node`, started as a cluster would start them.
//!
//! What it does not do: reach into the processes; it sees them through files, signals and their
//! admin endpoints, as an operator does.

use super::process::Process;
use super::scrape::{self, Metrics};
use super::{Lab, Node, Place, Pod, topology};
use anyhow::{Context, Result};
use rdmesh_config::{Config, DirectoryFile, NodeEntry, PodEntry, Tls};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A process that is not ready by then will not be.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// The fixed unprivileged identity of the sidecar.
const SIDECAR_UID: &str = "15701";

/// What the mesh of a lab is made of.
#[derive(Debug)]
pub struct State {
    /// Template of all processes' configs; names and paths are filled in.
    config: Config,
    directory: DirectoryFile,
    /// What single nodes have instead, by node number.
    node_configs: BTreeMap<u8, Config>,
    node_directories: BTreeMap<u8, DirectoryFile>,
}

impl State {
    pub(super) fn new(pods: &[Place]) -> Self {
        let port = Config::default().node.listen.port();
        let node = |number| NodeEntry {
            name: topology::node_name(number),
            address: SocketAddr::new(topology::node_v4(number).into(), port),
        };
        let directory = DirectoryFile {
            nodes: vec![node(1), node(2)],
            pods: pods.iter().filter(|pod| pod.meshed).map(pod_entry).collect(),
            ..DirectoryFile::default()
        };
        Self {
            config: Config::default(),
            directory,
            node_configs: BTreeMap::new(),
            node_directories: BTreeMap::new(),
        }
    }
}

fn pod_entry(pod: &Place) -> PodEntry {
    PodEntry {
        name: format!("default/{}", pod.name),
        uid: pod.uid(),
        node: topology::node_name(pod.node),
        addresses: vec![
            topology::pod_v4(pod.node, pod.index).into(),
            topology::pod_v6(pod.node, pod.index).into(),
        ],
        exclude_inbound_ports: Vec::new(),
        ..PodEntry::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lab {
    /// Changes the template from which the configs of all processes are made. Before `mesh_up`.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut lock(&self.mesh).config);
    }

    /// Gives one node proxy a config of its own, made from the template as it is now.
    pub fn configure_node(&self, number: u8, change: impl FnOnce(&mut Config)) {
        let mut mesh = lock(&self.mesh);
        let mut config = mesh.config.clone();
        change(&mut config);
        mesh.node_configs.insert(number, config);
    }

    /// Gives one node proxy a directory file of its own, made from the common one as it is now.
    pub fn separate_directory(
        &self,
        number: u8,
        change: impl FnOnce(&mut DirectoryFile),
    ) -> Result<()> {
        let mut mesh = lock(&self.mesh);
        let mut directory = mesh.directory.clone();
        change(&mut directory);
        mesh.node_directories.insert(number, directory);
        drop(mesh);
        self.write_directory()
    }

    /// Changes the directory file; running node proxies reload it.
    pub fn change_directory(&self, change: impl FnOnce(&mut DirectoryFile)) -> Result<()> {
        change(&mut lock(&self.mesh).directory);
        self.write_directory()
    }

    /// Starts node proxies, then prepares every meshed pod and starts its sidecar; returns when
    /// all are connected.
    pub fn mesh_up(&self) -> Result<()> {
        self.make_certificates()?;
        self.write_directory()?;
        for pod in self.meshed() {
            let dir = self.pod_dir(pod);
            std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        for node in self.nodes() {
            self.start_node_unready(node)?;
        }
        for pod in self.meshed() {
            self.init_pod(pod)?;
            self.start_sidecar_unready(pod)?;
        }
        for node in self.nodes() {
            self.wait_node_ready(node)?;
        }
        for pod in self.meshed() {
            self.wait_sidecar_connected(pod)?;
        }
        Ok(())
    }

    fn meshed(&self) -> impl Iterator<Item = &Pod> {
        self.pods().iter().filter(|pod| pod.meshed)
    }

    /// Runs `rdmesh-proxy` with these arguments in no particular place.
    pub fn proxy_command(&self) -> Command {
        let mut command = Command::new(&self.proxy);
        command.env_remove("RUST_LOG");
        command
    }

    fn make_certificates(&self) -> Result<()> {
        let dir = self.certs_dir();
        if dir.join("ca.crt").exists() {
            return Ok(());
        }
        let mut command = self.proxy_command();
        command.arg("certs").arg("--dir").arg(&dir);
        for node in self.nodes() {
            command.args(["--node", &node.name]);
        }
        self.run(&self.nodes()[0].netns, &mut command, READY_WITHIN).map(drop)
    }

    pub fn certs_dir(&self) -> PathBuf {
        self.dir().join("certs")
    }

    pub fn directory_path(&self) -> PathBuf {
        self.dir().join("directory.yaml")
    }

    fn directory_path_of(&self, node: u8) -> PathBuf {
        self.dir().join(format!("directory-n{node}.yaml"))
    }

    pub fn pods_dir(&self, node: u8) -> PathBuf {
        self.dir().join(format!("n{node}")).join("pods")
    }

    /// Where the node proxy and the sidecar of a pod meet.
    pub fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.pods_dir(pod.node).join(&pod.uid)
    }

    fn write_directory(&self) -> Result<()> {
        let mesh = lock(&self.mesh);
        let text = mesh.directory.to_yaml();
        write_atomically(&self.directory_path(), &text)?;
        for (node, directory) in &mesh.node_directories {
            let text = directory.to_yaml();
            write_atomically(&self.directory_path_of(*node), &text)?;
        }
        Ok(())
    }

    /// The config file of a node proxy, made afresh from the template.
    pub fn node_config(&self, node: &Node) -> Result<PathBuf> {
        let mesh = lock(&self.mesh);
        let mut config = mesh.node_configs.get(&node.number).unwrap_or(&mesh.config).clone();
        let own_directory = mesh.node_directories.contains_key(&node.number);
        drop(mesh);
        if config.node.name.is_empty() {
            config.node.name.clone_from(&node.name);
        }
        config.node.pods_dir = self.pods_dir(node.number);
        config.node.directory.file =
            if own_directory { self.directory_path_of(node.number) } else { self.directory_path() };
        if config.node.tls == Tls::default() {
            let certs = self.certs_dir();
            config.node.tls = Tls {
                ca: certs.join("ca.crt"),
                cert: certs.join(format!("{}.crt", node.name)),
                key: certs.join(format!("{}.key", node.name)),
            };
        }
        self.write_config(&node.name, &config)
    }

    /// The config file of a pod's `init` and `sidecar`, made afresh from the template.
    pub fn pod_config(&self, pod: &Pod) -> Result<PathBuf> {
        let mut config = lock(&self.mesh).config.clone();
        config.sidecar.node_socket = self.pod_dir(pod).join("node.sock");
        self.write_config(&pod.name, &config)
    }

    fn write_config(&self, name: &str, config: &Config) -> Result<PathBuf> {
        let path = self.dir().join(format!("{name}.yaml"));
        write_atomically(&path, &config.to_yaml())?;
        Ok(path)
    }

    /// Programs the capture of a pod.
    pub fn init_pod(&self, pod: &Pod) -> Result<()> {
        let config = self.pod_config(pod)?;
        let mut command = self.proxy_command();
        command.arg("init").arg("--config").arg(config);
        self.run(&pod.netns, &mut command, READY_WITHIN)?;
        Ok(())
    }

    pub fn start_node(&self, node: &Node) -> Result<()> {
        self.start_node_unready(node)?;
        self.wait_node_ready(node)
    }

    fn start_node_unready(&self, node: &Node) -> Result<()> {
        std::fs::create_dir_all(self.pods_dir(node.number)).context("create the pods directory")?;
        let mut command = self.proxy_command();
        command.arg("node").arg("--config").arg(self.node_config(node)?);
        let process = self.spawn(&node.netns, &node.name, command)?;
        *lock(&node.process) = Some(process);
        Ok(())
    }

    fn wait_node_ready(&self, node: &Node) -> Result<()> {
        let admin = lock(&self.mesh).config.node.admin;
        let mut process = lock(&node.process);
        let process = process.as_mut().context("the node proxy was not started")?;
        process.wait_until(READY_WITHIN, "get ready", || {
            scrape::get(&node.netns, admin, "/readyz").is_ok()
        })
    }

    pub fn start_sidecar(&self, pod: &Pod) -> Result<()> {
        self.start_sidecar_unready(pod)?;
        let admin = lock(&self.mesh).config.sidecar.admin;
        let mut process = lock(&pod.sidecar);
        let process = process.as_mut().context("the sidecar was not started")?;
        process.wait_until(READY_WITHIN, "get ready", || {
            scrape::get(&pod.netns, admin, "/readyz").is_ok()
        })
    }

    fn start_sidecar_unready(&self, pod: &Pod) -> Result<()> {
        let config = self.pod_config(pod)?;
        // As in a cluster: a fixed user that is not root, with CAP_NET_RAW and nothing else.
        let mut command = Command::new("setpriv");
        command.args(["--reuid", SIDECAR_UID, "--regid", SIDECAR_UID, "--clear-groups"]);
        command.args(["--bounding-set", "-all,+net_raw", "--inh-caps", "-all,+net_raw"]);
        command.args(["--ambient-caps", "-all,+net_raw", "--no-new-privs", "--"]);
        command.arg(&self.proxy).arg("sidecar").arg("--config").arg(config);
        command.env_remove("RUST_LOG");
        let process = self.spawn(&pod.netns, &format!("sidecar-{}", pod.name), command)?;
        *lock(&pod.sidecar) = Some(process);
        Ok(())
    }

    /// Waits until a pod's sidecar has its connection to the node proxy.
    pub fn wait_sidecar_connected(&self, pod: &Pod) -> Result<()> {
        let admin = lock(&self.mesh).config.sidecar.admin;
        let mut process = lock(&pod.sidecar);
        let process = process.as_mut().context("the sidecar was not started")?;
        process.wait_until(READY_WITHIN, "reach its node proxy", || {
            Metrics::fetch(&pod.netns, admin)
                .is_ok_and(|m| m.sum("rdmesh_sidecar_node_connected", &[]) >= 1.0)
        })
    }

    pub fn node_metrics(&self, number: u8) -> Result<Metrics> {
        let admin = lock(&self.mesh).config.node.admin;
        Metrics::fetch(&self.node(number).netns, admin)
    }

    pub fn sidecar_metrics(&self, pod: &Pod) -> Result<Metrics> {
        let admin = lock(&self.mesh).config.sidecar.admin;
        Metrics::fetch(&pod.netns, admin)
    }
}

impl Node {
    /// Does something with the running node proxy.
    pub fn with_process<T>(&self, f: impl FnOnce(&mut Process) -> T) -> Result<T> {
        let mut process = lock(&self.process);
        Ok(f(process.as_mut().context("the node proxy is not running")?))
    }

    /// SIGKILL, as a crash would be.
    pub fn kill(&self) {
        lock(&self.process).take();
    }
}

impl Pod {
    /// Does something with the running sidecar.
    pub fn with_sidecar<T>(&self, f: impl FnOnce(&mut Process) -> T) -> Result<T> {
        let mut process = lock(&self.sidecar);
        Ok(f(process.as_mut().context("the sidecar is not running")?))
    }

    /// SIGKILL, as a crash would be.
    pub fn kill_sidecar(&self) {
        lock(&self.sidecar).take();
    }
}

/// A reader sees the old text or the new one, never half of it.
fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let half = path.with_extension("new");
    std::fs::write(&half, text).with_context(|| format!("write {}", half.display()))?;
    std::fs::rename(&half, path).with_context(|| format!("replace {}", path.display()))
}
