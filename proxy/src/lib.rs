//! The rdmesh data plane. Each module is a room with one job; dependencies between rooms point
//! one way (see ARCHITECTURE.md), and the tidy test guards that.
#![forbid(unsafe_code)]

pub mod admin;
pub mod bench;
pub mod capture;
pub mod cmd;
pub mod demo;
pub mod directory;
pub mod fabric;
pub mod handoff;
pub mod metrics;
pub mod mux;
pub mod node;
pub mod sidecar;
pub mod trust;
