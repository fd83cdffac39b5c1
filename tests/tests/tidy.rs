//! Keeps the house: room edges, sizes, `unsafe`, and that the documents speak of what exists.
//!
//! What it does not do: run anything of rdmesh. It reads the repository as text, so that it fails
//! on what people see.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The rooms of `proxy/src`, and the other rooms that each may use. ARCHITECTURE.md has the same table.
const ROOMS: &[(&str, &[&str])] = &[
    ("admin", &["metrics"]),
    ("bench", &["fabric", "mux", SYS]),
    ("capture", &[SYS]),
    ("cmd", &["admin", "bench", "capture", "demo", "metrics", "node", "sidecar", "trust"]),
    ("demo", &[]),
    ("directory", &["metrics"]),
    ("fabric", &["mux", SYS]),
    ("handoff", &[SYS]),
    ("metrics", &[]),
    ("mux", &[]),
    ("node", &["admin", "directory", "fabric", "handoff", "metrics", "mux", SYS]),
    ("sidecar", &["handoff", SYS]),
    ("trust", &[]),
];
const SYS: &str = "rdmesh_sys";

const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
const LINES_MAX: usize = 700;
/// Written so that this file does not find itself.
const MACHINE_PATHS: &[&str] = &[concat!("/", "work/"), concat!("/tmp/", "bash_jobs")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files of the repository as git knows them, or as they lie there where it is no clone.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut files: Vec<String> = match listed {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        _ => {
            let mut files = Vec::new();
            walk(&root(), &mut files);
            files
        }
    };
    files.retain(|file| root().join(file).is_file());
    files.sort();
    assert!(files.iter().any(|file| file == "proxy/src/lib.rs"), "found no sources: {files:?}");
    files
}

fn walk(dir: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), files);
        } else if let Ok(path) = entry.path().strip_prefix(root()) {
            files.push(path.to_string_lossy().into_owned());
        }
    }
}

fn sources(under: &str) -> Vec<(String, String)> {
    let wanted = |file: &String| file.starts_with(under) && file.ends_with(".rs");
    files().into_iter().filter(wanted).map(|file| (file.clone(), read(&file))).collect()
}

fn is_test_file(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    matches!(name, "tests.rs" | "testing.rs")
        || name.ends_with("_tests.rs")
        || ["/tests/", "/sim/"].iter().any(|folder| file.contains(folder))
}

/// The line without its comment. A `//` inside a string cuts too much, never too little.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// The words (of letters, digits, `_`, `-`) that directly follow each `prefix` in `text`.
fn words_after<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(prefix).map(move |(at, _)| {
        let rest = &text[at + prefix.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
        &rest[..end.unwrap_or(rest.len())]
    })
}

/// The rooms in `crate::{a, b::c}`, where there is one.
fn rooms_used(text: &str) -> BTreeSet<&str> {
    let mut used: BTreeSet<&str> =
        words_after(text, "crate::").filter(|word| !word.is_empty()).collect();
    for (at, prefix) in text.match_indices("crate::{") {
        let list = &text[at + prefix.len()..];
        let mut depth = 0;
        let mut first = true;
        for (start, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => first = true,
                c if first && !c.is_whitespace() => {
                    used.extend(words_after(&list[start..], "").next());
                    first = false;
                }
                _ => {}
            }
        }
    }
    used
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let known: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut faults = Vec::new();
    for (file, text) in sources("proxy/src/") {
        let Some((room, _)) = file["proxy/src/".len()..].split_once('/') else { continue };
        let Some(allowed) = known.get(room) else {
            faults.push(format!("{file}: the room {room} is not in ROOMS"));
            continue;
        };
        let text: String = text.lines().flat_map(|line| [code(line), "\n"]).collect();
        let mut used = rooms_used(&text);
        if text.contains(SYS) {
            used.insert(SYS);
        }
        used.remove(room);
        for other in used.iter().filter(|other| known.contains_key(**other) || **other == SYS) {
            if !allowed.contains(other) {
                faults.push(format!("{file}: {room} must not use {other}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_list_of_rooms_is_understood() {
    let text = "use crate::{mux::{self, Lane}, handoff}; use crate::admin::x;";
    assert_eq!(rooms_used(text), BTreeSet::from(["admin", "handoff", "mux"]));
}

#[test]
fn the_table_of_rooms_is_that_of_the_architecture() {
    let architecture = read("ARCHITECTURE.md");
    for (room, allowed) in ROOMS {
        let row = architecture
            .lines()
            .find(|line| line.starts_with(&format!("| `{room}` |")))
            .unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for the room {room}"));
        let told = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
        for other in *allowed {
            let word = if *other == SYS { "`sys`" } else { other };
            assert!(
                told.contains(word),
                "ARCHITECTURE.md: {room} uses {word}, the row says {told}"
            );
        }
        for (other, _) in ROOMS {
            let wrong =
                told.split([',', ' ']).any(|word| word == *other) && !allowed.contains(other);
            assert!(!wrong, "ARCHITECTURE.md: {room} does not use {other}, the row says {told}");
        }
    }
}

#[test]
fn only_one_file_names_the_back_ends() {
    let mut faults = Vec::new();
    let back_ends = fs::read_dir(root().join("proxy/src/fabric")).unwrap().map(Result::unwrap);
    let back_ends: Vec<String> = back_ends
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!back_ends.is_empty());
    for (file, text) in sources("proxy/src/") {
        for back_end in &back_ends {
            let own = file.starts_with(&format!("proxy/src/fabric/{back_end}/"));
            if own || file == "proxy/src/fabric/select.rs" {
                continue;
            }
            let paths = [format!("fabric::{back_end}"), format!("super::{back_end}::")];
            let inside = file.starts_with("proxy/src/fabric/");
            let named = |line: &str| line.contains(&paths[0]) || inside && line.contains(&paths[1]);
            if text.lines().map(code).any(named) {
                faults.push(format!("{file} names the back end {back_end}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_is_in_one_crate() {
    let word = concat!("un", "safe");
    let mut faults = Vec::new();
    for (file, text) in sources("") {
        let crate_root = file.ends_with("src/lib.rs");
        if file.starts_with("proxy/sys/") {
            continue;
        }
        if crate_root && !text.contains(&format!("#![forbid({word}_code)]")) {
            faults.push(format!("{file} does not forbid {word} code"));
        }
        let block = |line: &str| {
            let mut words = code(line).split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            words.any(|found| found == word)
        };
        for (number, line) in text.lines().enumerate().filter(|(_, line)| block(line)) {
            // A word in a string is no code.
            if !line.contains('"') {
                faults.push(format!("{file}:{}: {line}", number + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_are_short() {
    let mut faults = Vec::new();
    for (file, text) in sources("") {
        let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        if lines > LINES_MAX && !is_test_file(&file) {
            faults.push(format!("{file}: {lines} lines, at most {LINES_MAX} without tests"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn make_targets_in_documents_exist() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    assert!(targets.contains("test"));
    let mut faults = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        let quoted = words_after(&text, "`make ");
        let shown = text.lines().filter_map(|line| line.trim_start().strip_prefix("make "));
        let shown = shown.filter_map(|rest| rest.split_whitespace().next());
        for target in quoted.chain(shown).filter(|target| !targets.contains(target)) {
            faults.push(format!("{document}: there is no `make {target}`"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn commands_in_documents_exist() {
    let table = read("proxy/src/cmd/mod.rs");
    let commands: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("mod ")?.strip_suffix(';'))
        .map(|module| module.replace('_', "-"))
        .collect();
    assert!(commands.contains("check-config"), "{commands:?}");
    let mut faults = Vec::new();
    for document in DOCUMENTS {
        for command in words_after(&read(document), "rdmesh-proxy ") {
            if command.is_empty() || commands.contains(command) {
                continue;
            }
            faults.push(format!("{document}: there is no `rdmesh-proxy {command}`"));
        }
    }
    let readme = read("README.md");
    for command in &commands {
        if !readme.contains(&format!("| `rdmesh-proxy {command}` |")) {
            faults.push(format!("README.md: `rdmesh-proxy {command}` is not in the table"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn metrics_in_documents_exist_and_all_are_told() {
    // As the sources of the rooms that count write them; the labs only read them.
    let writers = ["proxy/src/metrics/", "proxy/src/sidecar/metrics.rs", "injector/src/metrics.rs"];
    let mut metrics = BTreeSet::new();
    for (_, text) in writers.iter().flat_map(|under| sources(under)) {
        let names = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
        for line in names.map(code) {
            for name in words_after(line, "\"rdmesh_") {
                metrics.insert(format!("rdmesh_{name}"));
            }
            metrics.extend(words_after(line, "\"process_").map(|name| format!("process_{name}")));
        }
    }
    assert!(metrics.contains("rdmesh_streams_total"), "{metrics:?}");
    let mut faults = Vec::new();
    for document in DOCUMENTS {
        for name in words_after(&read(document), "rdmesh_") {
            let name = format!("rdmesh_{name}");
            if name != "rdmesh_" && !metrics.contains(&name) {
                faults.push(format!("{document}: there is no metric {name}"));
            }
        }
    }
    let readme = read("README.md");
    // The series of a histogram are told by its name.
    let series =
        |name: &&String| ["_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end));
    let told = metrics.iter().filter(|name| !series(name));
    for name in told.filter(|name| !readme.contains(&format!("`{name}`"))) {
        faults.push(format!("README.md: the metric {name} is not told"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn fuzz_targets_in_the_architecture_exist() {
    let architecture = read("ARCHITECTURE.md");
    let fuzz = read("fuzz/src/lib.rs");
    for target in words_after(&fuzz, "Target { name: \"").filter(|name| *name != "canary") {
        assert!(
            architecture.contains(&format!("| `{target}` |")),
            "ARCHITECTURE.md: the fuzz target {target} is not in the table of trust boundaries"
        );
    }
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let architecture = read("ARCHITECTURE.md");
    let mut faults = Vec::new();
    let manifests = files().into_iter().filter(|file| file.ends_with("Cargo.toml"));
    for manifest in manifests {
        let mut in_list = false;
        for line in read(&manifest).lines().map(str::trim) {
            if line.starts_with('[') {
                in_list = line.trim_matches(['[', ']']).ends_with("dependencies");
                continue;
            }
            let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
            let name = &line[..end.unwrap_or(0)];
            if in_list && !name.is_empty() && !architecture.contains(&format!("`{name}`")) {
                faults.push(format!("{manifest}: {name} is not in ARCHITECTURE.md"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut faults = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        for (at, open) in text.match_indices("](") {
            let rest = &text[at + open.len()..];
            let target = &rest[..rest.find(')').unwrap_or(0)];
            if !target.contains("://") && !root().join(target).exists() {
                faults.push(format!("{document}: {target} does not exist"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_paths_of_machines() {
    let mut faults = Vec::new();
    for file in files() {
        let bytes = fs::read(root().join(&file)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for path in MACHINE_PATHS.iter().filter(|path| text.contains(**path)) {
            faults.push(format!("{file} contains {path}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
