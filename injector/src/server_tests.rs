//! Clients that misbehave, by real TLS connections.

use super::*;
use crate::testing::settings;
use crate::tls::{Serving, server_config};
use rdmesh_proxy::trust::Ca;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const NAME: &str = "rdmesh-injector.rdmesh-system.svc";
const LATE: Duration = Duration::from_secs(20);

struct Server {
    ca: Ca,
    addr: SocketAddr,
    webhook: Arc<Webhook>,
    _stop: oneshot::Sender<()>,
}

fn start(limits: Limits) -> Server {
    let ca = Ca::generate().unwrap();
    let made = ca.issue(NAME, Duration::from_secs(3600)).unwrap();
    let serving = Arc::new(Serving::default());
    serving.set(made.cert_pem.as_bytes(), made.key_pem.as_bytes(), "test").unwrap();
    let template = Template::built_in().unwrap();
    let mut webhook = Webhook::new(template, settings("{}"), Metrics::new().unwrap());
    webhook.limits = limits;
    let webhook = Arc::new(webhook);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    tokio::spawn(serve(listener, server_config(serving).unwrap(), webhook.clone(), shutdown));
    Server { ca, addr, webhook, _stop: stop }
}

impl Server {
    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.cert_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.addr).await?;
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

const REQUEST: &[u8] =
    b"POST /inject/pod HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
    content-length: 2\r\n\r\n{}";

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let server = start(Limits { connections_per_address: 2, ..Limits::default() });
    let first = server.connect().await.unwrap();
    let _second = server.connect().await.unwrap();
    assert!(server.connect().await.is_err());
    drop(first);
    let connected = async {
        while server.connect().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LATE, connected).await.unwrap();
}

#[tokio::test]
async fn who_sends_and_does_not_read_is_left() {
    let stuck = Duration::from_millis(300);
    let server = start(Limits { stuck, ..Limits::default() });
    let mut stream = server.connect().await.unwrap();
    let many = REQUEST.repeat(100);
    // Answers fill the socket's buffers, then nothing moves, then the connection ends.
    let sent = async { while stream.write_all(&many).await.is_ok() {} };
    tokio::time::timeout(LATE, sent).await.expect("the connection stays for ever");
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = start(Limits { idle: Duration::from_millis(300), ..Limits::default() });
    let mut stream = server.connect().await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LATE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    assert!(answer.starts_with(b"HTTP/1.1 400"));
}

#[tokio::test]
async fn answers_of_a_server_that_stops_close_the_connection() {
    let server = start(Limits::default());
    let mut stream = server.connect().await.unwrap();
    server.webhook.stopping.store(true, Ordering::Relaxed);
    stream.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LATE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("connection: close"), "{answer}");
}

/// A pod that is small on the wire and large when it is read.
#[tokio::test]
async fn a_large_review_is_answered_beside_others() {
    let server = start(Limits::default());
    let pods = "0,".repeat(REVIEW_BYTES_MAX / 2 - 200);
    let body = format!("{{\"apiVersion\":\"x\",\"kind\":\"y\",\"request\":[{pods}0]}}");
    let head = format!(
        "POST /inject/pod HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = server.connect().await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let send = async {
        writer.write_all(head.as_bytes()).await.unwrap();
        writer.write_all(body.as_bytes()).await.unwrap();
        writer.flush().await.unwrap();
    };
    let mut answer = [0; 512];
    let (read, ()) = tokio::join!(reader.read(&mut answer), send);
    let answer = String::from_utf8_lossy(&answer[..read.unwrap()]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}
