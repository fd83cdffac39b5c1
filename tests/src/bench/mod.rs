//! The benchmark of the tunnel: the same programs over several paths side by side, interleaved.
//!
//! What it does not do: judge. It prints figures and ratios.

pub(crate) mod haproxy;
mod meter;
mod path;
mod table;

pub use meter::{Meter, Usage};
pub use path::{PathKind, Testbed};
pub use table::print;

use anyhow::{Context, Result, bail};
use rdmesh_proxy::demo::workload;
use serde::Serialize;
use std::time::Duration;

/// One kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    Ping64,
    Ping16k,
    Bulk1,
    Bulk8,
    WrkKeepAlive,
    WrkClose,
    Redis,
    Idle,
}

impl Workload {
    pub const ALL: [Self; 8] = [
        Self::Ping64,
        Self::Ping16k,
        Self::Bulk1,
        Self::Bulk8,
        Self::WrkKeepAlive,
        Self::WrkClose,
        Self::Redis,
        Self::Idle,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ping64 => "ping64",
            Self::Ping16k => "ping16k",
            Self::Bulk1 => "bulk1",
            Self::Bulk8 => "bulk8",
            Self::WrkKeepAlive => "wrk",
            Self::WrkClose => "wrk-close",
            Self::Redis => "redis",
            Self::Idle => "idle",
        }
    }

    fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|w| w.name() == name).with_context(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|w| w.name()).collect();
            format!("no workload {name:?}; there are {}", names.join(", "))
        })
    }
}

/// One figure of one round.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    pub round: u32,
    pub path: PathKind,
    pub figure: &'static str,
    pub unit: &'static str,
    pub lower_is_better: bool,
    pub value: f64,
    /// Share of the machine that others used, and that the host took.
    pub foreign: f64,
    pub steal: f64,
    pub clean: bool,
}

/// Foreign load and stolen time above which a round does not count.
const FOREIGN_MAX: f64 = 0.05;
const STEAL_MAX: f64 = 0.03;

#[derive(Debug, Clone)]
pub struct Options {
    pub rounds: u32,
    pub time: Duration,
    pub workloads: Vec<Workload>,
    pub paths: Vec<PathKind>,
    pub idle_streams: usize,
    pub json: Option<String>,
    /// `node.polling: off` instead of the default.
    pub no_polling: bool,
}

pub const USAGE: &str = "usage: bench_tunnel [--rounds N] [--seconds N] [--only ping64,bulk1,...] \
[--paths direct,plain,redirect,tls,haproxy,hap-redir] [--idle-streams N] [--json FILE] [--no-polling]";

impl Options {
    /// # Errors
    /// On an unknown flag or value.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            rounds: 5,
            time: Duration::from_secs(2),
            workloads: Workload::ALL.to_vec(),
            paths: PathKind::ALL.to_vec(),
            idle_streams: 4_000,
            json: None,
            no_polling: false,
        };
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--seconds" => {
                    options.time = Duration::from_secs(value()?.parse().context("--seconds")?);
                }
                "--only" => {
                    options.workloads =
                        value()?.split(',').map(Workload::parse).collect::<Result<_>>()?;
                }
                "--paths" => {
                    options.paths =
                        value()?.split(',').map(PathKind::parse).collect::<Result<_>>()?;
                }
                "--idle-streams" => {
                    options.idle_streams = value()?.parse().context("--idle-streams")?;
                }
                "--json" => options.json = Some(value()?),
                "--no-polling" => options.no_polling = true,
                _ => bail!("unknown argument {flag}\n{USAGE}"),
            }
        }
        Ok(options)
    }
}

/// Runs everything, interleaved: each round goes through all workloads, each workload through all
/// paths, so that what disturbs the machine disturbs all alike.
///
/// # Errors
/// When a program is missing or a path fails.
pub fn run(options: &Options) -> Result<Vec<Figure>> {
    workload::check_programs(&["ip", "iperf3", "sockperf", "nginx", "wrk", "redis-benchmark"])?;
    if options.paths.contains(&PathKind::Haproxy) {
        workload::check_programs(&["haproxy"])?;
    }
    if options.paths.contains(&PathKind::HaproxyRedirect) {
        workload::check_programs(&["haproxy", "nft"])?;
    }
    let beds: Vec<Testbed> = options
        .paths
        .iter()
        .map(|kind| Testbed::new(*kind, options).with_context(|| format!("path {}", kind.name())))
        .collect::<Result<_>>()?;
    let mut figures = Vec::new();
    for round in 1..=options.rounds {
        for workload in &options.workloads {
            // Memory that the first idle streams took is there for the next: once is enough.
            if *workload == Workload::Idle && round > 1 {
                continue;
            }
            for bed in &beds {
                eprint!("\r\x1b[Kround {round} {} {}", workload.name(), bed.kind.name());
                let found = bed
                    .measure(*workload, options)
                    .with_context(|| format!("{} over {}", workload.name(), bed.kind.name()))?;
                figures.extend(found.into_iter().map(|f| Figure { round, ..f }));
            }
        }
    }
    eprintln!("\r\x1b[K{} rounds done", options.rounds);
    Ok(figures)
}
