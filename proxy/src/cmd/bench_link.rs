//! `rdmesh-proxy bench-link`: the speed of one link between two machines.

use crate::bench::{self, Plan, Poll, Test};
use anyhow::{Context, bail};
use rdmesh_config::{Config, Fabric};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Messages of this size and above are fewer.
const LARGE_BYTES: u32 = 16 << 10;
const TESTS: [&str; 3] = ["latency", "rate", "lane"];
/// Streams of the lane in its test.
const STREAMS: u32 = 16;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("end").required(true))]
pub struct Args {
    /// Wait for the other end at this address, serve it once, and end. Anyone who reaches the
    /// address may be the other end: no certificate is asked for
    #[arg(long, group = "end", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The address that the other end listens at; the figures are told here
    #[arg(long, group = "end", value_name = "ADDRESS:PORT")]
    connect: Option<SocketAddr>,
    /// verbs or tcp; the same at both ends
    #[arg(long, default_value = "verbs", value_parser = fabric)]
    fabric: Fabric,
    /// off: both ends sleep until something comes; always: both look all the time, each with a
    /// processor of its own
    #[arg(long, default_value = "off", value_parser = poll, conflicts_with = "listen")]
    poll: Poll,
    /// Sizes of messages, their headers included
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "64,1024,16384,65536",
        value_name = "BYTES"
    )]
    #[arg(conflicts_with = "listen")]
    sizes: Vec<u32>,
    /// latency: there and back; rate: one way in batches; lane: small pieces of streams, packed
    #[arg(long, value_delimiter = ',', default_value = "latency,rate,lane", value_name = "TEST")]
    #[arg(conflicts_with = "listen")]
    tests: Vec<String>,
    /// Messages there and back for each size; one way there are ten times as many; of large ones
    /// there are a tenth
    #[arg(long, default_value_t = 1_000, conflicts_with = "listen")]
    messages: u32,
    /// Print the figures as JSON
    #[arg(long, conflicts_with = "listen")]
    json: bool,
    /// Configuration of a node proxy, for its limits and its choice of a device
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn fabric(text: &str) -> Result<Fabric, String> {
    match text {
        "verbs" => Ok(Fabric::Verbs),
        "tcp" => Ok(Fabric::Tcp),
        _ => Err("verbs or tcp".to_owned()),
    }
}

fn poll(text: &str) -> Result<Poll, String> {
    match text {
        "off" => Ok(Poll::Off),
        "always" => Ok(Poll::Always),
        _ => Err("off or always".to_owned()),
    }
}

/// # Errors
/// With what is wrong with the arguments, the configuration or the link.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { listen, connect, fabric, poll, sizes, tests, messages, json, config } = args;
    let config = config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
    super::start_logging(&config.log)?;
    let mut node = config.node;
    node.fabric = fabric;
    // There is one worker, this thread.
    node.workers = 1;
    if let Some(address) = listen {
        return bench::listen(address, &node).context("bench-link");
    }
    let Some(address) = connect else { bail!("one of --listen and --connect is needed") };
    let report = bench::connect(address, &node, &plan(poll, &sizes, &tests, messages)?)?;
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    Ok(stdout.flush()?)
}

fn plan(poll: Poll, sizes: &[u32], chosen: &[String], messages: u32) -> anyhow::Result<Plan> {
    let wanted = |name: &str| chosen.iter().any(|test| test == name);
    if let Some(other) = chosen.iter().find(|test| !TESTS.contains(&test.as_str())) {
        bail!("--tests: {other:?} is none of {}", TESTS.join(", "));
    }
    let scaled = |bytes: u32| if bytes > LARGE_BYTES { (messages / 10).max(1) } else { messages };
    let mut tests = Vec::new();
    for bytes in sizes.iter().copied() {
        if wanted("latency") {
            tests.push(Test::Latency { bytes, messages: scaled(bytes) });
        }
        if wanted("rate") {
            tests.push(Test::Rate { bytes, messages: scaled(bytes).saturating_mul(10) });
        }
    }
    if wanted("lane")
        && let Some(bytes) = sizes.iter().copied().min()
    {
        tests.push(Test::Lane { bytes, pieces: messages.saturating_mul(100), streams: STREAMS });
    }
    Ok(Plan { poll, tests })
}
