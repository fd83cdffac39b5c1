//! What the namespace must have for capture to route: read, never written.

use rdmesh_config::ROUTING_SYSCTLS;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// States in the kernel's list that no packet follows, or whose packets go nowhere: TIME_WAIT,
/// CLOSE, LISTEN.
const AT_REST: [&str; 3] = ["06", "07", "0A"];

/// Of the calling thread's namespace.
pub(super) fn are_set(ipv6: bool) -> bool {
    ROUTING_SYSCTLS.iter().filter(|name| ipv6 || !name.starts_with("net.ipv6")).all(|name| {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    })
}

/// Whether the calling thread's namespace has TCP connections that leave it.
pub(super) fn has_connections() -> bool {
    ["tcp", "tcp6"].iter().any(|file| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))
            .is_ok_and(|list| list.lines().skip(1).any(leaves))
    })
}

/// A line: number, local address, remote address, state, and more.
fn leaves(line: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let (Some(local), Some(remote), Some(state)) = (words.next(), words.next(), words.next())
    else {
        return false;
    };
    let address = |end: &str| end.split(':').next().unwrap_or_default().to_owned();
    !AT_REST.contains(&state) && address(local) != address(remote) && !is_loopback(&address(remote))
}

/// An address as the kernel writes it: words of 32 bits, each in the machine's own byte order.
fn is_loopback(address: &str) -> bool {
    let words: Vec<u8> = (0..address.len() / 8)
        .filter_map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok())
        .flat_map(u32::to_ne_bytes)
        .collect();
    if let Ok(bytes) = <[u8; 4]>::try_from(&words[..]) {
        return Ipv4Addr::from(bytes).is_loopback();
    }
    <[u8; 16]>::try_from(&words[..])
        .is_ok_and(|bytes| Ipv6Addr::from(bytes).to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn connections_that_leave_are_told_from_others() {
        let tail = "00000000:00000000 00:00000000 00000000     0        0 1 1";
        for (ends, leaves_the_pod) in [
            ("0100007F:0050 0100007F:C350 01", false),
            ("0200000A:C350 0100000A:0050 01", true),
            ("0200000A:C350 0100000A:0050 02", true),
            ("0200000A:C350 0100000A:0050 06", false),
            ("0200000A:C350 0200000A:0050 01", false),
            ("00000000:0050 00000000:0000 0A", false),
            (
                "00000000000000000000000001000000:0050 00000000000000000000000001000000:C350 01",
                false,
            ),
            (
                "0000000000000000FFFF00000200000A:0050 0000000000000000FFFF00000100007F:C350 01",
                false,
            ),
            (
                "0000000000000000FFFF00000200000A:0050 0000000000000000FFFF00000100000A:C350 01",
                true,
            ),
        ] {
            assert_eq!(leaves(&format!("   0: {ends} {tail}")), leaves_the_pod, "{ends}");
        }
        assert!(!leaves("") && !leaves("0:"));
    }
}
