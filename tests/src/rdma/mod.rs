//! What must hold over RDMA: the scenarios that run in the guests of the Soft-RoCE lab.

pub mod bench;
pub mod demo;
pub mod run;
pub mod scenarios;
