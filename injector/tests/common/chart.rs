//! The chart, rendered by helm (`make tools`).

use rdmesh_config::read_documents;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub fn helm(arguments: &[&str]) -> Output {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let own = target.join("tools/bin/helm");
    let program = if own.exists() { own } else { "helm".into() };
    Command::new(&program)
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; `make tools` brings helm", program.display()))
}

pub fn render(set: &str) -> Vec<Value> {
    let output = helm(&[
        "template",
        "rdmesh",
        "charts/rdmesh",
        "--namespace",
        "rdmesh-system",
        "--set",
        set,
    ]);
    assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    read_documents::<Value>(&text, set)
        .unwrap()
        .into_iter()
        .filter(|value| !value.is_null())
        .collect()
}
