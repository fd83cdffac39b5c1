//! One YAML schema for all rdmesh processes and the static directory file.
#![forbid(unsafe_code)]

mod schema;

pub use schema::*;
