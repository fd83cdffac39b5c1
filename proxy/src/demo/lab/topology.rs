//! The wires: two nodes joined by an underlay, pods behind a bridge in their node.
//!
//! ```text
//!  pod ─ eth0 ─ cni0 (n1) ─ under0 ═══════ under0 ─ (n2) cni0 ─ eth0 ─ pod
//! ```
//! What it does not do: start processes or write config files.

use super::netns::Netns;
use anyhow::Result;
use rdmesh_config::ROUTING_SYSCTLS;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bulk figures under the machine's default congestion control (often bbr) say nothing about a
/// proxy: it paces, and its flows take from each other. The sysctl may not be set in a namespace,
/// so that every route carries it.
pub const CC: &str = "congctl cubic";

pub const UNDERLAY: &str = "under0";

pub fn node_name(number: u8) -> String {
    format!("n{number}")
}

/// A node's addresses: `number` is 1 or 2.
pub fn node_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, number)
}

pub fn node_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number))
}

pub fn pod_v4(node: u8, index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, node, index)
}

pub fn pod_v6(node: u8, index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd42, u16::from(node), 0, 0, 0, 0, 0, u16::from(index))
}

/// The addresses of services come from here; no interface has them.
pub fn service_v4(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 43, 0, index)
}

pub fn service_v6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd43, 0, 0, 0, 0, 0, 0, u16::from(index))
}

/// Duplicate address detection would delay the first IPv6 connection by more than a second.
pub fn prepare(netns: &Netns) -> Result<()> {
    netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
    netns.sysctl("ipv6/conf/all/accept_dad", "0")?;
    netns.sysctl("ipv6/conf/all/disable_ipv6", "0")?;
    netns.sysctl("ipv6/conf/default/disable_ipv6", "0")
}

pub fn join_nodes(n1: &Netns, n2: &Netns) -> Result<()> {
    wire(n1, n2)?;
    node(n1, 1, 2)?;
    node(n2, 2, 1)
}

/// The underlay's interfaces, joined; not yet up.
pub fn wire(n1: &Netns, n2: &Netns) -> Result<()> {
    n1.ip(&format!(
        "link add {UNDERLAY} mtu 1500 type veth peer name {UNDERLAY} mtu 1500 netns {}\n",
        n2.name()
    ))
}

/// Makes a namespace with an underlay's interface one of the two nodes.
pub fn node(netns: &Netns, number: u8, other: u8) -> Result<()> {
    netns.sysctl("ipv4/ip_forward", "1")?;
    netns.sysctl("ipv6/conf/all/forwarding", "1")?;
    let (cni4, cni6) = (pod_v4(number, 1), pod_v6(number, 1));
    let mut batch = String::new();
    let b = &mut batch;
    line(b, "link set lo up");
    line(b, "link add cni0 mtu 1500 type bridge forward_delay 0 stp_state 0");
    line(b, "link set cni0 up");
    line(b, &format!("addr add {cni4}/24 dev cni0 noprefixroute"));
    line(b, &format!("addr add {cni6}/64 dev cni0 noprefixroute nodad"));
    line(b, &format!("route add 10.42.{number}.0/24 dev cni0 src {cni4} {CC}"));
    line(b, &format!("route add fd42:{number}::/64 dev cni0 {CC}"));
    line(b, &format!("addr add {}/24 dev {UNDERLAY} noprefixroute", node_v4(number)));
    netns.ip(&batch)?;
    underlay_up(netns, number, other)
}

/// Sets the underlay's interface up with the addresses and routes that a node loses while it is
/// down.
pub fn underlay_up(netns: &Netns, number: u8, other: u8) -> Result<()> {
    let (v4, v6) = (node_v4(number), node_v6(number));
    let (via4, via6) = (node_v4(other), node_v6(other));
    let mut batch = String::new();
    let b = &mut batch;
    line(b, &format!("link set {UNDERLAY} up"));
    line(b, &format!("addr replace {v6}/64 dev {UNDERLAY} noprefixroute nodad"));
    line(b, &format!("route replace 192.168.77.0/24 dev {UNDERLAY} src {v4} {CC}"));
    line(b, &format!("route replace fd77::/64 dev {UNDERLAY} {CC}"));
    line(b, &format!("route replace 10.42.{other}.0/24 via {via4} {CC}"));
    line(b, &format!("route replace fd42:{other}::/64 via {via6} {CC}"));
    pin_local(b, UNDERLAY, IpAddr::V4(v4));
    netns.ip(&batch)
}

pub fn underlay_down(netns: &Netns) -> Result<()> {
    netns.ip(&format!("link set {UNDERLAY} down\n"))
}

/// Attaches a pod to its node and gives it its addresses.
pub fn attach_pod(node: &Netns, pod: &Netns, node_number: u8, index: u8) -> Result<()> {
    node.ip(&format!(
        "link add veth{index} mtu 1500 type veth peer name eth0 mtu 1500 netns {}\n\
         link set veth{index} master cni0 up\n",
        pod.name()
    ))?;
    let (v4, v6) = (pod_v4(node_number, index), pod_v6(node_number, index));
    let (gw4, gw6) = (pod_v4(node_number, 1), pod_v6(node_number, 1));
    let mut batch = String::new();
    let b = &mut batch;
    line(b, "link set lo up");
    line(b, "link set eth0 up");
    line(b, &format!("addr add {v4}/24 dev eth0 noprefixroute"));
    line(b, &format!("addr add {v6}/64 dev eth0 noprefixroute nodad"));
    line(b, &format!("route add 10.42.{node_number}.0/24 dev eth0 src {v4} {CC}"));
    line(b, &format!("route add fd42:{node_number}::/64 dev eth0 {CC}"));
    line(b, &format!("route add default via {gw4} dev eth0 {CC}"));
    line(b, &format!("route add ::/0 via {gw6} dev eth0 {CC}"));
    pin_local(b, "eth0", IpAddr::V4(v4));
    pin_local(b, "lo", IpAddr::V4(Ipv4Addr::LOCALHOST));
    pod.ip(&batch)
}

/// The kernel makes the routes to local addresses; they too decide the congestion control of
/// connections inside a pod (a sidecar's towards its application, for one).
fn pin_local(batch: &mut String, dev: &str, address: IpAddr) {
    line(
        batch,
        &format!(
            "route replace local {address} dev {dev} table local proto kernel scope host \
             src {address} {CC}"
        ),
    );
}

/// Gives a pod the sysctls without which capture redirects.
pub fn let_capture_route(pod: &Netns) -> Result<()> {
    ROUTING_SYSCTLS
        .iter()
        .filter_map(|name| name.strip_prefix("net."))
        .try_for_each(|name| pod.sysctl(&name.replace('.', "/"), "1"))
}

/// IPv6 is told from IPv4 by the addresses alone: `ip -b` takes no `-6` inside a line.
fn line(batch: &mut String, command: &str) {
    let _ = writeln!(batch, "{command}");
}
