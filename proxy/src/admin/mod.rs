//! The admin HTTP server of node proxy and sidecar: `/metrics`, `/livez`, `/readyz` and JSON pages;
//! and the small client that the command line uses to read them.
//!
//! Bounded: connections, header size, the time for a request and for a whole connection. What it
//! does not do: change anything (only GET and HEAD are answered), TLS, or know what it shows.

mod client;
mod routes;
mod server;

pub use client::{ClientError, get};
pub use routes::{Readiness, Routes};
pub use server::{AdminError, accept_until, bind, serve, serve_until};

#[cfg(test)]
mod tests;
