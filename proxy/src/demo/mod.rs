//! Two emulated nodes on one machine: the lab that demo and tests stand on, and the demo itself.
//!
//! What it does not do: run in production; nothing else in the proxy uses this room.

pub mod lab;
pub mod show;
pub mod workload;
