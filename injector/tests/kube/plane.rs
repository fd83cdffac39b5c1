//! A control plane for a test: etcd and kube-apiserver, and kubectl as its administrator.
//!
//! It wants a network namespace of its own (`tests/kube-netns.sh`) with fixed ports. What it does not do: run
//! controllers, kubelets or a cluster's network; the tests put in place what those would make.

use super::scratch::{Process, Scratch};
use rdmesh_proxy::trust::Ca;
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(90);
const SERVER: &str = "https://localhost:6443";

pub struct Plane {
    // In this order they end.
    api: Process,
    _etcd: Process,
    pub scratch: Scratch,
}

/// The folder that envtest's tools make: kube-apiserver, kubectl, and etcd unless that is on the PATH.
fn assets() -> PathBuf {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).unwrap_or_default();
    assert!(
        assets.join("kube-apiserver").exists() && assets.join("kubectl").exists(),
        "KUBEBUILDER_ASSETS must be a folder with kube-apiserver and kubectl, as `setup-envtest use` makes it; \
         `make test-kube` runs these tests"
    );
    assets
}

impl Plane {
    pub fn start(name: &str) -> Self {
        assert!(
            std::env::var_os("RDMESH_TEST_NETNS").is_some(),
            "these tests want a network namespace of their own: `make test-kube` runs them"
        );
        let assets = assets();
        let scratch = Scratch::new(name);
        let ca = Ca::generate().unwrap();
        let serving = ca.issue("localhost", Duration::from_secs(86_400)).unwrap();
        scratch.write("ca.crt", ca.cert_pem());
        scratch.write("api.crt", &serving.cert_pem);
        scratch.write("api.key", &serving.key_pem);
        scratch.write("tokens.csv", "admin-token,admin,1,system:masters\n");
        let at = |name: &str| scratch.path(name).display().to_string();
        let own_etcd = assets.join("etcd");
        let etcd = if own_etcd.exists() { own_etcd } else { "etcd".into() };
        let etcd = Process::start(
            Command::new(etcd)
                .args(["--data-dir", &at("etcd"), "--log-level", "error", "--unsafe-no-fsync"])
                .args(["--listen-client-urls", "http://127.0.0.1:2379"])
                .args(["--advertise-client-urls", "http://127.0.0.1:2379"])
                .args(["--listen-peer-urls", "http://127.0.0.1:2380"]),
            &scratch.path("etcd.log"),
        );
        let api = Process::start(
            Command::new(assets.join("kube-apiserver"))
                .args(["--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443"])
                .args(["--bind-address=127.0.0.1", "--advertise-address=10.97.0.10"])
                .arg(format!("--tls-cert-file={}", at("api.crt")))
                .arg(format!("--tls-private-key-file={}", at("api.key")))
                .arg(format!("--token-auth-file={}", at("tokens.csv")))
                // Any key does for the tokens of service accounts.
                .arg(format!("--service-account-key-file={}", at("api.crt")))
                .arg(format!("--service-account-signing-key-file={}", at("api.key")))
                .arg("--service-account-issuer=https://kubernetes.default.svc")
                .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
                .arg("--service-cluster-ip-range=10.96.0.0/24")
                // Webhooks are reached at the endpoints of their Service: nobody makes Service addresses work here.
                .arg("--enable-aggregator-routing=true"),
            &scratch.path("kube-apiserver.log"),
        );
        let mut plane = Self { api, _etcd: etcd, scratch };
        plane.kubeconfig("admin.kubeconfig", "admin-token");
        let start = Instant::now();
        while !plane.is_ready() {
            let log = std::fs::read_to_string(plane.scratch.path("kube-apiserver.log"));
            let log = log.unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            let waiting = start.elapsed() < START && !plane.api.has_ended();
            assert!(waiting, "no control plane: {tail:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        plane
    }

    fn is_ready(&self) -> bool {
        [&["get", "--raw", "/readyz"][..], &["get", "namespace", "default"]]
            .iter()
            .all(|arguments| self.kubectl_try(arguments, "").status.success())
    }

    /// A file for the holder of `token`.
    pub fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let ca = self.scratch.path("ca.crt").display().to_string();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: \"{SERVER}\", certificate-authority: {ca}}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        self.scratch.write(name, &text);
        self.scratch.path(name)
    }

    pub fn kubectl_try(&self, arguments: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(assets().join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.scratch.path("admin.kubeconfig"))
            .args(arguments)
            // Its cache of what the API server has goes with the test.
            .env("HOME", self.scratch.path("."))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read has its own reasons, which it tells.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    pub fn kubectl(&self, arguments: &[&str], stdin: &str) -> String {
        let output = self.kubectl_try(arguments, stdin);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn apply(&self, objects: &[Value]) {
        self.kubectl(&["apply", "--server-side", "-f", "-"], &list(objects));
    }

    pub fn get(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat(), "");
        serde_json::from_str(&text).unwrap()
    }

    /// A namespace in which pods can be made, with the service account that a controller would give it.
    pub fn namespace(&self, name: &str, labels: &Value) {
        self.apply(&[
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
            serde_json::json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": name}}),
        ]);
    }

    /// Like `kubectl create`: the pod as it was stored, or what kubectl says.
    pub fn create(&self, object: &Value) -> Result<Value, String> {
        let output = self.kubectl_try(&["create", "-o", "json", "-f", "-"], &object.to_string());
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    }
}

pub fn list(objects: &[Value]) -> String {
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}
