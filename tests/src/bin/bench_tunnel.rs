//! `make bench-tunnel`: direct TCP, rdmesh and a pair of HAProxy, side by side.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use rdmesh_tests::bench::{self, Options, USAGE};
use std::io::Write;

fn main() -> Result<()> {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let options = Options::parse(std::env::args().skip(1))?;
    let figures = bench::run(&options)?;
    if let Some(path) = &options.json {
        let mut file = std::fs::File::create(path).with_context(|| format!("create {path}"))?;
        for figure in &figures {
            writeln!(file, "{}", serde_json::to_string(figure)?)?;
        }
    }
    bench::print(&figures, &options.paths);
    Ok(())
}
