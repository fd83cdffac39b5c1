//! `RDMA=host`, tried in a guest: there it finds a machine with an RDMA device.

use crate::guest::Cluster;
use crate::guest::wire::Place;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Each a word of a scenario's name, and one that must not be run on a machine's own device.
const SCENARIOS: &str = "sizes half-close killed removed";
const TOLD: &str = "4 scenarios: 3 ok, 0 failed, 1 not run";

pub fn on_one_machine(cluster: &mut Cluster) -> Result<Option<String>> {
    if cluster.spared().is_some() {
        return Ok(Some("this is one".into()));
    }
    const NAMESPACES: &str = "ls /run/netns";
    let me = std::env::current_exe().context("find this program's own file")?;
    let before = cluster.sh(1, NAMESPACES)?;
    let script = format!("RDMA=host {} {SCENARIOS} 2>&1", me.display());
    let told = cluster.sh_at(1, Place::Node, &script, Duration::from_secs(240))?;
    ensure!(told.contains(TOLD), "not `{TOLD}`:\n{told}");
    let after = cluster.sh(1, NAMESPACES)?;
    ensure!(after == before, "namespaces before:\n{before}\nand after:\n{after}");
    Ok(None)
}
