//! From the config to what is to be programmed, as data: no kernel, no netlink.
//!
//! The order of the rules is the meaning: the first one that matches decides, and only what passes
//! all of them is captured.

mod routing;

pub(super) use routing::{ALL_PORTS, Captured, Routing};

use super::marks::Marks;
use super::ranges::{Address, Range, is_everything, ranges};
use super::{CaptureError, Family, Method};
use ipnet::IpNet;
use rdmesh_config::Capture;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Tables of the kernel itself: default, main, local.
const KERNEL_ROUTE_TABLES: std::ops::RangeInclusive<u32> = 253..=255;
/// The kernel's rule that looks the main table up; ours has to come before it.
const MAIN_RULE_PRIORITY: u32 = 32_766;

/// Everything that `init` programs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub sets: Vec<SetPlan>,
    pub chains: Vec<ChainPlan>,
    pub routing: Routing,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SetPlan {
    pub name: SetName,
    pub elements: Elements,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetName {
    ExcludedPorts,
    IncludedPorts,
    ExcludedV4,
    IncludedV4,
    ExcludedV6,
    IncludedV6,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Elements {
    Ports(Vec<u16>),
    V4(Vec<Range<Ipv4Addr>>),
    V6(Vec<Range<Ipv6Addr>>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ChainPlan {
    pub kind: ChainKind,
    pub rules: Vec<RulePlan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChainKind {
    /// `output`: type nat hook output priority -100; sees the first packet of a connection.
    Redirect,
    /// `route`: type route hook output priority mangle; sees every packet.
    Route,
    /// `output`: type filter hook output priority mangle; unmarks first packets that are captured.
    Unmark,
    /// `divert`: type filter hook prerouting priority mangle; sees every packet that comes in, also
    /// over `lo`.
    Divert,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct RulePlan {
    /// All must hold.
    pub matches: Vec<Match>,
    pub action: Action,
    pub comment: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Match {
    NotTcp,
    NotSyn,
    Tcp,
    Syn,
    OutLoopback,
    InLoopback,
    NotInLoopback,
    /// The destination is an address of the namespace, whatever its rules say of unmarked packets.
    ToOwn,
    Mark(u32),
    NotMark(u32),
    Family(Family),
    To(IpNet),
    PortIn(SetName),
    PortNotIn(SetName),
    AddressIn(Family, SetName),
    AddressNotIn(Family, SetName),
    CtOriginal,
    CtReply,
    CtMark(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Return,
    Redirect(u16),
    /// Handed to the transparent socket that listens at this port.
    Divert(u16),
    SetCtMark(u32),
    SetMark(u32),
}

impl Plan {
    /// Plans the capture of a namespace that has IPv6 or has it not.
    ///
    /// # Errors
    /// [`CaptureError::Setting`] for values that would harm the namespace's own routing.
    pub fn new(
        config: &Capture,
        listen_port: u16,
        ipv6: bool,
        method: Method,
    ) -> Result<Self, CaptureError> {
        let marks = Marks::new(config.mark)?;
        check(config, listen_port)?;
        let mut builder = Builder::default();
        builder.fixed_rules(marks, ipv6, method);
        builder.port_rules(config);
        builder.address_rules(
            Family::V4,
            [SetName::ExcludedV4, SetName::IncludedV4],
            [&config.exclude_outbound_cidrs, &config.include_outbound_cidrs],
            Elements::V4,
        );
        if ipv6 {
            builder.address_rules(
                Family::V6,
                [SetName::ExcludedV6, SetName::IncludedV6],
                [&config.exclude_outbound_cidrs, &config.include_outbound_cidrs],
                Elements::V6,
            );
        }
        let (action, kinds) = match method {
            Method::Redirect => {
                (Action::Redirect(listen_port), [ChainKind::Redirect, ChainKind::Route])
            }
            Method::Route => (Action::SetMark(0), [ChainKind::Unmark, ChainKind::Divert]),
        };
        builder.rule([], action, "captured: handed to the sidecar");
        let other_rules = match method {
            Method::Redirect => route_rules(marks),
            Method::Route => divert_rules(marks, listen_port),
        };
        let rules = [builder.rules, other_rules];
        Ok(Self {
            sets: builder.sets,
            chains: std::iter::zip(kinds, rules)
                .map(|(kind, rules)| ChainPlan { kind, rules })
                .collect(),
            routing: Routing::new(config, marks, ipv6, method),
        })
    }
}

fn check(config: &Capture, listen_port: u16) -> Result<(), CaptureError> {
    let wrong = |key, value: u32, allowed| {
        Err(CaptureError::Setting { key, value: value.to_string(), allowed })
    };
    if listen_port == 0 {
        return wrong("sidecar.listen_port", 0, "1 to 65535");
    }
    if config.route_table == 0 || KERNEL_ROUTE_TABLES.contains(&config.route_table) {
        return wrong(
            "capture.route_table",
            config.route_table,
            "1 or more, and none of the kernel's own tables 253, 254 and 255",
        );
    }
    if config.rule_priority == 0 || config.rule_priority >= MAIN_RULE_PRIORITY {
        return wrong("capture.rule_priority", config.rule_priority, "1 to 32765");
    }
    Ok(())
}

/// What the application answers on a delivered connection goes to an address far away. The mark is
/// kept in the connection's conntrack entry, and put on the replies, so that they are routed anew:
/// to `lo`, where the delivery socket is.
fn route_rules(marks: Marks) -> Vec<RulePlan> {
    vec![
        RulePlan {
            matches: vec![Match::Mark(marks.delivery), Match::CtOriginal],
            action: Action::SetCtMark(marks.delivery),
            comment: "delivery to the application: remember the connection",
        },
        RulePlan {
            matches: vec![Match::CtReply, Match::CtMark(marks.delivery)],
            action: Action::SetMark(marks.delivery),
            comment: "its answers go back to the sidecar's socket",
        },
    ]
}

/// Where the pod's own routing leads what is captured to `lo`, its first packet is handed to the
/// sidecar's listener; the rest finds its socket by the addresses. The mark of what comes from
/// outside is inherited by the socket that accepts it, so that the answers are not captured.
fn divert_rules(marks: Marks, listen_port: u16) -> Vec<RulePlan> {
    vec![
        RulePlan {
            matches: vec![Match::NotInLoopback, Match::Tcp, Match::Mark(0)],
            action: Action::SetMark(marks.inbound),
            comment: "from outside: its answers go out again",
        },
        RulePlan {
            matches: vec![Match::InLoopback, Match::Mark(0), Match::Syn],
            action: Action::Divert(listen_port),
            comment: "captured: arrives at the sidecar",
        },
    ]
}

#[derive(Default)]
struct Builder {
    sets: Vec<SetPlan>,
    rules: Vec<RulePlan>,
}

impl Builder {
    fn rule(
        &mut self,
        matches: impl IntoIterator<Item = Match>,
        action: Action,
        comment: &'static str,
    ) {
        self.rules.push(RulePlan { matches: matches.into_iter().collect(), action, comment });
    }

    fn skip(&mut self, matches: impl IntoIterator<Item = Match>, comment: &'static str) {
        self.rule(matches, Action::Return, comment);
    }

    /// What no config can change.
    fn fixed_rules(&mut self, marks: Marks, ipv6: bool, method: Method) {
        let net = |text: &str| text.parse::<IpNet>().expect("a constant network");
        self.skip([Match::NotTcp], "only TCP is captured");
        // Conntrack takes up connections that are older than itself in the middle; to redirect
        // those would break them. Where capture routes it is nearly every packet.
        self.skip([Match::NotSyn], "not the first packet of a connection");
        if !ipv6 {
            self.skip([Match::Family(Family::V6)], "IPv6 is off in this namespace");
        }
        self.skip([Match::Mark(marks.passthrough)], "the sidecar's passthrough connections");
        self.skip([Match::Mark(marks.delivery)], "the sidecar's deliveries to the application");
        match method {
            Method::Redirect => self.skip([Match::OutLoopback], "stays in the pod"),
            Method::Route => {
                self.skip([Match::NotMark(0)], "another program's mark");
                let not_captured = Action::SetMark(marks.inbound);
                self.rule([], not_captured, "not captured, unless all rules below are passed");
                // What is captured goes over `lo` as well.
                self.skip([Match::ToOwn], "stays in the pod");
            }
        }
        self.skip([Match::To(net("127.0.0.0/8"))], "loopback");
        if ipv6 {
            self.skip([Match::To(net("::1/128"))], "loopback");
            // Such an address means nothing without its interface, which a redirect loses.
            self.skip([Match::To(net("fe80::/10"))], "link-local");
        }
    }

    fn port_rules(&mut self, config: &Capture) {
        let ports =
            |list: &[u16]| list.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if !config.exclude_outbound_ports.is_empty() {
            let name = SetName::ExcludedPorts;
            self.sets.push(SetPlan {
                name,
                elements: Elements::Ports(ports(&config.exclude_outbound_ports)),
            });
            self.skip([Match::PortIn(name)], "exclude_outbound_ports");
        }
        if !config.include_outbound_ports.is_empty() {
            let name = SetName::IncludedPorts;
            self.sets.push(SetPlan {
                name,
                elements: Elements::Ports(ports(&config.include_outbound_ports)),
            });
            self.skip([Match::PortNotIn(name)], "not in include_outbound_ports");
        }
    }

    fn address_rules<A: Address>(
        &mut self,
        family: Family,
        [excluded, included]: [SetName; 2],
        [exclude, include]: [&[IpNet]; 2],
        elements: fn(Vec<Range<A>>) -> Elements,
    ) {
        let exclude = ranges::<A>(exclude);
        if !exclude.is_empty() {
            self.sets.push(SetPlan { name: excluded, elements: elements(exclude) });
            self.skip([Match::AddressIn(family, excluded)], "exclude_outbound_cidrs");
        }
        let include = ranges::<A>(include);
        if include.is_empty() {
            self.skip([Match::Family(family)], "include_outbound_cidrs has none of this family");
        } else if !is_everything(&include) {
            self.sets.push(SetPlan { name: included, elements: elements(include) });
            self.skip([Match::AddressNotIn(family, included)], "not in include_outbound_cidrs");
        }
    }
}

#[cfg(test)]
mod tests;
