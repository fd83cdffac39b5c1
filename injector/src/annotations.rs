//! What a pod's annotations ask for: read, checked, and every fault told at once.
//!
//! What it does not do: put the values to use; `settings` does.

use ipnet::IpNet;
use rdmesh_config::Quantity;
use serde_json::{Map, Value};
use std::fmt;

pub const PREFIX: &str = "rdmesh.io/";
/// Set by the injector.
pub const STATUS: &str = "rdmesh.io/status";

/// Entries of one list: more would make the kernel's sets, not the pod's needs.
const ENTRIES_MAX: usize = 256;
/// How much of a wrong value is shown.
const SHOWN_CHARS_MAX: usize = 64;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const FABRICS: [&str; 3] = ["auto", "tcp", "verbs"];

/// What is said in place of the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub include_outbound_ports: Option<Vec<u16>>,
    pub exclude_outbound_ports: Option<Vec<u16>>,
    pub include_outbound_cidrs: Option<Vec<IpNet>>,
    pub exclude_outbound_cidrs: Option<Vec<IpNet>>,
    pub exclude_inbound_ports: Option<Vec<u16>>,
    pub proxy_cpu: Option<String>,
    pub proxy_memory: Option<String>,
    pub log_level: Option<String>,
}

/// One annotation that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub annotation: String,
    pub value: String,
    pub allowed: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "annotation {}: {:?} is not allowed; ", self.annotation, shorten(&self.value))?;
        write!(f, "allowed is {}", self.allowed)
    }
}

/// The value, short enough for a message, on one line.
#[must_use]
pub fn shorten(value: &str) -> String {
    let mut shown = value.chars();
    let mut text: String = shown.by_ref().take(SHOWN_CHARS_MAX).map(plain).collect();
    if shown.next().is_some() {
        text.push('…');
    }
    text
}

/// For logs: nothing in it can pass for a line of its own or move a terminal's cursor.
#[must_use]
pub fn printable(value: &str) -> String {
    value.chars().map(plain).collect()
}

fn plain(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}

type Reader = fn(&mut Overrides, &str) -> Result<(), String>;

/// The contract; README.md has the same list.
const KNOWN: &[(&str, Reader)] = &[
    ("rdmesh.io/include-outbound-ports", |to, text| {
        put(&mut to.include_outbound_ports, ports(text))
    }),
    ("rdmesh.io/exclude-outbound-ports", |to, text| {
        put(&mut to.exclude_outbound_ports, ports(text))
    }),
    ("rdmesh.io/include-outbound-cidrs", |to, text| {
        put(&mut to.include_outbound_cidrs, cidrs(text))
    }),
    ("rdmesh.io/exclude-outbound-cidrs", |to, text| {
        put(&mut to.exclude_outbound_cidrs, cidrs(text))
    }),
    ("rdmesh.io/exclude-inbound-ports", |to, text| put(&mut to.exclude_inbound_ports, ports(text))),
    // Only checked: the node proxies read it from the pod.
    ("rdmesh.io/fabric", |_, text| one_of(text, &FABRICS).map(|_| ())),
    ("rdmesh.io/proxy-cpu", |to, text| put(&mut to.proxy_cpu, quantity(text))),
    ("rdmesh.io/proxy-memory", |to, text| put(&mut to.proxy_memory, quantity(text))),
    ("rdmesh.io/log-level", |to, text| put(&mut to.log_level, one_of(text, &LEVELS))),
];

/// The names of all annotations that a pod may have.
pub fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(name, _)| *name)
}

/// Reads a pod's annotations. The second list names those that look like ours and are not.
///
/// # Errors
/// With all that cannot be used.
pub fn read(annotations: &Map<String, Value>) -> Result<(Overrides, Vec<String>), Vec<Fault>> {
    let mut overrides = Overrides::default();
    let (mut faults, mut unknown) = (Vec::new(), Vec::new());
    for (name, value) in annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        let known = KNOWN.iter().find(|(known, _)| known == name);
        let Some((_, reader)) = known else {
            if name != STATUS {
                unknown.push(shorten(name));
            }
            continue;
        };
        let read = value.as_str().ok_or_else(|| "a string".to_owned());
        if let Err(allowed) = read.and_then(|text| reader(&mut overrides, text)) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            faults.push(Fault { annotation: name.clone(), value, allowed });
        }
    }
    if faults.is_empty() { Ok((overrides, unknown)) } else { Err(faults) }
}

fn put<T>(slot: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *slot = Some(value?);
    Ok(())
}

/// An empty value is an empty list.
fn list<T>(text: &str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let wrong = || format!("{allowed}, at most {ENTRIES_MAX}");
    let entries: Option<Vec<T>> =
        text.split(',').take(ENTRIES_MAX + 1).map(|entry| read(entry.trim())).collect();
    entries.filter(|entries| entries.len() <= ENTRIES_MAX).ok_or_else(wrong)
}

fn ports(text: &str) -> Result<Vec<u16>, String> {
    list(text, "ports of 1 to 65535, separated by commas, such as 80,443", |entry| {
        let plain = entry.bytes().all(|byte| byte.is_ascii_digit());
        entry.parse().ok().filter(|port| plain && *port > 0)
    })
}

fn cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    let allowed = "networks without bits beyond their prefix, separated by commas, such as 10.42.0.0/16,fd00::/64";
    list(text, allowed, |entry| entry.parse::<IpNet>().ok().filter(|net| *net == net.trunc()))
}

fn quantity(text: &str) -> Result<String, String> {
    match Quantity::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(Quantity::FORM.to_owned()),
    }
}

fn one_of(text: &str, allowed: &[&str]) -> Result<String, String> {
    if allowed.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("one of {}", allowed.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_one(name: &str, value: impl Into<Value>) -> Result<Overrides, Vec<Fault>> {
        let mut map = Map::new();
        map.insert(format!("{PREFIX}{name}"), value.into());
        read(&map).map(|(overrides, _)| overrides)
    }

    #[test]
    fn good_values() {
        assert_eq!(
            read_one("exclude-outbound-ports", " 80, 443").unwrap().exclude_outbound_ports,
            Some(vec![80, 443])
        );
        assert_eq!(
            read_one("include-outbound-cidrs", "10.0.0.0/8,fd00::/8")
                .unwrap()
                .include_outbound_cidrs
                .map(|nets| nets.len()),
            Some(2)
        );
        let empty = read_one("include-outbound-ports", "").unwrap();
        assert_eq!(empty.include_outbound_ports, Some(Vec::new()));
        assert_eq!(read_one("proxy-memory", "64Mi").unwrap().proxy_memory.unwrap(), "64Mi");
        for level in LEVELS {
            assert_eq!(read_one("log-level", level).unwrap().log_level.unwrap(), level);
        }
        for fabric in FABRICS {
            read_one("fabric", fabric).unwrap();
        }
    }

    #[test]
    fn a_fault_names_annotation_value_and_what_is_allowed() {
        let many = vec!["80"; ENTRIES_MAX + 1].join(",");
        let wrong = [
            ("exclude-outbound-ports", "80,http"),
            ("exclude-outbound-ports", "0"),
            ("exclude-outbound-ports", "65536"),
            ("exclude-outbound-ports", "+80"),
            ("exclude-outbound-ports", "80,"),
            ("include-outbound-ports", many.as_str()),
            ("exclude-inbound-ports", "8000-9000"),
            ("include-outbound-cidrs", "10.0.0.1/8"),
            ("exclude-outbound-cidrs", "10.0.0.1"),
            ("fabric", "infiniband"),
            ("proxy-cpu", "lots"),
            ("proxy-memory", "0"),
            ("log-level", "INFO!"),
        ];
        for (name, value) in wrong {
            let faults = read_one(name, value).unwrap_err();
            let text = faults[0].to_string();
            let shown = shorten(value);
            assert!(text.contains(&format!("annotation rdmesh.io/{name}: {shown:?}")), "{text}");
            assert!(text.contains("; allowed is "), "{text}");
            assert!(text.len() < 400, "{text}");
        }
        assert_eq!(read_one("proxy-cpu", json!(1)).unwrap_err()[0].allowed, "a string");
    }

    #[test]
    fn what_is_shown_is_one_short_line() {
        assert_eq!(shorten("a\nb\u{1b}[2J"), "a\u{fffd}b\u{fffd}[2J");
        let exact = "ä".repeat(SHOWN_CHARS_MAX);
        assert_eq!(shorten(&exact), exact);
        assert_eq!(shorten(&format!("{exact}x")), format!("{exact}…"));
        assert_eq!(printable("x\r\ny"), "x\u{fffd}\u{fffd}y");
    }

    #[test]
    fn all_faults_and_all_unknown_names() {
        let map = json!({
            "rdmesh.io/fabric": "x", "rdmesh.io/log-level": "y", "other.io/fabric": "z", "rdmesh.io/status": "{",
        });
        assert_eq!(read(map.as_object().unwrap()).unwrap_err().len(), 2);
        let map = json!({ "rdmesh.io/exclude-outbound-port": "80" });
        let (overrides, unknown) = read(map.as_object().unwrap()).unwrap();
        assert_eq!((overrides, unknown.len()), (Overrides::default(), 1));
    }
}
