//! `make demo-rdma`; see `rdma::demo`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(other) => {
            eprintln!("unknown argument {other}; usage: demo_rdma [--json]");
            return ExitCode::FAILURE;
        }
    };
    match rdmesh_tests::rdma::demo::run(json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
