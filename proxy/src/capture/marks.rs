//! The two marks of the proxy's own sockets.

use super::CaptureError;

/// What sets the mark of deliveries apart from that of passthrough.
const DELIVERY_BIT: u32 = 0x1_0000;

/// The marks (`SO_MARK`) that the sidecar puts on its sockets, derived from `capture.mark`.
///
/// Two are needed, because the sockets want opposite things from the routing:
/// - a **passthrough** socket goes out to the real network with the pod's own address. It must not
///   be captured again, and must be routed as if it had no mark.
/// - a **delivery** socket is bound to the address of a client far away and connects to the pod's
///   application. It must not be captured either, and what the application answers to that foreign
///   address must come back into the pod: packets with this mark are routed to `lo` as local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub passthrough: u32,
    pub delivery: u32,
}

impl Marks {
    /// Derives both marks from `capture.mark`: passthrough is the mark itself, delivery differs from
    /// it in bit 16 (in bit 17 if the mark is bit 16 alone).
    ///
    /// # Errors
    /// [`CaptureError::Setting`] if the mark is 0, which every unmarked socket has.
    pub fn new(mark: u32) -> Result<Self, CaptureError> {
        if mark == 0 {
            let (key, value) = ("capture.mark", mark.to_string());
            return Err(CaptureError::Setting { key, value, allowed: "1 to 4294967295" });
        }
        let delivery = match mark ^ DELIVERY_BIT {
            0 => mark | DELIVERY_BIT << 1,
            other => other,
        };
        Ok(Self { passthrough: mark, delivery })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_marks() {
        let marks = Marks::new(0x7264).unwrap();
        assert_eq!(marks, Marks { passthrough: 0x7264, delivery: 0x1_7264 });
    }

    #[test]
    fn the_two_marks_differ_and_neither_is_0() {
        for mark in [1, 0x1_0000, 0x1_7264, 0x3_0000, u32::MAX] {
            let marks = Marks::new(mark).unwrap();
            assert_eq!(marks.passthrough, mark);
            assert!(marks.delivery != mark && marks.delivery != 0, "{marks:?}");
        }
    }

    #[test]
    fn the_mark_of_every_other_socket_is_refused() {
        assert!(Marks::new(0).unwrap_err().to_string().starts_with("capture.mark = 0"));
    }
}
