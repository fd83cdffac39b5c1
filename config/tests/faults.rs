//! What an operator sees when a file is wrong.

use rdmesh_config::{Config, DirectoryFile, Fault, Faults};

fn config_faults(text: &str) -> Faults {
    Config::from_yaml(text, "test.yaml").expect_err("must be refused")
}

fn directory_faults(text: &str) -> Faults {
    DirectoryFile::from_yaml(text, "directory.yaml").expect_err("must be refused")
}

fn find<'a>(faults: &'a Faults, path: &str) -> &'a Fault {
    let found = faults.faults.iter().find(|fault| fault.path == path);
    found.unwrap_or_else(|| panic!("no fault at {path} in\n{faults}"))
}

#[test]
fn all_faults_at_once_with_line_value_and_range() {
    let text = "\
log:
  level: inof
  colour: red
capture:
  mark: 0
  include_outbound_cidrs: [10.0.0.1/8, pods]
  include_outbound_ports: [80, 0, 25]
  exclude_outbound_ports: [25]
sidecar:
  conect_timeout_ms: 5
  drain_timeout_ms: 30s
  listen_port: 70000
  reconnect_backoff_min_ms: 500
  reconnect_backoff_max_ms: 100
node:
  name: Node_A
  encrypt: yes
  fabric: tpc
  workers: -1
  listen: localhost
  tls: {ca: /a}
  limits:
    window_budget_bytes: 512 MiB
    window_initial_bytes: 8388608
    slab_bytes: 100
  timeouts:
    keepalive_interval_ms: 5000
";
    let faults = config_faults(text);
    let expect = [
        ("log.level", Some(2), "must be one of off, error"),
        ("log.colour", Some(3), "known here are level, format"),
        ("capture.mark", Some(5), "1..=4294967295"),
        ("capture.include_outbound_cidrs[0]", Some(6), "write 10.0.0.0/8"),
        ("capture.include_outbound_cidrs[1]", Some(6), "must be a network"),
        ("capture.include_outbound_ports[1]", Some(7), "1..=65535"),
        ("capture.include_outbound_ports[2]", Some(7), "exclude_outbound_ports"),
        ("sidecar.conect_timeout_ms", Some(10), "`connect_timeout_ms`"),
        ("sidecar.drain_timeout_ms", Some(11), "0..=3600000 milliseconds; write 30000"),
        ("sidecar.listen_port", Some(12), "1..=65535"),
        ("sidecar.reconnect_backoff_min_ms", Some(13), "must not be more than"),
        ("node.name", Some(16), "DNS name"),
        ("node.encrypt", Some(17), "true or false"),
        ("node.fabric", Some(18), "did you mean `tcp`?"),
        ("node.workers", Some(19), "1..=256"),
        ("node.listen", Some(20), "10.0.0.1:15700"),
        ("node.tls.cert", None, "belong together"),
        ("node.limits.window_budget_bytes", Some(23), "write 536870912"),
        ("node.limits.window_initial_bytes", Some(24), "window_max_bytes (4194304)"),
        ("node.limits.slab_bytes", Some(25), "262144..="),
        ("node.timeouts.keepalive_timeout_ms", None, "keepalive_interval_ms (5000)"),
    ];
    for (path, line, problem) in expect {
        let fault = find(&faults, path);
        assert_eq!(fault.line, line, "{fault}");
        assert!(fault.problem.contains(problem), "{fault}");
    }
    assert_eq!(find(&faults, "node.workers").value.as_deref(), Some("-1"));
    let shown = faults.to_string();
    assert!(
        shown.contains("line 18: node.fabric = \"tpc\": must be one of auto, verbs, tcp"),
        "{shown}"
    );
    assert!(shown.starts_with("test.yaml: "), "{shown}");
}

#[test]
fn combinations_that_cannot_work() {
    for (text, path) in [
        ("node: {workers: 256}", "node.limits.window_max_bytes"),
        (
            "node: {limits: {slab_bytes: 1048576, message_bytes_max: 1048576}}",
            "node.limits.slab_bytes",
        ),
        ("node: {limits: {streams_max: 10}}", "node.limits.streams_per_pod_max"),
        ("node: {admin: '0.0.0.0:15700'}", "node.admin"),
        ("sidecar: {admin: '127.0.0.1:15701'}", "sidecar.admin"),
        ("capture: {route_table: 254}", "capture.route_table"),
        ("capture: {include_outbound_cidrs: []}", "capture.include_outbound_cidrs"),
        ("node: {pods_dir: run/pods}", "node.pods_dir"),
        (
            "node: {timeouts: {reconnect_backoff_min_ms: 3000}}",
            "node.timeouts.reconnect_backoff_min_ms",
        ),
    ] {
        find(&config_faults(text), path);
    }
}

#[test]
fn lines_survive_flow_style_quotes_blocks_and_aliases() {
    let text = "# comment\n\"log\": {\n  'level':\n    \"info\",\n  format: &x 5\n}\nsidecar:\n  connections_max: *x\n  listen_port: |\n    many\n    lines\n  admin: 0\n";
    let faults = config_faults(text);
    assert_eq!(find(&faults, "log.format").line, Some(5));
    assert_eq!(find(&faults, "sidecar.listen_port").line, Some(9));
    assert_eq!(find(&faults, "sidecar.admin").line, Some(12));
    assert!(find(&faults, "sidecar.listen_port").value.as_ref().is_some_and(|v| v.contains("\\n")));
}

#[test]
fn structure() {
    for (text, problem) in [
        ("", "empty"),
        (" \n\n", "empty"),
        ("- a\n- b\n", "section with keys"),
        ("log: [info, text]\n", "section with keys"),
        ("hello", "section with keys"),
        ("node:\n", "has no value"),
        ("node: {}\n---\nnode: {}\n", "keep only one"),
        ("node: {}\nnode: {}\n", "there twice"),
        ("node: !secret {}\n", "tags"),
        ("? [a]\n: b\n", "key must be a plain word"),
        ("node: {name: 12}\n", "quotes"),
        ("node: {name: \"a\n", "not valid YAML, or cut off"),
        ("\tnode: {}\n", "not valid YAML"),
        ("node: {directory: {file: *nothing}}\n", "not valid YAML"),
    ] {
        let faults = config_faults(text);
        assert!(faults.to_string().contains(problem), "{text:?}: {faults}");
    }
    // Comments alone are a file in which nothing is set.
    assert_eq!(Config::from_yaml("# nothing set\n", "x"), Ok(Config::default()));
    assert_eq!(Config::from_yaml("{}", "x"), Ok(Config::default()));
}

#[test]
fn directory_entries_must_agree() {
    let text = "\
nodes:
  - {name: node-a, address: '192.0.2.1:15700'}
  - {name: node-a, address: '192.0.2.1:15700'}
  - {name: node-c, address: '192.0.2.3:0'}
pods:
  - {name: p0, uid: u0, node: node-a, addresses: [10.42.0.1]}
  - {name: p1, uid: u0, node: node-x, addresses: [10.42.0.1]}
  - {name: p2, uid: ../u2, node: node-a, addresses: []}
  - {name: p3, uid: u3, node: node-a, addresses: [127.0.0.1, '::ffff:10.42.0.9']}
  - {name: p4, uid: u4, node: node-a, addresses: [10.42.0.4], exclude_inbound_ports: [0]}
services:
  - name: s
    addresses: [10.43.0.1, 10.42.0.4]
    ports:
      - {port: 0, endpoints: [{address: '10.42.0.1:0'}]}
      - {port: 80, endpoints: [{address: '10.43.0.1:80'}, {address: '10.42.0.1:80'}, {address: '10.42.0.1:80'}]}
      - {port: 80, endpoints: []}
";
    let faults = directory_faults(text);
    let expect = [
        ("nodes[1].name", 3, "names must differ"),
        ("nodes[1].address", 3, "node node-a too"),
        ("nodes[2].address", 4, "1..=65535"),
        ("pods[1].uid", 7, "pod p0 too"),
        ("pods[1].node", 7, "no such node"),
        ("pods[1].addresses[0]", 7, "pod p0 too"),
        ("pods[2].uid", 8, "letters, digits"),
        ("pods[2].addresses", 8, "1..=16"),
        ("pods[3].addresses[0]", 9, "other nodes can reach"),
        ("pods[3].addresses[1]", 9, "write 10.42.0.9"),
        ("pods[4].exclude_inbound_ports[0]", 10, "1..=65535"),
        ("services[0].addresses[1]", 13, "pod p4 too"),
        ("services[0].ports[0].port", 15, "1..=65535"),
        ("services[0].ports[0].endpoints[0].address", 15, "1..=65535"),
        ("services[0].ports[1].endpoints[0].address", 16, "address of service s"),
        ("services[0].ports[1].endpoints[2].address", 16, "twice"),
        ("services[0].ports[2].port", 17, "twice"),
    ];
    for (path, line, problem) in expect {
        let fault = find(&faults, path);
        assert_eq!(fault.line, Some(line), "{fault}");
        assert!(fault.problem.contains(problem), "{fault}");
    }
    assert_eq!(faults.faults.len(), expect.len(), "{faults}");
}

#[test]
fn a_faulty_entry_hides_no_fault_of_others_and_makes_none() {
    let text = "\
nodes:
  - {name: node-a, address: nowhere}
pods:
  - {name: p0, uid: 5, node: node-a, adresses: [10.42.0.1]}
  - {name: p1, uid: u1, node: node-a, addresses: [10.42.0.300]}
  - {name: p2, uid: u2, node: node-a, addresses: [10.42.0.2]}
  - {name: p3, uid: u2, node: node-a, addresses: [10.42.0.3]}
service: []
";
    let faults = directory_faults(text);
    let expect = [
        ("nodes[0].address", 2),
        ("pods[0].adresses", 4),
        ("pods[0].uid", 4),
        ("pods[1].addresses[0]", 5),
        ("pods[3].uid", 7),
        ("service", 8),
    ];
    for (path, line) in expect {
        assert_eq!(find(&faults, path).line, Some(line));
    }
    assert!(find(&faults, "pods[0].adresses").problem.contains("`addresses`"));
    let pods_0 = faults.faults.iter().filter(|fault| fault.path == "pods[0]").count();
    // `addresses` is missing, too: one fault more.
    assert_eq!(faults.faults.len(), expect.len() + pods_0, "{faults}");
}

#[test]
fn a_value_that_was_left_out_is_not_judged_by_its_default() {
    let faults = config_faults("node: {limits: {streams_max: lots, streams_per_pod_max: 100000}}");
    assert_eq!(faults.faults.len(), 1, "{faults}");
    let faults = config_faults("capture: {include_outbound_cidrs: [everything]}");
    assert_eq!(faults.faults.len(), 1, "{faults}");
}

#[test]
fn a_directory_says_something() {
    for text in ["", "# nothing\n", "pods:\n", "nodes: []\npods:\n"] {
        directory_faults(text);
    }
    assert_eq!(DirectoryFile::from_yaml("nodes: []", "x"), Ok(DirectoryFile::default()));
}

#[test]
fn at_most_fifty_faults() {
    let mut text = String::from("nodes: []\npods:\n");
    for _ in 0..500 {
        text.push_str("  - {name: '', uid: '', node: '', addresses: []}\n");
    }
    let faults = directory_faults(&text);
    assert_eq!(faults.faults.len(), 50);
    assert!(faults.truncated && faults.to_string().contains("more than 50 faults"));
    let broken: String = (0..500).map(|n| format!("key{n}: 1\n")).collect();
    assert!(config_faults(&broken).truncated);
}

#[test]
fn what_the_node_process_needs() {
    let faults = Config::default().check_node("node.yaml").expect_err("nothing is set");
    let paths: Vec<&str> = faults.faults.iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(
        paths,
        ["node.name", "node.tls.ca", "node.tls.cert", "node.tls.key", "node.directory.file"]
    );
}

#[test]
fn kubernetes_stands_in_for_the_file() {
    let node = |directory: &str| {
        format!("node: {{name: a, tls: {{ca: /a, cert: /b, key: /c}}, directory: {directory}}}")
    };
    for good in ["{kubernetes: {}}", "{kubernetes: {kubeconfig: /k}}", "{file: /f}"] {
        let config = Config::from_yaml(&node(good), "test.yaml").unwrap();
        config.check_node("test.yaml").unwrap();
        let again = Config::from_yaml(&config.to_yaml(), "again.yaml").unwrap();
        assert_eq!(again, config);
    }
    let neither = Config::from_yaml(&node("{}"), "test.yaml").unwrap();
    let faults = neither.check_node("test.yaml").unwrap_err();
    assert!(find(&faults, "node.directory.file").problem.contains("kubernetes"), "{faults}");
    let both = config_faults(&node("{file: /f, kubernetes: {}}"));
    assert!(find(&both, "node.directory.file").problem.contains("one of the two"), "{both}");
    let unknown = config_faults(&node("{kubernetes: {kubeconfg: /k}}"));
    let fault = find(&unknown, "node.directory.kubernetes.kubeconfg");
    assert!(fault.problem.contains("kubeconfig"), "{unknown}");
}

#[test]
fn policies_that_mean_less_than_they_say() {
    let text = "\
nodes:
  - {name: a, address: '192.0.2.1:15700'}
pods:
  - {name: p, uid: u, node: a, addresses: [10.0.0.1], ports: {http: 0}}
policies:
  - name: nothing
  - {name: twice, ingress: []}
  - {name: twice, egress: []}
  - name: rules
    pods: {match_expressions: [{key: a, operator: In}, {key: a, operator: Is}]}
    ingress:
      - peers: [{}, {cidr: 10.0.0.0/8, pods: {}}, {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}]
        ports: [{}, {port: 0}, {port: 9, end_port: 8}, {port: 9, name: x}, {end_port: 9}]
";
    let faults = directory_faults(text);
    let expect = [
        ("pods[0].ports.http", Some(4), "1..=65535"),
        ("policies[0]", Some(6), "allows and forbids nothing"),
        ("policies[2].name", Some(8), "a name of its own"),
        ("policies[3].pods.match_expressions[0]", Some(10), "needs `values`"),
        ("policies[3].pods.match_expressions[1].operator", Some(10), "DoesNotExist"),
        ("policies[3].ingress[0].peers[0]", None, "either pods"),
        ("policies[3].ingress[0].peers[1]", Some(12), "either pods"),
        ("policies[3].ingress[0].peers[2].except[0]", Some(12), "not within"),
        ("policies[3].ingress[0].ports[0]", None, "must be a `port`"),
        ("policies[3].ingress[0].ports[1]", Some(13), "1..=65535"),
        ("policies[3].ingress[0].ports[2]", Some(13), "end_port must not be less"),
        ("policies[3].ingress[0].ports[3]", Some(13), "must be a `port`"),
        ("policies[3].ingress[0].ports[4]", Some(13), "must be a `port`"),
    ];
    for (path, line, problem) in expect {
        let fault = find(&faults, path);
        assert_eq!(fault.line, line, "{path}");
        assert!(fault.problem.contains(problem), "{path}: {}", fault.problem);
    }
}
