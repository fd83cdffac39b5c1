//! Certificates that change while pods are made.

use super::common::client::Client as Https;
use super::common::injector::SOON;
use super::load::{Load, client};
use super::mesh::{Mesh, NAMESPACE, pod};
use super::plane::Plane;
use super::scratch::Process;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// The CA is announced at 27 s, signs from 38 s on, and its predecessor is forgotten at 49 s.
const LIFETIMES: &str = "injector.failurePolicy=Fail,certificates.lifetimes.ca=54,\
    certificates.lifetimes.serving=9,certificates.lifetimes.node=9";
const WATCH: Duration = Duration::from_secs(110);
const LOOK: Duration = Duration::from_millis(250);

/// The certificates of a PEM text.
fn certificates(pem: &str) -> Vec<Vec<u8>> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes());
    found.map(|certificate| certificate.unwrap().to_vec()).collect()
}

#[derive(Default)]
struct Seen {
    /// What each replica showed.
    shown: [BTreeSet<Vec<u8>>; 2],
    /// The sets of trusted CAs, one after another.
    trusted: Vec<Vec<Vec<u8>>>,
    /// What the node proxy's certificate was.
    node: BTreeSet<Vec<u8>>,
}

impl Seen {
    /// The first CA has been announced a successor, has been replaced by it, and is forgotten.
    fn is_replaced(&self) -> bool {
        let (Some(first), Some(last)) = (self.trusted.first(), self.trusted.last()) else {
            return false;
        };
        last.len() == 1 && last[0] != first[0]
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-kube"]
async fn certificates_are_replaced_and_no_admission_fails() {
    let plane = Plane::start("rotation");
    let mesh = Mesh::install(&plane, LIFETIMES);
    let injectors = [1, 2].map(|number| mesh.start(number));
    for injector in &injectors {
        injector.wait_until_ready().await;
    }
    mesh.endpoints(&[1, 2]);
    mesh.wait_until_injecting();
    let secrets: Api<Secret> =
        Api::namespaced(client(&plane.scratch.path("admin.kubeconfig")).await, NAMESPACE);
    let trusted = || async {
        let secret = secrets.get("rdmesh-ca").await.unwrap();
        String::from_utf8(secret.data.unwrap()["ca.crt"].0.clone()).unwrap()
    };
    plane.scratch.write("mounted-ca.crt", &trusted().await);
    let _node = node_certificate(&mesh);
    let node_file = plane.scratch.path("node/tls.crt");

    let load = Load::start(plane.scratch.path("admin.kubeconfig"));
    let (start, mut seen) = (Instant::now(), Seen::default());
    while !(seen.is_replaced() && seen.node.len() > 3) {
        assert!(start.elapsed() < WATCH, "steps seen: {}", seen.trusted.len());
        let pem = trusted().await;
        if seen.trusted.last() != Some(&certificates(&pem)) {
            seen.trusted.push(certificates(&pem));
        }
        // kubelet does so in a pod that has the Secret mounted.
        plane.scratch.write("mounted-ca.crt", &pem);
        for (injector, shown) in injectors.iter().zip(&mut seen.shown) {
            let (_, certificate) = Https::connect(&pem, injector.listen).await.unwrap();
            shown.insert(certificate);
        }
        if let Ok(text) = std::fs::read_to_string(&node_file) {
            seen.node.extend(certificates(&text));
        }
        tokio::time::sleep(LOOK).await;
    }
    let admissions = load.stop();
    let lengths: Vec<usize> = seen.trusted.iter().map(Vec::len).collect();
    assert!(lengths.starts_with(&[1, 2, 2, 1]), "{lengths:?}");
    let [announced, switched] = [&seen.trusted[1], &seen.trusted[2]];
    assert_eq!((&announced[0], &announced[1]), (&switched[1], &switched[0]));
    for shown in &seen.shown {
        assert!(shown.len() > 3, "{} serving certificates", shown.len());
    }
    let [first, second] = [seen.shown[0].len(), seen.shown[1].len()];
    println!(
        "{admissions} admissions in {:.0} s; {first} and {second} serving certificates, {} of the node proxy, \
         CAs trusted: {lengths:?}",
        start.elapsed().as_secs_f64(),
        seen.node.len()
    );
}

/// The program that runs beside a node proxy, with a token that is bound to a pod on a node.
fn node_certificate(mesh: &Mesh<'_>) -> Process {
    let plane = mesh.plane;
    plane.apply(&[json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"}})]);
    let mut pod = pod("rdmesh-node-x", NAMESPACE, &json!({}));
    pod["spec"]["serviceAccountName"] = json!("rdmesh-node");
    pod["spec"]["nodeName"] = json!("worker-1");
    plane.create(&pod).unwrap();
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "rdmesh-node-x"];
    let audience = ["rdmesh-node", "--audience", "rdmesh-injector"];
    let token = mesh.token(&[&audience[..], &bound[..]].concat());
    plane.scratch.write("node-token", &token);
    let dir = plane.scratch.path("node");
    std::fs::create_dir_all(&dir).unwrap();
    let process = Process::start(
        Command::new(env!("CARGO_BIN_EXE_rdmesh-injector"))
            .args(["node-certificate", "--injector", "10.97.0.1:15793"])
            .args(["--server-name", "rdmesh-injector.rdmesh-system.svc"])
            .arg("--ca")
            .arg(plane.scratch.path("mounted-ca.crt"))
            .arg("--token")
            .arg(plane.scratch.path("node-token"))
            .arg("--dir")
            .arg(&dir),
        &plane.scratch.path("node-certificate.log"),
    );
    let start = Instant::now();
    while !dir.join("tls.crt").exists() {
        let log = std::fs::read_to_string(plane.scratch.path("node-certificate.log"));
        assert!(start.elapsed() < SOON, "no certificate for the node proxy: {log:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    process
}
