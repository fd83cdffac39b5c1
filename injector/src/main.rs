//! Entry point; see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    rdmesh_injector::cmd::main()
}
