//! The webhook at a real control plane: etcd, kube-apiserver, the chart's objects, and the running program.
//!
//! `make test-kube` runs them, in a network namespace and one after another: each has a control plane of its own.

#[path = "../common/mod.rs"]
mod common;
mod load;
mod mesh;
mod plane;
mod rotation;
mod scratch;

use common::chart::root;
use common::injector::{SOON, metric};
use load::Load;
use mesh::{MESHED, Mesh, NAMESPACE, installed, is_injected, pod};
use plane::{Plane, list};
use rdmesh_config::read_documents;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn injected_admissions() -> &'static str {
    "rdmesh_injector_admissions_total{outcome=\"injected\"}"
}

/// The pod that a workload's controller would make.
fn pod_of(workload: &Value) -> Value {
    let mut template = workload["spec"]["template"].clone();
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["name"] = workload["metadata"]["name"].clone();
    template["metadata"]["namespace"] = workload["metadata"]["namespace"].clone();
    template
}

#[test]
#[ignore = "needs a control plane: make test-kube"]
fn what_the_chart_renders_is_accepted() {
    let plane = Plane::start("chart");
    plane.namespace(NAMESPACE, &json!({"pod-security.kubernetes.io/enforce": "privileged"}));
    for set in [
        "",
        "node.rdma.mode=devicePlugin,node.rdma.resource=example.com/hca,injector.replicas=1,sidecar.native=false",
        "node.rdma.mode=hostPath,networkPolicy.enabled=false,monitoring.annotations=false,monitoring.dashboard=true,\
         injector.excludeNamespaces={a,b},injector.failurePolicy=Fail,imagePullSecrets[0].name=pull",
        "certificates.webhook=certManager,node.config.workers=4,sidecar.cpuLimit=",
    ] {
        let objects = installed(set);
        let apply = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
        let output = plane.kubectl_try(&apply, &list(&objects));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "[{set}] {told}");
        // Their service accounts must be there before their pods.
        let accounts: Vec<Value> =
            objects.iter().filter(|object| object["kind"] == "ServiceAccount").cloned().collect();
        plane.apply(&accounts);
        let mut pods = 0;
        for object in objects.iter().filter(|object| object["spec"]["template"].is_object()) {
            let pod = pod_of(object);
            let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
            let output = plane.kubectl_try(&create, &pod.to_string());
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && told.is_empty(), "[{set}] {told}");
            pods += 1;
        }
        assert_eq!(pods, 2);
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-kube"]
async fn pods_get_what_their_labels_and_annotations_say() {
    let plane = Plane::start("pods");
    let mesh = Mesh::install(&plane, "injector.failurePolicy=Fail");
    let injector = mesh.start(1);
    injector.wait_until_ready().await;
    mesh.endpoints(&[1]);
    mesh.wait_until_injecting();
    plane.namespace("other", &json!({}));

    let label = |value: &str| json!({"labels": {"rdmesh.io/inject": value}});
    let host_network = |mut pod: Value| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod
    };
    for (what, pod, injected) in [
        ("a meshed namespace", pod("a", MESHED, &json!({})), true),
        ("a pod that says no", pod("b", MESHED, &label("disabled")), false),
        ("another namespace", pod("a", "other", &json!({})), false),
        ("a pod that says yes there", pod("b", "other", &label("enabled")), true),
        ("the node's network", host_network(pod("c", MESHED, &json!({}))), false),
    ] {
        let made = plane.create(&pod).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(is_injected(&made), injected, "{what}: {made:#}");
        assert_eq!(
            is_injected(&plane.get(&[
                "pod",
                "-n",
                pod["metadata"]["namespace"].as_str().unwrap(),
                pod["metadata"]["name"].as_str().unwrap()
            ])),
            injected,
            "{what}"
        );
    }
    let made = plane.get(&["pod", "-n", MESHED, "a"]);
    let inits = made["spec"]["initContainers"].as_array().unwrap();
    assert_eq!(inits[1]["restartPolicy"], "Always", "{made:#}");
    assert_eq!(inits.len(), 2, "called twice, added once");

    // The golden pods, and what the API server's validation says to them with our parts.
    let mut pods = 0;
    for entry in std::fs::read_dir(root().join("injector/tests/golden")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let mut pod: Value = read_documents(&text, "golden").unwrap().pop().unwrap();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        if pod["metadata"].is_null() {
            pod["metadata"] = json!({});
        }
        if pod["metadata"]["generateName"].is_null() && pod["metadata"]["name"].is_null() {
            pod["metadata"]["name"] = json!("unnamed");
        }
        pod["metadata"]["namespace"] = json!(MESHED);
        let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let output = plane.kubectl_try(&create, &pod.to_string());
        let told = String::from_utf8_lossy(&output.stderr);
        pods += 1;
        if file.file_name().unwrap().to_string_lossy().starts_with("wrong") {
            assert!(told.contains("denied the request: rdmesh: "), "{}: {told}", file.display());
            continue;
        }
        assert!(output.status.success(), "{}: {told}", file.display());
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(is_injected(&made), "{}: {made:#}", file.display());
    }
    assert!(pods >= 8, "{pods}");

    let annotated = |name: &str, value: &str| {
        let mut pod = pod("wrong", MESHED, &json!({}));
        pod["metadata"]["annotations"] = json!({name: value});
        plane.create(&pod).unwrap_err()
    };
    for (name, value, allowed) in [
        ("rdmesh.io/exclude-outbound-ports", "80,http", "ports of 1 to 65535"),
        ("rdmesh.io/include-outbound-cidrs", "10.0.0.1/8", "networks without bits"),
        ("rdmesh.io/fabric", "copper", "one of auto, tcp, verbs"),
        ("rdmesh.io/proxy-memory", "lots", "optional suffix"),
    ] {
        let told = annotated(name, value);
        for part in [name, value, allowed, "rdmesh"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
    assert!(metric(injector.admin, injected_admissions()).await >= 3.0);
}

#[tokio::test]
#[ignore = "needs a control plane: make test-kube"]
async fn without_an_injector_the_failure_policy_decides() {
    let plane = Plane::start("down");
    let mesh = Mesh::install(&plane, "injector.failurePolicy=Ignore");
    let injector = mesh.start(1);
    injector.wait_until_ready().await;
    mesh.endpoints(&[1]);
    mesh.wait_until_injecting();
    drop(injector);
    let made = plane.create(&pod("ignored", MESHED, &json!({}))).unwrap();
    assert!(!is_injected(&made), "{made:#}");

    // As `helm upgrade` does, which does not know of the bundle and must not lose it.
    let mut webhook = plane.get(&["mutatingwebhookconfiguration", "rdmesh-injector"]);
    for hook in webhook["webhooks"].as_array_mut().unwrap() {
        assert!(hook["clientConfig"]["caBundle"].is_string());
    }
    plane.apply(&installed("injector.failurePolicy=Fail"));
    webhook = plane.get(&["mutatingwebhookconfiguration", "rdmesh-injector"]);
    for hook in webhook["webhooks"].as_array().unwrap() {
        assert_eq!(hook["failurePolicy"], "Fail");
        assert!(hook["clientConfig"]["caBundle"].is_string(), "the upgrade lost the bundle");
    }
    let start = Instant::now();
    let told = loop {
        // The API server takes up the other policy in a moment.
        match plane.create(&pod("refused", MESHED, &json!({}))) {
            Err(told) => break told,
            Ok(_) => plane.kubectl(&["delete", "pod", "-n", MESHED, "refused", "--now"], ""),
        };
        assert!(start.elapsed() < SOON, "pods are not refused");
    };
    assert!(told.contains("failed calling webhook \"namespace.rdmesh.io\""), "{told}");
    // Nobody else is kept from anything.
    plane.namespace("other", &json!({}));
    plane.create(&pod("free", "other", &json!({}))).unwrap();
    plane
        .create(&pod("free", MESHED, &json!({"labels": {"rdmesh.io/inject": "disabled"}})))
        .unwrap();

    let injector = mesh.start(2);
    injector.wait_until_ready().await;
    mesh.endpoints(&[2]);
    mesh.wait_until_injecting();
    assert!(is_injected(&plane.create(&pod("again", MESHED, &json!({}))).unwrap()));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-kube"]
async fn replicas_agree_and_may_leave_one_after_another() {
    let plane = Plane::start("replicas");
    let mesh = Mesh::install(&plane, "injector.failurePolicy=Fail");
    // All at once, and the Secret is empty: one of them makes the authority.
    let mut injectors = [1, 2, 3].map(|number| mesh.start(number));
    for injector in &injectors {
        injector.wait_until_ready().await;
    }
    let secret = plane.get(&["secret", "-n", NAMESPACE, "rdmesh-ca"]);
    for _ in 0..10 {
        let again = plane.get(&["secret", "-n", NAMESPACE, "rdmesh-ca"]);
        assert_eq!(again["data"], secret["data"], "they do not agree");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    mesh.endpoints(&[1, 2, 3]);
    mesh.wait_until_injecting();
    let load = Load::start(plane.scratch.path("admin.kubeconfig"));
    for left in [&[2, 3][..], &[3]] {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let leaving = &mut injectors[2 - left.len()];
        // A pod that is deleted leaves the endpoints and is told to stop at one time.
        leaving.process.terminate();
        mesh.endpoints(left);
        let start = Instant::now();
        while !leaving.process.has_ended() {
            assert!(start.elapsed() < SOON, "it does not stop");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.stop();
    assert!(metric(injectors[2].admin, injected_admissions()).await > 50.0);
}
