//! What the namespace's policy routing is to do.

use super::super::marks::Marks;
use super::super::ranges::{Address, Range, port_ranges, ranges, without};
use super::super::{Family, Method};
use super::KERNEL_ROUTE_TABLES;
use ipnet::IpNet;
use rdmesh_config::Capture;
use std::net::{Ipv4Addr, Ipv6Addr};

/// No connection goes there, or none that leaves the pod: unspecified, loopback, link-local (means
/// nothing without its interface), multicast, broadcast.
const NEVER: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// Needs no mention in a rule.
pub(in super::super) const ALL_PORTS: Range<u16> = Range { first: 1, last: u16::MAX };

/// `ip rule fwmark MARK lookup TABLE` and `local default dev lo table TABLE` in each family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Routing {
    pub mark: u32,
    pub table: u32,
    pub priority: u32,
    pub families: Vec<Family>,
    /// Where capture routes.
    pub captured: Option<Captured>,
}

/// For each range of ports `ip rule ipproto tcp dport PORTS fwmark 0 iif lo lookup TABLE`, and for
/// each network `local NETWORK dev lo table TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Captured {
    pub table: u32,
    pub networks: Vec<IpNet>,
    pub ports: Vec<Range<u16>>,
}

impl Routing {
    pub(super) fn new(config: &Capture, marks: Marks, ipv6: bool, method: Method) -> Self {
        Self {
            mark: marks.delivery,
            table: config.route_table,
            priority: config.rule_priority,
            families: if ipv6 { vec![Family::V4, Family::V6] } else { vec![Family::V4] },
            captured: (method == Method::Route).then(|| Captured::new(config, ipv6)),
        }
    }
}

impl Captured {
    fn new(config: &Capture, ipv6: bool) -> Self {
        let mut networks = networks::<Ipv4Addr>(config);
        if ipv6 {
            networks.extend(self::networks::<Ipv6Addr>(config));
        }
        Self { table: beside(config.route_table), networks, ports: ports(config) }
    }
}

/// The table next to that of the deliveries.
fn beside(table: u32) -> u32 {
    table
        .checked_add(1)
        .filter(|next| !KERNEL_ROUTE_TABLES.contains(next))
        .unwrap_or(table.saturating_sub(1))
}

fn networks<A: Address>(config: &Capture) -> Vec<IpNet> {
    let never = NEVER.iter().map(|net| net.parse().expect("a constant network"));
    let excluded: Vec<IpNet> = config.exclude_outbound_cidrs.iter().copied().chain(never).collect();
    let left = without(&ranges::<A>(&config.include_outbound_cidrs), &ranges::<A>(&excluded));
    left.into_iter().flat_map(A::networks).collect()
}

/// The kernel's rules take ports up to 65534. So 65535 is captured with all others, or not at all.
fn ports(config: &Capture) -> Vec<Range<u16>> {
    let listed = port_ranges(&config.include_outbound_ports);
    let included = if listed.is_empty() { vec![ALL_PORTS] } else { listed };
    let ports = without(&included, &port_ranges(&config.exclude_outbound_ports));
    if ports == [ALL_PORTS] {
        return ports;
    }
    without(&ports, &port_ranges(&[u16::MAX]))
}
