//! Named sets: ports as they are, addresses as intervals.

use super::transaction::Transaction;
use crate::capture::plan::{Elements, SetName};
use crate::capture::ranges::{Address, Range};
use nftnl::expr::Lookup;
use nftnl::set::{Set, SetKey};
use nftnl::{ProtoFamily, Rule, Table};
use rdmesh_sys::nft::{LookupNot, add_interval_end, make_interval_set};
use std::ffi::CStr;

/// More elements in one message make libnftnl overrun its buffer. An interval is two elements.
const PORTS_PER_MESSAGE: usize = 500;
const RANGES_PER_MESSAGE: usize = 250;

/// A TCP port as the key of a set: `inet_service` to `nft`.
struct Port(u16);

impl SetKey for Port {
    const TYPE: u32 = 13;
    const LEN: u32 = 2;
    fn data(&self) -> Box<[u8]> {
        Box::new(self.0.to_be_bytes())
    }
}

/// The sets of one transaction, for the rules that look something up in them.
#[derive(Default)]
pub(super) struct Sets {
    lookups: Vec<(SetName, Lookup, LookupNot)>,
}

impl Sets {
    pub fn add(&mut self, batch: &mut Transaction, table: &Table, name: SetName, all: &Elements) {
        match all {
            Elements::Ports(ports) => {
                self.add_keys(batch, table, name, ports);
            }
            Elements::V4(ranges) => self.add_ranges(batch, table, name, ranges),
            Elements::V6(ranges) => self.add_ranges(batch, table, name, ranges),
        }
    }

    /// Adds the match on what register 1 holds.
    pub fn look_up(&self, rule: &mut Rule<'_>, name: SetName, inside: bool) {
        let found = self.lookups.iter().find(|(other, ..)| *other == name);
        debug_assert!(found.is_some(), "a plan brings the sets that its rules use");
        if let Some((_, is_in, is_not_in)) = found {
            if inside { rule.add_expr(is_in) } else { rule.add_expr(is_not_in) }
        }
    }

    fn declare<'a, K: SetKey>(&mut self, table: &'a Table, name: SetName) -> (Set<'a, K>, u32) {
        let id = self.lookups.len() as u32 + 1;
        let set = new_set(table, name, id);
        self.lookups.push((name, Lookup::new(&set), LookupNot::new(&set)));
        (set, id)
    }

    fn add_keys(&mut self, batch: &mut Transaction, table: &Table, name: SetName, ports: &[u16]) {
        let (set, id) = self.declare::<Port>(table, name);
        batch.create(&set, "create a set of ports", "nf_tables");
        for chunk in ports.chunks(PORTS_PER_MESSAGE) {
            let mut part = new_set(table, name, id);
            for port in chunk {
                part.add(&Port(*port));
            }
            add_elements(batch, &part);
        }
    }

    fn add_ranges<A: Address + SetKey>(
        &mut self,
        batch: &mut Transaction,
        table: &Table,
        name: SetName,
        ranges: &[Range<A>],
    ) {
        let (set, id) = self.declare::<A>(table, name);
        make_interval_set(&set);
        batch.create(&set, "create a set of networks", "nf_tables with interval sets");
        for (index, chunk) in ranges.chunks(RANGES_PER_MESSAGE).enumerate() {
            let mut part = new_set(table, name, id);
            // What lies before the first interval is ended explicitly, as `nft` does it.
            if index == 0 && chunk.first().is_some_and(|range| range.first > A::FIRST) {
                add_interval_end(&mut part, &A::FIRST);
            }
            for range in chunk {
                part.add(&range.first);
                // An interval up to the very last address stays open.
                if let Some(end) = range.last.next() {
                    add_interval_end(&mut part, &end);
                }
            }
            add_elements(batch, &part);
        }
    }
}

fn new_set<K: SetKey>(table: &Table, name: SetName, id: u32) -> Set<'_, K> {
    Set::new_named(set_name(name), id, table, ProtoFamily::Inet)
}

fn add_elements<K>(batch: &mut Transaction, set: &Set<'_, K>) {
    for message in set.elems_iter() {
        batch.create(&message, "fill a set", "nf_tables with interval sets");
    }
}

fn set_name(name: SetName) -> &'static CStr {
    match name {
        SetName::ExcludedPorts => c"excluded_ports",
        SetName::IncludedPorts => c"included_ports",
        SetName::ExcludedV4 => c"excluded_ipv4",
        SetName::IncludedV4 => c"included_ipv4",
        SetName::ExcludedV6 => c"excluded_ipv6",
        SetName::IncludedV6 => c"included_ipv6",
    }
}
