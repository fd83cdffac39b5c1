//! `rdmesh-proxy check-config`: all faults of a file at once, or what is in force with it.

use rdmesh_config::{Config, DirectoryFile};
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file is a directory of nodes, pods and services
    #[arg(long)]
    directory: bool,
    /// Ask also for what `rdmesh-proxy node` needs and has no default for
    #[arg(long, conflicts_with = "directory")]
    node: bool,
    /// The YAML file to check
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// # Errors
/// With all faults of the file.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { directory, node, file } = args;
    let effective = if directory {
        DirectoryFile::load(&file)?.to_yaml()
    } else {
        let config = Config::load(&file)?;
        if node {
            config.check_node(&file.display().to_string())?;
        }
        config.to_yaml()
    };
    Ok(std::io::stdout().write_all(effective.as_bytes())?)
}
