//! `rdmesh-proxy node`: the node proxy.

use rdmesh_config::Config;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file (YAML)
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,

    /// The node's name, instead of node.name
    #[arg(long, env = "RDMESH_NODE_NAME", value_name = "NAME")]
    name: Option<String>,
}

/// # Errors
/// With what is wrong in the configuration or missing on this machine.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { config: path, name } = args;
    let mut config = Config::load(&path)?;
    if let Some(name) = name {
        config.node.name = name;
    }
    config.check_node(&path.display().to_string())?;
    super::start_logging(&config.log)?;
    crate::node::run(config, super::stop_signal())
}
