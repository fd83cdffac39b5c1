//! `rdmesh-proxy demo`: the mesh on this machine, with two emulated nodes.
//!
//! What it does not do: anything but read flags; see the `demo` room.

use crate::demo::show;
use anyhow::{Context, Result};
use clap::ArgAction;

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Args {
    /// Leave the two nodes up afterwards, and print commands to look around
    #[arg(long)]
    keep: bool,
    /// Take down what `--keep` left up, and do nothing else
    #[arg(long, conflicts_with_all = ["keep", "json"])]
    down: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    /// Whether the payload between the nodes is encrypted
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    encrypt: bool,
}

pub fn run(args: Args) -> Result<()> {
    if args.down {
        eprintln!("took down {} lab(s)", show::take_down());
        return Ok(());
    }
    let proxy = std::env::current_exe().context("find this program's own file")?;
    show::run(show::Options { keep: args.keep, json: args.json, encrypt: args.encrypt }, &proxy)
}
