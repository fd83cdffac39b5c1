//! Mutual TLS 1.3 between node proxies: the files, what they must hold, and whose certificate a
//! peer showed. Changed files are taken up at the next handshake.
//!
//! What it does not do: make certificates (`rdmesh-proxy certs` does), or know who is a peer.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What a connection is for is part of the TLS handshake, so that no one on the way can make one
/// pass for the other.
pub const ALPN_CONTROL: &[u8] = b"rdmesh-control/1";
pub const ALPN_LINK: &[u8] = b"rdmesh-link/1";

/// A certificate file is small; anything bigger is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "node.tls.{key} is not set: give the path of the {what}; `rdmesh-proxy certs` makes a CA and node certificates"
    )]
    Unset { key: &'static str, what: &'static str },
    #[error("cannot read the {what} {path}: {source}; `rdmesh-proxy certs` makes one", path = path.display())]
    Read { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the {what} {path} {fault}; expected PEM as made by `rdmesh-proxy certs`", path = path.display())]
    Content { what: &'static str, path: PathBuf, fault: String },
    #[error(
        "the key {key} does not belong to the certificate {cert}: take both from the same run of `rdmesh-proxy certs`", key = key.display(), cert = cert.display()
    )]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error(
        "the certificate {cert} does not serve node {node:?}: {fault}; make one with `rdmesh-proxy certs` signed by the CA {ca}", cert = cert.display(), ca = ca.display()
    )]
    Useless { cert: PathBuf, ca: PathBuf, node: String, fault: String },
    #[error("node name {0:?} cannot stand in a certificate: use letters, digits, '-' and '.'")]
    NodeName(String),
}

/// What the handshakes use.
#[derive(Debug, Clone)]
pub struct Identity {
    pub control_client: Arc<ClientConfig>,
    pub link_client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
}

/// Enough of a file's metadata to notice that it was changed or replaced.
type Stamp = [(u64, u64, i64, i64, u64); 3];

#[derive(Debug)]
struct Current {
    identity: Identity,
    /// Of the files when they were last looked at, whether they were good or not.
    stamp: Option<Stamp>,
}

/// The node's own certificate and the CA that it trusts.
#[derive(Debug)]
pub struct Trust {
    node: String,
    files: TlsFiles,
    current: Mutex<Current>,
}

impl Trust {
    /// # Errors
    /// Which file, what is wrong with it, what to do.
    pub fn load(node: &str, files: TlsFiles) -> Result<Self, TlsError> {
        let stamp = stamp(&files);
        let identity = load_identity(node, &files)?;
        let current = Mutex::new(Current { identity, stamp });
        Ok(Self { node: node.to_owned(), files, current })
    }

    /// What the next handshake uses. Looks whether the files changed; bad ones are reported and
    /// the old identity is kept.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.files);
        if stamp != current.stamp {
            // Remembered also on failure: one log line per change, not per handshake.
            current.stamp = stamp;
            match load_identity(&self.node, &self.files) {
                Ok(identity) => {
                    current.identity = identity;
                    tracing::info!(cert = %self.files.cert.display(), "TLS files reloaded");
                }
                Err(error) => {
                    tracing::error!("changed TLS files are not used, the old ones stay: {error}");
                }
            }
        }
        current.identity.clone()
    }
}

fn stamp(files: &TlsFiles) -> Option<Stamp> {
    let one = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    };
    Some([one(&files.ca)?, one(&files.cert)?, one(&files.key)?])
}

/// The TLS name of a node.
///
/// # Errors
/// A name that no certificate can hold.
pub fn server_name(node: &str) -> Result<ServerName<'static>, TlsError> {
    match ServerName::try_from(node.to_owned()) {
        Ok(name @ ServerName::DnsName(_)) => Ok(name),
        _ => Err(TlsError::NodeName(node.to_owned())),
    }
}

/// Whether the certificate that a peer showed is one of the node `name`. Its chain was verified
/// in the handshake.
#[must_use]
pub fn is_certificate_of(certificates: Option<&[CertificateDer<'_>]>, name: &str) -> bool {
    let Some(first) = certificates.and_then(<[_]>::first) else { return false };
    let Ok(name) = server_name(name) else { return false };
    webpki::EndEntityCert::try_from(first)
        .is_ok_and(|cert| cert.verify_is_valid_for_subject_name(&name).is_ok())
}

fn read(key: &'static str, what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    if path.as_os_str().is_empty() {
        return Err(TlsError::Unset { key, what });
    }
    let failed = |source| TlsError::Read { what, path: path.to_owned(), source };
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        let fault = "is not a regular file of reasonable size".to_owned();
        return Err(TlsError::Content { what, path: path.to_owned(), fault });
    }
    fs::read(path).map_err(failed)
}

fn certificates(
    key: &'static str,
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(key, what, path)?;
    let content = |fault: String| TlsError::Content { what, path: path.to_owned(), fault };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, pem::Error>>()
        .map_err(|e| content(format!("is damaged ({e})")))?;
    if found.is_empty() {
        return Err(content("holds no certificate".to_owned()));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "private key";
    let bytes = read("key", what, path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| {
        let fault = match e {
            pem::Error::NoItemsFound => "holds no private key".to_owned(),
            e => format!("is damaged ({e})"),
        };
        TlsError::Content { what, path: path.to_owned(), fault }
    })
}

fn roots(files: &TlsFiles) -> Result<Arc<RootCertStore>, TlsError> {
    let what = "CA certificate";
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", what, &files.ca)? {
        roots.add(certificate).map_err(|e| TlsError::Content {
            what,
            path: files.ca.clone(),
            fault: format!("is not usable ({e})"),
        })?;
    }
    Ok(Arc::new(roots))
}

/// AES with keys of 128 bits goes first: ten rounds a block, where 256 bits take fourteen.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn load_identity(node: &str, files: &TlsFiles) -> Result<Identity, TlsError> {
    let provider = Arc::new(provider());
    let roots = roots(files)?;
    let chain = certificates("cert", "certificate", &files.cert)?;
    let key = private_key(&files.key)?;
    let name = server_name(node)?;

    let useless = |fault: String| TlsError::Useless {
        cert: files.cert.clone(),
        ca: files.ca.clone(),
        node: node.to_owned(),
        fault,
    };
    let servers =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|e| useless(e.to_string()))?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|e| useless(e.to_string()))?;
    // Judged as the peers will: an error now and here is better than one at each of them later.
    if let Some((own, between)) = chain.split_first() {
        let now = UnixTime::now();
        servers
            .verify_server_cert(own, between, &name, &[], now)
            .map_err(|e| useless(e.to_string()))?;
        clients.verify_client_cert(own, between, now).map_err(|e| useless(e.to_string()))?;
    }
    build(&provider, servers, clients, chain, key).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { cert: files.cert.clone(), key: files.key.clone() }
        }
        e => TlsError::Content {
            what: "private key",
            path: files.key.clone(),
            fault: format!("is not usable ({e})"),
        },
    })
}

fn build(
    provider: &Arc<CryptoProvider>,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Identity, rustls::Error> {
    const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.clone(), key.clone_key())?;
    // No resumption: every connection shows its certificate, and a changed CA counts at once.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_LINK.to_vec()];

    let mut control = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(VERSIONS)?
        .with_webpki_verifier(servers)
        .with_client_auth_cert(chain, key)?;
    control.resumption = rustls::client::Resumption::disabled();
    control.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
    let mut link = control.clone();
    link.alpn_protocols = vec![ALPN_LINK.to_vec()];
    Ok(Identity {
        control_client: Arc::new(control),
        link_client: Arc::new(link),
        server: Arc::new(server),
    })
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
