//! From a file to checked values: sizes, syntax, structure, then the values themselves.
//!
//! What it does not do: watch files. A writer puts a new file in place by renaming it, so that no
//! reader ever sees half of it; what is cut off in the middle of a line mostly is a fault, what is cut
//! off between two lines cannot be told from a shorter file.

use crate::check_config::{self, allowed};
use crate::check_directory;
use crate::collect;
use crate::fault::{Fault, Faults};
use crate::schema::{Config, DirectoryFile, NodeEntry, PodEntry, PolicyEntry, ServiceEntry};
use crate::tree::{Kind, Step, Tree, show_path};
use crate::yaml;
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

/// Largest configuration file that is read.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Largest directory file that is read: room for about 250,000 pods.
pub const DIRECTORY_BYTES_MAX: usize = 32 << 20;
/// Most values in a file. The YAML library needs hundreds of bytes for each, however short it is.
const VALUES_MAX: usize = 4_000_000;

/// A value of the right type with a path where it is wrong.
pub(crate) struct Finding {
    pub path: Vec<Step>,
    pub problem: String,
}

pub(crate) fn finding(path: Vec<Step>, problem: impl Into<String>) -> Finding {
    Finding { path, problem: problem.into() }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, Faults> {
        Self::from_yaml(&read_file(path, CONFIG_BYTES_MAX)?, &path.display().to_string())
    }

    /// `origin` is what the faults call the text: the file's name.
    pub fn from_yaml(text: &str, origin: &str) -> Result<Self, Faults> {
        let mut tree = parse(text, origin, CONFIG_BYTES_MAX)?;
        if matches!(tree.kind, Kind::Null) {
            // Comments alone mean the defaults; nothing at all is a file that was not written to its end.
            if text.trim().is_empty() {
                return Err(Faults::whole(origin, None, EMPTY));
            }
            tree.kind = Kind::Map(Vec::new());
        }
        let mut faults = Vec::new();
        collect::duplicates(&mut tree, &mut Vec::new(), &mut faults);
        let config = collect::read::<Self>(&mut tree, &[], allowed, &mut faults);
        let findings = config.as_ref().map(check_config::check).unwrap_or_default();
        locate(&mut tree, findings, &mut faults);
        finish(config, faults, origin)
    }

    /// The effective configuration, every key of it.
    pub fn to_yaml(&self) -> String {
        yaml::write(self)
    }

    /// What the `node` process needs and has no default for. The other processes do without.
    pub fn check_node(&self, origin: &str) -> Result<(), Faults> {
        let faults: Vec<Fault> = check_config::check_node(self)
            .into_iter()
            .map(|finding| Fault {
                path: show_path(&finding.path),
                line: None,
                value: None,
                problem: finding.problem,
            })
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(Faults::new(origin, faults)) }
    }
}

impl DirectoryFile {
    pub fn load(path: &Path) -> Result<Self, Faults> {
        Self::from_yaml(&read_file(path, DIRECTORY_BYTES_MAX)?, &path.display().to_string())
    }

    /// `origin` is what the faults call the text: the file's name.
    pub fn from_yaml(text: &str, origin: &str) -> Result<Self, Faults> {
        if text.len() > DIRECTORY_BYTES_MAX {
            return Err(too_large(origin, DIRECTORY_BYTES_MAX));
        }
        // The tree, which knows lines, costs several times the memory and time of the plain types. A file
        // without a `*` has no aliases, so its size bounds what it can become.
        if !text.contains('*')
            && too_costly(text).is_none()
            && let Ok(file) = yaml::read(text, PhantomData::<Self>)
            && check_directory::check(&file, true).is_empty()
            && file != Self::default()
        {
            return Ok(file);
        }
        let mut tree = parse(text, origin, DIRECTORY_BYTES_MAX)?;
        let mut faults = Vec::new();
        collect::duplicates(&mut tree, &mut Vec::new(), &mut faults);
        elements::<NodeEntry>(&mut tree, "nodes", &mut faults);
        let all_nodes = faults.is_empty();
        elements::<PodEntry>(&mut tree, "pods", &mut faults);
        elements::<ServiceEntry>(&mut tree, "services", &mut faults);
        elements::<PolicyEntry>(&mut tree, "policies", &mut faults);
        let file = collect::read::<Self>(&mut tree, &[], |_| None, &mut faults);
        let findings =
            file.as_ref().map(|file| check_directory::check(file, all_nodes)).unwrap_or_default();
        locate(&mut tree, findings, &mut faults);
        finish(file, faults, origin)
    }

    pub fn to_yaml(&self) -> String {
        yaml::write(self)
    }
}

/// The YAML scanner's time for each word grows with the brackets that are open.
const BRACKETS_MAX: usize = 32;

const EMPTY: &str = "the file is empty: was it written to its end?";

/// Reads each element of a long list by itself, so that a fault does not make all others be read again.
fn elements<T: for<'de> Deserialize<'de>>(tree: &mut Tree, key: &str, faults: &mut Vec<Fault>) {
    let Some((_, Tree { kind: Kind::List(list), .. })) = tree.find_mut(&[key.into()]) else {
        return;
    };
    for (index, element) in list.iter_mut().enumerate().filter(|(_, element)| !element.removed) {
        collect::read::<T>(element, &[key.into(), index.into()], |_| None, faults);
    }
}

/// Gives findings their line and value, and drops those that only follow from faults in `faults`.
fn locate(tree: &mut Tree, findings: Vec<Finding>, faults: &mut Vec<Fault>) {
    let removed: Vec<String> =
        faults.iter().map(|fault| fault.path.clone()).filter(|path| path.contains('.')).collect();
    for Finding { path, problem } in findings {
        // Combinations name the other key by its path; its value was left out, so the default was judged.
        if removed.iter().any(|path| problem.contains(path.as_str())) {
            continue;
        }
        let path = tree.original_path(&path);
        let mut found = tree.find_mut(&path);
        if found
            .as_mut()
            .is_some_and(|(_, tree)| tree.children_mut().any(|(_, _, child)| child.removed))
        {
            continue;
        }
        let line = found.as_ref().map(|(line, _)| *line).filter(|line| *line > 0);
        let value = found.and_then(|(_, tree)| tree.kind.show());
        faults.push(Fault { path: show_path(&path), line, value, problem });
    }
}

fn finish<T>(value: Option<T>, faults: Vec<Fault>, origin: &str) -> Result<T, Faults> {
    match value {
        Some(value) if faults.is_empty() => Ok(value),
        _ => Err(Faults::new(origin, faults)),
    }
}

fn parse(text: &str, origin: &str, bytes_max: usize) -> Result<Tree, Faults> {
    if text.len() > bytes_max {
        return Err(too_large(origin, bytes_max));
    }
    if let Some((line, problem)) = too_costly(text) {
        return Err(Faults::whole(origin, Some(line), problem));
    }
    Tree::parse(text).map_err(|syntax| {
        let problem = format!("not valid YAML, or cut off: {}", syntax.message);
        Faults::whole(origin, syntax.line, problem)
    })
}

/// Refuses what would cost the YAML library too much time or memory, before it sees the text.
///
/// Quotes and comments are not told apart: a rule that a hostile text cannot get around matters more than a
/// text with hundreds of stray brackets.
pub(crate) fn too_costly(text: &str) -> Option<(usize, String)> {
    let (mut open, mut values, mut line) = (0_usize, 0_usize, 1);
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            b'\n' => line += 1,
            _ => {}
        }
        let next_is_space = bytes.get(at + 1).is_none_or(u8::is_ascii_whitespace);
        values += usize::from(match byte {
            b'[' | b'{' | b',' | b'\n' => true,
            b'-' | b':' | b'?' => next_is_space,
            _ => false,
        });
        if open > BRACKETS_MAX {
            let problem = format!(
                "more than {BRACKETS_MAX} open brackets: lists or maps are nested too deeply"
            );
            return Some((line, problem));
        }
        if values > VALUES_MAX {
            return Some((line, format!("more than {VALUES_MAX} values: is this the right file?")));
        }
    }
    None
}

pub(crate) fn too_large(origin: &str, bytes_max: usize) -> Faults {
    Faults::whole(origin, None, format!("larger than {bytes_max} bytes: is this the right file?"))
}

fn read_file(path: &Path, bytes_max: usize) -> Result<String, Faults> {
    let origin = path.display().to_string();
    let cannot = |error| {
        let problem = format!("cannot be read: {error}; check the path and who may read it");
        Faults::whole(&origin, None, problem)
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path).map_err(cannot)?.take(limit).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() > bytes_max {
        return Err(too_large(&origin, bytes_max));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        Faults::whole(&origin, Some(line), "not UTF-8 text: is this the right file?")
    })
}
