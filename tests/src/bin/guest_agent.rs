//! The program that a guest of the Soft-RoCE lab runs; see `guest::agent`.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    rdmesh_tests::guest::agent::serve()
}
