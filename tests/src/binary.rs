//! Finds the `rdmesh-proxy` that the tests run, and refuses one that is older than its sources.
//!
//! What it does not do: build it. `make test` does, or `cargo build -p rdmesh-proxy`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// # Panics
/// When the binary is missing or stale.
#[must_use]
pub fn proxy() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find().unwrap_or_else(|why| panic!("{why}"))).clone()
}

fn find() -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|e| format!("current_exe: {e}"))?;
    // target/<profile>/deps/<test> or target/<profile>/<driver>
    let dir = me.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    let dir = dir.ok_or("the test binary is not in a cargo target directory")?;
    let binary = dir.join("rdmesh-proxy");
    let release = if dir.ends_with("release") { " --release" } else { "" };
    let advice = format!("run `cargo build{release} -p rdmesh-proxy` (or `make test`) first");
    let built = modified(&binary).map_err(|_| format!("no {}: {advice}", binary.display()))?;
    // Cargo's dep-info file names every source that went into the binary.
    let listing = binary.with_extension("d");
    let listing = std::fs::read_to_string(&listing)
        .map_err(|e| format!("read {}: {e}; {advice}", listing.display()))?;
    let sources = listing.split_once(": ").map(|(_, sources)| sources).unwrap_or_default();
    for source in sources.split_whitespace() {
        if modified(Path::new(source)).map_or(true, |changed| changed > built) {
            return Err(format!("{} is older than {source}: {advice}", binary.display()));
        }
    }
    Ok(binary)
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    path.metadata()?.modified()
}
