//! Makes the trust that node proxies share: a CA and a certificate for each node.
//!
//! For demo, tests and clusters without a certificate manager; any other CA whose certificates have
//! the node's name as a DNS SAN does as well. What it does not do: verify peers (the handshake does),
//! renew, revoke, or keep a CA's key safe beyond its file mode.

mod ca;
mod files;

pub use ca::{Ca, NodeCertificate, request};

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(
        "{0:?} cannot be a node's name: it is a DNS name of at most 253 lower-case letters, \
         digits, '-' and '.', as `kubectl get nodes` shows it, and not \"ca\""
    )]
    BadName(String),
    #[error("certificates for {0} days are not possible; choose 1 to 36500")]
    BadDays(u32),
    #[error("{} exists already; choose another directory, or --force to replace it", .0.display())]
    Exists(PathBuf),
    #[error(
        "{} is there, but {} is not; give the directory that has both, or remove it",
        .found.display(), .missing.display()
    )]
    HalfCa { found: PathBuf, missing: PathBuf },
    #[error("cannot read or write {}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the CA in {} cannot be used: {reason}", .path.display())]
    BadCa { path: PathBuf, reason: String },
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
    #[error(
        "what the CA signs is not accepted as its own: {0}; do certificate and key belong together?"
    )]
    NotAccepted(String),
}

impl TrustError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// What to make, and where.
#[derive(Debug, Clone)]
pub struct Request {
    pub dir: PathBuf,
    pub nodes: Vec<String>,
    /// How long the node certificates are valid from now on.
    pub days: u32,
    /// Where the CA is; `dir` if None. Made there if there is none and this is None.
    pub ca_dir: Option<PathBuf>,
    /// Replaces node certificates that exist. Never the CA.
    pub force: bool,
}

/// The files of one node, for `node.tls` of its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFiles {
    pub node: String,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub ca: PathBuf,
    /// Whether the CA is new.
    pub ca_made: bool,
    pub nodes: Vec<NodeFiles>,
}

/// The files of `node` in `dir`.
#[must_use]
pub fn node_files(dir: &Path, node: &str) -> NodeFiles {
    NodeFiles {
        node: node.to_owned(),
        cert: dir.join(format!("{node}.crt")),
        key: dir.join(format!("{node}.key")),
    }
}

/// Makes what `request` asks for: `ca.crt` and `ca.key` (if not there), `NODE.crt` and `NODE.key`.
///
/// # Errors
/// Before anything is written when a name is not valid, or a file exists already.
pub fn make(request: &Request) -> Result<Made, TrustError> {
    let nodes = check(request)?;
    std::fs::create_dir_all(&request.dir).map_err(TrustError::io(&request.dir))?;
    let (ca, ca_made) = match &request.ca_dir {
        Some(dir) => (files::load_ca(dir)?, false),
        None => files::load_or_make_ca(&request.dir)?,
    };
    let ca_file = request.dir.join(files::CA_CERT);
    files::copy_ca_cert(&ca, &ca_file)?;
    for node in &nodes {
        let made = ca.issue(&node.node, ca::DAY * request.days)?;
        files::write_pair(node, &made, request.force)?;
    }
    Ok(Made { ca: ca_file, ca_made, nodes })
}

fn check(request: &Request) -> Result<Vec<NodeFiles>, TrustError> {
    if !(1..=36_500).contains(&request.days) {
        return Err(TrustError::BadDays(request.days));
    }
    let mut nodes: Vec<NodeFiles> = Vec::with_capacity(request.nodes.len());
    for name in &request.nodes {
        if !ca::is_node_name(name) {
            return Err(TrustError::BadName(name.clone()));
        }
        let node = node_files(&request.dir, name);
        if nodes.contains(&node) {
            continue;
        }
        for file in [&node.cert, &node.key] {
            if !request.force && file.symlink_metadata().is_ok() {
                return Err(TrustError::Exists(file.clone()));
            }
        }
        nodes.push(node);
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests;
