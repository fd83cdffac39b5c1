//! Runs the scenarios one after the other: a line for each with its time, and what it saw.
//!
//! What it does not do: skip in silence. The scenarios stand on each other, so the first that fails
//! ends the run.

use super::Cluster;
use super::scenarios::{ALL, NOT_RUN};
use anyhow::{Context, Result, bail};
use std::panic::{AssertUnwindSafe, catch_unwind};
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
/// When a scenario fails, the cluster is not fit, or something is left behind.
fn run() -> Result<()> {
    if let Some(word) = std::env::args().nth(1) {
        bail!(
            "{word}: unknown; all scenarios run, in their order (E2E_KEEP=1 leaves everything up at the end)"
        );
    }
    let started = Instant::now();
    let cluster = Cluster::new()?;
    let mut result = Ok(());
    let (mut passed, mut left_out) = (0, 0);
    for (name, scenario) in ALL {
        let begun = Instant::now();
        // What fails in whatever way must not leave the cluster as it is.
        let outcome = catch_unwind(AssertUnwindSafe(|| scenario(&cluster)))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; see above")));
        let time = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(seen) if seen.starts_with(NOT_RUN) => {
                left_out += 1;
                println!("{seen} ({name})");
            }
            Ok(seen) => {
                passed += 1;
                println!("ok      {time:6.1} s  {name}: {seen}");
            }
            Err(error) => {
                println!("FAILED  {time:6.1} s  {name}: {error:#}");
                cluster.print_state();
                result = Err(anyhow::anyhow!("{name} failed; the scenarios after it were not run"));
                break;
            }
        }
    }
    if std::env::var_os("E2E_KEEP").is_some_and(|value| value == "1") {
        println!("E2E_KEEP=1: everything is left up; the next run takes it out");
    } else {
        let cleaned = cluster.clean().context("not everything could be taken out of the cluster");
        result = result.and(cleaned);
    }
    println!(
        "{passed} of {} scenarios passed, {left_out} not run, in {:.0} s",
        ALL.len(),
        started.elapsed().as_secs_f64()
    );
    result
}
