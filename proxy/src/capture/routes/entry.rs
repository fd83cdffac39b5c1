//! Rules and routes as values, and as the kernel's messages.

use super::super::Family;
use super::super::plan::{ALL_PORTS, Captured, Routing};
use super::super::ranges::Range;
use super::LOOPBACK_INDEX;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Shown by `ip rule` and `ip route` as `proto 157`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(157);
/// For hops that never leave the namespace, as on the sidecar's own sockets.
const CONGESTION_CONTROL: &str = "reno";
const EVERY_BIT: u32 = u32::MAX;

/// One thing that can be added or removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Route(Route),
    Rule(Rule),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    table: u32,
    to: IpNet,
    /// What a connection without an address of its own gets.
    source: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    family: Family,
    table: u32,
    priority: u32,
    selects: Selects,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Selects {
    /// What bears the mark.
    Mark(u32),
    /// TCP that the namespace sends without a mark.
    Captured(Range<u16>),
}

/// The routes come first: a rule never points to a table without its routes.
pub(super) fn tables(routing: &Routing) -> Vec<Entry> {
    let &Routing { mark, table, priority, .. } = routing;
    let deliveries = routing.families.iter().map(|family| Route {
        table,
        to: family.everything(),
        source: None,
    });
    let captured = routing.captured.iter().flat_map(captured_routes);
    let rules = routing.families.iter().map(|&family| Rule {
        family,
        table,
        priority,
        selects: Selects::Mark(mark),
    });
    deliveries.chain(captured).map(Entry::Route).chain(rules.map(Entry::Rule)).collect()
}

/// Where the namespace has no way to, nothing can be captured either.
fn captured_routes(captured: &Captured) -> impl Iterator<Item = Route> {
    captured.networks.iter().filter_map(|&to| {
        let source = Some(source_towards(to)?);
        Some(Route { table: captured.table, to, source })
    })
}

/// The address that the kernel gives a connection there. UDP: our own rules do not concern it.
fn source_towards(to: IpNet) -> Option<IpAddr> {
    let any: IpAddr = match to {
        IpNet::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpNet::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(SocketAddr::new(to.hosts().next()?, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

pub(super) fn capture_rules(routing: &Routing) -> Vec<Entry> {
    let Some(captured) = &routing.captured else { return Vec::new() };
    let rule = |family, ports: &Range<u16>| Rule {
        family,
        table: captured.table,
        priority: routing.priority,
        selects: Selects::Captured(*ports),
    };
    routing
        .families
        .iter()
        .flat_map(|&family| captured.ports.iter().map(move |ports| rule(family, ports)))
        .map(Entry::Rule)
        .collect()
}

impl Entry {
    pub fn captures(&self) -> bool {
        matches!(self, Self::Rule(Rule { selects: Selects::Captured(_), .. }))
    }
}

impl Family {
    fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Self::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Route {
    pub fn message(&self) -> RouteMessage {
        fn finish<T>(builder: RouteMessageBuilder<T>, table: u32) -> RouteMessage {
            builder
                .table_id(table)
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .protocol(PROTOCOL)
                .output_interface(LOOPBACK_INDEX)
                .build()
        }
        let mut message = match self.to {
            IpNet::V4(to) => finish(
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(to.addr(), to.prefix_len()),
                self.table,
            ),
            IpNet::V6(to) => finish(
                RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(to.addr(), to.prefix_len()),
                self.table,
            ),
        };
        if self.table > u32::from(u8::MAX) {
            message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        }
        let algorithm = RouteMetric::CcAlgo(CONGESTION_CONTROL.into());
        message.attributes.push(RouteAttribute::Metrics(vec![algorithm]));
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        message
    }
}

impl Rule {
    pub fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Table(self.table),
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Protocol(PROTOCOL),
        ];
        match self.selects {
            Selects::Mark(mark) => message.attributes.push(RuleAttribute::FwMark(mark)),
            Selects::Captured(ports) => {
                message.attributes.extend([
                    RuleAttribute::FwMark(0),
                    RuleAttribute::FwMask(EVERY_BIT),
                    // What the namespace itself sends.
                    RuleAttribute::Iifname("lo".into()),
                    RuleAttribute::IpProtocol(IpProtocol::Tcp),
                ]);
                if ports != ALL_PORTS {
                    let range = RulePortRange { start: ports.first, end: ports.last };
                    message.attributes.push(RuleAttribute::DestinationPortRange(range));
                }
            }
        }
        message
    }
}

/// A rule without all of our attributes is not ours, whatever its protocol number.
pub(super) fn our_rule(family: Family, rule: &RuleMessage) -> Option<Entry> {
    let (mut ours, mut tcp, mut ports) = (false, false, ALL_PORTS);
    let (mut mark, mut table, mut priority) = (None, None, None);
    for attribute in &rule.attributes {
        match *attribute {
            RuleAttribute::Protocol(protocol) => ours = protocol == PROTOCOL,
            RuleAttribute::FwMark(value) => mark = Some(value),
            RuleAttribute::Table(value) => table = Some(value),
            RuleAttribute::Priority(value) => priority = Some(value),
            RuleAttribute::DestinationPortRange(RulePortRange { start, end }) => {
                ports = Range { first: start, last: end };
            }
            RuleAttribute::IpProtocol(protocol) => tcp = protocol == IpProtocol::Tcp,
            _ => {}
        }
    }
    let selects = if tcp { Selects::Captured(ports) } else { Selects::Mark(mark?) };
    let (table, priority) = (table?, priority?);
    ours.then_some(Entry::Rule(Rule { family, table, priority, selects }))
}

pub(super) fn our_route(family: Family, route: &RouteMessage) -> Option<Entry> {
    if route.header.protocol != PROTOCOL || route.header.kind != RouteType::Local {
        return None;
    }
    let address = |address: &RouteAddress| match *address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(v6)),
        _ => None,
    };
    let (mut table, mut to, mut source) = (route.header.table.into(), None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(value) => to = address(value),
            RouteAttribute::PrefSource(value) => source = address(value),
            _ => {}
        }
    }
    let network = to.unwrap_or(family.everything().addr());
    let to = IpNet::new(network, route.header.destination_prefix_length).ok()?;
    Some(Entry::Route(Route { table, to, source }))
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(Route { table, to, .. }) => {
                let family = Family::of(to.addr()).name();
                write!(f, "{family} route `local {to} dev lo table {table}`")
            }
            Self::Rule(Rule { family, table, priority, selects }) => {
                write!(f, "{} rule `priority {priority} ", family.name())?;
                match selects {
                    Selects::Mark(mark) => write!(f, "fwmark {mark:#x}")?,
                    Selects::Captured(Range { first, last }) => {
                        write!(f, "fwmark 0 iif lo ipproto tcp dport {first}-{last}")?;
                    }
                }
                write!(f, " lookup {table}`")
            }
        }
    }
}
