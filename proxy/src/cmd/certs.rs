//! `rdmesh-proxy certs`: a certificate authority and certificates for nodes.

use crate::trust::{self, Request};
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the files go: ca.crt, ca.key, and NAME.crt and NAME.key of each node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A node to make a certificate for, by its name in the directory; may be given many times
    #[arg(long = "node", value_name = "NAME")]
    nodes: Vec<String>,
    /// How long the nodes' certificates are valid
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    days: u32,
    /// Sign with the ca.crt and ca.key of this directory instead of making a CA
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// Replace certificates of nodes that exist (never the CA)
    #[arg(long)]
    force: bool,
}

/// # Errors
/// With what is wrong with a name, a file or the CA.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { dir, nodes, days, ca, force } = args;
    let made = trust::make(&Request { dir, nodes, days, ca_dir: ca, force })?;
    let mut stdout = std::io::stdout().lock();
    let what = if made.ca_made { "new CA" } else { "CA" };
    stdout.write_all(format!("{what}: {}\n", made.ca.display()).as_bytes())?;
    for node in &made.nodes {
        let (cert, key) = (node.cert.display(), node.key.display());
        stdout.write_all(format!("{}: {cert} {key}\n", node.node).as_bytes())?;
    }
    Ok(stdout.flush()?)
}
