//! `make test-rdma`: the scenarios of `rdma::scenarios` in two guests, one line for each.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    rdmesh_tests::rdma::run::main()
}
