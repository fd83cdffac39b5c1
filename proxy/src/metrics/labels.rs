//! Label values as enums, so that counters are fixed arrays and no label value is ever built from
//! what a peer or a pod sent.

use serde::{Deserialize, Serialize};

/// Declares a label: an enum with all its values, their text and their position in an array.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            pub const COUNT: usize = Self::ALL.len();

            /// The label's value as it stands in the metrics, in logs and in the status.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label! {
    /// Which end of a stream this node is: where the client is, or where the server is.
    Role {
        Client => "client",
        Server => "server",
    }
}

label! {
    /// What carries the bytes.
    FabricKind {
        Tcp => "tcp",
        Shm => "shm",
        Verbs => "verbs",
    }
}

label! {
    /// How a stream ended.
    Outcome {
        /// Both directions ended with a FIN.
        Closed => "closed",
        /// An application, of either end, reset it.
        Reset => "reset",
        /// The destination's application refused the connection.
        Refused => "refused",
        /// Neither opened nor refused in time.
        Timeout => "timeout",
        /// Its lane was lost for good.
        LaneLost => "lane_lost",
        /// Given back to the sidecar before it was opened; the passthrough reason is counted there.
        Returned => "returned",
        /// The source address is not one of the peer's.
        BadSource => "bad_source",
        /// The peer broke the protocol of the mux.
        Protocol => "protocol",
        /// A policy forbids it.
        Denied => "denied",
        /// A limit of this node was reached.
        Limits => "limits",
        /// The node proxy stopped.
        Shutdown => "shutdown",
    }
}

label! {
    /// Why a connection did not go through the mesh.
    PassthroughReason {
        /// The destination is neither a meshed pod nor a service of such.
        OutsideMesh => "outside_mesh",
        /// The service has no ready endpoint.
        NoEndpoint => "no_endpoint",
        /// The destination's port is excluded by its pod.
        ExcludedPort => "excluded_port",
        /// The sidecar has no connection to its node proxy.
        NodeProxyAway => "node_proxy_away",
        /// No lane to the peer is up.
        PeerUnavailable => "peer_unavailable",
        /// The peer does not know the destination pod (yet, or any more).
        PeerNoPod => "peer_no_pod",
        /// The destination pod's sidecar is not connected to its node proxy.
        PeerNoSidecar => "peer_no_sidecar",
        /// The peer speaks no version that this node speaks.
        PeerVersion => "peer_version",
        /// A limit, here or at the peer, was reached.
        Limits => "limits",
        /// This node or the peer is shutting down.
        Draining => "draining",
        /// The lane was lost while the stream was being opened.
        LaneLost => "lane_lost",
        /// The peer does not take this node as the owner of the source address (yet).
        BadSource => "bad_source",
        /// The peer did not answer the opening in time.
        OpenTimeout => "open_timeout",
        /// A policy could not be evaluated.
        PolicyUnknown => "policy_unknown",
        /// What the pods want to be carried by is not there.
        Fabric => "fabric",
    }
}

label! {
    /// Seen from this node.
    Direction {
        Sent => "sent",
        Received => "received",
    }
}

label! {
    /// The direction of the connection, seen from the pod whose policy denies it.
    PolicyDirection {
        Egress => "egress",
        Ingress => "ingress",
    }
}

label! {
    /// What part of the slabs is doing.
    SlabState {
        Free => "free",
        /// Lent to the reads of sockets.
        Reading => "reading",
        /// Sent and not yet acknowledged, or waiting to be sent.
        InFlight => "in_flight",
        /// Received and not yet written to its socket.
        Received => "received",
    }
}

label! {
    /// Why a lane got another link.
    FailoverReason {
        /// The link failed: connection reset, device error.
        LinkBroken => "link_broken",
        /// Nothing came from the peer for the keepalive time.
        Keepalive => "keepalive",
        /// The peer closed the link.
        PeerClosed => "peer_closed",
        /// What came was not a valid message.
        Protocol => "protocol",
        /// A better fabric became available.
        Upgrade => "upgrade",
    }
}

label! {
    /// What became of a message from a sidecar.
    HandoffOutcome {
        /// The socket was taken over and goes to a peer.
        Mesh => "mesh",
        /// The socket was taken over and its destination is on this node.
        Local => "local",
        /// The sidecar was told to relay it itself.
        Passthrough => "passthrough",
        /// A taken-over socket was given back with the bytes read.
        Returned => "returned",
        /// A policy denied it.
        Denied => "denied",
        /// The sidecar delivered a socket to its application.
        Opened => "opened",
        /// The sidecar could not connect to its application.
        OpenFailed => "open_failed",
        /// A message that is not one.
        Malformed => "malformed",
        /// The socket's address is not of the pod that the handoff socket belongs to.
        BadSource => "bad_source",
        /// A limit was reached.
        Limits => "limits",
        /// The sidecar went away before the handoff was complete.
        Disconnected => "disconnected",
    }
}

label! {
    /// Why a peer, or one who said that he is one, was turned away.
    PeerRejected {
        /// More handshakes at once than the limit, or than one address may have.
        TooMany => "too_many",
        /// The handshake was not done in time.
        Slow => "slow",
        /// Closed by the other end before the handshake was done.
        Closed => "closed",
        /// The first bytes are not ours.
        Garbage => "garbage",
        /// TLS failed: no certificate, another CA's, expired, not TLS 1.3.
        Tls => "tls",
        /// A malformed or oversized control message.
        Message => "message",
        /// The certificate is not of the node that the peer says to be.
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
        /// More peers than the limit.
        Limits => "limits",
        Draining => "draining",
        /// A stream from an address that is not the peer's.
        BadSource => "bad_source",
    }
}

label! {
    /// What became of a changed directory.
    ReloadOutcome {
        Applied => "applied",
        /// Read, and refused because of its faults; the old one stays.
        Invalid => "invalid",
        /// Not there or not readable; the old one stays.
        Unreadable => "unreadable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_positions() {
        for (i, r) in PassthroughReason::ALL.iter().enumerate() {
            assert_eq!(r.index(), i);
        }
        assert_eq!(PassthroughReason::NodeProxyAway.as_str(), "node_proxy_away");
        assert_eq!(Outcome::COUNT, Outcome::ALL.len());
        assert_eq!(serde_json::to_string(&Outcome::LaneLost).unwrap(), "\"lane_lost\"");
    }
}

label! {
    /// How a work request of a queue pair failed.
    CompletionStatus {
        /// The peer did not acknowledge in time, as often as it was sent again.
        RetryExceeded => "retry_exc_err",
        /// The peer had no buffer posted: a defect of one of the two.
        ReceiverNotReady => "rnr_retry_exc_err",
        /// The queue pair had failed before.
        Flushed => "wr_flush_err",
        /// The message was longer than the buffer.
        LocalLength => "loc_len_err",
        LocalProtection => "loc_prot_err",
        RemoteAccess => "rem_access_err",
        RemoteOperation => "rem_op_err",
        Other => "other",
    }
}

impl CompletionStatus {
    /// By the name that the verbs library has for it.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self::ALL.iter().copied().find(|s| s.as_str() == name).unwrap_or(Self::Other)
    }
}
