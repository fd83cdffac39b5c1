//! Fetches a node proxy's certificate from the injector.
//!
//! What it does not do: decide when.

use crate::authority::{CERTIFICATE_PATH, NodeRequest, NodeResponse};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rdmesh_proxy::trust;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: String,
    pub server_name: String,
    pub ca: PathBuf,
    pub token: PathBuf,
}

/// A key and its certificate, PEM.
#[derive(Clone)]
pub struct Fetched {
    pub node: String,
    /// When to fetch another.
    pub renew_after: Duration,
    certificate: String,
    key: String,
    ca: String,
}

impl Fetched {
    /// Writes each file whole or not at all, the certificate last: whoever reads between finds a pair that does
    /// not match, and looks again.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        for (name, text) in
            [("ca.crt", &self.ca), ("tls.key", &self.key), ("tls.crt", &self.certificate)]
        {
            let beside = dir.join(format!(".{name}.new"));
            let _ = std::fs::remove_file(&beside);
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            std::fs::rename(&beside, dir.join(name))?;
        }
        Ok(())
    }
}

/// # Errors
/// With what to look at.
pub async fn fetch(endpoint: &Endpoint) -> Result<Fetched, String> {
    let late = |_| format!("no answer from {} in {} s", endpoint.address, TIMEOUT.as_secs());
    tokio::time::timeout(TIMEOUT, fetch_untimed(endpoint)).await.map_err(late)?
}

async fn fetch_untimed(endpoint: &Endpoint) -> Result<Fetched, String> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let (request, key) = trust::request().map_err(|error| error.to_string())?;
    let body = serde_json::to_vec(&NodeRequest { request }).map_err(|error| error.to_string())?;
    let request = Request::post(CERTIFICATE_PATH)
        .header(HOST, &endpoint.server_name)
        .header(AUTHORIZATION, format!("Bearer {}", read(&endpoint.token)?.trim()))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let (status, body) = send(endpoint, &read(&endpoint.ca)?, request).await?;
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        return Err(format!("{} answers {status}: {}", endpoint.address, text.trim()));
    }
    let made: NodeResponse =
        serde_json::from_slice(&body).map_err(|error| format!("the answer is foul: {error}"))?;
    let renew_after = Duration::from_secs(made.renew_after_s);
    Ok(Fetched { node: made.node, renew_after, certificate: made.certificate, key, ca: made.ca })
}

async fn send(
    endpoint: &Endpoint,
    ca: &str,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let wrong = |what: &'static str| {
        let address = endpoint.address.clone();
        move |error: &dyn std::fmt::Display| format!("{address}: {what}: {error}")
    };
    let mut roots = RootCertStore::empty();
    // All of them: while the authority is replaced there are two.
    for ca in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(ca.map_err(|e| wrong("the CA")(&e))?).map_err(|e| wrong("the CA")(&e))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong("TLS")(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(endpoint.server_name.clone()).map_err(|e| wrong("name")(&e))?;
    let stream =
        TcpStream::connect(&endpoint.address).await.map_err(|e| wrong("cannot connect")(&e))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|e| wrong("TLS")(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| wrong("HTTP")(&e))?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| wrong("HTTP")(&e))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    driver.abort();
    Ok((status, body.map_err(|e| wrong("HTTP")(&e))?.to_bytes()))
}
