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
    /// Derives both marks from `capture.mark`: passthrough is the mark itself, delivery the mark
    /// with bit 16 set.
    ///
    /// # Errors
    /// [`CaptureError::Setting`] if the mark is 0 (every unmarked socket has that) or has bit 16
    /// set, so that the two would be the same.
    pub fn new(mark: u32) -> Result<Self, CaptureError> {
        if mark == 0 || mark & DELIVERY_BIT != 0 {
            return Err(CaptureError::Setting {
                key: "capture.mark",
                value: format!("{mark:#x}"),
                allowed: "not 0, and without bit 16 (0x10000), which marks deliveries",
            });
        }
        Ok(Self { passthrough: mark, delivery: mark | DELIVERY_BIT })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_marks_differ() {
        let marks = Marks::new(0x7264).unwrap();
        assert_eq!(marks, Marks { passthrough: 0x7264, delivery: 0x1_7264 });
    }

    #[test]
    fn marks_that_cannot_be_told_apart_are_refused() {
        for mark in [0, 0x1_0000, 0x1_7264, u32::MAX] {
            let message = Marks::new(mark).unwrap_err().to_string();
            assert!(message.contains("capture.mark"), "{message}");
        }
    }
}
