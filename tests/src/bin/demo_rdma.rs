//! `make demo-rdma`; see `rdma::demo`.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    let json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(other) => anyhow::bail!("unknown argument {other}; usage: demo_rdma [--json]"),
    };
    rdmesh_tests::rdma::demo::run(json)
}
