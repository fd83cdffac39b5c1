//! `make bench-directory`: what a large cluster costs each node. Generated objects go through the
//! same conversion as an API server's.

use super::records::Records;
use super::tests::{namespace_object, node_object, pod_object, policy_object, put};
use super::watch_tests::{FakeApi, PODS};
use super::{build, convert, watch::Watched};
use crate::directory::Directory;
use crate::metrics::NodeMetrics;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const PODS_PER_NODE: usize = 30;
const PODS_PER_WORKLOAD: usize = 20;
const NAMESPACES: usize = 50;
const LOOKUPS: u32 = 200_000;

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn pod_ip(number: usize) -> String {
    format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255)
}

fn namespace(workload: usize) -> String {
    format!("namespace-{}", workload % NAMESPACES)
}

/// With what real pods carry besides: of no use here, but it must be read.
fn full_pod(number: usize) -> String {
    let workload = number / PODS_PER_WORKLOAD;
    let labels = json!({
        "rdmesh.io/injected": "true", "app.kubernetes.io/name": format!("app-{workload}"),
        "app.kubernetes.io/part-of": "shop", "pod-template-hash": format!("{workload:010x}"),
    });
    let name = format!("app-{workload}-{workload:010x}-{number:05}");
    let node = format!("node-{:04}.example.internal", number / PODS_PER_NODE);
    let mut pod = pod_object(&namespace(workload), &name, &node, &[&pod_ip(number)], &labels);
    pod["metadata"]["uid"] = format!("00000000-0000-4000-8000-{number:012}").into();
    let environment: Vec<Value> = (0..20)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("some value {n}")}))
        .collect();
    pod["spec"]["containers"][0]["env"] = environment.into();
    let conditions: Vec<Value> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}))
        .into();
    pod["status"]["conditions"] = conditions.into();
    pod["metadata"]["managedFields"] = json!([{
        "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}}},
                     "f:containerStatuses": {}, "f:podIP": {}, "f:podIPs": {}, "f:startTime": {}}},
    }]);
    pod.to_string()
}

fn fill_rest(records: &mut Records, pods: usize) {
    for node in 0..pods.div_ceil(PODS_PER_NODE) {
        let address = format!("172.16.{}.{}", node / 250, node % 250 + 1);
        let name = format!("node-{node:04}.example.internal");
        put::<core::Node>(records, node_object(&name, &address, "zone-a"));
    }
    for n in 0..NAMESPACES {
        let name = format!("namespace-{n}");
        put::<core::Namespace>(
            records,
            namespace_object(&name, &json!({"team": format!("t{}", n % 7)})),
        );
        for (policy, spec) in [
            ("deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
            (
                "same",
                json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}],
                            "policyTypes": ["Ingress"]}),
            ),
            (
                "team",
                json!({"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "shop"}},
                "ingress": [{"ports": [{"port": "http"}, {"port": 9000, "endPort": 9100}],
                    "from": [{"namespaceSelector": {"matchExpressions": [
                        {"key": "team", "operator": "In", "values": ["t1", "t2", "t3"]}]}}]}],
                "egress": [{"to": [{"namespaceSelector": {}}]}],
                "policyTypes": ["Ingress", "Egress"]}),
            ),
        ] {
            put::<NetworkPolicy>(records, policy_object(&name, policy, &spec));
        }
    }
    for workload in 0..pods / PODS_PER_WORKLOAD {
        let (namespace, name) = (namespace(workload), format!("app-{workload}"));
        let ip =
            format!("10.{}.{}.{}", 128 + (workload >> 16), (workload >> 8) & 255, workload & 255);
        put::<core::Service>(
            records,
            json!({"metadata": {"name": name, "namespace": namespace},
                   "spec": {"clusterIPs": [ip], "ports": [{"name": "http", "port": 80}]}}),
        );
        let endpoints: Vec<Value> = (0..PODS_PER_WORKLOAD)
            .map(|n| {
                let pod = workload * PODS_PER_WORKLOAD + n;
                json!({"addresses": [pod_ip(pod)], "conditions": {"ready": true},
                       "nodeName": format!("node-{:04}.example.internal", pod / PODS_PER_NODE)})
            })
            .collect();
        put::<EndpointSlice>(
            records,
            json!({"metadata": {"name": format!("{name}-x"), "namespace": namespace,
                                "labels": {"kubernetes.io/service-name": name}},
                   "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
                   "endpoints": endpoints}),
        );
    }
}

fn measure(pods: usize) {
    let before = resident_bytes();
    let mut records = Records::default();
    let (mut reading, mut bytes) = (Duration::ZERO, 0);
    for number in 0..pods {
        let text = full_pod(number);
        let started = Instant::now();
        let object: core::Pod = serde_json::from_str(&text).unwrap();
        let record = object.record(&mut records.names).unwrap();
        let key = convert::full_name(&object.metadata).into();
        records.pods.insert(key, record);
        drop(object);
        reading += started.elapsed();
        bytes += text.len();
    }
    fill_rest(&mut records, pods);
    let kept = resident_bytes().saturating_sub(before);
    let listen: SocketAddr = "0.0.0.0:15700".parse().unwrap();
    let me = "node-0001.example.internal";
    let mut building: Vec<Duration> = Vec::new();
    let mut snapshot = build::snapshot(&records, me, listen);
    for _ in 0..5 {
        let started = Instant::now();
        // As when it is in use: the old one goes when the new one is there.
        snapshot = build::snapshot(&records, me, listen);
        building.push(started.elapsed());
    }
    building.sort();
    let all = resident_bytes().saturating_sub(before);
    assert_eq!(snapshot.pods_total(), pods);

    let source = snapshot.local_pods().next().unwrap().clone();
    let each = |work: &dyn Fn(u32)| {
        let started = Instant::now();
        (0..LOOKUPS).for_each(work);
        started.elapsed() / LOOKUPS
    };
    let pods_u32 = u32::try_from(pods).unwrap();
    let some_pod = |n: u32| {
        let n = n.wrapping_mul(2_654_435_761) % pods_u32;
        std::net::Ipv4Addr::from(0x0a00_0000 + n)
    };
    let by_pod = each(&|n| {
        black_box(snapshot.resolve(&source, SocketAddr::new(some_pod(n).into(), 8080)));
    });
    let services = pods_u32 / u32::try_from(PODS_PER_WORKLOAD).unwrap();
    let by_service = each(&|n| {
        let ip = std::net::Ipv4Addr::from(0x0a80_0000 + n % services);
        black_box(snapshot.resolve(&source, SocketAddr::new(ip.into(), 80)));
    });
    let ingress = each(&|n| {
        black_box(snapshot.ingress(&source, some_pod(n).into(), 8080));
    });
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "{pods} pods, {} nodes, {} services, {} policies:\n  \
         objects of pods: {:.0} MiB of JSON, read in {:.2} s of CPU\n  \
         memory: records {:.1} MiB, with two snapshots {:.1} MiB\n  \
         a new snapshot: median {:.1} ms, longest {:.1} ms\n  \
         a connection, policies included: pod address {by_pod:?}, service {by_service:?}, \
         ingress alone {ingress:?}",
        records.nodes.len(),
        records.services.len(),
        records.policies.len(),
        mib(bytes),
        reading.as_secs_f64(),
        mib(kept),
        mib(all),
        building[2].as_secs_f64() * 1e3,
        building[4].as_secs_f64() * 1e3,
    );
}

#[test]
#[ignore = "a measurement: make bench-directory"]
fn twenty_thousand_pods() {
    measure(20_000);
}

#[test]
#[ignore = "a measurement: make bench-directory"]
fn a_hundred_and_fifty_thousand_pods() {
    measure(150_000);
}

/// An API server with as many pods, in a thread of its own; it ends with the sender.
fn api_server(pods: usize) -> (FakeApi, tokio::sync::oneshot::Sender<()>) {
    let (give, take) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let api = FakeApi::start().await;
            api.set_page(500);
            for number in 0..pods {
                api.put(PODS, serde_json::from_str(&full_pod(number)).unwrap());
            }
            api.forget_history();
            give.send(api).unwrap();
            let _ = stopped.await;
        });
    });
    (take.recv().unwrap(), stop)
}

/// How long the control runtime, where peers and sidecars are served, is held up at most while the
/// pods are read and changes come.
fn stalls(pods: usize) {
    let (api, _stop) = api_server(pods);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let metrics = Arc::new(NodeMetrics::new());
        let listen = "0.0.0.0:15700".parse().unwrap();
        let directory = Directory::kubernetes(&api.kubeconfig, "a", listen, metrics).await.unwrap();
        let directory = Arc::new(directory);
        let mut generations = directory.watch();
        let task = tokio::spawn(Arc::clone(&directory).run());
        let (mut longest, started, cpu) = (Duration::ZERO, Instant::now(), thread_cpu());
        let mut changes = 0;
        let mut read = None;
        let mut last = Instant::now();
        while changes < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            longest = longest.max(last.elapsed());
            if generations.has_changed().unwrap() {
                generations.mark_unchanged();
                read.get_or_insert(started.elapsed());
                changes += 1;
                let mut pod: Value = serde_json::from_str(&full_pod(changes)).unwrap();
                pod["metadata"]["labels"]["changed"] = changes.to_string().into();
                api.put(PODS, pod);
            }
            assert!(started.elapsed() < Duration::from_secs(120), "{changes} changes were seen");
            last = Instant::now();
        }
        task.abort();
        println!(
            "{pods} pods from an API server: complete after {:.2} s; with {changes} changes after \
             that the control thread had {:.0} ms of CPU to do, and was held up for {:.1} ms at most",
            read.unwrap_or_default().as_secs_f64(),
            (thread_cpu() - cpu).as_secs_f64() * 1e3,
            longest.as_secs_f64() * 1e3
        );
    });
}

/// What the calling thread has used.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

#[test]
#[ignore = "a measurement: make bench-directory"]
fn twenty_thousand_pods_do_not_hold_up_the_control_thread() {
    stalls(20_000);
}
