//! Ranges of single keys and combinations that cannot work.
//!
//! What it does not do: look at the machine.

use crate::check_injector;
use crate::load::{Finding, finding};
use crate::schema::{Capture, Config, Node};
use crate::tree::Step;
use crate::words;
use std::path::Path;

/// Longest path that fits a Unix socket's address.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest uid of a pod in the directory: a UUID.
pub(crate) const UID_BYTES_MAX: usize = 36;
/// `<pods_dir>/<uid>/node.sock` must fit a Unix socket's address.
const PODS_DIR_BYTES_MAX: usize = SOCKET_PATH_BYTES_MAX - "//node.sock".len() - UID_BYTES_MAX;

struct Range {
    path: &'static str,
    get: fn(&Config) -> u64,
    min: u64,
    max: u64,
}

macro_rules! range {
    ($($key:ident).+, $min:expr, $max:expr) => {
        Range {
            path: stringify!($($key).+),
            get: |config| config.$($key).+.into(),
            min: $min,
            max: $max,
        }
    };
}

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const YEAR_S: u64 = 365 * 86_400;

/// Every number of the schema that is not a list's. The commented example shows the same ranges; a test compares.
static RANGES: &[Range] = &[
    range!(capture.mark, 1, 0xffff_ffff),
    range!(capture.route_table, 1, 0xffff_ffff),
    // Before the rule of the main table, after that of the local one.
    range!(capture.rule_priority, 1, 32_765),
    range!(sidecar.listen_port, 1, 65_535),
    range!(sidecar.connections_max, 1, 1_000_000),
    range!(sidecar.connect_timeout_ms, 100, 5 * MINUTE_MS),
    range!(sidecar.drain_timeout_ms, 0, HOUR_MS),
    range!(sidecar.reconnect_backoff_min_ms, 1, MINUTE_MS),
    range!(sidecar.reconnect_backoff_max_ms, 1, 10 * MINUTE_MS),
    range!(node.workers, 1, 256),
    range!(node.polling_spin_us, 1, 10_000),
    range!(node.polling_share_percent, 1, 100),
    range!(node.verbs.port, 0, 255),
    range!(node.verbs.traffic_class, 0, 255),
    range!(node.verbs.service_level, 0, 15),
    range!(node.verbs.timeout_exponent, 8, 22),
    // With 7 some devices never find out that a peer has died.
    range!(node.verbs.retry_count, 0, 6),
    range!(node.verbs.rnr_retry_count, 0, 7),
    range!(node.verbs.inline_bytes_max, 0, 4_096),
    range!(node.verbs.receive_bytes, 1 << 20, 64 << 30),
    range!(node.verbs.renew_min_ms, 10, 10 * MINUTE_MS),
    range!(node.verbs.renew_max_ms, 10, HOUR_MS),
    range!(node.limits.peers_max, 1, 100_000),
    range!(node.limits.streams_max, 1, 1_000_000),
    range!(node.limits.streams_per_pod_max, 1, 1_000_000),
    range!(node.limits.window_budget_bytes, 1 << 20, 1 << 40),
    range!(node.limits.window_initial_bytes, 1 << 10, 16 << 20),
    range!(node.limits.window_max_bytes, 1 << 10, 64 << 20),
    range!(node.limits.message_bytes_max, 4 << 10, 1 << 20),
    // One credit is kept back for messages that only grant credits.
    range!(node.limits.lane_credits, 4, 4_096),
    range!(node.limits.slab_bytes, 256 << 10, 64 << 30),
    range!(node.limits.pending_handshakes_max, 1, 65_536),
    range!(node.timeouts.handshake_ms, 100, MINUTE_MS),
    range!(node.timeouts.open_ms, 100, 5 * MINUTE_MS),
    range!(node.timeouts.lane_resume_ms, 0, HOUR_MS),
    range!(node.timeouts.lane_idle_ms, 100, 24 * HOUR_MS),
    range!(node.timeouts.keepalive_interval_ms, 10, 10 * MINUTE_MS),
    range!(node.timeouts.keepalive_timeout_ms, 20, HOUR_MS),
    range!(node.timeouts.reconnect_backoff_min_ms, 1, MINUTE_MS),
    range!(node.timeouts.reconnect_backoff_max_ms, 1, 10 * MINUTE_MS),
    range!(node.timeouts.drain_ms, 0, HOUR_MS),
    // Never root: the API server would refuse the pod.
    range!(injector.authority.ca_lifetime_s, 30, 20 * YEAR_S),
    range!(injector.authority.serving_lifetime_s, 5, YEAR_S),
    range!(injector.authority.node_lifetime_s, 5, YEAR_S),
    range!(injector.proxy_uid, 1, 0x7fff_ffff),
];

impl Range {
    fn words(&self) -> String {
        let unit = words::unit(self.path).map(|unit| format!(" {unit}")).unwrap_or_default();
        format!("{}..={}{unit}", self.min, self.max)
    }
}

/// What the key at `path` takes, where it is a number.
pub(crate) fn allowed(path: &str) -> Option<String> {
    let range = RANGES.iter().find(|range| range.path == path)?;
    Some(format!("a whole number, {}", range.words()))
}

pub(crate) fn check(config: &Config) -> Vec<Finding> {
    let mut found: Vec<Finding> = RANGES
        .iter()
        .filter(|range| !(range.min..=range.max).contains(&(range.get)(config)))
        .map(|range| finding(keys(range.path), format!("must be {}", range.words())))
        .collect();
    log("log.level", &config.log.level, &mut found);
    log("injector.proxy_log_level", &config.injector.proxy_log_level, &mut found);
    capture(&config.capture, &mut found);
    sidecar(config, &mut found);
    node(&config.node, &mut found);
    verbs(&config.node, &mut found);
    limits(&config.node, &mut found);
    timeouts(&config.node, &mut found);
    check_injector::check(config, &mut found);
    found
}

pub(crate) fn keys(path: &str) -> Vec<Step> {
    path.split('.').map(Step::from).collect()
}

pub(crate) fn element(path: &str, index: usize) -> Vec<Step> {
    let mut steps = keys(path);
    steps.push(index.into());
    steps
}

fn log(path: &str, level: &str, found: &mut Vec<Finding>) {
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    let is_expression = level.contains(['=', ',', '[']);
    if !is_expression && !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
        let problem = format!(
            "must be one of {}, or a filter such as `info,rdmesh_proxy::mux=debug`",
            LEVELS.join(", ")
        );
        found.push(finding(keys(path), problem));
    }
}

fn capture(capture: &Capture, found: &mut Vec<Finding>) {
    // The kernel's own tables: default, main, local.
    if (253..=255).contains(&capture.route_table) {
        found.push(finding(
            keys("capture.route_table"),
            "253, 254 and 255 are the kernel's own tables: take another",
        ));
    }
    if capture.include_outbound_cidrs.is_empty() {
        let problem =
            "nothing would be captured: list networks, or leave the key out to capture all";
        found.push(finding(keys("capture.include_outbound_cidrs"), problem));
    }
    for (path, cidrs) in [
        ("capture.include_outbound_cidrs", &capture.include_outbound_cidrs),
        ("capture.exclude_outbound_cidrs", &capture.exclude_outbound_cidrs),
    ] {
        for (index, cidr) in cidrs.iter().enumerate().filter(|(_, cidr)| **cidr != cidr.trunc()) {
            let problem = format!("the address has bits beyond its prefix: write {}", cidr.trunc());
            found.push(finding(element(path, index), problem));
        }
    }
    for (path, ports) in [
        ("capture.include_outbound_ports", &capture.include_outbound_ports),
        ("capture.exclude_outbound_ports", &capture.exclude_outbound_ports),
        ("capture.exclude_inbound_ports", &capture.exclude_inbound_ports),
    ] {
        for (index, _) in ports.iter().enumerate().filter(|(_, port)| **port == 0) {
            found.push(finding(element(path, index), "must be 1..=65535"));
        }
    }
    for (index, port) in capture.include_outbound_ports.iter().enumerate() {
        if capture.exclude_outbound_ports.contains(port) {
            let problem = "is in capture.exclude_outbound_ports too: take it out of one of the two";
            found.push(finding(element("capture.include_outbound_ports", index), problem));
        }
    }
}

fn sidecar(config: &Config, found: &mut Vec<Finding>) {
    let sidecar = &config.sidecar;
    let socket = &sidecar.node_socket;
    if !socket.is_absolute() || bytes(socket) > SOCKET_PATH_BYTES_MAX {
        let problem = format!("must be an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes");
        found.push(finding(keys("sidecar.node_socket"), problem));
    }
    port_not_zero("sidecar.admin", sidecar.admin.port(), found);
    if sidecar.admin.port() == sidecar.listen_port {
        found.push(finding(
            keys("sidecar.admin"),
            "has the port of sidecar.listen_port: take another",
        ));
    }
    in_order(
        ("sidecar.reconnect_backoff_min_ms", sidecar.reconnect_backoff_min_ms),
        ("sidecar.reconnect_backoff_max_ms", sidecar.reconnect_backoff_max_ms),
        found,
    );
}

fn node(node: &Node, found: &mut Vec<Finding>) {
    if !node.name.is_empty() && !is_dns_name(&node.name) {
        found.push(finding(keys("node.name"), DNS_NAME));
    }
    if !node.pods_dir.is_absolute() || bytes(&node.pods_dir) > PODS_DIR_BYTES_MAX {
        let problem = format!("must be an absolute path of at most {PODS_DIR_BYTES_MAX} bytes");
        found.push(finding(keys("node.pods_dir"), problem));
    }
    port_not_zero("node.listen", node.listen.port(), found);
    port_not_zero("node.admin", node.admin.port(), found);
    let (listen, admin) = (node.listen, node.admin);
    let same_address =
        listen.ip() == admin.ip() || listen.ip().is_unspecified() || admin.ip().is_unspecified();
    if listen.port() == admin.port() && same_address {
        found.push(finding(keys("node.admin"), "clashes with node.listen: take another port"));
    }
    let tls = [
        ("node.tls.ca", &node.tls.ca),
        ("node.tls.cert", &node.tls.cert),
        ("node.tls.key", &node.tls.key),
    ];
    let absent = |path: &Path| path.as_os_str().is_empty();
    if node.directory.kubernetes.is_some() && !absent(&node.directory.file) {
        let problem = "is there together with node.directory.kubernetes: take one of the two";
        found.push(finding(keys("node.directory.file"), problem));
    }
    if tls.iter().any(|(_, path)| !absent(path)) {
        for (path, _) in tls.iter().filter(|(_, path)| absent(path)) {
            found.push(finding(keys(path), "is missing: ca, cert and key belong together"));
        }
    }
}

fn verbs(node: &Node, found: &mut Vec<Finding>) {
    let verbs = &node.verbs;
    in_order(
        ("node.verbs.renew_min_ms", verbs.renew_min_ms),
        ("node.verbs.renew_max_ms", verbs.renew_max_ms),
        found,
    );
    // Below, a lane has too few credits to keep going.
    const MESSAGES_MIN: u64 = 16;
    let bytes_min = MESSAGES_MIN * u64::from(node.limits.message_bytes_max);
    if verbs.receive_bytes < bytes_min {
        let problem = format!(
            "must hold {MESSAGES_MIN} messages of node.limits.message_bytes_max: at least {bytes_min} bytes"
        );
        found.push(finding(keys("node.verbs.receive_bytes"), problem));
    }
    if !(-1..=255).contains(&verbs.gid_index) {
        found.push(finding(keys("node.verbs.gid_index"), "must be -1 (by itself) or 0..=255"));
    }
}

fn limits(node: &Node, found: &mut Vec<Finding>) {
    let limits = &node.limits;
    in_order(
        ("node.limits.window_initial_bytes", limits.window_initial_bytes.into()),
        ("node.limits.window_max_bytes", limits.window_max_bytes.into()),
        found,
    );
    in_order(
        ("node.limits.streams_per_pod_max", limits.streams_per_pod_max.into()),
        ("node.limits.streams_max", limits.streams_max.into()),
        found,
    );
    let per_worker = limits.window_budget_bytes / u64::from(node.workers.max(1));
    if u64::from(limits.window_max_bytes) > per_worker {
        let problem = format!(
            "one stream's window would exceed a worker's share of node.limits.window_budget_bytes ({per_worker}): \
             lower the one or raise the other"
        );
        found.push(finding(keys("node.limits.window_max_bytes"), problem));
    }
    // Fewer and a single bulk stream would stall for memory.
    const MESSAGES_MIN: u64 = 4;
    let slab_min = MESSAGES_MIN * u64::from(limits.message_bytes_max);
    if limits.slab_bytes < slab_min {
        let problem = format!(
            "must hold {MESSAGES_MIN} messages of node.limits.message_bytes_max: at least {slab_min} bytes"
        );
        found.push(finding(keys("node.limits.slab_bytes"), problem));
    }
}

fn timeouts(node: &Node, found: &mut Vec<Finding>) {
    let timeouts = &node.timeouts;
    in_order(
        ("node.timeouts.reconnect_backoff_min_ms", timeouts.reconnect_backoff_min_ms),
        ("node.timeouts.reconnect_backoff_max_ms", timeouts.reconnect_backoff_max_ms),
        found,
    );
    if timeouts.keepalive_timeout_ms <= timeouts.keepalive_interval_ms {
        let problem = format!(
            "must be more than node.timeouts.keepalive_interval_ms ({}), or every link would count as broken",
            timeouts.keepalive_interval_ms
        );
        found.push(finding(keys("node.timeouts.keepalive_timeout_ms"), problem));
    }
}

fn in_order(low: (&str, u64), high: (&str, u64), found: &mut Vec<Finding>) {
    if low.1 > high.1 {
        let problem = format!("{} must not be more than {} ({})", low.1, high.0, high.1);
        found.push(finding(keys(low.0), problem));
    }
}

pub(crate) fn port_not_zero(path: &str, port: u16, found: &mut Vec<Finding>) {
    if port == 0 {
        found.push(finding(keys(path), "the port must be 1..=65535"));
    }
}

fn bytes(path: &Path) -> usize {
    path.as_os_str().len()
}

pub(crate) const DNS_NAME: &str = "must be a DNS name: labels of a-z, 0-9 and `-` (not at their ends) joined by dots, 253 characters at most";

pub(crate) fn is_dns_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        bytes.len() <= 63
            && ends.is_some_and(|(first, last)| is_word(*first) && is_word(*last))
            && bytes.iter().all(|byte| is_word(*byte) || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

pub(crate) fn check_node(config: &Config) -> Vec<Finding> {
    let node = &config.node;
    let empty = |path: &Path| path.as_os_str().is_empty();
    [
        (
            node.name.is_empty(),
            "node.name",
            "the node's name, as in its certificate and in the directory",
        ),
        (
            empty(&node.tls.ca),
            "node.tls.ca",
            "the file of the CA that peers' certificates are checked against",
        ),
        (empty(&node.tls.cert), "node.tls.cert", "the file of this node's certificate"),
        (empty(&node.tls.key), "node.tls.key", "the file of this node's private key"),
        (
            empty(&node.directory.file) && node.directory.kubernetes.is_none(),
            "node.directory.file",
            "the directory file (nodes, pods and services), or set node.directory.kubernetes",
        ),
    ]
    .into_iter()
    .filter(|(missing, _, _)| *missing)
    .map(|(_, path, what)| {
        finding(keys(path), format!("is needed by `rdmesh-proxy node`: set it to {what}"))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_range_and_the_example_shows_it() {
        let example = include_str!("../examples/full.yaml");
        for range in RANGES {
            let key = range.path.rsplit('.').next().unwrap();
            let section = range.path.rsplit('.').nth(1).unwrap();
            let text = example.split_once(&format!("{section}:\n")).unwrap().1;
            let (before, _) = text.split_once(&format!("{key}: ")).unwrap();
            let comment: Vec<&str> = before
                .lines()
                .rev()
                .skip(1)
                .take_while(|line| line.trim().starts_with('#'))
                .collect();
            let wanted = format!("{}..={}", range.min, range.max);
            assert!(comment.iter().any(|line| line.contains(&wanted)), "{}: {wanted}", range.path);
        }
        let numbers = Config::default().to_yaml().lines().filter(is_number).count();
        assert_eq!(numbers, RANGES.len());
    }

    fn is_number(line: &&str) -> bool {
        line.split_once(": ").is_some_and(|(_, value)| value.parse::<u64>().is_ok())
    }

    #[test]
    fn dns_names() {
        for good in ["a", "node-1", "node-1.example.com", "0"] {
            assert!(is_dns_name(good), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "a.", "-a", "a-", "A", "a_b", "a..b", "ä", long.as_str()] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }
}
