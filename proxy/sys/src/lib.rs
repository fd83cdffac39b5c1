//! Everything in rdmesh that needs `unsafe`, behind safe interfaces: slab memory, pipes, netlink
//! expressions that nftnl lacks, socket options that no safe crate offers, RDMA verbs.
//!
//! What it does not do: decide anything. No policy, no protocol, no logging.

pub mod heap;
pub mod interrupt;
pub mod nft;
pub mod pipe;
pub mod readiness;
pub mod slab;
pub mod sockopt;
pub mod uring;
#[cfg(feature = "verbs")]
pub mod verbs;
