//! Helpers of the end-to-end tests: a meshed lab around the freshly built binary, sockets inside
//! pods, and payloads that can be checked at any offset.
//!
//! With `RDMESH_E2E_ROUTING=1` the labs' pods have the sysctls that let capture route.
//!
//! With `RDMESH_E2E_DIRECT=1` the labs stay without a mesh: the tests that speak of TCP alone must
//! then pass over the kernel's own TCP, which shows that it is not them who are wrong.
#![forbid(unsafe_code)]

pub mod bench;
pub mod binary;
pub mod guest;
pub mod kube;
pub mod payload;
pub mod rdma;
pub mod relay;
pub mod sockets;
pub mod suite;

pub use payload::Pattern;
pub use rdmesh_config as config;
pub use rdmesh_proxy::demo::lab::{Lab, Plan, Pod, netns, process, scrape, topology};
pub use sockets::{End, PodSockets, pair, read_end};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whatever a test waits for comes within this time or never.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the labs of this run have no mesh.
#[must_use]
pub fn direct() -> bool {
    is_set("RDMESH_E2E_DIRECT")
}

/// Whether capture routes in the labs of this run; else it redirects.
#[must_use]
pub fn routing() -> bool {
    is_set("RDMESH_E2E_ROUTING")
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Says so and returns true when a test makes no sense without a mesh.
#[must_use]
pub fn needs_mesh(test: &str) -> bool {
    if direct() {
        eprintln!("{test}: left out, it speaks of the mesh and RDMESH_E2E_DIRECT=1 is set");
    }
    direct()
}

/// Keeps the other tests of the same file away from the machine: for those that measure times and
/// rates, and those that fill it by themselves. Cargo runs the files one after the other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab with its mesh up.
///
/// # Panics
/// When it cannot be built: tests fail loudly where something is missing.
#[must_use]
pub fn lab(plan: &Plan) -> Lab {
    lab_with(plan, |_| {})
}

/// A lab whose processes' configs are changed before they start.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn lab_with(plan: &Plan, change: impl FnOnce(&mut config::Config)) -> Lab {
    let lab = Lab::new(&plan.clone().routing(routing()), &binary::proxy())
        .unwrap_or_else(|e| panic!("build the lab: {e:#}"));
    lab.configure(change);
    if !direct() {
        lab.mesh_up().unwrap_or_else(|e| panic!("bring the mesh up: {e:#}"));
    }
    lab
}

/// One client pod `a` on node 1, one server pod `b` on node 2: what most tests need.
#[must_use]
pub fn two_pods() -> Lab {
    lab(&Plan::new().pod("a", 1).pod("b", 2))
}

/// Looks at `condition` until it holds.
///
/// # Panics
/// When it does not within `within`.
pub fn eventually(within: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fails unless the node proxies of a lab carried at least `bytes` in streams and let nothing
/// pass through. Without a mesh there is nothing to prove.
///
/// # Panics
/// When the metrics say otherwise.
pub fn assert_tunnelled(lab: &Lab, bytes: u64) {
    if direct() {
        return;
    }
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    for node in [1, 2] {
        let metrics = lab.node_metrics(node).expect("metrics of a node proxy");
        let carried = metrics.sum("rdmesh_stream_bytes_total", &[]);
        assert!(carried >= bytes, "n{node} carried {carried} stream bytes, expected {bytes}");
    }
    for pod in lab.pods().iter().filter(|pod| pod.meshed) {
        let metrics = lab.sidecar_metrics(pod);
        let metrics =
            metrics.unwrap_or_else(|e| panic!("metrics of {}'s sidecar: {e:#}", pod.name));
        let passed = metrics.sum("rdmesh_passthrough_total", &[]);
        let show = metrics.show("rdmesh_passthrough_total");
        if passed != 0.0 {
            print_logs(lab);
        }
        assert!(passed == 0.0, "{} let {passed} connections pass through: {show}", pod.name);
    }
}

/// The logs of all processes of the mesh, for the output of a test that fails.
pub fn print_logs(lab: &Lab) {
    for node in lab.nodes() {
        let log = node.with_process(|process| process.log()).unwrap_or_default();
        eprintln!("--- {}:\n{}", node.name, process::tail(&log));
    }
    for pod in lab.pods().iter().filter(|pod| pod.meshed) {
        let log = pod.with_sidecar(|process| process.log()).unwrap_or_default();
        eprintln!("--- sidecar of {}:\n{}", pod.name, process::tail(&log));
    }
}
