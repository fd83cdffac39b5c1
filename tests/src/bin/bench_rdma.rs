//! `make bench-rdma`; see `rdma::bench`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let rounds = std::env::args().nth(1).map_or(Ok(3), |rounds| rounds.parse());
    let Ok(rounds) = rounds else {
        eprintln!("usage: bench_rdma [ROUNDS]");
        return ExitCode::FAILURE;
    };
    match rdmesh_tests::rdma::bench::run(rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
