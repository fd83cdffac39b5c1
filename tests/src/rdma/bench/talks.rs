//! Our own program at both ends, over sockets that sockperf and iperf3 do not make; and the floor of a
//! proxy over them: a bare pair of relays between two pods.
//!
//! What it does not do: believe that something went over the device; the device must have sent as much
//! as the program did.

use super::figures::Figures;
use super::programs::OUTSIDE;
use crate::guest::Cluster;
use crate::guest::cluster::{PATIENCE, pod_ip};
use crate::guest::wire::{Call, Measured, Place, Sockets, Talk};
use crate::rdma::scenarios::proof;
use crate::topology;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub(super) const SIZES: [u32; 3] = [64, 1024, 16_384];
pub(super) const PING_PONGS: [Talk; 3] = [
    Talk::PingPong { bytes: SIZES[0] },
    Talk::PingPong { bytes: SIZES[1] },
    Talk::PingPong { bytes: SIZES[2] },
];
const PING_PONG_MS: u64 = 2_000;
const BULK_MS: u64 = 4_000;
pub(super) const PORT: u16 = 15_800;
/// The relays': of the one in the client's pod, and of the one on the server's node.
const RELAY_PORTS: (u16, u16) = (15_802, 15_803);
pub(super) const RELAYS: &str = "relays";
/// Of payload, in a packet of the device.
const PACKET_BYTES_MAX: f64 = 4096.0;

pub(super) struct Path {
    pub name: &'static str,
    pub sockets: Sockets,
    pub from: Place,
    pub to: SocketAddr,
}

impl Path {
    pub fn tcp(name: &'static str, from: Place, ip: IpAddr, port: u16) -> Self {
        Self { name, sockets: Sockets::Tcp, from, to: SocketAddr::new(ip, port) }
    }

    pub fn meshed() -> Self {
        Self::tcp("rdmesh", pod("a"), pod_ip(2, false), PORT)
    }

    pub fn outside() -> Self {
        Self::tcp("TCP of pods", pod("x"), topology::pod_v4(2, OUTSIDE).into(), PORT)
    }

    pub fn relays() -> Self {
        Self::tcp(RELAYS, pod("x"), Ipv4Addr::LOCALHOST.into(), RELAY_PORTS.0)
    }

    pub fn figure(&self, talk: Talk) -> String {
        named(self.name, talk)
    }
}

pub(super) fn named(path: &str, talk: Talk) -> String {
    match talk {
        Talk::PingPong { bytes } => format!("{path} ping-pong {bytes}"),
        Talk::Bulk => format!("{path} bulk"),
    }
}

pub(super) fn pod(name: &str) -> Place {
    Place::Pod(name.to_owned())
}

pub(super) fn hear(cluster: &Cluster, place: Place, sockets: Sockets, port: u16) -> Result<()> {
    cluster.machine(2).call::<Value>(Call::Hear { place, sockets, port }, PATIENCE).map(drop)
}

/// One in each pod, as a sidecar is: the applications' ends are on the pods' loopback interfaces. They
/// are joined by sockets of this kind, to this address of the second node.
pub(super) fn start_relays(cluster: &Cluster, sockets: Sockets, node: IpAddr) -> Result<()> {
    let (near, far) = RELAY_PORTS;
    let server = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    let relay = |node, hears, speaks| {
        cluster.machine(node).call::<Value>(Call::Relay { hears, speaks }, PATIENCE)
    };
    relay(2, (Place::Node, sockets, far), (pod("y"), Sockets::Tcp, server))?;
    let far = SocketAddr::new(node, far);
    relay(1, (pod("x"), Sockets::Tcp, near), (Place::Node, sockets, far))?;
    Ok(())
}

pub(super) fn say(cluster: &Cluster, path: &Path, talk: Talk) -> Result<Measured> {
    let for_ms = if talk == Talk::Bulk { BULK_MS } else { PING_PONG_MS };
    let (place, sockets, to) = (path.from.clone(), path.sockets, path.to);
    cluster.machine(1).call(Call::Talk { place, sockets, to, talk, for_ms }, PATIENCE)
}

/// Through the mesh, all of it on queue pairs.
pub(super) fn say_meshed(cluster: &Cluster, talk: Talk, figures: &mut Figures) -> Result<()> {
    let path = Path::meshed();
    let before = proof::Counts::read(cluster)?;
    figures.add(&path.figure(talk), say(cluster, &path, talk).map(|m| m.value))?;
    before.assert_all_on_verbs(cluster)
}

/// A figure if the device carried it; else why there is none, once.
pub(super) fn say_on_device(
    cluster: &Cluster,
    path: &Path,
    talk: Talk,
    name: &str,
    figures: &mut Figures,
) -> Result<()> {
    if figures.missing().contains_key(name) {
        return Ok(());
    }
    match on_device(cluster, path, talk) {
        Ok(measured) => figures.add(name, Ok(measured.value))?,
        Err(error) => figures.miss(name, format!("{error:#}")),
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
