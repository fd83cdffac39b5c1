//! The chart on a control plane, with injectors that run here.

use super::plane::Plane;
use super::scratch::Process;
use crate::common::chart::render;
use crate::common::injector::SOON;
use rdmesh_config::read_documents;
use rdmesh_proxy::admin;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Instant;

pub const NAMESPACE: &str = "rdmesh-system";
/// A namespace whose pods are meshed.
pub const MESHED: &str = "shop";
const PORT: u16 = 15_793;
const ADMIN_PORT: u16 = 15_792;

pub struct Mesh<'a> {
    pub plane: &'a Plane,
    objects: Vec<Value>,
}

/// What `helm install` brings: no hooks, and nothing of others' definitions.
pub fn installed(set: &str) -> Vec<Value> {
    let mut objects = render(set);
    objects.retain(|object| {
        let foreign = ["Certificate", "Issuer", "PodMonitor", "PrometheusRule"];
        let kind = object["kind"].as_str().unwrap();
        !foreign.contains(&kind) && object["metadata"]["annotations"]["helm.sh/hook"].is_null()
    });
    objects
}

impl<'a> Mesh<'a> {
    pub fn install(plane: &'a Plane, set: &str) -> Self {
        let objects = installed(set);
        plane.namespace(NAMESPACE, &json!({"pod-security.kubernetes.io/enforce": "privileged"}));
        plane.apply(&objects);
        plane.namespace(MESHED, &json!({"rdmesh.io/inject": "enabled"}));
        Self { plane, objects }
    }

    fn config_map(&self, key: &str) -> &str {
        let named = |object: &&Value| {
            object["kind"] == "ConfigMap" && object["metadata"]["name"] == "rdmesh-config"
        };
        self.objects.iter().find(named).unwrap()["data"][key].as_str().unwrap()
    }

    /// The program as the Deployment runs it, but for its addresses; with the rights that the chart gives it.
    pub fn start(&self, number: u8) -> Injector {
        let scratch = &self.plane.scratch;
        let token = self.token(&["rdmesh-injector", "--duration", "1h"]);
        let kubeconfig = self.plane.kubeconfig(&format!("injector-{number}.kubeconfig"), &token);
        let mut config: Value = read_documents(self.config_map("injector.yaml"), "injector.yaml")
            .unwrap()
            .pop()
            .unwrap();
        let at = |port| SocketAddr::new([10, 97, 0, number].into(), port);
        let (listen, admin) = (at(PORT), at(ADMIN_PORT));
        scratch.write("template.yaml", self.config_map("template.yaml"));
        config["injector"]["template"] = json!(scratch.path("template.yaml"));
        config["injector"]["listen"] = json!(listen);
        config["injector"]["admin"] = json!(admin);
        let file = format!("injector-{number}.yaml");
        scratch.write(&file, &config.to_string());
        let process = Process::start(
            Command::new(env!("CARGO_BIN_EXE_rdmesh-injector"))
                .args(["serve", "--config"])
                .arg(scratch.path(&file))
                .env("KUBECONFIG", kubeconfig),
            &scratch.path(&format!("injector-{number}.log")),
        );
        Injector { process, listen, admin }
    }

    pub fn token(&self, arguments: &[&str]) -> String {
        let create = ["create", "token", "--namespace", NAMESPACE];
        self.plane.kubectl(&[&create, arguments].concat(), "").trim().to_owned()
    }

    /// What the endpoints' controller would say.
    pub fn endpoints(&self, numbers: &[u8]) {
        let endpoints: Vec<Value> = numbers
            .iter()
            .map(|number| json!({"addresses": [format!("10.97.0.{number}")], "conditions": {"ready": true}}))
            .collect();
        self.plane.apply(&[json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "rdmesh-injector-1", "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": "rdmesh-injector"},
            },
            "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
            "endpoints": endpoints,
        })]);
    }

    /// Waits until admissions go through the injectors: the API server learns of endpoints and bundles in a moment.
    pub fn wait_until_injecting(&self) {
        let start = Instant::now();
        let pod = pod("probe", MESHED, &json!({}));
        loop {
            let output = self.plane.kubectl_try(
                &["create", "--dry-run=server", "-o", "json", "-f", "-"],
                &pod.to_string(),
            );
            let made: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if is_injected(&made) {
                return;
            }
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(start.elapsed() < SOON, "pods are not injected: {told} {made}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

pub struct Injector {
    pub process: Process,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
}

impl Injector {
    pub async fn wait_until_ready(&self) {
        let start = Instant::now();
        while admin::get(self.admin, "/readyz", SOON).await.is_err() {
            assert!(start.elapsed() < SOON, "not ready");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

pub fn pod(name: &str, namespace: &str, metadata: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    });
    for (key, value) in metadata.as_object().unwrap() {
        pod["metadata"][key] = value.clone();
    }
    pod
}

/// Whether a pod, as the API server has it, has got all parts.
pub fn is_injected(pod: &Value) -> bool {
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|part| Some(part["name"].as_str()?.to_owned())).collect()
    };
    let inits = names(&pod["spec"]["initContainers"]);
    let volumes = names(&pod["spec"]["volumes"]);
    inits.iter().any(|name| name == "rdmesh-init")
        && inits.iter().any(|name| name == "rdmesh-proxy")
        && volumes.iter().any(|name| name == "rdmesh-pod")
        && pod["metadata"]["labels"]["rdmesh.io/injected"] == "true"
        && pod["metadata"]["annotations"]["rdmesh.io/status"].is_string()
}
