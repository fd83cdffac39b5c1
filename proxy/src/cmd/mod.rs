//! The command line of `rdmesh-proxy`: one file per subcommand.
//!
//! What it does not do: any work of its own; it parses, wires and reports.

mod bench_link;
mod certs;
mod check_config;
mod demo;
mod init;
mod node;
mod sidecar;
mod status;

use clap::{Parser, Subcommand};
use rdmesh_config::Config;
use std::path::Path;
use std::process::ExitCode;

/// Carries the TCP connections of pods between nodes over RDMA, or TCP where there is none.
#[derive(Debug, Parser)]
#[command(name = "rdmesh-proxy", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Program this network namespace to redirect outgoing TCP to the sidecar
    Init(init::Args),
    /// Run beside the application in its pod
    Sidecar(sidecar::Args),
    /// Run once per node: move the bytes
    Node(node::Args),
    /// Show the whole thing on this machine with two emulated nodes
    Demo(demo::Args),
    /// Show peers, lanes, streams and budgets of a running node proxy
    Status(status::Args),
    /// Make a certificate authority and certificates for nodes
    Certs(certs::Args),
    /// Measure a link between two machines by itself
    BenchLink(bench_link::Args),
    /// Check a configuration file and print what is in force
    CheckConfig(check_config::Args),
}

/// Runs the program and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Init(args) => init::run(args),
        Command::Sidecar(args) => sidecar::run(args),
        Command::Node(args) => node::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Status(args) => status::run(args),
        Command::Certs(args) => certs::run(args),
        Command::BenchLink(args) => bench_link::run(args),
        Command::CheckConfig(args) => check_config::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes on the same line: one line per failure is what log collectors keep.
            eprintln!("rdmesh-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration of a process in a pod: a file's, or the one that the injector put into the environment.
///
/// # Errors
/// With all faults of it, or when both are given.
fn pod_config(file: Option<&Path>, inline: Option<&str>) -> anyhow::Result<Config> {
    match (file, inline.filter(|text| !text.is_empty())) {
        (Some(_), Some(_)) => anyhow::bail!("both --config and RDMESH_CONFIG are given: take one"),
        (Some(path), None) => Ok(Config::load(path)?),
        (None, Some(text)) => Ok(Config::from_yaml(text, "RDMESH_CONFIG")?),
        (None, None) => Ok(Config::default()),
    }
}

/// Waits for SIGTERM or SIGINT and tells which came.
///
/// # Errors
/// When handlers cannot be installed.
pub async fn stop_signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Sets up logging to standard error.
///
/// # Errors
/// When `log.level` is no filter.
pub fn start_logging(log: &rdmesh_config::Log) -> anyhow::Result<()> {
    use rdmesh_config::LogFormat;
    use tracing_subscriber::EnvFilter;
    // The Kubernetes client calls each try that fails an error; the directory tells the first.
    let quiet = if log.level.contains("kube_client") { "" } else { ",kube_client=off" };
    let filter = EnvFilter::try_new(format!("{}{quiet}", log.level))
        .map_err(|error| anyhow::anyhow!("log.level: {:?} is no filter: {error}", log.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
