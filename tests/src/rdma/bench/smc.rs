//! Against SMC-R: the same program through the mesh, over SMC-R and over kernel TCP, in machines whose
//! kernel makes SMC-R's links over Soft-RoCE.
//!
//! What it does not do: give SMC-R a figure that is not its own. Each of its connections is looked up
//! in the kernel's list, and the device must have sent as much as the program did. SMC-R runs between
//! the nodes, where the device is: it is spared the bridges of pods, which kernel TCP shows.
//!
//! The floor of a proxy is measured too: a bare pair of relays between the same pods, joined by one
//! connection of SMC-R.

use super::figures::Figures;
use super::programs::OUTSIDE;
use crate::guest::cluster::{PATIENCE, pod_ip};
use crate::guest::wire::{Call, Measured, Place, Sockets, Talk};
use crate::guest::{Cluster, Setting};
use crate::rdma::scenarios::{FORCED, proof};
use crate::topology;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub(super) const SIZES: [u32; 3] = [64, 1024, 16_384];
pub(super) const PROOF: &str = "\
every connection with a figure of SMC-R was in the kernel's list as one of mode SMC-R with a link on the device,\n\
and the device sent what it carried; all stream bytes of rdmesh were counted on verbs, none passed by it";

const PING_PONGS: [Talk; 3] = [
    Talk::PingPong { bytes: SIZES[0] },
    Talk::PingPong { bytes: SIZES[1] },
    Talk::PingPong { bytes: SIZES[2] },
];
const PING_PONG_MS: u64 = 2_000;
const BULK_MS: u64 = 4_000;
const PORT: u16 = 15_800;
const SMC_PORT: u16 = 15_801;
/// The relays': of the one in the client's pod, and of the one on the server's node.
const RELAY_PORTS: (u16, u16) = (15_802, 15_803);
/// The kernel's own, and what takes SMC-R's bulk near to its best: TCP's buffers grow by themselves.
const BUFFER_BYTES: u32 = 64 << 10;
const LARGE_BYTES: u32 = 1 << 20;
const ALONE: &str = "SMC-R";
pub(super) const LARGE: &str = "SMC-R, 1 MiB";
pub(super) const RELAYS: &str = "relays";
/// Of payload, in a packet of the device.
const PACKET_BYTES_MAX: f64 = 4096.0;

struct Path {
    name: &'static str,
    sockets: Sockets,
    from: Place,
    to: SocketAddr,
}

fn paths() -> [Path; 5] {
    let (outside, node): (IpAddr, IpAddr) =
        (topology::pod_v4(2, OUTSIDE).into(), topology::node_v4(2).into());
    let path = |name, sockets, from, to| Path { name, sockets, from, to };
    let (x, a) = (Place::Pod("x".into()), Place::Pod("a".into()));
    [
        path("TCP of pods", Sockets::Tcp, x.clone(), SocketAddr::new(outside, PORT)),
        path("rdmesh", Sockets::Tcp, a, SocketAddr::new(pod_ip(2, false), PORT)),
        path("TCP of nodes", Sockets::Tcp, Place::Node, SocketAddr::new(node, PORT)),
        path(ALONE, Sockets::Smc, Place::Node, SocketAddr::new(node, SMC_PORT)),
        path(RELAYS, Sockets::Tcp, x, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), RELAY_PORTS.0)),
    ]
}

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
        (Place::Pod("b".into()), Sockets::Tcp, PORT),
        (Place::Pod("y".into()), Sockets::Tcp, PORT),
        (Place::Node, Sockets::Tcp, PORT),
        (Place::Node, Sockets::Smc, SMC_PORT),
    ] {
        cluster.machine(2).call::<Value>(Call::Hear { place, sockets, port }, PATIENCE)?;
    }
    relays(cluster)?;
    cluster.mesh(&Setting::new(FORCED))
}

/// One in each pod, as a sidecar is: the applications' ends are on the pods' loopback interfaces.
fn relays(cluster: &Cluster) -> Result<()> {
    let (near, far) = RELAY_PORTS;
    let far_node = SocketAddr::new(topology::node_v4(2).into(), far);
    let server = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    let pod = |name: &str| Place::Pod(name.to_owned());
    let relay = |node, hears, speaks| {
        cluster.machine(node).call::<Value>(Call::Relay { hears, speaks }, PATIENCE)
    };
    relay(2, (Place::Node, Sockets::Smc, far), (pod("y"), Sockets::Tcp, server))?;
    relay(1, (pod("x"), Sockets::Tcp, near), (Place::Node, Sockets::Smc, far_node))?;
    Ok(())
}

fn round(cluster: &Cluster, talks: &[Talk], figures: &mut Figures) -> Result<()> {
    // The lane may have no link yet, or have given it back while others were measured.
    let (near, far) = cluster.pair()?;
    near.says_to(&far, 1, 64)?;
    drop((near, far));
    for &talk in talks {
        for path in paths() {
            let name = named(path.name, talk);
            match path.name {
                ALONE => {
                    over_smc(cluster, &path, talk, (ALONE, BUFFER_BYTES), figures)?;
                    if talk == Talk::Bulk {
                        over_smc(cluster, &path, talk, (LARGE, LARGE_BYTES), figures)?;
                    }
                }
                RELAYS => over_smc(cluster, &path, talk, (RELAYS, LARGE_BYTES), figures)?,
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

fn over_smc(
    cluster: &Cluster,
    path: &Path,
    talk: Talk,
    (name, buffer_bytes): (&str, u32),
    figures: &mut Figures,
) -> Result<()> {
    let name = named(name, talk);
    if figures.missing().contains_key(&name) {
        return Ok(());
    }
    for number in [1, 2] {
        let sysctls = format!("net.smc.rmem={buffer_bytes} net.smc.wmem={buffer_bytes}");
        cluster.sh(number, &format!("sysctl -qw {sysctls}"))?;
    }
    match on_device(cluster, path, talk) {
        Ok(measured) => figures.add(&name, Ok(measured.value))?,
        Err(error) => figures.miss(&name, format!("{error:#}")),
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
