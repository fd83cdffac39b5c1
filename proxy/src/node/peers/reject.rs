//! Connections that are turned away: counted by reason, logged once per address and reason.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many (address, reason) pairs are remembered as already logged.
const REMEMBERED_MAX: usize = 1024;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a connection to the peer port was closed. The names are label values of
        /// `rdmesh_peer_rejected_total`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum RejectReason { $($(#[$doc])* $variant,)* }

        impl RejectReason {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// More handshakes at once than `pending_handshakes_max`, or than one address may have.
    TooMany => "too_many",
    /// Not done within `handshake_ms`.
    Slow => "slow",
    /// Closed by the other end before the handshake was done.
    Closed => "closed",
    /// The preamble is not ours.
    Garbage => "garbage",
    /// The TLS handshake failed: no certificate, another CA, expired, not TLS 1.3.
    Tls => "tls",
    /// A malformed or oversized control message.
    Message => "message",
    /// The certificate is not of the node that the hello names.
    Name => "name",
    /// The directory does not know the node.
    Unknown => "unknown",
    Version => "version",
    /// A token that was never issued, is used up or expired.
    Token => "token",
    /// A link in plain text although one of the ends wants encryption.
    Plain => "plain",
    /// Both ends dialled at once; the other connection is used.
    Tie => "tie",
    /// More peers than `peers_max`.
    Limits => "limits",
    Draining => "draining",
}

/// Counters and the memory of what was logged.
#[derive(Debug, Default)]
pub struct Rejections {
    counts: [AtomicU64; RejectReason::ALL.len()],
    logged: Mutex<Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    seen: HashSet<(IpAddr, RejectReason)>,
    order: VecDeque<(IpAddr, RejectReason)>,
}

impl Rejections {
    /// Counts, and logs if it is the first of its kind from this address.
    pub fn note(&self, address: IpAddr, reason: RejectReason, text: &dyn std::fmt::Display) {
        self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
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

    #[must_use]
    pub fn count(&self, reason: RejectReason) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }

    /// For the metrics: every reason with its count.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        RejectReason::ALL.iter().map(|reason| (reason.as_str(), self.count(*reason)))
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
