use super::records::{EndpointRecord, Names, Records, ServiceRecord, SliceRecord, Table};
use super::services::{Place, endpoints};
use super::watch::Watched;
use super::*;
use crate::directory::policy::Verdict;
use crate::directory::{Decision, Pod};
use crate::metrics::PassthroughReason;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use rdmesh_config::Fabric;
use serde_json::{Value, json};

const LISTEN: &str = "0.0.0.0:15700";

pub(super) fn put<K: Watched>(records: &mut Records, object: Value) {
    let object: K = serde_json::from_value(object).unwrap();
    let metadata = object.meta();
    let name = metadata.name.clone().unwrap();
    let key = metadata.namespace.as_ref().map_or(name.clone(), |ns| format!("{ns}/{name}"));
    let record = object.record(&mut records.names);
    let table: &mut Table<K::Record> = K::table(records);
    match record {
        Some(record) => table.insert(key.into(), record),
        None => table.remove(key.as_str()),
    };
}

pub(super) fn pod_object(
    namespace: &str,
    name: &str,
    node: &str,
    ips: &[&str],
    labels: &Value,
) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels,
        },
        "spec": {"nodeName": node, "containers": [{
            "name": "app",
            "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ],
        }]},
        "status": {"phase": "Running", "podIPs": ips},
    })
}

pub(super) fn node_object(name: &str, address: &str, zone: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [
            {"type": "Hostname", "address": name},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": address},
        ]},
    })
}

pub(super) fn namespace_object(name: &str, labels: &Value) -> Value {
    let mut labels = labels.clone();
    labels["kubernetes.io/metadata.name"] = name.into();
    json!({"metadata": {"name": name, "labels": labels}})
}

/// Two nodes; node `a` is this one.
fn cluster() -> Records {
    let mut records = Records::default();
    put::<core::Node>(&mut records, node_object("a", "192.0.2.1", "z1"));
    put::<core::Node>(&mut records, node_object("b", "192.0.2.2", "z2"));
    for (namespace, labels) in
        [("default", json!({})), ("prod", json!({"purpose": "production"})), ("dev", json!({}))]
    {
        put::<core::Namespace>(&mut records, namespace_object(namespace, &labels));
    }
    records
}

fn built(records: &Records) -> Snapshot {
    build::snapshot(records, "a", LISTEN.parse().unwrap())
}

fn local(snapshot: &Snapshot, uid: &str) -> Arc<Pod> {
    snapshot.local_pod_by_uid(uid).unwrap().clone()
}

#[test]
fn pods_and_nodes() {
    let mut records = cluster();
    let mut first = pod_object("default", "p1", "a", &["10.0.0.1", "fd00::1"], &json!({"x": "y"}));
    first["metadata"]["annotations"] = json!({"rdmesh.io/exclude-inbound-ports": "22, 9000-9002,nonsense", "rdmesh.io/fabric": "tcp"});
    put::<core::Pod>(&mut records, first);
    put::<core::Pod>(&mut records, pod_object("default", "p2", "b", &["10.0.1.1"], &json!({})));
    // Its node is not known yet; not scheduled; without an address; of the host network; ended.
    put::<core::Pod>(&mut records, pod_object("default", "p3", "c", &["10.0.2.1"], &json!({})));
    let mut unscheduled = pod_object("default", "p4", "", &[], &json!({}));
    unscheduled["spec"]["nodeName"] = Value::Null;
    put::<core::Pod>(&mut records, unscheduled);
    put::<core::Pod>(&mut records, pod_object("default", "p5", "a", &[], &json!({})));
    let mut host = pod_object("default", "p6", "a", &["192.0.2.1"], &json!({}));
    host["spec"]["hostNetwork"] = true.into();
    put::<core::Pod>(&mut records, host);
    let mut ended = pod_object("default", "p7", "a", &["10.0.0.7"], &json!({}));
    ended["status"]["phase"] = "Failed".into();
    put::<core::Pod>(&mut records, ended);

    let s = built(&records);
    assert_eq!(s.pods_total(), 2);
    assert_eq!(s.node("b").unwrap().address, "192.0.2.2:15700".parse().unwrap());
    let p1 = local(&s, "uid-p1");
    assert_eq!(&*p1.name, "default/p1");
    assert_eq!(&*p1.exclude_inbound_ports, [22, 9000, 9001, 9002]);
    assert_eq!(p1.fabric, Fabric::Tcp);
    assert!(p1.has_address("fd00::1".parse().unwrap()));
    assert_eq!(&*p1.subject.ports, [("http".into(), 8080)]);
    assert!(s.node_owns("b", "10.0.1.1".parse().unwrap()));
    assert!(matches!(s.resolve(&p1, "10.0.1.1:80".parse().unwrap()), Decision::Mesh { .. }));
    // Its sidecar will come; the others' never.
    assert!(s.keeps_directory("uid-p5") && s.local_pod_by_uid("uid-p5").is_none());
    for gone in ["uid-p2", "uid-p3", "uid-p4", "uid-p6", "uid-p7"] {
        assert!(!s.keeps_directory(gone), "{gone}");
    }
}

#[test]
fn an_address_is_the_younger_pods() {
    let mut records = cluster();
    put::<core::Pod>(&mut records, pod_object("default", "old", "a", &["10.0.0.1"], &json!({})));
    let mut young = pod_object("default", "young", "b", &["10.0.0.1"], &json!({}));
    young["metadata"]["creationTimestamp"] = "2026-01-01T00:00:01Z".into();
    put::<core::Pod>(&mut records, young);
    let s = built(&records);
    assert_eq!(&*s.pod("10.0.0.1".parse().unwrap()).unwrap().name, "default/young");
    assert_eq!(s.pods_total(), 1);
    // It may still be ending; its directory goes with it, not before.
    assert!(s.keeps_directory("uid-old"));
}

#[test]
fn this_node_is_there_even_when_the_cluster_does_not_know_it() {
    let records = Records::default();
    let s = build::snapshot(&records, "x", LISTEN.parse().unwrap());
    assert_eq!(&**s.me(), "x");
    assert!(s.node("x").is_some());
}

fn service_object(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn slice_object(service: &str, name: &str, kind: &str, port: u16, endpoints: &Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": kind,
        "ports": [{"name": "web", "port": port, "protocol": "TCP"},
                  {"name": "web-udp", "port": port, "protocol": "UDP"}],
        "endpoints": endpoints,
    })
}

#[test]
fn services_of_two_families_meet_their_endpoints() {
    let mut records = cluster();
    put::<core::Pod>(&mut records, pod_object("default", "c", "a", &["10.0.0.1"], &json!({})));
    put::<core::Pod>(
        &mut records,
        pod_object("default", "s", "b", &["10.0.1.1", "fd00:1::1"], &json!({})),
    );
    put::<core::Service>(
        &mut records,
        service_object(
            "web",
            &json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1", "fd43::1"],
            "ports": [{"name": "web", "port": 80}, {"name": "web-udp", "port": 80, "protocol": "UDP"}]}),
        ),
    );
    put::<core::Service>(
        &mut records,
        service_object(
            "none",
            &json!({"clusterIP": "None", "ports": [{"name": "web", "port": 80}]}),
        ),
    );
    let endpoint = |address: &str| json!([{"addresses": [address], "conditions": {"ready": true}}]);
    let v4 = slice_object("web", "web-4", "IPv4", 8080, &endpoint("10.0.1.1"));
    let v6 = slice_object("web", "web-6", "IPv6", 8080, &endpoint("fd00:1::1"));
    put::<EndpointSlice>(&mut records, v4);
    put::<EndpointSlice>(&mut records, v6);
    let s = built(&records);
    let client = local(&s, "uid-c");
    for (to, wanted) in [("10.43.0.1:80", "10.0.1.1:8080"), ("[fd43::1]:80", "[fd00:1::1]:8080")] {
        let Decision::Mesh { dst, .. } = s.resolve(&client, to.parse().unwrap()) else {
            panic!("{to}")
        };
        assert_eq!(dst, wanted.parse().unwrap());
    }
    let outside = Decision::Passthrough { reason: PassthroughReason::OutsideMesh };
    assert_eq!(s.resolve(&client, "10.43.0.1:81".parse().unwrap()), outside);
    // The last endpoint goes; the service stays.
    put::<EndpointSlice>(&mut records, slice_object("web", "web-4", "IPv4", 8080, &json!([])));
    let none = Decision::Passthrough { reason: PassthroughReason::NoEndpoint };
    assert_eq!(built(&records).resolve(&client, "10.43.0.1:80".parse().unwrap()), none);
}

#[test]
fn a_client_keeps_its_endpoint() {
    let mut records = cluster();
    for client in 1..=20 {
        let (name, ip) = (format!("c{client}"), format!("10.0.0.{client}"));
        put::<core::Pod>(&mut records, pod_object("default", &name, "a", &[&ip], &json!({})));
    }
    let addresses: Vec<String> = (1..=5).map(|n| format!("10.0.1.{n}")).collect();
    for (n, ip) in addresses.iter().enumerate() {
        let name = format!("s{n}");
        put::<core::Pod>(&mut records, pod_object("default", &name, "b", &[ip], &json!({})));
    }
    put::<core::Service>(
        &mut records,
        service_object(
            "web",
            &json!({"clusterIPs": ["10.43.0.1"], "sessionAffinity": "ClientIP",
                    "ports": [{"name": "web", "port": 80}]}),
        ),
    );
    let use_endpoints = |records: &mut Records, n: usize| {
        let list: Vec<Value> = addresses[..n].iter().map(|a| json!({"addresses": [a]})).collect();
        let slice = slice_object("web", "web-4", "IPv4", 8080, &list.into());
        put::<EndpointSlice>(records, slice);
        let s = built(records);
        (1..=20)
            .map(|client| {
                let client = local(&s, &format!("uid-c{client}"));
                let go = || match s.resolve(&client, "10.43.0.1:80".parse().unwrap()) {
                    Decision::Mesh { dst, .. } => dst,
                    other => panic!("{other:?}"),
                };
                let first = go();
                assert!((0..5).all(|_| go() == first));
                first
            })
            .collect::<Vec<_>>()
    };
    let five = use_endpoints(&mut records, 5);
    let used: std::collections::HashSet<_> = five.iter().collect();
    assert!(used.len() >= 3, "{used:?}");
    let four = use_endpoints(&mut records, 4);
    // Only those move whose endpoint is gone.
    for (before, after) in five.iter().zip(&four) {
        assert!(before == after || before.ip().to_string() == addresses[4]);
    }
}

#[derive(Default, Clone, Copy)]
struct E {
    not_ready: bool,
    serving_last: bool,
    node: &'static str,
    zone_hint: &'static str,
    node_hint: &'static str,
}

fn chosen(local_only: bool, all: &[E]) -> Vec<usize> {
    let list = |hint: &str| match hint {
        "" => Box::default(),
        hint => [Arc::from(hint)].into(),
    };
    let endpoint = |(n, e): (usize, &E)| EndpointRecord {
        address: format!("10.0.0.{n}").parse().unwrap(),
        ready: !e.not_ready,
        serving_last: e.serving_last,
        node: Some(e.node.into()),
        for_zones: list(e.zone_hint),
        for_nodes: list(e.node_hint),
    };
    let slice = SliceRecord {
        service: "s".into(),
        is_v6: false,
        ports: [(Arc::from("p"), 1)].into(),
        endpoints: all.iter().enumerate().map(endpoint).collect(),
    };
    let service =
        ServiceRecord { addresses: [].into(), ports: [].into(), sticky: false, local_only };
    let place = Place { node: "a", zone: Some("z1") };
    // The same slice twice: no endpoint counts twice.
    let found = endpoints(&service, "p", false, &[&slice, &slice], place);
    assert_eq!(endpoints(&service, "other", false, &[&slice], place), []);
    found
        .iter()
        .map(|address| match address.ip() {
            std::net::IpAddr::V4(v4) => usize::from(v4.octets()[3]),
            std::net::IpAddr::V6(_) => panic!(),
        })
        .collect()
}

#[test]
fn endpoints_as_kube_proxy_chooses_them() {
    let ready = E { node: "b", ..E::default() };
    let near = E { node: "a", ..ready };
    let out = E { not_ready: true, ..ready };
    let last = E { serving_last: true, ..out };
    let z1 = E { zone_hint: "z1", ..ready };
    let z2 = E { zone_hint: "z2", ..ready };
    assert_eq!(chosen(false, &[ready, out, near]), [0, 2]);
    // Terminating ones only when nothing else is left.
    assert_eq!(chosen(false, &[ready, last]), [0]);
    assert_eq!(chosen(false, &[out, last]), [1]);
    assert!(chosen(false, &[out]).is_empty());
    // internalTrafficPolicy: Local.
    assert_eq!(chosen(true, &[ready, near]), [1]);
    assert!(chosen(true, &[ready, last]).is_empty());
    assert_eq!(chosen(true, &[ready, E { node: "a", ..last }]), [1]);
    // Hints count when all have one and one is for here.
    assert_eq!(chosen(false, &[z1, z2]), [0]);
    assert_eq!(chosen(false, &[z1, ready]), [0, 1]);
    assert_eq!(chosen(false, &[z2, z2]), [0, 1]);
    assert_eq!(chosen(false, &[E { node_hint: "a", ..z2 }, E { node_hint: "b", ..z1 }]), [0]);
    assert_eq!(chosen(false, &[E { node_hint: "c", ..z2 }, E { node_hint: "b", ..z1 }]), [1]);
}

#[test]
fn conditions_that_are_not_told() {
    let slice = slice_object(
        "s",
        "s",
        "IPv4",
        80,
        &json!([
            {"addresses": ["10.0.0.1"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
            {"addresses": []},
            {"addresses": ["a.example"]},
        ]),
    );
    let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
    let record = slice.record(&mut Names::default()).unwrap();
    let found: Vec<(bool, bool)> =
        record.endpoints.iter().map(|e| (e.ready, e.serving_last)).collect();
    assert_eq!(found, [(true, false), (false, true), (false, false)]);
}

/// One of the well-known recipes, and what it does to connections `(from, to, port)`.
struct Recipe {
    name: &'static str,
    policies: Vec<Value>,
    allowed: &'static [(&'static str, &'static str, u16)],
    denied: &'static [(&'static str, &'static str, u16)],
}

pub(super) fn policy_object(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Both ends' policies, as the two node proxies evaluate them.
fn connects(records: &Records, from: &str, to: &str, port: u16) -> Verdict {
    let build = |node: &str| build::snapshot(records, node, LISTEN.parse().unwrap());
    let (a, b) = (build("a"), build("b"));
    let source = local(&a, &format!("uid-{from}"));
    let target = local(&b, &format!("uid-{to}"));
    let dst = SocketAddr::new(target.addresses[0], port);
    match a.resolve(&source, dst) {
        Decision::Deny => Verdict::Deny,
        Decision::Passthrough { reason: PassthroughReason::PolicyUnknown } => Verdict::Unknown,
        Decision::Mesh { .. } => b.ingress(&target, source.addresses[0], port),
        other => panic!("{other:?}"),
    }
}

fn recipes() -> Vec<Recipe> {
    let web = json!({"matchLabels": {"app": "web"}});
    let ns = |spec: Value| vec![policy_object("default", "p", &spec)];
    vec![
        Recipe {
            name: "no policy",
            policies: vec![],
            allowed: &[("client", "web", 80), ("foreign", "web", 80)],
            denied: &[],
        },
        Recipe {
            name: "deny all traffic to an application",
            policies: ns(json!({"podSelector": web, "ingress": []})),
            allowed: &[("client", "db", 80), ("web-a", "db", 80)],
            denied: &[("client", "web", 80), ("foreign", "web", 80)],
        },
        Recipe {
            name: "limit traffic to an application",
            policies: ns(json!({"podSelector": web,
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}]})),
            allowed: &[("client", "web", 80)],
            // The same label, but of another namespace.
            denied: &[("web-a", "web", 80), ("prod-client", "web", 80)],
        },
        Recipe {
            name: "allow all traffic to an application",
            policies: vec![
                policy_object("default", "deny", &json!({"podSelector": web, "ingress": []})),
                policy_object("default", "allow", &json!({"podSelector": web, "ingress": [{}]})),
            ],
            allowed: &[("client", "web", 80), ("prod-client", "web", 1)],
            denied: &[],
        },
        Recipe {
            name: "deny all non-whitelisted traffic to a namespace",
            policies: ns(json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
            allowed: &[("client", "prod-web", 80)],
            denied: &[("client", "web", 80), ("prod-client", "db", 80)],
        },
        Recipe {
            name: "deny all traffic from other namespaces",
            policies: ns(json!({"podSelector": {"matchLabels": {}},
                "ingress": [{"from": [{"podSelector": {}}]}]})),
            allowed: &[("client", "web", 80), ("web-a", "db", 80)],
            denied: &[("prod-client", "web", 80), ("foreign", "db", 80)],
        },
        Recipe {
            name: "allow traffic from all namespaces",
            policies: ns(json!({"podSelector": web,
                "ingress": [{"from": [{"namespaceSelector": {}}]}]})),
            allowed: &[("client", "web", 80), ("prod-client", "web", 80), ("foreign", "web", 80)],
            denied: &[],
        },
        Recipe {
            name: "allow traffic from a namespace",
            policies: ns(json!({"podSelector": web, "ingress": [{"from": [
                {"namespaceSelector": {"matchLabels": {"purpose": "production"}}}]}]})),
            allowed: &[("prod-client", "web", 80)],
            denied: &[("client", "web", 80), ("foreign", "web", 80)],
        },
        Recipe {
            name: "allow traffic from some pods in another namespace",
            policies: ns(json!({"podSelector": web, "ingress": [{"from": [
                {"namespaceSelector": {"matchLabels": {"purpose": "production"}},
                 "podSelector": {"matchLabels": {"role": "client"}}}]}]})),
            allowed: &[("prod-client", "web", 80)],
            denied: &[("prod-other", "web", 80), ("client", "web", 80)],
        },
        Recipe {
            name: "either a namespace or some pods: two peers of one rule",
            policies: ns(json!({"podSelector": web, "ingress": [{"from": [
                {"namespaceSelector": {"matchLabels": {"purpose": "production"}}},
                {"podSelector": {"matchLabels": {"role": "client"}}}]}]})),
            allowed: &[
                ("prod-client", "web", 80),
                ("prod-other", "web", 80),
                ("client", "web", 80),
            ],
            denied: &[("web-a", "web", 80), ("foreign", "web", 80)],
        },
        Recipe {
            name: "allow external traffic",
            policies: ns(json!({"podSelector": web, "ingress": [{"from": []}]})),
            allowed: &[("client", "web", 80), ("foreign", "web", 80)],
            denied: &[],
        },
        Recipe {
            name: "allow traffic only to a port of an application",
            policies: ns(json!({"podSelector": web,
                "ingress": [{"ports": [{"port": 5000}],
                             "from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}]})),
            allowed: &[("client", "web", 5000)],
            denied: &[("client", "web", 5001), ("web-a", "web", 5000)],
        },
        Recipe {
            name: "allow traffic from several applications",
            policies: ns(json!({"podSelector": web, "ingress": [{"from": [
                {"podSelector": {"matchLabels": {"role": "client"}}},
                {"podSelector": {"matchExpressions": [
                    {"key": "app", "operator": "In", "values": ["web", "api"]}]}}]}]})),
            allowed: &[("client", "web", 80), ("web-a", "web", 80)],
            denied: &[("prod-client", "web", 80)],
        },
        Recipe {
            name: "ports: names, ranges, other protocols",
            policies: ns(json!({"podSelector": web, "ingress": [{"ports": [
                {"port": "http"}, {"port": 9000, "endPort": 9010}, {"protocol": "UDP"},
                {"protocol": "UDP", "port": 53}]}]})),
            allowed: &[("client", "web", 8080), ("client", "web", 9000), ("client", "web", 9010)],
            denied: &[("client", "web", 53), ("client", "web", 9011), ("client", "web", 80)],
        },
        Recipe {
            name: "a block of addresses with exceptions",
            policies: ns(json!({"podSelector": web, "ingress": [{"from": [
                {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/32"]}}]}]})),
            allowed: &[("client", "web", 80), ("prod-client", "web", 80)],
            denied: &[("web-a", "web", 80)],
        },
        Recipe {
            name: "deny egress traffic from an application",
            policies: ns(json!({"podSelector": {"matchLabels": {"role": "client"}},
                "policyTypes": ["Egress"], "egress": []})),
            allowed: &[("web-a", "db", 80), ("prod-client", "web", 80)],
            denied: &[("client", "web", 80), ("client", "prod-web", 80)],
        },
        Recipe {
            name: "limit egress traffic from an application to the namespace and a port",
            policies: ns(json!({"podSelector": {"matchLabels": {"role": "client"}},
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}]})),
            allowed: &[("client", "web", 8080)],
            denied: &[("client", "web", 80), ("client", "prod-web", 8080)],
        },
        Recipe {
            name: "deny all egress of a namespace; types that are not told mean ingress alone",
            policies: vec![
                policy_object(
                    "default",
                    "e",
                    &json!({"podSelector": {}, "policyTypes": ["Egress"]}),
                ),
                policy_object("prod", "i", &json!({"podSelector": {}, "ingress": [{}]})),
            ],
            allowed: &[("prod-client", "web", 80)],
            denied: &[("client", "web", 80), ("web-a", "prod-web", 80)],
        },
        Recipe {
            name: "both ends must agree",
            policies: vec![
                policy_object(
                    "default",
                    "out",
                    &json!({"podSelector": {"matchLabels": {"role": "client"}},
                    "policyTypes": ["Egress"],
                    "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"purpose": "production"}}}]}]}),
                ),
                policy_object(
                    "prod",
                    "in",
                    &json!({"podSelector": {},
                    "ingress": [{"from": [{"namespaceSelector": {"matchExpressions": [
                        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["dev"]}]}}],
                        "ports": [{"port": 443}]}]}),
                ),
            ],
            allowed: &[("client", "prod-web", 443), ("web-a", "prod-web", 443)],
            denied: &[
                ("client", "prod-web", 80),
                ("client", "web", 443),
                ("foreign", "prod-web", 443),
            ],
        },
    ]
}

#[test]
fn well_known_recipes() {
    let pods: &[(&str, &str, &str, &str, Value)] = &[
        ("default", "client", "a", "10.0.0.1", json!({"role": "client"})),
        ("default", "web-a", "a", "10.0.0.2", json!({"app": "web", "tier": "x"})),
        ("prod", "prod-client", "a", "10.0.0.3", json!({"role": "client"})),
        ("prod", "prod-other", "a", "10.0.0.4", json!({})),
        ("dev", "foreign", "a", "10.0.0.5", json!({"role": "client"})),
        ("default", "web", "b", "10.0.1.1", json!({"app": "web"})),
        ("default", "db", "b", "10.0.1.2", json!({"app": "db"})),
        ("prod", "prod-web", "b", "10.0.1.3", json!({"app": "web"})),
    ];
    for recipe in recipes() {
        let mut records = cluster();
        for (namespace, name, node, ip, labels) in pods {
            put::<core::Pod>(&mut records, pod_object(namespace, name, node, &[ip], labels));
        }
        for policy in recipe.policies {
            put::<NetworkPolicy>(&mut records, policy);
        }
        for (wanted, cases) in [(Verdict::Allow, recipe.allowed), (Verdict::Deny, recipe.denied)] {
            for (from, to, port) in cases {
                let found = connects(&records, from, to, *port);
                assert_eq!(found, wanted, "{}: {from} to {to}:{port}", recipe.name);
            }
        }
    }
}

#[test]
fn what_cannot_be_evaluated_passes_through() {
    let rule = |rule: Value| json!({"podSelector": {}, "ingress": [rule]});
    let from = |peer: Value| rule(json!({"from": [peer]}));
    for spec in [
        from(json!({"ipBlock": {"cidr": "10.0.0.0/33"}})),
        from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}})),
        from(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})),
        from(json!({})),
        from(json!({"podSelector": {"matchExpressions": [
            {"key": "a", "operator": "Gt", "values": ["1"]}]}})),
        from(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
        rule(json!({"ports": [{"port": "http", "endPort": 9000}]})),
        rule(json!({"ports": [{"port": 70000}]})),
        rule(json!({"ports": [{"protocol": "QUIC", "port": 80}]})),
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "?"}]}, "ingress": []}),
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Sideways"], "ingress": []}),
    ] {
        let mut records = cluster();
        let pods = [("client", "a", "10.0.0.1"), ("web", "b", "10.0.1.1")];
        for (name, node, ip) in pods {
            put::<core::Pod>(&mut records, pod_object("default", name, node, &[ip], &json!({})));
        }
        put::<NetworkPolicy>(&mut records, policy_object("default", "p", &spec));
        assert_eq!(connects(&records, "client", "web", 80), Verdict::Unknown, "{spec}");
    }
}
