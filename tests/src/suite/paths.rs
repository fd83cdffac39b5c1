//! The ways between two pods, each with a lab and servers of its own, and what is measured on them.

use super::cpu::{Meter, Usage, with_children};
use super::jobs::{Job, What};
use super::peer::Peer;
use super::record::Figure;
use super::{servers, tools};
use crate::bench::haproxy;
use crate::process::Process;
use crate::sockets::accept;
use crate::{Lab, Plan, PodSockets, binary, topology};
use anyhow::{Context, Result};
use rdmesh_proxy::demo::workload::{
    self, HTTP_PORT, IPERF_PORT, REDIS_PORT, SOCKPERF_PORT, Target,
};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

/// Between the nodes, pairs of proxies use the application's port plus this.
pub const UNDERLAY_OFFSET: u16 = 20_000;
const IDLE_PORT: u16 = 7000;
const IDLE_STREAMS: usize = 8_000;
const PORTS: [u16; 6] =
    [IPERF_PORT, SOCKPERF_PORT, HTTP_PORT, REDIS_PORT, servers::POSTGRES_PORT, IDLE_PORT];
const SMALL_BYTES: f64 = 64.0;

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Routed, as by a CNI in host-gw mode; or both pods on one node.
    Direct {
        same_node: bool,
    },
    /// Over a VXLAN device, as by an overlay CNI.
    Vxlan,
    /// The `tcp` fabric.
    Rdmesh {
        encrypt: bool,
    },
    /// The same, plain, in pods without the sysctls that let capture route.
    Redirect,
    SameNode,
    Haproxy {
        tls: bool,
    },
    Nginx,
    Relay,
    /// One relay that splices between two pods of a node.
    SpliceSameNode,
    Peer(Peer),
}

impl Kind {
    pub fn all() -> Vec<Self> {
        vec![
            Self::Direct { same_node: false },
            Self::Vxlan,
            Self::Rdmesh { encrypt: false },
            Self::Rdmesh { encrypt: true },
            Self::Redirect,
            Self::Relay,
            Self::Haproxy { tls: false },
            Self::Haproxy { tls: true },
            Self::Nginx,
            Self::Direct { same_node: true },
            Self::SameNode,
            Self::SpliceSameNode,
        ]
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Direct { same_node: false } => "direct",
            Self::Direct { same_node: true } => "direct-same-node",
            Self::Vxlan => "vxlan",
            Self::Rdmesh { encrypt: false } => "rdmesh",
            Self::Rdmesh { encrypt: true } => "rdmesh-tls",
            Self::Redirect => "rdmesh-redirect",
            Self::SameNode => "rdmesh-same-node",
            Self::Haproxy { tls: false } => "haproxy",
            Self::Haproxy { tls: true } => "haproxy-tls",
            Self::Nginx => "nginx",
            Self::Relay => "relay",
            Self::SpliceSameNode => "splice-same-node",
            Self::Peer(peer) => &peer.name,
        }
    }

    fn same_node(&self) -> bool {
        match self {
            Self::Peer(peer) => peer.same_node,
            Self::SameNode | Self::SpliceSameNode => true,
            _ => *self == Self::Direct { same_node: true },
        }
    }

    /// Whether pods have capture's rules, and the packet sizes of their loopback interfaces: the floor is
    /// one of both.
    fn has_mesh(&self) -> bool {
        self.meshed() || *self == Self::SpliceSameNode
    }

    fn meshed(&self) -> bool {
        matches!(self, Self::SameNode | Self::Redirect | Self::Rdmesh { .. })
    }
}

/// A path, ready to be measured.
pub struct Bed {
    kind: Kind,
    // Processes end before the lab that they live in.
    servers: Vec<Process>,
    /// Proxies of others, by node.
    others: [Vec<Process>; 2],
    lab: Lab,
}

impl Bed {
    pub fn new(kind: Kind) -> Result<Self> {
        let server_node = if kind.same_node() { 1 } else { 2 };
        let plan = Plan::new()
            .pod("client", 1)
            .pod("server", server_node)
            .routing(kind.has_mesh() && kind != Kind::Redirect);
        let lab = Lab::new(&plan, &binary::proxy())?;
        let servers = servers::start(&lab, lab.pod("server"))?;
        let mut others = [Vec::new(), Vec::new()];
        match &kind {
            Kind::Direct { .. } => {}
            Kind::Vxlan => vxlan(&lab)?,
            Kind::Rdmesh { .. } | Kind::Redirect | Kind::SameNode => {
                let encrypt = matches!(kind, Kind::Rdmesh { encrypt: true });
                lab.configure(|config| config.node.encrypt = encrypt);
                lab.mesh_up()?;
            }
            Kind::Haproxy { tls } => {
                let mut pair = haproxy::start(&lab, &PORTS, *tls)?;
                others[0].extend(pair.pop());
                others[1] = pair;
            }
            Kind::Nginx => others = nginx_pair(&lab)?,
            Kind::Relay => others = Peer::relay()?.start(&lab, &PORTS)?,
            Kind::SpliceSameNode => {
                lab.mesh_up()?;
                others = Peer::splice_same_node()?.start(&lab, &PORTS)?;
            }
            Kind::Peer(peer) => others = peer.start(&lab, &PORTS)?,
        }
        Ok(Self { kind, servers, others, lab })
    }

    pub fn name(&self) -> &str {
        self.kind.name()
    }

    /// A thread for each direction or a process for each connection is no way to hold so many.
    pub fn can(&self, job: &Job) -> bool {
        job.what != What::Idle || self.kind.meshed() || matches!(self.kind, Kind::Haproxy { .. })
    }

    fn target(&self, port: u16) -> Target {
        let direct = matches!(self.kind, Kind::Direct { .. } | Kind::Vxlan);
        let ip = if direct || self.kind.meshed() {
            IpAddr::V4(self.lab.pod("server").v4)
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        Target { ip, port }
    }

    /// What carries the bytes, by node.
    fn carriers(&self) -> [Vec<u32>; 2] {
        let mut pids = [0, 1]
            .map(|node: usize| self.others[node].iter().map(Process::pid).collect::<Vec<_>>());
        if self.kind.meshed() {
            for node in self.lab.nodes() {
                let pid = node.with_process(|process| process.pid());
                pids[usize::from(node.number - 1)].extend(pid);
            }
            for pod in self.lab.pods() {
                pids[usize::from(pod.node - 1)].extend(pod.with_sidecar(|process| process.pid()));
            }
        }
        pids
    }

    pub fn measure(&self, job: &Job, time: Duration) -> Result<Vec<Figure>> {
        let mut pids = self.carriers();
        let node = usize::from(self.lab.pod("server").node - 1);
        pids[node].extend(self.servers.iter().map(Process::pid));
        let meter = Meter::start(pids);
        let mut found = self.run(job, time)?;
        let usage = meter.stop();
        add_cpu(&mut found, &usage, job);
        let figure = |raw: Raw| Figure {
            round: 0,
            path: self.name().to_owned(),
            job: job.family.to_owned(),
            bytes: job.bytes,
            metric: raw.metric,
            unit: raw.unit.to_owned(),
            lower_is_better: raw.lower_is_better,
            value: raw.value,
            clean: usage.clean,
        };
        Ok(found.into_iter().map(figure).collect())
    }

    fn run(&self, job: &Job, time: Duration) -> Result<Vec<Raw>> {
        let (lab, from) = (&self.lab, &self.lab.pod("client").netns);
        let to = |port| self.target(port);
        let bytes = job.bytes.unwrap_or(64);
        let rate = |value| vec![Raw::more("rate", "1/s", value)];
        Ok(match job.what {
            What::PingPong => ping(lab, from, to(SOCKPERF_PORT), bytes, time)?,
            What::Throughput => {
                let rate = tools::throughput(lab, from, to(SOCKPERF_PORT), bytes, time)?;
                let gbit = rate * f64::from(bytes.max(14)) * 8e-9;
                vec![Raw::more("rate", "1/s", rate), Raw::more("throughput", "Gbit/s", gbit)]
            }
            What::Bulk { streams, no_delay, reverse } => {
                let mut flags = Vec::new();
                flags.extend(no_delay.then_some("-N"));
                flags.extend(reverse.then_some("-R"));
                let bulk = workload::iperf(lab, from, to(IPERF_PORT), streams, time, &flags)?;
                vec![
                    Raw::more("throughput", "Gbit/s", bulk.gbit_per_second),
                    Raw::more(GIGABYTES, "GB", bulk.bytes / 1e9),
                ]
            }
            What::Fetch => {
                let file = servers::file(bytes);
                rate(tools::wrk(lab, from, to(HTTP_PORT), &file, true, time)?)
            }
            What::Churn => {
                let file = servers::file(1 << 10);
                rate(tools::wrk(lab, from, to(HTTP_PORT), &file, false, time)?)
            }
            What::Redis => {
                let requests = 30_000 * u32::try_from(time.as_secs()).unwrap_or(1);
                rate(workload::redis(lab, from, to(REDIS_PORT), requests)?)
            }
            What::Postgres => rate(tools::pgbench(lab, from, to(servers::POSTGRES_PORT), time)?),
            What::Small => {
                let flags = ["-N", "-l", "64"];
                let bulk = workload::iperf(lab, from, to(IPERF_PORT), 64, time, &flags)?;
                rate(bulk.gbit_per_second * 1e9 / 8.0 / SMALL_BYTES)
            }
            What::Mixed => self.mixed(time)?,
            What::Idle => self.idle()?,
        })
    }

    fn mixed(&self, time: Duration) -> Result<Vec<Raw>> {
        let (lab, from) = (&self.lab, &self.lab.pod("client").netns);
        let to = self.target(IPERF_PORT);
        let bulk_time = time + Duration::from_secs(2);
        std::thread::scope(|scope| {
            let bulk = scope.spawn(|| workload::iperf(lab, from, to, 8, bulk_time, &[]));
            // The bulk streams are under way by then, and still are at the end.
            std::thread::sleep(Duration::from_millis(500));
            let figures = ping(lab, from, self.target(SOCKPERF_PORT), 64, time);
            let bulk = bulk.join().map_err(|_| anyhow::anyhow!("iperf3's thread panicked"))??;
            let mut figures = figures?;
            figures.push(Raw::more("bulk throughput", "Gbit/s", bulk.gbit_per_second));
            Ok(figures)
        })
    }

    /// What an idle connection costs in memory.
    fn idle(&self) -> Result<Vec<Raw>> {
        let carriers: Vec<u32> =
            self.carriers().concat().into_iter().flat_map(with_children).collect();
        let rss = || carriers.iter().map(|pid| rss_bytes(*pid)).collect::<Vec<_>>();
        let (client, server) = (self.lab.pod("client"), self.lab.pod("server"));
        let any = SocketAddr::new([0, 0, 0, 0].into(), IDLE_PORT);
        let listener = server.listen_on(any, 4096).context("listen for idle connections")?;
        let to = self.target(IDLE_PORT);
        let to = SocketAddr::new(to.ip, to.port);
        // What the first set up once is not what another costs.
        let warm_up = IDLE_STREAMS / 10;
        let (mut held, mut before) = (Vec::new(), rss());
        for number in 0..IDLE_STREAMS + warm_up {
            let near = client.dial(to).context("open an idle connection")?;
            held.push((near, accept(&listener).context("accept an idle connection")?));
            if number + 1 == warm_up {
                before = rss();
            }
        }
        let grown = |(now, then): (u64, &u64)| now.saturating_sub(*then);
        let most = rss().into_iter().zip(&before).map(grown).max().unwrap_or(0);
        #[allow(clippy::cast_precision_loss)]
        let most = most as f64 / IDLE_STREAMS as f64;
        Ok(vec![Raw::less("memory of the process that takes most", "B per connection", most)])
    }
}

/// Not a result: what CPU per GB is computed from.
const GIGABYTES: &str = "payload";

struct Raw {
    metric: String,
    unit: &'static str,
    lower_is_better: bool,
    value: f64,
}

impl Raw {
    fn more(metric: &str, unit: &'static str, value: f64) -> Self {
        Self { metric: metric.to_owned(), unit, lower_is_better: false, value }
    }

    fn less(metric: &str, unit: &'static str, value: f64) -> Self {
        Self { lower_is_better: true, ..Self::more(metric, unit, value) }
    }
}

fn ping(
    lab: &Lab,
    from: &crate::netns::Netns,
    to: Target,
    bytes: u32,
    time: Duration,
) -> Result<Vec<Raw>> {
    let values = tools::ping_pong(lab, from, to, bytes, time)?;
    let names = tools::PING_METRICS.iter().map(|(name, _)| *name);
    Ok(names.zip(values).map(|(name, value)| Raw::less(name, "µs", value)).collect())
}

/// CPUs that each node used, and what a gigabyte or a request took.
fn add_cpu(found: &mut Vec<Raw>, usage: &Usage, job: &Job) {
    let payload = found.iter().position(|raw| raw.metric == GIGABYTES);
    if let Some(gigabytes) = payload.map(|index| found.remove(index).value) {
        found.push(Raw::less("CPU per GB", "s", usage.total() / gigabytes));
    } else if let Some(rate) = found.iter().find(|raw| raw.metric == "rate") {
        let each = usage.total() / usage.seconds / rate.value * 1e6;
        found.push(Raw::less("CPU per request", "µs", each));
    }
    if job.what == What::Idle {
        return;
    }
    for (number, node) in (1..).zip(&usage.nodes) {
        for (kind, seconds) in [("user", node.user), ("system", node.system)] {
            let metric = format!("node {number}, {kind}");
            found.push(Raw::less(&metric, "CPUs", seconds / usage.seconds));
        }
    }
    found.push(Raw::less("both nodes, softirq", "CPUs", usage.softirq / usage.seconds));
}

/// The pods' routes to each other go through a VXLAN device on each node.
fn vxlan(lab: &Lab) -> Result<()> {
    for (own, other) in [(1, 2), (2, 1)] {
        let (local, remote) = (topology::node_v4(own), topology::node_v4(other));
        lab.node(own).netns.ip(&format!(
            "link add vx0 type vxlan id 77 local {local} remote {remote} dstport 4789 dev {}\n\
             addr add 10.44.0.{own}/24 dev vx0\nlink set vx0 mtu 1450 up\n\
             route replace 10.42.{other}.0/24 via 10.44.0.{other} {}\n",
            topology::UNDERLAY,
            topology::CC
        ))?;
    }
    for pod in lab.pods() {
        pod.netns.ip("link set eth0 mtu 1450\n")?;
    }
    Ok(())
}

/// nginx's stream module in the client's pod and on the server's node.
fn nginx_pair(lab: &Lab) -> Result<[Vec<Process>; 2]> {
    let (client, server) = (lab.pod("client"), lab.pod("server"));
    let node = topology::node_v4(2);
    let [mut near, mut far] = [String::new(), String::new()];
    for port in PORTS {
        let between = port + UNDERLAY_OFFSET;
        writeln!(near, "server {{ listen 127.0.0.1:{port}; proxy_pass {node}:{between}; }}")?;
        writeln!(far, "server {{ listen {node}:{between}; proxy_pass {}:{port}; }}", server.v4)?;
    }
    let start = |name: &str, netns, servers: &str, port| -> Result<Process> {
        let dir = lab.dir().join(name);
        std::fs::create_dir(&dir).context("create nginx's directory")?;
        let root = dir.display();
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\n\
             worker_processes 1;\nuser root;\npid {root}/pid;\nerror_log {root}/error.log;\n\
             events {{ worker_connections 8192; }}\nstream {{\n{servers}}}\n"
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, config).context("write nginx's config")?;
        let mut command = Command::new(workload::program("nginx"));
        command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(&path);
        let mut process = lab.spawn(netns, name, command)?;
        process.wait_listening(netns, port, Duration::from_secs(10))?;
        Ok(process)
    };
    let far = start("stream-far", &lab.node(2).netns, &far, IPERF_PORT + UNDERLAY_OFFSET)?;
    let near = start("stream-near", &client.netns, &near, IPERF_PORT)?;
    Ok([vec![near], vec![far]])
}

fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}
