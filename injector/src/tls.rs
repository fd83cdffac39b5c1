//! The serving certificate: taken up again whenever it changes, without a connection lost.
//!
//! What it does not do: make certificates (`certificates` does), or check them as a client will.

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const FILE_BYTES_MAX: u64 = 1 << 20;
/// kubelet takes longer to bring a changed Secret into a pod.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} cannot be used as the serving certificate: {1}")]
    Content(String, String),
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// The certificate in use; none at first.
#[derive(Debug, Default)]
pub struct Serving {
    current: ArcSwapOption<CertifiedKey>,
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl Serving {
    /// Whether there is a certificate.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.current.load().is_some()
    }

    /// Takes up another certificate. Returns whether it differs from the one in use.
    ///
    /// # Errors
    /// When certificate or key cannot be used or do not belong together; the old one stays.
    pub fn set(&self, cert_pem: &[u8], key_pem: &[u8], origin: &str) -> Result<bool, TlsError> {
        let wrong = |what: String| TlsError::Content(origin.to_owned(), what);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert_pem)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!("the certificate is no PEM: {error}")))?;
        if chain.is_empty() {
            return Err(wrong("there is no PEM certificate in it".into()));
        }
        if self.current.load().as_ref().is_some_and(|current| current.cert == chain) {
            return Ok(false);
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| wrong(format!("the key is no PEM: {error}")))?;
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|error| wrong(error.to_string()))?;
        self.current.store(Some(Arc::new(key)));
        Ok(true)
    }

    /// # Errors
    /// As [`Serving::set`], or when a file cannot be read.
    pub fn load(&self, cert: &Path, key: &Path) -> Result<bool, TlsError> {
        let (cert_pem, key_pem) = (read(cert)?, read(key)?);
        self.set(&cert_pem, &key_pem, &format!("{} with {}", cert.display(), key.display()))
    }

    /// Looks at the files for ever.
    pub async fn watch(&self, cert: &Path, key: &Path) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match self.load(cert, key) {
                Ok(true) => tracing::info!(cert = %cert.display(), "serving certificate taken up"),
                Ok(false) => told.clear(),
                // Once for each fault: between the two files of a change it may be seen half made.
                Err(error) if error.to_string() != told => {
                    told = error.to_string();
                    tracing::warn!(%error, "the serving certificate in use stays");
                }
                Err(_) => {}
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let wrong = |source| TlsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(wrong)?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(wrong)?;
    Ok(bytes)
}

/// TLS 1.3, which every API server speaks, and HTTP/1.1.
///
/// # Errors
/// When the provider does not know the versions: a fault of this file.
pub fn server_config(serving: Arc<Serving>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
