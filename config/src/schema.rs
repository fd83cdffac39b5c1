//! The schema: every key of every process, with its default. Units are in the names.
//!
//! What it does not do: read files or judge values; see `load` and `validate`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The whole file. Each process reads the sections that concern it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub log: Log,
    pub capture: Capture,
    pub sidecar: Sidecar,
    pub node: Node,
    pub injector: Injector,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing-subscriber filter expression.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// A pod that has all of them, each 1 (those of IPv6 only where it is on), lets capture route instead of
/// redirect. The first makes an accepted socket inherit the mark of what it accepted, the others make a
/// refusal (a packet without a socket) bear it.
pub const ROUTING_SYSCTLS: [&str; 3] =
    ["net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"];

/// What `rdmesh-proxy init` programs into the pod's network namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Destinations that are captured. Everything by default.
    pub include_outbound_cidrs: Vec<IpNet>,
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Destination ports that are captured; empty means all.
    pub include_outbound_ports: Vec<u16>,
    pub exclude_outbound_ports: Vec<u16>,
    /// Ports of the application that peers reach without the mesh.
    pub exclude_inbound_ports: Vec<u16>,
    /// Mark on the proxy's own sockets: never captured.
    pub mark: u32,
    /// Routing table that makes foreign source addresses local.
    pub route_table: u32,
    pub rule_priority: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sidecar {
    /// Where redirected connections arrive; the port the capture redirects to.
    pub listen_port: u16,
    pub admin: SocketAddr,
    /// The node proxy's socket for this pod.
    pub node_socket: PathBuf,
    pub connections_max: u32,
    pub connect_timeout_ms: u64,
    pub drain_timeout_ms: u64,
    pub reconnect_backoff_min_ms: u64,
    pub reconnect_backoff_max_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// The node's name: the SAN of its certificate and its name in the directory. Required by `node`.
    pub name: String,
    /// Where peers arrive (handshake and `tcp` fabric).
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// Holds one directory per pod, named by the pod's uid, each with the pod's `node.sock`.
    pub pods_dir: PathBuf,
    pub workers: u32,
    pub io: Io,
    pub polling: Polling,
    /// How long a worker polls after it has dealt with an event (`polling: adaptive`), unless that took as
    /// long. While more than eight streams have traffic, a quarter of it from the event on.
    pub polling_spin_us: u64,
    /// Most of its time that a worker polls in vain (`polling: adaptive`); what others use of it meanwhile,
    /// for it offers them the CPU, is not counted.
    pub polling_share_percent: u32,
    pub fabric: Fabric,
    pub verbs: Verbs,
    /// Whether the payload of `tcp` links is encrypted. The handshake always is.
    pub encrypt: bool,
    pub tls: Tls,
    pub directory: Directory,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

/// How a worker reads and writes sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    Auto,
    Uring,
    Readiness,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Polling {
    /// A worker without work sleeps.
    Off,
    /// It looks again for a while first.
    Adaptive,
    /// It never sleeps: a CPU for each worker.
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// `verbs` where both ends have it, else `tcp`.
    #[default]
    Auto,
    /// Nothing else: connections to peers without it pass through.
    Verbs,
    Tcp,
}

impl Fabric {
    /// What suits both; `None` where one wants what the other does not.
    #[must_use]
    pub fn meet(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Auto, wish) | (wish, Self::Auto) => Some(wish),
            (one, two) => (one == two).then_some(one),
        }
    }
}

/// RDMA devices and queue pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Verbs {
    /// The device's name; empty: the one with a GID of the link's own address.
    pub device: String,
    /// The device's port; 0: the first that serves.
    pub port: u8,
    /// Index of the GID; -1: the link's own address, or what a device that is named has instead.
    pub gid_index: i16,
    pub traffic_class: u8,
    pub service_level: u8,
    /// A packet without an acknowledgement is sent again after 4.096 µs to the power of this.
    pub timeout_exponent: u8,
    pub retry_count: u8,
    pub rnr_retry_count: u8,
    /// Messages up to this size are copied into the work request.
    pub inline_bytes_max: u32,
    /// Registered memory of one worker for messages on their way in, shared by all its peers.
    pub receive_bytes: u64,
    /// A lane that had to go to `tcp` tries verbs again after this time, doubled each time.
    pub renew_min_ms: u64,
    pub renew_max_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Directory {
    /// The static directory file; see [`DirectoryFile`].
    pub file: PathBuf,
    /// The API server of a cluster, in place of the file.
    pub kubernetes: Option<Kubernetes>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Empty: the service account of the pod that the node proxy runs in.
    pub kubeconfig: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub peers_max: u32,
    pub streams_max: u32,
    pub streams_per_pod_max: u32,
    /// Sum of all receive windows granted to peers.
    pub window_budget_bytes: u64,
    /// A stream's window at its start.
    pub window_initial_bytes: u32,
    pub window_max_bytes: u32,
    /// Largest message on a lane, header included.
    pub message_bytes_max: u32,
    /// Receive buffers granted per lane (credits).
    pub lane_credits: u32,
    /// Registered memory of one worker for data on its way out.
    pub slab_bytes: u64,
    pub pending_handshakes_max: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    pub handshake_ms: u64,
    /// A stream that the far side has neither opened nor refused by then is refused.
    pub open_ms: u64,
    /// How long a lane lives without a link before its streams are reset.
    pub lane_resume_ms: u64,
    /// How long a lane without streams keeps its link; the next stream makes another.
    pub lane_idle_ms: u64,
    pub keepalive_interval_ms: u64,
    /// Silence on a link after which it counts as broken.
    pub keepalive_timeout_ms: u64,
    pub reconnect_backoff_min_ms: u64,
    pub reconnect_backoff_max_ms: u64,
    pub drain_ms: u64,
}

/// The admission webhook. What pods get from it comes from `capture`, `sidecar` and these keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Injector {
    /// Where the API server reaches the webhook, by HTTPS.
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// The serving certificate and its key, read again when they change.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The cluster's own certificate authority. It makes the serving certificate, unless `cert` is given.
    pub authority: Authority,
    /// Image of the injected containers.
    pub image: String,
    pub image_pull_policy: PullPolicy,
    /// The sidecar as an init container that keeps running (Kubernetes 1.29 or newer).
    pub native_sidecar: bool,
    /// Pods get [`ROUTING_SYSCTLS`], which kubelet has to allow.
    pub pod_sysctls: bool,
    /// User and group of the sidecar.
    pub proxy_uid: u32,
    pub proxy_cpu: String,
    pub proxy_cpu_limit: String,
    pub proxy_memory: String,
    pub proxy_memory_limit: String,
    /// `log.level` of the injected containers.
    pub proxy_log_level: String,
    /// Namespaces whose pods are never touched; those of Kubernetes itself are never.
    pub exclude_namespaces: Vec<String>,
    /// Another description of the injected containers than the built-in one.
    pub template: PathBuf,
}

/// Where the injector keeps its certificate authority, and who gets certificates of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authority {
    /// Of all objects here; empty: there is no authority.
    pub namespace: String,
    /// The Secret; it must exist and may be empty.
    pub secret: String,
    /// The webhook's Service: the name in the serving certificate.
    pub service: String,
    /// The MutatingWebhookConfiguration whose `caBundle` is kept.
    pub webhook: String,
    /// The service account of the node proxies.
    pub node_account: String,
    /// What the authority's own certificate is good for; another is made at half of it.
    pub ca_lifetime_s: u64,
    /// The serving certificate; renewed at a third.
    pub serving_lifetime_s: u64,
    /// The node proxies' certificates; renewed at a third.
    pub node_lifetime_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// The static directory file: who is where. A separate YAML document, reloaded while running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct DirectoryFile {
    pub nodes: Vec<NodeEntry>,
    pub pods: Vec<PodEntry>,
    pub services: Vec<ServiceEntry>,
    /// Labels of namespaces, for policies. Each has `kubernetes.io/metadata.name` besides.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub policies: Vec<PolicyEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    pub name: String,
    /// Where the node proxy listens for peers.
    pub address: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct PodEntry {
    pub name: String,
    pub uid: String,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    /// Ports of the application that are reached without the mesh.
    #[serde(default)]
    pub exclude_inbound_ports: Vec<u16>,
    /// What may carry its connections to other nodes.
    #[serde(default)]
    pub fabric: Fabric,
    /// For policies, as all that follows. May be left empty where there is but one.
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Ports that have a name.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
}

/// Who may connect to the pods it selects, and whither they may: Kubernetes' NetworkPolicy in short.
///
/// A pod that no policy selects for a direction may do all in it; one that some select, what one of
/// them allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyEntry {
    pub name: String,
    /// It selects pods of this namespace alone.
    pub namespace: String,
    /// All pods of the namespace by default.
    pub pods: Selector,
    /// Absent: says nothing about connections to the pods. An empty list: allows none.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Absent: says nothing about connections of the pods. An empty list: allows none.
    pub egress: Option<Vec<PolicyRule>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyRule {
    /// One of them must match; absent: everybody.
    pub peers: Option<Vec<PolicyPeer>>,
    /// One of them must match; absent: all ports.
    pub ports: Option<Vec<PolicyPort>>,
}

/// Pods, or a block of addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyPeer {
    /// Absent: the policy's own namespace.
    pub namespaces: Option<Selector>,
    /// Absent: all pods of those namespaces.
    pub pods: Option<Selector>,
    pub cidr: Option<IpNet>,
    /// Parts of `cidr` that do not match.
    pub except: Vec<IpNet>,
}

/// One port, a range of them, or a name among the destination's `ports`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyPort {
    pub port: Option<u16>,
    pub end_port: Option<u16>,
    pub name: Option<String>,
}

/// All conditions must hold; without any, everything is selected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Selector {
    pub match_labels: BTreeMap<String, String>,
    pub match_expressions: Vec<LabelExpression>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelExpression {
    pub key: String,
    pub operator: LabelOperator,
    #[serde(default)]
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceEntry {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicePort {
    pub port: u16,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub address: SocketAddr,
    #[serde(default = "yes")]
    pub ready: bool,
}

fn yes() -> bool {
    true
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            include_outbound_cidrs: vec![
                "0.0.0.0/0".parse().expect("valid"),
                "::/0".parse().expect("valid"),
            ],
            exclude_outbound_cidrs: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            mark: 0x7264,
            route_table: 157,
            rule_priority: 157,
        }
    }
}

impl Default for Sidecar {
    fn default() -> Self {
        Self {
            listen_port: 15701,
            admin: "127.0.0.1:15791".parse().expect("valid"),
            node_socket: "/run/rdmesh/node.sock".into(),
            connections_max: 8192,
            connect_timeout_ms: 10_000,
            drain_timeout_ms: 30_000,
            reconnect_backoff_min_ms: 20,
            reconnect_backoff_max_ms: 2_000,
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: String::new(),
            listen: "0.0.0.0:15700".parse().expect("valid"),
            admin: "127.0.0.1:15790".parse().expect("valid"),
            pods_dir: "/run/rdmesh/pods".into(),
            workers: 1,
            io: Io::Auto,
            polling: Polling::Adaptive,
            polling_spin_us: 50,
            polling_share_percent: 50,
            fabric: Fabric::Auto,
            verbs: Verbs::default(),
            encrypt: true,
            tls: Tls::default(),
            directory: Directory::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

impl Default for Injector {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:15793".parse().expect("valid"),
            admin: "127.0.0.1:15792".parse().expect("valid"),
            cert: PathBuf::new(),
            key: PathBuf::new(),
            authority: Authority::default(),
            image: String::new(),
            image_pull_policy: PullPolicy::IfNotPresent,
            native_sidecar: true,
            pod_sysctls: false,
            proxy_uid: 15701,
            proxy_cpu: "20m".into(),
            proxy_cpu_limit: "1".into(),
            proxy_memory: "32Mi".into(),
            proxy_memory_limit: "256Mi".into(),
            proxy_log_level: "info".into(),
            exclude_namespaces: Vec::new(),
            template: PathBuf::new(),
        }
    }
}

const DAY_S: u64 = 86_400;

impl Default for Authority {
    fn default() -> Self {
        Self {
            namespace: String::new(),
            secret: "rdmesh-ca".into(),
            service: "rdmesh-injector".into(),
            webhook: "rdmesh-injector".into(),
            node_account: "rdmesh-node".into(),
            ca_lifetime_s: 3650 * DAY_S,
            serving_lifetime_s: 90 * DAY_S,
            node_lifetime_s: DAY_S,
        }
    }
}

impl Default for Verbs {
    fn default() -> Self {
        Self {
            device: String::new(),
            port: 0,
            gid_index: -1,
            traffic_class: 0,
            service_level: 0,
            timeout_exponent: 14,
            retry_count: 6,
            rnr_retry_count: 6,
            inline_bytes_max: 220,
            receive_bytes: 64 << 20,
            renew_min_ms: 1_000,
            renew_max_ms: 30_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers_max: 5_000,
            streams_max: 65_536,
            streams_per_pod_max: 16_384,
            window_budget_bytes: 512 << 20,
            window_initial_bytes: 16 << 10,
            window_max_bytes: 4 << 20,
            message_bytes_max: 64 << 10,
            lane_credits: 64,
            slab_bytes: 64 << 20,
            pending_handshakes_max: 64,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake_ms: 5_000,
            open_ms: 10_000,
            lane_resume_ms: 30_000,
            lane_idle_ms: 300_000,
            keepalive_interval_ms: 1_000,
            keepalive_timeout_ms: 5_000,
            reconnect_backoff_min_ms: 20,
            reconnect_backoff_max_ms: 2_000,
            drain_ms: 10_000,
        }
    }
}
