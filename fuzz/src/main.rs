//! Drives the fuzz targets with a stable compiler: changes known inputs, keeps those that do
//! something new, and stops at the first that fails.
//!
//!     rdmesh-fuzz [--seconds N] [--seed N] [TARGET]...     all targets, after the canary
//!     rdmesh-fuzz --replay FILE TARGET
#![forbid(unsafe_code)]

use rdmesh_fuzz::mutate::{Random, mutate};
use rdmesh_fuzz::{CANARY, TARGETS, Target};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const INPUT_BYTES_MAX: usize = 16 << 10;
const CORPUS_MAX: usize = 4096;
/// One input that takes longer counts as a hang.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);
/// An input that makes a target grow beyond this ends the process.
const ADDRESS_SPACE_BYTES_MAX: u64 = 4 << 30;
const CANARY_INPUTS_MAX: u64 = 5_000_000;

struct Failure {
    input: Vec<u8>,
    inputs: u64,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("rdmesh-fuzz: {message}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    time: Duration,
    seed: u64,
    replay: Option<PathBuf>,
    targets: Vec<Target>,
}

fn arguments() -> Result<Arguments, String> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let mut found =
        Arguments { time: Duration::from_secs(10), seed: clock, replay: None, targets: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number =
            |text: String| text.parse::<u64>().map_err(|_| format!("{text}: not a number"));
        match word.as_str() {
            "--seconds" => found.time = Duration::from_secs(number(value()?)?),
            "--seed" => found.seed = number(value()?)?,
            "--replay" => found.replay = Some(value()?.into()),
            name => match TARGETS.iter().chain([&CANARY]).find(|target| target.name == name) {
                Some(target) => found.targets.push(*target),
                None => {
                    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
                    return Err(format!("no target {name}; there are {}", names.join(", ")));
                }
            },
        }
    }
    Ok(found)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let limit = rustix::process::Rlimit {
        current: Some(ADDRESS_SPACE_BYTES_MAX),
        maximum: Some(ADDRESS_SPACE_BYTES_MAX),
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit)
        .map_err(|error| format!("limit the memory: {error}"))?;
    if let Some(file) = &arguments.replay {
        let [target] = arguments.targets.as_slice() else {
            return Err("--replay needs one target".into());
        };
        let input = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        (target.run)(&input);
        println!("{}: the input does not fail", target.name);
        return Ok(());
    }
    canary(arguments.seed)?;
    let all = arguments.targets.is_empty();
    let targets = if all { TARGETS } else { arguments.targets.as_slice() };
    for target in targets {
        let end = Instant::now() + arguments.time;
        let fuzzed = fuzz(target, arguments.seed, |_| Instant::now() < end);
        let (inputs, corpus) =
            fuzzed.map_err(|failure| report(target, &failure, arguments.seed))?;
        println!("{}: {inputs} inputs, {corpus} kinds of behaviour, no failure", target.name);
    }
    Ok(())
}

fn canary(seed: u64) -> Result<(), String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let fuzzed = fuzz(&CANARY, seed, |inputs| inputs < CANARY_INPUTS_MAX);
    std::panic::set_hook(hook);
    match fuzzed {
        Err(failure) => {
            println!("canary: found after {} inputs, as it must be", failure.inputs);
            Ok(())
        }
        Ok(_) => Err("the canary was not found: the driver does not work".into()),
    }
}

/// Number of inputs, and of those that were kept.
fn fuzz(target: &Target, seed: u64, go_on: impl Fn(u64) -> bool) -> Result<(u64, usize), Failure> {
    let input_number = Arc::new(AtomicU64::new(1));
    watch(Arc::downgrade(&input_number), target.name, seed);
    let mut random = Random::new(seed);
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    let mut seen = HashSet::new();
    let mut seeds = (target.seeds)().into_iter();
    let mut inputs = 0;
    loop {
        let mut keep = false;
        let input = match seeds.next() {
            Some(seed) => {
                keep = true;
                seed
            }
            None if !go_on(inputs) => return Ok((inputs, corpus.len())),
            None => {
                let pick = |random: &mut Random| random.below(corpus.len());
                let (one, other) = (pick(&mut random), pick(&mut random));
                mutate(&mut random, &corpus[one], &corpus[other], INPUT_BYTES_MAX)
            }
        };
        inputs += 1;
        input_number.fetch_add(1, Ordering::Relaxed);
        match catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
            Err(_) => return Err(Failure { input, inputs }),
            Ok(behaviour) => {
                let new = seen.len() < CORPUS_MAX && seen.insert(behaviour);
                if new || keep {
                    corpus.push(input);
                }
            }
        }
    }
}

/// Ends the process when one input takes too long.
fn watch(input_number: Weak<AtomicU64>, target: &'static str, seed: u64) {
    std::thread::spawn(move || {
        let mut last = 0;
        // Gone with the loop that counts.
        while let Some(now) = input_number.upgrade().map(|number| number.load(Ordering::Relaxed)) {
            if now == last {
                eprintln!(
                    "rdmesh-fuzz: {target}: input {now} hangs; again by --seed {seed} {target}"
                );
                std::process::exit(1);
            }
            last = now;
            std::thread::sleep(INPUT_TIME_MAX);
        }
    });
}

fn report(target: &Target, failure: &Failure, seed: u64) -> String {
    let name = format!("{}-{seed}-{}", target.name, failure.inputs);
    let file = Path::new("fuzz").join("artifacts").join(name);
    let saved = std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))
        .and_then(|()| std::fs::write(&file, &failure.input));
    let again = match saved {
        Ok(()) => format!("--replay {} {}", file.display(), target.name),
        Err(_) => format!("--seed {seed} {}", target.name),
    };
    format!(
        "{} failed after {} inputs; again by `make fuzz ARGS='{again}'`",
        target.name, failure.inputs
    )
}
