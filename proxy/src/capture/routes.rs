//! Policy routing for deliveries, by rtnetlink: `ip rule fwmark MARK lookup TABLE` and
//! `local default dev lo table TABLE`, for each address family.
//!
//! What it does not do: touch a rule or route that another program made. Ours bear a routing
//! protocol number that tells whose they are.

use super::plan::Routing;
use super::{CaptureError, Family};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use rustix::io::Errno;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use tokio::runtime::{Builder, Runtime};

/// Shown by `ip rule` and `ip route` as `proto 157`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(157);
/// `lo` has this index in every namespace.
const LOOPBACK_INDEX: u32 = 1;
const RULES: &str = "policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)";

/// One thing that can be added or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Route { family: Family, table: u32 },
    Rule { family: Family, mark: u32, table: u32, priority: u32 },
}

/// What [`Routes::add`] added; what was there before is not in it.
pub(super) struct Added(Vec<Entry>);

pub(super) struct Routes {
    runtime: Runtime,
    handle: Handle,
}

impl Routes {
    /// Opens a netlink socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, CaptureError> {
        let failed = |source: io::Error| CaptureError::from_io("talk to rtnetlink", RULES, source);
        let runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    pub fn loopback_is_up(&self) -> Result<bool, CaptureError> {
        let links = self.handle.link().get().match_index(LOOPBACK_INDEX).execute();
        let links: Vec<_> = self
            .runtime
            .block_on(links.try_collect())
            .map_err(|error| explain_as("look at the loopback interface".into(), &error))?;
        Ok(links.iter().any(|link| link.header.flags.contains(LinkFlags::Up)))
    }

    /// Adds what `routing` wants and is not there yet. After a failure nothing has been added.
    pub fn add(&self, routing: &Routing) -> Result<Added, CaptureError> {
        let mut added = Added(Vec::new());
        for entry in entries(routing) {
            match self.runtime.block_on(self.add_entry(&entry)) {
                Ok(()) => added.0.push(entry),
                Err(error) if errno(&error) == Some(Errno::EXIST) => {}
                Err(error) => {
                    self.undo(&added);
                    return Err(explain("add", &entry, &error));
                }
            }
        }
        Ok(added)
    }

    /// Takes back what [`Routes::add`] added. Best effort: it follows another failure, which is
    /// the one to be told.
    pub fn undo(&self, added: &Added) {
        for entry in added.0.iter().rev() {
            if let Err(error) = self.remove(entry) {
                tracing::warn!(%error, "could not take back a change of the routing");
            }
        }
    }

    /// Removes what a run with another config left.
    pub fn remove_others(&self, routing: &Routing) -> Result<(), CaptureError> {
        let wanted = entries(routing);
        self.remove_where(|entry| !wanted.contains(entry))
    }

    pub fn remove_all(&self) -> Result<(), CaptureError> {
        self.remove_where(|_| true)
    }

    fn remove_where(&self, doomed: impl Fn(&Entry) -> bool) -> Result<(), CaptureError> {
        for entry in self.ours()?.iter().filter(|entry| doomed(entry)) {
            self.remove(entry)?;
        }
        Ok(())
    }

    fn remove(&self, entry: &Entry) -> Result<(), CaptureError> {
        match self.runtime.block_on(self.remove_entry(entry)) {
            // Gone is what was wanted.
            Err(error) if matches!(errno(&error), Some(Errno::NOENT | Errno::SRCH)) => Ok(()),
            result => result.map_err(|error| explain("remove", entry, &error)),
        }
    }

    /// The rules and routes of ours that the kernel has: rules first, so that none ever points to a
    /// table that has lost its route.
    fn ours(&self) -> Result<Vec<Entry>, CaptureError> {
        let mut found = Vec::new();
        for family in [Family::V4, Family::V6] {
            match self.runtime.block_on(self.list_rules(family)) {
                Ok(rules) => found.extend(rules),
                Err(error) if is_without_family(&error) => {}
                Err(error) => return Err(explain_as("list the routing".into(), &error)),
            }
        }
        for family in [Family::V4, Family::V6] {
            match self.runtime.block_on(self.list_routes(family)) {
                Ok(routes) => found.extend(routes),
                Err(error) if is_without_family(&error) => {}
                Err(error) => return Err(explain_as("list the routing".into(), &error)),
            }
        }
        Ok(found)
    }

    async fn list_rules(&self, family: Family) -> Result<Vec<Entry>, rtnetlink::Error> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let rules = self.handle.rule().get(version).execute().try_collect::<Vec<_>>().await?;
        Ok(rules.iter().filter_map(|rule| our_rule(family, rule)).collect())
    }

    async fn list_routes(&self, family: Family) -> Result<Vec<Entry>, rtnetlink::Error> {
        let all = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let routes = self.handle.route().get(all).execute().try_collect::<Vec<_>>().await?;
        Ok(routes.iter().filter_map(|route| our_route(family, route)).collect())
    }

    async fn add_entry(&self, entry: &Entry) -> Result<(), rtnetlink::Error> {
        match *entry {
            Entry::Route { family, table } => {
                self.handle.route().add(route_message(family, table)).execute().await
            }
            Entry::Rule { family, mark, table, priority } => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = rule_message(family, mark, table, priority);
                request.execute().await
            }
        }
    }

    async fn remove_entry(&self, entry: &Entry) -> Result<(), rtnetlink::Error> {
        match *entry {
            Entry::Route { family, table } => {
                self.handle.route().del(route_message(family, table)).execute().await
            }
            Entry::Rule { family, mark, table, priority } => {
                let message = rule_message(family, mark, table, priority);
                self.handle.rule().del(message).execute().await
            }
        }
    }
}

/// The routes come first: a rule never points to a table without its route.
fn entries(routing: &Routing) -> Vec<Entry> {
    let &Routing { mark, table, priority, .. } = routing;
    let routes = routing.families.iter().map(|&family| Entry::Route { family, table });
    let rules =
        routing.families.iter().map(|&family| Entry::Rule { family, mark, table, priority });
    routes.chain(rules).collect()
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn route_message(family: Family, table: u32) -> RouteMessage {
    fn build<T>(builder: RouteMessageBuilder<T>, table: u32) -> RouteMessage {
        builder
            .table_id(table)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .protocol(PROTOCOL)
            .output_interface(LOOPBACK_INDEX)
            .build()
    }
    let mut message = match family {
        Family::V4 => build(RouteMessageBuilder::<Ipv4Addr>::new(), table),
        Family::V6 => build(RouteMessageBuilder::<Ipv6Addr>::new(), table),
    };
    if table > u32::from(u8::MAX) {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    }
    message
}

fn rule_message(family: Family, mark: u32, table: u32, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Table(table),
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    message
}

/// A rule without all of our attributes is not ours, whatever its protocol number.
fn our_rule(family: Family, rule: &RuleMessage) -> Option<Entry> {
    let (mut ours, mut mark, mut table, mut priority) = (false, None, None, None);
    for attribute in &rule.attributes {
        match *attribute {
            RuleAttribute::Protocol(protocol) => ours = protocol == PROTOCOL,
            RuleAttribute::FwMark(value) => mark = Some(value),
            RuleAttribute::Table(value) => table = Some(value),
            RuleAttribute::Priority(value) => priority = Some(value),
            _ => {}
        }
    }
    if !ours {
        return None;
    }
    Some(Entry::Rule { family, mark: mark?, table: table?, priority: priority? })
}

fn our_route(family: Family, route: &RouteMessage) -> Option<Entry> {
    let ours = route.header.protocol == PROTOCOL
        && route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0;
    let table = route.attributes.iter().find_map(|attribute| match *attribute {
        RouteAttribute::Table(table) => Some(table),
        _ => None,
    });
    ours.then(|| Entry::Route { family, table: table.unwrap_or(route.header.table.into()) })
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            Some(Errno::from_raw_os_error(message.raw_code().saturating_neg()))
        }
        _ => None,
    }
}

/// A kernel that lacks a family has no rules or routes of ours in it.
fn is_without_family(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT))
}

fn explain(verb: &str, entry: &Entry, error: &rtnetlink::Error) -> CaptureError {
    let what = match *entry {
        Entry::Route { family, table } => {
            format!("{verb} the {} route `local default dev lo table {table}`", family.name())
        }
        Entry::Rule { family, mark, table, priority } => format!(
            "{verb} the {} rule `priority {priority} fwmark {mark:#x} lookup {table}`",
            family.name()
        ),
    };
    explain_as(what, error)
}

fn explain_as(what: String, error: &rtnetlink::Error) -> CaptureError {
    match errno(error) {
        Some(number) => CaptureError::from_kernel(what, RULES, number.raw_os_error()),
        None => CaptureError::Kernel { what, source: io::Error::other(error.to_string()) },
    }
}
