//! Reads a type of the schema from a tree and goes on after every fault: what is wrong is taken out
//! and reported, the rest is read again.
//!
//! What it does not do: judge values that have the right type; see `check_config` and
//! `check_directory`.

use crate::fault::{FAULTS_MAX, Fault};
use crate::tree::{Kind, Step, Tree, shorten, show_path};
use crate::tree_de::{TreeError, What};
use crate::words;
use serde::Deserialize;
use std::collections::HashSet;

/// Tells what a key takes; the schema's own knowledge of ranges.
pub(crate) type Allowed = fn(path: &str) -> Option<String>;

/// Reports keys that are there twice, and leaves the first of them.
pub(crate) fn duplicates(tree: &mut Tree, path: &mut Vec<Step>, faults: &mut Vec<Fault>) {
    if let Kind::Map(map) = &mut tree.kind {
        let mut seen = HashSet::new();
        for entry in map.iter_mut().filter(|entry| !seen.insert(entry.key.clone())) {
            if faults.len() <= FAULTS_MAX {
                path.push(Step::Key(entry.key.clone()));
                faults.push(Fault {
                    path: show_path(path),
                    line: Some(entry.line),
                    value: entry.value.kind.show(),
                    problem: "the key is there twice: keep only one".into(),
                });
                path.pop();
            }
            entry.value.removed = true;
        }
    }
    for (step, _, child) in tree.children_mut() {
        // Keys cannot hide below a plain value, and a large directory has many of those.
        if matches!(child.kind, Kind::List(_) | Kind::Map(_)) {
            path.push(step);
            duplicates(child, path, faults);
            path.pop();
        }
    }
}

/// `None` when so much is wrong that nothing is left. `base` is where `tree` hangs.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(
    tree: &mut Tree,
    base: &[Step],
    allowed: Allowed,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    while faults.len() <= FAULTS_MAX {
        let error = match T::deserialize(&*tree) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let mut path = error.path();
        let mut whole = base.to_vec();
        whole.extend(path.iter().cloned());
        match &error.what {
            What::UnknownKey { key, .. } => {
                path.push(Step::Key(key.clone()));
                whole.push(Step::Key(key.clone()));
            }
            What::MissingKey(key) if key_was_removed(tree, &path, key) => {
                remove(tree, &path)?;
                continue;
            }
            _ => {}
        }
        let (line, found) = tree.find_mut(&path)?;
        let value = found.kind.show();
        faults.push(Fault {
            path: show_path(&whole),
            line: (line > 0).then_some(line),
            problem: problem(&error, &whole, found, allowed),
            value,
        });
        remove(tree, &path)?;
    }
    None
}

fn remove(tree: &mut Tree, path: &[Step]) -> Option<()> {
    let (_, found) = tree.find_mut(path)?;
    found.removed = true;
    // The root cannot be left out.
    (!path.is_empty()).then_some(())
}

/// Then its own fault was reported already.
fn key_was_removed(tree: &mut Tree, path: &[Step], key: &str) -> bool {
    let Some((_, Tree { kind: Kind::Map(map), .. })) = tree.find_mut(path) else { return false };
    map.iter().any(|entry| entry.key == key && entry.value.removed)
}

fn problem(error: &TreeError, path: &[Step], found: &Tree, allowed: Allowed) -> String {
    match &error.what {
        What::UnknownKey { key, known } => match words::nearest(key, known) {
            Some(near) => format!("unknown key; did you mean `{near}`?"),
            None => format!("unknown key; known here are {}", known.join(", ")),
        },
        What::MissingKey(key) => format!("`{key}` is missing: add it"),
        What::NotOneOf(known) => {
            let near = match &found.kind {
                Kind::Text(text) => words::nearest(text, known),
                _ => None,
            };
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            format!("must be one of {}{hint}", known.join(", "))
        }
        What::Expected(expected) => must_be(path, found, allowed, expected),
        What::Other(message) => match words::form(last_key(path), in_list(path)) {
            Some(form) => format!("must be {form}"),
            None => shorten(message),
        },
    }
}

fn must_be(path: &[Step], found: &Tree, allowed: Allowed, expected: &str) -> String {
    let key = last_key(path);
    if matches!(found.kind, Kind::Null) && path.is_empty() {
        return "the file is empty or half-written".into();
    }
    if matches!(found.kind, Kind::Null) {
        return "has no value: give it one or leave the key out".into();
    }
    let wanted = allowed(&show_path(path))
        .or_else(|| words::form(key, in_list(path)))
        .unwrap_or_else(|| type_words(expected));
    let Kind::Text(text) = &found.kind else { return format!("must be {wanted}") };
    match words::unit(key).and_then(|unit| words::in_unit(text, unit)) {
        Some(number) => format!("must be {wanted}; write {number}"),
        None => format!("must be {wanted}"),
    }
}

fn type_words(expected: &str) -> String {
    match expected {
        "a string" | "path string" => "text; put it in quotes".into(),
        "a boolean" => "true or false".into(),
        "u16" | "u32" | "u64" => "a whole number, not negative".into(),
        "a sequence" => "a list".into(),
        _ if expected.starts_with("struct ") => "a section with keys of its own".into(),
        _ => shorten(expected),
    }
}

fn last_key(path: &[Step]) -> &str {
    let keys = path.iter().rev();
    let mut keys =
        keys.filter_map(|step| if let Step::Key(key) = step { Some(key.as_str()) } else { None });
    keys.next().unwrap_or_default()
}

fn in_list(path: &[Step]) -> bool {
    matches!(path.last(), Some(Step::Index(_)))
}
