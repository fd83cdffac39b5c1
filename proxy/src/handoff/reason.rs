//! Reasons that travel in handoff messages, each with a stable code and a metric label.
//!
//! A code that this version does not know becomes `Other`: a newer end may say more than an
//! older one understands.

use rustix::io::Errno;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A code of a newer version.
            Other(u8),
        }

        impl $name {
            /// Every reason with a name of its own.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            #[must_use]
            pub fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(code) => code,
                }
            }

            #[must_use]
            pub fn from_code(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Other(other),
                }
            }

            /// The value of the `reason` label in metrics.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                    Self::Other(_) => "other",
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

reasons! {
    /// Why a connection goes by plain TCP.
    PassthroughReason {
        /// The destination is no pod and no service of the mesh.
        NotInMesh = 1 "outside_mesh",
        /// The destination's port is excluded from the mesh.
        ExcludedPort = 2 "excluded_port",
        /// The service has no ready endpoint in the mesh.
        NoEndpoint = 3 "no_endpoint",
        /// No link to the peer.
        PeerAway = 4 "peer_unavailable",
        /// The peer has no such pod.
        NoPod = 5 "peer_no_pod",
        /// The peer's pod has no sidecar connected.
        NoSidecar = 6 "peer_no_sidecar",
        /// A limit of either node proxy is reached.
        Limits = 7 "limits",
        /// A node proxy is going away.
        Draining = 8 "draining",
        /// A policy applies that the node proxies cannot evaluate.
        Policy = 9 "policy_unknown",
        /// The peer did not believe the source address.
        BadSource = 10 "bad_source",
        /// The lane was lost before the stream was open.
        LaneLost = 11 "lane_lost",
        /// The two node proxies cannot work together.
        Incompatible = 12 "peer_version",
        /// A fault inside a node proxy.
        Internal = 13 "internal",
        /// The peer did not answer the opening in time.
        OpenTimeout = 14 "open_timeout",
        /// What the pods want to be carried by is not there.
        Fabric = 15 "fabric",
        /// The sidecar has no channel to its node proxy.
        NodeAway = 32 "node_proxy_away",
        /// The channel was lost before the node proxy took the connection.
        NodeLost = 33 "node_proxy_lost",
        /// The node proxy does not keep up with the sidecar.
        NodeBusy = 34 "node_proxy_busy",
    }
}

reasons! {
    /// Why the sidecar could not open a socket to the application.
    DialFailure {
        Refused = 1 "refused",
        Timeout = 2 "timeout",
        Unreachable = 3 "unreachable",
        /// The destination is none of the pod's own addresses, or is loopback.
        Denied = 4 "denied",
        Internal = 5 "internal",
        /// Too many dials at once, or no descriptor left.
        Limits = 6 "limits",
    }
}

reasons! {
    /// Why the node proxy does not want a channel.
    RejectReason {
        Version = 1 "version",
        UnknownPod = 2 "unknown_pod",
        BadWorker = 3 "bad_worker",
        Limits = 4 "limits",
        Draining = 5 "draining",
        Protocol = 6 "protocol",
        Internal = 7 "internal",
    }
}

impl DialFailure {
    /// What the system said about an attempt to connect.
    #[must_use]
    pub fn of(errno: Errno) -> Self {
        match errno {
            Errno::CONNREFUSED | Errno::CONNRESET => Self::Refused,
            Errno::TIMEDOUT => Self::Timeout,
            Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN | Errno::HOSTDOWN => {
                Self::Unreachable
            }
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Self::Limits,
            _ => Self::Internal,
        }
    }
}
