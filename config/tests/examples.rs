//! The examples are what they say they are.

use rdmesh_config::{Config, DirectoryFile};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

#[test]
fn the_full_example_is_the_default_and_leaves_no_key_out() {
    let path = example("full.yaml");
    let config = Config::load(&path).unwrap();
    assert_eq!(config, Config::default());
    let keys = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#') && !line.starts_with('-'));
        lines.filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect()
    };
    let example = std::fs::read_to_string(&path).unwrap();
    assert_eq!(keys(&example), keys(&Config::default().to_yaml()));
}

#[test]
fn every_example_loads() {
    Config::load(&example("node.yaml")).unwrap().check_node("node.yaml").unwrap();
    Config::load(&example("sidecar.yaml")).unwrap();
    let directory = DirectoryFile::load(&example("directory.yaml")).unwrap();
    assert_eq!((directory.nodes.len(), directory.pods.len(), directory.services.len()), (2, 2, 1));
    assert!(!directory.services[0].ports[0].endpoints[2].ready);
    let names: Vec<String> = std::fs::read_dir(example("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            !["full.yaml", "node.yaml", "sidecar.yaml", "directory.yaml"].contains(&name.as_str())
        })
        .collect();
    assert!(names.is_empty(), "examples without a test: {names:?}");
    let again = DirectoryFile::from_yaml(&directory.to_yaml(), "again").unwrap();
    assert_eq!(again, directory);
}

#[test]
fn a_large_directory_loads_and_a_fault_in_it_is_found() {
    use std::fmt::Write;
    const PODS: usize = 150_000;
    let mut text = String::from("nodes:\n");
    for node in 0..5_000 {
        let (high, low) = (node / 250, node % 250 + 1);
        writeln!(text, "  - name: node-{node}\n    address: 192.0.{high}.{low}:15700").unwrap();
    }
    text.push_str("pods:\n");
    for pod in 0..PODS {
        let (node, a, b, c) = (pod % 5_000, pod / 65_536, pod / 256 % 256, pod % 256);
        writeln!(
            text,
            "  - name: default/pod-{pod}\n    uid: 00000000-0000-0000-0000-{pod:012}\n    node: node-{node}\n    addresses: [10.{a}.{b}.{c}]"
        )
        .unwrap();
    }
    let start = Instant::now();
    let file = DirectoryFile::from_yaml(&text, "large").unwrap();
    let good = start.elapsed();
    assert_eq!(file.pods.len(), PODS);
    text.push_str("  - {name: one-more, uid: u, node: node-1, addresses: [10.0.0.7]}\n");
    let start = Instant::now();
    let faults = DirectoryFile::from_yaml(&text, "large").unwrap_err();
    let bad = start.elapsed();
    assert_eq!(faults.faults[0].line, Some(text.lines().count()), "{faults}");
    eprintln!("{PODS} pods, {} bytes: loaded in {good:?}, refused in {bad:?}", text.len());
    // Generous: the test runs unoptimised, among others, on small machines.
    assert!(good < Duration::from_secs(30) && bad < Duration::from_secs(90), "{good:?} {bad:?}");
}
