//! One path with everything on it: a lab of its own, the servers, and what carries the bytes.

use super::{FOREIGN_MAX, Figure, Meter, Options, STEAL_MAX, Usage, Workload, haproxy};
use crate::sockets::accept;
use crate::{Lab, Plan, PodSockets, binary, process::Process};
use anyhow::{Context, Result};
use rdmesh_proxy::demo::workload::{
    self, HTTP_PORT, IPERF_PORT, REDIS_PORT, SOCKPERF_PORT, Target,
};
use serde::Serialize;
use std::net::SocketAddr;

/// What the idle workload listens on.
const IDLE_PORT: u16 = 7000;
const REDIS_REQUESTS: u32 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    Direct,
    /// rdmesh, `encrypt: false`
    Plain,
    /// The same in pods without the sysctls that let capture route.
    Redirect,
    /// rdmesh, `encrypt: true`
    Tls,
    Haproxy,
    /// The same pair, but the client addresses the server, and nftables redirects it to HAProxy:
    /// what it costs that the client need not know.
    HaproxyRedirect,
}

impl PathKind {
    pub const ALL: [Self; 6] = [
        Self::Direct,
        Self::Plain,
        Self::Redirect,
        Self::Tls,
        Self::Haproxy,
        Self::HaproxyRedirect,
    ];

    fn meshed(self) -> bool {
        matches!(self, Self::Plain | Self::Redirect | Self::Tls)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Plain => "plain",
            Self::Redirect => "redirect",
            Self::Tls => "tls",
            Self::Haproxy => "haproxy",
            Self::HaproxyRedirect => "hap-redir",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.with_context(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("no path {name:?}; there are {}", names.join(", "))
        })
    }
}

/// A path, ready to be measured.
#[derive(Debug)]
pub struct Testbed {
    pub kind: PathKind,
    // Processes end before the lab that they live in.
    servers: Vec<Process>,
    haproxies: Vec<Process>,
    lab: Lab,
}

/// A figure without its surroundings.
type Raw = (&'static str, &'static str, bool, f64);

impl Testbed {
    pub fn new(kind: PathKind, options: &Options) -> Result<Self> {
        let routing = matches!(kind, PathKind::Plain | PathKind::Tls);
        let plan = Plan::new().pod("client", 1).pod("server", 2).routing(routing);
        let lab = Lab::new(&plan, &binary::proxy())?;
        let server = lab.pod("server");
        let servers = vec![
            workload::iperf_server(&lab, server)?,
            workload::sockperf_server(&lab, server)?,
            workload::nginx(&lab, server, 1 << 20)?,
            workload::redis_server(&lab, server)?,
        ];
        let ports = [IPERF_PORT, SOCKPERF_PORT, HTTP_PORT, REDIS_PORT, IDLE_PORT];
        let mut haproxies = Vec::new();
        match kind {
            PathKind::Direct => {}
            PathKind::Haproxy => haproxies = haproxy::start(&lab, &ports, false)?,
            PathKind::HaproxyRedirect => {
                haproxies = haproxy::start(&lab, &ports, false)?;
                haproxy::redirect(&lab, &ports)?;
            }
            PathKind::Plain | PathKind::Redirect | PathKind::Tls => {
                lab.configure(|config| {
                    config.node.encrypt = kind == PathKind::Tls;
                    if options.no_polling {
                        config.node.polling = crate::config::Polling::Off;
                    }
                });
                lab.mesh_up()?;
            }
        }
        Ok(Self { kind, servers, haproxies, lab })
    }

    fn target(&self, port: u16) -> Target {
        let ip = match self.kind {
            PathKind::Haproxy => haproxy::CLIENT_SIDE,
            _ => self.lab.pod("server").v4.into(),
        };
        Target { ip, port }
    }

    /// Everything between client and server.
    fn carriers(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.haproxies.iter().map(Process::pid).collect();
        if self.kind.meshed() {
            for node in self.lab.nodes() {
                pids.extend(node.with_process(|process| process.pid()));
            }
            for pod in self.lab.pods() {
                pids.extend(pod.with_sidecar(|process| process.pid()));
            }
        }
        pids
    }

    /// Runs one workload once.
    ///
    /// # Errors
    /// When a program fails.
    pub fn measure(&self, workload: Workload, options: &Options) -> Result<Vec<Figure>> {
        let mut pids = self.carriers();
        pids.extend(self.servers.iter().flat_map(|server| {
            // nginx works in a child of its own
            let mut all = vec![server.pid()];
            all.extend(children(server.pid()));
            all
        }));
        let meter = Meter::start(&pids);
        let found = self.run(workload, options, &meter)?;
        let usage = meter.stop();
        Ok(found.into_iter().map(|raw| self.figure(raw, usage)).collect())
    }

    fn figure(&self, raw: Raw, usage: Usage) -> Figure {
        let (figure, unit, lower_is_better, value) = raw;
        Figure {
            round: 0,
            path: self.kind,
            figure,
            unit,
            lower_is_better,
            value,
            foreign: usage.foreign,
            steal: usage.steal,
            clean: usage.foreign <= FOREIGN_MAX && usage.steal <= STEAL_MAX,
        }
    }

    fn run(&self, workload: Workload, options: &Options, meter: &Meter) -> Result<Vec<Raw>> {
        let (lab, from) = (&self.lab, &self.lab.pod("client").netns);
        let time = options.time;
        let ping = |bytes| workload::sockperf(lab, from, self.target(SOCKPERF_PORT), bytes, time);
        let bulk = |streams| {
            let to = self.target(IPERF_PORT);
            let bulk = workload::iperf(lab, from, to, streams, time, &[])?;
            anyhow::Ok((bulk.gbit_per_second, meter.stop().cpu_seconds / (bulk.bytes / 1e9)))
        };
        let wrk = |keep| workload::wrk(lab, from, self.target(HTTP_PORT), keep, time);
        Ok(match workload {
            Workload::Ping64 => vec![("ping-pong 64 B p50", "µs", true, ping(64)?.p50_us)],
            Workload::Ping16k => vec![("ping-pong 16 KiB p50", "µs", true, ping(16 << 10)?.p50_us)],
            Workload::Bulk1 => {
                let (rate, cpu) = bulk(1)?;
                vec![
                    ("iperf3 1 stream", "Gbit/s", false, rate),
                    ("CPU per GB, 1 stream", "s", true, cpu),
                ]
            }
            Workload::Bulk8 => {
                let (rate, cpu) = bulk(8)?;
                vec![
                    ("iperf3 8 streams", "Gbit/s", false, rate),
                    ("CPU per GB, 8 streams", "s", true, cpu),
                ]
            }
            Workload::WrkKeepAlive => vec![("wrk keep-alive, 16 conn.", "1/s", false, wrk(true)?)],
            Workload::WrkClose => vec![("wrk close, 16 conn.", "1/s", false, wrk(false)?)],
            Workload::Redis => {
                let to = self.target(REDIS_PORT);
                let rate = workload::redis(lab, from, to, REDIS_REQUESTS)?;
                vec![("redis GET, 50 conn.", "1/s", false, rate)]
            }
            Workload::Idle => self.idle(options.idle_streams)?,
        })
    }

    /// What an idle stream costs in memory: bytes of RSS per stream and process.
    fn idle(&self, streams: usize) -> Result<Vec<Raw>> {
        let carriers = self.carriers();
        if carriers.is_empty() || streams == 0 {
            return Ok(Vec::new());
        }
        let rss = || carriers.iter().map(|pid| rss_bytes(*pid)).collect::<Vec<_>>();
        let (client, server) = (self.lab.pod("client"), self.lab.pod("server"));
        let any = SocketAddr::new([0, 0, 0, 0].into(), IDLE_PORT);
        let listener = server.listen_on(any, 4096).context("listen for idle streams")?;
        let to = self.target(IDLE_PORT);
        let to = SocketAddr::new(to.ip, to.port);
        let mut held = Vec::with_capacity(streams);
        // What the first streams set up once is not what a stream costs.
        let warm_up = streams / 10;
        let mut before = rss();
        for number in 0..streams + warm_up {
            let near = client.dial(to).context("open an idle stream")?;
            let (far, _) = accept(&listener).context("accept an idle stream")?;
            held.push((near, far));
            if number + 1 == warm_up {
                before = rss();
            }
        }
        let after = rss();
        #[allow(clippy::cast_precision_loss)]
        let per_stream = |index: usize| {
            let grown = after[index].saturating_sub(before[index]);
            grown as f64 / streams as f64
        };
        let names = [
            "idle stream, proxy 1",
            "idle stream, proxy 2",
            "idle stream, client's sidecar",
            "idle stream, server's sidecar",
        ];
        let figures = names.into_iter().take(carriers.len()).enumerate();
        Ok(figures.map(|(index, name)| (name, "B", true, per_stream(index))).collect())
    }
}

fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
