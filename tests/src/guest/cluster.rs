//! The two guests as one lab: booted together, meshed with a setting, looked at, powered off.
//!
//! What it does not do: say what is right; the scenarios do.

use super::image::Image;
use super::remote::Remote;
use super::vm::Guest;
use super::wire::{Call, Ended, NodeState, Opened, Place};
use crate::config::{Config, Fabric};
use crate::scrape::Metrics;
use crate::{Plan, topology};
use anyhow::{Context, Result, bail};
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
    guests: Vec<Guest>,
    setting: Option<Setting>,
    dir: PathBuf,
    proxy: PathBuf,
}

impl Cluster {
    /// Boots both guests and makes them the two nodes of `plan`; no process of the mesh runs yet.
    pub fn boot(plan: &Plan, proxy: &Path) -> Result<Self> {
        sweep();
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut cluster = Self { guests: Vec::new(), setting: None, dir, proxy: proxy.to_owned() };
        if let Err(error) = cluster.bring_up(plan) {
            cluster.keep_logs();
            return Err(error);
        }
        Ok(cluster)
    }

    fn bring_up(&mut self, plan: &Plan) -> Result<()> {
        let me = std::env::current_exe().context("find this program's own file")?;
        let image = Image::make(&self.dir, &me.with_file_name("guest_agent"))?;
        self.make_certificates()?;
        for number in [1, 2] {
            let guest = Guest::start(number, &image, &self.dir)?;
            self.guests.push(guest);
        }
        for guest in &mut self.guests {
            guest.wait_ready()?;
        }
        let build = |number| Call::Build {
            number,
            plan: plan.clone(),
            proxy: self.proxy.clone(),
            certs: self.certs(),
        };
        self.both(build)
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

    /// Guest 1 or 2.
    ///
    /// # Panics
    /// On any other number.
    pub fn guest(&self, number: u8) -> &Guest {
        self.guests.iter().find(|guest| guest.number == number).expect("guest 1 or 2")
    }

    /// The same request to both at once.
    pub fn both(&self, call: impl Fn(u8) -> Call) -> Result<()> {
        let start = |guest: &Guest| guest.start_call(call(guest.number));
        let tickets: Result<Vec<_>> = self.guests.iter().map(start).collect();
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
        let config = setting.config();
        self.both(|_| Call::Mesh { config: Box::new(config.clone()), ipv6: setting.ipv6 })?;
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
        let text: String = self.guest(number).call(Call::NodeMetrics, PATIENCE)?;
        Ok(Metrics::parse(&text))
    }

    pub fn sidecar_metrics(&self, number: u8, pod: &str) -> Result<Metrics> {
        let call = Call::SidecarMetrics { pod: pod.to_owned() };
        let text: String = self.guest(number).call(call, PATIENCE)?;
        Ok(Metrics::parse(&text))
    }

    pub fn node_state(&self, number: u8) -> Result<NodeState> {
        self.guest(number).call(Call::NodeState, PATIENCE)
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
        let ended: Ended = self.guest(number).call(call, within + Duration::from_secs(10))?;
        if ended.code != Some(0) {
            bail!("guest {number}: {script}: exit {:?}: {}", ended.code, ended.stderr.trim());
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
        let (here, there) = (self.guest(client.0), self.guest(server.0));
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
        if std::fs::write(self.dir.join(KEPT), "").is_ok() {
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
        for guest in &self.guests {
            let log = guest.call::<String>(Call::NodeLog, Duration::from_secs(10));
            let log = log.unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("--- node proxy {}:{}", guest.number, crate::process::tail(&log));
            if let Ok(metrics) = self.metrics(guest.number) {
                for name in COUNTS {
                    eprintln!("    {name}: {}", metrics.show(name));
                }
            }
            eprintln!("--- console {}:{}", guest.number, guest.last_words());
        }
    }

    /// Powers both guests off in order.
    pub fn power_off(mut self) -> Result<()> {
        self.guests.iter_mut().try_for_each(Guest::power_off)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.guests.clear();
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
