//! Snapshots from the static directory file: a file with a contradiction is refused as a whole.
//!
//! What it does not do: read the file (`source` does), or watch it.

use super::policy::{Labels, Peer, Policy, PortMatch, Requirement, Rule, Selector, Subject};
use super::snapshot::{Assembly, NodeInfo, NodeName, Pod, Snapshot, Taken, uid_is_safe};
use rdmesh_config::{
    DirectoryFile, LabelExpression, LabelOperator, PodEntry, PolicyEntry, PolicyPeer, PolicyPort,
    PolicyRule, Selector as SelectorEntry, ServiceEntry,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error(
        "this node, {0:?}, is not in the directory's nodes; add it there, or correct node.name"
    )]
    SelfMissing(String),
    #[error("node {0:?} is there twice")]
    NodeTwice(String),
    #[error("pod {pod:?} is on node {node:?}, which the directory does not have")]
    UnknownNode { pod: String, node: String },
    #[error(
        "pod {pod:?} has the uid {uid:?}; a uid is 1 to 128 letters, digits, '-', '_' or '.', \
         and does not start with '.'"
    )]
    BadUid { pod: String, uid: String },
    #[error("uid {0:?} belongs to two pods")]
    UidTwice(String),
    #[error("address {0} belongs to two pods or services")]
    AddressTwice(IpAddr),
    #[error("pod {pod:?} has the address {address}, which is no address of a pod")]
    BadAddress { pod: String, address: IpAddr },
    #[error("service {service:?} has port {port} twice")]
    PortTwice { service: String, port: u16 },
}

impl Snapshot {
    /// `seed`: see [`Assembly::new`].
    ///
    /// # Errors
    /// The first fault found; a directory with a fault is not used at all.
    pub fn build(file: &DirectoryFile, me: &str, seed: u64) -> Result<Self, SnapshotError> {
        let nodes = nodes(file)?;
        let Some(own) = nodes.get(me) else {
            return Err(SnapshotError::SelfMissing(me.to_owned()));
        };
        let pods = pods(file, &nodes)?;
        let mut assembly = Assembly::new(own.name.clone(), nodes, pods.len(), seed);
        for pod in pods {
            assembly.pod(pod).map_err(SnapshotError::AddressTwice)?;
        }
        for service in &file.services {
            add_service(&mut assembly, service)?;
        }
        let policies = file.policies.iter().map(|entry| Arc::new(policy(entry)));
        Ok(assembly.finish(policies, namespaces(file)))
    }
}

fn nodes(file: &DirectoryFile) -> Result<HashMap<Arc<str>, NodeInfo>, SnapshotError> {
    let mut nodes = HashMap::with_capacity(file.nodes.len());
    for entry in &file.nodes {
        let name = NodeName::from(entry.name.as_str());
        let info = NodeInfo { name: name.clone(), address: entry.address };
        if nodes.insert(name.as_arc().clone(), info).is_some() {
            return Err(SnapshotError::NodeTwice(entry.name.clone()));
        }
    }
    Ok(nodes)
}

fn pods(
    file: &DirectoryFile,
    nodes: &HashMap<Arc<str>, NodeInfo>,
) -> Result<Vec<Arc<Pod>>, SnapshotError> {
    let mut uids = HashSet::with_capacity(file.pods.len());
    let mut pods = Vec::with_capacity(file.pods.len());
    // Most pods have nothing that policies could tell them by.
    let mut subjects: HashMap<Subject, Arc<Subject>> = HashMap::new();
    for entry in &file.pods {
        if !uid_is_safe(&entry.uid) {
            return Err(SnapshotError::BadUid { pod: entry.name.clone(), uid: entry.uid.clone() });
        }
        if !uids.insert(entry.uid.as_str()) {
            return Err(SnapshotError::UidTwice(entry.uid.clone()));
        }
        let subject = subject(entry);
        let subject = match subjects.get(&subject) {
            Some(known) => known.clone(),
            None => subjects.entry(subject.clone()).or_insert(Arc::new(subject)).clone(),
        };
        pods.push(Arc::new(pod(entry, subject, nodes)?));
    }
    Ok(pods)
}

fn add_service(assembly: &mut Assembly, service: &ServiceEntry) -> Result<(), SnapshotError> {
    for port in &service.ports {
        let ready = port.endpoints.iter().filter(|e| e.ready).map(|e| e.address);
        let targets = assembly.targets(ready, false);
        for &address in &service.addresses {
            let taken = assembly.service(SocketAddr::new(address, port.port), &targets);
            taken.map_err(|taken| match taken {
                Taken::ByPod => SnapshotError::AddressTwice(address),
                Taken::ByService => {
                    SnapshotError::PortTwice { service: service.name.clone(), port: port.port }
                }
            })?;
        }
    }
    Ok(())
}

/// Unit tests of the node proxy play pods on loopback, where they need no privilege.
fn is_playground(address: IpAddr) -> bool {
    cfg!(test) && matches!(address, IpAddr::V4(v4) if v4.octets()[..2] == [127, 86])
}

/// Whether the node proxy would take the address for a reason to speak for somebody else.
pub(super) fn is_foul(address: IpAddr) -> bool {
    let a = address.to_canonical();
    (a.is_loopback() && !is_playground(a)) || a.is_unspecified() || a.is_multicast()
}

fn pod(
    entry: &PodEntry,
    subject: Arc<Subject>,
    nodes: &HashMap<Arc<str>, NodeInfo>,
) -> Result<Pod, SnapshotError> {
    let Some(node) = nodes.get(entry.node.as_str()) else {
        return Err(SnapshotError::UnknownNode {
            pod: entry.name.clone(),
            node: entry.node.clone(),
        });
    };
    if let Some(&address) = entry.addresses.iter().find(|a| is_foul(**a)) {
        return Err(SnapshotError::BadAddress { pod: entry.name.clone(), address });
    }
    let mut ports = entry.exclude_inbound_ports.clone();
    ports.sort_unstable();
    ports.dedup();
    Ok(Pod {
        name: entry.name.as_str().into(),
        uid: entry.uid.as_str().into(),
        node: node.name.clone(),
        addresses: entry.addresses.iter().map(IpAddr::to_canonical).collect(),
        exclude_inbound_ports: ports.into(),
        fabric: entry.fabric,
        subject,
    })
}

fn subject(entry: &PodEntry) -> Subject {
    Subject {
        namespace: entry.namespace.as_str().into(),
        labels: labels(&entry.labels),
        ports: entry.ports.iter().map(|(name, port)| (name.as_str().into(), *port)).collect(),
    }
}

fn labels(labels: &BTreeMap<String, String>) -> Labels {
    Labels::new(labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect())
}

/// Those with labels, and those that only pods are in.
fn namespaces(file: &DirectoryFile) -> HashMap<Arc<str>, Labels> {
    let none = BTreeMap::new();
    let others = file.pods.iter().map(|pod| (&pod.namespace, &none));
    let mut all: HashMap<Arc<str>, Labels> = HashMap::new();
    for (name, given) in file.namespaces.iter().chain(others) {
        all.entry(name.as_str().into()).or_insert_with(|| {
            let mut given = given.clone();
            given.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
            labels(&given)
        });
    }
    all
}

fn policy(entry: &PolicyEntry) -> Policy {
    let rules = |rules: &Option<Vec<PolicyRule>>| {
        rules.as_ref().map(|rules| rules.iter().map(rule).collect())
    };
    Policy {
        name: entry.name.as_str().into(),
        namespace: entry.namespace.as_str().into(),
        pods: selector(&entry.pods),
        ingress: rules(&entry.ingress),
        egress: rules(&entry.egress),
    }
}

fn rule(entry: &PolicyRule) -> Rule {
    Rule {
        peers: entry.peers.as_ref().map(|peers| peers.iter().map(peer).collect()),
        ports: entry.ports.as_ref().map(|ports| ports.iter().map(port).collect()),
    }
}

fn peer(entry: &PolicyPeer) -> Peer {
    match (entry.cidr, &entry.namespaces, &entry.pods) {
        (Some(cidr), None, None) => Peer::Block { cidr, except: entry.except.as_slice().into() },
        (None, None, None) | (Some(_), _, _) => Peer::Unknown,
        (None, namespaces, pods) => Peer::Pods {
            namespaces: namespaces.as_ref().map(selector),
            pods: pods.as_ref().map(selector).unwrap_or_default(),
        },
    }
}

fn port(entry: &PolicyPort) -> PortMatch {
    match (entry.port, entry.end_port, &entry.name) {
        (Some(first), last, None) => PortMatch::Range(first, last.unwrap_or(first)),
        (None, None, Some(name)) => PortMatch::Named(name.as_str().into()),
        _ => PortMatch::Unknown,
    }
}

fn selector(entry: &SelectorEntry) -> Selector {
    let labels = entry
        .match_labels
        .iter()
        .map(|(key, value)| Requirement::Equals(key.as_str().into(), value.as_str().into()));
    Selector(labels.chain(entry.match_expressions.iter().map(requirement)).collect())
}

fn requirement(entry: &LabelExpression) -> Requirement {
    let key = entry.key.as_str().into();
    let values = || entry.values.iter().map(|value| value.as_str().into()).collect();
    match entry.operator {
        LabelOperator::In => Requirement::In(key, values()),
        LabelOperator::NotIn => Requirement::NotIn(key, values()),
        LabelOperator::Exists => Requirement::Exists(key),
        LabelOperator::DoesNotExist => Requirement::Absent(key),
    }
}
