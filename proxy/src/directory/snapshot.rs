//! One consistent state of the directory, as seen from one node. Immutable, but for the counters
//! that spread connections over endpoints.
//!
//! Independent of where it came from; it does no I/O. Lookups neither lock nor allocate.

use super::hash::{AddrHasher, FastMap, addr_key};
use super::policy::{End, Labels, Policy, PolicyTable, Subject, Verdict};
use crate::metrics::PassthroughReason;
use rdmesh_config::Fabric;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hasher;
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

impl From<Arc<str>> for NodeName {
    fn from(name: Arc<str>) -> Self {
        Self(name)
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
    /// What may carry its connections to other nodes.
    pub fabric: Fabric,
    /// What policies see of it.
    pub subject: Arc<Subject>,
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
    /// To a pod of another node, over what suits both pods.
    Mesh { node: NodeName, dst: SocketAddr, pod: Arc<Pod>, fabric: Fabric },
    /// To a pod of this node, perhaps the source itself.
    Local { dst: SocketAddr, pod: Arc<Pod> },
    /// The sidecar dials the original destination itself.
    Passthrough { reason: PassthroughReason },
    /// A policy forbids it.
    Deny,
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
    /// A client keeps its endpoint.
    sticky: bool,
}

impl Targets {
    fn next(&self, client: Option<IpAddr>) -> Option<&Target> {
        let len = self.ready.len();
        if len == 0 {
            return None;
        }
        match client {
            // The endpoint with the highest number for this client: the same on every node and
            // after every change, as long as the endpoint is there, with nothing to remember.
            Some(client) if self.sticky => {
                self.ready.iter().max_by_key(|target| affinity(client, target.address))
            }
            _ => self.ready.get(self.turn.fetch_add(1, Relaxed) % len),
        }
    }
}

fn affinity(client: IpAddr, endpoint: SocketAddr) -> u64 {
    let mut hasher = AddrHasher::default();
    hasher.write_u128(addr_key(client));
    hasher.write_u128(addr_key(endpoint.ip()));
    hasher.write_u16(endpoint.port());
    hasher.finish()
}

/// See the module.
#[derive(Debug)]
pub struct Snapshot {
    me: NodeName,
    nodes: HashMap<Arc<str>, NodeInfo>,
    pods: FastMap<u128, Arc<Pod>>,
    services: FastMap<(u128, u16), Arc<Targets>>,
    local: Box<[Arc<Pod>]>,
    /// Uids of pods of this node that are not in use (yet), sorted.
    waiting: Box<[Arc<str>]>,
    pods_total: usize,
    policies: PolicyTable,
}

impl Snapshot {
    /// Decides about a connection that `source`, a pod of this node, opened to `orig_dst`.
    #[must_use]
    pub fn resolve(&self, source: &Pod, orig_dst: SocketAddr) -> Decision {
        let (ip, port) = (orig_dst.ip(), orig_dst.port());
        if let Some(pod) = self.pods.get(&addr_key(ip)) {
            return self.to_pod(source, pod, SocketAddr::new(ip.to_canonical(), port));
        }
        let Some(targets) = self.services.get(&(addr_key(ip), port)) else {
            return Decision::Passthrough { reason: PassthroughReason::OutsideMesh };
        };
        match targets.next(source.addresses.first().copied()) {
            None => Decision::Passthrough { reason: PassthroughReason::NoEndpoint },
            Some(Target { pod: None, .. }) => {
                Decision::Passthrough { reason: PassthroughReason::OutsideMesh }
            }
            Some(Target { address, pod: Some(pod) }) => self.to_pod(source, pod, *address),
        }
    }

    fn to_pod(&self, source: &Pod, pod: &Arc<Pod>, dst: SocketAddr) -> Decision {
        // What passes through meets the CNI, which has policies of its own.
        if pod.excludes_port(dst.port()) {
            return Decision::Passthrough { reason: PassthroughReason::ExcludedPort };
        }
        match self.egress(source, pod, dst) {
            Verdict::Allow => {}
            Verdict::Deny => return Decision::Deny,
            Verdict::Unknown => {
                return Decision::Passthrough { reason: PassthroughReason::PolicyUnknown };
            }
        }
        if pod.node == self.me {
            return Decision::Local { dst, pod: pod.clone() };
        }
        match source.fabric.meet(pod.fabric) {
            Some(fabric) => {
                Decision::Mesh { node: pod.node.clone(), dst, pod: pod.clone(), fabric }
            }
            None => Decision::Passthrough { reason: PassthroughReason::Fabric },
        }
    }

    fn egress(&self, source: &Pod, pod: &Pod, dst: SocketAddr) -> Verdict {
        // No policy comes between a pod and itself.
        if source.uid == pod.uid {
            return Verdict::Allow;
        }
        let end = End { subject: Some(&pod.subject), address: dst.ip() };
        self.policies.egress(&source.uid, end, dst.port())
    }

    /// Whether the policies of `pod`, one of this node, let a connection from `src` in.
    #[must_use]
    pub fn ingress(&self, pod: &Pod, src: IpAddr, port: u16) -> Verdict {
        let source = self.pod(src);
        if source.is_some_and(|source| source.uid == pod.uid) {
            return Verdict::Allow;
        }
        let end = End { subject: source.map(|source| &*source.subject), address: src };
        self.policies.ingress(&pod.uid, &pod.subject, end, port)
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

    /// Whether the pod is of this node and may need its directory, in use or not.
    #[must_use]
    pub fn keeps_directory(&self, uid: &str) -> bool {
        self.local_pod_by_uid(uid).is_some()
            || self.waiting.binary_search_by(|known| (**known).cmp(uid)).is_ok()
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

/// Puts a snapshot together; the sources differ in what they do about contradictions.
pub(super) struct Assembly {
    snapshot: Snapshot,
    local: Vec<Arc<Pod>>,
    turn: usize,
}

impl Assembly {
    /// `seed` is where the turns over endpoints begin: different on each node and reload, or all
    /// nodes would begin with the same endpoint.
    pub fn new(me: NodeName, nodes: HashMap<Arc<str>, NodeInfo>, pods: usize, seed: u64) -> Self {
        let mut by_address = FastMap::default();
        by_address.reserve(pods);
        let snapshot = Snapshot {
            me,
            nodes,
            pods: by_address,
            services: FastMap::default(),
            local: Box::default(),
            waiting: Box::default(),
            pods_total: 0,
            policies: PolicyTable::default(),
        };
        Self { snapshot, local: Vec::new(), turn: seed as usize }
    }

    /// # Errors
    /// With the address that another pod has; the pod is not taken.
    pub fn pod(&mut self, pod: Arc<Pod>) -> Result<(), IpAddr> {
        let pods = &mut self.snapshot.pods;
        let taken = |address: &&IpAddr| pods.contains_key(&addr_key(**address));
        if let Some(address) = pod.addresses.iter().find(taken) {
            return Err(*address);
        }
        for &address in &pod.addresses {
            pods.insert(addr_key(address), pod.clone());
        }
        self.snapshot.pods_total += 1;
        if pod.node == self.snapshot.me {
            self.local.push(pod);
        }
        Ok(())
    }

    /// The ready endpoints of a service port, all pods being known. One address at least.
    pub fn targets(&mut self, endpoints: impl Iterator<Item = SocketAddr>, sticky: bool) -> Shared {
        let pods = &self.snapshot.pods;
        let ready = endpoints.map(|endpoint| Target {
            address: SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port()),
            pod: pods.get(&addr_key(endpoint.ip())).cloned(),
        });
        let ready = ready.collect();
        // Each port begins elsewhere; the odd step is that of a Weyl sequence.
        self.turn = self.turn.wrapping_add(0x9E37_79B9_7F4A_7C15_u64 as usize);
        Shared(Arc::new(Targets { ready, turn: AtomicUsize::new(self.turn >> 16), sticky }))
    }

    /// # Errors
    /// When a pod or another service has it.
    pub fn service(&mut self, at: SocketAddr, targets: &Shared) -> Result<(), Taken> {
        let key = addr_key(at.ip());
        if self.snapshot.pods.contains_key(&key) {
            return Err(Taken::ByPod);
        }
        match self.snapshot.services.entry((key, at.port())) {
            std::collections::hash_map::Entry::Occupied(_) => Err(Taken::ByService),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(targets.0.clone());
                Ok(())
            }
        }
    }

    /// Pods of this node that are known but not in use: their directories stay.
    pub fn waiting(&mut self, mut uids: Vec<Arc<str>>) {
        uids.sort_unstable();
        self.snapshot.waiting = uids.into();
    }

    pub fn finish(
        mut self,
        policies: impl IntoIterator<Item = Arc<Policy>>,
        namespaces: HashMap<Arc<str>, Labels>,
    ) -> Snapshot {
        self.local.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        let pods = self.local.iter().map(|pod| (&pod.uid, &*pod.subject));
        self.snapshot.policies = PolicyTable::build(policies, namespaces, pods);
        self.snapshot.local = self.local.into();
        self.snapshot
    }
}

/// Endpoints that the addresses of a service share.
pub(super) struct Shared(Arc<Targets>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    ByPod,
    ByService,
}
