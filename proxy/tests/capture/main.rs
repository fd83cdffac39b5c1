//! The capture, with real sockets in network namespaces. Needs root and the programs `ip` and `nft`.
#![forbid(unsafe_code)]

mod delivery;
mod failure;
mod lab;
mod outgoing;
mod state;
