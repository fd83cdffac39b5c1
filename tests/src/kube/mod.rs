//! `make e2e-kube`: rdmesh installed from its chart in a cluster, and used as operators and pods use it.
//!
//! What this does not do: make the cluster (KUBECONFIG tells it), build images or bring them to nodes (the Makefile).

pub mod cluster;
pub mod kubectl;
pub mod run;
pub mod scenarios;
pub mod traffic;

pub use cluster::Cluster;
