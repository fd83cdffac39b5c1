//! Against SMC-R: the same program through the mesh, over SMC-R and over kernel TCP, in machines whose
//! kernel makes SMC-R's links over Soft-RoCE.
//!
//! What it does not do: give SMC-R a figure that is not its own. Each of its connections is looked up
//! in the kernel's list, and the device must have sent as much as the program did. SMC-R runs between
//! the nodes, where the device is: it is spared the bridges of pods, which kernel TCP shows.

use super::figures::Figures;
use super::programs::OUTSIDE;
use crate::guest::cluster::{PATIENCE, pod_ip};
use crate::guest::wire::{Call, Measured, Place, Sockets, Talk};
use crate::guest::{Cluster, Setting};
use crate::rdma::scenarios::{FORCED, proof};
use crate::topology;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

pub(super) const SIZES: [u32; 3] = [64, 1024, 16_384];
pub(super) const PROOF: &str = "\
every connection with a figure of SMC-R was in the kernel's list as one of mode SMC-R with a link on the device,\n\
and the device sent what it carried; all stream bytes of rdmesh were counted on verbs, none passed by it";

const TALKS: [Talk; 4] = [
    Talk::PingPong { bytes: SIZES[0] },
    Talk::PingPong { bytes: SIZES[1] },
    Talk::PingPong { bytes: SIZES[2] },
    Talk::Bulk,
];
const PING_PONG_MS: u64 = 2_000;
const BULK_MS: u64 = 4_000;
const PORT: u16 = 15_800;
const SMC_PORT: u16 = 15_801;
/// The kernel's own, and what takes SMC-R's bulk near to its best: TCP's buffers grow by themselves.
const BUFFERS: [(&str, u32); 2] = [("SMC-R", 64 << 10), (LARGE, 1 << 20)];
pub(super) const LARGE: &str = "SMC-R, 1 MiB";
/// Of payload, in a packet of the device.
const PACKET_BYTES_MAX: f64 = 4096.0;

struct Path {
    name: &'static str,
    sockets: Sockets,
    from: Place,
    to: SocketAddr,
}

fn paths() -> [Path; 4] {
    let (outside, node): (IpAddr, IpAddr) =
        (topology::pod_v4(2, OUTSIDE).into(), topology::node_v4(2).into());
    let path = |name, sockets, from, to| Path { name, sockets, from, to };
    let (x, a) = (Place::Pod("x".into()), Place::Pod("a".into()));
    [
        path("TCP of pods", Sockets::Tcp, x, SocketAddr::new(outside, PORT)),
        path("rdmesh", Sockets::Tcp, a, SocketAddr::new(pod_ip(2, false), PORT)),
        path("TCP of nodes", Sockets::Tcp, Place::Node, SocketAddr::new(node, PORT)),
        path("SMC-R", Sockets::Smc, Place::Node, SocketAddr::new(node, SMC_PORT)),
    ]
}

/// Servers, mesh, and what SMC-R needs.
pub(super) fn prepare(cluster: &mut Cluster) -> Result<()> {
    if cluster.spared().is_some() {
        bail!(
            "SMC-R would change this machine's kernel: it is measured in emulated machines alone"
        );
    }
    cluster.both(|_| Call::Smc).context("SMC-R")?;
    for (place, sockets, port) in [
        (Place::Pod("b".into()), Sockets::Tcp, PORT),
        (Place::Pod("y".into()), Sockets::Tcp, PORT),
        (Place::Node, Sockets::Tcp, PORT),
        (Place::Node, Sockets::Smc, SMC_PORT),
    ] {
        cluster.machine(2).call::<Value>(Call::Hear { place, sockets, port }, PATIENCE)?;
    }
    cluster.mesh(&Setting::new(FORCED))
}

pub(super) fn round(cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    // The lane may have no link yet, or have given it back while others were measured.
    let (near, far) = cluster.pair()?;
    near.says_to(&far, 1, 64)?;
    drop((near, far));
    for talk in TALKS {
        for path in paths() {
            let name = named(path.name, talk);
            match path.name {
                "SMC-R" => over_smc(cluster, &path, talk, figures)?,
                "rdmesh" => {
                    let before = proof::Counts::read(cluster)?;
                    figures.add(&name, say(cluster, &path, talk).map(|m| m.value))?;
                    before.assert_all_on_verbs(cluster)?;
                }
                _ => figures.add(&name, say(cluster, &path, talk).map(|m| m.value))?,
            }
        }
    }
    Ok(())
}

fn named(path: &str, talk: Talk) -> String {
    match talk {
        Talk::PingPong { bytes } => format!("{path} ping-pong {bytes}"),
        Talk::Bulk => format!("{path} bulk"),
    }
}

fn say(cluster: &Cluster, path: &Path, talk: Talk) -> Result<Measured> {
    let for_ms = if talk == Talk::Bulk { BULK_MS } else { PING_PONG_MS };
    let (place, sockets, to) = (path.from.clone(), path.sockets, path.to);
    cluster.machine(1).call(Call::Talk { place, sockets, to, talk, for_ms }, PATIENCE)
}

/// Buffers matter to bulk alone.
fn over_smc(cluster: &Cluster, path: &Path, talk: Talk, figures: &mut Figures) -> Result<()> {
    for (name, bytes) in BUFFERS.into_iter().take(if talk == Talk::Bulk { 2 } else { 1 }) {
        let name = named(name, talk);
        if figures.missing().contains_key(&name) {
            continue;
        }
        for number in [1, 2] {
            cluster.sh(number, &format!("sysctl -qw net.smc.rmem={bytes} net.smc.wmem={bytes}"))?;
        }
        match on_device(cluster, path, talk) {
            Ok(measured) => figures.add(&name, Ok(measured.value))?,
            Err(error) => figures.miss(&name, format!("{error:#}")),
        }
    }
    Ok(())
}

fn on_device(cluster: &Cluster, path: &Path, talk: Talk) -> Result<Measured> {
    let sent = || proof::device_counter(cluster, "sent_pkts")?.context("the device counts nothing");
    let before = sent()?;
    let measured = say(cluster, path, talk)?;
    let packets = f64::from(u32::try_from(sent()?.saturating_sub(before)).unwrap_or(u32::MAX));
    ensure!(
        packets * PACKET_BYTES_MAX >= measured.bytes,
        "{} bytes are more than the device's {packets} packets carry",
        measured.bytes
    );
    Ok(measured)
}
