//! Files that nobody would write by mistake, and files that were cut off.

use proptest::prelude::*;
use rdmesh_config::{CONFIG_BYTES_MAX, Config, DIRECTORY_BYTES_MAX, DirectoryFile};
use std::path::Path;

fn both_refuse(text: &str) -> (String, String) {
    let config = Config::from_yaml(text, "x").expect_err("config must be refused").to_string();
    let directory =
        DirectoryFile::from_yaml(text, "x").expect_err("directory must be refused").to_string();
    // No fault floods the terminal.
    assert!(
        config.len() < 32_768 && directory.len() < 32_768,
        "{} {}",
        config.len(),
        directory.len()
    );
    (config, directory)
}

#[test]
fn billion_laughs() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..12 {
        let list = vec![format!("*a{}", n - 1); 10].join(",");
        text.push_str(&format!("a{n}: &a{n} [{list}]\n"));
    }
    let (config, directory) = both_refuse(&text);
    assert!(config.contains("aliases") && directory.contains("aliases"), "{config} {directory}");
}

#[test]
fn one_long_list_shared_by_many_pods() {
    let addresses = vec!["10.42.0.1"; 50_000].join(",");
    let pod = "- {name: p, uid: u, node: n, addresses: *a}\n".repeat(50_000);
    let text = format!("nodes: [{{name: &a [{addresses}], address: x}}]\npods:\n{pod}");
    both_refuse(&text);
}

#[test]
fn deep_nesting() {
    for text in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(20_000)] {
        both_refuse(&text);
    }
    let closed = format!("node: {}{}", "[".repeat(1_000), "]".repeat(1_000));
    both_refuse(&closed);
}

#[test]
fn long_keys_and_values() {
    let long = "k".repeat(900_000);
    both_refuse(&format!("{long}: 1\n"));
    both_refuse(&format!("node: {{name: {long}}}\nnodes: [{{name: {long}, address: {long}}}]\n"));
    both_refuse(&(0..50_000).map(|n| format!("k{n}: 1\n")).collect::<String>());
}

#[test]
fn too_large() {
    assert!(Config::from_yaml(&"#".repeat(CONFIG_BYTES_MAX + 1), "x").is_err());
    assert!(DirectoryFile::from_yaml(&"#".repeat(DIRECTORY_BYTES_MAX + 1), "x").is_err());
}

#[test]
fn files_that_cannot_be_read() {
    let missing = Config::load(Path::new("/nonexistent/rdmesh.yaml")).unwrap_err().to_string();
    assert!(
        missing.contains("cannot be read") && missing.contains("/nonexistent/rdmesh.yaml"),
        "{missing}"
    );
    assert!(Config::load(Path::new("/")).unwrap_err().to_string().contains("cannot be read"));
    let endless = Config::load(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(endless.contains("larger than"), "{endless}");
    let binary = DirectoryFile::load(&std::env::current_exe().unwrap()).unwrap_err().to_string();
    assert!(binary.contains("UTF-8") || binary.contains("larger"), "{binary}");
}

#[test]
fn cut_off_anywhere() {
    let full = include_str!("../examples/full.yaml");
    let directory = include_str!("../examples/directory.yaml");
    let whole = DirectoryFile::from_yaml(directory, "x").unwrap();
    for (end, _) in full.char_indices().step_by(7) {
        // Never a panic; what is refused says so in one screen.
        if let Err(faults) = Config::from_yaml(&full[..end], "x") {
            assert!(!faults.faults.is_empty());
        }
    }
    let mut refused = 0;
    for (end, _) in directory.char_indices() {
        match DirectoryFile::from_yaml(&directory[..end], "x") {
            Ok(file) => assert!(file.pods.len() <= whole.pods.len()),
            Err(faults) => {
                refused += 1;
                assert!(!faults.faults.is_empty());
            }
        }
    }
    assert!(refused > directory.len() / 4, "{refused} of {}", directory.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_never_panics(text in "\\PC{0,200}") {
        let _ = Config::from_yaml(&text, "x");
        let _ = DirectoryFile::from_yaml(&text, "x");
    }

    #[test]
    fn yaml_like_garbage_never_panics(words in proptest::collection::vec(prop::sample::select(vec![
        "node", "pods", "nodes", "limits", ": ", ":\n", "\n  ", "\n", "- ", "[", "]", "{", "}", ", ", "\"", "'", "&a ", "*a",
        "|\n", ">", "!t ", "1", "-1", "1e9", "0x10", "~", "true", "name", "addresses", "10.0.0.1", "---\n", "...\n", "? ", "# ",
        "\u{feff}", "\u{85}", "\t", "<<", "99999999999999999999999999999999999999999",
    ]), 0..40)) {
        let text = words.concat();
        let _ = Config::from_yaml(&text, "x");
        let _ = DirectoryFile::from_yaml(&text, "x");
    }

    #[test]
    fn one_changed_byte_never_panics(at in 0usize..6000, byte in 0x20u8..0x7f) {
        for text in [include_str!("../examples/full.yaml"), include_str!("../examples/directory.yaml")] {
            let mut bytes = text.as_bytes().to_vec();
            let length = bytes.len();
            bytes[at % length] = byte;
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = Config::from_yaml(&text, "x");
                let _ = DirectoryFile::from_yaml(&text, "x");
            }
        }
    }

    #[test]
    fn effective_config_round_trips(
        level in prop::sample::select(vec!["off", "info", "info,a=debug"]),
        port in 1u16..15000,
        ports in proptest::collection::vec(1u16..=65535, 0..5),
        name in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
        path in "/[ -~]{0,40}",
        encrypt: bool,
        budget in (64u64 << 20)..(1 << 40),
        initial in 1024u32..(4 << 20),
    ) {
        let mut config = Config::default();
        config.log.level = level.into();
        config.capture.exclude_outbound_ports = ports;
        config.sidecar.listen_port = port;
        config.node.name = name;
        config.node.encrypt = encrypt;
        config.node.directory.file = path.into();
        config.node.limits.window_budget_bytes = budget;
        config.node.limits.window_initial_bytes = initial;
        let text = config.to_yaml();
        prop_assert_eq!(Config::from_yaml(&text, "x").unwrap(), config, "{}", text);
    }
}
