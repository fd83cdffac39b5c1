//! Puts a plan into the kernel's nftables as one transaction.
//!
//! What it does not do: decide what the rules are; see `plan`.

mod sets;
mod transaction;

use super::plan::{Action, ChainKind, ChainPlan, Match, Plan, RulePlan};
use super::{CaptureError, Family};
use nftnl::expr::{
    Bitwise, Cmp, CmpOp, Conntrack, Counter, Immediate, Ipv4HeaderField, Ipv6HeaderField, Meta,
    NetworkHeaderField, Payload, Register, TcpHeaderField, TransportHeaderField, Verdict,
};
use nftnl::{Chain, ChainType, Hook, Policy, ProtoFamily, Rule, Table};
use rdmesh_sys::nft::{CtDirection, DestinationType, Redirect, Tproxy};
use sets::Sets;
use std::ffi::{CStr, CString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use transaction::Transaction;

const TABLE: &CStr = c"rdmesh";
const INET_TABLES: &str = "nf_tables (CONFIG_NF_TABLES_INET)";
const FILTER: &str = "filter packets (nftables chain of type filter)";
const NAT_PRIORITY: i32 = -100;
const MANGLE_PRIORITY: i32 = -150;
/// `lo` has this index in every namespace.
const LOOPBACK_INDEX: u32 = 1;

const IPPROTO_TCP: u8 = 6;
const NFPROTO_IPV4: u8 = ProtoFamily::Ipv4 as u8;
const NFPROTO_IPV6: u8 = ProtoFamily::Ipv6 as u8;
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_FIN_SYN_RST_ACK: u8 = 0x17;
const TCP_SYN: u8 = 0x02;

/// Replaces the table by the plan's.
pub(super) fn install(plan: &Plan) -> Result<(), CaptureError> {
    let table = Table::new(TABLE, ProtoFamily::Inet);
    let mut batch = Transaction::new();
    // To delete what is not there is an error; to add what is there is none.
    batch.create(&table, "create an nftables table", INET_TABLES);
    batch.delete(&table, "replace an nftables table", INET_TABLES);
    batch.create(&table, "create an nftables table", INET_TABLES);
    let mut sets = Sets::default();
    for set in &plan.sets {
        sets.add(&mut batch, &table, set.name, &set.elements);
    }
    for chain in &plan.chains {
        add_chain(&mut batch, &table, chain, &sets);
    }
    batch.commit()
}

/// Removes the table, if it is there.
pub(super) fn remove() -> Result<(), CaptureError> {
    let table = Table::new(TABLE, ProtoFamily::Inet);
    let mut batch = Transaction::new();
    batch.create(&table, "look for the nftables table", INET_TABLES);
    batch.delete(&table, "remove the nftables table", INET_TABLES);
    match batch.commit() {
        // A kernel without nftables has no table of ours.
        Err(CaptureError::KernelLacks { .. }) => Ok(()),
        result => result,
    }
}

fn add_chain(batch: &mut Transaction, table: &Table, plan: &ChainPlan, sets: &Sets) {
    let (name, hook, kind, priority, what, needs) = match plan.kind {
        ChainKind::Redirect => (
            c"output",
            Hook::Out,
            ChainType::Nat,
            NAT_PRIORITY,
            "translate addresses (nftables chain of type nat)",
            "nft_chain_nat",
        ),
        ChainKind::Route => (
            c"route",
            Hook::Out,
            ChainType::Route,
            MANGLE_PRIORITY,
            "route anew by mark (nftables chain of type route)",
            "nf_tables",
        ),
        ChainKind::Unmark => {
            (c"output", Hook::Out, ChainType::Filter, MANGLE_PRIORITY, FILTER, "nf_tables")
        }
        ChainKind::Divert => {
            (c"divert", Hook::PreRouting, ChainType::Filter, MANGLE_PRIORITY, FILTER, "nf_tables")
        }
    };
    let mut chain = Chain::new(name, table);
    chain.set_hook(hook, priority);
    chain.set_type(kind);
    chain.set_policy(Policy::Accept);
    batch.create(&chain, what, needs);
    for plan in &plan.rules {
        let mut rule = Rule::new(&chain);
        for condition in &plan.matches {
            add_match(&mut rule, *condition, sets);
        }
        rule.add_expr(&Counter);
        add_action(&mut rule, plan.action);
        let comment = CString::new(plan.comment).unwrap_or_default();
        if let Err(reason) = rule.set_comment(&comment) {
            debug_assert!(false, "{reason}: {}", plan.comment);
        }
        let (what, needs) = requirement(plan);
        batch.create(&rule, what, needs);
    }
}

/// What a rule asks of the kernel, for the message when it has not got it.
fn requirement(rule: &RulePlan) -> (&'static str, &'static str) {
    let tracks = |m: &Match| matches!(m, Match::CtOriginal | Match::CtReply | Match::CtMark(_));
    let looks_up = |m: &Match| matches!(m, Match::ToOwn);
    match rule.action {
        Action::Divert(_) => ("hand over connections", "nft_tproxy"),
        Action::Redirect(_) => ("redirect connections", "nft_redir"),
        Action::SetCtMark(_) => ("mark connections (conntrack)", "nft_ct"),
        _ if rule.matches.iter().any(tracks) => ("mark connections (conntrack)", "nft_ct"),
        _ if rule.matches.iter().any(looks_up) => ("look up addresses", "nft_fib_inet"),
        _ => ("count and match packets", "nf_tables (and nft_counter before Linux 5.17)"),
    }
}

fn equal<T: nftnl::expr::ToSlice>(value: T) -> Cmp<T> {
    Cmp::new(CmpOp::Eq, value)
}

fn add_match(rule: &mut Rule<'_>, condition: Match, sets: &Sets) {
    match condition {
        Match::NotTcp => {
            rule.add_expr(&Meta::L4Proto);
            rule.add_expr(&Cmp::new(CmpOp::Neq, IPPROTO_TCP));
        }
        Match::Tcp => {
            rule.add_expr(&Meta::L4Proto);
            rule.add_expr(&equal(IPPROTO_TCP));
        }
        Match::NotSyn => match_flags(rule, &Cmp::new(CmpOp::Neq, TCP_SYN)),
        Match::Syn => match_flags(rule, &equal(TCP_SYN)),
        Match::OutLoopback => {
            rule.add_expr(&Meta::Oif);
            rule.add_expr(&equal(LOOPBACK_INDEX));
        }
        Match::InLoopback => {
            rule.add_expr(&Meta::Iif);
            rule.add_expr(&equal(LOOPBACK_INDEX));
        }
        Match::NotInLoopback => {
            rule.add_expr(&Meta::Iif);
            rule.add_expr(&Cmp::new(CmpOp::Neq, LOOPBACK_INDEX));
        }
        Match::ToOwn => {
            rule.add_expr(&DestinationType);
            rule.add_expr(&equal(DestinationType::LOCAL));
        }
        Match::Mark(mark) => {
            rule.add_expr(&Meta::Mark { set: false });
            rule.add_expr(&equal(mark));
        }
        Match::NotMark(mark) => {
            rule.add_expr(&Meta::Mark { set: false });
            rule.add_expr(&Cmp::new(CmpOp::Neq, mark));
        }
        Match::Family(family) => match_family(rule, family),
        Match::To(net) => {
            let family = if net.addr().is_ipv4() { Family::V4 } else { Family::V6 };
            load_destination(rule, family);
            match (net.netmask(), net.max_prefix_len() == net.prefix_len()) {
                (_, true) => {}
                (IpAddr::V4(mask), _) => rule.add_expr(&Bitwise::new(mask, Ipv4Addr::UNSPECIFIED)),
                (IpAddr::V6(mask), _) => rule.add_expr(&Bitwise::new(mask, Ipv6Addr::UNSPECIFIED)),
            }
            rule.add_expr(&equal(net.network()));
        }
        Match::PortIn(set) => {
            load_tcp(rule, TransportHeaderField::Tcp(TcpHeaderField::Dport));
            sets.look_up(rule, set, true);
        }
        Match::PortNotIn(set) => {
            load_tcp(rule, TransportHeaderField::Tcp(TcpHeaderField::Dport));
            sets.look_up(rule, set, false);
        }
        Match::AddressIn(family, set) => {
            load_destination(rule, family);
            sets.look_up(rule, set, true);
        }
        Match::AddressNotIn(family, set) => {
            load_destination(rule, family);
            sets.look_up(rule, set, false);
        }
        Match::CtOriginal => {
            rule.add_expr(&CtDirection);
            rule.add_expr(&equal(0u8));
        }
        Match::CtReply => {
            rule.add_expr(&CtDirection);
            rule.add_expr(&equal(1u8));
        }
        Match::CtMark(mark) => {
            rule.add_expr(&Conntrack::Mark { set: false });
            rule.add_expr(&equal(mark));
        }
    }
}

fn match_flags(rule: &mut Rule<'_>, compared: &Cmp<u8>) {
    load_tcp(rule, TransportHeaderField::Raw { offset_bits: TCP_FLAGS_OFFSET, length_bits: 1 });
    rule.add_expr(&Bitwise::new(TCP_FIN_SYN_RST_ACK, 0u8));
    rule.add_expr(compared);
}

fn match_family(rule: &mut Rule<'_>, family: Family) {
    rule.add_expr(&Meta::NfProto);
    rule.add_expr(&equal(match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }));
}

/// The header fields mean something only after the family has been matched.
fn load_destination(rule: &mut Rule<'_>, family: Family) {
    match_family(rule, family);
    rule.add_expr(&Payload::Network(match family {
        Family::V4 => NetworkHeaderField::Ipv4(Ipv4HeaderField::Daddr),
        Family::V6 => NetworkHeaderField::Ipv6(Ipv6HeaderField::Daddr),
    }));
}

/// The earlier rule on TCP would do; with the match repeated `nft list` can name the field.
fn load_tcp(rule: &mut Rule<'_>, field: TransportHeaderField) {
    rule.add_expr(&Meta::L4Proto);
    rule.add_expr(&equal(IPPROTO_TCP));
    rule.add_expr(&Payload::Transport(field));
}

fn add_action(rule: &mut Rule<'_>, action: Action) {
    match action {
        Action::Return => rule.add_expr(&Verdict::Return),
        Action::Divert(port) => {
            rule.add_expr(&Immediate::new(port.to_be(), Register::Reg1));
            rule.add_expr(&Tproxy { port_register: Register::Reg1 });
        }
        Action::Redirect(port) => {
            rule.add_expr(&Immediate::new(port.to_be(), Register::Reg1));
            rule.add_expr(&Redirect { port_register: Register::Reg1 });
        }
        Action::SetCtMark(mark) => {
            rule.add_expr(&Immediate::new(mark, Register::Reg1));
            rule.add_expr(&Conntrack::Mark { set: true });
        }
        Action::SetMark(mark) => {
            rule.add_expr(&Immediate::new(mark, Register::Reg1));
            rule.add_expr(&Meta::Mark { set: true });
        }
    }
}
