//! CIDR lists of the user as what an nftables interval set takes: disjoint ranges in order.
//!
//! The kernel refuses overlapping intervals, and a list in a config may well overlap.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address that a range can be made of.
pub(super) trait Address: Copy + Ord {
    const FIRST: Self;
    const LAST: Self;
    /// The address after this one; `None` after the last of all.
    fn next(self) -> Option<Self>;
    /// The family's first and last address of a network, if it is of this family.
    fn bounds(net: &IpNet) -> Option<(Self, Self)>;
}

impl Address for Ipv4Addr {
    const FIRST: Self = Ipv4Addr::UNSPECIFIED;
    const LAST: Self = Ipv4Addr::BROADCAST;
    fn next(self) -> Option<Self> {
        u32::from(self).checked_add(1).map(Self::from)
    }
    fn bounds(net: &IpNet) -> Option<(Self, Self)> {
        match (net.network(), net.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some((first, last)),
            _ => None,
        }
    }
}

impl Address for Ipv6Addr {
    const FIRST: Self = Ipv6Addr::UNSPECIFIED;
    const LAST: Self = Ipv6Addr::from_bits(u128::MAX);
    fn next(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
    fn bounds(net: &IpNet) -> Option<(Self, Self)> {
        match (net.network(), net.broadcast()) {
            (IpAddr::V6(first), IpAddr::V6(last)) => Some((first, last)),
            _ => None,
        }
    }
}

/// From the first to the last address, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range<A> {
    pub first: A,
    pub last: A,
}

/// The networks of one family as ranges: sorted, overlapping and adjacent ones joined.
pub(super) fn ranges<A: Address>(nets: &[IpNet]) -> Vec<Range<A>> {
    let mut all: Vec<Range<A>> =
        nets.iter().filter_map(A::bounds).map(|(first, last)| Range { first, last }).collect();
    all.sort_unstable();
    let mut joined: Vec<Range<A>> = Vec::with_capacity(all.len());
    for range in all {
        match joined.last_mut() {
            Some(open) if open.last.next().is_none_or(|next| range.first <= next) => {
                open.last = open.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Whether the ranges are the whole address space.
pub(super) fn is_everything<A: Address>(ranges: &[Range<A>]) -> bool {
    matches!(ranges, [only] if only.first == A::FIRST && only.last == A::LAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn v4(list: &[&str]) -> Vec<(String, String)> {
        ranges::<Ipv4Addr>(&nets(list))
            .iter()
            .map(|range| (range.first.to_string(), range.last.to_string()))
            .collect()
    }

    fn pair(first: &str, last: &str) -> (String, String) {
        (first.into(), last.into())
    }

    #[test]
    fn overlapping_nested_and_adjacent_networks_are_joined() {
        assert_eq!(
            v4(&["10.1.0.0/16", "10.0.0.0/8", "11.0.0.0/8", "192.168.1.0/24", "10.0.0.0/8"]),
            [pair("10.0.0.0", "11.255.255.255"), pair("192.168.1.0", "192.168.1.255")]
        );
    }

    #[test]
    fn host_bits_are_ignored_and_families_kept_apart() {
        let list = nets(&["10.1.2.3/8", "fd00::5/64"]);
        assert_eq!(v4(&["10.1.2.3/8", "fd00::5/64"]), [pair("10.0.0.0", "10.255.255.255")]);
        let v6 = ranges::<Ipv6Addr>(&list);
        assert_eq!(v6.len(), 1);
        assert_eq!(v6[0].last, "fd00::ffff:ffff:ffff:ffff".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn the_whole_space_is_recognised_also_in_halves() {
        assert!(is_everything(&ranges::<Ipv4Addr>(&nets(&["128.0.0.0/1", "0.0.0.0/1"]))));
        assert!(is_everything(&ranges::<Ipv6Addr>(&nets(&["::/0", "fd00::/8"]))));
        assert!(!is_everything(&ranges::<Ipv4Addr>(&nets(&["0.0.0.0/1"]))));
        assert!(!is_everything(&ranges::<Ipv4Addr>(&[])));
    }

    proptest! {
        #[test]
        fn ranges_are_disjoint_and_hold_what_the_networks_hold(
            list in prop::collection::vec((any::<u32>(), 0u8..=32), 0..40),
            probes in prop::collection::vec(any::<u32>(), 40),
        ) {
            let nets: Vec<IpNet> = list
                .iter()
                .map(|&(bits, prefix)| IpNet::new(Ipv4Addr::from(bits).into(), prefix).unwrap())
                .collect();
            let ranges = ranges::<Ipv4Addr>(&nets);
            for two in ranges.windows(2) {
                prop_assert!(two[0].last.next().unwrap() < two[1].first);
            }
            let edges = ranges.iter().flat_map(|r| [r.first, r.last]);
            for address in probes.into_iter().map(Ipv4Addr::from).chain(edges) {
                let inside = ranges.iter().any(|r| r.first <= address && address <= r.last);
                prop_assert_eq!(inside, nets.iter().any(|n| n.contains(&IpAddr::V4(address))));
            }
        }
    }
}
