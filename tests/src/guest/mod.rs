//! The RDMA lab: two QEMU guests, each one node of the mesh with its pods in namespaces and an
//! RDMA device (`rdma_rxe`) on the interface that joins them. A program on the host drives both.
//! Where there are real devices, `RDMA=host` has namespaces of the host and them in the guests' place.
//!
//! ```text
//!  host:   driver ── Channel ──────────────┬───────────────────────────────┐
//!  guests:            agent: pods ─ under0/rxe0 ═══════ under0/rxe0 ─ pods: agent
//! ```
//! What it does not do: need KVM, a network, or anything installed in the guests: they boot Debian's
//! own kernel package and see the host's files, read-only.

pub mod agent;
pub mod channel;
pub mod cluster;
pub mod host;
pub mod image;
pub mod machine;
pub mod remote;
pub mod vm;
pub mod wire;

pub use cluster::{Cluster, Setting};
pub use machine::Machine;
pub use remote::Remote;
