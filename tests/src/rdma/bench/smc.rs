//! Against SMC-R: the same program through the mesh, over SMC-R and over kernel TCP, in machines whose
//! kernel makes SMC-R's links over Soft-RoCE.
//!
//! What it does not do: give SMC-R a figure that is not its own. Each of its connections is looked up
//! in the kernel's list. SMC-R runs between the nodes, where the device is: it is spared the bridges of
//! pods, which kernel TCP shows.

use super::figures::Figures;
use super::talks::{self, PING_PONGS, PORT, Path, RELAYS, named, pod};
use crate::guest::wire::{Call, Place, Sockets, Talk};
use crate::guest::{Cluster, Setting};
use crate::rdma::scenarios::FORCED;
use crate::topology;
use anyhow::{Context, Result, bail};
use std::net::SocketAddr;

pub(super) const PROOF: &str = "\
every connection with a figure of SMC-R was in the kernel's list as one of mode SMC-R with a link on the device,\n\
and the device sent what it carried; all stream bytes of rdmesh were counted on verbs, none passed by it";

const SMC_PORT: u16 = 15_801;
/// The kernel's own, and what takes SMC-R's bulk near to its best: TCP's buffers grow by themselves.
const BUFFER_BYTES: u32 = 64 << 10;
const LARGE_BYTES: u32 = 1 << 20;
pub(super) const LARGE: &str = "SMC-R, 1 MiB";

pub(super) fn measure(cluster: &mut Cluster, rounds: u32, figures: &mut Figures) -> Result<()> {
    prepare(cluster)?;
    // Bulk last: it was seen to bring a guest's kernel down.
    for talks in [&PING_PONGS[..], &[Talk::Bulk]] {
        for number in 1..=rounds {
            eprintln!("round {number} of {rounds}");
            round(cluster, talks, figures)?;
        }
    }
    Ok(())
}

/// Servers, mesh, and what SMC-R needs.
fn prepare(cluster: &mut Cluster) -> Result<()> {
    if cluster.spared().is_some() {
        bail!(
            "SMC-R would change this machine's kernel: it is measured in emulated machines alone"
        );
    }
    cluster.both(|_| Call::Smc).context("SMC-R")?;
    for (place, sockets, port) in [
        (pod("b"), Sockets::Tcp, PORT),
        (pod("y"), Sockets::Tcp, PORT),
        (Place::Node, Sockets::Tcp, PORT),
        (Place::Node, Sockets::Smc, SMC_PORT),
    ] {
        talks::hear(cluster, place, sockets, port)?;
    }
    talks::start_relays(cluster, Sockets::Smc, topology::node_v4(2).into())?;
    cluster.mesh(&Setting::new(FORCED))
}

fn round(cluster: &Cluster, all: &[Talk], figures: &mut Figures) -> Result<()> {
    // The lane may have no link yet, or have given it back while others were measured.
    let (near, far) = cluster.pair()?;
    near.says_to(&far, 1, 64)?;
    drop((near, far));
    let node = topology::node_v4(2).into();
    let (outside, nodes) = (Path::outside(), Path::tcp("TCP of nodes", Place::Node, node, PORT));
    let to = SocketAddr::new(node, SMC_PORT);
    let alone = Path { name: "SMC-R", sockets: Sockets::Smc, from: Place::Node, to };
    for &talk in all {
        for path in [&outside, &nodes] {
            figures.add(&path.figure(talk), talks::say(cluster, path, talk).map(|m| m.value))?;
        }
        talks::say_meshed(cluster, talk, figures)?;
        over_smc(cluster, &alone, talk, (alone.name, BUFFER_BYTES), figures)?;
        if talk == Talk::Bulk {
            over_smc(cluster, &alone, talk, (LARGE, LARGE_BYTES), figures)?;
        }
        over_smc(cluster, &Path::relays(), talk, (RELAYS, LARGE_BYTES), figures)?;
    }
    Ok(())
}

fn over_smc(
    cluster: &Cluster,
    path: &Path,
    talk: Talk,
    (name, buffer_bytes): (&str, u32),
    figures: &mut Figures,
) -> Result<()> {
    for number in [1, 2] {
        let sysctls = format!("net.smc.rmem={buffer_bytes} net.smc.wmem={buffer_bytes}");
        cluster.sh(number, &format!("sysctl -qw {sysctls}"))?;
    }
    talks::say_on_device(cluster, path, talk, &named(name, talk), figures)
}
