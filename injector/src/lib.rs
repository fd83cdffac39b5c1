//! The admission webhook: decides which pods are meshed and puts capture and sidecar into them.
//!
//! `decision` says whether, `annotations` what the pod wants, `template` and `patch` what is added: pure
//! functions of pod, template and settings. `review` speaks the API server's language, `server` HTTPS,
//! `offline` does the same to files. `authority` keeps the certificates of injector and node proxies. `cmd`
//! wires.
//!
//! What it does not do: look at the cluster in order to decide (the API server's selectors tell what a
//! namespace wants), or keep anything between two admissions.
#![forbid(unsafe_code)]

pub mod annotations;
pub mod authority;
pub mod client;
pub mod cmd;
pub mod decision;
pub mod diff;
pub mod metrics;
pub mod offline;
pub mod patch;
pub mod review;
pub mod server;
pub mod settings;
pub mod template;
pub mod tls;
pub mod yaml;

#[cfg(test)]
mod testing;
