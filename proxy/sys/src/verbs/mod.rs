//! RDMA verbs: devices, registered slabs and reliable-connected queue pairs, each released when it
//! is dropped and in the order that the device needs.
//!
//! A posted buffer belongs to its queue pair until its completion, or until the queue pair is
//! destroyed. Everything belongs to one thread: no type here is `Send`, because slabs are not.
//! What it does not do: exchange addresses, choose a device, or retry.

mod device;
#[cfg(test)]
mod layout;
mod memory;
mod queue_pair;

pub use device::{Device, Event, Gid, Limits, Port};
pub use memory::Registration;
pub use queue_pair::{Capacity, Parts, Polled, QueuePair, Remote, Route};

use std::io;

/// What a device or the verbs library refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no RDMA device is called {0}")]
    NoSuchDevice(String),
    #[error("{call}: {source}")]
    Os { call: &'static str, source: io::Error },
    #[error("completion: {}", status_name(*.0))]
    Completion(u32),
    #[error("a completion for a buffer that was not posted")]
    Stray,
    #[error("a buffer outside of the registered memory, or more parts than agreed")]
    Unregistered,
}

impl Error {
    fn last(call: &'static str) -> Self {
        Self::Os { call, source: io::Error::last_os_error() }
    }

    /// From a call that returns the error number.
    fn check(call: &'static str, result: i32) -> Result<(), Self> {
        match result {
            0 => Ok(()),
            // Some providers return -1 and set errno, some the negative number.
            -1 => Err(Self::last(call)),
            n => Err(Self::Os { call, source: io::Error::from_raw_os_error(n.abs()) }),
        }
    }

    /// The errno behind it, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

const STATUS_NAMES: [&str; 22] = [
    "success",
    "loc_len_err",
    "loc_qp_op_err",
    "loc_eec_op_err",
    "loc_prot_err",
    "wr_flush_err",
    "mw_bind_err",
    "bad_resp_err",
    "loc_access_err",
    "rem_inv_req_err",
    "rem_access_err",
    "rem_op_err",
    "retry_exc_err",
    "rnr_retry_exc_err",
    "loc_rdd_viol_err",
    "rem_inv_rd_req_err",
    "rem_abort_err",
    "inv_eecn_err",
    "inv_eec_state_err",
    "fatal_err",
    "resp_timeout_err",
    "general_err",
];

/// Stable name of a completion status, for logs and metric labels.
#[must_use]
pub fn status_name(status: u32) -> &'static str {
    STATUS_NAMES.get(status as usize).copied().unwrap_or("other")
}
