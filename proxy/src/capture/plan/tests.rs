//! A small model of how the kernel walks a chain tells whether a plan means what the config says.

use super::*;
use proptest::prelude::*;
use std::net::IpAddr;

const METHODS: [Method; 2] = [Method::Redirect, Method::Route];

#[derive(Debug, Clone, Copy)]
struct Packet {
    tcp: bool,
    syn: bool,
    /// To an address of the pod itself, which is over `lo`.
    to_own: bool,
    mark: u32,
    to: IpAddr,
    port: u16,
}

impl Packet {
    fn to(address: &str, port: u16) -> Self {
        let to = address.parse().unwrap();
        Self { tcp: true, syn: true, to_own: false, mark: 0, to, port }
    }

    fn family(&self) -> Family {
        if self.to.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

fn in_set(plan: &Plan, name: SetName, packet: &Packet) -> bool {
    let set = plan.sets.iter().find(|set| set.name == name).expect("a declared set");
    match (&set.elements, packet.to) {
        (Elements::Ports(ports), _) => ports.contains(&packet.port),
        (Elements::V4(ranges), IpAddr::V4(to)) => {
            ranges.iter().any(|range| range.first <= to && to <= range.last)
        }
        (Elements::V6(ranges), IpAddr::V6(to)) => {
            ranges.iter().any(|range| range.first <= to && to <= range.last)
        }
        _ => panic!("a set of the other family"),
    }
}

fn holds(plan: &Plan, condition: Match, packet: &Packet) -> bool {
    match condition {
        Match::NotTcp => !packet.tcp,
        Match::NotSyn => packet.tcp && !packet.syn,
        Match::OutLoopback | Match::ToOwn => packet.to_own,
        Match::Mark(mark) => packet.mark == mark,
        Match::NotMark(mark) => packet.mark != mark,
        Match::Family(family) => packet.family() == family,
        Match::To(net) => net.contains(&packet.to),
        Match::PortIn(set) => packet.tcp && in_set(plan, set, packet),
        Match::PortNotIn(set) => packet.tcp && !in_set(plan, set, packet),
        Match::AddressIn(family, set) => packet.family() == family && in_set(plan, set, packet),
        Match::AddressNotIn(family, set) => packet.family() == family && !in_set(plan, set, packet),
        other => panic!("{other:?} is not in this chain"),
    }
}

/// What the chain `output` decides: captured, or not.
fn walk(plan: &Plan, packet: &Packet) -> bool {
    for rule in &plan.chains[0].rules {
        if rule.matches.iter().all(|condition| holds(plan, *condition, packet)) {
            match rule.action {
                Action::Return => return false,
                Action::Redirect(15701) | Action::SetMark(0) => return true,
                Action::SetMark(_) => {}
                other => panic!("{other:?} in the chain"),
            }
        }
    }
    false
}

/// What the routing decides: whether the packet is led to `lo`.
fn is_routed(captured: &Captured, packet: &Packet) -> bool {
    packet.tcp
        && packet.mark == 0
        && !packet.to_own
        && captured
            .ports
            .iter()
            .any(|range| range.first <= packet.port && packet.port <= range.last)
        && captured.networks.iter().any(|net| net.contains(&packet.to))
}

fn plan(config: &Capture, method: Method) -> Plan {
    Plan::new(config, 15701, true, method).unwrap()
}

/// All that decides has to say the same.
fn captured(config: &Capture, packet: &Packet) -> bool {
    let redirected = walk(&plan(config, Method::Redirect), packet);
    let route = plan(config, Method::Route);
    // Only first packets are led anew; another program's mark says that its routing is its own.
    if packet.syn && packet.mark == 0 {
        assert_eq!(walk(&route, packet), redirected, "counted: {packet:?}");
        let routed = is_routed(route.routing.captured.as_ref().unwrap(), packet);
        assert_eq!(routed, redirected, "routed: {packet:?}");
    }
    redirected
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

#[test]
fn by_default_all_tcp_of_both_families_is_captured() {
    let config = Capture::default();
    assert!(captured(&config, &Packet::to("10.42.1.5", 8080)));
    assert!(captured(&config, &Packet::to("fd00::5", 8080)));
    assert!(plan(&config, Method::Redirect).sets.is_empty());
}

#[test]
fn what_must_never_be_captured_is_not() {
    let config = Capture::default();
    let marks = Marks::new(config.mark).unwrap();
    let plain = Packet::to("10.42.1.5", 8080);
    for packet in [
        Packet { tcp: false, ..plain },
        Packet { syn: false, ..plain },
        Packet { to_own: true, ..plain },
        Packet { mark: marks.passthrough, ..plain },
        Packet { mark: marks.delivery, ..plain },
        Packet::to("127.8.9.1", 80),
        Packet::to("::1", 80),
        Packet::to("fe80::1", 80),
    ] {
        assert!(!captured(&config, &packet), "{packet:?}");
    }
    assert!(captured(&config, &Packet { mark: 7, ..plain }), "another program's mark");
}

#[test]
fn exclusion_goes_before_inclusion() {
    let config = Capture {
        include_outbound_cidrs: nets(&["10.0.0.0/8"]),
        exclude_outbound_cidrs: nets(&["10.9.0.0/16", "10.9.1.0/24"]),
        include_outbound_ports: vec![80, 443, 80],
        exclude_outbound_ports: vec![443],
        ..Capture::default()
    };
    assert!(captured(&config, &Packet::to("10.1.1.1", 80)));
    assert!(!captured(&config, &Packet::to("10.1.1.1", 443)));
    assert!(!captured(&config, &Packet::to("10.1.1.1", 8080)));
    assert!(!captured(&config, &Packet::to("10.9.1.1", 80)));
    assert!(!captured(&config, &Packet::to("11.1.1.1", 80)));
    assert!(!captured(&config, &Packet::to("fd00::1", 80)), "no IPv6 network is included");
}

#[test]
fn an_empty_include_list_of_cidrs_captures_nothing() {
    let config = Capture { include_outbound_cidrs: Vec::new(), ..Capture::default() };
    assert!(!captured(&config, &Packet::to("10.1.1.1", 80)));
    assert!(!captured(&config, &Packet::to("fd00::1", 80)));
}

#[test]
fn without_ipv6_there_is_nothing_of_it() {
    let config =
        Capture { exclude_outbound_cidrs: nets(&["fd00::/8", "10.0.0.0/8"]), ..Capture::default() };
    for method in METHODS {
        let plan = Plan::new(&config, 15701, false, method).unwrap();
        assert!(!walk(&plan, &Packet::to("fd77::1", 80)));
        assert!(!walk(&plan, &Packet::to("2001:db8::1", 80)));
        assert!(walk(&plan, &Packet::to("11.0.0.1", 80)));
        assert_eq!(plan.routing.families, [Family::V4]);
        assert!(plan.sets.iter().all(|set| set.name == SetName::ExcludedV4));
        let networks = plan.routing.captured.map(|captured| captured.networks);
        assert!(networks.is_none_or(|nets| nets.iter().all(|net| net.addr().is_ipv4())));
    }
}

#[test]
fn only_deliveries_are_routed_to_the_pod_itself() {
    let config = Capture::default();
    let marks = Marks::new(config.mark).unwrap();
    let plan = plan(&config, Method::Redirect);
    assert_eq!(plan.routing.mark, marks.delivery);
    let text = format!("{:?}", plan.chains[1]);
    assert!(text.contains(&format!("({})", marks.delivery)));
    assert!(!text.contains(&format!("({})", marks.passthrough)));
}

#[test]
fn comments_fit_and_tell_every_rule() {
    let config = Capture {
        include_outbound_cidrs: nets(&["10.0.0.0/8", "fd00::/8"]),
        exclude_outbound_cidrs: nets(&["10.9.0.0/16", "fd00:9::/32"]),
        include_outbound_ports: vec![80],
        exclude_outbound_ports: vec![443],
        ..Capture::default()
    };
    for (ipv6, method) in [true, false].into_iter().flat_map(|ipv6| METHODS.map(|m| (ipv6, m))) {
        let plan = Plan::new(&config, 15701, ipv6, method).unwrap();
        for rule in plan.chains.iter().flat_map(|chain| &chain.rules) {
            assert!(!rule.comment.is_empty() && rule.comment.len() < 127, "{}", rule.comment);
        }
    }
}

#[test]
fn values_that_would_break_the_routing_are_refused() {
    let default = Capture::default;
    for (config, port, key) in [
        (default(), 0, "sidecar.listen_port"),
        (Capture { route_table: 254, ..default() }, 1, "capture.route_table"),
        (Capture { route_table: 0, ..default() }, 1, "capture.route_table"),
        (Capture { rule_priority: 0, ..default() }, 1, "capture.rule_priority"),
        (Capture { rule_priority: 32_766, ..default() }, 1, "capture.rule_priority"),
        (Capture { mark: 0, ..default() }, 1, "capture.mark"),
    ] {
        let error = Plan::new(&config, port, true, Method::Route).unwrap_err();
        assert!(error.to_string().starts_with(key), "{error}");
    }
}

#[test]
fn the_captures_table_is_none_of_the_kernels_and_not_that_of_deliveries() {
    for (route_table, expected) in [(157, 158), (252, 251), (u32::MAX, u32::MAX - 1), (1, 2)] {
        let config = Capture { route_table, ..Capture::default() };
        let routing = plan(&config, Method::Route).routing;
        assert_eq!(routing.captured.unwrap().table, expected);
    }
}

fn cidr() -> impl Strategy<Value = IpNet> {
    // Few distinct bits, so that networks and packets meet.
    prop_oneof![
        (0u32..16, 0u8..=8)
            .prop_map(|(high, prefix)| IpNet::new(Ipv4Addr::from(high << 28).into(), prefix)),
        (0u128..16, 0u8..=8)
            .prop_map(|(high, prefix)| IpNet::new(Ipv6Addr::from(high << 124).into(), prefix)),
    ]
    .prop_map(Result::unwrap)
}

proptest! {
    #[test]
    fn a_plan_means_what_the_config_says(
        include_outbound_cidrs in prop::collection::vec(cidr(), 0..4),
        exclude_outbound_cidrs in prop::collection::vec(cidr(), 0..4),
        include_outbound_ports in prop::collection::vec(1u16..5, 0..3),
        exclude_outbound_ports in prop::collection::vec(1u16..5, 0..3),
        // Above are multicast addresses.
        high in 0u8..14, port in 1u16..5, v6: bool,
    ) {
        let config = Capture {
            include_outbound_cidrs,
            exclude_outbound_cidrs,
            include_outbound_ports,
            exclude_outbound_ports,
            ..Capture::default()
        };
        let to: IpAddr = if v6 {
            Ipv6Addr::from(u128::from(high) << 124 | 5 << 120).into()
        } else {
            Ipv4Addr::from(u32::from(high) << 28 | 5 << 24).into()
        };
        let packet = Packet { to, ..Packet::to("10.0.0.1", port) };
        let ports = &config.include_outbound_ports;
        let wanted = config.include_outbound_cidrs.iter().any(|net| net.contains(&to))
            && !config.exclude_outbound_cidrs.iter().any(|net| net.contains(&to))
            && (ports.is_empty() || ports.contains(&port))
            && !config.exclude_outbound_ports.contains(&port);
        prop_assert_eq!(captured(&config, &packet), wanted);
    }
}
