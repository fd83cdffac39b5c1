//! Policy routing by rtnetlink, for deliveries and where capture routes: rules that lead to a table,
//! and routes in it that make addresses local.
//!
//! What it does not do: touch a rule or route that another program made. Ours bear a routing
//! protocol number that tells whose they are.

mod entry;
mod loopback;

use super::plan::Routing;
use super::{CaptureError, Family};
use entry::{Entry, capture_rules, our_route, our_rule, tables};
use futures_util::TryStreamExt;
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use tokio::runtime::{Builder, Runtime};

/// `lo` has this index in every namespace.
const LOOPBACK_INDEX: u32 = 1;
const RULES: &str = "policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)";

/// What was added; what was there before is not in it.
#[derive(Default)]
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

    /// Adds what `routing` wants and is not there yet, but for the rules of the capture. After a
    /// failure nothing has been added.
    pub fn add_tables(&self, routing: &Routing) -> Result<Added, CaptureError> {
        let mut added = Added::default();
        if let Err(error) = self.add(tables(routing), &mut added) {
            self.undo(&added);
            return Err(error);
        }
        Ok(added)
    }

    /// Adds the rules of the capture.
    pub fn add_capture(&self, routing: &Routing, added: &mut Added) -> Result<(), CaptureError> {
        self.add(capture_rules(routing), added)
    }

    fn add(&self, entries: Vec<Entry>, added: &mut Added) -> Result<(), CaptureError> {
        for entry in entries {
            match self.runtime.block_on(self.add_entry(&entry)) {
                Ok(()) => added.0.push(entry),
                Err(error) if errno(&error) == Some(Errno::EXIST) => {}
                Err(error) => return Err(explain("add", &entry, &error)),
            }
        }
        Ok(())
    }

    /// Takes back what was added. Best effort: it follows another failure, which is
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
        let wanted: HashSet<Entry> =
            tables(routing).into_iter().chain(capture_rules(routing)).collect();
        self.remove_where(|entry| !wanted.contains(entry))
    }

    /// Whether there are rules of the capture.
    pub fn route_captures(&self) -> Result<bool, CaptureError> {
        Ok(self.ours()?.iter().any(Entry::captures))
    }

    pub fn remove_capture(&self) -> Result<(), CaptureError> {
        self.remove_where(Entry::captures)
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
        match entry {
            Entry::Route(route) => self.handle.route().add(route.message()).execute().await,
            Entry::Rule(rule) => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = rule.message();
                request.execute().await
            }
        }
    }

    async fn remove_entry(&self, entry: &Entry) -> Result<(), rtnetlink::Error> {
        match entry {
            Entry::Route(route) => self.handle.route().del(route.message()).execute().await,
            Entry::Rule(rule) => self.handle.rule().del(rule.message()).execute().await,
        }
    }
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
    explain_as(format!("{verb} the {entry}"), error)
}

fn explain_as(what: String, error: &rtnetlink::Error) -> CaptureError {
    match errno(error) {
        Some(number) => CaptureError::from_kernel(what, RULES, number.raw_os_error()),
        None => CaptureError::Kernel { what, source: io::Error::other(error.to_string()) },
    }
}
