//! What can go wrong while the namespace is programmed, in words for the operator.

use std::io;

/// Why the capture could not be set up or removed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "not permitted to {what}: `rdmesh-proxy init` needs the capability CAP_NET_ADMIN in the \
         pod's network namespace; give it to the init container (securityContext.capabilities.add: \
         [NET_ADMIN])"
    )]
    NotPermitted { what: String },

    #[error(
        "the kernel cannot {what}: it lacks {needs}; load the module on the node or use a kernel \
         that has it (Linux 5.2 or newer)"
    )]
    KernelLacks {
        what: String,
        needs: &'static str,
        #[source]
        source: io::Error,
    },

    #[error("{key} = {value}: allowed is {allowed}")]
    Setting { key: &'static str, value: String, allowed: &'static str },

    #[error(
        "the loopback interface is down in this network namespace: bring it up first (ip link set \
         lo up)"
    )]
    LoopbackDown,

    #[error(
        "the rules do not fit one netlink transaction of {limit_bytes} bytes: list fewer CIDRs or \
         ports in the `capture` section"
    )]
    TooLarge { limit_bytes: usize },

    #[error(
        "the networks that are captured make more than {limit} routes: list fewer CIDRs in the \
         `capture` section"
    )]
    TooManyRoutes { limit: usize },

    #[error("cannot {what}")]
    Kernel {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl CaptureError {
    /// Sorts an error number of the kernel. `needs` names the module or the kernel option without
    /// which the request is unknown to it.
    pub(super) fn from_kernel(what: impl Into<String>, needs: &'static str, error: i32) -> Self {
        use rustix::io::Errno;
        let what = what.into();
        let source = io::Error::from_raw_os_error(error);
        match Errno::from_raw_os_error(error) {
            Errno::PERM => Self::NotPermitted { what },
            Errno::NETDOWN => Self::LoopbackDown,
            // Netfilter says ENOENT for a chain type or an expression that no module offers.
            Errno::NOENT
            | Errno::OPNOTSUPP
            | Errno::AFNOSUPPORT
            | Errno::PROTONOSUPPORT
            | Errno::NOSYS => Self::KernelLacks { what, needs, source },
            _ => Self::Kernel { what, source },
        }
    }

    /// The same for an error that came with a system call.
    pub(super) fn from_io(what: impl Into<String>, needs: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(number) => Self::from_kernel(what, needs, number),
            None => Self::Kernel { what: what.into(), source },
        }
    }
}
