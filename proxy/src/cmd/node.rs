//! `rdmesh-proxy node`: the node proxy.

use rdmesh_config::Config;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file (YAML)
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

/// # Errors
/// With what is wrong in the configuration or missing on this machine.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { config: path } = args;
    let config = Config::load(&path)?;
    config.check_node(&path.display().to_string())?;
    super::start_logging(&config.log)?;
    crate::node::run(config, super::stop_signal())
}
