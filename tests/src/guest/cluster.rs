//! The two machines as one lab: booted together, meshed with a setting, looked at, powered off.
//!
//! What it does not do: say what is right; the scenarios do.

use super::agent::node::DEVICE;
use super::host::Host;
use super::image::{Image, Kernel, SCRATCH};
use super::machine::Machine;
use super::remote::Remote;
use super::wire::{Call, Ended, NodeState, Opened, Place};
use crate::config::{Config, Fabric};
use crate::scrape::Metrics;
use crate::{Plan, topology};
use anyhow::{Context, Result, bail};
use rdmesh_proxy::demo::lab::site;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Whatever a scenario waits for in a guest comes within this time or never.
pub const PATIENCE: Duration = Duration::from_secs(90);
const PREFIX: &str = "rdmesh-guests-";
const KEPT: &str = "kept";

/// How the mesh is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    pub fabric: Fabric,
    pub ipv6: bool,
    pub workers: u32,
    pub encrypt: bool,
    pub lane_idle_ms: Option<u64>,
}

impl Setting {
    #[must_use]
    pub fn new(fabric: Fabric) -> Self {
        Self { fabric, ipv6: false, workers: 1, encrypt: true, lane_idle_ms: None }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        // For whoever looks into a failure: `RDMESH_LOG=debug make test-rdma ARGS=killed`.
        if let Ok(level) = std::env::var("RDMESH_LOG") {
            config.log.level = level;
        }
        let node = &mut config.node;
        node.fabric = self.fabric;
        node.workers = self.workers;
        node.encrypt = self.encrypt;
        if let Some(ms) = self.lane_idle_ms {
            node.timeouts.lane_idle_ms = ms;
        }
        // A guest has a gigabyte and a half, and what is registered is pinned.
        node.limits.window_budget_bytes = 64 << 20;
        node.limits.slab_bytes = 16 << 20;
        // An emulated CPU is slow, and so is every time-out that counts on a fast one.
        node.timeouts.handshake_ms = 20_000;
        node.timeouts.open_ms = 60_000;
        node.timeouts.keepalive_timeout_ms = 15_000;
        if self.ipv6 {
            node.listen.set_ip(std::net::Ipv6Addr::UNSPECIFIED.into());
        }
        config
    }
}

#[derive(Debug)]
pub struct Cluster {
    machines: Vec<Machine>,
    /// With the devices of this machine, and no guests.
    host: Option<Host>,
    setting: Option<Setting>,
    dir: PathBuf,
    proxy: PathBuf,
}

impl Cluster {
    /// Boots both guests (with `RDMA=host`: prepares namespaces) and makes them the two nodes of
    /// `plan`; no process of the mesh runs yet.
    pub fn boot(plan: &Plan, proxy: &Path) -> Result<Self> {
        Self::boot_on(Kernel::Stable, plan, proxy)
    }

    /// The same with this kernel in the guests.
    pub fn boot_on(kernel: Kernel, plan: &Plan, proxy: &Path) -> Result<Self> {
        sweep();
        let host = Host::wanted()?;
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let proxy = proxy.to_owned();
        let mut cluster = Self { machines: Vec::new(), host, setting: None, dir, proxy };
        if let Err(error) = cluster.bring_up(kernel, plan) {
            cluster.keep_logs();
            return Err(error);
        }
        Ok(cluster)
    }

    fn bring_up(&mut self, kernel: Kernel, plan: &Plan) -> Result<()> {
        self.make_certificates()?;
        if let Some(host) = &self.host {
            for number in [1, 2] {
                self.machines.push(Machine::here(number, host.node(number).0)?);
            }
        } else {
            self.boot_guests(kernel)?;
        }
        let build = |number| Call::Build {
            number,
            plan: plan.clone(),
            proxy: self.proxy.clone(),
            certs: self.certs(),
        };
        self.both(build)
    }

    fn boot_guests(&mut self, kernel: Kernel) -> Result<()> {
        let me = std::env::current_exe().context("find this program's own file")?;
        let image = Image::make(&self.dir, &me.with_file_name("guest_agent"), kernel)?;
        for number in [1, 2] {
            self.machines.push(Machine::guest(number, &image, &self.dir)?);
        }
        self.machines.iter_mut().try_for_each(Machine::wait_ready)
    }

    /// What the nodes are, for a line to the user.
    pub fn describe(&self) -> String {
        match &self.host {
            None => "two emulated machines, each with a Soft-RoCE device".into(),
            Some(host) => {
                format!("two namespaces, with devices {} and {}", host.node(1).1, host.node(2).1)
            }
        }
    }

    /// Why a scenario may not break a device or what it is on; nothing when these are the lab's own.
    pub fn spared(&self) -> Option<String> {
        self.host.as_ref().map(|_| "the device is the machine's: no test breaks it".into())
    }

    /// The RDMA device of a node.
    pub fn device(&self, number: u8) -> &str {
        self.host.as_ref().map_or(DEVICE, |host| host.node(number).1)
    }

    /// Nodes whose devices are all devices, each once.
    pub fn nodes_by_device(&self) -> &'static [u8] {
        let shared = self.host.is_some() && self.device(1) == self.device(2);
        if shared { &[1] } else { &[1, 2] }
    }

    /// A directory on a node for what a test writes.
    pub fn scratch(&self) -> &Path {
        if self.host.is_some() { &self.dir } else { Path::new(SCRATCH) }
    }

    fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    fn make_certificates(&self) -> Result<()> {
        let mut command = Command::new(&self.proxy);
        command.arg("certs").arg("--dir").arg(self.certs());
        for number in [1, 2] {
            command.args(["--node", &topology::node_name(number)]);
        }
        let output = command.output().context("make certificates")?;
        if !output.status.success() {
            bail!("certificates: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Of node 1 or 2.
    ///
    /// # Panics
    /// On any other number.
    pub fn machine(&self, number: u8) -> &Machine {
        self.machines.iter().find(|machine| machine.number == number).expect("machine 1 or 2")
    }

    /// The same request to both at once.
    pub fn both(&self, call: impl Fn(u8) -> Call) -> Result<()> {
        let start = |machine: &Machine| machine.start_call(call(machine.number));
        let tickets: Result<Vec<_>> = self.machines.iter().map(start).collect();
        for ticket in tickets? {
            ticket.wait::<Value>(PATIENCE)?;
        }
        Ok(())
    }

    /// Brings the mesh up with this setting, or restarts the node proxies with it.
    pub fn mesh(&mut self, setting: &Setting) -> Result<()> {
        if self.setting.as_ref() == Some(setting) {
            return Ok(());
        }
        self.setting = None;
        self.both(|number| {
            let mut config = setting.config();
            if self.host.is_some() {
                config.node.verbs.device = self.device(number).to_owned();
            }
            Call::Mesh { config: Box::new(config), ipv6: setting.ipv6 }
        })?;
        self.setting = Some(setting.clone());
        Ok(())
    }

    /// Has every pod of node 2 want this fabric, and waits until both nodes know it.
    pub fn wish(&self, fabric: Fabric) -> Result<()> {
        let generation = |number| -> Result<f64> {
            Ok(self.metrics(number)?.sum("rdmesh_directory_generation", &[]))
        };
        let before = [generation(1)?, generation(2)?];
        self.both(|_| Call::Wish { fabric })?;
        for (number, before) in (1..).zip(before) {
            eventually(PATIENCE, "the directory is read again", || {
                Ok(generation(number)? > before)
            })?;
        }
        Ok(())
    }

    /// The workers of each node proxy.
    pub fn workers(&self) -> usize {
        self.setting.as_ref().map_or(0, |setting| setting.workers as usize)
    }

    /// The next `mesh` restarts the node proxies, whatever its setting.
    pub fn spoil(&mut self) {
        self.setting = None;
    }

    pub fn metrics(&self, number: u8) -> Result<Metrics> {
        let text: String = self.machine(number).call(Call::NodeMetrics, PATIENCE)?;
        Ok(Metrics::parse(&text))
    }

    pub fn sidecar_metrics(&self, number: u8, pod: &str) -> Result<Metrics> {
        let call = Call::SidecarMetrics { pod: pod.to_owned() };
        let text: String = self.machine(number).call(call, PATIENCE)?;
        Ok(Metrics::parse(&text))
    }

    pub fn node_state(&self, number: u8) -> Result<NodeState> {
        self.machine(number).call(Call::NodeState, PATIENCE)
    }

    /// Runs a shell script on a node; an exit code other than 0 is an error.
    pub fn sh(&self, number: u8, script: &str) -> Result<String> {
        self.sh_at(number, Place::Node, script, PATIENCE)
    }

    pub fn sh_at(
        &self,
        number: u8,
        place: Place,
        script: &str,
        within: Duration,
    ) -> Result<String> {
        let command = vec!["sh".into(), "-c".into(), script.to_owned()];
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let call = Call::Run { place, command, within_ms };
        let ended: Ended = self.machine(number).call(call, within + Duration::from_secs(10))?;
        if ended.code != Some(0) {
            bail!("node {number}: {script}: exit {:?}: {}", ended.code, ended.stderr.trim());
        }
        Ok(ended.stdout)
    }

    /// A connection from `client` to `server`, each (guest, pod): the client's end and the server's.
    pub fn pair_of(
        &self,
        client: (u8, &str),
        server: (u8, &str),
        ipv6: bool,
    ) -> Result<(Remote<'_>, Remote<'_>)> {
        let (here, there) = (self.machine(client.0), self.machine(server.0));
        let listen = Call::Listen { pod: server.1.to_owned() };
        let listener: Opened = there.call(listen, PATIENCE)?;
        let to = SocketAddr::new(pod_ip(server.0, ipv6), listener.local.port());
        let accept = there.start_call(Call::Accept { listener: listener.stream })?;
        let dial = Call::Dial { pod: client.1.to_owned(), from: None, to };
        let near: Opened = here.call(dial, PATIENCE)?;
        let far: Opened = accept.wait(PATIENCE)?;
        Ok((Remote::new(here, near), Remote::new(there, far)))
    }

    /// From pod `a` on node 1 to pod `b` on node 2.
    pub fn pair(&self) -> Result<(Remote<'_>, Remote<'_>)> {
        self.pair_of((1, "a"), (2, "b"), false)
    }

    /// Keeps the consoles' logs when this is dropped, and says where they are.
    pub fn keep_logs(&self) {
        if self.host.is_none() && std::fs::write(self.dir.join(KEPT), "").is_ok() {
            eprintln!("the guests' consoles: {}/console*.log", self.dir.display());
        }
    }

    /// The end of each node proxy's log and what it counts, for a failure's report.
    pub fn print_logs(&self) {
        const COUNTS: [&str; 6] = [
            "rdmesh_streams_active",
            "rdmesh_streams_total",
            "rdmesh_passthrough_total",
            "rdmesh_lane_up",
            "rdmesh_lane_failovers_total",
            "rdmesh_link_messages_total",
        ];
        for machine in &self.machines {
            let log = machine.call::<String>(Call::NodeLog, Duration::from_secs(10));
            let log = log.unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("--- node proxy {}:{}", machine.number, crate::process::tail(&log));
            if let Ok(metrics) = self.metrics(machine.number) {
                for name in COUNTS {
                    eprintln!("    {name}: {}", metrics.show(name));
                }
            }
            eprintln!("--- console {}:{}", machine.number, machine.last_words());
        }
    }

    /// Powers both machines off in order.
    pub fn power_off(mut self) -> Result<()> {
        self.machines.iter_mut().try_for_each(Machine::power_off)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.machines.clear();
        if self.host.take().is_some() {
            // Requests that are not over hold their labs.
            site::tear_down_all();
        }
        if self.dir.join(KEPT).exists() {
            for file in ["initrd", "wire1", "wire2", "agent1", "agent2"] {
                let _ = std::fs::remove_file(self.dir.join(file));
            }
            let _ = std::fs::remove_dir_all(self.certs());
        } else if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("guests: cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// The address of the first pod of a node.
#[must_use]
pub fn pod_ip(number: u8, ipv6: bool) -> std::net::IpAddr {
    const FIRST: u8 = 10;
    if ipv6 {
        topology::pod_v6(number, FIRST).into()
    } else {
        topology::pod_v4(number, FIRST).into()
    }
}

/// Removes what killed drivers left; their guests died with them.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX) else { continue };
        let alive = Path::new("/proc").join(pid).exists();
        if !alive && !entry.path().join(KEPT).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Looks at `condition` until it holds; an error when it does not within `within`.
pub fn eventually(
    within: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + within;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("not within {within:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
