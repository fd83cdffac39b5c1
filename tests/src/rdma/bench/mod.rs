//! `make bench-rdma`: the fabric against perftest, and programs through the mesh against kernel TCP
//! and rsockets, all between the same two machines, in turns, as medians. `make bench-smc`: the same for
//! SMC-R, in machines with a newer kernel.
//!
//! What it does not do: tell absolute speeds of guests: on emulated processors only ratios within one run
//! mean anything. It judges by no exit code: the table says which target was reached.

mod fabric;
mod figures;
mod programs;
mod smc;
mod table;
mod talks;

use crate::guest::cluster::{PATIENCE, eventually};
use crate::guest::image::Kernel;
use crate::guest::wire::{Call, Ended, Place};
use crate::guest::{Cluster, Setting};
use crate::{Plan, binary};
use anyhow::{Result, bail};
use figures::Figures;
use std::time::{Duration, Instant};

use super::scenarios::FORCED;

/// The address of the second node on the wire between the two.
const PEER: &str = "192.168.77.2";

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub rounds: u32,
    pub fabric: bool,
    pub programs: bool,
    /// Alone: it has machines of its own.
    pub smc: bool,
    pub json: bool,
}

/// # Errors
/// When the lab cannot be built or a program of ours or of perftest fails.
pub fn run(wanted: Wanted) -> Result<()> {
    let started = Instant::now();
    let plan = Plan::new().pod("a", 1).outsider("x", 1).pod("b", 2).outsider("y", 2).routing(true);
    let kernel = if wanted.smc { Kernel::Backports } else { Kernel::Stable };
    let mut cluster = Cluster::boot_on(kernel, &plan, &binary::proxy())?;
    let mut figures = Figures::default();
    let result = measure(&mut cluster, wanted, &mut figures);
    if result.is_err() {
        cluster.print_logs();
        cluster.keep_logs();
    }
    let machines = match cluster.spared() {
        None => "emulated processors: only the ratios mean something".into(),
        Some(_) => cluster.describe(),
    };
    let result = result.and_then(|()| cluster.power_off());
    if result.is_err() {
        eprintln!("it failed; what was measured before:");
    }
    if wanted.json {
        println!("{}", serde_json::to_string_pretty(&table::json(&figures, wanted))?);
    } else {
        table::print(&figures, wanted, &machines);
    }
    eprintln!("done in {:.0} s", started.elapsed().as_secs_f64());
    result
}

fn measure(cluster: &mut Cluster, wanted: Wanted, figures: &mut Figures) -> Result<()> {
    if wanted.programs {
        programs::prepare(cluster)?;
        cluster.mesh(&Setting::new(FORCED))?;
        figures.miss("SMC-R", "it needs a newer kernel: `make bench-smc` measures it".to_owned());
    }
    if wanted.smc {
        return smc::measure(cluster, wanted.rounds, figures);
    }
    for round in 1..=wanted.rounds {
        eprintln!("round {round} of {}", wanted.rounds);
        if wanted.fabric {
            fabric::round(cluster, figures)?;
        }
        if wanted.programs {
            programs::round(cluster, figures)?;
        }
    }
    Ok(())
}

/// How one knows that a server can be spoken to.
#[derive(Debug, Clone, Copy)]
enum Listens {
    /// On this TCP port.
    At(u16),
    /// Nothing tells: after this time.
    After(Duration),
}

/// Runs `server` on node 2 and, when it listens, `client` on node 1, each for `limit` at most.
fn both_ends(
    cluster: &Cluster,
    (server, listens): (&str, Listens),
    client: &str,
    limit: Duration,
) -> Result<Ended> {
    let seconds = limit.as_secs();
    let serving = start(cluster, 2, &format!("exec timeout -s KILL {seconds} {server}"), limit)?;
    match listens {
        Listens::At(port) => eventually(Duration::from_secs(20), "the server listens", || {
            Ok(!cluster.sh(2, &format!("ss -Hltn 'sport = {port}'"))?.trim().is_empty())
        })?,
        Listens::After(time) => std::thread::sleep(time),
    }
    let client = start(cluster, 1, &format!("exec timeout -s KILL {seconds} {client}"), limit)?;
    let client: Ended = client.wait(PATIENCE)?;
    let server: Ended = serving.wait(PATIENCE)?;
    if client.code == Some(0) && server.code != Some(0) && !KILLED.contains(&server.code) {
        bail!("the server: exit {:?}: {}{}", server.code, server.stdout, server.stderr);
    }
    Ok(client)
}

/// What `timeout -s KILL` answers when the time was over: it ends itself in the same way.
const KILLED: [Option<i32>; 2] = [Some(137), None];

fn start(
    cluster: &Cluster,
    number: u8,
    script: &str,
    limit: Duration,
) -> Result<crate::guest::channel::Ticket> {
    let command = vec!["sh".into(), "-c".into(), script.to_owned()];
    let within_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).saturating_add(10_000);
    cluster.machine(number).start_call(Call::Run { place: Place::Node, command, within_ms })
}
