//! A fast hasher for addresses, and addresses in one form.
//!
//! The keys come from the directory, which is trusted; so this needs no defence against chosen keys.

use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

pub(super) type FastMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<AddrHasher>>;

/// An address as a number: IPv4 and IPv4-mapped IPv6 are the same, as they are on the wire.
pub(super) fn addr_key(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct AddrHasher(u64);

impl AddrHasher {
    fn mix(&mut self, n: u64) {
        // Folded multiplication spreads the low bits, where addresses differ, over all bits.
        let wide = u128::from(self.0 ^ n ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93;
        self.0 = (wide as u64) ^ ((wide >> 64) as u64);
    }
}

impl Hasher for AddrHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.mix(u64::from(b));
        }
    }

    fn write_u16(&mut self, n: u16) {
        self.mix(u64::from(n));
    }

    fn write_u128(&mut self, n: u128) {
        self.mix((n >> 64) as u64);
        self.mix(n as u64);
    }
}
