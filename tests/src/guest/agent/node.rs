//! The machine as a node of the mesh: device, lab, processes, programs.

use super::{Agent, lock};
use crate::config::{Config, DirectoryFile, Fabric};
use crate::guest::wire::{Ended, Measured, NodeState, Place, Server, Workload};
use crate::netns::Netns;
use crate::{Lab, Plan, scrape, topology};
use anyhow::{Context, Result, bail};
use rdmesh_proxy::demo::lab::Node;
use rdmesh_proxy::demo::workload::{self, Target};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The RDMA device of a guest.
pub const DEVICE: &str = "rxe0";
/// Loaded by hand: rxe wants its checksum there first, and nothing asks for the user interfaces.
const MODULES: [&str; 6] =
    ["crc32_generic", "ib_uverbs", "rdma_ucm", "rdma_rxe", "nf_tables", "sch_netem"];
/// Before the device is made: it takes its largest message per packet, 4096, from this.
const MTU: u32 = 4200;
const PROGRAM_STARTS_WITHIN: Duration = Duration::from_secs(20);

/// What a guest needs before it is a node of any plan.
pub fn prepare() -> Result<()> {
    if !rustix::process::geteuid().is_root() || !Path::new("/rdmesh/start").exists() {
        bail!("this program works in a guest of the lab; `make test-rdma` starts it there");
    }
    for module in MODULES {
        sh(&format!("modprobe {module}"))?;
    }
    sh(&format!(
        "ip link set lo up && ip link set eth0 name {u} && ip link set {u} mtu {MTU} up",
        u = topology::UNDERLAY
    ))
}

pub(super) fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", script]).output().context("run sh")?;
    if !output.status.success() {
        bail!("{script}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn words(command: &[String]) -> Result<Command> {
    let (program, arguments) = command.split_first().context("a command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

impl Agent {
    pub(super) fn node(&self) -> Result<&Node> {
        self.lab()?.nodes().first().context("the guest's node")
    }

    pub(super) fn build(
        &self,
        number: u8,
        plan: &Plan,
        proxy: &Path,
        certs: &Path,
    ) -> Result<Value> {
        let lab = match &self.netns {
            Some(netns) => Lab::at_node(plan, number, netns, proxy)?,
            None => {
                // The device belongs to the kernel's first namespace: so does the node.
                let lab = Lab::at_node(plan, number, &Netns::name_own("node")?, proxy)?;
                sh(&format!("rdma link add {DEVICE} type rxe netdev {}", topology::UNDERLAY))?;
                lab
            }
        };
        std::fs::create_dir_all(lab.certs_dir()).context("create the certificates' directory")?;
        for file in std::fs::read_dir(certs).context("read the certificates")?.flatten() {
            std::fs::copy(file.path(), lab.certs_dir().join(file.file_name()))
                .context("copy a certificate")?;
        }
        if self.lab.set(lab).is_err() {
            bail!("the guest is a node already");
        }
        Ok(Value::Null)
    }

    pub(super) fn mesh(&self, config: Config, ipv6: bool) -> Result<Value> {
        let lab = self.lab()?;
        lab.configure(|template| *template = config);
        lab.change_directory(|directory: &mut DirectoryFile| {
            for (number, node) in (1..).zip(&mut directory.nodes) {
                let v4: IpAddr = topology::node_v4(number).into();
                let address = if ipv6 { topology::node_v6(number).into() } else { v4 };
                node.address.set_ip(address);
            }
            for pod in &mut directory.pods {
                pod.fabric = Fabric::Auto;
            }
        })?;
        let mut meshed = lock(&self.meshed);
        if *meshed {
            self.node()?.kill();
            self.start_node()?;
        } else {
            lab.mesh_up()?;
            *meshed = true;
        }
        Ok(Value::Null)
    }

    pub(super) fn wish(&self, fabric: Fabric) -> Result<Value> {
        let far = topology::node_name(2);
        self.lab()?.change_directory(|directory: &mut DirectoryFile| {
            for pod in directory.pods.iter_mut().filter(|pod| pod.node == far) {
                pod.fabric = fabric;
            }
        })?;
        Ok(Value::Null)
    }

    pub(super) fn underlay(&self, up: bool) -> Result<Value> {
        let node = self.node()?;
        if up {
            let other = if node.number == 1 { 2 } else { 1 };
            topology::underlay_up(&node.netns, node.number, other)?;
        } else {
            topology::underlay_down(&node.netns)?;
        }
        Ok(Value::Null)
    }

    pub(super) fn start_node(&self) -> Result<Value> {
        let lab = self.lab()?;
        lab.start_node(self.node()?)?;
        for pod in lab.pods().iter().filter(|pod| pod.meshed) {
            lab.wait_sidecar_connected(pod)?;
        }
        Ok(Value::Null)
    }

    pub(super) fn node_state(&self) -> Result<Value> {
        let state = self.node()?.with_process(|process| NodeState {
            pid: process.pid(),
            rss_bytes: process.rss_bytes(),
            open_files: process.open_files() as u64,
            cpu_seconds: process.cpu_seconds(),
        })?;
        Ok(json!(state))
    }

    pub(super) fn node_log(&self) -> Result<Value> {
        Ok(json!(self.node()?.with_process(|process| process.log())?))
    }

    pub(super) fn node_metrics(&self) -> Result<Value> {
        let admin = Config::default().node.admin;
        Ok(json!(scrape::get(&self.node()?.netns, admin, "/metrics")?))
    }

    pub(super) fn sidecar_metrics(&self, pod: &str) -> Result<Value> {
        let admin = Config::default().sidecar.admin;
        Ok(json!(scrape::get(&self.pod(pod)?.netns, admin, "/metrics")?))
    }

    pub(super) fn netns_of(&self, place: &Place) -> Result<&Netns> {
        match place {
            Place::Node => Ok(&self.node()?.netns),
            Place::Pod(pod) => Ok(&self.pod(pod)?.netns),
        }
    }

    pub(super) fn run(&self, place: &Place, command: &[String], within_ms: u64) -> Result<Value> {
        let within = Duration::from_millis(within_ms);
        let netns = self.netns_of(place)?;
        let ended = self.lab()?.run_any(netns, &mut words(command)?, within)?;
        let (stdout, stderr) = (ended.stdout, ended.stderr);
        Ok(json!(Ended { code: ended.status.code(), stdout, stderr }))
    }

    pub(super) fn spawn(
        &self,
        place: &Place,
        name: &str,
        command: &[String],
        port: Option<u16>,
    ) -> Result<Value> {
        let netns = self.netns_of(place)?;
        let mut process = self.lab()?.spawn(netns, name, words(command)?)?;
        if let Some(port) = port {
            process.wait_listening(netns, port, PROGRAM_STARTS_WITHIN)?;
        }
        lock(&self.programs).push(process);
        Ok(Value::Null)
    }

    pub(super) fn serve(&self, pod: &str, server: Server) -> Result<Value> {
        let (lab, pod) = (self.lab()?, self.pod(pod)?);
        let process = match server {
            Server::Iperf => workload::iperf_server(lab, pod),
            Server::Sockperf => workload::sockperf_server(lab, pod),
            Server::Nginx { big_bytes } => workload::nginx(lab, pod, big_bytes),
        }?;
        lock(&self.programs).push(process);
        Ok(Value::Null)
    }

    pub(super) fn workload(&self, from: &str, to: SocketAddr, work: Workload) -> Result<Value> {
        let (lab, from) = (self.lab()?, &self.pod(from)?.netns);
        let to = Target { ip: to.ip(), port: to.port() };
        let measured = match work {
            Workload::Iperf { streams, seconds } => {
                let time = Duration::from_secs(seconds);
                let bulk = workload::iperf(lab, from, to, streams, time, &[])?;
                Measured { value: bulk.gbit_per_second, second: 0.0, bytes: bulk.bytes }
            }
            Workload::Sockperf { message_bytes, seconds } => {
                let time = Duration::from_secs(seconds);
                let ping = workload::sockperf(lab, from, to, message_bytes, time)?;
                let bytes = ping.messages * 2.0 * f64::from(message_bytes);
                Measured { value: ping.p50_us, second: ping.p99_us, bytes }
            }
            Workload::CurlBig => {
                let (value, bytes) = workload::curl_big(lab, from, to)?;
                Measured { value, second: 0.0, bytes }
            }
            Workload::CurlSmall { requests } => {
                let (value, bytes) = workload::curl_small(lab, from, to, requests)?;
                Measured { value, second: 0.0, bytes }
            }
        };
        Ok(json!(measured))
    }
}
