//! The marks that tell the proxy's own connections, and those from outside, from the pod's.

use super::CaptureError;

/// The first of the bits that set the other marks apart from that of passthrough.
const FIRST_BIT: u32 = 16;

/// The marks (`SO_MARK`) of connections that are not to be captured, derived from `capture.mark`.
///
/// Two are on the sidecar's sockets, which want opposite things from the routing:
/// - a **passthrough** socket goes out to the real network with the pod's own address. It must not
///   be captured again, and must be routed as if it had no mark.
/// - a **delivery** socket is bound to the address of a client far away and connects to the pod's
///   application. It must not be captured either, and what the application answers to that foreign
///   address must come back into the pod: packets with this mark are routed to `lo` as local.
///
/// The third is **inbound**: where capture routes (see the module), what arrives from outside bears
/// it, and by it what the application answers is told from what it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub passthrough: u32,
    pub delivery: u32,
    pub inbound: u32,
}

impl Marks {
    /// Derives the marks from `capture.mark`: passthrough is the mark itself, delivery differs from
    /// it in bit 16, inbound in bit 17. The next bit is taken where that would make a mark of 0.
    ///
    /// # Errors
    /// [`CaptureError::Setting`] if the mark is 0, which every unmarked socket has.
    pub fn new(mark: u32) -> Result<Self, CaptureError> {
        if mark == 0 {
            let (key, value) = ("capture.mark", mark.to_string());
            return Err(CaptureError::Setting { key, value, allowed: "1 to 4294967295" });
        }
        let first = if mark == 1 << FIRST_BIT { FIRST_BIT + 1 } else { FIRST_BIT };
        let second = if mark == 1 << (first + 1) { first + 2 } else { first + 1 };
        Ok(Self { passthrough: mark, delivery: mark ^ 1 << first, inbound: mark ^ 1 << second })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_marks() {
        let marks = Marks::new(0x7264).unwrap();
        let expected = Marks { passthrough: 0x7264, delivery: 0x1_7264, inbound: 0x2_7264 };
        assert_eq!(marks, expected);
    }

    #[test]
    fn the_marks_differ_and_none_is_0() {
        for mark in [1, 0x1_0000, 0x2_0000, 0x4_0000, 0x1_7264, 0x3_0000, u32::MAX] {
            let marks = Marks::new(mark).unwrap();
            assert_eq!(marks.passthrough, mark);
            let all = std::collections::BTreeSet::from([0, mark, marks.delivery, marks.inbound]);
            assert_eq!(all.len(), 4, "{marks:?}");
        }
    }

    #[test]
    fn the_mark_of_every_other_socket_is_refused() {
        assert!(Marks::new(0).unwrap_err().to_string().starts_with("capture.mark = 0"));
    }
}
