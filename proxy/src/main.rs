//! Entry point: parses the command line and wires the rooms; decides nothing itself.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    rdmesh_proxy::cmd::main()
}
