//! `make bench`: what a user gains and what it costs. The programs of everyday use over every path
//! between two pods, interleaved in one run; figures as JSON lines, a report with tables and plots.
//!
//! What it does not do: judge by absolute figures. Machines differ and are disturbed: medians and
//! ratios within one run count, and [`compare`] knows how much a run scattered.

pub mod compare;
pub(crate) mod cpu;
mod jobs;
mod machine;
mod paths;
mod peer;
pub mod plot;
pub mod record;
pub mod report;
pub mod servers;
mod tools;

pub use machine::Machine;
pub use record::{Figure, Run};

use anyhow::{Context, Result, bail};
use jobs::Job;
use paths::{Bed, Kind};
use peer::Peer;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Options {
    pub rounds: u32,
    pub seconds: u64,
    /// Fewer sizes and directions.
    pub quick: bool,
    pub only: Vec<String>,
    pub paths: Vec<String>,
    pub peers: Vec<PathBuf>,
    /// Where results and report go.
    pub out: PathBuf,
    pub compare: Option<PathBuf>,
}

pub const USAGE: &str = "usage: bench [--quick] [--rounds N] [--seconds N] [--only WORD,...] \
[--paths NAME,...] [--peer FILE.yaml]... [--out DIR] [--compare OLD.jsonl]";

impl Options {
    /// # Errors
    /// On an unknown flag or value.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            rounds: 0,
            seconds: 1,
            quick: false,
            only: Vec::new(),
            paths: Vec::new(),
            peers: Vec::new(),
            out: "target/bench".into(),
            compare: None,
        };
        let words = |text: String| text.split(',').map(str::to_owned).collect();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--quick" => options.quick = true,
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--seconds" => options.seconds = value()?.parse().context("--seconds")?,
                "--only" => options.only = words(value()?),
                "--paths" => options.paths = words(value()?),
                "--peer" => options.peers.push(value()?.into()),
                "--out" => options.out = value()?.into(),
                "--compare" => options.compare = Some(value()?.into()),
                _ => bail!("unknown argument {flag}\n{USAGE}"),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 3 };
        }
        options.seconds = options.seconds.clamp(1, 60);
        Ok(options)
    }
}

/// Runs everything: each round goes through all jobs, each job through all paths, so that what
/// disturbs the machine disturbs all alike. After each round `keep` gets what there is so far: who
/// interrupts a long run has the rounds that were complete.
///
/// # Errors
/// When a program is missing, a path cannot be made, or a program fails on it; and those of `keep`.
pub fn run(options: &Options, mut keep: impl FnMut(&Run) -> Result<()>) -> Result<Run> {
    let kinds = choose_paths(options)?;
    let jobs = choose_jobs(options)?;
    tools::check(&kinds)?;
    let machine = Machine::look();
    let beds: Vec<Bed> = kinds
        .into_iter()
        .map(|kind| {
            let name = kind.name().to_owned();
            eprint!("\r\x1b[Kbuilding {name}");
            Bed::new(kind).with_context(|| format!("path {name}"))
        })
        .collect::<Result<_>>()?;
    let steps = u32::try_from(jobs.len() * beds.len()).unwrap_or(u32::MAX) * options.rounds;
    let time = Duration::from_secs(options.seconds);
    let paths = beds.iter().map(|bed| bed.name().to_owned()).collect();
    let mut run = Run { machine, rounds: 0, seconds: options.seconds, paths, figures: Vec::new() };
    let (started, mut done) = (Instant::now(), 0);
    for round in 1..=options.rounds {
        for job in &jobs {
            for bed in &beds {
                let left = left(started.elapsed(), done, steps);
                eprint!("\r\x1b[K{done}/{steps}, {left}: {} over {}", job.name, bed.name());
                done += 1;
                if !bed.can(job) || (job.once() && round > 1) {
                    continue;
                }
                let found = bed
                    .measure(job, time)
                    .with_context(|| format!("{} over {}", job.name, bed.name()))?;
                run.figures.extend(found.into_iter().map(|figure| Figure { round, ..figure }));
            }
        }
        run.rounds = round;
        keep(&run)?;
    }
    eprintln!("\r\x1b[K{done} measurements in {:.0} s", started.elapsed().as_secs_f64());
    Ok(run)
}

fn left(elapsed: Duration, done: u32, steps: u32) -> String {
    if done < 3 {
        return "time left unknown yet".to_owned();
    }
    let seconds = elapsed.as_secs_f64() / f64::from(done) * f64::from(steps - done);
    format!("{:.0}:{:02.0} left", (seconds / 60.0).floor(), seconds % 60.0)
}

fn choose_jobs(options: &Options) -> Result<Vec<Job>> {
    let mut jobs = jobs::all(options.quick);
    if !options.only.is_empty() {
        jobs.retain(|job| options.only.iter().any(|word| job.name.contains(word.as_str())));
    }
    if jobs.is_empty() {
        let names: Vec<String> = jobs::all(false).into_iter().map(|job| job.name).collect();
        bail!(
            "no job has one of these in its name: {}; there are: {}",
            options.only.join(", "),
            names.join("; ")
        );
    }
    Ok(jobs)
}

fn choose_paths(options: &Options) -> Result<Vec<Kind>> {
    let mut kinds = Kind::all();
    for file in &options.peers {
        kinds.push(Kind::Peer(Peer::read(file)?));
    }
    for name in &options.paths {
        if !kinds.iter().any(|kind| kind.name() == name) {
            let names: Vec<&str> = kinds.iter().map(Kind::name).collect();
            bail!("no path {name}; there are {}", names.join(", "));
        }
    }
    if !options.paths.is_empty() {
        kinds.retain(|kind| options.paths.iter().any(|name| name == kind.name()));
    } else if options.quick {
        use Kind::{Nginx, Redirect, SpliceSameNode, Vxlan};
        kinds.retain(|kind| !matches!(kind, Vxlan | Redirect | Nginx | SpliceSameNode));
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        Options::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn each_path_has_a_colour_and_there_is_one_for_a_peer() {
        assert!(Kind::all().len() < plot::COLOURS.len());
    }

    #[test]
    fn arguments_are_checked() {
        let quick = choose_paths(&parse("--quick").unwrap()).unwrap();
        assert!(quick.len() < Kind::all().len() && !quick.contains(&Kind::Redirect));
        let options = parse("--quick --only ping,bulk --paths direct --seconds 0").unwrap();
        assert_eq!((options.rounds, options.seconds), (1, 1));
        assert_eq!(choose_paths(&options).unwrap().len(), 1);
        assert!(parse("--fast").is_err());
        assert!(parse("--rounds").is_err());
        let wrong = parse("--paths nowhere").unwrap();
        assert!(choose_paths(&wrong).unwrap_err().to_string().contains("rdmesh"));
        assert!(choose_jobs(&parse("--only nothing").unwrap()).is_err());
    }
}
