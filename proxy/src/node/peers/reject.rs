//! Connections that are turned away: counted by reason, logged once per address and reason.

use crate::metrics::NodeMetrics;
use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// How many (address, reason) pairs are remembered as already logged.
const REMEMBERED_MAX: usize = 1024;

/// Why a connection to the peer port was closed.
pub use crate::metrics::PeerRejected as RejectReason;

/// Counters and the memory of what was logged.
#[derive(Debug, Default)]
pub struct Rejections {
    metrics: Arc<NodeMetrics>,
    logged: Mutex<Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    seen: HashSet<(IpAddr, RejectReason)>,
    order: VecDeque<(IpAddr, RejectReason)>,
}

impl Rejections {
    #[must_use]
    pub fn new(metrics: Arc<NodeMetrics>) -> Self {
        Self { metrics, logged: Mutex::default() }
    }

    /// Counts, and logs if it is the first of its kind from this address.
    pub fn note(&self, address: IpAddr, reason: RejectReason, text: &dyn std::fmt::Display) {
        self.metrics.peer_rejected(reason);
        // Both ends expect it now and then; it is no fault.
        if reason == RejectReason::Tie {
            return;
        }
        if self.first(address, reason) {
            tracing::warn!(%address, reason = reason.as_str(), "peer connection refused: {text} (logged once per address and reason)");
        }
    }

    fn first(&self, address: IpAddr, reason: RejectReason) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if !logged.seen.insert((address, reason)) {
            return false;
        }
        logged.order.push_back((address, reason));
        if logged.order.len() > REMEMBERED_MAX
            && let Some(oldest) = logged.order.pop_front()
        {
            logged.seen.remove(&oldest);
        }
        true
    }

    /// Every reason with its count.
    #[cfg(test)]
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        RejectReason::ALL.iter().map(|reason| (reason.as_str(), self.count(*reason)))
    }

    #[must_use]
    pub fn count(&self, reason: RejectReason) -> u64 {
        self.metrics.peer_rejected_count(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn counted_always_logged_once_and_bounded() {
        let rejections = Rejections::default();
        let address = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
        assert!(rejections.first(address(1), RejectReason::Slow));
        assert!(!rejections.first(address(1), RejectReason::Slow));
        assert!(rejections.first(address(1), RejectReason::Tls));
        for n in 2..3000 {
            assert!(rejections.first(address(n), RejectReason::Slow));
        }
        let logged = rejections.logged.lock().expect("not poisoned");
        assert_eq!((logged.seen.len(), logged.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        drop(logged);
        rejections.note(address(1), RejectReason::Token, &"x");
        rejections.note(address(1), RejectReason::Token, &"x");
        assert_eq!(rejections.count(RejectReason::Token), 2);
        assert_eq!(rejections.counts().map(|(_, n)| n).sum::<u64>(), 2);
    }
}
