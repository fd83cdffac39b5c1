//! Runs the scenarios one after the other over one boot: a line for each with its time.
//!
//! What it does not do: skip in silence. What cannot be tested is said, and counted.

use super::scenarios::{ALL, Scenario, proof};
use crate::guest::Cluster;
use crate::{Plan, binary};
use anyhow::{Context, Result, bail, ensure};
use std::process::ExitCode;
use std::time::Instant;

pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// # Errors
/// When any scenario fails, or the lab cannot be built.
fn run() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let chosen: Vec<&Scenario> = ALL
        .iter()
        .filter(|s| wanted.is_empty() || wanted.iter().any(|word| s.name.contains(word.as_str())))
        .collect();
    if chosen.is_empty() {
        bail!("no scenario has one of these in its name: {}", wanted.join(", "));
    }
    let started = Instant::now();
    let plan = Plan::new().pod("a", 1).pod("b", 2);
    let mut cluster = Cluster::boot(&plan, &binary::proxy()).context("boot the lab")?;
    println!("{} are up after {:.1} s", cluster.describe(), started.elapsed().as_secs_f64());
    let rnr = proof::rnr(&cluster)?;
    let (mut failed, mut left_out) = (0, 0);
    for scenario in &chosen {
        let begun = Instant::now();
        let result = one(&mut cluster, scenario, rnr);
        let time = begun.elapsed().as_secs_f64();
        match result {
            Ok(None) => println!("ok      {:6.1} s  {}", time, scenario.name),
            Ok(Some(why)) => {
                left_out += 1;
                println!("NOT RUN {:6.1} s  {}: {why}", time, scenario.name);
            }
            Err(error) => {
                failed += 1;
                println!("FAILED  {:6.1} s  {}: {error:#}", time, scenario.name);
                cluster.print_logs();
                cluster.keep_logs();
                cluster.spoil();
            }
        }
    }
    let time = started.elapsed().as_secs_f64();
    println!(
        "{} scenarios: {} ok, {failed} failed, {left_out} not run, in {time:.0} s",
        chosen.len(),
        chosen.len() - failed - left_out
    );
    cluster.power_off()?;
    if failed > 0 {
        bail!("{failed} scenarios failed");
    }
    Ok(())
}

/// The reason, when the scenario could not be run.
fn one(cluster: &mut Cluster, scenario: &Scenario, rnr: u64) -> Result<Option<String>> {
    cluster.mesh(&scenario.setting())?;
    let before = proof::Counts::read(cluster)?;
    let left_out = (scenario.run)(cluster)?;
    if left_out.is_none() && scenario.all_on_verbs {
        before.assert_all_on_verbs(cluster)?;
    }
    let now = proof::rnr(cluster)?;
    ensure!(now <= rnr, "queue pairs found no receive buffer: RNR counters from {rnr} to {now}");
    Ok(left_out)
}
