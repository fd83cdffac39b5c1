//! Lists of the user as what the kernel takes: disjoint ranges in order, or networks again.
//!
//! The kernel refuses overlapping intervals, and a list in a config may well overlap.

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a range can be made of.
pub(super) trait Step: Copy + Ord {
    /// The one after this one; `None` after the last of all.
    fn next(self) -> Option<Self>;
    fn previous(self) -> Option<Self>;
}

pub(super) trait Address: Step {
    const FIRST: Self;
    const LAST: Self;
    /// The family's first and last address of a network, if it is of this family.
    fn bounds(net: &IpNet) -> Option<(Self, Self)>;
    /// The fewest networks that hold the range and nothing else.
    fn networks(range: Range<Self>) -> Vec<IpNet>;
}

impl Step for u16 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Step for Ipv4Addr {
    fn next(self) -> Option<Self> {
        u32::from(self).checked_add(1).map(Self::from)
    }
    fn previous(self) -> Option<Self> {
        u32::from(self).checked_sub(1).map(Self::from)
    }
}

impl Step for Ipv6Addr {
    fn next(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
    fn previous(self) -> Option<Self> {
        self.to_bits().checked_sub(1).map(Self::from_bits)
    }
}

impl Address for Ipv4Addr {
    const FIRST: Self = Ipv4Addr::UNSPECIFIED;
    const LAST: Self = Ipv4Addr::BROADCAST;
    fn bounds(net: &IpNet) -> Option<(Self, Self)> {
        match (net.network(), net.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some((first, last)),
            _ => None,
        }
    }
    fn networks(range: Range<Self>) -> Vec<IpNet> {
        Ipv4Subnets::new(range.first, range.last, 0).map(IpNet::V4).collect()
    }
}

impl Address for Ipv6Addr {
    const FIRST: Self = Ipv6Addr::UNSPECIFIED;
    const LAST: Self = Ipv6Addr::from_bits(u128::MAX);
    fn bounds(net: &IpNet) -> Option<(Self, Self)> {
        match (net.network(), net.broadcast()) {
            (IpAddr::V6(first), IpAddr::V6(last)) => Some((first, last)),
            _ => None,
        }
    }
    fn networks(range: Range<Self>) -> Vec<IpNet> {
        Ipv6Subnets::new(range.first, range.last, 0).map(IpNet::V6).collect()
    }
}

/// From the first to the last address, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Range<A> {
    pub first: A,
    pub last: A,
}

/// The networks of one family as ranges: sorted, overlapping and adjacent ones joined.
pub(super) fn ranges<A: Address>(nets: &[IpNet]) -> Vec<Range<A>> {
    joined(nets.iter().filter_map(A::bounds).map(|(first, last)| Range { first, last }).collect())
}

/// Ports as ranges, in the same way.
pub(super) fn port_ranges(ports: &[u16]) -> Vec<Range<u16>> {
    joined(ports.iter().map(|&port| Range { first: port, last: port }).collect())
}

fn joined<A: Step>(mut all: Vec<Range<A>>) -> Vec<Range<A>> {
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

/// What is in `included` and not in `excluded`; both sorted and disjoint, as the result is.
pub(super) fn without<A: Step>(included: &[Range<A>], excluded: &[Range<A>]) -> Vec<Range<A>> {
    let mut left = Vec::with_capacity(included.len() + excluded.len());
    let mut excluded = excluded.iter().peekable();
    for range in included {
        let mut first = Some(range.first);
        while let (Some(from), Some(hole)) = (first, excluded.peek()) {
            if hole.first > range.last {
                break;
            }
            if let Some(last) = hole.first.previous().filter(|last| from <= *last) {
                left.push(Range { first: from, last });
            }
            if hole.last > range.last {
                first = None;
                break;
            }
            // A hole that ends before this range begins is one of the gaps between the ranges.
            first = hole.last.next().map(|next| next.max(from));
            excluded.next();
        }
        if let Some(first) = first.filter(|first| *first <= range.last) {
            left.push(Range { first, last: range.last });
        }
    }
    left
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
            let networks: Vec<_> = ranges.iter().flat_map(|r| Ipv4Addr::networks(*r)).collect();
            let edges = ranges.iter().flat_map(|r| [r.first, r.last]);
            for address in probes.into_iter().map(Ipv4Addr::from).chain(edges) {
                let inside = ranges.iter().any(|r| r.first <= address && address <= r.last);
                prop_assert_eq!(inside, nets.iter().any(|n| n.contains(&IpAddr::V4(address))));
                let again = networks.iter().filter(|n| n.contains(&IpAddr::V4(address))).count();
                prop_assert_eq!(usize::from(inside), again, "in one network of the range's");
            }
        }

        #[test]
        fn what_is_excluded_is_taken_out_and_nothing_else(
            [included, excluded] in [
                prop::collection::vec(0u16..40, 0..30),
                prop::collection::vec(0u16..40, 0..30),
            ],
        ) {
            let left = without(&port_ranges(&included), &port_ranges(&excluded));
            for two in left.windows(2) {
                prop_assert!(two[0].last < two[1].first);
            }
            for port in 0..41 {
                let inside = left.iter().any(|range| range.first <= port && port <= range.last);
                prop_assert_eq!(inside, included.contains(&port) && !excluded.contains(&port));
            }
        }

        #[test]
        fn ranges_touch_the_ends_of_the_space(first: bool, last: bool) {
            let holes: Vec<Range<u16>> = [first.then_some(0), last.then_some(u16::MAX)]
                .into_iter()
                .flatten()
                .map(|port| Range { first: port, last: port })
                .collect();
            let all = [Range { first: 0, last: u16::MAX }];
            let left = without(&all, &holes);
            let expected = Range { first: u16::from(first), last: u16::MAX - u16::from(last) };
            prop_assert_eq!(left, [expected]);
            prop_assert!(without(&all, &all).is_empty());
        }
    }
}
