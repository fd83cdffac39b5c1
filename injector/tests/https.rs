//! A real HTTPS client and the running program: admissions, probes, metrics, certificates that change.

mod common;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rdmesh_proxy::trust::Ca;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const NAME: &str = "rdmesh-injector.rdmesh-system.svc";
const SOON: Duration = Duration::from_secs(20);

struct Injector {
    child: Child,
    dir: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Injector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn write_certificate(ca: &Ca, dir: &Path) {
    let made = ca.issue(NAME, Duration::from_secs(86_400)).unwrap();
    std::fs::write(dir.join("tls.key"), made.key_pem).unwrap();
    std::fs::write(dir.join("tls.crt"), made.cert_pem).unwrap();
}

async fn start(ca: &Ca, name: &str) -> Injector {
    let dir = std::env::temp_dir().join(format!("rdmesh-injector-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    write_certificate(ca, &dir);
    let (listen, admin) = (free(), free());
    let shown = dir.display();
    let config = format!(
        "log: {{level: warn}}\ninjector: {{listen: \"{listen}\", admin: \"{admin}\", cert: {shown}/tls.crt, \
         key: {shown}/tls.key, image: example.org/rdmesh:test}}\n"
    );
    std::fs::write(dir.join("config.yaml"), config).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_rdmesh-injector"))
        .args(["serve", "--config"])
        .arg(dir.join("config.yaml"))
        .spawn()
        .unwrap();
    let injector = Injector { child, dir, listen, admin };
    let start = Instant::now();
    while rdmesh_proxy::admin::get(admin, "/readyz", SOON).await.is_err() {
        assert!(start.elapsed() < SOON, "not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    injector
}

struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl Client {
    async fn connect(ca: &Ca, addr: SocketAddr) -> Result<(Self, Vec<u8>), String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
        let name = ServerName::try_from(NAME).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Ok((Self { sender }, shown))
    }

    async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> (StatusCode, Bytes) {
        let request = Request::post(path)
            .header("host", NAME)
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        let status = answer.status();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    }

    async fn review(&mut self, path: &str, pod: &Value) -> Value {
        let (status, body) = self.post(path, review(pod)).await;
        assert_eq!(status, StatusCode::OK, "{body:?}");
        serde_json::from_slice(&body).unwrap()
    }
}

fn review(pod: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "shop",
            "operation": "CREATE", "object": pod,
        }
    })
    .to_string()
}

fn pod() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "web"}]}})
}

async fn metric(admin: SocketAddr, series: &str) -> f64 {
    let text = rdmesh_proxy::admin::get(admin, "/metrics", SOON).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    let line =
        text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{text}"));
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn admissions_over_https() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "admissions").await;
    let (mut client, _) = Client::connect(&ca, injector.listen).await.unwrap();
    let answer = client.review("/inject/namespace", &pod()).await;
    let response = &answer["response"];
    assert_eq!((response["uid"].as_str(), response["allowed"].as_bool()), (Some("u1"), Some(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    let answer = client.review("/inject/pod", &pod()).await;
    assert!(answer["response"].get("patch").is_none(), "{answer}");
    let mut wrong = pod();
    wrong["metadata"]["annotations"] = json!({"rdmesh.io/fabric": "copper"});
    let answer = client.review("/inject/namespace", &wrong).await;
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("rdmesh.io/fabric") && message.contains("\"copper\""), "{message}");
    assert_eq!(client.post("/inject/namespace", "{").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(client.post("/other", "{}").await.0, StatusCode::NOT_FOUND);
    let count =
        |outcome: &str| format!("rdmesh_injector_admissions_total{{outcome=\"{outcome}\"}}");
    for outcome in ["injected", "skipped", "rejected", "malformed"] {
        assert_eq!(metric(injector.admin, &count(outcome)).await, 1.0, "{outcome}");
    }
    assert_eq!(metric(injector.admin, "rdmesh_injector_admission_seconds_count").await, 4.0);
    rdmesh_proxy::admin::get(injector.admin, "/livez", SOON).await.unwrap();
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "large").await;
    let (mut client, _) = Client::connect(&ca, injector.listen).await.unwrap();
    let body = vec![b' '; rdmesh_injector::review::REVIEW_BYTES_MAX + 1];
    assert_eq!(client.post("/inject/namespace", body).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let (mut client, _) = Client::connect(&ca, injector.listen).await.unwrap();
    client.review("/inject/namespace", &pod()).await;
}

#[tokio::test]
async fn a_changed_certificate_is_taken_up_and_no_admission_fails() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "rotation").await;
    let (mut old, first) = Client::connect(&ca, injector.listen).await.unwrap();
    // A key without its certificate is what a reader may see in the middle of a change.
    std::fs::write(injector.dir.join("tls.key"), "half").unwrap();
    write_certificate(&ca, &injector.dir);
    let start = Instant::now();
    loop {
        let (mut client, shown) = Client::connect(&ca, injector.listen).await.unwrap();
        client.review("/inject/namespace", &pod()).await;
        old.review("/inject/namespace", &pod()).await;
        if shown != first {
            break;
        }
        assert!(start.elapsed() < SOON, "the old certificate is still shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (mut client, _) = Client::connect(&ca, injector.listen).await.unwrap();
    client.review("/inject/namespace", &pod()).await;
    let stranger = Ca::generate().unwrap();
    assert!(Client::connect(&stranger, injector.listen).await.is_err());
}
