//! The command line of `rdmesh-injector`: one file per subcommand.
//!
//! What it does not do: any work of its own; it parses, wires and reports.

mod check_config;
mod inject;
mod node_certificate;
mod serve;

use crate::template::Template;
use clap::{Parser, Subcommand};
use rdmesh_config::Config;
use std::path::Path;
use std::process::ExitCode;

/// Puts capture and sidecar of rdmesh into pods.
#[derive(Debug, Parser)]
#[command(name = "rdmesh-injector", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the admission webhook
    Serve(serve::Args),
    /// Keep the certificate of a node proxy (runs beside it)
    NodeCertificate(node_certificate::Args),
    /// Add capture and sidecar to the workloads of manifests, off line
    Inject(inject::Args),
    /// Check a configuration file and its template, and print what is in force
    CheckConfig(check_config::Args),
}

/// Runs the program and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::NodeCertificate(args) => node_certificate::run(args),
        Command::Inject(args) => inject::run(args),
        Command::CheckConfig(args) => check_config::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rdmesh-injector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(config: Option<&Path>) -> anyhow::Result<Config> {
    Ok(match config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    })
}

fn template(config: &Config) -> anyhow::Result<Template> {
    let path = &config.injector.template;
    if path.as_os_str().is_empty() {
        return Ok(Template::built_in()?);
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| anyhow::anyhow!("injector.template: {}: {error}", path.display()))?;
    Ok(Template::from_yaml(&text, &path.display().to_string())?)
}
