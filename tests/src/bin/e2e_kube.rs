//! `make e2e-kube`: the scenarios of `kube::scenarios` in the cluster of KUBECONFIG, one line for each.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    rdmesh_tests::kube::run::main()
}
