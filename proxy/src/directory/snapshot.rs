//! One consistent state of the directory, as seen from one node. Immutable, but for the counters
//! that spread connections over endpoints.
//!
//! Independent of where it came from; it does no I/O. Lookups neither lock nor allocate.

use super::hash::{FastMap, addr_key};
use crate::metrics::PassthroughReason;
use rdmesh_config::{DirectoryFile, PodEntry, ServiceEntry};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A node's name: the SAN of its certificate, and what it is called in the directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

impl NodeName {
    #[must_use]
    pub fn as_arc(&self) -> &Arc<str> {
        &self.0
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl Deref for NodeName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    pub name: NodeName,
    /// Where its node proxy listens for peers.
    pub address: SocketAddr,
}

/// A meshed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub name: Arc<str>,
    /// Safe as the name of a directory.
    pub uid: Arc<str>,
    pub node: NodeName,
    pub addresses: Box<[IpAddr]>,
    /// Sorted.
    pub exclude_inbound_ports: Box<[u16]>,
}

impl Pod {
    #[must_use]
    pub fn has_address(&self, addr: IpAddr) -> bool {
        let key = addr_key(addr);
        self.addresses.iter().any(|&a| addr_key(a) == key)
    }

    #[must_use]
    pub fn excludes_port(&self, port: u16) -> bool {
        self.exclude_inbound_ports.binary_search(&port).is_ok()
    }
}

/// Where a captured connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To a pod of another node.
    Mesh { node: NodeName, dst: SocketAddr, pod: Arc<Pod> },
    /// To a pod of this node, perhaps the source itself.
    Local { dst: SocketAddr, pod: Arc<Pod> },
    /// The sidecar dials the original destination itself.
    Passthrough { reason: PassthroughReason },
    /// A policy forbids it.
    Deny,
}

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

#[derive(Debug)]
struct Target {
    address: SocketAddr,
    /// None: not a meshed pod.
    pod: Option<Arc<Pod>>,
}

/// The ready endpoints of one service port; shared by all of the service's addresses.
#[derive(Debug)]
struct Targets {
    ready: Box<[Target]>,
    turn: AtomicUsize,
}

impl Targets {
    fn next(&self) -> Option<&Target> {
        let len = self.ready.len();
        if len == 0 {
            return None;
        }
        self.ready.get(self.turn.fetch_add(1, Relaxed) % len)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Snapshot {
    me: NodeName,
    nodes: HashMap<Arc<str>, NodeInfo>,
    pods: FastMap<u128, Arc<Pod>>,
    services: FastMap<(u128, u16), Arc<Targets>>,
    local: Box<[Arc<Pod>]>,
    pods_total: usize,
}

impl Snapshot {
    /// `seed` is where the turns over endpoints begin: different on each node and reload, or all
    /// nodes would begin with the same endpoint.
    ///
    /// # Errors
    /// The first fault found; a directory with a fault is not used at all.
    pub fn build(file: &DirectoryFile, me: &str, seed: u64) -> Result<Self, SnapshotError> {
        Builder::new(file, me)?.pods(&file.pods)?.services(&file.services, seed)
    }

    /// Decides about a connection that `source` opened to `orig_dst`.
    #[must_use]
    pub fn resolve(&self, _source: &Pod, orig_dst: SocketAddr) -> Decision {
        let (ip, port) = (orig_dst.ip(), orig_dst.port());
        if let Some(pod) = self.pods.get(&addr_key(ip)) {
            return self.to_pod(pod, SocketAddr::new(ip.to_canonical(), port));
        }
        let Some(targets) = self.services.get(&(addr_key(ip), port)) else {
            return Decision::Passthrough { reason: PassthroughReason::OutsideMesh };
        };
        match targets.next() {
            None => Decision::Passthrough { reason: PassthroughReason::NoEndpoint },
            Some(Target { pod: None, .. }) => {
                Decision::Passthrough { reason: PassthroughReason::OutsideMesh }
            }
            Some(Target { address, pod: Some(pod) }) => self.to_pod(pod, *address),
        }
    }

    fn to_pod(&self, pod: &Arc<Pod>, dst: SocketAddr) -> Decision {
        if pod.excludes_port(dst.port()) {
            Decision::Passthrough { reason: PassthroughReason::ExcludedPort }
        } else if pod.node == self.me {
            Decision::Local { dst, pod: pod.clone() }
        } else {
            Decision::Mesh { node: pod.node.clone(), dst, pod: pod.clone() }
        }
    }

    /// Whether `addr` belongs to a pod of `node`: a peer may open streams from such alone.
    #[must_use]
    pub fn node_owns(&self, node: &str, addr: IpAddr) -> bool {
        self.pods.get(&addr_key(addr)).is_some_and(|pod| &*pod.node == node)
    }

    /// The pod of any node that has this address.
    #[must_use]
    pub fn pod(&self, addr: IpAddr) -> Option<&Arc<Pod>> {
        self.pods.get(&addr_key(addr))
    }

    #[must_use]
    pub fn local_pod(&self, addr: IpAddr) -> Option<&Arc<Pod>> {
        self.pod(addr).filter(|pod| pod.node == self.me)
    }

    /// The pods of this node, in the order of their uids.
    pub fn local_pods(&self) -> impl ExactSizeIterator<Item = &Arc<Pod>> {
        self.local.iter()
    }

    #[must_use]
    pub fn local_pod_by_uid(&self, uid: &str) -> Option<&Arc<Pod>> {
        let at = self.local.binary_search_by(|pod| (*pod.uid).cmp(uid)).ok()?;
        self.local.get(at)
    }

    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name)
    }

    /// All nodes, this one too, in no order.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeInfo> {
        self.nodes.values()
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> &NodeName {
        &self.me
    }

    /// Number of pods of all nodes.
    #[must_use]
    pub fn pods_total(&self) -> usize {
        self.pods_total
    }
}

/// Whether a uid can be the name of a directory, and nothing but a name.
#[must_use]
pub fn uid_is_safe(uid: &str) -> bool {
    (1..=128).contains(&uid.len())
        && !uid.starts_with('.')
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

struct Builder {
    snapshot: Snapshot,
}

impl Builder {
    fn new(file: &DirectoryFile, me: &str) -> Result<Self, SnapshotError> {
        let mut nodes = HashMap::with_capacity(file.nodes.len());
        for entry in &file.nodes {
            let name = NodeName::from(entry.name.as_str());
            let info = NodeInfo { name: name.clone(), address: entry.address };
            if nodes.insert(name.as_arc().clone(), info).is_some() {
                return Err(SnapshotError::NodeTwice(entry.name.clone()));
            }
        }
        let Some(own) = nodes.get(me) else {
            return Err(SnapshotError::SelfMissing(me.to_owned()));
        };
        let snapshot = Snapshot {
            me: own.name.clone(),
            nodes,
            pods: FastMap::default(),
            services: FastMap::default(),
            local: Box::default(),
            pods_total: file.pods.len(),
        };
        Ok(Self { snapshot })
    }

    fn pods(mut self, entries: &[PodEntry]) -> Result<Self, SnapshotError> {
        let snapshot = &mut self.snapshot;
        let mut uids = std::collections::HashSet::with_capacity(entries.len());
        let mut local = Vec::new();
        snapshot.pods.reserve(entries.len());
        for entry in entries {
            if !uid_is_safe(&entry.uid) {
                return Err(SnapshotError::BadUid {
                    pod: entry.name.clone(),
                    uid: entry.uid.clone(),
                });
            }
            if !uids.insert(entry.uid.as_str()) {
                return Err(SnapshotError::UidTwice(entry.uid.clone()));
            }
            let pod = Arc::new(pod(entry, &snapshot.nodes)?);
            for &address in &pod.addresses {
                if snapshot.pods.insert(addr_key(address), pod.clone()).is_some() {
                    return Err(SnapshotError::AddressTwice(address));
                }
            }
            if pod.node == snapshot.me {
                local.push(pod);
            }
        }
        local.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        snapshot.local = local.into();
        Ok(self)
    }

    fn services(mut self, entries: &[ServiceEntry], seed: u64) -> Result<Snapshot, SnapshotError> {
        let snapshot = &mut self.snapshot;
        // Each port begins elsewhere; the odd step is that of a Weyl sequence.
        let mut turn = seed as usize;
        for service in entries {
            for port in &service.ports {
                let ready = port.endpoints.iter().filter(|e| e.ready).map(|e| Target {
                    address: SocketAddr::new(e.address.ip().to_canonical(), e.address.port()),
                    pod: snapshot.pods.get(&addr_key(e.address.ip())).cloned(),
                });
                let ready = ready.collect();
                turn = turn.wrapping_add(0x9E37_79B9_7F4A_7C15_u64 as usize);
                let targets = Arc::new(Targets { ready, turn: AtomicUsize::new(turn >> 16) });
                for &address in &service.addresses {
                    let key = addr_key(address);
                    if snapshot.pods.contains_key(&key) {
                        return Err(SnapshotError::AddressTwice(address));
                    }
                    if snapshot.services.insert((key, port.port), targets.clone()).is_some() {
                        return Err(SnapshotError::PortTwice {
                            service: service.name.clone(),
                            port: port.port,
                        });
                    }
                }
            }
        }
        Ok(self.snapshot)
    }
}

/// Unit tests of the node proxy play pods on loopback, where they need no privilege.
fn is_playground(address: IpAddr) -> bool {
    cfg!(test) && matches!(address, IpAddr::V4(v4) if v4.octets()[..2] == [127, 86])
}

fn pod(entry: &PodEntry, nodes: &HashMap<Arc<str>, NodeInfo>) -> Result<Pod, SnapshotError> {
    let Some(node) = nodes.get(entry.node.as_str()) else {
        return Err(SnapshotError::UnknownNode {
            pod: entry.name.clone(),
            node: entry.node.clone(),
        });
    };
    // The node proxy would take any of these for a reason to speak for somebody else.
    let foul = entry.addresses.iter().find(|a| {
        let a = a.to_canonical();
        (a.is_loopback() && !is_playground(a)) || a.is_unspecified() || a.is_multicast()
    });
    if let Some(&address) = foul {
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
    })
}
