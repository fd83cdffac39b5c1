//! `make bench-rdma` and `make bench-smc`; see `rdma::bench`.
#![forbid(unsafe_code)]

use rdmesh_tests::rdma::bench::{Wanted, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut wanted = Wanted { rounds: 3, fabric: true, programs: true, smc: false, json: false };
    for argument in std::env::args().skip(1) {
        match (argument.as_str(), argument.parse()) {
            ("--json", _) => wanted.json = true,
            ("fabric", _) => wanted.programs = false,
            ("programs", _) => wanted.fabric = false,
            ("smc", _) => (wanted.fabric, wanted.programs, wanted.smc) = (false, false, true),
            (_, Ok(rounds)) if rounds > 0 => wanted.rounds = rounds,
            _ => {
                eprintln!("usage: bench_rdma [ROUNDS] [fabric|programs|smc] [--json]");
                return ExitCode::FAILURE;
            }
        }
    }
    match run(wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
