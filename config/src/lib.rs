//! One YAML schema for all rdmesh processes and the static directory file.
//!
//! * [`Config::load`], [`Config::from_yaml`]: read the configuration; every fault is reported at once,
//!   each with its key, line, value and what is allowed.
//! * [`Config::check_node`]: what the `node` process needs beyond the defaults.
//! * [`Config::to_yaml`]: the effective configuration.
//! * [`DirectoryFile::load`], [`DirectoryFile::from_yaml`]: the same for the directory file.
//! * [`read_documents`], [`split_documents`]: YAML of others, such as manifests,
//!   with the same limits.
//! * [`Faults`]: what was found; its `Display` is meant for the operator.
//!
//! What it does not do: look at the machine (whether a path exists, a port is free, a capability is
//! held), or know what a process does with a value.
#![forbid(unsafe_code)]

mod check_config;
mod check_directory;
mod check_injector;
mod check_policies;
mod collect;
mod documents;
mod fault;
mod load;
mod quantity;
mod schema;
mod tree;
mod tree_de;
mod words;
mod yaml;

pub use documents::{DOCUMENTS_BYTES_MAX, read_documents, split_documents};
pub use fault::{Fault, Faults};
pub use load::{CONFIG_BYTES_MAX, DIRECTORY_BYTES_MAX};
pub use quantity::Quantity;
pub use schema::*;
