//! Whether a directory's entries make sense, and agree with each other.
//!
//! What it does not do: resolve anything; the proxy's directory does.

use crate::check_config::{DNS_NAME, UID_BYTES_MAX, is_dns_name};
use crate::check_policies;
use crate::fault::FAULTS_MAX;
use crate::load::{Finding, finding};
use crate::schema::{DirectoryFile, NodeEntry, PodEntry, ServiceEntry};
use crate::tree::{Step, shorten};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

const NAME_BYTES_MAX: usize = 320;
const POD_ADDRESSES_MAX: usize = 16;

/// `all_nodes`: no entry of `nodes` was left out for its faults, so a pod's node must be there.
pub(crate) fn check(file: &DirectoryFile, all_nodes: bool) -> Vec<Finding> {
    let mut check = Check { file, found: Vec::new() };
    check.nodes();
    let mut owners = HashMap::new();
    check.pods(all_nodes, &mut owners);
    check.services(&mut owners);
    check.found.extend(check_policies::check(&file.policies));
    check.found
}

struct Check<'a> {
    file: &'a DirectoryFile,
    found: Vec<Finding>,
}

/// Which entry has an address.
type Owners<'a> = HashMap<IpAddr, Owner<'a>>;

enum Owner<'a> {
    Pod(&'a str),
    Service(&'a str),
}

impl Owner<'_> {
    fn show(&self) -> String {
        match self {
            Self::Pod(name) => format!("pod {}", shorten(name)),
            Self::Service(name) => format!("service {}", shorten(name)),
        }
    }
}

macro_rules! path {
    ($($step:expr),+) => { vec![$(Step::from($step)),+] };
}

impl<'a> Check<'a> {
    /// A file of the wrong kind may have a fault in every line.
    fn report(&mut self, path: Vec<Step>, problem: impl Into<String>) {
        if self.found.len() <= FAULTS_MAX {
            self.found.push(finding(path, problem));
        }
    }

    fn nodes(&mut self) {
        let mut names = HashSet::new();
        let mut addresses = HashMap::new();
        for (at, NodeEntry { name, address }) in self.file.nodes.iter().enumerate() {
            if !is_dns_name(name) {
                self.report(path!["nodes", at, "name"], DNS_NAME);
            }
            if !names.insert(name) {
                self.report(
                    path!["nodes", at, "name"],
                    "is another node's name too: names must differ",
                );
            }
            self.socket_address(path!["nodes", at, "address"], *address);
            if let Some(other) = addresses.insert(*address, name) {
                let problem =
                    format!("is the address of node {} too: addresses must differ", shorten(other));
                self.report(path!["nodes", at, "address"], problem);
            }
        }
    }

    fn pods(&mut self, all_nodes: bool, owners: &mut Owners<'a>) {
        let nodes: HashSet<&str> = self.file.nodes.iter().map(|node| node.name.as_str()).collect();
        let mut uids = HashMap::new();
        for (at, pod) in self.file.pods.iter().enumerate() {
            let PodEntry { name, uid, node, addresses, exclude_inbound_ports, ports, .. } = pod;
            self.name(path!["pods", at, "name"], name);
            if !is_uid(uid) {
                let problem = format!(
                    "must be 1 to {UID_BYTES_MAX} letters, digits, `-`, `_` or `.`, not starting with a dot"
                );
                self.report(path!["pods", at, "uid"], problem);
            }
            if let Some(other) = uids.insert(uid, name) {
                let problem = format!("is the uid of pod {} too: uids must differ", shorten(other));
                self.report(path!["pods", at, "uid"], problem);
            }
            if all_nodes && !nodes.contains(node.as_str()) {
                self.report(
                    path!["pods", at, "node"],
                    "no such node: add it to `nodes`, or mend the name",
                );
            }
            if addresses.is_empty() || addresses.len() > POD_ADDRESSES_MAX {
                let problem = format!("must list 1..={POD_ADDRESSES_MAX} addresses");
                self.report(path!["pods", at, "addresses"], problem);
            }
            for (index, address) in addresses.iter().enumerate() {
                self.own(path!["pods", at, "addresses", index], *address, Owner::Pod(name), owners);
            }
            for (index, _) in
                exclude_inbound_ports.iter().enumerate().filter(|(_, port)| **port == 0)
            {
                self.report(path!["pods", at, "exclude_inbound_ports", index], "must be 1..=65535");
            }
            for (name, _) in ports.iter().filter(|(_, port)| **port == 0) {
                self.report(path!["pods", at, "ports", name.as_str()], "must be 1..=65535");
            }
        }
    }

    fn services(&mut self, owners: &mut Owners<'a>) {
        let mut names = HashSet::new();
        for (at, ServiceEntry { name, addresses, ports }) in self.file.services.iter().enumerate() {
            self.name(path!["services", at, "name"], name);
            if !names.insert(name) {
                self.report(
                    path!["services", at, "name"],
                    "is another service's name too: names must differ",
                );
            }
            if addresses.is_empty() {
                self.report(path!["services", at, "addresses"], "must list at least one address");
            }
            for (index, address) in addresses.iter().enumerate() {
                self.own(
                    path!["services", at, "addresses", index],
                    *address,
                    Owner::Service(name),
                    owners,
                );
            }
            if ports.is_empty() {
                self.report(path!["services", at, "ports"], "must list at least one port");
            }
        }
        for (at, service) in self.file.services.iter().enumerate() {
            self.ports(at, service, owners);
        }
    }

    fn ports(&mut self, at: usize, service: &ServiceEntry, owners: &Owners<'a>) {
        let mut seen = HashSet::new();
        for (index, port) in service.ports.iter().enumerate() {
            if port.port == 0 {
                self.report(path!["services", at, "ports", index, "port"], "must be 1..=65535");
            }
            if !seen.insert(port.port) {
                let problem = "is in this service twice: put all endpoints under one";
                self.report(path!["services", at, "ports", index, "port"], problem);
            }
            let mut targets = HashSet::new();
            for (number, endpoint) in port.endpoints.iter().enumerate() {
                let path = path!["services", at, "ports", index, "endpoints", number, "address"];
                if !targets.insert(endpoint.address) {
                    self.report(path.clone(), "is among the endpoints twice: keep only one");
                }
                if let Some(owner @ Owner::Service(_)) = owners.get(&endpoint.address.ip()) {
                    let problem = format!(
                        "is the address of {}: an endpoint must be a pod or a host",
                        owner.show()
                    );
                    self.report(path.clone(), problem);
                }
                self.socket_address(path, endpoint.address);
            }
        }
    }

    fn name(&mut self, path: Vec<Step>, name: &str) {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
            let problem =
                format!("must be 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.` or `/`");
            self.report(path, problem);
        }
    }

    fn own(&mut self, path: Vec<Step>, address: IpAddr, owner: Owner<'a>, owners: &mut Owners<'a>) {
        self.address(path.clone(), address);
        if let Some(other) = owners.get(&address) {
            let problem = format!("is the address of {} too: addresses must differ", other.show());
            self.report(path, problem);
        } else {
            owners.insert(address, owner);
        }
    }

    fn address(&mut self, path: Vec<Step>, address: IpAddr) {
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            self.report(path, "must be an address that other nodes can reach");
        } else if let (IpAddr::V6(_), IpAddr::V4(plain)) = (address, address.to_canonical()) {
            self.report(path, format!("is an IPv4 address in IPv6 form: write {plain}"));
        }
    }

    fn socket_address(&mut self, path: Vec<Step>, address: SocketAddr) {
        if address.port() == 0 {
            self.report(path, "the port must be 1..=65535");
        } else if address.ip().is_unspecified() || address.ip().is_multicast() {
            self.report(path, "must be an address that can be connected to");
        }
    }
}

/// A pod's uid names a directory.
fn is_uid(uid: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=UID_BYTES_MAX).contains(&uid.len()) && !uid.starts_with('.') && uid.bytes().all(is_plain)
}
